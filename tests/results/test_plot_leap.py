"""Plot leap: base draws, where they land, the posterior."""

import builtins
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, UnreliableEvidenceWarning, plot_leap
from pyro_osds.results.plot_leap import _chosen, _columns, _regions

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Y = torch.tensor([[1.2, 0.4, 2.1], [0.7, -0.2, 0.4]])


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def model(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(mu[:, None], scale).expand([2, 3]).to_event(2), obs=y)


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    osds = OSDS(
        model, num_samples=50, num_iterations=10, num_particles=16, escalate=False, disable_progbar=True
    )  # fmt: skip
    with warnings.catch_warnings():
        # Whatever the verdict, there are pictures.
        warnings.simplefilter("ignore", UnreliableEvidenceWarning)
        osds.run(Y)
    return osds


def points(ax):
    """The dots of a picture, and the arrows if there are any."""
    dots = [one for one in ax.collections if isinstance(one, matplotlib.collections.PathCollection)]
    arrows = [one for one in ax.collections if isinstance(one, matplotlib.quiver.Quiver)]
    return np.asarray(dots[-1].get_offsets()), arrows


def test_three_pictures(fitted):
    # Labelled by the user's parameters; posterior draws are those of the sampler.
    axes = plot_leap(fitted)
    assert [ax.get_title() for ax in axes] == ["Base draws", "One leap", "Posterior draws"]
    assert all(ax.get_xlabel() == "scale" and ax.texts for ax in axes) and axes[0].get_ylabel() == "mu[0]"
    drawn, _ = points(axes[2])
    samples = fitted.get_samples()
    np.testing.assert_allclose(drawn[:, 0], samples["scale"], rtol=1e-6)
    np.testing.assert_allclose(drawn[:, 1], samples["mu"][:, 0], rtol=1e-6)


def test_arrows_lead_to_where_the_leap_lands(fitted):
    # From the base draws of the first picture, by the leap, to the dots, in constrained coordinates.
    torch.manual_seed(3)
    axes = plot_leap(fitted, ("mu[1]", "scale"), num_arrows=17)
    start, _ = points(axes[0])
    end, (arrows,) = points(axes[1])
    assert len(end) == arrows.N == 17
    np.testing.assert_allclose(arrows.XY, start[:17])
    np.testing.assert_allclose(start[:17] + np.stack([arrows.U, arrows.V], 1), end, rtol=1e-6)
    torch.manual_seed(3)
    leap = fitted.fit.leap
    with torch.no_grad():
        landed = fitted.fit.constrain(leap(leap.base.density.sample(torch.Size([len(start)])))[0])
    np.testing.assert_allclose(end[:, 0], landed["mu"][:17, 1], rtol=1e-5)
    np.testing.assert_allclose(end[:, 1], landed["scale"][:17], rtol=1e-5)


def test_coordinates(fitted):
    # A site with several elements; two names; the first two by default.
    names = list(_columns({"a": torch.zeros(3), "b": torch.zeros(3, 2, 2), "bc": torch.zeros(3)}))
    assert names == ["a", "b[0,0]", "b[0,1]", "b[1,0]", "b[1,1]", "bc"]
    assert _chosen("b", names) == ["b[0,0]", "b[0,1]"] and _chosen(None, names) == ["a", "b[0,0]"]
    assert _chosen(("bc", "a"), names) == ["bc", "a"]
    for wrong in ("a", "c", ("a", "c"), ("a",), ("a", "bc", "c")):
        with pytest.raises(ValueError, match="plot_leap needs two coordinates; got .* and the posterior has a, b"):
            _chosen(wrong, names)


def test_regions_hold_what_they_say(fitted):
    # The outermost line surrounds about 95 % of the draws.
    ax = plot_leap(fitted)[2]
    drawn, _ = points(ax)
    lines = [one for one in ax.collections if isinstance(one, matplotlib.contour.QuadContourSet) and not one.filled]
    inside = np.zeros(len(drawn), dtype=bool)
    for polygon in lines[0].get_paths()[0].to_polygons():
        inside |= matplotlib.path.Path(polygon).contains_points(drawn)
    # Draws outside the axes belong to no region.
    assert 0.88 < inside.mean() <= 0.97


def test_draws_on_a_line_have_no_regions():
    # Two shares of a whole have no density in two dimensions; nor have too few draws.
    ax = plt.subplots()[1]
    share = np.linspace(0.1, 0.9, 50)
    limits = np.array([[0.0, 0.0], [1.0, 1.0]])
    for drawn in (np.stack([share, 1.0 - share], 1), np.stack([share, share**2], 1)[:2]):
        _regions(ax, drawn, limits)
        assert len(ax.collections) == 0
    _regions(ax, np.stack([share, share**2], 1), limits)
    assert len(ax.collections) == 2


def test_given_axes(fitted):
    _, axes = plt.subplots(3)
    assert plot_leap(fitted, axes=axes)[1] is axes[1]
    with pytest.raises(ValueError, match="draws three pictures; got 2 axes"):
        plot_leap(fitted, axes=axes[:2])


def test_bad_input(fitted, monkeypatch):
    # Numbers, networks, and a sampler that was not run.
    with pytest.raises(ValueError, match="num_arrows must be an integer of at least 1, got 0"):
        plot_leap(fitted, num_arrows=0)
    with pytest.raises(RuntimeError, match=r"call run\(\.\.\.\)"):
        plot_leap(OSDS(model))
    monkeypatch.setattr(fitted.fit, "leap", SimpleNamespace(can_invert=False))
    with pytest.raises(ValueError, match="use network='coupling'"):
        plot_leap(fitted)


def test_without_matplotlib(fitted, monkeypatch):
    # The cure is named.
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"plot_leap needs matplotlib.*pip install 'pyro-osds\[plot\]'"):
        plot_leap(fitted)
