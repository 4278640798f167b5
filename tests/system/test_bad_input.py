"""Input that goes wrong in practice: the result is right, or the run refuses, or the verdict says what is wrong.

Nothing here may end in a confident wrong number. References are closed forms and quadrature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import (
    assert_right_or_flagged,
    assert_share,
    grid_log_integral,
    linear_log_evidence,
    normal_log_prob,
    run,
)
from pyro.distributions import constraints
from scipy.special import log_expit
from scipy.stats import chi2, norm

from pyro_osds import OSDS


@dataclass(frozen=True)
class Case:
    """A proper posterior on which something may go wrong.

    Arguments:
        make: Makes the sampler, given its options.
        exact: Computes the log evidence and, if there is one to check, the probability of an event.
        event: Whether it happened, from the draws by site.
        may_refuse: Whether an error is an answer too.
        must_be_reliable: Whether a flag is no answer.
    """

    make: Callable[..., OSDS]
    exact: Callable[[], tuple[float, float]]
    event: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None
    may_refuse: bool = False
    must_be_reliable: bool = False


CASES: dict[str, Case] = {}


def add_model(name: str, exact: Callable[[], tuple[float, float]] | float, event: Any = None, **options: Any):
    """A Pyro model with its reference."""

    def put(model: Callable[..., Any]) -> Callable[..., Any]:
        CASES[name] = Case(lambda **more: OSDS(model, disable_progbar=True, **more), _callable(exact), event, **options)
        return model

    return put


def add_density(
    name: str,
    dim: int,
    exact: Callable[[], tuple[float, float]] | float,
    event: Any = None,
    dtype: Any = None,
    **options: Any,
):
    """A log density with its reference."""

    def put(log_prob: Callable[..., Any]) -> Callable[..., Any]:
        CASES[name] = Case(
            lambda **more: OSDS.from_log_prob(log_prob, dim, dtype=dtype, disable_progbar=True, **more),
            _callable(exact),
            event,
            **options,
        )
        return log_prob

    return put


def _callable(exact: Callable[[], tuple[float, float]] | float) -> Callable[[], tuple[float, float]]:
    return exact if callable(exact) else lambda: (exact, math.nan)


def normal_model(y, prior_sd=2.0, noise_sd=1.0):
    """A normal mean, in the dtype of the data."""

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0 * y.new_ones(()), prior_sd))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, noise_sd), obs=y)

    return model


def normal_exact(y, prior_sd=2.0, noise_sd=1.0):
    """Log evidence of a normal mean: the density of the data's mean times that of the residuals."""
    y = np.asarray(y, dtype=float)
    count = len(y)
    if not count:
        return 0.0
    residuals = ((y - y.mean()) ** 2).sum() / noise_sd**2
    constant = (count - 1) * math.log(2 * math.pi * noise_sd**2) + math.log(count)

    return float(
        normal_log_prob(y.mean(), 0.0, math.sqrt(prior_sd**2 + noise_sd**2 / count)) - 0.5 * (constant + residuals)
    )


def positive(samples):
    """Whether the first number of the only site is positive."""
    (value,) = samples.values()
    return (value.reshape(len(value), -1)[:, 0] > 0).float()


def outside_one(samples):
    """Whether the first number of the only site is larger than one in size."""
    (value,) = samples.values()
    return (value.reshape(len(value), -1)[:, 0].abs() > 1).float()


# ---- data that are not numbers, or hardly ----


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("likelihood", [dist.Normal, dist.Cauchy, dist.Laplace])
def test_data_that_are_not_finite_are_refused_by_site(likelihood, value):
    # One bad row of five makes the density useless everywhere; the message says which site holds it.
    y = torch.tensor([1.2, 0.4, value, 1.7, 0.9])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", likelihood(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match="'y'"):
        run(OSDS(model, disable_progbar=True))


def test_a_nan_among_the_covariates_is_refused_by_site():
    # The data are fine, what predicts them is not.
    x = torch.tensor([0.5, math.nan, 1.0])

    def model():
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=torch.tensor([0.3, 0.1, 0.9]))

    with pytest.raises(ValueError, match="'y'"):
        run(OSDS(model, disable_progbar=True))


