"""The contract of targets: every class declares every capability, wrappers hand on, and no one asks behind its back."""

import ast
import functools
import inspect
import pathlib
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import schools_centred
from torch.distributions import transforms

import pyro_osds
from pyro_osds.explore.circle.turned import TurnedTarget
from pyro_osds.explore.heavy.radial import RadialTarget
from pyro_osds.explore.heavy.stretched import StretchedTarget
from pyro_osds.explore.propriety import _Likelihood, _walks, find_endless
from pyro_osds.explore.reference import num_affordable
from pyro_osds.explore.refinement import LatentTarget
from pyro_osds.explore.search.mode_search import _chosen
from pyro_osds.explore.survey import survey
from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.explore.symmetry.frames import FramedTarget, Rotation
from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.ordering import Exchange, OrderedTarget
from pyro_osds.explore.variational import _Whitened
from pyro_osds.fit import Fit
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.model import ModelTarget, PotentialTarget
from pyro_osds.settings import Settings
from pyro_osds.target import FunctionTarget, MovedTarget, Target, TargetWrapper, as_target
from pyro_osds.target.adapter import KINDS, REQUIRED, RESERVED

Y = torch.tensor([-2.1, -1.6, 2.9, 3.3])
PAIR = torch.tensor([0, 1])
METHODS = [name for name, (words, _) in KINDS.items() if words == "a method"]
VALUES = [name for name in KINDS if name not in METHODS]


def pair(z):
    """Two coordinates that may trade places."""
    return -0.5 * z.square().sum(-1) - z.prod(-1).square()


def means():
    """An equal mixture with two unknown means, which may trade places."""
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 1.0)), obs=Y)


def product():
    """Two factors that may trade places, and their signs."""
    with pyro.plate("both", 2):
        factors = pyro.sample("factors", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(factors.prod(-1), 1.0), obs=torch.tensor(3.0))


def flat_means():
    """The same under a flat prior."""
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(Y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(locs, 1.0)), obs=Y)


def switch():
    """A discrete latent, which is summed out, and discrete observations."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    side = pyro.sample("side", dist.Bernoulli(0.5))
    with pyro.plate("data", 3):
        pyro.sample("n", dist.Poisson(rate + side), obs=torch.tensor([1.0, 2.0, 0.0]))


def coin():
    """No continuous latent at all."""
    side = pyro.sample("side", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(side, 1.0), obs=torch.tensor(0.3))


def potential(values):
    return -pair(values["x"])


class Duck:
    """Somebody's own class, with some capabilities under the names of the protocol."""

    dim = 2
    dtype = torch.float64
    device = torch.device("cpu")
    num_terms = 12

    def log_prob(self, z):
        return pair(z)


def standardised():
    target = ModelTarget(schools_centred)

    return target.other_coordinates(torch.zeros(1, target.dim, dtype=target.dtype))[0]


def ordered(inside):
    return OrderedTarget(inside, Exchange(2, (PAIR[:, None],), ()), PAIR)


def turned(inside, first=0.3, second=0.8):
    return TurnedTarget(inside, PAIR, torch.tensor([first, second], dtype=torch.float64))


def drawn_in(inside, first=-1.0):
    return StretchedTarget(inside, PAIR, torch.tensor([first, 0.3]).double(), torch.full((2,), 0.8).double())


def drawn_in_together(inside, first=-1.0):
    root = torch.tensor([[0.8, 0.0], [0.3, 0.6]]).double()
    return RadialTarget(inside, PAIR, torch.tensor([first, 0.3]).double(), root, 0.5)


def mirror(inside):
    return MirroredTarget(inside, Flip(PAIR[None]), PAIR[:1], 0.1)


def framed(inside):
    return FramedTarget(inside, Rotation(PAIR[None], reflections=True), (0,))


def whitened(inside):
    return _Whitened(inside, gaussian_base(torch.randn(100, inside.dim, dtype=inside.dtype)))


def latent(inside):
    base = gaussian_base(torch.randn(100, inside.dim, dtype=inside.dtype))

    return LatentTarget(Leap(base, FlowMap(inside.dim).double()), inside)


