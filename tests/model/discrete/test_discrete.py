"""Discrete latents whose elements interact: against brute force over all assignments, and exact evidences.

Pyro's own density is as wrong as elimination is, so nothing here is held against it.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from brute import by_site, joint_log_probs
from exact import assert_right_or_flagged
from helpers import assert_within_standard_error
from interacting import EDGES, GROUP, LOCS, MODELS, SEEN, VALUES, X, Y, animals_exact, clusters, rows, shift
from scipy.special import betaln, logsumexp
from scipy.stats import multivariate_normal, norm

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, Predictive


@pytest.fixture(autouse=True)
def double(float64):
    """Models here are written without types."""


ELIMINATED = {
    "chain, nothing", "chain, second order declared", "sequential_spike_and_slab", "number_of_trials", "nested_counts",
    "animals",
}  # fmt: skip


def values_of(name):
    return {site: each.double() for site, each in VALUES.get(name, {}).items()}


@pytest.fixture(scope="module")
def targets():
    """One target for each model, built when it is first asked for."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = ModelTarget(MODELS[name])
        return built[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_density_is_the_sum_over_all_assignments(targets, name):
    # Values and gradients of a captured graph; elimination where it is right, and nowhere else.
    target = targets(name)
    assert bool(target.jointly_summed) != (name in ELIMINATED)
    z = torch.randn(64, target.dim, generator=torch.Generator().manual_seed(2), requires_grad=True)
    got = target.log_prob(z)
    assert target.backend == "captured"
    expected = torch.stack(
        [joint_log_probs(MODELS[name], by_site(target, row), values_of(name))[1].logsumexp(0) for row in z[:2]]
    )
    torch.testing.assert_close(got[:2], expected)
    gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0][:2] for value in (got[:2], expected)]
    torch.testing.assert_close(*gradients)
    log_prior, log_likelihood = target.log_prior_and_likelihood(z)
    torch.testing.assert_close(log_prior + log_likelihood, got)


# ---- exact evidences ----


def gaussian(prob, offset, slope, choices, y, scale=1.0):
    """Log of the sum over a of p(a) N(y; offset, scale^2 + slope slope'), where y = offset + slope x + noise."""
    terms = []
    for a in choices:
        loc, s = np.broadcast_to(offset(a), y.shape), np.broadcast_to(slope(a), y.shape)
        covariance = np.diag(np.broadcast_to(scale, y.shape) ** 2) + np.outer(s, s)
        terms.append(math.log(prob(a)) + multivariate_normal.logpdf(y, loc, covariance))

    return float(logsumexp(terms))


def binary(n):
    return list(itertools.product((0, 1), repeat=n))


def bernoulli(rate):
    return lambda a: math.prod(rate if value else 1 - rate for value in a)


def clusters_exact():
    index, y = GROUP.numpy(), Y.numpy()
    choices = list(itertools.product(range(3), repeat=3))
    prob = [0.2, 0.3, 0.5]

    return gaussian(
        lambda a: math.prod(prob[k] for k in a), lambda a: LOCS.numpy()[np.array(a)[index]], lambda a: 1.0, choices, y
    )


def chain_exact(reads, length=5):
    y = [*Y.numpy()[:length]]

    def prob(a):
        total = 1.0
        for t, state in enumerate(a):
            before = [0, 0, *a[:t]]
            rate = 0.3 + 0.4 * before[-1] + (0.2 * before[-2] if reads == "second order" else 0.0)
            total *= rate if state else 1 - rate
        return total * (norm.pdf(2.0, after(a), 0.5) if after(a) is not None else 1.0)

    def after(a):
        return {"total": sum(a), "first": 3 * a[0], "last": 3 * a[-1]}.get(reads)

    def offset(a):
        extra = {"older": lambda t: a[0], "count": lambda t: sum(a[: t + 1])}.get(reads, lambda t: 0)
        return np.array([a[t] + extra(t) for t in range(length)], dtype=float)

    return gaussian(prob, offset, lambda a: 1.0, binary(length), np.array(y))


def block_exact():
    terms = []
    for a in binary(4):
        total = sum(math.log(0.6 if k else 0.4) for k in a)
        same = np.array([a[i] == a[j] for i, j in EDGES.T.tolist()])
        for group in (same, ~same):
            ones = SEEN.numpy()[group].sum()
            total += betaln(2 + ones, 2 + group.sum() - ones) - betaln(2, 2)
        terms.append(total)
    return float(logsumexp(terms))


