"""The posteriors that samplers are compared on: for Pyro from the other benchmarks, and written again for the peers.

NumPyro and BlackJAX take a NumPyro model; nested samplers take a map from the unit cube to parameters and a log
likelihood of these, both vectorised. Twins have the sites, priors and data of the Pyro model.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from calibration_cases import all_problems
from cases import CIRCLE, CIRCLE_WEIGHTS, EXAMPLES, german_credit, posteriordb, read_rows
from scipy import special, stats
from target_cases import DATA, breast_cancer, sonar

# Half the side of the box that a nested sampler looks for the four Gaussians in.
_BOX = 8.0


@dataclass(frozen=True)
class PeerModel:
    """One posterior in three forms; those that a form does not exist for are None.

    `cube` maps `(N, D)` in the unit cube to parameters, `log_likelihood` maps these to `(N,)`, and `log_volume` is what
    the prior of the nested samplers lacks to be that of the model. A case with a `dim` is a log density.
    """

    name: str
    pyro: Callable[..., Any]
    numpyro: Callable[[], Callable[[], None]]
    log_evidence: float
    log_evidence_se: float = 0.0
    cube: Callable[[np.ndarray], np.ndarray] | None = None
    log_likelihood: Callable[[np.ndarray], np.ndarray] | None = None
    log_volume: float = 0.0
    num_cube: int = 0
    dim: int = 0


def names() -> list[str]:
    """Names of the posteriors; those of `--quick` first."""
    return list(_MODELS)


@functools.cache
def model_of(name: str) -> PeerModel:
    """A posterior by its name."""
    return _MODELS[name]()


def _problem(name: str) -> Any:
    return all_problems()[name]


def _case(
    name: str,
    twin: Callable[[], Any],
    cube: Any = None,
    log_likelihood: Any = None,
    num_cube: int = 0,
) -> PeerModel:
    case = _problem(name).case
    truth = case.log_evidence, case.log_evidence_se

    return PeerModel(name, case.model, twin, *truth, cube=cube, log_likelihood=log_likelihood, num_cube=num_cube)


# ---- logistic regressions ----


def regression_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features with a column of ones, and labels of 0 and 1, as the Pyro models have them."""
    if name == "German credit":
        rows = read_rows(EXAMPLES / "german_credit.csv")
        x, y = rows[:, :-1], rows[:, -1] - 1
        x = x / x.std(0, correction=0)
    elif name == "breast cancer":
        rows = read_rows(DATA / "breast_cancer.csv")
        y, x = rows[:, 1], rows[:, 2:]
        x = x / x.std(0, correction=0)
    else:
        rows = read_rows(DATA / f"{name}.csv")
        x, y = rows[:, :-1], (rows[:, -1] + 1.0) / 2.0
        x = (x - x.mean(0)) / x.std(0, correction=0)

    return torch.cat([torch.ones(len(x), 1), x], 1).numpy(), y.numpy()


def _regression(name: str, model: Any, x: np.ndarray, y: np.ndarray, prior_sd: float) -> PeerModel:
    def twin() -> Callable[[], None]:
        import numpyro
        import numpyro.distributions as dist

        def numpyro_model() -> None:
            w = numpyro.sample("w", dist.Normal(0.0, prior_sd).expand([x.shape[1]]).to_event(1))
            with numpyro.plate("row", len(y)):
                numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

        return numpyro_model

    def log_likelihood(w: np.ndarray) -> np.ndarray:
        logits = w @ x.T.astype(float)
        return (y * logits - np.logaddexp(0.0, logits)).sum(-1)

    case = _problem(name).case
    truth = case.log_evidence, case.log_evidence_se

    return PeerModel(
        name,
        model,
        twin,
        *truth,
        cube=lambda u: prior_sd * special.ndtri(u),
        log_likelihood=log_likelihood,
        num_cube=x.shape[1],
    )


# ---- eight schools ----


