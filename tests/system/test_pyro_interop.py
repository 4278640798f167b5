"""OSDS in the hands of Pyro: guide, coordinates for NUTS, optimisers, discrete latents, reparametrised models."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from models import (
    CONJUGATE_LOG_EVIDENCE,
    CONJUGATE_MEAN,
    CONJUGATE_SD,
    CONJUGATE_Y,
    schools_centred,
)
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    Importance,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    WeighedPredictive,
    config_enumerate,
)
from pyro.infer.reparam import AutoReparam, LocScaleReparam, NeuTraReparam
from torch.distributions import biject_to

from pyro_osds import OSDS
from pyro_osds.explore.symmetry.ordering import OrderedTarget
from pyro_osds.stats.weights import log_mean_weight, weigh

GROUPS_Y = torch.tensor([-2.3, -1.4, -2.0, -1.1, -2.9, -1.8, -0.2, 1.7, 2.4, 2.1, 1.2, 2.8, 1.9, 0.1])
HIERARCHY_Y = torch.tensor([0.3, 1.9, -0.6])
HIERARCHY_LOG_EVIDENCE = dist.MultivariateNormal(torch.zeros(3), 4.0 + 1.25 * torch.eye(3)).log_prob(HIERARCHY_Y).item()


def fit(model, *args, num_iterations=60, **options):
    """A small run, whatever happens around it."""
    options = {"num_samples": 100, "num_particles": 24, "escalate": False, "disable_progbar": True, **options}
    osds = OSDS(model, num_iterations=num_iterations, **options)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        with warnings.catch_warnings():
            # So small a run need not be reliable; what is tested here is exact for any flow.
            warnings.simplefilter("ignore", UserWarning)
            osds.run(*args)

    return osds


def conjugate(y=None):
    """A normal mean; the posterior is normal with CONJUGATE_MEAN and CONJUGATE_SD."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 5):
        return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def supports():
    """A support of every kind, one that depends on a latent, plates in plates, event dimensions."""
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("group", 2):
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        with pyro.plate("member", 2):
            pyro.sample("share", dist.Beta(2.0, rate))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    width = pyro.sample("width", dist.Uniform(torch.zeros(()), 1.0 + p[..., 0]))
    y = torch.tensor([0.5, 0.3])
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=y)
    pyro.sample("x", dist.Normal(width, 1.0), obs=torch.tensor(1.0))


def hierarchy():
    """Rows with a common mean; all is normal, so the evidence is known."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("row", 3):
        theta = pyro.sample("theta", dist.Normal(mu, 0.5))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=HIERARCHY_Y)


@config_enumerate
def mixture():
    """Two components that may trade places, and the component of each row."""
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(GROUPS_Y)):
        z = pyro.sample("z", dist.Categorical(weight))
        pyro.sample("y", dist.Normal(torch.where(z == 1, mu[..., 1:], mu[..., :1]), 1.0), obs=GROUPS_Y)


@pytest.fixture(scope="module")
def simple():
    return fit(conjugate, torch.tensor(CONJUGATE_Y))


@pytest.fixture(scope="module")
def schools():
    return fit(schools_centred)


@pytest.fixture(scope="module")
def mixed():
    osds = OSDS(supports, num_samples=100, num_particles=16, disable_progbar=True)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        for _ in range(5):
            osds.step()

    return osds


@pytest.fixture(scope="module")
def groups():
    return fit(mixture)


# ---- the guide ----


def flow_log_prob(osds, trace):
    """Log density of the values in a guide's trace, computed from the values alone: their way back through the flow."""
    target = osds.fit.target
    names = {site.name for site in osds.fit.model_target.sites}
    values = {name: trace.nodes[name]["value"][None] for name in names}
    u = target.from_samples(values)
    with torch.no_grad():
        log_prob = osds.fit.leap.plain.log_prob(u)
        if isinstance(target, OrderedTarget):
            log_prob = log_prob - target.log_abs_det(u) - math.log(2)
        _, log_abs_det = osds.fit.model_target.constrain_with_log_abs_det(osds.fit.target.to_target(u))

    return (log_prob - sum(part.sum() for part in log_abs_det.values())).item()


