"""Samplers of the NumPyro models: NUTS, bridge sampling of its draws, and BlackJAX's tempered SMC."""

import math
from typing import Any

import numpy as np
from peer_models import PeerModel
from peer_outcome import NUM_CHAINS, NUM_SAMPLES, NUM_WARMUP, Clock, Outcome, Seconds, min_effective_size

# Of tempered SMC: its evidence is within a tenth of a nat on most of the posteriors.
_NUM_PARTICLES, _NUM_MOVES, _NUM_LEAPFROG = 1000, 10, 5


def numpyro_nuts(model: PeerModel, seed: int) -> Outcome:
    """NumPyro's NUTS, chain after chain in one compiled program."""
    mcmc, seconds = _run_numpyro(model, seed)

    def further() -> tuple[float, Seconds]:
        # Chains that are warm, by a program that the first of two runs compiles.
        for _ in range(2):
            clock = Clock()
            mcmc.post_warmup_state = mcmc.last_state
            mcmc.run(mcmc.last_state.rng_key, extra_fields=("num_steps",))
            more = _samples(mcmc)
            spent = clock.read()

        return min_effective_size(more), spent

    return Outcome(
        seconds, _samples(mcmc), further=further, evaluations=float(mcmc.get_extra_fields()["num_steps"].sum())
    )


def _run_numpyro(model: PeerModel, seed: int) -> tuple[Any, Seconds]:
    import jax
    from numpyro.infer import MCMC, NUTS

    function = model.numpyro()
    clock = Clock()
    mcmc = MCMC(
        NUTS(function),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed), extra_fields=("num_steps",))
    _samples(mcmc)

    return mcmc, clock.read()


def _samples(mcmc: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}


def bridge_sampling(model: PeerModel, seed: int) -> Outcome:
    """NumPyro's NUTS, then the log evidence by bridge sampling with a Gaussian of the draws' moments."""
    mcmc, nuts_seconds = _run_numpyro(model, seed)
    clock = Clock()
    log_density, flatten = _numpyro_density(model, seed)
    z = flatten(mcmc.get_samples())
    half = len(z) // 2
    mean, tril = z[:half].mean(0), np.linalg.cholesky(np.atleast_2d(np.cov(z[:half].T)))
    proposed = mean + np.random.default_rng(seed).standard_normal((half, z.shape[1])) @ tril.T
    log_evidence = _refinement(
        *(log_density(points) - _log_normal(points, mean, tril) for points in (z[half:], proposed))
    )

    spent = clock.read()
    seconds = Seconds(nuts_seconds.wall + spent.wall, nuts_seconds.cpu + spent.cpu)

    return Outcome(seconds, log_evidence=log_evidence)


def _numpyro_density(model: PeerModel, seed: int) -> tuple[Any, Any]:
    """A vectorised log density of flat unconstrained points, and the way from draws to such points."""
    import jax
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import initialize_model, unconstrain_fn

    function = model.numpyro()
    info = initialize_model(jax.random.PRNGKey(seed), function)
    _, unravel = ravel_pytree(info.param_info.z)
    density = jax.jit(jax.vmap(lambda row: -info.potential_fn(unravel(row))))
    to_flat = jax.jit(jax.vmap(lambda row: ravel_pytree(unconstrain_fn(function, (), {}, row))[0]))

    def flatten(samples: Any) -> np.ndarray:
        return np.asarray(to_flat({name: samples[name] for name in info.param_info.z}), dtype=float)

    return lambda points: np.asarray(density(points.astype(np.float32)), dtype=float), flatten


def _log_normal(z: np.ndarray, mean: np.ndarray, tril: np.ndarray) -> np.ndarray:
    white = np.linalg.solve(tril, (z - mean).T)

    return -0.5 * (white**2).sum(0) - np.log(np.diag(tril)).sum() - 0.5 * len(mean) * math.log(2 * math.pi)


