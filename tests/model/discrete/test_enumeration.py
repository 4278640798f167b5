"""Discrete latents summed out: against brute force over all assignments, site by site and row by row."""

import contextlib
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.discrete.enumeration import Enumerate, pointwise, sum_out
from pyro_osds.model.discrete.supports import is_enumerable

Y = torch.tensor([-1.5, 0.3, 2.0])


def mixture():
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=Y.to(loc))


def one_of_three():
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    k = pyro.sample("k", dist.Categorical(weights))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(torch.tensor([-1.0, 0.0, 1.0])[k], 1.0), obs=Y.to(weights))


def nested():
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    top = pyro.sample("top", dist.Bernoulli(p))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[top.long()]))
        pyro.sample("y", dist.Normal(p * k, 1.0), obs=Y.to(p))


def nested_plates():
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("columns", 2, dim=-1):
        side = pyro.sample("side", dist.Bernoulli(0.3))
        with pyro.plate("rows", 2, dim=-2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.6, 0.4])))
            y = torch.tensor([[0.1, -0.2], [1.0, 2.0]])
            pyro.sample("y", dist.Normal(side + 2 * k - 1, scale), obs=y)


def plates_side_by_side():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.4))
    for name, rows in (("first", 2), ("second", 3)):
        with pyro.plate(name, rows):
            j = pyro.sample(f"{name}_j", dist.Bernoulli(0.2 + 0.5 * k))
            pyro.sample(f"{name}_y", dist.Normal(loc + j - k, 1.0), obs=Y[:rows].to(loc))


def hidden_markov():
    stay = pyro.sample("stay", dist.Beta(8.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    state = 0
    for t in pyro.markov(range(4)):
        state = pyro.sample(f"state_{t}", dist.Bernoulli(torch.stack([1 - stay, stay])[state])).long()
        pyro.sample(f"y_{t}", dist.Normal(loc[state], 1.0), obs=torch.tensor([0.5, -1.0, 2.0, 2.1][t]))


def parent_of_a_latent():
    k = pyro.sample("k", dist.Bernoulli(0.3))
    x = pyro.sample("x", dist.Normal(3.0 * k, 1.0 + k))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))


def parents_in_a_plate():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Bernoulli(p))
        x = pyro.sample("x", dist.LogNormal(k, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0 + k), obs=Y.to(p))


def energy():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
    pyro.factor("energy", -(x**2) * k)


def sequential():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
    j = pyro.sample("j", dist.Bernoulli(0.1 + 0.5 * k), infer={"enumerate": "parallel"})
    pyro.sample("y", dist.Normal(x + k + j, 1.0), obs=torch.tensor(0.5))


@config_enumerate(default="sequential")
def decorated():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Binomial(3, 0.4))
    pyro.sample("y", dist.Normal(x * k, 1.0), obs=torch.tensor(0.5))


