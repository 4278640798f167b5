"""The posterior room: weighted draws become chains, and evidence is taken from all of them."""

import math

import pytest
import torch
from helpers import assert_within_standard_error

import pyro_osds.posterior as posterior
from pyro_osds.base import gaussian_base
from pyro_osds.evidence import EvidenceCheck
from pyro_osds.flow_map import FlowMap
from pyro_osds.leap import Leap
from pyro_osds.posterior import draw_posterior
from pyro_osds.target import FunctionTarget


@pytest.fixture
def leap():
    # An untrained flow proposes the Gaussian of the base.
    return Leap(gaussian_base(torch.randn(500, 1)), FlowMap(1, num_blocks=1))


def near():
    """N(0.3, 0.8^2), normalised: not what the leap proposes, but covered by it."""
    return FunctionTarget(lambda z: torch.distributions.Normal(0.3, 0.8).log_prob(z)[:, 0], 1)


@pytest.mark.parametrize("correction", ["imh", "psis"])
def test_corrected_draws_follow_the_target(leap, correction):
    # Mean and standard deviation of the target, not those of the proposal; errors from chain to chain.
    draws = draw_posterior(leap, near(), 32, 250, correction)
    z = draws.z.view(32, 250)
    assert_within_standard_error(z.mean(), 0.3, z.mean(1).std().item() / math.sqrt(32))
    square = (z - 0.3).square().mean(1)
    assert_within_standard_error(square.mean(), 0.64, square.std().item() / math.sqrt(32))


def test_uncorrected_draws_are_the_proposals(leap):
    # In their order, whatever they weigh.
    draws = draw_posterior(leap, near(), 2, 50, "none")
    assert torch.equal(draws.z, draws.proposals.z[:100])
    assert torch.equal(draws.index, torch.arange(100).view(2, 50))
    assert draws.acceptance.isnan().all()


def test_shapes_by_chain(leap):
    # Index and acceptance by chain; draws one chain after the other, and only out of the chains' own proposals.
    draws = draw_posterior(leap, near(), 3, 40)
    assert draws.index.shape == draws.acceptance.shape == (3, 40) and draws.z.shape == (120, 1)
    # Every draw is a proposal: the chains are thinned, each within its own share.
    share = len(draws.proposals.z) // 120 * 40
    assert torch.equal(draws.index // share, torch.arange(3)[:, None].expand(3, 40))
    assert (draws.index.diff(dim=1) > 0).double().mean() > 0.9
    assert torch.equal(draws.z[40], draws.proposals.z[draws.index[1, 0]])
    assert ((draws.acceptance >= 0) & (draws.acceptance <= 1)).all()


def test_draws_are_doubled_until_the_error_is_small(leap):
    # A power of two times the minimum, the error below the limit or the draws at theirs.
    evidence = draw_posterior(leap, near(), 1, 100).evidence
    assert evidence.num_draws in (4096, 8192, 16384, 32768) and evidence.num_draws > 4096
    assert evidence.std_error <= posterior._STD_ERROR or evidence.num_draws == 32768
    assert_within_standard_error(evidence.log_evidence, 0.0, evidence.std_error)


def test_an_exact_flow_needs_the_minimum(leap):
    # Equal weights: the first batch already has no error.
    evidence = draw_posterior(leap, FunctionTarget(leap.base.log_prob, 1), 1, 100).evidence
    assert evidence.num_draws == 4096 and abs(evidence.log_evidence) < 1e-5 and evidence.reliable


def test_chains_get_all_the_draws_that_they_need(leap):
    # More proposals than the usual minimum, and a limit for slow models.
    assert draw_posterior(leap, FunctionTarget(leap.base.log_prob, 1), 2, 3000).evidence.num_draws == 6000
    assert draw_posterior(leap, near(), 2, 50, max_draws=100).evidence.num_draws == 100


def test_check_and_improper_sites_reach_the_verdict(leap):
    # A wrong check and an improper site are reasons; without an evidence nothing is doubled.
    wrong = EvidenceCheck(5.0, 0.1)
    assert "a mode may be lost" in draw_posterior(leap, near(), 1, 100, check=wrong).evidence.reasons[0]
    evidence = draw_posterior(leap, near(), 1, 100, improper_sites=("mu",)).evidence
    assert "improper" in evidence.reasons[0] and evidence.num_draws == 4096


def test_impossible_proposals_are_counted_and_never_drawn(leap):
    # nan on one side: each one is counted, none becomes a draw.
    target = FunctionTarget(lambda z: torch.where(z[:, 0] > 0, -z[:, 0].square(), torch.nan), 1)
    for correction in ("imh", "psis"):
        draws = draw_posterior(leap, target, 4, 200, correction)
        assert (draws.z > 0).all()
        assert draws.proposals.num_not_finite == (draws.proposals.z <= 0).sum()
        assert any("nan or +inf" in reason for reason in draws.evidence.reasons)


def test_psis_refuses_weights_that_are_all_zero():
    # With no weight anywhere there is nothing to resample from, and the error says so.
    from pyro_osds.chains import check_any_weight

    with pytest.raises(ValueError, match="No draw of the flow has a positive posterior density"):
        check_any_weight(torch.full((5,), -torch.inf))
