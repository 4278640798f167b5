"""A pool of workers: when they pay, what they are sent, and how their answers are waited for.

Within :func:`with_workers` workers may be started; its end ends them, whatever happens. They start beside the work,
once it has taken as long in this process as their start takes, so a short run never starts any and a long one hardly
waits. A function is sent once. Before its answers count, some of them are held against this process, to the last digit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Any

import torch

from pyro_osds.runtime.clock import OutOfTimeError, check_time, now
from pyro_osds.runtime.errors.told import first_line
from pyro_osds.runtime.parallel import is_together
from pyro_osds.runtime.warnings import VectorizationWarning, warn
from pyro_osds.runtime.workers.surroundings import module_values
from pyro_osds.runtime.workers.worker import answer, begin

# Seconds that long calls take in this process before workers are started: about what their start takes.
_WORTH = 3.0
# A call is long with so many seconds for each of its points, or in all; the second is where sending is soon repaid.
_LONG_POINT, _LONG_CALL = 0.02, 2.0
# Seconds of work that are sent at once: a message takes a thousandth.
_PIECE = 0.05
# More workers than this would wait for each other: batches of slow densities are small. Each of them holds torch, Pyro
# and the model, and what is larger than so many bytes is not copied so many times.
_MOST_WORKERS, _MOST_BYTES = 16, 2**28
# Answers of a function that are held against this process to the last digit before any count. Later one of each batch
# is, to so many digits: sums may be rounded in another way where memory lies otherwise.
_NUM_CHECKED, _SAME = 4, 1e-6
# So many calls in a row that are no faster by workers are enough.
_MOST_IN_VAIN = 5
# Seconds between two looks at the clock, and the longest that the end of a run waits for workers.
_TICK = 0.05

_log = logging.getLogger(__name__)
_pool: ContextVar[_Pool | None] = ContextVar("pool", default=None)


class Sent:
    """A function that may be answered by workers.

    Arguments:
        function: The function; what it returns can be pickled. Where workers cannot be sent it, or answer otherwise
            than this process, it stays here.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._seconds, self._num_checked = math.inf, 0
        # Seconds of a call in this process, and how many times in a row workers took no less.
        self._here, self._in_vain = math.inf, 0
        self._is_refused = False
        # The file belongs to one pool.
        self._path: tuple[_Pool, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_path": None}

    def took(self, seconds: float, num_calls: int) -> None:
        """Note what some calls took in this process."""
        pool = _pool.get()
        self._seconds = self._here = seconds / max(num_calls, 1)
        if pool is not None and not self._is_refused and self._is_long(num_calls):
            pool.note(seconds)

    def answers(self, calls: Sequence[tuple[Any, ...]], work: float = 1.0) -> list[Any] | None:
        """What workers make of the arguments of some calls, in their order; None where there are none for it.

        Arguments:
            calls: Arguments.
            work: How much there is to do, in those calls whose time was noted.

        Raises:
            OutOfTimeError: If the time is over before the answers are there.
            RuntimeError: If workers give other numbers than this process, after they gave the same.
        """
        pool = _pool.get()
        if pool is None or self._is_refused or len(calls) < 2 or not self._is_long(len(calls)) or not pool.is_ready():
            return None
        path = self._sent_to(pool)
        if path is None:
            return None
        start = now()
        is_new = self._num_checked < _NUM_CHECKED
        place = self._num_checked % len(calls)
        own = []
        with pool.asked(path, _pieces(calls, self._seconds, pool.num_workers)) as futures:
            # Workers have begun, and this process has nothing else to do.
            if futures and (is_new or len(calls) > _NUM_CHECKED):
                try:
                    own.append(self.function(*calls[place]))
                except OutOfTimeError:
                    raise
                except Exception:  # noqa: BLE001 - as in a worker: it is asked for once more, where errors are explained
                    return None
            results = pool.results(futures)
        if results is None:
            return None
        if own and not self._holds(own[0], results[place]):
            return None
        each = (now() - start) / len(calls)
        self._seconds = min(self._seconds, each * pool.num_workers)
        self._in_vain = self._in_vain + 1 if not is_new and each >= work * self._here else 0
        if self._in_vain >= _MOST_IN_VAIN:
            self.refuse("other processes take as long; the cores may be busy")

        return results

    def refuse(self, why: str) -> None:
        """From now on the function stays in this process."""
        self._is_refused = True
        _log.info("points stay in this process: %s", why)

    def _is_long(self, num_calls: int) -> bool:
        return _LONG_POINT <= self._seconds < math.inf or _LONG_CALL <= num_calls * self._seconds < math.inf

    def _holds(self, own: Any, got: Any) -> bool:
        self._num_checked += 1
        if self._num_checked > 1 and not _equal(own, got, _SAME):
            raise RuntimeError(
                "The model gives other numbers in a worker process than in this one: something outside of it decides, "
                "such as a function of a module that was replaced. Numbers of both are mixed by now. Run it again "
                "without workers: set the environment variable LOKY_MAX_CPU_COUNT to 1."
            )
        is_same = self._num_checked > _NUM_CHECKED or _equal(own, got)
        if not is_same:
            self.refuse("another process gives other numbers, which something outside of the function must decide")

        return is_same

    def _sent_to(self, pool: _Pool) -> str | None:
        if self._path is not None and self._path[0] is pool:
            return self._path[1]
        try:
            content = pool.dumps((self.function, pool.dumps(module_values(pool.dumps))))
        except Exception as error:  # noqa: BLE001 - whatever cannot be sent stays here
            self.refuse(f"they cannot be sent to another one ({type(error).__name__}: {first_line(error)})")
            return None
        if len(content) > _MOST_BYTES:
            self.refuse(f"each other one would need {len(content) / 2**20:.0f} MB of its own")
            return None
        path = pool.keep(content)
        self._path = pool, path

        return path


class _Pool:
    """Workers, from their start to their end."""

    def __init__(self) -> None:
        self.num_workers = 1
        self._spent, self._executor, self._is_off = 0.0, None, False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._first: list[Future[Any]] = []
        self._num_files = 0
        self.dumps: Callable[[Any], Any] = pickle.dumps

    def note(self, seconds: float) -> None:
        """Note what a long call took here; from enough of it on, workers are started."""
        self._spent += seconds
        if self._spent >= _WORTH and self._executor is None and not self._is_off:
            self._start()

    def is_ready(self) -> bool:
        """Whether all workers are there; until then this process goes on."""
        if self._executor is None or self._is_off:
            return False
        if self._first and all(future.done() for future in self._first):
            failed = next((error for future in self._first if (error := future.exception()) is not None), None)
            self._first = []
            if failed is not None:
                self._give_up(failed)

        return not self._first and not self._is_off

    @contextlib.contextmanager
    def asked(self, path: str, pieces: Sequence[Sequence[tuple[Any, ...]]]) -> Iterator[list[Future[Any]]]:
        """Begin with some calls; whoever leaves before all are answered wants no more of them."""
        assert self._executor is not None
        # Not by Future.cancel(): a pool that is ended while cancelled calls wait would leave its workers alive.
        wanted = self.keep(b"")
        arguments = path, wanted, torch.get_default_dtype()
        futures: list[Future[Any]] = []
        try:
            futures = [self._executor.submit(answer, pickle.dumps(list(piece)), *arguments) for piece in pieces]
        except RuntimeError as error:  # the pool broke before
            self._give_up(error)
        try:
            yield futures
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(wanted)

    def results(self, futures: Sequence[Future[Any]]) -> list[Any] | None:
        """The answers; None if one of them failed, which then has to be asked for here, where errors are explained."""
        results: list[Any] = []
        for future in futures:
            while not future.done():
                wait([future], timeout=_TICK)
                check_time()
            if (error := future.exception()) is not None:
                if _is_broken(error):
                    self._give_up(error)
                return None
            results += pickle.loads(future.result())

        return results if futures else None

    def keep(self, content: Any) -> str:
        """Write a function where workers find it."""
        assert self._folder is not None
        self._num_files += 1
        path = os.path.join(self._folder.name, f"{self._num_files}.pkl")
        with open(path, "wb") as file:
            file.write(content)

        return path

    def end(self) -> None:
        """End all workers, whatever they are at."""
        executor, self._executor, self._is_off = self._executor, None, True
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        tools = _tools()
        if tools is None:
            self._is_off = True
            return
        executor_type, self.dumps, num_cores = tools
        self.num_workers = min(num_cores, _MOST_WORKERS)
        if self.num_workers < 2:
            self._is_off = True
            return
        self._folder = tempfile.TemporaryDirectory(prefix="pyro_osds_")
        arguments = os.getpid(), self._folder.name, torch.get_num_threads()
        try:
            self._executor = executor_type(max_workers=self.num_workers, initializer=begin, initargs=arguments)
            self._first = [self._executor.submit(os.getpid) for _ in range(self.num_workers)]
        except (OSError, RuntimeError, ValueError) as error:  # no processes, semaphores or memory to be had
            self._give_up(error)
            return
        _log.info("a point takes long: %d worker processes are started", self.num_workers)

    def _give_up(self, error: BaseException) -> None:
        """Go on without workers: one of them came to an end that nobody wanted."""
        if self._is_off:
            return
        self.end()
        warn(
            f"Worker processes for slow points came to an end ({type(error).__name__}: {first_line(error)}); points go "
            "on one after the other in this process, with the same numbers. If memory ran out, allow fewer workers by "
            "the environment variable LOKY_MAX_CPU_COUNT.",
            VectorizationWarning,
        )


@contextlib.contextmanager
def with_workers() -> Iterator[None]:
    """Functions that take long may be answered by workers in here; they are gone afterwards.

    Nothing happens in processes that are themselves workers, nor within another such block.

    Example:
        >>> with with_workers():
        ...     num_at_once()
        1
    """
    if _pool.get() is not None or multiprocessing.parent_process() is not None or is_together():
        yield
        return
    pool = _Pool()
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)
        pool.end()


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """No workers in here: others already share the cores.

    Example:
        >>> with in_this_process(), with_workers():
        ...     num_at_once()
        1
    """
    pool = _Pool()
    pool._is_off = True
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)