@pytest.mark.parametrize("name", ["simple", "schools", "mixed", "groups"])
def test_density_of_the_guide(name, request):
    # A trace's density is that of its values, whichever way it is reached: supports, coordinates, orders.
    osds = request.getfixturevalue(name)
    for _ in range(3):
        trace = poutine.trace(osds.guide).get_trace()
        assert trace.log_prob_sum().item() == pytest.approx(flow_log_prob(osds, trace), abs=5e-3)


@pytest.mark.parametrize("name", ["simple", "schools", "mixed"])
def test_weights_of_the_guide(name, request):
    # Draw by draw, Pyro's weight is that of the flow, of which our ELBO is the mean.
    osds = request.getfixturevalue(name)
    for _ in range(3):
        trace = poutine.trace(osds.guide).get_trace()
        replayed = poutine.trace(poutine.replay(osds.model, trace=trace)).get_trace(*osds._args)
        z = trace.nodes["_osds_latent"]["value"][None]
        with torch.no_grad():
            expected = osds.fit.target.log_prob(z) - osds.fit.leap.plain.log_prob(z)
        assert (replayed.log_prob_sum() - trace.log_prob_sum()).item() == pytest.approx(expected.item(), abs=5e-3)


def test_coordinates_and_orders_are_those_that_are_to_be_tested(schools, groups):
    # Otherwise the tests above and below would prove less than they say.
    assert schools.fit.model_target.standardized
    assert isinstance(groups.fit.target, OrderedTarget)


