"""Results of runs, each a line of a file: reading and keeping them, and many runs at once, where they are missing."""

import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The lines of a file, `[]` where there is none; a line that an interruption cut short is left out."""
    return list(_records(path.read_text())) if path.exists() else []


def _records(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def keep(record: Record, path: Path, *names: str) -> None:
    """Put a record into a file, in the place of an earlier one that has the same under these names."""

    def key(one: Record) -> tuple[Hashable, ...]:
        return tuple(one.get(name) for name in names)

    every = {key(each): each for each in [*read_records(path), record]}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever interrupts this has the file as it was.
    new = path.with_suffix(".new")
    new.write_text("".join(f"{json.dumps(each)}\n" for each in every.values()))
    new.replace(path)


def stored(path: Path) -> list[Record]:
    """The records of a file, for a report of them.

    Raises:
        SystemExit: If there are none: a report of nothing would empty the table of the page.
    """
    records = read_records(path)
    if not records:
        raise SystemExit(f"There are no results in {path}: run the benchmark without --report first.")

    return records


def ordered(path: Path, name: str, order: Iterable[str]) -> list[Record]:
    """The stored records in the order that what stands under a name has elsewhere; what is not there comes last."""
    places: dict[str, int] = {}
    for value in order:
        places.setdefault(value, len(places))

    return sorted(stored(path), key=lambda record: places.get(record[name], len(places)))


def run_all(
    work: Callable[..., Record],
    tasks: Sequence[tuple],
    path: Path,
    key: Callable[[Record], Hashable],
    num_jobs: int = 1,
) -> list[Record]:
    """The records of all tasks, those missing in the file run now and added to it.

    Arguments:
        work: Makes the record of a task; a function of a module, since other processes import it.
        tasks: Arguments of `work`, which are also the keys of their records.
        path: The file, one record a line.
        key: The task of a record.
        num_jobs: How many processes run at once, each with one thread.
    """
    done = {key(record) for record in read_records(path)}
    left = [task for task in tasks if task not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if file.tell() and not path.read_text().endswith("\n"):
            file.write("\n")
        for record in tqdm(_results(work, left, num_jobs), total=len(left), smoothing=0.0):
            file.write(json.dumps(record) + "\n")
            file.flush()
    wanted = set(tasks)

    return [record for record in read_records(path) if key(record) in wanted]


def _results(work: Callable[..., Record], tasks: Sequence[tuple], num_jobs: int) -> Iterator[Record]:
    # Fresh processes: a forked one would inherit torch's threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(num_jobs, get_context("spawn"), _one_thread) as pool:
        futures = [pool.submit(work, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
