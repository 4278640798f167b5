"""Each example runs from start to end in a tiny form, and its notebook needs nothing but the package and its data."""

import ast
import csv
import importlib.util
import io
import logging
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Those that run longest: left to `make test-long`.
LONG = {"galaxies", "hidden_markov", "nile", "radon"}
RUNNER = ROOT / "docs" / "run_example.py"
# Data too long to stand in a notebook: the file beside it, as somebody has it who downloaded both.
FILES = {"german_credit": "german_credit.csv", "exoplanet": "eprv3/rvs_1.txt", "radon": "radon.csv"}
# What makes a process group runs as a process of its own; to import torch and Pyro takes the others longer than to run.
OWN_PROCESS = {"distributed"}


def runner():
    spec = importlib.util.spec_from_file_location("run_example", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module


def printed_by(example, folder):
    """What an example prints that runs from a folder, by the command of the pages; figures go into the folder."""
    command = [str(RUNNER), str(example), "--smoke-test", "--figures", str(folder)]
    if example.stem in OWN_PROCESS:
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    out, log = io.StringIO(), logging.getLogger("pyro_osds")
    level = log.level
    plt.close("all")  # those of other tests
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        try:
            runner().main()
        finally:
            log.setLevel(level)

    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    [pytest.param(each, marks=[pytest.mark.long] if each.stem in LONG else []) for each in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example(example, tmp_path):
    # Away from the repository. It ends, something was printed, and every figure has a label.
    if example.stem in FILES:
        shutil.copy(ROOT / "examples" / "data" / FILES[example.stem], tmp_path)
    printed = printed_by(example, tmp_path)
    assert "log_evidence" in printed or "log evidence" in printed
    figures = [path.stem for path in tmp_path.glob("*.png")]
    assert all(not name.startswith("figure_") for name in figures), "a figure without a label"
    assert bool(figures) == ("plt.show()" in example.read_text())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_notebook(example):
    # Several cells; nothing that only a script has, and no path into the repository.
    text = example.read_text()
    assert text.count("\n# %%") >= 3
    for word in ("__file__", "argparse", "sys.argv", "__main__", 'use("Agg")'):
        assert word not in text, word
    paths = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert not [path for path in paths if isinstance(path, str) and ".." in path.split("/")]


def column(name, key):
    with (ROOT / "examples" / "data" / f"{name}.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file)]


def written_into(example, *names):
    """The values of names to which an example assigns numbers, without running the rest of it."""
    statements = ast.parse((ROOT / "examples" / f"{example}.py").read_text()).body[1:]  # without the docstring
    namespace = {"torch": torch, "np": np}
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if not isinstance(node, ast.Assign):
            break  # data come first
        try:
            exec(compile(ast.Module([node], []), example, "exec"), namespace)
        except NameError:
            break  # a prior, which needs Pyro

    return [np.asarray(namespace[name], dtype=float).ravel() for name in names]


@pytest.mark.parametrize(
    ("example", "written", "file", "keys", "factor"),
    [
        ("eight_schools", ("y", "sigma"), "eight_schools", ("y", "sigma"), 1.0),
        ("reading_the_result", ("y", "sigma"), "eight_schools", ("y", "sigma"), 1.0),
        ("neutra", ("y", "sigma"), "eight_schools", ("y", "sigma"), 1.0),
        ("radiata_pine", ("strength",), "radiata_pine", ("y_strength",), 1.0),
        ("radiata_pine", ("density",), "radiata_pine", ("x_density",), 1.0),
        ("radiata_pine", ("adjusted_density",), "radiata_pine", ("z_adjusted_density",), 1.0),
        ("galaxies", ("velocity",), "galaxies", ("velocity",), 1e-3),
        ("hidden_markov", ("counts", "years"), "earthquakes", ("count", "year"), 1.0),
        ("model_comparison", ("hits", "at_bats"), "baseball", ("hits", "at_bats"), 1.0),
        ("hare_lynx", ("hare", "lynx"), "hare_lynx", ("hare", "lynx"), 1.0),
        ("nile", ("years",), "nile", ("year",), 1.0),
        ("nile", ("flow",), "nile", ("flow",), 1e-2),
    ],
)
def test_data_in_an_example_are_those_of_the_file(example, written, file, keys, factor):
    for values, key in zip(written_into(example, *written), keys, strict=True):
        expected = np.array(column(file, key)) * factor
        if example == "nile":
            expected = expected[:50]
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_settings_are_numbers_in_capitals(tmp_path):
    example = tmp_path / "example.py"
    example.write_text("A, B = 1, 2.0\nC = 3\nNAMES = {'x': 1}\nd = 4\ntotal = A + B + C + d\n")
    run = runner().run
    assert run(example, {})["total"] == 10.0
    assert run(example, {"A": 10, "C": 30})["total"] == 46.0
    with pytest.raises(ValueError, match="no setting 'd'; it has A, B, C"):
        run(example, {"d": 1})


def test_small_samplers_keep_what_is_given_by_position(tmp_path):
    example = tmp_path / "example.py"
    example.write_text(
        "from pyro_osds import OSDS\nosds = OSDS(lambda: None, 7)\nother = OSDS(lambda: None, num_samples=7)\n"
    )
    names = runner().run(example, {}, is_tiny=True)
    assert names["osds"].num_samples == 7 and names["other"].num_samples == 50
    # Nothing is left of it.
    assert runner().run(example, {})["other"].num_samples == 7
