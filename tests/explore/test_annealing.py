"""Annealing: resampling keeps proportions, moves keep the density, replicates give the evidence and its error."""

import math

import models
import pytest
import torch
from helpers import assert_within_standard_error
from torch.distributions import MultivariateNormal

from pyro_osds.explore.annealing import _increment, _places, _settled, explore
from pyro_osds.explore.hmc import Points
from pyro_osds.explore.moves import HamiltonianMover, _drifts
from pyro_osds.explore.particles import Annealing, MovesSoFar, resample
from pyro_osds.explore.paths import PriorPath, ReferencePath
from pyro_osds.model import ModelTarget
from pyro_osds.stats.pareto import pareto_k
from pyro_osds.stats.weights import effective_sample_size
from pyro_osds.target import FunctionTarget


def from_gaussian(log_prob_fn, dim, sd, dtype=None):
    target = FunctionTarget(log_prob_fn, dim, dtype)
    reference = MultivariateNormal(torch.zeros(dim, dtype=torch.float64), sd**2 * torch.eye(dim, dtype=torch.float64))

    return ReferencePath(target, lambda n: reference.sample((n,)), reference.log_prob)


def test_systematic_resampling_keeps_proportions():
    # Each particle is taken N w times, rounded up or down, and never by another replicate.
    weights = torch.rand(3, 50, dtype=torch.float64).square()
    weights[1, :40] = 0
    index = resample(weights.log())
    expected = 50 * weights / weights.sum(1, keepdim=True)
    taken = index.bincount(minlength=150).view(3, 50)
    assert ((taken >= expected.floor()) & (taken <= expected.ceil())).all()
    assert (taken.sum(1) == 50).all()


def test_systematic_resampling_has_the_right_mean():
    # On average over its random offset a particle is taken N w times.
    weights = torch.tensor([[0.05, 0.15, 0.8]], dtype=torch.float64)
    taken = torch.stack([resample(weights.log()).bincount(minlength=3) for _ in range(2000)]).double()
    for i in range(3):
        assert_within_standard_error(taken[:, i].mean(), 3 * weights[0, i], taken[:, i].std().item() / math.sqrt(2000))


def test_a_replicate_without_weight_keeps_all_its_particles():
    # All weights zero: nothing to choose by, so everything stays.
    assert resample(torch.full((1, 6), -torch.inf)).tolist() == [0, 1, 2, 3, 4, 5]


def test_increment_leaves_the_share_that_was_asked_for():
    # The effective sample size after the increment is the threshold; where the rest of the way is easy it is taken
    # whole.
    log_ratio = 30 * torch.randn(4, 1000, dtype=torch.float64)
    increment = _increment(log_ratio, 1.0, 0.5)
    weights = torch.softmax(increment * log_ratio, 1)
    share = (1 / weights.square().sum(1)).mean() / 1000
    assert 0 < increment < 1 and math.isclose(share.item(), 0.5, abs_tol=1e-3)
    assert _increment(1e-3 * log_ratio, 0.7, 0.5) == 0.7


def test_moves_leave_the_target_unchanged(float64):
    # Exact draws stay exact draws: mean and variance of log gamma variables after many moves.
    draws = torch.distributions.Gamma(models.LOG_GAMMA_SHAPE, 1.0).sample((3000, 2)).log()
    mover = HamiltonianMover(from_gaussian(models.log_gamma, 2, 3.0), num_moves=5, num_leapfrog=5)
    z, _, _, (_, log_target, *_) = mover.move(draws, (), 1.0)
    truth = torch.tensor(models.LOG_GAMMA_SHAPE)
    mean, variance = torch.digamma(truth).item(), torch.polygamma(1, truth).item()
    square = (z - mean).square()
    for i in range(2):
        assert_within_standard_error(z[:, i].mean(), mean, math.sqrt(variance / 3000))
        assert_within_standard_error(square[:, i].mean(), variance, square[:, i].std().item() / math.sqrt(3000))
    torch.testing.assert_close(log_target, models.log_gamma(z))
    assert (z != draws).all(1).double().mean() > 0.9