# 1e200 squared is no number, nor is 1e30 squared in single precision; 1e10 squared is one without any digits after it.
for _value, _dtype in ((1e300, torch.float64), (1e30, torch.float32), (1e10, torch.float32), (1e10, torch.float64)):
    _y = torch.tensor([1.2, 0.4, _value], dtype=_dtype)
    add_model(
        f"observation_{_value:.0e}_{str(_dtype)[6:]}",
        lambda y=_y: (normal_exact(y) if y.max() < 1e100 else -math.inf, math.nan),
        may_refuse=True,
    )(normal_model(_y))

# The prior is as wide as the datum is large: the posterior is narrower than the spacing of the numbers there.
for _value, _dtype in ((1e30, torch.float32), (1e12, torch.float64)):
    _y = torch.tensor([_value], dtype=_dtype)
    add_model(f"wide_prior_{_value:.0e}_{str(_dtype)[6:]}", normal_exact(_y, _value, 1.0), may_refuse=True)(
        normal_model(_y, _value, 1.0)
    )


# ---- separable logistic regression ----

_SEPARABLE = np.array([-2.0, -1.1, -0.4, 0.3, 0.9, 1.7])


def separable(prior, dim=1):
    x = torch.tensor(_SEPARABLE, dtype=torch.float32)

    def model():
        slope = pyro.sample("slope", prior)
        intercept = pyro.sample("intercept", prior) if dim == 2 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=intercept + slope * x), obs=(x > 0).float())

    return model


def separable_exact(prior_sd, dim):
    sign = np.where(_SEPARABLE > 0, 1.0, -1.0)

    def log_density(slope, intercept=0.0):
        value = normal_log_prob(slope, 0, prior_sd)
        if dim == 2:
            value = value + normal_log_prob(intercept, 0, prior_sd)
        for x, s in zip(_SEPARABLE, sign, strict=True):
            value = value + log_expit(s * (intercept + slope * x))
        return value

    reach = 6 * prior_sd
    axes = [(-reach, reach, 1200 if dim == 2 else 100_000)] * dim
    return grid_log_integral(log_density, *axes, inside=lambda slope, *_: slope > prior_sd)


for _sd in (10.0, 100.0):
    for _dim in (1, 2):
        add_model(
            f"separable_{_dim}d_sd_{_sd:.0f}",
            lambda sd=_sd, dim=_dim: separable_exact(sd, dim),
            lambda samples, sd=_sd: (samples["slope"] > sd).float(),
        )(separable(dist.Normal(0.0, _sd), _dim))


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.long)])
def test_an_improper_posterior_is_said_to_be_one(dim):
    # With a flat prior nothing stops the slope of separable data; the prior is named, and the draws are no good either.
    flat = dist.ImproperUniform(constraints.real, (), ())
    try:
        osds = run(OSDS(separable(flat, dim), disable_progbar=True))
    except ValueError as error:
        assert "'slope'" in str(error)
        return
    evidence = osds.evidence
    assert math.isnan(evidence.log_evidence) and not evidence.reliable
    assert "'slope'" in evidence.reasons[0]
    assert any("prior of site" not in reason for reason in evidence.reasons), evidence


# ---- tails without a variance, or a mean ----

for _df in (1.0, 2.0, 3.0):
    _share = {1.0: 0.5, 2.0: 1 - 1 / math.sqrt(3), 3.0: 0.39100222}[_df]

    @add_model(f"student_prior_{_df:.0f}", lambda share=_share: (0.0, share), outside_one)
    def _(df=_df):
        pyro.sample("x", dist.StudentT(df, 0.0, 1.0))

    @add_density(f"student_density_{_df:.0f}", 1, lambda share=_share: (0.0, share), outside_one)
    def _(z, df=_df):
        return dist.StudentT(df, 0.0, 1.0).log_prob(z[:, 0])


@add_model("cauchys_5d", lambda: (0.0, 0.5), outside_one)
def cauchys():
    pyro.sample("x", dist.Cauchy(0.0, 1.0).expand([5]).to_event(1))


@add_density("cauchys_density_5d", 5, lambda: (0.0, 0.5), outside_one)
def cauchys_density(z):
    return dist.Cauchy(0.0, 1.0).log_prob(z).sum(-1)


@add_density("student_2_density_5d", 5, lambda: (0.0, 1 - 1 / math.sqrt(3)), outside_one)
def students_density(z):
    return dist.StudentT(2.0, 0.0, 1.0).log_prob(z).sum(-1)


