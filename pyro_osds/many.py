"""Many fits at once, on the cores of one machine or on a cluster; joblib does the sending.

Each fit has a seed of its own, drawn from the caller's random numbers before any of them starts, and the parameters of
the caller. So its numbers depend neither on how many run at once, nor where, nor on the order in which they come to
their end; only rounding depends on the number of threads that each has, which is joblib's business too.
"""

from __future__ import annotations

import copy
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

from pyro_osds.osds import OSDS
from pyro_osds.runtime.arguments import check_mapping, misfit, parameters_of
from pyro_osds.runtime.options import nearest, unknown_option
from pyro_osds.runtime.progress import progress_bar
from pyro_osds.runtime.warnings import InterruptedWarning, OSDSWarning, warn
from pyro_osds.runtime.workers import in_this_process

T = TypeVar("T")

# Pyro's handlers and the random numbers belong to the whole process: threads of one take turns.
_turn = threading.Lock()
_OPTIONS = ("samplers", "num_jobs", "read", "disable_progbar")


class FitManyError(RuntimeError):
    r"""Some of many fits failed; the others are here.

    Arguments:
        errors: Tracebacks of the fits that failed, by name.
        fits: What came out of the others, by name.

    Example:
        >>> print(FitManyError({"b": "Traceback ...\nValueError: too wide"}, {"a": "a fit"}))
        1 of 2 fits failed: 'b' (ValueError: too wide). The error's attribute fits holds the others, errors the
        tracebacks.
    """

    def __init__(self, errors: Mapping[str, str], fits: Mapping[str, Any]) -> None:
        self.errors = dict(errors)
        self.fits = dict(fits)
        told = "; ".join(f"{name!r} ({text.strip().splitlines()[-1]})" for name, text in self.errors.items())
        super().__init__(
            f"{len(self.errors)} of {len(self.errors) + len(self.fits)} fits failed: {told}. The error's attribute "
            "fits holds the others, errors the tracebacks."
        )


@dataclass(frozen=True)
class _Job:
    """One fit: all that it depends on, as it is sent."""

    name: str
    sampler: OSDS
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    parameters: Any
    read: Callable[[OSDS], Any] | None


@dataclass
class _Done:
    """What comes back: a result or a traceback, and what was warned of."""

    name: str
    result: Any = None
    error: str | None = None
    warnings: list[tuple[type[Warning], str]] = field(default_factory=list)