def spike_and_slab_exact(x=None, y=None, noise=1.0):
    x, y = X.numpy() if x is None else x, Y.numpy() if y is None else y
    terms = []
    for a in binary(x.shape[1]):
        columns = x[:, [i for i, value in enumerate(a) if value]]
        covariance = noise**2 * np.eye(len(y)) + 4.0 * columns @ columns.T
        terms.append(math.log(bernoulli(0.3)(a)) + multivariate_normal.logpdf(y, np.zeros(len(y)), covariance))
    return float(logsumexp(terms))


def statistic_exact(rows_seen):
    return gaussian(bernoulli(0.4), lambda a: float(sum(a)), lambda a: 1.0, binary(4), Y.numpy()[:rows_seen])


EVIDENCES = {
    **{f"clusters, {s}": clusters_exact for s in ("index", "inside", "vindex", "one-hot")},
    "statistic, sum": lambda: statistic_exact(7),
    "statistic, one": lambda: statistic_exact(1),
    **{
        f"chain, {s}": lambda s=s: chain_exact(s)
        for s in ("second order", "older", "count", "total", "first", "last", "nothing")
    },
    "chain, second order declared": lambda: chain_exact("second order"),
    "python_if": lambda: gaussian(
        bernoulli(0.3), lambda a: 0.0, lambda a: 1.0 if a[0] else -2.0, binary(1), Y.numpy()
    ),
    "under_a_parent": lambda: gaussian(
        lambda a: bernoulli(0.4)(a[:1]) * bernoulli(0.7 if a[0] else 0.2)(a[1:]),
        lambda a: float(a[0]), lambda a: float(all(a[1:])), binary(4), Y.numpy(),
    ),
    "latent_below": lambda: gaussian(
        bernoulli(0.3), lambda a: float(sum(a)), lambda a: 1.0 + sum(a), binary(3), Y.numpy()
    ),
    "animals": animals_exact,
    "block_model": block_exact,
}  # fmt: skip


def quadrature(target, low=-9.0, high=9.0):
    """Log integral of a target's density by the midpoint rule, exponentially exact for what vanishes at the ends."""
    count = {1: 1200, 2: 160}[target.dim]
    points = low + (torch.arange(count) + 0.5) * (high - low) / count
    z = torch.cartesian_prod(*[points] * target.dim).reshape(-1, target.dim)
    with torch.no_grad():
        return (torch.logsumexp(target.log_prob(z), 0) + target.dim * math.log((high - low) / count)).item()


@pytest.mark.parametrize("name", EVIDENCES)
def test_evidences_in_closed_form(targets, name):
    # The density of the target, integrated, against sums over assignments of conjugate integrals.
    assert quadrature(targets(name)) == pytest.approx(EVIDENCES[name](), abs=1e-6)


def test_there_are_enough_evidences():
    assert len(EVIDENCES) >= 12


def test_spike_and_slab_of_five_columns():
    # A whole fit: 32 assignments, thirty rows, as in the reports of others; the mean inclusion is that of the sum.
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 5))
    y = x @ np.array([1.5, 0.0, -1.0, 0.0, 0.0]) + generator.normal(size=30)

    def model():
        with pyro.plate("columns", 5):
            xi, w = pyro.sample("xi", dist.Bernoulli(0.3)), pyro.sample("w", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Normal(torch.tensor(x) @ (w * xi), 1.0), obs=torch.tensor(y))

    pyro.set_rng_seed(1)
    osds = OSDS(model, num_samples=250, num_chains=2, disable_progbar=True)
    osds.run()
    exact = spike_and_slab_exact(x, y)
    assert_right_or_flagged(osds, exact)
    assert osds.evidence.reliable, osds.evidence.reasons
    drawn = osds.infer_discrete(num_draws=200)["xi"]
    for i in range(5):
        share = inclusion(x, y, i)
        error = max(math.sqrt(share * (1 - share) / 100), 0.02)
        assert_within_standard_error(drawn[:, i].double().mean(), share, error)


