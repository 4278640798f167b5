"""Buffers that a model allocates and fills: the density by hand, whatever way of filling, in recorded batches."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.runtime.warnings import VectorizationWarning
from pyro_osds.target import log_prob_and_score

X = np.array([0.5, 1.0, -0.5, 2.0])
Y = np.array([0.3, -0.2, 0.8, 0.1])
COVARIATE = torch.tensor(X, dtype=torch.float32)
MASK = torch.tensor([True, False, True, False])
ROWS = range(4)
GLOBAL = torch.zeros(4)

# Each form fills a buffer from two latents; beside it, its entries as functions of both, written with Python's numbers.
FORMS = {}


def form(*entries):
    def note(fill):
        FORMS[fill.__name__] = fill, entries
        return fill

    return note


LINE = [lambda a, b, x=x: a + b * x for x in X]
ZERO = lambda a, b: 0.0 * a  # noqa: E731
A, B = (lambda a, b: a), (lambda a, b: b)


@form(*LINE)
def by_index(a, b):
    out = torch.zeros(4)
    for i in ROWS:
        out[i] = a + b * COVARIATE[i]
    return out


@form(*LINE)
def by_index_into_empty(a, b):
    out = torch.empty_like(COVARIATE)
    for i in ROWS:
        out[i] = a + b * COVARIATE[i]
    return out


@form(*LINE)
def rows_of_a_table(a, b):
    out = torch.zeros(2, 4)
    out[0, :] = a
    out[1, :] = b * COVARIATE
    return out.sum(0)


@form(A, B, A, B)
def by_mask(a, b):
    out = torch.empty(4)
    out[MASK] = a
    out[~MASK] = b
    return out


@form(A, lambda a, b: b * X[1], A, lambda a, b: b * X[3])
def by_mask_and_many_values(a, b):
    out = torch.zeros(4)
    out[MASK] = a
    out[~MASK] = (b * COVARIATE)[~MASK]
    return out


@form(*(lambda a, b, x=x: a if a * x > b else 2 * b for x in X))
def by_mask_of_latents(a, b):
    out, mask = torch.zeros(4), a * COVARIATE > b
    out[mask] = a
    out[~mask] = 2 * b
    return out


@form(*(lambda a, b, x=x: b if a * x > 0 else 0.0 * b for x in X))
def by_mask_of_latents_beside_a_number(a, b):
    out = torch.zeros(4, 2)
    out[a * COVARIATE > 0, 1] = b
    return out.sum(1)


@form(*(lambda a, b, x=x: 3 * b + a if a * x > 0 else a for x in X))
def by_mask_of_latents_beside_slices(a, b):
    out = torch.zeros(3, 4, 2)
    out[..., a * COVARIATE > 0, 1:] = b.reshape(1)
    return out.sum((0, 2)) + a


@form(*(lambda a, b, x=x: a if b * x > 0 else 0.0 * a for x in X))
def by_index_put_with_a_mask(a, b):
    out = torch.zeros(4)
    return out.index_put_((b * COVARIATE > 0,), a)


@form(*(lambda a, b, x=x: 0.0 * a if a > 0 else b * x for x in X))
def by_a_single_flag(a, b):
    out = b * COVARIATE
    out[a > 0] = 0.0
    return out


@form(*(lambda a, b, x=x: (a - b * x) / 2 for x in X))
def by_arithmetic(a, b):
    out = torch.ones(4)
    out *= a
    out -= b * COVARIATE
    out.div_(2)
    return out


@form(A, A, lambda a, b: b * X[2], lambda a, b: b * X[3])
def by_copy(a, b):
    out = torch.zeros(4)
    out[:2].copy_(a.expand(2))
    out[2:].copy_(b * COVARIATE[2:])
    return out


@form(A, ZERO, lambda a, b: a + b, ZERO)
def by_index_add(a, b):
    return torch.zeros(4).index_add_(0, torch.tensor([0, 2, 2]), torch.stack([a, b, a]))


@form(ZERO, A, ZERO, lambda a, b: b + a)
def by_scatter(a, b):
    out = torch.zeros(4).scatter_(0, torch.tensor([1, 3]), torch.stack([a, b]))
    return out.scatter_add_(0, torch.tensor([3]), a.reshape(1))


def _recursion(a, b):
    state, states = a, []
    for x in X:
        state = 0.5 * state + b * x
        states.append(state)
    return states


@form(*(lambda a, b, i=i: _recursion(a, b)[i] for i in ROWS))
def by_recursion(a, b):
    out = torch.zeros(5)
    out[0] = a
    for i in ROWS:
        out[i + 1] = 0.5 * out[i] + b * COVARIATE[i]
    return out[1:]


@form(*(lambda a, b, i=i: _recursion(a, b)[i] for i in ROWS))
def by_a_state_in_place(a, b):
    state, out = torch.zeros(1), torch.empty(4)
    state[0] = a
    for i in ROWS:
        state.mul_(0.5).add_(b * COVARIATE[i])
        out[i] = state[0]
    return out


@form(lambda a, b: a + b, B, B, B)
def by_numpy(a, b):
    out = torch.from_numpy(np.zeros(4))
    out[0] = a
    out += b
    return out


@form(A, A, B, A)
def by_the_old_constructor(a, b):
    out = torch.Tensor(4)
    out[:] = a
    out[2] = b
    return out


@form(*(lambda a, b, x=x: a * x + b for x in X))
def by_a_global_tensor(a, b):
    GLOBAL.zero_()
    for i in ROWS:
        GLOBAL[i] = a * COVARIATE[i]
    GLOBAL.add_(b)
    return GLOBAL


@form(A, lambda a, b: b + X[1], A, lambda a, b: X[3] + 0.0 * a)
def by_a_copy_of_data(a, b):
    out = COVARIATE.clone()
    out[MASK] = a
    out[1] += b
    return out


@form(lambda a, b: a + 0.0, A, B, A)
def by_functions_that_scatter(a, b):
    out = torch.slice_scatter(a.expand(4), torch.stack([a, b]), 0, 1, 3)
    return torch.select_scatter(out, a, 0, 3)


@form(lambda a, b: b, ZERO, ZERO, A)
def by_views(a, b):
    out = torch.zeros(2, 2)
    out.view(-1)[3] = a
    out.T[0, 0] = b
    return out.reshape(-1)


def density_by_hand(entries, z):
    """Log density by Python's numbers, ``(B, 2)`` in, ``(B,)`` out."""
    total = []
    for a, b in z.tolist():
        residuals = [y - entry(a, b) for y, entry in zip(Y, entries, strict=True)]
        total.append(-0.5 * (a**2 + b**2 + sum(r**2 for r in residuals)) - 3 * np.log(2 * np.pi))

    return np.array(total)


