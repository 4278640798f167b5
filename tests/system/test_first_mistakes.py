"""What users of MCMC, SVI and others try first: each mistake is answered by a sentence, and what is none works.

Each row of a table says what is done, and the kind of the error with the words that it must have, or the warning with
its words, or None where it works. Nothing here is explored: models are read, run once or twice, and recorded.
"""

import asyncio
import inspect
import math
import warnings
from functools import partial
from types import SimpleNamespace

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

from pyro_osds import (
    OSDS,
    Evidence,
    ModelWarning,
    OSDSKernel,
    VectorizationWarning,
    compare_evidence,
    evidence_from_samples,
    fit_many,
    plot_evidence,
    plot_leap,
)
from pyro_osds.runtime.options import FOREIGN

X, Y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.2, 0.4, 2.1])
N = dist.Normal(0.0, 1.0)
FIRST, SECOND = (Evidence(value, 0.01, value, 900.0, 0.1, 1000, True, ()) for value in (-5.0, -2.0))


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def regression(x, y):
    slope = pyro.sample("slope", N)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def of_a_count(n):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([n]).to_event(1), obs=torch.zeros(n))


class Module(PyroModule):
    def forward(self, x, y):
        regression(x, y)

    def method(self, x, y):
        regression(x, y)


class Callable:
    def __call__(self, x, y):
        regression(x, y)


async def coroutine(y):
    model(y)


def generator(y):
    yield pyro.sample("mu", N)


def told(row, do, *args, **kwargs):
    """Holds what happens against a row: None, a warning or an error, and words."""
    kind, *words = row if isinstance(row, tuple) else (row,)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind is None or issubclass(kind, Warning):
            do(*args, **kwargs)
            ours = [each for each in caught if each.category.__module__.startswith("pyro_osds")]
            assert {each.category for each in ours} == ({kind} if kind else set()), [str(each.message) for each in ours]
            text = " ".join(str(each.message) for each in ours)
        else:
            with pytest.raises(kind) as error:
                do(*args, **kwargs)
            text = str(error.value)
            assert text.rstrip()[-1] in ".?)", text
    assert all(word in text for word in words), text
    assert not any(bad in text for bad in ("file an issue", "detach().numpy()", "Trace Shapes")), text


def started(function, *args, **kwargs):
    """The target that a run would begin with."""
    return OSDS(function, disable_progbar=True)._problem.target(args, kwargs)


# ---- options ----


@pytest.mark.parametrize("make", [partial(OSDS, model), partial(OSDSKernel, model)])
def test_every_option_of_pyros_classes(make):
    own = set(inspect.signature(OSDS).parameters)
    for kind in (MCMC, HMC, NUTS, SVI, Predictive):
        for name in set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "static_kwargs"} - own:
            told((TypeError, f"no option {name!r}: ", FOREIGN[name]), make, **{name: 1})


def test_every_option_of_pyros_classes_in_run():
    own = set(inspect.signature(OSDS).parameters)
    for kind in (MCMC, HMC, NUTS, SVI, Predictive):
        for name in set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "static_kwargs"}:
            place = f"write OSDS(model, {name}=...)" if name in own else FOREIGN[name]
            told((ValueError, f"there is no argument {name!r}", "takes (y)", place), started, model, Y, **{name: 1})
            if name != "num_steps":
                told((TypeError, f"no option {name!r}"), OSDS(model).draw, 10, **{name: 1})


def test_an_argument_of_the_model_is_no_option():
    def named(y, num_samples, seed, guide):
        pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([num_samples]).to_event(1), obs=y)

    told(None, started, named, Y, num_samples=3, seed=1, guide=None)


def test_typos_of_every_option():
    for name in set(inspect.signature(OSDS).parameters) - {"model"}:
        for typo in (name[:-1], name.replace("_", "", 1) + "s", name[0] + name):
            if typo not in FOREIGN and typo not in inspect.signature(OSDS).parameters:
                told((TypeError, f"OSDS has no option {typo!r}", f"Did you mean {name!r}?"), OSDS, model, **{typo: 1})


