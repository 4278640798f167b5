"""What verdicts, checks and decisions ask for, each number once and with its reason.

A threshold belongs here if it says what is believed, what draws a warning, or what makes a run do more. Sizes (draws,
particles, iterations) stay where they are used. Thresholds are shares and nats, so that they mean the same for a
thousand draws and for a million. Where no source is named, the number is a choice, and its comment says what lies on
either side of it.

Sources:
    * Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling (1507.02646).
    * Vehtari, Gelman, Simpson, Carpenter, Buerkner 2021, rank-normalised R-hat (1903.08008).
    * Kass, Raftery 1995, Bayes factors, section 3.2.
"""

from __future__ import annotations

import math

# ---- weights of draws ----

GOOD_PARETO_K = 0.5
"""Largest pareto k at which the variance of the weights is finite (1507.02646, section 3): above it the usual standard
error has no limit and is widened, and a short annealing from the flow gives a second opinion."""

MAX_PARETO_K = 0.7
"""Largest pareto k that is trusted, of however many draws (1507.02646, section 3.2.4): above it the number of draws
that an estimate needs grows beyond what is practical."""

MIN_WEIGHT_ESS = 0.01
"""Share of effective draws among the weighted ones. With fewer than one in a hundred the flow hardly meets the
posterior, and the spread of its weights, from which their standard error comes, is itself hardly known."""

POOR_WEIGHT_ESS = 0.2
"""Share of effective draws below which a bad verdict is answered by a larger flow. With more of them the flow is right
where most of the mass lies and wrong in its tails, which annealing mends better and faster (docs/architecture.md, "A
refinement before a better flow")."""

GOOD_WEIGHT_ESS = 0.9
"""Share of effective draws from which on weights need no second opinion: their variance is then below 0.11 squared
means, so that hardly any draw weighs more than twice the mean. Below it, what the draws miss nearby may matter."""

EQUAL_SHARE = 0.99
"""Share of effective draws or particles from which on the tail of their weights has the shape of noise."""

EQUAL_MAX_OVER_MEAN = 2.0
"""Largest weight over the mean weight, of weights that are nearly equal: a single draw of six times the mean leaves
99 % of 4,096 draws effective, and is a tail all the same."""

NEGLIGIBLE_TAIL = 1e-3
"""Share of all weight in a tail whose shape cannot matter: lost altogether, it takes 0.001 nats."""

ENOUGH_STD_ERROR = 0.003
"""Standard error of a log evidence, nats, at which no more draws are made while there is a limit of draws to reach: a
thirtieth of what the verdict allows, beyond which no digit decides anything."""

TARGET_STD_ERROR = 0.01
"""Standard error of the log evidence, nats, that a run aims at unless it is asked for another: a tenth of what the
verdict allows, so that two models are told apart to a hundredth of a nat. What training alone could still give, draws
give sooner."""

HEAVY_SHARE = 0.05
"""Share of the posterior where weights are largest, in which particles are counted before training may stop early: of
512 particles 26 lie there, and half or twice as many would be seen."""

MIN_UNSEEN, UNSEEN_SIGMAS = 0.005, 4.0
"""Share of the posterior that particles find where draws of the flow hardly do, from which on it counts, and standard
errors that it has to differ by: the log evidence is low by the same number. It is looked for from several weights on,
and particles are not quite independent, so that it takes more than three."""

MIN_NARROWING = 1.0
"""Nats of volume that other coordinates lose where one is far out, from which on it leads into a neck: their standard
deviations, multiplied, are then a third of those in the middle. Three standard errors of that volume are added."""

MIN_UNLIKE = 0.05
"""Difference of the shares of two sets of particles, where a flow weighs them much, from which on it counts."""

# ---- chains of posterior draws ----

ENOUGH_CHAIN_ESS = 0.5
"""Share of effective draws among posterior draws from which on a flow is not trained further for their sake. Of the
default of 4,000 that is 2,000: the error of a mean is 0.022 standard deviations, and NUTS seldom gives more."""