def inclusion(x, y, column):
    """The posterior probability of one indicator, by the same sum."""
    weights = []
    for a in binary(x.shape[1]):
        columns = x[:, [i for i, value in enumerate(a) if value]]
        covariance = np.eye(len(y)) + 4.0 * columns @ columns.T
        weights.append(math.log(bernoulli(0.3)(a)) + multivariate_normal.logpdf(y, np.zeros(len(y)), covariance))
    weights = np.exp(np.array(weights) - logsumexp(weights))

    return float(sum(weight for weight, a in zip(weights, binary(x.shape[1]), strict=True) if a[column]))


# ---- drawn back ----


@pytest.mark.parametrize("name", ["clusters, index", "chain, total", "indicators_and_outliers", "animals"])
def test_drawn_back_from_the_exact_conditional(targets, name):
    # Frequencies of one draw after the other, element by element, and the most probable values together.
    target, point = targets(name), torch.zeros(1, targets(name).dim)
    values = {site: value[0] for site, value in target.constrain(point).items()}
    if name == "indicators_and_outliers":
        values = {"w": torch.tensor([0.5, -0.5, 1.0])}
    u = {
        site: value
        for site, value in by_site(target, target.from_samples({n: v[None] for n, v in values.items()})[0]).items()
    }
    rows_, log_prob = joint_log_probs(MODELS[name], u, values_of(name))
    weight = log_prob.softmax(0)
    pyro.set_rng_seed(0)
    draws = [target.infer_discrete(values) for _ in range(300)]
    for site in target.discrete_sites:
        mean = sum(w * row[site].double() for w, row in zip(weight, rows_, strict=True))
        square = sum(w * row[site].double() ** 2 for w, row in zip(weight, rows_, strict=True))
        got = torch.stack([draw[site] for draw in draws]).double().mean(0)
        error = ((square - mean**2).clamp(min=1e-4) / len(draws)).sqrt()
        assert ((got - mean).abs() <= 5 * error).all(), (site, got, mean)
    best = rows_[int(log_prob.argmax())]
    found = target.infer_discrete(values, temperature=0)
    assert all(torch.equal(found[site].double(), best[site].double()) for site in target.discrete_sites)


def test_predictions_given_the_data():
    # With the discrete latents given the data, and without: their frequencies are posterior and prior.
    target = ModelTarget(clusters("index"), capture=False)
    predictive, samples = Predictive(target), {"x": torch.zeros(300)}
    pyro.set_rng_seed(0)
    given, prior = predictive.posterior(samples, 300, given_data=True)["k"], predictive.posterior(samples, 300)["k"]
    found, log_prob = joint_log_probs(clusters("index"), {"x": torch.zeros(())})
    expected = sum(w * (row["k"] == 2) for w, row in zip(log_prob.softmax(0), found, strict=True))
    error = (expected * (1 - expected) / 300).sqrt() + 1e-3
    assert (((given == 2).double().mean(0) - expected).abs() <= 5 * error).all()
    assert ((prior == 2).double().mean(0) - 0.5).abs().max() <= 5 * math.sqrt(0.25 / 300)


def test_a_prior_below_is_drawn_below(targets):
    # A continuous latent below what is summed jointly: predictions follow its conditional.
    target = targets("latent_below")
    assert target.has_latents_below_discrete and target.log_prior(torch.zeros(1, 1)) == {}
    pyro.set_rng_seed(0)
    drawn = Predictive(target).posterior({"x": torch.full((200,), 4.0)}, 200)["z"]
    weights = {n: math.comb(3, n) * 0.3**n * 0.7 ** (3 - n) * norm.pdf(4.0, n, 1.0 + n) for n in range(4)}
    mean = sum(n * weight for n, weight in weights.items()) / sum(weights.values())
    total = drawn.sum(1).double()
    assert_within_standard_error(total.mean(), mean, total.std().item() / math.sqrt(200))


def test_what_has_no_rows_of_its_own():
    # Rows that are tied together have no pointwise likelihood, values that depend on what is summed are left out.
    def model():
        x = shift()
        with pyro.plate("elements", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.deterministic("number", z.sum(-1))
        pyro.deterministic("twice", 2 * x)
        rows(x + z.sum(-1, keepdim=True))
        pyro.sample("other", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    target = ModelTarget(model)
    z = torch.zeros(2, 1)
    assert target.log_likelihood(z).keys() == {"other"} and target.deterministics(z).keys() == {"twice"}
    assert target.log_prior(z).keys() == {"x"} and target.jointly_summed == ("z",)
    assert target.notes == () and target.not_finite_sites(z[0]) == []
