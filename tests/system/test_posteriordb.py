"""The models of posteriordb are those of the Stan programs; the comparison with reference draws finds what is wrong."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import document
import posteriordb
import posteriordb_report
from posteriordb_models import FOLDER, POSTERIORS, REFERENCE, reference

# Log densities at the reference means, and with all but simplexes moved up by one sd; from other translations of the
# Stan programs in double precision, which agree with these up to no more than a constant. Densities of half
# distributions are normalised, flat ones are 1.
FROZEN = {
    "arK-arK": (76.198, -76.063),
    "bball_drive_event_1-hmm_drive_1": (-6922.019, -6923.902),
    "earnings-earn_height": (-13425.700, -14025.139),
    "earnings-log10earn_height": (-561.424, -1144.909),
    "earnings-logearn_height": (-1555.590, -2148.003),
    "earnings-logearn_height_male": (-1538.734, -2687.240),
    "earnings-logearn_interaction": (-1538.656, -8611.721),
    "earnings-logearn_interaction_z": (-1538.655, -1557.191),
    "eight_schools-eight_schools_centered": (-52.793, -59.259),
    "eight_schools-eight_schools_noncentered": (-42.541, -43.923),
    "gp_pois_regr-gp_regr": (-29.657, -31.776),
    "hmm_example-hmm_example": (-166.891, -167.895),
    "kidiq-kidscore_interaction": (-1872.888, -3790.268),
    "kidiq-kidscore_momhs": (-1917.286, -1925.964),
    "kidiq-kidscore_momhsiq": (-1877.351, -1994.186),
    "kidiq-kidscore_momiq": (-1880.977, -1967.336),
    "kidiq_with_mom_work-kidscore_interaction_c": (-1867.564, -1870.674),
    "kidiq_with_mom_work-kidscore_interaction_c2": (-1867.567, -1875.070),
    "kidiq_with_mom_work-kidscore_interaction_z": (-1867.567, -1870.685),
    "kidiq_with_mom_work-kidscore_mom_work": (-1918.946, -1931.557),
    "mesquite-logmesquite_logva": (-13.452, -103.066),
    "mesquite-logmesquite_logvas": (-10.982, -276.058),
    "mesquite-logmesquite_logvash": (-11.322, -246.341),
    "mesquite-logmesquite_logvolume": (-23.808, -27.292),
    "mesquite-mesquite": (-319.387, -729.782),
    "nes1972-nes": (-2722.848, -3068.315),
    "nes1976-nes": (-2361.485, -2727.054),
    "nes1980-nes": (-1411.931, -1767.224),
    "nes1984-nes": (-2510.841, -2867.193),
    "nes1988-nes": (-2265.913, -2619.095),
    "nes1992-nes": (-2695.733, -3039.429),
    "nes1996-nes": (-2015.419, -2415.347),
    "sblri-blr": (-153.159, -156.648),
}


def point(name, sds):
    """Values of the sites at the reference means, moved by so many sds."""
    sites = {}
    for parameter, numbers in reference(name).items():
        site = parameter.partition("[")[0]
        is_simplex = site in ("theta1", "theta2")
        sites.setdefault(site, []).append(numbers["mean"] + (0.0 if is_simplex else sds * numbers["sd"]))
    values = {
        site: torch.tensor(v) if f"{site}[1]" in reference(name) else torch.tensor(v[0]) for site, v in sites.items()
    }
    if name.endswith("noncentered"):
        values["eta"] = (values.pop("theta") - values["mu"]) / values["tau"]

    return values


def log_density(name, values):
    posterior = POSTERIORS[name]()
    trace = poutine.trace(poutine.condition(posterior.model, data=values)).get_trace(*posterior.args)

    return trace.log_prob_sum().item()


@pytest.mark.parametrize("name", POSTERIORS)
def test_log_density_is_that_of_the_stan_program(name):
    found = [log_density(name, point(name, sds)) for sds in (0.0, 1.0)]
    # Single precision, as in a fit: sums over a thousand rows round at the seventh digit.
    assert found == pytest.approx(FROZEN[name], rel=5e-6, abs=2e-3)


@pytest.mark.parametrize("name", POSTERIORS)
def test_reference_is_at_the_top_of_the_density(name):
    # Moments of another posterior would lie beside the mode.
    at_mean, *beside = (log_density(name, point(name, sds)) for sds in (0.0, -1.0, 1.0))
    assert at_mean > max(beside)


def test_every_posterior_has_a_summary_a_source_and_a_licence():
    assert set(REFERENCE["posteriors"]) == set(POSTERIORS) == set(FROZEN)
    assert "posteriordb, commit" in REFERENCE["source"]
    assert "BSD 3-Clause" in (FOLDER / "LICENSE").read_text()
    for entry in REFERENCE["posteriors"].values():
        assert entry["reference_posterior"] in POSTERIORS
        for numbers in entry["parameters"].values():
            quantiles = [numbers[key] for key in ("q05", "q25", "q50", "q75", "q95") if key in numbers]
            assert len(quantiles) >= 3
            assert quantiles == sorted(quantiles)
            assert quantiles[0] < numbers["mean"] < quantiles[-1]


def test_no_reference_tail_is_too_heavy_to_compare_its_sd():
    # At a kurtosis of 15, 4,000 draws know an sd to three percent.
    parameters = [numbers for name in POSTERIORS for numbers in reference(name).values()]
    assert max(numbers.get("kurtosis", 0.0) for numbers in parameters) < 15


# ---- the comparison ----

NORMAL = {"mean": 10.0, "sd": 2.0, "q05": 10.0 - 2 * 1.644854, "q50": 10.0, "q95": 10.0 + 2 * 1.644854}


def normal_draws(shift=0.0, scale=1.0):
    """Draws at evenly spaced quantiles: no Monte Carlo error."""
    levels = torch.arange(0.5, 20_000) / 20_000
    z = torch.distributions.Normal(0.0, 1.0).icdf(levels.double()).numpy()

    return 10.0 + 2.0 * (shift + scale * z)


def test_right_draws_have_no_error():
    found = posteriordb.compare(normal_draws(), NORMAL)
    assert found["mean_error"] == pytest.approx(0.0, abs=1e-3)
    assert found["sd_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert found["quantile_error"] == pytest.approx(0.0, abs=1e-3)


def test_a_shift_is_found_with_its_sign():
    found = posteriordb.compare(normal_draws(shift=-0.3), NORMAL)
    assert found["mean_error"] == pytest.approx(-0.3, abs=1e-3)
    assert found["sd_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert found["quantile_error"] == pytest.approx(-0.3, abs=1e-3)


def test_a_wrong_width_is_found_by_sd_and_quantiles():
    found = posteriordb.compare(normal_draws(scale=0.8), NORMAL)
    assert found["mean_error"] == pytest.approx(0.0, abs=1e-3)
    assert found["sd_ratio"] == pytest.approx(0.8, abs=1e-3)
    assert abs(found["quantile_error"]) == pytest.approx(0.2 * 1.644854, abs=1e-3)


def test_a_heavy_tail_is_seen_by_the_sd_and_not_by_the_quantiles():
    draws = normal_draws()
    draws[-1] += 1000.0
    found = posteriordb.compare(draws, NORMAL)
    assert found["sd_ratio"] > 2
    assert found["quantile_error"] == pytest.approx(0.0, abs=1e-3)


def test_parameters_are_numbered_from_one():
    values = {"beta": np.stack([normal_draws(), normal_draws(shift=1.0)], 1), "sigma": normal_draws(shift=2.0)}
    found = posteriordb.compare_all(values, {"beta[1]": NORMAL, "beta[2]": NORMAL, "sigma": NORMAL})
    assert [each["mean_error"] for each in found.values()] == pytest.approx([0.0, 1.0, 2.0], abs=1e-3)


# ---- the table ----


def record(mean_error=0.0, sd_ratio=1.0, **others):
    comparison = {"mean_error": mean_error, "sd_ratio": sd_ratio, "quantile_error": -0.05}
    return {
        "posterior": "sblri-blr",
        "seed": 0,
        "dim": 6,
        "num_rows": 100,
        "seconds": 9.7,
        "parameters": {"sigma": comparison},
        "log_evidence": -184.77,
        "reliable": True,
        "draws_reliable": True,
        "reasons": [],
        "revision": "0123456789",
    } | others


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({}, "-"),
        ({"mean_error": -0.11}, "called reliable, wrong"),
        ({"sd_ratio": 0.89}, "called reliable, wrong"),
        ({"sd_ratio": 1.11}, "called reliable, wrong"),
        ({"sd_ratio": math.nan}, "called reliable, wrong"),
        ({"sd_ratio": 1.11, "draws_reliable": False}, "-"),
        ({"reasons": ["It does not fall off, so it has no integral."], "draws_reliable": False}, "no integral"),
    ],
)
def test_flags(wrong, expected):
    assert posteriordb_report.flags(record(**wrong)) == expected


def test_evidence_verdicts():
    assert posteriordb_report.evidence_verdict(record()) == "reliable"
    assert posteriordb_report.evidence_verdict(record(reliable=False)) == "not reliable"
    assert posteriordb_report.evidence_verdict(record(reliable=False, log_evidence=math.nan)) == "undefined"


def test_rows_show_the_worst_seed():
    rows = posteriordb_report.table_of([record(0.02), record(-0.12, 1.05, seed=1, reliable=False)]).splitlines()
    assert rows[2:] == [
        "| sblri-blr | 6 | 100 | 10 | 0.120 | 1.000 .. 1.050 | 0.050 | reliable | 1 reliable; 1 not reliable "
        "| 1 -; 1 called reliable, wrong |"
    ]


def test_fits_that_did_not_end_are_rows_and_counted():
    unended = [{"posterior": "arK-arK", "limit": 400.0}, {"posterior": "nes1972-nes", "failed": "ValueError: no"}]
    text = posteriordb_report.table_of(unended)
    assert "too long (400 s)" in text and "| ValueError |" in text
    assert posteriordb_report.summary([record(), record(0.2), *unended]).startswith(
        "4 fits of 3 posteriors: draws of 2 called reliable, of which 1 right;"
    )
    assert posteriordb_report.summary(unended).endswith("1 too long, 1 failed.")


def test_the_report_goes_between_the_markers(tmp_path, monkeypatch):
    (tmp_path / "accuracy.md").write_text((document.DOCS / "accuracy.md").read_text())
    monkeypatch.setattr(posteriordb_report, "DOCS", tmp_path)
    posteriordb_report.write_report([record()])
    text = (tmp_path / "accuracy.md").read_text()
    assert text.count("| sblri-blr |") == 1
    assert text.index("posteriordb: begin") < text.index("| sblri-blr |") < text.index("posteriordb: end")


# ---- the runs ----


@pytest.fixture
def runs_so_far(tmp_path, monkeypatch):
    """A file of runs, and the tasks that are run beyond it by a fit that ends at once."""
    ran = []

    def run_apart(name, seed, limit):
        ran.append((name, seed))
        return {key: value for key, value in record(posterior=name, seed=seed).items() if key != "revision"}

    monkeypatch.setattr(posteriordb, "OUT", tmp_path / "results" / "posteriordb.jsonl")
    monkeypatch.setattr(posteriordb, "run_apart", run_apart)
    monkeypatch.setattr(posteriordb, "revision", lambda: "a")

    return ran


def test_fits_of_this_revision_are_not_run_again(runs_so_far, monkeypatch):
    tasks = [("sblri-blr", 0), ("sblri-blr", 1)]
    posteriordb.run_missing(tasks[:1], 400.0, math.inf)
    assert len(posteriordb.run_missing(tasks, 400.0, math.inf)) == 2
    assert runs_so_far == tasks
    monkeypatch.setattr(posteriordb, "revision", lambda: "b")
    posteriordb.run_missing(tasks, 400.0, math.inf)
    assert runs_so_far == 2 * tasks


def test_a_fit_ended_early_is_run_again_under_a_longer_limit(runs_so_far):
    posteriordb.OUT.parent.mkdir()
    posteriordb.OUT.write_text(json.dumps({"posterior": "sblri-blr", "seed": 0, "limit": 10.0, "revision": "a"}) + "\n")
    posteriordb.run_missing([("sblri-blr", 0)], 10.0, math.inf)
    assert not runs_so_far
    assert "parameters" in posteriordb.run_missing([("sblri-blr", 0)], 400.0, math.inf)[0]


def test_no_fit_starts_after_the_last_minute(runs_so_far, capsys):
    assert posteriordb.run_missing([("sblri-blr", 0)], 400.0, -1.0) == []
    assert "before sblri-blr" in capsys.readouterr().out


def test_cases_are_chosen_by_parts_of_names():
    assert posteriordb.chosen(None) == list(POSTERIORS)
    assert posteriordb.chosen(["nes19"]) == [f"nes{year}-nes" for year in range(1972, 2000, 4)]
    with pytest.raises(SystemExit, match="No posterior is called nothing"):
        posteriordb.chosen(["nothing"])
