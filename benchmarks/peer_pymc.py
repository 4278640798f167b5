"""nutpie, of the posteriors as PyMC models: sites, priors and data of the Pyro models once more."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import CIRCLE, CIRCLE_WEIGHTS, posteriordb
from peer_models import PeerModel, ark_data, baseball_data, regression_data
from peer_outcome import NUM_CHAINS, NUM_SAMPLES, Clock, Outcome, Seconds, min_effective_size

# Draws of a longer run beyond those of the first, in terms of these.
_MORE_TIMES = 2


def nutpie(model: PeerModel, seed: int) -> Outcome:
    """nutpie's NUTS with its own number of steps of adaptation, of a diagonal mass matrix; chain after chain."""
    return _nutpie(model, seed, low_rank=False)


def nutpie_low_rank(model: PeerModel, seed: int) -> Outcome:
    """nutpie's NUTS with a diagonal mass matrix and a few directions besides."""
    return _nutpie(model, seed, low_rank=True)


def _nutpie(model: PeerModel, seed: int, low_rank: bool) -> Outcome:
    import nutpie
    import pymc as pm

    function = PYMC[model.name]
    clock = Clock()
    with pm.Model() as pymc_model:
        function()
    compiled = nutpie.compile_pymc_model(pymc_model)
    compiling = clock.read()

    def run(num_samples: int) -> Any:
        # As many steps of adaptation as it takes by itself: fewer than the other chains have.
        return nutpie.sample(
            compiled,
            draws=num_samples,
            chains=NUM_CHAINS,
            cores=1,
            seed=seed,
            low_rank_modified_mass_matrix=low_rank,
            save_warmup=True,
            progress_bar=False,
        )

    trace = run(NUM_SAMPLES)
    draws = _draws(trace, pymc_model)
    seconds = clock.read()
    evaluations = float(sum(int(part["n_steps"].sum()) for part in (trace.sample_stats, trace.warmup_sample_stats)))

    return Outcome(
        seconds, draws, further=lambda: _further(run, pymc_model), evaluations=evaluations, compiling=compiling
    )


def _draws(trace: Any, pymc_model: Any) -> dict[str, np.ndarray]:
    return {variable.name: trace.posterior[variable.name].to_numpy() for variable in pymc_model.free_RVs}


def _further(run: Callable[[int], Any], pymc_model: Any) -> tuple[float, Seconds]:
    """Effective draws of a longer run beyond the first, with the same adaptation, and the seconds that they take."""
    clock = Clock()
    run(NUM_SAMPLES)
    first = clock.read()
    clock = Clock()
    trace = run((1 + _MORE_TIMES) * NUM_SAMPLES)
    second = clock.read()
    more = {name: value[:, NUM_SAMPLES:] for name, value in _draws(trace, pymc_model).items()}

    return min_effective_size(more), Seconds(second.wall - first.wall, second.cpu - first.cpu)


# ---- the models ----


def _regression(name: str, prior_sd: float) -> Callable[[], None]:
    def model() -> None:
        import pymc as pm

        x, y = regression_data(name)
        w = pm.Normal("w", 0.0, prior_sd, shape=x.shape[1])
        pm.Bernoulli("y", logit_p=x.astype(float) @ w, observed=y.astype(int))

    return model


def _schools(centred: bool) -> Callable[[], None]:
    def model() -> None:
        import pymc as pm

        data = {name: np.asarray(value, dtype=float) for name, value in posteriordb("eight_schools")[0].items()}
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=8) if centred else mu + tau * pm.Normal("eta", 0.0, 1.0, shape=8)
        pm.Normal("y", theta, data["sigma"], observed=data["y"])

    return model


def _gp() -> None:
    import pymc as pm
    import pytensor.tensor as pt

    data, _ = posteriordb("gp_regr")
    x, y = data["x"].numpy().astype(float), data["y"].numpy().astype(float)
    square = (x[:, None] - x) ** 2
    rho = pm.Gamma("rho", alpha=25.0, beta=4.0)
    alpha = pm.HalfNormal("alpha", 2.0)
    sigma = pm.HalfNormal("sigma", 1.0)
    kernel = alpha**2 * pt.exp(-0.5 * square / rho**2) + sigma * pt.eye(len(x))
    pm.MvNormal("y", np.zeros(len(x)), kernel, observed=y)


def _four_gaussians() -> None:
    import pymc as pm
    import pytensor.tensor as pt

    centres, log_weights = CIRCLE.numpy().astype(float), np.log(CIRCLE_WEIGHTS.numpy().astype(float))
    # Chains begin within one of this.
    z = pm.Flat("z", shape=2, initval=np.zeros(2))
    square = ((z - centres) ** 2).sum(-1)
    pm.Potential("density", pt.logsumexp(log_weights - 2.0 * square - math.log(0.5 * math.pi)))


def _ark() -> None:
    import pymc as pm

    lags, y = (part.astype(float) for part in ark_data())
    alpha = pm.Normal("alpha", 0.0, 10.0)
    beta = pm.Normal("beta", 0.0, 10.0, shape=lags.shape[1])
    sigma = pm.HalfCauchy("sigma", 2.5)
    pm.Normal("y", alpha + lags @ beta, sigma, observed=y)


def _baseball() -> None:
    import pymc as pm

    at_bats, hits = (part.astype(int) for part in baseball_data())
    loc = pm.Normal("loc", -1.0, 1.0)
    scale = pm.HalfCauchy("scale", 1.0)
    log_odds = pm.Normal("log_odds", loc, scale, shape=len(hits))
    pm.Binomial("hits", n=at_bats, logit_p=log_odds, observed=hits)


def _hidden_markov() -> None:
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt

    y = posteriordb("hmm_example")[0]["y"].numpy().astype(float)
    theta = pm.Dirichlet("theta", np.ones((2, 2)))
    mu = pm.Normal("mu", np.array([3.0, 10.0]), 1.0)
    emission = pm.logp(pm.Normal.dist(mu, 1.0), y[:, None])

    def step(log_density: Any, log_alpha: Any, log_theta: Any) -> Any:
        return pt.logsumexp(log_alpha[:, None] + log_theta, axis=0) + log_density

    log_alpha = pytensor.scan(
        step,
        sequences=[emission[1:]],
        outputs_info=[emission[0] - math.log(2.0)],
        non_sequences=[pt.log(theta)],
        return_updates=False,
    )
    pm.Potential("y", pt.logsumexp(log_alpha[-1]))


# Each is called where a `pymc.Model` is open; by the names of the posteriors.
PYMC: dict[str, Callable[[], None]] = {
    "eight schools": _schools(False),
    "gp_regr": _gp,
    "four Gaussians": _four_gaussians,
    "arK": _ark,
    "eight schools, centred": _schools(True),
    "German credit": _regression("German credit", 10.0),
    "breast cancer": _regression("breast cancer", 10.0),
    "sonar": _regression("sonar", 1.0),
    "baseball": _baseball,
    "hidden Markov": _hidden_markov,
}
