"""What a density costs is counted: its terms where they tell it, and far more where they do not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model.target import ModelTarget
from pyro_osds.target import CostCounter, FunctionTarget
from pyro_osds.target.cost import terms_in


def test_operations_and_numbers_by_hand():
    counter, z = CostCounter(), torch.ones(100, dtype=torch.float64)
    data = torch.ones(1000, 100, dtype=torch.float64)
    with counter:
        data.exp()  # data are made once
        y = counter.watch(z).exp()  # 100
        (data @ y).sum()  # 1000 * 100 / 16, and 1000 that are summed
        y[3]  # a gradient of 100 numbers, an eighth each
    assert counter.num_operations == 4
    assert counter.num_numbers == 100 + 6250 + 1000 + 12


def recursion(num_steps):
    def model():
        scale, y = pyro.sample("scale", dist.HalfNormal(1.0)), 0.1
        for _ in range(num_steps):
            y = torch.sin(y * scale) + 0.1
        pyro.factor("end", -y.square())

    return model


def test_a_loop_costs_what_it_is_long():
    # Three operations on single numbers in each step, as two halves of a term.
    def counted(num_steps):
        with pyro.poutine.condition(data={"scale": (z := torch.ones(()))}), CostCounter() as counter:
            counter.watch(z)
            recursion(num_steps)()
        return counter.terms(1)

    assert counted(100) == 1
    assert counted(4_000) == pytest.approx(6_000, rel=0.1)
    assert counted(8_000) == pytest.approx(12_000, rel=0.1)
    assert ModelTarget(recursion(800), vectorize="loop").num_terms == pytest.approx(1_200, rel=0.1)


@pytest.mark.parametrize("num_rows", [8, 300, 3_000])
def test_terms_that_tell_the_cost_stay(num_rows):
    x, y = torch.randn(num_rows, 5), torch.randn(num_rows)

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        with pyro.plate("row", num_rows):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    assert ModelTarget(model).num_terms == num_rows + 1


def test_a_hidden_markov_model_is_no_single_term():
    y = torch.randn(832)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        chain = dist.DiscreteHMM(torch.zeros(3), torch.eye(3).log().clamp(min=-2.0), dist.Normal(loc, 1.0))
        pyro.sample("y", chain, obs=y)

    assert ModelTarget(model).num_terms > 2_000


def test_a_matrix_counts_its_factorisation():
    x = torch.linspace(0, 1, 200, dtype=torch.float64)

    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        kernel = torch.exp(-0.5 * ((x[:, None] - x) / scale).square()) + 0.1 * torch.eye(200)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(200), kernel), obs=torch.zeros(200))

    # 200^3 / 16 / 4 for the factor alone.
    assert ModelTarget(model).num_terms > 125_000


def test_functions_are_counted_where_they_are_large():
    matrix = torch.randn(400, 400, dtype=torch.float64)
    assert FunctionTarget(lambda z: -z.square().sum(-1), 3).num_terms == 0
    large = FunctionTarget(lambda z: -torch.tanh(z @ matrix.to(z.dtype)).square().sum(-1) - z.square().sum(-1), 400)
    assert 400 * 400 / 16 / 4 < large.num_terms < 4 * 400 * 400 / 16 / 4


def test_what_cannot_be_looked_into_is_timed_coarsely(monkeypatch):
    # A density that takes five seconds a call, and one outside of torch.
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow(z):
        clock[0] += 5.0
        return -0.5 * z.square().sum(-1)

    assert FunctionTarget(slow, 2).num_terms == 8**8 == terms_in(5.0, 8)
    foreign = FunctionTarget(lambda z: slow(z).numpy(), 2, score_fn=lambda z: -z.numpy())
    assert foreign.num_terms == 8**8
    assert [terms_in(seconds, 8) for seconds in (0.0, 1e-4, 1e-3, 1.5e-3)] == [0, 0, 4096, 4096]


def test_sparse_data_and_in_place_changes_do_no_harm():
    data = torch.eye(3).to_sparse()

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        values = torch.zeros(3, dtype=w.dtype)
        values[0] = w[0]
        pyro.factor("fit", -torch.mv(data.to(w.dtype), w).square().sum() - values.sum())

    assert ModelTarget(model, vectorize="loop").num_terms >= 1