def test_evidence_of_a_gaussian(float64):
    # A correlated Gaussian of known normaliser, off the reference's centre.
    factor = torch.tensor([[0.5, 0.0, 0.0], [0.4, 0.3, 0.0], [-0.2, 0.1, 1.0]])
    normal = MultivariateNormal(torch.tensor([1.0, -2.0, 3.0]), scale_tril=factor)
    found = explore(from_gaussian(lambda z: normal.log_prob(z) + 2.5, 3, 3.0), 128, 16)
    assert_within_standard_error(found.log_evidence, 2.5, found.std_error)
    assert found.num_not_finite == 0 and 0.3 < found.acceptance <= 1
    torch.testing.assert_close(found.log_prob, normal.log_prob(found.z) + 2.5)
    replicates = found.z.view(16, 128, 3).mean(1)
    for i in range(3):
        assert_within_standard_error(replicates[:, i].mean(), normal.mean[i], replicates[:, i].std().item() / 4)


def test_evidence_and_proportions_of_two_modes(float64):
    # Weights 1/4 and 3/4, ten standard deviations apart: the replicates find both, in proportion.
    log_prob_fn = models.mixture_log_prob([[-5.0, 0.0], [5.0, 0.0]], [0.25, 0.75])
    found = explore(from_gaussian(log_prob_fn, 2, 6.0), 128, 16)
    assert_within_standard_error(found.log_evidence, 0.0, found.std_error)
    right = (found.z[:, 0] > 0).double().view(16, 128).mean(1)
    assert_within_standard_error(right.mean(), 0.75, right.std().item() / 4)


@pytest.mark.parametrize(
    ("model", "log_evidence"),
    [
        (models.conjugate, models.CONJUGATE_LOG_EVIDENCE),
        (models.beta_binomial, models.BETA_BINOMIAL_LOG_EVIDENCE),
        (models.regression, models.regression_log_evidence()),
    ],
)
def test_evidence_from_the_prior(model, log_evidence):
    # Models with an exact evidence, annealed from their own priors.
    found = explore(PriorPath(ModelTarget(model)), 128, 16)
    assert_within_standard_error(found.log_evidence, log_evidence, found.std_error)


def test_the_same_density_is_one_step_and_exact(float64):
    # Reference and target differ by a factor e^2: every weight is the same and so is every replicate.
    reference = MultivariateNormal(torch.zeros(2), torch.eye(2))
    found = explore(from_gaussian(lambda z: reference.log_prob(z) + 2, 2, 1.0), 32, 4)
    torch.testing.assert_close(found.replicate_log_evidence, torch.full((4,), 2.0))
    assert found.num_temperatures == 1 and math.isclose(found.log_evidence, 2.0) and found.std_error < 1e-9


def test_evidence_is_the_mean_over_replicates(float64):
    # log_evidence and std_error follow from the replicates' estimates by their formulas.
    found = explore(from_gaussian(models.log_gamma, 2, 2.0), 32, 8)
    means = found.replicate_log_evidence.exp()
    assert math.isclose(found.log_evidence, means.mean().log().item(), rel_tol=1e-9)
    assert math.isclose(found.std_error, (means.std() / means.mean() / math.sqrt(8)).item(), rel_tol=1e-9)


def test_half_of_the_space_is_impossible(float64):
    # A half-normal: nan on the left costs a factor 1/2 and no more, no particle ends there, and they are counted.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), torch.nan)

    found = explore(from_gaussian(log_prob_fn, 1, 2.0), 128, 16)
    assert_within_standard_error(found.log_evidence, 0.5 * math.log(2 * math.pi) - math.log(2), found.std_error)
    assert (found.z > 0).all() and found.log_prob.isfinite().all()
    assert_within_standard_error(found.num_not_finite, 1024, math.sqrt(2048) / 2)


