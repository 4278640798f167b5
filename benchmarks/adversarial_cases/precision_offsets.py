"""Latents and data far from zero, many data, large constants, data in other dtypes."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special

from .base import Kind
from .integrals import data, exact, normal_mean, normal_regression

precision = Kind("precision")


def line(name: str, x, y, prior_loc, prior_sd, sd: float, powers: int = 2) -> None:
    """A polynomial of x, not centred, with known noise."""
    design = np.stack([exact(x) ** power for power in range(powers)], 1)

    @precision.model(powers, lambda: normal_regression(exact(y), design, np.array(prior_loc), prior_sd, sd), name)
    def model() -> None:
        """An offset many posterior sds from zero: the last digits matter, and intercept and slope are one thing."""
        weights = [pyro.sample(f"w{i}", dist.Normal(prior_loc[i], prior_sd[i])) for i in range(powers)]
        loc = sum(w * x**i for i, w in enumerate(weights))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(loc, sd), obs=y)


grams_x = data(np.linspace(-1, 1, 300))
grams_y = data(10_000.0 + 0.02 * exact(grams_x) + 0.005 * np.random.default_rng(3).normal(size=300))
line("weighing_offset", grams_x, grams_y, [10_000.0, 0.0], [1.0, 1.0], 0.005)

years = data(np.arange(1990, 2021))
since = exact(years) - 2005
warming = data(0.5 + 0.03 * since + 0.002 * since**2 + 0.1 * np.random.default_rng(4).normal(size=31))
line("years_quadratic", years, warming, [0.0, 0.0, 0.0], [1e4, 10.0, 0.01], 0.1, powers=3)

century = data(np.arange(1900, 2021))
century_y = data(13.7 + 0.02 * (exact(century) - 1960) + 0.05 * np.random.default_rng(510).normal(size=121))
line("year_slope", century, century_y, [0.0, 0.0], [1000.0, 1.0], 0.05)

days = data(19_000 + np.arange(0, 400, 4))
days_y = data(12.0 + 0.01 * (exact(days) - 19_200) + 0.05 * np.random.default_rng(5).normal(size=100))
line("unix_days_linear", days, days_y, [0.0, 0.0], [1000.0, 1.0], 0.05)

hours = data(np.arange(48.0))
pascals = data(101_325.0 - 3.0 * exact(hours) + 0.5 * np.random.default_rng(511).normal(size=48))
line("pascal_drift", hours, pascals, [101_325.0, 0.0], [500.0, 10.0], 0.5)

seconds_x = torch.arange(0.0, 3600.0, 60.0, dtype=torch.float64)
seconds_y = 1.7e9 + 1.0002 * seconds_x + 0.3 * torch.tensor(np.random.default_rng(512).normal(size=60))
line("unix_seconds_clock", seconds_x, seconds_y, [1.7e9, 1.0], [1e4, 0.1], 0.3)


def readings(name: str, y, prior_loc: float, prior_sd: float, sd: float, constant: float = 0.0) -> None:
    def truth() -> float:
        return normal_mean(exact(y), prior_loc, prior_sd, sd) + constant

    @precision.model(1, truth, name)
    def model() -> None:
        """One mean, known noise: an offset, a large constant, or data in another dtype."""
        m = pyro.sample("m", dist.Normal(prior_loc, prior_sd))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(m, sd), obs=y)
        if constant:
            pyro.factor("constant", torch.tensor(constant))


def noise(seed: int, size: int):
    return np.random.default_rng(seed).normal(size=size)


readings("offset_50000", data(50_000.0 + 0.3 * noise(80, 3000)), 50_000.0, 10.0, 0.3)
readings("julian_days", data(2_460_000.0 + 2.0 * noise(513, 300)), 2_460_000.0, 100.0, 2.0)
readings("float64_data", 1000.0 + 1e-4 * torch.tensor(noise(514, 50)), 1000.0, 1.0, 1e-4)
readings("float16_data", data(3.0 + 0.5 * noise(515, 200)).half(), 0.0, 5.0, 0.5)
readings("constant_3e4", data(1.0 + noise(516, 40)), 0.0, 2.0, 1.0, constant=-3e4)
readings("constant_4e6", data(1.0 + noise(516, 40)), 0.0, 2.0, 1.0, constant=-4e6)

three_values, how_often = data([-0.7, 1.9, 5.3]), np.array([30_000, 50_000, 20_000])


@precision.model(1, lambda: normal_mean(exact(three_values), 0.0, 5.0, 0.37, how_often))
def normal_1e5_three_values() -> None:
    """A hundred thousand data of three values: the rounding of each is repeated, and adds up."""
    y = torch.repeat_interleave(three_values, torch.tensor(how_often))
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(m, 0.37), obs=y)


waits = data(np.random.default_rng(517).exponential(1 / 3.0, 50_000))


def waits_truth() -> float:
    n, total = len(waits), exact(waits).sum()
    return 2 * math.log(1.5) - special.gammaln(2.0) + special.gammaln(2.0 + n) - (2.0 + n) * math.log(1.5 + total)


@precision.model(1, waits_truth)
def exponential_5e4() -> None:
    """Fifty thousand waiting times."""
    r = pyro.sample("r", dist.Gamma(2.0, 1.5))
    with pyro.plate("n", len(waits)):
        pyro.sample("y", dist.Exponential(r), obs=waits)