INSIDE = {
    "function": lambda: FunctionTarget(pair, 2),
    "potential": lambda: PotentialTarget(potential, {"x": torch.zeros(2)}, {"x": transforms.SigmoidTransform().inv}),
    "model": lambda: ModelTarget(means),
    "model, flat prior": lambda: ModelTarget(flat_means),
    "duck": lambda: as_target(Duck()),
}
MAKE = {
    **INSIDE,
    "centred model": lambda: ModelTarget(schools_centred),
    "standardised model": standardised,
    "model with a discrete latent": lambda: ModelTarget(switch),
    "model without coordinates": lambda: ModelTarget(coin),
    **{f"{name}, in order": lambda make=make: ordered(make()) for name, make in INSIDE.items()},
    **{f"{name}, turned": lambda make=make: turned(make()) for name, make in INSIDE.items()},
    **{f"{name}, drawn in": lambda make=make: drawn_in(make()) for name, make in INSIDE.items()},
    "standardised model, drawn in": lambda: drawn_in(standardised()),
    **{f"{name}, drawn in together": lambda make=make: drawn_in_together(make()) for name, make in INSIDE.items()},
    "standardised model, drawn in together": lambda: drawn_in_together(standardised()),
    "model drawn in, turned, in order": lambda: ordered(turned(drawn_in(ModelTarget(means), 0.3), 0.3, 0.3)),
    "function, mirrored": lambda: mirror(FunctionTarget(pair, 2)),
    "even model, mirrored": lambda: mirror(ModelTarget(product)),
    "function, framed": lambda: framed(FunctionTarget(pair, 2)),
    "even model, framed": lambda: framed(ModelTarget(product)),
    "function, mirrored twice, in order": lambda: ordered(
        MirroredTarget(FunctionTarget(pair, 2), Flip(PAIR[:, None]), PAIR, 0.1)
    ),
    "standardised model, turned": lambda: turned(standardised()),
    "model in order, turned": lambda: turned(ordered(ModelTarget(means))),
    "model turned, in order": lambda: ordered(turned(ModelTarget(means), 0.3, 0.3)),
    "whitened model": lambda: whitened(ModelTarget(means)),
    "model from the base of a leap": lambda: latent(ModelTarget(means)),
    "whitened mixture in order": lambda: whitened(ordered(ModelTarget(means))),
}


@functools.cache
def made(name):
    return MAKE[name]()


@pytest.fixture(params=MAKE)
def target(request):
    return made(request.param)


def points(target, count=5):
    return 0.5 * torch.randn(count, target.dim, dtype=target.dtype)


# ---- what is declared ----


def test_the_adapter_knows_every_member_of_the_protocol():
    # A capability that is added to one of them only is found here, and so is one that the text does not explain.
    members = {name for name in (*vars(Target), *inspect.get_annotations(Target)) if not name.startswith("_")}
    assert members == {*KINDS, *RESERVED}
    explained = [name for name in (*VALUES, "is_model") if f"    {name}: " in Target.__doc__]
    assert explained == [*VALUES, "is_model"]
    assert all(inspect.getdoc(getattr(Target, name)) for name in METHODS)


def test_defaults_are_what_they_must_be():
    # The default of every capability passes the check that a declared one has to pass.
    for name in set(VALUES) - set(REQUIRED):
        words, is_right = KINDS[name]
        assert is_right(getattr(Target, name)), (name, words)


def test_every_target_class_of_the_package_is_here():
    # A new one has to sign the contract too.
    def below(cls):
        return {cls, *(each for child in cls.__subclasses__() for each in below(child))}

    classes = {cls for cls in below(Target) if cls.__module__.startswith("pyro_osds.")} - {
        Target,
        TargetWrapper,
        MovedTarget,
    }
    assert {type(made(name)) for name in MAKE} == classes


@pytest.mark.parametrize("capability", KINDS)
def test_every_capability_is_there_and_of_its_kind(target, capability):
    # For every class of targets.
    words, is_right = KINDS[capability]
    value = getattr(target, capability)
    assert is_right(value), f"{type(target).__name__}.{capability} must be {words}, is {value!r}"


def test_a_target_of_ours_stays_what_it_is(target):
    # Nothing is wrapped twice, and all of them are targets.
    assert as_target(target) is target and isinstance(target, Target)


# ---- what it means ----


