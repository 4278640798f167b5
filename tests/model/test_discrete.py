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
from exact import assert_honest
from helpers import assert_within_standard_error
from pyro import poutine
from pyro.ops.indexing import Vindex
from scipy.special import betaln, gammaln, logsumexp
from scipy.stats import multivariate_normal, norm

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, Predictive

GROUP = torch.tensor([0, 0, 1, 1, 2, 2, 2])
Y = torch.tensor([0.3, -1.0, 2.0, 1.5, -0.4, 0.0, 0.9], dtype=torch.float64)
X = torch.tensor(np.random.default_rng(1).normal(size=(7, 3)))
K3 = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
LOCS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
EDGES = torch.triu_indices(4, 4, 1)
SEEN = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double(float64):
    """Models here are written without types."""


def shift():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


def rows(loc, scale=1.0):
    with pyro.plate("rows", 7):
        pyro.sample("y", dist.Normal(loc, scale), obs=Y)


# ---- models, in the ways that people write them ----


def spike_and_slab(spelling):
    def model():
        if spelling == "event":
            xi = pyro.sample("xi", dist.Bernoulli(0.3).expand([3]).to_event(1))
            w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        elif spelling == "no plate":
            xi = pyro.sample("xi", dist.Bernoulli(0.3).expand([3]))
            w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        else:
            with pyro.plate("columns", 3, dim=-1):
                xi = pyro.sample("xi", dist.Bernoulli(0.3))
                w = pyro.sample("w", dist.Normal(0.0, 2.0))
        products = {"matmul": lambda: torch.matmul(X, (w * xi).unsqueeze(-1)).squeeze(-1)}
        rows(products.get(spelling, lambda: X @ (w * xi))())

    return model


def sequential_spike_and_slab():
    loc = 0.0
    for column in pyro.plate("columns", 3):
        xi = pyro.sample(f"xi_{column}", dist.Bernoulli(0.3))
        loc = loc + X[:, column] * xi * pyro.sample(f"w_{column}", dist.Normal(0.0, 2.0))
    rows(loc)


def clusters(spelling):
    def model():
        x = shift()
        with pyro.plate("groups", 3):
            k = pyro.sample("k", dist.OneHotCategorical(K3) if spelling == "one-hot" else dist.Categorical(K3))
            inside = LOCS[k] if spelling == "inside" else None
        read = {
            "index": lambda: LOCS[k[GROUP]],
            "inside": lambda: inside[GROUP],
            "vindex": lambda: Vindex(LOCS)[Vindex(k)[..., GROUP]],
            "one-hot": lambda: (k @ LOCS)[GROUP],
        }
        rows(x + read[spelling]())

    return model