MANY_EFFECTIVE = 2000
"""Effective posterior draws that are enough, of however many there are."""

MIN_CHAIN_ESS = 0.2
"""Share of effective draws among the posterior draws of a run, in its worst coordinate. Of the default of 4,000 that is
800: the error of a mean is 0.035 standard deviations, and one of 0.1 is improbable (Gaussian, 0.5 %)."""

MAX_R_HAT = 1.05
"""Split R-hat of the chains in their worst coordinate. 1.01 is the usual limit for chains that walk (1903.08008);
independent proposals of a good flow stay far below it, and the noise of 800 effective draws reaches 1.02."""

MIN_CHAIN_LENGTH = 200
"""Draws of a chain from which on its mixing is judged: half of a shorter chain is too short for a variance, and of many
coordinates some would look bad by chance."""

# ---- the log evidence and the log density ----

MAX_STD_ERROR = 0.1
"""Standard error of a log evidence, nats. Bayes factors are read in steps of about one nat ("positive" begins there,
Kass and Raftery); a tenth of it decides nothing, and half of it does."""

MAX_ROUNDING = 0.05
"""Standard deviation of what rounding adds to a log density, nats: what the evidence may be wrong by without a word."""

MAX_NOT_FINITE = 0.001
"""Share of draws with a log density of nan or +inf. Their mass is lost: a share of 0.001 loses about 0.001 nats."""

MAX_UNDEFINED = 0.01
"""Share of the draws of a prior with a density that is not a number: heavy tails overflow at fewer."""

MAX_SATURATED = 0.001
"""Share of the posterior, by weight, whose values are rounded to a bound: a share of 0.001 hides about as many nats."""

MAX_OUT_OF_RANGE = 0.01
"""Share of the posterior, by weight, where a parameter of a distribution is out of range: it is worth as many nats."""

SAME_LIKELIHOOD = 0.01
"""Nats by which a log likelihood may still change, on average over draws, just before values are rounded to a bound."""

MAX_LOG_PROBABILITY = 1e-3
"""Nats by which rounding may lift the log probability of a discrete observation above zero."""

# ---- discrete latents ----

MAX_JOINT = 4096
"""Joint values of discrete latents that are summed one by one where elimination cannot: twelve indicators, or six sites
of four values. A density then costs as much as that of so many times the data; ten times as many would take hours."""

MAX_JOINT_SLOWLY = 64
"""The same where each is a run of the model of its own, of a millisecond: a density is to take less than a tenth of a
second."""

MAX_JOINT_TERMS = 2**21
"""Densities of single values in such a sum: in double precision, sixteen points at once, a block, hold 256 MiB for each
operation whose result is kept for gradients."""

MAX_TRUNCATED = 0.01
"""Nats of log evidence that values beyond a stated bound may add without a word: a tenth of :data:`MAX_STD_ERROR`."""

MAX_PRIOR_BEYOND = 1e-6
"""Prior mass of a count that may lie beyond the values that are looked at, given other discrete latents: it counts for
0.01 nats only if observations are ten thousand times as probable there as where the rest of the mass lies."""

# ---- two estimates of one log evidence ----

MAX_SIGMAS = 3.0
"""Combined standard errors between two estimates of one number: 0.3 % of honest pairs lie further apart."""

CHECK_QUANTILE = 1.5
"""Factor on the standard error from the spread of eight replicates: their t distribution has the quantile at 4.5 that a
normal has at 3."""

MIN_CHECK_ERROR = 0.03
"""Least standard error of an exploration, nats: replicates share temperatures and scales, so that their spread claims a
little too much."""

MIN_REFINEMENT_ERROR = 0.01
"""The same for annealing from the flow, whose path is short."""

LOST_SHARE = 0.02
"""Share of the evidence in a part of the posterior that search found, from which on the part may not be missed: losing
it costs 0.02 nats, a fifth of the standard error that the verdict allows. A smaller one would be told from the noise of
512 particles only by chance."""

