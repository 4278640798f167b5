"""The sampler as a whole: its contract, its shapes, its numbers on small models, and what it says to bad input."""

import dataclasses
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro.infer import Predictive
from pyro.infer.autoguide.initialization import init_to_value

from pyro_osds import OSDS, Evidence, compare_evidence
from pyro_osds.explore.survey import survey
from pyro_osds.flow.base import gaussian_base
from pyro_osds.stats.weights import effective_sample_size, log_mean_weight
from pyro_osds.train.trainer import Trainer

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
CONJUGATE_LOG_EVIDENCE = -7.191953884885075
POSTERIOR_MEAN, POSTERIOR_SD = Y.sum().item() / 5.25, 5.25**-0.5


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fit(model, *args, **options):
    pyro.set_rng_seed(0)
    osds = OSDS(model, **{"num_samples": 200, "num_iterations": 100, "disable_progbar": True, **options})
    osds.run(*args)
    return osds


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        return fit(conjugate, Y)


def test_log_evidence_of_a_conjugate_model(fitted):
    # The evidence is right within its own standard error, and the ELBO is a lower bound.
    evidence = fitted.evidence
    assert isinstance(evidence, Evidence) and evidence.reliable and evidence.reasons == ()
    assert_within_standard_error(fitted.log_evidence, CONJUGATE_LOG_EVIDENCE, fitted.log_evidence_se)
    assert evidence.elbo <= CONJUGATE_LOG_EVIDENCE + 3 * evidence.std_error
    assert evidence.ess <= evidence.num_draws


def test_posterior_moments_of_a_conjugate_model(fitted):
    # Posterior draws have the exact mean and standard deviation, within their Monte Carlo error.
    mu = fitted.get_samples()["mu"]
    n_eff = fitted.diagnostics()["mu"]["n_eff"].item()
    assert_within_standard_error(mu.mean().item(), POSTERIOR_MEAN, POSTERIOR_SD / math.sqrt(n_eff))
    assert_within_standard_error(mu.std().item(), POSTERIOR_SD, POSTERIOR_SD / math.sqrt(2 * n_eff))


def test_shapes_of_samples_are_those_of_mcmc(fitted):
    # Flat by default, by chain on demand, resampled to any number.
    assert fitted.get_samples()["mu"].shape == (800,)
    assert fitted.get_samples(group_by_chain=True)["mu"].shape == (4, 200)
    assert fitted.get_samples(num_samples=7)["mu"].shape == (7,)
    assert fitted.get_samples(num_samples=7, group_by_chain=True)["mu"].shape == (4, 7)
    assert set(fitted.get_samples()) == {"mu"}


def test_diagnostics_and_summary(fitted, capsys):
    # The keys that MCMC has, and a printed table with the evidence below it.
    diagnostics = fitted.diagnostics()
    assert diagnostics["mu"]["r_hat"] < 1.05
    assert diagnostics["divergences"] == {f"chain {chain}": [] for chain in range(4)}
    assert all(0.5 < rate <= 1.0 for rate in diagnostics["acceptance rate"].values())
    fitted.summary()
    printed = capsys.readouterr().out
    assert "n_eff" in printed and "log evidence -7.19" in printed and "reliable" in printed


def test_predictive_takes_the_samples(fitted):
    # Posterior predictive draws centre on the posterior mean.
    draws = Predictive(lambda: conjugate(torch.zeros(5)), fitted.get_samples())()["twice"]
    assert torch.allclose(draws.reshape(-1), 2 * fitted.get_samples()["mu"])


def test_draw_gives_fresh_exact_weights(fitted):
    # log_weights are log_prob minus the log density of the leap, and two calls differ.
    draws = fitted.draw(300)
    log_q = fitted.fit.leap.log_prob(draws.z).detach()
    assert torch.allclose(draws.log_weights, draws.log_prob - log_q, atol=1e-4)
    assert draws.samples["mu"].shape == (300,) and draws.log_abs_det.shape == (300,) and len(draws) == 300
    assert not torch.equal(draws.z, fitted.draw(300).z)
    assert abs(draws.get_log_normalizer().item() - CONJUGATE_LOG_EVIDENCE) < 0.05


