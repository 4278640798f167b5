"""Distillation: one step becomes two half steps, and the smallest is the teacher's own."""

from types import SimpleNamespace

import pytest
import torch
from helpers import perturbed
from torch.distributions import MultivariateNormal

from pyro_osds.flow.base import Base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.flow.network import ControlNetwork
from pyro_osds.target import FunctionTarget
from pyro_osds.train.distillation import dyadic, retrace, self_distillation


def teacher(sd=1.0, noise=0.0):
    """A guided diffusion whose posterior is N(0, s^2) in whitened coordinates."""
    base = Base(torch.ones(2), 2 * torch.eye(2), MultivariateNormal(torch.zeros(2), torch.eye(2)))
    target = FunctionTarget(lambda z: -0.5 * (base.to_whitened(z) / sd).square().sum(-1), 2)

    return Diffusion(target, base, perturbed(ControlNetwork(2, hidden_features=8), noise))


def leap_of(flow):
    """A leap as far as distillation looks at it: a step ``x, t, d -> points, log-determinants``."""
    return SimpleNamespace(flow=flow)


def identity(x, t, d):
    return x, torch.zeros(len(x))


def shift(x, t, d):
    """Along the diagonal by the size of the step, with a volume to match."""
    return x + d, d.squeeze(-1)


def test_dyadic_numbers_of_steps():
    # Up to the finest grid's, which may be a single step.
    assert dyadic(1) == (1,) and dyadic(16) == (1, 2, 4, 8, 16)


@pytest.mark.parametrize("num_time_steps", [3, 0, -4, 12])
def test_a_grid_that_is_no_power_of_two(num_time_steps):
    # There would be no halves.
    with pytest.raises(ValueError, match=f"must be a power of two, got {num_time_steps}"):
        self_distillation(teacher(), num_time_steps, 10)


@pytest.mark.parametrize("num_time_steps", [1, 4])
def test_the_smallest_step_is_the_teachers(float64, num_time_steps):
    # Whoever walks as the teacher does has nothing to learn from it; whoever stands still has.
    diffusion = teacher(0.5, noise=0.3)

    def walk(x, t, d):
        return diffusion.flow_step(x, t, d), torch.zeros(len(x))

    found = {}
    for step in (walk, identity):
        objective = self_distillation(diffusion, num_time_steps, 50)
        losses = [objective(leap_of(step), leap_of(step)) for _ in range(20)]
        # The smallest step has no volume to match.
        smallest = [loss for loss in losses if "volume_consistency" not in loss.terms]
        assert smallest and (num_time_steps == 1) == (len(smallest) == 20)
        found[step] = torch.stack([loss.total.detach() for loss in smallest])
    assert found[walk].max() < 1e-20 and found[identity].min() > 1e-4


@pytest.mark.parametrize("shortcut", [True, False])
def test_nothing_to_learn_where_the_posterior_is_the_base(float64, shortcut):
    # The teacher stands still, and so does the untrained flow: zero at every draw of the step.
    diffusion = teacher()
    leap = Leap(diffusion.base, FlowMap(2, num_blocks=3, hidden_features=8))
    objective = self_distillation(diffusion, 8, 20, shortcut=shortcut)
    losses = [objective(leap, leap) for _ in range(20)]
    assert max(loss.total.item() for loss in losses) < 1e-20
    assert all(not term.requires_grad for loss in losses for term in loss.terms.values())
    assert all(len(loss.log_weight) == 0 for loss in losses)


def test_an_exact_flow_is_consistent_with_itself(float64):
    # x times the ratio of standard deviations, for any time and step: two halves are a whole, in place and in volume.
    diffusion = teacher(0.5)

    def log_sd(t):
        signal_variance = (2 * diffusion.schedule.log_signal(t)).exp()
        return 0.5 * (0.25 * signal_variance + 1 - signal_variance).log()

    def exact(x, t, d):
        log_scale = log_sd(t + d) - log_sd(t)
        return x * log_scale.exp(), 2 * log_scale.squeeze(-1)

    objective = self_distillation(diffusion, 8, 20, shortcut=False)
    losses = [objective(leap_of(exact), leap_of(exact)) for _ in range(30)]
    larger = [loss for loss in losses if "volume_consistency" in loss.terms]
    assert 10 < len(larger) < 30 and max(loss.total.item() for loss in larger) < 1e-20
    # Against an average that stands still there is something to learn.
    losses = [objective(leap_of(exact), leap_of(identity)) for _ in range(30)]
    assert min(loss.total.item() for loss in losses if "volume_consistency" in loss.terms) > 1e-5