def num_at_once() -> int:
    """How many points are worth asking for at once by somebody who looks at the clock in between.

    Example:
        >>> num_at_once()
        1
    """
    pool = _pool.get()

    return pool.num_workers if pool is not None and pool.is_ready() else 1


def _tools() -> tuple[Any, Callable[[Any], Any], int] | None:
    """The executor, the pickler and the number of cores of joblib; None where it is not installed."""
    try:
        from joblib import cpu_count
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.backend.reduction import dumps
    except ImportError:
        _log.info("points go one after the other: pip install 'pyro-osds[many]' brings joblib, for all cores")
        return None

    return ProcessPoolExecutor, dumps, cpu_count()


def _is_broken(error: BaseException) -> bool:
    """Whether the workers themselves failed, and not the function."""
    return any(kind.__name__ in ("BrokenExecutor", "BrokenProcessPool") for kind in type(error).__mro__)


def _pieces(calls: Sequence[tuple[Any, ...]], seconds: float, num_workers: int) -> list[Sequence[tuple[Any, ...]]]:
    """Calls cut so that messages take little of the time, and all workers have something to do."""
    size = max(1, min(math.ceil(_PIECE / seconds), math.ceil(len(calls) / num_workers)))

    return [calls[start : start + size] for start in range(0, len(calls), size)]


def _equal(first: Any, second: Any, digits: float = 0.0) -> bool:
    """Whether two results are the same, to the last digit or as a part of their size."""
    if isinstance(first, torch.Tensor):
        if not isinstance(second, torch.Tensor) or first.dtype != second.dtype or first.shape != second.shape:
            return False
        if not first.is_floating_point():
            return torch.equal(first, second)
        return torch.allclose(first, second, rtol=digits, atol=digits, equal_nan=True)
    if isinstance(first, dict):
        return isinstance(second, dict) and first.keys() == second.keys() and all(
            _equal(value, second[name], digits) for name, value in first.items()
        )  # fmt: skip
    if isinstance(first, (list, tuple)):
        is_like = isinstance(second, type(first)) and len(first) == len(second)
        return is_like and all(_equal(one, other, digits) for one, other in zip(first, second, strict=True))

    return type(first) is type(second) and bool(first == second)
