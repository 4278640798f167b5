"""The thresholds: each of them once, two numbers are told apart by what is printed, and the limit for pareto k."""

import ast
import math
import re
from pathlib import Path

import pytest

import pyro_osds
from pyro_osds.stats import thresholds
from pyro_osds.stats.thresholds import apart, pareto_k_threshold

PACKAGE = Path(pyro_osds.__file__).parent


@pytest.mark.parametrize(
    ("value", "bound", "texts"),
    [
        (0.93, 0.7, ("0.93", "0.70")),
        (0.7004, 0.7, ("0.7004", "0.7000")),
        (1.0501, 1.05, ("1.0501", "1.0500")),
        (0.099996, 0.1, ("0.099996", "0.100000")),
        (-0.3, 0.7, ("-0.30", "0.70")),
        (math.inf, 0.7, ("inf", "0.70")),
        (-math.inf, 0.7, ("-inf", "0.70")),
        (math.nan, 0.1, ("nan", "0.10")),
    ],
)
def test_as_many_digits_as_it_takes(value, bound, texts):
    # Two digits where they suffice, the same number of both, and words for what is no number.
    assert apart(value, bound) == texts


@pytest.mark.parametrize("bound", [0.7, 2 / 3, 0.1, 1.05, 20.0, 0.0, 1e-30, 1e20])
def test_different_numbers_never_look_equal(bound):
    # Down to neighbours in double precision, and on the right side of each other.
    near = [bound * (1.0 + side * 10.0**-digits) for digits in range(1, 16) for side in (-1, 1)]
    for value in [*near, math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf), bound + 5e-324, 1e-12]:
        seen, limit = apart(value, bound)
        assert (seen != limit) == (value != bound)
        assert (float(seen) < float(limit)) == (value < bound)


def test_equal_numbers_look_equal():
    # With the digits that were asked for.
    assert apart(0.1, 0.1) == ("0.10", "0.10") and apart(20.0, 20.0, digits=1) == ("20.0", "20.0")
    assert apart(19.99, 20.0, digits=1) == ("19.99", "20.00")


@pytest.mark.parametrize(("num_draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7), (10**6, 0.7)])
def test_threshold_of_the_tail(num_draws, threshold):
    # min(1 - 1 / log10 S, 0.7).
    assert math.isclose(pareto_k_threshold(num_draws), threshold)


def test_threshold_of_hardly_any_draws():
    # No division by zero for one draw, and no tail is good enough there.
    assert pareto_k_threshold(0) == pareto_k_threshold(1) == pareto_k_threshold(2) < -2


def assigned(tree):
    """Constants of a module: their names, without what makes them private, and their lines."""
    for statement in tree.body:
        for target in statement.targets if isinstance(statement, ast.Assign) else []:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and node.id.isupper():
                    yield node.id.lstrip("_"), node.lineno


def limits_of_the_tail(tree):
    """Lines on which pareto k is held against a number that is written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
            numbers = [side.value for side in sides if isinstance(side, ast.Constant)]
            if names & {"k", "pareto_k"} and any(isinstance(number, float) for number in numbers):
                yield node.lineno


def test_the_scan_finds_what_it_looks_for():
    # A second copy under a private name, several at once, and a limit that is written out.
    tree = ast.parse(
        "_MAX_SIGMAS = 3.0\n_A, _MIN_ACCEPTANCE = 1, 0.3\nbad = found.pareto_k > 0.7 or k < 0.5\nx = k > 0"
    )
    assert [name for name, _ in assigned(tree)] == ["MAX_SIGMAS", "A", "MIN_ACCEPTANCE"]
    assert list(limits_of_the_tail(tree)) == [3, 3]


def test_every_threshold_stands_once():
    # No other file has a constant of the same name, or a limit of pareto k of its own. One name has two meanings.
    names = {name for name, _ in assigned(ast.parse(Path(thresholds.__file__).read_text()))} - {"MAX_DIGITS"}
    assert {"MAX_PARETO_K", "GOOD_BASE", "MAX_R_HAT"} <= names
    copies = []
    for path in sorted(PACKAGE.rglob("*.py")):
        # What ends a round of training is a matter of its budget.
        if path == Path(thresholds.__file__) or "train" in path.parts[len(PACKAGE.parts) :]:
            continue
        tree = ast.parse(path.read_text())
        copies += [f"{path.name}:{line} {name}" for name, line in assigned(tree) if name in names]
        copies += [f"{path.name}:{line} pareto k" for line in limits_of_the_tail(tree)]
    assert not [copy for copy in copies if not re.fullmatch(r"valley\.py:\d+ MAX_ROUNDING", copy)]


def test_every_threshold_has_a_reason():
    # A sentence below each of them.
    body = ast.parse(Path(thresholds.__file__).read_text()).body
    for statement, below in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.Assign):
            name = ast.unparse(statement.targets[0])
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            assert name.startswith("_") or len(text) > 20, name