def two_cauchys(prior):
    def model():
        x = pyro.sample("x", prior)
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Cauchy(x, 1.0), obs=torch.tensor([-4.0, 6.0]))

    return model


def two_cauchys_exact(power):
    # With x = tan(angle) the measure is that of the Cauchy prior; without it the Jacobian comes back.
    def log_density(angle):
        x = np.tan(angle)
        value = -2 * math.log(math.pi) - np.log1p((x + 4) ** 2) - np.log1p((x - 6) ** 2)
        return value + (power * np.log1p(x**2) if power else -math.log(math.pi))

    return grid_log_integral(log_density, (-math.pi / 2, math.pi / 2, 1_000_000))


add_model("two_cauchys", lambda: two_cauchys_exact(0), positive)(two_cauchys(dist.Cauchy(0.0, 1.0)))


def test_two_cauchys_under_a_flat_prior():
    # No evidence, but a posterior: two modes and tails like the cube of a Cauchy's, drawn in proportion.
    osds = run(OSDS(two_cauchys(dist.ImproperUniform(constraints.real, (), ())), disable_progbar=True))
    assert math.isnan(osds.log_evidence) and "'x' is improper" in osds.evidence.reasons[0]
    if len(osds.evidence.reasons) == 1:
        share = positive(osds.get_samples()).mean().item()
        assert abs(share - two_cauchys_exact(1)[1]) < 0.06


# ---- funnels ----


def funnel_exact():
    def log_density(x):
        return normal_log_prob(x, 0, 3) + normal_log_prob(2.0, 0, np.sqrt(np.exp(x) + 0.25))

    return grid_log_integral(log_density, (-30, 30, 100_000))


@add_model("funnel", funnel_exact, lambda samples: (samples["x0"] > 0).float(), may_refuse=False)
def funnel():
    # Neal's, with one noisy look at one of its nine branches.
    x0 = pyro.sample("x0", dist.Normal(0.0, 3.0))
    with pyro.plate("branches", 9):
        x = pyro.sample("x", dist.Normal(0.0, (x0 / 2).exp()))
    pyro.sample("y", dist.Normal(x[0], 0.5), obs=torch.tensor(2.0))


@add_density("funnel_density", 5, funnel_exact, positive)
def funnel_density(z):
    # As a plain density there is no non-centred form to find.
    branches = dist.Normal(0.0, (z[:, :1] / 2).exp(), validate_args=False).log_prob(z[:, 1:]).sum(-1)
    return dist.Normal(0.0, 3.0).log_prob(z[:, 0]) + branches + dist.Normal(z[:, 1], 0.5).log_prob(torch.tensor(2.0))


def single_group_exact():
    def log_density(angle):
        tau = 5 * np.tan(angle)
        return math.log(2 / math.pi) + normal_log_prob(3.0, 0, np.sqrt(26 + tau**2))

    return grid_log_integral(log_density, (0, math.pi / 2, 1_000_000), inside=lambda angle: np.tan(angle) > 1)


@add_model("single_group", single_group_exact, lambda samples: (samples["tau"] > 5).float())
def single_group():
    # One group says next to nothing about the spread between groups: the prior's tails remain.
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("groups", 1):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor([3.0]))


# ---- log densities of a million ----

_LARGE = torch.tensor(np.random.default_rng(0).normal(1.0, 1.0, 1000))
for _dtype in (torch.float32, torch.float64):
    # Residuals of fifty noise sd, a thousand of them: the log density is a million and known to a tenth.
    _y = _LARGE.to(_dtype)
    add_model(f"million_by_data_{str(_dtype)[6:]}", lambda y=_y: (normal_exact(y, 2.0, 0.02), math.nan))(
        normal_model(_y, 2.0, 0.02)
    )
    for _constant in (1e6, -1e6, 1e8):
        _name = f"{_constant:.0e}_{str(_dtype)[6:]}"

        @add_density(f"constant_{_name}", 2, _constant + math.log(2 * math.pi), dtype=_dtype)
        def _(z, constant=_constant):
            return -0.5 * z.square().sum(-1) + constant

    @add_model(f"factor_{str(_dtype)[6:]}", 1e6 + normal_exact([1.2, 0.4, 2.1]))
    def _(dtype=_dtype):
        normal_model(torch.tensor([1.2, 0.4, 2.1], dtype=dtype))()
        pyro.factor("constant", torch.tensor(1e6, dtype=dtype))


