"""OSDS inside Pyro's MCMC: what code around NUTS expects, with one training for most tests."""

import math
import signal
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from packaging.version import Version
from pyro.infer import MCMC, Predictive
from pyro.infer.mcmc import api

from pyro_osds import OSDS, OSDSKernel

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
WAIT = torch.tensor([[0.5, 1.5, 0.2], [1.0, 0.3, 0.9]])
NUM_SAMPLES = 200


def model(y=None, wait=None):
    """Two conjugate halves, one of them a vector of rates."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([3.0, 2.0]), 1.0).to_event(1))
    pyro.deterministic("double", 2 * mu)
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    with pyro.plate("waits", 3, dim=-1):
        pyro.sample("wait", dist.Exponential(rate).to_event(1), obs=None if wait is None else wait.T)


# Mean and variance of each posterior coordinate.
MU = Y.sum().item() / 5.25, 1 / 5.25
RATES = [((a + 3) / (1 + s), (a + 3) / (1 + s) ** 2) for a, s in zip((3.0, 2.0), WAIT.sum(1).tolist(), strict=True)]
Y_LOG_EVIDENCE = dist.MultivariateNormal(torch.zeros(5), 4 * torch.ones(5, 5) + torch.eye(5)).log_prob(Y).item()
LOG_EVIDENCE = Y_LOG_EVIDENCE + sum(
    math.lgamma(a + 3) - math.lgamma(a) - (a + 3) * math.log(1 + s)
    for a, s in zip((3.0, 2.0), WAIT.sum(1).tolist(), strict=True)
)


@pytest.fixture(scope="module")
def fitted():
    """Two chains, one after the other as on a machine with few cores."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        pyro.set_rng_seed(0)
        patch.setattr(api.mp, "cpu_count", lambda: 2)
        with pytest.warns(UserWarning, match="Chains will be drawn sequentially"):
            mcmc = MCMC(
                OSDSKernel(model, num_iterations=100),
                num_samples=NUM_SAMPLES, warmup_steps=10, num_chains=2, disable_progbar=True,
            )  # fmt: skip
        mcmc.run(Y, wait=WAIT)

    return mcmc


@pytest.fixture
def kernel(fitted):
    """A new kernel that need not be trained again for the same data."""
    kernel = OSDSKernel(model)
    kernel.osds = fitted.kernel.osds

    return kernel


# ---- what MCMC gives ----


def test_shapes_are_those_of_pyro(fitted):
    # Flat, by chain, and resampled.
    for options, leading in (
        ({}, (2 * NUM_SAMPLES,)),
        ({"group_by_chain": True}, (2, NUM_SAMPLES)),
        ({"num_samples": 7}, (7,)),
        ({"num_samples": 7, "group_by_chain": True}, (2, 7)),
    ):
        samples = fitted.get_samples(**options)
        assert {name: tuple(value.shape) for name, value in samples.items()} == {
            "mu": leading,
            "rate": (*leading, 2),
        }


def test_posterior_moments(fitted):
    # Exact means and variances, of constrained values, within their Monte Carlo error.
    samples, diagnostics = fitted.get_samples(), fitted.diagnostics()
    assert (samples["rate"] > 0).all()
    draws = torch.cat([samples["mu"][:, None], samples["rate"]], 1)
    n_eff = [diagnostics["mu"]["n_eff"].item(), *diagnostics["rate"]["n_eff"].tolist()]
    for x, n, (mean, variance) in zip(draws.T, n_eff, [MU, *RATES], strict=True):
        n = min(n, 2 * NUM_SAMPLES)
        assert n > 100
        assert_within_standard_error(x.mean(), mean, math.sqrt(variance / n))
        # A Gamma distribution has heavier tails than a normal one: the fourth moment from the draws.
        assert_within_standard_error(x.var(), variance, ((x - x.mean()) ** 2).std().item() / math.sqrt(n))


def test_chains_are_different(fitted):
    # They share a flow, not draws.
    mu = fitted.get_samples(group_by_chain=True)["mu"]
    assert not np.intersect1d(*mu.numpy()).size


def test_diagnostics_are_those_of_pyro_and_the_evidence(fitted):
    # By site and by chain; the exact evidence is within three standard errors.
    diagnostics = fitted.diagnostics()
    assert diagnostics["rate"]["r_hat"].shape == (2,) and (diagnostics["rate"]["r_hat"] < 1.1).all()
    assert diagnostics["divergences"] == {"chain 0": [], "chain 1": []}
    assert all(0.5 < rate <= 1.0 for rate in diagnostics["acceptance rate"].values())
    for chain in ("chain 0", "chain 1"):
        value, std_error = diagnostics["log evidence"][chain], diagnostics["log evidence se"][chain]
        assert_within_standard_error(value, LOG_EVIDENCE, std_error, k=3)
        assert diagnostics["reliable"][chain] is True and diagnostics["pareto k"][chain] < 0.7
    assert diagnostics["log evidence"]["chain 0"] != diagnostics["log evidence"]["chain 1"]


