"""Discrete latents that interact at some points only, or at some joint values; and what lies far beyond a bound."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from brute import joint_log_probs
from pyro.infer.autoguide import init_to_value
from scipy.special import logsumexp

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.posterior.plausibility import truncated, wrong_sums
from pyro_osds.runtime.warnings import UnreliableEvidenceWarning

Y = torch.tensor([0.2, 2.9, 0.5, 3.3])


@pytest.fixture(autouse=True)
def double(float64):
    """Models here are written without types."""


def neighbours(gate, loc=0.0, scale=1.0, seen=None):
    """Indicators in a plate, each of which is read beside its neighbour where a gate is open."""

    def model():
        w = pyro.sample("w", dist.Normal(loc, scale))
        if seen is not None:
            pyro.sample("seen", dist.Normal(w, 0.2), obs=torch.tensor(seen))
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(z + gate(w) * z.roll(1, -1), 0.7), obs=Y.double())

    return model


def two_back(gate, loc=0.0, scale=1.0):
    """A chain whose observations read a state too far back where a gate is open."""

    def model():
        w, states = pyro.sample("w", dist.Normal(loc, scale)), []
        for t in pyro.markov(range(4)):
            rate = torch.tensor([0.3, 0.8])[states[-1].long()] if states else torch.tensor(0.5)
            states.append(pyro.sample(f"x_{t}", dist.Bernoulli(rate)))
            more = gate(w) * states[t - 2] if t > 1 else 0.0
            pyro.sample(f"y_{t}", dist.Normal(states[t] + more, 0.5), obs=Y[t].double())

    return model


def columns(gate):
    """Indicators of columns that rows read where a gate is open."""

    def model():
        x = torch.tensor([[1.0, 0.5, -1.0], [0.3, -1.0, 2.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            # Each of its own while the gate is shut.
            pyro.sample("own", dist.Normal(z, 1.0), obs=torch.tensor([0.1, 0.8, 1.2]))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(x @ (gate(w) * z), 1.0), obs=Y.double())

    return model


def below(gate):
    """The location of a continuous latent depends on the neighbour where a gate is open."""

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            x = pyro.sample("x", dist.Normal(z + gate(w) * z.roll(1, -1), 0.7))
            pyro.sample("y", dist.Normal(x, 0.5), obs=Y[:3].double())

    return model


def clamped(w):
    return w.clamp(min=0.0)


def by_where(w):
    return torch.where(w > 0, w, 0.0 * w)


def sigmoid(w):
    return 3.0 * torch.sigmoid(8.0 * (w - 2.0))


def above_one(w):
    return torch.where(w > 1.0, 1.0, 0.0)


GATES = {
    "relu": neighbours(torch.relu, 1.0),
    "clamp": neighbours(clamped, 0.0, 1.5),
    "sigmoid": neighbours(sigmoid),
    "step": neighbours(above_one),
    "negative": neighbours(lambda w: torch.relu(-w - 0.5)),
    "chain": two_back(by_where),
    "rare in a chain": two_back(torch.relu, -1.5, 1.2),
    "columns": columns(torch.relu),
    "continuous below": below(torch.relu),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gate_that_is_shut_at_first(name, seed):
    pyro.set_rng_seed(seed)
    target = ModelTarget(GATES[name], vectorize="loop")
    assert target.jointly_summed
    points = torch.full((4, target.dim), 0.3)
    points[:, 0] = torch.tensor([-2.5, 0.4, 1.7, 2.6])
    for row, got in zip(points, target.log_prob(points), strict=True):
        values = target.constrain(row[None])
        u = {name: value[0] for name, value in values.items()}
        _, log_probs = joint_log_probs(GATES[name], u)
        torch.testing.assert_close(got, log_probs.logsumexp(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*GATES, "combination", "beta and gamma"])
def test_points_are_draws_of_the_prior(name):
    def edges():
        shape = pyro.sample("shape", dist.Gamma(0.02, 1.0))
        rate = pyro.sample("rate", dist.Beta(0.05, 0.05 + shape))
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Bernoulli(rate))
            k = pyro.sample("k", dist.Binomial(4, 0.3))
            pyro.sample("y", dist.Normal(z + k, 1.0), obs=Y[:3].double())

    model = {**GATES, "combination": combination(3, 4), "beta and gamma": edges}[name]
    target = ModelTarget(model, vectorize="loop")
    points = target._elsewhere(64)
    assert len(points.rows) >= 60 and set(points.likely) == set(target.discrete_sites)
    assert all(len(value) == len(points.rows) for value in points.likely.values())
    if name == "relu":
        # Eight of them are near the first run.
        assert_close = torch.testing.assert_close
        assert_close(points.rows[8:].mean(0), torch.tensor([1.0]), atol=0.5, rtol=0.0)
        assert_close(points.likely["z"][8:].double().mean(), torch.tensor(0.4), atol=0.15, rtol=0.0)


def test_two_gates():
    # A quarter of the prior, which the first run and its neighbours may all miss.
    def model():
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(z + torch.relu(a) * torch.relu(b) * z.flip(-1), 0.7), obs=Y.double())

    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert ModelTarget(model).jointly_summed == ("z",)


def combination(size, steps, history=1):
    """A chain in which three states in a row count where all of them are the last one."""
    rate = torch.full((size,), 0.5 / (size - 1))
    rate[-1] = 0.5

    def model():
        states = []
        for t in pyro.markov(range(steps), history=history):
            first = (states[-1] == 0).unsqueeze(-1) if states else torch.tensor(False)
            states.append(pyro.sample(f"s_{t}", dist.Categorical(torch.where(first, torch.ones(size) / size, rate))))
            three = torch.stack(torch.broadcast_tensors(*[s == size - 1 for s in states[-3:]])).all(0)
            mean = torch.where(three, 3.0, 0.0) if t > 1 else 0.0 * states[t]
            pyro.sample(f"y_{t}", dist.Normal(mean, 1.0), obs=torch.tensor(0.0 if t < 2 else 3.0))

    return model


def test_a_rare_combination_of_values():
    # Of 64 joint values that are all as probable, none may have three states in a row that matter.
    for size in (8, 20):
        with pytest.raises(ValueError, match=r"further back than pyro.markov lets it see.*history=2"):
            ModelTarget(combination(size, 8))
    model = combination(8, 4)
    _, log_probs = joint_log_probs(model, {})
    for history in (1, 2):
        target = ModelTarget(combination(8, 4, history), vectorize="loop")
        torch.testing.assert_close(target.log_prob(torch.zeros(1, 0))[0], log_probs.logsumexp(0))


def test_a_rare_combination_in_a_plate():
    rate = torch.full((12,), 0.03 / 11)
    rate[7] = 0.97

    def model():
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Categorical(rate))
            three = (z == 7) & (z.roll(1, -1) == 7) & (z.roll(-1, -1) == 7)
            pyro.sample("y", dist.Normal(torch.where(three, 3.0, 0.0), 1.0), obs=torch.full((3,), 3.0))

    _, log_probs = joint_log_probs(model, {})
    torch.testing.assert_close(ModelTarget(model).log_prob(torch.zeros(1, 0))[0], log_probs.logsumexp(0))


# ---- at the end of a run ----

FAR = neighbours(lambda w: torch.relu(w - 3.5), seen=4.2)


def test_a_gate_that_is_open_at_the_posterior_only():
    target = ModelTarget(FAR)
    assert target.jointly_summed == ()
    state = torch.random.get_rng_state()
    open_, shut = torch.tensor([[3.0], [4.1]]), torch.tensor([[3.0], [3.4]])
    weight = torch.tensor([0.5, 0.5])
    (reason,) = wrong_sums(target, open_, weight)
    assert (
        "'y'" in reason.text
        and "'z'" in reason.text
        and "init_to_value(values={'w': torch.tensor(4.1)})" in reason.text
    )
    assert reason.draws and reason.evidence and reason.is_final and not reason.mendable
    assert wrong_sums(target, shut, weight) == [] and wrong_sums(target, open_, torch.tensor([1.0, 0.0])) == []
    assert torch.equal(torch.random.get_rng_state(), state)
    # What the sentence says does help.
    for seed in range(3):
        pyro.set_rng_seed(seed)
        cured = ModelTarget(FAR, init_strategy=init_to_value(values={"w": torch.tensor(4.1)}))
        _, log_probs = joint_log_probs(FAR, {"w": torch.tensor(4.3)})
        torch.testing.assert_close(cured.log_prob(torch.tensor([[4.3]]))[0], log_probs.logsumexp(0))
        assert wrong_sums(cured, open_, weight) == []


def test_a_run_says_so():
    osds = OSDS(FAR, num_samples=100, num_chains=2, disable_progbar=True, seed=0)
    with pytest.warns(UnreliableEvidenceWarning, match="depends on discrete latent 'z'"):
        osds.run()
    assert not osds.evidence.reliable and not osds.evidence.draws_reliable


def test_the_cure_names_what_it_needs():
    def model():
        with pyro.plate("many", 50):
            pyro.sample("others", dist.Normal(0.0, 1.0))
        FAR()

    target = ModelTarget(model)
    told = target.unseen_dependence(torch.cat([torch.zeros(50), torch.tensor([4.1])])[None])
    assert told is not None and told.endswith("init_to_value(values={'w': torch.tensor(4.1)}).")


def test_where_some_are_summed_jointly():
    # One pair interacts everywhere and is summed jointly; another one only where a gate is open.
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(z + 2.0 * z.roll(1, -1), 0.7), obs=Y.double())
        with pyro.plate("m", 4):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k + torch.relu(w - 4.5) * k.roll(1, -1), 0.7), obs=Y.double())

    target = ModelTarget(model)
    assert target.jointly_summed == ("z",)
    assert target.unseen_dependence(torch.tensor([[0.1], [4.4]])) is None
    told = target.unseen_dependence(torch.tensor([[0.1], [5.4]]))
    assert told is not None and "'x' depends on discrete latent 'k'" in told


def test_ill_conditioned_densities_are_no_interaction():
    # Draws of the prior whose covariance has hardly a digit left.
    grid = torch.linspace(0.0, 1.0, 6)

    def model():
        length = pyro.sample("length", dist.LogNormal(1.0, 2.0))
        cov = (-0.5 * ((grid[:, None] - grid) / length).square()).exp() + 1e-9 * torch.eye(6)
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(6), cov))
        with pyro.plate("n", 6):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(f + 2.0 * z, 0.5), obs=torch.zeros(6))

    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert ModelTarget(model).jointly_summed == ()


def test_the_seed_does_not_decide_and_random_numbers_stay():
    def numbers(model):
        pyro.set_rng_seed(3)
        ModelTarget(model)
        return torch.rand(3)

    found = set()
    for seed in range(5):
        pyro.set_rng_seed(seed)
        found.add(ModelTarget(neighbours(torch.relu, -1.0)).jointly_summed)
    assert found == {("z",)}
    # A model without the gate takes as many.
    assert torch.equal(numbers(neighbours(torch.relu)), numbers(neighbours(lambda w: 0.0 * w)))


# ---- far beyond a bound ----


def two_kinds(rate, bound, y, scale):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        n = pyro.sample("n", dist.Poisson(torch.where(z > 0, rate, 2.0)), infer={"support": bound})
        pyro.sample("y", dist.Normal(n, scale), obs=torch.tensor(y))

    return model


@pytest.mark.parametrize(
    ("rate", "bound", "y", "scale"),
    [(100.0, 30, 40.0, 20.0), (60.0, 20, 25.0, 15.0), (3000.0, 30, 40.0, 2000.0), (1e-3, 30, 3.0, 2.0)],
)
def test_a_population_far_beyond_the_bound(rate, bound, y, scale):
    target = ModelTarget(two_kinds(rate, bound, y, scale))
    n = np.arange(10_000)
    each = [logsumexp(st.poisson.logpmf(n, r) + st.norm.logpdf(y, n, scale)) for r in (rate, 2.0)]
    within = [logsumexp((st.poisson.logpmf(n, r) + st.norm.logpdf(y, n, scale))[: bound + 1]) for r in (rate, 2.0)]
    point = torch.zeros(1, 0)
    assert target.log_prob(point).item() == pytest.approx(logsumexp(within) + math.log(0.5), abs=1e-6)
    missing = logsumexp(each) - logsumexp(within)
    # Where some values stand for their neighbours, the sum is a rough one.
    assert target.beyond_bounds(point).item() == pytest.approx(missing, rel=0.02, abs=1e-6)
    assert len(truncated(target, point, torch.ones(1))) == (missing > 0.01)


def test_a_population_far_beyond_the_bound_of_what_is_summed_jointly():
    def model():
        q = pyro.sample("q", dist.Beta(2.0, 2.0))
        with pyro.plate("s", 2):
            z = pyro.sample("z", dist.Bernoulli(q))
            n = pyro.sample("n", dist.Poisson(torch.where(z > 0, 30.0, 2.0)), infer={"support": 8})
        pyro.sample("y", dist.Normal(n.sum(-1), 15.0), obs=torch.tensor(25.0))

    target = ModelTarget(model)
    assert target.jointly_summed == ("n",)
    added = target.beyond_bounds(torch.tensor([[-1.0], [0.0], [1.0]]))
    n = np.arange(150)
    for q, got in zip(torch.tensor([-1.0, 0.0, 1.0]).sigmoid().tolist(), added.tolist(), strict=True):
        one = np.logaddexp(np.log(q) + st.poisson.logpmf(n, 30.0), np.log1p(-q) + st.poisson.logpmf(n, 2.0))
        both = one[:, None] + one + st.norm.logpdf(25.0, n[:, None] + n, 15.0)
        assert got == pytest.approx(logsumexp(both) - logsumexp(both[:9, :9]), rel=0.02)


def test_a_bound_that_holds_costs_nothing():
    # All of the prior lies within; a prior that never ends is looked at for so long only.
    target = ModelTarget(two_kinds(4.0, 60, 3.0, 1.0))
    assert target.beyond_bounds(torch.zeros(1, 0)).item() == pytest.approx(0.0, abs=1e-9)

    def endless():
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        n = pyro.sample("n", dist.Geometric(p), infer={"support": 100})
        pyro.sample("y", dist.Poisson(n + 0.1), obs=torch.tensor(4.0))

    added = ModelTarget(endless).beyond_bounds(torch.tensor([[0.0], [-9.0], [-15.0]]))
    assert added.abs().max() < 1e-6
