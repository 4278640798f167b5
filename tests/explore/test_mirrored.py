"""Mirror images: rows of signs found and none invented, the same evidence on one side, draws on both."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from models import regression, schools_non_centred
from scipy.integrate import quad
from scipy.stats import norm

from pyro_osds import OSDS
from pyro_osds.explore.annealing import explore
from pyro_osds.explore.paths import PriorPath
from pyro_osds.explore.symmetry.flips import Flip, find_flips
from pyro_osds.explore.symmetry.mirrored import MirroredTarget, mirrored
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.model import ModelTarget
from pyro_osds.target import FunctionTarget

SQUARES = torch.linspace(1.0, 4.0, 6, dtype=torch.float64)


def squares(y):
    """Each latent is seen through its square only."""
    with pyro.plate("i", len(y)):
        a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        pyro.sample("y", dist.Normal(a.square(), 0.3), obs=y)


def product():
    """Two sites that change signs together, one that may not, and one that may by itself."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    c = pyro.sample("c", dist.Normal(1.0, 1.0))
    d = pyro.sample("d", dist.StudentT(3.0, 0.0, 1.0))
    pyro.sample("y", dist.Normal(a * b + c, 0.1).to_event(1), obs=torch.tensor([1.0, 2.0, 3.0]))
    pyro.sample("x", dist.Normal(d.abs(), 0.1), obs=torch.tensor(1.5))