def test_sites_lie_one_after_the_other(target):
    # Where there are sites, they are all of the coordinates, in their order.
    ends = [0, *(site.stop for site in target.sites)]
    assert [site.start for site in target.sites] == ends[:-1]
    assert not target.sites or ends[-1] == target.dim
    assert all(site.unconstrained_shape.numel() == site.stop - site.start for site in target.sites)
    assert {*target.improper_sites} <= {site.name for site in target.sites}


def test_densities_and_their_parts(target):
    # One for each point; prior and likelihood add up to it, or it says that there is no prior.
    z = points(target)
    log_prob = target.log_prob(z)
    assert log_prob.shape == (5,) and log_prob.dtype == target.dtype and log_prob.isfinite().all()
    if target.can_sample_prior:
        torch.testing.assert_close(sum(target.log_prior_and_likelihood(z)), log_prob)
        assert target.sample_prior(3).shape == (3, target.dim)
    elif not target.is_model:
        with pytest.raises(ValueError, match="can_sample_prior"):
            target.sample_prior(3)


def test_draws_by_site_and_back(target):
    # Values have the shapes of their sites and the type of draws; the point that they come from has the same density.
    z = points(target)
    values = target.constrain(z)
    shapes = {site.name: (5, *site.shape) for site in target.sites}
    if target.dim and not isinstance(target, (_Whitened, LatentTarget)):
        assert {name: tuple(value.shape) for name, value in values.items()} == (shapes or {"z": (5, 2)})
        assert all(value.dtype == target.draw_dtype for value in values.values())
        again = target.from_samples(values)
        torch.testing.assert_close(target.log_prob(again), target.log_prob(z), rtol=1e-4, atol=1e-4)


def test_unconstrained_values_by_site(target):
    # As initial_params: a row for each point, or a sentence where there are no sites.
    if target.sites:
        values = {site.name: torch.ones(3, *site.unconstrained_shape) for site in target.sites}
        assert target.unconstrain(values).shape == (3, target.dim)
    elif target.dim:
        with pytest.raises(ValueError, match="initial_params must be a tensor"):
            target.unconstrain({"x": torch.zeros(2)})


def test_what_is_said_of_draws(target):
    # Whoever is asked about sites answers by site, or with nothing.
    z, names = points(target), {site.name for site in target.sites}
    saturated = target.saturated_sites(z) if target.dim else {}
    assert saturated.keys() <= names and all(s.shape == (5,) and s.dtype == torch.bool for s in saturated.values())
    assert target.not_finite_sites(z[0]) == []
    seen = target.log_likelihood(z)
    assert seen.keys() <= target.observed.keys() and all(len(value) == 5 for value in seen.values())
    assert {*target.discrete_observations} <= target.observed.keys()
    grouped = target.by_group(z, ["log_likelihood"])
    assert grouped.keys() == {("log_likelihood", name) for name in seen}
    assert target.plain_coordinates(z).shape == z.shape
    assert all(isinstance(target.has_closed_form(name), bool) for name in names)
    assert target.start is None or target.start.shape == (target.dim,)


def test_other_coordinates(target):
    # The same density with the Jacobian, and back again; or a sentence where there are none.
    z = points(target)
    if not target.has_other_coordinates:
        with pytest.raises(ValueError, match="has_other_coordinates"):
            target.other_coordinates(z)
    elif target.dim:
        other, u, log_abs_det = target.other_coordinates(z)
        assert other.standardized != target.standardized and as_target(other) is other
        torch.testing.assert_close(other.log_prob(u), target.log_prob(z) + log_abs_det)


def test_components_in_order(target):
    # All orders of a point count, in their place and as they may be drawn; for others these are the identity.
    u = points(target)
    z, inside = target.in_order(u), target.unordered
    torch.testing.assert_close(inside.log_prob(z) + target.log_volume(u), target.log_prob(u))
    torch.testing.assert_close(inside.log_prob(target.to_target(u)), inside.log_prob(z))
    torch.testing.assert_close(target.to_ordered(z), u)
    assert (inside is target) == (not isinstance(target, MovedTarget))
    assert inside.unordered is inside


