"""The backends from one point to a batch: which one is used, that all agree with the loop, and what happens if not."""

import math
import types
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.special import safe_log

from pyro_osds.model import ModelTarget
from pyro_osds.model.agreement import agree, check_points
from pyro_osds.model.batching import Ladder, VectorizationWarning
from pyro_osds.model.graph import BLOCK_SIZE, MIN_BATCH, with_scores
from pyro_osds.runtime.clock import OutOfTimeError

SIZES = [1, MIN_BATCH - 1, MIN_BATCH, BLOCK_SIZE + 1]


def origin(dim):
    """Points are in double precision, whatever the density is written in."""
    return torch.zeros(dim, dtype=torch.float64)


def points(size, dim, **options):
    return torch.randn(size, dim, dtype=torch.float64, **options)


def quartic(row):
    """Not symmetric, so that mistakes in sign and order show."""
    return -0.5 * row.square().sum(), -((row[0] - 1) ** 4) + row[1] * row[0]


def quartic_batch(z):
    return -0.5 * z.square().sum(-1), -((z[:, 0] - 1) ** 4) + z[:, 1] * z[:, 0]


def branching(row):
    if row[0] > 0:
        return row.sum(), 2 * row.sum()
    return row.sum(), row.sum()


def in_place(row):
    """Works in batches only if new tensors belong to them."""
    weights = torch.zeros(2)
    weights[0] = row[0]

    return row.sum(), -weights.square().sum()


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def climb(single, example=None, **options):
    """A ladder that stays silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VectorizationWarning)
        return Ladder(single, origin(2) if example is None else example, **options)


# ---- options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectorize": "always"}, r"vectorize must be one of \('auto', 'vmap', 'loop'\), got 'always'"),
        ({"vectorize": True}, "vectorize must be one of .* got True"),
        ({"vectorize": None}, "vectorize must be one of .* got None"),
        ({"capture": "no"}, r"capture must be one of \('auto', False\), got 'no'"),
        ({"capture": True}, "capture must be one of .* got True"),
        ({"capture": 0}, "capture must be one of .* got 0"),
    ],
)
def test_unknown_options(options, message):
    # Named, with what is allowed and what was got; zero is not False here.
    with pytest.raises(ValueError, match=message):
        Ladder(quartic, origin(2), **options)


def test_rungs_by_option():
    # The fastest unless another one is asked for, and no warning at any of them.
    assert Ladder(quartic, origin(2)).backend == "captured"
    assert Ladder(quartic, origin(2), vectorize="vmap").backend == "captured"
    assert Ladder(quartic, origin(2), capture=False).backend == "vmap"
    assert Ladder(quartic, origin(2), vectorize="vmap", capture=False).backend == "vmap"
    assert Ladder(quartic, origin(2), vectorize="loop").backend == "loop"


def test_the_loop_by_request_is_silent():
    # A model that cannot be evaluated in batches, and a user who knows it.
    ladder = Ladder(branching, origin(2), vectorize="loop")
    assert ladder.backend == "loop" and not ladder.vectorized and ladder.reason == ""


def test_another_density_with_the_same_options():
    # Its own density and its own backend, the options of the first.
    for options, backend in (({"capture": False}, "vmap"), ({"vectorize": "loop"}, "loop"), ({}, "captured")):
        ladder = Ladder(quartic, origin(2), **options)
        other = ladder.of(in_place)
        assert other.backend == backend and other.single is in_place and ladder.single is quartic
        z = points(3, 2)
        torch.testing.assert_close(other.densities(z)[1], -z[:, 0].square())
        torch.testing.assert_close(ladder.densities(z), quartic_batch(z))
    with pytest.raises(ValueError, match="vectorize='vmap' does not work"):
        Ladder(quartic, origin(2), vectorize="vmap").of(branching)


# ---- backends agree ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"capture": False}, {"vectorize": "loop"}], ids=["captured", "vmap", "loop"])
def test_densities_and_gradients(float64, options, size):
    # The formula, at batches below and above the size from which graphs are used.
    ladder = Ladder(quartic, origin(2), **options)
    z = points(size, 2, requires_grad=True)
    expected = quartic_batch(z)
    gradients = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in expected]
    assert_same(with_scores(ladder.densities)(z), (*expected, *gradients))
    with torch.no_grad():
        assert_same(ladder.densities(z), expected)


@pytest.mark.parametrize("single", [quartic, in_place], ids=["quartic", "in place"])
def test_small_and_large_batches_agree(single):
    # The same points in one batch and in several.
    ladder = Ladder(single, origin(2))
    assert ladder.backend == "captured"
    z = points(4 * MIN_BATCH, 2)
    pieces = [with_scores(ladder.densities)(piece) for piece in z.split(MIN_BATCH // 2)]
    assert_same(with_scores(ladder.densities)(z), [torch.cat(parts) for parts in zip(*pieces, strict=True)])


@pytest.mark.parametrize("capture", ["auto", False])
def test_a_large_density_is_evaluated_in_small_blocks(capture):
    # Values, gradients and second derivatives of the whole, with no more than 16 points of it at once.
    sizes = []

    def single(row):
        return row.sum(), quartic(row)[1]

    ladder = Ladder(single, origin(2), capture=capture, block_size=16)
    whole = Ladder(single, origin(2), capture=False)
    run = ladder.map
    ladder.map = lambda read, z: (sizes.append(len(z)), run(read, z))[1]
    z = points(90, 2)
    assert_same(with_scores(ladder.densities)(z), with_scores(whole.densities)(z))
    assert_same(ladder.densities(z), whole.densities(z))
    assert all(size <= 16 for size in sizes) and (capture == "auto" or len(sizes) == 12)
    # The other coordinates of the points know nothing of it.
    assert ladder.of(single)._block_size == 16


@pytest.mark.parametrize("size", [MIN_BATCH // 2, MIN_BATCH])
@pytest.mark.parametrize("flat", [False, True], ids=["prior", "flat prior"])
def test_second_derivatives(float64, flat, size):
    # Through batches of any size: those of the formula, where the prior is a constant too.
    def single(row):
        return (row.new_zeros(()) if flat else quartic(row)[0]), quartic(row)[1]

    def curvature(log_prob):
        (score,) = torch.autograd.grad(log_prob.sum(), z, create_graph=True)
        return torch.autograd.grad((score * weight).sum(), z)[0]

    z, weight = points(size, 2, requires_grad=True), points(size, 2)
    ladder = Ladder(single, origin(2))
    expected = quartic_batch(z)[1] if flat else sum(quartic_batch(z))
    torch.testing.assert_close(curvature(sum(ladder.densities(z))), curvature(expected))


def test_graphs_are_made_once():
    # Python runs for graphs of values and of scores, of small batches and of large ones, and not again for any other.
    calls = []

    def single(row):
        calls.append(1)
        return quartic(row)

    ladder = Ladder(single, origin(2))
    for size in (MIN_BATCH, BLOCK_SIZE + 1):
        ladder.densities(points(size, 2))
        with_scores(ladder.densities)(points(size, 2))
    made = len(calls)
    for size in (*SIZES[2:], 4 * BLOCK_SIZE):
        ladder.densities(points(size, 2))
        with_scores(ladder.densities)(points(size, 2))
    assert len(calls) == made
    ladder.densities(points(MIN_BATCH - 1, 2))
    assert len(calls) == made + 1


def test_one_graph_for_many_operations():
    # Where recording takes long, large batches go through the graph of small ones.
    calls = []

    def single(row):
        calls.append(1)
        total = row.sum()
        for _ in range(1100):
            total = total.sin() + 1.0
        return total, total

    ladder = Ladder(single, origin(1))
    with_scores(ladder.densities)(points(MIN_BATCH, 1))
    made = len(calls)
    with_scores(ladder.densities)(points(4 * BLOCK_SIZE, 1))
    assert len(calls) == made and ladder.backend == "captured"


def test_another_type_than_that_of_the_example():
    # Graphs are of one type; points of another are evaluated without, in double precision too.
    ladder = Ladder(quartic, origin(2))
    assert ladder.backend == "captured"
    z = points(MIN_BATCH, 2).float()
    got, expected = ladder.densities(z), quartic_batch(z.double())
    assert got[0].dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_map_reads_mappings_and_tuples():
    # Any function of one point, on each backend, with everything stacked.
    z = points(3, 2)
    for options in ({}, {"vectorize": "loop"}):
        ladder = Ladder(quartic, origin(2), **options)
        by_name = ladder.map(lambda row: {"double": 2 * row, "sum": row.sum()}, z)
        assert torch.equal(by_name["double"], 2 * z) and torch.equal(by_name["sum"], z.sum(-1))
        double, total = ladder.map(lambda row: (2 * row, row.sum()), z)
        assert torch.equal(double, 2 * z) and torch.equal(total, z.sum(-1))
        assert ladder.map(lambda row: {}, z) == {}


@pytest.mark.parametrize("vectorize", ["auto", "loop"])
def test_no_coordinates(vectorize):
    # One evaluation stands for all points, and there is nothing to capture.
    calls = []

    def single(row):
        calls.append(1)
        return row.new_tensor(-2.0), row.new_tensor(3.0)

    ladder = Ladder(single, origin(0), vectorize=vectorize)
    before = len(calls)
    log_prior, log_likelihood = ladder.densities(points(300, 0))
    assert len(calls) == before + 1 and ladder.backend != "captured"
    assert (log_prior == -2.0).all() and (log_likelihood == 3.0).all()
    assert log_prior.shape == log_likelihood.shape == (300,) and log_prior.dtype == torch.float64


def test_a_constant_density_has_score_zero():
    # The prior may be flat.
    ladder = Ladder(lambda row: (row.new_zeros(()), -row.square().sum()), origin(2))
    assert ladder.backend == "captured"
    for size in SIZES:
        log_prior, _, gradient, _ = with_scores(ladder.densities)(points(size, 2))
        assert not log_prior.any() and not gradient.any()


# ---- falling back ----


def test_a_branch_names_its_line():
    # The reason, the line and the file; values are right on both sides of the branch.
    with pytest.warns(VectorizationWarning, match=r"`if row\[0\] > 0:` \(line \d+ of test_batching\.py\)"):
        ladder = Ladder(branching, origin(2))
    assert ladder.backend == "loop" and "failed under torch.func.vmap" in ladder.reason
    z = torch.tensor([[1.0, 0.5], [-1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(ladder.densities(z)[1], z.new_tensor([3.0, -0.5]))


def test_a_branch_where_vmap_is_asked_for():
    # An error instead of a warning, with the line and the cure.
    message = r"vectorize='vmap' does not work .*`if row\[0\] > 0:` \(line \d+ of test_batching\.py\).*vectorize='auto'"
    with pytest.raises(ValueError, match=message):
        Ladder(branching, origin(2), vectorize="vmap")


def test_vmap_that_is_wrong():
    # A density that is another one in batches is evaluated point by point; neither values nor gradients may differ.
    def wrong_value(row):
        return row.sum(), row.square().sum() + (1.0 if torch._C._functorch.is_batchedtensor(row) else 0.0)

    def wrong_gradient(row):
        factor = row.detach() if torch._C._functorch.is_batchedtensor(row) else row
        return row.sum(), (factor * row).sum()

    for single in (wrong_value, wrong_gradient):
        with pytest.warns(VectorizationWarning, match="differs from single runs"):
            ladder = Ladder(single, origin(2))
        z = points(3, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(ladder.densities(z)[1].sum(), z)
        torch.testing.assert_close(gradient, 2 * z)


@pytest.mark.parametrize("first", ["backend", "scores", "values"])
def test_a_graph_that_is_wrong(first):
    # It counts its calls, and the one that is recorded is another one: vmap stays, and is right.
    calls = [0]

    def single(row):
        calls[0] += 1
        return row.sum(), -row.square().sum() * (2.0 if calls[0] == recorded else 1.0)

    recorded = 0
    ladder = Ladder(single, origin(2))
    recorded = calls[0] + 1
    z = points(MIN_BATCH, 2)
    if first == "scores":
        z.requires_grad_()
    if first == "backend":
        assert ladder.backend == "vmap"
    for _ in range(2):
        torch.testing.assert_close(ladder.densities(z)[1], -z.square().sum(-1))
    assert ladder.backend == "vmap" and ladder.reason == "the captured graph differs from single runs"
    assert calls[0] > recorded


def test_a_density_that_cannot_be_captured():
    # A change in place of what was there before is fine in batches, not in a graph; the line is named.
    calls = torch.zeros((), dtype=torch.float64)

    def single(row):
        calls.add_(1)
        return row.sum(), row.sum() * 5

    ladder = Ladder(single, origin(2))
    assert ladder.backend == "vmap" and ladder.vectorized
    assert "`calls.add_(1)` (line " in ladder.reason
    assert "of test_batching.py) could not be captured" in ladder.reason
    z = points(MIN_BATCH, 2)
    torch.testing.assert_close(ladder.densities(z)[1], 5 * z.sum(-1))


@pytest.mark.parametrize("cut", [KeyboardInterrupt, OutOfTimeError])
def test_a_capture_that_was_cut_short_is_made_later(cut, monkeypatch):
    # After Ctrl-C, or the end of the time, the rest ran by vmap: slower, and other bits than had nobody stopped it.
    def cut_short(function, block):
        raise cut

    ladder, z = Ladder(quartic, origin(2)), points(BLOCK_SIZE, 2)
    with monkeypatch.context() as patch, pytest.raises(cut):
        patch.setattr(ladder, "record", cut_short)
        ladder.densities(z)
    assert_same(ladder.densities(z), quartic_batch(z))
    assert ladder.backend == "captured" and not ladder.reason


def test_numbers_out_of_constants_can_be_captured():
    # They are the same for all points and for all batches.
    constant = torch.tensor([2.0, 3.0])

    def single(row):
        factor = constant.sum().item() if constant[0] > 0 else 0.0
        return row.sum(), sum(row[i.item()] * factor for i in torch.arange(2))

    ladder = Ladder(single, origin(2))
    assert ladder.backend == "captured"
    z = points(MIN_BATCH, 2)
    torch.testing.assert_close(ladder.densities(z)[1], 5 * z.sum(-1))


def test_new_tensors_join_the_batch_where_that_helps():
    # The second try of vmap, unnoticed.
    ladder = Ladder(in_place, origin(2), capture=False)
    assert ladder.backend == "vmap"
    z = points(5, 2)
    torch.testing.assert_close(ladder.densities(z)[1], -z[:, 0].square())


# ---- points that fail ----


def singular(row):
    """Raises "singular" at the origin alone."""
    matrix = torch.diag(torch.stack([row.square().sum(), row.square().sum()]))

    return -row.square().sum(), -torch.linalg.solve(matrix, row.new_ones(2)).square().sum().log()


def singular_by_hand(row):
    """The same with an exception of the user's own, which only a single run can raise."""
    if row.square().sum() == 0:
        raise RuntimeError("the matrix is singular")

    return singular(row)


