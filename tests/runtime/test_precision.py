"""Double precision: what is raised and what stays, densities as if the model had been written in it, and rounding."""

import contextlib
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget
from pyro_osds.runtime.precision import (
    Precise,
    RaisePrecision,
    default_dtype,
    in_double,
    most_precise,
    resembles,
    rounding_noise,
)
from pyro_osds.runtime.warnings import ModelWarning
from pyro_osds.target import FunctionTarget, log_prob_and_score

DOUBLE = torch.float64
BACKENDS = {"captured": {}, "vmap": {"capture": False}, "loop": {"vectorize": "loop"}}


# ---- what is raised ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_data_and_casts(dtype):
    # Whatever it is and whatever it is cast to; the values are those that were given.
    data = torch.tensor([0.1, 0.2, 3.0], dtype=dtype)
    exact = data.double()
    with RaisePrecision():
        casts = [data * 1, data.float(), data.half(), data.bfloat16(), data.to(torch.float32), data.to(dtype=dtype)]
        casts += [data.type(torch.float32), data.to("cpu", torch.float16), data.type_as(data), data.clone(), +data]
        casts += [torch.as_tensor(data, dtype=torch.float32), data.new_tensor([0.1, 0.2, 3.0]).mul(0).add(data)]
        assert all(cast.dtype == DOUBLE and torch.equal(cast, exact) for cast in casts)
        assert data.dtype == DOUBLE and torch.finfo(data.dtype).eps == 2.0**-52
        assert data.sum().item() == exact.sum().item() and data.numpy().dtype == np.float64
    assert data.dtype == dtype


def test_other_types_stay():
    # Integers count, booleans choose, and complex numbers are nobody's business.
    values = [
        torch.arange(3),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).double(),
    ]
    types = [value.dtype for value in values]
    with RaisePrecision():
        assert [value.clone().dtype for value in values] == types
        assert values[0].to(torch.int32).dtype == torch.int32 and (values[0] > 1).dtype == torch.bool


def test_factories():
    # With a type that was asked for, and with none; quotients of integers too.
    with in_double():
        made = [
            torch.zeros(2),
            torch.ones(2, dtype=torch.float32),
            torch.full((2,), 0.1),
            torch.tensor(0.1),
            torch.tensor([0.1], dtype=torch.float16),
            torch.linspace(0, 1, 4),
            torch.eye(2),
            torch.rand(2, dtype=torch.float32),
            torch.randn(2),
            torch.arange(0.0, 1.0, 0.3),
            torch.empty(2),
            torch.arange(3) / 7,
            torch.arange(1, 3).log(),
            torch.zeros_like(torch.zeros(2, dtype=torch.float32)),
            torch.as_tensor(np.float32(0.5)),
            torch.from_numpy(np.ones(2, dtype=np.float32)) * 1,
        ]
        assert {value.dtype for value in made} == {DOUBLE}
        assert torch.full((), 0.1).item() == 0.1 and torch.tensor([0.1], dtype=torch.float32).item() == 0.1
    assert torch.zeros(2).dtype == torch.float32


def test_what_is_changed_in_place_is_a_copy():
    # The changes are seen while the mode lives; the user's tensor stays as it was.
    data, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    with RaisePrecision():
        data += 1.0
        data[0] = 0.1
        other.mul_(3.0)
        torch.add(other, 1.0, out=other)
        assert data.tolist() == [0.1, 3.0] and other.tolist() == [4.0, 7.0]
        assert torch.stack([data, other]).tolist() == [[0.1, 3.0], [4.0, 7.0]]
    assert other.tolist() == [1.0, 2.0]
    with RaisePrecision():
        assert other.tolist() == [1.0, 2.0]


def test_lists_and_tuples_of_tensors():
    # Of mixed precision, which torch would refuse to join; shared tensors are raised once.
    single, double = torch.tensor([0.1]), torch.tensor([0.2], dtype=DOUBLE)
    with RaisePrecision():
        for joined in (torch.cat([single, double]), torch.stack((single, double)), torch.hstack([double, single])):
            assert joined.dtype == DOUBLE and joined.flatten().sum().item() == single.double().item() + 0.2
        assert torch.einsum("i,i->", [single, double]).dtype == DOUBLE
        assert torch.broadcast_tensors(single, torch.ones(3, 1))[0].double().dtype == DOUBLE
        assert {part.mul(1).dtype for part in torch.ones(4, dtype=torch.float32).split(2)} == {DOUBLE}
    assert single.dtype == torch.float32


