"""A gradient that is not that of the density is warned of: values that went through Python lose it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds.model import ModelTarget, PotentialTarget
from pyro_osds.runtime.warnings import ModelWarning

pytestmark = pytest.mark.filterwarnings("ignore::pyro_osds.model.VectorizationWarning")


def model_with(function):
    def model():
        quiet = pyro.sample("quiet", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(function(x) + quiet, 1.0), obs=torch.tensor(1.0))

    return model


@pytest.mark.parametrize(
    "function",
    [
        math.exp,
        lambda x: torch.tensor(x.item()),
        lambda x: torch.as_tensor(x.tolist()) ** 2,
        lambda x: torch.as_tensor(np.sin(x.detach().numpy())),
        lambda x: float(x),
        lambda x: x * math.tanh(x),  # a part of it is lost
    ],
)
def test_a_lost_gradient_is_warned_of(function):
    # The site that lost it, the line, and the cure.
    with pytest.warns(ModelWarning, match=r"site 'x' is not that of its values.*test_gradients\.py.*torch\.exp\(x\)"):
        ModelTarget(model_with(function))


def test_a_potential_is_looked_at_as_well():
    with pytest.warns(ModelWarning, match="site 'x' is not that of its values"):
        PotentialTarget(lambda p: torch.tensor(p["x"].item()) ** 2 + p["x"] ** 2, {"x": torch.tensor(0.5)})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x > 0 else -x,
        lambda x: torch.tensor(float(math.floor(x))) if x > 100 else x,
        lambda x: x + (1.0 if x.item() > 0 else 0.0),  # a step, whose slope is nowhere
        lambda x: x.clamp(min=0.0) if x.item() < 2.0 else x,
        lambda x: torch.tensor(float(round(x.item()))),  # flat nearly everywhere, as its gradient says
    ],
)
def test_branches_and_steps_are_no_reason_to_warn(function):
    assert ModelTarget(model_with(function)).backend == "loop"


def test_batches_have_no_such_way():
    # With vmap and graphs nothing leaves torch; the check costs nothing there.
    assert ModelTarget(model_with(torch.tanh)).backend == "captured"
