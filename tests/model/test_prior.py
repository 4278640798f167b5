"""Draws of the prior: all by one run where that is right, and none of those where it is not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.model.prior import sample_latents, sample_together


def hierarchy():
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, scale))
        with pyro.plate("row", 4):
            pyro.sample("x", dist.Normal(loc, 1.0))


def test_one_run_draws_what_many_runs_draw():
    # Shapes, and the correlation of the children with their own row's parent.
    sites = sample_together(hierarchy, ["scale", "loc", "x"], 4000)
    assert sites["scale"]["value"].shape == (4000, 1, 1) and sites["x"]["value"].shape == (4000, 4, 3)
    ratio = sites["loc"]["value"] / sites["scale"]["value"]
    assert abs(ratio.std() - 1) < 5 * (2 * ratio.numel()) ** -0.5
    residual = sites["x"]["value"] - sites["loc"]["value"]
    assert abs(residual.std() - 1) < 5 * (2 * residual.numel()) ** -0.5


def mixing_draws():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))
    pyro.sample("y", dist.Normal(x.mean(), 0.1))


def taking_a_draw_for_a_coordinate():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x[0], 0.1))


def branching():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(1.0 if x > 0 else -1.0, 0.1))


@pytest.mark.filterwarnings("ignore:The model runs point by point:UserWarning")  # it branches
@pytest.mark.parametrize("model", [mixing_draws, taking_a_draw_for_a_coordinate, branching])
def test_what_mixes_draws_runs_one_by_one(model):
    # Noticed, and drawn right all the same: the children follow their own parent.
    assert sample_together(model, ["x", "y"], 100) is None
    x, y = ModelTarget(model).sample_prior(200).split([3 if model is not branching else 1, 1], -1)
    parent = {mixing_draws: x.mean(-1), taking_a_draw_for_a_coordinate: x[:, 0], branching: x[:, 0].sign()}[model]
    residual = y[:, 0] - parent
    assert abs(residual.std() - 0.1) < 5 * 0.1 / 400**0.5


def test_a_run_ends_at_the_last_latent():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise AssertionError("the likelihood was reached")

    assert list(sample_latents(model, ["x"])) == ["x"]
    assert sample_together(model, ["x"], 10)["x"]["value"].shape == (10,)
