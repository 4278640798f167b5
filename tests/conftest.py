"""Every test and every doctest starts from the same seed and an empty parameter store."""

import gc

import pyro
import pytest
import torch


class FreshState:
    """A plugin rather than a fixture of this folder, so that the doctests of the package get it too."""

    @pytest.fixture(autouse=True)
    def fresh_state(self):
        with torch.random.fork_rng():
            pyro.set_rng_seed(0)
            pyro.clear_param_store()
            yield


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    # What is collected is kept until the end. Python would look through it again and again, a quarter of the time that
    # collecting takes, and with each of the runs later.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_configure(config):
    config.pluginmanager.register(FreshState(), "fresh_state")


@pytest.fixture(params=["torchscript", "interpreter"])
def replay(request, monkeypatch):
    """What runs recorded graphs: one after the other."""
    monkeypatch.setenv("PYRO_OSDS_REPLAY", request.param)
    return request.param


@pytest.fixture
def float64():
    """Python numbers and new tensors are double precision: exact checks have no rounding to hide behind."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