@overload
def fit_many(
    samplers: Mapping[str, OSDS | tuple[Any, ...]],
    *args: Any,
    num_jobs: int | None = -1,
    read: None = None,
    disable_progbar: bool = False,
    **kwargs: Any,
) -> dict[str, OSDS]: ...
@overload
def fit_many(
    samplers: Mapping[str, OSDS | tuple[Any, ...]],
    *args: Any,
    num_jobs: int | None = -1,
    read: Callable[[OSDS], T],
    disable_progbar: bool = False,
    **kwargs: Any,
) -> dict[str, T]: ...
def fit_many(
    samplers: Mapping[str, OSDS | tuple[Any, ...]],
    *args: Any,
    num_jobs: int | None = -1,
    read: Callable[[OSDS], Any] | None = None,
    disable_progbar: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """Run many samplers, some at once, in processes of their own.

    Where they run is for joblib to say: on the cores of this machine by default, on a Dask cluster within
    ``with joblib.parallel_config("dask"):``; see docs/many.md. Set the seed once before the call: what comes out
    depends on it and on the fit's place in the mapping, and on nothing else but, by rounding, the number of threads.

    Ctrl-C returns the fits that are done, with a warning.

    Arguments:
        samplers: By name, samplers to run with the common arguments, or tuples ``(sampler, *args)`` with positional
            arguments of their own. They stay as they are.
        args: Positional arguments of the models.
        num_jobs: Fits at once; -1 for as many as there are cores, or workers of the cluster; None for what
            ``joblib.parallel_config`` says.
        read: What to keep of each fit, a function of the fitted sampler that is called where the fit is. Default: the
            sampler itself, which takes some megabytes.
        disable_progbar: Whether to hide the progress bar, which counts fits.
        kwargs: Keyword arguments of the models.

    Returns:
        Fitted samplers, or what ``read`` makes of them, by name and in the order of the names given.

    Raises:
        ImportError: If joblib is not installed.
        TypeError: If there is no mapping, or a value of it is no sampler.
        ValueError: If ``num_jobs`` is no number of jobs.
        FitManyError: After all fits came to their end, if some of them failed; it holds the others.

    Example:
        >>> import pyro.distributions as dist
        >>> def wide(y):
        ...     pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 10.0)), 1.0), obs=y)
        >>> def narrow(y):
        ...     pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> samplers = {"wide": OSDS(wide, num_samples=100), "narrow": OSDS(narrow, num_samples=100)}
        >>> fits = fit_many(samplers, torch.tensor(0.5), num_jobs=1, disable_progbar=True)
        >>> {name: round(osds.log_evidence, 1) for name, osds in fits.items()}  # ready for compare_evidence
        {'wide': -3.2, 'narrow': -1.3}
    """
    check_mapping("samplers", samplers, "Name them, such as fit_many({'a': OSDS(model)}, y).")
    if num_jobs is not None and (isinstance(num_jobs, bool) or not isinstance(num_jobs, int) or num_jobs == 0):
        raise ValueError(
            f"num_jobs must be an integer but not 0, such as 4 or -1 for all cores, or None; got {num_jobs!r}."
        )
    if read is not None and not callable(read):
        raise TypeError(
            f"read must be a function of the fitted sampler, such as lambda osds: osds.evidence; got {read!r}."
        )
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise ImportError("fit_many needs joblib: pip install 'pyro-osds[many]'.") from error
    jobs = _jobs(samplers, args, kwargs, read)
    _check_names(jobs, kwargs)
    parallel = Parallel(n_jobs=num_jobs, return_as="generator_unordered")
    progress = progress_bar(len(jobs), "Fit", disable_progbar)
    done: dict[str, _Done] = {}
    results: Any = parallel(delayed(_run)(job) for job in jobs)
    try:
        for result in results:
            if any(issubclass(category, InterruptedWarning) for category, _ in result.warnings):
                raise KeyboardInterrupt
            done[result.name] = result
            progress.update()
    except KeyboardInterrupt:
        results.close()
        left = [job.name for job in jobs if job.name not in done]
        warn(f"Interrupted: {len(left)} of {len(jobs)} fits are not there: {left}.", InterruptedWarning)
    finally:
        progress.close()

    return _collected([done[job.name] for job in jobs if job.name in done])


def _jobs(
    samplers: Mapping[str, OSDS | tuple[Any, ...]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    read: Callable[[OSDS], Any] | None,
) -> list[_Job]:
    """Everything that is sent, each with the next seed."""
    parameters = pyro.get_param_store().get_state()
    # All from one draw, before anything runs: the caller's random numbers go on in the same place however many fail.
    seeds = torch.randint(2**31, (len(samplers),), device="cpu").tolist()
    jobs = []
    for (name, given), seed in zip(samplers.items(), seeds, strict=True):
        sampler, *own = given if isinstance(given, tuple) and given else (given, *args)
        if not isinstance(sampler, OSDS):
            raise TypeError(
                f"fit_many takes samplers, or tuples (sampler, *args), by name; {name!r} is {type(sampler).__name__}. "
                "Pass OSDS(model)."
            )
        jobs.append(_Job(name, sampler, tuple(own), kwargs, seed, parameters, read))

    return jobs


def _check_names(jobs: list[_Job], kwargs: Mapping[str, Any]) -> None:
    """Refuse an option of ours that was misspelt, and would be handed on to models that do not know it.

    Raises:
        TypeError: If there is one.
    """
    functions = [job.sampler._problem.function for job in jobs]
    for name in kwargs:
        # Where nobody can tell what a model takes, it may take anything.
        is_taken = any(f"no argument {name!r}" not in misfit(function, (), {name: None}) for function in functions)
        own = [known for function in functions for known in parameters_of(function) or ()]
        error = unknown_option("fit_many", name, _OPTIONS)
        if not is_taken and "Did you mean" in str(error) and not nearest(name, own):
            raise error


def _run(job: _Job) -> _Done:
    """One fit, wherever it is; random numbers and parameters of this process are put back."""
    done = _Done(job.name)
    sampler = copy.copy(job.sampler)
    sampler.settings = replace(sampler.settings, disable_progbar=True)
    with _turn:
        random = get_rng_state()
        try:
            parameters = pyro.get_param_store().scope(copy.copy(job.parameters))
            with warnings.catch_warnings(record=True) as caught, parameters, in_this_process():
                warnings.simplefilter("always")
                pyro.set_rng_seed(job.seed)
                sampler.run(*job.args, **job.kwargs)
                sampler.settings = job.sampler.settings
                done.result = sampler if job.read is None else job.read(sampler)
        except Exception:  # noqa: BLE001 - whatever went wrong belongs to this fit, and must not end the others
            done.error = traceback.format_exc()
        finally:
            set_rng_state(random)
    done.warnings = [(warning.category, str(warning.message)) for warning in caught]

    return done


def _collected(all_done: list[_Done]) -> dict[str, Any]:
    """Results by name, after everything that was warned of, each with the name of its fit."""
    for done in all_done:
        for category, message in done.warnings:
            warn(f"{done.name}: {message}", category if issubclass(category, OSDSWarning) else OSDSWarning)
    errors = {done.name: done.error for done in all_done if done.error is not None}
    fits = {done.name: done.result for done in all_done if done.error is None}
    if errors:
        raise FitManyError(errors, fits)

    return fits