def numpyro_schools(centred: bool) -> Callable[[], None]:
    import numpyro
    import numpyro.distributions as dist

    data = {name: np.asarray(value) for name, value in posteriordb("eight_schools")[0].items()}

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            if centred:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * numpyro.sample("eta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])

    return model


def schools_cube(u: np.ndarray) -> np.ndarray:
    mu, tau = 5.0 * special.ndtri(u[:, :1]), 5.0 * np.tan(0.5 * np.pi * u[:, 1:2])

    return np.concatenate([mu, tau, special.ndtri(u[:, 2:])], 1)


def schools_likelihood(data: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    y, sigma = data["y"].numpy().astype(float), data["sigma"].numpy().astype(float)

    def log_likelihood(values: np.ndarray) -> np.ndarray:
        theta = values[:, :1] + values[:, 1:2] * values[:, 2:]
        return stats.norm.logpdf(y, theta, sigma).sum(-1)

    return log_likelihood


# ---- time series, a Gaussian process, a mixture ----


def ark_data() -> tuple[np.ndarray, np.ndarray]:
    data, _ = posteriordb("arK")
    order, y = int(data["K"]), data["y"].numpy()

    return np.stack([y[order - 1 - k : len(y) - 1 - k] for k in range(order)], 1), y[order:]


def numpyro_ark() -> Callable[[], None]:
    import numpyro
    import numpyro.distributions as dist

    lags, y = ark_data()

    def model() -> None:
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        with numpyro.plate("time", len(y)):
            numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)

    return model


def ark_cube(u: np.ndarray) -> np.ndarray:
    return np.concatenate([10.0 * special.ndtri(u[:, :-1]), 2.5 * np.tan(0.5 * np.pi * u[:, -1:])], 1)


def ark_likelihood() -> Callable[[np.ndarray], np.ndarray]:
    lags, y = (part.astype(float) for part in ark_data())

    def log_likelihood(values: np.ndarray) -> np.ndarray:
        mean = values[:, :1] + values[:, 1:-1] @ lags.T
        return stats.norm.logpdf(y, mean, values[:, -1:]).sum(-1)

    return log_likelihood


def numpyro_gp() -> Callable[[], None]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    data, _ = posteriordb("gp_regr")
    x, y = data["x"].numpy(), data["y"].numpy()
    square = (x[:, None] - x) ** 2

    def model() -> None:
        rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        kernel = alpha**2 * jnp.exp(-0.5 * square / rho**2) + sigma * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), kernel), obs=y)

    return model


def gp_cube(u: np.ndarray) -> np.ndarray:
    half_normal = special.ndtri(0.5 + 0.5 * u[:, 1:])

    return np.concatenate([special.gammaincinv(25.0, u[:, :1]) / 4.0, half_normal * [2.0, 1.0]], 1)


def gp_likelihood() -> Callable[[np.ndarray], np.ndarray]:
    data, _ = posteriordb("gp_regr")
    x, y = data["x"].numpy().astype(float), data["y"].numpy().astype(float)
    square = (x[:, None] - x) ** 2

    def log_likelihood(values: np.ndarray) -> np.ndarray:
        rho, alpha, sigma = values.T[:, :, None, None]
        kernel = alpha**2 * np.exp(-0.5 * square / rho**2) + sigma * np.eye(len(x))
        solved = np.linalg.solve(kernel, np.broadcast_to(y[:, None], (len(values), len(y), 1)))[..., 0]
        return -0.5 * (solved @ y + np.linalg.slogdet(kernel)[1] + len(y) * math.log(2 * math.pi))

    return log_likelihood


def numpyro_four_gaussians() -> Callable[[], None]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.special import logsumexp

    centres, log_weights = CIRCLE.numpy(), np.log(CIRCLE_WEIGHTS.numpy())

    def model() -> None:
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        square = ((z - centres) ** 2).sum(-1)
        numpyro.factor("density", logsumexp(log_weights - 2.0 * square - jnp.log(0.5 * jnp.pi)))

    return model


def four_gaussians_likelihood(z: np.ndarray) -> np.ndarray:
    square = ((z[:, None] - CIRCLE.numpy()) ** 2).sum(-1)

    return special.logsumexp(np.log(CIRCLE_WEIGHTS.numpy()) - 2.0 * square - math.log(0.5 * math.pi), -1)


def numpyro_hidden_markov() -> Callable[[], None]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.special import logsumexp

    y = posteriordb("hmm_example")[0]["y"].numpy()

    def model() -> None:
        with numpyro.plate("state", 2):
            theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(2)))
            mu = numpyro.sample("mu", dist.Normal(jnp.array([3.0, 10.0]), 1.0))
        emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

        def step(log_alpha: Any, log_density: Any) -> tuple[Any, None]:
            return logsumexp(log_alpha[:, None] + jnp.log(theta), 0) + log_density, None

        log_alpha, _ = jax.lax.scan(step, emission[0] - jnp.log(2.0), emission[1:])
        numpyro.factor("y", logsumexp(log_alpha))

    return model


