"""Draws: weighted draws become chains, and evidence is taken from all of them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.particles import Exploration
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.posterior import draws as drawing
from pyro_osds.posterior.draws import annealed_posterior, draw_posterior, refined_posterior
from pyro_osds.posterior.verdict import EvidenceCheck, judge
from pyro_osds.stats import pareto
from pyro_osds.stats.pareto import TailFit
from pyro_osds.stats.thresholds import ENOUGH_STD_ERROR
from pyro_osds.stats.weights import summarize_weights
from pyro_osds.target import FunctionTarget, NotFiniteError


@pytest.fixture
def leap():
    # An untrained flow proposes the Gaussian of the base.
    return Leap(gaussian_base(torch.randn(500, 1, dtype=torch.float64)), FlowMap(1, num_blocks=1))


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
    assert evidence.std_error <= ENOUGH_STD_ERROR or evidence.num_draws == 32768
    assert_within_standard_error(evidence.log_evidence, 0.0, evidence.std_error)


def test_draws_go_on_until_the_error_that_was_asked_for(leap):
    # Beyond the usual number, as far as they may; an easy aim is met sooner.
    precise = draw_posterior(leap, near(), 1, 100, max_draws=2**18, target_std_error=0.0015).evidence
    rough = draw_posterior(leap, near(), 1, 100, target_std_error=1.0).evidence
    assert precise.std_error <= 0.0015 and precise.num_draws > 32768 and rough.num_draws == 4096
    assert_within_standard_error(precise.log_evidence, 0.0, precise.std_error)


def test_chains_that_mix_badly_are_thinned_out_of_more_draws(leap, monkeypatch):
    # Twice as many, until half of the posterior draws are effective or there are four times the usual number.
    for shares, count in (([0.6], 1), ([0.3, 0.6], 2), ([0.3, 0.4, 0.4, 0.4], 4)):
        seen = iter(shares)
        monkeypatch.setattr(drawing, "mixing", lambda z, seen=seen: (1.0, next(seen)))
        draws = draw_posterior(leap, near(), 2, 1024)
        usual = 32768 if count == 4 else len(draws.proposals.z) // count
        assert len(draws.proposals.z) == count * usual and draws.index.shape == (2, 1024)
        assert torch.equal(draws.index // (len(draws.proposals.z) // 2), torch.arange(2)[:, None].expand(2, 1024))
    # Not where draws cost seconds each, and not against a clock.
    monkeypatch.setattr(drawing, "mixing", lambda z: (1.0, 0.3))
    assert len(draw_posterior(leap, near(), 2, 1024, deadline=1e12).proposals.z) <= 32768
    costly = near()
    costly.num_terms = 10**6
    assert len(draw_posterior(leap, costly, 2, 1024).proposals.z) <= 32768


def test_an_exact_flow_needs_the_minimum(leap):
    # Equal weights: the first batch already has no error.
    evidence = draw_posterior(leap, FunctionTarget(leap.base.log_prob, 1), 1, 100).evidence
    assert evidence.num_draws == 4096 and abs(evidence.log_evidence) < 1e-5 and evidence.reliable


def test_chains_get_all_the_draws_that_they_need(leap):
    # More proposals than the usual minimum, and a limit for slow models.
    assert draw_posterior(leap, FunctionTarget(leap.base.log_prob, 1), 2, 3000).evidence.num_draws == 6000
    assert draw_posterior(leap, near(), 2, 50, max_draws=100).evidence.num_draws == 100


def test_check_and_improper_sites_reach_the_verdict(leap):
    # A wrong check and an improper site are reasons; the check holds for both, since unknown constants cancel.
    wrong = EvidenceCheck(5.0, 0.1)
    assert "a mode may be lost" in draw_posterior(leap, near(), 1, 100, check=wrong).evidence.reasons[0]
    evidence = draw_posterior(leap, near(), 1, 100, improper_sites=("mu",)).evidence
    assert "improper" in evidence.reasons[0] and evidence.is_settled and math.isnan(evidence.log_evidence)
    assert_within_standard_error(evidence.log_integral, 0.0, max(ENOUGH_STD_ERROR, 0.5 / evidence.num_draws**0.5))
    evidence = draw_posterior(leap, near(), 1, 100, check=wrong, improper_sites=("mu",)).evidence
    assert "a mode may be lost" in evidence.draws_reasons[0] and not evidence.is_settled


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
    from pyro_osds.stats.chains import check_any_weight

    with pytest.raises(ValueError, match="No draw of the flow has a positive posterior density"):
        check_any_weight(torch.full((5,), -torch.inf))


@pytest.mark.parametrize("correction", ["imh", "psis", "none"])
def test_the_tail_is_fitted_once_per_set_of_weights(leap, monkeypatch, correction):
    # Standard error, second opinion, verdict and smoothed weights share one fit; doubled draws are another set.
    class Proposal:  # gets no refinement, which fits tails of its own
        sample, can_invert, has_exact_density = leap.sample, False, True

    sizes, inner = [], pareto.fit_generalized_pareto
    monkeypatch.setattr(pareto, "fit_generalized_pareto", lambda tail: sizes.append(len(tail)) or inner(tail))
    draws = draw_posterior(Proposal(), wide(), 2, 2048, correction, deadline=1e12)
    assert draws.evidence.num_draws == 32768 and draws.evidence.std_error > ENOUGH_STD_ERROR
    assert sizes == [math.ceil(3.0 * math.sqrt(num_draws)) for num_draws in (4096, 8192, 16384, 32768)]


@pytest.mark.parametrize(("scale", "is_said"), [(1.0, False), (0.5, True), (2.0, True)])
def test_particles_have_to_confirm_a_heavy_tail(leap, scale, is_said):
    # N(0, 1.75^2) from N(0, 1): pareto k is near 0.6. True particles, and explorations that are too narrow or too wide.
    target = FunctionTarget(lambda z: torch.distributions.Normal(0.0, 1.75).log_prob(z)[:, 0], 1)
    particles = scale * 1.75 * torch.randn(512, 1, dtype=torch.float64)
    evidence = draw_posterior(leap, target, 1, 100, particles=particles).evidence
    assert 0.5 < evidence.pareto_k < 0.7
    assert any("explored particles do not confirm it" in reason for reason in evidence.reasons) == is_said
    # Where the tail is light, particles are not asked.
    evidence = draw_posterior(leap, near(), 1, 100, particles=10.0 + particles).evidence
    assert evidence.pareto_k < 0.5 and not any("explored particles" in reason for reason in evidence.reasons)


# ---- the second opinion ----


@pytest.fixture
def refinements(monkeypatch):
    """The refinements that were made, which are made all the same."""
    made, inner = [], drawing.refine

    def refine(*arguments):
        made.append(inner(*arguments))
        return made[-1]

    monkeypatch.setattr(drawing, "refine", refine)

    return made


def wide():
    """N(0, 2^2), normalised: twice as wide as the leap, whose weights then have a heavy tail."""
    return FunctionTarget(lambda z: torch.distributions.Normal(0.0, 2.0).log_prob(z)[:, 0], 1)


@pytest.mark.parametrize("improper_sites", [(), ("mu",)])
def test_weights_that_are_not_nearly_equal_get_a_second_opinion(leap, refinements, improper_sites):
    # The refinement is kept with the draws, and its evidence with the verdict.
    draws = draw_posterior(leap, wide(), 1, 100, max_draws=4096, improper_sites=improper_sites)
    assert len(refinements) == 1 and draws.refinement is refinements[0]
    second = draws.evidence.refinement
    assert (second.log_evidence, second.std_error) == (draws.refinement.log_evidence, draws.refinement.std_error)
    assert_within_standard_error(second.log_evidence, 0.0, second.std_error)
    assert draws.evidence.pareto_k > 0.5 and draws.evidence.ess < 0.9 * draws.evidence.num_draws


@pytest.mark.parametrize(
    ("k", "share", "asked"), [(0.5, 0.9, False), (0.51, 1.0, True), (-math.inf, 0.89, True), (math.nan, 1.0, True)]
)
def test_when_a_second_opinion_is_asked_for(leap, refinements, monkeypatch, k, share, asked):
    # A tail above one half, or less than nine in ten draws effective.
    def summarize(log_weight):
        weights = summarize_weights(log_weight)
        return replace(weights, tail=TailFit(100, 0.5, k, 1.0), ess=share * weights.num_draws)

    monkeypatch.setattr(drawing, "summarize_weights", summarize)
    draws = draw_posterior(leap, near(), 1, 100, max_draws=4096)
    assert bool(refinements) == asked and (draws.evidence.refinement is not None) == asked


def test_no_second_opinion(leap, refinements):
    # Of equal weights, point by point, and where the flow is no leap.
    assert draw_posterior(leap, FunctionTarget(leap.base.log_prob, 1), 1, 100).refinement is None

    class Proposal:
        sample, can_invert, has_exact_density = leap.sample, False, True

    assert draw_posterior(Proposal(), wide(), 1, 100, max_draws=4096).evidence.refinement is None
    slow = wide()
    slow.vectorized = False
    assert draw_posterior(leap, slow, 1, 100, max_draws=500).refinement is None
    assert not refinements


def test_a_second_opinion_where_hardly_a_draw_lies_in_the_posterior(leap, monkeypatch):
    # One in a thousand: more of them are looked through, and the verdict is bad; so it is where none is found.
    target = FunctionTarget(lambda z: torch.where(z[:, 0] > 3.1, -z[:, 0], -torch.inf), 1)
    draws = draw_posterior(leap, target, 1, 100)
    assert draws.refinement is not None and (draws.z > 3.1).all() and not draws.evidence.reliable

    def refine(*arguments):
        raise NotFiniteError("not finite at any starting point", torch.zeros(1))

    monkeypatch.setattr(drawing, "refine", refine)
    draws = draw_posterior(leap, target, 1, 100)
    assert draws.refinement is None and not draws.evidence.reliable


def test_a_refinement_that_disagrees_is_a_reason(leap, monkeypatch):
    # As when a part of the posterior lies next to the draws.
    found = SimpleNamespace(log_evidence=1.0, std_error=0.02)
    monkeypatch.setattr(drawing, "refine", lambda *arguments: found)
    assert any(
        "below that of short annealing" in reason for reason in draw_posterior(leap, wide(), 1, 9).evidence.reasons
    )


# ---- draws of a refinement ----


@pytest.fixture
def judged():
    """What weights say that did not suffice."""
    log_weight = 2.0 * torch.randn(200)
    return SimpleNamespace(evidence=judge(summarize_weights(log_weight)), flow_log_weight=log_weight, flow_not_finite=0)


@pytest.fixture
def walked(monkeypatch):
    """Refinements of particles that are numbered, without walking."""

    def refine(leap, target, num_particles, num_replicates):
        z = torch.arange(float(num_replicates * num_particles))[:, None]
        return Exploration(z, z[:, 0], torch.zeros(num_replicates), 5, 0, 0.8, 0, ess=len(z))

    monkeypatch.setattr(drawing, "refine", refine)


@pytest.mark.parametrize(("num_chains", "num_samples"), [(4, 1000), (3, 333), (1, 50), (7, 400)])
def test_draws_of_a_refinement(leap, judged, walked, num_chains, num_samples):
    # As many as asked for, no particle twice, each chain from particles of its own, all of equal weight.
    draws = refined_posterior(leap, wide(), num_chains, num_samples, judged)
    assert draws.index.shape == draws.acceptance.shape == (num_chains, num_samples)
    assert draws.z.shape == (num_chains * num_samples, 1) and draws.acceptance.isnan().all()
    assert len(draws.index.unique()) == num_chains * num_samples
    share = len(draws.proposals.z) // num_chains
    assert torch.equal(draws.index // share, torch.arange(num_chains)[:, None].expand(num_chains, num_samples))
    # At least 64 particles on each of 32 replicates.
    assert len(draws.proposals.z) == 32 * max(64, math.ceil(num_chains * num_samples / 32))
    assert not draws.proposals.log_weight.any() and draws.evidence.num_draws == len(draws.proposals.z)
    # The weights that asked for the refinement are not lost.
    assert draws.flow_log_weight is judged.flow_log_weight


def test_draws_of_a_refinement_follow_the_target(leap, judged):
    # Mean, variance and evidence of a target that is twice as wide as the leap, believed; the ELBO stays the leap's.
    draws = refined_posterior(leap, wide(), 32, 125, judged)
    z = draws.z.view(32, 125)
    assert_within_standard_error(z.mean(), 0.0, z.mean(1).std().item() / math.sqrt(32))
    square = z.square().mean(1)
    assert_within_standard_error(square.mean(), 4.0, square.std().item() / math.sqrt(32))
    evidence = draws.evidence
    assert evidence.reliable and not judged.evidence.reliable and evidence.elbo == judged.evidence.elbo
    assert_within_standard_error(evidence.log_evidence, 0.0, evidence.std_error)
    torch.testing.assert_close(draws.proposals.log_prob, wide().log_prob(draws.proposals.z))


def test_copies_of_a_particle_do_not_follow_each_other(leap, judged, walked):
    # Resampling puts copies next to each other; a chain goes through its replicates in random order.
    draws = refined_posterior(leap, wide(), 4, 500, judged)
    steps = draws.index.diff(dim=1).double()
    assert_within_standard_error(steps.abs().mean(), 512 / 3, 512 / math.sqrt(18 * 4 * 499 / 3))


def test_refinement_and_improper_sites(leap, judged, walked):
    # Draws are valid, the evidence is not defined.
    draws = refined_posterior(leap, wide(), 1, 50, judged, ("mu",))
    assert "site 'mu' is improper" in draws.evidence.reasons[0] and math.isnan(draws.evidence.log_evidence)


def test_what_speaks_against_the_density_outlives_the_refinement(leap, judged, walked):
    # Draws that were no numbers, and log densities that are rounded: a refinement cannot make up for either.
    judged.flow_not_finite = 20
    refined = refined_posterior(leap, wide(), 1, 50, judged)
    again = annealed_posterior(refined.refinement, wide(), 1, 50, refined)
    for draws in (refined, again):
        reasons = draws.evidence.reasons
        assert len(reasons) == 1 and "nan or +inf at 20 of 200 draws" in reasons[0]
        assert draws.flow_not_finite == 20 and draws.flow_log_weight is judged.flow_log_weight


def test_a_refinement_in_single_precision_is_not_believed_where_it_is_rounded(leap, judged):
    # Thirty million nats: the estimate is off by more than the replicates' spread, and the standard error knows.
    evidence = refined_posterior(leap, insists_on_single(3e7), 1, 50, judged).evidence
    assert any("Rounding adds 0." in reason for reason in evidence.draws_reasons) and 0.3 < evidence.std_error < 2.0
    assert not evidence.reliable and not evidence.draws_reliable


# ---- rounding ----


def insists_on_single(constant):
    """N(0.3, 0.8^2) with a constant, of points in single precision only."""

    def log_prob(z):
        assert z.dtype == torch.float32
        return torch.distributions.Normal(0.3, 0.8).log_prob(z)[:, 0] + constant

    target = FunctionTarget(log_prob, 1)
    assert not target.is_double

    return target


def test_rounding_in_double_precision():
    # One unit in the last place of the median; points of density zero have no size.
    log_prob = torch.tensor([-100.0, -1000.0, -1e9, -math.inf, -math.inf], dtype=torch.float64)
    z = torch.zeros(5, 1, dtype=torch.float64)
    assert drawing.rounding_at(near(), z, log_prob) == pytest.approx(1000 * 2**-52)
    assert drawing.rounding_at(near(), z[:3], torch.full((3,), -math.inf)) == 0.0
    # Nor is there anything to measure where no point has a density.
    assert drawing.rounding_at(insists_on_single(0.0), z[:3], torch.full((3,), -math.inf)) == 0.0


@pytest.mark.parametrize("constant", [2e6, 2e5, 2e4])
def test_rounding_in_single_precision(constant):
    # Measured, at the draws: the spread of what the constant leaves of the density.
    target = insists_on_single(constant)
    z = 0.3 + 0.8 * torch.randn(2000, 1, dtype=torch.float64)
    error = target.log_prob(z) - constant - near().log_prob(z)
    assert drawing.rounding_at(target, z, target.log_prob(z)) == pytest.approx(error.std().item(), rel=0.15)


def test_a_large_constant_is_a_reason_in_single_precision(leap):
    # Twenty million nats are rounded to two; in double precision there is nothing to complain about.
    evidence = draw_posterior(leap, insists_on_single(2e7), 1, 100, max_draws=4096).evidence
    assert any("Rounding adds 0." in reason for reason in evidence.draws_reasons) and evidence.std_error > 0.3
    evidence = draw_posterior(leap, FunctionTarget(lambda z: near().log_prob(z) + 2e7, 1), 1, 100).evidence
    assert evidence.reliable and evidence.std_error <= ENOUGH_STD_ERROR
    base = leap.base
    target = FunctionTarget(lambda z: base.log_prob(z) + 2e7, 1)
    evidence = draw_posterior(leap, target, 1, 100).evidence
    assert evidence.std_error < 1e-6 and evidence.log_evidence == pytest.approx(2e7, abs=1e-6)
