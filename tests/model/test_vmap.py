"""What the front-end answers in torch's place: the same in a single run, and right for each element of a batch."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.special import safe_log
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyro_osds.model.vmap import VmapCompat, vmappable_pyro

SINGULAR = torch.tensor([[1.0, 2.0], [2.0, 4.0]])


def compatible(function, batched=False):
    """The function as the ladder runs it."""

    def run(row):
        with VmapCompat(row if batched else None):
            return function(row)

    return run


def assert_same(function, x, batched=False):
    """Single runs, with and without the mode, and a batch of them have the same values and gradients."""
    x = x.clone().requires_grad_()
    run = compatible(function, batched)
    plain = torch.stack([function(row) for row in x])
    for got in (torch.stack([run(row) for row in x]), vmap(run)(x)):
        assert got.dtype == plain.dtype and got.shape == plain.shape
        torch.testing.assert_close(got, plain)
        gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (got, plain)]
        torch.testing.assert_close(*gradients)


# ---- linear algebra ----


def covariance(r):
    one = torch.ones_like(r)

    return torch.stack([torch.stack([one, r]), torch.stack([r, one])])


CHOLESKYS = {
    "torch.linalg.cholesky": torch.linalg.cholesky,
    "upper=True": lambda matrix: torch.linalg.cholesky(matrix, upper=True),
    "Tensor.cholesky": lambda matrix: matrix.cholesky(),
    "Tensor.cholesky(True)": lambda matrix: matrix.cholesky(True),
    "torch.cholesky": lambda matrix: torch.cholesky(matrix, upper=True),
}
INVERSES = {
    "torch.linalg.inv": torch.linalg.inv,
    "torch.inverse": torch.inverse,
    "Tensor.inverse": lambda matrix: matrix.inverse(),
}


def without_deprecations(function):
    """``torch.cholesky`` announces its end once in each process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


@pytest.mark.parametrize("function", CHOLESKYS.values(), ids=CHOLESKYS)
def test_cholesky(float64, function):
    # The factor where there is one.
    r = torch.tensor([0.5, -0.2, 0.9])
    without_deprecations(lambda: assert_same(lambda x: function(covariance(x)), r))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("function", CHOLESKYS.values(), ids=CHOLESKYS)
def test_cholesky_of_a_matrix_that_has_none(float64, function, batched):
    # Only its own element of the batch becomes nan, and all of it; the others are as without it.
    r = torch.tensor([0.5, 3.0, 0.9])
    run = compatible(lambda x: function(covariance(x)), batched)
    got = without_deprecations(lambda: vmap(run)(r))
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, False]
    expected = without_deprecations(lambda: torch.stack([function(covariance(x)) for x in r[[0, 2]]]))
    torch.testing.assert_close(got[[0, 2]], expected)
    assert without_deprecations(lambda: run(r[1])).isnan().all()


def test_gradients_beside_a_matrix_without_a_factor(float64):
    # Those of the other elements are what they are without it.
    def function(x):
        return torch.linalg.cholesky(covariance(x)).sum() + torch.linalg.inv(covariance(x * x)).sum()

    r = torch.tensor([0.5, 3.0, 0.9, 1.0], requires_grad=True)
    values = vmap(compatible(function))(r)
    assert values.isnan().tolist() == [False, True, False, True]
    (got,) = torch.autograd.grad(values.sum(), r)
    (expected,) = torch.autograd.grad(function(r[0]) + function(r[2]), r)
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])


def test_cholesky_of_a_stack_of_matrices():
    # Within one run too, each matrix answers for itself.
    stack = torch.stack([torch.eye(2), -torch.eye(2)])
    with VmapCompat():
        assert torch.linalg.cholesky(stack).isnan().flatten(1).any(1).tolist() == [False, True]


def test_cholesky_ex_tells_by_itself():
    # The variant with a flag is torch's own: no nan, and the flag is by element.
    def info(x):
        return torch.linalg.cholesky_ex(covariance(x)).info

    r = torch.tensor([0.5, 3.0])
    assert vmap(compatible(info))(r).tolist() == [0, 2]


