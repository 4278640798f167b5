"""Plot fit: four pictures from a sampler, or from what it saved."""

import builtins
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

from pyro_osds import OSDS, UnreliableEvidenceWarning, plot_fit

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

OPTIONS = {"num_samples": 50, "num_chains": 2, "num_particles": 16, "escalate": False, "disable_progbar": True}
TITLES = ["Training", "Tail of the weights", "Spread of the weights", "Log evidences"]


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def skewed(z):
    return -z.exp().sum(-1) + 5 * z.sum(-1)


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(skewed, 2, num_iterations=10, **OPTIONS)
    with warnings.catch_warnings():
        # Whatever the verdict, there are pictures.
        warnings.simplefilter("ignore", UnreliableEvidenceWarning)
        osds.run()
    return osds


@pytest.fixture(scope="module")
def saved(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return fitted.to_inference_data(log_likelihood=False)


def groups(fit=(), stats=()):
    """A small fit as saved, some of it replaced."""
    fit = {
        "log_evidence": -1.0, "std_error": 0.1, "elbo": -1.2, "reliable": 1, "reasons": "",
        "exploration_log_evidence": -1.1, "exploration_std_error": 0.2,
        "bridge_log_evidence": math.nan, "bridge_std_error": math.nan,
    } | dict(fit)  # fmt: skip
    stats = {
        "log_weight": -1.0 + 0.5 * torch.randn(500).numpy(), "loss": np.array([3.0, 2.0, 1.5, 1.3]),
        "exact_volume": np.array([3.0, 2.0, 1.5, 1.3]),
        "step": np.array([0, 2, 4]), "elbo": np.array([-9.0, -2.0, -1.2]),
    } | dict(stats)  # fmt: skip
    return {
        "fit": xr.Dataset({name: ((), value) for name, value in fit.items()}),
        "fit_stats": xr.Dataset({name: ((f"{name}_dim",), value) for name, value in stats.items()}),
    }


def line(ax, label):
    return next(line for line in ax.lines if line.get_label().startswith(label))


def test_a_sampler_and_its_saved_data_give_the_same(fitted, saved, tmp_path):
    # Also after a netCDF round trip.
    saved.to_netcdf(tmp_path / "fit.nc")
    read = {name: xr.open_dataset(tmp_path / "fit.nc", group=name) for name in ("fit", "fit_stats")}
    pictures = [plot_fit(source) for source in (fitted, saved, read)]
    for axes in pictures:
        assert [ax.get_title() for ax in axes] == TITLES
        assert all(ax.get_xlabel() for ax in axes)
        for one, other in zip(pictures[0], axes, strict=True):
            drawn = [[line.get_xydata().tolist() for line in ax.lines] for ax in (one, other)]
            assert drawn[0] == drawn[1]
            assert [patch.get_bbox().bounds for patch in one.patches] == [p.get_bbox().bounds for p in other.patches]
    for dataset in read.values():
        dataset.close()


def test_training(fitted):
    # Batches by step, the ELBO of each round, the log evidence as a line; the last ELBO is on the picture.
    ax = plot_fit(fitted)[0]
    history = fitted.trainer.history
    assert line(ax, "mean log weight").get_ydata().tolist() == [-loss for loss in history.loss]
    rounds = line(ax, "ELBO").get_xydata()
    assert rounds[:, 0].tolist() == history.step[1:] and rounds[:, 1].tolist() == history.elbo[1:]
    assert set(line(ax, "log evidence").get_ydata()) == {fitted.log_evidence}
    low, high = ax.get_ylim()
    assert low < history.elbo[-1] < fitted.log_evidence < high


def test_warm_up_steps_are_not_weights():
    # Where a step has no weights of its own, its loss is another quantity: shaded instead of drawn.
    stats = {"loss": np.array([900.0, 800.0, 1.5, 1.3]), "exact_volume": np.array([math.nan, math.nan, 1.5, 1.3])}
    ax = plot_fit(groups(stats=stats))[0]
    assert line(ax, "mean log weight").get_xydata().tolist() == [[3.0, -1.5], [4.0, -1.3]]
    assert [patch.get_label() for patch in ax.patches if patch.get_label() == "warm-up"] == ["warm-up"]


def test_tail(fitted):
    # The largest weight is on the picture, the fitted shape in the legend is that of the verdict.
    ax = plot_fit(fitted)[1]
    weight = torch.softmax(fitted.fit.draws.flow_log_weight.double(), 0)
    draws = line(ax, "draws")
    assert math.isclose(draws.get_xdata()[0], weight.max().item() * len(weight), rel_tol=1e-6)
    assert np.all(np.diff(draws.get_xdata()) <= 0) and np.all(np.diff(draws.get_ydata()) > 0)
    assert f"k = {fitted.evidence.pareto_k:.2f}," in line(ax, "fitted tail").get_label()
    # The fitted tail goes through the middle of the drawn one.
    tail = line(ax, "fitted tail").get_xydata()
    expected = np.interp(np.log(0.01), np.log(tail[:, 1]), tail[:, 0])
    got = draws.get_xdata()[np.abs(draws.get_ydata() - 0.01).argmin()]
    assert abs(expected - got) < 0.1 * got


def test_tails_without_a_shape():
    # Equal weights, one weight that carries all, and no weight at all are words.
    words = []
    for log_weight in (np.zeros(500), np.r_[np.full(499, -2000.0), 0.0], np.full(500, -np.inf)):
        ax = plot_fit(groups(stats={"log_weight": log_weight}))[1]
        words.append([*(text.get_text() for text in ax.texts), *(one.get_label() for one in ax.lines)][-1])
    assert words == ["nearly equal weights: no tail", "a few draws carry everything", "no draw has any weight"]


def test_spread(fitted):
    # Every draw with a weight is in the histogram, the share of effective ones in words.
    ax = plot_fit(fitted)[2]
    evidence = fitted.evidence
    assert sum(patch.get_height() for patch in ax.patches) == evidence.num_draws
    assert ax.texts[0].get_text() == f"{evidence.ess / evidence.num_draws:.1%} of {evidence.num_draws} draws effective"
    some = np.r_[np.zeros(490), np.full(10, -np.inf)]
    assert "10 draws of weight zero" in plot_fit(groups(stats={"log_weight": some}))[2].texts[0].get_text()


def test_evidences():
    # Two standard errors to either side; what there is not has no row.
    ax = plot_fit(groups())[3]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["log evidence", "exploration", "ELBO"]
    bars = [container[2][0].get_segments()[0][:, 0].tolist() for container in ax.containers if container.has_xerr]
    assert bars == [pytest.approx([-1.2, -0.8]), pytest.approx([-1.5, -0.7])]
    with_refinement = plot_fit(groups({"bridge_log_evidence": -1.0, "bridge_std_error": 0.1}))[3]
    assert [label.get_text() for label in with_refinement.get_yticklabels()][2] == "refinement"


def test_verdict_is_the_title():
    # With the first reason where there is one, in another colour.
    good = plot_fit(groups())[0].figure
    bad = plot_fit(groups({"reliable": 0, "reasons": "The tail is heavy.\nAnd more."}))[0].figure
    assert good.get_suptitle() == "log evidence \N{MINUS SIGN}1.0000 ± 0.1000 nats: reliable"
    assert bad.get_suptitle().endswith("NOT reliable. The tail is heavy.")
    assert good._suptitle.get_color() != bad._suptitle.get_color()


def test_no_evidence_and_no_training():
    # An improper prior has no evidence, a model without continuous latents no training; both have pictures.
    axes = plot_fit(groups({"log_evidence": math.nan, "std_error": math.nan, "reliable": 0, "reasons": "improper"}))
    assert [label.get_text() for label in axes[3].get_yticklabels()] == ["exploration", "ELBO"]
    assert not any(one.get_label().startswith("log evidence") for one in axes[0].lines)
    nothing = {name: np.empty(0) for name in ("loss", "exact_volume", "step", "elbo")}
    assert plot_fit(groups(stats=nothing))[0].texts[0].get_text() == "nothing to train"
    axes[0].figure.draw_without_rendering()


def test_given_axes(fitted):
    # Four of them, in any arrangement.
    _, axes = plt.subplots(1, 4)
    assert plot_fit(fitted, axes)[2] is axes[2]
    with pytest.raises(ValueError, match=r"draws four pictures; got 3 axes"):
        plot_fit(fitted, axes[:3])


def test_something_else_has_no_fit():
    with pytest.raises(ValueError, match=r"no fit to plot in a dict: pass a fitted OSDS object"):
        plot_fit({"posterior": xr.Dataset()})
    with pytest.raises(RuntimeError, match=r"call run\(\.\.\.\)"):
        plot_fit(OSDS.from_log_prob(skewed, 2))


def test_without_matplotlib(fitted, monkeypatch):
    # The cure is named.
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"plot_fit needs matplotlib.*pip install 'pyro-osds\[plot\]'"):
        plot_fit(groups())