# ---- likelihoods that say nothing ----


@add_model(
    "constant_likelihood",
    lambda: (-3.5, 1 - 0.3 / 2.7),
    lambda samples: (samples["x"] > 0.3).float(),
    must_be_reliable=True,
)
def constant_likelihood():
    x = pyro.sample("x", dist.Uniform(0.0, 2.7))
    pyro.sample("b", dist.Gamma(0.5, 1.0))
    pyro.factor("likelihood", -3.5 + 0 * x)


@add_model(
    "no_likelihood",
    lambda: (0.0, 0.5),
    lambda samples: (samples["p"][:, 0] < samples["p"][:, 1]).float(),
    must_be_reliable=True,
)
def no_likelihood():
    pyro.sample("p", dist.Dirichlet(torch.full((3,), 0.3)))
    pyro.sample("scale", dist.HalfCauchy(1.0))
    pyro.sample("count", dist.Beta(0.5, 0.5))


@add_model("unrelated_likelihood", norm.logpdf(1.3), must_be_reliable=True)
def unrelated_likelihood():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.3))


# ---- edges, plateaus, needles ----


def restricted(prior, inside):
    """A prior cut down to a region."""

    def model():
        x = pyro.sample("x", prior)
        pyro.factor("region", torch.where(inside(x), 0.0, -torch.inf))

    return model


STANDARD = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
SQUARE = dist.Uniform(-1.0, 1.0).expand([2]).to_event(1)
for _name, _prior, _inside, _share, _half in (
    ("box", STANDARD, lambda x: (x.abs() < 1).all(-1), (2 * norm.cdf(1) - 1) ** 2, 0.5),
    ("off_centre_box", STANDARD, lambda x: ((x - 1.5).abs() < 0.5).all(-1), (norm.cdf(2) - norm.cdf(1)) ** 2, 1.0),
    ("ring", STANDARD, lambda x: (x.norm(dim=-1) - 1.5).abs() < 0.5, math.exp(-0.5) - math.exp(-2), 0.5),
    (
        "thin_ring",
        STANDARD,
        lambda x: (x.norm(dim=-1) - 1.5).abs() < 0.05,
        chi2.cdf(1.55**2, 2) - chi2.cdf(1.45**2, 2),
        0.5,
    ),
    ("half_space", STANDARD, lambda x: x[..., 0] > 2, norm.sf(2), 1.0),
    ("two_boxes", STANDARD, lambda x: (x.abs()[..., 0] - 1.5).abs() < 0.1, 2 * (norm.cdf(1.6) - norm.cdf(1.4)), 0.5),
    ("disc", SQUARE, lambda x: x.norm(dim=-1) < 0.5, math.pi / 16, 0.5),
    ("needle_normal", STANDARD, lambda x: x[..., 0] > norm.isf(1e-4), 1e-4, 1.0),
    ("needle_box", SQUARE, lambda x: ((x - 0.6).abs() < 0.01).all(-1), 1e-4, 1.0),
):
    # No gradient tells where the region ends, and none points into it.
    add_model(
        _name,
        lambda share=_share, half=_half: (math.log(share), half),
        positive if _half < 1 else None,
        may_refuse=True,
    )(restricted(_prior, _inside))


@add_density("plateau", 2, math.log(6.0), may_refuse=True)
def plateau(z):
    inside = (z[:, 0].abs() < 1) & ((z[:, 1] - 5).abs() < 1.5)
    return torch.where(inside, 0.0, -torch.inf)


# A millionth is sixteen spacings of single precision at 1/2, and less than one at 100.
for _value, _prior_sd, _dtype in (
    (0.0, 1.0, torch.float32),
    (0.5, 1.0, torch.float32),
    (3.0, 1.0, torch.float32),
    (100.0, 100.0, torch.float32),
    (100.0, 100.0, torch.float64),
):
    _y = torch.tensor([_value], dtype=_dtype)
    add_model(f"delta_at_{_value}_{str(_dtype)[6:]}", normal_exact(_y, _prior_sd, 1e-6), may_refuse=True)(
        normal_model(_y, _prior_sd, 1e-6)
    )


def roots_exact():
    return grid_log_integral(
        lambda x: normal_log_prob(x, 0, 1) + 3 * np.sqrt(x), (0, 12, 4_000_000), inside=lambda x: x > 1
    )