@pytest.mark.parametrize("function", INVERSES.values(), ids=INVERSES)
def test_inverse(float64, function):
    # The inverse where there is one.
    assert_same(lambda x: function(covariance(x)), torch.tensor([0.5, -0.2, 3.0]))


@pytest.mark.parametrize("function", INVERSES.values(), ids=INVERSES)
def test_inverse_of_a_singular_matrix(float64, function):
    # Only its own element of the batch becomes nan.
    r = torch.tensor([0.5, 1.0, -0.3])
    got = vmap(compatible(lambda x: function(covariance(x))))(r)
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, False]
    torch.testing.assert_close(got[0], torch.linalg.inv(covariance(r[0])))
    with VmapCompat():
        assert function(SINGULAR.double()).isnan().all()


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_solutions(float64, shape):
    # Of vectors and of matrices; a singular matrix has none, and only at its own element.
    right = torch.randn(shape)

    def function(x):
        return torch.linalg.solve(covariance(x), right)

    assert_same(function, torch.tensor([0.5, -0.2, 3.0]))
    got = vmap(compatible(function))(torch.tensor([0.5, 1.0, 3.0]))
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, False]
    torch.testing.assert_close(got[2], function(torch.tensor(3.0)))


def test_solutions_for_stacks(float64):
    # Stacks of matrices, of right hand sides, of both; and from the right.
    stack = torch.stack([torch.eye(2), SINGULAR.double(), 2 * torch.eye(2)])
    with VmapCompat():
        for right in (torch.ones(3, 2), torch.ones(2, 4), torch.ones(3, 2, 4)):
            got = torch.linalg.solve(stack, right)
            assert got.isnan().flatten(1).all(1).tolist() == [False, True, False]
            assert not got[[0, 2]].isnan().any()
        assert torch.linalg.solve(2 * torch.eye(2), torch.ones(3, 2, 4)).eq(0.5).all()
        assert torch.linalg.solve(2 * torch.eye(2), torch.ones(3, 2), left=False).eq(0.5).all()


def test_arguments_by_name():
    # As torch names them.
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    with VmapCompat():
        factor = torch.linalg.cholesky(input=matrix)
        torch.testing.assert_close(factor @ factor.mT, matrix)
        torch.testing.assert_close(torch.linalg.inv(A=matrix) @ matrix, torch.eye(2))
        torch.testing.assert_close(torch.inverse(input=matrix) @ matrix, torch.eye(2))


# ---- masks ----


def written(mask, value):
    def function(x):
        y = x * 2
        y[mask(x)] = value(x)

        return y

    return function


MASKS = {
    "number": written(lambda x: x > 0, lambda x: 7.0),
    "0-d tensor": written(lambda x: x > 0, lambda x: torch.tensor(7.0)),
    "latent": written(lambda x: x > 0, lambda x: x.sum()),
    "constant mask": written(lambda x: torch.tensor([[True, False, True], [False, False, True]]), lambda x: x.sum()),
    "rows": written(lambda x: x[:, 0] > 0, lambda x: x[0, 1]),
    "constant rows": written(lambda x: torch.tensor([True, False]), lambda x: 3),
    "everything": written(lambda x: x.sum() > 0, lambda x: 3.0),
    "values by row": written(lambda x: torch.tensor([True, False]), lambda x: torch.ones(3)),
}


@pytest.mark.parametrize("function", MASKS.values(), ids=MASKS)
def test_boolean_mask_assignment(float64, function):
    # Scalars, 0-d tensors and latents; masks of the tensor's rank or a lower one; constant and by element.
    assert_same(function, torch.randn(5, 2, 3))


