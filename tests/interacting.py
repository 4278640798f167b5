"""Models whose discrete latents interact, in the ways that people write them, and some that only look as if they did.

They are written without types, for double precision.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from scipy.special import gammaln, logsumexp

GROUP = torch.tensor([0, 0, 1, 1, 2, 2, 2])
Y = torch.tensor([0.3, -1.0, 2.0, 1.5, -0.4, 0.0, 0.9], dtype=torch.float64)
X = torch.tensor(np.random.default_rng(1).normal(size=(7, 3)))
K3 = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
LOCS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
EDGES = torch.triu_indices(4, 4, 1)
SEEN = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


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


def animals_exact(bound=12, rate=0.4):
    """The log evidence of :func:`animals`: with the Gamma mean integrated, numbers have a negative multinomial."""
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


def neighbours_in_a_plate():
    x = shift()
    with pyro.plate("elements", 5):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(x * z + torch.roll(z, 1, -1), 1.0), obs=Y[:5])


def same_places_in_another_plate():
    x = shift()
    with pyro.plate("elements", 3):
        z = pyro.sample("z", dist.Bernoulli(0.4))
    with pyro.plate("others", 3):
        pyro.sample("y", dist.Normal(x + z, 1.0), obs=Y[:3])


def count_of_a_statistic():
    x = shift()
    with pyro.plate("elements", 4):
        z = pyro.sample("z", dist.Bernoulli(0.4))
    k = pyro.sample("k", dist.Bernoulli(0.1 + 0.2 * z.sum(-1)))
    pyro.sample("y", dist.Normal(x + 3 * k, 1.0), obs=Y[0])


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
            neighbours_in_a_plate, same_places_in_another_plate, count_of_a_statistic,
            under_a_parent, scaled_and_masked, number_of_trials, nested_counts, counts_in_total,
        )
    },
    "animals": animals(),
}  # fmt: skip
VALUES = {
    "number_of_trials": {"k": torch.arange(4.0)}, "counts_in_total": {"n": torch.arange(10.0)},
    "nested_counts": {"n": torch.arange(7.0), "k": torch.arange(7.0)}, "animals": {"n": torch.arange(13.0)},
}  # fmt: skip
