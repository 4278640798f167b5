"""Options that do not exist: what they are here, where another sampler has them, or which name was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NO_WARMUP = "there is no warm-up: the flow is trained for at most num_iterations steps. Leave it out"
_NO_STEPS = "no trajectories are integrated, so there is nothing to tune. Leave it out"
_NO_JIT = "densities are recorded as graphs by themselves. Leave it out; capture=False turns that off"
_SEED = "it is seed=, an integer"
_MOVES = "the data decide: pass tensors of that kind to run(), and draws come back in it"
# Options of MCMC, HMC, NUTS and SVI, and of samplers beside Pyro, in words that follow "has no option ...: ".
FOREIGN: dict[str, str] = {
    # Pyro's MCMC
    "kernel": "pass the model itself, OSDS(model)",
    "warmup_steps": _NO_WARMUP,
    "hook_fn": "there are no steps of a chain. callback= is called after each round of training and each stage",
    "mp_context": "chains share one flow and need no processes. Leave it out; fit_many runs several fits at once",
    "disable_validation": "call pyro.enable_validation(False) before run()",
    "save_params": "all sites are kept. Select them from get_samples()",
    # Pyro's HMC and NUTS
    **dict.fromkeys(
        (
            "step_size",
            "trajectory_length",
            "adapt_step_size",
            "adapt_mass_matrix",
            "full_mass",
            "target_accept_prob",
            "min_stepsize",
            "max_stepsize",
            "use_multinomial_sampling",
            "max_tree_depth",
            "init_step_size",
        ),
        _NO_STEPS,
    ),
    **dict.fromkeys(("jit_compile", "jit_options", "ignore_jit_warnings"), _NO_JIT),
    # Pyro's SVI
    "guide": "the flow is the guide. Leave it out; after run() it is osds.guide",
    "loss": "the recipe decides what is trained. Leave it out, or choose recipe=",
    "loss_and_grads": "the recipe decides what is trained. Leave it out, or choose recipe=",
    "statistics": "draws are kept whole. Use get_samples()",
    # others'
    **dict.fromkeys(("num_warmup", "warmup", "tune", "burn_in", "burnin", "n_warmup"), _NO_WARMUP),
    **dict.fromkeys(("random_seed", "rng_seed", "rng_key", "rng", "random_state", "generator"), _SEED),
    **dict.fromkeys(("target_accept", "dense_mass", "find_heuristic_step_size", "max_treedepth", "step"), _NO_STEPS),
    **dict.fromkeys(("thinning", "thin"), "draws of a flow are hardly correlated. Leave it out, or lower num_samples"),
    **dict.fromkeys(("progress_bar", "progressbar", "progbar", "verbose", "progress"), "it is disable_progbar=True"),
    **dict.fromkeys(("draws", "num_draws", "n_samples", "samples", "ndraws", "n_draws"), "it is num_samples="),
    **dict.fromkeys(("chains", "n_chains", "nchains"), "it is num_chains="),
    **dict.fromkeys(("cores", "num_jobs", "n_jobs", "chain_method"), "chains share one flow. fit_many runs many fits"),
    **dict.fromkeys(("lr", "step_lr"), "it is learning_rate="),
    **dict.fromkeys(
        ("epochs", "num_epochs", "max_iter", "n_iter", "iterations", "max_steps", "num_training_steps"),
        "it is num_iterations=",
    ),
    **dict.fromkeys(("optimizer", "optimiser"), "it is optim=, one of pyro.optim"),
    **dict.fromkeys(("timeout", "max_seconds", "time_limit"), "it is max_time=, in seconds"),
    **dict.fromkeys(("init", "inits", "initvals", "init_params", "start"), "it is initial_params=, by site"),
    "device": _MOVES,
    "dtype": _MOVES,
    **dict.fromkeys(("model_args", "model_kwargs", "data", "args", "kwargs", "obs"), "pass it to run()"),
    **dict.fromkeys(("dims", "coords"), "pass it to to_inference_data()"),
    **dict.fromkeys(("nlive", "dlogz", "n_live"), "this is no nested sampler. Leave it out"),
    "log_prob_fn": "write OSDS.from_log_prob(log_prob_fn, dim)",
    "dim": "write OSDS.from_log_prob(log_prob_fn, dim)",
}


def nearest(name: Any, names: Iterable[Any]) -> str:
    """The sentence that asks for the name that is most like this one; empty where none is.

    Example:
        >>> nearest("destill", ["auto", "distill"])
        " Did you mean 'distill'?"
        >>> nearest("x", ["auto"])
        ''
    """
    known = {str(each).lower(): each for each in names}
    found = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)

    return f" Did you mean {known[found[0]]!r}?" if found else ""


def unknown_option(function: str, name: str, names: Iterable[str]) -> TypeError:
    """The error for an option that a function does not have.

    Arguments:
        function: The function's name, as the user calls it.
        name: The option.
        names: The options that there are.

    Example:
        >>> print(unknown_option("OSDS", "num_sample", ["num_samples", "num_chains"]))
        OSDS has no option 'num_sample'. Did you mean 'num_samples'?
        >>> print(unknown_option("OSDS", "random_seed", ["num_samples"]))
        OSDS has no option 'random_seed': it is seed=, an integer.
    """
    names = list(names)
    # What is said of other samplers' options is true of the sampler; a method has none of them.
    if function in ("OSDS", "OSDSKernel") and name in FOREIGN:
        return TypeError(f"{function} has no option {name!r}: {FOREIGN[name]}.")
    meant = nearest(name, names) or f" Its options are {', '.join(names)}."

    return TypeError(f"{function} has no option {name!r}.{meant}")


def explains_options(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: an option that the function does not have is an error that says what it is called here.

    Arguments:
        name: The function's name, as the user calls it.

    Raises:
        TypeError: By the function, for an option or a positional argument too many.

    Example:
        >>> @explains_options("draw")
        ... def draw(num_draws=1):
        ...     return num_draws
        >>> draw(num_draw=2)
        Traceback (most recent call last):
        TypeError: draw has no option 'num_draw'. Did you mean 'num_draws'?
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters.values()
        options = [each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
        options = [option for option in options if option not in ("self", "cls")]
        positional = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        only = ", ".join(each.name for each in positional if each.name not in ("self", "cls"))

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for option in kwargs:
                if option not in options:
                    raise unknown_option(name, option, options)
            if len(args) > len(positional):
                extra = args[len(positional)]
                raise TypeError(
                    f"{name} takes only {only or 'no arguments'} by position, got {extra!r} beyond: write every other "
                    f"option with its name{', such as num_chains=4' if 'num_chains' in options else ''}."
                )
            return function(*args, **kwargs)

        return call

    return decorate