OPTIONS = {
    "num_samples of get_samples": ("get_samples", {"n": 5}, ("Did you mean 'num_samples'?",)),
    "chains of get_samples": (
        "get_samples",
        {"num_chains": 2},
        ("It is an option of OSDS", "OSDS(model, num_chains=...)"),
    ),
    "warm-up of get_samples": ("get_samples", {"warmup_steps": 5}, ("OSDS has no such option either", "no warm-up")),
    "grouping": ("get_samples", {"group_by_chains": True}, ("Did you mean 'group_by_chain'?",)),
    "num_samples of draw": ("draw", {"num_samples": 5}, ("Did you mean 'num_draws'?",)),
    "prob of summary": ("summary", {"hdi_prob": 0.9}, ("Did you mean 'prob'?",)),
    "a file": ("save", {"filename": "x"}, ("Did you mean 'path'?",)),
    "colour": ("get_samples", {"colour": 1}, ("Its options are num_samples, group_by_chain.",)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_methods(name):
    method, options, words = OPTIONS[name]
    told((TypeError, f"{method} has no option", *words), getattr(OSDS(model), method), **options)


# ---- what stands in the place of the model, and of numbers ----

guide = AutoNormal(model)
optimiser = pyro.optim.Adam({"lr": 0.1})
BEFORE = {
    "a kernel": (lambda: OSDS(NUTS(model)), (TypeError, "got NUTS", "Pass the model")),
    "an MCMC": (lambda: OSDS(MCMC(NUTS(model), 10)), (TypeError, "got MCMC", "Pass the model")),
    "an SVI": (lambda: OSDS(SVI(model, guide, optimiser, Trace_ELBO())), (TypeError, "got SVI", "Pass the model")),
    "a Predictive": (lambda: OSDS(Predictive(model, num_samples=3)), (TypeError, "got Predictive", "sampler itself")),
    "a guide": (lambda: OSDS(guide), (TypeError, "got an AutoNormal, which is a guide", "no guide is needed")),
    "a loss": (lambda: OSDS(Trace_ELBO()), (TypeError, "got a Trace_ELBO, which is a loss", "pyro.sample")),
    "a distribution": (lambda: OSDS(N), (TypeError, "got a Normal, which is a distribution", "pyro.sample")),
    "a result": (lambda: OSDS((lambda: Y)()), (TypeError, "must be callable, got Tensor", "not its result")),
    "nothing": (lambda: OSDS(), (ValueError, "a model or a potential_fn", "OSDS(model)")),
    "a class of modules": (lambda: OSDS(Module), (TypeError, "the class Module", "pass Module(...)")),
    "a class of callables": (lambda: OSDS(Callable), (TypeError, "the class Callable", "pass Callable(...)")),
    "a coroutine": (lambda: OSDS(coroutine), (TypeError, "the function coroutine with async def", "plain function")),
    "a generator": (lambda: OSDS(generator), (TypeError, "the function generator with a yield", "plain function")),
    "a file": (lambda: OSDS("model.pt"), (TypeError, "must be callable, got str")),
    "data beside the model": (lambda: OSDS(model, Y), (ValueError, "num_samples", "a Tensor (3,)", "osds.run(data)")),
    "a guide beside it": (lambda: OSDS(model, guide), (ValueError, "num_samples", "an AutoNormal", "needs no guide")),
    "as SVI": (lambda: OSDS(model, guide, optimiser), (TypeError, "takes only model, num_samples", "a PyroOptim")),
    "no draws": (lambda: OSDS(model, num_samples=0), (ValueError, "num_samples", "at least 1, got 0.")),
    "a switch for a count": (lambda: OSDS(model, num_samples=True), (ValueError, "num_samples", "got True.")),
    "a float": (lambda: OSDS(model, num_samples=1e3), (ValueError, "got 1000.0. Write 1000.")),
    "half a draw": (lambda: OSDS(model, num_samples=0.5), (ValueError, "got 0.5.")),
    "a word for a count": (lambda: OSDS(model, num_chains="4"), (ValueError, "num_chains", "got '4'. Write 4.")),
    "a word for a time": (lambda: OSDS(model, max_time="60"), (ValueError, "max_time", "seconds", "got '60'")),
    "a word for a switch": (
        lambda: OSDS(model, escalate="no"),
        (ValueError, "escalate must be True or False, got 'no'."),
    ),
    "an array for a rate": (
        lambda: OSDS(model, learning_rate=np.ones(2)),
        (ValueError, "learning_rate", "ndarray (2,)"),
    ),
    "torch's optimiser": (lambda: OSDS(model, optim=torch.optim.Adam), (TypeError, "optim", "pyro.optim.PyroOptim")),
    "one chain": (lambda: OSDS(model, num_chains=1), None),
    "numbers of numpy": (
        lambda: OSDS(
            model, np.int64(10), num_chains=np.int32(2), learning_rate=np.float32(0.1), max_time=np.float64(9.0)
        ),
        None,
    ),
    "numbers of torch": (lambda: OSDS(model, num_samples=torch.tensor(10), max_time=torch.tensor(9.0)), None),
    "too many draws": (
        lambda: OSDS(model, num_samples=10**13, disable_progbar=True).run(Y),
        (ValueError, "num_samples=10000000000000, for each of 4 chains", "GB of memory", "draw_batches"),
    ),
    "MCMC of a sampler": (
        lambda: MCMC(OSDS(model), num_samples=5, warmup_steps=0, disable_progbar=True).run(Y),
        (AttributeError, "no attribute 'setup'", "OSDS(model).run(...)", "MCMC(OSDSKernel(model), ...)"),
    ),
    "warm-up of the kernel": (lambda: OSDSKernel(model, warmup=2), (TypeError, "no option 'warmup'", "no warm-up")),
    "draws of the kernel": (lambda: OSDSKernel(model, 200), (TypeError, "only model by position", "got 200", "MCMC's")),
    "named draws of the kernel": (lambda: OSDSKernel(model, num_samples=9), (ValueError, "belong to MCMC")),
    "a run of the kernel": (
        lambda: OSDSKernel(model).run(Y),
        (AttributeError, "'run'", "MCMC(OSDSKernel(model), 1000).run"),
    ),
    "numbers of the kernel": (
        lambda: OSDSKernel(model).diagnostics(),
        (RuntimeError, "not been set up", "mcmc.run(...)"),
    ),
    "Predictive of a sampler": (
        lambda: Predictive(model, OSDS(model)),
        (AttributeError, "no attribute 'items'", "osds.get_samples()"),
    ),
    "draws before a run": (lambda: OSDS(model).get_samples(), (RuntimeError, "no results yet", "call run(...)")),
    "the evidence before a run": (lambda: OSDS(model).evidence, (RuntimeError, "no results yet", "call run(...)")),
    "a number of the evidence": (lambda: OSDS(model).pareto_k, (AttributeError, "it is osds.evidence.pareto_k.")),
    "another name": (lambda: OSDS(model).logZ, (AttributeError, "'logZ'", "it is osds.log_evidence.")),
    "a word for the progress bar": (
        lambda: OSDS(model, disable_progbar="yes"),
        (ValueError, "disable_progbar must be True or False, got 'yes'."),
    ),
    "a number for a transform": (
        lambda: OSDS(model, transforms={"mu": 3}),
        (TypeError, "transforms['mu'] must be a torch.distributions.Transform", "got 3."),
    ),
    "a constraint for a transform": (
        lambda: OSDS(model, transforms={"mu": dist.constraints.positive}),
        (TypeError, "transforms['mu']", "biject_to(constraints.positive).inv"),
    ),
    "two numbers to start from": (
        lambda: OSDS(model, initial_params=[1, 2], disable_progbar=True).run(Y),
        (ValueError, "end in 1 coordinates; got shape (1, 2).", "by site, {'mu': a tensor ()}."),
    ),
    "data before draws": (
        lambda: evidence_from_samples(model, Y, {"mu": Y}),
        (TypeError, "samples come second", "a Tensor (3,) there", "evidence_from_samples(model, samples, *data)"),
    ),
    "a count of prior draws": (
        lambda: OSDS(model).prior_predictive(10),
        (TypeError, "got 10.", "prior_predictive(num_draws=10)"),
    ),
    "a name of prior draws": (
        lambda: OSDS(model).prior_predictive(Y, num_samples=10),
        (TypeError, "prior_predictive has no option 'num_samples'", "Did you mean 'num_draws'?"),
    ),
    "a count of prior draws, named": (lambda: OSDS(model).prior_predictive(Y, num_draws=3), None),
    "a model of a count": (lambda: OSDS(of_a_count).prior_predictive(3, num_draws=3), None),
    **{
        f"{name} of Stan and PyMC": (partial(OSDS, model, **{name: 1}), (TypeError, f"no option {name!r}: ", words))
        for name, words in {
            "iter_warmup": "num_iterations",
            "iter_sampling": "it is num_samples=",
            "parallel_chains": "num_chains=",
            "adapt_delta": "nothing to tune",
            "refresh": "disable_progbar=True",
            "nuts_sampler": "NUTS is not run",
        }.items()
    },
    "a typo": (lambda: OSDS(model).evidense, (AttributeError, "'evidense'. Did you mean 'evidence'?")),
    "a list to compare": (
        lambda: compare_evidence([FIRST, SECOND]),
        (TypeError, "models must be a mapping", "list of 2"),
    ),
    "two to compare": (lambda: compare_evidence(FIRST, SECOND), (TypeError, "mapping, got Evidence", "{'a': first")),
    "names to compare": (lambda: compare_evidence(a=FIRST), (TypeError, "no option 'a'", "{'a': first, 'b': second}")),
    "one to compare": (lambda: compare_evidence({"a": FIRST}), None),
    "evidences to compare": (lambda: compare_evidence({"a": FIRST, "b": SECOND}), None),
    "numbers to compare": (lambda: compare_evidence({"a": -3.0}), (ValueError, "'a'", "got float", "nor how reliable")),
    "tensors to compare": (
        lambda: compare_evidence({"a": Y[0]}),
        (ValueError, "'a'", "got Tensor", "Pass a fitted OSDS"),
    ),
    "a model to compare": (lambda: compare_evidence({"a": model}), (ValueError, "got function", "Fit the model first")),
    "a file to compare": (lambda: compare_evidence({"a": "a.nc"}), (ValueError, "got str", "arviz.from_netcdf(path)")),
    "no fit to compare": (lambda: compare_evidence({"a": OSDS(model)}), (RuntimeError, "'a'", "call run(...)")),
    "InferenceData of others": (
        lambda: compare_evidence({"a": az.from_dict(posterior={"mu": np.zeros((2, 9))})}),
        (ValueError, "'a' holds no log evidence", "got InferenceData", "to_inference_data()"),
    ),
    "priors": (lambda: compare_evidence({"a": FIRST}, priors=[1]), (TypeError, "'priors'", "Did you mean 'prior'?")),
    "a list to plot": (
        lambda: plot_evidence([FIRST]),
        (TypeError, "models must be a mapping", "plot_evidence({'a': first"),
    ),
    "a number to plot": (lambda: plot_leap(3), (TypeError, "a fitted OSDS object", "got 3")),
    "jobs": (lambda: fit_many({"a": OSDS(model)}, Y, n_jobs=2), (TypeError, "'n_jobs'", "Did you mean 'num_jobs'?")),
    "a list to fit": (lambda: fit_many([OSDS(model)], Y), (TypeError, "samplers must be a mapping", "got a list of 1")),
    "a model to fit": (lambda: fit_many({"a": model}, Y), (TypeError, "'a' is function", "Pass OSDS(model)")),
}


@pytest.mark.parametrize("name", BEFORE)
def test_before_a_run(name):
    do, row = BEFORE[name]
    told(row, do)


def grouped(group, y):
    a = pyro.sample("a", N.expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a[group], 1.0), obs=y)


INDICES = {
    "from zero": (torch.tensor([0, 1, 2]), None),
    "from one": (torch.tensor([1, 2, 3]), (ValueError, "count from 0", "the last of 3 is 2", "a[group - 1]")),
    "with gaps": (torch.tensor([0, 1, 7]), (ValueError, "7 was asked for", "torch.unique(group, return_inverse=True)")),
    "floats": (torch.tensor([0.0, 1.0, 2.0]), (ValueError, "whole number", "x.long()")),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices(name):
    group, row = INDICES[name]
    told(row, started, grouped, group, Y)


def coin(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(pyro.sample("p", dist.Beta(1.0, 1.0))), obs=y)


COINS = {
    "zeros and ones": ([0.0, 1.0, 1.0], None),
    "signs": ([-1.0, 1.0, 1.0], (ValueError, "labels here are -1 and 1", "pass (y + 1) / 2")),
    "from one": ([1.0, 2.0, 1.0], (ValueError, "labels here are 1 and 2", "pass y - 1")),
    "others": ([0.0, 3.0, 1.0], (ValueError, "outside its support")),
}


@pytest.mark.parametrize("name", COINS)
def test_labels_of_two_kinds(name):
    values, row = COINS[name]
    told(row, started, coin, torch.tensor(values))


def test_all_arrays_are_named_at_once():
    told(
        (ValueError, "Argument 'y' is", "'x' is of that kind, too", "pass torch.as_tensor(x"),
        started,
        regression,
        X.numpy(),
        Y.numpy(),
    )


def test_a_fit_is_not_called():
    osds = OSDS(model, num_iterations=2, escalate=False, num_samples=20, seed=0, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run(Y)
    told((TypeError, "fit is the fit itself", "osds.run(...)"), osds.fit, Y)
    told((TypeError, "posterior_predictive(num_draws=10)"), osds.posterior_predictive, 10)
    told((TypeError, "Did you mean 'num_draws'?"), osds.posterior_predictive, num_samples=10)
    told(None, osds.posterior_predictive, num_draws=5)


# ---- data ----

TENSOR = (ValueError, "Argument 'y' is ", "tensors only: pass torch.")
DATA = {
    "an array": (Y.numpy(), (*TENSOR, "numpy array float32 (3,)")),
    "an array of counts": (np.array([1, 2, 3]), (*TENSOR, "numpy array int64 (3,)")),
    "an array backwards": (Y.numpy()[::-1], (*TENSOR, "y.astype(float)")),
    "a masked array": (np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]), (*TENSOR, "filled(0)", "~y.mask")),
    "a series": (pd.Series([1.2, 0.4, 2.1]), (*TENSOR, "a pandas Series (3,)", "y.to_numpy()")),
    "a frame": (pd.DataFrame({"y": [1.2, 0.4, 2.1]}), (*TENSOR, "a pandas DataFrame (3, 1)")),
    "nullable numbers": (pd.Series([1, None, 3], dtype="Int64"), (ValueError, "'y'", "to_numpy")),
    "a list": ([1.2, 0.4, 2.1], (*TENSOR, "a list of 3")),
    "a list of numbers in torch": ([Y[0], Y[1], Y[2]], (*TENSOR, "a list of 3")),
    "a list of rows": ([torch.ones(1), torch.ones(1)], (*TENSOR[:2], "torch.stack(list(y))")),
    "a range": (range(3), (*TENSOR, "a range")),
    "a generator": (
        (v for v in [1.0]),
        (ValueError, "Argument 'y' is a generator", "read once", "torch.tensor(list(y))"),
    ),
    "a set": ({1.2, 0.4}, (ValueError, "Argument 'y' is a set of 2", "no order")),
    "a mapping": ({"y": Y}, (ValueError, "Argument 'y' is a dict of 1", "y['y']")),
    "nothing": (None, (ValueError, "Argument 'y' is None", "pass the data to run()")),
    "a number": (0.3, (ValueError, "Argument 'y' is a float, a single number", "torch.tensor([y]")),
    "text": (["a", "b", "c"], (ValueError, "Argument 'y' is a list of 3 that holds text", "pandas.factorize")),
    "categories": (pd.Series(["a", "b"], dtype="category"), (ValueError, "that holds text", "pandas.factorize")),
    "dates": (pd.Series(pd.date_range("2020-01-01", periods=3)), (ValueError, "that holds dates", "days")),
    "objects": (np.array([1.2, None], dtype=object), (ValueError, "Argument 'y'", "holds objects", "float('nan')")),
    "truth values": (Y > 1, (ValueError, "Argument 'y' is torch.bool (3,)", "y.float()")),
    "complex numbers": (Y + 0j, (ValueError, "Argument 'y' is torch.complex64 (3,)", "y.real")),
    "a sparse tensor": (Y.to_sparse(), (ValueError, "Argument 'y' is torch.float32 (3,), sparse", "y.to_dense()")),
    "another device": (Y.to("meta"), (ValueError, "'y' on meta", "one device")),
    "no rows": (Y[:0], (ValueError, "at least one row", "'y' has no rows")),
    "whole numbers": (torch.tensor([1, 0, 2]), None),
    "half precision": (Y.half(), None),
    "bfloat16": (Y.bfloat16(), None),
    "double precision": (Y.double(), None),
    "with a gradient": (Y.clone().requires_grad_(), None),
    "a parameter": (torch.nn.Parameter(Y.clone()), None),
    "a view": (torch.stack([Y, Y], 1)[:, 0], None),
}


# Numpy announces what it will ask of torch.
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("name", DATA)
def test_data(name):
    value, row = DATA[name]
    told(row, started, model, value)


def test_what_is_told_of_data_cures():
    # The code of each message is run, and the model with what it makes.
    for name in ("an array", "an array backwards", "a series", "a list", "a range", "truth values"):
        value, row = DATA[name]
        with pytest.raises(ValueError) as error:
            started(model, value)
        code = str(error.value).rpartition("pass ")[2].rstrip(".")
        started(model, eval(code, {"torch": torch, "np": np}, {"y": value}))


CALLS = {
    "one is missing": (regression, (X,), {}, (ValueError, "'y' is missing", "takes (x, y)")),
    "one too many": (regression, (X, Y, 3), {}, (ValueError, "3 arguments were given, where it takes 2")),
    "another name": (regression, (X,), {"yy": Y}, (ValueError, "no argument 'yy' (did you mean 'y'?)")),
    "twice": (regression, (X,), {"x": X, "y": Y}, (ValueError, "'x' was given twice")),
    "a mapping of all": (regression, ({"x": X, "y": Y},), {}, (ValueError, "'y' is missing", "run(**data)")),
    "a tuple of all": (regression, ((X, Y),), {}, (ValueError, "'y' is missing", "run(*data)")),
    "of a module": (Module(), (X,), {}, (ValueError, "'y' is missing", "takes (x, y)")),
    "a method of a class": (Module.method, (X, Y), {}, (ValueError, "first of which is self", "make an object")),
    "by name only": (lambda **data: regression(data["x"], data["y"]), (), {"x": X}, (ValueError, "call run(y=...)")),
    "a module": (Module(), (X, Y), {}, None),
    "a callable": (Callable(), (X,), {"y": Y}, None),
    "a method": (Module().method, (X, Y), {}, None),
    "a part": (partial(regression, X), (Y,), {}, None),
    "names": (lambda **data: regression(data["x"], data["y"]), (), {"x": X, "y": Y}, None),
    "a namespace": (lambda data: regression(data.x, data.y), (SimpleNamespace(x=X, y=Y),), {}, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    function, args, kwargs, row = CALLS[name]
    told(row, started, function, *args, **kwargs)


# ---- inside of the model ----


def numpy_covariate(y):
    slope = pyro.sample("slope", N)
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(np.array([1.0, 2.0, 3.0]) * slope, 1.0), obs=y)


def numpy_scale(y):
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(pyro.sample("mu", N), np.ones(3)), obs=y)


def numpy_number(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), np.float32(1.0)).expand([3]).to_event(1), obs=y)