def statistic(spelling):
    def model():
        x = shift()
        with pyro.plate("elements", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        if spelling == "sum":
            rows(x + z.sum(-1, keepdim=True))
        elif spelling == "one":
            pyro.sample("y", dist.Normal(x + z.sum(), 1.0), obs=Y[0])
        elif spelling == "factor":
            pyro.factor("energy", -x.square() * (z.mean() - 0.5).abs())
        elif spelling == "rare":
            pyro.factor("energy", torch.where(z.sum(-1) == 3, x, -x) - x.square())
        else:
            pyro.factor("energy", x * (z[..., 1:] == z[..., :-1]).to(x).sum(-1))

    return model


def chain(reads, history=1, length=5):
    """A chain of two states; what is read beside the present one depends on its name."""

    def model():
        x, states = shift(), []
        for t in pyro.markov(range(length), history=history):
            before = [*([0.0, 0.0]), *states]
            rate = 0.3 + 0.4 * before[-1] + (0.2 * before[-2] if reads == "second order" else 0.0)
            states.append(pyro.sample(f"state_{t}", dist.Bernoulli(rate)))
            loc = {"older": states[0], "count": sum(states)}.get(reads, 0.0)
            pyro.sample(f"y_{t}", dist.Normal(x + states[-1] + loc, 1.0), obs=Y[t])
        after = {"total": sum(states), "first": 3 * states[0], "last": 3 * states[-1]}.get(reads)
        if after is not None:
            pyro.sample("after", dist.Normal(after, 0.5), obs=torch.tensor(2.0))

    return model


def block_model():
    rates = pyro.sample("rates", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("nodes", 4):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
    with pyro.plate("edges", 6):
        same = (k[EDGES[0]] == k[EDGES[1]]).long()
        pyro.sample("seen", dist.Bernoulli(rates[same]), obs=SEEN)


def two_way_blocks():
    rates = pyro.sample("rates", dist.Beta(2.0, 2.0).expand([2, 2]).to_event(2))
    with pyro.plate("rows", 3, dim=-2):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
    with pyro.plate("columns", 2, dim=-1):
        j = pyro.sample("j", dist.Categorical(torch.tensor([0.3, 0.7])))
    with pyro.plate("rows_again", 3, dim=-2), pyro.plate("columns_again", 2, dim=-1):
        pyro.sample("seen", dist.Bernoulli(rates[k, j]), obs=SEEN.reshape(3, 2))


def python_if():
    x, k = shift(), pyro.sample("k", dist.Bernoulli(0.3))
    rows(x if k > 0 else -2 * x)


def indicators_and_outliers():
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("columns", 3):
        xi = pyro.sample("xi", dist.Bernoulli(0.3))
    with pyro.plate("rows", 7):
        outlier = pyro.sample("outlier", dist.Bernoulli(0.1))
        pyro.sample("y", dist.Normal(X @ (w * xi), 1.0 + 9.0 * outlier), obs=Y)


def latent_below():
    with pyro.plate("elements", 3):
        z = pyro.sample("z", dist.Bernoulli(0.3))
    x = pyro.sample("x", dist.Normal(z.sum(-1), 1.0 + z.sum(-1)))
    rows(x)


def under_a_parent():
    top, x = pyro.sample("top", dist.Bernoulli(0.4)), shift()
    with pyro.plate("elements", 3):
        z = pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * top))
    rows(x * z.prod(-1, keepdim=True) + top)


def scaled_and_masked():
    x = shift()
    with pyro.plate("elements", 3), poutine.scale(scale=2.0):
        z = pyro.sample("z", dist.Bernoulli(0.4))
    with poutine.mask(mask=Y > 0):
        rows(x + z.sum(-1, keepdim=True))


def number_of_trials():
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", 3):
        k = pyro.sample("k", dist.Binomial(torch.tensor([1.0, 2.0, 3.0]), rate))
        pyro.sample("y", dist.Normal(k, 1.0), obs=Y[:3])


def animals(bound=12, rate=0.4):
    """N-mixture: counts of two visits to two places, of animals that are each seen with the same probability."""

    def model():
        mean = pyro.sample("mean", dist.Gamma(4.0, 1.0))
        with pyro.plate("places", 2, dim=-1):
            n = pyro.sample("n", dist.Poisson(mean), infer={"enumerate": "parallel", "support": bound})
            with pyro.plate("visits", 2, dim=-2):
                pyro.sample("count", dist.Binomial(n, rate), obs=torch.tensor([[1.0, 2.0], [0.0, 1.0]]))

    return model


def nested_counts():
    mean = pyro.sample("mean", dist.Gamma(4.0, 1.0))
    n = pyro.sample("n", dist.Poisson(mean), infer={"support": 6})
    k = pyro.sample("k", dist.Binomial(n, 0.5))
    pyro.sample("y", dist.Normal(k, 1.0), obs=torch.tensor(2.0))


def counts_in_total():
    size = pyro.sample("size", dist.Gamma(4.0, 1.0))
    with pyro.plate("places", 2):
        n = pyro.sample("n", dist.NegativeBinomial(size, 0.4), infer={"support": 9})
    pyro.sample("total", dist.Poisson(0.1 + 0.5 * n.sum(-1)), obs=torch.tensor(4.0))


