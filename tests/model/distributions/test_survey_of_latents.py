"""Every distribution of Pyro as the prior of a latent: with the right density and evidence, or refused with the cure.

The truth is the mean likelihood over draws of the distribution's own sampler, which knows nothing of coordinates. It is
held against the integral of the density over the coordinates, by importance sampling from a heavy-tailed proposal.
"""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as torch_dist
from torch import tensor

from pyro_osds.model import ModelTarget

EYE, SPD = torch.eye(2), tensor([[2.0, 0.3], [0.3, 1.0]])
HALF = torch_dist.Categorical(logits=tensor([0.0, 1.0]))
UNIT_NORMAL = dist.MultivariateNormal(torch.zeros(1), EYE[:1, :1])
DIAGONAL = dist.Normal(torch.zeros(1), 1.0).to_event(1)


class Inverse(torch_dist.Transform):
    """Positive definite matrices to their inverses; |dX^-1 / dX| = det(X)^-(n + 1)."""

    domain = codomain = torch_dist.constraints.positive_definite
    bijective = True

    def _call(self, x):
        return torch.linalg.inv(x)

    _inverse = _call

    def log_abs_det_jacobian(self, x, y):
        return -(x.shape[-1] + 1.0) * torch.linalg.slogdet(x).logabsdet


class InverseWishart(dist.TorchDistribution):
    """As users write it."""

    arg_constraints = {}
    support = torch_dist.constraints.positive_definite

    def __init__(self, df, scale):
        self.df, self.scale = df, scale
        self.wishart = torch_dist.Wishart(df, precision_matrix=scale, validate_args=False)
        super().__init__(df.shape, scale.shape[-2:], validate_args=False)

    def sample(self, sample_shape=()):
        return torch.linalg.inv(self.wishart.sample(sample_shape))

    def log_prob(self, value):
        return self.wishart.log_prob(torch.linalg.inv(value)) - (self.scale.shape[-1] + 1) * torch.logdet(value)


def gaussian_hmm(batch=()):
    return dist.GaussianHMM(DIAGONAL, EYE[:1, :1], DIAGONAL, EYE[:1, :1], DIAGONAL.expand(batch), duration=3)