@pytest.mark.parametrize("size", [4, MIN_BATCH])
@pytest.mark.parametrize(
    ("single", "options"),
    [(singular, {}), (singular, {"capture": False}), (singular, {"vectorize": "loop"}), (singular_by_hand, {})],
    ids=["captured", "vmap", "loop", "by hand"],
)
def test_a_singular_point_marks_itself_only(float64, single, options, size):
    # Its density is nan; the others keep values and gradients.
    ladder = climb(single, **options)
    z = points(size, 2)
    z[1] = 0.0
    log_prior, log_likelihood, *gradients = with_scores(ladder.densities)(z)
    others = torch.arange(size) != 1
    total = log_prior + log_likelihood
    assert torch.equal(total.isfinite(), others)
    radius = z[others].square().sum(-1)
    torch.testing.assert_close(log_prior[others], -radius)
    torch.testing.assert_close(log_likelihood[others], 2 * radius.log() - math.log(2.0))
    torch.testing.assert_close(gradients[0][others], -2 * z[others])
    torch.testing.assert_close(gradients[1][others], 4 * z[others] / radius[:, None])


def test_a_singular_check_point(float64):
    # The ladder is built even where single runs fail at some of the points that it compares.
    def single(row):
        matrix = torch.diag(torch.stack([row[0].clamp(min=0.0), torch.ones_like(row[0])]))
        return -row.square().sum(), torch.linalg.solve(matrix, row.new_ones(2)).sum().log() - row[0]

    assert (check_points(torch.zeros(2))[:, 0] < 0).any()
    ladder = climb(single)
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    log_prior, log_likelihood = ladder.densities(z)
    torch.testing.assert_close(log_likelihood[0], torch.tensor(2.0).log() - 1.0)
    assert not (log_prior + log_likelihood)[1].isfinite()


