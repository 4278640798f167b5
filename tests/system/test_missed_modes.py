"""Proper posteriors with a mode that is easy to miss: each evidence is right, or the verdict says that it may not be.

A lost mode is the one error that weights cannot show, so every case has its exact evidence and the share of a mode.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import (
    Mixture,
    assert_right_or_flagged,
    assert_share,
    gaussian,
    grid_log_integral,
    mixture_log_evidence,
    normal_log_prob,
    run,
)
from scipy.special import logsumexp
from scipy.stats import norm

from pyro_osds import OSDS


@dataclass(frozen=True)
class Case:
    """A posterior with several modes.

    Arguments:
        make: Makes the sampler.
        exact: Computes the log evidence and the share of one mode.
        member: The probability that each draw belongs to that mode, from the draws by site; None for no such check.
    """

    make: Callable[[], OSDS]
    exact: Callable[[], tuple[float, float]]
    member: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None


CASES: dict[str, Case] = {}


def sampler(model: Callable[..., Any], **options: Any) -> OSDS:
    return OSDS(model, disable_progbar=True, **options)


def add_density(name: str, mixture: Mixture, component: int = 1) -> None:
    """A mixture given as a log density: no prior says where to look."""
    dim = mixture.components[0].event_shape[0]
    CASES[name] = Case(
        lambda: OSDS.from_log_prob(mixture.log_prob, dim, disable_progbar=True),
        lambda: (0.0, mixture.weights[component].item()),
        lambda samples: mixture.member(samples["z"], component),
    )


def add_uniform(name: str, mixture: Mixture, half_width: float) -> None:
    """A mixture as the likelihood under a uniform prior that holds all of it."""
    dim = mixture.components[0].event_shape[0]

    def model():
        z = pyro.sample("z", dist.Uniform(-half_width, half_width).expand([dim]).to_event(1))
        pyro.factor("likelihood", mixture.log_prob(z))

    CASES[name] = Case(
        lambda: sampler(model),
        lambda: (-dim * math.log(2 * half_width), mixture.weights[1].item()),
        lambda samples: mixture.member(samples["z"], 1),
    )


def add_normal(name: str, mixture: Mixture, prior_sd: float) -> None:
    """A mixture as the likelihood under a normal prior; the posterior is a mixture again."""
    dim = mixture.components[0].event_shape[0]

    def model():
        z = pyro.sample("z", dist.Normal(0.0, prior_sd).expand([dim]).to_event(1))
        pyro.factor("likelihood", mixture.log_prob(z))

    log_evidence, posterior = mixture.under_normal_prior(prior_sd)
    CASES[name] = Case(
        lambda: sampler(model),
        lambda: (log_evidence, posterior.weights[1].item()),
        lambda samples: posterior.member(samples["z"], 1),
    )


def add_model(
    name: str,
    exact: Callable[[], Any],
    member: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A Pyro model with its own reference."""

    def put(model: Callable[..., Any]) -> Callable[..., Any]:
        CASES[name] = Case(lambda: sampler(model, **options), exact, member)
        return model

    return put


