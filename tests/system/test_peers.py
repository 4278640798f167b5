"""Posteriors that samplers are compared on are the same in all their forms; ratios in the tables are what they say."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import peer_models
import peer_report
import peers
from peer_methods import METHODS
from peer_outcome import Clock, Outcome, Seconds
from peer_pymc import PYMC

CUBE_SITES = {
    "eight schools": {"mu": slice(0, 1), "tau": slice(1, 2), "eta": slice(2, 10)},
    "gp_regr": {"rho": slice(0, 1), "alpha": slice(1, 2), "sigma": slice(2, 3)},
    "arK": {"alpha": slice(0, 1), "beta": slice(1, 6), "sigma": slice(6, 7)},
    "German credit": {"w": slice(0, 25)},
    "breast cancer": {"w": slice(0, 31)},
    "sonar": {"w": slice(0, 61)},
}


def pyro_log_density(model, values):
    trace = poutine.trace(poutine.condition(model.pyro, values)).get_trace()

    return float(trace.log_prob_sum())


@pytest.mark.parametrize("name", CUBE_SITES)
def test_prior_and_likelihood_of_the_unit_cube_are_those_of_the_pyro_model(name):
    # The prior's density is one over the derivative of the quantiles.
    model = peer_models.model_of(name)
    u = 0.35 + 0.3 * np.random.default_rng(0).random((2, model.num_cube))
    theta = model.cube(u)
    slopes = (model.cube(u + 1e-5) - model.cube(u - 1e-5)) / 2e-5
    ours = model.log_likelihood(theta) - np.log(slopes).sum(-1)
    for row, log_density in zip(theta, ours, strict=True):
        values = {site: torch.tensor(row[part], dtype=torch.float32) for site, part in CUBE_SITES[name].items()}
        values = {site: value[0] if len(value) == 1 else value for site, value in values.items()}
        # Pyro's is in single precision.
        assert pyro_log_density(model, values) == pytest.approx(log_density, rel=1e-5, abs=2e-3)


@pytest.mark.parametrize("name", peer_models.names())
def test_models_of_numpyro_and_pymc_have_the_density_of_the_pyro_model(name):
    pymc = pytest.importorskip("pymc", reason="needs the peers")
    infer = pytest.importorskip("numpyro.infer.util", reason="needs the peers")
    model = peer_models.model_of(name)
    with pymc.Model() as pymc_model:
        PYMC[name]()
    log_density = pymc_model.compile_logp(jacobian=False)
    generator = np.random.default_rng(0)
    for _ in range(2):
        point = {
            site: np.asarray(value, dtype=float) + 0.3 * generator.standard_normal(np.shape(value))
            for site, value in pymc_model.initial_point().items()
        }
        values = {}
        for site in pymc_model.free_RVs:
            z, transform = pymc_model.rvs_to_values[site], pymc_model.rvs_to_transforms[site]
            backward = z if transform is None else transform.backward(z, *site.owner.inputs)
            values[site.name] = backward.eval({z: point[z.name]})
        as_tensors = {site: torch.tensor(value, dtype=torch.float32) for site, value in values.items()}
        truth = float(model.pyro(as_tensors["z"][None])[0]) if model.dim else pyro_log_density(model, as_tensors)
        assert float(log_density(point)) == pytest.approx(truth, rel=1e-5, abs=2e-3)
        assert float(infer.log_density(model.numpyro(), (), {}, values)[0]) == pytest.approx(truth, rel=1e-5, abs=2e-3)


def test_the_evidence_of_baseball_is_that_of_a_sum_over_a_grid():
    at_bats, hits = peer_models.baseball_data()
    log_odds = np.linspace(-9.0, 6.0, 3001)
    likelihood = stats.binom.pmf(hits[:, None], at_bats[:, None], 1.0 / (1.0 + np.exp(-log_odds)))
    loc, scale = np.linspace(-2.5, 0.5, 121), np.geomspace(0.02, 6.0, 240)
    total = 0.0
    for each in scale:
        density = stats.norm.pdf(log_odds, loc[:, None], each) * (log_odds[1] - log_odds[0])
        players = np.log(density @ likelihood.T).sum(-1) + stats.norm.logpdf(loc, -1.0, 1.0)
        # A grid of the scale's logarithm.
        total += np.exp(players + 49.0).sum() * stats.halfcauchy.pdf(each) * each
    log_evidence = math.log(total * (loc[1] - loc[0]) * math.log(scale[1] / scale[0])) - 49.0
    # What the grid leaves out below 0.02, where all players have one chance: 1.3 % of the prior's share.
    pooled = np.array([stats.binom.pmf(hits, at_bats, 1.0 / (1.0 + np.exp(-x))).prod() for x in log_odds])
    pooled = (pooled * stats.norm.pdf(log_odds, -1.0, 1.0)).sum() * (log_odds[1] - log_odds[0])
    log_evidence = np.logaddexp(log_evidence, math.log(pooled * stats.halfcauchy.cdf(0.02)))
    assert peer_models.model_of("baseball").log_evidence == pytest.approx(log_evidence, abs=0.002)


def test_every_method_has_its_place():
    assert set(PYMC) == set(peer_models.names())
    assert set(peers.NEEDS) <= set(METHODS) and set(METHODS) >= peers.METHODS_THAT_KEEP
    assert {*peer_report._NUTS, *peer_report._ALONE} <= set(METHODS)
    assert set(peer_report.EVIDENCE_METHODS) == {"OSDS", *peer_report._ALONE}
    assert set(peers.NEEDS.values()) | {"pyro"} == set(peers.PACKAGES)
    peers_extra = (Path(__file__).parents[2] / "pyproject.toml").read_text().split("peers = [")[1].split("]")[0]
    wanted = {package for packages in peers.PACKAGES.values() for package in packages}
    # What these bring themselves.
    assert {f'"{package}"' for package in wanted - {"jax", "pytensor", "torch", "pyro-ppl"}} <= set(
        peers_extra.split(", ")
    )


def test_the_clock_has_seconds_of_the_processor_beside_those_of_the_wall():
    clock = Clock()
    time.sleep(0.2)
    rested = clock.read()
    assert rested.wall >= 0.2 and rested.cpu < 0.1
    while clock.read().cpu < rested.cpu + 0.1:
        pass
    # What a compiler that was started took is counted, too.
    before = clock.read()
    subprocess.run([sys.executable, "-c", "sum(i for i in range(3_000_000))"], check=True)
    assert clock.read().cpu > before.cpu + 0.02 and clock.read().wall >= clock.read().cpu - 0.05


def test_a_run_that_is_ended_keeps_what_it_took(monkeypatch, tmp_path):
    ended = peers.run_apart("OSDS", "eight schools", 0, 0.3)
    assert ended["limit"] == 0.3 and 0.0 <= ended["cpu_limit"] <= 5.0 and "seconds" not in ended
    slow = tmp_path / "slow.py"
    slow.write_text("import time\nprint('{\"seconds\": 0.5}', flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(peers, "__file__", str(slow))
    ended = peers.run_apart("OSDS", "eight schools", 0, 2.0)
    assert ended["seconds"] == 0.5 and ended["limit"] == 2.0
    monkeypatch.setattr(peers, "__file__", "no_such_file.py")
    assert "no_such_file" in peers.run_apart("OSDS", "eight schools", 0, 60.0)["failed"]


def test_a_method_that_keeps_compiled_functions_runs_twice_in_one_folder(monkeypatch):
    folders, said = [], []

    def run(method, name, seed, limit, folder, *options):
        folders.append(folder)
        said.extend(options)
        return {"method": method, "seconds": 3.0 - len(folders), "cpu_seconds": 1.0, "compiling": 0.5, "effective": 9.0}

    monkeypatch.setattr(peers, "_run", run)
    done = peers.run_apart("nutpie", "arK", 0, 60.0)
    assert done["seconds"] == 2.0 and done["again"] == {"seconds": 1.0, "cpu_seconds": 1.0, "compiling": 0.5}
    assert len(set(folders)) == 1 and not Path(folders[0]).exists() and said == ["--first"]
    assert "again" not in peers.run_apart("OSDS", "arK", 0, 60.0)


def test_a_run_is_measured_by_both_clocks(monkeypatch):
    draws = {"z": np.random.default_rng(0).standard_normal((4, 100, 2))}
    outcome = Outcome(Seconds(4.0, 2.0), draws, log_evidence=0.5, further=lambda: (100.0, Seconds(2.0, 1.0)))
    monkeypatch.setitem(peers.METHODS, "OSDS", lambda model, seed: outcome)
    first, measured = peers.measure("OSDS", "four Gaussians", 0)
    assert {name for name in measured if str(measured[name]) != str(first[name])} == {"further", "further_cpu"}
    assert (measured["seconds"], measured["cpu_seconds"]) == (4.0, 2.0)
    assert (measured["further"], measured["further_cpu"]) == (50.0, 100.0)
    assert measured["error"] == 0.5 and measured["moments"]["z"]["mean"] == pytest.approx(draws["z"].mean((0, 1)))
    assert set(measured["packages"]) == {"torch", "pyro-ppl"}
    (alone,) = peers.measure("OSDS", "four Gaussians", 0, draws_more=False)
    assert math.isnan(alone["further"])
    monkeypatch.setitem(peers.METHODS, "OSDS", lambda model, seed: Outcome(Seconds(4.0, 2.0)))
    assert [math.isnan(each["further"]) for each in peers.measure("OSDS", "four Gaussians", 0)] == [True]


def record(method, cpu_seconds, model="eight schools", **more):
    # The clock on the wall, which other jobs on the machine make go, is in no table.
    other = {"seconds": 7.7 * cpu_seconds, "effective": 2000.0, "further": 13.0, "further_cpu": 100.0}

    return {"method": method, "model": model, "cpu_seconds": cpu_seconds, **other, **more}


def test_seconds_to_enough_draws_add_what_is_missing():
    assert peer_report.seconds_to_enough(record("nutpie", 10.0)) == (10.0 + 2000.0 / 100.0, False)
    assert peer_report.seconds_to_enough(record("nutpie", 10.0, effective=5000.0)) == (10.0, False)
    ended = {"method": "Pyro NUTS", "model": "arK", "limit": 240.0, "cpu_limit": 200.0}
    assert peer_report.seconds_to_enough(ended) == (200.0, True)
    assert math.isnan(peer_report.seconds_to_enough(record("Pyro normal guide", 10.0, effective=None))[0])
    # What no sampler draws on for: a guide.
    assert math.isnan(peer_report.seconds_to_enough(record("Pyro normal guide", 10.0, further_cpu=math.nan))[0])


def test_a_run_that_is_ended_after_its_first_result_has_that():
    # Else a process that had all draws after 10 seconds, and was ended while it drew more, would count as 200.
    ended = {"limit": 240.0, "cpu_limit": 200.0, "further": math.nan, "further_cpu": math.nan}
    assert peer_report.seconds_to_enough(record("nutpie", 10.0, effective=4500.0, **ended)) == (10.0, False)
    assert peer_report.seconds_to_enough(record("nutpie", 10.0, effective=3500.0, **ended)) == (10.0, True)
    assert peer_report._seconds([record("nutpie", 10.0, **ended)]) == "10.0"


def test_the_typical_run_is_the_median_of_one_two_or_three():
    runs = [record("OSDS", seconds, effective=4000.0) for seconds in (9.0, 1.0, 5.0)]
    assert peer_report._typical(runs[:1]) == (9.0, False)
    assert peer_report._typical(runs[:2]) == (5.0, False)
    assert peer_report._typical(runs) == (5.0, False)
    assert peer_report._typical([runs[0], {"limit": 9.0, "cpu_limit": 11.0}]) == (10.0, True)
    assert math.isnan(peer_report._typical([])[0])


def test_ratios_have_their_geometric_mean_and_say_what_is_only_a_bound():
    def enough(method, seconds, **more):
        return record(method, seconds, effective=4000.0, **more)

    runs = {
        ("arK", "OSDS"): [enough("OSDS", 5.0)],
        ("sonar", "OSDS"): [enough("OSDS", 10.0), enough("OSDS", 8.0), enough("OSDS", 90.0)],
        ("four Gaussians", "OSDS"): [enough("OSDS", 1.0)],
        ("arK", "nutpie"): [enough("nutpie", 10.0, again={"seconds": 99.0, "cpu_seconds": 5.0, "compiling": 4.0})],
        ("sonar", "nutpie"): [enough("nutpie", 80.0, again={"seconds": 99.0, "cpu_seconds": 20.0})],
        # Left out of the mean.
        ("four Gaussians", "nutpie"): [enough("nutpie", 1e6)],
        ("arK", "Pyro NUTS"): [{"method": "Pyro NUTS", "limit": 300.0, "cpu_limit": 240.0}],
    }
    written = peer_report._ratios(runs, ["arK", "sonar", "four Gaussians"]).splitlines()
    assert [cell.strip() for cell in written[0].split("|")[2:-1]] == ["Pyro NUTS", "nutpie", "nutpie, compiled"]
    assert written[2] == "| arK | > 48.0 | 2.0 | 1.0 |"
    assert written[3] == "| sonar |  | 8.0 | 2.0 |"
    assert written[4] == "| four Gaussians |  | 1000000.0 |  |"
    assert written[5] == "| geometric mean | > 48.0 (1) | 4.0 (2) | 1.4 (2) |"


def test_reference_means_are_by_site_and_exact_for_the_four_gaussians():
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(peer_report.CIRCLE_WEIGHTS, 200_000, replacement=True, generator=generator)
    z = peer_report.CIRCLE[which] + 0.5 * torch.randn(200_000, 2, generator=generator)
    mean, sd = peer_report.reference("four Gaussians")["z"]
    assert np.abs(z.mean(0).numpy() - mean).max() < 4 * sd.max() / math.sqrt(200_000)
    assert np.abs(z.std(0).numpy() / sd - 1).max() < 4 / math.sqrt(200_000)
    lengths = {site: len(mean) for site, (mean, _) in peer_report.reference("hidden Markov").items()}
    assert lengths == {"theta": 4, "mu": 2}
    assert {site: len(mean) for site, (mean, _) in peer_report.reference("arK").items()} == {
        "alpha": 1,
        "beta": 5,
        "sigma": 1,
    }
    assert peer_report.reference("sonar") == {}


def test_a_run_that_failed_or_was_not_reliable_says_so():
    cell = peer_report._evidence([record("OSDS", 5.0, error=0.01, std_error=0.005, reliable=False)])
    assert cell == "+0.0100 (0.0050); 5.0 s; 1 of 1 not reliable"
    assert peer_report._seconds([{"failed": "ValueError"}]) == "failed"
    assert peer_report._seconds([{"limit": 240.0, "cpu_limit": 200.0}]) == "> 200"


def test_the_fastest_evidence_is_that_of_a_method_that_was_right():
    ours = {"reliable": True, "error": 0.001, "std_error": 0.002}
    runs = {
        ("arK", "OSDS"): [record("OSDS", 5.0, **ours)],
        ("arK", "bridge sampling"): [record("bridge sampling", 20.0, error=-0.04)],
        ("arK", "tempered SMC"): [record("tempered SMC", 8.0, error=0.06)],
        ("arK", "dynesty"): [{"method": "dynesty", "limit": 60.0, "cpu_limit": 50.0}],
        ("sonar", "OSDS"): [record("OSDS", 4.0, **ours)],
        ("sonar", "dynesty"): [{"method": "dynesty", "limit": 240.0, "cpu_limit": 200.0}],
        # Might have been right after 250 seconds, before the one that is.
        ("sonar", "bridge sampling"): [record("bridge sampling", 500.0, error=0.01)],
        ("sonar", "tempered SMC"): [record("tempered SMC", 8.0, error=math.nan)],
        # Nobody was right there, and nobody was ended.
        ("baseball", "OSDS"): [record("OSDS", 4.0, **ours)],
        ("baseball", "tempered SMC"): [record("tempered SMC", 1.0, error=-1.0)],
    }
    rows = peer_report._evidence_ratios(runs, ["arK", "sonar", "baseball"]).splitlines()[2:]
    assert rows == [
        "| arK | bridge sampling | 4.0 |",
        "| sonar | none | > 50.0 |",
        "| geometric mean |  | > 14.1 (2) |",
    ]


def test_compiling_has_its_share_of_the_first_result():
    again = {"seconds": 10.0, "cpu_seconds": 4.0, "compiling": 8.0}
    runs = {("arK", "nutpie"): [record("nutpie", 9.0, compiling=0.9 * 7.7 * 9.0, again=again)]}
    rows = peer_report._compiling(runs, ["arK", "sonar"]).splitlines()
    assert rows[0] == "| posterior | nutpie | nutpie, second process |"
    assert rows[2:] == ["| arK | 9.0, 90 % | 4.0, 80 % |", "| sonar |  |  |"]
