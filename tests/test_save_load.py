"""The life of a fit: saved and loaded, copied, cut short and gone on with; and what loading refuses."""

import copy
import functools
import os
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, recipe, storage
from pyro_osds.teacher import TeacherBudget
from pyro_osds.train import Trainer

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 5.0), obs=y)


def mixture(y):
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        parts = dist.Normal(loc, 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts), obs=y)


def coin(y):
    fair = pyro.sample("fair", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(0.5 + 0.3 * fair), obs=(y > 1).float())


def two_modes(z):
    return torch.logsumexp(-0.5 * (z[:, None] - torch.tensor([[-6.0, 0.0], [6.0, 1.0]])).square().sum(-1), -1)


def potential(params):
    return 0.5 * (params["x"] - 1.0).square().sum()


def heavy(z):
    return -2.0 * torch.log1p(z.square() / 3).sum(-1)


def fit(make, *args, seed=0):
    pyro.set_rng_seed(seed)
    osds = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        osds.run(*args)
    return osds


def quick(**given):
    options = {"num_samples": 50, "num_iterations": 20, "num_particles": 16, "escalate": False, "learning_rate": 1e-3}
    return {**options, "disable_progbar": True, **given}


def of_model(model, **given):
    return lambda: OSDS(model, **quick(**given))


# What is fitted, what it is loaded for, with which arguments, and what makes the case worth trying.
CASES = {
    "plain": (of_model(conjugate), conjugate, (Y,), lambda fit: fit.recipe.name == "calibrate"),
    "standardised": (of_model(centred), centred, (Y,), lambda fit: fit.target.standardized),
    "exchangeable": (
        of_model(mixture),
        mixture,
        (torch.tensor([-2.1, -1.7, -2.4, 1.9, 2.3, 2.2]),),
        lambda fit: hasattr(fit.target, "exchange"),
    ),
    "mixture base": (
        lambda: OSDS.from_log_prob(two_modes, 2, **quick(num_particles=64)),
        two_modes,
        (),
        lambda fit: fit.recipe.found.base.num_components > 1,
    ),
    "velocity": (
        of_model(conjugate, network="velocity", num_iterations=5, num_time_steps=4),
        conjugate,
        (Y,),
        lambda fit: fit.recipe.name == "velocity",
    ),
    "distill": (
        of_model(conjugate, recipe="distill", num_iterations=5, num_time_steps=2),
        conjugate,
        (Y,),
        lambda fit: fit.recipe.teacher is not None,
    ),
    "point": (of_model(coin), coin, (Y,), lambda fit: fit.target.dim == 0),
    "potential": (
        lambda: OSDS(potential_fn=potential, initial_params={"x": torch.zeros(2)}, **quick()),
        potential,
        (),
        lambda fit: fit.target.dim == 2,
    ),
}


@pytest.fixture(scope="module")
def fits():
    """Each case once, when it is first asked for; a teacher learns for a moment only."""
    made = {}
    short = pytest.MonkeyPatch()
    short.setattr(recipe, "TeacherBudget", functools.partial(TeacherBudget, 8, 2))

    def get(case):
        if case not in made:
            with torch.random.fork_rng():
                made[case] = fit(CASES[case][0], *CASES[case][2])
        return made[case]

    yield get
    short.undo()


def results(osds, args):
    """All that a fit tells, in an order that also shows what random numbers come next."""
    draws = osds.draw(20)
    told = [osds.get_samples(), osds.evidence, osds.run_report, osds.trainer.history, draws.z, draws.log_weights]

    return [*told, osds.step(*args), osds.evaluate_loss(*args)]


def assert_same(left, right):
    for ours, theirs in zip(left, right, strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        elif isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs)
        else:
            # Numbers that are not numbers are equal in print only.
            assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("case", CASES)
def test_round_trip(fits, case, tmp_path):
    # Draws, evidence, history, further draws, steps and redrawn posteriors: bit for bit, whatever was fitted.
    osds, (_, model, args, is_worth_trying) = fits(case), CASES[case]
    assert is_worth_trying(osds.fit)
    osds.save(tmp_path / "fit.pt")
    loaded = OSDS.load(tmp_path / "fit.pt", model, *args)
    assert loaded.settings == osds.settings and loaded.is_trained_on(*args)
    state = torch.get_rng_state()
    ours = copy.deepcopy(osds)
    expected = results(ours, args)
    torch.set_rng_state(state)
    assert_same(expected, results(loaded, args))
