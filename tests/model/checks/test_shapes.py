"""Observations that do not fit their plates, and log densities that do not fit their observations."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import tensor

from pyro_osds import ModelWarning
from pyro_osds.model import ModelTarget


def latents():
    return pyro.sample("mean", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.LogNormal(0.0, 1.0))


def in_plate(make, obs):
    def model():
        mean, scale = latents()
        with pyro.plate("rows", len(obs)):
            pyro.sample("y", make(mean, scale), obs=obs)

    return model


@pytest.mark.parametrize("shape", [(10, 1), (8,), (1, 8)])
def test_an_observation_of_another_shape_than_its_plate_is_refused(shape):
    def model():
        mean, scale = latents()
        with pyro.plate("rows", 10):
            pyro.sample("y", dist.Normal(mean, scale), obs=torch.ones(shape))

    with pytest.raises(ValueError, match=rf"(?s)site 'y' has the shape \({shape[0]}, ?.*plate 'rows' of 10.*reshape"):
        ModelTarget(model)


def test_one_value_in_a_plate_is_told():
    with pytest.warns(ModelWarning, match=r"site 'y' has the shape \(\) in plate 'rows' of 10.*counts 10 times"):
        target = ModelTarget(in_plate_of_ten)
    assert any("10 times" in note for note in target.notes)


def in_plate_of_ten():
    mean, scale = latents()
    with pyro.plate("rows", 10):
        pyro.sample("y", dist.Normal(mean, scale), obs=tensor(1.0))


class WithoutExpand(dist.Normal):
    def __init__(self, loc):
        super().__init__(loc, 1.0)


class Column(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value).unsqueeze(-1)


def test_a_distribution_without_expand_is_named():
    with pytest.raises(ValueError, match=r"WithoutExpand of site 'y'.*batch shape \(\).*'rows' of 4.*def expand"):
        ModelTarget(in_plate(lambda m, s: WithoutExpand(m), torch.ones(4)))


@pytest.mark.parametrize("observed", [True, False])
def test_a_log_density_of_another_shape_is_named(observed):
    def model():
        with pyro.plate("rows", 4):
            pyro.sample("x", Column(0.0, 1.0), obs=torch.ones(4) if observed else None)
        latents()

    with pytest.raises(ValueError, match=r"Column of site 'x'.*log_prob of shape \(4, 1\).*shape \(4,\) is needed"):
        ModelTarget(model)


def test_a_plate_without_rows_is_named():
    with pytest.raises(ValueError, match="plate needs at least one row"):
        ModelTarget(in_plate(dist.Normal, torch.empty(0)))