def decorated_by(handler, on_all=False):
    """A switch of which only the density, or everything else too, is scaled or masked."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with handler if on_all else contextlib.nullcontext(), pyro.plate("data", 3):
            with contextlib.nullcontext() if on_all else handler:
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("y", dist.Normal(x * (2 * k - 1), 1.0), obs=Y.to(x))

    return model


def scaled_parent():
    with poutine.scale(scale=2.0):
        k = pyro.sample("k", dist.Bernoulli(0.3))
    x = pyro.sample("x", dist.Normal(3.0 * k, 1.0))
    with poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(x + k, 1.0), obs=torch.tensor(1.0))


MASK = torch.tensor([True, False, True])
MODELS = {
    **{
        model.__name__: model
        for model in (
            mixture, one_of_three, nested, nested_plates, plates_side_by_side, hidden_markov, parent_of_a_latent,
            parents_in_a_plate, energy, sequential, decorated, scaled_parent,
        )
    },
    "scaled switch": decorated_by(poutine.scale(scale=2.0)),
    "masked switch": decorated_by(poutine.mask(mask=MASK)),
    "scaled rows": decorated_by(poutine.scale(scale=2.0), on_all=True),
    "masked rows": decorated_by(poutine.mask(mask=MASK), on_all=True),
}  # fmt: skip

# ---- brute force ----


def latent_sites(trace):
    nodes = trace.nodes.items()

    return {
        n: s for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and type(s["fn"]) is not _Subsample
    }


def brute_force(model, u, with_observations=True):
    """The log of the sum over all assignments of the discrete latents, each from a trace of Pyro's own.

    Arguments:
        model: The model.
        u: Unconstrained values of the continuous latents.
        with_observations: Whether observed sites count.
    """
    with pyro.validation_enabled(False):
        sites = latent_sites(poutine.trace(model).get_trace())
        discrete = {name: site["fn"] for name, site in sites.items() if name not in u}
        choices = []
        for fn in discrete.values():
            values = fn.enumerate_support(expand=False).flatten()
            rows = itertools.product(values, repeat=fn.batch_shape.numel())
            choices.append([torch.stack(row).reshape(fn.batch_shape) for row in rows])
        terms = []
        for assignment in itertools.product(*choices):
            fixed = dict(zip(discrete, assignment, strict=True))
            values, jacobians = {}, torch.zeros(())
            # Supports do not depend on latents in these models.
            for name, value in u.items():
                transform = biject_to(sites[name]["fn"].support)
                values[name] = transform(value)
                jacobians = jacobians + transform.log_abs_det_jacobian(value, values[name]).sum()
            trace = poutine.trace(poutine.condition(model, {**values, **fixed})).get_trace()
            trace.compute_log_prob()
            counted = [
                site["log_prob_sum"]
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and (with_observations or name in sites)
            ]
            terms.append(sum(counted) + jacobians)

    return torch.logsumexp(torch.stack(terms), 0)


def by_site(target, row):
    return {s.name: row[s.start : s.stop].reshape(s.unconstrained_shape) for s in target.sites}


@pytest.fixture(scope="module")
def targets():
    """One target for each model, built in double precision when it is first asked for."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = ModelTarget(MODELS[name])
        return built[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_density_is_the_sum_over_all_assignments(float64, targets, name):
    # Values and gradients.
    target = targets(name)
    assert target.vectorized and target.discrete_sites
    z = torch.randn(4, target.dim, requires_grad=True)
    got = target.log_prob(z)
    expected = torch.stack([brute_force(MODELS[name], by_site(target, row)) for row in z])
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", MODELS)
def test_prior_and_likelihood(float64, targets, name):
    # The prior is the sum without observations; the likelihood is what observations add.
    target = targets(name)
    z = torch.randn(4, target.dim)
    log_prior, log_likelihood = target.log_prior_and_likelihood(z)
    points = [by_site(target, row) for row in z]
    expected = torch.stack([brute_force(MODELS[name], u, with_observations=False) for u in points])
    torch.testing.assert_close(log_prior + log_likelihood, target.log_prob(z))
    torch.testing.assert_close(log_prior, expected)


def test_prior_and_likelihood_by_formula(float64, targets):
    # One switch above a normal latent: two terms each.
    target = targets("parent_of_a_latent")
    x = torch.tensor([0.3, -1.0])
    log_prior, log_likelihood = target.log_prior_and_likelihood(x[:, None])
    density = 0.7 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.3 * dist.Normal(3.0, 2.0).log_prob(x).exp()
    torch.testing.assert_close(log_prior, density.log())
    torch.testing.assert_close(log_likelihood, dist.Normal(x, 1.0).log_prob(torch.tensor(1.0)))


def test_a_large_mixture_is_summed_row_by_row(float64):
    # 2^200 assignments: the sum factorises, and there is no other way.
    y = torch.randn(200)

    def model():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 200):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(3 * k, 1.0), obs=y)

    z = torch.tensor([[0.4]])
    p = z[0, 0].sigmoid()
    rows = (1 - p) * dist.Normal(0.0, 1.0).log_prob(y).exp() + p * dist.Normal(3.0, 1.0).log_prob(y).exp()
    _, log_likelihood = ModelTarget(model).log_prior_and_likelihood(z)
    torch.testing.assert_close(log_likelihood[0], rows.log().sum())


def test_a_long_chain_is_summed_step_by_step(float64):
    # 2^100 paths: the forward algorithm.
    y = torch.randn(100)
    first, step = torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        state = None
        for t in pyro.markov(range(100)):
            state = pyro.sample(f"x_{t}", dist.Categorical(first if state is None else step[state]))
            pyro.sample(f"y_{t}", dist.Normal(loc + 2.0 * state, 1.0), obs=y[t])

    # The loop is enough: a graph of the whole chain would take longer than the test.
    target = ModelTarget(model, vectorize="loop")
    z = torch.tensor([[0.4]])
    likelihood = dist.Normal(z[0, 0] + torch.tensor([0.0, 2.0]), 1.0).log_prob(y[:, None])
    alpha = first.log() + likelihood[0]
    for t in range(1, 100):
        alpha = torch.logsumexp(alpha[:, None] + step.log(), 0) + likelihood[t]
    torch.testing.assert_close(target.log_prior_and_likelihood(z)[1][0], torch.logsumexp(alpha, 0))
    assert target.log_likelihood(z) == {}