@add_model("roots", roots_exact, lambda samples: (samples["x"] > 1).float(), may_refuse=True)
def roots():
    # Half of the prior has a root of a negative number: zero density there, or a word about it.
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("roots", 3 * x.sqrt())


@add_density("roots_density", 1, roots_exact, lambda samples: (samples["z"][:, 0] > 1).float(), may_refuse=True)
def roots_density(z):
    return dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + 3 * z[:, 0].sqrt()


@add_model(
    "root_near_the_mode",
    lambda: grid_log_integral(lambda x: normal_log_prob(x, 0, 1) + 0.5 * np.sqrt(1 + x), (-1, 12, 4_000_000)),
    positive,
    may_refuse=True,
)
def root_near_the_mode():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("roots", 0.5 * (1 + x).sqrt())


# ---- densities without an integral ----


def _singular(z):
    return -1.5 * z[:, 0].abs().log() - z[:, 0].abs()


def _infinite_half(z):
    return torch.where(z[:, 0] > 1, torch.inf, -0.5 * z[:, 0].square())


def _infinite_strip(z):
    return torch.where((z[:, 0] - 1).abs() < 0.01, torch.inf, -0.5 * z[:, 0].square())


IMPROPER = {
    "flat": (lambda z: 0 * z.sum(-1), 2),
    "half_cauchy_power": (lambda z: -0.5 * (1 + z[:, 0].square()).log(), 1),
    "slope": (lambda z: z[:, 0] - 0.5 * z[:, 1].square(), 2),
    "bowl": (lambda z: 0.5 * z.square().sum(-1), 2),
    "flat_direction": (lambda z: -0.5 * (z[:, 0] + z[:, 1]).square(), 2),
    "two_dimensional_cauchy_power": (lambda z: -(1 + z.square().sum(-1)).log(), 2),
    "pole": (_singular, 1),
    "infinite_half": (_infinite_half, 1),
    "infinite_strip": (_infinite_strip, 1),
}


_SLOW_IMPROPER = {"flat", "bowl", "slope", "infinite_strip", "flat_direction", "two_dimensional_cauchy_power", "pole"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in _SLOW_IMPROPER else []) for name in IMPROPER]
)
def test_a_density_without_an_integral_is_never_called_reliable(name):
    # A refusal or a flag: there is no evidence to be right about.
    log_prob, dim = IMPROPER[name]
    try:
        osds = run(OSDS.from_log_prob(log_prob, dim, disable_progbar=True))
    except ValueError as error:
        assert re.search("finite|integra|proper", str(error))
        return
    assert not osds.evidence.reliable, osds.evidence


def test_a_factor_that_undoes_the_prior_is_never_called_reliable():
    # Every site has a proper prior, and the posterior is flat.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("undo", 0.5 * x.square())

    assert not run(OSDS(model, disable_progbar=True)).evidence.reliable


# ---- priors and data of different opinions, and of very different scales ----

for _distance in (20.0, 50.0):
    for _count in (1, 5):
        _y = torch.full((_count,), _distance)
        add_model(f"conflict_{_distance:.0f}_{_count}", normal_exact(_y, 1.0, 1.0), must_be_reliable=True)(
            normal_model(_y, 1.0, 1.0)
        )


@add_model("conflict_5d", 5 * normal_exact([30.0], 1.0, 0.3), must_be_reliable=True)
def conflict_5d():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    pyro.sample("y", dist.Normal(mu, 0.3).to_event(1), obs=torch.full((5,), 30.0))


@add_model("no_data", 0.0, must_be_reliable=True)
def no_data():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([0]).to_event(1), obs=torch.empty(0))


def test_an_empty_plate_is_refused():
    # Pyro has no plates of size zero; what it says must arrive.
    with pytest.raises((ValueError, ZeroDivisionError), match="size cannot be zero"):
        run(OSDS(normal_model(torch.empty(0)), disable_progbar=True))


add_model("one_datum", normal_exact([0.7]), must_be_reliable=True)(normal_model(torch.tensor([0.7])))


def regression(x, y, prior_sd, noise_sd):
    x, y, prior_sd = (torch.tensor(value, dtype=torch.float32) for value in (x, y, prior_sd))

    def model():
        slopes = pyro.sample("slopes", dist.Normal(0.0, prior_sd).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, noise_sd), obs=y)

    return model


