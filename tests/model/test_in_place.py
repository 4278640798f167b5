"""What a model changes in place has the value of its moment; what the user owns stays as it is; memory is refused."""

import collections

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from scipy import stats
from torch import nn

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, Predictive

HISTORY = torch.tensor(
    [[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.float64
)
BATCH = 70


def at_random_points(model, *args, num=BATCH, **kwargs):
    """The target with its log densities and scores at some points, by the fastest backend."""
    pyro.set_rng_seed(0)
    target = ModelTarget(model, args, kwargs)
    z = torch.randn(num, target.dim, dtype=torch.float64).requires_grad_()
    log_prob = target.log_prob(z)
    (score,) = torch.autograd.grad(log_prob.sum(), z)

    return target, z.detach(), log_prob.detach(), score


def assert_density(model, expected, *args, backend="captured", **kwargs):
    """Values and gradients are those of a formula of points ``(D,)``."""
    target, z, log_prob, score = at_random_points(model, *args, **kwargs)
    assert target.backend == backend, target._ladder.reason
    z.requires_grad_()
    right = torch.stack([expected(row) for row in z])
    (right_score,) = torch.autograd.grad(right.sum(), z)
    torch.testing.assert_close(log_prob, right.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score, right_score, rtol=1e-5, atol=1e-5)

    return target


def log_normal(x, loc, scale=1.0):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


# ---- the moment of a site ----


def captures(history, seen=None):
    """Recaptures count from the first capture on."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    seen = torch.zeros(len(history), dtype=torch.bool) if seen is None else seen
    with pyro.plate("animals", len(history)):
        for t in range(history.shape[1]):
            with poutine.mask(mask=seen):
                pyro.sample(f"y{t}", dist.Bernoulli(p), obs=history[:, t])
            seen |= history[:, t].bool()


def captures_by_hand(row):
    log_p, log_q = torch.nn.functional.logsigmoid(row[0]), torch.nn.functional.logsigmoid(-row[0])
    total = 2 * log_p + 2 * log_q + np.log(6.0)
    for animal in HISTORY.numpy():
        first = int(np.argmax(animal))
        for y in animal[first + 1 :]:
            total = total + (log_p if y else log_q)

    return total


def test_a_mask_that_changes_between_sites():
    assert_density(captures, captures_by_hand, HISTORY)


def test_evidence_with_a_mask_that_changes():
    # Beta-binomial: successes and failures after the first capture are all that counts.
    pyro.set_rng_seed(1)
    osds = OSDS(captures, num_samples=250, disable_progbar=True)
    osds.run(HISTORY)
    after = [animal[int(np.argmax(animal)) + 1 :] for animal in HISTORY.numpy()]
    hits = sum(part.sum() for part in after)
    misses = sum(len(part) for part in after) - hits
    exact = stats.betabinom.logpmf(hits, hits + misses, 2, 2) - np.log(
        stats.binom.pmf(hits, hits + misses, 0.5) * 2.0 ** (hits + misses)
    )
    assert abs(osds.log_evidence - exact) < 3 * osds.log_evidence_se + 1e-6
    assert osds.evidence.reliable, osds.evidence.reasons


def test_locations_scales_and_factors_of_sites_that_change():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        offset, sd, weight = torch.zeros(2), torch.ones(2), torch.ones(2)
        with pyro.plate("rows", 2):
            for t in range(3):
                with poutine.scale(scale=weight):
                    pyro.sample(f"y{t}", dist.Normal(x * (1 + offset), sd), obs=y)
                offset += 0.5
                sd.mul_(2.0)
                weight[0] = 3.0

    def expected(row):
        total = log_normal(row[0], 0.0)
        for t in range(3):
            for i, y in enumerate((0.3, -0.7)):
                weight = 3.0 if i == 0 and t > 0 else 1.0
                total = total + weight * log_normal(y, row[0] * (1 + 0.5 * t), 2.0**t)
        return total

    assert_density(model, expected, torch.tensor([0.3, -0.7]))


def test_data_that_are_shifted_in_place():
    # The observation of each site is that of its moment, also in what is kept of the data.
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        for t in range(2):
            pyro.sample(f"y{t}", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=y)
            y += 1.0
        y -= 2.0

    y = torch.tensor([0.5, 1.5])
    target = assert_density(model, lambda row: sum(log_normal(v, row[0], 1.0) for v in (0.0, 0.5, 1.5, 1.5, 2.5)), y)
    assert y.tolist() == [0.5, 1.5]
    assert {name: value.tolist() for name, value in target.observed.items()} == {"y0": [0.5, 1.5], "y1": [1.5, 2.5]}


def test_latent_values_that_are_changed_in_place():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("first", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))
        x *= 2.0
        double = pyro.deterministic("double", x)
        pyro.sample("second", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))
        double += 1.0
        x[0] = 5.0

    def expected(row):
        return (log_normal(row, 0.0) + log_normal(1.0, row) + log_normal(1.0, 2 * row)).sum()

    target = assert_density(model, expected)
    z = torch.randn(BATCH, 2, dtype=torch.float64)
    before = z.clone()
    torch.testing.assert_close(target.constrain(z)["x"].double(), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.deterministics(z)["double"].double(), 2 * z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.from_samples(target.constrain(z)), z, rtol=1e-6, atol=1e-6)
    draws = target.sample_prior(2000)
    assert (draws.std(0) - 1).abs().max() < 5 / (2 * 2000) ** 0.5  # five standard errors
    samples = {"x": z.clone()}
    Predictive(target).posterior(samples, BATCH)
    assert torch.equal(z, before) and torch.equal(samples["x"], before)


# ---- the user's tensors ----


class Scratch(nn.Module):
    """A module that writes into a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("work", torch.full((2,), 7.0))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.work[:] = 0.0
        self.work += 2.0
        self.calls = self.calls + 1
        return x * self.work


class Bayesian(PyroModule):
    """The same in a Pyro module."""

    def __init__(self):
        super().__init__()
        self.register_buffer("work", torch.full((2,), 7.0))
        self.x = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self):
        self.work.fill_(2.0)
        pyro.sample("y", dist.Normal(self.x * self.work, 1.0).to_event(1), obs=torch.ones(2))


def by_two(row):
    return log_normal(row[0], 0.0) + 2 * log_normal(1.0, 2 * row[0])


def test_buffers_and_arguments_stay_as_they_were():
    scratch, given, options = Scratch(), torch.full((2,), 3.0), {"list": [torch.full((2,), 4.0)]}

    def model(given, options):
        given.zero_()
        options["list"][0].fill_(1.0)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(scratch(x) + given, options["list"][0]).to_event(1), obs=torch.ones(2))
        given += 1.0

    assert_density(model, by_two, given, options)
    pyro.set_rng_seed(0)
    OSDS(model, num_samples=100, num_iterations=20, escalate=False, disable_progbar=True).run(given, options)
    assert given.tolist() == [3.0, 3.0] and options["list"][0].tolist() == [4.0, 4.0]
    assert scratch.work.tolist() == [7.0, 7.0] and scratch.calls.item() == 0.0