# ---- site by site ----


def enumerated_sites(model, nesting, values=None):
    """Sites of one enumerated run, as ``sum_out`` takes them."""
    conditioned = poutine.condition(model, values or {})
    with pyro.validation_enabled(False):
        trace = poutine.trace(Enumerate(nesting)(conditioned)).get_trace()
        trace.compute_log_prob()

    return [s for s in trace.nodes.values() if s["type"] == "sample" and type(s["fn"]) is not _Subsample]


def test_sum_out_of_nothing_is_the_sum(float64):
    # Without discrete latents, densities multiply over rows and sites.
    def model():
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=Y.double())
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    sites = enumerated_sites(model, 1)
    torch.testing.assert_close(sum_out(sites), sum(site["log_prob"].sum() for site in sites))


def test_sum_out_leaves_sites_as_they_are(float64):
    # The same sites twice, as for the prior and then for the joint.
    sites = enumerated_sites(mixture, 1, {"loc": torch.tensor([-1.0, 1.0]), "weight": torch.tensor(0.3)})
    discrete = [site for site in sites if is_enumerable(site)]
    assert [site["name"] for site in discrete] == ["k"]
    # Probabilities of all assignments of all rows add up to one.
    torch.testing.assert_close(sum_out(discrete), torch.tensor(0.0))
    first = sum_out(sites)
    assert torch.equal(sum_out(sites), first)
    assert all(site["log_prob"].shape in {(), (3,), (2, 1), (2, 3)} for site in sites)


def test_options_of_a_site_stay_as_they_are():
    # A dictionary that the model reuses is not written to.
    options = {"enumerate": "sequential"}

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer=options)
        pyro.sample("y", dist.Normal(x + k, 1.0), obs=torch.tensor(0.5))

    assert ModelTarget(model).discrete_sites == ("k",)
    assert options == {"enumerate": "sequential"}


def test_sampling_instead_of_summing_is_overruled(float64):
    # Options that make Pyro draw a few values of a discrete latent, which would be a random density.
    def model(**options):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=options)
            pyro.sample("y", dist.Normal(x + k, 1.0), obs=Y.double())

    z = torch.randn(3, 1)
    expected = ModelTarget(model).log_prob(z)
    for options in ({"num_samples": 5}, {"enumerate": "parallel", "num_samples": 1}, {"expand": True}):
        torch.testing.assert_close(ModelTarget(model, kwargs=options).log_prob(z), expected)


# ---- pointwise log likelihoods ----


def test_pointwise_of_a_mixture(float64, targets):
    # Row by row the logarithm of a weighted mean, and all rows make the log likelihood.
    target = targets("mixture")
    z = torch.randn(4, 3)
    values = target.constrain(z)
    p, loc = values["weight"][:, None], values["loc"]
    by_component = [dist.Normal(loc[:, i : i + 1], 1.0).log_prob(Y.double()).exp() for i in (0, 1)]
    got = target.log_likelihood(z)
    assert got.keys() == {"y"}
    torch.testing.assert_close(got["y"], ((1 - p) * by_component[0] + p * by_component[1]).log())
    torch.testing.assert_close(got["y"].sum(-1), target.log_prior_and_likelihood(z)[1])


def test_pointwise_of_two_sites(float64):
    # Each site has its own rows, below a switch that both have or below none.
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("single", dist.Normal(loc, 1.0), obs=torch.tensor(0.7))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.25))
            pyro.sample("shifted", dist.Normal(loc + k, 1.0), obs=Y.double())
            pyro.sample("scaled", dist.Normal(loc, 1.0 + k), obs=2 * Y.double())
            pyro.sample("plain", dist.Normal(loc, 3.0), obs=Y.double())

    z = torch.randn(4, 1)
    got = ModelTarget(model).log_likelihood(z)
    y = Y.double()

    def mean(*densities):
        return (0.75 * densities[0].log_prob(y).exp() + 0.25 * densities[1].log_prob(y).exp()).log()

    expected = {
        "single": dist.Normal(z[:, 0], 1.0).log_prob(torch.tensor(0.7)),
        "shifted": mean(dist.Normal(z, 1.0), dist.Normal(z + 1, 1.0)),
        "scaled": mean(dist.Normal(z / 2, 0.5), dist.Normal(z / 2, 1.0)) - math.log(2.0),
        "plain": dist.Normal(z, 3.0).log_prob(y),
    }
    torch.testing.assert_close(got, expected)


