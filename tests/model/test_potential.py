"""Potential functions, as HMC takes them: density, sites, draws, evidence, and mistakes."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro.infer.mcmc.util import initialize_model
from torch import nn
from torch.distributions import transforms

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, PotentialTarget, VectorizationWarning, one_point

COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
LOG_EVIDENCE = math.log(2 * math.pi) + 0.5 * torch.logdet(COVARIANCE).item()
START = {"a": torch.tensor(0.0), "b": torch.zeros(2, 3)}


def potential(params):
    return 0.5 * (params["a"] - 1) ** 2 + (params["b"] * torch.arange(6.0).reshape(2, 3)).square().sum()


def gaussian(params):
    """Unnormalised, in two sites: its log evidence is log 2 pi plus half the log-determinant of the covariance."""
    x = torch.cat([params["left"].reshape(1), params["right"]])

    return 0.5 * x @ torch.linalg.solve(COVARIANCE.to(x), x)


GAUSSIAN_START = {"left": torch.tensor(1.0), "right": torch.zeros(1)}

# ---- the target ----


@pytest.mark.parametrize("vectorize", ["auto", "loop"])
def test_density(float64, vectorize):
    # Minus the potential, with its gradient, in batches of any size.
    target = PotentialTarget(potential, {name: value.double() for name, value in START.items()}, vectorize=vectorize)
    assert target.dim == 7 and target.backend == {"auto": "captured", "loop": "loop"}[vectorize]
    for size in (3, 100):
        z = torch.randn(size, 7, requires_grad=True)
        expected = -0.5 * (z[:, 0] - 1) ** 2 - (z[:, 1:] * torch.arange(6.0)).square().sum(-1)
        got = target.log_prob(z)
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (got, expected)]
        torch.testing.assert_close(*gradients)


def test_sites():
    # In the order of initial_params, with their shapes; there and back again.
    target = PotentialTarget(potential, START)
    assert [(s.name, s.start, s.stop, tuple(s.shape)) for s in target.sites] == [("a", 0, 1, ()), ("b", 1, 7, (2, 3))]
    z = torch.randn(4, 7)
    values = target.constrain(z)
    assert {name: tuple(value.shape) for name, value in values.items()} == {"a": (4,), "b": (4, 2, 3)}
    assert torch.equal(target.unconstrain(values), z)
    assert torch.equal(target.unconstrain(START), torch.zeros(1, 7))


def test_transforms_are_for_the_draws():
    # The potential has the Jacobian in it already; draws go through the inverses, and may change their shape.
    simplex = transforms.StickBreakingTransform().inv
    log = transforms.ExpTransform().inv
    start = {"p": torch.zeros(2), "rate": torch.zeros(()), "x": torch.zeros(())}

    def normal(params):
        assert params["p"].shape == (2,)
        return sum(value.square().sum() for value in params.values())

    target = PotentialTarget(normal, start, transforms={"p": simplex, "rate": log})
    z = torch.randn(5, 4)
    torch.testing.assert_close(target.log_prob(z), -z.double().square().sum(-1))
    values = target.constrain(z)
    torch.testing.assert_close(values["p"], simplex.inv(z[:, :2]))
    torch.testing.assert_close(values["rate"], z[:, 2].exp())
    assert torch.equal(values["x"], z[:, 3])
    assert [tuple(site.shape) for site in target.sites] == [(3,), (), ()]


def test_the_potential_of_a_pyro_model(float64):
    # What initialize_model makes of a model is the model's own density.
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, scale).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=torch.tensor([0.5, 1.0]))

    start, potential_fn, to_unconstrained, _ = initialize_model(model)
    target, expected = PotentialTarget(potential_fn, start, to_unconstrained), ModelTarget(model)
    z = torch.randn(5, 3)
    values = expected.constrain(z)
    flat = target.unconstrain({name: to_unconstrained[name](value) for name, value in values.items()})
    torch.testing.assert_close(target.log_prob(flat), expected.log_prob(z))
    torch.testing.assert_close(target.constrain(flat), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_of_the_density(dtype):
    # Double, whatever the values are in; draws have the type of the values, where integers count as the default type.
    start = {name: value.to(dtype) for name, value in GAUSSIAN_START.items()}
    target = PotentialTarget(gaussian, start)
    z = torch.ones(2, 2, dtype=dtype)
    assert target.dtype == torch.float64 and target.log_prob(z).dtype == torch.float64 and target.is_double
    assert target.draw_dtype == dtype and {value.dtype for value in target.constrain(z.double()).values()} == {dtype}
    target = PotentialTarget(lambda p: p["x"] ** 2, {"x": torch.tensor(3)})
    assert target.dtype == torch.float64 and target.draw_dtype == torch.float32


def test_the_widest_type_is_that_of_the_density():
    # One site in double precision is enough, wherever it stands; each site keeps its own type.
    start = {"a": torch.tensor(0.0), "b": torch.tensor(0.0, dtype=torch.float64)}
    target = PotentialTarget(lambda p: p["a"] ** 2 + p["b"] ** 2, start)
    assert {name: v.dtype for name, v in target.constrain(torch.zeros(1, 2)).items()} == {
        "a": torch.float32,
        "b": torch.float64,
    }
    assert target.dtype == torch.float64


def test_control_flow_falls_back_to_the_loop():
    # With a warning that names the line, and the right values on both sides.
    def model(params):
        if params["x"] > 0:
            return params["x"] ** 2
        return 3 * params["x"] ** 2

    with pytest.warns(VectorizationWarning, match=r"`if params\[\"x\"\] > 0:` \(line \d+ of test_potential\.py"):
        target = PotentialTarget(model, {"x": torch.tensor(1.0)})
    assert target.backend == "loop" and not target.vectorized
    assert target.log_prob(torch.tensor([[2.0], [-1.0]])).tolist() == [-4.0, -3.0]


def test_a_potential_of_one_element():
    # A scalar of shape (1,) is one.
    target = PotentialTarget(lambda p: p["x"].square(), {"x": torch.ones(1)})
    assert target.log_prob(torch.full((3, 1), 2.0)).tolist() == [-4.0] * 3


@pytest.mark.parametrize("size", [3, 100])
def test_matrices_that_are_not_positive_definite(float64, size):
    # They have no density; nor do they stop anybody, when the target is made or later.
    def model(params):
        factor = torch.linalg.cholesky(params["x"] * torch.eye(2))
        return factor.square().sum() - params["x"].log()

    target = PotentialTarget(model, {"x": torch.tensor(1.0)})
    z = torch.linspace(0.5, 3.0, size)[:, None]
    z[1] = -1.0
    others = torch.arange(size) != 1
    got = target.log_prob(z)
    assert torch.equal(got.isfinite(), others)
    torch.testing.assert_close(got[others], (z.log() - 2 * z)[others, 0])


# ---- mistakes ----


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda p: p["b"].square(), r"\(2, 3\)"),
        (lambda p: 3.0, "float"),
        (lambda p: (p["a"], p["b"]), "tuple"),
        (lambda p: None, "NoneType"),
    ],
)
def test_potentials_that_are_no_scalars(function, got):
    # What it returned is named.
    with pytest.raises(ValueError, match=f"potential_fn must return a scalar tensor .* it returned {got}"):
        PotentialTarget(function, START)


def test_transforms_of_unknown_sites():
    # A typo does not pass silently.
    with pytest.raises(ValueError, match=r"transforms names the sites \['c'\], which are not in initial_params"):
        PotentialTarget(potential, START, transforms={"c": transforms.ExpTransform().inv})


def test_random_potentials():
    # Named with the line.
    with pytest.raises(ValueError, match=r"changes between two evaluations.* because of rand at .*test_potential"):
        PotentialTarget(lambda p: p["x"] ** 2 + torch.rand(()), {"x": torch.tensor(1.0)})


def test_layers_in_training_mode():
    # A batch normalisation would learn from every evaluation; it is refused before it does.
    layer = nn.BatchNorm1d(2)

    def with_layer(params):
        return layer(params["x"] * torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])).square().sum()

    with pytest.raises(ValueError, match=r"batch_norm in training mode.*Call \.eval\(\)"):
        PotentialTarget(with_layer, {"x": torch.ones(2)})
    assert layer.num_batches_tracked == 0
    layer.eval()
    assert PotentialTarget(with_layer, {"x": torch.ones(2)}).dim == 2


def test_no_sites():
    # Without sites there is no point to evaluate it at.
    with pytest.raises(ValueError, match="initial_params"):
        PotentialTarget(lambda p: torch.tensor(1.0), {})


# ---- initial_params ----


def test_one_point_of_one_chain():
    # Values of one point are taken as they are, whatever their shapes; numbers become tensors.
    assert one_point(gaussian, GAUSSIAN_START, 1)["right"].shape == (1,)
    assert one_point(potential, START, 4)["b"].shape == (2, 3)
    assert one_point(lambda p: p["x"] ** 2, {"x": 2.0}, 1)["x"].item() == 2.0


def test_one_row_for_each_chain():
    # As MCMC wants it: the first row is the point, without its gradients.
    start = {"left": torch.tensor([1.0, 2.0, 3.0], requires_grad=True), "right": torch.zeros(3, 1)}
    point = one_point(gaussian, start, 3)
    assert {name: tuple(value.shape) for name, value in point.items()} == {"left": (), "right": (1,)}
    assert point["left"].item() == 1.0 and not point["left"].requires_grad


def test_a_point_that_only_looks_like_chains():
    # A vector of two, with two chains: the potential needs both of its elements.
    point = one_point(lambda p: p["x"][0] ** 2 + p["x"][1] ** 2, {"x": torch.tensor([3.0, 4.0])}, 2)
    assert point["x"].tolist() == [3.0, 4.0]


def test_an_ambiguous_leading_dimension_warns():
    # Both readings work; MCMC's is taken, and said so.
    start = {"x": torch.tensor([3.0, 4.0])}
    with pytest.warns(UserWarning, match="leading dimension of initial_params is num_chains = 2.*as MCMC does"):
        point = one_point(lambda p: p["x"].square().sum(), start, 2)
    assert point["x"].tolist() == 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_point(lambda p: p["x"].square().sum(), start, 3)["x"].shape == (2,)


# ---- end to end ----


@pytest.fixture(scope="module")
def fitted():
    """A Gaussian potential, with starts by chain and a site whose draws are exponentiated."""
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        osds = OSDS(
            potential_fn=gaussian,
            initial_params={name: torch.stack([value] * 2) for name, value in GAUSSIAN_START.items()},
            transforms={"right": transforms.ExpTransform().inv},
            num_samples=200, num_chains=2, num_iterations=50, disable_progbar=True,
        )  # fmt: skip
        osds.run()

    return osds


def test_evidence_of_a_gaussian(fitted):
    # A normalising constant, within its standard error.
    assert_within_standard_error(fitted.log_evidence, LOG_EVIDENCE, fitted.log_evidence_se, k=3)
    assert fitted.evidence.reliable and fitted.backend == "captured"


def test_draws_of_a_gaussian(fitted):
    # By site, constrained, and with the moments of the density.
    samples = fitted.get_samples(group_by_chain=True)
    assert {name: tuple(value.shape) for name, value in samples.items()} == {"left": (2, 200), "right": (2, 200, 1)}
    values = {"left": samples["left"].flatten(), "right": samples["right"].log().flatten()}
    n_eff = {name: d["n_eff"].item() for name, d in fitted.diagnostics().items() if name in values}
    for (name, x), variance in zip(values.items(), COVARIANCE.diagonal(), strict=True):
        assert_within_standard_error(x.mean(), 0.0, math.sqrt(variance / min(400, n_eff[name])))
        assert_within_standard_error(x.var(), variance, variance.item() * math.sqrt(2 / min(400, n_eff[name])))
    correlation = torch.corrcoef(torch.stack(list(values.values())))[0, 1]
    assert_within_standard_error(correlation, 0.6, (1 - 0.36) / math.sqrt(min(n_eff.values())))


def test_arviz_gets_the_draws(fitted):
    # Posterior and statistics; there is nothing observed and no likelihood.
    data = fitted.to_inference_data()
    assert data["posterior"]["right"].shape == (2, 200, 1)
    assert not {"log_likelihood", "observed_data"} & {name.strip("/") for name in data.groups()}


def test_training_by_hand(fitted):
    # step and evaluate_loss know the same target.
    assert fitted.is_trained_on()
    assert math.isfinite(fitted.evaluate_loss()) and fitted.evaluate_loss() > -LOG_EVIDENCE - 0.1


def test_arguments_are_refused(fitted):
    # A potential has none.
    with pytest.raises(ValueError, match=r"potential_fn takes no arguments .*call run\(\) without any"):
        fitted.run(torch.zeros(2))
    with pytest.raises(ValueError, match="potential_fn takes no arguments"):
        fitted.step(scale=1.0)
    assert fitted.log_evidence_se > 0


@pytest.mark.parametrize("options", [{}, {"model": lambda: None, "potential_fn": gaussian}], ids=["neither", "both"])
def test_a_model_or_a_potential(options):
    # One of them, and only one.
    with pytest.raises(ValueError, match="either a model or a potential_fn, not both and not neither"):
        OSDS(**options, initial_params=GAUSSIAN_START)


def test_a_potential_needs_its_sites():
    # None, or a flat vector, does not say which sites there are.
    with pytest.raises(ValueError, match="potential_fn needs initial_params, a mapping .* got NoneType"):
        OSDS(potential_fn=gaussian)
    with pytest.raises(ValueError, match="potential_fn needs initial_params, a mapping .* got Tensor"):
        OSDS(potential_fn=gaussian, initial_params=torch.zeros(2))
    with pytest.raises(TypeError, match="potential_fn must be callable, got Tensor"):
        OSDS(potential_fn=torch.zeros(()), initial_params=GAUSSIAN_START)


def test_the_warning_points_at_the_users_line():
    # Through all of OSDS, an ambiguous start is reported where run was called.
    osds = OSDS(
        potential_fn=lambda p: p["x"].square().sum(), initial_params={"x": torch.zeros(2)},
        num_chains=2, num_iterations=10, num_samples=10, disable_progbar=True,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        osds.run()
    (warning,) = [w for w in caught if "leading dimension of initial_params" in str(w.message)]
    assert warning.filename == __file__