MODELS = {
    **{f"spike and slab, {s}": spike_and_slab(s) for s in ("matmul", "plain", "event", "no plate")},
    **{f"clusters, {s}": clusters(s) for s in ("index", "inside", "vindex", "one-hot")},
    **{f"statistic, {s}": statistic(s) for s in ("sum", "one", "factor", "rare", "neighbours")},
    **{f"chain, {s}": chain(s) for s in ("second order", "older", "count", "total", "first", "last", "nothing")},
    "chain, second order declared": chain("second order", history=2),
    **{
        model.__name__: model
        for model in (
            sequential_spike_and_slab, block_model, two_way_blocks, python_if, indicators_and_outliers, latent_below,
            under_a_parent, scaled_and_masked, number_of_trials, nested_counts, counts_in_total,
        )
    },
    "animals": animals(),
}  # fmt: skip
ELIMINATED = {
    "chain, nothing", "chain, second order declared", "sequential_spike_and_slab", "number_of_trials", "nested_counts",
    "animals",
}  # fmt: skip
VALUES = {
    "number_of_trials": {"k": torch.arange(4.0)}, "counts_in_total": {"n": torch.arange(10.0)},
    "nested_counts": {"n": torch.arange(7.0), "k": torch.arange(7.0)}, "animals": {"n": torch.arange(13.0)},
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
    """Log of the sum of p(a) N(y; offset(a), scale^2 + slope(a) slope(a)'), the marginal of y = offset + slope x + noise."""
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


def animals_exact(bound=12, rate=0.4):
    # The Gamma mean is integrated: Poisson counts n_1, n_2 have a negative multinomial.
    counts = np.array([[1, 2], [0, 1]])

    def log_binomial(k, n):
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + k * math.log(rate) + (n - k) * math.log1p(-rate)

    terms = []
    for n in itertools.product(range(bound + 1), repeat=2):
        if any(n[j] < counts[:, j].max() for j in (0, 1)):
            continue
        seen = sum(log_binomial(counts[i, j], n[j]) for i in (0, 1) for j in (0, 1))
        total = gammaln(4 + sum(n)) - gammaln(4) - (4 + sum(n)) * math.log(3) - sum(gammaln(m + 1) for m in n)
        terms.append(seen + total)
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


@pytest.mark.parametrize("spelling", ["matmul", "plain", "event"])
def test_spike_and_slab_of_five_columns(spelling):
    # A whole fit: 32 assignments, thirty rows, as in the reports of others; the mean inclusion is that of the sum.
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 5))
    y = x @ np.array([1.5, 0.0, -1.0, 0.0, 0.0]) + generator.normal(size=30)

    def model():
        if spelling == "event":
            xi = pyro.sample("xi", dist.Bernoulli(0.3).expand([5]).to_event(1))
            w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([5]).to_event(1))
        else:
            with pyro.plate("columns", 5):
                xi, w = pyro.sample("xi", dist.Bernoulli(0.3)), pyro.sample("w", dist.Normal(0.0, 2.0))
        loc = torch.tensor(x)
        loc = (loc @ (w * xi)[..., None])[..., 0] if spelling == "matmul" else loc @ (w * xi)
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(y))

    pyro.set_rng_seed(1)
    osds = OSDS(model, num_samples=250, num_chains=2, disable_progbar=True)
    osds.run()
    exact = spike_and_slab_exact(x, y)
    assert_honest(osds, exact)
    assert osds.evidence.reliable, osds.evidence.reasons
    if spelling == "plain":
        drawn = osds.infer_discrete(num_draws=200)["xi"]
        included = [inclusion(x, y, i) for i in range(5)]
        for i, share in enumerate(included):
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


# ---- what is refused, and what is not ----


def refused(model, *parts):
    with pytest.raises(ValueError) as caught:
        ModelTarget(model)
    message = str(caught.value)
    assert all(part in message for part in parts), message


def test_too_many_indicators():
    x = torch.ones(7, 20)

    def model():
        with pyro.plate("columns", 20):
            xi, w = pyro.sample("xi", dist.Bernoulli(0.3)), pyro.sample("w", dist.Normal(0.0, 2.0))
        rows(x @ (w * xi))

    refused(model, "'y'", "'xi'", "1,048,576 joint values", "no way of writing plates changes")