CONTINUOUS = {
    "AVFMultivariateNormal": lambda: dist.AVFMultivariateNormal(torch.zeros(2), EYE, torch.zeros(2, 1, 2)),
    "AffineBeta": lambda: dist.AffineBeta(2.0, 3.0, -1.0, 2.0),
    "AsymmetricLaplace": lambda: dist.AsymmetricLaplace(0.0, 1.0, 1.5),
    "Beta": lambda: dist.Beta(0.3, 0.4),
    "Cauchy": lambda: dist.Cauchy(0.0, 1.0),
    "Chi2": lambda: dist.Chi2(3.0),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(tensor(0.3)),
    "Dirichlet": lambda: dist.Dirichlet(tensor([0.5, 1.0, 2.0])),
    "DiscreteHMM": lambda: dist.DiscreteHMM(
        torch.zeros(2), torch.zeros(2, 2), dist.Normal(tensor([0.0, 1.0]), 1.0), duration=3
    ),
    "Exponential": lambda: dist.Exponential(3.0),
    "FisherSnedecor": lambda: dist.FisherSnedecor(3.0, 4.0),
    "FoldedDistribution": lambda: dist.FoldedDistribution(dist.Normal(0.5, 1.0)),
    "Gamma": lambda: dist.Gamma(2.0, 3.0),
    "GaussianHMM": gaussian_hmm,
    "GeneralizedPareto": lambda: dist.GeneralizedPareto(tensor(0.5), tensor(1.0), tensor(0.2)),
    "GeneralizedPareto, bounded": lambda: dist.GeneralizedPareto(tensor(0.5), tensor(1.0), tensor(-0.4)),
    "Gumbel": lambda: dist.Gumbel(0.0, 1.0),
    "HalfCauchy": lambda: dist.HalfCauchy(1.0),
    "HalfNormal": lambda: dist.HalfNormal(1.0),
    "InverseGamma": lambda: dist.InverseGamma(2.0, 1.0),
    "Kumaraswamy": lambda: dist.Kumaraswamy(2.0, 3.0),
    "LKJ": lambda: dist.LKJ(3, tensor(1.5)),
    "LKJCholesky": lambda: dist.LKJCholesky(3, tensor(1.5)),
    "Laplace": lambda: dist.Laplace(0.0, 1.0),
    "LogNormal": lambda: dist.LogNormal(0.0, 1.0),
    "Logistic": lambda: dist.Logistic(0.0, 1.0),
    "LogisticNormal": lambda: dist.LogisticNormal(torch.zeros(2), torch.ones(2)),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(
        torch.zeros(2), torch.ones(2, 1), torch.ones(2)
    ),
    "MaskedMixture": lambda: dist.MaskedMixture(
        tensor([True, False]), dist.Gamma(2.0, 1.0).expand([2]), dist.Gamma(4.0, 1.0).expand([2])
    ),
    "MaskedMixture of two supports": lambda: dist.MaskedMixture(
        tensor([True, False, True]), dist.Gamma(2.0, 1.0).expand([3]), dist.Normal(-1.0, 2.0).expand([3])
    ),
    "MaskedMixture of intervals": lambda: dist.MaskedMixture(
        tensor([True, False]), dist.Uniform(0.0, 2.0).expand([2]), dist.Pareto(1.0, 3.0).expand([2])
    ),
    "MaskedMixture of events": lambda: dist.MaskedMixture(
        tensor([True, False]), dist.Dirichlet(torch.ones(2, 2)), dist.Dirichlet(torch.ones(2, 2) * 3.0)
    ),
    "MixtureOfDiagNormals": lambda: dist.MixtureOfDiagNormals(
        tensor([[0.0, 0.0], [2.0, 1.0]]), torch.ones(2, 2), torch.zeros(2)
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda: dist.MixtureOfDiagNormalsSharedCovariance(
        tensor([[0.0, 0.0], [2.0, 1.0]]), torch.ones(2), torch.zeros(2)
    ),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(HALF, dist.Normal(tensor([-1.0, 2.0]), 1.0)),
    "MixtureSameFamily of torch": lambda: dist.MixtureSameFamily(HALF, torch_dist.Gamma(tensor([1.0, 4.0]), 1.0)),
    "MixtureSameFamily of Gamma": lambda: dist.MixtureSameFamily(HALF, dist.Gamma(tensor([0.1, 4.0]), 1.0)),
    "MixtureSameFamily of Beta": lambda: dist.MixtureSameFamily(HALF, dist.Beta(tensor([0.2, 4.0]), 1.0)),
    "MixtureSameFamily of Dirichlet": lambda: dist.MixtureSameFamily(
        HALF, dist.Dirichlet(tensor([[1.0, 2.0, 0.5], [4.0, 1.0, 1.0]]))
    ),
    "MixtureSameFamily of Uniform": lambda: dist.MixtureSameFamily(
        HALF, dist.Uniform(tensor([0.0, 0.5]), tensor([1.0, 3.0]))
    ),
    "MixtureSameFamily of Pareto": lambda: dist.MixtureSameFamily(HALF, dist.Pareto(tensor([1.0, 2.0]), 3.0)),
    "MixtureSameFamily of VonMises": lambda: dist.MixtureSameFamily(HALF, dist.VonMises(tensor([-1.0, 2.0]), 2.0)),
    "MixtureSameFamily of events": lambda: dist.MixtureSameFamily(
        HALF, dist.LogNormal(tensor([[0.0, 1.0], [1.0, 0.0]]), 0.5).to_event(1)
    ),
    "MixtureSameFamily of Wishart": lambda: dist.MixtureSameFamily(
        HALF, dist.Wishart(tensor([4.0, 6.0]), scale_tril=torch.stack([EYE, 0.5 * EYE]))
    ),
    "MultivariateNormal": lambda: dist.MultivariateNormal(torch.zeros(2), SPD),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(tensor(3.0), torch.zeros(2), EYE),
    "NanMaskedMultivariateNormal": lambda: dist.NanMaskedMultivariateNormal(torch.zeros(2), SPD),
    "NanMaskedNormal": lambda: dist.NanMaskedNormal(0.0, tensor(1.0)),
    "Normal": lambda: dist.Normal(0.0, 1.0),
    "OMTMultivariateNormal": lambda: dist.OMTMultivariateNormal(torch.zeros(2), EYE),
    "Pareto": lambda: dist.Pareto(1.0, 2.0),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(tensor(0.4), probs=tensor([0.2, 0.5])).to_event(1),
    "RelaxedOneHotCategorical": lambda: dist.RelaxedOneHotCategorical(tensor(0.7), probs=tensor([0.2, 0.3, 0.5])),
    "RelaxedOneHotCategorical, cold": lambda: dist.RelaxedOneHotCategorical(tensor(0.3), logits=torch.zeros(2, 2)),
    "SineBivariateVonMises": lambda: dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.3),
    "SkewLogistic": lambda: dist.SkewLogistic(0.0, 1.0, 2.0),
    "SoftAsymmetricLaplace": lambda: dist.SoftAsymmetricLaplace(0.0, 1.0, 1.0, 1.0),
    "SoftLaplace": lambda: dist.SoftLaplace(0.0, 1.0),
    "StudentT": lambda: dist.StudentT(3.0),
    "TransformedDistribution": lambda: dist.TransformedDistribution(
        dist.Wishart(tensor(5.0), covariance_matrix=SPD), [Inverse()]
    ),
    "TruncatedPolyaGamma": lambda: dist.TruncatedPolyaGamma(tensor([1.0])),
    "Uniform": lambda: dist.Uniform(-1.0, 2.0),
    "VonMises": lambda: dist.VonMises(1.0, 2.0),
    "Weibull": lambda: dist.Weibull(1.0, 2.0),
    "Wishart": lambda: dist.Wishart(tensor(2.5), covariance_matrix=SPD),
    "Wishart of three": lambda: dist.Wishart(tensor(6.0), scale_tril=tensor([[1.0, 0, 0], [0.5, 1, 0], [0.2, 0.1, 2]])),
    "Wishart in a batch": lambda: dist.Wishart(tensor([3.0, 5.0]), scale_tril=EYE).to_event(1),
    "InverseWishart": lambda: InverseWishart(tensor(5.0), SPD),
}


