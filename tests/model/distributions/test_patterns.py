"""Small matrices entry by entry, and rows in another order, against numpy."""

import numpy as np
import pytest
import torch

from pyro_osds.model.distributions.patterns import MAX_UNROLLED, Rearranged, inverse_factor


@pytest.mark.parametrize("size", range(1, MAX_UNROLLED + 1))
def test_factors_are_those_of_numpy(size):
    random = np.random.default_rng(size)
    root = random.normal(size=(7, size, size + 2))
    matrix = root @ root.transpose(0, 2, 1)
    log_det, inverse = inverse_factor(torch.tensor(matrix))
    factor = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(inverse, np.linalg.inv(factor), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_det, 0.5 * np.linalg.slogdet(matrix)[1], atol=1e-10)


@pytest.mark.parametrize("matrix", [[[1.0, 2.0], [2.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(matrix):
    log_det, inverse = inverse_factor(torch.tensor([matrix, [[4.0, 0.0], [0.0, 4.0]]], dtype=torch.float64))
    assert log_det.isnan().tolist() == [True, False] and inverse.isnan().any(-1).any(-1).tolist() == [True, False]


def test_a_rearrangement_and_its_gradient():
    places, there = torch.tensor([3, 0, 1]), torch.tensor([1, 2, 3, 0])  # the third number is read by nobody
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    found = torch.func.vmap(lambda row: Rearranged.apply(row, places, there))(x)
    assert torch.equal(found, x[:, [3, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: Rearranged.apply(x, places, there), x)
    assert torch.autograd.gradgradcheck(lambda x: Rearranged.apply(x, places, there).square(), x)
