"""Private names of Pyro: each is there and does what it is for."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.special import safe_log
from pyro.poutine.runtime import _ENUM_ALLOCATOR

from pyro_osds.model import pyro_internals


def model():
    with pyro.plate("row", 2):
        pyro.deterministic("twice", 2 * pyro.sample("x", dist.Normal(0.0, 1.0)))
        pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})


def test_plates_and_deterministic_sites():
    nodes = poutine.trace(model).get_trace().nodes
    kinds = {name: isinstance(site["fn"], pyro_internals.Subsample) for name, site in nodes.items() if "fn" in site}
    assert {name for name, is_plate in kinds.items() if is_plate} == {"row"}
    shown = {name for name, site in nodes.items() if site["type"] == "sample" and pyro_internals.is_shown(site)}
    assert shown == {"twice"}


def test_enumerated_dimensions():
    enumerated = poutine.enum(model, first_available_dim=-2)
    nodes = poutine.trace(enumerated).get_trace().nodes
    assert pyro_internals.enumerated_dim(nodes["k"]) == -2 and pyro_internals.enumerated_dim(nodes["x"]) is None


def test_allotted_dimensions_are_put_back():
    before = pyro_internals.allotted_dims()
    _ENUM_ALLOCATOR.set_first_available_dim(-7)
    assert pyro_internals.allotted_dims() != before
    pyro_internals.restore_allotted_dims(before)
    assert pyro_internals.allotted_dims() == before


def test_numerical_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.linalg.cholesky(-torch.eye(2))
    assert pyro_internals.is_numerical(caught.value)
    assert not pyro_internals.is_numerical(RuntimeError("shapes do not match"))


def test_the_bounded_logarithm_is_replaced_and_put_back():
    # Pyro's own function calls whatever stands there.
    class Answer:
        @staticmethod
        def apply(x):
            return x + 42.0

    with pytest.raises(ZeroDivisionError), pyro_internals.safe_log_replaced(Answer):
        assert safe_log(torch.zeros(1)).item() == 42.0
        raise ZeroDivisionError
    assert safe_log(torch.ones(1)).item() == 0.0


def test_masks():
    mask = torch.tensor([True, False])
    assert pyro_internals.mask_of(dist.Normal(torch.zeros(2), 1.0).mask(mask)) is mask
    assert pyro_internals.mask_of(dist.Normal(0.0, 1.0).mask(False)) is False
    assert pyro_internals.mask_of(dist.Normal(0.0, 1.0)) is None