def correlation_factors(count):
    """Of LKJ(1.5) in three dimensions, by its partial correlations: torch's sampler is wrong."""
    first, second = (2.0 * dist.Beta(2.0, 2.0).sample((count,)) - 1.0 for _ in range(2))
    third = 2.0 * dist.Beta(1.5, 1.5).sample((count,)) - 1.0
    factor = torch.zeros(count, 3, 3)
    factor[:, 0, 0] = 1.0
    factor[:, 1, 0], factor[:, 1, 1] = first, (1.0 - first.square()).sqrt()
    factor[:, 2, 0], rest = second, (1.0 - second.square()).sqrt()
    factor[:, 2, 1], factor[:, 2, 2] = third * rest, (1.0 - third.square()).sqrt() * rest

    return factor


def correlation_matrices(count):
    factor = correlation_factors(count)
    return factor @ factor.mT


SAMPLERS = {"LKJ": correlation_matrices, "LKJCholesky": correlation_factors}


def value_of(x):
    """One number of a value, with weights that tell its entries apart, and no larger than the likelihood can see."""
    weights = torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype)
    return (torch.atan(x.reshape(len(x), -1)) * weights).sum(-1)


def likelihood(x):
    return dist.Normal(value_of(x), 1.0).log_prob(torch.ones((), dtype=x.dtype))


def model_of(make):
    def model():
        x = pyro.sample("x", make())
        pyro.sample("y", dist.Normal(value_of(x[None])[0], 1.0), obs=tensor(1.0))

    return model


def log_mean(log_values):
    """The logarithm of a mean and its standard error."""
    log_values = log_values.double()
    top = log_values.max()
    weights = (log_values - top).exp()
    mean = weights.mean()

    return (mean.log() + top).item(), (weights.std() / mean).item() / math.sqrt(len(weights))


