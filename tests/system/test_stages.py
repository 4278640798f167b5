"""Escalation and its relatives, seen from OSDS: stages, time, components in one order, reference draws."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS

# Skew in ten dimensions, which a flow that is hardly trained does not follow: weights without a variance.
SKEW_LOG_EVIDENCE = 10 * math.lgamma(0.5)
# The median of a gamma density of shape a half.
MEDIAN = 0.227468


def skew(z):
    """Ten logarithms of gamma variables of shape a half, unnormalised, ``(B, 10) -> (B,)``."""
    return (0.5 * z - z.exp()).sum(-1)


def fit(sampler, *args):
    pyro.set_rng_seed(0)
    with contextlib.nullcontext() if sampler.settings.escalate else pytest.warns(UserWarning):
        sampler.run(*args)
    return sampler


def tight(**options):
    """A flow that is trained for a moment only."""
    options = {"num_iterations": 5, "num_samples": 250, "disable_progbar": True, **options}
    return OSDS.from_log_prob(skew, 10, **options)


def test_a_refinement_takes_over_where_weights_do_not_suffice():
    # An evidence that is right, and draws with the medians of the posterior.
    osds = fit(tight())
    assert [line.split(":")[0] for line in osds.run_report] == ["flow", "annealed refinement"]
    assert osds.run_report[0].endswith("draws: NOT reliable; log evidence: NOT reliable")
    assert osds.run_report[1].endswith("draws: reliable; log evidence: reliable")
    assert osds.evidence.reliable and osds.evidence.draws_reliable and osds.evidence.refinement is not None
    assert_within_standard_error(osds.log_evidence, SKEW_LOG_EVIDENCE, osds.log_evidence_se)
    z = osds.get_samples()["z"]
    below = (z.exp() < MEDIAN).double().mean().item()
    assert_within_standard_error(below, 0.5, 0.5 / math.sqrt(z.numel() / 10))
    fit_group = osds.to_inference_data()["fit"]
    assert str(fit_group["run_report"].values) == "\n".join(osds.run_report)
    # Further draws are the flow's, with weights.
    draws = osds.draw(1000)
    assert draws.log_weights.std() > 0


def test_escalation_can_be_turned_off():
    # One stage, and its verdict stands.
    osds = fit(tight(escalate=False))
    assert osds.run_report == () and not osds.evidence.reliable and not osds.evidence.draws_reliable


def test_no_stage_after_the_time():
    # Training ends at once with what it has; no stage is climbed, and nothing is lost.
    pyro.set_rng_seed(0)
    osds = tight(num_iterations=10**6, max_time=0.5)
    with pytest.warns(UserWarning):
        osds.run()
    assert osds.run_report[-1].startswith("flow: ") and len(osds.trainer.history.loss) < 1000
    assert osds.get_samples()["z"].shape[1:] == (10,)


@pytest.mark.parametrize("max_time", [0, -1.0, "1 s", math.nan])
def test_max_time_is_a_positive_number(max_time):
    with pytest.raises(ValueError, match="max_time must be a positive number of seconds or None, got"):
        OSDS(lambda: None, max_time=max_time)


def test_escalate_is_a_switch():
    with pytest.raises(ValueError, match="escalate must be True or False, got 'yes'"):
        OSDS(lambda: None, escalate="yes")


def test_interrupted_escalation_keeps_the_last_verdict(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_osds.fit_stages.refined_posterior", interrupted)
    pyro.set_rng_seed(0)
    osds = tight()
    with pytest.warns(UserWarning) as caught:
        osds.run()
    assert any("Escalation was interrupted" in str(warning.message) for warning in caught)
    assert len(osds.run_report) == 1 and not osds.evidence.reliable and len(osds.get_samples()["z"]) == 1000


# ---- components in one order ----

Y = torch.tensor([-2.1, -1.7, -2.4, 1.9, 2.3, 2.2, 1.6])


def mixture(y):
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    pyro.deterministic("larger", loc.max())
    with pyro.plate("data", len(y)):
        parts = dist.Normal(loc, 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts), obs=y)


def exact_mixture():
    grid = torch.linspace(-12.0, 12.0, 961, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    log_density = dist.Normal(0.0, 3.0).log_prob(first) + dist.Normal(0.0, 3.0).log_prob(second)
    for y in Y.double():
        log_density += torch.logaddexp(dist.Normal(first, 1.0).log_prob(y), dist.Normal(second, 1.0).log_prob(y))
    return torch.logsumexp(log_density.reshape(-1), 0).item() - len(Y) * math.log(2) + 2 * math.log(0.025)


@pytest.fixture(scope="module")
def mixed():
    with torch.random.fork_rng():
        return fit(OSDS(mixture, disable_progbar=True), Y)


def test_exchangeable_components_keep_all_their_copies(mixed):
    # No ln 2 is lost, either component is the larger one in half of the draws, and all groups see one order.
    osds = mixed
    assert osds.evidence.reliable and type(osds.fit.target).__name__ == "OrderedTarget"
    assert_within_standard_error(osds.log_evidence, exact_mixture(), osds.log_evidence_se)
    loc = osds.get_samples()["loc"]
    assert_within_standard_error((loc[:, 0] > loc[:, 1]).double().mean().item(), 0.5, 0.5 / math.sqrt(len(loc) / 2))
    idata = osds.to_inference_data()
    largest = idata["posterior"]["loc"].max("components")
    assert abs(largest - idata["posterior"]["larger"]).max() < 1e-5
    assert idata["log_likelihood"]["y"].shape == (4, 1000, 7)
    # Reference draws in whatever order are put in order too.
    reference = {"loc": torch.where(torch.rand(len(loc), 1) < 0.9, loc.sort(-1).values, loc)}
    agreement = osds.check_against(reference)
    assert abs(agreement.eubo - osds.log_evidence) < 0.05
    assert agreement.sentence.startswith("The reference disagrees") and "loc" in agreement.sentence


# ---- reference draws ----


def test_reference_draws_of_another_shape(mixed):
    # Which site, and what it must be.
    osds = mixed
    with pytest.raises(ValueError, match=r"samples lacks the sites \['loc'\]; got \['mu'\]"):
        osds.check_against({"mu": torch.zeros(10)})
    with pytest.raises(ValueError, match=r"samples\['loc'\] has shape \(10, 3\)"):
        osds.check_against({"loc": torch.zeros(10, 3)})
    assert osds.observed_data["y"].tolist() == Y.tolist()


def test_a_reference_that_stands_still(mixed):
    # One draw a thousand times is no reference, whatever its density.
    with pytest.raises(ValueError, match="10 different reference draws at least.*got 1 among 1000"):
        mixed.check_against({"loc": torch.tensor([-2.0, 2.0]).expand(1000, 2)})
