"""The sampler as a user sees it: put together here, explained in the modules below."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_osds.choices import (
    Capture,
    Correction,
    DensityOptions,
    Network,
    RecipeName,
    Temperature,
    Vectorize,
    Volume,
)
from pyro_osds.explore.given.reading import by_draw, check_alone, given_or_none
from pyro_osds.fit import AnyTrainer, Fit
from pyro_osds.fit_stages import way_of
from pyro_osds.flow.leap import is_bijective
from pyro_osds.posterior.agreement import Agreement, compare_with_reference, parameter_errors
from pyro_osds.posterior.guide import FlowGuide
from pyro_osds.posterior.neutra import FlowReparam
from pyro_osds.posterior.verdict import Evidence
from pyro_osds.problem import DensityProblem, problem_of
from pyro_osds.results.fingerprint import check_arguments, check_density, check_model, identity
from pyro_osds.results.frame import to_dataframe
from pyro_osds.results.groups import Groups, export
from pyro_osds.results.storage import check_place, read, unpack, write
from pyro_osds.results.summary import one_line, summary_card
from pyro_osds.runtime.arguments import (
    check_counts,
    check_mapping,
    check_share,
    check_switches,
    draws_are_named,
    kept_arguments,
    named_arguments,
    same_arguments,
)
from pyro_osds.runtime.chunks import chunk_sizes
from pyro_osds.runtime.clock import now
from pyro_osds.runtime.memory import check_room, keep_freed_memory
from pyro_osds.runtime.names import RESERVED, renamed
from pyro_osds.runtime.options import explains_options, unknown_attribute
from pyro_osds.runtime.parallel import from_first, together
from pyro_osds.runtime.progress import progress_bar, run_bar
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.runtime.warnings import ModelWarning, OSDSWarning, UnreliableEvidenceWarning, warn
from pyro_osds.runtime.watch.callback import RunProgress, keep_place, watched
from pyro_osds.runtime.watch.seed import own_numbers
from pyro_osds.runtime.workers import with_workers
from pyro_osds.settings import Settings
from pyro_osds.stats.thresholds import TARGET_STD_ERROR
from pyro_osds.stats.weights import WeightedDraws, weigh
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import FunctionTarget, NotFiniteError, as_target, finite_log_prob, in_chunks

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack

    from pyro_osds.results.inference_data import InferenceData

# Draws of the flow that reference draws are held against, at least: as many as a verdict takes.
_MIN_CHECK_DRAWS = 4096
# Reference draws that differ, at least: of fewer, a standard deviation is known to a quarter only.
_MIN_DISTINCT = 10
# What is said when a sampler is made, and not of one that is there.
_OPTIONS = {
    *Settings.names(),
    *("initial_samples", "initial_params", "init_strategy", "max_plate_nesting", "transforms", "vectorize", "capture"),
}


class OSDS:
    """One-step diffusion sampler: a Pyro model in; posterior draws, log evidence and InferenceData out.

    Stands where ``MCMC(NUTS(model), ...)`` stood. ``run`` explores the posterior, trains a flow that leaps from noise
    to the posterior in one network evaluation, draws, weighs the draws exactly and judges the result.

    Main arguments:
        model: A Pyro model.
        num_samples: Posterior draws of each chain.
        num_chains: Chains of independence Metropolis-Hastings; they share one flow.
        num_steps: Network evaluations per draw.
        disable_progbar: Whether to hide the progress bar.

    Other Arguments:
        initial_samples: Draws of the posterior from another sampler, in the place of exploration: a dictionary of
            tensors or arrays by site, ``(draws, *shape)`` or ``(chains, draws, *shape)``, as ``mcmc.get_samples()``
            gives them; InferenceData; for :meth:`from_log_prob` a tensor ``(draws, D)``. See docs/any_fit.md.
        initial_params: Unconstrained values by site, of one point or with a leading dimension for several
            (:meth:`from_log_prob`: a tensor ``(D,)`` or ``(S, D)``), to look around first where the prior cannot be
            sampled.
        init_strategy: Pyro's init strategy for the first run of the model; unless it is the default one, exploration
            looks around there where the prior cannot be sampled.
        max_plate_nesting: If given, plates nested deeper are an error.
        transforms: Constrained-to-unconstrained transforms by site.
        correction: ``"imh"``, ``"psis"`` or ``"none"``: how draws of the flow become posterior draws.
        num_iterations: Optimiser steps at most; training stops early when it is good enough or no longer improves.
            What is beyond 1000, or beyond half of a larger number, is kept for escalation.
        max_time: Seconds that a run takes, exploration, drawing and judging included; what was reached by then is
            judged, with fewer draws where there is no time for all of them, and :meth:`resume` goes on from there.
        target_std_error: Standard error of the log evidence to aim at, nats. Training stops where more draws give the
            rest, and a larger flow follows only where they do not; with a smaller one there are up to a million
            weighted draws.
        escalate: Whether to climb further stages while the verdict is bad: a larger flow from a better base, then an
            annealed refinement; see ``pyro_osds.posterior.escalation`` and :attr:`run_report`.
        batch_size: Draws per optimiser step.
        learning_rate: Peak learning rate.
        optim: One of ``pyro.optim`` to train the flow with, instead of Adam on a one-cycle schedule; it brings its own
            learning rate, and its schedule, if it has one, takes a step with every optimiser step.
        num_particles: Particles on each of eight replicates during exploration.
        recipe: What runs when: ``"auto"``, ``"calibrate"``, ``"cover"``, ``"distill"`` or ``"few_steps"``, which is
            ``"auto"`` with a diffusion in few steps next after a flow whose verdict is bad; see
            ``pyro_osds.train.recipe``.
        num_time_steps: Steps of the finest grid that ``"distill"`` and the velocity network learn, a power of two.
        network: ``"coupling"``, bijective and exact, or ``"velocity"``, the paper's free-form network.
        volume: With the velocity network, ``"exact"`` or ``"published"``: how its stretch of space is measured.
        num_blocks: Coupling blocks of the flow; default: by the recipe, more where few do not suffice.
        hidden_features: Width of the networks; default: by the recipe.
        warm_start: Whether a run after the first one starts from the flow of the last one, for data that change a
            little; see docs/saving.md. Where that flow is far off, the run explores anew; :attr:`run_report` says why.
        distributed: Whether processes started by ``torchrun`` share out training and drawing; see docs/many.md. All of
            them then call the same methods with the same arguments.
        seed: Random numbers of its own for :meth:`run`, :meth:`step` and :meth:`resume`, those of
            ``pyro.set_rng_seed(seed)``; the numbers of the process stay as they are.
        callback: Called with a :class:`RunProgress` after exploration, each round of training and each stage. If it
            returns True the run stops as by Ctrl-C, and :meth:`resume` goes on; if it fails, too.
        checkpoint: A file that is written after exploration and each stage, and every minute of training;
            ``OSDS.load(checkpoint, model, ...).resume()`` gives what the run would have given.
        symmetries: Symmetries of the posterior that you know of, one or a list of what the functions of
            :mod:`pyro_osds.symmetries` return: sign flips, permutations of blocks, rotations of particles; see
            docs/models.md. They are checked, and the log evidence and the draws are those of all copies.
        potential_fn: Instead of a model: minus a log density, of a dictionary of unconstrained values by site, as
            ``HMC`` takes it. ``initial_params`` then says which sites there are.
        vectorize: ``"auto"``, ``"vmap"`` or ``"loop"``: whether densities come in batches; see docs/models.md.
        capture: ``"auto"``, or False to leave out the recording of the density as a graph.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> osds = OSDS(model, num_samples=250, disable_progbar=True)
        >>> osds.run(torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9]))
        >>> print(f"{osds.log_evidence:.2f}")  # exact: -7.19
        -7.19
        >>> osds.evidence.reliable, osds.log_evidence_se < 0.01
        (True, True)

        Draws, as ``MCMC`` gives them, and for ArviZ:

        >>> osds.num_chains, osds.num_samples, osds.get_samples(group_by_chain=True)["mu"].shape
        (4, 250, torch.Size([4, 250]))
        >>> list(osds.diagnostics())
        ['mu', 'divergences', 'acceptance rate']
        >>> osds.summary()
        <BLANKLINE>
        ...
        >>> dict(osds.to_inference_data()["posterior"].sizes)
        {'chain': 4, 'draw': 250}

        The flow stays: more draws cost a network evaluation each.

        >>> osds.draw(100).samples["mu"].shape
        torch.Size([100])
        >>> osds.redraw()
        >>> osds.is_trained_on(torch.zeros(5)), list(osds.observed_data), osds.backend, osds.rung
        (False, ['y'], 'captured', 'captured')
        >>> type(osds.fit.leap).__name__, len(osds.trainer.history.elbo) > 0, osds.is_interrupted
        ('Leap', True, False)
        >>> osds.kernel.model is model  # for arviz.from_pyro
        True
        >>> osds.callback is None
        True
    """

    # Pickles of earlier versions have neither.
    _initial_samples: Any = None
    _random: Mapping[str, Any] = MappingProxyType({})

    @explains_options("OSDS")
    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        num_samples: int = 1000,
        *,
        num_chains: int = 4,
        num_steps: int = 1,
        disable_progbar: bool = False,
        initial_samples: Any = None,
        initial_params: Mapping[str, Tensor] | Tensor | None = None,
        init_strategy: Callable[..., Any] = init_to_uniform,
        max_plate_nesting: int | None = None,
        transforms: Mapping[str, Any] | None = None,
        correction: Correction = "imh",
        num_iterations: int = 2000,
        max_time: float | None = None,
        target_std_error: float = TARGET_STD_ERROR,
        escalate: bool = True,
        batch_size: int = 256,
        learning_rate: float = 1e-2,
        optim: PyroOptim | None = None,
        num_particles: int = 64,
        recipe: RecipeName = "auto",
        num_time_steps: int = 16,
        network: Network = "coupling",
        volume: Volume = "exact",
        num_blocks: int | None = None,
        hidden_features: int | None = None,
        warm_start: bool = False,
        distributed: bool = False,
        seed: int | None = None,
        callback: Callable[[RunProgress], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        symmetries: Symmetry | Sequence[Symmetry] = (),
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        vectorize: Vectorize = "auto",
        capture: Capture = "auto",
    ) -> None:
        given = locals()
        self._problem = problem_of(
            model,
            potential_fn,
            initial_params,
            num_chains,
            init_strategy,
            max_plate_nesting,
            transforms=transforms,
            vectorize=vectorize,
            capture=capture,
        )
        # The names of settings are those of the arguments: they are said in the signature, and once in Settings.
        self.settings = Settings(**{name: given[name] for name in Settings.names()})
        check_alone(initial_samples, warm_start, initial_params if potential_fn is None else None)
        self._initial_samples = initial_samples
        self._random = {}
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._fit: Fit | None = None

    @classmethod
    def from_log_prob(
        cls,
        log_prob_fn: Callable[[Tensor], Tensor],
        dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        score_fn: Callable[[Tensor], Any] | None = None,
        **options: Unpack[DensityOptions],
    ) -> OSDS:
        """A sampler for any unnormalised log density on ``R^D``; its draws have the single site ``z``.

        Arguments:
            log_prob_fn: Maps points ``(B, D)`` to log densities ``(B,)``.
            dim: The number of dimensions ``D``.
            dtype: Floating point type of the points.
            device: Device of the points.
            score_fn: Maps points ``(B, D)`` to gradients of the log density ``(B, D)``, where torch cannot tell them:
                with it, both functions may compute with numpy or scipy and return arrays. It is held against
                differences of the density at a few points.
            options: As for :class:`OSDS`.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, disable_progbar=True)
            >>> osds.run()
            >>> print(f"{osds.log_evidence:.2f}")  # exact: log(2 pi) = 1.84
            1.84
        """
        if not callable(log_prob_fn):
            got = type(log_prob_fn).__name__
            raise TypeError(f"log_prob_fn must be callable, got {got}; pass a function of points (B, D).")
        osds = cls(log_prob_fn, **options)
        density = FunctionTarget(log_prob_fn, dim, dtype, device, score_fn)
        osds._problem = DensityProblem(log_prob_fn, osds._problem.initial_params, density=density)

        return osds

    # ---- as MCMC and SVI ----

    @poutine.block
    def run(self, *args: Any, **kwargs: Any) -> None:
        """Explore, train, draw, weigh and judge.

        Ctrl-C keeps what there is, particles of the exploration or the best flow so far, and :meth:`resume` goes on;
        before there is anything it leaves the sampler as it was.

        Arguments:
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If the model is not supported, or its density is not finite at any start.
        """
        seconds = self.settings.max_time
        deadline = math.inf if seconds is None else now() + seconds
        self._random = {}
        with self._around_a_run():
            with run_bar(self.settings.disable_progbar) as result:
                self._set_up(args, kwargs, deadline=deadline)
                self.fit.begin()
                result += self.evidence.headline
            for reason in self.evidence.all_reasons:
                warn(reason, UnreliableEvidenceWarning)

    @explains_options("resume")
    @poutine.block
    def resume(self, max_time: float | None = None) -> None:
        """Go on with a run that Ctrl-C or ``max_time`` cut short, from its last whole step.

        What comes out is what the run would have given had nobody stopped it, bit for bit, also after :meth:`save` and
        :meth:`load`. Torch's random numbers are taken up where the run left them.

        Arguments:
            max_time: Seconds after which it ends again; default: none.

        Raises:
            RuntimeError: If the last run was not cut short.
            ValueError: If ``max_time`` is not a positive number.

        Example:
            >>> import pyro, warnings
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, max_time=1e-3, disable_progbar=True)
            >>> with warnings.catch_warnings():
            ...     warnings.simplefilter("ignore")  # an exploration that was stopped gives nothing reliable
            ...     osds.run()
            >>> osds.is_interrupted
            True
            >>> osds.resume()
            >>> osds.is_interrupted, f"{osds.log_evidence:.2f}"  # exact: log(2 pi) = 1.84
            (False, '1.84')
        """
        seconds = replace(self.settings, max_time=max_time).max_time
        if not self.fit.is_interrupted:
            raise RuntimeError("The last run came to its end by itself: there is nothing to resume. Use run or step.")
        with self._around_a_run():
            self.fit.resume(math.inf if seconds is None else now() + seconds)
            keep_place(self.is_interrupted)
            for reason in self.evidence.all_reasons:
                warn(reason, UnreliableEvidenceWarning)

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C or ``max_time`` cut the last run short, so that :meth:`resume` can go on with it."""
        return self._fit is not None and self._fit.is_interrupted

    @poutine.block
    def step(self, *args: Any, **kwargs: Any) -> float:
        """One optimiser step, as ``SVI.step``; the first one explores. Returns the loss, nats.

        The loss is the negative mean log weight of the batch, an upper bound of minus the log evidence on average.

        Arguments:
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), disable_progbar=True)
            >>> abs(osds.step()) < 1.0, abs(osds.evaluate_loss()) < 1.0  # exact: 0
            (True, True)
        """
        with together(self.settings.distributed), with_workers(), self._own_numbers():
            with run_bar(self.settings.disable_progbar or self.is_trained_on(*args, **kwargs)):
                self._set_up(args, kwargs, keep=True)

            return self.fit.step()

    @poutine.block
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO on a fresh batch, nats, as ``SVI.evaluate_loss``; nothing is trained.

        Arguments:
            args: Positional arguments of the model, those of the fit if there is one.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If there is a fit, to other arguments: its flow is one for its own data.
        """
        if self._fit is not None and not self.is_trained_on(*args, **kwargs):
            raise ValueError(
                "evaluate_loss was given other arguments than those that were fitted, and the flow is one for those. "
                "Call run or step with the new ones, which replaces the fit, or use another sampler."
            )
        with together(self.settings.distributed), with_workers():
            self._set_up(args, kwargs, keep=True)

            return self.trainer.evaluate()

    def is_trained_on(self, *args: Any, **kwargs: Any) -> bool:
        """Whether there is a flow for these arguments of the model.

        Arguments:
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.
        """
        if self._fit is None:
            return False
        # The same argument may be given by position, by name, or as its default.
        given, known = (
            named_arguments(self._problem.function, *each, defaults=True)
            for each in ((args, kwargs), (self._args, self._kwargs))
        )

        return same_arguments(given, known)

    def redraw(self) -> None:
        """Replace the posterior draws and the evidence by fresh ones, when next asked for.

        They are those of the same flow or, where annealed SMC gave the result, of annealed SMC once more.
        """
        self.fit.forget_draws()

    @explains_options("get_samples")
    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Posterior draws by site, as ``MCMC.get_samples``.

        Arguments:
            num_samples: If given, that many draws, resampled with replacement; default: all.
            group_by_chain: Whether to keep the chains apart.

        Returns:
            ``{site: (num_chains * num_samples, *shape)}``, or ``(num_chains, num_samples, *shape)`` by chain.
        """
        if num_samples is not None:
            check_counts({"num_samples": num_samples})

        samples = self.fit.samples

        return select_samples(samples, num_samples, group_by_chain) if samples else {}

    def diagnostics(self) -> dict[str, Any]:
        """``n_eff`` and ``r_hat`` of each site, acceptance rate and (no) divergences of each chain, as MCMC's."""
        acceptance = self.fit.draws.acceptance.mean(1)

        return {
            **diagnostics(self.fit.samples),
            "divergences": {f"chain {chain}": [] for chain in range(len(acceptance))},
            "acceptance rate": {f"chain {chain}": rate.item() for chain, rate in enumerate(acceptance)},
        }

    @explains_options("summary")
    def summary(self, prob: float = 0.9) -> None:
        """Print MCMC's table, then the log evidence with all that speaks for and against it, and how the run went.

        Arguments:
            prob: Probability mass of the credible interval.
        """
        check_share("prob", prob)
        if self.fit.samples:
            print_summary(self.fit.samples, prob)
        self.fit.ensure_judged()
        print(summary_card(self._problem.function, self.settings, self.fit).text())

    if not TYPE_CHECKING:  # for type checkers an attribute that does not exist is an error

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):
                object.__getattribute__(self, name)  # a property that failed tells its own reason
            raise unknown_attribute(type(self), name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _OPTIONS and getattr(getattr(type(self), name, None), "fset", None) is None:
                raise AttributeError(
                    f"{name} is an option of OSDS, and setting it on a sampler that is made has no effect: pass "
                    f"{name}= to a new sampler."
                )
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return one_line(self._problem.function, self.settings, self._fit)

    def _repr_html_(self) -> str:
        return summary_card(self._problem.function, self.settings, self._fit).html()

    # ---- in other hands of Pyro ----

    @property
    def guide(self) -> FlowGuide:
        """The trained flow as a guide, for ``Predictive``, ``Importance``, ``WeighedPredictive`` or an ELBO.

        It covers the continuous latents, has the flow's exact density, and carries no gradients: it is trained by
        :meth:`run` and :meth:`step`. Its draws are those of the flow as it was trained, not weighed; those of
        :meth:`get_samples` are, and have base draws for necks besides (:doc:`/evidence`).

        Raises:
            ValueError: Without a model, and for the velocity network, whose draws have no exact density.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyro.infer import Predictive
            >>> def model(y=None):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(model, num_samples=100, disable_progbar=True)
            >>> osds.run(torch.tensor(1.5))
            >>> sorted(Predictive(model, guide=osds.guide, num_samples=10)())
            ['mu', 'y']
        """
        return FlowGuide(*self._exact_flow("guide"))

    def neutra(self) -> FlowReparam:
        """The trained flow as new coordinates of the model, in which NUTS meets nearly a standard normal.

        Returns:
            A reparametrisation as Pyro's ``NeuTraReparam``: ``neutra.reparam(model)`` is what NUTS runs, and
            ``neutra.transform_sample(samples["osds_shared_latent"])`` gives the draws by site.

        Raises:
            ValueError: Without a model with continuous latents, for the velocity network, and where latents are scaled
                or masked, because Pyro would scale or mask the Jacobian with them.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> from pyro.infer import MCMC, NUTS
            >>> def model():
            ...     pyro.sample("x", dist.LogNormal(0.0, 1.0))
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(model, num_samples=100, num_iterations=20, disable_progbar=True)
            >>> osds.run()
            >>> neutra = osds.neutra()
            >>> mcmc = MCMC(NUTS(neutra.reparam(model)), num_samples=10, warmup_steps=5, disable_progbar=True)
            >>> mcmc.run()
            >>> neutra.transform_sample(mcmc.get_samples()["osds_shared_latent"])["x"].shape
            torch.Size([10])
        """
        leap, target = self._exact_flow("neutra")
        if not is_bijective(leap):
            raise ValueError("neutra needs a model with continuous latents; this one has none.")
        if not self.fit.model_target.can_sample_prior:
            raise ValueError("neutra needs latents without poutine.scale, mask or improper priors around them.")

        return FlowReparam(leap, target, self.fit.constrain)

    @explains_options("infer_discrete")
    def infer_discrete(self, num_draws: int | None = None, temperature: Temperature = 1) -> dict[str, Tensor]:
        """Posterior draws together with the discrete latents, which were summed out; a run of the model for each.

        Arguments:
            num_draws: How many of the posterior draws, evenly spread; default: all.
            temperature: 1 for draws of the discrete latents given the others, 0 for their most probable values.

        Returns:
            All latents by site, ``{site: (num_draws, *shape)}``.

        Raises:
            ValueError: Without a model that has discrete latents, or for more draws than there are.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            ...     z = pyro.sample("z", dist.Bernoulli(0.5))
            ...     pyro.sample("y", dist.Normal(loc + 10 * z, 1.0), obs=torch.tensor(9.0))
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(model, num_samples=100, disable_progbar=True)
            >>> osds.run()
            >>> osds.infer_discrete(num_draws=5)["z"]
            tensor([1., 1., 1., 1., 1.])
        """
        target, total = self.fit.model_target, self.num_chains * self.num_samples
        count = total if num_draws is None else num_draws
        check_counts({"num_draws": count})
        if count > total:
            raise ValueError(f"num_draws must be at most the {total} posterior draws that there are, got {count}.")
        rows = torch.linspace(0, total - 1, count).long()
        samples = {name: value[rows] for name, value in self.get_samples().items()}
        progress = progress_bar(count, "Infer", self.settings.disable_progbar)
        decoded = self._problem.infer_discrete(target, samples, count, temperature, progress.update)
        progress.close()

        return samples | decoded

    def _exact_flow(self, what: str) -> tuple[Any, Any]:
        """The trained leap and its target, for what needs a model and an exact density."""
        fitted = self.fit
        self._problem.check_model(what)
        leap = fitted.settle()
        if not leap.has_exact_density:
            raise ValueError(f"{what} needs the exact density of the flow: use network='coupling'.")
        # Base draws for necks are right by their weights only, and here nothing weighs.
        leap = leap.plain if is_bijective(leap) else leap
        if fitted.source is not None:
            warn(
                f"{what} is the flow, whose verdict was bad; the posterior draws are {fitted.source.sentence}. For "
                "them use get_samples() or draw(), and for what the flow is worth draw(n, num_steps=1).",
                OSDSWarning,
            )

        return leap, fitted.target

    # ---- draws, evidence, InferenceData ----

    @property
    def run_report(self) -> tuple[str, ...]:
        """What the last run climbed, with a sentence for each stage about its evidence, weights and verdict.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, disable_progbar=True)
            >>> osds.run()
            >>> len(osds.run_report), osds.run_report[0].split(":")[0]
            (1, 'flow')
        """
        return self.fit.run_report

    @property
    def observed_data(self) -> dict[str, Tensor]:
        """The observations that the last run was fitted to, by site; empty for a log density or a potential."""
        return dict(self.fit.model_target.observed)

    @property
    def backend(self) -> str:
        """How the density is evaluated, ``"captured"``, ``"vmap"`` or ``"loop"``; ``"given"`` for a log density."""
        return self.fit.model_target.backend

    @property
    def rung(self) -> str:
        """The earlier name of :attr:`backend`."""
        return self.backend

    @explains_options("draw")
    def draw(self, num_draws: int, num_steps: int | None = None, equal_weight: bool = False) -> WeightedDraws:
        """Fresh weighted draws: one network evaluation each, no retraining.

        Where annealed SMC gave the result, they are fresh draws of annealed SMC, each weighing as much as the log
        evidence of its replicate, and take as long as that stage took for as many; ``num_steps=1`` asks for the flow
        all the same. Memory beyond that of the draws themselves does not grow with their number. Ctrl-C loses these
        draws and nothing else.

        Arguments:
            num_draws: How many.
            num_steps: Network evaluations per draw, a power of two; default: as given to ``OSDS``, or none where the
                posterior draws do not come from the flow. For draws of a diffusion in few steps,
                the steps of its paths, 2 to 64. The first time that
                another number is asked for, a copy of the flow learns it, in a second or two a step; with
                ``recipe="distill"`` the flow knows all numbers up to ``num_time_steps``. Weights are exact for any
                number, since every step is a bijection; not so with ``network="velocity"``.
            equal_weight: Whether to resample them to equal weights, for whatever takes no weights. Some then come
                several times: ``num_distinct`` of the draws says how many differ.

        Returns:
            The draws with their exact weights.

        Raises:
            ValueError: If ``num_draws`` is not positive or ``num_steps`` is no power of two.
        """
        check_counts({"num_draws": num_draws})
        check_switches({"equal_weight": equal_weight})
        cure = "Ask for fewer, or go through them by draw_batches."
        check_room(f"num_draws={num_draws}", num_draws, self.fit.target.dim, cure)
        with together(self.settings.distributed), with_workers():
            draws = self.fit.draw(num_draws, num_steps)

        return draws.resampled() if equal_weight else draws

    @explains_options("draw_batches")
    def draw_batches(
        self, num_draws: int, batch_size: int = 100_000, num_steps: int | None = None
    ) -> Iterator[WeightedDraws]:
        """The draws of :meth:`draw` in batches, made one after the other: more of them than memory holds.

        Arguments:
            num_draws: How many in all.
            batch_size: How many at a time; the last batch may be smaller.
            num_steps: As for :meth:`draw`.

        Returns:
            An iterator over batches. Log weights of all batches are on one scale.

        Raises:
            ValueError: If a number is not positive or ``num_steps`` is no power of two.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, disable_progbar=True)
            >>> osds.run()
            >>> total = weight = 0.0
            >>> for draws in osds.draw_batches(500_000):
            ...     weight += draws.log_weights.exp().sum()
            ...     total += (draws.log_weights.exp() * draws.samples["z"][:, 0].square()).sum()
            >>> print(f"{total / weight:.2f}")  # the second moment of a standard normal
            1.00
        """
        check_counts({"num_draws": num_draws, "batch_size": batch_size})
        with together(self.settings.distributed), with_workers():
            way_of(self.fit, num_steps)

        return (self.draw(size, num_steps) for size in chunk_sizes(num_draws, batch_size))

    @property
    def evidence(self) -> Evidence:
        """The log evidence with its standard error and the verdict, from fresh draws."""
        return self.fit.draws.evidence

    @property
    def log_evidence(self) -> float:
        """Log evidence, nats."""
        return self.evidence.log_evidence

    @property
    def log_evidence_se(self) -> float:
        """Standard error of the log evidence, nats."""
        return self.evidence.std_error

    @explains_options("check_against")
    def check_against(self, samples: Mapping[str, Tensor] | InferenceData, max_draws: int = 2000) -> Agreement:
        """Hold the flow against reference draws, of NUTS or Stan for instance, from both sides.

        Arguments:
            samples: Reference draws by site, each ``(draws, *shape)``, as ``MCMC.get_samples()`` gives them, or
                InferenceData with a group ``posterior``. All continuous latents must be there; what else the posterior
                has, such as deterministic sites, is not looked at.
            max_draws: Reference draws used at most, evenly spread.

        Returns:
            Bounds of the log evidence from both sides, errors of all parameters, and one sentence that says which side
            disagrees, if one does.

        Raises:
            TypeError: If ``samples`` are no draws by site.
            ValueError: If a site is missing, has another shape or lies outside its support, or hardly any of the draws
                differ.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), disable_progbar=True)
            >>> osds.run()
            >>> print(osds.check_against({"x": torch.randn(1000) - 1.0}))  # doctest: +ELLIPSIS
            The reference disagrees: ...
        """
        check_counts({"max_draws": max_draws})
        draws, leap, target = self.fit.draws, self.fit.leap, self.fit.target
        if not target.dim:
            raise ValueError("check_against needs a model with continuous latents; this one has none.")
        if not is_bijective(leap):
            raise ValueError("check_against needs the density of the flow at given points: use network='coupling'.")
        every = by_draw(samples, target.unordered)
        number = max(len(value) for value in every.values()) if every else 0
        thinned = {name: value[:: math.ceil(number / max_draws)] for name, value in every.items()}
        z = target.from_samples(thinned)
        num_distinct = len(z.unique(dim=0))
        if num_distinct < _MIN_DISTINCT:
            raise ValueError(
                f"check_against needs {_MIN_DISTINCT} different reference draws at least, to know what they vary by; "
                f"got {num_distinct} among {len(z)}. A chain that stands still says nothing: run it longer."
            )
        with torch.no_grad(), with_workers():
            log_weight = finite_log_prob(in_chunks(lambda x: target.log_prob(x) - leap.log_prob(x), z))
            own = weigh(leap, target, max(_MIN_CHECK_DRAWS, len(draws.z)))

        return compare_with_reference(own.log_weight, log_weight, parameter_errors(self.get_samples(), every))

    @property
    def agreement(self) -> Agreement | None:
        """How the flow and ``initial_samples`` agree, as :meth:`check_against` tells it; None where none were given.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> drawn = torch.randn(1000, 2)
            >>> log_prob_fn = lambda z: -0.5 * z.square().sum(-1)
            >>> osds = OSDS.from_log_prob(log_prob_fn, 2, initial_samples=drawn, disable_progbar=True)
            >>> osds.run()
            >>> osds.agreement.agrees, f"{osds.log_evidence:.2f}"  # exact: log(2 pi) = 1.84
            (True, '1.84')
        """
        return self.fit.agreement()

    def posterior_predictive(
        self, *args: Any, num_draws: int | None = None, infer_discrete: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws of what the model observes, and of all else that is not a continuous latent; see docs/arviz.md.

        The model needs no ``obs=None``: what it observes is drawn. Discrete latents are drawn anew, given the
        continuous ones: the predictions are those of new rows. Factors have no part in it.

        Arguments:
            args: Positional arguments of the model, for predictions from new inputs; without any arguments, those of
                the run.
            num_draws: How many, evenly spread over the posterior draws; default: one for each, in the order of
                :meth:`get_samples`.
            infer_discrete: Whether discrete latents are drawn given the observations of the run, too: predictions are
                then those of the same rows once more.
            kwargs: Keyword arguments of the model.

        Returns:
            Observed sites, discrete latents and deterministic values, ``{site: (num_draws, *shape)}``.

        Raises:
            ValueError: If there is nothing to draw, or a site has no sampler or another shape than its posterior draws.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model(x, y):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(slope * x, 0.1).to_event(1), obs=y)
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(model, disable_progbar=True)
            >>> osds.run(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
            >>> y = osds.posterior_predictive(torch.tensor([10.0, 20.0]), None)["y"]
            >>> y.shape, f"{y[:, 0].mean():.0f}"
            (torch.Size([4000, 2]), '20')
        """
        if infer_discrete and (args or kwargs):
            raise ValueError("infer_discrete=True needs the observations of the run: leave away the model's arguments.")
        total = self.num_chains * self.num_samples
        number = total if num_draws is None else num_draws
        check_counts({"num_draws": number})
        if number > total:
            warn(
                f"posterior_predictive was asked for {number} draws, and there are {total} posterior draws: each of "
                "these is used more than once, with predictions of its own. For more of them, raise num_samples.",
                OSDSWarning,
            )
        index = torch.arange(number) * total // number

        values = {name: value[index] for name, value in self.get_samples().items()}
        with draws_are_named("posterior_predictive", self._problem.model, args, kwargs):
            return self._predictive(args, kwargs).posterior(values, number, infer_discrete)

    def prior_predictive(self, *args: Any, num_draws: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of all sites from the model's prior, latents and observed sites; no run is needed.

        Arguments:
            args: Positional arguments of the model; without any arguments, those of the run, if there was one.
            num_draws: How many.
            kwargs: Keyword arguments of the model.

        Returns:
            ``{site: (num_draws, *shape)}``.

        Raises:
            ValueError: If a site cannot be drawn, for instance from an improper prior.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model(y):
            ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            ...     pyro.sample("y", dist.Poisson(rate), obs=y)
            >>> drawn = OSDS(model).prior_predictive(torch.tensor([3.0, 1.0]), num_draws=100)
            >>> drawn["rate"].shape, drawn["y"].shape
            (torch.Size([100]), torch.Size([100, 2]))
        """
        check_counts({"num_draws": num_draws})
        with draws_are_named("prior_predictive", self._problem.model, args, kwargs):
            if self._fit is not None and self._problem.model is not None:
                # With the parameters of the run, whatever the parameter store holds by now.
                return self._predictive(args, kwargs).prior(num_draws)
            return self._problem.prior_predictive(num_draws, args, kwargs)

    @explains_options("to_inference_data")
    def to_inference_data(
        self,
        *,
        log_likelihood: bool = True,
        log_prior: bool = True,
        posterior_predictive: bool | int | None = None,
        prior: bool | int | None = None,
        unconstrained: bool = False,
        constant_data: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> InferenceData:
        """ArviZ InferenceData (DataTree from ArviZ 1.0 on); docs/arviz.md says what is in each group.

        Dimensions are named after plates, unless ``dims`` says otherwise.

        Arguments:
            log_likelihood: Whether to compute the pointwise log likelihood, ``num_chains * num_samples`` values for
                each observation.
            log_prior: Whether to compute the log prior of each latent site.
            posterior_predictive: Draws of each chain that get a prediction, evenly spread; True for all, False for
                none. Default: as many as take a fraction of a second, 100 at most.
            prior: Draws of the prior and of its predictions; True for as many as there are posterior draws, False for
                none. Default: as many as take a fraction of a second; none where a prior is improper or scaled.
            unconstrained: Whether to add the draws in Pyro's unconstrained coordinates.
            constant_data: Arrays by name, besides the arguments of the model that are tensors and not observed.
            dims: Names of the dimensions besides chain and draw, by variable.
            coords: Labels by dimension.

        Raises:
            ValueError: If names, labels or numbers do not fit. The fit is not touched.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model(y):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            ...     with pyro.plate("day", len(y)):
            ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS(model, disable_progbar=True)
            >>> osds.run(torch.tensor([1.2, 0.4, 2.1]))
            >>> idata = osds.to_inference_data(coords={"day": ["Mon", "Tue", "Wed"]})
            >>> idata["observed_data"]["y"].sel(day="Tue").item()
            0.4...
        """
        groups = Groups(log_likelihood, log_prior, posterior_predictive, prior, unconstrained)
        for name, given, cure in (
            ("dims", dims, 'Pass the names of a variable\'s dimensions, such as {"theta": ["school"]}.'),
            ("coords", coords, 'Pass the labels of a dimension, such as {"school": ["A", "B"]}.'),
            ("constant_data", constant_data, 'Pass arrays by name, such as {"x": x}.'),
        ):
            if given is not None:
                check_mapping(name, given, cure)
        source = None if self._problem.model is None else self._predictive((), {})
        constant = self._problem.constant_data(self.fit.model_target)

        with with_workers():
            return export(self.fit, groups, source, {**constant, **(constant_data or {})}, dims, coords)

    def to_dataframe(self) -> pd.DataFrame:
        """The posterior draws as a table, a row each: chain, draw, and a column for each number at each site.

        Raises:
            ImportError: Without pandas.

        Example:
            >>> import pyro
            >>> pyro.set_rng_seed(0)
            >>> osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), dim=2, disable_progbar=True)
            >>> osds.run()
            >>> osds.to_dataframe().columns.tolist()
            ['chain', 'draw', 'z[0]', 'z[1]']
            >>> draws = osds.draw(1000, equal_weight=True)
            >>> len(draws), draws.num_distinct <= 1000
            (1000, True)
        """
        return to_dataframe(self.fit.samples)

    @property
    def kernel(self) -> SimpleNamespace:
        """What ``arviz.from_pyro`` asks a fitted ``MCMC`` for: ``kernel.model``, the Pyro model or None."""
        return SimpleNamespace(model=self._problem.model)

    # ---- a file ----

    @explains_options("save")
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to one file: flow, draws, evidence, and all that further steps and draws depend on.

        The file is put in its place when it is whole; a crash leaves what was there before. It holds tensors, strings
        and numbers, and neither the model nor its data.

        Arguments:
            path: The file.

        Raises:
            RuntimeError: Before the first ``run`` or ``step``.
            FileNotFoundError: If its directory does not exist.
        """
        self._write(check_place(path))

    def _write(self, place: Path, resumable: bool | None = None) -> None:
        """Write the file, of a fit that has more to do if ``resumable`` says so."""
        fitted = self.fit
        state = fitted.state()
        if resumable is not None:
            state["is_interrupted"] = resumable
        exploration = fitted.recipe.found.exploration if fitted.recipe.found else None
        z = torch.zeros(1, 0, dtype=fitted.given.dtype) if exploration is None else exploration.z
        content = {
            "settings": self.settings.as_dict()
            | {"optim": None, "distributed": False, "callback": None, "checkpoint": None},
            "optim": "" if self.settings.optim is None else type(self.settings.optim).__name__,
            "source": self._problem.description(),
            "identity": identity(fitted.given, fitted.target, z, self._args, self._kwargs),
            "fit": state,
            # With a seed a run has random numbers of its own; what is drawn afterwards takes those of the process.
            "random": self._random or random_state(),
            "random_of_process": random_state(),
        }
        write(place, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Callable[..., Any] | OSDS, *args: Any, **kwargs: Any) -> OSDS:
        """The sampler that :meth:`save` wrote, with the same draws, and the same ones to come.

        Torch's random numbers are put where they were when the file was written, so that whatever comes next, steps
        and draws, is what would have come then.

        Arguments:
            path: The file.
            model: What the sampler was made for: its model, ``log_prob_fn`` or ``potential_fn``. Or, where it had
                options that a file cannot hold (``transforms``, ``init_strategy``), a sampler made with them, such as
                ``OSDS(model, transforms=...)``; its other settings are those of the file.
            args: Positional arguments of the model, as ``run`` had them.
            kwargs: Keyword arguments of the model.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a whole file of ours, of a newer format, or of another model or other data.

        Example:
            >>> import os, pyro, tempfile
            >>> pyro.set_rng_seed(0)
            >>> def log_prob_fn(z):
            ...     return -0.5 * z.square().sum(-1)
            >>> osds = OSDS.from_log_prob(log_prob_fn, dim=2, disable_progbar=True)
            >>> osds.run()
            >>> path = os.path.join(tempfile.mkdtemp(), "fit.pt")
            >>> osds.save(path)
            >>> again = OSDS.load(path, log_prob_fn)
            >>> again.log_evidence == osds.log_evidence
            True
        """
        content = read(path)
        osds = cls._like(content, model)
        check_arguments(content["identity"], osds._problem.function, args, kwargs)
        # Not as a decorator: under classmethod that would hide the text above.
        with poutine.block():
            target = osds._problem.target(args, kwargs)
            check_model(content["identity"], target)
            osds._fit = Fit.restored(target, osds.settings, unpack(content["fit"], target.device))
            check_density(unpack(content["identity"], target.device), osds._fit.target)
        osds._args, osds._kwargs = kept_arguments(args), kept_arguments(kwargs)
        if osds.settings.seed is not None:
            osds._random = content["random"]
        # Files of earlier versions have one of the two: with a seed those of the run.
        of_process = content.get("random_of_process", {} if osds.settings.seed is not None else content["random"])
        if of_process:
            set_random_state(of_process)

        return osds

    @classmethod
    def _like(cls, content: dict[str, Any], model: Callable[..., Any] | OSDS) -> OSDS:
        """A sampler for the model, made as the one in the file was."""
        source, settings = content["source"], unpack(content["settings"])
        if isinstance(model, OSDS):
            osds = copy.copy(model)
            names = ("optim", "distributed", "callback", "checkpoint")
            osds.settings = Settings(**settings | {name: getattr(model.settings, name) for name in names})
            return osds
        if content.get("optim"):
            raise ValueError(
                f"The file's sampler had an optimiser {content['optim']}, which a file cannot hold: pass "
                "OSDS(model, optim=...) in place of the model."
            )
        if source.get("transforms"):
            raise ValueError(
                f"The file's sampler had transforms for {source['transforms']}, which a file cannot hold: pass "
                "OSDS(model, transforms=...) in place of the model."
            )
        options = {**settings, **source["options"]}
        if source["kind"] == "log_prob_fn":
            shape = source["shape"]
            dtype = getattr(torch, shape["dtype"])
            return cls.from_log_prob(model, shape["dim"], dtype=dtype, device=shape["device"], **options)

        return cls(**{source["kind"]: model}, **options)

    # ---- assembly ----

    @contextlib.contextmanager
    def _around_a_run(self) -> Iterator[None]:
        """Random numbers of its own, whoever watches, the other processes, and workers."""
        path, callback = self.settings.checkpoint, self.settings.callback
        save = None if path is None else partial(self._write, check_place(path))
        with self._own_numbers(), watched(callback, save), together(self.settings.distributed), with_workers():
            yield

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """The random numbers of ``seed``, from where they were left."""
        after = self._random
        try:
            with own_numbers(self.settings.seed, self._random) as after:
                yield
        finally:
            self._random = after

    @property
    def fit(self) -> Fit:
        """The present fit, with its target, survey, trained leap and draws.

        Raises:
            RuntimeError: Before the first ``run`` or ``step``.
        """
        if self._fit is None:
            raise RuntimeError("There are no results yet: call run(...) with the model's arguments first.")
        return self._fit

    @property
    def trainer(self) -> AnyTrainer:
        """The trainer of the last run, with its history."""
        return self.fit.trainer

    @property
    def model(self) -> Callable[..., Any] | None:
        """The Pyro model or the log density; None for a potential function."""
        return None if self._problem.kind == "potential_fn" else self._problem.function

    @property
    def callback(self) -> Callable[[RunProgress], Any] | None:
        """Who is told how a run goes; another one, or None, may be set before ``run`` or ``resume``."""
        return self.settings.callback

    @callback.setter
    def callback(self, callback: Callable[[RunProgress], Any] | None) -> None:
        self.settings = replace(self.settings, callback=callback)

    @property
    def num_samples(self) -> int:
        """Posterior draws of each chain."""
        return self.settings.num_samples

    @property
    def num_chains(self) -> int:
        """Chains."""
        return self.settings.num_chains

    def _predictive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A source of observations, for these arguments of the model or those of the run."""
        asked = (args, kwargs) if args or kwargs else (self._args, self._kwargs)

        return self._problem.predictive(self.fit.model_target, *asked)

    def _set_up(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], keep: bool = False, deadline: float = math.inf
    ) -> None:
        """A fit for these arguments; nothing is replaced before all of it succeeded."""
        if keep and self.is_trained_on(*args, **kwargs):
            return
        keep_freed_memory()
        target = self._problem.target(args, kwargs)
        what, total = f"num_samples={self.num_samples}", self.num_chains * self.num_samples
        cure = "Ask for fewer, and go through more by draw_batches after the run."
        check_room(f"{what}, for each of {self.num_chains} chains,", total, as_target(target).dim, cure)
        self._tell_names(target)
        before = self._fit if self.settings.warm_start else None
        drawn = given_or_none(self._initial_samples, as_target(target))
        fresh = partial(Fit.explored, settings=self.settings, drawn=drawn)
        explore = partial(Fit.warm, before) if before is not None else fresh
        try:
            starts = self._problem.starts(target)
            self._fit = from_first(
                lambda: explore(target=target, starts=starts, deadline=deadline),
                Fit.state,
                partial(Fit.restored, target, self.settings),
                target.device,
            )
        except NotFiniteError as error:
            raise self._problem.not_finite(error, target) from error
        self._args, self._kwargs = kept_arguments(args), kept_arguments(kwargs)

    def _tell_names(self, target: Any) -> None:
        """Say before anything long is done which sites InferenceData cannot hold under their names."""
        target = as_target(target)
        sites = (*target.dims, *(site.name for site in target.sites), *target.discrete_sites)
        plates = (dim for dims in target.dims.values() for dim in dims if dim not in RESERVED)
        for what, names in (("Site", sites), ("Plate", plates)):
            for name, other in renamed(dict.fromkeys(names)).items():
                # What is made up of a site's name was told with it.
                if what == "Plate" and any(name.startswith(f"{site}_dim_") for site in sites):
                    continue
                warn(
                    f"{what} {name!r} will be {other!r} in InferenceData, where that name is taken or cannot be "
                    f"written to a file; everything else keeps it. Rename the {what.lower()} to choose another name.",
                    ModelWarning,
                )


def __getattr__(name: str) -> Any:
    """Pickles of earlier versions ask for what is no longer here."""
    if name in ("_model_target", "_potential_target", "_given_target"):
        raise RuntimeError(
            "This pickle of a sampler was written by an earlier version, which kept its model in another form. Files "
            "that OSDS.save has written are read by OSDS.load; otherwise run the sampler again."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