def test_too_many_groups_and_the_cures():
    index = torch.arange(40) % 20
    y = torch.linspace(-1.0, 1.0, 40)

    def beyond():
        x = shift()
        with pyro.plate("groups", 20):
            k = pyro.sample("k", dist.Categorical(K3))
        with pyro.plate("rows", 40):
            pyro.sample("y", dist.Normal(x + LOCS[k[index]], 1.0), obs=y)

    def inside():
        x = shift()
        with pyro.plate("groups", 20):
            k = pyro.sample("k", dist.Categorical(K3))
            with pyro.plate("of_a_group", 2):
                pyro.sample("y", dist.Normal(x + LOCS[k], 1.0), obs=y.reshape(2, 20))

    def loop():
        x = shift()
        for i in pyro.plate("groups", 20):
            k = pyro.sample(f"k_{i}", dist.Categorical(K3))
            with pyro.plate(f"rows_{i}", 2):
                pyro.sample(f"y_{i}", dist.Normal(x + LOCS[k], 1.0), obs=y.reshape(2, 20)[:, i])

    refused(beyond, "'y'", "'k'", "into the plate of 'k'", "for i in pyro.plate(...)")
    z = torch.tensor([[0.4]])
    both = dist.Normal(0.4 + LOCS, 1.0).log_prob(y.reshape(2, 20, 1)).sum(0) + K3.log()
    expected = (dist.Normal(0.0, 1.0).log_prob(z).sum() + both.logsumexp(-1).sum()).reshape(1)
    torch.testing.assert_close(ModelTarget(inside).log_prob(z), expected)
    torch.testing.assert_close(ModelTarget(loop, vectorize="loop").log_prob(z), expected)


def test_the_history_that_is_needed():
    # It is found by trying, so that what is said does help.
    long = torch.linspace(-1.0, 1.0, 20)

    def model(history, steps=2):
        def run():
            x, states = shift(), [0.0] * steps
            for t in pyro.markov(range(20), history=history):
                rate = 0.2 + sum(0.2 * state for state in states[-steps:])
                states.append(pyro.sample(f"state_{t}", dist.Bernoulli(rate)))
                pyro.sample(f"y_{t}", dist.Normal(x + states[-1], 1.0), obs=long[t])

        return run

    refused(model(1), "'state_2'", "'state_0'", "pyro.markov(..., history=2)")
    refused(model(1, steps=3), "'state_", "pyro.markov(..., history=3)")
    assert ModelTarget(model(2), vectorize="loop").jointly_summed == ()


def test_a_statistic_of_a_long_chain():
    refused(_long_total, "'after'", "'state_0'", "carry what is read later")


def _long_total():
    x, states = shift(), []
    for t in pyro.markov(range(20)):
        states.append(pyro.sample(f"state_{t}", dist.Bernoulli(0.3 + 0.4 * (states[-1] if states else 0.0))))
        pyro.sample(f"y_{t}", dist.Normal(x + states[-1], 1.0), obs=torch.tensor(0.3))
    pyro.sample("after", dist.Normal(sum(states), 0.5), obs=torch.tensor(2.0))


def test_an_event_of_many_elements():
    def model():
        x = shift()
        z = pyro.sample("z", dist.Bernoulli(0.3).expand([30]).to_event(1))
        pyro.sample("y", dist.Normal(x + z, 1.0).to_event(1), obs=torch.zeros(30))

    refused(model, "'y'", "'z'", "declare them by pyro.plate, without .to_event(), and put 'y' into that plate")


def test_a_branch_of_many_values():
    def model():
        x, number = shift(), 0
        for i in range(8):
            number += 1 if pyro.sample(f"z_{i}", dist.Bernoulli(0.3)) > 0 else 0
        rows(x + number)

    refused(model, "'z_0'", "256 joint values", "at most 64", "torch.where instead of if")


