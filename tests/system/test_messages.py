"""First mistakes: each is answered before long work, by a sentence with the name, what was got and the cure."""

import inspect
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVI
from scipy.integrate import quad
from scipy.stats import norm

from pyro_osds import OSDS, OSDSKernel, compare_evidence, fit_many
from pyro_osds.model import ModelTarget
from pyro_osds.model.checks.impossible import why_impossible
from pyro_osds.runtime.names import exported_names
from pyro_osds.runtime.options import FOREIGN
from pyro_osds.runtime.warnings import ModelWarning, OSDSWarning, VectorizationWarning
from pyro_osds.target import has_wrong_gradient

Y = torch.tensor([1.2, 0.4, 2.1])
QUICK = {"num_samples": 50, "num_chains": 2, "num_iterations": 20, "escalate": False, "disable_progbar": True}


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def covariate(x, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu * x, 1.0), obs=y)


def regression(x, y):
    slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)


def gaussian(z):
    return -0.5 * z.square().sum(-1)


def density(log_prob, **options):
    return OSDS.from_log_prob(log_prob, **{"dim": 2, "disable_progbar": True, **options})


# ---- before there is a sampler ----

OPTIONS = {
    "warmup_steps": ("no option 'warmup_steps'", "no warm-up", "Leave it out"),
    "jit_compile": ("no option 'jit_compile'", "recorded as graphs", "Leave it out"),
    "hook_fn": ("no option 'hook_fn'", "callback="),
    "random_seed": ("no option 'random_seed'", "seed="),
    "mp_context": ("no option 'mp_context'", "fit_many"),
    "target_accept_prob": ("no option 'target_accept_prob'", "no trajectories", "Leave it out"),
    "guide": ("no option 'guide'", "osds.guide"),
    "lr": ("no option 'lr'", "learning_rate="),
    "chains": ("no option 'chains'", "num_chains="),
    "num_itrations": ("no option 'num_itrations'", "Did you mean 'num_iterations'?"),
    "colour": ("no option 'colour'", "Its options are model, num_samples, num_chains"),
}


@pytest.mark.parametrize(("option", "pieces"), OPTIONS.items())
def test_options_that_do_not_exist(option, pieces):
    # For the sampler, for what is made by another way, and for the kernel.
    for make in (lambda **given: OSDS(model, **given), lambda **given: density(gaussian, **given)):
        assert_told(TypeError, pieces, make, **{option: 1})
    assert_told(TypeError, pieces[:1], OSDSKernel, model, **{option: 1})


def test_every_argument_of_pyros_samplers_is_known():
    # Read off their signatures, so that a new one is noticed.
    own = set(inspect.signature(OSDS).parameters)
    for sampler in (MCMC, HMC, NUTS, SVI):
        names = set(inspect.signature(sampler.__init__).parameters) - {"self", "static_kwargs", "kwargs"}
        assert names <= own | FOREIGN.keys(), (sampler, names - own - FOREIGN.keys())