_NOISE = np.random.default_rng(1).normal(0.0, 1.0, (3, 20))
_COLUMN = np.linspace(-1, 1, 20)
for _name, _x, _prior_sd in (
    ("scales", np.stack([1e6 * _COLUMN, 1e-6 * _NOISE[0]], 1), [1e-6, 1e6]),
    ("wide_scales", np.stack([1e6 * _COLUMN, 1e-6 * _NOISE[0]], 1), [1.0, 1e6]),
    ("duplicated_columns", np.stack([_COLUMN, _COLUMN, _NOISE[0]], 1), [100.0, 100.0, 100.0]),
    ("collinear_columns", np.stack([_COLUMN, _COLUMN + 1e-3 * _NOISE[1], _NOISE[0]], 1), [100.0, 100.0, 100.0]),
):
    # What the data say and what they leave open differ by up to twelve orders of magnitude.
    _x = np.asarray(_x, dtype=np.float32).astype(float)
    _y = 1.5 * _COLUMN + _NOISE[0] + 0.5 * _NOISE[2]
    add_model(_name, linear_log_evidence(_y, _x, _prior_sd, 0.5))(regression(_x, _y, _prior_sd, 0.5))


@add_model("scale_of_a_site", lambda: (0.0, math.nan), must_be_reliable=True)
def scale_of_a_site():
    pyro.sample("small", dist.Normal(3e-6, 1e-6))
    pyro.sample("large", dist.Normal(-2e6, 1e6))
    pyro.sample("positive", dist.LogNormal(10.0, 3.0))


# ---- the test of all those that have an evidence ----

# What takes long, and what another case says too.
SLOW = {
    "observation_1e+10_float64",
    "separable_1d_sd_10",
    "separable_2d_sd_10",
    "student_density_1",
    "student_prior_2",
    "student_density_2",
    "cauchys_5d",
    "single_group",
    "constant_-1e+06_float32",
    "constant_1e+06_float64",
    "constant_-1e+06_float64",
    "constant_1e+08_float32",
    "factor_float64",
    "off_centre_box",
    "ring",
    "thin_ring",
    "half_space",
    "disc",
    "delta_at_0.0_float32",
    "roots_density",
    "conflict_20_1",
    "conflict_20_5",
    "conflict_50_5",
    "wide_prior_1e+12_float64",
    "student_prior_3",
    "million_by_data_float32",
    "no_likelihood",
    "delta_at_3.0_float32",
    "roots",
    "conflict_5d",
    "observation_1e+10_float32",
    "delta_at_100.0_float32",
    "scales",
    "separable_2d_sd_100",
    "student_density_3",
    "cauchys_density_5d",
    "student_2_density_5d",
    "funnel_density",
    "million_by_data_float64",
    "factor_float32",
    "constant_1e+08_float64",
    "unrelated_likelihood",
    "two_boxes",
    "needle_box",
    "delta_at_0.5_float32",
    "delta_at_100.0_float64",
    "root_near_the_mode",
    "conflict_50_1",
    "wide_scales",
    "collinear_columns",
    "scale_of_a_site",
}
# What takes half a minute or more, flagged at every stage: the flow alone is judged here, all stages in the long run.
CLIMBING = {"observation_1e+30_float32", "wide_prior_1e+30_float32", "needle_normal", "plateau"}
assert CASES.keys() >= SLOW | CLIMBING
_FLOW_ALONE = {"escalate": False, "num_particles": 16, "num_iterations": 50}
_PARAMS = [
    pytest.param(case, {}, id=name, marks=[pytest.mark.long] if name in SLOW | CLIMBING else [])
    for name, case in CASES.items()
] + [pytest.param(CASES[name], _FLOW_ALONE, id=f"{name}, flow alone") for name in sorted(CLIMBING)]


@pytest.mark.parametrize(("case", "options"), _PARAMS)
def test_right_or_flagged(case, options):
    # Within three standard errors and rounding, or refused, or flagged.
    log_evidence, probability = case.exact()
    try:
        osds = run(case.make(**options))
    except ValueError:
        if case.may_refuse:
            return
        raise
    assert_right_or_flagged(osds, log_evidence, getattr(osds.fit.target, "dtype", torch.float32))
    assert osds.evidence.reliable or not case.must_be_reliable, osds.evidence
    if case.event is not None:
        assert_share(osds, case.event(osds.get_samples()), probability)