UNREACHED = 0.005
"""Nats that annealing from the flow may leave unreached in a narrow neck, the same in all its replicates."""

LOWER_SIGMAS = 2.0
"""Standard errors by which an annealing run that began where a mode was looked for has to lie below the one before to
be refused: annealing that misses a part is too low, so the lower of two is no discovery. A repeat that is refused by
chance costs the time that it took, and no more."""

MIN_ACCEPTANCE = 0.3
"""Mean acceptance of Hamiltonian moves below which particles hardly move; they aim at 0.75."""

MIN_ANCESTORS = 4
"""Effective number of starting points on each replicate whose descendants are left. One over it is about the variance
of a replicate's log evidence, so that of two replicates in three the error is below half a nat; with fewer, a single
one may carry all of a replicate, and sixteen of them do not show what they lost."""

MAX_SHARE_ERROR = 0.05
"""Standard error of the share of a part of the posterior, from the spread of replicates of annealed SMC: the same
absolute error is asked of the means of indicators that :data:`SMALL_ERROR` asks of a coin's, half of 0.1."""

HOPELESS_ESS, HOPELESS_NATS = 0.001, 3.0
"""Share of effective draws, and nats of the ELBO below exploration's log evidence, with valleys all over the posterior:
there neither a larger flow nor a refinement from it has ever given what exploration knew. Measured: four particles in a
plane, 2 of 32,768 draws effective and 4.8 nats below, larger flow and refinement 2.8 nats off; a neural network in 32
dimensions, 3 of 32,768 and 45 nats. The flow of 65,536 wells, which is good, lies 0.7 nats below."""

# ---- from the flow of another posterior ----

MAX_WARM_TEMPERATURES = 12
"""Temperatures of annealing from the flow of another posterior. It takes five at least; one that needs many more comes
from somewhere else."""

MAX_WARM_ERROR = 0.2
"""Standard error of that annealing, nats. Twice what the verdict allows: it is a start, and a fit is judged anew."""

# ---- the flow against reference draws ----

SMALL_NATS = 0.05
"""Difference of log evidences, nats, that does not matter however sure it is: half of :data:`MAX_STD_ERROR`."""

SMALL_ERROR = 0.1
"""Error of a mean in standard deviations of the reference, and of the log of a standard deviation, that does not matter
however sure it is: the draws of posteriordb are held against the same limit (docs/accuracy.md)."""

LARGE_NATS = 1.0
"""Distance of the upper bound from the log evidence, nats, from which on the flow is to blame whatever its tails look
like: the divergence KL(posterior || flow) is that large, and a calibrated flow leaves less than a tenth of it."""

CERTAIN_NATS = 7.0
"""Difference of log evidences, nats, that no chance explains. By Markov's inequality weights of the flow overstate the
evidence by *t* nats, and those of draws of the posterior understate it by as many, with a chance of exp(-t) each,
whatever their tails: a thousandth, where standard errors of heavy tails say nothing."""

MAX_LOST = 0.01
"""Share of reference draws with density zero under the model: more than rounding at an edge of the support makes."""

# ---- draws from elsewhere in the place of an exploration ----

MIN_GIVEN_PER_DIM = 10
"""Different draws for each dimension: half of them are fitted to, and of five a dimension a covariance is known to some
ten percent in each direction, which annealing mends. Of fewer it is noise."""

FAR_BELOW, FAR_BELOW_SDS = 10.0, 6.0
"""Nats, and standard deviations of the log density, by which draws lie below a posterior that is not theirs. The log
density of a Gaussian in D dimensions varies by sqrt(D / 2), and its middle by less than one of them from one third of a
chain that hardly mixes to another; a draw ten standard deviations off in one dimension lies fifty nats below."""

MAX_STUCK = 0.1
"""Share of the second half of a chain that may lie so far below: warm-up is at the beginning, and what is there later
is a chain that did not converge. A tenth is more than a heavy tail leaves there."""

# ---- what exploration makes of its particles ----

SHORT_WAY = 3
"""Temperatures of annealing up to which its log evidence is a good check. After a longer way the base that was found
starts another one."""

