"""Models of the zoo that change tensors in place, look at constants, or call code that was not written for Pyro."""

from __future__ import annotations

import importlib.util

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn, tensor
from torch.autograd import Function
from torch.nn.utils.rnn import pack_padded_sequence
from zoo import ZOO, case

_BEFORE = set(ZOO)

HISTORY = ((1, 0, 1, 0), (0, 1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0))


def history():
    return tensor(HISTORY, dtype=torch.get_default_dtype())


def recaptures():
    """The same masks, made anew for each site."""
    y = history()
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("animals", len(y)):
        for t in range(y.shape[1]):
            with poutine.mask(mask=y[:, :t].sum(1) > 0):
                pyro.sample(f"y{t}", dist.Bernoulli(p), obs=y[:, t])


@case(reference=recaptures)
def mask_in_place():
    """Capture and recapture: an animal counts from its first capture on."""
    y = history()
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    seen = torch.zeros(len(y), dtype=torch.bool)
    with pyro.plate("animals", len(y)):
        for t in range(y.shape[1]):
            with poutine.mask(mask=seen):
                pyro.sample(f"y{t}", dist.Bernoulli(p), obs=y[:, t])
            seen |= y[:, t].bool()


def shifted(in_place):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        offset = torch.zeros(2)
        for t in range(3):
            pyro.sample(f"y{t}", dist.Normal(x * (offset + 1.0), 1.0).to_event(1), obs=torch.ones(2))
            offset = offset.add_(0.5) if in_place else offset + 0.5

    return model


case("location_in_place", reference=shifted(False))(shifted(True))


def doubled(in_place):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("first", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))
        x = x.mul_(2.0) if in_place else x * 2.0
        pyro.sample("second", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))

    return model


case("latent_in_place", reference=doubled(False))(doubled(True))


class Scratch(PyroModule):
    """A module that writes into its own buffer in each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("work", torch.zeros(2))
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self):
        self.work.zero_()
        self.work += 2.0
        pyro.sample("y", dist.Normal(self.slope * self.work.clone(), 1.0).to_event(1), obs=torch.ones(2))


case("buffer_in_place", built=True)(Scratch)


@case()
def constants_in_python():
    """Python looks at what no latent reaches."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    data = torch.arange(3.0)
    if torch.equal(data, data.clone()) and torch.allclose(data, data) and bool(data.any()):
        x = x * data.data.sum().item() + float(data.numpy().max()) + data.tolist()[1]
    pyro.sample("y", dist.Normal(x, 1.0), obs=tensor(0.5))


@case()
def equal_by_construction():
    """A latent against itself: the answer does not depend on its value."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    first, second = x / 2.0, x / 2.0
    loc = first + second if torch.equal(first, second) else first
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=torch.ones(2))


@case(backend="loop")
def equal_by_value():
    """A latent against a number."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    loc = x + 1.0 if torch.equal(x, torch.zeros(())) else x
    pyro.sample("y", dist.Normal(loc, 1.0), obs=tensor(0.5))


# ---- recurrent networks ----

SEQUENCE = 4


def recurrent(kind, packed=False, **options):
    def build():
        torch.manual_seed(0)
        net = getattr(nn, kind)(2, 2, **options)
        inputs = torch.randn(SEQUENCE, 3, 2)
        y = torch.randn(3)

        def model():
            weights = {}
            for name, value in net.named_parameters():
                prior = dist.Normal(0.0, 0.5).expand(value.shape).to_event(value.dim())
                weights[name] = pyro.sample(name, prior)
            if kind.endswith("Cell"):
                state = torch.zeros(3, 2)
                state = (state, state) if kind == "LSTMCell" else state
                for x in inputs:
                    state = torch.func.functional_call(net, weights, (x, state))
                out = state[0] if kind == "LSTMCell" else state
            else:
                x = pack_padded_sequence(inputs, tensor([4, 3, 2])) if packed else inputs
                state = torch.func.functional_call(net, weights, (x,))[1]
                out = (state[0] if kind == "LSTM" else state)[-1]
            with pyro.plate("rows", 3):
                pyro.sample("y", dist.Normal(out.sum(-1), 1.0), obs=y)

        return model

    return build


for _kind in ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"):
    case(f"{_kind.lower()}_weights", built=True)(recurrent(_kind))
case("lstm_two_layers_both_ways", built=True)(recurrent("LSTM", num_layers=2, bidirectional=True, proj_size=1))
case("gru_packed", built=True)(recurrent("GRU", packed=True))


# ---- functions with their own gradient ----


class Older(Function):
    """Keeps what it needs by the context of its forward."""

    @staticmethod
    def forward(ctx, x, k):
        y = x.exp()
        ctx.save_for_backward(x, y)
        ctx.k, ctx.scaled = k, k * y
        return k * y, x.sin()

    @staticmethod
    def backward(ctx, first, second):
        x, _ = ctx.saved_tensors
        return first * ctx.scaled + second * x.cos(), None


class WithoutRule(Function):
    """Newer, without a rule for batches."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def with_functions(written):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if written:
            loc = 0.5 * x.exp() + x.sin() + x**3
        else:
            first, second = Older.apply(x, 0.5)
            loc = first + second + WithoutRule.apply(x)
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=torch.ones(2))

    return model


case("autograd_functions", reference=with_functions(True))(with_functions(False))


# ---- other packages, where they are installed ----

if importlib.util.find_spec("torchdiffeq"):

    def decay(exact):
        def model():
            from torchdiffeq import odeint

            rate = pyro.sample("rate", dist.LogNormal(-1.0, 0.5))
            times = torch.linspace(0.0, 3.0, 4)
            if exact:
                x = torch.exp(-rate * times)
            else:
                x = odeint(lambda _, x: -rate * x, torch.ones(1), times, method="dopri5")[:, 0]
            pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=tensor([1.0, 0.6, 0.4, 0.3]))

        return model

    case("dopri5", reference=decay(True))(decay(False))

if importlib.util.find_spec("gpytorch"):

    def gaussian_process():
        import gpytorch

        x = torch.linspace(0.0, 1.0, 6)
        y = torch.sin(5.0 * x)
        likelihood = gpytorch.likelihoods.GaussianLikelihood()

        class Process(gpytorch.models.ExactGP):
            def __init__(self):
                super().__init__(x, y, likelihood)
                self.mean_module = gpytorch.means.ConstantMean()
                self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        process = Process()
        prior = gpytorch.priors.GammaPrior(2.0, 4.0)
        process.covar_module.base_kernel.register_prior("lengthscale_prior", prior, "lengthscale")
        likelihood.register_prior("noise_prior", gpytorch.priors.GammaPrior(2.0, 10.0), "noise")
        process.train()

        def model():
            sampled = process.pyro_sample_from_prior()
            pyro.sample("y", sampled.likelihood(sampled(x)), obs=y)

        return model

    case("gpytorch_exact", built=True)(gaussian_process)

FOREIGN = set(ZOO) - _BEFORE