def test_inference_data(fitted, tmp_path):
    # Groups, dimensions from plates, deterministic sites; the evidence survives a netCDF round trip.
    idata = fitted.to_inference_data()
    assert idata["posterior"]["mu"].dims == ("chain", "draw")
    assert torch.allclose(
        torch.tensor(idata["posterior"]["twice"].values), 2 * fitted.get_samples(group_by_chain=True)["mu"]
    )
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert idata["observed_data"]["y"].dims == ("data",)
    stats = idata["sample_stats"]
    assert {"lp", "log_weight", "acceptance_rate", "diverging", "log_marginal_likelihood"} <= set(stats.data_vars)
    expected = dist.Normal(fitted.get_samples(group_by_chain=True)["mu"][..., None], 1.0).log_prob(Y)
    assert torch.allclose(torch.tensor(idata["log_likelihood"]["y"].values).float(), expected, atol=1e-5)
    lp = expected.sum(-1) + dist.Normal(0.0, 2.0).log_prob(fitted.get_samples(group_by_chain=True)["mu"])
    assert torch.allclose(torch.tensor(stats["lp"].values).float(), lp, atol=1e-4)
    path = str(tmp_path / "run.nc")
    idata.to_netcdf(path, engine="h5netcdf")
    import arviz

    table = compare_evidence({"now": fitted, "stored": arviz.from_netcdf(path, engine="h5netcdf")})
    assert table["log_evidence"].nunique() == 1 and table["posterior_prob"].tolist() == [0.5, 0.5]


def test_seed_makes_a_run_reproducible():
    # The same seed gives the same draws to the last bit, another seed others.
    first, second = (fit(conjugate, Y, num_iterations=20) for _ in range(2))
    assert torch.equal(first.get_samples()["mu"], second.get_samples()["mu"])
    pyro.set_rng_seed(1)
    third = OSDS(conjugate, num_samples=200, num_iterations=20, disable_progbar=True)
    third.run(Y)
    assert not torch.equal(first.get_samples()["mu"], third.get_samples()["mu"])


def test_steps_by_hand_train_like_svi():
    # step() trains, evaluate_loss() does not, and results are there afterwards.
    osds = OSDS(conjugate, num_samples=100, disable_progbar=True)
    losses = [osds.step(Y) for _ in range(30)]
    before = [p.clone() for p in osds.fit.leap.flow.parameters()]
    assert abs(osds.evaluate_loss(Y) + CONJUGATE_LOG_EVIDENCE) < 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, osds.fit.leap.flow.parameters(), strict=True))
    assert len(losses) == 30 and all(map(math.isfinite, losses))
    assert_within_standard_error(osds.log_evidence, CONJUGATE_LOG_EVIDENCE, osds.log_evidence_se)
    # Of other data the flow knows nothing, and the fit stays.
    evidence = osds.evidence
    with pytest.raises(ValueError, match="evaluate_loss was given other arguments than those that were fitted"):
        osds.evaluate_loss(Y + 3.0)
    assert osds.evidence is evidence


def test_an_init_strategy_says_where_to_look():
    # A flat prior and a narrow posterior a thousand units away: the strategy's point leads there.
    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 0.1), obs=torch.tensor(1000.0))

    strategy = init_to_value(values={"x": torch.tensor(999.0)})
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=200, num_iterations=50, init_strategy=strategy, disable_progbar=True)
    with pytest.warns(UserWarning, match="improper"):
        osds.run()
    draws = osds.get_samples()["x"]
    assert_within_standard_error(draws.mean(), 1000.0, 0.1 / math.sqrt(osds.diagnostics()["x"]["n_eff"].item()))


def test_from_log_prob():
    # Any batched density; the draws have the single site z.
    pyro.set_rng_seed(0)
    options = {"num_samples": 100, "num_iterations": 50, "disable_progbar": True}
    osds = OSDS.from_log_prob(lambda z: -0.5 * (z - 3).square().sum(-1), 2, **options)
    osds.run()
    assert_within_standard_error(osds.log_evidence, math.log(2 * math.pi), osds.log_evidence_se)
    assert osds.get_samples()["z"].shape == (400, 2)
    assert osds.to_inference_data()["posterior"]["z"].shape == (4, 100, 2)


