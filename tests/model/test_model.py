"""Model: the density is Pyro's own plus Jacobians, for every kind of site, in batches and one by one."""

import math

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value
from torch.distributions import biject_to, transforms

from pyro_osds.model import ModelTarget, VectorizationWarning
from pyro_osds.target import log_prob_and_score


def plates():
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    columns, rows = pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 2, dim=-2)
    with columns:
        loc = pyro.sample("loc", dist.Normal(0.0, scale))
    with columns, rows:
        x = pyro.sample("x", dist.LogNormal(loc, scale))
        pyro.sample("y", dist.Exponential(x), obs=torch.tensor([[0.3, 1.0, 2.0], [0.1, 0.2, 0.7]]))


def to_event():
    w = pyro.sample("w", dist.Laplace(0.0, torch.tensor([1.0, 2.0, 3.0])).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 2.0]]))


def factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("energy", -(x**4))


def masked():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([0.5, 1e6, 1.5]))


def scaled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3), poutine.scale(scale=7.0):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([0.5, 1.0, 1.5]))


def scaled_latent():
    with poutine.scale(scale=0.5):
        x = pyro.sample("x", dist.Gamma(3.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))


def deterministic():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.deterministic("y", x.exp())
    pyro.sample("z", dist.Normal(y, 1.0), obs=torch.tensor(2.0))


def dirichlet():
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Categorical(p), obs=torch.tensor([0, 3, 3, 1, 2]))


def lkj():
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with pyro.plate("data", 2):
        y = torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 2.0]])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[:, None] * corr), obs=y)


def half_cauchy():
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    pyro.sample("y", dist.Normal(0.0, tau), obs=torch.tensor(2.0))


def latent_bound():
    top = pyro.sample("top", dist.Gamma(3.0, 1.0))
    x = pyro.sample("x", dist.Uniform(-top, 2 * top))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))


ZOO = [
    plates, to_event, factor, masked, scaled, scaled_latent, deterministic, dirichlet, lkj, half_cauchy, latent_bound,
    models.conjugate, models.beta_binomial, models.regression, models.schools_centred, models.schools_non_centred,
]  # fmt: skip