def list_of_latents(y):
    mu = [pyro.sample(f"mu_{i}", N) for i in range(3)]
    pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def list_of_scales(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), [1.0, 2.0, 3.0]).to_event(1), obs=y)


def list_and_latent(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N) * [1, 2, 3], 1.0).to_event(1), obs=y)


def stacked(y):
    mu = torch.stack([pyro.sample(f"mu_{i}", N) for i in range(3)])
    pyro.sample("y", dist.Normal(mu, torch.tensor([1.0, 2.0, 3.0])).to_event(1), obs=y)


def branches(y):
    mu = pyro.sample("mu", N)
    if mu > 0:
        mu = 2 * mu
    pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)


def branches_by_vector(y):
    mu = pyro.sample("mu", N.expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(mu if mu > 0 else -mu, 1.0).to_event(1), obs=y)


def site_by_branch(y):
    mu = pyro.sample("mu", N)
    more = pyro.sample("more", N) if mu > 0 else 0.0
    pyro.sample("y", dist.Normal(mu + more, 1.0).expand([3]).to_event(1), obs=y)


def where(y):
    mu = pyro.sample("mu", N)
    pyro.sample("y", dist.Normal(torch.where(mu > 0, 2 * mu, mu), 1.0).expand([3]).to_event(1), obs=y)


