"""Latents with one value, latents that are matrices or mixtures, and latents without entries."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro import poutine
from scipy import integrate, special, stats
from torch import tensor

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.distributions.edge_draws import draw_unconstrained
from pyro_osds.model.distributions.matrices import LogCholesky
from pyro_osds.model.distributions.missing import kept
from pyro_osds.model.distributions.mixed import Choice
from pyro_osds.model.distributions.supports import inside
from pyro_osds.model.distributions.transforms import to_support


def points(target, count=64):
    torch.manual_seed(0)
    return torch.randn(count, target.dim, dtype=torch.float64)


def run(model):
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=500, num_chains=2, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        osds.run()

    return osds


# ---- values that are computed ----


def normal(x, scale=1.0, loc=0.0):
    return torch.distributions.Normal(loc, torch.as_tensor(scale).double()).log_prob(x)


def test_a_computed_latent_is_no_coordinate_and_its_density_counts():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        twice = pyro.sample("twice", dist.Delta(2.0 * x, log_density=-x.square()))
        pyro.sample("constant", dist.Delta(tensor([1.0, math.nan]), event_dim=1))
        pyro.sample("y", dist.Normal(twice, 1.0), obs=tensor(1.0))

    target = ModelTarget(model)
    z = points(target)
    assert [site.name for site in target.sites] == ["x"] and target.backend == "captured" and not target.notes
    expected = normal(z) - z.square() + normal(2.0 * z, loc=1.0)
    assert torch.allclose(target.log_prob(z), expected.squeeze(-1), atol=1e-12)
    assert torch.allclose(target.deterministics(z)["twice"], 2.0 * z.squeeze(-1).float())
    assert set(target.log_likelihood(z)) == {"y"}
    # The prior that is drawn from has no part in the factor.
    assert torch.allclose(target.log_prior_and_likelihood(z)[0], normal(z).squeeze(-1), atol=1e-12)


@pytest.mark.parametrize("how", ["plate", "mask", "inner mask", "scale", "event", "mask off"])
def test_a_computed_latent_in_plates_and_under_masks(how):
    mask, weights = tensor([True, False, True]), tensor([1.0, 2.0, 3.0])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        fn = dist.Delta(x * weights, log_density=-x.square() * weights)
        with poutine.scale(scale=0.5 if how == "scale" else 1.0):
            if how == "event":
                pyro.sample("v", fn.mask(mask).to_event(1))
            elif how == "mask off":
                pyro.sample("v", fn.mask(False))
            else:
                with pyro.plate("rows", 3), poutine.mask(mask=mask if how == "mask" else tensor(True)):
                    pyro.sample("v", fn.mask(mask) if how == "inner mask" else fn)

    factor = {"plate": 6.0, "scale": 3.0, "mask off": 0.0}.get(how, 4.0)
    target = ModelTarget(model)
    z = points(target)
    assert torch.allclose(target.log_prob(z), (normal(z) - factor * z.square()).squeeze(-1), atol=1e-10)
    assert target.deterministics(z)["v"].shape == (64, 3)


def test_a_computed_latent_beside_a_discrete_one():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        loc = pyro.sample("loc", dist.Delta(3.0 * k, log_density=0.5 * k))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=tensor(1.0))

    expected = math.log(0.7 * stats.norm.pdf(1.0) + 0.3 * math.exp(0.5) * stats.norm.pdf(1.0, 3.0))
    assert ModelTarget(model).log_prob(torch.zeros(1, 0)).item() == pytest.approx(expected, rel=1e-6)


def test_a_factor_as_a_latent():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("f", dist.Unit(-x.square()))

    target = ModelTarget(model)
    z = points(target)
    assert torch.allclose(target.log_prob(z), (normal(z) - z.square()).squeeze(-1), atol=1e-12)
    assert not target.deterministics(z)


def test_evidence_and_inference_data_with_a_computed_latent():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            v = pyro.sample("v", dist.Delta(x + torch.arange(2.0), log_density=-0.25 * x.square().expand(2)))
            pyro.sample("y", dist.Normal(v, 1.0), obs=tensor([1.0, 1.0]))

    osds = run(model)

    def density(x):
        return stats.norm.pdf(x) * math.exp(-0.5 * x * x) * stats.norm.pdf(1.0 - x) * stats.norm.pdf(-x)

    assert osds.evidence.reliable
    exact = math.log(integrate.quad(density, -9, 9)[0])
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    posterior = osds.to_inference_data().posterior
    assert posterior["v"].dims[-1] == "rows"
    assert abs(posterior["v"][..., 1] - posterior["x"] - 1.0).max() < 1e-5
    assert set(osds.get_samples()) == {"x"}


# ---- matrices ----


def test_log_determinant_of_the_way_to_matrices():
    # Against the derivative of the lower triangle, by autograd.
    for size in (1, 2, 3):
        u = torch.randn(size * (size + 1) // 2, dtype=torch.float64)
        row, column = torch.tril_indices(size, size)
        jacobian = torch.autograd.functional.jacobian(lambda u, r=row, c=column: LogCholesky()(u)[r, c], u)
        got = LogCholesky().log_abs_det_jacobian(u, LogCholesky()(u))
        assert got.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-10)
        assert torch.allclose(LogCholesky().inv(LogCholesky()(u)), u)


def wishart_evidence(rows, df, scale):
    """Of rows from N(0, S^-1) with S ~ Wishart(df, scale), by conjugacy."""
    count, size = rows.shape
    after = torch.linalg.inv(torch.linalg.inv(scale) + rows.T @ rows)
    log_gammas = special.multigammaln((df + count) / 2, size) - special.multigammaln(df / 2, size)

    return (
        -0.5 * count * size * math.log(math.pi)
        + log_gammas
        + 0.5 * (df + count) * torch.logdet(after).item()
        - 0.5 * df * torch.logdet(scale).item()
    )


def test_evidence_with_a_wishart_prior_on_a_precision():
    torch.manual_seed(0)
    rows, scale = torch.randn(12, 2) @ tensor([[1.0, 0.5], [0.0, 0.7]]), tensor([[1.0, 0.2], [0.2, 0.5]])

    def model():
        precision = pyro.sample("precision", dist.Wishart(tensor(3.0), covariance_matrix=scale))
        with pyro.plate("rows", len(rows)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=rows)

    osds = run(model)
    exact = wishart_evidence(rows.double(), 3.0, scale.double())
    assert osds.evidence.reliable, osds.evidence.reasons
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    assert osds.backend == "captured"
    draws = osds.get_samples()["precision"]
    assert draws.shape[1:] == (2, 2) and torch.linalg.eigvalsh(draws).min() > 0


def test_density_of_a_wishart_matrix_where_its_value_is_singular():
    # In one dimension it is a gamma variate with shape df / 2 and rate 1 / 2, whatever rounding makes of its value.
    target = ModelTarget(lambda: pyro.sample("s", dist.Wishart(tensor(0.3).double(), scale_tril=torch.eye(1).double())))
    u = tensor([[-400.0], [-1.0], [2.0]]).double()
    v = 2 * u - math.log(2.0)
    expected = 0.15 * v - v.exp() - math.lgamma(0.15) + math.log(2.0)
    assert torch.allclose(target.log_prob(u), expected.squeeze(-1), rtol=1e-10)


def test_draws_of_wishart_matrices():
    # Means of the entries: df times the scale.
    scale = tensor([[2.0, 0.3], [0.3, 1.0]]).double()
    fn = dist.Wishart(tensor(2.2).double(), covariance_matrix=scale).expand([20_000])
    draws = LogCholesky()(draw_unconstrained(fn, to_support(fn)))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - 2.2 * scale).abs() < 4 * error).all()


# ---- mixtures ----


def test_a_mixture_of_shapes_at_the_edge():
    # Half of Gamma(0.02) is below 1e-16: the components' own forms keep it.
    shapes, weights = tensor([0.02, 3.0]).double(), torch.distributions.Categorical(tensor([0.4, 0.6]).double())
    target = ModelTarget(lambda: pyro.sample("x", dist.MixtureSameFamily(weights, dist.Gamma(shapes, 1.0))))
    assert target.has_closed_form("x")
    u = torch.linspace(-900.0, 20.0, 200_001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(target.log_prob(u).exp(), u.squeeze(-1))
    assert mass.item() == pytest.approx(1.0, abs=1e-6)
    assert (target.sample_prior(1000) < -40).double().mean() > 0.1


def test_masked_mixture_asks_each_entry_of_its_own_component_only():
    # A gamma density of a negative number is none, and so would be its gradient.
    mask = tensor([True, False])

    def model():
        pyro.sample("x", dist.MaskedMixture(mask, dist.Normal(0.0, 1.0).expand([2]), dist.Gamma(2.0, 1.0).expand([2])))

    target = ModelTarget(model)
    z = points(target).requires_grad_()
    log_prob = target.log_prob(z)
    expected = 2.0 * z[:, 0] - z[:, 0].exp() + normal(z[:, 1])
    assert torch.allclose(log_prob, expected, atol=1e-10)
    assert torch.autograd.grad(log_prob.sum(), z)[0].isfinite().all()


def test_choice_is_undone():
    maps = torch.distributions.ExpTransform(), torch.distributions.SigmoidTransform()
    choice = Choice(tensor([True, False, True]), *maps)
    x = tensor([0.3, -1.0, 2.0]).double()
    assert torch.allclose(choice.inv(choice(x)), x)


# ---- without entries, and helpers ----


def test_latents_and_observations_without_entries():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        none = pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        pyro.sample("shares", dist.Dirichlet(torch.ones(1)))
        pyro.sample("nothing", dist.Normal(x, 1.0), obs=torch.empty(0))
        pyro.sample("y", dist.Normal(x + none.sum(), 1.0), obs=tensor(1.0))

    target = ModelTarget(model)
    z = points(target)
    assert target.dim == 1 and not target.notes
    assert torch.allclose(target.log_prob(z), (normal(z) + normal(z, loc=1.0)).squeeze(-1), atol=1e-12)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Uniform(tensor([0.0, 2.0]), tensor([1.0, 5.0])), dist.Pareto(2.0, 1.0), dist.VonMises(0.0, 1.0),
        dist.Binomial(3, tensor(0.2)), dist.Poisson(1.0), dist.Bernoulli(0.3), dist.Dirichlet(torch.ones(3)),
        dist.Multinomial(3, torch.ones(2)), dist.OneHotCategorical(torch.ones(3)), dist.LKJ(2, tensor(1.0)),
        dist.LKJCholesky(2, tensor(1.0)), dist.Wishart(tensor(3.0), scale_tril=torch.eye(2)),
        dist.ProjectedNormal(torch.ones(2)), dist.Geometric(tensor(0.3)),
        dist.OrderedLogistic(tensor(0.0), torch.arange(2.0)),
    ],
    ids=lambda fn: type(fn).__name__,
)  # fmt: skip
def test_a_value_inside(fn):
    # Inside of the support, off its bounds, with a finite density.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = fn.sample()
    got = torch.broadcast_to(inside(fn, value).to(value.dtype), value.shape)
    assert fn.support.check(got).all() and fn.log_prob(got).isfinite().all()


def test_which_entries_a_mask_keeps():
    assert kept(dist.Normal(0.0, 1.0).to_event(0), None) is None
    assert kept(dist.Normal(torch.zeros(3), 1.0).mask(False).to_event(1), None).tolist() is False
