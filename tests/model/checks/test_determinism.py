"""A density must be a function of its latents: randomness is an error that names the site, the line and the cure."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_osds.model import ModelTarget, VectorizationWarning
from pyro_osds.model.checks.determinism import check_deterministic

X = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, -0.4]])
Y = torch.tensor([0.2, 1.1])


def model_with(noise):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("quiet", dist.Normal(x, 1.0), obs=torch.tensor(0.5))
        pyro.sample("noisy", dist.Normal(x + noise(), 1.0), obs=torch.tensor(0.5))

    return model


def rand():
    return torch.rand(())


def randn_like():
    return torch.randn_like(torch.zeros(()))


def normal_in_place():
    return torch.empty(()).normal_()


def draw_of_a_distribution():
    return dist.Normal(0.0, 1.0).sample()


def coins():
    return torch.bernoulli(torch.full((64,), 0.5)).sum()


@pytest.mark.parametrize(
    ("noise", "name"),
    [
        (rand, "rand"), (randn_like, "randn_like"), (normal_in_place, "normal_"),
        (draw_of_a_distribution, "normal"), (coins, "bernoulli"),
    ],
)  # fmt: skip
def test_random_numbers_of_torch(noise, name):
    # Site, operation, line and file are named, and what to do instead.
    message = (
        rf"site 'noisy' changes between two evaluations .* because of {name} at `return .*` "
        r"\(line \d+ of test_determinism\.py\).*draw noise with pyro\.sample"
    )
    with pytest.raises(ValueError, match=message):
        ModelTarget(model_with(noise))


@pytest.mark.parametrize("noise", [np.random.rand, random.random], ids=["numpy", "random"])
def test_random_numbers_from_elsewhere(noise):
    # The site and the cure are known, the line is not.
    with pytest.raises(ValueError, match=r"site 'noisy' changes .* from outside torch.*draw noise with pyro\.sample"):
        ModelTarget(model_with(noise))


def test_noise_of_a_latent():
    # It need not be an observed site.
    def model():
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0 + torch.rand(())))
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match="site 'scale' changes .* because of rand at"):
        ModelTarget(model)


# ---- modules ----


class Plain(nn.Module):
    """Features with a layer that behaves in another way while it is trained."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, features):
        return self.layer(features)


class Bayesian(PyroModule):
    """The same as a model of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self):
        mean = self.layer(X * self.weight).sum(-1)
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)


def model_of(module):
    if isinstance(module, Bayesian):
        return module

    def model():
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(module(X * weight).sum(-1), 1.0), obs=Y)

    return model


@pytest.mark.parametrize("kind", [Plain, Bayesian])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.AlphaDropout(0.5)], ids=["dropout", "alpha_dropout"])
def test_dropout_in_training_mode(kind, layer):
    # The line that calls the layer, and .eval() as the cure, which is one.
    module = kind(layer).train()
    message = (
        r"site 'y' changes .* because of (alpha_)?dropout at `.*self\.layer\(.*` "
        r"\(line \d+ of test_determinism\.py\).*call \.eval\(\) on the module"
    )
    with pytest.raises(ValueError, match=message):
        ModelTarget(model_of(module))
    assert ModelTarget(model_of(module.eval())).vectorized


@pytest.mark.parametrize("kind", [Plain, Bayesian])
def test_batch_norm_in_training_mode(kind):
    # It is as random as the batches that it sees; in evaluation mode it is a constant.
    module = kind(nn.BatchNorm1d(3)).train()
    message = r"batch_norm in training mode at `.*` \(line \d+ of test_determinism\.py\).*Call \.eval\(\)"
    with pytest.raises(ValueError, match=message):
        ModelTarget(model_of(module))
    target = ModelTarget(model_of(module.eval()))
    before = module.layer.running_mean.clone()
    target.log_prob(torch.randn(4, 3))
    assert torch.equal(module.layer.running_mean, before)


def test_batch_norm_is_left_as_it_was():
    # A model that is refused has not been trained by the attempt.
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="batch_norm in training mode"):
        ModelTarget(model_of(Plain(layer).train()))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, torch.zeros(3)) and torch.equal(layer.running_var, torch.ones(3))


def test_batch_norm_without_memory():
    # In evaluation mode it takes its statistics from the data, always the same ones: there is nothing to refuse.
    module = Plain(nn.BatchNorm1d(3, track_running_stats=False)).eval()
    assert ModelTarget(model_of(module)).dim == 3


# ---- what is not random ----


def test_random_numbers_without_effect():
    # Noise that no density sees is none; in batches it is not allowed, so the model runs point by point.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        torch.rand(3)
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    with pytest.warns(VectorizationWarning, match=r"`torch\.rand\(3\)` \(line \d+ of test_determinism\.py\)"):
        assert ModelTarget(model).backend == "loop"


def test_parameters_that_start_at_random():
    # Once they are there, they stay.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        shift = pyro.param("shift", lambda: torch.randn(()))
        pyro.sample("y", dist.Normal(x + shift, 1.0), obs=torch.tensor(0.5))

    assert ModelTarget(model).vectorized


def test_rounding_and_nan_are_no_change():
    # The last digit of a single-precision sum may differ, nan is the same as nan, and infinity as infinity.
    terms = iter([1.0, 1.0 + 1e-7] * 2)

    def rounded(z):
        return {"a": torch.tensor(next(terms)), "b": torch.tensor(float("nan")), "c": torch.tensor(float("-inf"))}

    check_deterministic(rounded, torch.zeros(2, 1))
    with pytest.raises(StopIteration):
        next(terms)


@pytest.mark.parametrize(
    "second", [{"a": torch.tensor(1.001)}, {"b": torch.tensor(1.0)}, {"a": torch.tensor(torch.nan)}]
)
def test_small_changes_and_sites_that_vanish(second):
    # A change in the fourth digit, another site, and nan: all of them count.
    answers = iter([{"a": torch.tensor(1.0)}, second])
    with pytest.raises(ValueError, match="site 'a' changes between two evaluations"):
        check_deterministic(lambda z: next(answers), torch.zeros(1, 1))


def test_every_point_is_looked_at():
    # Noise beyond a threshold shows at the second point only.
    def terms(z):
        return {"a": z.sum() + (torch.rand(()) if z.sum() > 0 else 0.0)}

    check_deterministic(terms, torch.tensor([[-1.0]]))
    with pytest.raises(ValueError, match="site 'a' changes .* because of rand at"):
        check_deterministic(terms, torch.tensor([[-1.0], [1.0]]))


def test_a_point_at_which_linear_algebra_fails():
    # It has no density, which is no reason to refuse the model: wherever the points that are looked at lie.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        matrix = torch.diag(torch.stack([x.clamp(min=0.0), torch.ones(())]))
        pyro.factor("energy", -torch.linalg.solve(matrix, torch.ones(2)).sum())

    for seed in range(4):
        pyro.set_rng_seed(seed)
        target = ModelTarget(model, init_strategy=lambda site: torch.ones(()), capture=False)
        assert target.log_prob(torch.tensor([[1.0], [-1.0]])).isfinite().tolist() == [True, False]