# ---- wrappers ----


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("capability", [*VALUES, "is_model"])
def test_an_order_hands_on_what_the_target_declares(inside, capability):
    # All of it, but for a start, which moves with the coordinates, and for other ones, which would undo the order.
    target = made(inside)
    around = OrderedTarget(target, Exchange(2, (PAIR[:, None],), ()), PAIR)
    if capability == "has_other_coordinates":
        assert not around.has_other_coordinates
    elif capability == "start" and target.start is not None:
        torch.testing.assert_close(around.in_order(around.start[None])[0], target.start.sort().values)
    else:
        assert getattr(around, capability) is getattr(target, capability)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("capability", [*VALUES, "is_model"])
def test_a_turn_hands_on_what_the_target_declares(inside, capability):
    # All of it, but for a start, which moves with the coordinates.
    target = made(inside)
    around = turned(target)
    if capability == "start" and target.start is not None:
        torch.testing.assert_close(around.in_order(around.start[None])[0], target.start)
    else:
        assert getattr(around, capability) is getattr(target, capability)


@pytest.mark.parametrize("wrap", [ordered, turned, mirror, framed, whitened, latent])
def test_all_wrappers_hand_on_what_a_density_costs(wrap):
    # Whatever the coordinates are.
    target = FunctionTarget(pair, 2, dtype=torch.float64)
    target.num_terms, target.vectorized, target.is_double, target.backend = 10**6, False, False, "captured"
    around = wrap(target)
    assert (around.num_terms, around.vectorized, around.is_double, around.backend) == (10**6, False, False, "captured")
    assert around.draw_dtype == torch.float64


def test_an_expensive_mixture_in_order_keeps_the_caps_of_mode_search():
    # A million terms allow 1,024 points to look at, not 65,536; nor do walks and ascents forget what they cost.
    rows = []

    def log_prob_fn(z):
        rows.append(len(z))
        return pair(z)

    target = FunctionTarget(log_prob_fn, 2)
    target.num_terms = 10**6
    around = ordered(target)
    rows.clear()
    assert len(_chosen(around, torch.randn(2000, 2))) <= 32
    assert sum(rows) == 1024
    assert num_affordable(around, 4096, at_least=16) == num_affordable(target, 4096, at_least=16) == 16
    rows.clear()
    _walks(around, torch.zeros(2).double(), torch.eye(2).double(), PAIR)
    assert sum(rows) < 2000


def test_propriety_sees_what_the_target_in_order_promises():
    # A likelihood with a bound under a proper prior needs no look; a flat prior is looked at, in order or not.
    assert not _Likelihood(ordered(made("function"))).has_proper_prior
    for name in INSIDE:
        inside, around = _Likelihood(made(name)), _Likelihood(ordered(made(name)))
        assert (inside.has_proper_prior, inside.is_bounded) == (around.has_proper_prior, around.is_bounded)
    assert _Likelihood(ordered(made("model"))).has_proper_prior
    # One mean far away leaves the observations to the other one: without a prior that is no density.
    for target in (made("model, flat prior"), ordered(made("model, flat prior"))):
        assert find_endless(target, torch.tensor([0.5, 0.5]), torch.eye(2)) is not None


# ---- classes of others ----


def test_what_is_not_declared_has_its_default():
    # And what is declared comes through, methods with their object.
    target = as_target(Duck())
    for name in {*VALUES, "is_model"} - {*REQUIRED, "num_terms"}:
        assert getattr(target, name) is getattr(Target, name)
    z = torch.randn(3, 2, dtype=torch.float64)
    assert target.num_terms == 12 and torch.equal(target.log_prob(z), pair(z))
    assert torch.equal(target.constrain(z)["z"], z)


def test_other_coordinates_of_an_adapted_target():
    # They are adapted as well.
    class Scaled(Duck):
        has_other_coordinates = True

        def other_coordinates(self, z):
            return Duck(), 2.0 * z, z.new_full((len(z),), -1.4)

    other, u, log_abs_det = as_target(Scaled()).other_coordinates(torch.ones(1, 2))
    assert isinstance(other, Target) and u.tolist() == [[2.0, 2.0]] and log_abs_det.shape == (1,)


