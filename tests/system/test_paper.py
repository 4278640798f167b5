"""The benchmark of the paper's sampler: volumes, weights, gradients and densities against values by other means."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from helpers import assert_within_standard_error, perturbed

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import paper
import paper_training
from paper_sampler import PaperTarget, Sampler, Velocity, least_gap
from paper_targets import DATA, paper_targets
from paper_training import Training, reverse_kl

SIGN = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)


class Linear(torch.nn.Module):
    """The free part A x, and gains that are the same at all times."""

    def __init__(self, matrix, gain):
        super().__init__()
        self.matrix, self.gains = torch.as_tensor(matrix), torch.as_tensor(gain)

    def clock(self, t, d):
        return torch.zeros(len(t), 1, dtype=t.dtype), self.gains.expand(len(t), -1)

    def forward(self, x, clock):
        return x @ self.matrix.T


class TurnedOver(Linear):
    """Control that sends one step at time 1 to its mirror image, on the left half of the line only."""

    def forward(self, x, clock):
        beta = rate_by_hand(1.0)
        turn = -(2.0 + 0.5 * beta) / (0.5 * math.sqrt(beta))

        return torch.where(x < 0, turn * x, torch.zeros_like(x))


def gaussian(precision, scale=1.0, log_evidence=0.0):
    """A centred Gaussian, times exp(log_evidence)."""
    p = torch.as_tensor(precision)
    norm = 0.5 * torch.logdet(p / (2.0 * math.pi)).item()

    def log_prob(z):
        return -0.5 * torch.einsum("bi,ij,bj->b", z, p, z) + norm + log_evidence

    return PaperTarget("Gaussian", log_prob, lambda z: -z @ p, len(p), log_evidence, 0.0, scale)


def rate_by_hand(t):
    return 0.5 * (10.0 - 0.01) * math.cos(0.5 * math.pi * (1.008 - t) / 1.008) ** 2 + 0.005


def arbitrary_matrices():
    a, half = np.random.default_rng(0).normal(size=(2, 3, 3)) * 0.3
    return a, np.eye(3) + half @ half.T


# ---- volumes ----


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_volumes_of_linear_steps_are_determinants_and_traces(num_steps):
    # Every step of a linear network on a Gaussian is a matrix, written down here with numpy.
    free, precision = arbitrary_matrices()
    gain, scale = np.array([0.4, 0.1, 0.2]), 0.8
    sampler = Sampler(gaussian(precision, scale), Linear(free, gain))
    x = 0.1 * torch.randn(5, 3, dtype=torch.float64)
    landed, counts = sampler.flow(x, num_steps)

    whole, exact, traced, curved = np.eye(3), 0.0, 0.0, 0.0
    for k in range(num_steps):
        t, d = 1.0 - k / num_steps, 1.0 / num_steps
        beta = rate_by_hand(t)
        sigma = scale * math.sqrt(beta)
        guide = sigma * np.diag(gain) @ (-(1.0 - t) * precision - t * np.eye(3) / scale**2)
        grown = 0.5 * beta * d * np.eye(3)
        step = np.eye(3) + grown + 0.5 * sigma * d * (free + guide)
        whole = step @ whole
        exact += np.linalg.slogdet(step)[1]
        traced += np.trace(grown + 0.5 * sigma * d * free)
        curved += np.trace(step - np.eye(3))
    np.testing.assert_allclose(landed, x.numpy() @ whole.T, rtol=1e-10)
    np.testing.assert_allclose(counts["exact"], np.full(5, np.linalg.slogdet(whole)[1]), rtol=1e-9)
    np.testing.assert_allclose(counts["exact"], np.full(5, exact), rtol=1e-9)
    np.testing.assert_allclose(counts["traced"], np.full(5, traced), rtol=1e-9)
    np.testing.assert_allclose(counts["curved"], np.full(5, curved), rtol=1e-9)


@pytest.mark.parametrize("name", ["funnel 10-D", "MW54 5-D"])
def test_exact_volume_of_a_curved_map_is_that_of_its_differences(name):
    # The map of two steps as a whole, guidance clipped where it is steep, by central differences.
    target = paper_targets()[name]
    sampler = Sampler(target, perturbed(Velocity(target.dim).double(), 0.1))
    x = torch.cat([sampler.prior(3, SIGN), 4.0 * sampler.prior(2, SIGN)])
    _, counts = sampler.flow(x, 2)
    columns = []
    for i in range(target.dim):
        shift = 1e-6 * target.scale * torch.eye(target.dim, dtype=torch.float64)[i]
        ends = [sampler.flow(x + sign * shift, 2)[0] for sign in (1.0, -1.0)]
        columns.append((ends[0] - ends[1]).numpy() / (2e-6 * target.scale))
    by_hand = np.linalg.slogdet(np.stack(columns, -1))[1]
    np.testing.assert_allclose(counts["exact"], by_hand, rtol=1e-5, atol=1e-4)


def test_published_volume_is_the_trace_on_average():
    free, precision = arbitrary_matrices()
    sampler = Sampler(gaussian(precision), Linear(free, np.zeros(3)))
    _, counts = sampler.flow(torch.zeros(20000, 3, dtype=torch.float64), 2)
    error = (counts["published"] - counts["traced"]).numpy()
    assert_within_standard_error(error.mean(), 0.0, error.std() / math.sqrt(len(error)))
    # One probe: half the sum of squares of the symmetric part's elements off the diagonal, for each step.
    off = free + free.T - np.diag(np.diag(free + free.T))
    scales = [0.25 * math.sqrt(rate_by_hand(t)) for t in (1.0, 0.5)]
    variance = sum(scale**2 * 0.5 * (off**2).sum() for scale in scales)
    assert error.var() == pytest.approx(variance, rel=0.05)


def test_published_volume_in_small_steps_is_the_integral_of_the_divergence():
    # In 1-D a probe is no noise: the integral over time by quadrature.
    slope, scale = 0.7, 0.5
    sampler = Sampler(gaussian(np.eye(1), scale), Linear(np.array([[slope]]), np.zeros(1)))
    _, counts = sampler.flow(torch.ones(2, 1, dtype=torch.float64), 512)

    def divergence(t):
        return 0.5 * rate_by_hand(t) + 0.5 * scale * math.sqrt(rate_by_hand(t)) * slope

    integral = scipy.integrate.quad(divergence, 0.0, 1.0)[0]
    # The sum takes the right end of each step: half a step of the difference of the ends is too much.
    ends = 0.5 * (divergence(1.0) - divergence(0.0)) / 512
    np.testing.assert_allclose(counts["published"], integral + ends, rtol=1e-5)
    # The map itself solves a linear equation: small steps have its volume, whatever counts them.
    np.testing.assert_allclose(counts["exact"], integral + ends, rtol=5e-3)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_elbo_of_the_published_volume_in_one_step_is_its_closed_form(gain):
    # Prior and target N(0, 1): the step is x' = c x, and the published volume never sees what the gain does.
    beta = rate_by_hand(1.0)
    c = 1.0 + 0.5 * beta * (1.0 - gain)
    target = gaussian(torch.eye(4, dtype=torch.float64))
    sampler = Sampler(target, Linear(np.zeros((4, 4)), np.full(4, gain)))
    found = paper.measured(sampler, 1)
    std_error = max(found["published"]["elbo_se"], 1e-9)
    assert_within_standard_error(found["published"]["elbo"], 4 * (-0.5 * (c**2 - 1.0) + 0.5 * beta), std_error)
    std_error = max(found["exact"]["elbo_se"], 1e-9)
    assert_within_standard_error(found["exact"]["elbo"], 4 * (-0.5 * (c**2 - 1.0) + math.log(c)), std_error)
    assert found["curvature"]["mean"] == pytest.approx(4 * 0.5 * beta * gain)
    assert found["trace"]["mean"] == pytest.approx(4 * (c - 1.0 - math.log(c)))
    if gain == 1.0:  # the identity: exact weights are right, and the published ELBO is ten nats above log Z
        assert found["exact"]["elbo"] == pytest.approx(0.0, abs=1e-12)
        assert found["published"]["elbo"] == pytest.approx(4 * 0.5 * beta)


@pytest.mark.parametrize("name", ["funnel 10-D", "MW54 5-D", "seeds 26-D", "ionosphere 35-D"])
def test_one_step_is_the_identity_before_training_and_its_published_volume_is_not_nothing(name):
    # At time 1 the guidance is the prior's score alone, and takes back what the rate does.
    target = paper_targets()[name]
    sampler = Sampler(target, Velocity(target.dim).double())
    x = sampler.prior(20, SIGN)
    z, counts = sampler.flow(x, 1)
    torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(counts["exact"], torch.zeros_like(counts["exact"]), rtol=0.0, atol=1e-4)
    expected = torch.full_like(counts["exact"], target.dim * 0.5 * rate_by_hand(1.0))
    torch.testing.assert_close(counts["published"], expected, rtol=1e-4, atol=0.0)


def test_folded_maps_are_counted_and_their_exact_volume_counts_twice():
    # Both halves of the line land on the right one, so each point there counts twice and those on the left never do:
    # of N(1, 1) twice the probability of the right half, and not 1.
    target = gaussian(np.eye(1))
    target = dataclasses.replace(target, log_prob=lambda z: torch.distributions.Normal(1.0, 1.0).log_prob(z).sum(-1))
    sampler = Sampler(target, TurnedOver(np.zeros((1, 1)), np.zeros(1)))
    x = sampler.prior(20000, SIGN)
    z, counts = sampler.flow(x, 1)
    assert bool((z > 0).all())
    assert_within_standard_error(counts["folded"].mean(), 0.5, 0.5 / math.sqrt(len(x)))
    weight = (target.log_prob(z) - sampler.log_prior(x) + counts["exact"]).exp()
    std_error = weight.std().item() / math.sqrt(len(weight))
    assert_within_standard_error(weight.mean(), 2.0 * scipy.stats.norm.cdf(1.0), std_error)


def test_maps_that_diverge_are_told_as_they_are():
    # Numbers that are none go into the table: neither an error nor a mean of what is left.
    network = Linear(np.full((2, 2), 1e200), np.zeros(2))
    found = paper.measured(Sampler(gaussian(np.eye(2)), network), 2)
    for way in ("published", "exact"):
        assert not math.isfinite(found[way]["elbo"])


# ---- paths ----


@pytest.mark.parametrize("num_steps", [1, 4])
def test_weights_of_paths_are_densities_of_normals(num_steps):
    target = gaussian(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)), 1.3, log_evidence=1.7)
    network = perturbed(Velocity(2).double(), 0.1)
    sampler = Sampler(target, network)
    with torch.no_grad():
        states, log_weight = sampler.paths(sampler.prior(50, SIGN), num_steps)
        by_hand = scipy.stats.norm.logpdf(states[-1], 0.0, [math.sqrt(0.5), math.sqrt(2.0)]).sum(-1) + 1.7
        by_hand -= scipy.stats.norm.logpdf(states[0], 0.0, 1.3).sum(-1)
        for k in range(num_steps):
            t, d = torch.full((50,), 1.0 - k / num_steps).double(), torch.full((50,), 1.0 / num_steps).double()
            beta = rate_by_hand(float(t[0]))
            sigma, x, after = 1.3 * math.sqrt(beta), states[k], states[k + 1]
            clock, gain = network.clock(t, d)
            between = (1 - t[:, None]) * target.score(x) - t[:, None] * x / 1.3**2
            control = network(x, clock) + gain * (sigma * between).clamp(-100, 100)
            sd = sigma * math.sqrt(float(d[0]))
            forward = x + (sigma * control + 0.5 * beta * x) * d[:, None]
            backward = after - 0.5 * beta * after * d[:, None]
            by_hand += scipy.stats.norm.logpdf(x, backward, sd).sum(-1)
            by_hand -= scipy.stats.norm.logpdf(after, forward, sd).sum(-1)
    np.testing.assert_allclose(log_weight, by_hand, rtol=1e-9, atol=1e-9)


def test_mean_weight_of_paths_is_the_evidence():
    target = gaussian(torch.eye(2, dtype=torch.float64), 1.0, log_evidence=-2.3)
    sampler = Sampler(target, perturbed(Velocity(2).double(), 0.02))
    with torch.no_grad():
        _, log_weight = sampler.paths(sampler.prior(20000, SIGN), 16)
    weight = (log_weight + 2.3).exp()
    assert_within_standard_error(weight.mean(), 1.0, weight.std().item() / math.sqrt(len(weight)))


@pytest.mark.parametrize("num_steps", [1, 128])
def test_least_gap_is_that_of_gaussians(num_steps):
    # Coordinates N(1, 0.2): noise keeps them Gaussian, and the divergence of Gaussians has a closed form.
    def alone(z):
        return torch.distributions.Normal(1.0, math.sqrt(0.2)).log_prob(z).sum(-1)

    target = dataclasses.replace(gaussian(np.eye(3), scale=0.7), alone=alone)
    mean, variance = 1.0, 0.2
    for k in range(1, num_steps + 1):
        beta = rate_by_hand(k / num_steps) / num_steps
        mean, variance = (1.0 - 0.5 * beta) * mean, (1.0 - 0.5 * beta) ** 2 * variance + 0.49 * beta
    truth = 0.5 * math.log(variance / 0.49) + (0.49 + mean**2) / (2.0 * variance) - 0.5
    assert least_gap(target, num_steps) == pytest.approx(3 * truth, rel=1e-6)
    assert least_gap(gaussian(np.eye(3)), num_steps) is None


# ---- training ----


@pytest.mark.parametrize("name", ["funnel 10-D", "MW54 5-D", "seeds 26-D", "ionosphere 35-D"])
def test_gradients_of_the_first_loss_are_those_of_autograd(name):
    sampler = Sampler(paper_targets()[name], perturbed(Velocity(paper_targets()[name].dim).double()))
    x, parameters = sampler.prior(4, SIGN), list(sampler.network.parameters())
    torch.manual_seed(1)
    states, log_weight = sampler.paths(x, 8)
    gradients = torch.autograd.grad(-log_weight.mean(), parameters, allow_unused=True, materialize_grads=True)
    torch.manual_seed(1)
    loss, same_states, same_gradients = reverse_kl(sampler, x, 8)
    assert loss == pytest.approx(-log_weight.mean().item())
    torch.testing.assert_close(same_states, states.detach())
    for gradient, same in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(same, gradient, rtol=1e-7, atol=1e-9 * gradient.abs().max().item() + 1e-12)


def test_step_of_training_is_the_step_that_is_measured():
    sampler = Sampler(paper_targets()["seeds 26-D"], perturbed(Velocity(26).double()))
    x = 0.1 * sampler.prior(3, SIGN)
    t, d, probe = torch.ones(3).double(), torch.full((3,), 1.0).double(), torch.ones(3, 26).double()
    landed, volume, _ = sampler.step(sampler.network, x, t, d, probe)
    z, counts = sampler.flow(x, 1)
    torch.testing.assert_close(landed.detach(), z)
    beta = rate_by_hand(1.0)
    clock = sampler.network.clock(t, d)[0].detach()
    whole = torch.autograd.functional.jacobian(lambda x: sampler.network(x, clock).sum(0), x)
    probed = whole.sum((0, 2))  # a probe of ones adds up all elements of a Jacobian
    torch.testing.assert_close(volume.detach(), 13 * beta + 0.5 * math.sqrt(beta) * probed)
    assert counts["published"].shape == (3,)


def test_consistency_is_that_of_states_and_volumes():
    training = Training(gaussian(torch.eye(1)), 10, 4)
    network = Linear(torch.zeros(1, 1), torch.ones(1))
    training.sampler.network, training.average = network, network
    states = torch.ones(129, 4096, 1)
    torch.manual_seed(0)
    loss = training.consistency(states)
    # Guidance alone, prior and target N(0, 1), gain 1: nothing moves, and the volumes are sums of rates at other times.
    parts, weights = [], []
    for power in range(1, 8):
        stride = 2**power
        for gone in range(0, 128, stride):
            t, d = 1.0 - gone / 128, stride / 128
            halves = 0.25 * d * (rate_by_hand(t) + rate_by_hand(t - 0.5 * d))
            parts.append((halves - 0.5 * d * rate_by_hand(t)) ** 2)
            weights.append(1.0 / 7.0 / (128 // stride))
    parts, weights = np.array(parts), np.array(weights)
    mean = (weights * parts).sum()
    std_error = 0.25 * math.sqrt((weights * (parts - mean) ** 2).sum() / 4096)
    assert_within_standard_error(loss, 0.25 * mean, std_error)


@pytest.mark.slow
def test_a_few_iterations_lower_the_loss(monkeypatch):
    monkeypatch.setattr(paper_training, "NUM_STEPS", 16)
    torch.manual_seed(0)
    training = Training(gaussian(4.0 * torch.eye(2)), 20, 16)
    for _ in range(20):
        training.iterate()
    assert np.mean(training.history[-5:]) < np.mean(training.history[:5])


# ---- densities ----


@pytest.mark.parametrize("name", ["funnel 10-D", "MW54 5-D", "seeds 26-D", "ionosphere 35-D"])
def test_scores_are_differences_of_the_density(name):
    target = paper_targets()[name]
    z = 0.5 * torch.randn(3, target.dim, dtype=torch.float64)
    by_hand = torch.zeros_like(z)
    for i in range(target.dim):
        shift = torch.zeros(target.dim, dtype=torch.float64)
        shift[i] = 1e-5
        by_hand[:, i] = (target.log_prob(z + shift) - target.log_prob(z - shift)) / 2e-5
    torch.testing.assert_close(target.score(z), by_hand, rtol=1e-5, atol=1e-5)


def test_densities_are_those_of_scipy():
    targets, rng = paper_targets(), np.random.default_rng(1)
    norm = scipy.stats.norm.logpdf
    z = rng.normal(size=10)
    truth = norm(z[0], 0.0, 3.0) + norm(z[1:], 0.0, math.exp(0.5 * z[0])).sum()
    assert targets["funnel 10-D"].log_prob(torch.tensor(z)[None]).item() == pytest.approx(truth)

    germinated, total, x1, x2 = np.loadtxt(DATA / "seeds.csv", delimiter=",", skiprows=1).T
    z = rng.normal(size=26)
    tau, a, b = math.exp(z[0]), z[1:5], z[5:]
    logits = a[0] + a[1] * x1 + a[2] * x2 + a[3] * x1 * x2 + b
    truth = scipy.stats.binom.logpmf(germinated, total, 1.0 / (1.0 + np.exp(-logits))).sum() + z[0]
    truth += scipy.stats.gamma.logpdf(tau, 0.01, scale=100.0) + norm(a, 0.0, 10.0).sum()
    truth += norm(b, 0.0, tau**-0.5).sum()
    assert targets["seeds 26-D"].log_prob(torch.tensor(z)[None]).item() == pytest.approx(truth)

    table = np.loadtxt(DATA / "ionosphere.csv", delimiter=",", skiprows=1)
    x, label = table[:, :-1], table[:, -1]
    sd = x.std(0)
    x = (x - x.mean(0)) / np.where(sd > 0, sd, 1.0)
    z = rng.normal(size=35)
    truth = scipy.stats.logistic.logcdf(label * (z[0] + x @ z[1:])).sum() + norm(z).sum()
    assert targets["ionosphere 35-D"].log_prob(torch.tensor(z)[None]).item() == pytest.approx(truth)


def test_log_evidence_of_the_wells_is_their_quadrature():
    # The paper's m = 5, delta = 4: five coordinates, nothing beside them.
    target = paper_targets()["MW54 5-D"]
    one = scipy.integrate.quad(lambda x: math.exp(-((x**2 - 4.0) ** 2)), -5.0, 5.0, points=[-2.0, 2.0])[0]
    assert target.log_evidence == pytest.approx(5.0 * math.log(one), abs=1e-7)
    z = target.sample(4000)
    for moment in (2, 4):
        truth = scipy.integrate.quad(lambda x: x**moment * math.exp(-((x**2 - 4.0) ** 2)) / one, -5.0, 5.0)[0]  # noqa: B023
        values = (z**moment).flatten()
        assert_within_standard_error(values.mean(), truth, values.std().item() / math.sqrt(len(values)))
