"""The adversarial cases are many and of every kind, their truths are true, and their runs are judged rightly."""

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp

from pyro_osds import Evidence

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import adversarial
import adversarial_report
from adversarial_cases import CASES, KINDS
from adversarial_cases.integrals import Blobs, Gaussians, rotation
from adversarial_verdict import FAILED, FLAGGED, LONG, NEEDLESS, RIGHT, WRONG, moment_errors, numbers, outcome

# Truths that take a second or more.
SLOW = {"student_df_flat", "separable_logistic_1e4", "degenerate_mixture", "eggbox", "sinusoid_jitter"}
SLOW |= {"two_frequencies", "poisson_random_effects", "product_of_three", "zero_inflated_negbin"}
SLOW |= {"one_sided_cauchy_effect", "beta_binomial_concentration", "student_df_huge", "nearly_equal_weights_8000"}
SLOW |= {name for name, case in CASES.items() if case.kind == "symmetry"}


# ---- the cases ----


def test_cases_are_many_and_of_every_kind():
    kinds = Counter(case.kind for case in CASES.values())

    assert len(CASES) >= 80
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 10
    assert all(name == case.name and case.why for name, case in CASES.items())


def test_truths_are_numbers_or_what_has_no_integral_or_a_flat_prior():
    for name, case in CASES.items():
        if name in SLOW:
            continue
        truth = case.truth()
        assert truth > -math.inf or math.isnan(truth), name
        assert math.isfinite(truth) or case.kind == "propriety", name
        assert math.isnan(truth) == bool(case.posterior()), name


def test_two_cases_cannot_have_one_name():
    from adversarial_cases.base import Kind

    with pytest.raises(ValueError, match="Two cases are called 'eggbox'"):
        Kind("search").density(1, 0.0, "eggbox")(lambda z: z)


@pytest.mark.parametrize("name", ["two_thin_rings", "coin_7_of_10", "loop_spike_1d"])
def test_a_case_makes_a_sampler(name):
    sampler, args = CASES[name].make()

    assert args == ()
    assert hasattr(sampler, "run")


# ---- the truths, by brute force ----


def log_joint(name, **values):
    """The model's own log density at latents that are given."""
    conditioned = poutine.condition(CASES[name].model, {k: torch.as_tensor(v) for k, v in values.items()})

    return poutine.trace(conditioned).get_trace().log_prob_sum().item()


ONE_DIMENSIONAL = {
    "coin_7_of_10": ("p", 0.0, 1.0, ()),
    "poisson_rate": ("r", 0.0, 30.0, ()),
    "rare_events": ("a", -30.0, 0.0, (-14.0,)),
    "half_normal_pressed": ("x", 0.0, 3.0, ()),
    "von_mises_at_pi": ("t", -math.pi, math.pi, (-3.0, 3.0)),
    "von_mises_tripled": ("t", -math.pi, math.pi, ()),
    "uniform_1000": ("m", -1000.0, 1000.0, (1.0, 2.0, 3.0)),
    "loop_scale": ("s", 0.0, 60.0, (0.5, 2.0)),
    "float16_data": ("m", 2.0, 4.0, (3.0,)),
    "log_normal_plateau": ("x", 1e-9, 1.5, (1e-6, 1e-4, 1e-2, 0.2)),
}


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_truth_agrees_with_quadrature(name, float64):
    site, low, high, points = ONE_DIMENSIONAL[name]
    truth = CASES[name].truth()
    found, _ = quad(
        lambda x: math.exp(log_joint(name, **{site: x}) - truth), low, high, points=points or None, limit=200
    )

    assert math.log(found) == pytest.approx(0.0, abs=0.002)


TWO_DIMENSIONAL = {
    "one_sided_cauchy_effect": ({"d": (0.5, 7.5), "l": (-1.2, 0.8)}, 50),
    "nearly_same_groups": ({"a": (-0.5, 2.0), "b": (-0.5, 2.0)}, 40),
}


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_truth_agrees_with_a_grid(name, float64):
    """By the midpoint rule."""
    (first, second), size = TWO_DIMENSIONAL[name][0].items(), TWO_DIMENSIONAL[name][1]
    axes = [low + (np.arange(size) + 0.5) * (high - low) / size for _, (low, high) in (first, second)]
    cell = math.log(axes[0][1] - axes[0][0]) + math.log(axes[1][1] - axes[1][0])
    logs = [log_joint(name, **{first[0]: x, second[0]: y}) for x in axes[0] for y in axes[1]]

    assert logsumexp(logs) + cell == pytest.approx(CASES[name].truth(), abs=0.01)


# Half widths of squares around the origin, and how many rows and columns they are cut into.
REGIONS = {
    "two_thin_rings": ((10.0, 4000),),
    "tilted_scale_0.0001": ((30.0, 600),),
    "spiral_500": ((14.0, 300),),
    "wide_halo_2d": ((8.0, 400), (6000.0, 1500)),
}