def test_mask_assignment_keeps_the_type():
    # Into integers, as torch rounds; into booleans; into a view of another tensor.
    with VmapCompat():
        count = torch.tensor([1, 2, 3])
        count[count > 1] = 7.9
        assert count.tolist() == [1, 7, 7] and count.dtype == torch.int64
        flag = torch.tensor([True, False])
        flag[torch.tensor([True, True])] = False
        assert flag.tolist() == [False, False]
        whole = torch.zeros(2, 2)
        whole[:, 0][torch.tensor([False, True])] = 5.0
        assert whole.tolist() == [[0.0, 0.0], [5.0, 0.0]]


def test_other_assignments_are_left_alone(float64):
    # Numbers, slices and index tensors.
    def function(x):
        y = x * 2
        y[0] = 1.0
        y[1:, 2] = x[0, 0]
        y[torch.tensor([1]), torch.tensor([0])] = 5.0

        return y

    assert_same(function, torch.randn(4, 2, 3))


# ---- tensors of tensors ----


def test_tensor_of_latents_keeps_gradients(float64):
    # Plain torch has the values but no gradients, and no batches.
    def function(x):
        return torch.tensor([[x[0], 1.5], [x[0] * x[1], 2]]).prod(-1)

    x = torch.randn(4, 2, requires_grad=True)
    expected = torch.stack([1.5 * x[:, 0], 2 * x[:, 0] * x[:, 1]], -1)
    run = compatible(function)
    for got in (vmap(run)(x), torch.stack([run(row) for row in x])):
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (got, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("function", [torch.as_tensor, lambda data: torch.empty(0).new_tensor(data)])
def test_other_tensors_of_latents_keep_gradients(function):
    # The same list by another function; a gradient of zero would be wrong and unnoticed.
    def run(x):
        with VmapCompat():
            return function([x[0], 2 * x[1]]).sum()

    x = torch.ones(2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = run(x)
    assert y.requires_grad
    assert torch.autograd.grad(y, x)[0].tolist() == [1.0, 2.0]


LISTS = [
    [1, torch.tensor(2.0)],
    [True, torch.tensor(2)],
    (torch.tensor(1.0, dtype=torch.float64), 2.0),
    [torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0)],
    [[torch.tensor(1), 2], [3, torch.tensor(4)]],
    [torch.tensor(True), False],
    [torch.tensor([1.0]), torch.tensor([2.0])],
    [torch.tensor([1.0]), 2.0],
]


@pytest.mark.parametrize("data", LISTS, ids=str)
def test_tensor_of_tensors_has_the_type_and_shape_of_torch(data):
    # Promotion of Python numbers and of other types; tensors of one element count as numbers.
    expected = torch.tensor(data)
    with VmapCompat():
        got = torch.tensor(data)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(got, expected)


def test_tensor_takes_its_options():
    # dtype and device, with tensors in the list or without.
    with VmapCompat():
        for data in ([1.0, 2.0], [torch.tensor(1.0), 2.0]):
            got = torch.tensor(data, dtype=torch.float64, device="cpu")
            assert got.dtype == torch.float64 and got.tolist() == [1.0, 2.0]
        assert torch.tensor([torch.tensor(1.0), 2.0], dtype=None).dtype == torch.float32
        assert torch.tensor(3).dtype == torch.int64


def test_tensor_options_in_a_batch():
    # Both options at elements of a batch.
    def function(x):
        return torch.tensor([x, 2.0], dtype=torch.float64, device=x.device)

    got = vmap(compatible(function))(torch.tensor([1.0, 3.0]))
    assert got.dtype == torch.float64 and got.tolist() == [[1.0, 2.0], [3.0, 2.0]]


def test_data():
    # Values without gradients, for one run and for many.
    def function(x):
        assert not x.data.requires_grad
        return x * x.data

    x = torch.tensor([2.0, 3.0], requires_grad=True)
    got = vmap(compatible(function))(x)
    assert got.tolist() == [4.0, 9.0]
    assert torch.autograd.grad(got.sum(), x)[0].tolist() == [2.0, 3.0]
    assert compatible(function)(x).tolist() == [4.0, 9.0]


# ---- checks ----


def test_distributions_that_check_their_arguments():
    # Outside of Pyro's reach, a check would look at all elements at once; each gets its own log density.
    def function(x):
        return dist.Normal(x, x.exp(), validate_args=True).log_prob(torch.tensor(0.5))

    assert_same(function, torch.randn(4))


def test_one_bad_argument_in_a_batch_raises_nothing():
    # A negative scale is nan at its own element, and no exception for all.
    def function(x):
        return dist.Normal(torch.zeros(()), x, validate_args=True).log_prob(torch.tensor(0.5))

    assert vmap(compatible(function))(torch.tensor([1.0, -1.0, 2.0])).isnan().tolist() == [False, True, False]


# ---- new tensors ----


FACTORIES = {
    "zeros": lambda x: torch.zeros(3),
    "zeros of a size": lambda x: torch.zeros((3,), dtype=torch.float64),
    "ones": lambda x: torch.ones(3),
    "eye": lambda x: torch.eye(3)[0],
    "full": lambda x: torch.full((3,), 2.5),
    "tensor": lambda x: torch.tensor([1.0, 2.0, 3.0]),
    "zeros_like": lambda x: torch.zeros_like(CONSTANT),
    "ones_like": lambda x: torch.ones_like(CONSTANT),
    "full_like": lambda x: torch.full_like(CONSTANT, 2.0),
    "clone": lambda x: CONSTANT.clone(),
    "torch.clone": lambda x: torch.clone(CONSTANT),
    "new_zeros": lambda x: CONSTANT.new_zeros(3),
    "new_ones": lambda x: CONSTANT.new_ones(3),
    "new_full": lambda x: CONSTANT.new_full((3,), 2.0),
    "new_tensor": lambda x: CONSTANT.new_tensor([1.0, 2.0, 3.0]),
}
CONSTANT = torch.tensor([0.5, 0.25, 0.125])


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_writing_into_new_tensors(factory):
    # A latent written into a tensor of constants; without a batch of its own it would fail.
    def function(x):
        y = factory(x)
        y[1] = x[0]
        y[2] += x[1]

        return y

    x = torch.randn(4, 2)
    assert_same(function, x, batched=True)
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(compatible(function))(x)


def test_empty_tensors_are_written_too():
    # All that is read has been written before.
    def function(x):
        y, like, new = torch.empty(2), torch.empty_like(x), x.new_empty(2)
        for tensor in (y, like, new):
            tensor[0], tensor[1] = x[1], x[0]

        return y + like + new

    assert_same(function, torch.randn(4, 2), batched=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool])