def test_log_determinants_are_those_of_pyro(mixed):
    # By site and row, as Pyro's transforms have them.
    with torch.no_grad():
        z = mixed.fit.settle().sample(4)[0]
    values, log_abs_det = mixed.fit.model_target.constrain_with_log_abs_det(z)
    nodes = poutine.trace(poutine.condition(supports, {n: v[0] for n, v in values.items()})).get_trace().nodes
    for name, value in values.items():
        transform = biject_to(nodes[name]["fn"].support)
        expected = transform.log_abs_det_jacobian(transform.inv(value[0]), value[0])
        rows = nodes[name]["fn"].batch_shape
        assert log_abs_det[name].dtype == torch.float64
        expected = expected.reshape(*rows, -1).sum(-1).double()
        torch.testing.assert_close(log_abs_det[name][0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["simple", "schools"])
def test_importance(name, request):
    # Pyro weighs the guide's draws with the model that it runs itself, and finds the same evidence.
    osds = request.getfixturevalue(name)
    model, args = osds.model, osds._args
    importance = Importance(model, guide=osds.guide, num_samples=100).run(*args)
    estimate, std_error = log_mean_weight(torch.stack(importance.log_weights))
    assert_within_standard_error(estimate, osds.log_evidence, math.hypot(std_error, osds.log_evidence_se))
    assert importance.get_ESS() > 30


def test_elbo(simple, schools, groups):
    # The loss of SVI is minus our ELBO: one draw after the other, and with discrete latents summed out.
    for osds, elbo in (
        (simple, Trace_ELBO(num_particles=50)),
        (schools, Trace_ELBO(num_particles=100)),
        (groups, TraceEnum_ELBO(num_particles=50, max_plate_nesting=1)),
    ):
        spread = weigh(osds.fit.leap.plain, osds.fit.target, 1000).log_weight.std().item()
        loss = elbo.loss(osds.model, osds.guide, *osds._args)
        assert_within_standard_error(-loss, osds.evidence.elbo, spread / math.sqrt(elbo.num_particles) + 1e-3)


def test_particles_in_a_batch(schools, mixed, groups):
    # In an outermost plate: over supports, plates, event dimensions, and dimensions that Pyro enumerates.
    for osds, elbo in ((schools, Trace_ELBO), (groups, TraceEnum_ELBO)):
        spread = weigh(osds.fit.leap.plain, osds.fit.target, 1000).log_weight.std().item()
        loss = elbo(num_particles=500, vectorize_particles=True, max_plate_nesting=1).loss(osds.model, osds.guide)
        assert_within_standard_error(-loss, osds.evidence.elbo, spread / math.sqrt(500) + 1e-3)
    with pyro.plate("outer", 4, dim=-3):
        draw = mixed.guide()
    shapes = {"p": (4, 1, 1, 3), "rate": (4, 1, 2), "share": (4, 2, 2), "factor": (4, 1, 1, 2, 2), "width": (4, 1, 1)}
    assert {name: tuple(draw[name].shape) for name in shapes} == shapes


def test_predictive(simple):
    # Without data the model predicts them; the flow is nearly the posterior.
    predicted = Predictive(conjugate, guide=simple.guide, num_samples=200)()
    variance = CONJUGATE_SD**2 + 1.0 / 5
    assert_within_standard_error(predicted["y"].mean(), CONJUGATE_MEAN, math.sqrt(variance / 200))
    batch = Predictive(conjugate, guide=simple.guide, num_samples=1000, parallel=True)()
    assert_within_standard_error(batch["y"].mean(), CONJUGATE_MEAN, math.sqrt(variance / 1000))


def test_weighed_predictive(simple):
    # Its weights are those of the evidence.
    y = torch.tensor(CONJUGATE_Y)
    weighed = WeighedPredictive(conjugate, guide=simple.guide, num_samples=1000, parallel=True)(
        model_guide=lambda: conjugate(y)
    )
    estimate, std_error = log_mean_weight(weighed.log_weights)
    assert_within_standard_error(estimate, CONJUGATE_LOG_EVIDENCE, std_error + 1e-4)


def test_what_has_no_guide(simple):
    # A log density has no sites, and before a run there is no flow.
    osds = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 2, num_particles=8, disable_progbar=True)
    with pytest.raises(RuntimeError, match="call run"):
        _ = osds.guide
    osds.step()
    for ask in (lambda: osds.guide, osds.neutra):
        with pytest.raises(ValueError, match="needs a Pyro model"):
            ask()
    with pytest.raises(TypeError, match="AutoContinuous"):
        NeuTraReparam(simple.guide)


# ---- NeuTra ----


def test_neutra_is_the_same_density(schools, mixed, groups):
    # At any point of the base: the density of the model there, times the volumes of flow and transforms.
    for osds in (schools, mixed, groups):
        for x in 0.5 * torch.randn(3, osds.fit.target.dim):
            model = poutine.condition(osds.neutra().reparam(osds.model), {"osds_shared_latent": x})
            with torch.no_grad():
                u, log_abs_det = osds.fit.leap(x[None])
                expected = osds.fit.target.log_prob(u) + log_abs_det
                got = -TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False).loss(model, lambda: None)
            assert got == pytest.approx(expected.item(), abs=1e-2)


def test_neutra_under_nuts(schools):
    # Moments within their errors, no divergences.
    neutra = schools.neutra()
    mcmc = MCMC(NUTS(neutra.reparam(schools_centred), max_tree_depth=3), 40, 20, disable_progbar=True)
    mcmc.run()
    draws = neutra.transform_sample(mcmc.get_samples(group_by_chain=True)["osds_shared_latent"])
    assert draws["theta"].shape == (1, 40, 8) and (draws["tau"] > 0).all()
    exact = schools.get_samples()
    assert len(mcmc.diagnostics()["divergences"]["chain 0"]) <= 1
    for name in ("mu", "theta"):
        sd = exact[name].std(0)
        distance = (draws[name][0].mean(0) - exact[name].mean(0)) / (sd * math.sqrt(1 / 15 + 1 / 100))
        assert (distance.abs() < 5).all()