def test_summary(fitted, capsys):
    # MCMC's own table.
    fitted.summary()
    printed = capsys.readouterr().out
    assert "rate[1]" in printed and "Number of divergences: 0" in printed


def test_the_second_chain_is_not_trained_again(fitted):
    # One training of a hundred iterations at most, for both.
    assert 0 < len(fitted.kernel.osds.trainer.history.loss) <= 100
    assert fitted.kernel.osds.is_trained_on(Y, wait=WAIT)


def test_predictive(fitted):
    # Posterior predictions and deterministic values, one for each draw.
    samples = fitted.get_samples()
    predicted = Predictive(model, samples)()
    assert predicted["y"].shape == (2 * NUM_SAMPLES, 5)
    assert torch.equal(predicted["double"].reshape(-1), 2 * samples["mu"])
    # Draws of the mean and noise of their own.
    std_error = math.sqrt((MU[1] + 1.0 / 5) / 100)
    assert_within_standard_error(predicted["y"].mean(), MU[0], std_error)


@pytest.mark.skipif(Version(az.__version__) >= Version("1"), reason="from_pyro left ArviZ in version 1")
def test_arviz(fitted):
    # The draws by chain, no divergences, and the data.
    with warnings.catch_warnings():
        # ArviZ runs the model in a way that few models allow, and says so.
        warnings.simplefilter("ignore")
        data, table = az.from_pyro(fitted), az.summary(fitted)
    assert data.posterior["rate"].shape == (2, NUM_SAMPLES, 2)
    np.testing.assert_array_equal(data.posterior["mu"], fitted.get_samples(group_by_chain=True)["mu"].numpy())
    assert data.sample_stats["diverging"].shape == (2, NUM_SAMPLES) and not data.sample_stats["diverging"].any()
    np.testing.assert_array_equal(data.observed_data["y"], Y.numpy())
    assert table.loc["mu", "r_hat"] < 1.1


# ---- options of MCMC ----


def test_hooks(kernel):
    # Called for every step, with the values of that step; MCMC warms up for as long as it samples.
    calls = []
    mcmc = MCMC(
        kernel, num_samples=3, disable_progbar=True,
        hook_fn=lambda kernel, params, stage, i: calls.append((stage, i, params["mu"])),
    )  # fmt: skip
    mcmc.run(Y, wait=WAIT)
    expected = [(stage, i) for stage in ("Warmup", "Sample") for i in range(3)]
    assert [(stage, i) for stage, i, _ in calls] == expected
    assert torch.equal(torch.stack([mu for *_, mu in calls[3:]]), mcmc.get_samples()["mu"])


def test_one_chain(kernel):
    # The leading dimension of one chain, and steps that are more than one refill long.
    mcmc = MCMC(kernel, num_samples=1200, warmup_steps=0, disable_progbar=True)
    mcmc.run(Y, wait=WAIT)
    assert mcmc.get_samples(group_by_chain=True)["rate"].shape == (1, 1200, 2)
    mu = mcmc.get_samples()["mu"]
    n_eff = min(1200.0, mcmc.diagnostics()["mu"]["n_eff"].item())
    assert_within_standard_error(mu.mean(), MU[0], math.sqrt(MU[1] / n_eff))
    # The second stretch is not the first again.
    assert not np.intersect1d(mu[:1000], mu[1000:]).size


def test_some_sites_only(kernel):
    # In samples and in diagnostics.
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=0, disable_progbar=True, save_params=["rate"])
    mcmc.run(Y, wait=WAIT)
    assert {name: tuple(value.shape) for name, value in mcmc.get_samples().items()} == {"rate": (20, 2)}
    assert "rate" in mcmc.diagnostics() and "mu" not in mcmc.diagnostics()


def test_other_data_are_trained_on_anew(fitted, kernel):
    # And only those: the same values in another tensor are the same data.
    assert kernel.osds.is_trained_on(Y.clone(), wait=WAIT.clone())
    kernel.setup(0, Y.clone(), wait=WAIT.clone())
    assert kernel.osds is fitted.kernel.osds
    assert not kernel.osds.is_trained_on(Y + 1, wait=WAIT) and not kernel.osds.is_trained_on(Y)


def test_progress_shows_the_evidence(fitted):
    # Text, as MCMC turns it into JSON.
    assert fitted.kernel.logging() == {"log evidence": f"{fitted.kernel.osds.log_evidence:.3f}"}


def test_options_that_belong_to_mcmc():
    # Both are named.
    with pytest.raises(ValueError, match=r"\['num_samples'\] belong to MCMC"):
        OSDSKernel(model, num_samples=100)
    with pytest.raises(ValueError, match=r"\['num_chains', 'num_samples'\] belong to MCMC"):
        OSDSKernel(model, num_samples=100, num_chains=2)


