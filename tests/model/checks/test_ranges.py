"""Parameters out of range where the posterior lies are told by name; what is masked, impossible or rounded is not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import tensor

from pyro_osds import OSDS, UnreliableEvidenceWarning
from pyro_osds.model import ModelTarget
from pyro_osds.posterior.escalation import Escalation
from pyro_osds.posterior.evidence import Evidence, Reason
from pyro_osds.posterior.plausibility import out_of_range
from pyro_osds.posterior.verdict import with_verdicts


def any_number(loc=2.0, scale=2.0, size=None):
    prior = dist.Normal(loc, scale)
    return pyro.sample("k", prior if size is None else prior.expand([size]).to_event(1))


def observed(make, data, **prior):
    """A model of one parameter that may be any number, and independent observations."""

    def model():
        k = any_number(**prior)
        with pyro.plate("data", len(data)):
            pyro.sample("y", make(k), obs=tensor(data))

    return model


SMALL = [0.1, 0.02, 0.05, 0.3]
X = tensor([-1.0, 0.0, 1.0, 2.0])
FLAGGED = [
    (observed(lambda k: dist.Beta(k, 2.0), SMALL), "concentration1 of site 'y', Beta", "above 0", "LogNormal"),
    (observed(lambda k: dist.Gamma(k, 1.0), SMALL), "concentration of site 'y', Gamma", "above 0", "torch.exp"),
    (observed(lambda k: dist.InverseGamma(k, 2.0), [30.0, 90.0]), "concentration of site 'y', InverseGamma", "above 0"),
    (observed(lambda k: dist.Weibull(1.0, k), SMALL), "concentration of site 'y', Weibull", "above 0"),
    (observed(lambda k: dist.Chi2(k), SMALL), "df of site 'y', Chi2", "above 0"),
    (observed(lambda k: dist.BetaBinomial(k, 2.0, 10), [2.0, 1.0]), "concentration1 of site 'y', BetaBinomial"),
    (observed(lambda k: dist.GammaPoisson(k, 2.0), [2.0, 1.0]), "concentration of site 'y', GammaPoisson"),
    (observed(lambda k: dist.NegativeBinomial(k, 0.5), [2.0, 0.0]), "total_count of site 'y', NegativeBinomial"),
    (observed(lambda k: dist.NegativeBinomial(3.0, k), [0.0]), "probs of site 'y', NegativeBinomial", "sigmoid"),
    (observed(lambda k: dist.Binomial(10, k), [10.0]), "probs of site 'y', Binomial", "0 to 1", "sigmoid", "Beta"),
    (observed(lambda k: dist.Geometric(k), [0.0, 0.0]), "probs of site 'y', Geometric", "0 to 1"),
    (
        observed(lambda k: dist.Bernoulli(k[0] + k[1] * X), [0.0, 1.0, 1.0, 1.0], loc=0.5, scale=0.5, size=2),
        "Bernoulli",
    ),
    (observed(lambda k: dist.Poisson(k[0] + k[1] * X), [0.0, 0.0, 1.0, 1.0], size=2), "rate of site 'y', Poisson"),
    (observed(lambda k: dist.Categorical(k), [0, 1], loc=0.5, size=3), "probs of site 'y', Categorical", "softmax"),
    (observed(lambda k: dist.ZeroInflatedPoisson(2.0, gate=k), [0.0, 1.0, 2.0], loc=0.0), "gate of site 'y'", "0 to 1"),
    (
        observed(lambda k: dist.Gamma(k, 1.0).mask(tensor([True, False])), [0.1, 0.2]),
        "concentration of site 'y', Gamma",
    ),
    (observed(lambda k: dist.Gamma(k, 1.0).expand([2]), [0.1, 0.2]), "concentration of site 'y', Gamma"),
    (observed(lambda k: dist.OrderedLogistic(tensor(0.0), k), [0, 0], size=2), "step of cutpoints", "OrderedTransform"),
    (
        observed(lambda k: dist.DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), dist.Gamma(k, 1.0)), [SMALL], size=2),
        "concentration of site 'y', Gamma",
    ),
    (
        observed(
            lambda k: dist.MaskedMixture(
                tensor([True, False]), dist.Gamma(2.0, 1.0).expand([2]), dist.Gamma(k, 1.0).expand([2])
            ),
            [0.05, 0.2],
        ),
        "concentration of site 'y', Gamma",
    ),
    (
        observed(
            lambda k: dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2) / 2), dist.Gamma(torch.stack([k, torch.full_like(k, 2.0)], -1), 1.0)
            ),
            SMALL,
        ),
        "concentration of site 'y', Gamma",
    ),
]


def looked_at(model, count=256):
    """What is said at draws of the prior that the likelihood weighs, which makes them those of the posterior."""
    torch.manual_seed(0)
    target = ModelTarget(model)
    z = target.sample_prior(count)
    density = target.log_prob(z)
    likelihood = target.log_prior_and_likelihood(z)[1]
    weight = torch.softmax(torch.where(density.isfinite(), likelihood, -math.inf), 0)

    return out_of_range(target, z, weight), target, z, weight


@pytest.mark.parametrize(("model", "words"), [(row[0], row[1:]) for row in FLAGGED], ids=[row[1] for row in FLAGGED])
@pytest.mark.filterwarnings("ignore::pyro_osds.ModelWarning")
def test_each_parameter_is_named_with_its_range_and_the_cure(model, words):
    reasons = looked_at(model)[0]

    assert len(reasons) == 1 and reasons[0].draws and reasons[0].evidence and not reasons[0].mendable
    assert all(word in reasons[0].text for word in ("of the posterior (by weight)", *words)), reasons[0].text


def latent():
    k = any_number()
    g = pyro.sample("g", dist.Gamma(k, 1.0))
    pyro.sample("y", dist.Normal(g, 1.0), obs=tensor(0.3))


def test_the_share_is_that_of_a_sum_by_hand_and_the_prior_of_a_latent_counts():
    (reason,), target, z, weight = looked_at(latent, 200)
    share = weight[target.constrain(z)["k"] < 0].sum().item()

    assert share > 0.02 and f"At {share:.0%} of the posterior" in reason.text and "site 'g', Gamma" in reason.text


def mixture(probs):
    def model():
        k = any_number(0.0, 2.0, 2)
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(tensor(probs)))
            pyro.sample("y", dist.Gamma(torch.where(z == 0, k[0].abs() + 0.1, k[1]), 1.0), obs=tensor([0.1, 0.02, 0.5]))

    return model


def test_a_value_of_a_discrete_latent_counts_by_its_probability():
    reasons, target, z, weight = looked_at(mixture([0.5, 0.5]))
    assert "concentration of site 'y', Gamma" in reasons[0].text
    # By hand: the sum over values with and without the second where it is out of range.
    k, y = target.constrain(z)["k"].double(), tensor([0.1, 0.02, 0.5]).double()
    first = dist.Gamma(k[:, :1].abs() + 0.1, 1.0).log_prob(y)
    second = dist.Gamma(k[:, 1:], 1.0, validate_args=False).log_prob(y)
    without = torch.where(k[:, 1:] < 0, -math.inf, second)
    log_ratio = (torch.logaddexp(first, without) - torch.logaddexp(first, second)).sum(-1)
    keep = weight > 0
    assert torch.allclose(target.out_of_range(z[keep])[1], log_ratio[keep], atol=1e-5)

    assert not looked_at(mixture([1.0, 0.0]))[0]


def zero_inflated():
    gate, rate = pyro.sample("gate", dist.Beta(1.0, 1.0)), pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=tensor([0.0, 0.0, 1.0, 3.0]))


def lkj():
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    covariance = (scale[:, None] * factor) @ (scale[:, None] * factor).T
    with pyro.plate("data", 2):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), covariance), obs=torch.ones(2, 3))


def edges():
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Bernoulli(p.round()), obs=torch.ones(3))
        pyro.sample("n", dist.Poisson((p - 0.5).clamp(min=0.0)), obs=torch.zeros(3))
    weights = torch.stack([p, 1 - p, p - p - 1e-9])
    pyro.sample("c", dist.Categorical(weights), obs=tensor(0))


def missing():
    k = pyro.sample("k", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", 3), pyro.poutine.mask(mask=tensor([True, True, False])):
        pyro.sample("y", dist.Gamma(k * tensor([1.0, 1.0, -1.0]), 1.0), obs=tensor([0.1, 0.4, math.nan]))
    with pyro.plate("rows", 3):
        pyro.sample("w", dist.Beta(k * tensor([1.0, -1.0, 1.0]), 1.0).mask(tensor([True, False, True])), obs=X[1] + 0.5)


def chain():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    z = 0
    for t in pyro.markov(range(3)):
        z = pyro.sample(f"z{t}", dist.Categorical(p[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"y{t}", dist.Poisson(1.0 + 3.0 * z), obs=tensor(float(t)))


def impossible_value():
    """A concentration is below zero only at a value that the latent cannot have."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    z = pyro.sample("z", dist.Categorical(tensor([0.3, 0.7, 0.0])))
    pyro.sample("y", dist.Gamma(1.5 - z, rate), obs=tensor(0.4))