def test_neutra_refuses_what_it_cannot_do():
    # A scaled latent: Pyro would scale the Jacobian, too.
    osds = OSDS(poutine.scale(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), scale=2.0), num_particles=8)
    osds.step()
    with pytest.raises(ValueError, match="without poutine.scale"):
        osds.neutra()


# ---- optimisers ----


@pytest.mark.parametrize(
    "optim",
    [
        pyro.optim.ClippedAdam({"lr": 5e-3, "clip_norm": 1.0}),
        pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 5e-3}, "gamma": 0.99}),
    ],
    ids=["ClippedAdam", "ExponentialLR"],
)
def test_pyro_optimisers(optim):
    # The evidence is right with them, their schedule takes every step, and step() is SVI's.
    osds = fit(conjugate, torch.tensor(CONJUGATE_Y), optim=optim, num_iterations=30)
    assert_within_standard_error(osds.log_evidence, CONJUGATE_LOG_EVIDENCE, osds.log_evidence_se)
    trainer = osds.trainer
    if isinstance(optim, pyro.optim.PyroLRScheduler):
        done = len(trainer.history.loss)
        assert trainer._optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 * 0.99**done)
        osds.step(torch.tensor(CONJUGATE_Y))
        assert trainer._optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 * 0.99 ** (done + 1))
    else:
        assert type(trainer._optimizer).__name__ == "ClippedAdam"


def test_other_optimisers():
    # Neither torch's own, nor for the velocity network.
    with pytest.raises(TypeError, match="one of pyro.optim"):
        OSDS(conjugate, optim=torch.optim.Adam)
    with pytest.raises(ValueError, match="network='coupling'"):
        OSDS(conjugate, optim=pyro.optim.Adam({}), network="velocity")


# ---- discrete latents ----


def test_discrete_latents_of_a_mixture(groups):
    # Given the continuous draws the probability of each class is known: the shares of draws agree with its mean.
    draws = groups.infer_discrete(num_draws=200)
    assert draws["z"].shape == (200, len(GROUPS_Y)) and draws["mu"].shape == (200, 2)
    logits = draws["weight"].log()[:, None] + dist.Normal(draws["mu"][:, None], 1.0).log_prob(GROUPS_Y[:, None])
    probabilities = logits.softmax(-1)[..., 1]
    surprise = draws["z"] - probabilities
    std_error = (probabilities * (1 - probabilities)).mean(0).div(200).sqrt() + 1e-3
    assert (surprise.mean(0).abs() < 5 * std_error).all()
    # The most probable values are those of each row, since rows are independent.
    best = groups.infer_discrete(num_draws=20, temperature=0)
    logits = best["weight"].log()[:, None] + dist.Normal(best["mu"][:, None], 1.0).log_prob(GROUPS_Y[:, None])
    assert torch.equal(best["z"], logits.argmax(-1))


