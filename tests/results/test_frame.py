"""Draws as a table, and resampled to equal weights."""

import builtins
import math

import pytest
import torch

from pyro_osds import WeightedDraws
from pyro_osds.results.frame import to_dataframe


def test_columns_are_named_as_arviz_names_them():
    az = pytest.importorskip("arviz")
    if int(az.__version__.split(".")[0]) >= 1:
        pytest.skip("ArviZ 0 has from_dict of groups by keyword")
    torch.manual_seed(0)
    samples = {"mu": torch.randn(2, 30), "theta": torch.randn(2, 30, 2), "cov": torch.randn(2, 30, 2, 2)}
    frame = to_dataframe(samples)
    theirs = az.summary(az.from_dict(posterior={name: value.numpy() for name, value in samples.items()}))
    assert frame.columns.tolist() == ["chain", "draw", *theirs.index]
    assert frame[frame.chain == 1].iloc[4]["cov[1, 0]"] == samples["cov"][1, 4, 1, 0]
    assert frame[["chain", "draw"]].drop_duplicates().shape == (60, 2)


def test_sites_with_the_names_of_columns_keep_both():
    assert to_dataframe({"draw": torch.zeros(1, 3)}).columns.tolist() == ["chain", "draw", "draw_"]


def test_without_pandas_the_cure_is_told(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        to_dataframe({"mu": torch.zeros(1, 3)})


def weighted(num_draws=4000):
    torch.manual_seed(0)
    z = torch.randn(num_draws, 1, dtype=torch.float64)
    log_weight = z[:, 0] - 3.0  # draws of N(0, 1) weighted to N(1, 1), with a constant of exp(1/2 - 3)
    return WeightedDraws({"x": z[:, 0]}, log_weight, log_weight, log_weight, z)


def test_equal_weights_keep_moments_and_evidence():
    draws = weighted()
    equal = draws.resampled()
    assert len(equal) == len(draws) and len(equal.log_weights.unique()) == 1
    assert equal.num_distinct == len(equal.z.unique()) < len(draws)
    torch.testing.assert_close(equal.get_log_normalizer(), draws.get_log_normalizer())
    assert equal.samples["x"].mean().item() == pytest.approx(1.0, abs=4 / math.sqrt(draws.get_ESS()))
    mean = (torch.softmax(draws.log_weights, 0) * draws.z[:, 0]).sum()
    assert abs(equal.z.mean() - mean) < 0.01  # systematic: what it adds is far below the noise of the draws


def test_draws_without_weight_are_never_taken_and_none_is_refused():
    draws = weighted(100)
    none = torch.full((100,), -torch.inf)
    with pytest.raises(ValueError, match="positive posterior density"):
        WeightedDraws(draws.samples, none, none, none, draws.z).resampled()
    first = none.clone()
    first[0] = 0.0
    assert WeightedDraws(draws.samples, first, none, none, draws.z).resampled().num_distinct == 1
