"""Velocity: what the published volume misses, and what an exact one cannot mend."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, perturbed
from models import mixture_log_prob
from torch.distributions import MultivariateNormal

from pyro_osds.flow.base import Base
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.stats.weights import weigh
from pyro_osds.target import FunctionTarget
from pyro_osds.train import velocity
from pyro_osds.train.budget import Budget
from pyro_osds.train.velocity import VelocityLeap, VelocityTrainer, exact_step, published_step

BASE_TIME, FULL_STEP = torch.zeros(1, 1), torch.ones(1, 1)
# The rate's integral over the whole way, halved: minus the log signal of the default schedule at the base.
SIZE = -math.log(math.sin(0.0025 * math.pi))


def base():
    return Base(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [0.5, 0.1]]), standard())


def standard():
    return MultivariateNormal(torch.zeros(2), torch.eye(2))


def at_the_base(offset=3.0, network=None):
    """The posterior is the base, times exp(offset)."""
    target = FunctionTarget(lambda z: base().log_prob(z) + offset, 2)
    diffusion = Diffusion(target, base(), ControlNetwork(2, hidden_features=8))
    diffusion.network = network or diffusion.network

    return diffusion


def two_modes(noise=0.3, **options):
    """A posterior with curved guidance, and an arbitrary network."""
    places = base().from_whitened(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]))
    log_prob = mixture_log_prob(base().to_whitened(places), [0.3, 0.7], scale=0.7)
    target = FunctionTarget(lambda z: log_prob(base().to_whitened(z)), 2)

    return Diffusion(target, base(), perturbed(ControlNetwork(2, hidden_features=8), noise), **options)


class Linear(torch.nn.Module):
    """The control A x."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = torch.nn.Parameter(matrix)

    def forward(self, x, t, d, guidance):
        return x @ self.matrix.T


class Fold(torch.nn.Module):
    """A control that turns the left half of the plane over: F(x) = (1 - 2 c) x_1 there, x_1 on the right."""

    def forward(self, x, t, d, guidance):
        return torch.cat([-2 * x[:, :1].clamp(max=0.0), 0 * x[:, 1:]], -1)


# ---- steps ----


