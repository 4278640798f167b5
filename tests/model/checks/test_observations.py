"""Bad observations and bad priors: each has its sentence, and nothing that is right is accused."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_osds import OSDS, ModelWarning
from pyro_osds.model import ModelTarget


def regression(data, observe=True):
    mean, scale = pyro.sample("mean", dist.Normal(0.0, 2.0)), pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(data)):
        pyro.sample("y", dist.Normal(mean, scale), obs=data if observe else None)


def data_of(size=30):
    return torch.linspace(-1.0, 2.0, size)


# For tests that read what is said of the model: the sentence comes first, however long the run.
SHORT = {"num_iterations": 50, "num_particles": 16, "escalate": False}


def run(model, *args, **options):
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=500, num_chains=2, disable_progbar=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run(*args)

    return osds


# ---- refused: the posterior has no mass ----


def test_a_missing_observation_is_refused_with_its_place():
    data = data_of()
    data[4] = math.nan
    with pytest.raises(
        ValueError, match=r"'y' has the value nan at index \(4,\) \(1 of 30 values\): a missing value has"
    ) as caught:
        run(regression, data)
    assert "obs_mask" in str(caught.value)


def test_an_infinite_observation_is_refused_with_its_place():
    data = data_of()
    data[4] = math.inf
    with pytest.raises(ValueError, match=r"'y' has the value inf at index \(4,\) \(1 of 30 values\)"):
        ModelTarget(regression, (data,))


@pytest.mark.parametrize(("probability", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_an_observation_of_probability_zero_is_refused(probability, value):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(torch.tensor([0.5, probability])).to_event(1), obs=torch.tensor([1.0, value]))

    with pytest.raises(ValueError, match="its probability is exactly zero"):
        ModelTarget(model)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_sure_observation_is_fine(probability):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(torch.tensor(probability)), obs=torch.tensor(probability))

    # Torch keeps probabilities one unit in the last place away from the bounds.
    target = ModelTarget(model)
    assert abs(target.log_prior_and_likelihood(torch.zeros(1, 1))[1].item()) < 1e-15


def beta(data, last=2.0):
    first = pyro.sample("first", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(data)):
        pyro.sample("y", dist.Beta(first, last), obs=data)


def test_a_value_that_rounding_put_on_the_bound_has_its_own_cure():
    data = torch.tensor([0.2, 0.999999999])  # 1 in single precision
    with pytest.raises(ValueError, match=r"'y' has the value 1.0 at index \(1,\).*If rounding put it on the bound"):
        ModelTarget(beta, (data,))


def test_a_value_on_the_bound_may_have_a_density():
    # Beta(a, 1) has the density a at 1.
    target = ModelTarget(beta, (torch.tensor([1.0]), 1.0))
    assert abs(target.log_prior_and_likelihood(torch.zeros(1, 1))[1].item()) < 1e-12


# ---- told: data that may not be what was meant ----


def test_counts_above_what_single_precision_holds_are_told():
    def model(counts):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1e-7))
        with pyro.plate("rows", len(counts)):
            pyro.sample("k", dist.Poisson(rate), obs=counts)

    with pytest.warns(ModelWarning, match="'k' holds counts up to 33554432 in float32, .* above 16777216"):
        ModelTarget(model, (torch.tensor([2.0**25, 2.0**24]),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelTarget(model, (torch.tensor([2.0**24, 5.0]),))
        ModelTarget(model, (torch.tensor([2.0**25, 2.0**24], dtype=torch.float64),))


def test_a_forgotten_observation_is_told_and_its_evidence_is_not_called_reliable():
    with pytest.warns(ModelWarning, match=r"No site of the model is observed.*'y' lies in a plate as long as the data"):
        ModelTarget(regression, (data_of(), False))
    evidence = run(regression, data_of(5), False, **SHORT).evidence
    assert not evidence.reliable and "Is an obs= missing?" in evidence.reasons[0]


def test_a_site_that_no_observation_depends_on_is_named():
    def model(data):
        regression(data)
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        pyro.sample("below", dist.Normal(top, 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a site of its own may be meant: no warning, a note
        target = ModelTarget(model, (data_of(),))
    assert target.notes == (
        "No observation depends on site 'top', 'below': its draws are those of its prior. Is an obs= missing?",
    )


def test_parents_of_what_is_observed_are_reached():
    def model():
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        middle = pyro.sample("middle", dist.Normal(top, scale))
        pyro.factor("data", -0.5 * (middle - 1.0).square())

    assert ModelTarget(model).notes == ()


def test_a_model_that_is_a_prior_on_purpose_is_reliable():
    evidence = run(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).evidence
    assert evidence.reliable and evidence.draws_reliable and abs(evidence.log_evidence) < 1e-3


# ---- judged: priors and likelihoods ----


def test_a_density_that_is_nan_on_half_of_the_prior():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(x > 0, -0.5 * x * x, torch.tensor(math.nan)))

    evidence = run(model, **SHORT).evidence
    assert not evidence.reliable
    assert "not a number at" in evidence.reasons[0] and "site 'half'" in evidence.reasons[0]


def test_a_scale_below_zero():
    def model():
        scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(0.0, scale))
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Normal(x, 1.0), obs=data_of(5))

    evidence = run(model, **SHORT).evidence
    assert not evidence.reliable and "draws of the prior (site 'x')" in evidence.reasons[0]


def test_a_constant_likelihood():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("constant", torch.tensor(-3.0))

    osds = run(model)
    assert osds.evidence.reliable and abs(osds.log_evidence + 3.0) < 1e-3
    assert "No observation depends on site 'x'" in osds.fit.model_target.notes[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_in_half_precision_are_taken_as_they_are(dtype):
    data = data_of().to(dtype)
    half, double = run(regression, data).evidence, ModelTarget(regression, (data.double(),))
    target = ModelTarget(regression, (data,))
    z = torch.randn(5, 2)
    torch.testing.assert_close(target.log_prob(z), double.log_prob(z), rtol=1e-9, atol=1e-9)
    assert half.reliable


def test_a_log_probability_above_zero_is_seen():
    class TooMuch(dist.Poisson):
        """A Poisson that forgot a constant."""

        def log_prob(self, value):
            return super().log_prob(value) + 10.0

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("k", TooMuch(rate), obs=torch.tensor(2.0))

    evidence = run(model).evidence
    assert not evidence.reliable and not evidence.draws_reliable
    assert "'k' is discrete and has a log probability of +8" in evidence.reasons[0]


# ---- mass at the edge ----


def test_saturation_is_no_reason_where_nothing_depends_on_it():
    def model():
        p = pyro.sample("p", dist.Beta(0.05, 0.05))
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.Bernoulli(p), obs=torch.ones(6))

    osds = run(model)
    truth = torch.tensor([0.05, 0.05, 6.05, 6.1, 0.1], dtype=torch.float64).lgamma()
    exact = (truth[2] - truth[3] - truth[0] + truth[4]).item()
    assert osds.evidence.reliable, osds.evidence.reasons
    assert abs(osds.log_evidence - exact) < 3 * osds.log_evidence_se + 0.005
    draws = osds.fit.draws.z
    assert osds.fit.model_target.saturated_sites(draws)["p"].float().mean() > 0.05


def test_saturation_is_told_where_the_likelihood_depends_on_it():
    def model():
        p = pyro.sample("p", dist.Beta(0.05, 0.05))
        # What nobody sees at p = 1: the likelihood grows with the logit, and stops where double precision does.
        pyro.factor("odds", 0.04 * (p.log() - (-p).log1p()).clamp(min=0.0))

    evidence = run(model).evidence
    assert any("'p' rounded to a bound" in reason for reason in evidence.reasons), evidence


def test_a_scaled_density_is_told():
    # A tempered model is what its author wants, but its evidence is no marginal likelihood.
    def model():
        with poutine.scale(scale=0.5):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Normal(x, 1.0), obs=data_of(5))

    osds = run(model)
    # Half of a standard normal's log density is that of N(0, 2) plus a constant.
    wider = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 2.0 * torch.ones(5, 5))
    constant = 0.5 * math.log(4 * math.pi) - 0.25 * math.log(2 * math.pi)
    assert abs(osds.log_evidence - wider.log_prob(data_of(5)).item() - constant) < 4 * osds.log_evidence_se + 1e-4
    (note,) = osds.fit.model_target.notes
    assert note.startswith("The log density of site 'x' is scaled") and "no marginal likelihood" in note