@pytest.mark.parametrize("vectorize", ["auto", "loop"])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("no such scale"), KeyError("x")])
def test_other_errors_propagate(error, vectorize):
    # They are mistakes, not points of no density: when the ladder is built, and later.
    def single(row):
        if broken:
            raise error
        return quartic(row)

    broken = True
    with pytest.raises(type(error), match=str(error.args[0])):
        Ladder(single, origin(2), vectorize=vectorize)
    broken = False
    ladder = Ladder(single, origin(2), vectorize=vectorize)
    broken = True
    with pytest.raises(type(error), match=str(error.args[0])):
        ladder.densities(points(3, 2))


@pytest.mark.parametrize("options", [{}, {"capture": False}, {"vectorize": "loop"}], ids=["captured", "vmap", "loop"])
def test_interruptions_propagate(options):
    # Ctrl-C stops at once, and leaves Pyro as it was: when the ladder is built, when a graph is made, and later.
    def single(row):
        if next(countdown, None) is None:
            raise KeyboardInterrupt
        return quartic(row)

    before = pyro.ops.special._SafeLog, pyro.distributions.is_validation_enabled()
    for num_calls in (0, 5):
        countdown = iter(range(num_calls))
        with pytest.raises(KeyboardInterrupt):
            Ladder(single, origin(2), **options)
            Ladder(single, origin(2), **options)
        assert (pyro.ops.special._SafeLog, pyro.distributions.is_validation_enabled()) == before
    countdown = iter(range(1000))
    ladder = Ladder(single, origin(2), **options)
    for size in (2, MIN_BATCH):
        countdown = iter(())
        with pytest.raises(KeyboardInterrupt):
            ladder.densities(points(size, 2))
        assert (pyro.ops.special._SafeLog, pyro.distributions.is_validation_enabled()) == before
    countdown = iter(range(1000))
    z = points(MIN_BATCH, 2)
    torch.testing.assert_close(ladder.densities(z), quartic_batch(z))


