"""The integrable room: a density without an integral is seen from its rays, one with an integral is not accused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.integrable import endless_coordinates
from pyro_osds.model import ModelTarget
from pyro_osds.target import FunctionTarget

PROPER = {
    "normal": lambda z: -0.5 * z.square().sum(-1),
    "student t with a tenth of a degree": lambda z: -0.55 * torch.log1p(10 * z.square()).sum(-1),
    "spherical student t": lambda z: -0.5 * (z.shape[1] + 0.1) * torch.log1p(10 * z.square().sum(-1)),
    "cauchy": lambda z: -torch.log1p(z.square()).sum(-1),
    "laplace, narrow": lambda z: -(1e3 * z).abs().sum(-1),
    "box": lambda z: torch.where((z.abs() < 3).all(-1), 0.0, -torch.inf),
    "log of a gamma": lambda z: (z - z.exp()).sum(-1),
    "not a number far out": lambda z: -0.5 * z.square().sum(-1) + 0 * (z - 1e5).clamp(max=0).sqrt().sum(-1),
    "large constant": lambda z: 1e6 - 0.5 * z.square().sum(-1),
}


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("log_prob", PROPER.values(), ids=PROPER)
def test_a_proper_density_ends(log_prob, dim):
    # Whatever its tails, overflows and hard edges.
    assert endless_coordinates(FunctionTarget(log_prob, dim), torch.zeros(dim), torch.eye(dim)) == []


@pytest.mark.parametrize(
    ("log_prob", "expected"),
    [
        (lambda z: 0 * z.sum(-1), [0, 1, 2]),
        (lambda z: -0.5 * z[:, [0, 2]].square().sum(-1), [1]),
        (lambda z: -0.5 * z[:, :2].square().sum(-1) - 0.5 * torch.log1p(z[:, 2].square()), [2]),
        (lambda z: -1.5 * torch.log1p(z.square().sum(-1)), [0, 1, 2]),
        (lambda z: z[:, 0] - 0.5 * z[:, 1:].square().sum(-1), [0]),
        # A separable logistic regression with a flat slope: the likelihood goes to one and stays there.
        (lambda z: torch.nn.functional.logsigmoid(z[:, 0]) - 0.5 * z[:, 1:].square().sum(-1), [0]),
    ],
    ids=["flat", "one flat", "log-divergent", "log-divergent in three", "rising", "separable"],
)
def test_an_endless_density_is_seen(log_prob, expected):
    # And where it goes.
    torch.manual_seed(0)
    found = endless_coordinates(FunctionTarget(log_prob, 3), torch.zeros(3), torch.eye(3))
    assert set(expected) <= set(found) if len(expected) == 3 else found == expected


def test_a_flat_direction_between_axes():
    # Particles run along it, so it is a principal direction of their scale.
    covariance = torch.tensor([[100.0, -99.0], [-99.0, 100.0]])
    target = FunctionTarget(lambda z: -0.5 * z.sum(-1).square(), 2)
    assert endless_coordinates(target, torch.zeros(2), torch.linalg.cholesky(covariance)) != []


def test_units_do_not_matter():
    # A scale of 1e-6 and one of 1e6, neither of them endless.
    scale = torch.tensor([1e-6, 1e6])
    target = FunctionTarget(lambda z: -0.5 * (z / scale).square().sum(-1) - math.log(2 * math.pi), 2)
    assert endless_coordinates(target, torch.zeros(2), scale.diag()) == []


def test_a_saturated_transform_is_not_accused():
    # Stick-breaking clamps what is smaller than the smallest number, so far out the density is constant.
    def model():
        pyro.sample("shares", dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0])))
        pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    target = ModelTarget(model)
    assert endless_coordinates(target, torch.zeros(3), torch.eye(3)) == [2]
