"""InferenceData of real fits: what is in each group, what ArviZ makes of it, and leave-one-out beside NUTS."""

import importlib.metadata
import warnings

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_osds import OSDS, compare_evidence

matplotlib.use("Agg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1
ON_ARVIZ_0 = pytest.mark.skipif(ARVIZ_1, reason="ArviZ 1 has other names; test_inference_data.py tries them")
LETTERS = list("abcdefghijklmnop")
NAMES = {
    "dims": {"w": ["term"], "x": ["row", "term"]},
    "coords": {"term": ["intercept", "slope"], "row": LETTERS},
    "constant_data": {"city": ["Rome", "Oslo"]},
}


def regression(x, y):
    """Two coefficients, a scale, and a deterministic mean."""
    w = pyro.sample("w", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = pyro.deterministic("mean", x @ w)
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


# Sixteen rows on a line, with a wave for noise.
SLOPES = torch.linspace(-1.5, 1.5, 16)
DATA = torch.stack([torch.ones(16), SLOPES], 1), 0.5 + 1.2 * SLOPES + 0.6 * torch.sin(5 * SLOPES)


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        osds = OSDS(regression, num_samples=100, num_iterations=100, disable_progbar=True)
        osds.run(*DATA)

        return osds


@pytest.fixture(scope="module")
def idata(fitted):
    return fitted.to_inference_data(posterior_predictive=True, prior=50, unconstrained=True, **NAMES)


def group_names(idata):
    return {group for group in (idata.children if ARVIZ_1 else idata.groups())}


def log_normal(y, mean, sd):
    return -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def test_groups(idata):
    # All of ArviZ's schema that a run has, and two of our own.
    assert group_names(idata) == {
        "posterior", "unconstrained_posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive",
        "prior", "prior_predictive", "observed_data", "constant_data", "fit", "fit_stats",
    }  # fmt: skip


def test_variables_and_dimensions(idata):
    # Deterministic values beside latents; the user's names where given, else those of plates.
    assert {name: array.dims[2:] for name, array in idata["posterior"].data_vars.items()} == {
        "w": ("term",), "sigma": (), "mean": ("mean_dim_0",),
    }  # fmt: skip
    assert set(idata["prior"].data_vars) == {"w", "sigma", "mean"} and idata["prior"]["w"].shape == (1, 50, 2)
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert idata[group]["y"].dims == ("chain", "draw", "row")
    assert idata["posterior_predictive"]["y"].shape == (4, 100, 16)
    assert idata["observed_data"]["row"].values.tolist() == LETTERS
    assert idata["posterior"]["term"].values.tolist() == ["intercept", "slope"]


def test_observed_and_constant_data(idata):
    # What was observed is no constant; what the user adds is one.
    np.testing.assert_array_equal(idata["observed_data"]["y"].values, DATA[1].numpy())
    assert set(idata["constant_data"].data_vars) == {"x", "city"}
    assert idata["constant_data"]["x"].dims == ("row", "term")
    np.testing.assert_array_equal(idata["constant_data"]["x"].values, DATA[0].numpy())


def test_densities(idata):
    # Log prior of values, without Jacobians, and pointwise likelihood, by numpy.
    w, sigma = idata["posterior"]["w"].values, idata["posterior"]["sigma"].values
    half_normal = np.log(2) + log_normal(sigma, 0.0, 1.0)
    np.testing.assert_allclose(idata["log_prior"]["sigma"].values, half_normal, atol=1e-5)
    np.testing.assert_allclose(idata["log_prior"]["w"].values, log_normal(w, 0.0, 3.0).sum(-1), atol=1e-5)
    likelihood = log_normal(DATA[1].numpy(), idata["posterior"]["mean"].values, sigma[..., None])
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values, likelihood, rtol=1e-3, atol=1e-3)


def test_unconstrained(idata):
    # Pyro's coordinates: the logarithm of a positive latent, whatever coordinates the sampler chose.
    sigma = idata["posterior"]["sigma"].values
    np.testing.assert_allclose(idata["unconstrained_posterior"]["sigma"].values, np.log(sigma), atol=1e-5)


def test_predictions_belong_to_their_draws(idata):
    # Standardised by their own draw's mean and scale, predictions are standard normal: 6400 of them.
    posterior, predicted = idata["posterior"], idata["posterior_predictive"]["y"].values
    standard = (predicted - posterior["mean"].values) / posterior["sigma"].values[..., None]
    assert abs(standard.mean()) < 5 / 6400**0.5 and abs(standard.var() - 1) < 5 * (2 / 6400) ** 0.5


def test_defaults(fitted):
    # Predictive draws are capped and evenly spread, and belong to the posterior draws of the same number.
    idata = fitted.to_inference_data()
    labels = idata["posterior_predictive"]["draw"].values
    assert (
        len(labels) in (10, 20, 50, 100)
        and labels[0] == 0
        and set(np.diff(labels)) <= {100 // len(labels) + i for i in (0, 1)}
    )
    assert idata["prior"].sizes["draw"] in (40, 80, 200, 400)
    assert "unconstrained_posterior" not in group_names(idata)


def test_switches(fitted):
    # What is not wanted is not there.
    idata = fitted.to_inference_data(log_likelihood=False, log_prior=False, posterior_predictive=False, prior=False)
    assert group_names(idata) == {"posterior", "sample_stats", "observed_data", "constant_data", "fit", "fit_stats"}


def test_numbers_of_predictive_draws(fitted):
    # Of each chain, and no more than there are; of the prior in one chain.
    idata = fitted.to_inference_data(posterior_predictive=7, prior=True)
    assert idata["posterior_predictive"]["y"].shape == (4, 7, 16) and idata["prior"]["sigma"].shape == (1, 400)
    assert fitted.to_inference_data(posterior_predictive=999, prior=False)["posterior_predictive"].sizes["draw"] == 100


def test_a_script_stays_reproducible(fitted):
    # However many predictive draws were affordable, what comes after is the same.
    after = []
    for number in (5, 50):
        pyro.set_rng_seed(3)
        fitted.to_inference_data(posterior_predictive=number, prior=number)
        after.append(torch.rand(()).item())
    assert after[0] == after[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior_predictive": 0}, "posterior_predictive must be an integer of at least 1, got 0"),
        ({"prior": 2.5}, "prior must be an integer of at least 1, got 2.5"),
        ({"dims": {"beta": ["term"]}}, "dims names the variable 'beta'"),
        ({"dims": {"w": ["chain"]}}, "uses 'chain'"),
        ({"coords": {"row": ["a"]}}, "has 1 labels for a dimension of size 16"),
        ({"constant_data": {"x": object()}}, r"constant_data\['x'\] is object, which is no array"),
    ],
)
def test_bad_input(fitted, options, message):
    # An error, and the fit is as it was.
    before = fitted.get_samples()["w"]
    with pytest.raises(ValueError, match=message):
        fitted.to_inference_data(**{"posterior_predictive": False, "prior": False, **options})
    assert fitted.get_samples()["w"] is before or torch.equal(fitted.get_samples()["w"], before)


def test_a_file_keeps_everything(fitted, idata, tmp_path):
    # All groups are stored; the evidence can still be compared.
    path = str(tmp_path / "run.nc")
    idata.to_netcdf(path, engine="h5netcdf")
    if ARVIZ_1:
        import xarray as xr

        stored = xr.open_datatree(path, engine="h5netcdf")
    else:
        stored = arviz.from_netcdf(path, engine="h5netcdf")
    assert group_names(stored) == group_names(idata)
    for group in group_names(idata):
        for name, array in idata[group].data_vars.items():
            np.testing.assert_array_equal(stored[group][name].values, array.values)
    table = compare_evidence({"stored": stored, "same": fitted})
    assert table["log_evidence"].tolist() == [fitted.log_evidence] * 2


# ---- what ArviZ makes of it ----


@ON_ARVIZ_0
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plot_trace", "plot_pair", "plot_forest", "plot_ppc", "plot_posterior"])
def test_plots(idata, name):
    # They find their groups and draw.
    options = {"plot_ppc": {"num_pp_samples": 5}, "plot_trace": {"var_names": ["w"]}}.get(
        name, {"var_names": ["w", "sigma"]}
    )
    assert getattr(arviz, name)(idata, **options) is not None
    matplotlib.pyplot.close("all")


@ON_ARVIZ_0
@pytest.mark.filterwarnings("ignore")
def test_summary_and_sensitivity(idata):
    # The summary has a row for each value, and power scaling finds prior and likelihood.
    summary = arviz.summary(idata, var_names=["w", "sigma"])
    assert list(summary.index) == ["w[intercept]", "w[slope]", "sigma"] and (summary["r_hat"] < 1.05).all()
    prior, likelihood = (
        arviz.psens(idata, component=name, var_names=["w", "sigma"]) for name in ("prior", "likelihood")
    )
    assert (prior["w"] < likelihood["w"]).all()


@ON_ARVIZ_0
@pytest.mark.filterwarnings("ignore")
def test_from_pyro(fitted):
    # ArviZ's own converter takes a fitted sampler where it takes MCMC.
    converted = arviz.from_pyro(fitted, log_likelihood=False)
    np.testing.assert_array_equal(converted["posterior"]["w"], fitted.get_samples(group_by_chain=True)["w"].numpy())
    np.testing.assert_array_equal(converted["observed_data"]["y"], DATA[1].numpy())
    assert not converted["sample_stats"]["diverging"].any()


@ON_ARVIZ_0
@pytest.mark.filterwarnings("ignore")
def test_loo_as_with_nuts(idata):
    # Leave-one-out and its effective number of parameters, pointwise, within the error of NUTS's own draws.
    mcmc = MCMC(NUTS(regression), num_samples=200, warmup_steps=80, disable_progbar=True)
    mcmc.run(*DATA)
    w, sigma = (mcmc.get_samples()[name].numpy() for name in ("w", "sigma"))
    pointwise = log_normal(DATA[1].numpy(), w @ DATA[0].numpy().T, sigma[:, None])
    reference = arviz.from_dict(posterior={"sigma": sigma[None]}, log_likelihood={"y": pointwise[None]})
    loo, expected = arviz.loo(idata, pointwise=True), arviz.loo(reference, pointwise=True)
    assert abs(loo.elpd_loo - expected.elpd_loo) < expected.se / 2 and loo.p_loo == pytest.approx(
        expected.p_loo, rel=0.5
    )
    table = arviz.compare({"osds": idata, "nuts": reference})
    assert (table["elpd_diff"] < expected.se / 2).all()
    assert arviz.plot_khat(loo) is not None
    matplotlib.pyplot.close("all")


# ---- other kinds of models ----


def test_an_observation_that_cannot_be_drawn():
    # Without a sampler there is no predictive group: a warning by default, an error if it was asked for.
    class NoSampler(dist.Normal):
        def rsample(self, sample_shape=()):
            raise NotImplementedError

        def expand(self, batch_shape, _instance=None):
            return NoSampler(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", NoSampler(mu, torch.ones(())), obs=torch.tensor(0.5))

    osds = OSDS(model, num_samples=50, num_iterations=20, escalate=False, disable_progbar=True)
    osds.run()
    with pytest.raises(ValueError, match="Site 'y' cannot be drawn from its distribution NoSampler"):
        osds.to_inference_data(posterior_predictive=True)
    with pytest.warns(UserWarning, match="The group .* is left out: Site 'y' cannot be drawn") as caught:
        idata = osds.to_inference_data()
    assert {warning.filename for warning in caught} == {__file__} and len(caught) == 2
    assert group_names(idata) >= {"posterior", "log_likelihood"} and "prior" not in group_names(idata)


def test_a_model_without_observations():
    # There is nothing to predict; the prior can be drawn.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("square", x.square())
        pyro.factor("energy", -x.square())

    osds = OSDS(model, num_samples=50, num_iterations=20, disable_progbar=True)
    osds.run()
    idata = osds.to_inference_data(prior=10)
    assert group_names(idata) == {"posterior", "sample_stats", "log_prior", "prior", "fit", "fit_stats"}
    assert osds.posterior_predictive(num_draws=5)["square"].shape == (5,)
    with pytest.raises(ValueError, match="needs observed sites, and the model has none"):
        osds.to_inference_data(posterior_predictive=True)


def test_a_density_without_a_model():
    # Its draws are unconstrained as they are; there is nothing to predict.
    osds = OSDS.from_log_prob(
        lambda z: -0.5 * z.square().sum(-1), dim=2, num_samples=50, num_iterations=20, disable_progbar=True
    )
    osds.run()
    idata = osds.to_inference_data(unconstrained=True)
    assert group_names(idata) == {"posterior", "unconstrained_posterior", "sample_stats", "fit", "fit_stats"}
    unconstrained = idata["unconstrained_posterior"]["z"].values
    np.testing.assert_array_equal(unconstrained.astype(np.float32), idata["posterior"]["z"].values)
    with pytest.raises(ValueError, match="prior needs a Pyro model to draw from"):
        osds.to_inference_data(prior=True)
    with pytest.raises(ValueError, match="Predictions need a Pyro model"):
        osds.posterior_predictive()
    with pytest.raises(ValueError, match="prior_predictive needs a Pyro model"):
        osds.prior_predictive()
    assert osds.kernel.model is None
