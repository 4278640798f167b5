"""A log density outside of torch, with a gradient that the user gives."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from pyro_osds import OSDS
from pyro_osds.target import FunctionTarget

MEAN, SD = np.array([1.0, -2.0]), np.array([0.5, 3.0])


def log_prob(z):
    return stats.norm.logpdf(np.asarray(z), MEAN, SD).sum(-1)


def score(z):
    return (MEAN - np.asarray(z)) / SD**2


def test_values_and_gradients():
    target = FunctionTarget(log_prob, 2, score_fn=score)
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    got = target.log_prob(z)
    np.testing.assert_allclose(got.detach(), log_prob(z.detach()))
    (gradient,) = torch.autograd.grad(2 * got.sum(), z)
    np.testing.assert_allclose(gradient, 2 * score(z.detach()))


def test_evidence_is_exact():
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(log_prob, 2, score_fn=score, num_samples=200, disable_progbar=True)
    osds.run()
    assert abs(osds.log_evidence) <= 3 * osds.log_evidence_se + 1e-6
    assert osds.evidence.reliable, osds.evidence.reasons


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda z: -score(z), r"coordinate 0 it gives"),
        (lambda z: score(z) * [1.0, 1.1], r"coordinate 1 it gives"),
        (lambda z: score(z).sum(0), r"must map \(8, 2\) to \(8, 2\).*it returned \(2,\)"),
        (lambda z: np.full((len(z), 2), np.nan), "coordinate 0"),
    ],
)
def test_a_wrong_gradient_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FunctionTarget(log_prob, 2, score_fn=wrong)


def test_edges_are_no_reason_to_refuse():
    # A density with kinks, and one that is minus infinity on a half of the space, have the gradients that they have.
    def laplace(z):
        return -np.abs(np.asarray(z)).sum(-1)

    FunctionTarget(laplace, 3, score_fn=lambda z: -np.sign(np.asarray(z)))

    def half(z):
        x = np.asarray(z)[:, 0]
        return np.where(x > 0, -x, -np.inf)

    FunctionTarget(half, 1, score_fn=lambda z: np.where(np.asarray(z) > 0, -1.0, 0.0))


def test_torch_functions_in_single_precision():
    scale = torch.tensor([2.0, 1.0])
    target = FunctionTarget(lambda z: -0.5 * (z * scale).square().sum(-1), 2, score_fn=lambda z: -z * scale**2)
    assert target.is_double
    assert math.isclose(target.log_prob(torch.ones(1, 2)).item(), -2.5)
