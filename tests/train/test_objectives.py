"""Objectives: path gradients are the divergences' gradients, and vanish where there is nothing to learn."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from torch.distributions import MultivariateNormal

from pyro_osds.flow.base import Base, gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.target import FunctionTarget, log_prob_and_score
from pyro_osds.train.objectives import (
    Loss,
    _stretch,
    exact_volume,
    forward_kl,
    log_variance,
    path_log_variance,
    path_reverse_kl,
    reverse_kl,
    score_matching,
    state_consistency,
    two_half_steps,
    volume_consistency,
)

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
    rows = [torch.autograd.grad(objective(leap, leap).total, parameters) for _ in range(repeats)]

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

    def likelihood(leap, average):
        return Loss(-leap.log_prob(exact.sample((4000,))).mean(), {}, torch.zeros(0))

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
    torch.testing.assert_close(objective(leap, leap).log_weight, torch.full((88,), 3.0))


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
    leap = tiny_leap(0.0)
    loss = reverse_kl(normal_target(offset=3.0), 50)(leap, leap)
    assert math.isclose(loss.total.item(), -3.0, rel_tol=1e-12) and not loss.log_weight.requires_grad


@pytest.mark.parametrize("objective", [exact_volume, reverse_kl])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_impossible_draws_do_not_spoil_the_gradient(float64, objective, value):
    # Half of the space is no part of the target: the gradient stays finite and comes from the other half.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 0, value, -0.5 * z.square().sum(-1))

    found = gradients(objective(FunctionTarget(log_prob_fn, 2), 100), tiny_leap(0.3), 3)
    assert found.isfinite().all() and found.abs().max() > 1e-4


@pytest.mark.parametrize("objective", [exact_volume, reverse_kl])
def test_a_draw_whose_density_has_no_gradient_does_not_spoil_it(float64, objective):
    # Where an exponential overflows, value and gradient are no numbers.
    def log_prob_fn(z):
        return -0.5 * z.square().sum(-1) - 0.0 * (1000.0 * z[:, 0]).exp()

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

    loss = exact_volume(FunctionTarget(log_prob_fn, 2), 100, coverage=1.0, tail_share=0.0)(leap, leap)
    z = drawn[0][:1].requires_grad_()
    (score,) = torch.autograd.grad(leap.log_prob(z).sum(), z)
    expected = 0.1 * ((score - 1) * z).sum()
    assert torch.softmax(loss.log_weight, 0)[0] > 0.999
    assert math.isclose(loss.total.item(), expected.item(), rel_tol=1e-6)


@pytest.mark.parametrize("options", [{"coverage": 1.5}, {"tail_share": 1.0}])
def test_shares_out_of_range(options):
    # Both shares are checked before anything is drawn.
    with pytest.raises(ValueError, match=r"coverage must lie in \[0, 1\]"):
        exact_volume(normal_target(), 10, **options)


# ---- points from elsewhere, and other numbers of steps ----


@pytest.mark.parametrize(
    ("log_weight", "expected"),
    [
        ([0.0, 1.0], 0.125),
        ([-1.0, 3.0], 1.5),
        ([7.0, 7.0, 7.0], 0.0),
        ([0.0, 1.0, -math.inf, math.nan, math.inf], 0.125),
        ([-math.inf, math.nan], 0.0),
    ],
)
def test_log_variance(float64, log_weight, expected):
    # By hand: half the square up to one nat from the mean, |excess| - 1/2 beyond; what is not finite is left out.
    log_weight = torch.tensor(log_weight, requires_grad=True)
    loss = log_variance(log_weight)
    assert math.isclose(loss.item(), expected)
    (gradient,) = torch.autograd.grad(loss, log_weight)
    usable = log_weight.detach().isfinite()
    excess = torch.where(usable, log_weight.detach(), 0.0) - log_weight.detach()[usable].sum() / max(usable.sum(), 1)
    torch.testing.assert_close(gradient, usable * excess.clamp(-1, 1) / max(usable.sum(), 1))


def test_points_to_cover_add_the_log_variance_of_their_weights(float64):
    # On the same draws the gradient gains what plain autograd gives for the points that were picked.
    leap, target, points = tiny_leap(0.3), normal_target(offset=2.0), 3 * torch.randn(30, 2)
    parameters = list(leap.flow.parameters())
    found = []
    for extra in (None, points):
        torch.manual_seed(1)
        found.append(gradients(exact_volume(target, 40, tail_share=0.0, points=extra), leap, 1)[0])
    torch.manual_seed(1)
    leap.base.density.sample((40,))
    z = points[torch.randint(30, (40,))]
    log_weight = target.log_prob(z) - leap.log_prob(z)
    huber = torch.nn.functional.huber_loss(log_weight, log_weight.detach().mean().expand(40))
    expected = torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(huber, parameters)])
    torch.testing.assert_close(found[1] - found[0], expected)
    assert expected.abs().max() > 1e-2


def test_points_where_the_target_vanishes_are_left_out(float64):
    # Half of the points have density zero, or none at all: the gradient is that of the others alone.
    def log_prob_fn(z):
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), torch.where(z[:, 1] > 0, -torch.inf, torch.nan))

    points = torch.cat([torch.randn(50, 2).abs(), torch.tensor([[-1.0, 1.0], [-1.0, -1.0]]).repeat(25, 1)])
    leap = tiny_leap(0.3)
    loss = exact_volume(FunctionTarget(log_prob_fn, 2), 100, points=points)(leap, leap)
    found = torch.autograd.grad(loss.total, list(leap.flow.parameters()), allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in found) and loss.terms["cover_log_variance"] > 0


def test_terms_are_named_and_detached(float64):
    # What the record shows: parts by name without a graph, the first of them minus the mean log weight.
    leap, target, points = tiny_leap(0.3), normal_target(), torch.randn(30, 2)
    losses = {
        ("exact_volume", "tail_log_variance", "cover_log_variance"): exact_volume(target, 40, points=points),
        ("exact_volume",): exact_volume(target, 40, tail_share=0.0),
        ("reverse_kl",): reverse_kl(target, 40),
        ("forward_kl",): forward_kl(points, 40),
    }
    for names, objective in losses.items():
        loss = objective(leap, leap)
        assert tuple(loss.terms) == names and loss.total.requires_grad
        assert not any(term.requires_grad for term in loss.terms.values()) and not loss.log_weight.requires_grad
        if len(loss.log_weight):
            torch.testing.assert_close(loss.terms[names[0]], -loss.log_weight.mean())
        else:
            torch.testing.assert_close(loss.terms[names[0]], loss.total.detach())


def test_numbers_of_steps_are_drawn_the_more_often_the_fewer(float64, monkeypatch):
    # 1, 2 and 4 steps get 4/7, 2/7 and 1/7 of the evaluations, and each of them walks all of its steps.
    calls, inner = [], FlowMap.forward_with_score

    def record(flow, x, score, t, d):
        calls.append((t, d))
        return inner(flow, x, score, t, d)

    monkeypatch.setattr(FlowMap, "forward_with_score", record)
    leap = tiny_leap(0.1)
    objective = exact_volume(normal_target(), 4, tail_share=0.0, num_steps=(1, 2, 4))
    for _ in range(200):
        objective(leap, leap)
    for num_steps, share in [(1, 4 / 7), (2, 2 / 7), (4, 1 / 7)]:
        starts = [t for t, d in calls if d == 1 / num_steps]
        count = starts.count(0.0)
        assert starts == [step / num_steps for step in range(num_steps)] * count
        assert_within_standard_error(count / 200, share, math.sqrt(share * (1 - share) / 200))


def test_forward_kl(float64):
    # At a single point, through an untrained flow: minus the log density of the base by hand; no weights.
    loss = forward_kl(torch.tensor([[1.4, 1.0]]), 7)(tiny_leap(0.0), None)
    # Whitened: (1.4 - 0.3) / 1.1 = 1 and (1.0 + 0.2 - 0.3 * 1) / 0.9 = 1.
    expected = 0.5 * (1 + 1) + math.log(2 * math.pi) + math.log(1.1 * 0.9)
    assert math.isclose(loss.total.item(), expected, rel_tol=1e-6) and len(loss.log_weight) == 0


def test_forward_kl_picks_all_points(float64):
    # On average over batches it is minus the mean log density of the points, trained flow or not.
    leap, points = tiny_leap(0.3), torch.randn(20, 2)
    objective = forward_kl(points, 50)
    values = torch.stack([objective(leap, leap).total.detach() for _ in range(100)])
    assert_within_standard_error(values.mean(), -leap.log_prob(points).mean().item(), values.std().item() / 10)


# ---- the teacher ----


@pytest.mark.parametrize(
    ("objective", "log_weight", "expected"),
    [
        (path_reverse_kl, [1.0, 3.0, -math.inf, math.nan], -2.0),
        (path_log_variance, [1.0, 3.0, -math.inf, math.nan], 2.0),
        (path_reverse_kl, [-math.inf], 0.0),
        (path_log_variance, [3.0, -math.inf], 0.0),
    ],
)
def test_losses_of_paths(float64, objective, log_weight, expected):
    # Minus the mean and the variance of what is finite; one path alone has no variance; gradients stay finite.
    log_weight = torch.tensor(log_weight, requires_grad=True)
    loss = objective(log_weight)
    assert math.isclose(loss.item(), expected)
    assert torch.autograd.grad(loss, log_weight)[0].isfinite().all()


class GaussianControl(torch.nn.Module):
    """The exact control of a whitened posterior N(0, s^2), with a part to differentiate: ``share`` and ``slope``."""

    def __init__(self, schedule, sd):
        super().__init__()
        self.schedule, self.sd = schedule, sd
        self.share = torch.nn.Parameter(torch.tensor(1.0))
        self.slope = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x, t, d, guidance):
        signal_variance = (2 * self.schedule.log_signal(t)).exp()
        exact = x - x / (signal_variance * self.sd**2 + 1 - signal_variance)

        return self.share * exact + self.slope * t * x


def one_gaussian(sd):
    """A diffusion whose target has standard deviation ``sd`` in whitened coordinates, with the exact control."""
    base = Base(torch.zeros(1), torch.eye(1), MultivariateNormal(torch.zeros(1), torch.eye(1)))
    target = FunctionTarget(lambda z: -0.5 * (z / sd).square().sum(-1), 1)
    diffusion = Diffusion(target, base, ControlNetwork(1), guided=False)
    diffusion.network = GaussianControl(diffusion.schedule, sd)

    return diffusion


@pytest.mark.parametrize("sd", [0.5, 1.4])
def test_score_matching_is_unbiased(float64, sd):
    # The gradient at the exact control vanishes within its standard error in two directions, x t and the control's own;
    # with no control at all it does not, and the loss is higher.
    diffusion = one_gaussian(sd)
    parameters = list(diffusion.network.parameters())
    rows, losses = {}, {}
    for share in (1.0, 0.0):
        diffusion.network.share.data.fill_(share)
        found = []
        for _ in range(50):
            u = sd * torch.randn(2000, 1)
            loss = score_matching(diffusion, u, -u / sd**2, 1 / 16)
            found.append(torch.stack([*torch.autograd.grad(loss, parameters), loss.detach()]))
        found = torch.stack(found)
        rows[share], losses[share] = found[:, :2], found[:, 2]
    for i in range(2):
        std_error = rows[1.0][:, i].std().item() / math.sqrt(50)
        assert_within_standard_error(rows[1.0][:, i].mean(), 0.0, std_error)
        assert rows[0.0][:, i].mean().abs() > 20 * std_error
    assert losses[1.0].mean() < losses[0.0].mean() - 10 * losses[0.0].std() / math.sqrt(50)


def test_score_matching_where_the_posterior_is_the_base(float64):
    # Points and scores of N(0, 1) ask for no control, not only on average; a wrong score asks for one.
    diffusion = one_gaussian(1.0)
    u = torch.randn(500, 1)
    assert score_matching(diffusion, u, -u, 1 / 16) < 1e-6
    assert score_matching(diffusion, u, -4 * u, 1 / 16) > 0.1


# ---- from many steps to one ----


def test_consistency_by_hand(float64):
    # Squares of (3, 0), (0, 1), averaged over coordinates and rows; of 2 and -1, averaged over rows.
    landed, goal = torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert state_consistency(landed, goal).item() == 10 / 4
    assert volume_consistency(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])).item() == 5 / 2


def test_two_half_steps(float64):
    # x -> x (1 + d) + t twice with half the size, by hand; log-determinants add up, and nothing carries a gradient.
    weight = torch.ones((), requires_grad=True)

    def step(x, t, d):
        return weight * (x * (1 + d) + t), weight * (1 + d).log().squeeze(-1)

    x, t, d = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.5]]), torch.tensor([[1.0], [0.5]])
    landed, log_abs_det = two_half_steps(step, x, t, d)
    expected = torch.tensor([[1.5 * 1.5 + 0.5], [(2 * 1.25 + 0.5) * 1.25 + 0.75]])
    torch.testing.assert_close(landed, expected)
    torch.testing.assert_close(log_abs_det, 2 * torch.tensor([1.5, 1.25]).log())
    assert not landed.requires_grad and not log_abs_det.requires_grad


def test_a_wall_costs_no_step():
    # The log of a Gamma(0.01): exp(z) / 100 on one side, a wall of exp(-exp(z)) on the other, where scores reach 1e100.
    target = FunctionTarget(lambda z: (0.01 * z - z.exp()).sum(-1), 2)
    base = gaussian_base(100.0 * torch.randn(500, 2, dtype=torch.float64) - 100.0)
    leap = Leap(base, FlowMap(2, num_blocks=2))
    assert log_prob_and_score(target.log_prob, leap.sample(256)[0])[1].abs().max() > 1e60
    exact_volume(target, 256)(leap, leap).total.backward()
    gradients = torch.cat([each.grad.flatten() for each in leap.flow.parameters() if each.grad is not None])
    assert gradients.square().sum().isfinite() and gradients.abs().max() > 0.0
