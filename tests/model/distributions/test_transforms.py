"""Mass at the edge of a support: densities in closed form, draws that keep it, circles, and what saturates."""

import math

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from scipy import stats
from scipy.special import betaln, digamma, gammaln, polygamma
from torch import tensor
from torch.distributions import biject_to, transforms

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.distributions.densities import log1m_power, unconstrained_log_prob
from pyro_osds.model.distributions.edge_draws import draw_unconstrained
from pyro_osds.model.distributions.saturation import is_saturated
from pyro_osds.model.distributions.transforms import Sticks, to_support

# Each makes its distribution from some positive numbers, of any shape.
PAIRS = {
    "Beta": lambda a: dist.Beta(a, 2 * a),
    "Kumaraswamy": lambda a: dist.Kumaraswamy(a, 1.5 * a),
    "Uniform": lambda a: dist.Uniform(-a, 2 * a),
    "AffineBeta": lambda a: dist.AffineBeta(a, 2 * a, -a, 3 * a),
    "RelaxedBernoulli": lambda a: dist.RelaxedBernoulli(tensor(0.7), logits=a),
    "LogitNormal": lambda a: dist.TransformedDistribution(dist.Normal(a, 2 * a), transforms.SigmoidTransform()),
    "Dirichlet": lambda a: dist.Dirichlet(torch.stack([a, 2 * a, 0.5 * a, a], -1)),
    "LogisticNormal": lambda a: dist.LogisticNormal(torch.stack([a, -a], -1), torch.stack([a, 2 * a], -1)),
    "Gamma": lambda a: dist.Gamma(a, 2 * a),
    "Chi2": lambda a: dist.Chi2(a),
    "Exponential": lambda a: dist.Exponential(a),
    "InverseGamma": lambda a: dist.InverseGamma(a, 2 * a),
    "Weibull": lambda a: dist.Weibull(2 * a, a),
    "LogNormal": lambda a: dist.LogNormal(a, 2 * a),
    "LogLaplace": lambda a: dist.TransformedDistribution(dist.Laplace(a, 2 * a), transforms.ExpTransform()),
    "HalfNormal": lambda a: dist.HalfNormal(a),
    "HalfCauchy": lambda a: dist.HalfCauchy(a),
    "FisherSnedecor": lambda a: dist.FisherSnedecor(a, 3 * a),
    "Pareto": lambda a: dist.Pareto(a, 2 * a),
    "ShiftedGamma": lambda a: dist.TransformedDistribution(dist.Gamma(a, a), transforms.AffineTransform(1.0, 2.0)),
    "VonMises": lambda a: dist.VonMises(a, 2 * a),
}
LAYOUTS = {
    "scalar": lambda make: make(tensor(0.7)),
    "plates": lambda make: make(tensor([[0.3, 1.0, 4.0], [0.5, 2.0, 0.9]])),
    "expanded": lambda make: make(tensor(0.7)).expand([2, 3]),
    "to_event": lambda make: make(tensor([[0.3, 1.0, 4.0], [0.5, 2.0, 0.9]])).to_event(1),
    "masked": lambda make: make(tensor([0.3, 1.0])).mask(True),
}


def unconstrained(fn):
    """Normal numbers of the unconstrained shape of a distribution's values."""
    return torch.randn(to_support(fn).inverse_shape(fn.shape()))


def by_pyro(fn, transform, u):
    value = transform(u)
    log_abs_det = transform.log_abs_det_jacobian(u, value)
    batch_dim = value.dim() - fn.event_dim

    return fn.log_prob(value) + (
        log_abs_det.flatten(batch_dim).sum(-1) if log_abs_det.dim() > batch_dim else log_abs_det
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PAIRS)
def test_closed_form_is_the_density_of_pyro(float64, name, layout):
    # Where nothing saturates; torch's Bessel function has seven digits.
    fn = LAYOUTS[layout](PAIRS[name])
    transform = to_support(fn)
    u = unconstrained(fn)
    got = unconstrained_log_prob(fn, transform, u)
    assert got.shape == fn.batch_shape
    torch.testing.assert_close(got, by_pyro(fn, transform, u), rtol=1e-6 if name == "VonMises" else 1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("ShiftedGamma", "VonMises")])
