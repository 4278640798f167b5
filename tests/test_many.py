"""Many fits at once: the same numbers wherever they run, and trouble of one is not trouble of all."""

import os
import random
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, FitManyError, InterruptedWarning, OSDSWarning, compare_evidence, fit_many
from pyro_osds.runtime.warnings import UnreliableEvidenceWarning, warn

Y = torch.tensor([1.2, 0.4, 2.1])


def normal(scale):
    """A model that is no function of this file: a closure, whose parameter the caller may have set."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(mu, pyro.param("sd", torch.tensor(1.0))).expand([3]).to_event(1), obs=y)

    return model


def samplers():
    return {f"scale {scale}": OSDS(normal(scale), num_samples=25, num_iterations=10) for scale in (1.0, 10.0)}


def evidences(**options):
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        pyro.param("sd", torch.tensor(2.0))
        return fit_many(samplers(), Y, disable_progbar=True, **options)


@pytest.fixture(scope="module")
def alone():
    """Two fits, one after the other in this process, with one thread as workers have: for the last bit."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        fits = evidences(num_jobs=1)
    torch.set_num_threads(num_threads)

    return fits


def exact(scale, sd=2.0):
    covariance = sd**2 * torch.eye(3) + scale**2
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(Y).item()


def test_fits_are_those_of_the_callers_models_and_parameters(alone):
    # Closed forms, with the standard deviation that the caller's parameter store held; ready to be compared.
    for scale in (1.0, 10.0):
        osds = alone[f"scale {scale}"]
        assert abs(osds.log_evidence - exact(scale)) < 5 * osds.log_evidence_se
    table = compare_evidence(alone)
    assert list(table.index) == ["scale 1.0", "scale 10.0"] and set(alone["scale 1.0"].get_samples()) == {"mu"}


def test_other_processes_give_the_same_draws_of_models_in_a_script(alone, tmp_path):
    # Two processes of joblib's own; the models are defined in __main__, which no other process can import.
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import pyro, pyro.distributions as dist, torch
            from pyro_osds import OSDS, fit_many

            def normal(scale):
                def model(y):
                    mu = pyro.sample("mu", dist.Normal(0.0, scale))
                    sd = pyro.param("sd", torch.tensor(1.0))
                    pyro.sample("y", dist.Normal(mu, sd).expand([3]).to_event(1), obs=y)
                return model

            pyro.set_rng_seed(0)
            pyro.param("sd", torch.tensor(2.0))
            samplers = {scale: OSDS(normal(scale), num_samples=25, num_iterations=10) for scale in (1.0, 10.0)}
            fits = fit_many(samplers, torch.tensor([1.2, 0.4, 2.1]), num_jobs=2)
            torch.save([osds.get_samples()["mu"] for osds in fits.values()], "draws.pt")
            """
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(alone.values(), torch.load(tmp_path / "draws.pt"), strict=True):
        assert torch.equal(mine.get_samples()["mu"], theirs)


def test_a_dask_cluster_gives_the_same_draws(alone):
    # Two worker processes of a local cluster, found through joblib's configuration; what is read comes back.
    import joblib
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster), joblib.parallel_config("dask"):
        draws = evidences(read=lambda osds: osds.get_samples()["mu"])
    for name, osds in alone.items():
        assert torch.equal(draws[name], osds.get_samples()["mu"])


class Noted(OSDS):
    """A sampler whose run does what its argument says and notes its random numbers."""

    def run(self, what="", *args):
        self.noted = torch.rand(1).item(), random.random(), np.random.random()
        self.args = args
        if what == "fail":
            raise ValueError("no such thing")
        if what == "stop":
            raise KeyboardInterrupt
        if what == "stopped":
            warn("Training was interrupted.", InterruptedWarning)
        if what == "warn":
            warn("Do not trust it.", UnreliableEvidenceWarning)


def noted(names, num_jobs=1, **options):
    pyro.set_rng_seed(1)
    given = {name: (Noted(normal(1.0)), name.split()[0]) for name in names}
    return fit_many(given, num_jobs=num_jobs, disable_progbar=True, **options)


def test_seeds_differ_and_belong_to_the_callers():
    # Each fit has random numbers of its own, the same in threads, and the caller's go on as if there were one fit.
    import joblib

    fits = noted("abcd")
    ahead = torch.rand(1), random.random(), np.random.random()
    for place in range(3):
        assert len({osds.noted[place] for osds in fits.values()}) == 4
    with joblib.parallel_config("threading"):
        again = noted("abcd", num_jobs=2)
    assert [osds.noted for osds in again.values()] == [osds.noted for osds in fits.values()]
    assert (torch.rand(1), random.random(), np.random.random()) == ahead


def test_arguments_are_common_or_of_each_fit():
    # A tuple has its own; the samplers given stay without a fit.
    given = {"a": (Noted(normal(1.0)), "", 1, 2), "b": Noted(normal(1.0))}
    fits = fit_many(given, "", 3, num_jobs=1, disable_progbar=True)
    assert fits["a"].args == (1, 2) and fits["b"].args == (3,)
    assert not hasattr(given["b"], "args") and fits["b"].settings == given["b"].settings


def test_a_fit_that_fails_is_named_and_the_others_are_there():
    # The error comes at the end, with what was done and where the failing fit failed.
    with pytest.raises(FitManyError, match=r"1 of 3 fits failed: 'fail' \(ValueError: no such thing\)") as caught:
        noted(["a", "fail", "b"], read=lambda osds: osds.args)
    assert caught.value.fits == {"a": (), "b": ()}
    assert "in run" in caught.value.errors["fail"] and list(caught.value.errors) == ["fail"]


def test_warnings_name_their_fit():
    # A warning of a fit arrives at the caller with its category, whatever process it came from.
    with pytest.warns(UnreliableEvidenceWarning, match=r"^warn 2: Do not trust it\.$"):
        noted(["a", "warn 2"])


@pytest.mark.parametrize("what", ["stop", "stopped"])
def test_an_interruption_keeps_what_is_done(what):
    # Ctrl-C while a fit explores ends it, while it trains shortens it; neither counts as done.
    with pytest.warns(InterruptedWarning, match=rf"2 of 3 fits are not there: \['{what}', 'b'\]"):
        assert list(noted(["a", what, "b"])) == ["a"]


def test_bad_arguments():
    # What is no sampler is named; nothing is run for it.
    with pytest.raises(TypeError, match="'b' is function"):
        fit_many({"a": Noted(normal(1.0)), "b": normal(1.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", OSDSWarning)
        assert fit_many({}, disable_progbar=True) == {}
