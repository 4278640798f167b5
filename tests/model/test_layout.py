"""Products in a recorded density are turned where points would not be rows, and only where nothing else changes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.model import layout as layout_module
from pyro_osds.model.layout import rows_first
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
