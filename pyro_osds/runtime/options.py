"""Options and attributes that do not exist: what they are here, where another has them, or which name was meant."""

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
    # Pyro's Predictive
    "posterior_samples": "draws are made here, and osds.posterior_predictive() predicts from them. Leave it out",
    "return_sites": "posterior_predictive() returns all sites. Select them from what it returns",
    "parallel": "densities and predictions come in batches by themselves. Leave it out",
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
    # Stan's, cmdstanpy's and PyMC's
    **dict.fromkeys(("iter_warmup", "save_warmup", "adapt_engaged", "adapt_init_phase"), _NO_WARMUP),
    **dict.fromkeys(("adapt_delta", "max_depth", "metric", "stepsize", "inv_metric", "algorithm"), _NO_STEPS),
    "iter_sampling": "it is num_samples=, draws of each chain",
    "iter": "draws of each chain are num_samples=, and there is no warm-up among them",
    **dict.fromkeys(
        ("parallel_chains", "threads_per_chain", "threads"),
        "chains share one flow. Leave it out; it is num_chains= how many",
    ),
    **dict.fromkeys(("refresh", "show_progress", "show_console"), "it is disable_progbar=True for no progress bar"),
    **dict.fromkeys(
        ("nuts_sampler", "nuts_kwargs", "sampler"), "the sampler is a trained flow, and NUTS is not run. Leave it out"
    ),
    "init_r": "exploration starts from the prior. Leave it out, or pass initial_params=, by site",
    "output_dir": "nothing is written. Leave it out; osds.save(path) makes a file",
    "device": _MOVES,
    "dtype": _MOVES,
    **dict.fromkeys(("model_args", "model_kwargs", "data", "args", "kwargs", "obs"), "pass it to run()"),
    **dict.fromkeys(("dims", "coords"), "pass it to to_inference_data()"),
    **dict.fromkeys(("nlive", "dlogz", "n_live"), "this is no nested sampler. Leave it out"),
    "log_prob_fn": "write OSDS.from_log_prob(log_prob_fn, dim)",
    "dim": "write OSDS.from_log_prob(log_prob_fn, dim)",
}

# What a method's option is called here, where it is called otherwise elsewhere, in the order of preference.
_ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("num_samples", "n", "size", "num", "count", "n_samples", "draws", "n_draws"), ("num_draws",)),
    **dict.fromkeys(("num_draws", "n", "draws"), ("num_samples",)),
    **dict.fromkeys(("by_chain", "group_by_chains", "chains"), ("group_by_chain",)),
    **dict.fromkeys(("n_jobs", "jobs", "cores", "workers", "num_workers", "n_workers", "processes"), ("num_jobs",)),
    **dict.fromkeys(("progress_bar", "progressbar", "progbar", "progress", "verbose"), ("disable_progbar",)),
    **dict.fromkeys(("file", "filename", "fname"), ("path",)),
    **dict.fromkeys(("hdi_prob", "ci", "alpha", "level"), ("prob",)),
    **dict.fromkeys(("priors", "weights", "prior_probs"), ("prior",)),
}
_KERNEL = "OSDS stands where MCMC(kernel, ...) stood: call OSDS(model).run(...), or write MCMC(OSDSKernel(model), ...)"
# Attributes that users of MCMC, SVI and others look for, in words that follow "has no attribute ...: ".
_ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(("setup", "cleanup", "logging", "end_warmup"), _KERNEL),
    **dict.fromkeys(("items", "keys", "values"), "the mapping of draws by site is osds.get_samples()"),
    **dict.fromkeys(("samples", "posterior_samples", "posterior", "sample"), "the draws are osds.get_samples()"),
    **{
        name: f"it is osds.evidence.{name}"
        for name in ("elbo", "ess", "pareto_k", "reliable", "reasons", "std_error", "all_reasons", "draws_reliable")
    },
    **dict.fromkeys(
        ("logz", "logZ", "log_z", "log_Z", "log_marginal_likelihood", "log_ml", "marginal_likelihood"),
        "it is osds.log_evidence",
    ),
    **dict.fromkeys(("loss", "losses"), "the history of training is osds.trainer.history"),
    **dict.fromkeys(("predict", "sample_posterior_predictive"), "it is osds.posterior_predictive()"),
    **dict.fromkeys(("train", "infer", "sampling", "optimize"), "it is osds.run(...), with the model's arguments"),
    **dict.fromkeys(("state_dict", "dump", "write"), "it is osds.save(path)"),
    **dict.fromkeys(("to_arviz", "to_inferencedata", "idata", "inference_data"), "it is osds.to_inference_data()"),
    **dict.fromkeys(("print_summary",), "it is osds.summary()"),
}
# Options of what :func:`explains_options` decorates, by the name that users have for it.
_known: dict[str, list[str]] = {}


