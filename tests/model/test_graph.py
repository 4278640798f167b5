"""Recorded densities: scores against the formula, batches in blocks, and graphs that hold at other points."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_osds.model import ModelTarget
from pyro_osds.model.graph import BLOCK_SIZE, DensitiesWithScores, Graph, block_size, in_blocks, record, with_scores
from pyro_osds.runtime.recording.execution import TorchScript


def densities(z):
    """A Gaussian prior and a quartic likelihood of the first coordinate."""
    return -0.5 * z.square().sum(-1), -((z[:, 0] - 1) ** 4)


def scores(z):
    first = torch.zeros_like(z)
    first[:, 0] = -4 * (z[:, 0] - 1) ** 3

    return -z, first


def everything(z):
    return *densities(z), *scores(z)


def test_scores_are_those_of_the_formula(float64):
    # Both densities, both scores, and nothing that could be differentiated again.
    z = torch.randn(5, 3, requires_grad=True)
    got = with_scores(densities)(z)
    assert not any(part.requires_grad for part in got) and z.grad is None
    for part, expected in zip(got, everything(z.detach()), strict=True):
        torch.testing.assert_close(part, expected)


def test_scores_without_gradients_in_force(float64):
    # The caller's no_grad does not matter.
    z = torch.randn(5, 3)
    with torch.no_grad():
        got = with_scores(densities)(z)
    torch.testing.assert_close(got[2], -z)


def test_a_density_that_does_not_depend_on_the_points():
    # A constant has score zero: as a tensor without a graph, and as one whose graph is of something else.
    elsewhere = torch.ones((), requires_grad=True)
    z = torch.randn(4, 2)
    _, _, *got = with_scores(lambda z: (torch.full((len(z),), -2.0), elsewhere.expand(len(z))))(z)
    for score in got:
        assert torch.equal(score, torch.zeros(4, 2))
    assert elsewhere.grad is None


def test_the_same_subexpression_in_both_densities(float64):
    # The second score needs the graph that the first one went through.
    def shared(z):
        common = z.exp().sum(-1)
        return common, 2 * common

    z = torch.randn(4, 2)
    _, _, first, second = with_scores(shared)(z)
    torch.testing.assert_close(first, z.exp())
    torch.testing.assert_close(second, 2 * z.exp())


def graph_of(run):
    """A function that takes the place of a recorded one."""
    return Graph(run, BLOCK_SIZE, num_operations=1)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_batches_in_blocks(size):
    # Whole blocks only reach the graph; what comes back is the batch, in order.
    seen = []

    def run(z):
        seen.append(z.shape)
        assert not torch.is_grad_enabled()
        return z.sum(-1), 2 * z

    z = torch.randn(size, 3)
    total, double = in_blocks(graph_of(run), z)
    assert seen == [(BLOCK_SIZE, 3)] * math.ceil(size / BLOCK_SIZE) and BLOCK_SIZE == 256
    assert torch.equal(total, z.sum(-1)) and torch.equal(double, 2 * z)


@pytest.mark.parametrize("function", [densities, with_scores(densities)], ids=["densities", "with scores"])
def test_a_record_is_the_function(float64, function, replay):
    # At points that it was not recorded at, and without running the function again.
    calls = []

    def counted(z):
        calls.append(len(z))
        return function(z)

    graph = record(counted, torch.randn(BLOCK_SIZE, 3))
    assert calls == [BLOCK_SIZE]
    z = 3 * torch.randn(BLOCK_SIZE, 3)
    for got, expected in zip(graph.run(z), function(z), strict=True):
        torch.testing.assert_close(got, expected)
    assert calls == [BLOCK_SIZE]


def test_a_record_holds_constants(float64, replay):
    # Data are those of the recording: another tensor of the same name later is not seen.
    data = {"y": torch.tensor(2.0)}
    graph = record(lambda z: (z[:, 0] * data["y"], z[:, 0] + data["y"]), torch.randn(BLOCK_SIZE, 1))
    data["y"] = torch.tensor(100.0)
    z = torch.randn(BLOCK_SIZE, 1)
    product, total = graph.run(z)
    torch.testing.assert_close(product, 2 * z[:, 0])
    torch.testing.assert_close(total, z[:, 0] + 2)


def test_a_record_of_a_callable_object(float64, replay):
    # Modules and partial functions are callables too.
    class Density:
        def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return densities(z)

    graph = record(Density(), torch.randn(BLOCK_SIZE, 2))
    z = torch.randn(BLOCK_SIZE, 2)
    torch.testing.assert_close(graph.run(z)[1], densities(z)[1])


def test_a_look_at_the_values_cannot_be_recorded():
    # The branch taken at one block would be taken at all of them.
    with pytest.raises(RuntimeError):
        record(lambda z: (z.sum(-1), z.sum(-1) if z[0, 0] > 0 else z[:, 0]), torch.randn(BLOCK_SIZE, 2))


def by_graph(z):
    """Densities of which a graph knows the scores."""
    return DensitiesWithScores.apply(z, graph_of(everything), densities)


@pytest.mark.parametrize(("first", "second"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-2.0, 0.5)])
def test_gradients_are_the_scores(float64, first, second):
    # Of either density alone, of both, and of a weighted sum.
    z = torch.randn(300, 2, requires_grad=True)
    log_prior, log_likelihood = by_graph(z)
    for got, expected in zip((log_prior, log_likelihood), densities(z.detach()), strict=True):
        torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad((first * log_prior + second * log_likelihood).sum(), z)
    prior_score, likelihood_score = scores(z.detach())
    torch.testing.assert_close(gradient, first * prior_score + second * likelihood_score)


def test_gradient_of_one_density_only(float64):
    # The other one is not in the loss at all; and each point has a weight of its own.
    z = torch.randn(300, 2, requires_grad=True)
    weight = torch.randn(300)
    for i in (0, 1):
        (gradient,) = torch.autograd.grad((weight * by_graph(z)[i]).sum(), z)
        torch.testing.assert_close(gradient, weight[:, None] * scores(z.detach())[i])


def test_gradients_take_no_second_evaluation():
    # The scores are there; the densities in Python are for second derivatives only.
    def never(z):
        raise AssertionError("not needed")

    z = torch.randn(3, 2, requires_grad=True)
    log_prior, _ = DensitiesWithScores.apply(z, graph_of(everything), never)
    torch.testing.assert_close(torch.autograd.grad(log_prior.sum(), z)[0], -z.detach())


def infinite_likelihood(z):
    return z.sum(-1), z.sum(-1), torch.ones_like(z), torch.full_like(z, math.inf)


def test_an_infinite_score_that_nobody_asked_for():
    # Zero times infinity is zero here, for each point and each density; what is asked for stays infinite.
    z = torch.zeros(3, 2, requires_grad=True)
    log_prior, log_likelihood = DensitiesWithScores.apply(z, graph_of(infinite_likelihood), densities)
    (gradient,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
    assert torch.equal(gradient, torch.ones(3, 2))
    (gradient,) = torch.autograd.grad((log_prior + log_likelihood * torch.tensor([0.0, 1.0, 0.0])).sum(), z)
    assert gradient.tolist() == [[1.0, 1.0], [math.inf, math.inf], [1.0, 1.0]]


@pytest.mark.parametrize("index", [0, 1])
def test_second_derivatives_are_those_of_the_densities(float64, index):
    # Scores out of a graph are constants to autograd, so they are not used; nor are second derivatives lost.
    z = torch.randn(5, 2, requires_grad=True)
    weight, direction = torch.randn(5, requires_grad=True), torch.randn(5, 2)
    results = []
    for function in (by_graph, densities):
        (gradient,) = torch.autograd.grad((weight * function(z)[index]).sum(), z, create_graph=True)
        results.append((gradient.detach(), *torch.autograd.grad((gradient * direction).sum(), (z, weight))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(results[0][0], weight.detach()[:, None] * scores(z.detach())[index])


def test_second_derivatives_beside_a_constant(float64):
    # A potential function has no prior: one of the two densities may be a constant, or both.
    z = torch.randn(5, 2, requires_grad=True)

    def flat_prior(z):
        return torch.zeros(len(z)), densities(z)[1]

    def graph(z):
        return *flat_prior(z), torch.zeros_like(z), scores(z)[1]

    log_prior, log_likelihood = DensitiesWithScores.apply(z, graph_of(graph), flat_prior)
    (gradient,) = torch.autograd.grad((log_prior + log_likelihood).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient[:, 0].sum(), z)
    torch.testing.assert_close(curvature[:, 0], -12 * (z.detach()[:, 0] - 1) ** 2)


def test_graphs_are_frozen():
    # Replayed without Python between the operations.
    graph = record(with_scores(lambda z: (-z.square().sum(-1), z.exp().sum(-1))), torch.zeros(BLOCK_SIZE, 2))
    assert isinstance(graph.run, TorchScript)


def test_both_ways_give_the_same_bits(monkeypatch):
    # Values and scores of a density with linear algebra, gathers and constants of its own.
    y = torch.randn(5)

    def density(z):
        scale = torch.eye(3) + z[:, :, None] * z[:, None, :]
        value = torch.linalg.cholesky(scale).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return value, torch.special.gammaln(z.exp()[:, torch.tensor([0, 2])] + y.square().sum()).logsumexp(-1)

    block, z = torch.randn(BLOCK_SIZE, 3), torch.randn(BLOCK_SIZE, 3)
    results = []
    for way in ("torchscript", "interpreter"):
        monkeypatch.setenv("PYRO_OSDS_REPLAY", way)
        graph = record(with_scores(density), block)
        results.append(graph.run(z))
        assert type(graph.run).__name__.lower() == way
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("dim", "num_terms", "expected"),
    [(100, 500, 256), (512, 1, 256), (1600, 1600, 64), (20, 100_000, 16), (20, 4_000, 32), (1, 10**9, 16)],
)
def test_blocks_are_smaller_where_the_density_is_large(dim, num_terms, expected):
    # A megabyte of double precision in a tensor, or 16 points.
    assert block_size(dim, num_terms) == expected


def test_many_small_operations_go_through_large_blocks_at_once():
    # A recursion of many steps: one graph of 512 points, with the densities of single runs.
    def model():
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        state = rate[0]
        for _ in range(600):
            state = 0.9 * state + 0.1 * torch.sin(rate[1] * state)
        pyro.sample("y", dist.Normal(state, 1.0), obs=torch.tensor(0.25))

    target = ModelTarget(model)
    z = torch.randn(700, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target.log_prob(z).sum().backward()
    state, (first, rate) = z[:, 0], z.T
    for _ in range(600):
        state = 0.9 * state + 0.1 * torch.sin(rate * state)
    total = -0.5 * (first**2 + rate**2 + (0.25 - state) ** 2) - 1.5 * math.log(2 * math.pi)
    assert torch.allclose(target.log_prob(z), total, rtol=0, atol=1e-9)
    assert torch.allclose(z.grad, torch.autograd.grad(total.sum(), z)[0], rtol=1e-8, atol=1e-10)
    assert {size for _, size in target._ladder._graphs} == {512}
    # A few points go through the graph, too: the same bits as in a batch.
    with torch.no_grad():
        target.log_prob(z)
        assert torch.equal(target.log_prob(z[:3]), target.log_prob(z)[:3])
    few = z[:3].detach().requires_grad_()
    target.log_prob(few).sum().backward()
    assert torch.equal(few.grad, z.grad[:3])