def test_the_way_to_a_support_is_that_of_pyro(float64, name):
    # The same map and the same log-determinant where torch has digits left.
    fn = PAIRS[name](tensor([0.7, 2.0]))
    u = unconstrained(fn)
    ours, theirs = to_support(fn), biject_to(fn.support)
    torch.testing.assert_close(ours(u), theirs(u))
    torch.testing.assert_close(ours.log_abs_det_jacobian(u, ours(u)), theirs.log_abs_det_jacobian(u, theirs(u)))
    torch.testing.assert_close(ours.inv(ours(u)), u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_far_out_nothing_overflows(dtype, name):
    # Values and gradients, of points and of parameters; one by one and by vmap.
    a = tensor(0.05, dtype=dtype, requires_grad=True)
    fn = PAIRS[name](a)
    transform = to_support(fn)
    size = max(1, transform.inverse_shape(fn.shape()).numel())
    far = tensor([-1e5, -500.0, -50.0, 0.0, 50.0, 500.0, 1e5], dtype=dtype)
    u = torch.cartesian_prod(*[far] * size).reshape(-1, *transform.inverse_shape(fn.shape()))

    def log_prob(point):
        return unconstrained_log_prob(fn, transform, point)

    values = torch.func.vmap(log_prob)(u)
    assert values.dtype == dtype and values.isfinite().all()
    torch.testing.assert_close(torch.stack([log_prob(row) for row in u[:20]]), values[:20])
    if name != "Uniform":
        assert torch.func.vmap(torch.func.grad(log_prob))(u).isfinite().all()
        gradients = [torch.autograd.grad(log_prob(row), a, retain_graph=True)[0] for row in u[:: 1 + len(u) // 20]]
        assert torch.stack(gradients).isfinite().all()


HARD = {
    "Beta": (lambda a: dist.Beta(a, a), 2000.0),
    "AffineBeta": (lambda a: dist.AffineBeta(a, a, 2.0, 3.0), 2000.0),
    "Kumaraswamy": (lambda a: dist.Kumaraswamy(a, a), 2000.0),
    "Dirichlet": (lambda a: dist.Dirichlet(torch.stack([a, 2 * a])), 2000.0),
    "Gamma": (lambda a: dist.Gamma(a, 1.0), 2000.0),
    "Chi2": (lambda a: dist.Chi2(2 * a), 2000.0),
    "InverseGamma": (lambda a: dist.InverseGamma(a, 1.0), 2000.0),
    "Weibull": (lambda a: dist.Weibull(1.0, a), 2000.0),
    "FisherSnedecor": (lambda a: dist.FisherSnedecor(2 * a, 2 * a), 2000.0),
    "Pareto": (lambda a: dist.Pareto(1.0, a), 2000.0),
    "LogNormal": (lambda a: dist.LogNormal(0.0, 1 / a), 2000.0),
    "HalfCauchy": (lambda a: dist.HalfCauchy(a), 200.0),
    "VonMises": (lambda a: dist.VonMises(1.0, 1 / a), 200.0),
}


@pytest.mark.parametrize("shape", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("name", HARD)
def test_density_integrates_to_one(float64, name, shape):
    # A fine grid; the trapezoidal rule is exact for smooth functions that fade out.
    make, width = HARD[name]
    fn = make(tensor(shape))
    u = torch.linspace(-width, width, 400_001)
    points = u[:, None] if name == "Dirichlet" else u
    log_prob = unconstrained_log_prob(fn, to_support(fn), points)
    total = torch.logsumexp(log_prob, 0).item() + math.log(2 * width / 400_000)
    assert abs(total) < 1e-9


@pytest.mark.parametrize("name", ["Beta", "Dirichlet", "Gamma"])
def test_through_the_value_the_density_does_not_integrate_to_one(float64, name):
    # What the closed forms are for: even in double precision, a twentieth of the mass or more is lost or made up.
    make, width = HARD[name]
    fn = make(tensor(0.02))
    u = torch.linspace(-width, width, 400_001)
    points = u[:, None] if name == "Dirichlet" else u
    log_prob = by_pyro(fn, biject_to(fn.support), points)
    total = log_prob.nan_to_num(-math.inf, math.inf, -math.inf).exp().sum() * 2 * width / 400_000
    assert not 0.95 < total < 1.05


def mpmath_log_prob(name, a, u):
    """Log densities at ``u`` with as many digits as it takes."""
    with mpmath.workdps(800):
        a, u = mpmath.mpf(a), mpmath.mpf(u)
        x, exp = 1 / (1 + mpmath.exp(-u)), mpmath.exp(u)
        log, inside = mpmath.log, mpmath.log(x * (1 - x))
        value = {
            "Beta": lambda: a * log(x) + a * log(1 - x) - log(mpmath.beta(a, a)),
            "Kumaraswamy": lambda: log(a * a) + (a - 1) * log(x) + (a - 1) * log(1 - x**a) + inside,
            "Gamma": lambda: a * u - exp - mpmath.loggamma(a),
            "InverseGamma": lambda: -a * u - 1 / exp - mpmath.loggamma(a),
            "Weibull": lambda: log(a) + a * u - exp**a,
            "HalfCauchy": lambda: log(2 / (mpmath.pi * a * (1 + (exp / a) ** 2))) + u,
            "Pareto": lambda: log(a) - (a + 1) * log(1 + exp) + u,
            "FisherSnedecor": lambda: a * u - 2 * a * log(1 + exp) - log(mpmath.beta(a, a)),
        }[name]()
        return float(value)


@pytest.mark.parametrize("u", [-500.0, -50.0, 50.0, 500.0])
@pytest.mark.parametrize(
    "name", ["Beta", "Kumaraswamy", "Gamma", "InverseGamma", "Weibull", "HalfCauchy", "Pareto", "FisherSnedecor"]
)
def test_far_out_density_is_right(float64, name, u):
    fn = HARD[name][0](tensor(0.05))
    got = unconstrained_log_prob(fn, to_support(fn), tensor(u)).item()
    assert math.isclose(got, mpmath_log_prob(name, 0.05, u), rel_tol=1e-12)


@pytest.mark.parametrize("a", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("u", [-500.0, -2.0, 0.0, 3.0, 20.0, 40.0, 800.0])
def test_log_of_one_minus_a_power(float64, u, a):
    with mpmath.workdps(800):
        expected = float(mpmath.log(1 - (1 / (1 + mpmath.exp(-mpmath.mpf(u)))) ** mpmath.mpf(a)))
    got = log1m_power(tensor(u), tensor(a)).item()
    assert math.isclose(got, expected, rel_tol=1e-13, abs_tol=1e-200)


def test_sticks_keep_small_parts(float64):
    # The last two of three parts are 1e-22 and 1e-222 of the stick, there and back.
    u = tensor([50.0, 460.0])
    parts = Sticks()(u)
    with mpmath.workdps(300):
        first = 1 / (1 + mpmath.exp(-(mpmath.mpf(50) - mpmath.log(2))))
        expected = [1 - first, (1 - first) / (1 + mpmath.exp(mpmath.mpf(460)))]
    assert math.isclose(parts[1].item(), float(expected[0]), rel_tol=1e-12)
    assert math.isclose(parts[2].item(), float(expected[1]), rel_tol=1e-12)
    torch.testing.assert_close(Sticks().inv(parts), u)


class Mine(dist.Beta):
    def log_prob(self, value):
        return torch.zeros_like(value)


def test_there_is_no_closed_form_of_what_is_not_known(float64):
    # A subclass, a mask, another transform.
    u = tensor(0.3)
    beta = dist.Beta(2.0, 3.0)
    for fn, transform in (
        (Mine(2.0, 3.0), to_support(beta)),
        (beta.mask(False), to_support(beta)),
        (beta.mask(tensor(True)), to_support(beta)),
        (beta, transforms.TanhTransform()),
        (dist.Normal(0.0, 1.0), biject_to(dist.constraints.real)),
        (dist.Gamma(1.0, 1.0), transforms.SoftplusTransform()),
        (dist.LogNormal(0.0, 1.0), transforms.SigmoidTransform()),
    ):
        assert unconstrained_log_prob(fn, transform, u) is None


# ---- in a model ----


def beta_bernoulli():
    p = pyro.sample("p", dist.Beta(0.05, 0.05))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Bernoulli(p), obs=torch.ones(6))


def test_density_of_a_model_far_out():
    # Written in single precision: the prior at both ends, its score, and a scale that leaves the Jacobian alone.
    target = ModelTarget(lambda: pyro.sample("p", dist.Beta(0.05, 0.05)))
    z = tensor([[-500.0], [500.0], [0.0]], requires_grad=True)
    log_prob = target.log_prob(z)
    expected = tensor([-25.0, -25.0, -0.1 * math.log(2)]) - betaln(0.05, 0.05)
    torch.testing.assert_close(log_prob, expected.double(), rtol=1e-7, atol=1e-7)
    (score,) = torch.autograd.grad(log_prob.sum(), z)
    torch.testing.assert_close(score[:, 0], tensor([0.05, -0.05, 0.0]), rtol=1e-4, atol=1e-6)

    def scaled():
        with pyro.poutine.scale(scale=0.5):
            pyro.sample("p", dist.Beta(0.05, 0.05))

    log_abs_det = tensor([-500.0, -500.0, -2 * math.log(2)])
    expected = 0.5 * (expected - log_abs_det) + log_abs_det
    torch.testing.assert_close(ModelTarget(scaled).log_prob(z), expected.double(), rtol=1e-7, atol=1e-7)


def test_own_transforms_have_the_density_of_pyro(float64):
    # Even one of a kind that is known: it need not lead to the support's ends.
    own = transforms.ComposeTransform([transforms.SigmoidTransform(), transforms.AffineTransform(0.0, 2.0)])
    target = ModelTarget(lambda: pyro.sample("x", dist.Uniform(0.0, 4.0)), transforms={"x": own.inv})
    z = tensor([[0.3]])
    x = own(z[0, 0])
    torch.testing.assert_close(target.log_prob(z)[0], own.log_abs_det_jacobian(z[0, 0], x) - math.log(4))


def test_standardising_leaves_other_sites_where_they_are():
    # Through the value, 300 would come back as 16 in single precision.
    def model():
        p = pyro.sample("p", dist.Beta(0.05, 0.05))
        pyro.sample("x", dist.Normal(p, 2.0))

    z = tensor([[300.0, 0.5], [-300.0, 0.5]])
    other, u, log_abs_det = ModelTarget(model).other_coordinates(z)
    torch.testing.assert_close(u, tensor([[300.0, -0.25], [-300.0, 0.25]]).double())
    torch.testing.assert_close(log_abs_det, torch.full((2,), math.log(2), dtype=torch.float64))
    torch.testing.assert_close(other.plain_coordinates(u), z.double())


def test_saturated_sites():
    # By site, of values in double precision; an angle and a real number have no end.
    def model():
        pyro.sample("unit", dist.Beta(0.1, 0.1))
        pyro.sample("interval", dist.Uniform(10.0, 12.0))
        pyro.sample("positive", dist.Gamma(0.1, 1.0))
        pyro.sample("above", dist.Pareto(1.0, 1.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(2)))
        pyro.sample("angle", dist.VonMises(0.0, 1.0))
        pyro.sample("real", dist.Normal(0.0, 1.0))

    z = tensor([0.0, -36.0, -800.0, 800.0])[:, None].expand(4, 7)
    saturated = ModelTarget(model).saturated_sites(z)
    assert {name: value.tolist() for name, value in saturated.items()} == {
        "unit": [False, False, True, True],
        "interval": [False, True, True, True],
        "positive": [False, False, True, True],
        "above": [False, False, True, True],
        "simplex": [False, False, True, True],
        "angle": [False] * 4,
        "real": [False] * 4,
    }


def test_saturated_entries_of_a_shifted_support(float64):
    fn = PAIRS["ShiftedGamma"](tensor(1.0))
    transform = to_support(fn)
    assert is_saturated(transform, transform(tensor([-800.0, -50.0, 0.0, 800.0]))).tolist() == [True, True, False, True]


# ---- draws of the prior ----

NUM_DRAWS = 20_000


def log_beta_cdf(a, b):
    """The distribution function of the logit of a Beta, by the tail's own formula where a double ends."""

    def cdf(u):
        lower = a * u - math.log(a) - betaln(a, b)
        return torch.where(u < -30, lower.exp(), tensor(stats.beta.cdf(torch.sigmoid(u.clamp(min=-30)), a, b)))

    return cdf


def test_draws_of_a_beta(float64):
    # The absolute value of the logit is symmetric about one half, so the lower half tells everything.
    fn = dist.Beta(0.05, 0.05).expand([NUM_DRAWS])
    u = draw_unconstrained(fn, to_support(fn))
    assert u.isfinite().all()
    lower = -u.abs()
    assert stats.kstest(lower, lambda x: 2 * log_beta_cdf(0.05, 0.05)(torch.as_tensor(x)).numpy()).pvalue > 1e-3
    assert_within_standard_error((u > 0).double().mean(), 0.5, 0.5 / math.sqrt(NUM_DRAWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["Gamma", "InverseGamma", "Beta", "FisherSnedecor"])
def test_moments_of_draws(dtype, name):
    # Logarithms of gamma variates have mean digamma and variance trigamma, in single precision as well.
    a = 0.02
    fn = HARD[name][0](tensor(a, dtype=dtype)).expand([NUM_DRAWS])
    u = draw_unconstrained(fn, to_support(fn)).double()
    sign = {"Gamma": 1, "InverseGamma": -1}.get(name, 0)
    variance = polygamma(1, a) * (1 if sign else 2)
    assert_within_standard_error(u.mean(), sign * digamma(a), math.sqrt(variance / NUM_DRAWS))
    fourth = (polygamma(3, a) + 3 * polygamma(1, a) ** 2) if sign else 2 * polygamma(3, a) + 3 * variance**2
    assert_within_standard_error(u.var(), variance, math.sqrt((fourth - variance**2) / NUM_DRAWS))


@pytest.mark.parametrize("name", ["Kumaraswamy", "Weibull", "Pareto", "Beta", "Gamma"])
def test_draws_have_the_density(float64, name):
    # Distribution functions by summing up the closed form.
    make, width = HARD[name]
    fn = make(tensor(0.1)).expand([NUM_DRAWS])
    draws = draw_unconstrained(fn, to_support(fn)).numpy()
    grid = torch.linspace(-width, width, 400_001)
    cdf = unconstrained_log_prob(make(tensor(0.1)), to_support(fn), grid).exp().cumsum(0) * (2 * width / 400_000)

    def by_grid(x):
        return cdf[((torch.as_tensor(x) + width) / (2 * width) * 400_000).round().long()].numpy()

    assert stats.kstest(draws, by_grid).pvalue > 1e-3


def test_draws_of_a_dirichlet(float64):
    # Each logit of a stick is that of a Beta with the shapes of what follows.
    fn = dist.Dirichlet(torch.full((4,), 0.02)).expand([NUM_DRAWS])
    u = draw_unconstrained(fn, to_support(fn))
    logit = Sticks().logits(u)
    for i in range(3):
        rest = 0.02 * (3 - i)
        mean = digamma(0.02) - digamma(rest)
        sd = math.sqrt((polygamma(1, 0.02) + polygamma(1, rest)) / NUM_DRAWS)
        assert_within_standard_error(logit[:, i].mean(), mean, sd)


@pytest.mark.parametrize("num_draws", [20, 2000])
def test_prior_of_a_model_keeps_its_edges(num_draws):
    # One by one and all together; children see the value, and a half of the mass lies beyond the digits of a float.
    def model():
        p = pyro.sample("p", dist.Beta(0.05, 0.05))
        with pyro.plate("words", 3):
            pyro.sample("q", dist.Gamma(0.02, 1.0))
        pyro.sample("x", dist.Normal(100 * p, 1.0))

    z = ModelTarget(model).sample_prior(num_draws)
    assert z.shape == (num_draws, 5) and z.isfinite().all()
    residual = z[:, 4] - 100 * z[:, 0].sigmoid()
    assert_within_standard_error(residual.mean(), 0.0, 1 / math.sqrt(num_draws))
    beyond = 2 * log_beta_cdf(0.05, 0.05)(tensor(-17.0)).item()
    share = (z[:, 0].abs() > 17).double().mean()
    assert_within_standard_error(share, beyond, math.sqrt(beyond * (1 - beyond) / num_draws))
    sd = math.sqrt(polygamma(1, 0.02) / (3 * num_draws))
    assert_within_standard_error(z[:, 1:4].mean(), digamma(0.02), sd)


# ---- circles ----


def test_a_circle_is_one_turn(float64):
    # Samples come back from the line; so do angles at the cut, as far as a number can say.
    fn = dist.VonMises(tensor([3.0, -1.0]), tensor([2.0, 0.5]))
    circle = to_support(fn)
    angles = fn.sample((1000,))
    torch.testing.assert_close(circle(circle.inv(angles)), angles)
    for angle in (-math.pi, math.pi, math.nextafter(math.pi, 0), 0.0):
        u = circle.inv(tensor(angle))
        assert u.isfinite().all()
        torch.testing.assert_close(circle(u).cos(), tensor([math.cos(angle)]).expand(2))
    values = circle(torch.linspace(-1000, 1000, 10_001)[:, None])
    assert values.min() >= -math.pi and values.max() <= math.pi


def test_a_circle_in_a_model(float64):
    # By quadrature: von Mises prior and likelihood are conjugate. A part of the posterior lies beyond the cut.
    target = ModelTarget(von_mises)
    z = torch.linspace(-60, 60, 20_001)[:, None]
    log_prob = target.log_prob(z)
    log_evidence = torch.logsumexp(log_prob, 0).item() + math.log(120 / 20_000)
    assert math.isclose(log_evidence, von_mises_log_evidence(), abs_tol=1e-6)  # torch's Bessel function in the data
    angle = target.constrain(z)["angle"]
    weight = torch.softmax(log_prob, 0)
    mean = torch.atan2((weight * angle.sin()).sum(), (weight * angle.cos()).sum()).item()
    x, y = resultant()
    assert math.isclose(mean, math.atan2(y, x), abs_tol=1e-6)
    assert target.supports["angle"] == "Real"


Y = (0.4, 1.1, -0.2)


def von_mises(loc=2.5):
    angle = pyro.sample("angle", dist.VonMises(loc, 0.8))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.VonMises(angle, 1.5), obs=tensor(Y))


def resultant(loc=2.5):
    x = 0.8 * math.cos(loc) + 1.5 * sum(map(math.cos, Y))

    return x, 0.8 * math.sin(loc) + 1.5 * sum(map(math.sin, Y))


def von_mises_log_evidence(loc=2.5):
    def log_i0(k):
        return math.log(float(mpmath.besseli(0, k)))

    return log_i0(math.hypot(*resultant(loc))) - log_i0(0.8) - 3 * log_i0(1.5) - 3 * math.log(2 * math.pi)


def test_circles_in_plates_events_and_mixtures(float64):
    # A location that depends on a discrete latent moves, the circle does not.
    def mixture():
        component = pyro.sample("component", dist.Bernoulli(0.3))
        angle = pyro.sample("angle", dist.VonMises(torch.where(component > 0, 2.0, -1.0), 3.0))
        pyro.sample("y", dist.VonMises(angle, 1.0), obs=tensor(0.5))

    z = torch.linspace(-60, 60, 20_001)[:, None]
    log_prior, log_likelihood = ModelTarget(mixture).log_prior_and_likelihood(z)
    evidence = sum(
        p * mpmath.besseli(0, math.hypot(3 * math.cos(m) + math.cos(0.5), 3 * math.sin(m) + math.sin(0.5)))
        for p, m in ((0.3, 2.0), (0.7, -1.0))
    ) / (mpmath.besseli(0, 3) * mpmath.besseli(0, 1) * 2 * math.pi)
    log_evidence = torch.logsumexp(log_prior + log_likelihood, 0).item() + math.log(120 / 20_000)
    assert math.isclose(log_evidence, math.log(float(evidence)), abs_tol=1e-6)

    def several():
        with pyro.plate("groups", 2):
            pyro.sample("a", dist.VonMises(tensor([1.0, 2.0]), 3.0))
        pyro.sample("b", dist.VonMises(torch.zeros(3), 3.0).to_event(1))

    target = ModelTarget(several)
    draws = target.sample_prior(500)
    values = target.constrain(draws)
    assert values["a"].shape == (500, 2) and values["b"].shape == (500, 3)
    for i, loc in enumerate((1.0, 2.0)):
        sine = (values["a"][:, i] - loc).sin()
        assert_within_standard_error(sine.mean(), 0.0, sine.std().item() / math.sqrt(500))


@pytest.mark.filterwarnings("ignore:The model runs point by point:UserWarning")
def test_two_angles_are_a_torus(float64):
    # Pyro's density is periodic and all right; the line is mapped to one turn for each angle.
    one = tensor(1.0)
    fn = dist.SineBivariateVonMises(one, -one, 2 * one, 3 * one, correlation=0.5 * one)
    transform = to_support(fn)
    u = torch.linspace(-30, 30, 241)
    z = torch.cartesian_prod(u, u)
    log_prob = by_pyro(fn, transform, z)
    assert abs(torch.logsumexp(log_prob, 0).item() + 2 * math.log(60 / 240)) < 1e-4
    target = ModelTarget(lambda: pyro.sample("angles", fn))
    torch.testing.assert_close(target.log_prob(z[14_000:14_005]), log_prob[14_000:14_005])


# ---- from end to end ----


def dirichlet_words():
    p = pyro.sample("p", dist.Dirichlet(torch.full((10,), 0.1)))
    pyro.sample("y", dist.Multinomial(total_count=5, probs=p), obs=WORDS.to(p.dtype))


def gamma_zeros():
    rate = pyro.sample("rate", dist.Gamma(0.02, 1.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Poisson(rate), obs=torch.zeros(8))


WORDS = tensor([3.0, 2.0, 0, 0, 0, 0, 0, 0, 0, 0])


def dirichlet_log_evidence():
    counts, a = WORDS.double().numpy(), 0.1
    ways = gammaln(6) - gammaln(counts + 1).sum()

    return ways + gammaln(1.0) - gammaln(6.0) + (gammaln(a + counts) - gammaln(a)).sum()


# Some base draws land where a rate of exp(709) overflows; those steps are skipped, and told.
@pytest.mark.filterwarnings("ignore::pyro_osds.TrainingWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "truth"),
    [
        (beta_bernoulli, lambda: betaln(6.05, 0.05) - betaln(0.05, 0.05)),
        (dirichlet_words, dirichlet_log_evidence),
        pytest.param(gamma_zeros, lambda: -0.02 * math.log(9), marks=pytest.mark.long),
        (lambda: von_mises(0.8), lambda: von_mises_log_evidence(0.8)),
    ],
    ids=["beta", "dirichlet", "gamma", "von_mises"],
)
def test_evidence_of_mass_at_the_edge(float64, model, truth):
    # In double precision: a rate whose logarithm has a standard deviation of 50 overflows in single.
    pyro.set_rng_seed(1)
    osds = OSDS(model, disable_progbar=True)
    osds.run()
    assert abs(osds.log_evidence - truth()) < 5 * osds.evidence.std_error + 0.005
