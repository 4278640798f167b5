"""The mixture base: components where the modes are, cut where that helps, and weights that fresh draws correct."""

import math

import pytest
import torch
from helpers import assert_within_standard_error
from models import mixture_draws, mixture_log_prob
from torch.distributions import MultivariateNormal

from pyro_osds.explore.mixture import adapt_mixture, effective_share, mixture_base
from pyro_osds.flow.base import gaussian_base
from pyro_osds.target import FunctionTarget


def two_modes(count=400):
    # One mode in three is at (-6, 0), the others at (6, 3).
    z = mixture_draws([[-6.0, 0.0], [6.0, 3.0]], [count, 2 * count])
    labels = torch.cat([torch.ones(count, dtype=torch.long), torch.zeros(2 * count, dtype=torch.long)])

    return z, labels


def test_mixture_finds_weights_and_places():
    # Components on either side have together the share of the particles there, and their mean within standard errors.
    z, labels = two_modes()
    base = mixture_base(z, labels)
    probs = base.density.mixture_distribution.probs
    places = base.from_whitened(base.density.component_distribution.mean)
    for side, truth, count in [(places[:, 0] > 0, (6.0, 3.0), 800), (places[:, 0] < 0, (-6.0, 0.0), 400)]:
        torch.testing.assert_close(probs[side].sum().item(), count / 1200, atol=1e-4, rtol=0)
        mean = (probs[side, None] * places[side]).sum(0) / probs[side].sum()
        for i in range(2):
            assert_within_standard_error(mean[i], truth[i], 1 / math.sqrt(count))
    assert base.num_components == len(probs) >= 2


def test_components_are_cut_in_two_where_that_helps():
    # One label for two far modes: the held-out particles ask for a second component; a single Gaussian gets few.
    z, _ = two_modes()
    assert mixture_base(z, torch.zeros(len(z), dtype=torch.long)).num_components >= 2
    assert mixture_base(torch.randn(400, 2), torch.zeros(400, dtype=torch.long)).num_components <= 4


def test_a_mode_of_two_particles_does_not_collapse():
    # A component with as many particles as coordinates keeps a positive definite covariance.
    z = mixture_draws([[0.0, 0.0], [50.0, 50.0]], [200, 2])
    base = mixture_base(z, torch.tensor([0] * 200 + [1] * 2))
    assert base.log_prob(z).isfinite().all()


def test_four_modes_are_cut_apart():
    # From one label, cut by cut: each mode ends up with a quarter of the weight and its own place.
    places = [[-8.0, -8.0], [-8.0, 8.0], [8.0, -8.0], [8.0, 8.0]]
    base = mixture_base(mixture_draws(places, [200] * 4), torch.zeros(800, dtype=torch.long))
    probs = base.density.mixture_distribution.probs
    centres = base.from_whitened(base.density.component_distribution.mean)
    for place in torch.tensor(places):
        near = (centres - place).norm(dim=-1) < 4
        torch.testing.assert_close(probs[near].sum().item(), 0.25, atol=1e-3, rtol=0)


def test_adaptation_restores_the_weights_of_the_modes(float64):
    # Particles in a ratio of nine to one, where the target has two to three: weighted draws know better.
    places = [[-6.0, 0.0], [6.0, 3.0]]
    z = mixture_draws(places, [900, 100])
    labels = torch.tensor([0, 1]).repeat_interleave(torch.tensor([900, 100]))
    wrong = mixture_base(z, labels)
    right = adapt_mixture(wrong, FunctionTarget(mixture_log_prob(places, [0.4, 0.6]), 2))
    shares = [
        base.density.mixture_distribution.probs[base.density.component_distribution.mean[:, 0] < 0].sum().item()
        for base in (wrong, right)
    ]
    assert abs(shares[0] - 0.9) < 0.01
    # At least a third of the 8192 draws count.
    assert_within_standard_error(shares[1], 0.4, math.sqrt(0.24 / 2700))


def test_adaptation_gives_up_where_nothing_is_finite():
    # A target that vanishes at all draws has nothing to say.
    base = mixture_base(*two_modes())
    assert adapt_mixture(base, FunctionTarget(lambda z: torch.full((len(z),), -torch.inf), 2)) is base


def test_share_of_effective_draws(float64):
    # Of a base that is the target all count; of one of k times the variance in D dimensions (2 / k - 1 / k^2)^(D / 2).
    base = gaussian_base(torch.randn(4000, 2))
    assert effective_share(base, FunctionTarget(lambda z: base.log_prob(z) - 9.0, 2)) == pytest.approx(1.0)
    narrow = MultivariateNormal(base.loc, base.scale_tril @ base.scale_tril.mT / 4.0)
    # Weights of mean square 16 / 7, so 8192 draws know the share to about one percent.
    assert_within_standard_error(effective_share(base, FunctionTarget(narrow.log_prob, 2)), 7 / 16, 0.01)


def test_no_share_where_nothing_is_finite():
    # A target that vanishes at all draws, and one that is no number there; half of a target is half of the draws.
    base = gaussian_base(torch.randn(4000, 2))
    for value in (-math.inf, math.nan):
        assert effective_share(base, FunctionTarget(lambda z, value=value: torch.full((len(z),), value), 2)) == 0.0
    half = FunctionTarget(lambda z: torch.where(z[:, 0] > base.loc[0], base.log_prob(z), -math.inf), 2)
    assert_within_standard_error(effective_share(base, half), 0.5, 0.5 / math.sqrt(8192))