def positive(site: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Whether the first number of a site is positive."""
    return lambda samples: (samples[site].reshape(len(samples[site]), -1)[:, 0] > 0).float()


def ascending(site: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Whether the first of exchangeable components lies below the second."""
    return lambda samples: (samples[site][:, 0] < samples[site][:, 1]).float()


# ---- two Gaussians ----


def pair(dim, separation, weights=(0.5, 0.5), scales=(1.0, 1.0), at=-0.3):
    """Two Gaussians, neither of them at the origin nor symmetric about it, apart along the diagonal."""
    direction = torch.full((dim,), dim**-0.5)
    return Mixture(
        weights,
        [gaussian(at * separation * direction, scales[0]), gaussian((1 + at) * separation * direction, scales[1])],
    )


# Far apart, and in more dimensions most of the way between them is empty.
for _dim in (1, 2, 10):
    for _separation in (10.0, 30.0, 100.0):
        _name, _mixture = f"{_dim}d_apart_{_separation:.0f}", pair(_dim, _separation)
        add_density(f"density_{_name}", _mixture)
        add_uniform(f"uniform_{_name}", _mixture, 2 * _separation)
        add_normal(f"normal_{_name}", _mixture, _separation)

# The share of a small mode is a few particles; it lies where nothing leads.
for _share in (0.02, 0.05):
    for _dim in (1, 2, 5):
        _name, _mixture = f"{_dim}d_share_{_share}", pair(_dim, 15.0, (1 - _share, _share))
        add_density(f"density_{_name}", _mixture)
        add_normal(f"normal_{_name}", _mixture, 10.0)


# ---- a narrow mode beside or inside a wide one ----


def spike(dim, width, share, distance):
    """A wide mode at the origin and a narrow one at a distance, in units of the wide one's sd."""
    loc = torch.full((dim,), distance * dim**-0.5)
    return Mixture([1 - share, share], [gaussian(torch.zeros(dim), 1.0), gaussian(loc, width)])


# One in some hundreds or thousands of prior draws lies where the gradient leads to the spike.
for _dim, _width, _share, _distance in (
    (1, 0.01, 0.3, 5.0),
    (1, 0.01, 0.5, 1.0),
    (2, 0.2, 0.5, 5.0),
    (5, 0.5, 0.5, 5.0),
    (10, 0.7, 0.5, 8.0),
):
    _name = f"{_dim}d_{_width}_at_{_distance:.0f}"
    add_normal(f"spike_{_name}", spike(_dim, _width, _share, _distance), 10.0)
    add_density(f"density_spike_{_name}", spike(_dim, _width, _share, _distance))

# Here it is one in ten thousand draws in two dimensions, and none of any number in five and ten.
for _dim, _width, _share, _distance in (
    (2, 0.02, 0.5, 5.0),
    (2, 0.02, 0.3, 1.0),
    (5, 0.05, 0.7, 5.0),
    (5, 0.05, 0.5, 1.0),
    (10, 0.05, 0.5, 5.0),
    (10, 0.05, 0.5, 1.0),
):
    _name = f"{_dim}d_{_width}_at_{_distance:.0f}"
    add_normal(f"needle_{_name}", spike(_dim, _width, _share, _distance), 10.0)
    add_density(f"density_needle_{_name}", spike(_dim, _width, _share, _distance))

# Narrow along one axis and wide along the other, and the other way round.
add_density(
    "crossed_widths",
    Mixture(
        [0.4, 0.6],
        [
            gaussian(torch.tensor([-4.0, 0.0]), torch.tensor([0.1, 3.0])),
            gaussian(torch.tensor([8.0, 2.0]), torch.tensor([2.0, 0.1])),
        ],
    ),
)
add_density("wide_and_narrow", pair(2, 20.0, (0.5, 0.5), (3.0, 0.1)))


def surprise(dim, share):
    """A likelihood whose second mode lies six prior sd out and has that share of the posterior all the same."""
    loc = torch.full((dim,), 6 * dim**-0.5)
    modes = [gaussian(torch.zeros(dim), 1.0), gaussian(loc, 0.1)]
    _, posterior = Mixture([0.5, 0.5], modes).under_normal_prior(1.0)
    odds = (share / (1 - share) * posterior.weights[0] / posterior.weights[1]).item()
    return Mixture([1 / (1 + odds), odds / (1 + odds)], modes)


# The annealing leaves the prior where nothing shows that the likelihood is a million times higher far out.
for _dim in (1, 2, 5):
    add_normal(f"surprise_{_dim}d", surprise(_dim, 0.3), 1.0)


# ---- curved and ring-shaped ----


class Banana:
    """A normalised density along a parabola."""

    event_shape = torch.Size([2])

    def log_prob(self, z):
        """Log density, ``(B, 2) -> (B,)``."""
        curve = 0.3 * z[..., 0].square() - 3.0
        return dist.Normal(0.0, 3.0).log_prob(z[..., 0]) + dist.Normal(curve, 0.3).log_prob(z[..., 1])


class Ring:
    """A normalised density at distance 8 from the origin of the plane."""

    event_shape = torch.Size([2])

    def log_prob(self, z):
        """Log density, ``(B, 2) -> (B,)``."""
        return dist.Normal(8.0, 0.4).log_prob(z.norm(dim=-1)) - math.log(2 * math.pi * 8.0)


# Valleys run through the banana as well: which of them part modes?
add_density("banana_and_blob", Mixture([0.7, 0.3], [Banana(), gaussian(torch.tensor([0.0, 12.0]), 0.2)]))
add_density("ring_and_point", Mixture([0.6, 0.4], [Ring(), gaussian(torch.zeros(2), 0.05)]))
add_density("ring_and_far_point", Mixture([0.9, 0.1], [Ring(), gaussian(torch.tensor([25.0, 0.0]), 0.05)]))


# ---- mixtures of data: every order of the components is a mode ----


def draws_around(means, sd, num_each, seed):
    """Data of a mixture, ``(N,)``."""
    noise = np.random.default_rng(seed).normal(0.0, sd, (len(means), num_each))
    return (np.asarray(means)[:, None] + noise).reshape(-1)


def exchangeable_means(num_components, y, prior_sd, noise_sd, weights=None):
    """Means of a mixture with known scale, and with known equal weights unless ``weights`` is a prior."""
    y = torch.tensor(y, dtype=torch.float32)

    def model():
        mixing = torch.full((num_components,), 1 / num_components)
        if weights is not None:
            mixing = pyro.sample("weights", weights)
        with pyro.plate("components", num_components):
            means = pyro.sample("means", dist.Normal(0.0, prior_sd))
        with pyro.plate("data", len(y)):
            mixture = dist.MixtureSameFamily(dist.Categorical(mixing), dist.Normal(means, noise_sd))
            pyro.sample("y", mixture, obs=y)

    return model


def two_means(low, high, y, scales, prior_sd, mixing=(0.5, 0.5)):
    """Log evidence of two means, and the probability that the first is the smaller one, by quadrature."""

    def log_density(first, second):
        value = normal_log_prob(first, 0, prior_sd) + normal_log_prob(second, 0, prior_sd)
        for datum in y:
            one = math.log(mixing[0]) + normal_log_prob(datum, first, scales[0])
            value = value + np.logaddexp(one, math.log(mixing[1]) + normal_log_prob(datum, second, scales[1]))
        return value

    log_evidence, share = grid_log_integral(
        log_density, (low, high, 1500), (low, high, 1500), inside=lambda a, b: a < b
    )
    # Half of the diagonal belongs to either order.
    return log_evidence, share if scales[0] != scales[1] else 0.5


APART = draws_around((-8.0, 9.0), 1.0, 15, 0)
CLOSE = draws_around((-0.7, 0.7), 1.0, 15, 1)
for _name, _y in (("apart", APART), ("overlapping", CLOSE)):
    add_model(f"two_means_{_name}", functools.partial(two_means, -16, 16, _y, (1.0, 1.0), 10.0), ascending("means"))(
        exchangeable_means(2, _y, 10.0, 1.0)
    )

# Sorted or not, few data: also modes in which two components share a cluster.
for _means, _num_each, _noise_sd in (
    ((-6.0, 0.0, 7.0), 3, 0.5),
    ((-8.0, -2.0, 3.0, 9.0), 2, 0.5),
    ((-9.0, -4.0, 0.0, 5.0, 11.0), 2, 0.5),
):
    _k = len(_means)
    # Five components: nine data, for the sum over assignments to stay small.
    _y = draws_around(_means, _noise_sd, _num_each, _k)[: 8 if _k == 5 else None]
    add_model(
        f"{_k}_means",
        lambda y=_y, k=_k, sd=_noise_sd: (mixture_log_evidence(y, k, 10.0, sd), 0.5),
        ascending("means"),
    )(exchangeable_means(_k, _y, 10.0, _noise_sd))

_y = draws_around((-1.0, 0.5, 2.0), 1.0, 3, 7)
add_model("3_means_overlapping", lambda y=_y: (mixture_log_evidence(y, 3, 5.0, 1.0), 0.5), ascending("means"))(
    exchangeable_means(3, _y, 5.0, 1.0)
)

_y = np.concatenate([draws_around((-5.0,), 1.0, 8, 3), draws_around((5.0,), 1.0, 3, 4)])
add_model("unknown_weights", lambda y=_y: (mixture_log_evidence(y, 2, 5.0, 1.0, 1.0), 0.5), ascending("means"))(
    exchangeable_means(2, _y, 5.0, 1.0, dist.Dirichlet(torch.ones(2)))
)
_y = draws_around((-6.0, 0.0, 6.0), 0.7, 3, 5)
add_model("3_unknown_weights", lambda y=_y: (mixture_log_evidence(y, 3, 5.0, 0.7, 2.0), 0.5), ascending("means"))(
    exchangeable_means(3, _y, 5.0, 0.7, dist.Dirichlet(2 * torch.ones(3)))
)

# Scales tell the components apart, a little: the wrong order is a mode of its own, smaller than the right one.
_Y_SCALES = np.concatenate([draws_around((-3.0,), 0.8, 4, 10), draws_around((3.0,), 1.2, 4, 11)])


@add_model("unequal_scales", functools.partial(two_means, -12, 12, _Y_SCALES, (0.8, 1.2), 5.0), ascending("means"))
def unequal_scales():
    y = torch.tensor(_Y_SCALES, dtype=torch.float32)
    means = pyro.sample("means", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(means, torch.tensor([0.8, 1.2]))
        )
        pyro.sample("y", mixture, obs=y)


# ---- mixture of regressions ----

_X = np.linspace(-2.0, 2.0, 16)
_Y_LINES = np.where(np.arange(16) % 2, 3.0, -2.0) * _X + np.random.default_rng(2).normal(0.0, 0.3, 16)


def two_lines_exact():
    def log_density(first, second):
        value = normal_log_prob(first, 0, 5) + normal_log_prob(second, 0, 5)
        for x, y in zip(_X, _Y_LINES, strict=True):
            one, two = normal_log_prob(y, first * x, 0.3), normal_log_prob(y, second * x, 0.3)
            value = value + np.logaddexp(one, two) - math.log(2)
        return value

    return grid_log_integral(log_density, (-5, 6, 2500), (-5, 6, 2500))[0], 0.5


@add_model("two_lines", two_lines_exact, ascending("slopes"))
def two_lines():
    x, y = torch.tensor(_X, dtype=torch.float32), torch.tensor(_Y_LINES, dtype=torch.float32)
    with pyro.plate("lines", 2):
        slopes = pyro.sample("slopes", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        lines = dist.Normal(slopes * x[:, None], 0.3)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(len(y), 2)), lines), obs=y)