def asserted(y):
    mu = pyro.sample("mu", N)
    assert mu < -50
    pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)


def detached(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N).detach(), 1.0).expand([3]).to_event(1), obs=y)


def without_gradients(y):
    with torch.no_grad():
        model(y)


def item(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N).item(), 1.0).expand([3]).to_event(1), obs=y)


def no_site(y):
    return y.sum()


def no_obs(y):
    mu = pyro.sample("mu", N)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0))


def obs_by_position(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([3]).to_event(1), y)


def obs_by_another_name(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([3]).to_event(1), observed=y)


def key_of_jax(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([3]).to_event(1), obs=y, rng_key=0)


def no_plate(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0), obs=y)


def no_event(y):
    with pyro.plate("data", 3):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0))
        pyro.sample("y", dist.Normal(mu.sum(-1), 1.0), obs=y)


def column(y):
    regression(X[:, None], y)


def column_times_vector(y):
    slope = pyro.sample("slope", N.expand([1]).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(X[:, None] @ slope, 1.0), obs=y)


def two_for_each(y):
    loc = torch.stack([X, 2 * X]) * pyro.sample("slope", N)
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def two_plates_for_each(y):
    with pyro.plate("both", 2, dim=-2):
        slope = pyro.sample("slope", N)
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("y", dist.Normal(slope * X, 1.0), obs=y.expand(2, 3))