CONSTRUCTION = {
    "three positions": (
        TypeError,
        ("model, num_samples by position", "got 4", "num_chains=4"),
        lambda: OSDS(model, 10, 4),
    ),
    "a kernel": (TypeError, ("got NUTS", "Pass the model"), lambda: OSDS(NUTS(model))),
    "an MCMC": (TypeError, ("got MCMC", "Pass the model"), lambda: OSDS(MCMC(NUTS(model), 10))),
    "a sampler": (TypeError, ("got OSDS", "Pass the model"), lambda: OSDS(OSDS(model))),
    "a called model": (ValueError, ("OSDS(model(y)), returns None", "run(y)"), lambda: OSDS(None)),
    "a class": (TypeError, ("the class Linear", "pass Linear(...)"), lambda: OSDS(torch.nn.Linear)),
    "a number": (TypeError, ("model must be callable, got int",), lambda: OSDS(3)),
    "an init strategy": (TypeError, ("init_strategy", "init_to_median", "got 3"), lambda: OSDS(model, init_strategy=3)),
    "nesting": (ValueError, ("max_plate_nesting", "got -1"), lambda: OSDS(model, max_plate_nesting=-1)),
    "transforms": (TypeError, ("transforms must be a mapping", "list of 1"), lambda: OSDS(model, transforms=[1])),
    "a start in words": (TypeError, ("initial_params", "got str"), lambda: OSDS(model, initial_params="prior")),
    "a start of nan": (
        ValueError,
        ("initial_params['mu']", "nan", "unconstrained values"),
        lambda: OSDS(model, initial_params={"mu": torch.tensor(math.nan)}),
    ),
    "a float count": (ValueError, ("num_samples", "got 1000.0", "Write 1000."), lambda: OSDS(model, num_samples=1e3)),
    "a negative rate": (ValueError, ("learning_rate", "got -1"), lambda: OSDS(model, learning_rate=-1)),
    "a rate in words": (ValueError, ("learning_rate", "got '0.1'"), lambda: OSDS(model, learning_rate="0.1")),
    "a time in words": (ValueError, ("max_time", "got '60'"), lambda: OSDS(model, max_time="60")),
    "a recipe": (ValueError, ("recipe", "'destill'", "Did you mean 'distill'?"), lambda: OSDS(model, recipe="destill")),
    "an array as a choice": (ValueError, ("recipe", "got array"), lambda: OSDS(model, recipe=np.ones(2))),
    "the kernel's warm-up": (TypeError, ("OSDSKernel has no option 'warmup'",), lambda: OSDSKernel(model, warmup=2)),
    "the kernel's option": (ValueError, ("num_particles", "got 0"), lambda: OSDSKernel(model, num_particles=0)),
    "whole numbers": (
        ValueError,
        ("dtype", "torch.int64", "torch.float32"),
        lambda: density(gaussian, dtype=torch.int64),
    ),
    "a type in words": (ValueError, ("dtype", "got 'float32'"), lambda: density(gaussian, dtype="float32")),
    "a device": (ValueError, ("device='gpu'", "Pass 'cpu'"), lambda: density(gaussian, device="gpu")),
    "no function": (TypeError, ("log_prob_fn must be callable, got Tensor",), lambda: density(torch.zeros(2))),
    "a long density": (
        ValueError,
        ("floating point tensor", "torch.int64", "Leave out .long()"),
        lambda: density(lambda z: gaussian(z).long()),
    ),
    "a detached density": (ValueError, ("no gradient", ".detach()"), lambda: density(lambda z: gaussian(z.detach()))),
    "half of it detached": (
        ValueError,
        ("a wrong one", ".detach()"),
        lambda: density(lambda z: -0.5 * z[:, 0].square() - 0.5 * z[:, 1].detach().square()),
    ),
    "without gradients": (ValueError, ("no gradient", "torch.no_grad()"), lambda: density(torch.no_grad()(gaussian))),
    "numpy": (
        ValueError,
        ("log_prob_fn failed at `", "numpy", "torch's functions"),
        lambda: density(lambda z: torch.as_tensor(-0.5 * (z.numpy() ** 2).sum(-1))),
    ),
    "random": (
        ValueError,
        ("changes between two evaluations", "random numbers"),
        lambda: density(lambda z: gaussian(z) + torch.randn(len(z))),
    ),
    "a shape inside": (
        ValueError,
        ("log_prob_fn failed at `", "size mismatch", "batch of points"),
        lambda: density(lambda z: z @ torch.ones(3)),
    ),
    "a column": (ValueError, ("returned (2, 1)", "Sum over the last"), lambda: density(lambda z: gaussian(z)[:, None])),
    "arguments of a density": (ValueError, ("takes no arguments", "run() without"), lambda: density(gaussian).run(Y)),
    "a key of a potential": (
        ValueError,
        ("the site 'x'", "initial_params lacks", "['y']"),
        lambda: OSDS(potential_fn=lambda p: p["x"] ** 2, initial_params={"y": torch.tensor(0.0)}).run(),
    ),
    "fits in a list": (
        TypeError,
        ("models must be a mapping", "list of 2", "'a': first"),
        lambda: compare_evidence([1, 2]),
    ),
    "a fit alone": (TypeError, ("models must be a mapping", "got OSDS"), lambda: compare_evidence(OSDS(model))),
    "a fit without a run": (RuntimeError, ("Model 'a'", "call run"), lambda: compare_evidence({"a": OSDS(model)})),
    "samplers in a list": (TypeError, ("samplers must be a mapping", "list of 1"), lambda: fit_many([OSDS(model)])),
    "no jobs": (
        ValueError,
        ("num_jobs", "got 0", "-1 for all cores"),
        lambda: fit_many({"a": OSDS(model)}, num_jobs=0),
    ),
    "no reader": (TypeError, ("read must be a function",), lambda: fit_many({"a": OSDS(model)}, read="evidence")),
    "no path": (TypeError, ("path", "got function", "path first"), lambda: OSDS.load(model, "fit.pt")),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_before_a_run(name):
    kind, pieces, do = CONSTRUCTION[name]
    assert_told(kind, pieces, do)


def assert_told(kind, pieces, do, *args, **kwargs):
    """An error of this kind that says all of these, in sentences that end."""
    with pytest.raises(kind) as caught:
        do(*args, **kwargs)
    text = str(caught.value)
    assert all(piece in text for piece in pieces), text
    assert text.rstrip()[-1] in ".?)'" and "file an issue" not in text and "None of" not in text, text


# ---- the first run, and the first gradient ----

N = dist.Normal(0.0, 1.0)


def twice():
    pyro.sample("a", N)
    pyro.sample("a", N)


def in_a_loop():
    a = pyro.sample("a", N)
    for i in range(3):
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y[i])


