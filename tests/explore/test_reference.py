"""Reference: a wide Gaussian where the mass is, found from nothing but the density."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_log_prob

from pyro_osds.explore.modes import spread_out
from pyro_osds.explore.reference import (
    come_to_rest,
    num_affordable,
    reference_of_modes,
    throw,
    wide_reference,
)
from pyro_osds.explore.survey import survey
from pyro_osds.target import FunctionTarget


def test_a_gaussian_is_found_and_widened(float64):
    # Centre of the target within the points' own standard error, twice its covariance or more.
    scale = torch.tensor([0.5, 2.0])
    target = FunctionTarget(lambda z: -0.5 * ((z - 3) / scale).square().sum(-1), 2)
    reference = wide_reference(target, throw(target, num_points=512))
    assert len(reference.mixture_distribution.probs) == 1
    sd = reference.stddev
    for i in range(2):
        assert_within_standard_error(reference.mean[i], 3.0, sd[i].item() / math.sqrt(512))
        assert sd[i] > 1.2 * scale[i] and sd[i] < 4 * scale[i]


def test_far_modes_get_a_share_each(float64):
    # Half of the mass on the whole, a quarter on either mode, wide as it is.
    locs = torch.tensor([[-10.0, 0.0], [10.0, 0.0]])
    target = FunctionTarget(mixture_log_prob(locs, [0.1, 0.9]), 2)
    reference = wide_reference(target, throw(target))
    torch.testing.assert_close(reference.mixture_distribution.probs, torch.tensor([0.5, 0.25, 0.25]))
    components = reference.component_distribution
    assert torch.cdist(locs, components.loc[1:]).amin(1).max() < 1.0
    assert ((components.stddev[1:] > 1.0) & (components.stddev[1:] < 3.0)).all() and components.stddev[0, 0] > 10


def test_a_narrow_far_mode_is_not_lost(float64):
    # One percent as wide as the way to it, and half of the mass: a few points reach it, and it gets its component.
    def log_prob_fn(z):
        near = -0.5 * z.square().sum(-1)
        far = -0.5 * ((z - torch.tensor([30.0, 0.0])) / 0.3).square().sum(-1) - 2 * math.log(0.3)
        return torch.logaddexp(near, far)

    target = FunctionTarget(log_prob_fn, 2)
    components = wide_reference(target, throw(target)).component_distribution
    far = (components.loc - torch.tensor([30.0, 0.0])).norm(dim=-1) < 1.0
    assert far.sum() == 1 and components.stddev[far].max() < 3.0


def test_given_starts_are_looked_around():
    # A density of bounded support 500 away is out of reach from the origin and found from a start inside.
    def log_prob_fn(z):
        return torch.where((z[:, 0] - 500).abs() < 5, -0.5 * (z[:, 0] - 500).square(), -torch.inf)

    target = FunctionTarget(log_prob_fn, 1)
    with pytest.raises(ValueError, match="not finite at any of 4096 points"):
        throw(target)
    reference = wide_reference(target, throw(target, starts=torch.tensor([[499.0]])))
    assert_within_standard_error(reference.mean[0], 500.0, reference.stddev[0].item() / math.sqrt(128))


def test_it_is_normalised_and_has_the_type_of_the_target():
    # Double precision, whatever the target is written in.
    for dtype in (torch.float32, torch.float64):
        target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 1, dtype)
        reference = wide_reference(target, throw(target))
        z = torch.linspace(-50, 50, 5001, dtype=torch.float64)[:, None]
        assert target.draw_dtype == dtype and reference.mean.dtype == torch.float64
        assert math.isclose(reference.log_prob(z).exp().sum().item() * 0.02, 1.0, abs_tol=1e-4)


def standard(z):
    return -0.5 * z.square().sum(-1)


def test_points_thrown_come_to_rest(float64):
    # From up to 64 units away in a bowl of width one: nearly all arrive, with their densities and usable steps.
    rest = throw(FunctionTarget(standard, 2))
    assert 512 < len(rest.z) <= 1024 and len(rest.log_prob) == len(rest.step) == len(rest.z)
    torch.testing.assert_close(rest.log_prob, standard(rest.z))
    assert rest.z.norm(dim=-1).median() < 4 and ((rest.step > 0.1) & (rest.step < 5)).double().mean() > 0.9


def test_what_has_not_arrived_is_left_out(float64):
    # On a slope without end, where the density is zero all around, and with nan: only the point in the bowl remains.
    def log_prob_fn(z):
        bowl = torch.where(z[:, 0].abs() < 10, -0.5 * z[:, 0].square(), -math.inf)
        return torch.where(z[:, 0] > 100, 1e4 * z[:, 0], torch.where(z[:, 0] < -100, math.nan, bowl))

    rest = come_to_rest(FunctionTarget(log_prob_fn, 1), torch.tensor([[0.0], [30.0], [1000.0], [-1000.0]]))
    assert len(rest.z) == 1 and rest.z.abs().max() < 10 and rest.step.shape == (1,)


def twice_exponential(z):
    """A normal with mean 10 and sd 1 for x = exp(exp(z)) > 1, in z: it overflows at z = 6."""
    return -0.5 * (z.exp().exp() - 10.0).square().sum(-1) + (z + z.exp()).sum(-1)


def twice_exponential_ordered(z):
    """Two normals in order, in the coordinates that Pyro gives to positive ordered vectors."""
    low, high = z[:, 0].exp(), (z[:, 0] + z[:, 1].exp()).exp()
    return -0.5 * ((low - 3.0).square() + (high - 10.0).square()) + 2.0 * z[:, 0] + z[:, 1].exp() + z[:, 1]


def tower(z):
    return (z - z.exp().exp()).sum(-1)


@pytest.mark.parametrize(("log_prob_fn", "dim"), [(twice_exponential, 1), (twice_exponential_ordered, 2), (tower, 3)])
def test_points_that_a_steep_slope_threw_out_are_left_out(float64, log_prob_fn, dim):
    # Out of a density of zero some are thrown to 1e300, where nothing is seen of their climb and squares are infinite.
    target = FunctionTarget(log_prob_fn, dim)
    rest = throw(target)
    reference = wide_reference(target, rest)
    draws = reference.sample((1000,))
    assert rest.z.abs().max() < 1000.0 and draws.isfinite().all() and reference.log_prob(draws).isfinite().all()


def test_the_log_evidence_of_a_density_that_throws_points_out(float64):
    # The normal for x > 1 holds all but 1e-19 of its mass.
    found = survey(FunctionTarget(twice_exponential, 1)).exploration
    assert abs(found.log_evidence - 0.5 * math.log(2.0 * math.pi)) < 5.0 * found.std_error < 0.5


def test_points_far_out_that_are_as_good_as_any_stay(float64):
    # In units in which the whole of the mass lies beyond 1e16.
    rest = come_to_rest(FunctionTarget(lambda z: standard(z / 1e16), 2), 1e17 + 1e16 * torch.randn(64, 2))
    assert len(rest.z) == 64


def test_points_without_a_finite_square_are_left_out(float64):
    # The density is nearly as large there as anywhere; with them there is no covariance.
    z = torch.tensor([[0.0], [1.0], [1e200], [-math.inf]])
    target = FunctionTarget(lambda z: torch.tanh(-z[:, 0].abs() / 100.0), 1)
    assert come_to_rest(target, z).z.abs().max() < 1e6
    # Where nothing is finite nothing is lost, and nothing has come to rest.
    assert not len(come_to_rest(FunctionTarget(lambda z: z.sum(-1) * math.nan, 1), z).z)


def test_steps_adapt_to_the_width_of_a_mode(float64):
    # A point of its own each: a hundred times as narrow, about a hundred times as short.
    scales = torch.tensor([1.0, 0.01])

    def log_prob_fn(z):
        scale = torch.where(z[:, 0] > 50, scales[1], scales[0])
        centre = torch.where(z[:, 0] > 50, 100.0, 0.0)
        return -0.5 * ((z[:, 0] - centre) / scale).square()

    z = torch.tensor([[0.0], [100.0]]).repeat(100, 1)
    rest = come_to_rest(FunctionTarget(log_prob_fn, 1), z)
    ratio = rest.step[rest.z[:, 0] < 50].median() / rest.step[rest.z[:, 0] > 50].median()
    assert 30 < ratio < 300


def test_points_spread_out(float64):
    # All of few; of many as many as asked for, none twice, and the one that lies far off in its own units.
    assert spread_out(torch.randn(10, 2), 10).tolist() == list(range(10))
    z = torch.cat([torch.randn(3000, 2), torch.tensor([[50.0, 0.0]])]) * torch.tensor([1.0, 1e-6])
    for _ in range(5):
        chosen = spread_out(z, 100)
        assert len(chosen.unique()) == 100 and 3000 in chosen


@pytest.mark.parametrize(("num_terms", "count"), [(0, 4096), (400, 4096), (1000, 2000), (10**7, 256)])
def test_fewer_points_where_the_density_has_many_terms(num_terms, count):
    # Two hundred million terms at a hundred evaluations a point, but never fewer than a given number.
    target = SimpleNamespace(num_terms=num_terms)
    assert num_affordable(target, 4096, at_least=256) == count
    assert num_affordable(target, 100, at_least=256) == 100


def test_half_on_the_whole_half_on_the_modes(float64):
    # One component for each label, one mode like the other; a single point is as wide as its step.
    whole = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    z = torch.cat([torch.randn(400, 2) + 10, torch.tensor([[-20.0, 5.0]])])
    step, labels = torch.full((401,), 0.5), torch.tensor([7] * 400 + [3])
    reference = reference_of_modes(whole, z, step, labels)
    torch.testing.assert_close(reference.mixture_distribution.probs, torch.tensor([0.5, 0.25, 0.25]))
    components = reference.component_distribution
    torch.testing.assert_close(components.loc[0], whole[0])
    torch.testing.assert_close(components.covariance_matrix[0], 2 * whole[1] @ whole[1].T)
    torch.testing.assert_close(components.loc[1:], torch.stack([z[400], z[:400].mean(0)]))
    torch.testing.assert_close(components.covariance_matrix[1], 0.25 * torch.eye(2), atol=1e-6, rtol=0)
    # Twice the variance of about one, and the square of the step: each within five standard errors.
    for i in range(2):
        assert_within_standard_error(components.variance[2, i], 2.25, 2 * math.sqrt(2 / 400))


def test_a_whole_without_modes(float64):
    # A single Gaussian of twice the variance.
    whole = torch.zeros(2), torch.eye(2)
    reference = reference_of_modes(whole, torch.empty(0, 2), torch.empty(0), torch.empty(0, dtype=torch.long))
    assert reference.mixture_distribution.probs.tolist() == [1.0]
    torch.testing.assert_close(reference.variance, torch.full((2,), 2.0))


def test_scales_that_differ_by_a_factor_of_ten_thousand():
    # No step size suits both 1e-4 and 1, so no point comes to rest; a quasi-Newton ascent knows the scales.
    scales = torch.logspace(-4, 0, 8, dtype=torch.float64)
    target = FunctionTarget(lambda z: -0.5 * ((z - 3.0) / scales).square().sum(-1), dim=8)
    rest = throw(target)
    torch.testing.assert_close(rest.z.std(0) / scales, torch.ones(8, dtype=torch.float64), rtol=0.15, atol=0.0)
    assert ((rest.z.mean(0) - 3.0).abs() < 0.3 * scales).all()
