"""The thresholds: two numbers are told apart by what is printed, and the limit for pareto k."""

import math

import pytest

from pyro_osds.stats.thresholds import apart, pareto_k_threshold


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
