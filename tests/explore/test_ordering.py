"""Ordering: permutations that are what they say, symmetries found and none invented, one order in all."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from models import REGRESSION_X, regression, schools_centred, schools_non_centred
from pyro.distributions.transforms import OrderedTransform

from pyro_osds.explore.symmetry.ordering import Exchange, OrderedTarget, find_exchanges, ordered
from pyro_osds.model import ModelTarget
from pyro_osds.model.sites import LatentSite
from pyro_osds.target import FunctionTarget

Y = torch.tensor([-2.1, -1.6, 0.2, 0.4, 2.9, 3.3])
Y_PLANE = torch.tensor([[-2.0, 1.0], [-1.5, 0.7], [2.2, -0.3], [1.9, 0.4]])


def mixture(prior_locs=0.0, concentration=(1.0, 1.0, 1.0)):
    """Weights, means and scales of three normals, all unknown."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor(concentration)))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(prior_locs, 3.0))
        scales = pyro.sample("scales", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales)), obs=Y)


def plane_mixture():
    """Two normals in the plane: as many components as coordinates, and the latter are not exchangeable."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(Y_PLANE)):
        components = dist.Independent(dist.Normal(locs, 1.0), 1)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=Y_PLANE)


def numbered_mixture():
    """One site for each mean and each scale, equal weights."""
    locs = torch.stack([pyro.sample(f"mu_{k}", dist.Normal(0.0, 3.0)) for k in range(3)], -1)
    scales = torch.stack([pyro.sample(f"sigma_{k}", dist.LogNormal(0.0, 0.5)) for k in range(3)], -1)
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(locs, scales)), obs=Y)


def forward_algorithm(log_start, log_transition, locs):
    """The log likelihood of a hidden Markov chain with normal emissions."""
    alpha = log_start + dist.Normal(locs, 1.0).log_prob(Y[0])
    for y in Y[1:]:
        alpha = torch.logsumexp(alpha[:, None] + log_transition, 0) + dist.Normal(locs, 1.0).log_prob(y)

    return torch.logsumexp(alpha, 0)


def hidden_markov(first_state=False):
    """Rows of the transition matrix are probability vectors over the states that are rows themselves."""
    with pyro.plate("states", 3):
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((3,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    log_start = torch.tensor([0.0, -50.0, -50.0]) if first_state else torch.full((3,), -math.log(3))
    pyro.factor("y", forward_algorithm(log_start, transition.log(), locs))


def hidden_markov_by_logits():
    """The same chain with a real-valued matrix: both of its axes run over states."""
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    pyro.factor("y", forward_algorithm(torch.full((3,), -math.log(3)), torch.log_softmax(logits, -1), locs))


# By site: the axes that run over components, counted from the left.
SYMMETRIC = {
    "mixture": (mixture, 3, {"weights": (0,), "locs": (0,), "scales": (0,)}),
    "plane": (plane_mixture, 2, {"weights": (0,), "locs": (0,)}),
    "transition": (hidden_markov, 3, {"transition": (0, 1), "locs": (0,)}),
    "logits": (hidden_markov_by_logits, 3, {"logits": (0, 1), "locs": (0,)}),
}


def found_in(model, num_points=16):
    target = ModelTarget(model)
    z = torch.randn(num_points, target.dim, dtype=target.dtype)

    return target, z, find_exchanges(target, z, target.log_prob(z).detach())


def random_orders(count, num_components):
    return torch.rand(count, num_components).argsort(-1)


# ---- permutations ----


@pytest.mark.parametrize("name", SYMMETRIC)
def test_permute_is_what_it_says(name, float64):
    # In constrained space, draw by draw: the component at each place is the one that was asked for, on every axis.
    model, num_components, axes = SYMMETRIC[name]
    target, z, (exchange,) = found_in(model)
    order = random_orders(len(z), num_components)
    moved = exchange.permute(z, order)
    before, after = target.constrain(z), target.constrain(moved)
    assert set(before) == set(axes)
    for site, over in axes.items():
        for b in range(len(z)):
            expected = before[site][b]
            for axis in over:
                expected = expected.index_select(axis, order[b])
            torch.testing.assert_close(after[site][b], expected)


def test_permute_numbered_sites(float64):
    # Each of them holds one component.
    target, z, (exchange,) = found_in(numbered_mixture)
    order = random_orders(len(z), 3)
    before, after = target.constrain(z), target.constrain(exchange.permute(z, order))
    for site, b, k in itertools.product(("mu", "sigma"), range(len(z)), range(3)):
        torch.testing.assert_close(after[f"{site}_{k}"][b], before[f"{site}_{order[b, k]}"][b])


def test_permute_leaves_everything_else_in_place(float64):
    # Coordinates between and behind those that move, and the points that were given.
    exchange = Exchange(2, (torch.tensor([[1, 2], [4, 5]]),), ())
    z = torch.randn(5, 7)
    given = z.clone()
    moved = exchange.permute(z, torch.tensor([[1, 0]]).expand(5, 2))
    assert torch.equal(moved, given[:, [0, 4, 5, 3, 1, 2, 6]]) and torch.equal(z, given)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_permutation_keeps_volumes(name, float64):
    # Automatic differentiation: also of stick-breaking coordinates, whose Jacobian prod_k p_k is that of all orders.
    model, num_components, _ = SYMMETRIC[name]
    target, z, (exchange,) = found_in(model)
    z = z[:6]
    order = random_orders(len(z), num_components)
    for b in range(len(z)):
        jacobian = torch.func.jacrev(lambda row, b=b: exchange.permute(row[None], order[b : b + 1])[0])(z[b])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, torch.tensor(0.0))
    torch.testing.assert_close(target.log_prob(exchange.permute(z, order)), target.log_prob(z))


def test_permute_is_undone(float64):
    # By the inverse order.
    _, z, (exchange,) = found_in(hidden_markov)
    order = random_orders(len(z), 3)
    torch.testing.assert_close(exchange.permute(exchange.permute(z, order), order.argsort(-1)), z)


# ---- what is found ----


@pytest.mark.parametrize("name", SYMMETRIC)
def test_components_are_found(name):
    # In single precision too: one group, which moves every coordinate of these models.
    model, num_components, _ = SYMMETRIC[name]
    target, _, exchanges = found_in(model)
    assert [exchange.num_components for exchange in exchanges] == [num_components]
    moved = torch.cat([index.reshape(-1) for index in (*exchanges[0].rows, *exchanges[0].simplexes)])
    assert sorted(set(moved.tolist())) == list(range(target.dim))


def test_numbered_sites_are_found():
    # Names that differ by a number, in single precision.
    _, _, exchanges = found_in(numbered_mixture)
    assert len(exchanges) == 1 and exchanges[0].num_components == 3


def test_locations_alone_are_found():
    # What is no component stays where it is: a scale that all share, and a regression beside the mixture.
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(Y)):
            components = dist.Normal((torch.tensor(REGRESSION_X) @ w)[:, None] + locs, scale)
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components), obs=Y)

    target, _, exchanges = found_in(model)
    (site,) = [site for site in target.sites if site.name == "locs"]
    assert len(exchanges) == 1 and not exchanges[0].simplexes
    assert exchanges[0].rows[0].flatten().tolist() == list(range(site.start, site.stop))


def first_hidden_state_is_known():
    hidden_markov(first_state=True)


def different_priors():
    mixture(prior_locs=torch.tensor([-2.0, 0.0, 2.0]))


def different_weights():
    mixture(concentration=(1.0, 1.0, 3.0))


def ordered_means():
    """The modeller put the means in order: there is one copy already."""
    prior = dist.Normal(0.0, 3.0).expand([3]).to_event(1)
    locs = pyro.sample("locs", dist.TransformedDistribution(prior, [OrderedTransform()]))
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(locs, 1.0)), obs=Y)


@pytest.mark.parametrize(
    "model",
    [
        schools_centred,
        schools_non_centred,
        regression,
        ordered_means,
        different_priors,
        different_weights,
        first_hidden_state_is_known,
    ],
)
def test_nothing_is_invented(model):
    # Axes of one length whose places the data, the prior or the support tell apart.
    assert found_in(model)[2] == []


def test_part_of_the_components_may_be_exchangeable():
    # A swap of the first two alone is no exchange of all three: the cycle is tried as well.
    def model():
        prior = dist.Normal(torch.tensor([0.0, 0.0, 5.0]), 3.0).to_event(1)
        locs = pyro.sample("locs", prior)
        with pyro.plate("data", len(Y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(locs, 1.0)), obs=Y)

    assert found_in(model)[2] == []


def test_nothing_to_go_by():
    # A density without sites, and a model whose density is finite at no point that was given.
    target = FunctionTarget(lambda z: -z.square().sum(-1), 2)
    z = torch.randn(8, 2)
    assert find_exchanges(target, z, target.log_prob(z)) == []
    target = ModelTarget(mixture)
    z = torch.randn(8, target.dim)
    assert find_exchanges(target, z, torch.full((8,), -torch.inf)) == []


def test_points_of_density_zero_are_left_out():
    # They would compare minus infinity with itself.
    target = ModelTarget(mixture)
    z = torch.randn(32, target.dim)
    log_prob = target.log_prob(z).detach()
    log_prob[:20] = -torch.inf
    assert len(find_exchanges(target, z, log_prob)) == 1


def test_orderings_are_coordinates_that_move_with_one_component(float64):
    # Means and scales qualify; the entries of a matrix with two axes of components belong to two of them.
    target, _, (exchange,) = found_in(mixture)
    by_name = {site.name: list(range(site.start, site.stop)) for site in target.sites}
    assert [ordering.tolist() for ordering in exchange.orderings()] == [by_name["locs"], by_name["scales"]]
    target, _, (exchange,) = found_in(hidden_markov_by_logits)
    by_name = {site.name: list(range(site.start, site.stop)) for site in target.sites}
    assert [ordering.tolist() for ordering in exchange.orderings()] == [by_name["locs"]]
    target, _, (exchange,) = found_in(plane_mixture)
    start = next(site.start for site in target.sites if site.name == "locs")
    assert [(ordering - start).tolist() for ordering in exchange.orderings()] == [[0, 2], [1, 3]]


def test_part_of_another():
    # Fewer of the same coordinates and the same number of components.
    whole = Exchange(2, (torch.tensor([[0], [1]]), torch.tensor([[2], [3]])), (torch.tensor([[4]]),))
    part = Exchange(2, (torch.tensor([[2], [3]]),), ())
    other = Exchange(2, (torch.tensor([[2], [5]]),), ())
    assert part.is_strict_part_of(whole) and not whole.is_strict_part_of(whole)
    assert not whole.is_strict_part_of(part) and not other.is_strict_part_of(whole)
    assert not Exchange(3, (torch.tensor([[0], [1], [2]]),), ()).is_strict_part_of(whole)


def test_two_groups_of_one_size_are_two():
    # Either pair may swap without the other; swapping both at once is no third group.
    sites = [LatentSite(name, 2 * i, 2 * i + 2, *[torch.Size([2])] * 2, torch.float32) for i, name in enumerate("ab")]
    target = FunctionTarget(lambda z: -(z[:, :2].prod(-1).square() + z[:, 2:].exp().sum(-1)), 4)
    target.sites = sites
    z = torch.randn(20, 4)
    found = find_exchanges(target, z, target.log_prob(z))
    assert [exchange.rows[0].reshape(-1).tolist() for exchange in found] == [[0, 1], [2, 3]]


# ---- one order ----


def means(num_components):
    """The means of an equal mixture given four observations, unnormalised."""
    y = torch.tensor([-1.0, 0.3, 1.2, 2.0])

    def log_prob(z):
        likelihood = torch.logsumexp(-0.5 * (y - z[..., None]).square(), -2).sum(-1)
        return likelihood - (z.square() / 8).sum(-1)

    ordering = torch.arange(num_components)

    return FunctionTarget(log_prob, num_components), Exchange(num_components, (ordering[:, None],), ()), ordering


def log_integral(log_prob, *axes):
    """Log integral over a grid; densities vanish at its edges."""
    cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    values = [torch.logsumexp(log_prob(chunk), 0) for chunk in torch.cartesian_prod(*axes).split(200_000)]

    return (torch.logsumexp(torch.stack(values), 0) + math.log(cell)).item()


@pytest.mark.parametrize(("num_components", "num_points"), [(2, 400), (3, 90)])
def test_evidence_is_that_of_all_orders(num_components, num_points, float64):
    # The integral over u equals the one over z: K! copies counted once each.
    target, exchange, ordering = means(num_components)
    one_order = OrderedTarget(target, exchange, ordering)
    whole = log_integral(target.log_prob, *[torch.linspace(-11, 11, num_points)] * num_components)
    steps = [torch.linspace(-14, 4, num_points)] * (num_components - 1)
    inside = log_integral(one_order.log_prob, torch.linspace(-11, 11, num_points), *steps)
    assert math.isclose(inside, whole, abs_tol=2e-5)


def test_evidence_with_weights_of_the_components(float64):
    # A probability vector moves along: in three dimensions.
    def model():
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", 2):
            components = dist.Normal(locs, 1.0)
            y = torch.tensor([-0.5, 1.5])
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)

    target, _, (exchange,) = found_in(model)
    assert exchange.simplexes
    one_order = OrderedTarget(target, exchange, exchange.orderings()[0])
    place = {int(index): axis for axis, index in enumerate(one_order.ordering)}
    logit, line = torch.linspace(-10, 10, 40), torch.linspace(-6, 6, 60)
    axes = [line if i in place else logit for i in range(3)]
    whole = log_integral(target.log_prob, *axes)
    axes = [logit if i not in place else line if place[i] == 0 else torch.linspace(-13, 3, 60) for i in range(3)]
    with torch.no_grad():
        assert math.isclose(log_integral(one_order.log_prob, *axes), whole, abs_tol=1e-3)


@pytest.mark.parametrize("num_components", [2, 3, 5])
def test_density_in_one_order(num_components, float64):
    # K! times the density of the target times the Jacobian by automatic differentiation.
    target, exchange, ordering = means(num_components)
    one_order = OrderedTarget(target, exchange, ordering)
    u = torch.randn(6, num_components)
    z = one_order.in_order(u)
    jacobians = torch.stack([torch.func.jacrev(lambda row: one_order.in_order(row[None])[0])(row) for row in u])
    log_abs_det = torch.linalg.slogdet(jacobians).logabsdet
    torch.testing.assert_close(one_order.log_abs_det(u), log_abs_det)
    expected = target.log_prob(z) + log_abs_det + math.log(math.factorial(num_components))
    torch.testing.assert_close(one_order.log_prob(u), expected)
    assert (z.diff(dim=-1) > 0).all()


def test_to_ordered_and_back(float64):
    # Points in order come back as they were; points in any order come back as the same set, everything else with it.
    target, z, (exchange,) = found_in(mixture)
    one_order = OrderedTarget(target, exchange, exchange.orderings()[0])
    u = one_order.to_ordered(z)
    in_order = one_order.in_order(u)
    torch.testing.assert_close(one_order.to_ordered(in_order), u)
    expected = exchange.permute(z, z[:, one_order.ordering].argsort(-1))
    torch.testing.assert_close(in_order, expected)
    assert (in_order[:, one_order.ordering].diff(dim=-1) > 0).all()
    # All orders of one point are the same point.
    again = exchange.permute(z, random_orders(len(z), 3))
    torch.testing.assert_close(one_order.to_ordered(again), u)


def test_components_that_coincide():
    # No step at all has no logarithm; the point stays a point.
    target, exchange, ordering = means(3)
    u = OrderedTarget(target, exchange, ordering).to_ordered(torch.tensor([[1.0, 1.0, 1.0]]))
    assert u.isfinite().all() and u[0, 0] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "line"])
def test_all_orders_are_equally_frequent(dtype, kind):
    # A chi-square of five degrees of freedom exceeds 30 once in 80,000 times; points on a line are no exception.
    target, exchange, ordering = means(3)
    one_order = OrderedTarget(target, exchange, ordering)
    u = torch.randn(6000, 3, dtype=dtype)
    if kind == "line":
        u = torch.cat([torch.linspace(-1, 1, 6000, dtype=dtype)[:, None], torch.ones(6000, 2, dtype=dtype)], 1)
    ranks = one_order.to_target(u).argsort(-1)
    counts = (ranks @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1].double()
    assert len(counts) == 6 and ((counts - 1000).square() / 1000).sum() < 30


def test_the_order_depends_on_the_point_alone():
    # The same one each time, alone or in a batch; draws by site are in that order.
    target, z, (exchange,) = found_in(mixture)
    one_order = OrderedTarget(target, exchange, exchange.orderings()[0])
    u = one_order.to_ordered(z)
    first = one_order.to_target(u)
    torch.randn(3)
    assert torch.equal(one_order.to_target(u), first) and torch.equal(one_order.to_target(u[5:6])[0], first[5])
    torch.testing.assert_close(one_order.constrain(u)["locs"], target.constrain(first)["locs"])
    # All six of them come up, as often as each other.
    orders = one_order.to_target(torch.randn(600, target.dim, dtype=torch.float64))
    _, counts = target.constrain(orders)["locs"].argsort(-1).unique(dim=0, return_counts=True)
    assert len(counts) == 6 and ((counts - 100).abs() < 5 * math.sqrt(600 / 6 * 5 / 6)).all()


def test_the_order_does_not_depend_on_where_the_point_lies(float64):
    # Whether the first component is the smallest one says nothing about the coordinates: both halves have the mean 0.
    target, exchange, ordering = means(2)
    one_order = OrderedTarget(target, exchange, ordering)
    u = torch.randn(4000, 2)
    kept = one_order.to_target(u).diff(dim=-1)[:, 0] > 0
    assert_within_standard_error(kept.double().mean(), 0.5, 0.5 / math.sqrt(4000), k=4)
    for i in range(2):
        assert_within_standard_error(u[kept, i].mean(), 0.0, 1 / math.sqrt(2000), k=4)


def test_gradient_flows(float64):
    # The score by automatic differentiation is that of finite differences.
    target, z, (exchange,) = found_in(mixture)
    one_order = OrderedTarget(target, exchange, exchange.orderings()[0])
    u = one_order.to_ordered(z)[:3].requires_grad_()
    assert torch.autograd.gradcheck(one_order.log_prob, u)


def test_the_order_that_is_closest_to_a_gaussian(float64):
    # Components far apart in their first coordinate and alike in the second are put in order by the first.
    exchange = Exchange(2, (torch.tensor([[0, 1], [2, 3]]),), ())
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 4)
    z = torch.randn(2000, 4) * torch.tensor([0.1, 1.0, 0.1, 1.0]) + torch.tensor([-3.0, 0.0, 3.0, 0.0])
    z = exchange.permute(z, random_orders(2000, 2))
    assert ordered(target, exchange, z).ordering.tolist() == [0, 2]
    assert ordered(target, exchange, z[:, [1, 0, 3, 2]]).ordering.tolist() == [1, 3]


def test_nothing_to_order_by(float64):
    # A matrix over components twice has no coordinate that belongs to one of them.
    index = torch.arange(4).view(2, 2)
    target = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), 4)
    assert ordered(target, Exchange(2, (index, index.T), ()), torch.randn(50, 4)) is None


def test_a_large_constant_hides_no_difference():
    # The priors differ by 0.036 in their means: some hundredths of a nat, 1e-6 of a log density of -30,000.
    def model():
        mean = pyro.sample("mean", dist.Normal(torch.tensor([-0.018, 0.018]), 1.0).to_event(1))
        pyro.factor("data", -0.5 * (mean.square() - 4.0).square().sum() - 3e4)

    target = ModelTarget(model)
    z = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert find_exchanges(target, z, target.log_prob(z)) == []


def test_a_large_constant_hides_no_symmetry():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("data", -0.5 * (mean.square() - 4.0).square().sum() - 3e4)

    target = ModelTarget(model)
    z = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(find_exchanges(target, z, target.log_prob(z))) == 1