def test_a_density_that_is_never_finite_is_refused():
    # The value and a point are in the message.
    with pytest.raises(ValueError, match="not finite at any of 8192 starting points"):
        explore(from_gaussian(lambda z: torch.full_like(z[:, 0], -torch.inf), 2, 1.0), 8, 4)


def test_a_run_always_ends(float64):
    # At most max_temperatures steps, the last one all the way.
    found = explore(from_gaussian(lambda z: -0.5 * (100 * (z - 3)).square().sum(-1), 2, 5.0), 16, 2, max_temperatures=3)
    assert found.num_temperatures == 3


def test_evaluations_are_counted():
    # The count is the number of rows that the density was asked for.
    rows = []

    def log_prob_fn(z):
        rows.append(len(z))
        return models.log_gamma(z)

    path = from_gaussian(log_prob_fn, 2, 2.0)
    rows.clear()
    assert explore(path, 16, 2).num_evaluations == sum(rows)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_temperatures_at_least(count, float64):
    # An easy way is cut into equal steps, and its evidence stays right.
    reference = MultivariateNormal(torch.zeros(2), torch.eye(2))
    path = from_gaussian(lambda z: reference.log_prob(z) + 0.1 * z[:, 0] + 2, 2, 1.0)
    found = explore(path, 128, 16, min_temperatures=count)
    assert found.num_temperatures == count
    assert_within_standard_error(found.log_evidence, 2 + 0.1**2 / 2, found.std_error)


def test_tail_and_effective_number_of_one_step(float64):
    # With a single temperature they are those of the importance weights of the start.
    path = from_gaussian(models.log_gamma, 1, 3.0)
    found = explore(path, 64, 8, ess_threshold=0.0)
    log_reference, log_target = path.log_densities(found.start)
    assert found.num_temperatures == 1 and found.start.shape == (512, 1)
    assert found.ess == pytest.approx(effective_sample_size(log_target - log_reference))
    assert found.pareto_k == pytest.approx(pareto_k(log_target - log_reference))


def test_the_worst_step_counts(float64):
    # More temperatures have lighter tails and keep more particles: a narrow reference of a wide target.
    found = [
        explore(from_gaussian(lambda z: -z.square().sum(-1) / 8, 2, 1.0), 64, 8, min_temperatures=count)
        for count in (1, 20)
    ]
    assert found[0].pareto_k > found[1].pareto_k and found[0].ess < found[1].ess < 512
    exact = from_gaussian(lambda z: -0.5 * z.square().sum(-1), 2, 1.0)
    assert explore(exact, 64, 8).ess == pytest.approx(512) and explore(exact, 64, 8).pareto_k == -math.inf


def test_start_is_where_it_began(float64):
    # Draws of the reference, not of the target.
    found = explore(from_gaussian(lambda z: -0.5 * ((z - 20) / 0.1).square().sum(-1), 1, 5.0), 64, 8)
    assert_within_standard_error(found.start.mean(), 0.0, 5 / math.sqrt(512))
    assert_within_standard_error(found.z.mean(), 20.0, 0.1 / math.sqrt(100))


class Drifting:
    """A mover under which every particle climbs by the spread of their densities, a number of times."""

    def __init__(self, num_climbs):
        self.num_climbs = num_climbs
        self.num_moves = 0

    def move(self, z, known, beta):
        self.num_moves += 1
        log_target = known[1] + (self.num_moves <= self.num_climbs) * known[1].std()

        return Points(z, log_target, known[2], (known[0], log_target, *known[2:]))

    def state(self):
        return MovesSoFar(1.0, 1.0, self.num_moves)