def two_plates():
    a = pyro.sample("a", N)
    for size in (3, 2):
        with pyro.plate("data", size):
            pyro.sample(f"y{size}", dist.Normal(a, 1.0), obs=Y[:size])


def plate_of_a_site():
    a = pyro.sample("a", N)
    with pyro.plate("a", 3):
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


def shape_in_a_plate():
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0))


def longer_plate():
    a = pyro.sample("a", N)
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


def crosswise():
    a = pyro.sample("a", N)
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y[:, None])


def numpy_function():
    x = pyro.sample("x", N)
    pyro.sample("y", dist.Normal(np.exp(x), 1.0), obs=Y[0])


def numpy_constant():
    x = pyro.sample("x", N)
    pyro.sample("y", dist.Normal(x * np.ones(3), 1.0).to_event(1), obs=Y)


def on_two_devices(y):
    pyro.sample("x", N)
    raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")


def key():
    pyro.sample("x", N)
    return {}["z"]


MODELS = {
    "a missing argument": (covariate, (Y,), ("'y' is missing", "takes (x, y)", "call run() with all")),
    "no arguments": (covariate, (), ("'x', 'y' are missing", "no arguments")),
    "too many arguments": (model, (Y, Y), ("2 arguments were given, where it takes 1", "takes (y)")),
    "data in numpy": (
        model,
        (Y.numpy(),),
        ("site 'y'", "Argument 'y' is a numpy array float32 (3,)", "as_tensor(y, dtype="),
    ),
    "data in a list": (model, (Y.tolist(),), ("site 'y'", "Argument 'y' is a list of 3", "torch.tensor(y, dtype=")),
    "data in a tuple": (model, (tuple(Y.tolist()),), ("Argument 'y' is a tuple of 3", "torch.tensor(y, dtype=")),
    "a covariate in numpy": (
        covariate,
        (np.ones(3), Y),
        ("no gradient at `", "Argument 'x' is a numpy array", "as_tensor(x"),
    ),
    "a covariate in a list": (
        covariate,
        ([1.0, 2.0, 3.0], Y),
        ("Argument 'x' is a list of 3", "torch.tensor(x, dtype="),
    ),
    "whole covariates": (
        regression,
        (torch.ones(3, 2).long(), Y),
        ("Argument 'x' is torch.int64 (3, 2)", "pass x.float()"),
    ),
    "double covariates": (
        regression,
        (torch.ones(3, 2).double(), Y),
        ("Argument 'x' is torch.float64", "pass x.float()"),
    ),
    "a text": (model, ("abc",), ("'str'",)),
    "no data": (model, (torch.empty(0),), ("plate needs at least one row", "The argument 'y' has no rows")),
    "twice": (twice, (), ("Site 'a' is there twice, at `", "a name of its own", "'a_{i}'")),
    "in a loop": (in_a_loop, (), ("Site 'y' is there twice", "pyro.plate")),
    "two plates": (two_plates, (), ("Plate 'data' is made twice, of size 3 and 2", "name of its own")),
    "a plate and a site": (plate_of_a_site, (), ("Both a plate and a site are called 'a'", "Rename")),
    "a shape in a plate": (shape_in_a_plate, (), ("'x' has size 2", "plate 'rows' of size 3", ".to_event(1)")),
    "a longer plate": (
        longer_plate,
        (),
        ("site 'y'", "shape (3,)", "batch shape (4,)", "plate 'rows' of 4", "plate's size"),
    ),
    "crosswise": (crosswise, (), ("'y' has the shape (3, 1)", "batch shape (3,)", "squeeze")),
    "no sites": (lambda: N, (), ("without a sample site", "pyro.sample('x', distribution)")),
    "torch's": (
        lambda: pyro.sample("x", torch.distributions.Normal(0.0, 1.0)),
        (),
        ("Site 'x'", "torch.distributions", "pyro.distributions.Normal"),
    ),
    "a class": (lambda: pyro.sample("x", dist.Normal), (), ("Site 'x' has the class Normal", "Normal(...)")),
    "a number": (lambda: pyro.sample("x", 3.0), (), ("Site 'x' has 3.0 (float)", "distribution belongs")),
    "swapped": (lambda: pyro.sample(N, "x"), (), ("name must be a string, got Normal", "name comes first")),
    "a number for a name": (lambda: pyro.sample(3, N), (), ("name must be a string, got int",)),
    "numpy of a latent": (numpy_function, (), ("no gradient at `", "np.exp(x)", "torch.exp")),
    "numpy constants": (numpy_constant, (), ("no gradient at `", "torch.as_tensor")),
    "two devices": (on_two_devices, (Y,), ("after site 'x'", "'y' on cpu", "device=y.device")),
    "a number for data": (
        lambda: pyro.sample("y", dist.Binomial(10, pyro.sample("p", dist.Beta(1.0, 1.0))), obs=7),
        (),
        ("Site 'y' has the value 7", "torch.tensor(7)"),
    ),
    "the transpose": (
        lambda: pyro.sample("y", dist.Normal(pyro.sample("x", N), torch.ones(4, 2)).to_event(2), obs=torch.ones(2, 4)),
        (),
        ("shape (2, 4)", "event shape (4, 2)", "transpose"),
    ),
    "math of a negative number": (
        lambda: pyro.sample("y", dist.Normal(math.log(pyro.sample("x", dist.Normal(-9.0, 1.0)).item()), 1.0), obs=Y[0]),
        (),
        ("math domain error", "torch"),
    ),
    "a key": (key, (), ("after site 'x'", '{}["z"]', "KeyError: 'z'")),
}