def pulled(y):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0))
    pyro.sample("near", dist.Normal(theta, 0.1), obs=torch.tensor(0.0))


def wrong_plate(y):
    mu = pyro.sample("mu", N)
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def plate_of_data(y):
    with pyro.plate("data", y):
        pyro.sample("mu", N)


def parameter_of_nobody(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, pyro.param("s"))), 1.0), obs=y[0])


def parameter(y):
    scale = pyro.param("scale", torch.tensor(2.0))
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, scale)), 1.0), obs=y[0])


def cleared(y):
    pyro.clear_param_store()
    parameter(y)


def seeded(y):
    pyro.set_rng_seed(0)
    model(y)


def seeded_noise(y):
    torch.manual_seed(0)
    noise = torch.randn(3)
    pyro.sample("y", dist.Normal(pyro.sample("mu", N) * noise, 1.0).to_event(1), obs=y)


def noise_of_its_own(y):
    noise = torch.randn(3, generator=torch.Generator().manual_seed(0))
    pyro.sample("y", dist.Normal(pyro.sample("mu", N) * noise, 1.0).to_event(1), obs=y)


def drawn(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N) + N.sample(), 1.0), obs=y[0])


def poisson(y):
    pyro.sample("y", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))).expand([3]).to_event(1), obs=y)


