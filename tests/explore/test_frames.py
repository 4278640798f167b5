"""Particles seen from frames that turn with them: bijections with their volume, and evidence against integrals."""

import math

import pytest
import torch
from helpers import assert_within_standard_error, reliable_run
from scipy.integrate import quad

from pyro_osds import OSDS
from pyro_osds.explore.coordinates import coordinates_of, in_coordinates
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.symmetry.frames import FramedTarget, Rotation, framed
from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.explore.symmetry.resolved import resolved
from pyro_osds.symmetries import rotations
from pyro_osds.target import FunctionTarget


def normal(dim):
    return FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=dim)


def at(target, z):
    """Particles at these points."""
    log_prob = target.log_prob(z)
    return Exploration(z, log_prob, torch.zeros(2, dtype=torch.float64), 1, len(z), 1.0, 0, start=3.0 * z, passed=z[:1])


# ---- frames that turn with particles ----

SYSTEMS = [(1, 2), (2, 2), (4, 2), (1, 3), (2, 3), (4, 3)]


def particles(n, d, place=0):
    """A density with one coordinate besides, its particles in some order, and a frame of them."""
    rows = torch.randperm(n * d + 1, generator=torch.Generator().manual_seed(n))[: n * d].view(n, d)
    rotation = Rotation(rows, True)
    return FramedTarget(normal(n * d + 1), rotation, list(rotation.frames())[place])


@pytest.mark.parametrize(("n", "d"), SYSTEMS)
@pytest.mark.parametrize("place", [0, -1])
def test_frame_is_a_bijection_with_its_volume(n, d, place):
    target = particles(n, d, place)
    u = torch.randn(20, target.dim, dtype=torch.float64)
    torch.testing.assert_close(target.outside(target.inside(u)), u, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(target.inside(target.outside(u)), u, atol=1e-9, rtol=1e-9)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: target.inside(v[None])[0], v) for v in u])
    torch.testing.assert_close(target.volume_inside(u), jacobian.det().abs().log())


@pytest.mark.parametrize(("n", "d"), SYSTEMS)
def test_what_is_turned_looks_the_same_from_the_frame(n, d):
    target = particles(n, d)
    z = torch.randn(20, target.dim, dtype=torch.float64)
    still = [i for i in range(target.dim) if i not in target.angles]
    turned = target.outside(Rotation(target.rotation.rows, False).at_random(z))
    torch.testing.assert_close(turned[:, still], target.outside(z)[:, still])


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("reflections", [True, False])
def test_rotations_at_random_are_spread_evenly(d, reflections):
    rotation, number = Rotation(torch.arange(d * d).view(d, d), reflections), 20_000
    z = torch.cat([torch.eye(d).flatten().expand(number, -1), torch.randn(number, 1)], 1).double()
    matrix = rotation.at_random(z)[:, :-1].view(number, d, d)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(d).double().expand(number, -1, -1), atol=1e-12, rtol=0.0)
    # The moments of the invariant measure: E q_ij = 0, E q_ij^2 = 1 / d, and both signs of the determinant or one.
    for entry in matrix.flatten(1).T:
        assert_within_standard_error(entry.mean(), 0.0, entry.std() / math.sqrt(number))
        assert_within_standard_error(entry.square().mean(), 1.0 / d, entry.square().std() / math.sqrt(number))
    determinant = matrix.det()
    if reflections:
        assert_within_standard_error(determinant.mean(), 0.0, 1.0 / math.sqrt(number))
    else:
        torch.testing.assert_close(determinant, torch.ones_like(determinant))


def test_frames_keep_the_integral_of_a_ring():
    ring = FunctionTarget(lambda z: -0.5 * ((z.norm(dim=-1) - 3.0) / 0.5).square(), dim=2)
    target = FramedTarget(ring, Rotation(torch.tensor([[0, 1]]), True), (0,))
    rho = torch.linspace(-3.0, 2.5, 2001, dtype=torch.float64)
    v = torch.linspace(-9.0, 9.0, 401, dtype=torch.float64)
    u = torch.cartesian_prod(rho, v)
    framed_integral = target.log_prob(u).exp().sum().item() * (rho[1] - rho[0]).item() * (v[1] - v[0]).item()
    exact = 2.0 * math.pi * quad(lambda r: r * math.exp(-0.5 * ((r - 3.0) / 0.5) ** 2), 0.0, 12.0)[0]
    assert framed_integral == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("distance", "is_taken"), [(0.0, False), (1.0, False), (5.0, True), (20.0, True)])
