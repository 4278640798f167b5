"""Parts that a base lacks: where they hold all particles, what was fitted to few of these goes."""

from functools import partial

import torch

from pyro_osds.explore.mixture import adapt_mixture, effective_share, mixture_base
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.search import cover
from pyro_osds.explore.search.cover import base_with_parts
from pyro_osds.explore.search.parts import basin
from pyro_osds.explore.search.probes import components
from pyro_osds.explore.search.second_search import _starts, search
from pyro_osds.target import FunctionTarget, log_prob_and_score

DIM, SHARES = 30, (0.1, 0.2, 0.3, 0.4)


def four_gaussians(generator_seed=0, tails=None):
    """Four normals, or products of Student's t, of 60 particles each on average, and the parts around their centres."""
    torch.manual_seed(generator_seed)
    centres, shares = 30.0 * torch.randn(4, DIM), torch.tensor(SHARES)

    def log_prob(z):
        offset = z[:, None] - centres
        if tails is not None:
            student = torch.distributions.StudentT(tails)
            return torch.logsumexp(student.log_prob(offset).sum(-1) + shares.log(), -1)
        normal = -0.5 * offset.square().sum(-1) - 0.5 * DIM * torch.log(torch.tensor(2.0 * torch.pi))
        return torch.logsumexp(normal + shares.log(), -1)

    target = FunctionTarget(log_prob, DIM)
    labels = torch.multinomial(shares, 240, replacement=True)
    noise = torch.randn(240, DIM) if tails is None else torch.distributions.StudentT(tails).sample((240, DIM))
    z = centres[labels] + noise
    base = adapt_mixture(mixture_base(z, labels.unique(return_inverse=True)[1]), target)
    found = Exploration(z, log_prob(z), torch.zeros(8), 10, 0, 1.0, 0)
    evaluate = partial(log_prob_and_score, target.log_prob)
    parts = [basin(evaluate, centre, base.scale_tril, quickly=False) for centre in centres]

    return target, base, parts, found


def weights_of(base, target):
    z = base.sample(20_000)

    return z, target.log_prob(z) - base.log_prob(z)


def test_parts_that_hold_all_particles_are_the_base(float64):
    target, base, parts, found = four_gaussians()
    assert effective_share(base, target) < 0.1
    new = base_with_parts(target, base, parts, found)
    z, log_weight = weights_of(new, target)
    # A twentieth of the draws is wider; the rest is the posterior itself.
    assert new.num_components == 8 and effective_share(new, target) > 0.9
    weight = log_weight.exp()
    assert abs(weight.mean() - 1.0) < 4 * weight.std() / 20_000**0.5
    assert log_weight.mean() > -0.5
    labels = torch.cdist(z, torch.stack([part.loc for part in parts])).argmin(1)
    shares = torch.stack([weight[labels == part].sum() for part in range(4)]) / weight.sum()
    assert ((shares - torch.tensor(SHARES)).abs() < 4 * (torch.tensor(SHARES) / 18_000).sqrt()).all()


def test_what_parts_do_not_hold_stays(float64):
    target, base, parts, found = four_gaussians()
    new = base_with_parts(target, base, parts[:3], found)
    assert new.num_components > 6
    z = new.sample(4000)
    assert (torch.cdist(z, parts[3].loc[None]) < 3 * DIM**0.5).double().mean() > 0.1


def test_random_numbers_are_those_without_it(float64, monkeypatch):
    target, base, parts, found = four_gaussians()
    after = []
    for alone in (cover._alone, lambda *_: None):
        monkeypatch.setattr(cover, "_alone", alone)
        torch.manual_seed(1)
        base_with_parts(target, base, parts, found)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_heavier_tails_than_those_of_a_gaussian_have_draws(float64):
    target, base, parts, found = four_gaussians(tails=8.0)
    new = base_with_parts(target, base, parts, found)
    _, log_weight = weights_of(new, target)
    weight = log_weight.exp()
    assert abs(weight.mean() - 1.0) < 4 * weight.std() / 20_000**0.5 + 0.02
    assert effective_share(new, target) >= 0.5 * effective_share(base, target)


def test_each_component_of_a_base_is_climbed_from(float64):
    # Nothing climbs to the last one by chance: no particle, no point on the way, no draw of the reference is near it.
    target, base, _, found = four_gaussians()
    centres, _, _ = components(base)
    far = torch.cdist(found.z, centres).argmin(1) != 3
    seen = Exploration(found.z[far], found.log_prob[far], torch.zeros(8), 10, 0, 1.0, 0, start=found.z[far])
    starts, num_random = _starts(target, seen, base, seen)
    assert torch.equal(torch.cdist(starts[num_random:], centres).amin(0), torch.zeros(4))
    torch.manual_seed(0)
    searched = search(target, seen, base, seen)
    tops = torch.stack([part.loc for part in searched.parts if not part.is_halo])
    # Their centres are those of the posterior, which the base knows to a tenth.
    assert len(tops) == 4 and (torch.cdist(centres, tops).amin(1) < 0.3 * DIM**0.5).all()
