"""Symmetries that the user declares: the same integral, all copies in the draws, and none that the density has not."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error, reliable_run
from models import regression

from pyro_osds import OSDS
from pyro_osds.explore.coordinates import coordinates_of, in_coordinates
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.symmetry.declared import check_declared, difference, first_points
from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.one_copy import in_one_copy
from pyro_osds.explore.symmetry.ordering import OrderedTarget
from pyro_osds.explore.symmetry.resolved import num_copies, resolved
from pyro_osds.model import ModelTarget
from pyro_osds.symmetries import check_symmetries, permutations, rotations, sign_flips
from pyro_osds.target import FunctionTarget

CENTRES = torch.tensor([-6.0, -2.0, 3.0, 7.0], dtype=torch.float64)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))


def labels(z):
    """Four narrow normals of a vector in all 24 orders, 0.3 wide each."""
    return torch.logsumexp(-0.5 * ((z[:, None] - CENTRES.to(z)[ORDERS]) / 0.3).square().sum(-1), 1)


LOG_LABELS = math.log(24.0) + 4.0 * math.log(0.3 * math.sqrt(2.0 * math.pi))


def normal(dim):
    return FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=dim)


def at(target, z):
    """Particles at these points."""
    log_prob = target.log_prob(z)
    return Exploration(z, log_prob, torch.zeros(2, dtype=torch.float64), 1, len(z), 1.0, 0, start=3.0 * z, passed=z[:1])


# ---- what is written ----


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: sign_flips(), TypeError, "names of sites, such as sign_flips"),
        (lambda: sign_flips(3), TypeError, "got 3"),
        (lambda: permutations("a", "a"), ValueError, "the site 'a' twice"),
        (lambda: permutations(("a", "b")), ValueError, r"got one block, \('a', 'b'\)"),
        (lambda: permutations("a", num_blocks=1), ValueError, "at least two blocks"),
        (lambda: permutations("a", num_blocks=2.5), ValueError, "num_blocks must be an integer"),
        (lambda: permutations(("a",), ("b",), num_blocks=2), ValueError, "names its blocks"),
        (lambda: sign_flips("a", "b", elements=[0]), ValueError, "a single site"),
        (lambda: sign_flips("a", elements=[0, 0]), ValueError, "different integers"),
        (lambda: rotations("a", dim=4), ValueError, "dim=2 or dim=3"),
        (lambda: rotations("a", dim=2, reflections="no"), ValueError, "reflections must be True or False"),
        (lambda: rotations(("a",), ("b",), dim=2), TypeError, "rotations takes names"),
        (lambda: check_symmetries("w"), TypeError, "got 'w'"),
        (lambda: check_symmetries([sign_flips]), TypeError, r"Call it with the names of sites: sign_flips\('w'\)"),
        (lambda: OSDS(regression, symmetries=7), TypeError, "symmetries takes what the functions"),
    ],
)
def test_wrong_words(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


def test_a_symmetry_shows_how_it_was_written():
    for written in (
        "sign_flips('w', num_blocks=3, axis=1)",
        "permutations(('a', 'b'), ('c', 'd'))",
        "permutations('z', elements=[3, 4])",
        "rotations('x', dim=3, num_particles=13)",
        "rotations('x', dim=2, reflections=False)",
    ):
        assert repr(eval(written)) == written
    assert check_symmetries(None) == check_symmetries([]) == ()


# ---- which coordinates are meant ----


def several():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    m = pyro.sample("m", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3)).expand([2]).to_event(1))
    pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(a * b + m.sum() + w[0] + rows.sum(), s), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("symmetry", "rows"),
    [
        (sign_flips("a", "b"), [[0, 1]]),
        (sign_flips(("a",), ("b",)), [[0], [1]]),
        (sign_flips("m", num_blocks=3, axis=1), [[5, 8], [6, 9], [7, 10]]),
        (sign_flips("m", elements=[0, 5]), [[5, 10]]),
        (permutations("m"), [[5, 6, 7], [8, 9, 10]]),
        (permutations("m", axis=-1), [[5, 8], [6, 9], [7, 10]]),
        (permutations(("a",), ("s",)), [[0], [2]]),
        (permutations("rows"), [[11, 12], [13, 14]]),
        (rotations("m", dim=2), [[5, 6], [7, 8], [9, 10]]),
        (rotations("m", num_particles=2, dim=3), [[5, 6, 7], [8, 9, 10]]),
    ],
)
def test_coordinates_of_sites(symmetry, rows):
    (declared,) = resolved([symmetry], ModelTarget(several))
    found = declared.action.rows
    assert (found[0] if isinstance(found, tuple) else found).tolist() == rows


def test_probabilities_trade_places_with_their_components():
    (declared,) = resolved([permutations("m", "w", axis=-1)], ModelTarget(several))
    assert declared.action.num_components == 3
    assert [index.tolist() for index in declared.action.simplexes] == [[[3, 4]]]
    assert num_copies(declared.action) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("symmetry", "words"),
    [
        (sign_flips("v"), "names the site 'v', and the latent sites are"),
        (sign_flips("k"), "it is discrete, and summed out"),
        (sign_flips("s"), "site 's' is not on the whole real line"),
        (sign_flips("w"), "no value has a coordinate of its own"),
        (permutations("a", "b"), r"name each as one: permutations\(\('a',\), \('b',\)\)"),
        (permutations("m", num_blocks=4), "which 4 equal blocks do not make up"),
        (permutations("m", axis=2), "without an axis 2"),
        (permutations("m", "w"), "as many blocks of each site"),
        (permutations(("a",), ("m",)), "blocks of one size"),
        (rotations("m", num_particles=4, dim=2), "reads 'm' .2, 3. as 4 particles in 2 dimensions"),
        (rotations("a", dim=2), "there are 1 values"),
        (sign_flips("m", elements=[6]), "elements go up to 6, and site 'm' has 6 values"),
    ],
)
def test_sites_that_do_not_fit(symmetry, words):
    with pytest.raises(ValueError, match=words):
        resolved([symmetry], ModelTarget(several))


# ---- what the density has not ----


def test_largest_difference_is_told():
    target = FunctionTarget(lambda z: -0.5 * (z - 0.5).square().sum(-1), dim=2)
    declared = resolved([sign_flips("z")], target)
    with pytest.raises(
        ValueError, match=r"not have the symmetry sign_flips\('z'\): among some points, at \d+ of 2048"
    ) as error:
        check_declared(target, declared, first_points(target, None), "some points")
    assert "up to" in str(error.value) and "Leave it out of symmetries" in str(error.value)


def test_what_is_broken_in_a_small_place_is_seen_there():
    # A bump of a ten-thousandth of the volume that points are spread over, on one side of the mirror.
    target = FunctionTarget(
        lambda z: torch.logaddexp(-0.5 * z.square().sum(-1), 2.0 - 0.5 * ((z - 3.0) / 0.01).square().sum(-1)), dim=2
    )
    (declared,) = resolved([sign_flips("z")], target)
    assert not difference(target, declared, torch.randn(256, 2).double()).count
    seen = difference(target, declared, 3.0 + 0.01 * torch.randn(64, 2).double())
    assert seen.count > 32 and seen.largest > 5.0


def test_large_log_densities_round():
    # Particles nearly at one place: 1e24 nats of repulsion, of which no digit behind the point is left.
    def repelled(z):
        inverse = (z[:, :2] - z[:, 2:]).square().sum(-1).pow(-3)
        return -inverse.square() + 2.0 * inverse - 0.5 * z.square().sum(-1)

    target = FunctionTarget(repelled, dim=4)
    z = torch.randn(256, 4).double()
    z[:, 2:] = z[:, :2] + 1e-2 * torch.randn(256, 2).double()
    z[:8, 2:] = z[:8, :2]
    check_declared(target, resolved([rotations("z", dim=2), permutations("z", num_blocks=2)], target), z, "points")


def test_a_hard_core_is_no_difference_and_half_a_one_is():
    def core(z, lower):
        near = (z[:, 0] - z[:, 1]).abs() < 1.0 if lower is None else z[:, 0] - z[:, 1] > lower
        return (-0.5 * z.square().sum(-1)).masked_fill(near, -torch.inf)

    for lower, count in ((None, 0), (1.0, 1)):
        target = FunctionTarget(lambda z, lower=lower: core(z, lower), dim=2)
        (declared,) = resolved([permutations("z")], target)
        seen = difference(target, declared, torch.randn(256, 2).double())
        assert min(seen.count, 1) == count
        assert (seen.largest == math.inf) == bool(count)


def test_particles_that_may_be_shifted_have_no_integral():
    def pair(z, tied):
        x = z.view(-1, 2, 2)
        centre = -0.5 * 2 * x.mean(-2).square().sum(-1) - math.log(2.0 * math.pi)
        return -0.5 * ((x[:, 0] - x[:, 1]).norm(dim=-1) - 2.0).square() + tied * centre

    target = FunctionTarget(lambda z: pair(z, 0.0), dim=4)
    with pytest.raises(ValueError, match=r"shifted together, so it has no integral. .* -0.5 \* 2 \* x.mean"):
        check_declared(target, resolved([rotations("z", dim=2)], target), torch.randn(64, 4).double(), "points")
    # The cure cures, and leaves the log evidence of the relative coordinate.
    target = FunctionTarget(lambda z: pair(z, 1.0), dim=4)
    check_declared(target, resolved([rotations("z", dim=2)], target), torch.randn(64, 4).double(), "points")
    grid = torch.linspace(-12.0, 12.0, 241, dtype=torch.float64)
    r, c = torch.cartesian_prod(grid, grid), torch.cartesian_prod(grid, grid)
    relative = -0.5 * (math.sqrt(2.0) * r.norm(dim=-1) - 2.0).square()
    y, centre = r[::7][:300], c[::11][:300]
    z = torch.cat([(centre + y) / math.sqrt(2.0), (centre - y) / math.sqrt(2.0)], -1)
    normal_centre = -0.5 * centre.square().sum(-1) - math.log(2.0 * math.pi)
    torch.testing.assert_close(target.log_prob(z), relative[::7][:300] + normal_centre)


def test_mirror_images_that_are_to_blame():
    # The sense of rotation from one particle to the other has one sign.
    def chiral(z):
        x = z.view(-1, 2, 2)
        area = x[:, 0, 0] * x[:, 1, 1] - x[:, 0, 1] * x[:, 1, 0]
        return -0.5 * (x.norm(dim=-1) - 2.0).square().sum(-1) - 0.5 * (area - 3.0).square()

    target, z = FunctionTarget(chiral, dim=4), torch.randn(256, 4).double()
    with pytest.raises(ValueError, match="declare it with reflections=False"):
        check_declared(target, resolved([rotations("z", dim=2)], target), z, "points")
    check_declared(target, resolved([rotations("z", dim=2, reflections=False)], target), z, "points")


def test_run_refuses_what_the_density_has_not():
    osds = OSDS.from_log_prob(lambda z: -0.5 * (z - 1.0).square().sum(-1), 2, symmetries=sign_flips("z"))
    with pytest.raises(ValueError, match="does not have the symmetry sign_flips"):
        osds.run()


def test_a_symmetry_that_only_draws_break_is_told(monkeypatch):
    # Nobody saw it before: then neither draws nor log evidence are reliable.
    monkeypatch.setattr("pyro_osds.explore.survey.check_declared", lambda *_: None)
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(
        lambda z: -0.5 * (z.abs() - 8.0).square().sum(-1) + 0.1 * (z[:, 0] > 8.0),
        1,
        symmetries=sign_flips("z"),
        num_samples=100,
        num_iterations=50,
        disable_progbar=True,
    )
    with pytest.warns(UserWarning, match="does not have the declared symmetry"):
        osds.run()
    assert not osds.evidence.reliable and not osds.evidence.draws_reliable
    assert any("among posterior draws" in reason and "0.1 nats" in reason for reason in osds.evidence.reasons)


# ---- one copy for all ----


def in_all_orders(number=1000):
    z = CENTRES[ORDERS[torch.randint(24, (number,))]] + 0.3 * torch.randn(number, 4).double()
    target = FunctionTarget(labels, dim=4)
    return target, at(target, z)


def test_labels_without_sites_are_put_in_order():
    target, found = in_all_orders()
    seen, one, modes = in_one_copy(target, found, resolved([permutations("z")], target))
    assert isinstance(seen, OrderedTarget) and modes.count == 1
    torch.testing.assert_close(one.log_prob, seen.log_prob(one.z))


def test_what_is_declared_and_found_counts_once():
    def squares(y):
        with pyro.plate("i", len(y)):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
            pyro.sample("y", dist.Normal(a.square(), 0.3), obs=y)

    y = torch.linspace(4.0, 9.0, 3, dtype=torch.float64)
    target = ModelTarget(squares, (y,))
    z = y.sqrt() * torch.randn(1000, 3).double().sign() + 0.03 * torch.randn(1000, 3).double()
    found = at(target, z)
    for declared in ([], [sign_flips("a")], [sign_flips("a", num_blocks=3)], [sign_flips("a", elements=[0])] * 2):
        seen, _, modes = in_one_copy(target, found, resolved(declared, target))
        volume = seen.log_volume(torch.full((1, 3), 9.0, dtype=torch.float64)).item()
        # Far from the mirror a point stands for all of its copies: eight, however many of them were declared.
        layers, layer = 0, seen
        while isinstance(layer, MirroredTarget):
            layers, layer = layers + len(layer.column), layer.target
        assert volume == pytest.approx(layers * math.log(2.0)), declared
        assert modes.count == 2 ** (3 - layers), declared


def test_two_groups_are_put_in_order_one_after_the_other():
    def two(z):
        return labels(z[:, :4]) + labels(z[:, 4:])

    target = FunctionTarget(two, dim=8)
    found = at(target, torch.cat([in_all_orders()[1].z, in_all_orders()[1].z], 1))
    declared = resolved([permutations("z", elements=range(4)), permutations("z", elements=range(4, 8))], target)
    seen, one, modes = in_one_copy(target, found, declared)
    assert modes.count == 1
    again = in_coordinates(target, coordinates_of(seen))
    torch.testing.assert_close(again.log_prob(one.z), one.log_prob)
    assert isinstance(again, OrderedTarget) and isinstance(again.target, OrderedTarget)
    # 24 orders of each, and an integral that is the product of both: the normalised density of one copy.
    sorted_once = torch.cat([CENTRES, CENTRES])[None]
    u = seen.to_ordered(sorted_once)
    assert seen.log_volume(u).item() - u[0, [1, 2, 3, 5, 6, 7]].sum().item() == pytest.approx(2.0 * math.log(24.0))


# ---- the whole run, against integrals that were computed otherwise ----


def test_evidence_and_draws_of_labels(tmp_path):
    osds = reliable_run(labels, 4, symmetries=permutations("z"))
    assert_within_standard_error(osds.log_evidence, LOG_LABELS, osds.log_evidence_se)
    order = osds.get_samples()["z"].argsort(-1)
    for place in range(4):
        share = (order[:, 0] == place).double().mean()
        assert_within_standard_error(share, 0.25, math.sqrt(0.25 * 0.75 / 2000))
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", labels)
    assert again.settings.symmetries == osds.settings.symmetries
    torch.testing.assert_close(again.get_samples()["z"], osds.get_samples()["z"])


def test_evidence_of_a_product():
    def product(z):
        return -0.5 * z.square().sum(-1) - 0.5 * ((z.prod(-1) - 2.0) / 0.2).square()

    grid = np.linspace(-8.0, 8.0, 3201)
    a, b = np.meshgrid(grid, grid)
    exact = math.log(np.exp(-0.5 * (a * a + b * b) - 0.5 * ((a * b - 2.0) / 0.2) ** 2).sum() * 0.005**2)
    osds = reliable_run(product, 2, symmetries=[sign_flips("z"), permutations("z")])
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    positive = (osds.get_samples()["z"][:, 0] > 0).double().mean()
    assert_within_standard_error(positive, 0.5, 0.5 / math.sqrt(2000))