def test_pyro_is_prepared_and_put_back():
    # Its logarithm with a bounded gradient and its checks would both fail in a batch.
    def single(row):
        assert not pyro.distributions.is_validation_enabled()
        return row.sum(), safe_log(row.exp()).sum()

    before = pyro.ops.special._SafeLog
    with pyro.validation_enabled(True):
        ladder = Ladder(single, origin(2))
        assert ladder.backend == "captured" and pyro.distributions.is_validation_enabled()
        z = points(3, 2)
        torch.testing.assert_close(ladder.densities(z)[1], z.sum(-1))
        assert pyro.distributions.is_validation_enabled()
    assert pyro.ops.special._SafeLog is before


# ---- agreement ----


def test_check_points_leave_the_random_state_alone():
    # The same draws follow, with or without a ladder; all points differ, and the example is one of them.
    pyro.set_rng_seed(3)
    expected = torch.randn(4)
    pyro.set_rng_seed(3)
    example = torch.full((7,), 30.0, dtype=torch.float64)
    points = check_points(example)
    assert torch.equal(torch.randn(4), expected)
    assert points.shape[1:] == (7,) and points.dtype == torch.float64
    assert len(points.unique(dim=0)) == len(points) >= 5
    assert (points == example).all(1).any() and (points > 0).any() and (points < 0).any()


