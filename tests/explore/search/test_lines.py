"""Lines from what is known: they meet what differs along an axis, a diagonal or a line, and rise nowhere else."""

import math

import pytest
import torch

from pyro_osds.explore.search.lines import bumps, directions
from pyro_osds.explore.search.parts import Part
from pyro_osds.target import FunctionTarget


def normal_part(loc, scale_tril=None):
    """A part that is a whole normal."""
    loc = torch.as_tensor(loc).double()
    scale = torch.eye(len(loc), dtype=torch.float64) if scale_tril is None else scale_tril
    return Part(loc, scale, 0.0, 0.01, loc, scale, 0.0, 3.0)


def two(dim, place, width, weight=0.2):
    """A standard normal and a narrow one, with the log density of the second alone."""
    place = torch.as_tensor(place).double()

    def second(z):
        return math.log(weight) - 0.5 * ((z - place) / width).square().sum(-1) - dim * math.log(width)

    def log_prob(z):
        first = math.log1p(-weight) - 0.5 * z.square().sum(-1)
        return torch.logaddexp(first, second(z)) - 0.5 * dim * math.log(2 * math.pi)

    return FunctionTarget(log_prob, dim), lambda z: second(z) > math.log1p(-weight) - 0.5 * z.square().sum(-1)


PLACES = {
    "diagonal, 40-D": (40, [8.0 / math.sqrt(40)] * 40, 1 / 3),
    "diagonal, the other way, 20-D": (20, [-4.0 / math.sqrt(20)] * 20, 1 / 3),
    "one axis, 30-D": (30, [0.0] * 7 + [-12.0] + [0.0] * 22, 1 / 3),
    "far along one axis, 10-D": (10, [0.0] * 9 + [180.0], 1 / 3),
    "second half of the coordinates, 16-D": (16, [0.0] * 8 + [3.0] * 8, 1 / 3),
    "alternating signs, 12-D": (12, [2.0, -2.0] * 6, 1 / 3),
    "a twentieth as wide, 10-D": (10, [6.0] + [0.0] * 9, 1 / 20),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_narrow_basin_on_a_line_is_met(name):
    # At a bump the narrow component, known in closed form, is the denser one: an ascent from there ends in it.
    dim, place, width = PLACES[name]
    target, is_in_second = two(dim, place, width)
    met = bumps(target, [normal_part(torch.zeros(dim))], [torch.zeros(dim)])
    assert len(met) and is_in_second(met).any()


def test_a_line_leads_through_given_points():
    # The known part lies at -v and the other at +v, in no direction of coordinates: the origin tells of it.
    torch.manual_seed(0)
    place = torch.randn(15, dtype=torch.float64)
    place *= 5.0 / place.norm()

    def log_prob(z):
        narrow = -0.5 * ((z - place) / 0.3).square().sum(-1) - 15 * math.log(0.3)
        return torch.logaddexp(narrow, -0.5 * (z + place).square().sum(-1))

    met = bumps(FunctionTarget(log_prob, 15), [normal_part(-place)], [torch.zeros(15)])
    assert ((met - place).norm(dim=1) < 1.5).any()
    assert not len(bumps(FunctionTarget(log_prob, 15), [normal_part(-place)], []))


@pytest.mark.parametrize("kind", ["normal", "correlated", "student", "laplace", "edge"])
def test_a_single_mode_has_no_bump(kind):
    # Each of them falls along all lines from its top.
    dim = 6
    torch.manual_seed(1)
    scale = torch.linalg.cholesky(torch.eye(dim, dtype=torch.float64) + 25.0)
    log_prob = {
        "normal": lambda z: -0.5 * z.square().sum(-1),
        "correlated": lambda z: -0.5 * torch.linalg.solve_triangular(scale, z.mT, upper=False).square().sum(0),
        "student": lambda z: -0.5 * (3 + dim) * (1 + z.square().sum(-1) / 3).log(),
        "laplace": lambda z: -z.abs().sum(-1),
        "edge": lambda z: torch.where((z > -1).all(-1), -z.square().sum(-1), -torch.inf),
    }[kind]
    part = normal_part(torch.zeros(dim), scale if kind == "correlated" else None)
    assert not len(bumps(FunctionTarget(log_prob, dim), [part], [torch.ones(dim)]))


def test_directions_are_one_standard_deviation_long_and_all_different():
    # By the covariance: d' S^-1 d = 1. Axes, a diagonal, axes of the part, and the line to a point.
    torch.manual_seed(2)
    root = torch.randn(5, 5, dtype=torch.float64)
    covariance = root @ root.mT + torch.eye(5)
    part = normal_part(torch.ones(5), torch.linalg.cholesky(covariance))
    lines = directions(part, [torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])])
    assert torch.allclose((lines @ covariance.inverse() * lines).sum(1), torch.ones(len(lines), dtype=torch.float64))
    # Two diagonals, a line to the point, five axes, two halves, alternating signs, five axes of the part.
    assert len(lines) == 2 + 1 + 5 + 2 + 1 + 5
    unit = lines / lines.norm(dim=1, keepdim=True)
    assert ((unit @ unit.mT).abs().tril(-1) < 0.999).all()
    along = torch.linalg.eigh(covariance)[1]
    for wanted in (*torch.eye(5, dtype=torch.float64), *along.mT, torch.ones(5).double() / math.sqrt(5.0)):
        assert ((unit @ wanted).abs() > 0.999).any()


def test_a_round_part_has_no_lines_twice():
    # Its own axes are those of coordinates, or any: no direction is looked along twice.
    lines = directions(normal_part(torch.zeros(4)), [torch.zeros(4), torch.ones(4)])
    assert len(lines) == 1 + 4 + 2 + 1


def test_nothing_known_has_no_lines():
    assert bumps(FunctionTarget(lambda z: -z.square().sum(-1), 3), [], []).shape == (0, 3)


def test_an_expensive_density_is_asked_at_few_points():
    # Point by point at most a second of a millisecond each, and at least the diagonals are looked at.
    asked = []

    def log_prob(z):
        asked.append(len(z))
        return -0.5 * z.square().sum(-1)

    target = FunctionTarget(log_prob, 50)
    target.vectorized = False
    asked.clear()
    bumps(target, [normal_part(torch.zeros(50))], [torch.zeros(50)])
    assert 100 < sum(asked) <= 800