def _refinement(log_ratio_posterior: np.ndarray, log_ratio_proposal: np.ndarray) -> float:
    """Meng and Wong's (1996) iteration on the log ratios of density and proposal."""
    estimate = float(np.median(log_ratio_posterior))
    share = len(log_ratio_posterior) / (len(log_ratio_posterior) + len(log_ratio_proposal))
    for _ in range(1000):
        above = np.exp(log_ratio_proposal - estimate)
        below = np.exp(log_ratio_posterior - estimate)
        step = np.mean(above / (share * above + 1 - share)) / np.mean(1.0 / (share * below + 1 - share))
        estimate += math.log(step)
        if abs(math.log(step)) < 1e-8:
            break

    return estimate


# ---- for the evidence alone ----


def tempered_smc(model: PeerModel, seed: int) -> Outcome:
    """BlackJAX's adaptive tempered SMC: 1,000 particles from the prior, ten Hamiltonian moves at each temperature.

    Moves have the particles' covariance as their inverse mass, five leapfrog steps, and a step size that is led towards
    an acceptance of three quarters.
    """
    import jax
    import jax.numpy as jnp
    from blackjax import hmc
    from blackjax.smc import adaptive_tempered, resampling
    from blackjax.smc.tempered import init

    clock = Clock()
    log_prior, log_likelihood, particles = _numpyro_prior(model, seed, _NUM_PARTICLES)
    kernel = jax.jit(
        adaptive_tempered.build_kernel(
            log_prior, log_likelihood, hmc.build_kernel(), hmc.init, resampling.systematic, target_ess=0.5
        ),
        static_argnums=2,
    )
    state, key, log_evidence = init(particles), jax.random.PRNGKey(seed), 0.0
    step_size = 0.6 * particles.shape[1] ** -0.25
    while state.tempering_param < 1.0:
        key, now = jax.random.split(key)
        parameters = {
            "step_size": jnp.full(1, step_size),
            "inverse_mass_matrix": jnp.atleast_2d(jnp.cov(state.particles.T))[None],
            "num_integration_steps": jnp.full(1, _NUM_LEAPFROG),
        }
        state, info = kernel(now, state, _NUM_MOVES, parameters)
        log_evidence += float(info.log_likelihood_increment)
        step_size *= math.exp(float(info.update_info.acceptance_rate.mean()) - 0.75)

    return Outcome(clock.read(), log_evidence=log_evidence)


def _numpyro_prior(model: PeerModel, seed: int, num_draws: int) -> tuple[Any, Any, Any]:
    """Log prior and log likelihood of a flat unconstrained point, and draws of the prior as such points."""
    import jax
    from jax.flatten_util import ravel_pytree
    from numpyro.handlers import block
    from numpyro.infer import Predictive, log_likelihood
    from numpyro.infer.util import constrain_fn, initialize_model, unconstrain_fn

    function = model.numpyro()
    prior = block(function, hide_fn=_is_observation)
    key = jax.random.PRNGKey(seed)
    prior_info = initialize_model(key, prior)
    _, unravel = ravel_pytree(prior_info.param_info.z)
    names = list(prior_info.param_info.z)
    draws = Predictive(prior, num_samples=num_draws)(key)
    to_flat = jax.vmap(lambda row: ravel_pytree(unconstrain_fn(prior, (), {}, row))[0])

    def log_prior(z: Any) -> Any:
        return -prior_info.potential_fn(unravel(z))

    def log_likelihood_of(z: Any) -> Any:
        # Not as a difference of two densities, which far out is one of very large numbers.
        sites = log_likelihood(function, constrain_fn(prior, (), {}, unravel(z)), batch_ndims=0)
        return sum(values.sum() for values in sites.values())

    return log_prior, log_likelihood_of, to_flat({name: draws[name] for name in names})


def _is_observation(site: Any) -> bool:
    """What a prior lacks; a Jacobian, which NumPyro adds as an observed site too, belongs to it."""
    return site["type"] == "sample" and site["is_observed"] and not site["name"].endswith("_log_det")
