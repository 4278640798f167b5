"""Many independent runs, some at once, each a line of a file; what is in the file already is not run again."""

import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
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
