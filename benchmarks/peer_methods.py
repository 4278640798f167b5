"""One function for each sampler: a posterior in, an outcome out, with the sampler's own settings.

Each has one process and one thread, in which nothing has been compiled. Seconds begin once libraries are imported and
end when posterior draws (and the log evidence, where there is one) are there.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peer_models import PeerModel

# As MCMC's users run it.
NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 4, 1000, 1000
_MORE_DRAWS = 100_000
# Where a sampler for the evidence has to be told how well: a standard error of 0.05 nats, and as many effective draws.
_STD_ERROR, _NUM_EFFECTIVE = 0.05, 400
# Of tempered SMC: its evidence is within a tenth of a nat on most of the posteriors.
_NUM_PARTICLES, _NUM_MOVES, _NUM_LEAPFROG = 1000, 10, 5


@dataclass
class Outcome:
    """What a run gave.

    `draws` are `(chains, draws, *shape)` by site; `further` are effective draws per second once the first result is
    there; evaluations are those of the log density, with or without its gradient, as far as the sampler counts them.
    """

    seconds: float
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    log_evidence: float = math.nan
    std_error: float = math.nan
    further: float = math.nan
    evaluations: float = math.nan
    reliable: bool | None = None


def min_effective_size(draws: dict[str, np.ndarray]) -> float:
    """The smallest bulk effective sample size of all coordinates, draws."""
    import arviz as az
    import xarray as xr

    dataset = xr.Dataset(
        {
            name: (["chain", "draw", *(f"{name}_{axis}" for axis in range(value.ndim - 2))], value.astype(float))
            for name, value in draws.items()
        }
    )

    return min(float(value.min()) for value in az.ess(dataset).data_vars.values())


# ---- ours ----


def osds(model: PeerModel, seed: int) -> Outcome:
    """OSDS with default settings."""
    import pyro

    from pyro_osds import OSDS
    from pyro_osds.target import FunctionTarget

    count = _count_points(FunctionTarget)
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    if model.dim:
        sampler = OSDS.from_log_prob(model.pyro, model.dim, disable_progbar=True)
    else:
        sampler = OSDS(model.pyro, disable_progbar=True)
    sampler.run()
    evidence = sampler.evidence
    draws = {name: value.numpy() for name, value in sampler.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - start
    evaluations = count()
    start = time.perf_counter()
    more = sampler.draw(_MORE_DRAWS)
    further = float(more.get_ESS()) / (time.perf_counter() - start)

    return Outcome(
        seconds, draws, evidence.log_evidence, evidence.std_error, further, evaluations, bool(evidence.reliable)
    )


def _count_points(function_target: Any) -> Callable[[], float]:
    """Counts the points at which densities are evaluated, whatever the backend."""
    from pyro_osds.model.batching import Ladder

    total = 0.0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, z: Any) -> Any:
            nonlocal total
            total += len(z)
            return method(self, z)

        return call

    Ladder.densities = counted(Ladder.densities)
    function_target.log_prob = counted(function_target.log_prob)

    return lambda: total


# ---- Pyro ----


def pyro_nuts(model: PeerModel, seed: int, jit: bool = False) -> Outcome:
    """Pyro's NUTS, chain after chain; a model that is a log density as a potential function."""
    import pyro
    import torch
    from pyro.infer import NUTS
    from pyro.ops import integrator

    calls = 0
    gradient = integrator.potential_grad

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return gradient(*args)

    integrator.potential_grad = counted
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    options: dict[str, Any] = {"jit_compile": jit, "ignore_jit_warnings": True}
    initial = None
    if model.dim:
        density = model.pyro
        options |= {"potential_fn": lambda values: -density(values["z"][None])[0]}
        initial = {"z": torch.randn(NUM_CHAINS, model.dim)}
    else:
        options |= {"model": model.pyro}
    samples, sampling = _one_by_one(lambda: NUTS(**options), initial)
    seconds = time.perf_counter() - start

    return Outcome(seconds, samples, further=min_effective_size(samples) / sampling, evaluations=calls)


