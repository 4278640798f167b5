"""Ascents: every point comes to the top of its own basin, whatever the shape."""

import math

import pytest
import torch

from pyro_osds.explore.search.ascent import ascend
from pyro_osds.target import log_prob_and_score


def climbed(log_prob, z, dim=None, **options):
    dim = z.shape[1]
    return ascend(lambda x: log_prob_and_score(log_prob, x), z, torch.zeros(dim), torch.eye(dim), **options)


def test_a_gaussian_of_condition_1e4(float64):
    precision = torch.logspace(0, 4, 20)
    tops = climbed(lambda z: -0.5 * z.square() @ precision, 3 * torch.randn(64, 20), num_iterations=400)
    assert tops.arrived.all()
    # Within a third of a standard deviation of the top, whatever was learnt of the flattest axis.
    assert tops.log_prob.min() > -0.05


def test_a_point_in_a_narrow_basin_does_not_leap_out_of_it(float64):
    # A spike a hundredth as wide on the shoulder of a normal: the gain of a long step would be larger.
    place, width = torch.tensor([2.0, 0.0, 0.0]), 0.01

    def log_prob(z):
        narrow = -0.5 * ((z - place) / width).square().sum(-1)
        return torch.logaddexp(-0.5 * z.square().sum(-1), narrow + 1.0)

    z = place + width * torch.randn(200, 3)
    assert ((climbed(log_prob, z).z - place).norm(dim=-1) < 0.1 * width).double().mean() > 0.98


def test_each_of_two_modes_keeps_its_half_in_forty_dimensions(float64):
    # Points on either side of the plane in the middle between two equal modes belong to the mode on that side.
    far = torch.zeros(40)
    far[0] = 8.0
    z = torch.cat([torch.randn(100, 40), far + torch.randn(100, 40)])
    two = lambda x: torch.logaddexp(-0.5 * x.square().sum(-1), -0.5 * (x - far).square().sum(-1))  # noqa: E731
    tops = climbed(two, z)
    assert tops.arrived.all()
    assert torch.equal(tops.z[:, 0] > 4.0, z[:, 0] > 4.0)


@pytest.mark.parametrize("kind", ["kink", "valley", "outside", "endless", "constant"])
def test_what_has_no_smooth_top_ends(kind, float64):
    log_prob = {
        "kink": lambda z: -z.abs().sum(-1),
        "valley": lambda z: -((1 - z[:, 0]).square()) - 100 * (z[:, 1] - z[:, 0].square()).square(),
        "outside": lambda z: torch.where(z[:, 0] > 0, -z.square().sum(-1), -torch.inf),
        "endless": lambda z: z[:, 0],
        "constant": lambda z: 0.0 * z[:, 0],
    }[kind]
    tops = climbed(log_prob, 2 * torch.randn(100, 2))
    assert not tops.log_prob.isnan().any() and tops.z.isfinite().all()
    if kind == "valley":
        assert tops.log_prob[tops.arrived].median() > -0.01
    if kind == "outside":
        assert (tops.log_prob == -math.inf).any() and not tops.arrived[tops.log_prob == -math.inf].any()
    if kind == "endless":
        assert not tops.arrived.any()
