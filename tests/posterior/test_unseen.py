"""What draws do not see of a neck is part of the standard error, and a reason where it is much."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyro_osds.explore.necks.narrowing import Way
from pyro_osds.explore.necks.tilted import tilt
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.posterior.reasons import Gap, neck_reasons
from pyro_osds.posterior.unseen import gap_by_draws, gap_by_particles
from pyro_osds.posterior.verdict import judge
from pyro_osds.stats.weights import log_weights_at, summarize_weights, weigh
from pyro_osds.target import FunctionTarget


def funnel(z):
    v, members = z[:, 0], z[:, 1:]

    return Normal(0.0, 1.0).log_prob(v) + Normal(0.0, v.exp()[:, None]).log_prob(members).sum(-1)


@pytest.fixture
def seen(float64):
    """A Gaussian leap, the funnel, exact draws of it and a neck of particles."""
    torch.manual_seed(3)
    v = torch.randn(8000, 1)
    z = torch.cat([v, v.exp() * torch.randn(8000, 2)], 1)
    target = FunctionTarget(funnel, 3)
    leap = Leap(gaussian_base(z[z[:, 0] > -1.0]), FlowMap(3, num_blocks=1, hidden_features=8))

    return leap, target, z, tilt(target, z, torch.zeros(len(z)), Way(0, -1, 3.0), 128, 4, 5)


def test_exact_draws_see_all_of_a_neck(seen):
    leap, target, z, neck = seen
    gap = gap_by_particles(leap, target, (neck,), log_weights_at(leap, target, z), 0.0)
    assert gap.share < 4 * gap.std_error and not neck_reasons(gap)
    assert abs(gap.by_neck - gap.by_draws) < 5 * gap.std_error


def test_draws_that_stop_short_do_not(seen):
    leap, target, z, neck = seen
    short = z[z[:, 0] > -0.8]
    gap = gap_by_particles(leap, target, (neck,), log_weights_at(leap, target, short), 0.0)
    assert gap.share > 0.02 and len(neck_reasons(gap)) == 1
    weighed = weigh(leap, target, 4096)
    # Weighed draws without those of the neck: the mean weight of one is the funnel's integral.
    kept = weighed.log_weight[weighed.z[:, 0] > -0.8]
    assert gap_by_draws(leap, target, (neck,), kept).share > 0.02


def test_nobody_looked(seen):
    leap, target, _, neck = seen
    assert gap_by_draws(leap, target, (), torch.zeros(5)) is None
    assert gap_by_draws(leap, target, (neck,), torch.full((5,), -math.inf)) is None
    assert gap_by_particles(leap, target, (neck,), torch.zeros(5), math.nan) is None
    assert neck_reasons(None) == []


def test_a_small_gap_widens_the_standard_error_and_a_large_one_is_a_reason():
    weights = summarize_weights(0.3 * torch.randn(4000))
    assert math.isclose(judge(weights, unseen=0.01).std_error, math.hypot(judge(weights).std_error, 0.01))
    assert neck_reasons(Gap(0.019, 0.001, 0.03, 0.011)) == neck_reasons(Gap(0.04, 0.02, 0.05, 0.01)) == []
    (reason,) = neck_reasons(Gap(0.04, 0.002, 0.05, 0.01))
    assert reason.draws and reason.evidence and reason.mendable
    assert "5.0% of it" in reason.text and "1.0%" in reason.text and "non-centred" in reason.text
