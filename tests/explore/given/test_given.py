"""Draws from elsewhere: read from whatever holds them, refused with a sentence, and searched for what they miss."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS

from pyro_osds import OSDS, ModelWarning, evidence_from_samples
from pyro_osds.explore.given.reading import given_draws
from pyro_osds.explore.given.survey import survey_of_draws
from pyro_osds.explore.particles import GivenDraws
from pyro_osds.target import FunctionTarget

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])


def model(y):
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
    kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    pyro.deterministic("twice", 2 * sd)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean.sum() + shares[0] + kind, sd), obs=y)


def target_of(function=model, *args):
    return OSDS(function)._problem.target(args or (Y,), {})


def draws(num_chains=4, num_draws=50, seed=0):
    torch.manual_seed(seed)
    shape = (num_chains, num_draws)
    share = torch.rand(shape)
    return {
        "sd": torch.rand(shape) + 0.5,
        "mean": torch.randn(*shape, 3),
        "shares": torch.stack([share, 1 - share], -1),
        "kind": torch.zeros(shape),
        "twice": torch.zeros(shape),
    }


def flat(values):
    return {name: value.flatten(0, 1) for name, value in values.items()}


def dataset(values):
    return xr.Dataset(
        {n: (("chain", "draw", *(f"{n}_{i}" for i in range(v.dim() - 2))), v.numpy()) for n, v in values.items()}
    )


def expected(values):
    """Unconstrained values by hand, in the order of the sites."""
    values = flat(values)
    share = values["shares"][:, 0].double()
    return {
        "sd": values["sd"].double().log()[:, None],
        "mean": values["mean"].double(),
        "shares": (share / (1 - share)).log()[:, None],
    }


@pytest.mark.parametrize("kind", ["tensors", "flat", "numpy", "lists", "dataset", "transposed", "tree", "stacked"])
def test_every_holder_gives_the_same_points(kind):
    values = draws()
    given = {
        "tensors": lambda: values,
        "flat": lambda: flat(values),
        "numpy": lambda: {name: value.numpy() for name, value in values.items()},
        "lists": lambda: {name: value.tolist() for name, value in values.items()},
        "dataset": lambda: dataset(values),
        "transposed": lambda: dataset(values).transpose("draw", ..., "chain"),
        "tree": lambda: xr.DataTree.from_dict({"/posterior": dataset(values)}),
        "stacked": lambda: dataset(values).stack(sample=("chain", "draw")),
    }[kind]()
    target = target_of()
    read = given_draws(given, target)
    assert read.num_chains == 4 and read.total == 200
    by_hand = expected(values)
    for site in target.sites:
        torch.testing.assert_close(read.z[:, site.start : site.stop], by_hand[site.name], rtol=1e-4, atol=1e-4)
    assert set(read.ignored) == {"twice"}


def test_a_sampler_and_renamed_sites_are_read():
    def named():
        pyro.sample("chain", dist.Normal(0.0, 1.0))

    class Sampler:
        def get_samples(self, group_by_chain=False):
            return {"chain": torch.arange(12.0).view(2, 6)}

    target = OSDS(named)._problem.target((), {})
    assert given_draws(Sampler(), target).num_chains == 2
    exported = xr.Dataset({"chain_": (("chain", "draw"), np.arange(12.0).reshape(2, 6))})
    torch.testing.assert_close(given_draws(exported, target).z[:, 0], torch.arange(12.0).double())


def test_dependent_supports_are_unconstrained_by_the_models_own_transforms():
    def nested():
        top = pyro.sample("top", dist.Uniform(1.0, 2.0))
        pyro.sample("below", dist.Uniform(0.0, top))

    top, share = 1.0 + torch.rand(40).double(), torch.rand(40).double()
    z = given_draws({"top": top, "below": share * top}, OSDS(nested)._problem.target((), {})).z
    logit = torch.stack([torch.logit(top - 1.0), torch.logit(share)], 1)
    torch.testing.assert_close(z, logit, rtol=1e-5, atol=1e-5)


def test_angles_beyond_one_turn_are_angles():
    def turn():
        pyro.sample("angle", dist.VonMises(0.0, 2.0))

    values = torch.linspace(-9.0, 9.0, 40)
    target = OSDS(turn)._problem.target((), {})
    back = target.constrain(given_draws({"angle": values}, target).z)["angle"]
    assert torch.sin(0.5 * (back - values)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {n: x for n, x in v.items() if n != "mean"}, r"lacks the site 'mean'; got 'sd', .* by the names"),
        (lambda v: {**v, "mean": v["mean"][..., :2]}, r"\['mean'\] has shape \(4, 50, 2\); the site has shape \(3,\)"),
        (lambda v: {**v, "sd": v["sd"][:, :10]}, r"same number of draws at every site; got .*'sd': 40"),
        (lambda v: {**v, "sd": v["sd"].flatten()}, "group the draws of all sites by chain, or of none"),
        (lambda v: {**v, "sd": -v["sd"]}, r"\['sd'\] holds -.* outside the support .* no logarithms"),
        (lambda v: {**v, "sd": v["sd"].masked_fill(v["sd"] > 1.4, math.nan)}, r"\['sd'\] holds nan in \d+ of 200"),
        (lambda v: {**v, "mean": v["mean"].masked_fill(v["mean"] > 2, math.inf)}, r"\['mean'\] holds inf in"),
        (lambda v: {**v, "shares": 0.5 * v["shares"]}, r"\['shares'\] holds .* a probability vector sums to one"),
        (lambda v: {**v, "shares": v["shares"][..., :1]}, r"\['shares'\] has shape \(4, 50, 1\)"),
        (lambda v: {}, "lacks the sites"),
        (lambda v: {**v, "sd": v["sd"][:, :0]}, "holds no draws"),
    ],
)
def test_bad_draws_are_refused_by_site(change, message):
    with pytest.raises(ValueError, match=message):
        given_draws(change(draws()), target_of())


def test_what_holds_no_draws_is_refused():
    for bad in (3.0, "chains.csv", object()):
        with pytest.raises(TypeError, match="must be a mapping of draws by site, or InferenceData"):
            given_draws(bad, target_of())
    with pytest.raises(TypeError, match="holds complex numbers"):
        given_draws({**draws(), "sd": draws()["sd"] + 0j}, target_of())
    with pytest.raises(TypeError, match="no array of draws"):
        given_draws({**draws(), "sd": ["a", "b"]}, target_of())


def test_a_sampler_that_was_not_run_is_told_as_that():
    with pytest.raises(ValueError, match=r"holds no draws: this MCMC has not been run. Call its run\(...\) first."):
        given_draws(MCMC(NUTS(lambda: None), num_samples=10), target_of())


NORMAL = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=3)


def given(z, num_chains=2):
    return GivenDraws(z.double(), num_chains, len(z))


def climbing():
    way = torch.linspace(60.0, 0.0, 400)[:, None] * torch.ones(3)
    return torch.cat([way, way]) + torch.randn(800, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.randn(24, 3), "24 different draws, fewer than 10 for each of the 3 dimensions, 30"),
        (lambda: torch.ones(400, 3), "400 draws that are all the same"),
        (lambda: torch.randn(10, 3).repeat(40, 1), "10 different draws among 400"),
        (climbing, "still on their way: .* rises by .* nats.*warm-up"),
        (lambda: 40.0 + torch.randn(400, 3), "come from another model, or from other data"),
        (lambda: 1e200 * torch.rand(400, 3).double(), "density zero under this model"),
    ],
)
def test_draws_that_are_no_posterior_are_refused(make, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        survey_of_draws(NORMAL, given(make()))


def test_the_beginning_of_chains_is_left_out_and_told():
    torch.manual_seed(0)
    z = torch.randn(2, 400, 3)
    z[:, :10] += torch.linspace(80.0, 10.0, 10)[:, None]
    found = survey_of_draws(NORMAL, given(z.flatten(0, 1)))
    assert "lie far below all others" in found.given.notes[0]
    assert abs(found.exploration.log_evidence - 1.5 * math.log(2 * math.pi)) < 4.5 * found.exploration.std_error + 0.03


def test_slow_chains_of_heavy_tails_are_no_warm_up():
    # A Cauchy density, and chains that hardly mix: neither is warm-up, nor another model.
    cauchy = FunctionTarget(lambda z: -torch.log1p(z.square()).sum(-1), dim=1)
    torch.manual_seed(0)
    u = torch.zeros(4, 400)
    for t in range(1, 400):
        u[:, t] = 0.98 * u[:, t - 1] + 0.2 * torch.randn(4)
    z = torch.tan(math.pi * (torch.distributions.Normal(0.0, 1.0).cdf(u) - 0.5))
    found = survey_of_draws(cauchy, given(z.reshape(-1, 1), 4))
    assert not found.given.missed


def two_modes(z):
    sides = [
        torch.tensor(share).log() - 0.5 * ((z - place) / 0.5).square().sum(-1)
        for place, share in ((-4.0, 0.3), (4.0, 0.7))
    ]
    return torch.logaddexp(*sides) - 2 * math.log(0.5 * math.sqrt(2 * math.pi))


def test_a_mode_that_draws_miss_is_found_added_and_told():
    torch.manual_seed(0)
    target = FunctionTarget(two_modes, dim=2)
    found = survey_of_draws(target, given(4.0 + 0.5 * torch.randn(800, 2)))
    assert sum(share for _, share in found.given.missed) == pytest.approx(0.3, abs=0.05)
    assert abs(found.exploration.log_evidence) < 4.5 * found.exploration.std_error + 0.03


def test_draws_of_both_modes_in_wrong_shares_miss_nothing():
    torch.manual_seed(0)
    z = 0.5 * torch.randn(4, 200, 2) + torch.tensor([-4.0, -4.0, 4.0, 4.0])[:, None, None]
    found = survey_of_draws(FunctionTarget(two_modes, dim=2), given(z.flatten(0, 1), 4))
    assert not found.given.missed and found.base.num_components >= 2


def test_a_result_of_draws_that_miss_a_mode_is_right_and_not_reliable():
    pyro.set_rng_seed(0)
    samples = 4.0 + 0.5 * torch.randn(800, 2)
    osds = OSDS.from_log_prob(two_modes, 2, initial_samples=samples, disable_progbar=True)
    with pytest.warns(UserWarning, match="miss a part of the posterior: around z = "):
        osds.run()
    assert not osds.evidence.reliable and not osds.evidence.draws_reliable
    assert abs(osds.log_evidence) < 4 * osds.log_evidence_se + 0.01


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior(num_draws=1000, seed=0):
    precision = 1 / 4 + len(Y)
    torch.manual_seed(seed)
    return {"mu": Y.sum() / precision + torch.randn(num_draws) / math.sqrt(precision)}


EXACT = -7.191953884885075  # of the five observations, a normal vector with covariance 1 + 4


def test_evidence_is_the_closed_form():
    exact = dist.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double() + 4.0).log_prob(Y.double()).item()
    assert exact == pytest.approx(EXACT, abs=1e-6)
    pyro.set_rng_seed(1)
    evidence = evidence_from_samples(normal, posterior(), Y)
    assert evidence.reliable and abs(evidence.log_evidence - exact) < 4 * evidence.std_error + 1e-3
    bridge = evidence.bridge_sampling
    assert abs(bridge.log_evidence - exact) < 4 * bridge.std_error + 1e-3
    assert "bridge sampling" in str(evidence)


@pytest.mark.parametrize(("factor", "told"), [(0.5, "mu"), (4.0, "where the posterior has hardly any")])
def test_draws_of_a_wrong_scale_are_told_and_the_evidence_is_right(factor, told):
    pyro.set_rng_seed(0)
    wrong = {"mu": factor * (posterior()["mu"] - 1.2) + 1.2}
    osds = OSDS(normal, initial_samples=wrong, disable_progbar=True)
    with pytest.warns(ModelWarning, match=f"initial_samples: .*disagrees.*{told}"):
        osds.run(Y)
    assert abs(osds.log_evidence - EXACT) < 4 * osds.log_evidence_se + 1e-3
    assert osds.evidence.reliable and not osds.agreement.agrees and told in osds.agreement.sentence
    assert any("disagrees" in line for line in osds.run_report)


def test_two_places_to_start_from_are_one_too_many():
    samples = posterior()
    with pytest.raises(ValueError, match="initial_samples and warm_start=True"):
        OSDS(normal, initial_samples=samples, warm_start=True)
    with pytest.raises(ValueError, match="initial_samples and initial_params"):
        OSDS(normal, initial_samples=samples, initial_params={"mu": torch.tensor(0.0)})
    with pytest.raises(ValueError, match="samples is None"):
        evidence_from_samples(normal, None, Y)


def test_a_density_and_a_potential_take_draws_too():
    pyro.set_rng_seed(0)
    exact = math.log(2 * math.pi)
    few = {"num_samples": 200, "num_iterations": 50, "disable_progbar": True}
    sampler = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, **few)
    for samples in (torch.randn(500, 2), torch.randn(4, 125, 2), {"z": np.random.default_rng(0).normal(size=(500, 2))}):
        evidence = evidence_from_samples(sampler, samples)
        assert evidence.reliable and abs(evidence.log_evidence - exact) < 4 * evidence.std_error + 1e-3
    osds = OSDS(
        potential_fn=lambda v: 0.5 * v["x"].square().sum(),
        initial_params={"x": torch.zeros(2)},
        initial_samples={"x": torch.randn(500, 2)},
        **few,
    )
    osds.run()
    assert abs(osds.log_evidence - exact) < 4 * osds.log_evidence_se + 1e-3


def test_a_fit_of_draws_is_saved_and_loaded(tmp_path):
    pyro.set_rng_seed(0)
    osds = OSDS(normal, initial_samples=posterior(), disable_progbar=True)
    osds.run(Y)
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", normal, Y)
    assert again.evidence == osds.evidence and again.agreement.agrees
    torch.testing.assert_close(again.get_samples()["mu"], osds.get_samples()["mu"])


def test_factors_of_correlations_have_rows_of_length_one():
    def correlated():
        pyro.sample("L", dist.LKJCholesky(3, 2.0))

    target = OSDS(correlated)._problem.target((), {})
    pyro.set_rng_seed(0)
    drawn = dist.LKJCholesky(3, 2.0).sample((40,))
    assert given_draws({"L": drawn}, target).z.isfinite().all()
    with pytest.raises(ValueError, match=r"\['L'\] holds 0.9 at draw 0.*rows of length one"):
        given_draws({"L": 0.9 * drawn}, target)


def test_draws_in_one_labelling_stand_for_all():
    # Two components that may trade places: the log evidence by a sum over a grid of both means.
    torch.manual_seed(0)
    y = torch.cat([torch.randn(20) - 3.0, torch.randn(20) + 3.0])

    def mixture():
        with pyro.plate("k", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(y)):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y)

    grid = torch.linspace(-8.0, 8.0, 801, dtype=torch.float64)
    single = torch.distributions.Normal(grid[:, None], 1.0).log_prob(y.double())
    total = torch.logaddexp(single[:, None], single[None]).sum(-1) - len(y) * math.log(2)
    prior = torch.distributions.Normal(0.0, 5.0).log_prob(grid)
    exact = torch.logsumexp((total + prior[:, None] + prior).flatten(), 0).item() + 2 * math.log(0.02)
    precision = 20 + 1 / 25
    centre = torch.stack([y[:20].sum(), y[20:].sum()]) / precision
    target = OSDS(mixture)._problem.target((), {})
    drawn = given_draws({"loc": centre + torch.randn(800, 2) / math.sqrt(precision)}, target)
    found = survey_of_draws(target, drawn)
    assert abs(found.exploration.log_evidence - exact) < 4.5 * found.exploration.std_error + 0.03
    assert not found.given.missed
