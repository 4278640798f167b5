"""Target: batches in, one log density per point out, and no surprise from values that are not finite."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import log_gamma

from pyro_osds.model import ModelTarget
from pyro_osds.target import FunctionTarget, Target, finite_log_prob, in_chunks, log_prob_and_score


def test_both_targets_follow_the_protocol():
    # A function and a model look the same from the modules below.
    targets = [FunctionTarget(log_gamma, 2), ModelTarget(lambda: pyro.sample("x", dist.Normal(0.0, 1.0).expand([2])))]
    for target in targets:
        assert isinstance(target, Target)
        assert target.dim == 2 and target.dtype == torch.float64 and target.device.type == "cpu"
        assert target.draw_dtype == torch.float32 and target.is_double
        log_prob = target.log_prob(torch.zeros(3, 2))
        assert log_prob.shape == (3,) and log_prob.dtype == torch.float64


def test_an_object_without_log_prob_is_no_target():
    # The protocol refuses something.
    assert not isinstance(object(), Target)


def test_function_target_passes_values_through():
    # The density is the function, in the dtype asked for, and draws are the single site z.
    target = FunctionTarget(log_gamma, 3, dtype=torch.float64)
    z = torch.randn(4, 3, dtype=torch.float64)
    assert target.dtype == target.draw_dtype == torch.float64
    assert torch.equal(target.log_prob(z), log_gamma(z))
    assert target.constrain(z)["z"] is z
    # Written in single precision, it is the same function of points in double, and draws come back in single.
    target = FunctionTarget(log_gamma, 3)
    assert torch.equal(target.log_prob(z), log_gamma(z)) and target.draw_dtype == torch.float32
    assert torch.equal(target.constrain(z)["z"], z.float())


@pytest.mark.parametrize("dim", [0, -1, 2.0, "2"])
def test_dim_must_be_a_positive_integer(dim):
    # Anything else is named in the error.
    with pytest.raises(ValueError, match=f"dim must be a positive integer, got {dim!r}"):
        FunctionTarget(log_gamma, dim)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda z: z, r"\(2, 3\)"),
        (lambda z: z.sum(), r"\(\)"),
        (lambda z: z.sum(-1, keepdim=True), r"\(2, 1\)"),
        (lambda z: 0.0, "float"),
    ],
)
def test_a_function_of_the_wrong_shape_is_refused(function, got):
    # The shape that was returned is in the error.
    with pytest.raises(ValueError, match=rf"must map \(B, 3\) to \(B,\).*returned {got}"):
        FunctionTarget(function, 3)


def test_finite_log_prob_keeps_numbers_and_minus_infinity():
    # nan and +inf become -inf, everything else stays, in any shape.
    values = torch.tensor([[1.5, -math.inf], [math.nan, math.inf]])
    assert finite_log_prob(values).tolist() == [[1.5, -math.inf], [-math.inf, -math.inf]]


def test_score_is_the_gradient(float64):
    # d/dz of a z - exp(z) is a - exp(z), at each point of a batch on its own.
    z = torch.randn(6, 3)
    log_prob, score = log_prob_and_score(log_gamma, z)
    torch.testing.assert_close(log_prob, log_gamma(z))
    torch.testing.assert_close(score, 1.5 - z.exp())
    assert not log_prob.requires_grad and not score.requires_grad


def test_score_is_zero_where_the_density_is_not_a_number():
    # One bad point is impossible and does not move; its neighbours do not notice.
    z = torch.tensor([[4.0], [-1.0], [1.0]])
    log_prob, score = log_prob_and_score(lambda z: z.sqrt().sum(-1), z)
    assert log_prob.tolist() == [2.0, -math.inf, 1.0]
    assert score[:, 0].tolist() == [0.25, 0.0, 0.5]


def test_score_is_found_without_gradients_switched_on():
    # Sampling runs under no_grad; the score is there all the same.
    with torch.no_grad():
        _, score = log_prob_and_score(lambda z: -0.5 * z.square().sum(-1), torch.tensor([[2.0]]))
    assert score.item() == -2.0


def test_score_leaves_other_gradients_alone():
    # A weight inside the density keeps the gradient that its owner put there.
    weight = torch.nn.Parameter(torch.tensor(2.0))
    weight.grad = torch.tensor(7.0)
    log_prob_and_score(lambda z: weight * z.sum(-1), torch.ones(3, 1))
    assert weight.grad.item() == 7.0


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_make_no_difference(chunk_size):
    # The result is the unchunked one and no chunk is larger than asked for.
    z, sizes = torch.randn(7, 2), []

    def function(chunk):
        sizes.append(len(chunk))
        return chunk.square().sum(-1)

    torch.testing.assert_close(in_chunks(function, z, chunk_size), z.square().sum(-1))
    assert max(sizes) <= chunk_size and sum(sizes) == 7


def test_a_density_without_a_gradient_has_score_zero(float64):
    # Constant, or cut out of a plateau by comparisons: values as they are, nothing to follow, no error.
    z = torch.tensor([[0.5], [2.0]])
    for function, values in [
        (lambda z: torch.zeros(len(z)), [0.0, 0.0]),
        (lambda z: torch.where(z[:, 0] < 1.0, 0.0, -math.inf), [0.0, -math.inf]),
        (lambda z: (z[:, 0] < 1.0).double().log(), [0.0, -math.inf]),
    ]:
        log_prob, score = log_prob_and_score(function, z)
        assert log_prob.tolist() == values and torch.equal(score, torch.zeros(2, 1))


def test_far_points_do_not_spoil_a_batch():
    # A funnel whose scale underflows at one point: nan there, the others as they are, validation as it was.
    def funnel(z):
        return dist.Normal(0.0, 3.0).log_prob(z[:, 0]) + dist.Normal(0.0, (z[:, 0] / 2).exp()).log_prob(z[:, 1])

    target = FunctionTarget(funnel, 2)
    log_prob = target.log_prob(torch.tensor([[0.0, 0.0], [-1e4, 1.0], [1.0, 0.0]]))
    assert log_prob[[0, 2]].isfinite().all() and not log_prob[1].isfinite()
    with pytest.raises(ValueError, match="GreaterThan"):
        dist.Normal(0.0, torch.tensor(-1.0))
