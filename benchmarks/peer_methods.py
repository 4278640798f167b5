"""One function for each sampler: a posterior in, an outcome out, with the sampler's own settings.

Each has one process and one thread, in which nothing has been compiled. Seconds begin once libraries are imported and
end when posterior draws (and the log evidence, where there is one) are there.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from peer_models import PeerModel
from peer_numpyro import bridge_sampling, numpyro_nuts, tempered_smc
from peer_outcome import NUM_CHAINS, NUM_SAMPLES, NUM_WARMUP, Clock, Outcome, Seconds, min_effective_size
from peer_pymc import nutpie, nutpie_low_rank

_MORE_DRAWS = 100_000
# Where a sampler for the evidence has to be told how well: a standard error of 0.05 nats, and as many effective draws.
_STD_ERROR, _NUM_EFFECTIVE = 0.05, 400


# ---- ours ----


def osds(model: PeerModel, seed: int) -> Outcome:
    """OSDS with default settings."""
    import pyro

    from pyro_osds import OSDS
    from pyro_osds.target import FunctionTarget

    count = _count_points(FunctionTarget)
    pyro.set_rng_seed(seed)
    clock = Clock()
    if model.dim:
        sampler = OSDS.from_log_prob(model.pyro, model.dim, disable_progbar=True)
    else:
        sampler = OSDS(model.pyro, disable_progbar=True)
    sampler.run()
    evidence = sampler.evidence
    draws = {name: value.numpy() for name, value in sampler.get_samples(group_by_chain=True).items()}
    seconds = clock.read()
    evaluations = count()

    def further() -> tuple[float, Seconds]:
        clock = Clock()
        more = sampler.draw(_MORE_DRAWS)

        return float(more.get_ESS()), clock.read()

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
    clock = Clock()
    options: dict[str, Any] = {"jit_compile": jit, "ignore_jit_warnings": True}
    initial = None
    if model.dim:
        density = model.pyro
        options |= {"potential_fn": lambda values: -density(values["z"][None])[0]}
        initial = {"z": torch.randn(NUM_CHAINS, model.dim)}
    else:
        options |= {"model": model.pyro}
    samples, sampling = _one_by_one(lambda: NUTS(**options), initial)
    seconds = clock.read()

    return Outcome(seconds, samples, further=lambda: (min_effective_size(samples), sampling), evaluations=calls)


def _one_by_one(
    make_kernel: Callable[[], Any], initial: dict[str, Any] | None
) -> tuple[dict[str, np.ndarray], Seconds]:
    """Chains after each other, where MCMC starts processes: draws `(chains, draws, ...)`, and seconds of drawing."""
    from pyro.infer import MCMC

    chains, wall, cpu = [], 0.0, 0.0
    for chain in range(NUM_CHAINS):
        start = None if initial is None else {name: value[chain] for name, value in initial.items()}
        warmed: list[Clock] = []

        def hook(kernel: Any, params: Any, stage: str, i: int, warmed: list[Clock] = warmed) -> None:
            if stage.startswith("Sample") and not warmed:
                warmed.append(Clock())

        mcmc = MCMC(make_kernel(), NUM_SAMPLES, NUM_WARMUP, initial_params=start, disable_progbar=True, hook_fn=hook)
        mcmc.run()
        spent = warmed[0].read()
        wall, cpu = wall + spent.wall, cpu + spent.cpu
        chains.append({name: value.numpy() for name, value in mcmc.get_samples().items()})

    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}, Seconds(wall, cpu)


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
    clock = Clock()
    function = model.pyro if not model.dim else _as_model(model)
    guide = guide_of(function)
    svi = SVI(function, guide, pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / num_steps)}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step()
    with torch.no_grad():
        drawn = [guide() for _ in range(NUM_CHAINS * NUM_SAMPLES)]
    draws = {name: torch.stack([row[name] for row in drawn]).numpy()[None] for name in drawn[0]}
    seconds = clock.read()

    return Outcome(seconds, draws, evaluations=num_steps)


def _as_model(model: PeerModel) -> Callable[[], None]:
    import pyro
    import pyro.distributions as dist

    def function() -> None:
        # Not improper: a guide begins from a draw.
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([model.dim]).to_event(1).mask(False))
        pyro.factor("density", model.pyro(z[None])[0])

    return function


# ---- nested samplers ----


def nautilus(model: PeerModel, seed: int) -> Outcome:
    """Nautilus, vectorised, until the stated error is small enough."""
    from nautilus import Prior, Sampler

    prior = Prior()
    for index in range(model.num_cube):
        prior.add_parameter(f"u{index}")

    def log_likelihood(u: np.ndarray) -> np.ndarray:
        return _finite(model.log_likelihood(model.cube(np.clip(u, 1e-12, 1 - 1e-12))))

    clock = Clock()
    sampler = Sampler(
        lambda u: u, log_likelihood, n_dim=model.num_cube, vectorized=True, pass_dict=False, seed=seed, pool=None
    )
    sampler.run(n_eff=_NUM_EFFECTIVE, verbose=False)
    seconds = clock.read()

    return Outcome(
        seconds,
        log_evidence=float(sampler.log_z) + model.log_volume,
        std_error=1.0 / math.sqrt(sampler.n_eff),
        evaluations=float(sampler.n_like),
    )


def dynesty(model: PeerModel, seed: int) -> Outcome:
    """Dynesty's dynamic nested sampler, all of it for the evidence, until the stated error is small enough."""
    from dynesty import DynamicNestedSampler

    clock = Clock()
    sampler = DynamicNestedSampler(
        lambda theta: float(_finite(model.log_likelihood(theta[None]))[0]),
        lambda u: model.cube(u[None])[0],
        model.num_cube,
        rstate=np.random.default_rng(seed),
    )
    sampler.run_nested(
        wt_kwargs={"pfrac": 0.0}, stop_kwargs={"pfrac": 0.0, "evid_thresh": _STD_ERROR}, print_progress=False
    )
    seconds = clock.read()
    results = sampler.results

    return Outcome(
        seconds,
        log_evidence=float(results.logz[-1]) + model.log_volume,
        std_error=float(results.logzerr[-1]),
        evaluations=float(np.sum(results.ncall)),
    )


def _finite(log_likelihood: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(log_likelihood), log_likelihood, -1e100)


METHODS: dict[str, Callable[[PeerModel, int], Outcome]] = {
    "OSDS": osds,
    "Pyro NUTS": pyro_nuts,
    "Pyro NUTS, jit": pyro_nuts_jit,
    "Pyro normal guide": pyro_normal,
    "Pyro IAF guide": pyro_iaf,
    "NumPyro NUTS": numpyro_nuts,
    "nutpie": nutpie,
    "nutpie, low rank": nutpie_low_rank,
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
