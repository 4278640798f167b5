"""Observations whose support moves with discrete latents: outside for some of their values is no mistake."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from pyro_osds.model import ModelTarget

COUNTS = torch.tensor([2.0, 4.0, 0.0, 1.0, 3.0, 2.0, 5.0, 1.0])


def log_evidence(model, *args):
    return ModelTarget(model, args).log_prob(torch.zeros(1, 0)).item()


def n_mixture(counts, support=40):
    with pyro.plate("sites", len(counts)):
        n = pyro.sample("n", dist.Poisson(4.0), infer={"support": support})
        pyro.sample("count", dist.Binomial(n, 0.5), obs=counts)


@pytest.mark.parametrize("seed", range(6))
def test_counts_of_animals_whatever_the_first_run_draws(seed):
    # Each animal is seen or not: Poisson(2) of them are.
    pyro.set_rng_seed(seed)
    truth = stats.poisson.logpmf(COUNTS.numpy(), 2.0).sum()
    assert log_evidence(n_mixture, COUNTS) == pytest.approx(truth, abs=1e-6)


def test_a_count_that_hardly_any_draw_reaches():
    k = np.arange(41)
    truth = sum(logsumexp(stats.poisson.logpmf(k, 4.0) + stats.binom.logpmf(count, k, 0.5)) for count in (2.0, 30.0))
    assert log_evidence(n_mixture, torch.tensor([2.0, 30.0])) == pytest.approx(truth, abs=1e-9)


def test_one_number_of_animals_for_all_counts():
    def model(counts):
        n = pyro.sample("n", dist.Poisson(4.0), infer={"support": 40})
        with pyro.plate("visits", len(counts)):
            pyro.sample("count", dist.Binomial(n, 0.5), obs=counts)

    k = np.arange(41)
    joint = stats.poisson.logpmf(k, 4.0) + stats.binom.logpmf(COUNTS.numpy()[:, None], k, 0.5).sum(0)
    assert log_evidence(model, COUNTS) == pytest.approx(logsumexp(joint), abs=1e-9)


def test_a_binomial_of_a_binomial():
    def model(counts):
        with pyro.plate("sites", len(counts)):
            n = pyro.sample("n", dist.Binomial(10, 0.4))
            pyro.sample("count", dist.Binomial(n, 0.5), obs=counts)

    truth = stats.binom.logpmf(COUNTS.numpy(), 10, 0.2).sum()
    assert log_evidence(model, COUNTS) == pytest.approx(truth, abs=1e-6)


def interval(y, prob=0.5, size=()):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(prob))
        fn = dist.Uniform(0.0, 1.0 + z) if not size else None
        if fn is None:
            fn = dist.Uniform(torch.zeros(size), (1.0 + z).unsqueeze(-1).expand(*z.shape, *size)).to_event(1)
        pyro.sample("y", fn, obs=y)


@pytest.mark.parametrize("prob", [0.5, 1e-4])
def test_an_interval_that_a_class_widens(prob):
    y = torch.tensor([0.2, 1.4, 0.9, 1.2, 1.7])
    truth = np.log((1 - prob) * (y.numpy() < 1) + prob / 2).sum()
    assert log_evidence(interval, y, prob) == pytest.approx(truth, abs=1e-5)


def test_events_of_which_some_entries_lie_outside():
    y = torch.tensor([[0.2, 0.4, 0.5], [0.2, 1.4, 0.5]])
    truth = math.log(0.5 + 0.5 / 8) + math.log(0.5 / 8)
    assert log_evidence(interval, y, 0.5, (3,)) == pytest.approx(truth, abs=1e-5)


def test_a_number_of_trials_for_each_class():
    def model(counts):
        with pyro.plate("rows", len(counts)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("count", dist.Binomial(torch.tensor([3.0, 5.0, 9.0])[z], 0.5), obs=counts)

    counts = torch.tensor([2.0, 4.0, 0.0, 6.0, 3.0])
    truth = np.log(sum(stats.binom.pmf(counts.numpy(), n, 0.5) / 3 for n in (3, 5, 9))).sum()
    assert log_evidence(model, counts) == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_visits_to_sites_with_continuous_latents_above(is_transposed):
    y = torch.tensor([[2.0, 3.0, 1.0], [0.0, 1.0, 0.0], [5.0, 3.0, 4.0]])
    dims = (-1, -2) if is_transposed else (-2, -1)

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        prob = pyro.sample("prob", dist.Beta(2.0, 2.0))
        with pyro.plate("sites", 3, dim=dims[0]):
            n = pyro.sample("n", dist.Poisson(rate), infer={"support": 30})
            with pyro.plate("visits", 3, dim=dims[1]):
                pyro.sample("y", dist.Binomial(n, prob), obs=y.mT if is_transposed else y)

    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.5, -2.0]], dtype=torch.float64)
    k, truth = np.arange(31), []
    for rate, prob in zip(z[:, 0].exp().tolist(), z[:, 1].sigmoid().tolist(), strict=True):
        rows = (stats.poisson.logpmf(k, rate) + stats.binom.logpmf(row[:, None], k, prob).sum(0) for row in y.numpy())
        prior = stats.gamma.logpdf(rate, 2, scale=2) + np.log(rate)
        prior += stats.beta.logpdf(prob, 2, 2) + np.log(prob * (1 - prob))
        truth.append(prior + sum(map(logsumexp, rows)))
    assert ModelTarget(model).log_prob(z).tolist() == pytest.approx(truth, abs=1e-8)


def pooled(count):
    with pyro.plate("sites", 2):
        n = pyro.sample("n", dist.Poisson(2.0), infer={"support": 20})
    pyro.sample("count", dist.Binomial(n.sum(-1), 0.5), obs=count)


def test_elements_that_interact_reach_further_together():
    k = np.arange(21)
    weight = stats.poisson.logpmf(k, 2.0)
    joint = (weight[:, None] + weight) + stats.binom.logpmf(30, k[:, None] + k, 0.5)
    assert log_evidence(pooled, torch.tensor(30.0)) == pytest.approx(logsumexp(joint), abs=1e-8)
    with pytest.raises(ValueError, match=r"'count' has the value 41\.0 .*outside its support for all values of the"):
        ModelTarget(pooled, (torch.tensor(41.0),))


# ---- outside for all values: refused, with the true entries ----


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_that_is_too_low_for_a_count_is_named_with_the_cure(seed):
    pyro.set_rng_seed(seed)
    with pytest.raises(ValueError) as caught:
        ModelTarget(n_mixture, (torch.tensor([2.0, 50.0, 41.0, 40.0]),))
    assert "has the value 50.0 at index (1,) (2 of 4 values)" in str(caught.value)
    assert "(whole numbers from 0 to 40 at most) for all values of the discrete latents ('n')" in str(caught.value)
    assert "Raise the bound" in str(caught.value)


@pytest.mark.parametrize("bad", [-1.0, 1.5, 70.5])
def test_no_bound_makes_a_count_of_what_is_none(bad):
    with pytest.raises(ValueError, match=rf"has the value {bad} at index \(1,\) \(1 of 2 values\)") as caught:
        ModelTarget(n_mixture, (torch.tensor([2.0, bad]),))
    assert "Raise the bound" not in str(caught.value)


def test_what_no_class_reaches_is_named():
    with pytest.raises(ValueError, match=r"has the value 2\.5 at index \(2,\) \(1 of 3 values\): outside .*0 to 2 at"):
        ModelTarget(interval, (torch.tensor([0.2, 1.4, 2.5]),))
    with pytest.raises(ValueError, match=r"has the value 2\.5 at index \(1,\) \(1 of 2 values\): outside"):
        ModelTarget(interval, (torch.tensor([[0.2, 0.4, 0.5], [0.2, 1.4, 2.5]]), 0.5, (3,)))


def test_probabilities_of_zero_for_some_classes_and_for_all():
    def model(y, prob):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Bernoulli(z * prob), obs=y)

    y = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert log_evidence(model, y, 0.5) == pytest.approx(3 * math.log(0.25) + math.log(0.75), abs=1e-6)
    with pytest.raises(ValueError, match=r"\(3 of 4 values\): its probability is exactly zero for all values"):
        ModelTarget(model, (y, 0.0))


def test_a_missing_value_is_told_as_such_whatever_the_discrete_latents_are():
    with pytest.raises(ValueError, match="a missing value has no density, so"):
        ModelTarget(n_mixture, (torch.tensor([2.0, math.nan]),))


def test_an_interval_that_continuous_latents_move_too_is_none_to_judge_by():
    def model(y):
        width = pyro.sample("width", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Uniform(0.0, width * (1.0 + z)), obs=y)

    y = np.array([0.2, 1.4, 9.5])
    z = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    truth = []
    for width in z[:, 0].exp().tolist():
        parts = 0.5 * (y < width) / width + 0.25 * (y < 2 * width) / width
        with np.errstate(divide="ignore"):
            truth.append(stats.halfnorm.logpdf(width) + np.log(width) + np.log(parts).sum())
    got = ModelTarget(model, (torch.tensor(y).float(),)).log_prob(z).tolist()
    assert got[0] == truth[0] == -math.inf and got[1] == pytest.approx(truth[1], abs=1e-6)


def test_a_support_with_one_end_is_told_by_that():
    def model(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Pareto(1.0 + z, 2.0), obs=y)

    y = np.array([1.5, 3.0])
    truth = np.log(0.5 * stats.pareto.pdf(y, 2.0) + 0.5 * stats.pareto.pdf(y, 2.0, scale=2.0)).sum()
    assert log_evidence(model, torch.tensor(y)) == pytest.approx(truth, abs=1e-6)
    with pytest.raises(ValueError, match=r"value 0\.5 at index \(1,\).* support \(numbers from 1 at most\) for all"):
        ModelTarget(model, (torch.tensor([1.5, 0.5]),))


def test_a_hidden_chain_of_numbers_of_trials():
    counts, steps = [1.0, 5.0, 2.0, 7.0], np.array([[0.7, 0.3], [0.2, 0.8]])

    def model():
        x = torch.tensor(0)
        for t in pyro.markov(range(4)):
            x = pyro.sample(f"x{t}", dist.Categorical(torch.tensor(steps).float()[x]))
            trials = torch.tensor([3.0, 9.0])[x]
            pyro.sample(f"count{t}", dist.Binomial(trials, 0.5), obs=torch.tensor(counts[t]))

    forward = np.array([1.0, 0.0])
    for count in counts:
        forward = forward @ steps * stats.binom.pmf(count, [3, 9], 0.5)
    assert log_evidence(model) == pytest.approx(math.log(forward.sum()), abs=1e-5)


def test_data_that_no_value_makes_possible_together_are_refused():
    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("a", dist.Uniform(0.0, 1.0 + k), obs=torch.tensor(1.5))
        pyro.sample("b", dist.Uniform(0.0 + k, 1.5 + k), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match=r"probability zero together, whatever the discrete latents \('k'\) are"):
        ModelTarget(model)


def test_probabilities_of_zero_leave_nothing_of_data_that_contradict_each_other():
    def coins(y):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(z), obs=y)

    def labels(y):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Categorical(torch.tensor([[1.0, 0.0], [0.0, 1.0]])[z]), obs=y)

    for model, kind in ((coins, torch.float32), (labels, torch.long)):
        assert log_evidence(model, torch.tensor([1, 1]).to(kind)) == pytest.approx(math.log(0.5), abs=1e-5)
        with pytest.raises(ValueError, match="probability zero together"):
            ModelTarget(model, (torch.tensor([0, 1]).to(kind),))