def network(x, y, hidden=3):
    """Hidden units trade places, and each may change the signs of all of its weights."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([hidden]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([hidden]).to_event(1))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([hidden, 1]).to_event(2))
    with pyro.plate("data", len(x)):
        mean = torch.tanh(x[:, None] * w[..., None, :] + b[..., None, :]) @ v
        pyro.sample("y", dist.Normal(mean[..., 0], 0.1), obs=y)


def flips_of(model, *args):
    target = ModelTarget(model, args)
    z = torch.randn(32, target.dim, dtype=target.dtype)

    return find_flips(target, z, 3.0 * z)


# ---- what is found ----


def test_every_latent_by_itself():
    (flip,) = flips_of(squares, SQUARES)
    assert flip.rows.tolist() == [[0], [1], [2], [3], [4], [5]]


def test_sites_that_change_signs_together():
    rows = sorted(row for flip in flips_of(product) for row in flip.rows.tolist())
    assert rows == [[0, 1, 2, 3], [5]]


def test_units_of_a_network():
    x = torch.linspace(-1.0, 1.0, 7)
    (flip,) = flips_of(network, x, x.square())
    assert sorted(flip.rows.tolist()) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_columns_of_a_triangle():
    # Loadings as they are often written: the elements of a triangle in one vector, which no axis runs along.
    i, j = torch.tril_indices(4, 2)

    def factors(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([len(i)]).to_event(1))
        loadings = torch.zeros(4, 2).index_put((i, j), w)
        covariance = loadings @ loadings.T + torch.eye(4)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(4), covariance), obs=y)

    rows = sorted(row for flip in flips_of(factors, torch.randn(5, 4)) for row in flip.rows.tolist())
    assert rows == [(j == 0).nonzero()[:, 0].tolist(), (j == 1).nonzero()[:, 0].tolist()]


@pytest.mark.parametrize("model", [regression, schools_non_centred])
def test_none_is_invented(model):
    assert flips_of(model) == []


def test_nearly_the_same_is_not_the_same():
    # Off by a hundredth of a nat: to fold it would be wrong by as much.
    target = FunctionTarget(lambda z: -0.5 * (z.square() - 4.0).square().sum(-1) + 0.005 * z[:, 0].sign(), dim=2)
    target.sites = ModelTarget(squares, (SQUARES[:2],)).sites
    target.constrain = lambda z: {"a": z}
    z = torch.randn(32, 2, dtype=target.dtype)
    assert [flip.rows.tolist() for flip in find_flips(target, z, 3.0 * z)] == [[[1]]]


def test_what_looks_like_a_mirror_from_within_is_none():
    # Two normals of equal weight, seen as far on one side as on the other: their means have other signs in each of two
    # modes, and the density is the same there; elsewhere it is not, and the two are exchangeable instead.
    def two_means():
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", 6):
            y = torch.tensor([-3.2, -2.9, -3.1, 2.8, 3.3, 3.1])
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 0.5)), obs=y)

    target = ModelTarget(two_means)
    z = torch.tensor([-3.05, 3.05], dtype=target.dtype) + 0.1 * torch.randn(32, 2, dtype=target.dtype)
    assert find_flips(target, z, z)
    assert find_flips(target, z, 3.0 * torch.randn(32, 2, dtype=target.dtype)) == []


# ---- the density on one side ----


def pair():
    """A density on the plane that is the same with both signs of both coordinates at once."""
    inside = FunctionTarget(lambda z: -0.5 * ((z[:, 0] - z[:, 1]) / 0.4).square() - (z[:, 0] ** 2 - 4.0) ** 2, dim=2)
    return inside, MirroredTarget(inside, Flip(torch.tensor([[0, 1]])), torch.tensor([0]), 0.1)


def test_way_and_way_back():
    _, target = pair()
    u = torch.randn(200, 2, dtype=torch.float64) * 3.0
    z = target.inside(u)
    assert (z[:, 0] > 0).all()
    # A point ten lengths beyond the mirror is told by the last digits of a number of 1e-5: no more comes back.
    near = u[:, 0] > -1.0
    torch.testing.assert_close(target.outside(z)[near], u[near])
    torch.testing.assert_close(target.outside(-z)[near], u[near])


def test_volume():
    _, target = pair()
    u = torch.randn(20, 2, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: target.inside(v[None])[0], v) for v in u])
    torch.testing.assert_close(target.volume_inside(u), jacobian.det().abs().log() + math.log(2.0))


def test_the_same_integral():
    inside, target = pair()
    grid = torch.linspace(-6.0, 6.0, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    whole, half = (density.log_prob(points).exp().sum().item() * 0.01**2 for density in (inside, target))
    assert half == pytest.approx(whole, rel=1e-9)


def test_draws_have_both_signs_and_always_the_same_ones():
    _, target = pair()
    u = torch.randn(4000, 2, dtype=torch.float64) + 2.0
    drawn = target.drawn(u)
    assert_within_standard_error((drawn[:, 0] > 0).double().mean(), 0.5, 0.5 / math.sqrt(4000))
    torch.testing.assert_close(drawn, torch.cat([target.drawn(u[:7]), target.drawn(u[7:])]))
    torch.testing.assert_close(drawn.abs(), target.inside(u).abs())


def test_signs_of_rows_are_independent():
    z = torch.randn(4000, 3, dtype=torch.float64).abs()
    signs = Flip(torch.tensor([[0], [1], [2]])).at_random(z).sign()
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert_within_standard_error((signs[:, first] * signs[:, second]).mean(), 0.0, 1.0 / math.sqrt(4000))


# ---- when it is taken ----


@pytest.mark.parametrize(("distance", "is_taken"), [(0.0, False), (1.0, False), (2.0, False), (4.0, True), (8.0, True)])
def test_a_mirror_that_runs_through_a_mode_is_none(distance, is_taken):
    z = torch.randn(2000, 1, dtype=torch.float64)
    z = (z + distance) * torch.randn(2000, 1).sign()
    target = FunctionTarget(
        lambda z: (-0.5 * (z - distance).square()).logaddexp(-0.5 * (z + distance).square())[:, 0], 1
    )
    assert (mirrored(target, Flip(torch.tensor([[0]])), z) is not None) == is_taken


def test_particles_in_one_copy_have_the_same_evidence():
    pyro.set_rng_seed(0)
    target = ModelTarget(squares, (SQUARES,))
    found = explore(PriorPath(target), 64, 8)
    seen, particles, modes = in_one_copy(target, found)
    assert isinstance(seen, MirroredTarget) and modes.count == 1
    torch.testing.assert_close(particles.log_prob, seen.log_prob(particles.z))


def exact_of_squares(y):
    def density(a):
        return math.exp(norm.logpdf(a, 0.0, 2.0) + norm.logpdf(y, a * a, 0.3))

    return math.log(quad(density, -6.0, 6.0, points=[-math.sqrt(y), math.sqrt(y)], limit=400, epsabs=1e-13)[0])


def test_evidence_of_many_signs(tmp_path):
    # 2^6 modes, all with the same mass: each copy that is lost would cost ln(64 / 63).
    pyro.set_rng_seed(0)
    osds = OSDS(squares, num_samples=1000, disable_progbar=True)
    osds.run(SQUARES)
    exact = sum(exact_of_squares(y) for y in SQUARES.tolist())
    assert osds.evidence.reliable
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    draws = osds.get_samples()["a"]
    for positive in (draws > 0).double().mean(0):
        assert_within_standard_error(positive, 0.5, 0.5 / math.sqrt(2000))
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", squares, SQUARES)
    assert isinstance(again.fit.target, MirroredTarget)
    torch.testing.assert_close(again.get_samples()["a"], draws)
    more = again.draw(2000)
    for positive in (more.samples["a"] > 0).double().mean(0):
        assert_within_standard_error(positive, 0.5, 0.5 / math.sqrt(2000))