def test_separated_modes_keep_their_weights():
    # Two modes of weight 1/4 and 3/4, twelve standard deviations apart: both are drawn, in proportion.
    weights = torch.tensor([0.25, 0.75])

    def log_prob(z):
        return torch.logsumexp(
            weights.log() - 0.5 * (z - torch.tensor([-6.0, 6.0])).square() - 0.5 * math.log(2 * math.pi), -1
        )

    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(log_prob, 1, num_iterations=50, disable_progbar=True)
    osds.run()
    assert_within_standard_error(osds.log_evidence, 0.0, osds.log_evidence_se)
    draws = osds.get_samples()["z"][:, 0]
    assert_within_standard_error((draws > 0).float().mean().item(), 0.75, math.sqrt(0.75 * 0.25 / len(draws)))


def test_standardised_coordinates_are_invisible():
    # A centred hierarchy is sampled in other coordinates, but its sites, draws and densities are the user's.
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("group", 6):
            pyro.sample("theta", dist.Normal(0.0, tau))

    osds = fit(model)
    assert osds.fit.target.standardized
    assert_within_standard_error(osds.log_evidence, 0.0, max(osds.log_evidence_se, 1e-6))
    samples = osds.get_samples()
    ratio = samples["theta"] / samples["tau"][:, None]
    assert_within_standard_error(ratio.std().item(), 1.0, 1 / math.sqrt(2 * ratio.numel()))


def test_improper_prior_gives_draws_and_refuses_the_evidence():
    # The site is named, draws are right, the log evidence is not a number.
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(UserWarning, match="'mu' is improper"):
        osds = fit(model, Y)
    assert math.isnan(osds.log_evidence) and not osds.evidence.reliable
    assert_within_standard_error(osds.get_samples()["mu"].mean().item(), Y.mean().item(), 5**-0.5 / math.sqrt(800))


@pytest.mark.parametrize("correction", ["imh", "psis", "none"])
def test_corrections(correction):
    # Each way of choosing posterior draws gives the exact posterior mean when the flow is nearly exact.
    osds = fit(conjugate, Y, correction=correction)
    mu = osds.get_samples()["mu"]
    assert_within_standard_error(mu.mean().item(), POSTERIOR_MEAN, POSTERIOR_SD / math.sqrt(len(mu) / 2))


def test_several_steps_stay_exact():
    # A leap in four steps has exact weights as well.
    osds = fit(conjugate, Y, num_steps=4)
    assert_within_standard_error(osds.log_evidence, CONJUGATE_LOG_EVIDENCE, osds.log_evidence_se)


def test_draws_in_another_number_of_steps(fitted):
    # A copy of the flow learns them; the weights are exact, and the leap in one step is as it was.
    before = fitted.trainer.leap.flow.state_dict()["blocks.0.network.line.weight"].clone()
    draws = fitted.draw(2000, num_steps=2)
    estimate, std_error = log_mean_weight(draws.log_weights)
    assert_within_standard_error(estimate, CONJUGATE_LOG_EVIDENCE, std_error)
    assert effective_sample_size(draws.log_weights) > 1500
    assert torch.equal(before, fitted.trainer.leap.flow.state_dict()["blocks.0.network.line.weight"])


@pytest.mark.parametrize("num_steps", [0, 3, True, 2.0])
def test_numbers_of_steps_are_powers_of_two(fitted, num_steps):
    # For draws and for the sampler.
    with pytest.raises(ValueError, match="num_steps must be"):
        fitted.draw(10, num_steps=num_steps)
    with pytest.raises(ValueError, match="num_steps must be"):
        OSDS(conjugate, num_steps=num_steps)


def two_modes(z):
    locs = torch.tensor([[-4.0, 0.0], [4.0, 1.0]])
    square = (z[:, None] - locs).square().sum(-1)
    return torch.logsumexp(torch.tensor([0.3, 0.7]).log() - 0.5 * square, -1) - math.log(2 * math.pi)


@pytest.fixture(scope="module")
def distilled():
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        osds = OSDS.from_log_prob(
            two_modes,
            2,
            recipe="distill",
            num_time_steps=4,
            num_iterations=40,
            batch_size=64,
            num_samples=500,
            disable_progbar=True,
        )
        osds.run()
        return osds


def test_a_distilled_flow_knows_all_dyadic_steps(distilled):
    # The evidence is right in one, two and four steps of the same network, and both modes are drawn.
    for num_steps in (1, 2, 4):
        draws = distilled.draw(4000, num_steps=num_steps)
        estimate, std_error = log_mean_weight(draws.log_weights)
        assert_within_standard_error(estimate, 0.0, std_error)
        weight = torch.softmax(draws.log_weights.double(), 0)
        share = (weight * (draws.z[:, 0] > 0)).sum()
        ess = effective_sample_size(draws.log_weights)
        assert_within_standard_error(share, 0.7, math.sqrt(0.21 / ess))


