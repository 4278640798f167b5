"""A run ends when its time is over, whatever it is doing; what it has is judged, and `resume` gives the whole run."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, InterruptedWarning, UnreliableEvidenceWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Clock:
    """A clock that only densities move: so many seconds for each point."""

    def __init__(self, seconds):
        self.seconds, self.time, self.calls = seconds, 0.0, 0

    def __call__(self):
        return self.time

    def normal(self, z):
        """A standard normal that takes its time."""
        self.time += self.seconds * len(z)
        self.calls += 1
        return -0.5 * z.square().sum(-1)

    def model(self, y):
        """A model that only runs point by point."""
        self.time += self.seconds
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        if loc.item() > 1e30:
            return
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(0.0)
    monkeypatch.setattr("time.perf_counter", clock)

    return clock


Y = torch.tensor([1.2, 0.3, -0.5])
QUICK = {"disable_progbar": True, "num_samples": 200, "num_chains": 2, "num_iterations": 60}


@pytest.mark.parametrize("seconds", [1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("max_time", [5.0, 60.0])
def test_a_density_of_any_cost_ends_in_time(clock, seconds, max_time):
    # All the time of the run is that of the density, in batches of some hundreds of points.
    clock.seconds = seconds
    osds = OSDS.from_log_prob(clock.normal, 3, max_time=max_time, **QUICK)
    began = clock()
    osds.run()
    assert clock() - began <= 1.2 * max_time + 3.0 + 1024 * seconds
    assert osds.log_evidence == osds.log_evidence and osds.get_samples()["z"].shape[1:] == (3,)


@pytest.mark.parametrize("seconds", [1e-3, 1e-2])
@pytest.mark.parametrize("max_time", [20.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_a_model_that_runs_point_by_point_ends_in_time(clock, seconds, max_time):
    clock.seconds = seconds
    osds = OSDS(clock.model, max_time=max_time, **QUICK)
    began = clock()
    osds.run(Y)
    assert osds.backend == "loop"
    assert clock() - began <= 1.2 * max_time + 3.0


def whole(clock):
    """The run that nobody stops."""
    pyro.set_rng_seed(1)
    osds = OSDS.from_log_prob(clock.normal, 3, **QUICK)
    osds.run()

    return osds


def assert_same(one, other):
    assert one.evidence == other.evidence and not one.is_interrupted
    assert torch.equal(one.get_samples()["z"], other.get_samples()["z"])


def test_an_exploration_that_was_stopped_goes_on_bit_for_bit(clock):
    # Stopped again and again, each time a little later, until it comes to its end.
    clock.seconds = 1e-4
    expected = whole(clock)
    pyro.set_rng_seed(1)
    osds = OSDS.from_log_prob(clock.normal, 3, max_time=2.0, **QUICK)
    osds.run()
    assert osds.is_interrupted and "Exploration was stopped before its end" in osds.evidence.reasons[0]
    assert not osds.evidence.reliable and not osds.evidence.draws_reliable
    assert osds.run_report[0].startswith("exploration: stopped by max_time")
    stops = 0
    while osds.is_interrupted:
        stops += 1
        assert stops < 100
        osds.resume(max_time=6.0)
    assert stops > 2
    assert_same(osds, expected)


def test_a_file_of_a_stopped_exploration_goes_on(clock, tmp_path):
    # The journal stays behind; the same random numbers give the same exploration.
    clock.seconds = 1e-3
    expected = whole(clock)
    pyro.set_rng_seed(1)
    osds = OSDS.from_log_prob(clock.normal, 3, max_time=2.0, **QUICK)
    osds.run()
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", OSDS.from_log_prob(clock.normal, 3, **QUICK))
    assert again.is_interrupted
    again.resume()
    assert_same(again, expected)


def test_ctrl_c_in_exploration_is_judged_and_gone_on_with(clock):
    # As MCMC would not: particles are there, so draws are; and the rest comes later.
    expected = whole(clock)
    calls = clock.calls

    def interrupted(z):
        if clock.calls == calls + 150:
            clock.calls += 1
            raise KeyboardInterrupt
        return clock.normal(z)

    pyro.set_rng_seed(1)
    osds = OSDS.from_log_prob(interrupted, 3, **QUICK)
    with pytest.warns(InterruptedWarning, match="Exploration was interrupted; what it has found is judged"):
        osds.run()
    assert osds.is_interrupted and osds.get_samples()["z"].shape == (400, 3)
    assert osds.run_report[0].startswith("exploration: stopped by Ctrl-C")
    osds.resume()
    assert_same(osds, expected)


def test_ctrl_c_point_by_point_is_judged_by_few_points(clock, monkeypatch):
    # 0.05 s a point: what there is in particles and in mistakes to look for may not take a run's time.
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    clock.seconds, stopped = 0.05, []

    def model(y):
        clock.model(y)
        if clock.time > 30.0 and not stopped:
            stopped.append(clock.time)
            raise KeyboardInterrupt

    osds = OSDS(model, **(QUICK | {"num_chains": 4}))
    osds.run(Y)
    assert osds.is_interrupted and not osds.evidence.draws_reliable
    assert clock.time - stopped[0] <= 7.5


def test_less_time_than_one_evaluation(clock):
    # A few draws, an honest verdict, and the way on.
    clock.seconds = 5.0
    osds = OSDS.from_log_prob(clock.normal, 2, max_time=1e-3, **QUICK)
    with pytest.warns(UnreliableEvidenceWarning, match="before its first temperature"):
        osds.run()
    assert osds.is_interrupted and not osds.evidence.reliable
    assert osds.get_samples()["z"].shape == (8, 2)


def test_what_is_asked_for_after_the_run_has_its_time(clock):
    # The limit is that of the run: draws made later are not cut.
    osds = OSDS.from_log_prob(clock.normal, 2, max_time=60.0, **QUICK)
    osds.run()
    clock.seconds, clock.time = 1.0, clock.time + 1000.0
    assert osds.draw(300).log_weights.shape == (300,)
    osds.redraw()
    assert osds.get_samples()["z"].shape == (400, 2)


def test_time_that_training_leaves_goes_back_to_exploration(clock):
    # Exploration is stopped at half of the time, and sixty steps of training take little of the other half.
    clock.seconds = 1e-4
    expected, needed = whole(clock), clock()
    stopped = 0
    for share in (1.05, 1.3, 1.6):
        pyro.set_rng_seed(1)
        osds = OSDS.from_log_prob(clock.normal, 3, max_time=share * needed, **QUICK)
        began = clock()
        osds.run()
        assert clock() - began <= 1.2 * share * needed + 3.0
        stopped += osds.is_interrupted
        if not osds.is_interrupted:
            assert_same(osds, expected)
    assert stopped < 3


def test_what_ctrl_c_stops_is_not_gone_on_with(clock):
    clock.seconds = 1e-4
    calls = clock.calls

    def interrupted(z):
        if clock.calls == calls + 150:
            clock.calls += 1
            raise KeyboardInterrupt
        return clock.normal(z)

    osds = OSDS.from_log_prob(interrupted, 3, max_time=1000.0, **QUICK)
    with pytest.warns(InterruptedWarning, match="Exploration was interrupted"):
        osds.run()
    assert osds.is_interrupted and osds.run_report[0].startswith("exploration: stopped by Ctrl-C")


@pytest.mark.parametrize("backend", ["function", "loop"])
def test_reading_the_draws_of_a_stopped_run_takes_no_longer_than_the_run(clock, backend):
    clock.seconds = 1e-2
    if backend == "loop":
        osds = OSDS(clock.model, max_time=20.0, **QUICK)
        osds.run(Y)
    else:
        osds = OSDS.from_log_prob(clock.normal, 3, max_time=20.0, **QUICK)
        osds.run()
    began = clock()
    osds.to_inference_data()
    assert clock() - began <= 20.0


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="max_time must be a positive number of seconds or None, got 0"):
        OSDS.from_log_prob(lambda z: -z.square().sum(-1), 2, max_time=0)


def test_a_density_that_is_slow_in_places_ends_in_time(clock):
    # A hundred times slower on a sixth of the space; counted costs do not know, the limit does.
    def uneven(z):
        clock.time += torch.where(z[:, 0] > 1.0, 1e-2, 1e-4).sum().item()
        return -0.5 * z.square().sum(-1)

    osds = OSDS.from_log_prob(uneven, 3, max_time=30.0, **QUICK)
    began = clock()
    osds.run()
    assert clock() - began <= 1.2 * 30.0 + 3.0 + 512 * 1e-2
    assert osds.get_samples()["z"].shape[1:] == (3,)


@pytest.mark.parametrize("max_time", [20.0, 300.0])
def test_a_density_that_hangs_at_each_call_ends_in_time(clock, max_time):
    # Five seconds for any number of points: nothing that is counted tells.
    def hanging(z):
        clock.time += 5.0
        return -0.5 * z.square().sum(-1)

    osds = OSDS.from_log_prob(hanging, 2, max_time=max_time, **QUICK)
    began = clock()
    osds.run()
    # What is begun is ended: a look at the gradient, a batch of draws and its verdict.
    assert clock() - began <= 1.2 * max_time + 3.0 + 12 * 5.0
    assert osds.is_interrupted and not osds.evidence.reliable and osds.evidence.reasons


def test_a_model_that_is_slow_in_places_ends_in_time_point_by_point(clock):
    # Point by point, and a thousand times as slow beyond one standard deviation, where a third of the draws lies.
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        clock.time += 5.0 if loc.item() > 1.4 else 0.005
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    osds = OSDS(model, max_time=60.0, **QUICK)
    began = clock()
    osds.run(Y)
    # Whatever is at work when the time is over ends a point later, and a chain has a draw.
    assert clock() - began <= 1.2 * 60.0 + 3.0 + 4 * 5.0
    assert osds.is_interrupted and not osds.evidence.reliable
