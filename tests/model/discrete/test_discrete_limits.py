"""Discrete latents that cannot be summed: what is said, and whether it helps; and bounds of latent counts."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from interacting import K3, LOCS, animals, animals_exact, clusters, rows, shift

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.runtime.warnings import UnreliableEvidenceWarning


@pytest.fixture(autouse=True)
def double(float64):
    """Models here are written without types."""


# ---- what is refused, and what is not ----


def refused(model, *parts):
    with pytest.raises(ValueError) as caught:
        ModelTarget(model)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    return message


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


# ---- rare combinations: what is said of them, and whether it helps ----

RARE = torch.full((16,), 0.4 / 15.0)
RARE[-1] = 0.6


def three(z, left, right):
    return torch.where((z == 15) & (left == 15) & (right == 15), 3.0, 0.0)


def test_three_of_a_plate_are_no_sum():
    def model():
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Categorical(RARE.double()))
            pyro.sample("y", dist.Normal(three(z, z.roll(1, -1), z.roll(-1, -1)), 1.0), obs=torch.full((4,), 3.0))

    def loop():
        z = [pyro.sample(f"z_{i}", dist.Categorical(RARE.double())) for i in pyro.plate("n", 4)]
        for i in range(4):
            pyro.sample(f"y_{i}", dist.Normal(three(z[i], z[i - 1], z[(i + 1) % 4]), 1.0), obs=torch.tensor(3.0))

    message = refused(model, "'y'", "65,536 joint values", "for i in pyro.plate(...)", "each element of 'y'")
    assert "is a sum" not in message
    # Of each of the four it counts only whether it is the last value.
    hits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    prior = (hits * math.log(0.6) + (1.0 - hits) * math.log(0.4)).sum(-1)
    mean = 3.0 * hits * hits.roll(1, -1) * hits.roll(-1, -1)
    expected = (prior + dist.Normal(mean, 1.0).log_prob(torch.tensor(3.0)).sum(-1)).logsumexp(0)
    assert ModelTarget(loop).log_prob(torch.zeros(1, 0)).item() == pytest.approx(expected.item())


def pooled(hit, values):
    def model():
        with pyro.plate("n", 14):
            z = pyro.sample("z", dist.Categorical(values))
        pyro.sample("pool", dist.Bernoulli(torch.where(hit(z), 0.9, 0.05)), obs=torch.tensor(1.0))

    return model


def test_a_pooled_test_and_the_cure():
    def loop():
        none = torch.tensor(1.0)
        for i in pyro.plate("n", 14):
            none = none * (1.0 - pyro.sample(f"z_{i}", dist.Bernoulli(0.1)))
        pyro.sample("pool", dist.Bernoulli(torch.where(none < 1.0, 0.9, 0.05)), obs=torch.tensor(1.0))

    message = refused(
        pooled(lambda z: (z > 0).any(-1), torch.tensor([0.9, 0.1])), "'pool'", "14 of 14", "none * (1 - z_i)", "16,384"
    )
    assert "packing" not in message and "no way" not in message
    none = 0.9**14
    expected = math.log(0.9 * (1.0 - none) + 0.05 * none)
    assert ModelTarget(loop, vectorize="loop").log_prob(torch.zeros(1, 0)).item() == pytest.approx(expected)


def test_a_combination_that_no_likely_value_shows():
    # All of them have to be the same value, which is none of the first, the last and the likely ones.
    message = refused(pooled(lambda z: (z == 2).all(-1), torch.tensor([0.45, 0.05, 0.05, 0.45])), "'pool'", "14 of 14")
    assert "is a sum" not in message


def test_factors_over_a_plate():
    weight = torch.linspace(-1.0, 1.0, 14)

    def model(factor):
        def run():
            with pyro.plate("n", 14):
                z = pyro.sample("z", dist.Bernoulli(0.1))
            factor(z)

        return run

    outside = model(lambda z: pyro.factor("f", (weight * z).sum(-1)))
    message = refused(outside, "'f'", "is a sum over these elements: put 'f' into their plate")
    assert "declare" not in message
    assert "is a sum" not in refused(model(lambda z: pyro.factor("f", torch.where((z > 0).all(-1), 2.0, 0.0))), "'f'")


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
    for name, few, many in (("animals", animals(6), animals(60)), ("total", _total(4), _total(30))):
        added = ModelTarget(few).beyond_bounds(z)
        expected = ModelTarget(many).log_prob(z) - ModelTarget(few).log_prob(z)
        torch.testing.assert_close(added, expected, msg=name, rtol=0.0, atol=1e-5)
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
    with contextlib.nullcontext() if is_reliable else pytest.warns(UnreliableEvidenceWarning, match="bounds of latent"):
        osds.run()
    assert_within_standard_error(osds.log_evidence, animals_exact(bound), max(osds.log_evidence_se, 1e-4))
    assert osds.evidence.reliable == is_reliable
    assert is_reliable or any("bounds of latent counts" in str(reason) for reason in osds.evidence.reasons)


def test_a_bound_without_continuous_latents():
    def model():
        n = pyro.sample("n", dist.Poisson(5.0), infer={"support": 4})
        pyro.sample("y", dist.Normal(n, 1.0), obs=torch.tensor(6.0))

    osds = OSDS(model, disable_progbar=True)
    with pytest.warns(UnreliableEvidenceWarning, match="2.6. nats higher"):
        osds.run()
    assert not osds.evidence.reliable and "bounds of latent counts" in str(osds.evidence.reasons[0])


def test_a_site_that_comes_and_goes():
    def model():
        x, k = shift(), pyro.sample("k", dist.Bernoulli(0.4))
        if k > 0:
            pyro.sample("extra", dist.Normal(x, 1.0), obs=torch.tensor(0.5))
        rows(x)

    refused(model, "'extra' comes and goes", "poutine.mask")