# ---- signs, squares, phases, frequencies ----

_Y_FACTOR = np.random.default_rng(0).normal(0, 1, (20, 1)) * np.array([1.5, -1.0]) + np.random.default_rng(1).normal(
    0, 0.5, (20, 2)
)


def factor_exact():
    # Factors integrate out: each row is normal with covariance w w' + s^2 I.
    scatter = _Y_FACTOR.T @ _Y_FACTOR

    def log_density(a, b):
        size = a**2 + b**2
        projected = a**2 * scatter[0, 0] + 2 * a * b * scatter[0, 1] + b**2 * scatter[1, 1]
        quadratic = (np.trace(scatter) - projected / (0.25 + size)) / 0.25
        log_det = np.log(0.25) + np.log(0.25 + size)
        log_likelihood = -0.5 * (quadratic + 20 * (log_det + 2 * math.log(2 * math.pi)))
        return normal_log_prob(a, 0, 1) + normal_log_prob(b, 0, 1) + log_likelihood

    return grid_log_integral(log_density, (-6, 6, 2000), (-6, 6, 2000))


@add_model("factor_signs", factor_exact, positive("w"))
def factor_signs():
    # Twenty-two dimensions: the loadings and all factors change sign together.
    y = torch.tensor(_Y_FACTOR, dtype=torch.float32)
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", 20):
        factor = pyro.sample("factor", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(factor[:, None] * w, 0.5).to_event(1), obs=y)