MANY_PARTED = 0.02
"""Share of pairs of particles with a valley between them, from which on the posterior has more than one mode: below it
lie single modes that are a little curved; a second mode with a share of 0.01 of the mass parts 0.02 of the pairs."""

MAX_MODES_IN_ORDER = 6
"""Modes that may be left where exchangeable components are put in order, if a mixture could cover all copies as well.
One mode in place of K! copies is what an order is for; of eighteen modes on a grid twelve are left, each of them bent
and thin, and a quarter of some was lost."""

FOLDED = 0.25
"""The same share, from which on a posterior without a mixture base is folded; a funnel, curved as it is, has fewer."""

MIN_COORDINATE_GAIN = 0.5
"""Nats by which the divergence from a Gaussian has to fall for standardised coordinates to be taken. Less may be noise:
the log volume of N particles has a standard error of sqrt(D / 2N), 0.1 nats in ten dimensions with 512 of them."""

MIN_MIRROR_GAIN = 0.1
"""Nats by which the divergence from a Gaussian has to fall for a posterior to be seen on one side of a mirror. Two
modes gain as much from a distance of four of their standard deviations on; a single mode loses 0.2."""

MIN_FRAME_GAIN = 0.1
"""Nats by which the divergence from a Gaussian has to fall for particles that may be turned to be seen from a frame of
their own. A ring gains ln(radius / width) - 0.4, 1.9 nats where it is a tenth as wide; a Gaussian around the origin
loses 0.2."""

MIN_TURN_GAIN = 0.1
"""Nats by which the divergence from a Gaussian has to fall for a circle to be cut elsewhere. An angle with a thousandth
of its mass beyond the cut gains as much, one of which nothing is known gains none; less is noise of the variance."""

POOR_BASE, GOOD_BASE = 0.1, 0.5
"""Effective shares of a base's own draws: where a Gaussian has less than the first a mixture is tried, which is kept
where it has more than the second. From more than a tenth a flow is trained without a mixture; a mixture that leaves
less than a half would make its flow slower to train, and not right."""

# Neighbours of single precision need nine; what needs more is written as Python does it.
_MAX_DIGITS = 15

MAX_SOLVER_DIFFERENCE, MAX_SOLVER_RATIO, MAX_SOLVER_SLOPE = 1e-3, 1e-6, 1e-3
"""By how many nats, and by what share, a log density may differ between one grid for a batch and a grid for each point,
and by how much a score: two solutions within the same tolerances differ by them. A thousandth of a nat is less than
any standard error of a log evidence that is called reliable; far out, where log densities are in millions, their
tolerances are so, too."""

MAX_SOLVER_DEPTH = 1e-5
"""The same as a share of the nats by which a point lies below the best of those that are compared: a hundredth of a nat
at a point a thousand below, which no posterior knows of."""


def pareto_k_threshold(num_draws: int) -> float:
    """The largest trustworthy pareto k for a number of draws: ``min(1 - 1 / log10(S), 0.7)``.

    Source: Vehtari et al. 2024 (1507.02646), section 3.2.4.

    Example:
        >>> pareto_k_threshold(10_000)
        0.7
    """
    return min(1.0 - 1.0 / math.log10(max(num_draws, 2)), MAX_PARETO_K)


def apart(value: float, bound: float, digits: int = 2) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to tell them apart.

    Arguments:
        value: What was seen.
        bound: What it is held against.
        digits: Digits after the point at least.

    Example:
        >>> apart(0.7004, 0.7)
        ('0.7004', '0.7000')
        >>> apart(0.93, 0.7)
        ('0.93', '0.70')
    """
    while value != bound and digits < _MAX_DIGITS and float(f"{value:.{digits}f}") == float(f"{bound:.{digits}f}"):
        digits += 1
    if value != bound and digits == _MAX_DIGITS:
        return repr(value), repr(bound)

    return f"{value:.{digits}f}", f"{bound:.{digits}f}"