def model_of(fill):
    def model():
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        pyro.sample("y", dist.Normal(fill(a, b), 1.0).to_event(1), obs=torch.tensor(Y))

    return model


@pytest.mark.parametrize("name", FORMS)
def test_a_buffer_is_filled_in_recorded_batches(name):
    fill, entries = FORMS[name]
    target = ModelTarget(model_of(fill))
    z = torch.randn(66, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_prob, score = log_prob_and_score(target.log_prob, z)
    assert target.backend == "captured", target._ladder.reason
    np.testing.assert_allclose(log_prob, density_by_hand(entries, z), atol=1e-9)
    # Slopes by differences of the formula, at points that are no corner of it.
    for column in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[column] = 1e-6
        slope = (density_by_hand(entries, z + step) - density_by_hand(entries, z - step)) / 2e-6
        np.testing.assert_allclose(score[:, column], slope, atol=1e-6)


def test_what_was_global_is_as_it_was():
    GLOBAL.fill_(7.0)
    target = ModelTarget(model_of(by_a_global_tensor))
    target.log_prob(torch.zeros(66, 2))
    assert GLOBAL.tolist() == [7.0] * 4


def test_a_form_that_has_no_batch_runs_point_by_point_and_names_its_line():
    def fill(a, b):
        out, mask = torch.zeros(4), a * COVARIATE > b
        out[mask] = (a * COVARIATE)[mask]  # as many values as the mask is true
        return out

    entries = [lambda a, b, x=x: a * x if a * x > b else 0.0 for x in X]
    with pytest.warns(VectorizationWarning, match=r"out\[mask\] = .*line \d+ of test_buffers.py"):
        target = ModelTarget(model_of(fill))
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(target.log_prob(z), density_by_hand(entries, z), atol=1e-9)