def squares_exact(y=(4.0, 2.0, 9.0, 0.5), sd=0.3):
    parts = [
        grid_log_integral(lambda x, v=v: normal_log_prob(x, 1, 2) + normal_log_prob(v, x**2, sd), (-9, 11, 100_001))
        for v in y
    ]
    return sum(log_evidence for log_evidence, _ in parts), parts[0][1]


@add_model("squares", squares_exact, positive("x"))
def squares():
    # Each of four numbers has a sign of its own: sixteen modes of unequal size.
    with pyro.plate("data", 4):
        x = pyro.sample("x", dist.Normal(1.0, 2.0))
        pyro.sample("y", dist.Normal(x.square(), 0.3), obs=torch.tensor([4.0, 2.0, 9.0, 0.5]))


@add_model("one_square", lambda: squares_exact((40.0,), 0.05), positive("x"))
def one_square():
    # Narrow modes, three prior sd away on one side and four on the other.
    x = pyro.sample("x", dist.Normal(1.0, 2.0))
    pyro.sample("y", dist.Normal(x.square(), 0.05), obs=torch.tensor(40.0))


_T = np.linspace(0.0, 7.0, 8)
_Y_SINE = np.sin(1.7 * _T + 0.4) + np.random.default_rng(3).normal(0.0, 0.2, 8)


