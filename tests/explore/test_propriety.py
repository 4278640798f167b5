"""Propriety: what has no integral is found, and nothing that has one is accused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_osds.explore.propriety import Endless, find_endless
from pyro_osds.explore.survey import Survey
from pyro_osds.model import ModelTarget
from pyro_osds.stats.moments import weighted_moments
from pyro_osds.target import FunctionTarget

# Moments of particles carry their sampling error; exploration has 512 of them.
NUM_PARTICLES = 512
FLAT = dist.ImproperUniform(constraints.real, (), ())
FLAT_SCALE = dist.ImproperUniform(constraints.positive, (), ())
EIGHT = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]).double(), torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]).double()

PROPER = {
    "normal": lambda z: -0.5 * z.square().sum(-1),
    "student t with a tenth of a degree": lambda z: -0.55 * torch.log1p(10 * z.square()).sum(-1),
    "spherical student t": lambda z: -0.5 * (z.shape[1] + 0.1) * torch.log1p(10 * z.square().sum(-1)),
    "student t on the edge": lambda z: -0.525 * torch.log1p(20 * z.square()).sum(-1),
    "cauchy": lambda z: -torch.log1p(z.square()).sum(-1),
    "laplace, narrow": lambda z: -(1e3 * z).abs().sum(-1),
    "box": lambda z: torch.where((z.abs() < 3).all(-1), 0.0, -torch.inf),
    "steps": lambda z: -(2 * z.abs()).floor().sum(-1),
    "log of a gamma": lambda z: (z - z.exp()).sum(-1),
    "not a number far out": lambda z: -0.5 * z.square().sum(-1) + 0 * (z - 1e5).clamp(max=0).sqrt().sum(-1),
    "large constant": lambda z: 1e6 - 0.5 * z.square().sum(-1),
    "mixture": lambda z: torch.logaddexp(*(-0.5 * (z - m).square().sum(-1) for m in (-10, 10))),
}
CURVED = {
    "funnel": lambda z: -z[:, 0].square() / 18 - 0.5 * (z[:, 1:].square() * (-z[:, :1]).exp() + z[:, :1]).sum(-1),
    "banana": lambda z: -0.5 * (z[:, 0].square() / 100 + (z[:, 1] + 0.03 * z[:, 0].square() - 3).square()),
    "rosenbrock": lambda z: -0.05 * (1 - z[:, 0]).square() - 5 * (z[:, 1] - z[:, 0].square()).square(),
    "parabola with the tails of a cauchy": lambda z: (
        -torch.log1p(z[:, 0].square()) - 0.5 * (z[:, 1] - z[:, 0].square()).square()
    ),
    # Along z1 = 0 the density is constant, but ever narrower: the integral over z1 is that of 1 / sqrt(1 + z0^4).
    "narrowing": lambda z: -0.5 * z[:, 1].square() * (1 + z[:, 0].pow(4)),
    "narrowing slowly": lambda z: -0.5 * z[:, 1].square() * (1 + z[:, 0].square()).pow(1.2),
}


def moments(dim, loc=0.0, scale=1.0, dtype=torch.float64):
    """Location and scale of normal particles; the scale is a number, one for each coordinate, or a matrix."""
    scale = torch.as_tensor(scale, dtype=torch.float64).expand(dim, dim) if isinstance(scale, list) else scale
    noise = torch.randn(NUM_PARTICLES, dim, dtype=torch.float64)
    z = noise @ scale.mT if isinstance(scale, torch.Tensor) and scale.dim() == 2 else noise * scale

    return weighted_moments((torch.as_tensor(loc, dtype=torch.float64) + z).to(dtype), torch.zeros(NUM_PARTICLES))


def coordinates(target, loc, scale_tril):
    found = find_endless(target, loc, scale_tril)

    return [] if found is None else list(found.coordinates)


def regression(x, y, likelihood=None):
    """Flat coefficients; a flat scale, or another likelihood of the linear predictor."""

    def model():
        b = pyro.sample("b", FLAT.expand([x.shape[1]]).to_event(1))
        s = pyro.sample("s", FLAT_SCALE) if likelihood is None else None
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(x @ b, s) if likelihood is None else likelihood(x @ b), obs=y)

    return ModelTarget(model)


def least_squares(x, y):
    """Location and scale of the posterior of ``regression`` as particles would give them; log s is the last one."""
    solution = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    free = len(y) - x.shape[1]
    s = ((y - x @ solution).square().sum() / free).sqrt()
    scale = torch.linalg.cholesky(torch.linalg.inv(x.mT @ x)) * s
    scale = torch.block_diag(scale, torch.tensor([[(2.0 * free) ** -0.5]]))

    return moments(len(scale), torch.cat([solution, s.log()[None]]), scale)


def readings(y, mean_prior=FLAT, scale_prior=FLAT_SCALE):
    def model():
        m, s = pyro.sample("m", mean_prior), pyro.sample("s", scale_prior)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(m, s), obs=y)

    return ModelTarget(model)


# ---- with an integral ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("log_prob", PROPER.values(), ids=PROPER)
def test_a_proper_density_ends(log_prob, dim, dtype):
    # Whatever its tails, overflows and hard edges.
    target = FunctionTarget(log_prob, dim, dtype=dtype)
    assert find_endless(target, torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype)) is None
    assert find_endless(target, *moments(dim, scale=2.0, dtype=dtype)) is None


@pytest.mark.parametrize("log_prob", CURVED.values(), ids=CURVED)
def test_a_curved_valley_ends(log_prob):
    target = FunctionTarget(log_prob, 2, dtype=torch.float64)
    assert find_endless(target, torch.zeros(2), torch.eye(2)) is None
    assert find_endless(target, *moments(2, scale=2.0)) is None


def test_units_do_not_matter():
    # A scale of 1e-6 and one of 1e6, neither of them endless.
    scale = torch.tensor([1e-6, 1e6])
    target = FunctionTarget(lambda z: -0.5 * (z / scale).square().sum(-1) - math.log(2 * math.pi), 2)
    assert find_endless(target, torch.zeros(2), scale.diag()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tilt", [1e-5, 2e-5, 5e-5, 1e-4])
def test_a_scale_that_overtakes_the_residual(tilt, dtype):
    # On a ray tilted towards log sigma the log density goes from -450,000 at 1e3 over -300 at 1e6 to -3,000 at 1e7.
    y = torch.linspace(-1.5, 1.5, 10, dtype=dtype)
    target = FunctionTarget(
        lambda z: (-0.5 * ((y - z[:, :1]) / z[:, 1:].exp()).square() - z[:, 1:]).sum(-1), 2, dtype=dtype
    )
    scale_tril = torch.tensor([[0.3, 0.0], [tilt, 0.25]], dtype=dtype)
    assert find_endless(target, torch.zeros(2, dtype=dtype), scale_tril) is None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(3, 1), (6, 4), (12, 2), (12, 5), (200, 3), (1000, 6)])
def test_flat_regressions_with_enough_rows(num_rows, num_columns, seed, float64):
    # Earnings on heights in inches: scales of 1e3 to 1e5 beside each other. Three rows and one mean, or six and four
    # coefficients, are just enough: tails as those of a t with two degrees of freedom.
    torch.manual_seed(seed)
    height = 66 + 4 * torch.randn(num_rows, num_columns - 1)
    x = torch.cat([torch.ones(num_rows, 1), height], 1)
    y = 20000 + 1300 * (height.sum(-1) - 66) + 19000 * torch.randn(num_rows)
    assert find_endless(regression(x, y), *least_squares(x, y)) is None


def test_a_precise_regression(float64):
    # Posterior standard deviations of 0.001.
    x = torch.cat([torch.ones(50, 1), torch.randn(50, 2)], 1)
    y = x @ torch.tensor([1.0, 2.0, -1.0]) + 0.007 * torch.randn(50)
    assert find_endless(regression(x, y), *least_squares(x, y)) is None


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_wide_uniform_prior_and_an_offset(default):
    # Far out the transform of the first saturates; the second has posterior sds of 0.001 around 1013.
    torch.set_default_dtype(default)
    try:
        uniform = readings(torch.linspace(2, 4, 20), dist.Uniform(-1000.0, 1000.0), dist.LogNormal(0.0, 1.0))
        pressure = readings(1013.2 + 0.02 * torch.randn(400), dist.Normal(1000.0, 20.0), dist.LogNormal(-4.0, 1.0))
    finally:
        torch.set_default_dtype(torch.float32)
    scale = torch.tensor([3e-4, 0.15]).double()
    assert find_endless(uniform, *moments(2, torch.tensor([0.006, -0.5]), scale, default)) is None
    scale = torch.tensor([1e-3, 0.035]).double()
    assert find_endless(pressure, *moments(2, torch.tensor([1013.2, -3.9]), scale, default)) is None


@pytest.mark.parametrize("kind", ["poisson", "negative binomial", "logits", "probs", "student"])
def test_flat_generalised_regressions(kind, float64):
    # Counts that are not all zero, classes that overlap; clamped probabilities end on a plateau of -36 a row.
    x = torch.tensor([-3.0, -2, -1, -0.5, 0.5, 1, 2, 3])
    x = torch.stack([torch.ones(8), x], 1)
    counts, classes = torch.tensor([0.0, 1, 0, 2, 1, 3, 5, 8]), torch.tensor([0.0, 0, 0, 1, 0, 1, 1, 1])
    target = {
        "poisson": lambda: regression(x, counts, lambda eta: dist.Poisson(eta.exp())),
        "negative binomial": lambda: regression(x, counts, lambda eta: dist.GammaPoisson(2.0, 2.0 / eta.exp())),
        "logits": lambda: regression(x, classes, lambda eta: dist.Bernoulli(logits=eta)),
        "probs": lambda: regression(x, classes, lambda eta: dist.Bernoulli(eta.sigmoid())),
        "student": lambda: regression(x, counts, lambda eta: dist.StudentT(4.0, eta, 1.0)),
    }[kind]()
    assert find_endless(target, *moments(2, torch.tensor([0.3, 0.8]), torch.tensor([0.5, 0.4]))) is None


def test_flat_autoregression_and_flat_lifetimes(float64):
    y = torch.tensor([0.2, 0.9, 0.7, 1.6, 1.1, 1.3, 0.4, 0.8, 1.9, 1.2, 0.6, 0.9])
    x = torch.stack([torch.ones(11), y[:-1]], 1)
    assert find_endless(regression(x, y[1:]), *least_squares(x, y[1:])) is None

    def weibull():
        scale, shape = pyro.sample("scale", FLAT), pyro.sample("shape", FLAT)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Weibull(scale.exp(), shape.exp()), obs=y)

    def exponential():
        rate = pyro.sample("rate", FLAT)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Exponential(rate.exp()), obs=y)

    assert find_endless(ModelTarget(weibull), *moments(2, torch.tensor([0.1, 0.8]), 0.25)) is None
    assert find_endless(ModelTarget(exponential), *moments(1, 0.0, 0.3)) is None


@pytest.mark.parametrize("flat_scale", [False, True])
def test_a_hierarchy_with_an_integral(flat_scale, float64):
    # Centred, its density has no bound where tau goes to zero, yet the peak is too narrow to hold any mass.
    y, s = EIGHT
    half_cauchy = dist.HalfCauchy(torch.tensor(5.0))

    def model():
        mu, tau = pyro.sample("mu", FLAT), pyro.sample("tau", FLAT_SCALE if flat_scale else half_cauchy)
        with pyro.plate("j", 8):
            pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), s), obs=y)

    loc = torch.tensor([4.0, 1.5, *[4.0] * 8])
    assert find_endless(ModelTarget(model), *moments(10, loc, torch.tensor([4.0, 1.0, *[5.0] * 8]))) is None


def test_a_bounded_likelihood_is_not_looked_at(float64):
    # One reading: with proper priors the peak s^-1 is narrower than it is high. Counts are bounded anyway.
    prior = dist.Normal(0.0, 10.0), dist.HalfCauchy(torch.tensor(1.0))
    assert find_endless(readings(torch.tensor([3.0]), *prior), *moments(2, scale=2.0)) is None
    evaluated = []

    def model():
        evaluated.append(1)
        pyro.sample("y", dist.Poisson(pyro.sample("x", dist.Normal(0.0, 1.0)).exp()), obs=torch.tensor(2.0))

    target = ModelTarget(model)
    evaluated.clear()
    assert find_endless(target, torch.zeros(1), torch.eye(1)) is None
    assert not evaluated


# ---- without ----


@pytest.mark.parametrize(
    ("log_prob", "expected"),
    [
        (lambda z: 0 * z.sum(-1), [0, 1, 2]),
        (lambda z: -0.5 * z[:, [0, 2]].square().sum(-1), [1]),
        (lambda z: -0.5 * z[:, :2].square().sum(-1) - 0.5 * torch.log1p(z[:, 2].square()), [2]),
        (lambda z: -1.5 * torch.log1p(z.square().sum(-1)), [0, 1, 2]),
        (lambda z: z[:, 0] - 0.5 * z[:, 1:].square().sum(-1), [0]),
        # A separable logistic regression with a flat slope: the likelihood goes to one and stays there.
        (lambda z: torch.nn.functional.logsigmoid(z[:, 0]) - 0.5 * z[:, 1:].square().sum(-1), [0]),
    ],
    ids=["flat", "one flat", "log-divergent", "log-divergent in three", "rising", "separable"],
)
def test_an_endless_density_is_seen(log_prob, expected):
    # And where it goes.
    found = coordinates(FunctionTarget(log_prob, 3), torch.zeros(3), torch.eye(3))
    assert set(expected) <= set(found) if len(expected) == 3 else found == expected


def test_a_flat_direction_between_axes():
    # Particles run along it, so it is a principal direction of their scale.
    covariance = torch.tensor([[100.0, -99.0], [-99.0, 100.0]])
    target = FunctionTarget(lambda z: -0.5 * z.sum(-1).square(), 2)
    assert find_endless(target, torch.zeros(2), torch.linalg.cholesky(covariance)) is not None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["collinear", "dummies"])
def test_columns_that_depend_on_each_other(kind, seed, float64):
    # Particles give the flat direction with an error, and a straight ray soon leaves it.
    torch.manual_seed(seed)
    x = torch.cat([torch.ones(30, 1), torch.randn(30, 2)], 1)
    dummies = torch.cat([x[:, :1], torch.eye(3).repeat(10, 1)], 1)
    x = dummies if kind == "dummies" else torch.cat([x, x[:, 1:2] - x[:, 2:]], 1)
    flat = torch.tensor([1.0, -1, -1, -1, 0] if kind == "dummies" else [0.0, 1, -1, -1, 0])
    target = regression(x, torch.randn(30))
    scale = 0.2 * torch.eye(5) + 7 * flat[:, None] * torch.eye(5)[1]
    found = coordinates(target, *moments(5, 0.0, scale))
    assert found and set(found) <= set(flat.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("value", [3.0, 3.3])
def test_one_reading_and_equal_ones(value, spread, float64):
    # Density s^-n and width s around the value: one reading leaves a constant, four leave s^-3.
    where = torch.tensor([value, -1.0]), torch.tensor([0.5, spread])
    for count in (1, 4):
        assert find_endless(readings(torch.full((count,), value)), *moments(2, *where)) is not None


def test_a_likelihood_without_bound(float64):
    # Priors are proper, and still: four equal readings leave s^-4 s s of mass by unit of log s.
    prior = dist.Normal(0.0, 10.0), dist.HalfCauchy(torch.tensor(1.0))
    where = moments(2, torch.tensor([3.0, -3.0]), torch.tensor([0.05, 2.0]))
    found = find_endless(readings(torch.full((4,), 3.0), *prior), *where)
    assert found is not None
    assert found.coordinates == (1,)
    assert found.kind == "valley"


def test_a_factor_that_undoes_the_prior(float64):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("back", 0.5 * x * x)

    assert coordinates(ModelTarget(model), *moments(1, 0.0, 3.0)) == [0]


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_an_endless_parabola(spread):
    # Nothing falls off along it, and every straight ray leaves it.
    target = FunctionTarget(lambda z: -2.0 * (z[:, 1] - z[:, 0].square()).square(), 2, dtype=torch.float64)
    x = spread * torch.randn(NUM_PARTICLES, dtype=torch.float64)
    z = torch.stack([x, x.square() + 0.5 * torch.randn(NUM_PARTICLES)], 1)
    found = find_endless(target, *weighted_moments(z, torch.zeros(NUM_PARTICLES)))
    assert found is not None
    assert found.kind == "valley"


@pytest.mark.parametrize("clamped", [False, True])
def test_a_separable_regression(clamped, float64):
    x = torch.stack([torch.ones(8), torch.tensor([-3.0, -2, -1, -0.5, 0.5, 1, 2, 3])], 1)
    y = (x[:, 1] > 0).double()
    target = regression(x, y, lambda eta: dist.Bernoulli(eta.sigmoid()) if clamped else dist.Bernoulli(logits=eta))
    assert coordinates(target, *moments(2, torch.tensor([0.0, 5.0]), torch.tensor([1.0, 3.0]))) != []


def test_a_group_scale_that_may_vanish(float64):
    # Eight schools with a flat log tau: where tau goes to zero the schools are one, and the likelihood stays.
    y, s = EIGHT

    def model():
        mu, log_tau = pyro.sample("mu", FLAT), pyro.sample("log_tau", FLAT)
        with pyro.plate("j", 8):
            pyro.sample("y", dist.Normal(mu + log_tau.exp() * pyro.sample("eta", dist.Normal(0.0, 1.0)), s), obs=y)

    loc = torch.tensor([8.0, -2.0, *[0.0] * 8])
    assert 1 in coordinates(ModelTarget(model), *moments(10, loc, torch.tensor([4.0, 3.0, *[1.0] * 8])))


def edge_model(kind):
    """Flat priors times a power of the distance to a bound, the posterior's place and scale, and whether it ends."""
    positive = dist.ImproperUniform(constraints.positive, (), ())
    share = dist.ImproperUniform(constraints.unit_interval, (), ())

    def no_events():
        rate = pyro.sample("rate", positive)
        pyro.factor("jeffreys", -rate.log())
        pyro.sample("k", dist.Poisson(rate).expand([4]).to_event(1), obs=torch.zeros(4))

    def one_event():
        rate = pyro.sample("rate", positive)
        pyro.factor("jeffreys", -rate.log())
        pyro.sample("k", dist.Poisson(rate).expand([4]).to_event(1), obs=torch.tensor([0.0, 1.0, 0.0, 0.0]))

    def haldane(successes):
        p = pyro.sample("p", share)
        pyro.factor("haldane", -p.log() - (-p).log1p())
        pyro.sample("k", dist.Binomial(20, p), obs=torch.tensor(successes))

    def nearly():
        p = pyro.sample("p", share)
        pyro.factor("power", -0.95 * p.log())
        pyro.sample("k", dist.Binomial(20, p), obs=torch.tensor(0.0))

    return {
        "Jeffreys, no events": (no_events, -350.0, 200.0, False),
        "Jeffreys, one event": (one_event, -1.5, 1.2, True),
        "Haldane, no success": (lambda: haldane(0.0), -350.0, 200.0, False),
        "Haldane, all successes": (lambda: haldane(20.0), 18.0, 10.0, False),
        "Haldane, three successes": (lambda: haldane(3.0), -1.7, 0.7, True),
        "Beta(0.05, 21)": (nearly, -20.0, 20.0, True),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "Jeffreys, no events",
        "Jeffreys, one event",
        "Haldane, no success",
        "Haldane, all successes",
        "Haldane, three successes",
        "Beta(0.05, 21)",
    ],
)
def test_flat_priors_up_to_the_edge_of_a_support(kind):
    model, loc, scale, ends = edge_model(kind)
    found = find_endless(ModelTarget(model), torch.tensor([loc]), torch.tensor([[scale]]))
    assert (found is None) == ends, found


def test_a_saturated_transform_is_not_accused():
    # Stick-breaking clamps what is smaller than the smallest number, so far out the density is constant.
    def model():
        pyro.sample("shares", dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0])))
        pyro.sample("x", FLAT)

    assert coordinates(ModelTarget(model), torch.zeros(3), torch.eye(3)) == [2]


# ---- what is told ----


def test_a_sentence_says_what_was_seen():
    told = Endless((0,), 1e8, -3.21, -2.94, "ray").sentence("site 'b'")
    assert "at 1e+08 posterior standard deviations" in told
    assert "its log is -3.21, at the centre -2.94" in told


def test_what_earlier_versions_saved():
    # Their files hold coordinates and nothing else; none at all meant that all was well.
    parts = dict.fromkeys(("target", "base", "exploration", "modes"))
    assert Survey(**parts, num_evaluations=0, endless=()).endless is None
    assert Survey(**parts, num_evaluations=0, endless=(1,)).endless == Endless((1,))
