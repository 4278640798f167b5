"""The calibration harness catches what it is for, and its exact log evidences are exact."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp

from pyro_osds.model import ModelTarget

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import calibration_cases
import conjugate
import document
import rank_statistics
import runs
from calibration_statistics import bias, coverage, elbos_above, false_assurances, spread, with_z

NUM_DRAWS = 99


def table_of_runs(error_in_se=1.0, shift=0.0, num_cases=40, num_seeds=10, reliable=True, truth_se=0.0):
    """Runs whose errors are normal, so many times the stated standard error, which differs from run to run."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.normal(0, 100, num_cases), num_seeds)
    std_error = np.repeat(10 ** rng.uniform(-3, -1, num_cases), num_seeds) * rng.uniform(0.9, 1.1, len(truth))
    error = std_error * rng.normal(shift, error_in_se, len(truth))

    return with_z(
        pd.DataFrame(
            {
                "case": np.repeat(np.arange(num_cases), num_seeds).astype(str),
                "truth": truth,
                "truth_se": truth_se,
                "std_error": std_error,
                "log_evidence": truth + error,
                "error": error,
                "elbo": truth + error - 0.5,
                "reliable": reliable,
            }
        )
    )


# ---- coverage, bias, spread ----


def test_right_standard_errors_pass():
    table = table_of_runs()
    inside, z, found = coverage(table["z"], 2.0), bias(table["z"]), spread(table)

    assert abs(inside.value - 0.9545) < 4 * inside.std_error
    assert abs(z.value) < 4 * z.std_error
    assert found.low < 1.0 < found.high and found.high - found.low < 0.2
    assert found.degrees == 40 * 9
    assert false_assurances(table_of_runs(error_in_se=0.5)).empty


@pytest.mark.parametrize("error_in_se", [0.5, 2.0])
def test_wrong_standard_errors_are_caught(error_in_se):
    table = table_of_runs(error_in_se)
    inside, found = coverage(table["z"], 2.0), spread(table)

    assert not 0.92 <= inside.value <= 0.99
    assert found.low < error_in_se < found.high
    assert not 0.8 <= found.ratio <= 1.3


def test_a_shift_is_bias_and_no_spread():
    table = table_of_runs(shift=1.0)
    z = bias(table["z"])

    assert abs(z.value - 1.0) < 4 * z.std_error and z.value > 10 * z.std_error
    assert 0.8 <= spread(table).ratio <= 1.3
    assert coverage(table["z"], 2.0).value < 0.92


def test_coverage_counts_nan_as_outside():
    share = coverage(pd.Series([0.0, 3.0, math.nan, -1.0]), 2.0)

    assert (share.count, share.total) == (2, 4)
    assert share.std_error == 0.25


def test_the_truth_has_a_standard_error_too():
    table = table_of_runs(truth_se=1.0)

    assert (table["z"].abs() < table["error"].abs()).all()


def test_the_spread_of_one_case_is_its_sd_over_the_stated_one():
    table = pd.DataFrame({"case": "a", "log_evidence": [1.0, 2.0, 3.0], "std_error": [0.5, 0.5, 0.5]})
    found = spread(table)

    assert found.ratio == pytest.approx(2.0)
    # With two degrees of freedom, chi-square is exponential: its quantiles are logarithms.
    assert found.high == pytest.approx(2.0 * math.sqrt(2 / (-2 * math.log(0.975))))
    assert math.isnan(spread(table.iloc[:1]).ratio)


def test_constant_weights_are_told_apart():
    table = table_of_runs().assign(std_error=[1e-6] + [0.01] * 399)

    assert with_z(table)["is_rounding"].sum() == 1


# ---- false assurances, bounds ----


@pytest.mark.parametrize(
    ("error", "std_error", "reliable", "is_false"),
    [
        (0.06, 0.01, True, True),
        (-0.7, 0.1, True, True),
        (math.nan, 0.1, True, True),
        (0.06, 0.01, False, False),  # it says so itself
        (0.04, 0.001, True, False),  # too small to matter
        (0.7, 0.3, True, False),  # within its standard error
    ],
)
def test_a_false_assurance_is_wrong_noticeable_and_called_reliable(error, std_error, reliable, is_false):
    run = {"case": "a", "error": error, "std_error": std_error, "truth": 0.0, "truth_se": 0.0, "reliable": reliable}

    assert len(false_assurances(with_z(pd.DataFrame([run])))) == is_false