def sinusoid_exact():
    def log_density(omega, phase):
        value = np.full_like(omega, -math.log(20) - math.log(2 * math.pi))
        for t, y in zip(_T, _Y_SINE, strict=True):
            value = value + normal_log_prob(y, np.sin(omega * t + phase), 0.2)
        return value

    return grid_log_integral(
        log_density, (0, 20, 8000), (0, 2 * math.pi, 600), inside=lambda omega, phase: omega < math.pi
    )


@add_model("sinusoid", sinusoid_exact, lambda samples: (samples["omega"] < math.pi).float())
def sinusoid():
    # Evenly spaced times: every frequency has aliases 2 pi apart, and mirror images with another phase.
    t, y = torch.tensor(_T, dtype=torch.float32), torch.tensor(_Y_SINE, dtype=torch.float32)
    omega = pyro.sample("omega", dist.Uniform(0.0, 20.0))
    phase = pyro.sample("phase", dist.Uniform(0.0, 2 * math.pi))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.sin(omega * t + phase), 0.2), obs=y)


_T_UNEVEN = np.sort(np.random.default_rng(5).uniform(0.0, 10.0, 25))
_Y_UNEVEN = np.sin(12.3 * _T_UNEVEN) + np.random.default_rng(6).normal(0.0, 0.3, 25)


def frequency_exact():
    def log_density(omega):
        return -math.log(30) + normal_log_prob(_Y_UNEVEN, np.sin(omega[:, None] * _T_UNEVEN), 0.3).sum(1)

    return grid_log_integral(log_density, (0, 30, 200_000), inside=lambda omega: omega > 12)


@add_model("frequency", frequency_exact, lambda samples: (samples["omega"] > 12).float())
def frequency():
    # One narrow spike among dozens of local maxima, like a periodogram.
    t, y = torch.tensor(_T_UNEVEN, dtype=torch.float32), torch.tensor(_Y_UNEVEN, dtype=torch.float32)
    omega = pyro.sample("omega", dist.Uniform(0.0, 30.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.sin(omega * t), 0.3), obs=y)


def phases_exact():
    def log_density(theta):
        return -math.log(2 * math.pi) + normal_log_prob(0.6, np.cos(3 * theta), 0.05)

    return grid_log_integral(log_density, (-math.pi, math.pi, 100_000), inside=lambda theta: abs(theta) < 1)


@add_model("phases", phases_exact, lambda samples: (samples["theta"].abs() < 1).float())
def phases():
    # Six angles of equal weight explain the one number that is known.
    theta = pyro.sample("theta", dist.Uniform(-math.pi, math.pi))
    pyro.sample("y", dist.Normal(torch.cos(3 * theta), 0.05), obs=torch.tensor(0.6))


_DIRECTIONS = np.random.default_rng(8).normal(0.0, 1.0, (6, 2))
_Y_PHASE = (_DIRECTIONS @ np.array([2.0, -1.0])) ** 2 + np.random.default_rng(9).normal(0.0, 0.3, 6)


def retrieval_exact():
    def log_density(a, b):
        value = normal_log_prob(a, 0, 3) + normal_log_prob(b, 0, 3)
        for (u, v), y in zip(_DIRECTIONS, _Y_PHASE, strict=True):
            value = value + normal_log_prob(y, (u * a + v * b) ** 2, 0.3)
        return value

    return grid_log_integral(log_density, (-6, 6, 3000), (-6, 6, 3000))


@add_model("phase_retrieval", retrieval_exact, positive("x"))
def phase_retrieval():
    # Squares of projections say nothing about the sign of a vector.
    directions, y = torch.tensor(_DIRECTIONS, dtype=torch.float32), torch.tensor(_Y_PHASE, dtype=torch.float32)
    x = pyro.sample("x", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((directions @ x).square(), 0.3), obs=y)


