"""Two processes go through one fit and end where one process ends."""

import copy
import math
import warnings

import pyro
import pytest
import torch
import torch.distributed
from helpers import assert_within_standard_error

from pyro_osds import OSDS, OSDSWarning
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.runtime.parallel import by_rows, mean_gradients, together
from pyro_osds.runtime.warnings import warn
from pyro_osds.target import FunctionTarget
from pyro_osds.train.objectives import exact_volume, forward_kl, reverse_kl

# Sums in another order: nothing else may differ, in double precision, after some dozen steps.
CLOSE = {"rtol": 1e-7, "atol": 1e-7}


def banana(z):
    """Normalised, and bent so that there is something to learn."""
    return -0.5 * (z[:, 0].square() + (z[:, 1] - 0.3 * z[:, 0].square()).square()) - math.log(2 * math.pi)


def fitted(**options):
    """A whole run, further steps and further draws."""
    pyro.set_rng_seed(3)
    short = {"num_samples": 50, "num_iterations": 20, "escalate": False, "batch_size": 51, "num_particles": 16}
    osds = OSDS.from_log_prob(banana, 2, dtype=torch.float64, **short, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OSDSWarning)
        osds.run()
    draws = osds.draw(9001)
    loss = [osds.step(), osds.step(), osds.evaluate_loss()]

    return {
        "evidence": torch.tensor([osds.log_evidence, osds.log_evidence_se, osds.evidence.elbo]),
        "samples": osds.get_samples()["z"],
        "z": draws.z,
        "log_weights": draws.log_weights,
        "loss": torch.tensor(osds.trainer.history.loss + loss),
        "weights": torch.cat([weight.detach().flatten() for weight in osds.fit.leap.flow.parameters()]),
    }


def gradients():
    """Gradients of every objective at a flow that is not the identity, on batches that do not divide by two."""
    torch.manual_seed(0)
    target = FunctionTarget(banana, 2, torch.float64)
    points = torch.randn(40, 2, dtype=torch.float64)
    flow = FlowMap(2, num_blocks=3, num_spline_blocks=1, hidden_features=8).double()
    with torch.no_grad():
        for weight in flow.parameters():
            weight += 0.1 * torch.randn_like(weight)
    leap = Leap(gaussian_base(points), flow)
    objectives = {
        "both directions": exact_volume(target, 33),
        "with points": exact_volume(target, 33, points=points),
        "some steps": exact_volume(target, 33, num_steps=(1, 2)),
        "reverse": reverse_kl(target, 33),
        "forward": forward_kl(points, 33),
        "one row": reverse_kl(target, 1),  # too few to share out: every process does all of it
    }
    found = {}
    for name, objective in objectives.items():
        loss = objective(leap, leap)
        parts = torch.autograd.grad(loss.total, list(flow.parameters()), allow_unused=True, materialize_grads=True)
        found[name] = torch.cat([part.flatten() for part in mean_gradients(parts)])

    return found


def failing(rank):
    """What an exploration that fails in the first process tells in this one."""
    osds = OSDS.from_log_prob(lambda z: z.sum(-1) * torch.nan, 2, distributed=True)
    try:
        osds.run()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def one_of_two(rank, folder):
    """What each process does; random numbers are its own before it begins."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)
    with together(True):
        common = torch.rand(3)
        seen = []
        rows = by_rows(lambda x: (seen.append(len(x)) or 2 * x, x.sum(-1)), torch.arange(10.0).view(5, 2))
        found = gradients()
    with warnings.catch_warnings(record=True) as caught, together(True):
        warnings.simplefilter("always")
        warn("Once is enough.", OSDSWarning)
    result = {
        "common": common,
        "rows": rows,
        "seen": seen,
        "gradients": found,
        "warnings": len(caught),
        "failing": failing(rank),
        "fitted": fitted(distributed=True),
    }
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(one_of_two, (str(folder),), nprocs=2, start_method="spawn")

    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_the_two_processes_agree_exactly(both):
    # Same random numbers, gradients, weights, draws and verdict, to the last bit: no process drifts away.
    first, second = both
    assert torch.equal(first["common"], second["common"])
    for part in ("gradients", "fitted"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name


def test_each_process_evaluates_its_own_rows(both):
    # Three rows and two, and all five for both.
    assert [one["seen"] for one in both] == [[3], [2]]
    x = torch.arange(10.0).view(5, 2)
    for one in both:
        assert torch.equal(one["rows"][0], 2 * x) and torch.equal(one["rows"][1], x.sum(-1))


def test_gradients_are_those_of_the_whole_batch(both):
    # Every objective, also where coefficients of a row depend on all others.
    for name, value in gradients().items():
        torch.testing.assert_close(both[0]["gradients"][name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_a_fit_is_that_of_one_process(both):
    # Exploration, training, draws, evidence, steps by hand: up to the rounding of networks in single precision.
    for name, value in fitted(disable_progbar=True).items():
        got = both[0]["fitted"][name]
        if name == "weights":
            # Adam divides by the size of gradients: where that is nothing but rounding, so is the step.
            error = (got - value).abs()
            assert error.max() < 1e-3 and (error > 1e-5).double().mean() < 1e-3
        else:
            torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_evidence_is_right(both):
    # The truth is zero.
    log_evidence, std_error, _ = both[0]["fitted"]["evidence"].tolist()
    assert_within_standard_error(log_evidence, 0.0, std_error)


def test_only_the_first_process_warns_and_failures_reach_all(both):
    # What went wrong in the first process is told in the other, which would wait for ever otherwise.
    assert [one["warnings"] for one in both] == [1, 0]
    assert both[0]["failing"].startswith("ValueError") and "finite" in both[0]["failing"]
    assert both[1]["failing"].startswith("RuntimeError: The first process failed: NotFiniteError")


def test_one_process_alone_needs_no_group():
    # Outside, rows and gradients are left as they are; asked for it, the sampler says what is missing.
    x = torch.randn(3, 2)
    assert by_rows(lambda x: (x,), x)[0] is x and mean_gradients([x])[0] is x
    with pytest.raises(RuntimeError, match="torchrun"):
        OSDS.from_log_prob(banana, 2, distributed=True).run()


@pytest.mark.parametrize(
    ("options", "match"),
    [({"network": "velocity"}, "one process"), ({"max_time": 1.0}, "max_time"), ({"warm_start": 1}, "warm_start")],
)
def test_what_processes_cannot_do_together(options, match):
    # Refused before anything runs.
    with pytest.raises(ValueError, match=match):
        OSDS.from_log_prob(banana, 2, distributed=True, **options)


def test_a_file_does_not_ask_for_processes(tmp_path):
    # A fit of many processes is loaded by one.
    osds = OSDS.from_log_prob(banana, 2, num_particles=16, disable_progbar=True)
    osds.step()
    ours = copy.deepcopy(osds)
    osds.settings = OSDS.from_log_prob(banana, 2, distributed=True).settings
    osds.save(tmp_path / "fit.pt")
    loss = ours.step()
    # The file puts random numbers back, so that its next step is the one that follows.
    again = OSDS.load(tmp_path / "fit.pt", banana)
    assert not again.settings.distributed and again.step() == loss
