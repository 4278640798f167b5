"""What a fit offers whose latents are all discrete: no draws of the flow, and exact draws of the discrete latents."""

import itertools
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp, softmax

from pyro_osds import OSDS, plot_leap

Y = torch.tensor([0.3, -0.2, 2.5, 2.1, -0.7])
RING = torch.tensor([0.3, -0.2, 2.5, 2.1, -0.7, 1.0])


def two_classes(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)


def ring(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(z + z.roll(1, -1), 1.0), obs=y)


def fitted(model, y, **options):
    osds = OSDS(model, disable_progbar=True, seed=1, **options)
    osds.run(y)

    return osds


def shares():
    """The posterior probabilities that a row is of the second class."""
    one, other = 0.3 * stats.norm.pdf(Y, 2.0), 0.7 * stats.norm.pdf(Y)

    return one / (one + other)


def check_shares(z, truth):
    """Means of draws within four standard errors of the truth."""
    error = np.sqrt(truth * (1 - truth) / len(z))
    assert (np.abs(z.mean(0).numpy() - truth) < 4 * error).all()


def test_draws_of_discrete_latents_are_those_of_the_posterior():
    osds = fitted(two_classes, Y)
    drawn = osds.infer_discrete()
    assert drawn.keys() == {"z"} and drawn["z"].shape == (4000, 5)
    check_shares(drawn["z"], shares())
    assert osds.infer_discrete(num_draws=7)["z"].shape == (7, 5)
    best = osds.infer_discrete(num_draws=3, temperature=0)["z"]
    assert best.tolist() == 3 * [(shares() > 0.5).astype(float).tolist()]


def test_draws_of_interacting_elements_are_those_of_the_joint_values():
    osds = fitted(ring, RING)
    cells = np.array(list(itertools.product((0, 1), repeat=6)))
    joint = (cells * np.log(0.4) + (1 - cells) * np.log(0.6)).sum(1)
    joint += stats.norm.logpdf(RING.numpy(), cells + np.roll(cells, 1, 1)).sum(1)
    assert osds.log_evidence == pytest.approx(logsumexp(joint), abs=1e-6)
    check_shares(osds.infer_discrete(num_draws=300)["z"], softmax(joint) @ cells)
    assert osds.infer_discrete(num_draws=1, temperature=0)["z"][0].tolist() == cells[joint.argmax()].tolist()


def test_draws_of_a_fit_from_a_file(tmp_path):
    fitted(two_classes, Y).save(tmp_path / "fit.pt")
    assert OSDS.load(tmp_path / "fit.pt", two_classes, Y).infer_discrete(num_draws=3)["z"].shape == (3, 5)


def test_what_needs_continuous_latents_says_so():
    osds = fitted(two_classes, Y)
    assert osds.get_samples() == osds.get_samples(5) == osds.get_samples(group_by_chain=True) == {}
    for call in (lambda: osds.check_against({"z": torch.zeros(20, 5)}), lambda: plot_leap(osds), osds.neutra):
        with pytest.raises(ValueError, match="continuous latents; this (model has none|one has none)"):
            call()


def test_a_model_that_runs_point_by_point_is_run_at_one_point():
    began = time.perf_counter()
    osds = fitted(two_classes, Y, vectorize="loop")
    # A run for each of thousands of draws, which are all the same, took 18 seconds.
    assert time.perf_counter() - began < 5.0
    truth = np.log(0.3 * stats.norm.pdf(Y, 2.0) + 0.7 * stats.norm.pdf(Y)).sum()
    assert osds.log_evidence == pytest.approx(truth, abs=1e-6) and osds.evidence.reliable
