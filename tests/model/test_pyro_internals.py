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


def test_packed_log_probs():
    # A letter for each dimension; that of a discrete latent is its own.
    enumerated = poutine.enum(model, first_available_dim=-2)
    trace = poutine.trace(enumerated).get_trace()
    trace.compute_log_prob()
    trace.pack_tensors()
    log_prob, letters = pyro_internals.packed_log_prob(trace.nodes["k"])
    symbol = pyro_internals.enumerated_symbol(trace.nodes["k"])
    assert log_prob.shape[letters.index(symbol)] == 2 and len(letters) == log_prob.dim() <= 2
    assert pyro_internals.enumerated_symbol(trace.nodes["x"]) is None


def chain():
    for t in pyro.markov(range(4)):
        pyro.sample(f"k_{t}", dist.Bernoulli(0.5))
    pyro.sample("after", dist.Bernoulli(0.5))


def test_what_a_chain_lets_see():
    nodes = poutine.trace(chain).get_trace().nodes
    seen = [pyro_internals.is_in_markov_scope(nodes[f"k_{t}"], nodes["k_2"]) for t in (0, 1)]
    assert seen == [False, True] and not pyro_internals.is_in_markov_scope(nodes["k_3"], nodes["after"])
    assert pyro_internals.is_in_markov_scope(nodes["after"], nodes["k_3"])


def test_a_chain_that_sees_further():
    with pyro_internals.longer_history(1) as longest:
        nodes = poutine.trace(chain).get_trace().nodes
    assert longest == [2] and pyro_internals.is_in_markov_scope(nodes["k_0"], nodes["k_2"])
    again = poutine.trace(chain).get_trace().nodes
    assert not pyro_internals.is_in_markov_scope(again["k_0"], again["k_2"])


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


def test_what_pyro_makes_of_exceptions_under_a_trace():
    class Own(ValueError):
        def __init__(self, row, column):
            super().__init__(f"row {row}")

    for error in (Own(1, 2), RuntimeError("text")):

        def model(raised=error):
            raise raised

        with pytest.raises(Exception) as caught:
            poutine.trace(model).get_trace()
        assert caught.value is not error
        assert pyro_internals.as_raised(caught.value) is error
    other = KeyError("a")
    assert pyro_internals.as_raised(other) is other
