"""Large models with default settings: a log-Gaussian Cox process of 1,600 dimensions, a hierarchy of 1,000 latents."""

import math
import sys
from pathlib import Path

import pyro
import pytest

from pyro_osds import OSDS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from large_models import (  # noqa: E402
    PINES_LOG_EVIDENCE,
    PINES_STD_ERROR,
    groups,
    hierarchy,
    hierarchy_log_evidence,
    log_gaussian_cox,
    pines,
)


def test_the_counts_of_the_pines():
    # 126 saplings on 1,600 cells; a covariance with the variance of the model, that falls off with distance.
    counts, covariance = pines()
    assert counts.sum() == 126 and counts.shape == (1600,) and covariance.shape == (1600, 1600)
    assert covariance[0, 0] == pytest.approx(1.91) and covariance[0, 1] == pytest.approx(1.91 * math.exp(-33 / 40))
    assert covariance[0, 40] == covariance[0, 1] and covariance[0, 41] < covariance[0, 1]


def test_the_exact_evidence_of_a_hierarchy():
    # Of a single group: a normal in two scales, by a sum over them.
    y = groups(1)
    assert y.shape == (1,)
    taus = [0.001 * (i + 0.5) for i in range(6000)]
    terms = [
        math.exp(-0.5 * tau**2 - 0.5 * y.item() ** 2 / (5 + tau**2)) / math.sqrt((5 + tau**2) * 2 * math.pi)
        for tau in taus
    ]
    expected = math.log(0.001 * sum(terms) * math.sqrt(2 / math.pi))
    assert hierarchy_log_evidence(y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
def test_the_pines():
    # Some minutes. An ELBO that no published sampler reached, and the evidence of two annealed runs.
    pyro.set_rng_seed(0)
    osds = OSDS(log_gaussian_cox, disable_progbar=True)
    osds.run(*pines())
    evidence = osds.evidence
    assert evidence.reliable and evidence.elbo > 500.5
    assert abs(evidence.log_evidence - PINES_LOG_EVIDENCE) < 3 * math.hypot(evidence.std_error, PINES_STD_ERROR)


@pytest.mark.long
def test_a_hierarchy_of_a_thousand_latents():
    pyro.set_rng_seed(0)
    y = groups(1000)
    osds = OSDS(hierarchy, disable_progbar=True)
    osds.run(y)
    evidence = osds.evidence
    assert evidence.reliable
    assert abs(evidence.log_evidence - hierarchy_log_evidence(y)) < 4 * math.hypot(evidence.std_error, 0.01)