@pytest.mark.parametrize(("shortcut", "share"), [(True, 0.5), (False, 1.0)])
def test_goals_are_those_of_the_average_and_of_the_walk(float64, shortcut, share):
    # The student stands still, as the teacher's walk does; the average moves by d, with a log-determinant of d.
    # So half of the states, or all, are d^2 away from their goal, and all log-determinants are.
    objective = self_distillation(teacher(), 4, 20, state_weight=3.0, volume_weight=0.5, shortcut=shortcut)
    seen = set()
    for _ in range(20):
        loss = objective(leap_of(identity), leap_of(shift))
        if "volume_consistency" in loss.terms:
            volume = loss.terms["volume_consistency"].item()
            seen.add(round(volume**0.5, 9))
            torch.testing.assert_close(loss.terms["state_consistency"].item(), share * volume)
            torch.testing.assert_close(loss.total.item(), (3.0 * share + 0.5 / 2) * volume)
    assert seen == {0.5, 1.0}


def test_distillation_teaches_the_flow(float64):
    # A hundred steps with the average in the second place: the same draws of the objective cost a fraction.
    diffusion = teacher(0.4)
    leap = Leap(diffusion.base, FlowMap(2, num_blocks=3, hidden_features=8))
    objective = self_distillation(diffusion, 4, 64)
    objective(leap, leap)

    def cost():
        torch.manual_seed(1)
        return torch.stack([objective(leap, leap).terms["state_consistency"] for _ in range(20)]).mean().item()

    before = cost()
    optimizer = torch.optim.Adam(leap.flow.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        objective(leap, leap).total.backward()
        optimizer.step()
    assert cost() < 0.2 * before
    # In one step it has become about as narrow as the walk in four.
    walked = diffusion.flow(torch.randn(2000, 2), 4)[-1].std().item()
    landed = leap.base.to_whitened(leap.sample(2000)[0]).std().item()
    assert walked < 0.7 and abs(landed - walked) < 0.15


def test_retracing_itself_costs_nothing(float64):
    # The same leap in the same number of steps; in another number a perturbed flow goes elsewhere.
    diffusion = teacher()
    leap = Leap(diffusion.base, perturbed(FlowMap(2, num_blocks=3, hidden_features=8), 0.3))
    objective = retrace(leap, 50)
    assert objective(leap, leap).total.item() < 1e-20
    loss = objective(Leap(leap.base, leap.flow, num_steps=2), leap)
    assert min(loss.terms["state_consistency"], loss.terms["volume_consistency"]) > 1e-4


def test_retrace_by_hand(float64):
    # A walk three units beside the leap is 3 / 2 away in whitened coordinates; its volume differs by four.
    leap = Leap(teacher().base, FlowMap(2, num_blocks=3, hidden_features=8))
    weight = torch.ones((), requires_grad=True)

    def walk(x):
        z, log_abs_det = leap(x)
        return z + 3 * weight, log_abs_det + 4 * weight

    loss = retrace(leap, 50, volume_weight=0.5)(walk, None)
    torch.testing.assert_close(
        loss.terms, {"state_consistency": torch.tensor(2.25), "volume_consistency": torch.tensor(16.0)}
    )
    torch.testing.assert_close(loss.total.item(), 2.25 + 0.25 * 16)
    assert not loss.terms["state_consistency"].requires_grad and len(loss.log_weight) == 0


def test_retracing_leaves_the_trained_leap_alone(float64):
    # Only the walk has a gradient.
    leap = Leap(teacher().base, perturbed(FlowMap(2, num_blocks=3, hidden_features=8), 0.3))
    walk = Leap(leap.base, perturbed(FlowMap(2, num_blocks=3, hidden_features=8), 0.3), num_steps=2)
    retrace(leap, 50)(walk, leap).total.backward()
    assert any(parameter.grad.any() for parameter in walk.flow.parameters())
    assert all(parameter.grad is None for parameter in leap.flow.parameters())