def test_discrete_latents_of_a_hidden_markov_model():
    # Against all paths counted one by one, given the same continuous draws.
    y = torch.tensor([0.2, 2.2, 1.7])
    stay = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model():
        loc = pyro.sample("loc", dist.Normal(2.0, 0.5))
        state = 0
        for t in pyro.markov(range(len(y))):
            state = pyro.sample(f"state_{t}", dist.Categorical(stay[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc * state, 1.0), obs=y[t])

    draws = fit(model, num_iterations=20).infer_discrete(num_draws=100)
    states = torch.stack([draws[f"state_{t}"] for t in range(len(y))], -1)
    paths = torch.tensor(list(itertools.product((0, 1), repeat=len(y))))
    before = torch.cat([torch.zeros(len(paths), 1, dtype=torch.long), paths[:, :-1]], 1)
    log_prior = stay[before, paths].log().sum(-1)
    log_likelihood = dist.Normal(draws["loc"][:, None, None] * paths, 1.0).log_prob(y).sum(-1)
    probabilities = (log_prior + log_likelihood).softmax(-1) @ paths.float()
    std_error = (probabilities * (1 - probabilities)).mean(0).div(100).sqrt()
    assert ((states - probabilities).mean(0).abs() < 5 * std_error).all()


def test_infer_discrete_refuses_what_it_cannot_do(simple, groups):
    # Each names its cure.
    with pytest.raises(ValueError, match="get_samples"):
        simple.infer_discrete()
    with pytest.raises(ValueError, match="at most the 400"):
        groups.infer_discrete(num_draws=401)
    with pytest.raises(ValueError, match="temperature"):
        groups.infer_discrete(temperature=2)


# ---- reparametrised models ----


@pytest.mark.parametrize("config", [{"theta": LocScaleReparam(0.0)}, AutoReparam()], ids=["LocScale", "Auto"])
def test_reparametrised_models(config):
    # The evidence does not depend on the parametrisation; what a site once was is in the posterior, and no observation.
    osds = fit(poutine.reparam(hierarchy, config=config), num_iterations=20)
    assert_within_standard_error(osds.log_evidence, HIERARCHY_LOG_EVIDENCE, osds.log_evidence_se + 1e-4)
    data = osds.to_inference_data()
    assert data.posterior["theta"].dims == ("chain", "draw", "row")
    assert list(data.observed_data) == ["y"] and list(data.log_likelihood) == ["y"]
    if isinstance(config, dict):
        theta, decentred = data.posterior["theta"].values, data.posterior["theta_decentered"].values
        assert theta == pytest.approx(data.posterior["mu"].values[..., None] + 0.5 * decentred, abs=1e-4)


# ---- parameters ----


def test_parameters_keep_the_values_of_the_run():
    # Changed or forgotten afterwards, they change neither draws nor weights; the next run reads them again.
    def model(y):
        loc = pyro.param("loc", torch.tensor(2.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        x = pyro.sample("x", dist.LogNormal(loc, scale))
        pyro.sample("y", dist.Normal(x.log(), 1.0), obs=y)

    def log_evidence(loc):
        return dist.Normal(loc, math.sqrt(5.0)).log_prob(torch.tensor(1.0)).item()

    y = torch.tensor(1.0)
    osds = fit(model, y, num_iterations=20)
    draws = osds.get_samples()["x"]
    for change in (lambda: pyro.get_param_store().__setitem__("loc", torch.tensor(5.0)), pyro.clear_param_store):
        change()
        estimate, std_error = log_mean_weight(osds.draw(50).log_weights)
        assert_within_standard_error(estimate, log_evidence(2.0), std_error + 1e-4)
        prior = osds.prior_predictive(num_draws=200)["x"].log()
        assert_within_standard_error(prior.mean().item(), 2.0, 2.0 / math.sqrt(200))
        read = osds.to_inference_data().log_likelihood["y"].values.reshape(-1)
        assert read == pytest.approx(dist.Normal(draws.log(), 1.0).log_prob(y).numpy(), abs=1e-4)
    pyro.param("loc", torch.tensor(5.0))
    osds.run(y)
    assert_within_standard_error(osds.log_evidence, log_evidence(5.0), osds.log_evidence_se + 1e-4)


def test_weights_of_modules_stay_in_their_modules():
    # A network's weights are not replaced, whatever becomes of the parameter store.
    network = torch.nn.Linear(1, 1)

    def model():
        pyro.module("network", network, update_module_params=True)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(network(x[None])[0], 1.0), obs=torch.tensor(0.5))

    weight = network.weight
    osds = fit(model, num_iterations=1)
    pyro.clear_param_store()
    assert osds.draw(10).samples["x"].shape == (10,)
    assert network.weight is weight and weight.grad is None