def test_a_frame_is_taken_where_there_is_a_ring(distance, is_taken):
    torch.manual_seed(0)
    radius, angle = (distance + 0.5 * torch.randn(2000).double()).abs(), 2.0 * math.pi * torch.rand(2000).double()
    z = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    z = torch.randn(2000, 2).double() if distance == 0.0 else z
    assert (framed(normal(2), Rotation(torch.tensor([[0, 1]]), True), z) is not None) == is_taken


# ---- one copy for all ----


def test_a_frame_and_its_mirror_image():
    # Three particles at the corners of a triangle with sides 2, 3 and 4: two mirror images, six orders, all angles.
    sides = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)

    def triangle(z):
        x = z.view(-1, 3, 2)
        first, second = torch.triu_indices(3, 3, 1)
        distance = (x[:, first] - x[:, second]).norm(dim=-1)
        return -0.5 * ((distance - sides.to(z)) / 0.1).square().sum(-1) - 0.5 * 3 * x.mean(-2).square().sum(-1)

    target = FunctionTarget(triangle, dim=6)
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-0.25, 2.9047]], dtype=torch.float64)
    z = (x + 0.05 * torch.randn(1000, 3, 2).double()).sub(x.mean(0)).flatten(1)
    seen, one, modes = in_one_copy(target, at(target, z), resolved([rotations("z", dim=2)], target))
    assert modes.count == 1
    assert isinstance(seen, MirroredTarget) and isinstance(seen.target, FramedTarget)
    draws = seen.to_target(one.z)
    torch.testing.assert_close(target.log_prob(draws), target.log_prob(seen.in_order(one.z)))
    turned = torch.atan2(draws[:, 1] - draws[:, 3], draws[:, 0] - draws[:, 2])
    for moment in (turned.cos(), turned.sin()):
        assert_within_standard_error(moment.mean(), 0.0, math.sqrt(0.5 / 1000))
    again = in_coordinates(target, coordinates_of(seen))
    torch.testing.assert_close(again.log_prob(one.z), one.log_prob)


# ---- the whole run ----


def test_evidence_and_draws_of_a_ring(tmp_path):
    def ring(z):
        return -0.5 * ((z.norm(dim=-1) - 4.0) / 0.2).square()

    osds = reliable_run(ring, 2, symmetries=rotations("z", dim=2))
    exact = 2.0 * math.pi * quad(lambda r: r * math.exp(-0.5 * ((r - 4.0) / 0.2) ** 2), 2.0, 6.0)[0]
    assert_within_standard_error(osds.log_evidence, math.log(exact), osds.log_evidence_se)
    z = osds.get_samples()["z"]
    angle = torch.atan2(z[:, 1], z[:, 0])
    for times in (1, 2, 3):
        assert_within_standard_error((times * angle).cos().mean(), 0.0, math.sqrt(0.5 / 2000))
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", ring)
    assert isinstance(again.fit.target, FramedTarget)
    torch.testing.assert_close(again.draw(5).samples["z"].norm(dim=-1), torch.full((5,), 4.0).to(z), atol=1.5, rtol=0.0)


def test_evidence_of_three_particles_in_a_plane():
    # By quadrature in internal coordinates: a frame with the first of two vectors without a mean along an axis.
    def pairs(first, second):
        x = [first / math.sqrt(2.0) + second / math.sqrt(6.0), -first / math.sqrt(2.0) + second / math.sqrt(6.0)]
        x.append(-2.0 * second / math.sqrt(6.0))
        distances = [(x[i] - x[j]).square().sum(-1).add(1e-12).sqrt() for i, j in ((0, 1), (0, 2), (1, 2))]
        return sum(-0.5 * (distance - 2.0).square() / 0.09 for distance in distances)

    # Four times as many nodes along each axis change the twelfth digit.
    r = torch.linspace(0.04, 4.0, 100, dtype=torch.float64)
    y = torch.linspace(-4.0, 4.0, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(r, y, y)
    first = torch.stack([grid[:, 0], torch.zeros_like(grid[:, 0])], -1)
    log_terms = pairs(first, grid[:, 1:]) + grid[:, 0].log()
    cell = (r[1] - r[0]) * (y[1] - y[0]) ** 2
    exact = (log_terms.logsumexp(0) + math.log(2.0 * math.pi) + cell.log()).item()
    osds = reliable_run(lambda z: pairs(z[:, :2], z[:, 2:]), 4, symmetries=rotations("z", dim=2))
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