# ---- jumps and conflicts ----

_Y_JUMP = np.array([0.1, -0.3, 0.2, 0.0, 2.1, 1.8, 2.2, 4.1, 3.8, 4.3, 3.9, 4.0])


def changepoint_exact():
    # The density is constant between data: a sum over where the change is, each term a product of two conjugate ones.
    num, log_terms = len(_Y_JUMP), []
    for before in range(num):
        left, right = _Y_JUMP[: before + 1], _Y_JUMP[before + 1 :]
        log_terms.append(sum(_conjugate(part) for part in (left, right) if len(part)) - math.log(num))
    log_evidence = logsumexp(log_terms)
    return log_evidence, float(np.exp(log_terms[3] - log_evidence))


def _conjugate(y, prior_sd=3.0, noise_sd=0.8):
    covariance = prior_sd**2 + noise_sd**2 * np.eye(len(y))
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])


@add_model("changepoint", changepoint_exact, lambda samples: ((samples["tau"] > 3) & (samples["tau"] < 4)).float())
def changepoint():
    # No gradient leads from one place of the change to another, and the levels must move with it.
    y = torch.tensor(_Y_JUMP, dtype=torch.float32)
    tau = pyro.sample("tau", dist.Uniform(0.0, float(len(y))))
    levels = pyro.sample("levels", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        level = torch.where(torch.arange(len(y)) <= tau, levels[0], levels[1])
        pyro.sample("y", dist.Normal(level, 0.8), obs=y)


def conflict_exact():
    def log_density(x):
        prior, likelihood = np.log1p(x**2), np.log1p((x - 30) ** 2 / 0.04)
        return -2 * math.log(math.pi) - math.log(0.2) - prior - likelihood

    return grid_log_integral(log_density, (-1e4, 1e4, 8_000_000), inside=lambda x: x > 15)


@add_model("cauchy_conflict", conflict_exact, lambda samples: (samples["x"] > 15).float())
def cauchy_conflict():
    # Heavy tails do not compromise: the prior keeps its mode, the datum has its own.
    x = pyro.sample("x", dist.Cauchy(0.0, 1.0))
    pyro.sample("y", dist.Cauchy(x, 0.2), obs=torch.tensor(30.0))


def outlier_exact():
    y = np.array([0.0, 0.3, 12.0])

    def log_density(x):
        return norm.logpdf(x, 0, 10) + sum(_contaminated(v, x) for v in y)

    return grid_log_integral(log_density, (-60, 60, 600_000), inside=lambda x: x > 6)


def _contaminated(y, x):
    return np.logaddexp(math.log(0.9) + normal_log_prob(y, x, 0.05), math.log(0.1) + normal_log_prob(y, x, 10.0))


@add_model("outliers", outlier_exact, lambda samples: (samples["x"] > 6).float())
def outliers():
    # Each datum may be the good one: three narrow modes on a broad floor.
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    for index, value in enumerate((0.0, 0.3, 12.0)):
        noise = dist.Normal(x, torch.tensor([0.05, 10.0]))
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.9, 0.1])), noise)
        pyro.sample(f"y_{index}", mixture, obs=torch.tensor(value))


# ---- the test ----

# A few of each kind; the others are marked slow, each for itself or because they are many.
QUICK = {
    "density_1d_apart_10",
    "normal_1d_apart_30",
    "density_2d_apart_30",
    "spike_1d_0.01_at_5",
    "wide_and_narrow",
    "surprise_1d",
    "two_means_apart",
}
assert CASES.keys() >= QUICK
_PARAMS = [
    pytest.param(case, id=name, marks=[] if name in QUICK else [pytest.mark.long]) for name, case in CASES.items()
]


@pytest.mark.parametrize("case", _PARAMS)
def test_a_reliable_evidence_has_all_modes(case):
    # Evidence within three standard errors, mode shares within Monte Carlo error, or not called reliable.
    log_evidence, share = case.exact()
    osds = run(case.make())
    assert_right_or_flagged(osds, log_evidence)
    if case.member is not None:
        assert_share(osds, case.member(osds.get_samples()), share)
