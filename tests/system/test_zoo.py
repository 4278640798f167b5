"""The model zoo: every kind of model has Pyro's density, on the backend that it can reach, and the exact evidence."""

import contextlib
import itertools
import warnings
from dataclasses import dataclass

import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from zoo import ZOO, Case
from zoo_foreign import FOREIGN

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, VectorizationWarning
from pyro_osds.model.distributions.transforms import to_support

NUM_POINTS = 5
# Smaller batches are not worth a captured graph.
BATCH_SIZE = 64
EXACT = [case for case in ZOO.values() if case.exact]


@dataclass(frozen=True)
class Exhibit:
    """A model of the zoo with its target, at random points ``(BATCH_SIZE, D)``."""

    case: Case
    model: object
    args: tuple
    kwargs: dict
    target: ModelTarget
    warned: bool
    z: torch.Tensor
    parameters: dict


@pytest.fixture(scope="module", params=ZOO.values(), ids=ZOO)
def opened(request):
    """Each target is built once, for all of its tests."""
    case = request.param
    with torch.random.fork_rng(), default_dtype(case.default_dtype):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        model, args, kwargs = build(case)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error")
            warnings.simplefilter("always", VectorizationWarning)
            target = ModelTarget(model, args, kwargs)
        z = torch.randn(BATCH_SIZE, target.dim, dtype=target.dtype)

        return Exhibit(case, model, args, kwargs, target, bool(caught), z, pyro.get_param_store().get_state())


@pytest.fixture
def exhibit(opened):
    """Every test starts with an empty parameter store; the models' own parameters belong in it."""
    pyro.get_param_store().set_state(opened.parameters)
    with default_dtype(opened.case.default_dtype):
        yield opened


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(case):
    """The model with its arguments; modules are built as users build them, with Pyro's checks on."""
    with pyro.validation_enabled(True):
        return case.model(), case.args(), case.kwargs()


def latents(trace):
    nodes = trace.nodes.items()

    return {
        n: s for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and type(s["fn"]) is not _Subsample
    }


def assignments(sites):
    """All joint values of some discrete sites, as ``{name: value}``, element by element of every plate."""
    choices = []
    for site in sites.values():
        fn = site["fn"]
        support = fn.enumerate_support(expand=True)
        flat = support.reshape(len(support), fn.batch_shape.numel(), *fn.event_shape)
        elements = torch.arange(flat.shape[1])
        indices = itertools.product(range(len(support)), repeat=flat.shape[1])
        choices.append([flat[list(index), elements].reshape(fn.shape()) for index in indices])

    return [dict(zip(sites, values, strict=True)) for values in itertools.product(*choices)]


def by_pyro(exhibit, u, values):
    """The log density at one point by Pyro's own traces, with brute force over the discrete latents.

    Arguments:
        u: Unconstrained values by site.
        values: The same in the model's coordinates.
    """
    model = exhibit.case.reference or exhibit.model

    def trace_with(fixed):
        return poutine.trace(poutine.condition(model, fixed)).get_trace(*exhibit.args, **exhibit.kwargs)

    with pyro.validation_enabled(False):
        discrete = latents(trace_with(values))
        assert all(site["fn"].has_enumerate_support for site in discrete.values())
        terms = []
        for assignment in assignments(discrete):
            trace = trace_with(values | assignment)
            total = trace.log_prob_sum()
            for name, value in values.items():
                transform = to_support(trace.nodes[name]["fn"])
                assert torch.allclose(transform(u[name]), value), name
                total = total + transform.log_abs_det_jacobian(u[name], value).sum()
            terms.append(torch.as_tensor(total))

    return torch.logsumexp(torch.stack(terms), 0)


def reference_log_prob(exhibit, z):
    values, sites = exhibit.target.constrain(z), exhibit.target.sites
    rows = []
    for i, row in enumerate(z):
        u = {s.name: row[s.start : s.stop].reshape(s.unconstrained_shape).to(s.dtype) for s in sites}
        rows.append(by_pyro(exhibit, u, {name: value[i] for name, value in values.items()}))

    return torch.stack(rows).to(z)


def test_density_is_that_of_pyro(exhibit):
    # Values and gradients on the fastest backend, against Pyro's traces plus Jacobians, summed over discrete latents.
    rounding = 1.0 if exhibit.case.default_dtype == torch.float64 else 10.0
    z = exhibit.z.clone().requires_grad_()
    got = exhibit.target.log_prob(z)
    expected = reference_log_prob(exhibit, z[:NUM_POINTS])
    assert expected.isfinite().all()
    torch.testing.assert_close(got[:NUM_POINTS], expected, rtol=1e-5 * rounding, atol=1e-8 * rounding)
    if exhibit.target.dim:
        (gradient,) = torch.autograd.grad(got[:NUM_POINTS].sum(), z, retain_graph=True)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), z)
        assert expected_gradient.isfinite().all()
        size = expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=0.0, atol=1e-4 * rounding * size)


def test_rung(exhibit):
    # Every model runs as fast as it can, and only those that run point by point warn.
    assert exhibit.target.backend == exhibit.case.backend, exhibit.target._ladder.reason
    assert exhibit.warned == (exhibit.case.backend == "loop")


def test_most_models_are_vectorised():
    # The zoo is large, and few of its models look at their values.
    vectorised = [case for case in ZOO.values() if case.backend != "loop"]
    assert len(ZOO) >= 50 and len(vectorised) >= 45
    assert len(FOREIGN) >= 15 and ZOO.keys() >= FOREIGN


def test_constrained_values_are_in_their_supports(exhibit):
    # Draws have the shapes of a plain run of the model and lie where its distributions live.
    values = exhibit.target.constrain(exhibit.z)
    first = {name: value[0] for name, value in values.items()}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(exhibit.model, first)).get_trace(*exhibit.args, **exhibit.kwargs)
    continuous = {n for n, site in latents(trace).items() if not site["fn"].support.is_discrete}
    assert not continuous
    assert values.keys() == {site.name for site in exhibit.target.sites}
    for name, value in values.items():
        site = trace.nodes[name]
        assert value.shape == (BATCH_SIZE, *site["fn"].shape()), name
        assert site["fn"].support.check(value[0]).all(), name


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_evidence_is_exact(case):
    # Within three standard errors of closed forms, finite sums and quadrature, in single precision.
    model, args, kwargs = build(case)
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=250, num_chains=2, disable_progbar=True)
    osds.run(*args, **kwargs)
    exact = case.exact()
    assert abs(osds.log_evidence - exact) <= 3 * osds.log_evidence_se + 1e-6 + 1e-5 * abs(exact)
    assert osds.evidence.reliable, osds.evidence.reasons


def test_there_are_enough_exact_evidences():
    # Among them a switch above a latent, a moving support, missing rows, a chain, and nothing to sample at all.
    assert len(EXACT) >= 14
    kinds = {"discrete_parent", "dynamic_support", "missing_rows", "hidden_markov", "mixture", "discrete_only"}
    assert kinds <= {case.name for case in EXACT}