@pytest.mark.parametrize("name", REGIONS)
def test_densities_in_two_dimensions(name, float64):
    """On a grid; the halo over its core and its surroundings apart."""
    log_f = []
    regions = REGIONS[name]
    for half_width, size in regions:
        axis = (torch.arange(size) + 0.5) * (2 * half_width / size) - half_width
        rows = [CASES[name].model(torch.stack([torch.full_like(axis, x), axis], 1)) for x in axis]
        values = torch.stack(rows) + 2 * math.log(axis[1] - axis[0])
        inside = (axis.abs()[:, None] < 8.0) & (axis.abs() < 8.0)
        log_f.append(values[~inside] if half_width == 6000.0 else values.flatten())

    assert torch.cat(log_f).logsumexp(0).item() == pytest.approx(CASES[name].truth(), abs=0.005)


def test_mixtures_have_the_density_of_their_components():
    locs, sds, axes = [np.zeros(3), np.ones(3)], [1.0, [0.1, 0.2, 0.3]], [None, rotation(3, 0)]
    z = torch.randn(50, 3, dtype=torch.float64)
    covariances = [torch.eye(3).double(), torch.tensor(axes[1] @ np.diag(np.square(sds[1])) @ axes[1].T)]
    parts = [
        math.log(weight) + torch.distributions.MultivariateNormal(torch.tensor(loc), cov).log_prob(z)
        for weight, loc, cov in zip((0.6, 0.4), locs, covariances, strict=True)
    ]

    assert torch.allclose(Gaussians([0.6, 0.4], locs, sds, axes)(z), torch.logaddexp(*parts))
    isotropic = Gaussians([0.3, 0.7], locs, [0.5, 2.0])(z)
    assert torch.allclose(Blobs([3, 7], np.stack(locs), [0.5, 2.0])(z), isotropic)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_density])
def test_densities_follow_the_dtype_of_their_points(name):
    z = torch.randn(4, CASES[name].dim)
    single, double = CASES[name].model(z), CASES[name].model(z.double())

    assert single.shape == double.shape == (4,)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("flat_rate", {"r": lambda n: torch.distributions.Gamma(11.0, 5.0).sample((n,))}),
        ("flat_logit", {"a": lambda n: torch.distributions.Beta(7.0, 13.0).sample((n,)).logit()}),
    ],
)
def test_posterior_moments_are_those_of_exact_draws(name, draws):
    samples = {site: draw(200_000) for site, draw in draws.items()}
    errors = moment_errors(samples, CASES[name].posterior())

    assert errors["mean_error"] < 0.02
    assert 0.98 < errors["sd_ratio_low"] <= errors["sd_ratio_high"] < 1.02


def test_posterior_moments_of_mean_and_log_sd():
    """Log sd: half of the logarithm of squares over a chi-square number; then the mean is normal."""
    y = CASES["flat_mean_and_log_sd"].model
    with pyro.poutine.trace() as trace, poutine.condition(data={"m": torch.tensor(0.0), "u": torch.tensor(0.0)}):
        y()
    data = trace.trace.nodes["y"]["value"].double()
    squares = (data - data.mean()).square().sum()
    u = 0.5 * (squares / torch.distributions.Chi2(11.0).sample((200_000,)).double()).log()
    m = data.mean() + u.exp() / math.sqrt(12) * torch.randn(200_000)
    errors = moment_errors({"m": m, "u": u}, CASES["flat_mean_and_log_sd"].posterior())

    assert errors["mean_error"] < 0.02
    assert 0.98 < errors["sd_ratio_low"] <= errors["sd_ratio_high"] < 1.02


# ---- the verdict ----

GOOD_DRAWS = {"mean_error": 0.05, "sd_ratio_low": 0.98, "sd_ratio_high": 1.02}
BAD_DRAWS = GOOD_DRAWS | {"mean_error": 0.6}
NO_INTEGRAL = "The posterior density does not fall off far out along site 'x', so it has no integral."
FLAT = "The prior of site 'x' is improper, so the log evidence is undefined. The draws are not affected."
FLAT_AND_BAD = "The prior of site 'x' is improper, so the log evidence is undefined."


def judged(truth, log_evidence, reasons=(), std_error=0.01, **more):
    numbers_of = (log_evidence, std_error, log_evidence - 0.1, 900.0, 0.3, 1000)
    # All but a flat prior speaks against the draws, too.
    evidence = Evidence(*numbers_of, not reasons, tuple(reasons), draws_reliable=set(reasons) <= {FLAT})

    return outcome({"truth": truth} | numbers(evidence) | more)


@pytest.mark.parametrize(
    ("log_evidence", "std_error", "reasons", "expected"),
    [
        (-3.01, 0.001, (), RIGHT),
        (-3.20, 0.1, (), RIGHT),
        (-3.06, 0.01, (), WRONG),
        (-2.5, 0.01, (), WRONG),
        (math.nan, 0.01, (), WRONG),
        (-math.inf, math.inf, (), WRONG),
        (-3.04, 0.5, ("k",), NEEDLESS),
        (-3.06, 0.5, ("k",), FLAGGED),
        (math.nan, math.nan, ("k",), FLAGGED),
        (-math.inf, 0.0, ("k",), FLAGGED),
    ],
)
def test_known_evidence(log_evidence, std_error, reasons, expected):
    assert judged(-3.0, log_evidence, reasons, std_error) == expected