WRONG = {
    "dim": -1,
    "dtype": torch.int64,
    "device": "cpu",
    "draw_dtype": "float32",
    "num_terms": 1e6,
    "vectorized": 1,
    "num_at_once": 0,
    "is_double": "yes",
    "has_tolerance": 1,
    "backend": 3,
    "sites": [SimpleNamespace(name="x")],
    "supports": ["real"],
    "dims": 4,
    "observed": torch.zeros(2),
    "improper_sites": "x",
    "discrete_sites": {"x": 1},
    "discrete_observations": [1],
    "notes": "a note",
    "mistakes": 0,
    "start": [0.0, 0.0],
    "can_sample_prior": None,
    "has_bounded_likelihood": 0,
    "has_other_coordinates": torch.tensor(True),
    "standardized": "no",
    **dict.fromkeys(METHODS, 0.0),
}


@pytest.mark.parametrize("capability", KINDS)
@pytest.mark.parametrize("inherits", [False, True])
def test_a_wrong_capability_is_named(capability, inherits):
    # The class, the capability, what it must be and what it was; also where the class inherits from ours.
    bases = (Duck, Target) if inherits else (Duck,)
    mine = type("Mine", bases, {capability: WRONG[capability]})
    with pytest.raises(TypeError, match=rf"^Mine\.{capability} must be .*, got .*\. (A target|Make it|Correct it)"):
        as_target(mine())


@pytest.mark.parametrize("capability", REQUIRED)
def test_a_target_without_what_is_required_is_refused(capability):
    # It is told what is missing.
    given = {name: getattr(Duck(), name) for name in REQUIRED if name != capability}
    with pytest.raises(TypeError, match=f"SimpleNamespace is no target: it has no {capability}. A target needs dim"):
        as_target(SimpleNamespace(**given))


def test_a_class_that_inherits_needs_a_density():
    # Everything else has a default, or is told to be missing.
    with pytest.raises(TypeError, match="abstract class Mine"):
        type("Mine", (Target,), {"dim": 1})()
    with pytest.raises(TypeError, match=r"^Mine\.dim must be an integer of at least 0, got None\. A target needs dim"):
        as_target(type("Mine", (Target,), {"log_prob": lambda self, z: pair(z)})())


@pytest.mark.parametrize("name", RESERVED)
def test_names_of_our_own_are_refused(name):
    # A class with another idea of the same name is not taken for one of ours.
    with pytest.raises(TypeError, match=rf"^Mine\.{name} is a name that only"):
        as_target(type("Mine", (Duck,), {name: True})())


@pytest.mark.parametrize("switch", ["can_sample_prior", "has_other_coordinates"])
def test_a_promise_without_its_methods_is_refused(switch):
    # A prior that can be sampled has a method that does it.
    with pytest.raises(TypeError, match=rf"^Mine\.{switch} is True, but there is no"):
        as_target(type("Mine", (Duck,), {switch: True})())


def test_a_density_of_the_wrong_shape_is_refused():
    # Before anything is explored.
    mine = type("Mine", (Duck,), {"log_prob": lambda self, z: z})
    with pytest.raises(TypeError, match=r"^Mine\.log_prob must map \(B, 2\) to \(B,\).*returned \(2, 2\)"):
        as_target(mine())


def test_a_survey_and_a_fit_of_a_class_of_others():
    # The same numbers as for the function itself, from the same random numbers, and a fit that can be stored.
    results = []
    for target in (Duck(), FunctionTarget(pair, 2, dtype=torch.float64)):
        torch.manual_seed(0)
        found = survey(target, num_particles=16)
        fit = Fit.explored(target, Settings(num_iterations=20, num_samples=50, num_particles=16, disable_progbar=True))
        fit.run()
        results.append((found.exploration.log_evidence, fit.draws.evidence.log_evidence, fit.samples["z"].sum().item()))
        assert Fit.restored(target, fit.settings, fit.state()).samples["z"].shape == (4, 50, 2)
    assert results[0] == results[1]


# ---- nobody asks behind the protocol's back ----


def test_no_target_is_asked_whether_it_has_a_member():
    # No getattr or hasattr with the name of a capability, but for the adapter's own.
    package = pathlib.Path(pyro_osds.__file__).parent
    probes = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
                if name in {*KINDS, *RESERVED}:
                    probes.append(f"{path.relative_to(package)}:{node.lineno} {name}")
    assert probes == []
