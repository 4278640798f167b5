"""Runs an example with other settings, in a tiny form, or to store its figures.

    python docs/run_example.py examples/exoplanet.py NUM_PLANETS=2
    python docs/run_example.py examples/nile.py --figures docs/figures
    python docs/run_example.py examples/*.py --smoke-test

The settings of an example are the names in capitals to which it assigns a number at its top level: whoever has the
script or the notebook changes them there. With ``--smoke-test`` they are small, and so is each sampler; the numbers of
such a run mean nothing. Figures are stored under their labels.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

import pyro_osds

# What every sampler gets in a tiny run, and the settings of the examples that have some.
TINY_SAMPLER = {"num_samples": 50, "num_iterations": 20, "num_particles": 8, "escalate": False, "max_time": 3.0}
TINY = {
    "NUM_NUTS": 10,
    "NUM_NUTS_SAMPLES": 10,
    "NUM_NUTS_WARMUP": 10,
    "MAX_TREE_DEPTH": 4,
    "NUM_YEARS": 10,
    "STEPS_PER_YEAR": 2,
    "NUM_DECODED": 3,
    "EVERY": 4,
    "NUM_ROWS": 100,
    "NUM_NODES": 4,
    "NUM_DRAWS": 256,
    "NUM_PARTICLES": 16,
    "NUM_MATCHING": 10,
    "NUM_WARM_UP": 10,
    "NUM_ITERATIONS": 10,
    "NUM_VELOCITY": 3,
}


class _Settings(ast.NodeTransformer):
    """Other numbers for the settings of an example."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.known = values, set()

    def visit_Module(self, node: ast.Module) -> ast.Module:
        for statement in node.body:
            if isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], statement, "value")

        return node

    def _assign(self, target: ast.expr, parent: Any, place: Any) -> None:
        value = getattr(parent, place) if isinstance(place, str) else parent[place]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for index, part in enumerate(target.elts):
                self._assign(part, value.elts, index)
        elif isinstance(target, ast.Name) and target.id.isupper() and isinstance(value, ast.Constant):
            if not isinstance(value.value, int | float):
                return
            self.known.add(target.id)
            if target.id in self.values:
                new = ast.copy_location(ast.Constant(self.values[target.id]), value)
                if isinstance(place, str):
                    setattr(parent, place, new)
                else:
                    parent[place] = new


def run(example: Path, settings: dict[str, Any], figures: Path | None = None, is_tiny: bool = False) -> dict[str, Any]:
    """The names of an example after it has run.

    Arguments:
        example: The script.
        settings: Numbers by name, in the place of those in the script.
        figures: Where figures go; they are not stored by default.
        is_tiny: Whether samplers and settings are small.

    Raises:
        ValueError: If the example has no setting of that name.
    """
    changed = _Settings((TINY if is_tiny else {}) | settings)
    tree = changed.visit(ast.parse(example.read_text(encoding="utf-8"), str(example)))
    if unknown := settings.keys() - changed.known:
        raise ValueError(f"{example} has no setting {sorted(unknown)[0]!r}; it has {', '.join(sorted(changed.known))}.")
    show, init, bar = plt.show, pyro_osds.OSDS.__init__, tqdm.__init__
    plt.show = functools.partial(_store, figures)
    if is_tiny:
        pyro_osds.OSDS.__init__ = _with_options(init, TINY_SAMPLER)
        tqdm.__init__ = _with_options(bar, {"disable": True})
    names: dict[str, Any] = {"__name__": "__main__", "__doc__": None}
    try:
        with warnings.catch_warnings():
            if is_tiny:
                warnings.simplefilter("ignore")  # verdicts on so few draws
            exec(compile(tree, str(example), "exec"), names)
    finally:
        plt.show, pyro_osds.OSDS.__init__, tqdm.__init__ = show, init, bar

    return names


def _with_options(init: Any, fixed: dict[str, Any]) -> Any:
    @functools.wraps(init)
    def other(self: Any, *args: Any, **options: Any) -> None:
        bound = inspect.signature(init).bind_partial(self, *args).arguments
        # Processes that share a fit have clocks of their own, and no limit of time.
        given = {*bound, "max_time"} if options.get("distributed") else bound
        init(self, *args, **{**options, **{name: value for name, value in fixed.items() if name not in given}})

    return other


def _store(folder: Path | None) -> None:
    """In the place of ``plt.show``: each open figure goes to a file with its label as the name."""
    for number in plt.get_fignums():
        figure = plt.figure(number)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{figure.get_label() or f'figure_{number}'}.png"
            figure.savefig(path, dpi=120, bbox_inches="tight")
            print(f"wrote {path}")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="+", metavar="EXAMPLE.py or NAME=NUMBER")
    parser.add_argument("--figures", type=Path, help="a folder for the figures")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    settings = {}
    for name, text in (argument.split("=", 1) for argument in args.examples if "=" in argument):
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parser.error(f"{name}={text}: a setting is a number, got {text!r}.")
    for example in (Path(argument) for argument in args.examples if "=" not in argument):
        run(example, settings, args.figures, args.smoke_test)


if __name__ == "__main__":
    main()