def test_new_tensors_keep_their_type_and_values(dtype):
    # Of any type, at a batch of any values: not even an infinite latent leaks into them.
    def function(x):
        return torch.ones(3, dtype=dtype), torch.eye(2, dtype=dtype), torch.zeros(2, dtype=dtype)

    x = torch.tensor([[1.0, 2.0], [torch.inf, torch.nan]])
    ones, eye, zeros = vmap(compatible(function, batched=True))(x)
    assert ones.dtype == eye.dtype == zeros.dtype == dtype
    for got, expected in zip((ones, eye, zeros), function(x), strict=True):
        assert torch.equal(got, expected.expand_as(got))


def test_flags_and_counts_written_in_place():
    # Integers and booleans hold results of comparisons of latents.
    def function(x):
        count, flag = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
        count[0] = (x > 0).sum()
        count[1] += 3
        flag[1] = x[0] > 0

        return count + flag

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [-1.0, -1.0]])
    assert vmap(compatible(function, batched=True))(x).tolist() == [[2, 4], [1, 3], [0, 3]]
    assert [compatible(function, batched=True)(row).tolist() for row in x] == [[2, 4], [1, 3], [0, 3]]


def test_constants_are_not_written_to():
    # Written is the copy, as without the mode.
    constant = torch.zeros(2)

    def function(x):
        y = constant.clone()
        y[0] = x

        return y

    vmap(compatible(function, batched=True))(torch.ones(3))
    assert constant.tolist() == [0.0, 0.0]


# ---- graphs ----


