"""Search: what annealing loses is found by other means, added, and said; what is complete is left alone."""

import math

import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.anew import explore_anew, resurvey
from pyro_osds.explore.particles import resample_by_stratum
from pyro_osds.explore.search.cover import with_parts
from pyro_osds.explore.search.coverage import upper_bound
from pyro_osds.explore.search.probes import halo
from pyro_osds.explore.search.second_search import Search
from pyro_osds.explore.survey import survey
from pyro_osds.flow.base import standard_base
from pyro_osds.target import FunctionTarget


class Blobs(FunctionTarget):
    """A normalised mixture of round normals."""

    def __init__(self, weights, locs, widths):
        locs, dim = torch.as_tensor(locs).double(), len(locs[0])

        def log_prob(z):
            parts = [
                math.log(weight)
                - 0.5 * ((z - loc.to(z)) / width).square().sum(-1)
                - dim * math.log(width * math.sqrt(2 * math.pi))
                for weight, loc, width in zip(weights, locs, widths, strict=True)
            ]
            return torch.stack(parts).logsumexp(0)

        super().__init__(log_prob, dim)


def away(dim, distance):
    """On the diagonal."""
    return [distance / math.sqrt(dim)] * dim


CASES = {
    "narrower, 20-D": Blobs([0.5, 0.5], [[0.0] * 20, [2.0] * 20], [1.0, 0.6]),
    "narrower on one axis, 12-D": Blobs([0.7, 0.3], [[0.0] * 12, [6.0] + [0.0] * 11], [1.0, 0.4]),
    "a third as wide, 20-D": Blobs([0.8, 0.2], [[0.0] * 20, away(20, 8.0)], [1.0, 1 / 3]),
    "spike on a shoulder, 8-D": Blobs([0.7, 0.3], [[0.0] * 8, away(8, 2.0)], [1.0, 0.15]),
    "halo, 1-D": Blobs([0.5, 0.5], [[0.0], [0.0]], [1.0, 1e4]),
    "halo off the centre, 2-D": Blobs([0.8, 0.2], [[0.0] * 2, [50.0, -20.0]], [1.0, 1e3]),
    "halo, 6-D": Blobs([0.9, 0.1], [[0.0] * 6, [0.0] * 6], [1.0, 30.0]),
    "a tenth far off, 30-D": Blobs([0.9, 0.1], [[0.0] * 30, away(30, 10.0)], [1.0, 1.0]),
    "three of three widths, 5-D": Blobs([0.5, 0.3, 0.2], [[0.0] * 5, away(5, 5.0), away(5, -4.0)], [1.0, 0.2, 0.5]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_survey_has_all_of_it(name):
    # Log evidence 0; every component with a share of the particles and of the base's draws.
    torch.manual_seed(0)
    found = survey(CASES[name])
    assert_within_standard_error(found.exploration.log_evidence, 0.0, max(found.exploration.std_error, 0.01))
    base = found.base
    z = base.sample(8192)
    log_weight = CASES[name].log_prob(z) - base.log_prob(z)
    mean = log_weight.logsumexp(0) - math.log(len(z))
    assert_within_standard_error(mean, 0.0, (log_weight - mean).exp().std().item() / math.sqrt(len(z)) + 0.005)


@pytest.mark.parametrize("dim", [1, 4, 20])
def test_a_single_mode_is_left_alone(dim):
    # Nothing is added, and the random numbers of the caller are those without a search.
    torch.manual_seed(1)
    found = survey(FunctionTarget(lambda z: -0.5 * (z - 3).square().sum(-1), dim=dim))
    assert found.search is not None and not found.search.added
    assert (found.search.num_basins, found.base.num_components) == (1, 1)
    assert found.search.sentence().startswith(f"{found.search.num_starts} ascents found 1 basin; 100.0% of ")


@pytest.mark.parametrize("kind", ["student", "funnel", "banana", "edge", "skewed"])
def test_no_false_find(kind):
    # Heavy tails, necks, bends, edges: the particles have all of it.
    funnel = lambda z: -z[:, 0].square() / 18 - 0.5 * (z[:, 1:].square() * (-z[:, :1]).exp() + z[:, :1]).sum(-1)  # noqa: E731
    log_prob, dim = {
        "student": (lambda z: -2.0 * (1 + z.square() / 3).log().sum(-1), 3),
        "funnel": (funnel, 5),
        "banana": (lambda z: -0.125 * z[:, 0].square() - 2 * (z[:, 1] - z[:, 0].square()).square(), 2),
        "edge": (lambda z: torch.where((z > 0).all(-1), -z.sum(-1), -torch.inf), 3),
        "skewed": (lambda z: (0.3 * z - z.exp()).sum(-1), 4),
    }[kind]
    torch.manual_seed(2)
    found = survey(FunctionTarget(log_prob, dim))
    assert found.search is None or not found.search.added


@pytest.mark.parametrize(("dim", "weight", "width"), [(1, 0.05, 30), (2, 0.05, 30), (4, 0.03, 30), (7, 0.03, 15)])
def test_a_small_halo_is_drawn_by_the_base(dim, weight, width):
    # Log evidence 0 from the base's own draws, and the share of the halo by the chi distribution.
    torch.manual_seed(0)
    target = Blobs([1 - weight, weight], [[0.0] * dim, [0.0] * dim], [1.0, width])
    base = survey(target).base
    z = base.sample(32768)
    weights = (target.log_prob(z) - base.log_prob(z)).exp()
    assert_within_standard_error(weights.mean().item(), 1.0, (weights.std() / math.sqrt(len(z))).item())
    far = (z.norm(dim=-1) > 8.0) * weights
    exact = weight * (1 - torch.special.gammainc(torch.tensor(dim / 2.0), torch.tensor(32.0 / width**2)).item())
    assert_within_standard_error(far.mean().item(), exact, (far.std() / math.sqrt(len(z))).item() + 1e-8)
    assert weights.sum() ** 2 / weights.square().sum() > 0.5 * len(z)


def test_a_halo_beside_two_modes():
    # The components of the modes stay, and one is added for what lies far out.
    target = Blobs([0.5, 0.4, 0.1], [[0.0, 0.0], [6.0, 0.0], [0.0, 0.0]], [1.0, 1.0, 40.0])
    torch.manual_seed(0)
    found = survey(target)
    assert found.base.num_components >= 3
    z = found.base.sample(8192)
    log_weight = target.log_prob(z) - found.base.log_prob(z)
    mean = log_weight.logsumexp(0) - math.log(len(z))
    assert_within_standard_error(mean.item(), 0.0, (log_weight - mean).exp().std().item() / math.sqrt(len(z)))


def test_the_mass_of_a_halo(float64):
    # Half of the mass, 300 times as wide: nearly all of that half lies more than five standard deviations out.
    part = halo(CASES["halo, 1-D"], standard_base(torch.zeros(1), torch.eye(1)))
    exact = 0.5 * math.erfc(part.inner / 1e4 / math.sqrt(2))
    assert_within_standard_error(math.exp(part.log_mass), exact, exact * part.std_error)
    assert part.holds(torch.tensor([[4.9], [5.1], [-1e5]])).tolist() == [False, True, True]


def test_strata_keep_their_share():
    # Equal weights: each stratum has as many particles after resampling as before, whatever their order.
    stratum = torch.randint(3, (8, 64))
    index = resample_by_stratum(torch.zeros(8, 64), stratum.reshape(-1))
    after = stratum.reshape(-1)[index].view(8, 64)
    for number in range(3):
        assert torch.equal((after == number).sum(1), (stratum == number).sum(1))


def test_strata_lose_no_more_than_one_particle():
    # A stratum of twentieth of the weight stays within one particle of its share over many rounds.
    log_weight = torch.where(torch.arange(64) % 16 == 0, 0.0, 0.0).expand(100, 64)
    stratum = (torch.arange(64) % 16 == 0).long().repeat(100)
    index = resample_by_stratum(log_weight, stratum)
    assert (stratum[index].view(100, 64).sum(1) - 4).abs().max() <= 1


def test_the_reference_has_half_of_its_mass_on_what_was_lost():
    torch.manual_seed(0)
    found = survey(CASES["spike on a shoulder, 8-D"])
    reference = with_parts(found.base, found.search.added)
    assert reference.mixture_distribution.probs[-len(found.search.added) :].sum().item() == pytest.approx(0.5)


def test_what_was_added_stays_in_later_surveys():
    # A larger flow begins with a base for all that is known, and so does exploration anew.
    torch.manual_seed(0)
    target = CASES["three of three widths, 5-D"]
    found = survey(target)
    again = resurvey(found, found.exploration)
    assert again.search is found.search and again.base.num_components >= 3
    anew = explore_anew(target, found, 64, 8, None)
    assert_within_standard_error(anew.log_evidence, 0.0, max(anew.std_error, 0.01))


def test_the_bound_of_the_unseen():
    # None of n: 1 - 0.05 ** (1 / n); one of two: the root of 1 - p^2 = 0.05.
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(1, 2) == pytest.approx(math.sqrt(0.95))
    assert upper_bound(3, 3) == upper_bound(0, 0) == 1.0


def test_the_sentence_says_what_was_not_looked_at():
    assert "and 7 tops beyond; 80.0% of 50 random ones" in Search(100, 50, 64, 10, num_dropped=7).sentence()
    assert not Search(100, 50, 64, 10, num_dropped=7).coverage.is_countable
    assert Search(12, 0, 1, 0).sentence().endswith("so that nothing bounds what was not seen")


def test_many_dimensions_are_not_searched():
    found = survey(FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=200))
    assert found.search is None and found.parts == ()