def by_pyro(model, values):
    """Pyro's log joint density at given values plus the log-determinants of its own transforms."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    total = trace.log_prob_sum()
    for name in values:
        transform = biject_to(trace.nodes[name]["fn"].support)
        u = transform.inv(values[name])
        total = total + transform.log_abs_det_jacobian(u, values[name]).sum()

    return total


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_log_prob_is_that_of_pyro(float64, model):
    # Trace.log_prob_sum plus Jacobians at random points, from one batched evaluation.
    target = ModelTarget(model)
    assert target.vectorized and target.dtype == torch.float64
    z = torch.randn(5, target.dim)
    values = target.constrain(z)
    expected = [by_pyro(model, {name: value[i] for name, value in values.items()}) for i in range(5)]
    torch.testing.assert_close(target.log_prob(z), torch.stack(expected))


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_batches_are_the_loop(float64, model):
    # Values, scores, draws and pointwise likelihoods agree between vmap and a Python loop.
    target, loop = ModelTarget(model), ModelTarget(model)
    loop.vectorized = False
    z = torch.randn(4, target.dim)
    for got, expected in zip(log_prob_and_score(target.log_prob, z), log_prob_and_score(loop.log_prob, z), strict=True):
        torch.testing.assert_close(got, expected)
    for read in ("constrain", "deterministics", "log_likelihood"):
        torch.testing.assert_close(getattr(target, read)(z), getattr(loop, read)(z))


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_prior_and_likelihood_make_the_joint(float64, model):
    # The two terms add up, and the prior is the density of the same model without observations and factors.
    target = ModelTarget(model)
    z = torch.randn(4, target.dim)
    log_prior, log_likelihood = target.log_prior_and_likelihood(z)
    torch.testing.assert_close(log_prior + log_likelihood, target.log_prob(z))
    hidden = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    torch.testing.assert_close(ModelTarget(hidden).log_prob(z), log_prior)


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__)
def test_other_coordinates(float64, model):
    # There and back again; densities differ by the Jacobian, sites and data do not differ at all.
    target = ModelTarget(model)
    z = torch.randn(4, target.dim)
    other, u, log_abs_det = target.other_coordinates(z)
    assert other.standardized and not target.standardized
    torch.testing.assert_close(other.log_prob(u), target.log_prob(z) + log_abs_det)
    torch.testing.assert_close(other.constrain(u), target.constrain(z))
    again, back, log_abs_det_back = other.other_coordinates(u)
    assert not again.standardized
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_abs_det_back, -log_abs_det)


def test_standardised_eight_schools_are_the_non_centred_ones(float64):
    # theta = mu + tau eta and mu = 5 eps: the step back has log-determinant log 5 + 8 log tau.
    target = ModelTarget(models.schools_centred)
    z = torch.randn(4, 10)
    _, u, log_abs_det = target.other_coordinates(z)
    torch.testing.assert_close(log_abs_det, math.log(5.0) + 8 * z[:, 1])
    torch.testing.assert_close(u[:, 0], z[:, 0] / 5)
    torch.testing.assert_close(u[:, 2:], (z[:, 2:] - z[:, :1]) / z[:, 1:2].exp())


def test_prior_and_likelihood_of_the_conjugate_model(float64):
    # Not against Pyro but against the formula.
    z = torch.tensor([[0.3], [-1.0]])
    log_prior, log_likelihood = ModelTarget(models.conjugate).log_prior_and_likelihood(z)
    y = torch.tensor(models.CONJUGATE_Y)
    torch.testing.assert_close(log_prior, -(z[:, 0] ** 2) / 8 - math.log(2) - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(log_likelihood, -0.5 * (y - z).square().sum(-1) - 2.5 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("model", "log_evidence"),
    [
        (models.conjugate, models.CONJUGATE_LOG_EVIDENCE),
        (models.beta_binomial, models.BETA_BINOMIAL_LOG_EVIDENCE),
    ],
)
def test_density_integrates_to_the_evidence(float64, model, log_evidence):
    # One-dimensional models by quadrature in unconstrained space.
    z = torch.linspace(-30, 30, 20001)
    log_prob = ModelTarget(model).log_prob(z[:, None])
    assert math.isclose(torch.logsumexp(log_prob, 0).item() + math.log(60 / 20000), log_evidence, abs_tol=1e-9)


def test_regression_integrates_to_the_evidence(float64):
    # A Gaussian posterior: its Laplace approximation is exact.
    target = ModelTarget(models.regression)
    hessian = torch.autograd.functional.hessian(lambda w: target.log_prob(w[None])[0], torch.zeros(2))
    _, score = log_prob_and_score(target.log_prob, torch.zeros(1, 2))
    mode = torch.linalg.solve(-hessian, score[0])
    log_evidence = target.log_prob(mode[None])[0] + math.log(2 * math.pi) - 0.5 * torch.logdet(-hessian)
    assert math.isclose(log_evidence.item(), models.regression_log_evidence(), abs_tol=1e-9)


def test_pointwise_log_likelihood():
    # By site and row; a factor is no observation, a masked row has none.
    target = ModelTarget(masked)
    log_likelihood = target.log_likelihood(torch.tensor([[0.5], [0.0]]))["y"]
    assert log_likelihood.shape == (2, 3) and not log_likelihood[:, 1].any()
    torch.testing.assert_close(log_likelihood[0, 0].item(), -0.5 * math.log(2 * math.pi))
    assert ModelTarget(factor).log_likelihood(torch.zeros(2, 1)) == {}


def test_deterministic_sites_are_values_and_no_density():
    # Their values follow the draws, and the density is that without them.
    z = torch.randn(3, 1)
    torch.testing.assert_close(ModelTarget(deterministic).deterministics(z), {"y": z[:, 0].exp()})


def test_layout_names_and_dims():
    # Sites lie in the order of the model; plates name dimensions, the others are numbered.
    target = ModelTarget(plates)
    assert [(site.name, site.start, site.stop) for site in target.sites] == [
        ("scale", 0, 1), ("loc", 1, 4), ("x", 4, 10),
    ]  # fmt: skip
    assert target.dims == {"scale": (), "loc": ("columns",), "x": ("rows", "columns"), "y": ("rows", "columns")}
    assert ModelTarget(to_event).dims == {"w": ("w_dim_0",), "y": ("data", "y_dim_1")}
    assert ModelTarget(deterministic).dims["y"] == ()
    assert set(target.observed) == {"y"}
    # A point of the simplex has one coordinate less, a 3 x 3 correlation three.
    assert ModelTarget(dirichlet).dim == 3 and ModelTarget(lkj).dim == 6


def test_given_transforms_take_the_place_of_the_defaults(float64):
    # Square root instead of logarithm: the coordinates differ, the constrained density does not.
    def model():
        pyro.sample("x", dist.Exponential(1.0))

    transform = transforms.PowerTransform(torch.tensor(0.5))
    target = ModelTarget(model, transforms={"x": transform})
    z = torch.tensor([[0.5], [2.0]])
    torch.testing.assert_close(target.constrain(z)["x"], z[:, 0] ** 2)
    torch.testing.assert_close(target.log_prob(z), -(z[:, 0] ** 2) + (2 * z[:, 0]).log())


def test_prior_draws(float64):
    # Unconstrained draws have the prior's moments: log of Gamma(3, 1) has mean digamma(3) and variance trigamma(3).
    def model():
        pyro.sample("x", dist.Gamma(3.0, 1.0))
        pyro.sample("w", dist.Normal(5.0, 2.0).expand([2]).to_event(1))

    target = ModelTarget(model)
    z = target.sample_prior(1000)
    assert target.can_sample_prior and z.shape == (1000, 3)
    truth = torch.tensor(3.0)
    sd = torch.polygamma(1, truth).sqrt().item()
    assert_within_standard_error(z[:, 0].mean(), torch.digamma(truth), sd / math.sqrt(1000))
    assert_within_standard_error(z[:, 1].mean(), 5.0, 2 / math.sqrt(1000))


def test_priors_that_cannot_be_sampled():
    # Flat or masked priors are named as improper; a scaled prior is proper but not the one that the model samples.
    def flat():
        pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("tau", dist.HalfNormal(1.0).mask(False))
        pyro.sample("x", dist.Normal(0.0, 1.0))

    target = ModelTarget(flat)
    assert target.improper_sites == ("mu", "tau") and not target.can_sample_prior
    scaled_target = ModelTarget(scaled_latent)
    assert scaled_target.improper_sites == () and not scaled_target.can_sample_prior


def test_arguments_reach_the_model():
    # Positional and keyword arguments, and an init strategy that takes the model to where it can run.
    def model(y, scale=1.0):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    target = ModelTarget(
        model, (torch.tensor(1.0),), {"scale": 2.0}, init_strategy=init_to_value(values={"x": torch.ones(())})
    )
    expected = 2 * dist.Normal(0.0, 2.0).log_prob(torch.tensor(0.0)) - 0.5 * 0.25
    torch.testing.assert_close(target.log_prob(torch.ones(1, 1))[0].float(), expected)


def branching():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0:
        z = 2 * z
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def test_a_branch_falls_back_to_the_loop(float64):
    # The warning names the line; values are right on both sides of the branch.
    with pytest.warns(VectorizationWarning, match=r"`if z > 0:` \(line \d+ of test_model.py\)"):
        target = ModelTarget(branching)
    assert not target.vectorized
    z = torch.tensor([[-1.0], [1.0]])
    expected = [by_pyro(branching, {"z": row[0]}) for row in z]
    torch.testing.assert_close(target.log_prob(z), torch.stack(expected))


def test_a_random_model_falls_back_to_the_loop():
    # Randomness outside of sample sites is not allowed to be shared by a batch unnoticed.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("noise", 0.0 * x * torch.rand(()))

    with pytest.warns(VectorizationWarning, match="torch.rand"):
        assert not ModelTarget(model).vectorized


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_matrix_that_is_not_positive_definite_marks_its_own_point(float64, by_hand, vectorized):
    # A correlation above one is impossible; the other points of the batch keep their densities.
    def model():
        r = pyro.sample("r", dist.Normal(0.0, 1.0)) / 4
        one = torch.ones(())
        covariance = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
        scale = {"scale_tril": torch.linalg.cholesky(covariance)} if by_hand else {"covariance_matrix": covariance}
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), **scale), obs=torch.tensor([1.0, -1.0]))

    target = ModelTarget(model)
    target.vectorized = vectorized
    z = torch.tensor([[0.0], [8.0], [2.0]])
    log_prob = target.log_prob(z)
    assert log_prob.isnan().tolist() == [False, True, False]
    expected = [by_pyro(model, {"r": z[i, 0]}) for i in (0, 2)]
    torch.testing.assert_close(log_prob[[0, 2]], torch.stack(expected))
    log_prob, score = log_prob_and_score(target.log_prob, z)
    assert log_prob[1] == -math.inf and score[1] == 0 and score[[0, 2]].isfinite().all()


def test_learnt_parameters_keep_their_gradients():
    # pyro.param is a constant here: its .grad is what it was before.
    def model():
        scale = pyro.param("scale", torch.tensor(2.0))
        pyro.sample("x", dist.Normal(0.0, scale))

    target = ModelTarget(model)
    parameter = pyro.param("scale")
    parameter.grad = torch.tensor(7.0)
    _, score = log_prob_and_score(target.log_prob, torch.ones(3, 1))
    assert parameter.grad.item() == 7.0
    torch.testing.assert_close(score, torch.full((3, 1), -0.25))


def test_unconstrain_orders_values_by_site():
    # The flat vector has the sites' order, not the mapping's; a missing site is named.
    target = ModelTarget(models.schools_centred)
    values = {"theta": torch.arange(8.0), "tau": torch.tensor(-1.0), "mu": torch.tensor(-2.0)}
    assert target.unconstrain(values).tolist() == [[-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    with pytest.raises(ValueError, match=r"lacks the latent sites \['mu', 'tau'\]"):
        target.unconstrain({"theta": torch.zeros(8)})


def test_sites_that_are_not_finite_are_named():
    # A factor that overflows is the culprit, not the prior.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("overflow", (1000 * x).exp())
        pyro.factor("fine", x)

    target = ModelTarget(model)
    assert target.not_finite_sites(torch.tensor([1.0])) == ["overflow"]
    assert target.not_finite_sites(torch.tensor([-1.0])) == []


# ---- models that are refused ----


def test_a_site_that_comes_and_goes_is_refused():
    # No density of fixed dimension.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 0.4:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    start = init_to_value(values={"x": torch.tensor(-1.0)})
    with pytest.raises(ValueError, match="'sometimes' did not exist when the model was first run"):
        target = ModelTarget(model, init_strategy=start)
        target.log_prob(torch.ones(1, 1))


def test_latents_must_be_continuous():
    # The site and its distribution are named.
    def model():
        pyro.sample("count", dist.Poisson(3.0))

    with pytest.raises(ValueError, match=r"'count' is discrete \(Poisson\)"):
        ModelTarget(model)


def test_a_model_without_latents_is_a_constant():
    # No coordinates, and a log density that is the log likelihood at every point.
    target = ModelTarget(lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)))
    assert target.dim == 0 and target.constrain(torch.zeros(3, 0)) == {}
    expected = torch.full((3,), -0.5 * math.log(2 * math.pi), dtype=torch.float64)
    torch.testing.assert_close(target.log_prob(torch.zeros(3, 0)), expected)


def test_subsampling_is_refused():
    # The plate and its sizes are named.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=2):
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(2))

    with pytest.raises(ValueError, match="'data' subsamples 2 of 5 rows"):
        ModelTarget(model)


def test_transforms_of_unknown_sites_are_refused():
    # A typo does not pass silently.
    with pytest.raises(ValueError, match=r"transforms names the sites \['nu'\]"):
        ModelTarget(models.conjugate, transforms={"nu": transforms.ExpTransform().inv})


def test_an_impossible_observation_is_refused_and_a_masked_one_is_not():
    # A negative waiting time has probability zero under every draw, unless nobody looks at it.
    def model(mask):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("wait", dist.Exponential(rate), obs=torch.tensor([0.5, -1.0]))

    with pytest.raises(ValueError, match=r"'wait' has the value -1\.0 at index \(1,\) .*outside its support"):
        ModelTarget(model, (torch.tensor([True, True]),))
    target = ModelTarget(model, (torch.tensor([True, False]),))
    assert target.log_prob(torch.zeros(1, 1)).isfinite()


def test_an_observation_that_is_impossible_at_some_draws_only_is_fine():
    # The support depends on a latent: y = 3 is outside of (0, top) for small tops.
    def model():
        top = pyro.sample("top", dist.Gamma(3.0, 1.0))
        pyro.sample("y", dist.Uniform(0.0, top), obs=torch.tensor(3.0))

    target = ModelTarget(model)
    log_prob = target.log_prob(torch.tensor([[0.0], [2.0]]))
    assert log_prob[0] == -math.inf and log_prob[1].isfinite()


def test_a_shifted_distribution_has_a_shifted_support(float64):
    # torch calls the support of an affine map real, whatever it maps; a prior has mass one on the true one only.
    shift = transforms.AffineTransform(2.0, 3.0)

    def model():
        pyro.sample("x", dist.TransformedDistribution(dist.Exponential(1.0), [shift]))
        pyro.sample("w", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [shift]))

    target = ModelTarget(model)
    z = torch.linspace(-40.0, 10.0, 5001)
    grid = torch.stack([z, torch.zeros_like(z)], -1)
    assert (target.constrain(grid)["x"] >= 2.0).all()
    log_prob = target.log_prob(grid) - dist.Normal(2.0, 3.0).log_prob(torch.tensor(0.0))
    assert math.isclose(torch.logsumexp(log_prob, 0).item() + math.log(0.01), 0.0, abs_tol=1e-6)


def test_a_number_is_no_observation():
    # Pyro wants tensors; the message says which site, and how.
    with pytest.raises(
        ValueError, match=r"Site 'y' has the value 0\.3, which is no tensor\. Pass torch\.tensor\(0\.3\)"
    ):
        ModelTarget(lambda: pyro.sample("y", dist.Normal(pyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=0.3))


def test_plates_nested_too_deeply():
    # Refused only if a limit is given.
    assert ModelTarget(plates, max_plate_nesting=2).dim == 10
    with pytest.raises(ValueError, match="lies 2 plates deep, but max_plate_nesting is 1"):
        ModelTarget(plates, max_plate_nesting=1)


def test_an_error_in_the_model_says_where():
    # The last site reached and the arguments are in the message.
    def model(y):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("boom")

    with pytest.raises(ValueError, match=r"after site 'x', in `raise .*: boom \(arguments: torch.float32 \(2,\)\)"):
        ModelTarget(model, (torch.zeros(2),))


def test_a_support_that_moves_with_its_latents_is_not_refused():
    # Pareto draws of the upper end rarely reach the largest datum, the posterior always does.
    y = torch.tensor([50.0, 20.0])

    def model():
        upper = pyro.sample("upper", dist.Pareto(1.0, 3.0))
        pyro.sample("y", dist.Uniform(0.0, upper).expand([2]).to_event(1), obs=y)

    pyro.set_rng_seed(0)
    target = ModelTarget(model)
    log_prob = target.log_prob(target.unconstrain({"upper": torch.tensor([3.5, 4.5])}))
    assert log_prob[0] == -torch.inf and log_prob[1].isfinite()