# Numpy announces what it will ask of torch.
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_fails(name):
    # Known from one run and one gradient, before anything is explored.
    function, args, pieces = MODELS[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        ModelTarget(function, args)
    text = str(caught.value)
    assert all(piece in text for piece in pieces), text
    assert "detach().numpy()" not in text and "Trace Shapes" not in text and "file an issue" not in text


def test_data_of_pandas():
    pandas = pytest.importorskip("pandas")
    for data, kind in (
        (pandas.Series(Y.tolist()), "Series (3,)"),
        (pandas.DataFrame({"a": Y.tolist()}), "DataFrame (3, 1)"),
    ):
        assert_told(ValueError, (f"'y' is a pandas {kind}", "y.to_numpy()"), ModelTarget, model, (data,))


def test_an_exception_of_the_users_own_arrives_as_it_is():
    class Mine(Exception):
        pass

    def fails():
        raise Mine("whatever")

    with pytest.raises(Mine):
        ModelTarget(fails)


def test_what_runs_is_not_refused():
    # Whole numbers as data, an array that the model turns into a tensor itself, rows times columns that are meant.
    table = torch.arange(6.0).reshape(2, 3)

    def innocent(y, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 2, dim=-2):
            pyro.sample("table", dist.Normal(mu * torch.tensor(x, dtype=torch.float32), 1.0), obs=table)
        pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    target = ModelTarget(innocent, (torch.tensor([1, 0, 2]), np.ones(3)))
    at = torch.tensor([[0.3]], dtype=torch.float64)
    expected = norm(0, 2).logpdf(0.3) + norm(0.3, 1).logpdf(table.numpy()).sum() + norm(0.3, 1).logpdf([1, 0, 2]).sum()
    assert abs(target.log_prob(at).item() - expected) < 1e-9


def test_an_if_in_the_model_is_told_in_its_own_words():
    def branches():
        x = pyro.sample("x", N)
        pyro.sample("y", dist.Normal(x, 1.0 if x > 0 else 2.0), obs=Y[0])

    with pytest.warns(VectorizationWarning, match="an if or a while asks for the value of a latent; torch.where"):
        ModelTarget(branches)


def test_a_latent_that_leaves_torch_is_told_and_its_density_is_right():
    # math.exp raises where torch overflows: far out there is no density, and no error.
    def through_python():
        x = pyro.sample("x", N)
        pyro.sample("y", dist.Normal(math.exp(x.item()), 1.0), obs=Y[0])

    with (
        pytest.warns(VectorizationWarning, match="becomes a Python number"),
        pytest.warns(ModelWarning, match="gradient"),
    ):
        target = ModelTarget(through_python)
    log_prob = target.log_prob(torch.tensor([[0.4], [1000.0]], dtype=torch.float64))
    expected = norm.logpdf(0.4) + norm(math.exp(0.4), 1).logpdf(float(Y[0]))
    assert abs(log_prob[0].item() - expected) < 1e-6 and not log_prob[1].isfinite()


@pytest.mark.parametrize(
    ("log_prob", "is_wrong"),
    [
        (gaussian, False),
        (lambda z: gaussian(z).float().double(), False),
        (lambda z: -z.abs().sum(-1), False),
        (lambda z: -z.round().abs().sum(-1), False),
        (lambda z: torch.where(z[:, 0] > 0, -z[:, 0], -torch.inf), False),
        (lambda z: 0 * z.sum(-1), False),
        (lambda z: 1e6 + gaussian(z.float()).double(), False),
        (lambda z: (2e6 + gaussian(z.float())).double(), False),
        (lambda z: gaussian(z.detach()), True),
        (lambda z: gaussian(z) - z.exp().detach().sum(-1), True),
    ],
)
def test_wrong_gradients(log_prob, is_wrong):
    # Kinks, edges, steps, flat parts and rounding have the gradient that they have.
    torch.manual_seed(0)
    assert has_wrong_gradient(log_prob, torch.randn(8, 2, dtype=torch.float64)) == is_wrong


def test_why_nothing_is_finite():
    # The parameter and its value, or what has no probability; and what then may help.
    def negative():
        pyro.sample("x", dist.Normal(0.0, -1.0))

    assert_told(
        ValueError,
        ("site 'x', Normal, has scale = -1 in every run", "Look for a wrong sign"),
        lambda: OSDS(negative, **QUICK).run(),
    )

    def negative_under_a_flat_prior():  # of which there are no other runs to look at
        pyro.sample("s", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(0.0, -1.0))

    assert_told(
        ValueError,
        ("Site 'x' has scale = -1 there", "Correct it"),
        lambda: OSDS(negative_under_a_flat_prior, **QUICK).run(),
    )
    site = {"name": "y", "fn": N, "value": Y, "is_observed": True, "log_prob": torch.tensor(-math.inf)}
    assert "'y', whose values have no probability there. Pass initial_params" in why_impossible(site)
    assert "'y', which overflows there. Check" in why_impossible({**site, "log_prob": torch.tensor(math.nan)})


# ---- a fit in hand ----


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    osds = OSDS(model, **QUICK)
    osds.run(Y)

    return osds


AFTER = {
    "a percentage": (ValueError, ("prob", "got 90", "Write 0.9"), lambda fit: fit.summary(90)),
    "less than none": (ValueError, ("num_samples", "got -1"), lambda fit: fit.get_samples(-1)),
    "a misspelled group": (
        TypeError,
        ("to_inference_data has no option", "Did you mean 'log_likelihood'?"),
        lambda fit: fit.to_inference_data(log_liklihood=False),
    ),
    "a group in words": (
        ValueError,
        ("log_likelihood", "got 'yes'"),
        lambda fit: fit.to_inference_data(log_likelihood="yes"),
    ),
    "dims in a list": (TypeError, ("dims must be a mapping", "theta"), lambda fit: fit.to_inference_data(dims=["a"])),
    "dims with a slash": (
        ValueError,
        ("dims['y'] uses 'a/b'", "'a_b'"),
        lambda fit: fit.to_inference_data(dims={"y": ["a/b"]}),
    ),
    "a list of draws": (
        TypeError,
        ("samples must be a mapping", "got list", "get_samples()"),
        lambda fit: fit.check_against([1]),
    ),
    "one number": (
        ValueError,
        ("samples['mu']", "shape ()", "no draws"),
        lambda fit: fit.check_against({"mu": torch.ones(())}),
    ),
    "no draws": (ValueError, ("samples['mu']", "no draws"), lambda fit: fit.check_against({"mu": torch.ones(0)})),
    "one draw": (
        ValueError,
        ("10 different reference draws", "got 1"),
        lambda fit: fit.check_against({"mu": torch.ones(1)}),
    ),
    "words for draws": (TypeError, ("samples['mu'] is str",), lambda fit: fit.check_against({"mu": "abc"})),
    "missing draws": (
        ValueError,
        ("samples['mu'] holds nan at draw 0",),
        lambda fit: fit.check_against({"mu": torch.full((20,), math.nan)}),
    ),
    "a missing folder": (
        FileNotFoundError,
        ("no directory", "make it first"),
        lambda fit: fit.save("/nowhere/at/all/fit.pt"),
    ),
    "other data": (ValueError, ("evaluate_loss", "other arguments"), lambda fit: fit.evaluate_loss(Y + 1)),
}


@pytest.mark.parametrize("name", AFTER)
def test_after_a_run(fitted, name):
    kind, pieces, do = AFTER[name]
    before = fitted.log_evidence
    assert_told(kind, pieces, lambda: do(fitted))
    assert fitted.log_evidence == before


def test_scales_below_zero():
    def scale():
        pyro.sample("y", dist.Normal(0.0, pyro.sample("s", dist.HalfNormal(1.0))), obs=Y[0])

    target = ModelTarget(scale)
    assert_told(
        ValueError, ("samples['s'] holds -0.5 at draw 1",), target.from_samples, {"s": torch.tensor([1.0, -0.5])}
    )
    # One that was rounded to the bound is another matter.
    assert target.from_samples({"s": torch.tensor([1.0, 0.0])}).shape == (2, 1)


BEFORE = ("get_samples", "summary", "diagnostics", "redraw", "neutra", "infer_discrete", "posterior_predictive",
          "to_inference_data", "resume")  # fmt: skip


@pytest.mark.parametrize(
    "name", [*BEFORE, "evidence", "log_evidence", "guide", "run_report", "observed_data", "backend"]
)
def test_without_a_run(name):
    def ask():
        value = getattr(OSDS(model), name)
        return value() if name in BEFORE else value

    assert_told(RuntimeError, ("no results yet", "call run(...)"), ask)


def test_files_that_are_no_fit(tmp_path):
    # InferenceData by its ending; whatever else is in it.
    for name, pieces in (("a.nc", ("no file of a fit", "arviz.from_netcdf")), ("a.pt", ("no file of a fit",))):
        (tmp_path / name).write_text("something else")
        assert_told(ValueError, pieces, OSDS.load, tmp_path / name, model)
    assert_told(FileNotFoundError, ("no file",), OSDS.load, tmp_path / "b.pt", model)


def test_the_same_arguments_by_position_and_by_name(fitted, tmp_path):
    # A fit to run(y) is one to y=y: for steps, for losses and in a file.
    assert fitted.is_trained_on(y=Y) and not fitted.is_trained_on(y=Y + 1) and not fitted.is_trained_on()
    fitted.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", model, y=Y)
    assert again.log_evidence == fitted.log_evidence and again.is_trained_on(Y)
    assert_told(
        ValueError, ("argument 'y' differs", "with other values"), OSDS.load, tmp_path / "fit.pt", model, y=Y + 1
    )


def test_numbers_of_numpy_are_numbers():
    numbers = {"num_samples": np.int64(10), "num_chains": np.int32(2), "max_time": np.float32(5.0)}
    settings = OSDS(model, learning_rate=np.float64(0.02), warm_start=np.bool_(False), **numbers).settings
    assert (settings.num_samples, settings.num_chains, settings.max_time) == (10, 2, 5.0)
    kinds = {type(value) for name, value in settings.as_dict().items() if name != "symmetries"}
    assert kinds <= {int, float, bool, str, type(None)}


def test_more_predictions_than_draws_are_told(fitted):
    with pytest.warns(OSDSWarning, match="asked for 101 draws, and there are 100 posterior draws"):
        assert fitted.posterior_predictive(num_draws=101)["y"].shape == (101, 3)


def test_inference_data_as_reference(fitted):
    # What ArviZ holds is taken as it is.
    agreement = fitted.check_against(fitted.to_inference_data())
    assert agreement.agrees, agreement


# ---- names ----


def test_names_in_inference_data(tmp_path):
    # Told when the run begins; in memory and in a file under another name, everywhere else under their own.
    def named():
        x = pyro.sample("chain", N)
        with pyro.plate("a/b", 3):
            z = pyro.sample("z/1", dist.Normal(x, 1.0))
            pyro.sample("draw", dist.Normal(z, 1.0), obs=Y)

    pyro.set_rng_seed(0)
    osds = OSDS(named, **QUICK)
    with pytest.warns(ModelWarning) as told:
        osds.run()
    names = ("Site 'chain' will be 'chain_'", "Site 'z/1' will be 'z_1'", "Site 'draw' will be 'draw_'", "Plate 'a/b'")
    assert all(any(name in str(each.message) for each in told) for name in names)
    assert set(osds.get_samples()) == {"chain", "z/1"}
    idata = osds.to_inference_data(coords={"a/b": ["i", "j", "k"]}, posterior_predictive=5, prior=5)
    idata.to_netcdf(str(tmp_path / "fit.nc"))
    assert set(idata["posterior"].data_vars) == {"chain_", "z_1"} and idata["posterior"]["z_1"].dims[-1] == "a_b"
    assert list(idata["observed_data"].data_vars) == ["draw_"] and idata["observed_data"]["a_b"].values[2] == "k"
    assert np.array_equal(idata["posterior"]["chain_"].values.ravel(), osds.get_samples()["chain"].numpy())


def test_exported_names():
    # Different names stay different, whatever they are.
    names = ["chain", "chain_", "sample", "a/b", "a_b", "a\tb", "", " x ", "x", "mu[0]", "net.weight"]
    exported = exported_names(names)
    assert len(set(exported.values())) == len(names)
    assert exported["mu[0]"] == "mu[0]" and exported["net.weight"] == "net.weight" and exported["chain_"] == "chain_"
    assert exported["chain"] == "chain__" and exported["a/b"] == "a_b_"


def test_quadrature_of_the_model_that_leaves_torch():
    # Its evidence is that of the density, whatever its gradient: by adding up on a grid.
    def through_python():
        x = pyro.sample("x", N)
        pyro.sample("y", dist.Normal(math.exp(x.item()), 1.0), obs=Y[0])

    with pytest.warns(OSDSWarning):
        target = ModelTarget(through_python)
    grid = torch.linspace(-8, 8, 401, dtype=torch.float64)[:, None]
    total = torch.trapezoid(target.log_prob(grid).exp(), grid[:, 0]).item()
    expected = quad(lambda x: norm.pdf(x) * norm.pdf(float(Y[0]), math.exp(x), 1), -8, 8)[0]
    assert abs(total / expected - 1) < 1e-4