def test_agreement():
    # Up to rounding, for values and scores; infinities must be at the same points, and scores there do not count.
    values, score = torch.tensor([1.0, -1e4, -math.inf]), torch.tensor([[1.0], [100.0], [math.nan]])
    expected = (values, values, score, score)
    nan = torch.tensor([1.0, -1e4, math.nan])
    assert agree(expected, expected) and agree((nan, values, score, score), expected)
    assert agree((values, values), expected)
    assert not agree((values + torch.tensor([0.0, 30.0, 0.0]), values, score, score), expected)
    assert not agree((values, values, score, score + torch.tensor([[0.0], [1.0], [0.0]])), expected)
    assert not agree((values.clamp(min=-1e9), values.clamp(min=-1e9), score, score), expected)
    assert not agree((values, torch.full((3,), math.nan), score, score), expected)
    assert not agree((values, values, score, torch.full((3, 1), math.nan)), expected)


def test_a_solver_that_gives_up_at_a_point_gives_it_no_density():
    # Far out an equation may be too stiff for the package that solves it; the same error at every point is the model's.
    solve = types.ModuleType("solve")
    source = "def solve(x):\n    assert x < 3.0, 'underflow in dt'\n    return x\n"
    exec(compile(source, "/somewhere/site-packages/solve.py", "exec"), solve.__dict__)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        solve.solve(x.item())
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    with pytest.warns(VectorizationWarning):
        target = ModelTarget(model)
    log_prob = target.log_prob(torch.tensor([[0.0], [5.0]]))
    exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(log_prob[0], exact.double())
    assert log_prob[1].isnan()