def test_buffers_of_a_pyro_module():
    module = Bayesian()
    assert_density(module, by_two)
    assert module.work.tolist() == [7.0, 7.0]


def test_numpy_and_memory_without_versions():
    # What goes around torch's bookkeeping is put back as well.
    array, plain = np.ones(2), torch.ones(2)

    def model(array, plain):
        array[:] = 2.0
        plain.numpy()[:] = 0.0
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        loc = x * torch.as_tensor(array.copy()) + plain.clone()
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=torch.ones(2))

    at_random_points(model, array, plain, num=3)
    assert array.tolist() == [1.0, 1.0] and plain.tolist() == [1.0, 1.0]


def test_views_of_one_memory():
    whole = torch.zeros(4)
    left, right = whole[:2], whole[2:]

    def model(left):
        left.fill_(2.0)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x * whole[:2] + right, 1.0).to_event(1), obs=torch.ones(2))

    assert_density(model, by_two, left)
    assert whole.tolist() == [0.0] * 4


def test_tensors_are_put_back_when_the_model_fails():
    y = torch.zeros(2)

    def model(y):
        y += 1.0
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match="broken"):
        ModelTarget(model, (y,))
    assert y.tolist() == [0.0, 0.0]


def test_prior_predictive_leaves_arguments_alone():
    y = torch.zeros(2)

    def model(y):
        pyro.sample("x", dist.Normal(y, 1.0).to_event(1))
        y += 1.0

    draws = OSDS(model, disable_progbar=True).prior_predictive(y, num_draws=500)["x"]
    assert y.tolist() == [0.0, 0.0]
    assert draws.mean(0).abs().max() < 5 / 500**0.5  # five standard errors


