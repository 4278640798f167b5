"""Chunks: the whole is what they add up to, and they are not in memory together."""

import weakref

import pyro
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS
from pyro_osds.runtime.chunks import chunk_sizes, stack_chunks
from pyro_osds.stats.weights import log_mean_weight


@pytest.mark.parametrize(("total", "size"), [(1, 5), (5, 5), (6, 5), (12, 5)])
def test_sizes_add_up(total, size):
    # All chunks are full, except the last one.
    sizes = list(chunk_sizes(total, size))
    assert sum(sizes) == total and set(sizes[:-1]) <= {size} and 0 < sizes[-1] <= size


def test_the_whole_is_what_its_chunks_are_joined():
    # Shapes, types and order of columns stay; gradients are left behind.
    whole = torch.randn(10, 3, requires_grad=True), torch.arange(10), torch.randn(10, 2, 2).double()
    columns = stack_chunks(zip(*(column.split(4) for column in whole), strict=True), 10)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(columns, whole, strict=True))
    assert not any(column.requires_grad for column in columns)


def test_chunks_are_not_in_memory_together():
    # When a chunk is made, only the one before it may still be there.
    alive = []

    def chunks():
        for size in chunk_sizes(50, 10):
            assert sum(chunk() is not None for chunk in alive) <= 1
            chunk = torch.ones(size)
            alive.append(weakref.ref(chunk))
            yield (chunk,)
            del chunk

    (column,) = stack_chunks(chunks(), 50)
    assert len(alive) == 5 and column.sum() == 50


def test_nothing_of_no_columns():
    # A model without continuous latents has draws without values.
    assert stack_chunks(iter([()]), 3) == ()


@pytest.fixture(scope="module")
def shifted():
    """A fitted sampler of a normal density with log evidence log(2 pi), and a switch that stops its next evaluation."""
    stop = []

    def log_prob_fn(z):
        if stop:
            raise KeyboardInterrupt
        return -0.5 * (z - 1.0).square().sum(-1)

    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        osds = OSDS.from_log_prob(log_prob_fn, 2, num_samples=100, num_iterations=50, disable_progbar=True)
        osds.run()

    return osds, stop


def test_draws_of_several_chunks_carry_their_own_weights(shifted):
    # Across the borders of chunks every draw keeps its density, its weight and its value.
    osds, _ = shifted
    draws = osds.draw(20_000)
    assert len(draws) == 20_000 and torch.equal(draws.samples["z"], draws.z.float())
    torch.testing.assert_close(draws.log_prob, osds.fit.target.log_prob(draws.z))
    log_weight = draws.log_prob - osds.fit.leap.log_prob(draws.z).detach()
    torch.testing.assert_close(draws.log_weights, log_weight, rtol=0, atol=1e-3)


def test_batches_of_draws(shifted):
    # They are fresh draws, as many as asked for, and their weights have the mean of the evidence.
    osds, _ = shifted
    batches = list(osds.draw_batches(25_000, batch_size=10_000))
    assert [len(batch) for batch in batches] == [10_000, 10_000, 5_000]
    assert not torch.equal(batches[0].z, batches[1].z)
    estimate, std_error = log_mean_weight(torch.cat([batch.log_weights for batch in batches]))
    assert_within_standard_error(estimate, torch.tensor(2 * torch.pi).log().item(), std_error)


def test_batches_are_checked_before_the_first_one(shifted):
    # An error belongs to the call, not to the loop over its result.
    osds, _ = shifted
    with pytest.raises(ValueError, match="batch_size must be"):
        osds.draw_batches(10, batch_size=0)
    with pytest.raises(ValueError, match="num_steps"):
        osds.draw_batches(10, num_steps=3)


def test_drawing_that_is_interrupted_changes_nothing(shifted):
    # Ctrl-C in the middle of a draw loses the draw; posterior, evidence and further draws are what they were.
    osds, stop = shifted
    before, evidence = osds.get_samples()["z"], osds.evidence
    stop.append(True)
    with pytest.raises(KeyboardInterrupt):
        osds.draw(20_000)
    stop.clear()
    assert torch.equal(osds.get_samples()["z"], before) and osds.evidence == evidence
    assert osds.draw(10).log_weights.isfinite().all()