def horseshoe():
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    lam = pyro.sample("lam", dist.HalfCauchy(1.0).expand([4]).to_event(1))
    beta = pyro.sample("beta", dist.Normal(0.0, lam * tau).to_event(1))
    pyro.sample("y", dist.StudentT(4.0, beta, 1.0).to_event(1), obs=X)


def irt():
    ability = pyro.sample("ability", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("items", 4):
        hard = pyro.sample("hard", dist.Normal(0.0, 1.0))
        with pyro.plate("people", 3):
            pyro.sample("y", dist.Bernoulli(logits=ability[:, None] - hard), obs=torch.ones(3, 4))


def skewed_mixture():
    w, k = pyro.sample("w", dist.Dirichlet(torch.ones(2))), pyro.sample("k", dist.LogNormal(0.0, 1.0))
    components = dist.Gamma(torch.stack([k, k + 1.0]), 1.0)
    pyro.sample(
        "y", dist.MixtureSameFamily(dist.Categorical(w), components).expand([3]).to_event(1), obs=X.abs()[1:] + 0.1
    )


@pytest.mark.parametrize(
    "model", [zero_inflated, lkj, edges, missing, chain, impossible_value, horseshoe, irt, skewed_mixture]
)
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.filterwarnings("ignore::pyro_osds.ModelWarning")
def test_innocent_models_are_not_told(model, vectorize):
    torch.manual_seed(0)
    target = ModelTarget(model, vectorize="auto" if vectorize else "loop")
    z = target.sample_prior(20)
    z = z[target.log_prob(z).isfinite()]

    assert len(z) and not out_of_range(target, z, torch.full((len(z),), 1 / len(z)))


def test_no_stage_is_begun_where_parameters_are_out_of_range(monkeypatch):
    # A flow that is hardly trained, of which a refinement would be made otherwise, and annealed SMC after it.
    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    for name in ("_walked", "_larger_flow", "_annealed"):
        monkeypatch.setattr(Escalation, name, begin)

    def fitted(prior):
        def model():
            with pyro.plate("wide", 8):
                pyro.sample("w", dist.Gamma(0.5, 1.0))
            k = pyro.sample("k", prior)
            with pyro.plate("data", len(SMALL)):
                pyro.sample("y", dist.Beta(k, 2.0), obs=tensor(SMALL))

        osds = OSDS(model, num_iterations=5, num_samples=100, num_particles=16, disable_progbar=True, seed=0)
        osds.run()
        return osds

    with pytest.warns(UnreliableEvidenceWarning, match="concentration1 of site 'y', Beta, is out of its range"):
        osds = fitted(dist.Normal(0.0, 1.0))
    assert [line.split(":")[0] for line in osds.run_report] == ["flow"]
    assert osds.evidence.is_settled and len(osds.evidence.reasons) == len(osds.evidence.draws_reasons) == 1
    with pytest.raises(Begun):
        fitted(dist.LogNormal(0.0, 1.0))


def test_other_cures_are_not_told_where_parameters_are_out_of_range():
    judged = Evidence(0.0, 0.1, -1.0, 10.0, 0.9, 1000, True, ())
    weights, final = Reason("Train longer."), Reason("Out of range.", mendable=False, is_final=True)
    model = Reason("Rounded.", mendable=False)
    assert with_verdicts(judged, [weights, model], ()).reasons == ("Train longer.", "Rounded.")
    found = with_verdicts(judged, [weights, model, final], ())
    assert found.reasons == ("Rounded.", "Out of range.") and found.is_settled and not found.reliable


def test_a_fit_is_denied_until_the_prior_is_on_the_range():
    def fitted(model):
        osds = OSDS(model, num_iterations=200, disable_progbar=True, seed=0)
        osds.run()
        return osds.evidence

    with pytest.warns(UnreliableEvidenceWarning, match="concentration1 of site 'y', Beta, is out of its range"):
        found = fitted(FLAGGED[0][0])
    assert not found.reliable and not found.draws_reliable
    assert "out of its range" in found.reasons[0] and "out of its range" in found.draws_reasons[0]

    def cured():
        k = pyro.sample("k", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(SMALL)):
            pyro.sample("y", dist.Beta(k, 2.0), obs=tensor(SMALL))

    found = fitted(cured)
    # By quadrature, in the logarithm of the shape.
    log_k = torch.linspace(-8.0, 8.0, 20001, dtype=torch.float64)
    k, y = log_k.exp()[:, None], tensor(SMALL).double()
    log_beta = (k - 1) * y.log() + (1 - y).log() + k.log() + (k + 1).log()
    joint = log_beta.sum(-1) - log_k.square() / 2 - math.log(2 * math.pi) / 2
    right = torch.logsumexp(joint, 0).item() + math.log(16 / 20000)
    assert found.reliable and abs(found.log_evidence - right) < 4 * found.std_error + 1e-3