def test_gradients_reach_what_was_raised():
    # A parameter in single precision has a gradient in it, and a point in double precision one of its own.
    weight, z = torch.tensor([3.0], requires_grad=True), torch.tensor([2.0], dtype=DOUBLE, requires_grad=True)
    with in_double():
        (weight * z.square()).sum().backward()
    assert z.grad.dtype == DOUBLE and z.grad.item() == 12.0
    assert weight.grad.dtype == torch.float32 and weight.grad.item() == 4.0


def test_what_autograd_knows_of_a_tensor():
    # Parameters stay parameters, also where nothing is differentiated and after what they were raised for.
    weight = torch.tensor([3.0], requires_grad=True)
    with torch.no_grad(), in_double():
        assert (2 * weight).dtype == DOUBLE and weight.requires_grad and weight.is_leaf and weight.grad is None


def test_no_leak_after_an_exception():
    # The default type is what it was, whatever it was, and nothing is raised any more.
    for before in (torch.float32, torch.float64):
        with default_dtype(before):
            for context in (in_double(), default_dtype(torch.float16)):
                with pytest.raises(KeyError), context:
                    raise KeyError
                assert torch.get_default_dtype() == before
            assert torch.ones(1, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="no"), pyro.validation_enabled(True):
        FunctionTarget(fails_later(), 1).log_prob(torch.zeros(1, 1))
    assert torch.get_default_dtype() == torch.float32


def fails_later():
    """A function that is fine until it has been looked at."""
    calls = iter(range(4))

    def log_prob(z):
        if next(calls, None) is None:
            raise ValueError("no")
        return -z.square().sum(-1)

    return log_prob


# ---- densities of models ----