def test_unknown_options_are_refused_at_once():
    # Before MCMC begins, with the name that was meant.
    with pytest.raises(TypeError, match="OSDSKernel has no option 'num_iteration'. Did you mean 'num_iterations'?"):
        OSDSKernel(model, num_iteration=3)


def test_initial_params_of_unknown_sites():
    # They reach OSDS, which knows the sites.
    start = {"nu": torch.tensor(0.0)}
    mcmc = MCMC(OSDSKernel(model), num_samples=5, initial_params=start, disable_progbar=True)
    with pytest.raises(ValueError, match=r"lacks the latent sites \['mu', 'rate'\] .* unknown ones \['nu'\]"):
        mcmc.run(Y, wait=WAIT)


def test_initial_params_say_where_to_look():
    # A flat prior says nothing, and the likelihood is far from the origin.
    def flat(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    kernel = OSDSKernel(flat, num_iterations=20)
    start = {"x": torch.tensor(499.0)}
    mcmc = MCMC(kernel, num_samples=100, warmup_steps=0, initial_params=start, disable_progbar=True)
    with pytest.warns(UserWarning, match="improper"):
        mcmc.run(torch.tensor(500.0))
    assert_within_standard_error(mcmc.get_samples()["x"].mean(), 500.0, 1 / math.sqrt(100 / 2))
    assert mcmc.diagnostics()["reliable"] == {"chain 0": False}


# ---- other models ----


def test_a_model_without_latents():
    # No draws, all hooks, and the exact evidence.
    def observed(y):
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([5]).to_event(1), obs=y)

    calls = []
    mcmc = MCMC(
        OSDSKernel(observed), num_samples=6, warmup_steps=2, hook_fn=lambda *args: calls.append(args),
        disable_progbar=True,
    )  # fmt: skip
    mcmc.run(Y)
    assert mcmc.get_samples() == {} and len(calls) == 8
    expected = dist.Normal(0.0, 1.0).log_prob(Y).sum().item()
    assert math.isclose(mcmc.diagnostics()["log evidence"]["chain 0"], expected, rel_tol=1e-6)


def test_a_potential_function():
    # Its sites come from the kernel's initial_params or from MCMC's.
    start = {"x": torch.zeros(2)}
    shift = torch.tensor([1.0, -1.0])
    results = []
    for kernel_options, mcmc_options in (({"initial_params": start}, {}), ({}, {"initial_params": start})):
        pyro.set_rng_seed(0)
        kernel = OSDSKernel(
            potential_fn=lambda p: 0.5 * (p["x"] - shift).square().sum(), num_iterations=20, **kernel_options
        )
        mcmc = MCMC(kernel, num_samples=100, warmup_steps=0, disable_progbar=True, **mcmc_options)
        mcmc.run()
        results.append(mcmc)
        value, std_error = (mcmc.diagnostics()[name]["chain 0"] for name in ("log evidence", "log evidence se"))
        # A Gaussian is its own base, whose weights hardly vary: rounding is what is left.
        assert_within_standard_error(value, math.log(2 * math.pi), max(std_error, 1e-5))
    x = results[0].get_samples()["x"]
    assert x.shape == (100, 2)
    for i in (0, 1):
        assert_within_standard_error(x[:, i].mean(), shift[i], 1 / math.sqrt(100 / 2))


# ---- chains in processes of their own ----


def test_hidden_progress_bars_are_none(monkeypatch):
    # MCMC draws its bars in a thread while it forks the workers, so a worker must not touch tqdm, which takes a lock.
    def forbidden(*_, **__):
        raise AssertionError("a hidden progress bar was made")

    monkeypatch.setattr("pyro_osds.runtime.progress.tqdm", forbidden)
    OSDS(model, num_samples=10, num_iterations=10, disable_progbar=True).run(Y, wait=WAIT)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="workers are forked")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_chains_in_parallel(monkeypatch):
    # On a machine with cores to spare each chain trains its own flow, and draws come back from both.
    def half(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    monkeypatch.setattr(api.mp, "cpu_count", lambda: 8)
    kernel = OSDSKernel(half, num_iterations=20, num_particles=16)
    mcmc = MCMC(kernel, num_samples=50, warmup_steps=0, num_chains=2, disable_progbar=True)

    def give_up(*_):
        mcmc.sampler.terminate(True)
        raise TimeoutError("the workers have stopped answering")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 120.0)
    try:
        with warnings.catch_warnings():
            # So short a training need not be enough.
            warnings.simplefilter("ignore")
            mcmc.run(Y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    mu = mcmc.get_samples(group_by_chain=True)["mu"]
    assert mu.shape == (2, 50) and not np.intersect1d(*mu.numpy()).size
    assert_within_standard_error(mu.mean(), MU[0], math.sqrt(MU[1] / 30))
    for chain in ("chain 0", "chain 1"):
        value, std_error = (mcmc.diagnostics()[name][chain] for name in ("log evidence", "log evidence se"))
        assert_within_standard_error(value, Y_LOG_EVIDENCE, std_error)