@pytest.mark.parametrize(
    ("num_climbs", "max_settling", "num_moves", "settled"),
    [(0, 5, 1, True), (3, 5, 4, True), (5, 5, 5, False), (9, 0, 0, False)],
)
def test_particles_that_drift_have_not_settled(num_climbs, max_settling, num_moves, settled, float64):
    # Moves go on until the mean log density stays, at most a given number.
    mover, log_prob, z = Drifting(num_climbs), torch.randn(500), torch.zeros(500, 1)
    at = Annealing(z, log_prob, log_prob, torch.zeros(5), mover.state(), z, 0, z[:0], beta=1.0, scores=(z, z))
    while not at.is_over(max_settling):
        at = _settled(at, mover)
    assert at.settled == settled and mover.num_moves == at.num_rounds == num_moves


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_scores_of_the_last_temperature_are_those_of_the_next_one(beta, float64):
    # Where particles come from another temperature, densities and scores are those of the formula, and cost nothing.
    path = from_gaussian(models.log_gamma, 2, 3.0)
    mover = HamiltonianMover(path, num_moves=1, num_leapfrog=3)
    at = mover.move(path.sample(200), (), 0.2)
    before = mover.num_evaluations
    points = mover._tempered(at.z, at.parts, beta)
    score = (1.0 - beta) * -at.z / 9.0 + beta * (models.LOG_GAMMA_SHAPE - at.z.exp())
    log_prob = (1.0 - beta) * path.log_densities(at.z)[0] + beta * models.log_gamma(at.z)
    torch.testing.assert_close(points.score, score)
    torch.testing.assert_close(points.log_prob, log_prob)
    mover.move(at.z, at.parts, beta)
    assert before == 4 * 200 and mover.num_evaluations - before == 3 * 200


def test_what_is_not_finite_leaves_its_score_out(float64):
    # A score of the reference that is no number counts until the target is reached, and not there.
    known = (torch.tensor([-torch.inf, 0.0]), torch.zeros(2), torch.full((2, 1), torch.nan), torch.ones(2, 1))
    mover = HamiltonianMover(from_gaussian(models.log_gamma, 1, 3.0), num_moves=1, num_leapfrog=3)
    half, target = (mover._tempered(torch.zeros(2, 1), known, beta) for beta in (0.5, 1.0))
    assert half.log_prob.tolist() == [-torch.inf, 0.0] and half.score.flatten().tolist() == [0.0, 0.0]
    assert target.log_prob.tolist() == [0.0, 0.0] and target.score.flatten().tolist() == [1.0, 1.0]


# ---- hardly any draw of the prior is possible ----


@pytest.mark.parametrize("threshold", [2.5, 3.0902, 3.7])
def test_a_prior_of_which_nearly_nothing_is_possible(float64, threshold):
    # Exact: the tail of the normal beyond the threshold, of which a draw is possible one time in 160 to 9,300.
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 1)
    normal = torch.distributions.Normal(0.0, 1.0)

    def log_prob(z):
        return torch.where(z[:, 0] > threshold, normal.log_prob(z[:, 0]), -torch.inf)

    target.log_prob = log_prob
    path = ReferencePath(target, lambda n: normal.sample((n, 1)), lambda z: normal.log_prob(z[:, 0]))
    torch.manual_seed(0)
    estimates = [explore(path, 64, 8) for _ in range(8)]
    exact = torch.special.log_ndtr(torch.tensor(-threshold)).item()
    ratios = torch.tensor([math.exp(found.log_evidence - exact) for found in estimates])
    assert_within_standard_error(ratios.mean().item(), 1.0, (ratios.std() / len(ratios) ** 0.5).item())
    stated = torch.tensor([found.std_error for found in estimates]).mean()
    assert 0.3 < (stated / ratios.std()).item() < 3.0
    assert all((found.z > threshold).all() for found in estimates)
    assert all(found.num_evaluations >= 512 for found in estimates)


def test_each_replicate_takes_usable_draws_of_its_own():
    usable = torch.tensor([[True, False, True, False], [False] * 4, [False, True, False, False]])
    assert _places(usable, 3).tolist() == [0, 2, 0, 0, 2, 9, 9, 9, 9]


