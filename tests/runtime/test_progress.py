"""Progress: one bar for all phases of a run, or nothing at all."""

import io
import re
import sys
import threading

import pytest
import torch

from pyro_osds import OSDS
from pyro_osds.explore.annealing import explore
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.runtime import progress
from pyro_osds.runtime.progress import NoBar, Phase, progress_bar, run_bar
from pyro_osds.target import FunctionTarget

OPTIONS = {"num_samples": 20, "num_iterations": 12, "num_particles": 16, "escalate": False}


class Terminal(io.StringIO):
    """Standard error of a terminal, or of a file."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


def standard_normal(z):
    return -0.5 * z.square().sum(-1)


def pictures(stream):
    """What was shown, picture after picture."""
    return [text.strip() for text in re.split(r"[\r\n]+", stream.getvalue()) if text.strip()]


@pytest.fixture
def open_screen(monkeypatch):
    """Standard error from now on; pytest would put its own in the place of one that was there before the test."""

    def replace(tty=True):
        monkeypatch.setattr(sys, "stderr", Terminal(tty))
        return sys.stderr

    return replace


def test_a_run_has_one_bar_with_all_phases(open_screen):
    # In a file: phases in their order with their numbers, few pictures, one line, the result at the end.
    stream = open_screen(tty=False)
    osds = OSDS.from_log_prob(standard_normal, 2, **OPTIONS)
    osds.run()
    shown = pictures(stream)
    phases = list(dict.fromkeys(picture.partition(":")[0] for picture in shown))
    assert phases[0] == "Explore" and phases[-1] == "Done"
    assert phases.index("Train") < phases.index("Weigh")
    assert len(shown) <= 3 * len(phases) + 3 and stream.getvalue().count("\n") == 1
    train = [picture for picture in shown if picture.startswith("Train: 100%")]
    assert re.search(r"loss=-?\d.*ELBO=1\.8\d+, pareto_k=", train[0])
    assert "log evidence 1.8" in shown[-1] and "reliable" in shown[-1] and "100%" in shown[-1]


def test_exploration_goes_from_zero_to_one(open_screen, monkeypatch):
    # Every temperature is shown when every step may be: beta grows to 1, and is the length of the bar.
    screen = open_screen()
    monkeypatch.setattr(progress, "_ON_SCREEN", 0.0)
    target = FunctionTarget(lambda z: -0.5 * ((z - 5.0) / 0.1).square().sum(-1), 2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    path = ReferencePath(target, lambda count: normal.sample(torch.Size([count])), normal.log_prob)
    with run_bar(disable=False):
        found = explore(path, 16, 2)
    betas = [float(beta) for beta in re.findall(r"beta=([\d.e+-]+)", screen.getvalue())]
    assert betas == sorted(betas) and betas[0] < 0.01 and betas[-1] == 1.0
    assert len(set(betas)) > 3 and f"temperatures={found.num_temperatures}" in screen.getvalue()
    shares = [int(share) for share in re.findall(r"Explore: +(\d+)%", screen.getvalue())]
    assert shares[0] == 0 and shares[-1] == 100


def test_disabled_means_nothing_exists(open_screen, monkeypatch):
    # No tqdm is made, no thread begins, nothing is written.
    screen = open_screen()
    monkeypatch.setattr(progress, "tqdm", None)
    threads = threading.active_count()
    OSDS.from_log_prob(standard_normal, 1, disable_progbar=True, **OPTIONS).run()
    assert screen.getvalue() == "" and threading.active_count() == threads
    assert type(progress_bar(3, "Train", disable=True)) is NoBar


def test_the_first_step_shows_exploration(open_screen):
    # Stepping by hand: a bar for the exploration, none for later steps.
    screen = open_screen()
    osds = OSDS.from_log_prob(standard_normal, 1, **OPTIONS)
    osds.step()
    written = screen.getvalue()
    assert "Explore" in written and "Train" not in written
    osds.step()
    assert screen.getvalue() == written


def test_outside_a_run_a_phase_has_a_bar_of_its_own(open_screen):
    # It ends with the phase, full, with the numbers it was told.
    screen = open_screen()
    bar = progress_bar(10, "Train", disable=False)
    assert isinstance(bar, Phase)
    bar.update(3)
    bar.set_postfix(loss="1.5")
    bar.set_postfix(ELBO="-1.0")
    bar.close()
    last = pictures(screen)[-1]
    assert last.startswith("Train: 100%") and "loss=1.5, ELBO=-1.0" in last and screen.getvalue().endswith("\n")


def test_a_run_within_a_run_shares_its_bar(open_screen):
    # One bar, that of the outer run; the inner one ends nothing.
    screen = open_screen()
    with run_bar(disable=False) as outer:
        with run_bar(disable=False) as inner:
            progress_bar(1, "Inside").close()
            inner.append("lost")
        progress_bar(1, "Outside").close()
        outer.append("found")
    phases = list(dict.fromkeys(picture.partition(":")[0] for picture in pictures(screen)))
    assert phases == ["Inside", "Outside", "Done"]
    assert "found" in screen.getvalue() and "lost" not in screen.getvalue()


def test_an_error_ends_the_bar(open_screen):
    # The line is left, and the next phase outside belongs to no run.
    screen = open_screen()
    with pytest.raises(ZeroDivisionError), run_bar(disable=False):
        progress_bar(5, "Train").update()
        _ = 1 / 0
    assert pictures(screen)[-1].startswith("Stopped") and screen.getvalue().endswith("\n")
    assert type(progress_bar(3, "Train")) is NoBar