def _one_by_one(make_kernel: Callable[[], Any], initial: dict[str, Any] | None) -> tuple[dict[str, np.ndarray], float]:
    """Chains after each other, where MCMC starts processes: draws `(chains, draws, ...)`, and seconds of drawing."""
    from pyro.infer import MCMC

    chains, sampling = [], 0.0
    for chain in range(NUM_CHAINS):
        start = None if initial is None else {name: value[chain] for name, value in initial.items()}
        warmed: list[float] = []

        def hook(kernel: Any, params: Any, stage: str, i: int, warmed: list[float] = warmed) -> None:
            if stage.startswith("Sample") and not warmed:
                warmed.append(time.perf_counter())

        mcmc = MCMC(make_kernel(), NUM_SAMPLES, NUM_WARMUP, initial_params=start, disable_progbar=True, hook_fn=hook)
        mcmc.run()
        sampling += time.perf_counter() - warmed[0]
        chains.append({name: value.numpy() for name, value in mcmc.get_samples().items()})

    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}, sampling


def pyro_nuts_jit(model: PeerModel, seed: int) -> Outcome:
    """Pyro's NUTS with `jit_compile=True`."""
    return pyro_nuts(model, seed, jit=True)


def pyro_normal(model: PeerModel, seed: int) -> Outcome:
    """SVI with a multivariate normal guide, 2,000 steps."""
    from pyro.infer.autoguide import AutoMultivariateNormal

    return _pyro_svi(model, seed, AutoMultivariateNormal, 2000)


def pyro_iaf(model: PeerModel, seed: int) -> Outcome:
    """SVI with an inverse autoregressive flow as the guide, 4,000 steps."""
    from pyro.infer.autoguide import AutoIAFNormal

    return _pyro_svi(model, seed, lambda fn: AutoIAFNormal(fn, num_transforms=2), 4000)


def _pyro_svi(model: PeerModel, seed: int, guide_of: Callable[[Any], Any], num_steps: int) -> Outcome:
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO

    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    start = time.perf_counter()
    function = model.pyro if not model.dim else _as_model(model)
    guide = guide_of(function)
    svi = SVI(function, guide, pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / num_steps)}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step()
    with torch.no_grad():
        drawn = [guide() for _ in range(NUM_CHAINS * NUM_SAMPLES)]
    draws = {name: torch.stack([row[name] for row in drawn]).numpy()[None] for name in drawn[0]}
    seconds = time.perf_counter() - start

    return Outcome(seconds, draws, evaluations=num_steps)


def _as_model(model: PeerModel) -> Callable[[], None]:
    import pyro
    import pyro.distributions as dist

    def function() -> None:
        # Not improper: a guide begins from a draw.
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([model.dim]).to_event(1).mask(False))
        pyro.factor("density", model.pyro(z[None])[0])

    return function


# ---- NumPyro ----


def numpyro_nuts(model: PeerModel, seed: int) -> Outcome:
    """NumPyro's NUTS, chain after chain in one compiled program."""
    mcmc, seconds, further = _run_numpyro(model, seed)
    samples = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}

    return Outcome(seconds, samples, further=further, evaluations=float(mcmc.get_extra_fields()["num_steps"].sum()))


def _run_numpyro(model: PeerModel, seed: int) -> tuple[Any, float, float]:
    import jax
    from numpyro.infer import MCMC, NUTS

    function = model.numpyro()
    start = time.perf_counter()
    mcmc = MCMC(
        NUTS(function),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed), extra_fields=("num_steps",))
    samples = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - start
    # More draws of chains that are warm, by a program that is compiled.
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key, extra_fields=("num_steps",))
    again = time.perf_counter()
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key, extra_fields=("num_steps",))
    samples = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}

    return mcmc, seconds, min_effective_size(samples) / (time.perf_counter() - again)