def counts(y):
    log_rate = pyro.sample("x", dist.Normal(13.8, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(log_rate.exp()), obs=y)


def trials(y):
    logit = pyro.sample("x", dist.Normal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(torch.full((len(y),), 3e6), logits=logit), obs=y)


def far_off(y):
    loc = pyro.sample("x", dist.Normal(10_000.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 0.005), obs=y)


def nearly_certain(y):
    logit = pyro.sample("x", dist.Normal(16.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(torch.sigmoid(logit)), obs=y)


CASES = {
    # Model, data in single precision, where the posterior is and how wide.
    "counts of a million": (counts, 1e6 + torch.arange(-3000.0, 3000.0, 200.0), math.log(1e6), 2e-4),
    "three million trials": (trials, 1.5e6 + torch.arange(-2000.0, 2000.0, 150.0), 0.0, 2e-4),
    "an offset of ten thousand": (far_off, 10_000 + 0.005 * torch.linspace(-2.0, 2.0, 40), 10_000.0, 1e-3),
    "one minus 1e-7": (nearly_certain, torch.cat([torch.ones(50), torch.zeros(1)]), -math.log(1e-7), 0.5),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_densities_are_those_of_the_model_in_double_precision(name, backend):
    # Values and scores, to 1e-8 of their size, in batches of both kinds.
    model, y, loc, width = CASES[name]
    target = ModelTarget(model, (y,), **BACKENDS[backend])
    with default_dtype(DOUBLE):
        written_in_double = ModelTarget(model, (y.double(),), vectorize="loop")
    assert target.is_double and target.dtype == DOUBLE and target.draw_dtype == torch.float32
    assert target.backend == backend
    z = loc + width * torch.randn(100, 1, dtype=DOUBLE)
    with default_dtype(DOUBLE):
        expected = log_prob_and_score(written_in_double.log_prob, z)
    for part in (slice(None), slice(5)):
        got = log_prob_and_score(target.log_prob, z[part])
        for value, truth in zip(got, expected, strict=True):
            assert value.dtype == DOUBLE
            torch.testing.assert_close(value, truth[part], rtol=1e-8, atol=1e-8 * truth.abs().max().item())
    torch.testing.assert_close(got[0], expected[0][part], rtol=1e-8, atol=0.0)
    assert target.constrain(z)["x"].dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_single_precision_would_not_do(name):
    # The cases mean something: as they are written, the densities are off by more than a verdict allows.
    model, y, loc, width = CASES[name]
    target = ModelTarget(model, (y,))
    z = loc + width * torch.randn(30, 1, dtype=DOUBLE)

    def written(row):
        conditioned = pyro.condition(model, {"x": row[0].float()})
        return pyro.poutine.trace(conditioned).get_trace(y).log_prob_sum().double()

    error = torch.stack([written(row) for row in z]) - target.log_prob(z)
    assert error.std() > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_out_of_integers_and_numbers(backend):
    # Quotients and logarithms of integers, and tensors without a type, also where a graph is replayed.
    n = torch.tensor([12345, 777])

    def model(n):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -(x * (n.log() / 3 + n / 7)).square().sum() * torch.full((), 0.1) + torch.lgamma(n + 1).sum())
        pyro.factor("g", torch.linspace(0, 1, 7).sum() * x + torch.zeros(2).logsumexp(0))

    target = ModelTarget(model, (n,), **BACKENDS[backend])
    z = 0.3 * torch.randn(100, 1, dtype=DOUBLE)
    with default_dtype(DOUBLE):
        expected = ModelTarget(model, (n,), vectorize="loop").log_prob(z)
    assert target.is_double and target.backend == backend
    torch.testing.assert_close(target.log_prob(z), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_in_half_precision(dtype, backend):
    # As they were given, and every operation on them in double.
    y = torch.linspace(-2.0, 5.0, 30).to(dtype)

    def model(y):
        loc = pyro.sample("x", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(4.0, loc, 0.3), obs=y)

    target = ModelTarget(model, (y,), **BACKENDS[backend])
    z = torch.randn(100, 1, dtype=DOUBLE)
    with default_dtype(DOUBLE):
        expected = ModelTarget(model, (y.double(),), vectorize="loop").log_prob(z)
    assert target.is_double
    torch.testing.assert_close(target.log_prob(z), expected, rtol=1e-12, atol=1e-12)
    assert y.dtype == dtype


def test_a_model_that_changes_its_data_in_place():
    # A copy is changed, the same way in every run, and not the user's tensor.
    y = torch.tensor([1.0, 2.0])

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        centred = y.clone()
        centred -= y.mean()
        pyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=centred)

    target = ModelTarget(model, (y,))
    z = torch.zeros(100, 1, dtype=DOUBLE)
    assert target.is_double
    torch.testing.assert_close(target.log_prob(z), target.log_prob(z[:1]).expand(100))
    torch.testing.assert_close(target.log_prob(z)[0].item(), 3 * -0.5 * math.log(2 * math.pi) - 0.25)
    assert y.tolist() == [1.0, 2.0] and y.dtype == torch.float32


# ---- models that insist ----


def checks_its_type(y):
    x = pyro.sample("x", dist.Normal(1000.0, 1.0))
    assert x.dtype == torch.float32
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def checks_numpy(y):
    x = pyro.sample("x", dist.Normal(1000.0, 1.0))
    values = x.detach().numpy()
    assert values.dtype == np.float32
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x + torch.from_numpy(0.0 * values[None])[0], 1.0), obs=y)


@pytest.mark.parametrize(("model", "backend"), [(checks_its_type, "captured"), (checks_numpy, "loop")])
@pytest.mark.filterwarnings("ignore::pyro_osds.model.batching.VectorizationWarning")
def test_a_model_that_insists_on_single_precision(model, backend):
    # It runs as it is written, of points and into values in double precision, and says so.
    y = 1000.0 + torch.randn(50)
    target = ModelTarget(model, (y,))
    assert not target.is_double and target.dtype == DOUBLE and target.backend == backend
    z = 1000.0 + 0.1 * torch.randn(100, 1, dtype=DOUBLE)
    log_prob, score = log_prob_and_score(target.log_prob, z)
    exact = dist.Normal(1000.0, 1.0).log_prob(z[:, 0]) + dist.Normal(z, 1.0).log_prob(y.double()).sum(-1)
    assert log_prob.dtype == score.dtype == DOUBLE
    torch.testing.assert_close(log_prob, exact, rtol=0.0, atol=1e-2)
    torch.testing.assert_close(score[:, 0], (y.double() - z).sum(-1) + 1000.0 - z[:, 0], rtol=1e-3, atol=1e-2)
    assert target.constrain(z)["x"].dtype == torch.float32
    spread = (log_prob - exact).std().item()
    assert rounding_noise(partial(log_prob_and_score, target.log_prob), z) == pytest.approx(spread, rel=0.35)