@pytest.mark.parametrize(
    ("log_evidence", "reasons", "expected"),
    [
        (5.0, (), WRONG),
        (math.inf, (), WRONG),
        (5.0, ("k", NO_INTEGRAL), RIGHT),
        (math.nan, (FLAT_AND_BAD, NO_INTEGRAL), RIGHT),
        (5.0, ("pareto k is 0.9",), FLAGGED),
        (math.nan, (FLAT_AND_BAD,), FLAGGED),
        (math.nan, (FLAT,), WRONG),  # vouches for draws of a density that has none
    ],
)
def test_no_integral(log_evidence, reasons, expected):
    assert judged(math.inf, log_evidence, reasons) == expected


@pytest.mark.parametrize(
    ("reasons", "draws", "expected"),
    [
        ((FLAT,), GOOD_DRAWS, RIGHT),
        ((FLAT,), {}, RIGHT),
        ((FLAT,), BAD_DRAWS, WRONG),
        ((FLAT,), GOOD_DRAWS | {"sd_ratio_low": 0.5}, WRONG),
        ((FLAT,), GOOD_DRAWS | {"sd_ratio_high": 2.0}, WRONG),
        ((FLAT_AND_BAD,), GOOD_DRAWS, NEEDLESS),
        ((FLAT_AND_BAD,), BAD_DRAWS, FLAGGED),
        (("pareto k is 0.9",), GOOD_DRAWS, WRONG),
        ((), GOOD_DRAWS, WRONG),
    ],
)
def test_flat_prior(reasons, draws, expected):
    assert judged(math.nan, math.nan, reasons, **draws) == expected


def test_a_verdict_on_draws_of_its_own_counts():
    evidence = Evidence(math.nan, 0.1, math.nan, 900.0, 0.3, 1000, False, (FLAT_AND_BAD,), draws_reliable=True)

    assert outcome({"truth": math.nan} | numbers(evidence) | GOOD_DRAWS) == RIGHT


def test_runs_without_a_result():
    assert outcome({"truth": 0.0, "too_long": True}) == LONG
    assert outcome({"truth": 0.0, "failed": "ValueError: not finite"}) == FAILED
    assert outcome({"truth": 0.0, "failed": "ValueError: no integral"}) == FAILED
    assert outcome({"truth": math.inf, "failed": "ValueError: no integral"}) == RIGHT


# ---- the command, the report ----


def record(case, **found):
    known = {"case": case, "kind": CASES[case].kind, "dim": CASES[case].dim, "seed": 0, "seconds": 3.0, "truth": -3.0}
    measured = {
        "log_evidence": -3.0,
        "std_error": 0.01,
        "pareto_k": 0.2,
        "ess_share": 0.9,
        "reliable": True,
        "reasons": [],
    }

    return known | measured | {"draws_reliable": True} | found


def test_report_counts_and_lists():
    records = [
        record("eggbox"),
        record("needle_5d", log_evidence=-3.7),
        record("gaussian_3d", reliable=False, reasons=["Too few draws."]),
        record("rare_events", too_long=True),
        record("flat_mean", truth=math.nan, reliable=False, reasons=[FLAT], **BAD_DRAWS),
    ]
    text = adversarial_report.report(records)

    assert "5 runs of 5 cases, 1 seed." in text
    assert "| all | 5 | 1 | 0 | 1 | 2 | 1 | 0 | 3 |" in text
    assert "needle_5d (0), search, 5-D: log evidence -3.7000 ± 0.0100, truth -3.0000" in text
    assert "flat_mean (0), propriety, 1-D: a mean off by 0.60 sds" in text
    assert "*Too few draws.*" in text and "**Too long**, 1: rare_events (0)." in text


def test_chosen_cases():
    assert adversarial.chosen(None, ["eggbox"]) == ["eggbox"]
    assert len(adversarial.chosen(None, None)) == len(CASES)
    assert {CASES[name].kind for name in adversarial.chosen(["controls"], None)} == {"controls"}


def test_a_run_that_hangs_is_ended(monkeypatch, tmp_path):
    (tmp_path / "adversarial_run.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(adversarial, "HERE", tmp_path)
    found = adversarial.measure(("coin_7_of_10", 0), "state", limit=0.5)

    assert outcome(found) == LONG
    assert adversarial.row(found).startswith("| coin_7_of_10 | controls | 1 | 0 |")


def test_a_run_that_dies_is_told(monkeypatch, tmp_path):
    (tmp_path / "adversarial_run.py").write_text("raise MemoryError('too large')")
    monkeypatch.setattr(adversarial, "HERE", tmp_path)
    found = adversarial.measure(("coin_7_of_10", 0), "state", limit=60.0)

    assert outcome(found) == FAILED and "too large" in found["failed"]