def test_a_bound_above_the_truth_is_found_and_rounding_is_not():
    table = table_of_runs()
    assert elbos_above(table).empty

    table.loc[3, "elbo"] = table.loc[3, "truth"] + 4 * table.loc[3, "std_error"]
    assert list(elbos_above(table).index) == [3]

    rounded = pd.DataFrame({"truth": [-585.0], "truth_se": 0.0, "std_error": 0.0, "elbo": [-585.0 + 1e-4]})
    assert elbos_above(rounded).empty


# ---- ranks ----


def simulated_ranks(scale=1.0, shift=0.0, num_fits=200):
    """Ranks of standard normal truths among draws of another width and place."""
    rng = np.random.default_rng(0)
    truths, draws = rng.normal(size=num_fits), rng.normal(shift, scale, (num_fits, NUM_DRAWS))

    return np.array([rank_statistics.rank(row, truth) for row, truth in zip(draws, truths, strict=True)])


def test_ranks_count_what_lies_below():
    assert rank_statistics.rank(np.array([1.0, 2.0, 3.0]), 2.5) == 2
    assert rank_statistics.thin(np.arange(1000), NUM_DRAWS)[[0, -1]].tolist() == [0, 999]


def test_an_interval_holds_its_middle_only():
    draws = np.arange(101.0)

    assert rank_statistics.is_central(draws, 26.0, 0.5) and not rank_statistics.is_central(draws, 24.0, 0.5)


def test_true_posteriors_pass():
    assert rank_statistics.uniformity(simulated_ranks(), NUM_DRAWS) > 0.05


@pytest.mark.parametrize("wrong", [{"scale": 0.7}, {"scale": 1.4}, {"shift": 0.35}])
def test_wrong_posteriors_are_caught(wrong):
    assert rank_statistics.uniformity(simulated_ranks(**wrong), NUM_DRAWS) < 0.01


def test_the_band_holds_whole_uniform_curves():
    low, high = rank_statistics.band(200, NUM_DRAWS)
    ranks = np.random.default_rng(1).integers(0, NUM_DRAWS + 1, (500, 200))
    curves = np.array([rank_statistics.ecdf(row, NUM_DRAWS) for row in ranks])
    share = ((curves >= low) & (curves <= high)).all(1).mean()

    assert abs(share - 0.95) < 0.03


def test_the_band_and_the_p_value_agree():
    low, high = rank_statistics.band(200, NUM_DRAWS)
    for shift in (0.0, 0.15, 0.2, 0.25, 0.3):
        ranks = simulated_ranks(shift=shift)
        curve = rank_statistics.ecdf(ranks, NUM_DRAWS)
        inside = bool(((curve >= low) & (curve <= high)).all())
        assert inside == (rank_statistics.uniformity(ranks, NUM_DRAWS) > 0.05), shift


# ---- exact log evidences ----


def log_evidence_by_quadrature(target, half_width=25.0, step=0.3):
    """Of a density in up to three dimensions, on a grid around its mode.

    The trapezoidal rule converges exponentially for smooth densities that fall to zero.
    """
    with torch.enable_grad():
        mode = torch.zeros(target.dim, requires_grad=True)
        optimiser = torch.optim.LBFGS([mode], max_iter=200, line_search_fn="strong_wolfe")

        def loss():
            optimiser.zero_grad()
            value = -target.log_prob(mode[None])[0]
            value.backward()
            return value

        optimiser.step(loss)
        hessian = torch.autograd.functional.hessian(lambda z: -target.log_prob(z[None])[0], mode.detach())
    scales = torch.linalg.inv(hessian).diagonal().sqrt()
    if target.dim == 3:
        half_width, step = 11.0, 0.4
    axis = torch.arange(-half_width, half_width + step / 2, step)
    offsets = torch.stack(torch.meshgrid(*[axis] * target.dim, indexing="ij"), -1).flatten(0, -2)
    with torch.no_grad():
        parts = [target.log_prob(mode + chunk * scales) for chunk in offsets.split(50_000)]
    log_prob = torch.cat(parts).double().numpy()

    return logsumexp(log_prob) + target.dim * math.log(step) + scales.double().log().sum().item()