def test_pointwise_in_nested_plates(float64):
    # A switch of its own for every cell; the shape is that of the plates.
    y = torch.randn(3, 2)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 2, dim=-1), pyro.plate("rows", 3, dim=-2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("y", dist.Normal(loc + k, 1.0), obs=y)

    z = torch.randn(4, 1)
    components = dist.Normal(z[:, :, None, None] + torch.arange(3.0), 1.0).log_prob(y[..., None])
    expected = torch.logsumexp(components + torch.tensor([0.2, 0.3, 0.5]).log(), -1)
    torch.testing.assert_close(ModelTarget(model).log_likelihood(z)["y"], expected)


@pytest.mark.parametrize("name", ["hidden_markov", "one_of_three", "nested", "nested_plates"])
def test_rows_that_are_tied_together_have_no_pointwise_likelihood(targets, name):
    # By a chain, or by a switch above their plate.
    target = targets(name)
    assert target.log_likelihood(torch.zeros(2, target.dim, dtype=target.dtype)) == {}


def test_pointwise_without_discrete_latents(float64):
    # A dimension that nobody declared is rows, as it is for Pyro.
    y = torch.randn(5)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc * torch.ones(5), 1.0), obs=y)

    z = torch.randn(4, 1)
    got = ModelTarget(model).log_likelihood(z)
    assert got.keys() == {"y"}
    torch.testing.assert_close(got["y"], dist.Normal(z, 1.0).log_prob(y))


@pytest.mark.parametrize("name", ["parents_in_a_plate", "scaled switch", "masked switch", "scaled rows", "masked rows"])
def test_switches_whose_probabilities_are_changed_have_no_pointwise_likelihood(targets, name):
    # By a latent below them, which tells about them, or by a scale or a mask.
    target = targets(name)
    assert target.log_likelihood(torch.zeros(2, target.dim, dtype=target.dtype)) == {}


def test_pointwise_below_a_latent_below_a_switch(float64):
    # Where the observation depends on the switch through the latent only, the latent is all that counts.
    def model():
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            x = pyro.sample("x", dist.Normal(k, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=Y.double())

    z = torch.randn(4, 3)
    target = ModelTarget(model)
    rows = target.log_likelihood(z)["y"]
    torch.testing.assert_close(rows, dist.Normal(z, 1.0).log_prob(Y.double()))
    torch.testing.assert_close(rows.sum(-1), target.log_prior_and_likelihood(z)[1])


def test_pointwise_of_one_site():
    # The function itself: rows where a switch is local, none where it is above the plate, or above a latent.
    local = {site["name"]: site for site in enumerated_sites(mixture, 1)}
    tied = {site["name"]: site for site in enumerated_sites(one_of_three, 1)}
    assert pointwise(local["y"], [local["loc"], local["weight"]], [local["k"]]).shape == (3,)
    assert pointwise(tied["y"], [tied["weights"]], [tied["k"]]) is None
    plain = {"name": "y", "log_prob": torch.zeros(3)}
    assert pointwise(plain, [], []) is plain["log_prob"]


# ---- values ----


def test_deterministic_values_of_a_discrete_latent_are_left_out():
    # They have no single value; the others do.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("double", 2 * x)
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            loc = pyro.deterministic("loc", x + k)
            pyro.deterministic("rows", x * torch.arange(3.0))
            pyro.sample("y", dist.Normal(loc, 1.0), obs=Y)

    z = torch.randn(2, 1)
    got = ModelTarget(model).deterministics(z)
    assert got.keys() == {"double", "rows"}
    assert torch.equal(got["double"], 2 * z[:, 0]) and torch.equal(got["rows"], z * torch.arange(3.0))


def test_draws_have_continuous_sites_only(targets):
    # With the shapes of a plain run, below discrete latents too.
    target = targets("parents_in_a_plate")
    assert target.discrete_sites == ("k",) and target.dim == 4
    shapes = {name: value.shape for name, value in target.constrain(torch.zeros(2, 4)).items()}
    assert shapes == {"p": (2,), "x": (2, 3)}


# ---- what is refused ----


def test_a_stray_dimension_is_named():
    # Site and shape, and what to do, where there are too many assignments to sum.
    def model():
        with pyro.plate("rows", 20):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(k, 1.0), obs=torch.zeros(20))
        pyro.sample("seen", dist.Normal(torch.zeros(2, 3), 1.0), obs=torch.zeros(2, 3))

    with pytest.raises(
        ValueError, match=r"'seen' has a log density of shape \(2, 3\).* no plate.*pyro\.plate.*to_event"
    ):
        ModelTarget(model)