def categorical(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Categorical(p), obs=y)


def bernoulli(y):
    pyro.sample("y", dist.Bernoulli(pyro.sample("p", dist.Beta(1.0, 1.0))).expand([3]).to_event(1), obs=y)


def percentage(y):
    # Ten draws of the prior of twenty lie outside at least, and the first run does in all of these tests.
    p = pyro.sample("p", dist.Normal(3.0, 2.0))
    pyro.sample("y", dist.Bernoulli(p).expand([3]).to_event(1), obs=(y > 1).float())


def log_normal(y):
    pyro.sample("y", dist.LogNormal(pyro.sample("mu", N), 1.0).expand([3]).to_event(1), obs=y)


def negative_scale(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), -1.0), obs=y[0])


def no_scale(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 0.0)), 1.0), obs=y[0])


def printed(y):
    print("mu", pyro.sample("mu", N))
    pyro.sample("y", N, obs=y[0])


def kept_number(y):
    pyro.sample("mu", N)
    pyro.deterministic("two", 2.0)


def shape_of_a_sample(y):
    pyro.sample("mu", N, torch.Size([3]))


def parameters_by_other_names(y):
    pyro.sample("mu", dist.Normal(mu=0.0, sigma=1.0))


def event_of_a_number(y):
    pyro.sample("mu", N.to_event(1))


def expanded_by_a_number(y):
    pyro.sample("mu", N.expand(3))


def list_in_dirichlet(y):
    pyro.sample("p", dist.Dirichlet([1.0, 1.0, 1.0]))


def array_observed(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N), 1.0).expand([3]).to_event(1), obs=np.ones(3))


def truth_observed(y):
    pyro.sample("y", dist.Bernoulli(pyro.sample("p", dist.Beta(1.0, 1.0))), obs=True)


def columns_of_a_frame(frame):
    regression(frame["x"], frame["y"])


def on_a_gpu(y):
    pyro.sample("mu", dist.Normal(torch.zeros((), device="cuda"), 1.0))


def on_meta(y):
    pyro.sample("y", dist.Normal(pyro.sample("mu", N) * torch.ones(3, device="meta"), 1.0).to_event(1), obs=y)