def test_constants_can_be_read():
    # As numbers, lists, conditions and indices, in a batch as in a single run; the values of latents cannot.
    constant = torch.tensor([1.0, 2.0])

    def function(x):
        first, second = constant
        factor = constant.tolist()[1] * float(first) * int(second) if constant.sum() > 0 else 0.0
        return x[torch.tensor(1)] * factor + [x[0], x[1]][torch.tensor(0)]

    assert_same(function, torch.randn(3, 2))
    for read in (torch.Tensor.item, float, bool, torch.Tensor.tolist):
        with pytest.raises(RuntimeError):
            vmap(compatible(lambda x, read=read: torch.ones(()) * read(x)))(torch.ones(3))


def test_constants_can_be_read_beside_new_tensors_of_the_batch():
    # Data that nobody has touched, and whole numbers.
    data, rows = torch.tensor([1.0, 2.0]), torch.tensor([1, 0])

    def function(x):
        y = torch.zeros(2)
        for i in rows:
            y[i.item()] = x[i] * data.tolist()[i]

        return y * float((rows + 1).sum())

    assert_same(function, torch.randn(3, 2), batched=True)


def test_arange_is_a_constant_of_a_graph():
    # Plates read their indices as Python numbers; the graph holds for other points.
    def function(x):
        return sum(x[i.item()] * (i + 1) for i in torch.arange(3))

    x, other = torch.randn(3), torch.randn(3)
    graph = make_fx(compatible(function))(x)
    torch.testing.assert_close(graph(other), other[0] + 2 * other[1] + 3 * other[2])
    with VmapCompat():
        assert torch.arange(1.0, 2.0, 0.5).tolist() == [1.0, 1.5]


# ---- binary cross entropy ----

LOGITS = torch.tensor([-200.0, -30.0, -1.5, 0.0, 0.7, 40.0, 200.0], dtype=torch.float64)
BCE = {
    "none": {"reduction": "none"},
    "mean": {},
    "sum": {"reduction": "sum"},
    "weight": {"reduction": "none", "weight": torch.arange(7.0, dtype=torch.float64)},
    "pos_weight": {"reduction": "none", "pos_weight": torch.full((7,), 3.0, dtype=torch.float64)},
    "all": {"reduction": "mean", "weight": torch.arange(7.0, dtype=torch.float64), "pos_weight": torch.tensor(2.0)},
}


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("options", BCE.values(), ids=BCE)
def test_binary_cross_entropy(options, target):
    # Torch's values and gradients, in the tails too, and with everything that can be passed along.
    def function(logits):
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), **options)

    logits = LOGITS.clone().requires_grad_()
    expected = function(logits)
    for got in (compatible(function)(logits), vmap(compatible(function))(logits[None])[0]):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(y.sum(), logits, retain_graph=True)[0] for y in (got, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_binary_cross_entropy_refuses_what_torch_refuses():
    # Logits (2, 1) and targets (2,) are a mistake, not a table of all pairs.
    with VmapCompat(), pytest.raises(ValueError, match="Target size"):
        functional.binary_cross_entropy_with_logits(torch.zeros(2, 1), torch.zeros(2), reduction="none")


def test_bernoulli_has_its_density(float64):
    # The distribution that it is for, by its logits and by its probabilities.
    value = torch.tensor([0.0, 1.0])
    assert_same(lambda x: dist.Bernoulli(logits=x).log_prob(value), 5 * torch.randn(4, 2))
    assert_same(lambda x: dist.Bernoulli(probs=x.sigmoid()).log_prob(value), torch.randn(4, 2))


# ---- what vmap does one point after the other ----


def test_log_of_the_normal_distribution_function():
    # Values and gradients, in both tails and where the two formulas meet.
    x = torch.tensor([-200.0, -30.0, -5.0, -1.0 - 1e-12, -1.0, -0.5, 0.0, 1.0, 5.0, 30.0, 200.0], dtype=torch.float64)
    x.requires_grad_()
    expected = torch.special.log_ndtr(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with vmappable_pyro():
        for got in (compatible(torch.special.log_ndtr)(x), vmap(compatible(torch.special.log_ndtr))(x)):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], gradient, rtol=1e-10, atol=1e-15)