# ---- baseball: log-odds from a common normal distribution ----


def baseball_data() -> tuple[np.ndarray, np.ndarray]:
    """Times at bat and hits of 18 players."""
    at_bats, hits = np.genfromtxt(EXAMPLES / "baseball.csv", delimiter=",", skip_header=1, usecols=(1, 2)).T

    return at_bats.astype(np.float32), hits.astype(np.float32)


def _baseball() -> PeerModel:
    """The last model of `examples/model_comparison.py`."""
    at_bats, hits = baseball_data()

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("player", len(hits)):
            log_odds = pyro.sample("log_odds", dist.Normal(loc, scale))
            pyro.sample("hits", dist.Binomial(torch.tensor(at_bats), logits=log_odds), obs=torch.tensor(hits))

    log_evidence = _baseball_evidence(at_bats.astype(float), hits.astype(float))

    return PeerModel("baseball", model, lambda: numpyro_baseball(at_bats, hits), log_evidence)


def _baseball_evidence(at_bats: np.ndarray, hits: np.ndarray) -> float:
    """Players are independent given location and scale: an integral over these of a product of one-dimensional ones.

    Gauss-Legendre in six standard deviations of the location and in the scale's quantiles, Gauss-Hermite within: right
    to six digits.
    """
    offset, offset_weights = np.polynomial.legendre.leggauss(200)
    quantile, weights = np.polynomial.legendre.leggauss(60)
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(40)
    log_prior = np.log(6.0 * offset_weights * stats.norm.pdf(6.0 * offset))
    log_normal = np.log(normal_weights / normal_weights.sum())
    log_odds = (6.0 * offset - 1.0)[:, None, None] + np.tan(0.25 * np.pi * (quantile + 1.0))[:, None] * normal
    softplus = np.logaddexp(0.0, log_odds)
    log_likelihood = sum(
        special.logsumexp(y * log_odds - n * softplus + log_normal, -1) + math.log(special.comb(n, y))
        for n, y in zip(at_bats, hits, strict=True)
    )

    return float(special.logsumexp(log_likelihood + log_prior[:, None] + np.log(0.5 * weights)))


def numpyro_baseball(at_bats: np.ndarray, hits: np.ndarray) -> Callable[[], None]:
    import numpyro
    import numpyro.distributions as dist

    def model() -> None:
        loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        with numpyro.plate("player", len(hits)):
            log_odds = numpyro.sample("log_odds", dist.Normal(loc, scale))
            numpyro.sample("hits", dist.Binomial(at_bats.astype(int), logits=log_odds), obs=hits)

    return model


_MODELS: dict[str, Callable[[], PeerModel]] = {
    "eight schools": lambda: _case(
        "eight schools",
        lambda: numpyro_schools(False),
        schools_cube,
        schools_likelihood(posteriordb("eight_schools")[0]),
        10,
    ),
    "gp_regr": lambda: _case("gp_regr", numpyro_gp, gp_cube, gp_likelihood(), 3),
    "four Gaussians": lambda: PeerModel(
        "four Gaussians",
        _problem("four Gaussians").case.model,
        numpyro_four_gaussians,
        0.0,
        cube=lambda u: _BOX * (2.0 * u - 1.0),
        log_likelihood=four_gaussians_likelihood,
        log_volume=2 * math.log(2 * _BOX),
        num_cube=2,
        dim=2,
    ),
    "arK": lambda: _case("arK", numpyro_ark, ark_cube, ark_likelihood(), 7),
    "eight schools, centred": lambda: _case("eight schools, centred", lambda: numpyro_schools(True)),
    "German credit": lambda: _regression("German credit", german_credit(), *regression_data("German credit"), 10.0),
    "breast cancer": lambda: _regression("breast cancer", breast_cancer(), *regression_data("breast cancer"), 10.0),
    "sonar": lambda: _regression("sonar", sonar(), *regression_data("sonar"), 1.0),
    "baseball": _baseball,
    "hidden Markov": lambda: _case("hidden Markov", numpyro_hidden_markov),
}