def test_stray_dimensions_of_few_assignments(float64):
    # Of a latent and of an observation: two assignments, each with all of its dimensions.
    def latent():
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(x.sum() + k, 1.0), obs=torch.tensor(0.5))

    def observation():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(k, 1.0).expand([3]), obs=Y.double())

    z = torch.randn(2, 4)
    either = [dist.Normal(z.sum(1) + k, 1.0).log_prob(torch.tensor(0.5)).exp() for k in (0, 1)]
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(1) + (0.7 * either[0] + 0.3 * either[1]).log()
    torch.testing.assert_close(ModelTarget(latent).log_prob(z), expected)
    rows = [dist.Normal(k, 1.0).log_prob(Y.double()).sum().exp() for k in (0.0, 1.0)]
    log_evidence = ModelTarget(observation).log_prob(torch.zeros(1, 0)).item()
    assert log_evidence == pytest.approx((0.7 * rows[0] + 0.3 * rows[1]).log().item())


def test_a_support_that_depends_on_a_discrete_latent_is_refused():
    # One value cannot be in two intervals; the cure is to scale.
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Uniform(0.0, 1.0 + k))

    with pytest.raises(ValueError, match=r"support of site 'x'.*depends on a discrete latent.*scaling a fixed one"):
        ModelTarget(model)


def test_too_small_a_nesting():
    # Dimensions of plates and of discrete latents would be the same.
    with pytest.raises(ValueError, match=r"'side' lies 1 plates deep, but max_plate_nesting is 0|lies 2 plates deep"):
        ModelTarget(nested_plates, max_plate_nesting=0)
    with pytest.raises(ValueError, match=r"lies 2 plates deep, but max_plate_nesting is 1"):
        ModelTarget(nested_plates, max_plate_nesting=1)


def test_more_nesting_than_needed_changes_nothing(float64, targets):
    # Discrete latents move further to the left.
    z = torch.randn(3, 1)
    expected = targets("nested_plates").log_prob(z)
    torch.testing.assert_close(ModelTarget(nested_plates, max_plate_nesting=4).log_prob(z), expected)
    rows = [ModelTarget(mixture, max_plate_nesting=n).log_likelihood(torch.zeros(2, 3))["y"] for n in (1, 3)]
    torch.testing.assert_close(*rows)


def test_infinitely_many_values_are_refused():
    # Named, with what to do instead.
    def model():
        count = pyro.sample("count", dist.Poisson(3.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(count + k, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match=r"'count' is discrete \(Poisson\)"):
        ModelTarget(model)


# ---- back to the discrete latents ----


def test_infer_discrete_at_our_draws():
    # Assignments drawn at posterior draws have the posterior's own probabilities, row by row.
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(loc + 2.0 * k, 1.0), obs=Y)

    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=400, num_chains=1, num_iterations=50, disable_progbar=True)
    osds.run()
    loc = osds.get_samples()["loc"]
    assignments = []
    for value in loc:
        at_draw = config_enumerate(poutine.condition(model, {"loc": value}))
        trace = poutine.trace(infer_discrete(at_draw, first_available_dim=-2)).get_trace()
        assignments.append(trace.nodes["k"]["value"])
    got = torch.stack(assignments).mean(0)
    # The same by quadrature over the one continuous latent.
    grid = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)[:, None]
    log_prior = dist.Normal(0.0, 1.0).log_prob(grid)
    off, on = (dist.Normal(grid + shift, 1.0).log_prob(Y.double()) for shift in (0.0, 2.0))
    weight = torch.softmax((log_prior + torch.logaddexp(off, on).sum(-1, keepdim=True))[:, 0], 0)
    expected = (weight[:, None] * (on - off).sigmoid()).sum(0)
    n_eff = osds.diagnostics()["loc"]["n_eff"].clamp(max=400.0)
    std_error = (expected * (1 - expected) / n_eff).sqrt()
    assert ((got - expected).abs() < 4 * std_error).all()