def test_every_loss_term_is_stored(distilled):
    # Teacher, distillation and calibration, one value an iteration.
    stats = distilled.to_inference_data()["fit_stats"]
    num_steps = len(stats["loss"])
    for name in ("state_consistency", "volume_consistency", "exact_volume", "cover_log_variance"):
        assert len(stats[name]) == num_steps and np.isfinite(stats[name]).any()
    assert len(stats["teacher_score_matching"]) == 300 and len(stats["teacher_path_log_variance"]) == 60
    assert np.isfinite(stats["state_consistency"][:300]).all() and np.isnan(stats["state_consistency"][300:]).all()


def test_the_published_network_is_never_called_reliable():
    # It runs, it draws, and the verdict says what its weights are worth.
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(
        two_modes, 2, network="velocity", num_time_steps=4, num_iterations=10, num_samples=250, disable_progbar=True
    )
    with pytest.warns(UserWarning, match="no bijection"):
        osds.run()
    assert not osds.evidence.reliable and "no bijection" in osds.evidence.reasons[0]
    assert len(osds.draw(100, num_steps=2)) == 100
    assert {"path_reverse_kl", "state_consistency", "volume_consistency"} <= set(osds.to_inference_data()["fit_stats"])


@pytest.mark.parametrize("option", ["recipe", "network", "volume"])
def test_unknown_choices(option):
    # The message lists what there is.
    with pytest.raises(ValueError, match=f"{option} must be one of .*, got 'magic'"):
        OSDS(conjugate, **{option: "magic"})


def half_plane(z):
    inside = -0.5 * z.square().sum(-1) - math.log(math.pi)
    return torch.where(z[:, 0] > 0, inside, -torch.inf)


def pole(z):
    log_gamma = -0.5 * z[:, 0].abs().log() - z[:, 0].abs() - math.log(2 * math.gamma(0.5))
    return log_gamma - 0.5 * z[:, 1].square() - 0.5 * math.log(2 * math.pi)


def far_apart(z):
    square = (z[:, None] - torch.tensor([[0.0, 0.0], [100.0, 0.0]])).square().sum(-1)
    return torch.logsumexp(-0.5 * square, -1) - math.log(4 * math.pi)