def by_sampling(name, count=20_000):
    if name in SAMPLERS:
        return log_mean(likelihood(SAMPLERS[name](count)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sampler of Wishart matrices
        fn = CONTINUOUS[name]()
        try:
            draws = fn.sample((count,))
        except (ValueError, RuntimeError):  # some samplers make one draw only
            draws = torch.stack([fn.sample() for _ in range(2000)])

    return log_mean(likelihood(draws))


def by_importance(target, count=40_000):
    """The evidence by draws from a wide Student t distribution around the prior's coordinates."""
    prior = target.sample_prior(2000)
    center, dim = prior.median(0).values, target.dim
    spread = (prior - center).abs().quantile(0.7, 0).clamp(min=1e-3)
    shape = torch.corrcoef((((prior - center) / spread).clamp(-5, 5) * 1.0).T).reshape(dim, dim) if dim > 1 else None
    factor = torch.linalg.cholesky(0.8 * shape + 0.2 * torch.eye(dim)) if dim > 1 else torch.ones(1, 1)
    proposal = dist.MultivariateStudentT(tensor(2.0).double(), center, 1.3 * spread[:, None] * factor.double())
    z = proposal.sample((count,))
    log_prob = target.log_prob(z)
    # A matrix without an inverse, far out, has no density.
    assert log_prob.isnan().double().mean() < 1e-2

    return log_mean(log_prob.nan_to_num(nan=-math.inf) - proposal.log_prob(z))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_evidence_under_a_prior(name):
    pyro.set_rng_seed(0)
    target = ModelTarget(model_of(CONTINUOUS[name]), capture=False)
    expected, first = by_sampling(name)
    got, second = by_importance(target)
    error = math.hypot(first, second)
    assert error < 0.05  # or nothing is tested
    assert abs(got - expected) < 4.0 * error, (got, expected, error)


# ---- refused ----

REFUSED = {
    "Empirical": (lambda: dist.Empirical(torch.zeros(3), torch.zeros(3)), "dist.Categorical"),
    "ZeroInflatedDistribution": (lambda: dist.ZeroInflatedDistribution(dist.Normal(0.0, 1.0), gate=tensor(0.3)), "on"),
    "MixtureSameFamily with atoms": (
        lambda: dist.MixtureSameFamily(HALF, dist.Delta(tensor([0.0, 1.0]))),
        "single values of positive probability",
    ),
    "MaskedMixture with atoms": (
        lambda: dist.MaskedMixture(tensor(True), dist.Delta(tensor(0.0)), dist.Normal(0.0, 1.0)),
        "on \\* w",
    ),
    "TransformedDistribution of an atom": (
        lambda: dist.TransformedDistribution(dist.Delta(tensor(0.0)), [torch_dist.ExpTransform()]),
        "deterministic",
    ),
    "ProjectedNormal": (lambda: dist.ProjectedNormal(tensor([1.0, 0.5, 0.0])), "ProjectedNormalReparam"),
    "VonMises3D": (lambda: dist.VonMises3D(tensor([0.0, 0.0, 2.0])), "v.norm"),
    "CoalescentTimes": (lambda: dist.CoalescentTimes(torch.zeros(3)), "transforms="),
    "GaussianScaleMixture": (
        lambda: dist.GaussianScaleMixture(torch.ones(2), torch.zeros(2), tensor([1.0, 2.0])),
        "MixtureSameFamily",
    ),
    "LinearHMM": (
        lambda: dist.LinearHMM(DIAGONAL, EYE[:1, :1], DIAGONAL, EYE[:1, :1], DIAGONAL, duration=3),
        "LinearHMMReparam",
    ),
    "Rejector": (
        lambda: dist.Rejector(dist.Normal(0.0, 1.0), lambda v: tensor(0.0), tensor(0.0)),
        "support = constraints.real",
    ),
    "Gamma of torch": (lambda: torch_dist.Gamma(1.0, 1.0), "Use pyro.distributions.Gamma"),
    "MixtureSameFamily of shifted": (
        lambda: dist.MixtureSameFamily(
            HALF,
            torch_dist.TransformedDistribution(
                torch_dist.Exponential(torch.ones(2)), [torch_dist.AffineTransform(tensor([0.0, 1.0]), 1.0)]
            ),
        ),
        "Categorical that is summed out",
    ),
    "MaskedMixture of two events": (
        lambda: dist.MaskedMixture(
            tensor(True), dist.Dirichlet(torch.ones(2)), dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        ),
        "other supports",
    ),
    "LogNormalNegativeBinomial": (lambda: dist.LogNormalNegativeBinomial(5.0, tensor(0.0), 0.5), "observe it"),
}
for name, make in {
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(tensor(2.0), gate=tensor(0.3)),
    "ZeroInflatedNegativeBinomial": lambda: dist.ZeroInflatedNegativeBinomial(3.0, probs=tensor(0.3), gate=tensor(0.3)),
    "MixtureSameFamily of discrete": lambda: dist.MixtureSameFamily(HALF, dist.Bernoulli(tensor([0.2, 0.7]))),
    "Poisson": lambda: dist.Poisson(2.0),
    "Geometric": lambda: dist.Geometric(tensor(0.3)),
    "NegativeBinomial": lambda: dist.NegativeBinomial(3.0, tensor(0.3)),
    "GammaPoisson": lambda: dist.GammaPoisson(1.0, 1.0),
    "Multinomial": lambda: dist.Multinomial(3, torch.ones(2) / 2),
    "DirichletMultinomial": lambda: dist.DirichletMultinomial(tensor([1.0, 2.0]), tensor(3.0)),
}.items():
    REFUSED[name] = make, "um it out in the model"


@pytest.mark.parametrize("name", REFUSED)
def test_a_distribution_that_is_no_prior_is_refused_with_its_cure(name):
    make, cure = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=rf"(?s)[Ss]ite 'x'.*{cure}") as caught:
        ModelTarget(model_of(make))
    assert "Trace Shapes" not in str(caught.value)


# ---- summed out ----

DISCRETE = {
    "Bernoulli": lambda: dist.Bernoulli(tensor(0.3)),
    "BetaBinomial": lambda: dist.BetaBinomial(1.0, 2.0, tensor(3.0)),
    "Binomial": lambda: dist.Binomial(3, tensor(0.3)),
    "Categorical": lambda: dist.Categorical(tensor([0.2, 0.3, 0.5])),
    "OneHotCategorical": lambda: dist.OneHotCategorical(tensor([0.2, 0.3, 0.5])),
    "OneHotCategoricalStraightThrough": lambda: dist.OneHotCategoricalStraightThrough(tensor([0.2, 0.3, 0.5])),
    "OneOneMatching": lambda: dist.OneOneMatching(tensor([[0.0, 1.0], [0.5, 0.0]])),
    "OneTwoMatching": lambda: dist.OneTwoMatching(tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 2.0], [1.0, 0.0]])),
    "OrderedLogistic": lambda: dist.OrderedLogistic(tensor(0.2), tensor([-1.0, 1.0])),
    "SpanningTree": lambda: dist.SpanningTree(tensor([0.0, 1.0, 0.5])),
    "ExtendedBinomial": lambda: dist.ExtendedBinomial(tensor(3.0), tensor(0.3)),
    "ExtendedBetaBinomial": lambda: dist.ExtendedBetaBinomial(1.0, 2.0, tensor(3.0)),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_evidence_under_a_discrete_prior(name):
    # Against the sum over draws of its own sampler.
    pyro.set_rng_seed(0)
    make = DISCRETE[name]

    def model():
        x = pyro.sample("x", make())
        pyro.sample("y", dist.Normal(number(x, make().event_dim), 1.0), obs=tensor(1.0))

    def number(x, event_dim):
        x = x.float()
        return (0.25 * x.flatten(x.dim() - event_dim).square()).cumsum(-1).sum(-1) if event_dim else x

    fn = make()
    draws = torch.stack([fn.sample() for _ in range(1000)])
    expected, error = log_mean(dist.Normal(number(draws, fn.event_dim), 1.0).log_prob(tensor(1.0)))
    got = ModelTarget(model).log_prob(torch.zeros(1, 0)).item()
    assert error < 0.05 and abs(got - expected) < 4.0 * error + 1e-6, (got, expected, error)
