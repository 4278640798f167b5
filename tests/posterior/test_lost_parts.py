"""What search found and the draws lack is an objection, in every stage; what they have is none."""

import math

import pytest
import torch

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.explore.search.parts import basin
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.posterior.draws import annealed_posterior, draw_posterior
from pyro_osds.posterior.reasons import lost_reasons
from pyro_osds.target import FunctionTarget, log_prob_and_score

FAR = 9.0


def two(z):
    """Two unit normals, weights .8 and .2, nine standard deviations apart."""
    shifted = z - torch.tensor([FAR, 0.0]).to(z)
    logs = math.log(0.8) - 0.5 * z.square().sum(-1), math.log(0.2) - 0.5 * shifted.square().sum(-1)

    return torch.logaddexp(*logs) - math.log(2 * math.pi)


@pytest.fixture
def parts(float64):
    tops = torch.tensor([[0.0, 0.0], [FAR, 0.0]])
    return [basin(lambda z: log_prob_and_score(two, z), top, torch.eye(2), quickly=False) for top in tops]


def leap_from(z):
    return Leap(gaussian_base(z), FlowMap(2, num_blocks=1))


def test_a_flow_on_one_of_two_modes(parts):
    # Its weights are as good as constant, and its log evidence is log .8 = -.22: only the part that was found tells.
    draws = draw_posterior(leap_from(torch.randn(4000, 2)), FunctionTarget(two, 2), 4, 1000, parts=parts)
    evidence = draws.evidence
    assert abs(evidence.log_evidence - math.log(0.8)) < 0.02 and evidence.pareto_k < 0.7
    assert not evidence.reliable and not evidence.draws_reliable and not evidence.is_settled
    (reason,) = evidence.reasons
    # Nine tenths of a fifth, as a share of four fifths: 22 %.
    assert reason.startswith("A part of the posterior is lost: around z = (9, ")
    assert "% of this evidence" in reason and "num_particles" in reason
    share = float(reason.split("draws lack ")[1].split("%")[0]) / 100
    assert share == pytest.approx(0.9 * 0.2 / 0.8, abs=0.02)


def test_a_flow_on_both(parts):
    z = torch.randn(4000, 2)
    z[:800, 0] += FAR
    evidence = draw_posterior(leap_from(z), FunctionTarget(two, 2), 4, 1000, parts=parts).evidence
    assert not any("lost" in reason for reason in evidence.reasons)


@pytest.mark.parametrize("knows_both", [False, True])
def test_annealed_particles(parts, knows_both):
    # Annealing from one mode loses the other; annealing from both has both.
    target = FunctionTarget(two, 2)
    z = torch.randn(4000, 2)
    before = draw_posterior(leap_from(z), target, 4, 100)
    if knows_both:
        z[:2000, 0] += FAR
    base = gaussian_base(z)
    found = explore(ReferencePath(target, base.sample, base.log_prob), 64, 32)
    evidence = annealed_posterior(found, target, 4, 100, before, parts=parts).evidence
    assert any("A part of the posterior is lost" in reason for reason in evidence.reasons) != knows_both


def test_the_largest_is_named(parts):
    assert lost_reasons([], 0.0) == []
    (reason,) = lost_reasons([(parts[1], 0.2), (parts[0], 5.0)], math.log(0.2))
    assert "around z = (" in reason.text and "5 times this evidence" in reason.text and "and 1 more" in reason.text