INSIDE = {
    numpy_covariate: (Y, (ValueError, "after site 'data'", "torch.as_tensor")),
    numpy_scale: (Y, (ValueError, "Normal has scale = a numpy array float64 (3,)", "torch.as_tensor(scale")),
    numpy_number: (Y, (ValueError, "Normal has scale = a numpy number float32", "Write float(scale)")),
    list_of_latents: (Y, (ValueError, "Normal has loc = a list of 3", "Write torch.stack(loc)")),
    list_of_scales: (Y, (ValueError, "Normal has scale = a list of 3", "torch.tensor(scale")),
    list_and_latent: (Y, (ValueError, "A list and a tensor meet", "torch.tensor([1.0, 2.0])")),
    stacked: (Y, None),
    branches_by_vector: (Y, (ValueError, "after site 'mu'", "torch.where(condition, a, b)")),
    site_by_branch: (Y, (ValueError, "Site 'more'", "unconditional")),
    where: (Y, None),
    asserted: (Y, (ValueError, "AssertionError", "prior with that support", "pyro.factor")),
    detached: (Y, (ModelWarning, "site 'mu'", "leaves torch", ".detach()", "torch.no_grad()")),
    without_gradients: (Y, (ModelWarning, "site 'mu'", "leaves torch", "torch.no_grad()")),
    no_site: (Y, (ValueError, "without a sample site", "pyro.sample")),
    generator: (Y, (TypeError, "a yield")),
    no_obs: (Y, (ModelWarning, "No site of the model is observed", "Is an obs= missing?")),
    obs_by_position: (Y, (TypeError, "Site 'y' has torch.float32 (3,) after its distribution", "obs=y")),
    obs_by_another_name: (Y, (TypeError, "no option 'observed'", "Data are obs=")),
    key_of_jax: (Y, (TypeError, "no option 'rng_key'", "Leave it out")),
    no_plate: (Y, None),
    no_event: (Y, (ValueError, "Site 'mu' has size 2", "plate 'data' of size 3", ".to_event(1)")),
    column: (Y, (ValueError, "shape (3,)", "batch shape (3, 1)", "what the distribution is made of")),
    column_times_vector: (Y, None),
    two_for_each: (Y, (ModelWarning, "batch shape (2, 3)", "dimension -2 is in no plate", "counts 2 times")),
    two_plates_for_each: (Y, None),
    pulled: (Y, None),
    wrong_plate: (Y, (ValueError, "shape (3,)", "plate 'data' of 4", "plate's size")),
    plate_of_data: (Y, (ValueError, "size of a plate is a number, got torch.float32 (3,)", "len(y)")),
    parameter_of_nobody: (Y, (ValueError, "No parameter 's'", "give it a value", "pyro.sample")),
    parameter: (Y, None),
    cleared: (Y, None),
    seeded: (Y, (ValueError, "sets the seed", "once, before run()")),
    seeded_noise: (Y, (ValueError, "sets the seed", "outside of the model")),
    noise_of_its_own: (Y, (VectorizationWarning, "random numbers are drawn outside of pyro.sample")),
    drawn: (Y, (ValueError, "changes between two evaluations", "pyro.sample")),
    poisson: (Y, (ValueError, "'y' has the value 1.2", "IntegerGreaterThan", "change the site's distribution")),
    percentage: (Y, (ModelWarning, "site 'y', Bernoulli, has probs = ", "of 20 draws of the prior", "nearest end")),
    log_normal: (Y - 1, (ValueError, "'y' has the value -0.6", "outside its support")),
    negative_scale: (Y, (ValueError, "site 'y', Normal, has scale = -1", "wrong sign")),
    no_scale: (Y, (ValueError, "site 'mu', Normal, has scale = 0", "above 0")),
    printed: (Y, None),
    kept_number: (Y, (ValueError, "pyro.deterministic('two', ...) got a float", "torch.as_tensor")),
    shape_of_a_sample: (Y, (TypeError, "Site 'mu' has a sample shape", ".expand([3])", "pyro.plate")),
    parameters_by_other_names: (Y, (ValueError, "keyword argument 'mu'", "Normal takes (loc, scale)")),
    event_of_a_number: (Y, (ValueError, ".to_event(n)", "Leave it out", ".expand([3])")),
    expanded_by_a_number: (Y, (ValueError, ".expand takes a shape: write .expand([3])")),
    list_in_dirichlet: (Y, (ValueError, "Dirichlet has concentration = a list of 3", "torch.tensor(concentration")),
    array_observed: (Y, (ValueError, "Site 'y' observes a numpy array float64 (3,)", "obs=torch.as_tensor(y")),
    truth_observed: (Y, (ValueError, "Site 'y' has the value True", "torch.tensor(1.0)")),
    columns_of_a_frame: (
        pd.DataFrame({"x": X.numpy(), "y": Y.numpy()}),
        (ValueError, "Argument 'frame' is a pandas DataFrame (3, 2)", "frame['x'].to_numpy()"),
    ),
    on_meta: (Y, (ValueError, "site 'y'", "'y' on cpu", "one device")),
}
LABELS = {
    "counts": (poisson, torch.tensor([1, 0, 2]), None),
    "from one": (categorical, torch.tensor([1, 2, 3]), (ValueError, "labels from 1 to 3", "0 to 2", "labels minus 1")),
    "missing ones": (categorical, torch.tensor([-1, 0, 1]), (ValueError, "labels from -1 to 1", "code these from 0")),
    "from one, in numpy": (categorical, np.array([1, 2, 3]), (ValueError, "Argument 'y' is a numpy array int64")),
    "one-hot": (
        categorical,
        torch.eye(3),
        (ModelWarning, "a single 1 in each row", "y.argmax(-1)", "OneHotCategorical"),
    ),
    "from zero": (categorical, torch.tensor([0, 1, 2]), None),
    "as floats": (categorical, torch.tensor([0.0, 1.0, 2.0]), None),
    "one and two": (bernoulli, torch.tensor([1.0, 2.0, 1.0]), (ValueError, "'y' has the value 2.0", "Boolean")),
    "truth values": (bernoulli, Y > 1, (ValueError, "Argument 'y' is torch.bool (3,)", "y.float()")),
    "zero and one": (bernoulli, torch.tensor([0, 1, 1]), None),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("function", INSIDE, ids=lambda function: function.__name__)
def test_inside_of_the_model(function):
    y, row = INSIDE[function]
    told(row, started, function, y)


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    function, y, row = LABELS[name]
    told(row, started, function, y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    told((ValueError, "no GPU", "device="), started, on_a_gpu, Y)


def test_what_leaves_torch_runs_point_by_point():
    # The advice is for the model; torch's own, to write to its makers, is left out.
    told((VectorizationWarning, "point by point", "torch.where(...)"), started_loosely, branches, Y)
    with pytest.warns(ModelWarning, match=r"site 'mu' .*\(item\)"), pytest.warns(VectorizationWarning, match="item"):
        started(item, Y)


def started_loosely(function, y):
    target = started(function, y)
    # Half of the points lie on each branch: mu = z, and the density is that of two normals.
    z = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    loc = torch.where(z > 0, 2 * z, z)
    exact = -0.5 * z.square().sum(-1) - 0.5 * (Y.double() - loc).square().sum(-1) - 2 * math.log(2 * math.pi)
    assert torch.allclose(target.log_prob(z), exact)


def test_the_density_of_what_is_detached_is_right():
    # The warning is of the gradient; values are those of the model: four normals.
    with pytest.warns(ModelWarning):
        target = started(detached, Y)
    z = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    exact = -0.5 * z.square().sum(-1) - 0.5 * (Y.double() - z).square().sum(-1) - 2 * math.log(2 * math.pi)
    assert torch.allclose(target.log_prob(z), exact)


def test_random_numbers_stay_where_they_are():
    # The check for seeds uses none up.
    pyro.set_rng_seed(3)
    expected = torch.rand(3)
    pyro.set_rng_seed(3)
    OSDS.from_log_prob(lambda z: -z.square().sum(-1), 2)
    assert torch.equal(torch.rand(3), expected)


def test_a_density_that_sets_the_seed():
    def seeds(z):
        torch.manual_seed(0)
        return -z.square().sum(-1)

    told((ValueError, "log_prob_fn sets the seed", "once, before run()"), OSDS.from_log_prob, seeds, 2)


# ---- after a run ----


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=50, num_chains=2, num_iterations=20, escalate=False, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        osds.run(Y)
    return osds


AFTER = {
    "half a draw": (lambda fit: fit.get_samples(0.5), (ValueError, "num_samples", "got 0.5.")),
    "numbers of numpy": (lambda fit: fit.get_samples(np.int64(5)), None),
    "too many draws": (lambda fit: fit.draw(10**13), (ValueError, "num_draws=10000000000000", "draw_batches")),
    "another run's option": (
        lambda fit: fit.run(Y, num_samples=9),
        (ValueError, "'num_samples'", "OSDS(model, num_samples"),
    ),
    "a percentage": (lambda fit: fit.summary(90), (ValueError, "prob", "Write 0.9")),
    "its mapping": (lambda fit: Predictive(model, fit), (AttributeError, "'items'", "osds.get_samples()")),
    "the mapping": (lambda fit: Predictive(model, fit.get_samples())(Y), None),
    "ArviZ": (lambda fit: az.summary(fit.to_inference_data()), None),
    "ArviZ and MCMC": (lambda fit: az.from_pyro(fit, log_likelihood=False), None),
    # ArviZ has no place to ask us: its own sentence names what was got.
    "ArviZ and a sampler": (lambda fit: az.summary(fit), (ValueError, "not OSDS")),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", AFTER)
def test_after_a_run(fitted, name):
    do, row = AFTER[name]
    if name == "ArviZ and a sampler":
        with pytest.raises(row[0], match=row[1]):
            do(fitted)
        return
    told(row, do, fitted)


def test_a_run_within_a_running_loop():
    # As in a notebook, whose cells run within one; and in a thread of its own.
    options = {"num_samples": 20, "num_chains": 1, "num_iterations": 10, "escalate": False, "disable_progbar": True}
    first, second = OSDS(model, **options), OSDS(model, **options)

    async def cell():
        first.run(Y)
        await asyncio.to_thread(second.run, Y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(cell())
    assert first.get_samples()["mu"].shape == second.get_samples()["mu"].shape == (20,)


def test_a_constant_that_changes_between_runs():
    # The next run reads the constants of its model anew.
    scale = torch.tensor(1.0)

    def depends(y):
        pyro.sample("y", dist.Normal(pyro.sample("mu", N), scale), obs=y[0])

    started(depends, Y)
    scale = torch.tensor(3.0)
    second = started(depends, Y)
    z = torch.zeros(1, 1, dtype=torch.float64)
    exact = N.log_prob(torch.tensor(0.0)) + dist.Normal(0.0, 3.0).log_prob(Y[0])
    assert second.log_prob(z).item() == pytest.approx(exact.item(), abs=1e-6)


def test_a_rate_of_zero_is_one():
    # A Poisson of rate zero has counts of zero, and its log density is zero there.
    def counts(y):
        pyro.sample("mu", N)
        pyro.sample("y", dist.Poisson(torch.zeros(3)).to_event(1), obs=y)

    told(None, started_counts, counts)


def started_counts(function):
    z = torch.zeros(1, 1, dtype=torch.float64)
    assert started(function, torch.zeros(3)).log_prob(z).item() == pytest.approx(-0.5 * math.log(2 * math.pi))
