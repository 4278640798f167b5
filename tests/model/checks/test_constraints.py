"""Parameters out of range are refused by name; those that depend on latents, and rounding, are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget


def swapped():
    pyro.sample("t", dist.Uniform(2 * math.pi, 0.0))


def swapped_in_a_plate():
    with pyro.plate("rows", 3):
        pyro.sample("t", dist.Uniform(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 2.0, 4.0])))


def negative_concentration():
    t = pyro.sample("t", dist.Uniform(-math.pi, math.pi))
    pyro.sample("y", dist.VonMises(t, -2.0), obs=torch.tensor(0.3))


def negative_scale():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, -1.0).expand([2]).to_event(1), obs=torch.zeros(2))


def no_probability():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    pyro.sample("y", dist.Bernoulli(probs=torch.tensor(1.3)), obs=torch.tensor(1.0))
    return p


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (swapped, "The prior of site 't' is Uniform from 6.28319 to 0: its upper end lies below the lower one. Swap"),
        (swapped_in_a_plate, "The prior of site 't' is Uniform from 5 to 4"),
        (
            negative_concentration,
            "site 'y', VonMises, has concentration = -2 in every run, outside of its range, 0",
        ),
        (negative_scale, "site 'y', Normal, has scale = -1 in every run"),
        (no_probability, "site 'y', Bernoulli, has probs = 1.3 in every run, outside of its range, 0 to 1"),
    ],
)
def test_parameters_out_of_range_are_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelTarget(model)


def test_what_depends_on_latents_and_what_is_rounded_is_not_refused():
    def model():
        s = pyro.sample("s", dist.Normal(1.0, 0.5))  # below zero now and then
        p = pyro.sample("p", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))
        pyro.sample("y", dist.Normal(0.0, s), obs=torch.tensor(0.1))
        pyro.sample("w", dist.Bernoulli(probs=torch.tensor(1.0 + 1e-6)), obs=torch.tensor(1.0))
        pyro.sample("v", dist.Normal(p, 0.0 + 1e-3), obs=torch.tensor(0.5))

    assert ModelTarget(model).dim == 2


def test_a_flat_prior_decides_nothing():
    # One run, at a scale below zero, is no reason to refuse a model that is right at others.
    def model():
        s = pyro.sample("s", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(0.0, s), obs=torch.tensor(0.1))

    for seed in range(4):
        pyro.set_rng_seed(seed)
        assert ModelTarget(model).dim == 1
