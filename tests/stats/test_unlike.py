"""Two sets of particles: what differs by more than chance is told, what replicates leave open is not."""

import pytest
import torch

from pyro_osds.stats.unlike import unlike


def weights(replicates, number, shift=0.0, spread=0.0, seed=0):
    """Log weights by replicate; replicates differ by a spread of their own."""
    generator = torch.Generator().manual_seed(seed)
    own = spread * torch.randn(replicates, 1, generator=generator)

    return torch.randn(replicates, number, generator=generator) + shift + own


@pytest.mark.parametrize("seed", range(40))
def test_the_same_places_are_no_alarm(seed):
    # As many as a run has: independent particles, and replicates that disagree by as much as one standard deviation.
    for spread in (0.0, 0.3, 1.0):
        first, second = weights(8, 64, spread=spread, seed=seed), weights(16, 125, spread=spread, seed=seed + 1000)
        assert unlike(first, second, 0.0) is None


def test_other_places_are_told():
    # A set that has twice as much where the flow proposes too little, as that of two crossing rings had.
    found = unlike(weights(8, 512, 0.0, 0.1), weights(16, 125, -0.9, 0.1, seed=1), 0.0)
    assert found is not None and found.first > found.second + 0.2


def test_what_replicates_leave_open_is_not_told():
    # The same difference, where the replicates of one set differ as much among themselves.
    assert unlike(weights(8, 512, 0.0, 2.0), weights(16, 125, -0.9, 0.1, seed=1), 0.0) is None


def test_small_differences_do_not_count():
    # Of a hundred thousand particles a hundredth would be seen; draws are not known that well anyway.
    assert unlike(weights(8, 20000), weights(16, 20000, -0.02, seed=1), 0.0) is None
