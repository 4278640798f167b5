"""Where there is a GPU: everything stays on it that was put there, and comes back for ArviZ and for files."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS, plot_fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
# By quadrature over mu and tau.
LOG_EVIDENCE = -31.3113


def schools(y):
    """Eight schools on the device of its data, as one writes it for a GPU."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y), device=y.device):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SIGMA.to(y.device)), obs=y)


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        osds = OSDS(schools, num_samples=250, disable_progbar=True)
        osds.run(Y.cuda())
    return osds


def test_draws_weights_and_networks_are_on_the_gpu(fitted):
    # What a user gets as tensors stays where the data were.
    draws = fitted.draw(10_000)
    tensors = [*fitted.get_samples().values(), *draws.samples.values(), draws.log_weights, draws.z]
    assert all(value.is_cuda for value in (*tensors, *fitted.fit.leap.flow.parameters()))


def test_the_evidence_is_that_of_the_cpu(fitted):
    # The known value, within its standard error.
    assert fitted.evidence.reliable
    assert_within_standard_error(fitted.log_evidence, LOG_EVIDENCE, fitted.log_evidence_se)


def test_further_steps_and_other_numbers_of_steps(fitted):
    # Stepping by hand and learning two steps work there, too.
    assert fitted.draw(1000, num_steps=2).log_weights.isfinite().all()
    stepped = OSDS(schools, disable_progbar=True)
    assert abs(stepped.step(Y.cuda()) + LOG_EVIDENCE) < 5.0


def test_inference_data_and_figures_are_numpy(fitted):
    # All groups leave the GPU.
    idata = fitted.to_inference_data(unconstrained=True, posterior_predictive=20, prior=20)
    assert isinstance(idata["posterior"]["mu"].values, np.ndarray) and "log_likelihood" in idata
    fitted.summary()
    plot_fit(fitted)


def test_reference_draws_may_be_on_the_cpu(fitted):
    # Draws of a sampler on the CPU are held against the flow on the GPU.
    reference = {name: value.cpu() for name, value in fitted.get_samples().items()}
    assert fitted.check_against(reference).agrees


def test_a_file_written_on_a_gpu_is_read_on_a_cpu(fitted, tmp_path):
    # A density that goes where its points are is the same model on both.
    def log_prob_fn(z):
        return -0.5 * z.square().sum(-1)

    options = {"num_samples": 100, "num_iterations": 20, "disable_progbar": True}
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(log_prob_fn, 3, device="cuda", **options)
    osds.run()
    osds.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", OSDS.from_log_prob(log_prob_fn, 3, **options))
    assert not again.get_samples()["z"].is_cuda
    torch.testing.assert_close(again.get_samples()["z"], osds.get_samples()["z"].cpu())
    assert again.draw(100).log_weights.isfinite().all()
    fitted.save(tmp_path / "schools.pt")
    assert OSDS.load(tmp_path / "schools.pt", schools, Y.cuda()).evidence == fitted.evidence