def is_alias(name: str, option: str) -> bool:
    """Whether an option of ours goes by this name elsewhere.

    Example:
        >>> is_alias("num_samples", "num_draws"), is_alias("x", "num_draws")
        (True, False)
    """
    return option in _ALIASES.get(name, ())


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


def place_of_option(name: str) -> str:
    """Where an option belongs that was given to another function; empty where nobody knows it.

    Arguments:
        name: The option.

    Example:
        >>> print(place_of_option("jit_compile"))
        OSDS has no such option either: densities are recorded as graphs by themselves. Leave it out; capture=False turns that off.
        >>> place_of_option("colour")
        ''
    """  # noqa: E501 - one line is printed
    if name in _known.get("OSDS", ()):
        return f"It is an option of OSDS: write OSDS(model, {name}=...)."

    return f"OSDS has no such option either: {FOREIGN[name]}." if name in FOREIGN else ""


def unknown_option(function: str, name: str, names: Iterable[str], hint: str = "") -> TypeError:
    """The error for an option that a function does not have.

    Arguments:
        function: The function's name, as the user calls it.
        name: The option.
        names: The options that there are.
        hint: A sentence for options that resemble none.

    Example:
        >>> print(unknown_option("OSDS", "num_sample", ["num_samples", "num_chains"]))
        OSDS has no option 'num_sample'. Did you mean 'num_samples'?
        >>> print(unknown_option("OSDS", "random_seed", ["num_samples"]))
        OSDS has no option 'random_seed': it is seed=, an integer.
        >>> print(unknown_option("draw", "num_samples", ["num_draws", "num_steps"]))
        draw has no option 'num_samples'. Did you mean 'num_draws'?
    """
    names = list(names)
    # What is said of other samplers' options is true of the sampler; a method has none of them.
    is_sampler = function in ("OSDS", "OSDSKernel")
    if is_sampler and name in FOREIGN:
        return TypeError(f"{function} has no option {name!r}: {FOREIGN[name]}.")
    alias = next((each for each in _ALIASES.get(name, ()) if each in names), None)
    meant = f" Did you mean {alias!r}?" if alias else nearest(name, names)
    place = "" if is_sampler else place_of_option(name)
    told = place and f" {place}" if place and not alias else meant
    told = told or f" {hint[:1].upper()}{hint[1:] or 'Its options are ' + ', '.join(names) + '.'}"

    return TypeError(f"{function} has no option {name!r}.{told}")


def unknown_attribute(owner: type, name: str, hint: str = "") -> AttributeError:
    """The error for an attribute that an object does not have.

    Arguments:
        owner: Its class.
        name: The attribute.
        hint: What to say of it; default: what is known of names that MCMC, SVI and others have.

    Example:
        >>> print(unknown_attribute(list, "apend"))
        'list' object has no attribute 'apend'. Did you mean 'append'?
        >>> print(unknown_attribute(list, "pareto_k"))
        'list' object has no attribute 'pareto_k': it is osds.evidence.pareto_k.
    """
    told = hint or _ATTRIBUTES.get(name, "")
    # Python, and whatever looks at an object, ask for many names that begin with an underscore.
    is_asked = not (told or name.startswith("_"))
    meant = nearest(name, [each for each in dir(owner) if each[0] != "_"]) if is_asked else ""
    end = f": {told}." if told else f".{meant}" if meant else ""

    return AttributeError(f"{owner.__name__!r} object has no attribute {name!r}{end}")


def explains_options(name: str, hint: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: an option that the function does not have is an error that says what it is called here.

    Arguments:
        name: The function's name, as the user calls it.
        hint: What to say of too many arguments, and of options that resemble none.

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
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        _known[name] = options
        more = hint or (
            "write every other option with its name"
            f"{', such as num_chains=4' if 'num_chains' in options or takes_any else ''}."
        )

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for option in () if takes_any else kwargs:
                if option not in options:
                    raise unknown_option(name, option, options, hint)
            if len(args) > len(positional):
                got = short(args[len(positional)])
                raise TypeError(f"{name} takes only {only or 'no arguments'} by position, got {got} beyond: {more}")
            return function(*args, **kwargs)

        return call

    return decorate


def short(value: Any) -> str:
    """A value as an error shows it: numbers and words as they are, the rest by kind and shape.

    Example:
        >>> import torch
        >>> short(4), short("auto"), short(torch.zeros(3)), short(len)
        ('4', "'auto'", 'a Tensor (3,)', 'the function len')
    """
    if isinstance(value, (bool, int, float, complex, str, type(None))):
        text = repr(value)
        return text if len(text) < 80 else f"{text[:76]}..."
    if isinstance(getattr(value, "shape", None), tuple):  # a method of a distribution
        # A number of numpy, or a tensor without dimensions, is best shown.
        shape = tuple(value.shape)
        return f"a {type(value).__name__} {shape}" if shape else " ".join(repr(value).split())
    if isinstance(value, (list, tuple, set, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    name = type(value).__name__

    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
