"""Modes: as many labels as there are separated modes, however the density is bent."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_draws, mixture_log_prob

from pyro_osds.explore.modes import find_modes

FOUR = [[-8.0, -8.0], [-8.0, 8.0], [8.0, -8.0], [8.0, 8.0]]


def counts(z, log_prob_fn):
    return find_modes(z, log_prob_fn(z), log_prob_fn).labels.bincount().tolist()


@pytest.mark.parametrize("sizes", [[300], [100, 200], [50, 100, 150, 200]])
def test_particles_of_one_mode_have_one_label(sizes):
    # Labels are counted by falling size, and each mode's particles have the same one.
    places = FOUR[: len(sizes)]
    z = mixture_draws(places, sizes)
    log_prob_fn = mixture_log_prob(places, [1 / len(sizes)] * len(sizes))
    modes = find_modes(z, log_prob_fn(z), log_prob_fn)
    expected = torch.arange(len(sizes)).flip(0).repeat_interleave(torch.tensor(sizes))
    assert torch.equal(modes.labels, expected) and modes.count == len(sizes)


def test_few_looks_within_one_mode():
    # The nearest neighbours come first, and pairs that are joined are not looked at again.
    log_prob_fn, num_points = mixture_log_prob(FOUR[:2], [0.5, 0.5]), []
    z = mixture_draws(FOUR[:2], [400, 600])
    modes = find_modes(z, log_prob_fn(z), lambda z: num_points.append(len(z)) or log_prob_fn(z))
    assert modes.labels.bincount().tolist() == [600, 400]
    assert sum(num_points) < 20 * len(z)


def test_modes_of_different_width():
    # A mode ten times as narrow as the other one.
    def log_prob_fn(z):
        wide, narrow = (z + 6).square().sum(-1), ((z - 6) / 0.1).square().sum(-1)
        return torch.logaddexp(-0.5 * wide, -0.5 * narrow + math.log(100))

    z = torch.cat([torch.randn(150, 2) - 6, 0.1 * torch.randn(100, 2) + 6])
    assert counts(z, log_prob_fn) == [150, 100]


def test_modes_in_one_dimension_do_not_fall_apart():
    # Two far modes in one dimension are two, for each of twenty sets of particles.
    places = [[-6.0], [6.0]]
    log_prob_fn = mixture_log_prob(places, [0.4, 0.6])
    assert [counts(mixture_draws(places, [100, 150]), log_prob_fn) for _ in range(20)] == [[150, 100]] * 20


def test_overlapping_modes_are_one():
    # Two standard deviations apart there is hardly a valley.
    places = [[-1.0, 0.0], [1.0, 0.0]]
    assert counts(mixture_draws(places, [150, 150]), mixture_log_prob(places, [0.5, 0.5])) == [300]


def banana(z):
    x, y = z.unbind(-1)

    return -0.5 * (x / 5).square() - 0.5 * ((y - x.square()) / 0.5).square()


def test_a_curved_density_is_one_mode():
    # Straight lines between the two arms of a banana cross a valley; neighbours along it do not, where they are many.
    x = 5 * torch.randn(4000)
    z = torch.stack([x, x.square() + 0.5 * torch.randn(4000)], -1)
    middle = banana(((z[x.argmin()] + z[x.argmax()]) / 2)[None])
    assert middle.item() < banana(z).min().item() - 100
    assert counts(z, banana) == [4000]


def shell(radii):
    def log_prob_fn(z):
        radius = z.norm(dim=-1, keepdim=True)
        return torch.logsumexp(-0.5 * ((radius - torch.tensor(radii)) / 0.2).square(), -1)

    z = torch.randn(400, 2)
    radius = torch.tensor(radii).repeat_interleave(400 // len(radii)) + 0.2 * torch.randn(400)

    return z / z.norm(dim=-1, keepdim=True) * radius[:, None], log_prob_fn


def test_a_shell_is_one_mode():
    # The hollow middle parts opposite particles, and yet the ring holds together.
    z, log_prob_fn = shell([4.0])
    assert counts(z, log_prob_fn) == [400]


def test_two_shells_are_two_modes():
    # One inside the other.
    z, log_prob_fn = shell([2.0, 8.0])
    assert counts(z, log_prob_fn) == [200, 200]


def test_crumbs_join_the_nearest_mode():
    # One particle in 300 is below half a percent: it takes the label of the mode next to it.
    places = [[-20.0, 0.0], [20.0, 0.0], [8.0, 0.0]]
    z = mixture_draws(places, [200, 100, 1])
    log_prob_fn = mixture_log_prob(places, [0.5, 0.3, 0.2])
    labels = find_modes(z, log_prob_fn(z), log_prob_fn).labels
    assert labels.bincount().tolist() == [200, 101] and labels[-1] == 1


def test_a_density_that_is_not_a_number_in_between_parts():
    # nan on the way counts as a valley, not as a refinement.
    def log_prob_fn(z):
        near = z[:, 0].abs() < 1
        return torch.where(near, torch.nan, -0.5 * (z[:, 0].abs() - 3).square() - 0.5 * z[:, 1].square())

    z = mixture_draws([[-3.0, 0.0], [3.0, 0.0]], [100, 150])
    z = z[z[:, 0].abs() > 1]
    assert counts(z, log_prob_fn) == [(z[:, 0] > 0).sum().item(), (z[:, 0] < 0).sum().item()]


def test_more_modes_than_can_be_told():
    # A particle in each well of a lattice: nobody has neighbours, so each gets a label of its own.
    def log_prob_fn(z):
        return 10 * torch.cos(2 * math.pi * z).sum(-1)

    z = torch.cartesian_prod(torch.arange(17.0), torch.arange(17.0))
    modes = find_modes(z, log_prob_fn(z), log_prob_fn)
    assert torch.equal(modes.labels, torch.arange(289)) and modes.count == 289 and modes.parted > 0.9


def test_parted_is_the_share_of_pairs_with_a_valley_between():
    # None in a Gaussian; 2 p (1 - p) of two modes, on 256 random pairs; some in a single mode that is curved.
    places, sizes = [[-6.0, 0.0], [6.0, 0.0]], [100, 300]
    log_prob_fn = mixture_log_prob(places, [0.25, 0.75])
    z = mixture_draws(places, sizes)
    parted = find_modes(z, log_prob_fn(z), log_prob_fn).parted
    assert_within_standard_error(parted, 0.375, math.sqrt(0.375 * 0.625 / 256))
    assert find_modes(z[:100], log_prob_fn(z[:100]), log_prob_fn).parted == 0.0
    z, log_prob_fn = shell([4.0])
    assert find_modes(z, log_prob_fn(z), log_prob_fn).parted > 0.3


# ---- many dimensions ----


@pytest.mark.parametrize(("dim", "distance"), [(10, 10.0), (40, 12.0), (20, 10.0)])
def test_noise_hides_no_mode(dim, distance):
    # The middle between two particles of different modes lies as high as they do, and yet there are two modes. A valley
    # of six nats below the smaller one, as at a distance of eight in twenty dimensions, is not deep enough.
    place = distance / math.sqrt(dim)
    z = torch.randn(512, dim)
    z[:50] += place
    log_prob_fn = mixture_log_prob([[0.0] * dim, [place] * dim], [462 / 512, 50 / 512])
    middle = log_prob_fn((z[:50] + z[50:100]) / 2)
    assert (middle > log_prob_fn(z[:50]) - 4.0 - dim / 2).double().mean() > 0.5
    modes = find_modes(z, log_prob_fn(z), log_prob_fn)
    assert modes.labels.bincount().tolist() == [462, 50] and (modes.labels[:50] == 1).all()
    assert 0.1 < modes.parted < 0.3


@pytest.mark.parametrize("dim", [5, 10, 40, 100])
def test_one_mode_in_many_dimensions_is_one(dim):
    # A Gaussian, a correlated one, one with heavy tails, and a skew one; for each of five sets of particles.
    scale = torch.linspace(-3.0, 3.0, dim).exp()
    for _ in range(5):
        z = torch.randn(512, dim)
        assert counts(z, lambda z: -0.5 * z.square().sum(-1)) == [512]
        assert counts(z * scale, lambda z: -0.5 * (z / scale).square().sum(-1)) == [512]
        wide = z * (5.0 / torch.distributions.Gamma(2.5, 0.5).sample((512, 1))).sqrt()
        assert counts(wide, lambda z: -0.5 * (5 + dim) * (z.square().sum(-1) / 5).log1p()) == [512]
        assert counts(torch.rand(512, dim).log().neg().log(), lambda z: (z - z.exp()).sum(-1)) == [512]


def test_a_funnel_is_one_mode():
    # Lines from its neck to its mouth leave it, and neighbours do not.
    def log_prob_fn(z):
        return -0.5 * (z[:, 0] / 1.5).square() - (0.5 * (z[:, 1:] / z[:, :1].exp()).square() + z[:, :1]).sum(-1)

    neck = 1.5 * torch.randn(2000, 1)
    z = torch.cat([neck, neck.exp() * torch.randn(2000, 9)], 1)
    assert find_modes(z, log_prob_fn(z), log_prob_fn).labels.bincount().max() > 1900