def test_clamping_in_place(float64):
    # Both bounds or one, and the tensor itself is what comes back.
    def function(x):
        y = 2 * x
        assert y.clamp_(max=1.0) is y
        return y.clamp_(-0.5, 0.7) + (3 * x).clamp_(min=0.0)

    assert_same(function, torch.randn(5, 4))


# ---- Pyro's state ----


def pyro_state():
    checks = (module.is_validation_enabled() for module in (pyro.distributions, pyro.poutine.util, pyro.infer.util))

    return pyro.ops.special._SafeLog, *checks


@pytest.mark.parametrize("validation", [True, False])
def test_pyro_is_put_back(validation):
    # After success, after an exception, after Ctrl-C, and when nested; Pyro's checks are off within.
    with pyro.validation_enabled(validation):
        before = pyro_state()
        assert before[1:] == (validation,) * 3
        with vmappable_pyro():
            within = pyro_state()
            assert within[0] is not before[0] and within[1:] == (False,) * 3
            with vmappable_pyro():
                assert pyro_state() == within
            assert pyro_state() == within
        assert pyro_state() == before
        for error in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(error), vmappable_pyro(), vmappable_pyro():
                raise error
            assert pyro_state() == before


def test_safe_log_is_that_of_pyro(float64):
    # Value and gradient, with its bound at zero, under a batch too, where Pyro's own fails.
    x = torch.tensor([0.0, 1e-300, 1e-17, 0.3, 5.0], requires_grad=True)
    expected = safe_log(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(safe_log)(x)
    with vmappable_pyro():
        for got in (safe_log(x), vmap(safe_log)(x)):
            assert torch.equal(got, expected)
            torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], gradient, rtol=1e-15, atol=0.0)


# ---- large matrices that all points share ----


def shared_factor(size):
    rows = torch.arange(size, dtype=torch.float64)
    covariance = 2.0 * torch.exp(-(rows - rows[:, None]).abs() / 5.0)

    return torch.linalg.cholesky(covariance)


SHARED_SOLVES = {
    "lower": lambda factor, row: torch.linalg.solve_triangular(factor, row[:, None], upper=False),
    "upper, batch of one": lambda factor, row: torch.linalg.solve_triangular(
        factor.mT[None], row[None, :, None], upper=True
    ),
    "unitriangular": lambda factor, row: torch.linalg.solve_triangular(
        factor / factor.diagonal(), row[:, None], upper=False, unitriangular=True
    ),
    "from the right": lambda factor, row: torch.linalg.solve_triangular(factor, row[None], upper=False, left=False),
    "cholesky_solve": lambda factor, row: torch.cholesky_solve(row[:, None], factor),
    "cholesky_solve, upper": lambda factor, row: row[:, None].cholesky_solve(factor.mT, upper=True),
    "MultivariateNormal": lambda factor, row: dist.MultivariateNormal(
        row.new_zeros(len(row)), scale_tril=factor, validate_args=False
    ).log_prob(row),
}


@pytest.mark.parametrize("solve", SHARED_SOLVES.values(), ids=SHARED_SOLVES.keys())
@pytest.mark.parametrize("size", [5, 150])
def test_systems_with_a_shared_matrix(solve, size):
    # Small or large, the solution is that of one point at a time.
    factor = shared_factor(size)
    assert_same(lambda row: solve(factor, row), torch.randn(3, size, dtype=torch.float64))


def test_a_large_shared_matrix_is_not_copied_for_each_point():
    # 64 copies of 300 x 300 numbers would be 46 MB; what a solution takes is far less.
    factor, z = shared_factor(300), torch.randn(64, 300, dtype=torch.float64)
    with torch.profiler.profile(profile_memory=True) as profile:
        vmap(compatible(lambda row: torch.linalg.solve_triangular(factor, row[:, None], upper=False)))(z)
    assert sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0) < 20e6
