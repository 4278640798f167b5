"""Recorded densities are rewritten where that is faster, and only where nothing else changes: products, and sums."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.model import layout as layout_module
from pyro_osds.model.layout import entries_added, rows_first
from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.recording.recorder import record_operations
from pyro_osds.target import log_prob_and_score

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def turned_and_recorded(function):
    recorded = record_operations(function, W)

    return rows_first(recorded, (W,)), recorded


@pytest.mark.parametrize(
    "function",
    [
        lambda w: (X @ w.mT).mT,
        lambda w: (X @ w.t()).permute(1, 0),
        lambda w: (X @ w.transpose(0, 1)).transpose(-1, -2),
        lambda w: (X.T.contiguous().T @ w.permute(-1, -2)).permute(-1, 0),
        lambda w: torch.special.expit((X @ w.mT).mT).square(),
    ],
)
def test_a_transposed_product_becomes_one_whose_points_are_rows(function):
    turned, recorded = turned_and_recorded(lambda w: (function(w),))

    assert turned is not recorded
    (got,), (expected,) = turned(W), recorded(W)
    assert expected.stride() == (1, 4)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda w: (w @ X.mT, w.exp()),  # points are rows already
        lambda w: (X @ w.mT,),  # nobody transposes it back
        lambda w: ((X @ w.mT).mT, (X @ w.mT).sum(0)),  # somebody needs it as it is
        lambda w: ((X @ w.mT).mul_(2.0).mT,),  # it is changed in place
        lambda w: ((X @ w.mT).mT.add_(1.0),),  # a view of it is
        lambda w: ((X @ w.mT).mT[1:].add_(1.0).square(),),
        lambda w: ((X @ w.mT).mT.exp().mT.view(-1),),  # a view that suits its memory alone
    ],
)
def test_what_must_stay_stays(function):
    turned, recorded = turned_and_recorded(function)

    assert turned is recorded
    for got, expected in zip(turned(W), function(W), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_density_of_a_regression_is_that_of_its_formula():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    y = (torch.rand(100, generator=torch.Generator().manual_seed(3)) < 0.4).float()

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("row", 100):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    target, z = ModelTarget(model), torch.randn(200, 3, dtype=torch.float64)
    log_prob, score = log_prob_and_score(target.log_prob, z)

    assert target.backend == "captured"
    for row in range(0, 200, 40):
        w = z[row].tolist()
        prior = sum(-0.5 * (value / 2.0) ** 2 - math.log(2.0) - 0.5 * math.log(2.0 * math.pi) for value in w)
        total, slope = prior, [-value / 4.0 for value in w]
        for features, label in zip(x.tolist(), y.tolist(), strict=True):
            logit = sum(a * b for a, b in zip(features, w, strict=True))
            total += label * logit - math.log1p(math.exp(logit))
            rest = label - 1.0 / (1.0 + math.exp(-logit))
            slope = [value + rest * feature for value, feature in zip(slope, features, strict=True)]
        assert log_prob[row].item() == pytest.approx(total, rel=1e-10)
        assert score[row].tolist() == pytest.approx(slope, rel=1e-7, abs=1e-9)


def test_the_graph_of_a_regression_is_turned(monkeypatch):
    turned = []
    before = layout_module._turn
    monkeypatch.setattr(layout_module, "_turn", lambda *args: turned.append(before(*args)) or turned[-1])

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("row", 7):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=torch.zeros(7))

    target = ModelTarget(model)
    log_prob_and_score(target.log_prob, torch.randn(200, 3, dtype=torch.float64))

    assert target.backend == "captured"
    assert any(turned)


def _gradient(function):
    def scored(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(function(z).sum(), z)

    return scored


def _by_column(z):
    # Columns of a batch, counted from both ends; the last one is never read.
    return sum((step + 1.0) * torch.sin(0.1 * step * z[:, (0, 1, -2, -3)[step % 4]]) for step in range(40))


def _by_row(z):
    return sum(torch.sin(0.1 * step * z[step % 2]).sum() for step in range(30))


@pytest.mark.parametrize("function", [_by_column, _by_row])
def test_entries_are_added_in_their_order(function):
    # The same numbers to the last bit; and the derivative is that of differences.
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    recorded = record_operations(_gradient(function), z)
    (before,), size = recorded(z), len(recorded.graph.nodes)
    rewritten = entries_added(recorded)
    names = [str(node.target) for node in rewritten.graph.nodes]
    assert "aten.select_backward.default" not in names and len(names) < 0.9 * size
    for run in (rewritten, Interpreter(rewritten)):
        assert torch.equal(run(z)[0], before)
    step = torch.zeros_like(z)
    step[1, 1] = 1e-6
    slope = (function(z + step).sum() - function(z - step).sum()) / 2e-6
    assert torch.isclose(before[1, 1], slope, rtol=1e-6)


def _few(z):
    return z[:, 0].sin() * z[:, 1]


def _read_as_well(z):
    # A sum that something else reads, too, stays; so does one that begins with a whole vector.
    return sum(torch.sin(0.1 * step * z[:, step % 2]) for step in range(20)) + z.square().sum(1)


@pytest.mark.parametrize("function", [_few, _read_as_well])
def test_other_sums_are_what_they_were(function):
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    recorded = record_operations(_gradient(function), z)
    before = recorded(z)[0]
    assert torch.equal(entries_added(recorded)(z)[0], before)


def test_sums_that_are_written_are_left_alone():
    def written(z):
        parts = [torch.ops.aten.select_backward(z[:, step % 2] + step, [5, 4], 1, step % 2) for step in range(12)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        total += 1.0
        return (total,)

    z = torch.randn(5, 4, dtype=torch.float64)
    recorded = record_operations(written, z)
    before = recorded(z)[0]
    assert torch.equal(entries_added(recorded)(z)[0], before) and not torch.equal(before, before - 1.0)