def bridge_sampling(model: PeerModel, seed: int) -> Outcome:
    """NumPyro's NUTS, then the log evidence by bridge sampling with a Gaussian of the draws' moments."""
    mcmc, nuts_seconds, _ = _run_numpyro(model, seed)
    start = time.perf_counter()
    log_density, flatten = _numpyro_density(model, seed)
    z = flatten(mcmc.get_samples())
    half = len(z) // 2
    mean, tril = z[:half].mean(0), np.linalg.cholesky(np.atleast_2d(np.cov(z[:half].T)))
    proposed = mean + np.random.default_rng(seed).standard_normal((half, z.shape[1])) @ tril.T
    log_evidence = _refinement(
        *(log_density(points) - _log_normal(points, mean, tril) for points in (z[half:], proposed))
    )

    return Outcome(nuts_seconds + time.perf_counter() - start, log_evidence=log_evidence)


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

    start = time.perf_counter()
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

    return Outcome(time.perf_counter() - start, log_evidence=log_evidence)


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


def nautilus(model: PeerModel, seed: int) -> Outcome:
    """Nautilus, vectorised, until the stated error is small enough."""
    from nautilus import Prior, Sampler

    prior = Prior()
    for index in range(model.num_cube):
        prior.add_parameter(f"u{index}")

    def log_likelihood(u: np.ndarray) -> np.ndarray:
        return _finite(model.log_likelihood(model.cube(np.clip(u, 1e-12, 1 - 1e-12))))

    start = time.perf_counter()
    sampler = Sampler(
        lambda u: u, log_likelihood, n_dim=model.num_cube, vectorized=True, pass_dict=False, seed=seed, pool=None
    )
    sampler.run(n_eff=_NUM_EFFECTIVE, verbose=False)
    seconds = time.perf_counter() - start

    return Outcome(
        seconds,
        log_evidence=float(sampler.log_z) + model.log_volume,
        std_error=1.0 / math.sqrt(sampler.n_eff),
        evaluations=float(sampler.n_like),
    )


def dynesty(model: PeerModel, seed: int) -> Outcome:
    """Dynesty's dynamic nested sampler, all of it for the evidence, until the stated error is small enough."""
    from dynesty import DynamicNestedSampler

    start = time.perf_counter()
    sampler = DynamicNestedSampler(
        lambda theta: float(_finite(model.log_likelihood(theta[None]))[0]),
        lambda u: model.cube(u[None])[0],
        model.num_cube,
        rstate=np.random.default_rng(seed),
    )
    sampler.run_nested(
        wt_kwargs={"pfrac": 0.0}, stop_kwargs={"pfrac": 0.0, "evid_thresh": _STD_ERROR}, print_progress=False
    )
    seconds = time.perf_counter() - start
    results = sampler.results

    return Outcome(
        seconds,
        log_evidence=float(results.logz[-1]) + model.log_volume,
        std_error=float(results.logzerr[-1]),
        evaluations=float(np.sum(results.ncall)),
    )


def _is_observation(site: Any) -> bool:
    """What a prior lacks; a Jacobian, which NumPyro adds as an observed site too, belongs to it."""
    return site["type"] == "sample" and site["is_observed"] and not site["name"].endswith("_log_det")


def _finite(log_likelihood: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(log_likelihood), log_likelihood, -1e100)


METHODS: dict[str, Callable[[PeerModel, int], Outcome]] = {
    "OSDS": osds,
    "Pyro NUTS": pyro_nuts,
    "Pyro NUTS, jit": pyro_nuts_jit,
    "Pyro normal guide": pyro_normal,
    "Pyro IAF guide": pyro_iaf,
    "NumPyro NUTS": numpyro_nuts,
    "bridge sampling": bridge_sampling,
    "tempered SMC": tempered_smc,
    "nautilus": nautilus,
    "dynesty": dynesty,
}


def applies(method: str, model: PeerModel) -> bool:
    """Whether a method takes the model: nested samplers need it on the unit cube, SMC needs a proper prior."""
    if method in ("nautilus", "dynesty"):
        return model.cube is not None
    if method == "tempered SMC":
        return not model.dim

    return True


def quiet(run: Callable[[], Outcome]) -> Outcome:
    """Without warnings: verdicts are in the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()
