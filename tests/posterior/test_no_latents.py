"""Posteriors without coordinates: a sum instead of a sampler, behind the same doors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.posterior.no_latents import PointLeap, PointRecipe, PointTrainer
from pyro_osds.stats.weights import weigh

Y = torch.tensor([0.3, -0.2, 4.1, 3.7])


def switch(y):
    """Discrete latents only, one of them above all rows."""
    side = pyro.sample("side", dist.Bernoulli(0.25))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("y", dist.Normal(4.0 * k + side, 1.0), obs=y)


def log_evidence(y):
    """By hand, in double precision."""
    y = y.double()
    by_side = []
    for side, probability in ((0.0, 0.75), (1.0, 0.25)):
        rows = [dist.Normal(torch.tensor(4.0 * k + side).double(), 1.0).log_prob(y) for k in (0, 1)]
        by_side.append(torch.logaddexp(*rows).sum() - len(y) * math.log(2.0) + math.log(probability))

    return torch.logaddexp(*by_side).item()


@pytest.fixture(scope="module")
def target():
    return ModelTarget(switch, (Y,))


@pytest.fixture(scope="module")
def fitted():
    osds = OSDS(switch, num_samples=20, num_chains=2, disable_progbar=True)
    osds.run(Y)

    return osds


def test_draws_of_the_leap(target):
    # No coordinates and density one: all weights are the evidence.
    z, log_base, log_abs_det = PointLeap(target).sample(5)
    assert z.shape == (5, 0) and z.dtype == target.dtype
    assert not log_base.any() and not log_abs_det.any() and log_base.shape == log_abs_det.shape == (5,)
    log_weight = weigh(PointLeap(target), target, 5).log_weight
    torch.testing.assert_close(log_weight, torch.full((5,), log_evidence(Y), dtype=torch.float64), rtol=1e-6, atol=0.0)


def test_nothing_to_train(target):
    # Steps and evaluations say the evidence, and leave no history.
    trainer = PointTrainer(target)
    assert trainer.step() == trainer.evaluate()
    assert math.isclose(trainer.step(), -log_evidence(Y), rel_tol=1e-6)
    assert trainer.averaged() is trainer.leap and trainer.history.loss == []


def test_nothing_to_explore(target):
    # The recipe knows no survey, and any number of steps is the same leap.
    recipe = PointRecipe(target)
    recipe.run()
    assert recipe.found is None and recipe.name == "point"
    assert recipe.with_steps(4) is recipe.trainer.leap


def test_evidence_is_exact(fitted):
    # Without a standard error but rounding, and without a reason against it.
    assert math.isclose(fitted.log_evidence, log_evidence(Y), rel_tol=1e-6)
    assert fitted.log_evidence_se < 1e-5 and fitted.evidence.reliable and fitted.evidence.reasons == ()
    assert fitted.evidence.check is None and math.isclose(fitted.evidence.elbo, log_evidence(Y), rel_tol=1e-6)


def test_there_are_no_draws(fitted, capsys):
    # Empty, and not an error: samples, diagnostics and the summary.
    assert fitted.get_samples() == {} and fitted.get_samples(group_by_chain=True) == {}
    assert fitted.diagnostics()["divergences"] == {"chain 0": [], "chain 1": []}
    fitted.summary()
    assert f"log evidence {fitted.log_evidence:.4f} +- 0.0000" in capsys.readouterr().out
    draws = fitted.draw(7, num_steps=2)
    assert draws.samples == {} and draws.log_weights.shape == (7,)


def test_loss_is_minus_the_evidence(fitted):
    # As for SVI.
    for loss in (fitted.step(Y), fitted.evaluate_loss(Y)):
        assert math.isclose(loss, -log_evidence(Y), rel_tol=1e-6)


def test_inference_data_of_a_point(fitted):
    # The evidence and the data; a posterior without variables.
    data = fitted.to_inference_data()
    assert data["fit"]["log_evidence"].item() == fitted.log_evidence
    assert data["fit"]["recipe"].item() == "point" and data["fit"]["num_base_components"].item() == 0
    torch.testing.assert_close(torch.as_tensor(data["observed_data"]["y"].values), Y)


def test_data_that_changed_in_place_are_other_data():
    # What was trained on is gone, although the tensor is the same.
    y = Y.clone()
    osds = OSDS(switch, num_samples=20, num_chains=1, disable_progbar=True)
    osds.run(y)
    assert osds.is_trained_on(y)
    y += 1.0
    assert not osds.is_trained_on(y)
    assert math.isclose(osds.step(y), -log_evidence(y), rel_tol=1e-6)
