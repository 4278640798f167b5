"""What a model raises, at first or in the midst of a run: told with site and line, and caught as what it is."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget, PotentialTarget
from pyro_osds.runtime.errors.told import told
from pyro_osds.target import FunctionTarget


class OwnError(Exception):
    """With arguments and an attribute of its own."""

    def __init__(self, code, *, hint):
        super().__init__(code)
        self.hint = hint


class Frozen(Exception):
    """One that can be made of two arguments only."""

    __slots__ = ("first",)

    def __new__(cls, first, second):
        return super().__new__(cls, first, second)

    def __init__(self, first, second):
        self.first = first


def fail_key():
    return {"a": 1}["b"]


def fail_assertion():
    raise AssertionError


def fail_own():
    raise OwnError(7, hint="look")


def fail_frozen():
    raise Frozen(1, 2)


def fail_plain():
    raise Exception("plain")


def fail_file():
    return open("/nowhere/at/all")


class OwnValueError(ValueError):
    """Pyro makes another exception of one that is raised under a trace, of one text."""

    def __init__(self, row, column):
        super().__init__(f"row {row}")
        self.column = column

    def __reduce__(self):
        return OwnValueError, (1, self.column)


def fail_value():
    raise OwnValueError(1, 2)


FAILURES = {
    OwnValueError: fail_value,
    KeyError: fail_key,
    IndexError: lambda: [][1],
    AttributeError: lambda: None.shape,
    AssertionError: fail_assertion,
    TypeError: lambda: len(3),
    NotImplementedError: lambda: torch.distributions.Distribution(validate_args=False).mean,
    UnicodeDecodeError: lambda: b"\xff".decode(),
    FileNotFoundError: fail_file,
    OwnError: fail_own,
    Frozen: fail_frozen,
    Exception: fail_plain,
    StopIteration: lambda: next(iter(())),
}


def failing(fail, bound):
    """Looks at a latent, so that it runs point by point; fails where that one is large."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        scale = 1.0
        if x.item() > bound:
            fail()
        pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(0.5))

    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.__name__)
def test_failures_in_the_midst_of_a_run(kind):
    target = ModelTarget(failing(FAILURES[kind], 50.0))
    assert target.backend == "loop"
    z = torch.tensor([[0.0], [60.0]])
    for call in (target.log_prob, target.log_likelihood, target.constrain):
        with pytest.raises(kind, match=r"in the midst of a run, after site 'x', in `.*` \(line \d+ of test_failures"):
            call(z)
    # With a gradient, too; and it is the point that decides.
    with pytest.raises(kind, match="fails at these values each time.*pyro.factor") as caught:
        target.log_prob(z.double().requires_grad_())
    assert type(caught.value.__cause__) is kind
    if kind not in (OwnError, Frozen):  # which no process can send to another one
        again = pickle.loads(pickle.dumps(caught.value))
        assert isinstance(again, kind) and str(again) == str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_what_an_exception_knows_is_kept():
    with pytest.raises(OwnError) as caught:
        ModelTarget(failing(fail_own, 50.0)).log_prob(torch.tensor([[60.0]]))
    assert caught.value.args == (7,) and caught.value.hint == "look" and "OwnError: 7" in str(caught.value)
    with pytest.raises(FileNotFoundError) as missing:
        ModelTarget(failing(fail_file, 50.0)).log_prob(torch.tensor([[60.0]]))
    assert missing.value.filename == "/nowhere/at/all" and missing.value.errno == 2
    with pytest.raises(AttributeError) as absent:
        ModelTarget(failing(lambda: None.shape, 50.0)).log_prob(torch.tensor([[60.0]]))
    assert absent.value.name == "shape"


@pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.__name__)
def test_failures_of_the_first_run(kind):
    with pytest.raises(kind, match=r"The model failed after site 'x', in `.*` \(line \d+ of test_failures"):
        ModelTarget(failing(FAILURES[kind], -50.0))


@pytest.mark.filterwarnings("ignore")
def test_the_cure_cures():
    # N(0, 1) cut at 0.5, where the model has no value: the mass that is left, in closed form.
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        is_possible = x.item() < 0.5
        table = {True: 1.0}
        scale = table[is_possible or True]
        pyro.factor("possible", torch.tensor(0.0 if is_possible else -torch.inf))
        pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(0.5))

    target = ModelTarget(model)
    grid = torch.linspace(-7.995, 7.995, 1600, dtype=torch.float64)[:, None]
    with torch.no_grad():
        log_evidence = target.log_prob(grid).logsumexp(0) + torch.log(grid[1, 0] - grid[0, 0])
    # y ~ N(0, sqrt 2), and x | y ~ N(y / 2, sqrt(1/2)) below 0.5.
    left = torch.distributions.Normal(0.25, 0.5**0.5).cdf(torch.tensor(0.5))
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.5)) + left.log()
    assert log_evidence.item() == pytest.approx(exact.item(), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"vectorize": "loop"}, {"capture": False}, {}], ids=["loop", "vmap", "captured"])
def test_each_backend_tells(options):
    state = {"is_broken": False}

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if state["is_broken"]:
            raise ConnectionError("the table is away")
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    target = ModelTarget(model, **options)
    state["is_broken"] = True
    with pytest.raises(ConnectionError, match="after site 'x', in `raise ConnectionError.*the table is away"):
        target.log_prob(torch.zeros(3, 1))
    with pytest.raises(ConnectionError, match="the table is away"):
        target.log_likelihood(torch.zeros(3, 1))
    state["is_broken"] = False
    assert target.log_prob(torch.zeros(3, 1)).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_decided_by_latents():
    state = {"left": -1}

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        state["left"] -= 1
        if x.item() > 1e9 or state["left"] == 0:
            raise TimeoutError
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    target = ModelTarget(model)
    state["left"] = 3
    with pytest.raises(TimeoutError, match="TimeoutError. Run once more at the same values it did not"):
        target.log_prob(torch.zeros(5, 1))


@pytest.mark.filterwarnings("ignore")
def test_draws_of_the_prior_and_a_run_tell():
    calls = [0]

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        calls[0] += 1
        if x.item() > 2.2:
            {}["gone"]
        z = pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.5))

    pyro.set_rng_seed(0)
    with pytest.raises(KeyError, match="midst of a run, after site 'x', in .*KeyError: 'gone'"):
        OSDS(model, disable_progbar=True).run()


def test_functions_and_potentials_tell():
    def log_prob(z):
        if z.abs().max() > 50:
            raise OwnError(1, hint="far")
        return -0.5 * z.square().sum(-1)

    target = FunctionTarget(log_prob, 2)
    with pytest.raises(OwnError, match="log_prob_fn failed in the midst of a run, in `raise OwnError"):
        target.log_prob(torch.full((2, 2), 60.0))

    def potential(params):
        if params["x"].item() > 50:
            return {}["far"]
        return 0.5 * params["x"].square()

    with pytest.warns(Warning):
        on_sites = PotentialTarget(potential, {"x": torch.zeros(())})
    with pytest.raises(KeyError, match="potential_fn failed in the midst of a run, in"):
        on_sites.log_prob(torch.full((2, 1), 60.0))


def test_a_class_that_allows_none_below_it():
    class Last(Exception):
        def __init_subclass__(cls):
            raise TypeError("no further classes")

    error = Last("end")
    assert told(error, "a sentence") is error
    assert getattr(error, "__notes__", ["a sentence"]) == ["a sentence"]