def test_numpy_by_itself_is_no_obstacle():
    # It takes what it is given: numbers in double precision.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.as_tensor(np.log1p(x.detach().numpy() ** 2)))

    with pytest.warns(ModelWarning, match="leaves torch on its way"):
        target = ModelTarget(model, vectorize="loop")
    z = torch.randn(5, 1, dtype=DOUBLE)
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + z[:, 0].square().log1p()
    assert target.is_double
    torch.testing.assert_close(target.log_prob(z), expected, rtol=1e-12, atol=1e-12)


# ---- what rounding is worth ----


def in_single(function):
    """A density in single precision, with its score, of points in double."""
    return partial(log_prob_and_score, lambda z: function(z.float()).double())


@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("constant", [2e4, 2e5, 2e6])
def test_rounding_of_a_large_constant(dim, constant):
    # The spread between single and double precision, to within the error of 256 probes.
    def log_prob(z):
        return constant - 0.5 * z.square().sum(-1)

    z = torch.randn(4000, dim, dtype=DOUBLE)
    spread = (log_prob(z.float()).double() - log_prob(z)).std().item()
    assert rounding_noise(in_single(log_prob), z) == pytest.approx(spread, rel=0.2)


def test_rounding_within_a_sum():
    # A thousand large counts, each of them rounded: nothing that a constant would tell.
    y = 1e6 + 1000.0 * torch.randn(1000).round()

    def log_prob(z):
        counts = y.to(z.dtype)
        return (counts * z - 1e6 * z.exp()).sum(-1)

    z = 3e-5 * torch.randn(1000, 1, dtype=DOUBLE)
    spread = (log_prob(z.float()).double() - log_prob(z)).std().item()
    assert spread > 0.05 and rounding_noise(in_single(log_prob), z) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("constant", [2e8, 1e10])
def test_values_that_are_rounded_alike(constant):
    # Where all change is lost, at least that is noticed.
    z = torch.randn(300, 3, dtype=DOUBLE)
    assert rounding_noise(in_single(lambda z: constant - 0.5 * z.square().sum(-1)), z) > 0.1


def student(z):
    return -3.0 * (z.square() / 5.0).log1p().sum(-1)


def cauchy(z):
    return -z.square().log1p().sum(-1)


def funnel(z):
    scale = z[:, 0]
    return -scale.square() / 18 - 0.5 * (z[:, 1:].square().sum(-1) * (-scale).exp() + scale * (z.shape[1] - 1))


@pytest.mark.parametrize("dim", [2, 10, 100])
@pytest.mark.parametrize("log_prob", [student, cauchy, funnel])
def test_what_is_curved_is_not_rounded(log_prob, dim):
    # Exact values of densities with heavy tails and a narrow neck.
    z = torch.randn(300, dim, dtype=DOUBLE)
    if log_prob is funnel:
        scale = 3.0 * z[:, :1]
        z = torch.cat([scale, (0.5 * scale).exp() * z[:, 1:]], 1)
    else:
        z = torch.distributions.StudentT(5.0 if log_prob is student else 1.0).sample((300, dim)).double()
    assert rounding_noise(partial(log_prob_and_score, log_prob), z) < 0.002


def test_rounding_where_nothing_is_finite():
    # No probes, no noise; one point has no spread and is probed all the same.
    z = torch.randn(30, 2, dtype=DOUBLE)
    assert rounding_noise(partial(log_prob_and_score, lambda z: z.sum(-1) * math.nan), z) == 0.0
    assert rounding_noise(in_single(lambda z: 2e6 - 0.5 * z.square().sum(-1)), z[:1]) < 0.5


# ---- functions ----


def probes():
    return torch.randn(8, 2, dtype=DOUBLE)


def kind(function):
    """The kind of density, that it takes double precision and returns it, and what it is at ones."""
    fn = most_precise(function, torch.float32, probes())
    value = fn(torch.ones(1, 2, dtype=DOUBLE))
    assert value.dtype == DOUBLE
    return type(fn).__name__, fn.is_double, value.item()


CONSTANT = torch.tensor([0.1, 0.7])
ROUNDED, EXACT = CONSTANT.double().sum().item(), 0.1 + 0.7


def test_a_function_that_follows_its_argument():
    # As it is: nothing of it is in single precision.
    assert kind(lambda z: -z.square().sum(-1)) == ("Precise", True, -2.0)