def test_many_rows():
    x = torch.ones(3000, 11)

    def model():
        with pyro.plate("columns", 11):
            xi = pyro.sample("xi", dist.Bernoulli(0.3))
        with pyro.plate("rows", 3000):
            pyro.sample("y", dist.Normal(x @ xi, 1.0), obs=torch.zeros(3000))

    refused(model, "'y'", "'xi'", "2,048 joint values", "fewer rows")


def test_a_support_that_moves_with_what_is_summed_jointly():
    def model():
        with pyro.plate("elements", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        rows(pyro.sample("x", dist.Uniform(0.0, 1.0 + z.sum())))

    refused(model, "support of site 'x'", "depends on a discrete latent")


# ---- bounds of counts ----


@pytest.mark.parametrize(
    ("bound", "said"),
    [(-1, "at least 0"), (2.5, "got 2.5"), (True, "got True"), (torch.tensor([1.0, 1.0]), "different values"),
     (torch.tensor([-1.0, 2.0]), "that the Poisson can have"), (torch.tensor(3.0), "a vector")],
)  # fmt: skip
def test_bounds_that_say_nothing(bound, said):
    refused(animals(bound), "'n'", said)


def test_a_count_without_a_bound_names_the_option():
    refused(animals(None), "'n' is discrete (Poisson)", "infer={'support': 100}")


def test_a_bound_on_what_is_no_count():
    def model():
        rows(pyro.sample("x", dist.Normal(0.0, 1.0), infer={"support": 3}))

    refused(model, "'x'", "discrete latents")


def test_what_lies_beyond_a_bound():
    # The difference of the two sums, by elimination and jointly; and None where nothing is bounded.
    z = torch.tensor([[0.7], [1.5]])
    for name, few, many in (("animals", animals(6), animals(13)), ("total", _total(4), _total(9))):
        added = ModelTarget(few).beyond_bounds(z)
        expected = ModelTarget(many).log_prob(z) - ModelTarget(few).log_prob(z)
        torch.testing.assert_close(added, expected, msg=name)
    assert ModelTarget(clusters("index")).beyond_bounds(z) is None


def _total(bound):
    def model():
        mean = pyro.sample("mean", dist.Gamma(4.0, 1.0))
        with pyro.plate("places", 2):
            n = pyro.sample("n", dist.Poisson(mean), infer={"support": bound})
        pyro.sample("total", dist.Poisson(0.1 + 0.5 * n.sum(-1)), obs=torch.tensor(4.0))

    return model


def test_a_list_of_values():
    # A count that can be three numbers only.
    some = torch.tensor([0.0, 2.0, 5.0])

    def model():
        n = pyro.sample("n", dist.Poisson(3.0), infer={"support": some})
        pyro.sample("y", dist.Normal(n, 1.0), obs=torch.tensor(2.5))

    expected = (dist.Poisson(3.0).log_prob(some) + dist.Normal(some, 1.0).log_prob(torch.tensor(2.5))).logsumexp(0)
    assert ModelTarget(model).log_prob(torch.zeros(1, 0)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("bound", "is_reliable"), [(6, False), (40, True)])
def test_a_bound_that_matters_is_told(bound, is_reliable):
    # The sum is what was stated; the verdict says by how much it is too low.
    pyro.set_rng_seed(0)
    osds = OSDS(animals(bound), num_samples=250, num_chains=2, disable_progbar=True)
    osds.run()
    assert_within_standard_error(osds.log_evidence, animals_exact(bound), max(osds.log_evidence_se, 1e-4))
    assert osds.evidence.reliable == is_reliable
    assert is_reliable or any("bounds of latent counts" in str(reason) for reason in osds.evidence.reasons)


def test_a_bound_without_continuous_latents():
    def model():
        n = pyro.sample("n", dist.Poisson(5.0), infer={"support": 4})
        pyro.sample("y", dist.Normal(n, 1.0), obs=torch.tensor(6.0))

    osds = OSDS(model, disable_progbar=True)
    osds.run()
    assert not osds.evidence.reliable and "bounds of latent counts" in str(osds.evidence.reasons[0])
