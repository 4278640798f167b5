"""What runs a recorded graph: by default TorchScript, else the interpreter, and the log says why."""

import gc
import logging
import mmap
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS
from pyro_osds.runtime.recording import execution
from pyro_osds.runtime.recording.execution import TorchScript, freeze
from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.recording.recorder import record_operations
from pyro_osds.runtime.torch_internals import TRACING

POINT = torch.tensor([0.3, -1.2])
STATM = Path("/proc/self/statm")


def graph_of():
    return record_operations(lambda z: (2 * z.exp(), z.sum()), torch.zeros(2))


def test_torchscript_is_the_default(monkeypatch, caplog):
    monkeypatch.delenv("PYRO_OSDS_REPLAY", raising=False)
    with caplog.at_level(logging.INFO, "pyro_osds"):
        assert isinstance(freeze(graph_of(), (POINT,)), TorchScript)
    assert not caplog.records


def test_long_graphs_are_not_given_to_torchscript(monkeypatch):
    # By their number of operations, with the same values.
    def recursion(z):
        for _ in range(30):
            z = (z + 1.0).sin()
        return (z,)

    monkeypatch.delenv("PYRO_OSDS_REPLAY", raising=False)
    z = torch.linspace(0.0, 1.0, 5)
    graph = record_operations(recursion, z)
    assert isinstance(freeze(graph, (z,)), TorchScript)
    monkeypatch.setattr(execution, "_MANY_OPERATIONS", 50)
    long = freeze(graph, (z,))
    assert isinstance(long, Interpreter) and torch.equal(long(z)[0], recursion(z)[0])


def test_the_interpreter_on_request(monkeypatch):
    monkeypatch.setenv("PYRO_OSDS_REPLAY", "interpreter")
    assert isinstance(freeze(graph_of(), (POINT,)), Interpreter)


def test_what_else_is_asked_for_is_an_error(monkeypatch):
    monkeypatch.setenv("PYRO_OSDS_REPLAY", "jit")
    with pytest.raises(ValueError, match="must be torchscript or interpreter, got 'jit'"):
        freeze(graph_of(), (POINT,))


def test_a_torch_without_torchscript(monkeypatch, caplog):
    # The whole module; torch's own vmap asks for it, so a fit goes through the next tests only.
    monkeypatch.delattr(torch, "jit")
    with caplog.at_level(logging.INFO, "pyro_osds"):
        run = freeze(graph_of(), (POINT,))
    monkeypatch.undo()
    assert isinstance(run, Interpreter) and torch.equal(run(POINT)[0], 2 * POINT.exp())
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("name", ["jit.optimized_execution", *(f"_C.{name}" for name in TRACING)])
def test_a_torch_that_lacks_a_part_of_torchscript(monkeypatch, caplog, name):
    monkeypatch.delattr(f"torch.{name}")
    with caplog.at_level(logging.INFO, "pyro_osds"):
        run = freeze(graph_of(), (POINT,))
    assert isinstance(run, Interpreter) and torch.equal(run(POINT)[0], 2 * POINT.exp())
    assert [(record.levelname, f"no torch.{name}" in record.message) for record in caplog.records] == [("INFO", True)]


@pytest.mark.skipif(not STATM.exists(), reason="no /proc")
def test_no_memory_stays_behind(monkeypatch):
    # torch.jit.trace keeps the values between the operations for good: a process with many fits grew by as much as a
    # batch of its density takes, for each graph.
    monkeypatch.delenv("PYRO_OSDS_REPLAY", raising=False)
    graph = record_operations(lambda z: ((z[:, None] + torch.zeros(500_000)).exp().sum(1),), POINT)
    sizes = []
    for _ in range(25):
        run = freeze(graph, (POINT,))
        assert isinstance(run, TorchScript) and run(POINT)[0].shape == (2,)
        del run
        gc.collect()
        sizes.append(int(STATM.read_text().split()[1]) * mmap.PAGESIZE / 2**20)
    # Each run makes two tensors of 4 megabytes.
    assert sizes[-1] < sizes[4] + 20.0


def test_a_refusal_is_logged_with_its_error(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise NotImplementedError("not on this Python")

    monkeypatch.setattr(torch._C, TRACING[0], refuse)
    with caplog.at_level(logging.INFO, "pyro_osds"):
        run = freeze(graph_of(), (POINT,))
    assert isinstance(run, Interpreter) and torch.equal(run(POINT)[1], POINT.sum())
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "(NotImplementedError: not on this Python)" in record.message


def model():
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("row", 3):
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.tensor([0.5, -1.0, 2.0]))


def test_a_whole_run_without_torchscript_has_the_same_numbers(monkeypatch, caplog):
    # Density and training are replayed in both; to the last digit.
    results = []
    for is_missing in (False, True):
        if is_missing:
            monkeypatch.delattr(torch._C, TRACING[0])
        pyro.set_rng_seed(0)
        osds = OSDS(model, num_samples=50, num_iterations=20, escalate=False, disable_progbar=True)
        with caplog.at_level(logging.INFO, "pyro_osds.runtime"):
            osds.run()
        results.append((osds.log_evidence, osds.get_samples()["scale"].tolist(), osds.backend))
        assert bool(caplog.records) == is_missing
    assert results[0] == results[1] and results[0][2] == "captured"
    assert {record.message for record in caplog.records} == {
        "The interpreter runs a recorded graph: this torch has no torch._C._create_graph_by_tracing."
    }