def test_a_function_with_constants():
    # Raised: the values of the constants are as given, and sums of both types would not be allowed.
    name, is_double, value = kind(lambda z: z @ CONSTANT)
    assert (name, is_double) == ("_Raised", True) and value == pytest.approx(ROUNDED, rel=1e-15)
    # Constants that are made on the way are not even rounded.
    name, is_double, value = kind(lambda z: z @ torch.tensor([0.1, 0.7], dtype=torch.float32))
    assert (name, is_double) == ("_Raised", True) and value == pytest.approx(EXACT, rel=1e-15)


def test_a_function_that_cannot_be_raised():
    # It computes in double precision by itself, and objects to having its constants raised.
    def function(z):
        assert CONSTANT.dtype == torch.float32
        return (z * CONSTANT.to(z)).sum(-1)

    name, is_double, value = kind(function)
    assert (name, is_double) == ("Precise", True) and value == pytest.approx(ROUNDED, rel=1e-15)


def test_functions_that_stay_as_they_are_written():
    # One that checks its type, one with another shape in double precision, one that fails there.
    def checks(z):
        assert z.dtype == torch.float32
        return z.sum(-1)

    def another_shape(z):
        return z.sum(-1) if z.dtype == torch.float32 else z

    def fails(z):
        if z.dtype == DOUBLE:
            raise RuntimeError
        return z.sum(-1)

    for function in (checks, another_shape, fails):
        assert kind(function) == ("_Written", False, 2.0)


def test_where_constants_change_the_density():
    # What differs by more than rounding once constants are raised is used as it follows its argument, or as written.
    def function(z):
        return z.sum(-1) * (1.0 if CONSTANT.dtype == torch.float32 else 2.0)

    assert kind(function) == ("_Written", False, 2.0)


def test_the_default_type_while_a_function_runs():
    # Double, so that its own constants are; and as it was afterwards.
    seen = []

    def function(z):
        seen.append(torch.get_default_dtype())
        return z.sum(-1)

    fn = most_precise(function, torch.float32, probes())
    seen.clear()
    fn(probes())
    assert seen == [DOUBLE] and torch.get_default_dtype() == torch.float32 and type(fn) is Precise


def test_a_function_in_single_precision_throughout():
    # The target passes points in double precision on as the function wants them.
    def checks(z):
        assert z.dtype == torch.float32
        return -z.square().sum(-1) + 1e6

    target = FunctionTarget(checks, 2)
    z = torch.randn(300, 2, dtype=DOUBLE)
    assert not target.is_double and target.log_prob(z).dtype == DOUBLE
    spread = (target.log_prob(z) - 1e6 + z.square().sum(-1)).std().item()
    assert rounding_noise(partial(log_prob_and_score, target.log_prob), z) == pytest.approx(spread, rel=0.25)


# ---- resemblance ----


@pytest.mark.parametrize(
    ("double", "single", "expected"),
    [
        ([-1000.0], [-1000.0], True),
        ([-1000.0], [-1009.0], True),
        ([-1000.0], [-1400.0], False),
        ([0.0], [0.3], True),
        ([0.0], [0.4], False),
        # Half of the points decide: far out, single precision may be anything.
        ([0.0, 0.0, 0.0], [0.0, 0.0, 50.0], True),
        ([0.0, 0.0, 0.0], [0.0, 50.0, 50.0], False),
        # Where single precision overflows, rounding may be the reason.
        ([0.0, 0.0], [0.0, math.inf], True),
        ([0.0, 0.0], [0.0, math.nan], True),
        ([-1e300, -1e300], [-math.inf, -math.inf], True),
        ([math.nan, 0.0], [0.0, 0.0], True),
        # But not where double precision has no density and single precision has one.
        ([math.nan, -math.inf], [0.0, 0.0], False),
        ([-math.inf], [-math.inf], True),
    ],
)
def test_resemblance(double, single, expected):
    # Two precisions of one density differ by its rounding.
    assert resembles(torch.tensor(double, dtype=DOUBLE), torch.tensor(single, dtype=torch.float32)) is expected


def test_the_context_can_be_nested():
    # Graphs are replayed, and models run, inside of each other.
    with in_double(), in_double(), contextlib.nullcontext():
        assert torch.ones(1, dtype=torch.float32).dtype == DOUBLE
    assert torch.get_default_dtype() == torch.float32