@pytest.mark.parametrize("family", [name for name in conjugate.FAMILIES if name != "Pareto-uniform"])
def test_conjugate_evidence_agrees_with_quadrature(family):
    """The model's own density, integrated, against the closed form."""
    make, _ = conjugate.FAMILIES[family]
    models = (make(np.random.default_rng(seed), 1) for seed in range(100))
    targets = ((ModelTarget(model, (), {}), log_evidence) for model, log_evidence in models)
    target, log_evidence = next(pair for pair in targets if pair[0].dim <= 3)

    assert log_evidence_by_quadrature(target) == pytest.approx(log_evidence, abs=1e-3)


def test_pareto_evidence_agrees_with_quadrature():
    """The density jumps at the largest observation, so the integral starts there."""
    model, log_evidence = conjugate.pareto_uniform(np.random.default_rng(3), 1)
    target = ModelTarget(model, (), {})
    z = torch.arange(-30.0, 30.0, 1e-3)[:, None]
    log_prob = target.log_prob(z).double().detach().numpy()

    assert logsumexp(log_prob) + math.log(1e-3) == pytest.approx(log_evidence, abs=2e-3)


def test_every_seed_makes_another_model_and_always_the_same():
    for family in conjugate.FAMILIES:
        evidences = [conjugate.conjugate_model(family, seed)[1] for seed in (0, 1, 0)]
        assert evidences[0] == evidences[2] != evidences[1], family


@pytest.mark.parametrize("name", ["normal mean", "coin, tosses", "coin, count"])
def test_textbook_evidence_agrees_with_quadrature(name):
    case = calibration_cases.all_problems()[name].case

    assert log_evidence_by_quadrature(ModelTarget(case.model, (), {})) == pytest.approx(case.log_evidence, abs=1e-4)


@pytest.mark.parametrize("name", ["two means, apart", "two means, close"])
def test_mixture_evidence_counts_both_orders(name):
    """The model's own density on a grid that holds both orders of the components."""
    entry = calibration_cases.MIXTURES[name]
    target = ModelTarget(calibration_cases.mixture(name), (), {})
    axis = torch.arange(-12.0, 12.0, 0.08)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        log_prob = torch.cat([target.log_prob(chunk) for chunk in grid.split(20_000)]).double().numpy()

    assert logsumexp(log_prob) + 2 * math.log(0.08) == pytest.approx(entry["log_evidence"], abs=1e-3)


# ---- the file of runs, the document ----


def test_finished_runs_are_not_repeated(tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = [{"case": "a", "seed": 0}, {"case": "b", "seed": 0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"case": "b", "se')

    def fail(*task):
        raise AssertionError(f"{task} ran again")

    found = runs.run_all(fail, [("b", 0), ("a", 0)], path, lambda record: (record["case"], record["seed"]))

    assert found == lines


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- numbers: begin -->\nold\n<!-- numbers: end -->\nafter\n")

    document.write_block("numbers", "new", path)
    assert path.read_text() == "before\n<!-- numbers: begin -->\nnew\n<!-- numbers: end -->\nafter\n"
    with pytest.raises(ValueError, match="lacks the markers"):
        document.write_block("others", "new", path)


def test_results_are_kept_in_the_place_of_earlier_ones(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    first, other = {"case": "a", "seed": 0, "error": 1.0}, {"case": "b", "seed": 0, "error": 2.0}
    for record in (first, other, {**first, "seed": 1}, {**first, "error": 3.0}):
        runs.keep(record, path, "case", "seed", "step")  # those without a step are told apart by the others
    assert [(each["case"], each["seed"], each["error"]) for each in runs.read_records(path)] == [
        ("a", 0, 3.0),
        ("b", 0, 2.0),
        ("a", 1, 1.0),
    ]
    # Names that the order has not come last.
    assert [(each["case"], each["seed"]) for each in runs.ordered(path, "case", ["b", "a", "b"])] == [
        ("b", 0),
        ("a", 0),
        ("a", 1),
    ]
    with pytest.raises(SystemExit, match=r"no results in .*none\.jsonl: run .* without --report first"):
        runs.ordered(tmp_path / "none.jsonl", "case", ["b"])  # the page keeps the table that it has


def test_the_spread_of_measurements_is_their_median_and_ends():
    assert document.spread([1.0, 4.0, 2.5]) == "2.50 (1.00-4.00)" and document.spread([3.0, 1.0], 0) == "2 (1-3)"