def test_a_plain_model_runs_as_it_is():
    # Nothing is copied and nothing is kept for a model that changes nothing.
    y = torch.ones(2)

    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0).expand([2]).to_event(1), obs=y)

    target = ModelTarget(model, (y,))
    assert not target._state.changing and target._state._before is None
    assert not target._ladder._keeps_saved and not target._copies_values


# ---- state between runs ----

calls = [0]
total = 0


class Holder:
    """An object with state, which is a model by its method."""

    seen = 0

    def __init__(self):
        self.count = 0

    def model(self):
        self.count += 1
        observe(self.count)

    def __call__(self):
        type(self).seen += 1
        observe(type(self).seen)


class Slotted:
    """State without a dictionary."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        observe(self.count)


def observe(shift):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("early", dist.Normal(x, 1.0), obs=torch.tensor(0.5))
    pyro.sample("y", dist.Normal(x + shift, 1.0), obs=torch.tensor(0.5))


def by_global_list():
    calls[0] += 1
    observe(calls[0])


def by_global_number():
    global total
    total += 1
    observe(total)


def by_closure():
    count = 0
    queue = collections.deque(maxlen=3)

    def model():
        nonlocal count
        count += 1
        queue.append(count)
        observe(count)

    return model


def by_growing_list():
    history = []

    def model():
        observe(float(len(history)))
        history.append(0)

    return model


def by_dictionary():
    table = {"shift": 0.0}

    def model():
        table["shift"] = table["shift"] + 1.0
        observe(table["shift"])

    return model


def by_default(memory={}):  # noqa: B006 - the mistake under test
    memory[len(memory)] = 0
    observe(len(memory))


def by_own_attribute():
    by_own_attribute.calls = getattr(by_own_attribute, "calls", 0) + 1
    observe(by_own_attribute.calls)


by_own_attribute.calls = 0


class Running(PyroModule):
    """A buffer that is updated in each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self):
        self.mean.mul_(0.9).add_(0.1)
        observe(self.mean)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: by_global_list, r"global variable 'calls'\[0\]"),
        (lambda: by_global_number, "global variable 'total'"),
        (by_closure, "closure variable 'count'"),
        (by_growing_list, "closure variable 'history'"),
        (by_dictionary, r"closure variable 'table'\['shift'\]"),
        (lambda: by_default, "default of argument 'memory'"),
        (lambda: by_own_attribute, "attribute 'calls' of function by_own_attribute"),
        (lambda: Holder().model, "attribute 'count' of the model"),
        (Holder, "attribute 'seen' of class Holder"),
        (Slotted, "attribute 'count' of the model"),
        (Running, r"buffer 'mean' .*mean = self\.mean\.clone\(\)"),
    ],
)
def test_state_is_named(make, name):
    # What changed, and the first site whose density did.
    with pytest.raises(ValueError, match=rf"site 'y' changes .* because the model changes {name}"):
        ModelTarget(make())


def test_arguments_are_named():
    seen = torch.zeros(len(HISTORY), dtype=torch.bool)
    with pytest.raises(ValueError, match=r"site 'y0' changes .* argument 'seen' .*seen = seen\.clone\(\)"):
        ModelTarget(captures, (HISTORY,), {"seen": seen})
    assert not seen.any()


def test_state_without_influence_is_left_alone():
    # A log of what happened is nobody's business.
    log = []

    def model():
        observe(0.0)
        log.append("a run")

    assert ModelTarget(model).backend == "captured"
    assert log


def test_randomness_is_not_blamed_on_a_counter():
    log = []

    def model():
        log.append(0)
        observe(torch.rand(()))

    with pytest.raises(ValueError, match="because of rand at"):
        ModelTarget(model)


def test_a_counter_is_not_blamed_on_randomness():
    count = [0]

    def model():
        nn.Linear(2, 2)  # its weights are random, and nobody looks at them
        count[0] += 1
        observe(float(count[0] > 3))

    with pytest.raises(ValueError, match=r"closure variable 'count'\[0\]"):
        ModelTarget(model)
