"""The objective room: path gradients are the divergences' gradients, and vanish where there is nothing to learn."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from torch.distributions import MultivariateNormal

from pyro_osds.base import Base
from pyro_osds.flow_map import FlowMap
from pyro_osds.leap import Leap
from pyro_osds.objective import _stretch, exact_volume, reverse_kl
from pyro_osds.target import FunctionTarget, log_prob_and_score

NORMAL = (torch.tensor([0.3, -0.2]), torch.tensor([[1.1, 0.0], [0.3, 0.9]]))


def tiny_leap(noise, num_spline_blocks=0):
    loc, scale_tril = (tensor.double() for tensor in NORMAL)
    standard = MultivariateNormal(torch.zeros(2), torch.eye(2))
    flow = FlowMap(2, num_blocks=2, num_spline_blocks=num_spline_blocks, hidden_features=3)

    return Leap(Base(loc, scale_tril, standard), perturbed(flow, noise))


def normal_target(offset=0.0):
    loc, scale_tril = (tensor.double() for tensor in NORMAL)
    normal = MultivariateNormal(loc, scale_tril=scale_tril)

    return FunctionTarget(lambda z: normal.log_prob(z) + offset, 2)


def gradients(objective, leap, repeats):
    """One flat gradient for each of so many batches, ``(repeats, P)``."""
    parameters = list(leap.flow.parameters())
    rows = [torch.autograd.grad(objective(leap)[0], parameters) for _ in range(repeats)]

    return torch.stack([torch.cat([gradient.reshape(-1) for gradient in row]) for row in rows])


def assert_same_mean(first, second):
    """Two sets of gradients have the same expectation, parameter by parameter, and it is not zero everywhere."""
    variance = first.var(0) / len(first) + second.var(0) / len(second)
    moving = variance > 0
    assert moving.sum() > 10
    assert torch.equal(first[:, ~moving].mean(0), second[:, ~moving].mean(0))
    for a, b, v in zip(first.mean(0)[moving], second.mean(0)[moving], variance[moving], strict=True):
        assert_within_standard_error(a, b, v.sqrt().item())
    assert (second.mean(0)[moving].abs() > 10 * variance[moving].sqrt()).any()


@pytest.mark.parametrize("num_spline_blocks", [0, 1])
def test_sharpening_gradient_is_the_plain_one_in_expectation(float64, num_spline_blocks):
    # coverage=0: KL(q || p) by path gradients against the reparametrised estimator.
    leap, target = tiny_leap(0.3, num_spline_blocks), normal_target()
    path = gradients(exact_volume(target, 500, coverage=0.0, tail_share=0.0), leap, 60)
    assert_same_mean(path, gradients(reverse_kl(target, 500), leap, 60))


def test_covering_gradient_is_that_of_the_likelihood_of_exact_draws(float64):
    # coverage=1: KL(p || q) against the gradient of the mean of -log q at draws of the target itself.
    # The flow is near enough for no weight to be truncated.
    leap, target = tiny_leap(0.1), normal_target(offset=5.0)
    loc, scale_tril = (tensor.double() for tensor in NORMAL)
    exact = MultivariateNormal(loc, scale_tril=scale_tril)

    def likelihood(leap):
        return -leap.log_prob(exact.sample((4000,))).mean(), None

    path = gradients(exact_volume(target, 4000, coverage=1.0, tail_share=0.0), leap, 40)
    assert_same_mean(path, gradients(likelihood, leap, 40))


@pytest.mark.parametrize("coverage", [0.0, 0.5, 1.0])
def test_gradient_of_an_exact_flow_is_zero(float64, coverage):
    # Not only on average: the two scores agree at every draw, and so do the weights.
    leap = tiny_leap(0.0)
    objective = exact_volume(normal_target(offset=3.0), 100, coverage)
    found = gradients(objective, leap, 2)
    torch.testing.assert_close(found, torch.zeros_like(found))
    # An eighth of the batch looks at the tails; the log weights returned are those of the flow's own draws.
    torch.testing.assert_close(objective(leap)[1], torch.full((88,), 3.0))


def test_tail_points_pull_their_log_weight_to_the_mean(float64):
    # The rest of the gradient is that of a tenth of Huber's loss on stretched base points, by plain autograd.
    leap, target = tiny_leap(0.3), normal_target()
    parameters = list(leap.flow.parameters())
    torch.manual_seed(1)
    together = gradients(exact_volume(target, 40, coverage=0.0, tail_share=0.5), leap, 1)[0]
    torch.manual_seed(1)
    x = leap.base.density.sample((40,))
    z, log_q, score_q = leap.with_score(x[:20])
    body = torch.autograd.grad(((score_q - _score(target, z)) * z).sum(-1).mean(), parameters, retain_graph=True)
    mean = (target.log_prob(z) - log_q).mean().detach()
    stretched = _stretch(x[20:])
    z, log_abs_det = leap(stretched)
    log_weight = target.log_prob(z) - leap.base.density.log_prob(stretched) + log_abs_det
    huber = torch.nn.functional.huber_loss(log_weight, mean.expand(20))
    tail = torch.autograd.grad(0.1 * huber, parameters)
    expected = torch.cat([(a + b).reshape(-1) for a, b in zip(body, tail, strict=True)])
    torch.testing.assert_close(together, expected)
    assert torch.cat([gradient.reshape(-1) for gradient in tail]).abs().max() > 1e-3


def _score(target, z):
    return log_prob_and_score(target.log_prob, z)[1]


def test_stretching_doubles_one_coordinate(float64):
    # Of each point, and all coordinates get their turn.
    x = torch.randn(200, 3)
    ratio = _stretch(x) / x
    torch.testing.assert_close(ratio.sort(-1).values, torch.tensor([1.0, 1.0, 2.0]).expand(200, 3))
    assert (ratio > 1.5).any(0).all()


def test_plain_gradient_of_an_exact_flow_is_not_zero(float64):
    # The comparison that makes the one above worth a test.
    assert gradients(reverse_kl(normal_target(), 100), tiny_leap(0.0), 1).abs().max() > 1e-3


def test_coverage_mixes_the_two_directions(float64):
    # The gradient is linear in the share, on the same draws.
    leap, target = tiny_leap(0.3), normal_target()
    found = []
    for coverage in (0.0, 0.25, 1.0):
        torch.manual_seed(1)
        found.append(gradients(exact_volume(target, 100, coverage, tail_share=0.0), leap, 1))
    torch.testing.assert_close(found[1], 0.75 * found[0] + 0.25 * found[2])


def test_loss_of_the_plain_objective_is_minus_the_elbo(float64):
    # For an exact flow it is minus the log evidence at every batch.
    loss, log_weight = reverse_kl(normal_target(offset=3.0), 50)(tiny_leap(0.0))
    assert math.isclose(loss.item(), -3.0, rel_tol=1e-12) and not log_weight.requires_grad


@pytest.mark.parametrize("objective", [exact_volume, reverse_kl])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_impossible_draws_do_not_spoil_the_gradient(float64, objective, value):
    # Half of the space is no part of the target: the gradient stays finite and comes from the other half.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 0, value, -0.5 * z.square().sum(-1))

    found = gradients(objective(FunctionTarget(log_prob_fn, 2), 100), tiny_leap(0.3), 3)
    assert found.isfinite().all() and found.abs().max() > 1e-4


def test_one_heavy_draw_does_not_carry_the_batch(float64):
    # Weights are truncated at 1 / sqrt(B): a spike at one draw moves the surrogate no more than that share of its
    # score.
    leap = tiny_leap(0.3)
    drawn = []

    def log_prob_fn(z):
        if len(z) == 100:
            drawn[:] = [z.detach()]
            return torch.cat([z[:1].sum(-1) + 1000, 0 * z[1:].sum(-1)])
        return z.sum(-1)

    loss, log_weight = exact_volume(FunctionTarget(log_prob_fn, 2), 100, coverage=1.0, tail_share=0.0)(leap)
    z = drawn[0][:1].requires_grad_()
    (score,) = torch.autograd.grad(leap.log_prob(z).sum(), z)
    expected = 0.1 * ((score - 1) * z).sum()
    assert torch.softmax(log_weight, 0)[0] > 0.999
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-6)


@pytest.mark.parametrize("options", [{"coverage": 1.5}, {"tail_share": 1.0}])
def test_shares_out_of_range(options):
    # Both shares are checked before anything is drawn.
    with pytest.raises(ValueError, match=r"coverage must lie in \[0, 1\]"):
        exact_volume(normal_target(), 10, **options)
