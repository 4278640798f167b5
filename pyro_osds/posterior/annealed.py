r"""Annealed SMC as a result: draws and evidence that need no flow, so that no run ends below what annealing knows.

Replicates :math:`r` of annealing from the prior, or from the best reference that exploration had, each give an unbiased
:math:`\hat Z_r`, and the particles of each weigh as much as their replicate:

.. math:: \hat Z = \frac1R \sum_r \hat Z_r, \qquad
    \mathrm{E}_p f \approx \frac{\sum_r \hat Z_r \bar f_r}{\sum_r \hat Z_r}, \qquad
    \mathrm{ELBO} = \frac1R \sum_r \log \hat Z_r .

Particles are doubled until the spread of the replicates gives the precision that was asked for or what a run may take
is used up. The bias falls with the number of particles, so each run is held against the one before.

Source: Del Moral, Doucet, Jasra 2006; the bound: Naesseth, Linderman, Ranganath, Blei 2018 (1705.11140).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_osds.explore.anew import explore_anew, move_on
from pyro_osds.explore.particles import Exploration, resample
from pyro_osds.explore.search.parts import Part, lost_by_particles
from pyro_osds.explore.survey import MAX_TERMS, Survey
from pyro_osds.posterior.annealed_reasons import run_reasons, size_reasons, spread_reasons, tail_reasons
from pyro_osds.posterior.draws import PosteriorDraws, rounding_at
from pyro_osds.posterior.evidence import Evidence, Reason
from pyro_osds.posterior.reasons import (
    below_reasons,
    check_reasons,
    error_reasons,
    lost_reasons,
    not_finite_reasons,
    rounding_reasons,
)
from pyro_osds.posterior.source import DrawSource
from pyro_osds.posterior.verdict import with_verdicts
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.stats.thresholds import EQUAL_SHARE, MAX_SHARE_ERROR, MAX_STD_ERROR, SMALL_ERROR, UNREACHED
from pyro_osds.stats.weights import FlowDraws, join

ANNEALED_SMC = "annealed SMC"
"""The stage, as reports and draws call it."""

NUM_REPLICATES = 16
"""Their spread is then known to a fifth, and a single one does not carry the mean."""

# Particles on each replicate to begin with.
_FEWEST = 64
# Share of effective particles that a change of temperature leaves, moves at each, and temperatures at most: with more
# temperatures rather than more particles, moves are more, too, and the bias is smaller at the same spread.
_ESS_THRESHOLD, _NUM_MOVES, _MAX_TEMPERATURES = 0.8, 3, 1000
# Leapfrog steps of a move at most, where shorter ones leave particles behind.
_MAX_LEAPFROG = 40
# Terms of a log density whose number is not known, since it has few, and how many more for each dimension: measured on
# particles in a plane and on a lattice, 2 and 11 microseconds an evaluation.
_UNKNOWN, _BY_DIMENSION = 64, 2
# Rounds of crossovers at each temperature, a tenth of its evaluations.
_NUM_CROSSOVERS = 2
# Rounds of moves of the chosen draws at the target.
_LAST_MOVES = 4
# Evaluations of one, and draws that are moved at least, by dimension: with fewer their scale is unknown.
_EVALUATIONS, _MOVED_AT_LEAST = 6, 8
# Seconds after the end of its time in which draws may still be moved.
_GRACE = 1.0
# A run is not begun where it would leave more than so many times the standard error that the verdict allows.
_POINTLESS = 2.0


class _Runs(NamedTuple):
    """The run with most particles, the one before, and whether there was time for all that the plan has."""

    last: Exploration
    before: Exploration | None
    is_whole: bool


@dataclass(frozen=True)
class AnnealedSMC:
    """Annealed SMC of one fit.

    Arguments:
        given: The target in the coordinates that it was given in.
        found: What exploration found; its coordinates are those of the draws.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
        num_chains: Chains of posterior draws.
        num_samples: Draws of each chain.
        std_error: Standard error of the log evidence that is asked for, nats.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which no further run is begun. Where there is one, all
            of the time is used while that precision is not reached; otherwise a counted number of evaluations.
        improper_sites: Latent sites with an improper prior.
        objections: What else speaks against the results.
    """

    given: Any
    found: Survey
    starts: Tensor | None
    num_chains: int
    num_samples: int
    std_error: float
    deadline: float = math.inf
    improper_sites: Sequence[str] = ()
    objections: Callable[[], Sequence[Reason]] = tuple

    def source(self) -> DrawSource:
        """The same as a source of draws."""
        return DrawSource(ANNEALED_SMC, "draws of annealed SMC", self.more, self.posterior)

    def posterior(self, judged: PosteriorDraws) -> PosteriorDraws:
        """Posterior draws and the verdict on them.

        Arguments:
            judged: Draws and verdict of the stage before; what they say of the density itself still holds.
        """
        # What gave the draws that there are gives as many anew: its first runs need not show again that it is worth it.
        known = judged.evidence.num_draws // NUM_REPLICATES if judged.source == ANNEALED_SMC else 0
        runs, num_draws = self._runs(known), self.num_chains * self.num_samples
        z, log_prob = self._moved(runs.last, num_draws)
        evidence = self._judged(runs, judged, rounding_at(self.found.target, z, log_prob))
        nothing = torch.zeros_like(log_prob)
        proposals = FlowDraws(z, nothing, log_prob, torch.full_like(log_prob, math.nan), 0)
        # In random order, so that draws of one replicate do not follow each other.
        index = torch.randperm(len(z), device=z.device)[:num_draws].view(self.num_chains, self.num_samples)

        return PosteriorDraws(
            proposals,
            index,
            torch.full_like(index, math.nan, dtype=log_prob.dtype),
            evidence,
            None,
            judged.flow_log_weight,
            judged.flow_not_finite,
            runs.is_whole,
            ANNEALED_SMC,
        )

    def more(self, num_draws: int) -> FlowDraws:
        """Fresh weighted draws: particles of as many runs as it takes, each weighing as much as its replicate.

        Arguments:
            num_draws: How many.
        """
        parts, left = [], num_draws
        while left > 0:
            run = self._annealed(max(_FEWEST, math.ceil(min(left, self._most_at_once) / NUM_REPLICATES)))
            count = min(left, len(run.z))
            # As many of each replicate, since the weights are those of the replicates.
            index = torch.arange(count, device=run.z.device) * len(run.z) // count
            log_weight = run.replicate_log_evidence.repeat_interleave(len(run.z) // NUM_REPLICATES)
            nothing = torch.full((count,), math.nan, dtype=run.log_prob.dtype, device=run.z.device)
            parts.append(FlowDraws(run.z[index], log_weight[index], run.log_prob[index], nothing, 0))
            left -= count

        return join(parts)

    @property
    def _most_at_once(self) -> int:
        """Particles of one run, whose memory does not grow with the draws that are asked for."""
        return max(NUM_REPLICATES * _FEWEST, 2**22 // self.found.target.dim)

    def _moved(self, run: Exploration, num_draws: int) -> tuple[Tensor, Tensor]:
        """Draws chosen from the particles and, where that is affordable, moved on; more of them than few, for a scale.

        Arguments:
            run: The particles.
            num_draws: How many draws at least.
        """
        index = chosen(run, max(num_draws, _MOVED_AT_LEAST * self.found.target.dim))
        cost = len(index) * _EVALUATIONS * self._num_terms
        num_moves = min(_LAST_MOVES, int(MAX_TERMS / 4.0 / cost)) if self.given.vectorized else 0
        try:
            with time_limit(max(self.deadline, now() + _GRACE)):
                return move_on(self.found, run.z[index], num_moves)
        except OutOfTimeError:
            return run.z[index], run.log_prob[index]

    # ---- runs ----

    def _annealed(self, num_particles: int) -> Exploration:
        return explore_anew(
            self.given,
            self.found,
            num_particles,
            NUM_REPLICATES,
            self.starts,
            ess_threshold=_ESS_THRESHOLD,
            num_moves=_NUM_MOVES,
            max_temperatures=_MAX_TEMPERATURES,
            max_leapfrog=_MAX_LEAPFROG,
            num_crossovers=_NUM_CROSSOVERS,
            phase="Annealed SMC",
        )

    def _runs(self, known: int = 0) -> _Runs:
        """Runs with twice the particles each, until they are precise enough or too long.

        Arguments:
            known: Particles of a replicate that were affordable, and gave what is to be given anew.
        """
        last, before = self.found.exploration, None
        spent, seconds, num_particles = 0.0, 0.0, max(_FEWEST, known // 2)
        while not (before is not None and self._is_enough(last)):
            cost = self._cost(last, num_particles)
            is_planned = num_particles <= known or self._is_worth_it(last, num_particles, spent + cost)
            # A run takes about twice as long as one with half the particles.
            is_in_time = now() + 2.0 * seconds < self.deadline
            if not is_in_time or not (is_planned or self.deadline < math.inf):
                return _Runs(last, before, is_in_time or not is_planned)
            start = now()
            try:
                with time_limit(self.deadline):
                    run = self._annealed(num_particles)
            except OutOfTimeError:
                return _Runs(last, before, not is_planned)
            seconds, spent = now() - start, spent + self._cost(run, num_particles)
            last, before, num_particles = run, last, 2 * num_particles

        return _Runs(last, before, is_whole=True)

    def _is_enough(self, run: Exploration) -> bool:
        of_means, of_shares = replicate_errors(run, self.found.parts)
        agree = of_means <= SMALL_ERROR and of_shares <= MAX_SHARE_ERROR

        return run.std_error <= self.std_error and agree and len(run.z) >= self.num_chains * self.num_samples

    def _cost(self, run: Exploration, num_particles: int) -> float:
        """Terms of the log density that a run would take, by what the last one took for each particle."""
        each = run.num_evaluations / max(len(run.z), 1)

        return each * num_particles * NUM_REPLICATES * self._num_terms

    @property
    def _num_terms(self) -> int:
        return max(self.given.num_terms, _UNKNOWN + _BY_DIMENSION * self.found.target.dim)

    def _is_worth_it(self, last: Exploration, num_particles: int, cost: float) -> bool:
        """Whether a run is affordable, and what could be afforded in all would leave a verdict that says something."""
        if not self.given.vectorized or cost > MAX_TERMS:
            return False
        most = num_particles * NUM_REPLICATES * MAX_TERMS / cost

        return last.std_error * math.sqrt(len(last.z) / most) <= _POINTLESS * MAX_STD_ERROR

    # ---- the verdict ----

    def _judged(self, runs: _Runs, judged: PosteriorDraws, rounding: float) -> Evidence:
        run, before = runs.last, judged.evidence
        estimate, num_particles = run.log_evidence, len(run.z)
        std_error = math.hypot(run.std_error, UNREACHED, rounding)
        k = -math.inf if run.ess > EQUAL_SHARE * num_particles else run.pareto_k
        lost = lost_by_particles(self.found.parts, run.z, run.replicate_log_evidence, estimate)
        reasons = [
            *self.objections(),
            *lost_reasons(lost, estimate),
            *run_reasons(run),
            *size_reasons(runs.before, run),
            *spread_reasons(*replicate_errors(run, self.found.parts)),
            *tail_reasons(k, num_particles),
            *not_finite_reasons(judged.flow_not_finite, len(judged.flow_log_weight)),
            *rounding_reasons(rounding),
            *([] if self.improper_sites or run.std_error > MAX_STD_ERROR else error_reasons(std_error)),
        ]
        healthy = not any(reason.evidence for reason in reasons)
        reasons += check_reasons(estimate, std_error, before.check, healthy)
        reasons += below_reasons(estimate, std_error, before)
        numbers = replace(
            before,
            log_evidence=estimate,
            std_error=std_error,
            elbo=run.replicate_log_evidence.double().mean().item(),
            ess=run.ess,
            pareto_k=k,
            num_draws=num_particles,
        )

        return with_verdicts(numbers, reasons, tuple(self.improper_sites))


def replicate_errors(run: Exploration, parts: Sequence[Part] = ()) -> tuple[float, float]:
    """What the spread of the replicates says of the particles: errors of means, and of shares of parts.

    Arguments:
        run: The particles, and the log evidences of the replicates.
        parts: Parts of the posterior that search found.

    Returns:
        The largest standard error of the mean of a coordinate or of the log density, in standard deviations, and the
        largest one of the share of a part; 0 without parts.
    """
    num_replicates = len(run.replicate_log_evidence)
    weight = torch.softmax(run.replicate_log_evidence.double(), 0)

    def errors(values: Tensor) -> tuple[Tensor, Tensor]:
        """Standard errors of means and standard deviations of columns, ``(R * N, C) -> (C,), (C,)``."""
        by_replicate = values.double().unflatten(0, (num_replicates, -1))
        means = by_replicate.mean(1)
        mean = weight @ means
        variance = weight @ (by_replicate - mean).square().mean(1)
        error = (weight.square() @ (means - mean).square() * num_replicates / (num_replicates - 1)).sqrt()
        return error, variance.sqrt()

    finite = torch.where(run.log_prob.isfinite(), run.log_prob, run.log_prob[run.log_prob.isfinite()].mean())
    error, sd = errors(torch.cat([run.z, finite[:, None]], 1))
    of_means = (error / sd.clamp(min=torch.finfo(sd.dtype).tiny)).max().item()
    basins = [part.holds(run.z.to(part.centre)) for part in parts if not part.is_halo]
    of_shares = errors(torch.stack(basins, 1))[0].max().item() if basins else 0.0

    return of_means, of_shares


def chosen(run: Exploration, num_draws: int) -> Tensor:
    """Particles that become posterior draws, by the weights of their replicates: systematic resampling.

    Within a replicate particles are taken in the order of their leading principal component, so that shares of what
    lies apart there are kept to within one draw for each replicate.

    Arguments:
        run: The particles, and the log evidences of the replicates.
        num_draws: How many draws.

    Returns:
        Their indices, ``(num_draws,)``.
    """
    num_replicates = len(run.replicate_log_evidence)
    centred = run.z.double() - run.z.double().mean(0)
    leading = torch.linalg.eigh(centred.mT @ centred)[1][:, -1]
    order = (centred @ leading).view(num_replicates, -1).argsort(1)
    order = order + torch.arange(num_replicates, device=order.device)[:, None] * order.shape[1]
    log_weight = run.replicate_log_evidence.double().repeat_interleave(order.shape[1])

    return order.reshape(-1)[resample(log_weight[None], num_draws)]
