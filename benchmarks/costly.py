"""Posteriors whose density takes long: networks, recursions, differential equations, many rows."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from cases import posteriordb
from torch import Tensor


def network() -> None:
    """A network with one input, ten hidden units and one output, 200 rows: 32 dimensions with the noise."""
    x, y = NETWORK_DATA
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = torch.tanh(x[:, None] * w1 + b1) @ w2 + b2
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def garch() -> None:
    """GARCH(1,1) of 200 returns, its variance by a recursion in Python."""
    y = GARCH_DATA
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    omega = pyro.sample("omega", dist.HalfNormal(1.0))
    alpha = pyro.sample("alpha", dist.Beta(1.0, 3.0))
    beta = pyro.sample("beta", dist.Beta(3.0, 1.0))
    variance, variances = omega / (1.0 - 0.5 * (alpha + beta)), []
    for t in range(len(y)):
        variances.append(variance)
        variance = omega + alpha * (y[t] - mu).square() + beta * variance
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def poisson_process() -> None:
    """``gp_pois_regr`` of posteriordb: counts whose log rate is a Gaussian process, 13 dimensions."""
    data = posteriordb("gp_regr")[0]
    x, counts = data["x"], POISSON_DATA
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    noise = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    kernel = alpha**2 * torch.exp(-0.5 * (x[:, None] - x).square() / rho**2) + 1e-10 * torch.eye(len(x))
    with pyro.plate("row", len(x)):
        pyro.sample("k", dist.Poisson((torch.linalg.cholesky(kernel) @ noise).exp()), obs=counts)


def mixture() -> None:
    """Two normal components, 1,000 rows, the component of each row summed out."""
    y = MIXTURE_DATA
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("row", len(y)):
        probs = torch.stack([weight, 1.0 - weight])
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(probs), dist.Normal(loc, scale)), obs=y)


def lotka_volterra() -> None:
    """Lotka-Volterra, 20 observations of both species, 200 Runge-Kutta steps in Python."""
    theta = pyro.sample("theta", dist.LogNormal(LV_PRIOR, 0.5).to_event(1))
    start = pyro.sample("start", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0))
    path = _solved(theta, start, 200, 0.1)
    with pyro.plate("time", len(LV_DATA)):
        pyro.sample("y", dist.LogNormal(path.clamp(min=1e-8).log(), sigma).to_event(1), obs=LV_DATA)


def _solved(theta: Tensor, z: Tensor, num_steps: int, step: float) -> Tensor:
    def slope(z: Tensor) -> Tensor:
        u, v = z.unbind(-1)
        return torch.stack([theta[0] * u - theta[1] * u * v, theta[2] * u * v - theta[3] * v], -1)

    path = []
    for index in range(num_steps):
        k1 = slope(z)
        k2 = slope(z + 0.5 * step * k1)
        k3 = slope(z + 0.5 * step * k2)
        z = z + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + slope(z + step * k3))
        if (index + 1) % 10 == 0:
            path.append(z)

    return torch.stack(path)


def hidden_markov() -> None:
    """A hidden Markov model of two states, its forward recursion a loop of 416 steps."""
    y = HMM_DATA
    stay = pyro.sample("stay", dist.Beta(9.0, 1.0).expand([2]).to_event(1))
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    step = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])]).log()
    emission = dist.Normal(loc, scale).log_prob(y[:, None])
    state = emission[0] - math.log(2.0)
    for t in range(1, len(y)):
        state = torch.logsumexp(state[:, None] + step, 0) + emission[t]
    pyro.factor("y", torch.logsumexp(state, 0))


def _network_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2.0, 2.0, 200)
    return x, torch.sin(2.0 * x) + 0.1 * torch.randn(200, generator=generator)


def _garch_data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise, y, variance = torch.randn(200, generator=generator), [], torch.tensor(1.0)
    for value in noise:
        y.append(0.1 + variance.sqrt() * value)
        variance = 0.2 + 0.3 * (y[-1] - 0.1).square() + 0.5 * variance
    return torch.stack(y)


def _mixture_data() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noise, which = torch.randn(1000, generator=generator), torch.rand(1000, generator=generator) < 0.35
    return torch.where(which, -1.5 + 0.8 * noise, 1.5 + 1.2 * noise)


def _hmm_data() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    state, y = 0, []
    for _ in range(416):
        state = state if torch.rand((), generator=generator) < 0.92 else 1 - state
        y.append((-1.0, 1.5)[state] + 0.7 * torch.randn((), generator=generator))
    return torch.stack(y)


def _lotka_volterra_data() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    path = _solved(torch.tensor([0.55, 0.028, 0.024, 0.80]), torch.tensor([30.0, 6.0]), 200, 0.1)
    return path * torch.exp(0.2 * torch.randn(path.shape, generator=generator))


POISSON_DATA = torch.tensor([40.0, 37.0, 29.0, 12.0, 4.0, 3.0, 9.0, 19.0, 77.0, 82.0, 33.0])
NETWORK_DATA = _network_data()
GARCH_DATA = _garch_data()
MIXTURE_DATA = _mixture_data()
HMM_DATA = _hmm_data()
LV_PRIOR = torch.tensor([0.55, 0.028, 0.024, 0.80]).log()
LV_DATA = _lotka_volterra_data()

COSTLY: dict[str, Callable[[], None]] = {
    "neural network": network,
    "GARCH(1,1)": garch,
    "gp_pois_regr": poisson_process,
    "mixture, 1,000 rows": mixture,
    "Lotka-Volterra, 200 steps": lotka_volterra,
    "hidden Markov, 416 steps": hidden_markov,
}