@pytest.mark.parametrize(
    ("log_prob_fn", "options"),
    [
        (half_plane, {}),
        (pole, {"escalate": False}),
        pytest.param(pole, {}, marks=pytest.mark.long),  # climbs all the stages
        (far_apart, {}),
    ],
)
def test_hard_densities_end_with_an_honest_verdict(log_prob_fn, options):
    # An edge, a pole of the score, modes a hundred widths apart: nothing is nan, and reliable means right.
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(log_prob_fn, 2, num_iterations=150, num_samples=500, disable_progbar=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run()
    evidence = osds.evidence
    assert osds.get_samples()["z"].isfinite().all() and math.isfinite(evidence.log_evidence)
    if evidence.reliable:
        assert_within_standard_error(evidence.log_evidence, 0.0, evidence.std_error)


def test_a_lost_mode_shows(monkeypatch):
    # Exploration saw both modes, the leap starts from a Gaussian in one of them: the verdict tells.
    def one_sided(target, *args, **kwargs):
        found = survey(target, *args, **kwargs)
        z = found.exploration.z
        return dataclasses.replace(found, base=gaussian_base(z[z[:, 0] > 0]))

    monkeypatch.setattr("pyro_osds.explore.stopped.survey", one_sided)
    pyro.set_rng_seed(0)
    osds = OSDS.from_log_prob(
        two_modes, 2, recipe="calibrate", num_iterations=60, num_samples=500, escalate=False, disable_progbar=True
    )
    with pytest.warns(UserWarning) as caught:
        osds.run()
    told = " ".join(str(warning.message) for warning in caught)
    assert "a mode may be lost" in told and "search found a log mass" in told
    assert not osds.evidence.reliable


def test_interrupted_training_keeps_what_it_has(monkeypatch):
    # Ctrl-C in the middle of training: a warning, and results from the best weights so far.
    calls = []
    original = Trainer.step

    def interrupted(self):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        osds = fit(conjugate, Y)
    assert osds.trainer.history.interrupted
    assert_within_standard_error(osds.log_evidence, CONJUGATE_LOG_EVIDENCE, osds.log_evidence_se)


# ---- bad input: what was wrong, what was got, the cure ----


def test_results_before_run():
    with pytest.raises(RuntimeError, match=r"call run\(\.\.\.\)"):
        OSDS(conjugate).get_samples()


@pytest.mark.parametrize("name", ["num_samples", "num_chains", "num_steps", "num_iterations", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_must_be_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value!r}"):
        OSDS(conjugate, **{name: value})


def test_model_must_be_callable():
    with pytest.raises(TypeError, match="model must be callable, got Tensor"):
        OSDS(Y)


def test_unknown_correction():
    with pytest.raises(ValueError, match="correction must be one of"):
        OSDS(conjugate, correction="mcmc")


def test_a_model_without_latents_has_an_exact_evidence(capsys):
    # Nothing to sample: no draws, and the log likelihood is the log evidence, without an error but rounding.
    def model(y):
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([5]).to_event(1), obs=y)

    osds = fit(model, Y)
    expected = dist.Normal(0.0, 1.0).log_prob(Y).sum().item()
    assert osds.get_samples() == {} and osds.evidence.reliable and osds.log_evidence_se < 1e-6
    assert math.isclose(osds.log_evidence, expected, rel_tol=1e-6)
    assert math.isclose(osds.step(Y), -expected, rel_tol=1e-6)
    assert osds.to_inference_data()["fit"]["log_evidence"].item() == osds.log_evidence
    osds.summary()
    assert "log evidence" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_density_that_is_never_finite(value):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bad", x * 0 + value)

    with pytest.raises(ValueError, match="'bad'"):
        fit(model)


def test_observation_outside_its_support():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("waiting", dist.Exponential(rate), obs=y)

    with pytest.raises(ValueError, match=r"'waiting' has the value -1\.0 at index \(1,\).*outside its support"):
        fit(model, torch.tensor([0.5, -1.0]))


def test_discrete_latent():
    def model():
        count = pyro.sample("count", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(count, 1.0), obs=torch.tensor(2.0))

    with pytest.raises(ValueError, match=r"'count' is discrete \(Poisson\)"):
        fit(model)


def test_subsampled_plate():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.raises(ValueError, match="'data' subsamples 2 of 5 rows"):
        fit(model, Y)


def test_data_of_the_wrong_dtype():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"after site 'w'.*torch\.int64 \(3, 2\)"):
        fit(model, torch.ones(3, 2, dtype=torch.long), torch.zeros(3))


def test_float64_data_run_in_float64():
    # Everything is promoted, and the evidence is the same.
    osds = fit(conjugate, Y.double())
    assert osds.draw(5).log_weights.dtype == torch.float64
    assert_within_standard_error(osds.log_evidence, CONJUGATE_LOG_EVIDENCE, osds.log_evidence_se)


def test_log_prob_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"must map \(B, 2\) to \(B,\)"):
        OSDS.from_log_prob(lambda z: -z.square(), 2)
    with pytest.raises(ValueError, match="dim must be a positive integer, got 0"):
        OSDS.from_log_prob(lambda z: -z.square().sum(-1), 0)


def test_a_failed_run_loses_nothing():
    # An error on new data leaves the earlier results in place.
    osds = fit(conjugate, Y)
    before = osds.get_samples()["mu"]
    with pytest.raises(ValueError, match="before its first sample site|after site"):
        osds.run(None)
    assert torch.equal(osds.get_samples()["mu"], before)


def test_initial_params():
    # Unconstrained values by site are where a model without a proper prior is looked for first.
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([5]).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="improper"):
        osds = fit(model, Y + 500, initial_params={"mu": torch.tensor(500.0)})
    assert abs(osds.get_samples()["mu"].mean().item() - Y.mean().item() - 500) < 0.2
    with pytest.raises(ValueError, match=r"lacks the latent sites \['mu'\]"):
        fit(model, Y, initial_params={"nu": torch.tensor(0.0)})


def test_max_plate_nesting():
    with pytest.raises(ValueError, match="'y' lies 1 plates deep, but max_plate_nesting is 0"):
        fit(conjugate, Y, max_plate_nesting=0)