@pytest.mark.parametrize(("t", "d"), [(0.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("guided", [True, False])
def test_exact_step_is_that_of_the_jacobian(float64, t, d, guided):
    # Against slogdet of a Jacobian of central differences of the teacher's own step, guidance included.
    diffusion = two_modes(noise=0.6, guided=guided)
    x, t, d = torch.randn(8, 2), torch.full((1, 1), t), torch.full((1, 1), d)
    landed, log_abs_det, sign = exact_step(diffusion, x, t, d)
    with torch.no_grad():
        torch.testing.assert_close(landed, diffusion.flow_step(x, t, d))
        columns = [
            (diffusion.flow_step(x + shift, t, d) - diffusion.flow_step(x - shift, t, d)) / 2e-5
            for shift in 1e-5 * torch.eye(2)
        ]
    expected = torch.linalg.slogdet(torch.stack(columns, -1))
    torch.testing.assert_close(log_abs_det, expected.logabsdet, rtol=1e-6, atol=1e-6)
    assert torch.equal(sign, expected.sign)
    assert log_abs_det.std() > 1e-3 and not log_abs_det.requires_grad and not landed.requires_grad


def test_published_step_of_a_linear_control(float64):
    # By hand: F(x) = x + c A x, volume c v'Av for the probe v; both carry gradients for A.
    matrix, x = torch.tensor([[0.3, -0.2], [0.5, 0.1]]), torch.randn(4, 2)
    diffusion = at_the_base(network=Linear(matrix))
    probe = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    landed, volume = published_step(diffusion, x, BASE_TIME, FULL_STEP, probe)
    torch.testing.assert_close(landed, x + SIZE * x @ matrix.T)
    # Trace 0.4, plus or minus the sum 0.3 of the other two entries.
    torch.testing.assert_close(volume, SIZE * torch.tensor([0.7, 0.1, 0.1, 0.7]))
    (gradient,) = torch.autograd.grad(volume[1], diffusion.network.matrix)
    torch.testing.assert_close(gradient, SIZE * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_published_volume_is_the_trace_on_average(float64):
    # Over probes of signs, which are drawn afresh; the log-determinant is another number.
    matrix = torch.tensor([[0.3, -0.2], [0.5, 0.1]])
    diffusion, x = at_the_base(network=Linear(matrix)), torch.zeros(4000, 2)
    _, volume = published_step(diffusion, x, BASE_TIME, FULL_STEP)
    assert_within_standard_error(volume.mean().item(), 0.4 * SIZE, volume.std().item() / math.sqrt(4000))
    exact = exact_step(diffusion, x[:1], BASE_TIME, FULL_STEP)[1]
    torch.testing.assert_close(exact[0], torch.linalg.slogdet(torch.eye(2) + SIZE * matrix).logabsdet)
    assert abs(exact.item() - 0.4 * SIZE) > 0.1


def test_published_volume_does_not_see_the_curvature_of_the_target(float64):
    # An untrained network is guidance alone: its published volume is zero, its exact one is not.
    diffusion, x = two_modes(noise=0.0), torch.randn(20, 2)
    t, d = torch.full((1, 1), 0.75), torch.full((1, 1), 0.25)
    landed, published = published_step(diffusion, x, t, d)
    exact_landed, exact, _ = exact_step(diffusion, x, t, d)
    torch.testing.assert_close(landed, exact_landed)
    assert not published.any() and exact.abs().min() > 1e-4


# ---- leaps ----


@pytest.mark.parametrize("volume", ["published", "exact"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_evidence_where_the_posterior_is_the_base(float64, volume, num_steps):
    # Nothing moves: every weight is the evidence, and the volume is that of the whitening.
    leap = VelocityLeap(at_the_base(), num_steps, volume)
    draws = weigh(leap, leap.diffusion.target, 200)
    torch.testing.assert_close(draws.log_weight, torch.full((200,), 3.0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leap.sample(5)[2], torch.full((5,), math.log(0.2)))


def test_evidence_of_a_map_that_does_not_fold(float64):
    # A widening by one half is a bijection: the mean weight is Z, with the exact volume only.
    means = {}
    for volume in ("exact", "published"):
        leap = VelocityLeap(at_the_base(0.0, Linear(torch.eye(2) * 0.5 / SIZE)), 1, volume)
        weight = weigh(leap, leap.diffusion.target, 20_000).log_weight.exp()
        means[volume] = weight.mean().item(), weight.std().item() / math.sqrt(20_000)
    assert_within_standard_error(means["exact"][0], 1.0, means["exact"][1])
    # exp(trace) in place of the determinant: e for 1.5^2.
    assert_within_standard_error(means["published"][0], math.e / 2.25, means["published"][1])


def test_folds_are_counted(float64):
    # The left half is turned over, whatever volume the draws are weighed with; nothing else is.
    for volume in ("published", "exact"):
        share = VelocityLeap(at_the_base(network=Fold()), 1, volume).fold_share(4000)
        assert_within_standard_error(share, 0.5, math.sqrt(0.25 / 4000))
    assert VelocityLeap(at_the_base()).fold_share(1000) == 0.0


def test_a_fold_in_any_step_counts(float64):
    # Turned over twice: the determinant of the whole map is positive again, and the folds are still folds.
    mirror = torch.diag(torch.tensor([-2.0, 0.0]))
    diffusion = at_the_base()

    class Mirror(torch.nn.Module):
        def forward(self, x, t, d, guidance):
            return x @ mirror.T / -diffusion.log_decay(t, d)

    diffusion.network = Mirror()
    assert VelocityLeap(diffusion, 1).fold_share(100) == 1.0
    assert VelocityLeap(diffusion, 2).fold_share(100) == 1.0


def test_a_fold_spoils_the_evidence(float64):
    # A posterior N(1/2, 1) on the folded axis: its right half is reached twice, its left half never.
    target = FunctionTarget(lambda z: standard().log_prob(z - torch.tensor([0.5, 0.0])), 2)
    whitening = Base(torch.zeros(2), torch.eye(2), standard())
    diffusion = Diffusion(target, whitening, ControlNetwork(2))
    diffusion.network = Fold()
    weight = weigh(VelocityLeap(diffusion), target, 20_000).log_weight.exp()
    right_half = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert_within_standard_error(weight.mean(), 2 * right_half, weight.std().item() / math.sqrt(20_000))
    assert weight.mean() > 1.2


def test_unknown_volume():
    # Both names are told.
    with pytest.raises(ValueError, match=r"volume must be one of \('published', 'exact'\), got 'trace'"):
        VelocityLeap(at_the_base(), volume="trace")


# ---- training ----


def trainer_of(diffusion, num_iterations, **options):
    budget = Budget(num_iterations, batch_size=64, learning_rate=3e-3, num_validation_draws=1000)

    return VelocityTrainer(diffusion, num_time_steps=4, budget=budget, disable_progbar=True, **options)


def test_run_records_its_terms():
    # Three losses, a value an iteration; one look at the end.
    trainer = trainer_of(two_modes(noise=0.05), 12)
    history = trainer.run()
    assert {name: len(values) for name, values in history.terms.items()} == {
        "path_reverse_kl": 12,
        "state_consistency": 12,
        "volume_consistency": 12,
    }
    assert history.loss == history.terms["path_reverse_kl"] and all(map(math.isfinite, history.loss))
    assert history.step == [12]
    assert all(len(values) == 1 for values in (history.elbo, history.gap, history.ess, history.pareto_k))
    assert trainer.averaged() is trainer.leap and not history.interrupted and history.num_skipped == 0


def test_training_lowers_the_loss():
    # The mean of the last ten path losses against the first ten, from a network that is far off.
    diffusion = two_modes()
    with torch.no_grad():
        diffusion.network.curve[-1].bias.add_(1.0)
    history = trainer_of(diffusion, 60).run()
    assert sum(history.loss[-10:]) / 10 < sum(history.loss[:10]) / 10 - 0.3


def test_nothing_to_learn_where_the_posterior_is_the_base(float64):
    # The loss is minus the log evidence before the first step, and so is the leap's.
    trainer = trainer_of(at_the_base(), 1)
    assert math.isclose(trainer.evaluate(), -3.0, rel_tol=1e-9) and math.isclose(trainer.step(), -3.0, rel_tol=1e-9)


def test_interruption_keeps_the_weights(monkeypatch):
    # Ctrl-C in the fourth iteration: three are recorded, a warning is given, the leap is judged all the same.
    trainer = trainer_of(two_modes(noise=0.05), 10)
    step = trainer.step

    def interrupted():
        if len(trainer.history.loss) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(trainer, "step", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        history = trainer.run()
    assert history.interrupted and history.step == [3] and len(history.elbo) == 1


def test_steps_that_are_not_finite_are_skipped_and_counted(monkeypatch):
    # A loss of the paths that is not a number moves no weight.
    diffusion = two_modes(noise=0.05)
    trainer = trainer_of(diffusion, 1)
    before = torch.cat([parameter.detach().reshape(-1) for parameter in diffusion.network.parameters()])
    monkeypatch.setattr(velocity, "path_reverse_kl", lambda log_weight: log_weight.sum() * math.nan)
    monkeypatch.setattr(trainer, "_learn_consistency", lambda states: {})
    trainer.step()
    after = torch.cat([parameter.detach().reshape(-1) for parameter in diffusion.network.parameters()])
    assert torch.equal(before, after) and trainer.history.num_skipped == 1


def test_a_single_step_has_no_halves():
    # On a grid of one step there is nothing to be consistent with: the paths' loss alone is recorded.
    budget = Budget(2, 16, num_validation_draws=64)
    history = VelocityTrainer(at_the_base(), 1, budget, disable_progbar=True).run()
    assert set(history.terms) == {"path_reverse_kl"} and len(history.loss) == 2
