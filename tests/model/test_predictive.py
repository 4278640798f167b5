"""Predictive draws: right distributions from models that were written for inference only, and clear refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from models import CONJUGATE_MEAN, CONJUGATE_SD, conjugate
from pyro import poutine
from zoo import ZOO

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, Predictive, prior_predictive
from pyro_osds.runtime.warnings import OSDSWarning


def source(model, *args, **kwargs):
    return Predictive(ModelTarget(model, args, kwargs, capture=False), args, kwargs)


def assert_mean(draws, truth):
    assert_within_standard_error(draws.mean(), truth, draws.std() / len(draws) ** 0.5)


def assert_frequency(hits, probability):
    assert_within_standard_error(
        hits.float().mean(), probability, math.sqrt(probability * (1 - probability) / len(hits))
    )


# ---- one run of the model ----


def test_no_observation_is_used():
    # Far from the data, predictions follow the latents; each row has noise of its own.
    y = source(conjugate).posterior({"mu": torch.full((1000,), 50.0)}, 1000)["y"]
    assert y.shape == (1000, 5)
    assert_mean(y.flatten(), 50.0)
    assert_within_standard_error(y.var(), 1.0, math.sqrt(2 / y.numel()))
    assert torch.corrcoef(y.T).fill_diagonal_(0).abs().max() < 5 / 1000**0.5


def test_the_posterior_predictive_of_a_conjugate_model():
    # Normal around the posterior mean, with the variance of the posterior and of the noise.
    mu = CONJUGATE_MEAN + CONJUGATE_SD * torch.randn(1000)
    y = source(conjugate).posterior({"mu": mu}, 1000)["y"][:, 0]
    assert_mean(y, CONJUGATE_MEAN)
    assert_within_standard_error(y.var(), 1 + 1 / 5.25, (1 + 1 / 5.25) * math.sqrt(2 / len(y)))


def test_each_draw_has_its_own_latents():
    # In their order.
    y = source(conjugate).posterior({"mu": 1000.0 * torch.arange(4.0)}, 4)["y"]
    assert (y.mean(1) / 1000).round().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_what_is_returned():
    # Observed sites, deterministic values and discrete latents in the order of the model; no factor, no plate.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -x.square())
        pyro.deterministic("double", 2 * x)
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("rows", 2), poutine.scale(scale=3.0), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", dist.Normal(x + k, 1.0), obs=torch.zeros(2))

    drawn = source(model).posterior({"x": torch.tensor([1.0, 2.0])}, 2)
    assert list(drawn) == ["double", "k", "y"] and drawn["y"].shape == (2, 2) and drawn["double"].tolist() == [2.0, 4.0]


def test_later_sites_see_what_was_drawn():
    # An observation that another one depends on is replaced for it, too; one that is a Python value is not.
    def model(y):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Normal(100.0, 1.0), obs=y[0])
        pyro.sample("second", dist.Normal(first, 0.1), obs=y[1])
        pyro.sample("third", dist.Normal(y[1], 0.1), obs=y[2])

    drawn = source(model, torch.zeros(3)).posterior({"x": torch.zeros(50)}, 50)
    assert (drawn["second"] - drawn["first"]).abs().max() < 0.6 and drawn["first"].min() > 90
    assert drawn["third"].abs().max() < 0.6


def test_one_distribution_for_all_observations():
    # Without a plate a distribution without shape stands for each value of obs.
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = source(model, torch.zeros(3)).posterior({"mu": torch.zeros(500)}, 500)["y"]
    assert y.shape == (500, 3) and torch.corrcoef(y.T).fill_diagonal_(0).abs().max() < 5 / 500**0.5


def test_what_handlers_observe_is_drawn_and_what_they_fix_is_kept():
    # poutine.condition is another way to write obs=; poutine.do is not.
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 0.1))

    data = {"y": torch.tensor(7.0)}
    drawn = source(poutine.do(poutine.condition(model, data), {"b": torch.tensor(-30.0)})).posterior(
        {"a": torch.zeros(20)}, 20
    )
    assert (drawn["y"] + 30).abs().max() < 0.6


def test_missing_observations():
    # The part that was seen is predicted; the part that was not comes from the posterior, and both make the whole.
    target = ModelTarget(ZOO["missing_rows"].model(), capture=False)
    samples = {"mu": torch.full((20,), 100.0), "y_unobserved": torch.zeros(20, 5)}
    drawn = Predictive(target).posterior(samples, 20)
    assert drawn["y_observed"].shape == (20, 5) and (drawn["y_observed"] - 100).abs().max() < 5
    assert drawn["y"][:, [0, 2, 3]].min() > 90 and (drawn["y"][:, [1, 4]] == 0).all()


# ---- discrete latents ----


def test_discrete_latents_are_drawn_anew():
    # A mixture's rows get new components: the frequency is that of the weights, whatever the data were.
    samples = {"weight": torch.full((800,), 0.3), "loc": torch.full((800,), 50.0)}
    drawn = source(ZOO["mixture"].model()).posterior(samples, 800)
    assert drawn["k"].shape == drawn["y"].shape == (800, 5)
    assert ((drawn["y"] > 20) == (drawn["k"] == 1)).all()
    for row in range(5):
        assert_frequency(drawn["k"][:, row] == 1, 0.3)


def test_discrete_latents_given_the_data():
    # Or those of the data: here by Bayes' rule for two normal components.
    samples = {"weight": torch.full((150,), 0.3), "loc": torch.full((150,), 1.0)}
    drawn = source(ZOO["mixture"].model()).posterior(samples, 150, given_data=True)
    for row, y in enumerate((-2.3, -1.8, 0.9, 1.4, 0.2)):
        odds = 0.3 / 0.7 * math.exp(((y + 2) ** 2 - (y - 1) ** 2) / 2)
        assert_frequency(drawn["k"][:, row] == 1, odds / (1 + odds))


def test_discrete_latents_above_continuous_ones():
    # A switch with a continuous latent below it is drawn given that one, but not given the data.
    drawn = source(ZOO["discrete_parent"].model()).posterior({"mu": torch.full((150,), 1.4)}, 150)
    odds = 0.3 / 0.7 * math.exp((1.4**2 - 1.6**2) / 2)
    assert_frequency(drawn["switch"] == 1, odds / (1 + odds))


def test_discrete_latents_that_are_vectors():
    # Pyro's infer_discrete does not take them: said so, with the cure.
    with pytest.raises(
        ValueError, match=r"latents \['k'\] cannot be drawn .* Categorical instead of OneHotCategorical"
    ):
        source(ZOO["one_hot_switch"].model()).posterior({"weights": torch.full((1, 2), 0.5), "x": torch.zeros(1, 2)}, 1)


# ---- the prior ----


def test_prior():
    # All sites, observed ones too, jointly.
    drawn = prior_predictive(conjugate, 2000)
    assert list(drawn) == ["mu", "y"] and drawn["y"].shape == (2000, 5)
    assert_mean(drawn["mu"], 0.0)
    assert_within_standard_error(drawn["mu"].var(), 4.0, 4.0 * math.sqrt(2 / 2000))
    assert_within_standard_error(drawn["y"][:, 0].var(), 5.0, 5.0 * math.sqrt(2 / 2000))
    assert_within_standard_error((drawn["y"][:, 1] - drawn["mu"]).var(), 1.0, math.sqrt(2 / 2000))


# ---- refusals ----


def test_an_improper_prior():
    # Nothing to draw from.
    def model():
        pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(ValueError, match="Site 'x' cannot be drawn from its distribution ImproperUniform"):
        prior_predictive(model, 1)


def test_a_likelihood_that_is_a_factor():
    # There is no observation in it.
    with pytest.raises(ValueError, match="no observed sites.* Write its likelihood as pyro.sample"):
        source(ZOO["factors"].model()).posterior({"x": torch.zeros(1, 2)}, 1)


def test_a_structure_that_changes():
    # Draws of the prior that are no array.
    def model():
        if pyro.sample("x", dist.Normal(0.0, 1.0)) > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="Site 'y' differs from draw to draw.* none at all"):
        prior_predictive(model, 30)


def test_a_matrix_that_cannot_be_factorised():
    # The model fails at some draw: which error it was, and what to look at.
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        torch.linalg.cholesky(-torch.eye(2))

    with pytest.raises(ValueError, match="The model failed at one of the draws: .* add a jitter"):
        prior_predictive(model, 1)


# ---- as a user asks for it ----


def line(x, y=None):
    """A slope that is all but known, and an effect for each group."""
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("group", 2):
        pyro.sample("effect", dist.Normal(0.0, 0.1))
    pyro.deterministic("mean", slope * x)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        x = torch.linspace(-1.0, 1.0, 12)
        osds = OSDS(line, num_samples=100, num_iterations=50, disable_progbar=True)
        osds.run(x, y=3 * x)

        return osds


def test_new_inputs(fitted):
    # With or without the obs=None convention, and what is deterministic follows.
    drawn = fitted.posterior_predictive(torch.tensor([10.0, -10.0, 0.0]))
    assert drawn["y"].shape == drawn["mean"].shape == (400, 3)
    assert torch.allclose(drawn["y"].mean(0), torch.tensor([30.0, -30.0, 0.0]), atol=2.0)
    assert torch.equal(drawn["mean"], fitted.get_samples()["slope"][:, None] * torch.tensor([10.0, -10.0, 0.0]))
    assert fitted.posterior_predictive(x=torch.ones(2), y=torch.zeros(2), num_draws=3)["y"].shape == (3, 2)


def test_arguments_of_the_run(fitted):
    # Without any, and as many draws as asked for, spread over all of them.
    every, some = (fitted.posterior_predictive(num_draws=number) for number in (None, 40))
    with pytest.warns(OSDSWarning, match="asked for 1000 draws, and there are 400"):
        more = fitted.posterior_predictive(num_draws=1000)
    assert every["y"].shape == (400, 12) and some["y"].shape == (40, 12) and more["y"].shape == (1000, 12)
    assert torch.equal(some["mean"], every["mean"][::10])
    assert torch.equal(more["mean"][::5], every["mean"][::2])


def test_observations_of_another_length(fitted):
    # What to pass instead.
    with pytest.raises(ValueError, match="Site 'y' cannot be drawn .* pass observations of their length or None"):
        fitted.posterior_predictive(torch.ones(3), torch.zeros(12))


def test_other_groups(fitted):
    # Latents of two groups say nothing about three.
    def other(x):
        with pyro.plate("group", 3):
            pyro.sample("effect", dist.Normal(0.0, 0.1))

    predictive = Predictive(fitted.fit.model_target)
    predictive._call = lambda: other(None)
    with pytest.raises(ValueError, match=r"Latent site 'effect' has shape \(3,\) .* and \(2,\) in the posterior draws"):
        predictive.posterior(fitted.get_samples(), 1)


def test_before_the_run():
    # The prior needs none; a posterior does.
    osds = OSDS(line)
    drawn = osds.prior_predictive(torch.ones(4), num_draws=20)
    assert drawn["y"].shape == (20, 4) and drawn["slope"].shape == (20,) and drawn["effect"].shape == (20, 2)
    with pytest.raises(RuntimeError, match="call run"):
        osds.posterior_predictive(torch.ones(4))


def test_prior_after_the_run(fitted):
    # With the arguments of the run.
    assert fitted.prior_predictive(num_draws=5)["y"].shape == (5, 12)


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_bad_numbers(fitted, number):
    for method in (fitted.posterior_predictive, fitted.prior_predictive):
        with pytest.raises(ValueError, match="num_draws must be an integer of at least 1"):
            method(num_draws=number)


def test_infer_discrete_needs_the_data(fitted):
    with pytest.raises(ValueError, match="needs the observations of the run"):
        fitted.posterior_predictive(torch.ones(3), infer_discrete=True)


def test_prior_draws_of_correlations_are_alike_in_all_rows():
    # All correlations of LKJ(1.5) in three dimensions have variance 1 / 5; torch's own sampler gives two of them 1 / 4.
    def model():
        pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(1.5)))

    pyro.set_rng_seed(0)
    factor = prior_predictive(model, 2000)["factor"].double()
    squares = (factor @ factor.mT)[:, [1, 2, 2], [0, 0, 1]].square()
    error = squares.std(0) / len(squares) ** 0.5
    assert ((squares.mean(0) - 0.2).abs() < 4.0 * error).all()