def test_a_density_that_is_nowhere_is_looked_for_longer_where_that_is_cheap():
    def nowhere(z):
        return torch.full_like(z[:, 0], -torch.inf)

    for num_terms, vectorized, count in ((0, True, 256), (100_000, True, 8), (0, False, 8)):
        target = FunctionTarget(lambda z: -z.square().sum(-1), 1)
        target.log_prob, target.num_terms, target.vectorized = nowhere, num_terms, vectorized
        path = ReferencePath(target, lambda n: torch.randn(n, 1).double(), lambda z: -z[:, 0].square())
        with pytest.raises(ValueError, match=f"at any of {count * 32} starting points"):
            explore(path, 4, 8)


# ---- moves that are too short ----


def cluster(z):
    """LJ-13: thirteen particles under a Lennard-Jones potential, mean-free, held together by a harmonic one."""
    rows, columns = torch.arange(1, 13, dtype=z.dtype)[:, None], torch.arange(13)
    basis = ((columns < rows).to(z) - rows * (columns == rows)) / (rows * (rows + 1)).sqrt()
    x = torch.einsum("bkd,kn->bnd", z.view(-1, 12, 3), basis)
    first, second = torch.triu_indices(13, 13, 1)
    inverse = (x[:, first] - x[:, second]).square().sum(-1).clamp(min=1e-4).pow(-3)

    return -2.0 * (inverse.square() - 2.0 * inverse).sum(-1) - 0.5 * z.square().sum(-1)


@pytest.mark.long
def test_moves_become_longer_where_they_leave_particles_behind(float64):
    # By three long runs the log evidence is 59.88(1), the mean log density 43.07.
    wide = MultivariateNormal(torch.zeros(36), 9.0 * torch.eye(36))
    path = ReferencePath.from_density(FunctionTarget(cluster, dim=36), wide)

    def found(max_leapfrog):
        torch.manual_seed(0)
        return explore(path, 64, 8, ess_threshold=0.8, num_moves=3, max_temperatures=1000, max_leapfrog=max_leapfrog)

    short, longer = found(0), found(40)

    assert short.log_evidence < 59.88 - 4.0 and short.log_prob.mean() < 40.0
    # Of 512 particles of one standard deviation sqrt(36 / 2); those of a replicate are relatives.
    assert longer.log_prob.mean().item() == pytest.approx(43.07, abs=1.0)
    assert abs(longer.log_evidence - 59.88) < 3.0 * math.hypot(longer.std_error, 0.3)


def test_where_moves_are_long_enough_nothing_changes(float64):
    path = ReferencePath.from_density(
        FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=36),
        MultivariateNormal(torch.zeros(36), 9.0 * torch.eye(36)),
    )

    def found(max_leapfrog):
        torch.manual_seed(0)
        return explore(path, 64, 8, ess_threshold=0.8, num_moves=3, max_leapfrog=max_leapfrog)

    assert found(40).log_evidence == found(0).log_evidence


@pytest.mark.parametrize(
    ("shift", "noise", "drifts"),
    [(0.0, 1.0, False), (0.05, 0.01, False), (1.0, 0.5, True), (-1.0, 0.5, True), (0.3, 5.0, False)],
)
def test_what_drifts_is_more_than_noise_and_more_than_little(shift, noise, drifts, float64):
    torch.manual_seed(0)
    before = torch.randn(1000)
    after = before + shift + noise * torch.randn(1000)

    assert _drifts((before, before), (after, after), 0.5) == drifts


def test_moves_go_on_where_an_earlier_version_left_them(float64):
    path = ReferencePath.from_density(
        FunctionTarget(lambda z: -z.square().sum(-1), dim=2), MultivariateNormal(torch.zeros(2), torch.eye(2))
    )
    mover = HamiltonianMover(path, 1, 5, max_leapfrog=40)
    mover.restore((0.5, 0.7, 12))
    assert mover.num_leapfrog == 5
    mover.restore(MovesSoFar(0.5, 0.7, 12, 20))
    assert mover.num_leapfrog == 20
