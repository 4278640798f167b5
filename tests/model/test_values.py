"""Values at the sites of many draws by a graph: the same as by runs of the model, and those of the formula."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.model import values as values_module
from pyro_osds.model.values import values_at

MANY = 20_000
DATA = torch.randn(50, generator=torch.Generator().manual_seed(0))


def scales():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("row", 50):
        pyro.sample("y", dist.Normal(mu + p, tau), obs=DATA)


def simplex():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    correlation = pyro.sample("correlation", dist.LKJCholesky(3, 1.0))
    pyro.sample("y", dist.MultivariateNormal(weights, scale_tril=correlation), obs=torch.zeros(3))


def moving_support():
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    pyro.sample("high", dist.Uniform(low, low + 2.0))
    pyro.sample("y", dist.Normal(low, 1.0), obs=torch.tensor(0.3))


def in_groups():
    with pyro.plate("group", 3):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Poisson(rate * (1.0 + kind)), obs=torch.tensor([1.0, 2.0, 3.0]))


def changed_in_place():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    x += 1.0
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.3))


@torch.no_grad()
def asked_often(target, z):
    """Values once there are many draws."""
    for _ in range(3):
        values = target.constrain(z)

    return values


@pytest.mark.parametrize("model", [scales, simplex, moving_support, in_groups, changed_in_place])
def test_values_by_a_graph_are_those_by_runs(model):
    target = ModelTarget(model)
    z = torch.randn(MANY, target.dim, dtype=torch.float64)
    expected = target.constrain(z[:1000])  # with gradients there is no graph
    values = asked_often(target, z)

    assert values_module._KNOWN[target._ladder].graph is not None
    assert list(values) == list(expected)
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        assert value.shape == (MANY, *expected[name].shape[1:])
        torch.testing.assert_close(value[:1000], expected[name], rtol=1e-6, atol=1e-7)


def test_values_are_those_of_the_formula():
    z = torch.randn(MANY, 3, dtype=torch.float64)
    values = asked_often(ModelTarget(scales), z)

    torch.testing.assert_close(values["mu"].double(), z[:, 0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(values["tau"].double(), z[:, 1].exp(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(values["p"].double(), 1.0 / (1.0 + (-z[:, 2]).exp()), rtol=1e-6, atol=1e-7)


def test_a_recorded_graph_computes_no_density():
    target = ModelTarget(scales)
    asked_often(target, torch.randn(MANY, 3, dtype=torch.float64))

    graph, densities = values_module._KNOWN[target._ladder].graph, target._ladder._graphs
    target.log_prob(torch.zeros(300, 3, dtype=torch.float64))
    assert graph.num_operations < min(each.num_operations for each in densities.values())


def test_a_graph_made_for_few_draws_serves_many(monkeypatch):
    monkeypatch.setattr(values_module, "_NUM_DRAWS_BEFORE", 50)
    target = ModelTarget(scales)
    z = torch.randn(MANY, 3, dtype=torch.float64)
    asked_often(target, z[:70])

    graph = values_module._KNOWN[target._ladder].graph
    assert graph.block_size == target._ladder.large_block_size
    torch.testing.assert_close(asked_often(target, z)["tau"].double(), z[:, 1].exp(), rtol=1e-6, atol=1e-7)


def test_few_draws_record_nothing():
    target = ModelTarget(scales)
    with torch.no_grad():
        target.constrain(torch.zeros(4000, 3, dtype=torch.float64))

    assert values_module._KNOWN[target._ladder].graph is None


@pytest.mark.parametrize("options", [{"capture": False}, {"vectorize": "loop"}])
def test_without_graphs_values_come_by_runs(options, monkeypatch):
    monkeypatch.setattr(values_module, "_NUM_DRAWS_BEFORE", 50)
    target, z = ModelTarget(scales, **options), torch.randn(100, 3, dtype=torch.float64)

    torch.testing.assert_close(asked_often(target, z)["tau"].double(), z[:, 1].exp(), rtol=1e-6, atol=1e-7)
    assert values_module._KNOWN[target._ladder].graph is None


def test_what_cannot_be_recorded_comes_by_runs():
    target = ModelTarget(scales)
    calls = []

    def read(row):
        calls.append(row)
        return {"mu": row[0], "count": torch.tensor(float(len(calls)))}  # another value in each run

    with torch.no_grad():
        z = torch.randn(MANY, 3, dtype=torch.float64)
        first, second = values_at(target._ladder, read, z), values_at(target._ladder, read, z)

    known = values_module._KNOWN[target._ladder]
    assert known.has_failed
    assert known.graph is None
    assert second["count"][0] > first["count"][0]
    torch.testing.assert_close(second["mu"], z[:, 0])


def test_other_coordinates_and_copies_have_graphs_of_their_own():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        x = pyro.sample("x", dist.Normal(mu, 2.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.3))

    target = ModelTarget(model)
    z = torch.randn(MANY, 2, dtype=torch.float64)
    values = asked_often(target, z)
    other, moved, _ = target.other_coordinates(z)
    for each, at in ((other, moved), (copy.deepcopy(target), z)):
        again = asked_often(each, at)
        for name, value in values.items():
            torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-5)


def test_a_target_with_a_graph_can_be_pickled():
    target = ModelTarget(scales)
    z = torch.randn(MANY, 3, dtype=torch.float64)
    values = asked_often(target, z)
    again = pickle.loads(pickle.dumps(target))

    torch.testing.assert_close(asked_often(again, z)["tau"], values["tau"], rtol=1e-6, atol=1e-7)
