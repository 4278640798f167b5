"""From a density of one point to the density of a batch, on the fastest backend that is right.

| backend | how | |
|---|---|---|
| ``captured`` | one recorded graph of tensor operations | hundreds of times faster than the loop |
| ``vmap`` | :func:`torch.func.vmap` of the model, under a layer that makes both agree | a hundred times faster |
| ``loop`` | point by point | always right |

A backend is used after it agreed with the loop, value and gradient, at eight points. From the loop upwards: vmap, then
vmap with tensors that belong to the batch from the start, then a graph of whichever of the two worked.

All run in double precision (``precision``), or all in single where the model insists on it: it is one density.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from pyro_osds.choices import Capture, Vectorize
from pyro_osds.model.agreement import agree, agree_within_tolerances, check_points
from pyro_osds.model.foreign.integration import MAX_STEPS, integrations_used, limited_steps
from pyro_osds.model.foreign.saved import KeepSaved, is_about_changes
from pyro_osds.model.graph import (
    BLOCK_SIZE,
    LARGE_BLOCK_SIZE,
    MIN_BATCH,
    DensitiesWithScores,
    Graph,
    Scored,
    in_blocks,
    record,
    with_scores,
)
from pyro_osds.model.pointwise import Loop, OnePoint, Single, in_loop, or_nan, seconds_of
from pyro_osds.model.pyro_internals import is_numerical
from pyro_osds.model.vmap import PointsDisagree, VmapCompat
from pyro_osds.runtime.chunks import repeated
from pyro_osds.runtime.errors.lines import user_line
from pyro_osds.runtime.errors.told import first_line
from pyro_osds.runtime.precision import default_dtype, is_rounding, resembles
from pyro_osds.runtime.warnings import VectorizationWarning, warn
from pyro_osds.runtime.workers import in_this_process

VECTORIZE: tuple[Vectorize, ...] = get_args(Vectorize)
CAPTURE: tuple[Capture, ...] = get_args(Capture)
# Where one graph takes longer to record than a second one would save.
_MANY_OPERATIONS = 2000
# On a device that takes longer than this for double precision, single is taken where its rounding is below this, nats.
_MAX_SLOWDOWN, _MAX_NOISE = 2.0, 0.01
# Points at which backends are compared where a single run takes as long as a solver does; and in other coordinates.
_FEW_POINTS, _FEWER_POINTS = 4, 1
# Tensor operations of a batch from which on a solver makes it slow: about a hundredth of a second.
_SLOW_SOLVER = 5000
# A point that asks for so many times the steps of the points that are checked, and for this many, has no density.
_MANY_TIMES, _FEWEST_STEPS = 10, 1000
_log = logging.getLogger(__name__)


class Ladder:
    """A batch of points, evaluated on the fastest backend that agrees with the loop.

    Arguments:
        single: Log prior and log likelihood of one point.
        example: A point ``(D,)``, if possible one where the density is finite.
        vectorize: ``"auto"``, ``"vmap"`` (an error where vmap fails) or ``"loop"``.
        capture: ``"auto"``, or False for no graphs.
        block_size: Points that are evaluated at once.
        large_block_size: The same in larger batches.
        is_double: Whether to run in double precision, where that is known already.
        is_solved: Whether an adaptive solver is part of the density, so that a single run takes long.

    Raises:
        ValueError: If an option is unknown, or ``vectorize="vmap"`` and vmap fails or is wrong.

    Example:
        >>> ladder = Ladder(lambda z: (-0.5 * z.square().sum(), z.sum()), torch.zeros(2, dtype=torch.float64))
        >>> ladder.backend
        'captured'
        >>> ladder.densities(torch.ones(3, 2, dtype=torch.float64))
        (tensor([-1., -1., -1.], dtype=torch.float64), tensor([2., 2., 2.], dtype=torch.float64))
    """

    def __init__(
        self,
        single: Single,
        example: Tensor,
        vectorize: str = "auto",
        capture: str | bool = "auto",
        block_size: int = BLOCK_SIZE,
        large_block_size: int = LARGE_BLOCK_SIZE,
        is_double: bool | None = None,
        is_solved: bool = False,
    ) -> None:
        for name, value, allowed in (("vectorize", vectorize, VECTORIZE), ("capture", capture, CAPTURE)):
            if value not in allowed or isinstance(value, int) != isinstance(value, bool):
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
        self.single, self.reason = single, ""
        self._options = vectorize, capture
        self._block_size, self.large_block_size = block_size, large_block_size
        self._min_batch = min(MIN_BATCH, block_size // 2)
        self._example = example
        self._batched_factories = False
        self._graphs: dict[tuple[bool, int], Graph] = {}
        self._loops: dict[tuple[bool, bool], Loop] = {}
        self._is_solved = is_solved
        few = _FEWER_POINTS if is_double is not None else _FEW_POINTS
        self._points = check_points(example)[: few if is_solved else None]
        # The foot of the ladder: what all backends have to agree with.
        self.vectorized = self._may_capture = False
        self.is_double = bool(is_double)
        self._keeps_saved, self._must_agree = False, True
        # Whether steps of a solver are chosen for whole batches, and what a batch takes then, in tensor operations.
        self.is_adaptive, self.solver_cost, self._max_steps = False, 0, MAX_STEPS
        with in_this_process():  # whether it goes point by point is not known yet
            self._expected = self._first_look()
            if is_double is None:
                self._raise_precision()
            self.vectorized = vectorize != "loop" and self._climb(must=vectorize == "vmap")
        self._may_capture = self.vectorized and capture == "auto" and len(example) > 0
        self._must_agree = False

    def __getstate__(self) -> dict[str, Any]:
        # Recorded graphs cannot be pickled; they are recorded again when they are first needed.
        return {**self.__dict__, "_graphs": {}, "_loops": {}}

    def of(self, single: Single) -> Ladder:
        """A ladder with the same options for another density of the same points."""
        vectorize, capture = self._options
        # What does not run in batches here does not there either, and was warned of.
        sizes = self._block_size, self.large_block_size
        vectorize = vectorize if self.vectorized else "loop"

        return Ladder(
            single, self._example, vectorize, capture, *sizes, is_double=self.is_double, is_solved=self._is_solved
        )

    @property
    def seen(self) -> tuple[Tensor, ...]:
        """Log priors, log likelihoods and their scores at the points where backends are compared, by single runs."""
        return self._expected

    @property
    def is_fast(self) -> bool:
        """Whether batches are evaluated at once, and within some hundredths of a second."""
        return self.vectorized and self.solver_cost < _SLOW_SOLVER

    @property
    def may_record(self) -> bool:
        """Whether what a run gives may be had from a graph: there are some, and no solver is part of a run."""
        return self.vectorized and self._may_capture and not self.solver_cost

    @property
    def num_at_once(self) -> int:
        """How many points take hardly longer than one: a block, where a solver takes the same steps for all of it."""
        return self._block_size if self.vectorized and self.solver_cost else 1

    @property
    def backend(self) -> str:
        """``"captured"``, ``"vmap"`` or ``"loop"``."""
        if not self.vectorized:
            return "loop"
        if self._may_capture and not self._graphs:
            self._capture(True, min(MIN_BATCH, self._block_size) if self.solver_cost else self._block_size)

        return "captured" if self._may_capture else "vmap"

    def densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log priors and log likelihoods, ``(B, D) -> (B,), (B,)``, differentiable."""
        scores = torch.is_grad_enabled() and z.requires_grad
        # Of many small operations a block takes hardly longer than a point, which takes thrice that by itself.
        has_graph = self._block_size > BLOCK_SIZE and (scores, self._block_size) in self._graphs
        if self._may_capture and len(z) >= (1 if has_graph else self._min_batch) and z.dtype == self._example.dtype:
            try:
                if (graph := self._graph(scores, len(z))) is not None:
                    return self._by_graph(graph, z, scores)
            except RuntimeError as error:
                if not is_numerical(error):
                    raise
        if self.vectorized and self._block_size < BLOCK_SIZE and z.shape[1] and len(z) > self._block_size:
            # Without a graph, what a large density leaves behind for its gradient would fill the memory.
            runs = partial(self.map, self.single)
            return self._by_graph(Graph(with_scores(runs) if scores else runs, self._block_size), z, scores)

        return self.map(self.single, z)

    def _first_look(self) -> tuple[Tensor, ...]:
        """Densities and scores by the loop; a model that changes in place what its gradient needs is noticed here."""
        # What a solver takes long for is not asked for twice, but to see that single precision says the same.
        points = self._points[: 1 if self._is_solved and not self.is_double else None]
        try:
            return with_scores(self.densities)(points)
        except RuntimeError as error:
            if not is_about_changes(error):
                raise
        self._keeps_saved = True

        return with_scores(self.densities)(points)

    def saved(self) -> contextlib.AbstractContextManager[Any]:
        """What has to be in force while the model runs and gradients are taken: nothing, unless it changes in place."""
        return KeepSaved() if self._keeps_saved and torch.is_grad_enabled() else contextlib.nullcontext()

    def _raise_precision(self) -> None:
        """Run in double precision from now on, if the density is the same there but for rounding."""
        if self._example.device.type == "mps":  # has no double precision
            return
        written, self.is_double = self._expected, True
        try:
            double = with_scores(self.densities)(self._points)
        except Exception as error:  # noqa: BLE001 - whatever a model has against double precision means the same
            self.is_double = False
            _log.info("single precision, as the model is written: %s", first_line(error))
            if len(written[0]) < len(self._points):
                self._expected = with_scores(self.densities)(self._points)
            return
        count = len(written[0])
        total, before = double[0][:count] + double[1][:count], written[0] + written[1]
        self.is_double = resembles(total, before) or is_rounding(
            self._total(True), self._total(False), self._points[:count], total - before
        )
        if self.is_double and self._example.is_cuda and self._is_single_enough(double):
            self.is_double = False
        if self.is_double:
            self._expected = double
        elif count < len(self._points):
            self._expected = with_scores(self.densities)(self._points)

    def _total(self, is_double: bool) -> Callable[[Tensor], Tensor]:
        """The log joint density in one of the two precisions; the ladder stays in it."""

        def total(z: Tensor) -> Tensor:
            self.is_double = is_double
            log_prior, log_likelihood = self.densities(z)
            return log_prior + log_likelihood

        return total

    def _is_single_enough(self, double: tuple[Tensor, ...]) -> bool:
        """Whether a device pays for these densities, in double precision, with its time, and single is as good."""
        difference = sum(double[:2], double[0].new_zeros(())) - sum(self._expected[:2], double[0].new_zeros(()))
        difference = difference[difference.isfinite()]
        if len(difference) < 2 or difference.std() > _MAX_NOISE:
            return False
        seconds, block = {}, self._points[:1].expand(BLOCK_SIZE, -1)
        self.vectorized, before = True, self.is_double
        for self.is_double in (True, False):
            seconds[self.is_double] = seconds_of(with_scores(self.densities), block)
        self.vectorized, self.is_double = False, before

        return seconds[True] > _MAX_SLOWDOWN * seconds[False]

    def _graph(self, scores: bool, num_points: int) -> Graph | None:
        """The graph for a batch of this size, recorded when it is first needed; None where there is none."""
        block_size = self._block_size
        if self.solver_cost and num_points <= MIN_BATCH:
            # Each step of a solver goes over the whole block.
            block_size = min(MIN_BATCH, block_size)
        elif block_size == BLOCK_SIZE < num_points:
            first = self._graphs.get((True, BLOCK_SIZE)) or self._capture(True, BLOCK_SIZE)
            if first is not None and first.num_operations < _MANY_OPERATIONS:  # soon recorded
                block_size = self.large_block_size
        if not self._may_capture:
            return None

        return self._graphs.get((scores, block_size)) or self._capture(scores, block_size)

    def _by_graph(self, graph: Graph, z: Tensor, scores: bool) -> tuple[Tensor, Tensor]:
        with self.replayed():
            runs = partial(self.map, self.single)
            log_prior, log_likelihood = DensitiesWithScores.apply(z, graph, runs) if scores else in_blocks(graph, z)

        return log_prior, log_likelihood

    def replayed(self) -> Any:
        """In which precision a graph makes tensors of numbers and of integers: none of its operations says so."""
        return default_dtype(torch.float64) if self.is_double else contextlib.nullcontext()

    def map(self, read: Callable[[Tensor], Any], z: Tensor) -> Any:
        """Any function of one point, over the rows of ``z``: tensors, tuples or mappings of them, stacked."""
        if z.shape[1] == 0 and len(z) > 1:  # without coordinates all points are the same
            return repeated(self.map(read, z[:1]), len(z))
        if not self.vectorized:
            return self._loop_of(read).at(z)
        with self._point(read).around():
            try:
                return self._vmap(read, z)
            except RuntimeError as error:
                # In this batch points may have parted, though they did not where the backends were compared.
                if not is_numerical(error) and (self._must_agree or not isinstance(error, PointsDisagree)):
                    raise
                return in_loop(self._point(read).read, z)

    def _point(self, read: Callable[[Tensor], Any]) -> OnePoint:
        # A point at which linear algebra fails has no density, as in Pyro's own samplers.
        return OnePoint(or_nan(read) if read is self.single else read, self.is_double, self._keeps_saved)

    def _loop_of(self, read: Callable[[Tensor], Any]) -> Loop:
        """The loop for a function; the density has one for as long as nothing around it changes."""
        if read is not self.single:
            return Loop(self._point(read), is_density=False)
        key = self.is_double, self._keeps_saved
        if key not in self._loops:
            self._loops[key] = Loop(self._point(read), is_density=True)

        return self._loops[key]

    def _vmap(self, read: Callable[[Tensor], Any], z: Tensor) -> Any:
        def single(row: Tensor) -> Any:
            with VmapCompat(row if self._batched_factories else None) as torch_for_batches:
                result = read(row)
            failed = torch_for_batches.factorisations.failed(row)
            if failed is None or read is not self.single:
                return result
            # A matrix without a factor gives its own point a density of zero, as everywhere.
            return tuple(part.masked_fill(failed, torch.nan) for part in result)

        with limited_steps(self._max_steps):
            return torch.func.vmap(single, randomness="error")(z)

    def _climb(self, must: bool) -> bool:
        """Whether vmap runs the density and agrees with the loop."""
        self.vectorized = True
        for self._batched_factories in (False, True):
            try:
                with integrations_used() as used:
                    got = with_scores(self.densities)(self._points)
            except Exception as error:  # noqa: BLE001 - any failure of vmap means the same: use the loop
                why = f"{user_line(error)} failed under torch.func.vmap: {first_line(error)}"
            else:
                self.is_adaptive = any(each.is_adaptive for each in used)
                self.solver_cost = sum(each.cost for each in used)
                most = max((each.num_steps for each in used), default=0)
                self._max_steps = min(max(_FEWEST_STEPS, _MANY_TIMES * most), MAX_STEPS)
                if self._agrees(got):
                    self.reason = ""
                    if used:
                        # A solver is set up anew wherever no graph holds it, so no batch is too small for a graph.
                        self._min_batch = 1
                    if self.is_adaptive:
                        _log.info("a differential equation is solved for whole batches, on steps within its tolerances")
                    return True
                total, expected = got[0] + got[1], self._expected[0] + self._expected[1]
                why = (
                    "under torch.func.vmap the log density or its gradient differs from single runs "
                    f"(log densities {total.tolist()} against {expected.tolist()})"
                )
            self.reason = self.reason or why
        self.vectorized = self.is_adaptive = False
        if must:
            raise ValueError(f"vectorize='vmap' does not work for this model: {self.reason}. Use vectorize='auto'.")
        warn(
            f"The model runs point by point, about a hundred times slower than in batches: {self.reason}.",
            VectorizationWarning,
        )

        return False

    def _agrees(self, got: tuple[Tensor, ...]) -> bool:
        """Whether densities, and scores, are those of the loop at the points that are checked."""
        expected = self._expected
        return agree_within_tolerances(got, expected) if self.is_adaptive else agree(got, expected, self.is_double)

    def record(self, function: Scored, block: Tensor) -> Graph:
        """A function of batches as a graph; it is an error if the points of this one part."""
        self._must_agree = True
        try:
            with self.replayed():
                return record(function, block)
        finally:
            self._must_agree = False

    def _capture(self, scores: bool, block_size: int) -> Graph | None:
        """A graph that agrees with the loop, or None, after which there will be no other attempt."""
        self._may_capture = False
        function = with_scores(self.densities) if scores else self.densities
        block = torch.cat([self._points, self._points[:1].expand(block_size - len(self._points), -1)])
        try:
            graph = self.record(function, block.roll(1, 0))
            with self.replayed():
                got = in_blocks(graph, block[: max(self._min_batch, len(self._points))])
        except Exception as error:  # noqa: BLE001 - any failure means the same: no graphs
            self.reason = f"{user_line(error)} could not be captured: {first_line(error)}"
            return None
        except BaseException:
            self._may_capture = True  # Ctrl-C and the end of the time say nothing of graphs
            raise
        if not self._agrees(tuple(part[: len(self._points)] for part in got)):
            self.reason = "the captured graph differs from single runs"
            return None
        self._graphs[scores, block_size], self._may_capture = graph, True

        return graph
