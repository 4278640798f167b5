"""What runs a recorded graph: TorchScript, or the interpreter for long ones and where there is no TorchScript.

Both run the recorded operations one by one, so they give the same bits; TorchScript has no Python between them and is
faster where tensors are small. It is not supported from Python 3.14 on, and torch announces its end. Where it is
missing the log says so (INFO), and where it refuses a graph the log says why (WARNING). The environment variable
``PYRO_OSDS_REPLAY=interpreter`` takes the interpreter at once, for all graphs that are recorded from then on.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx

from pyro_osds.runtime.recording.interpreter import Interpreter
from pyro_osds.runtime.torch_internals import TRACING, traced

VARIABLE = "PYRO_OSDS_REPLAY"
"""The environment variable that says what runs recorded graphs."""

TORCHSCRIPT, INTERPRETER = "torchscript", "interpreter"

# Operations from which on the interpreter takes a graph. TorchScript takes time as the square of them: 6,500 operations
# of a hidden Markov model 5 s, 41,000 of a differential equation 94 s, for the interpreter's 0.2 and 1.1 s; and so many
# small operations run no faster by it.
_MANY_OPERATIONS = 4000

_log = logging.getLogger(__name__)


def freeze(graph: fx.GraphModule, arguments: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The graph as a function, by TorchScript or by the interpreter.

    Arguments:
        graph: What was recorded.
        arguments: Arguments of the shapes that it was recorded for.

    Raises:
        ValueError: If the environment variable ``PYRO_OSDS_REPLAY`` names something else.

    Example:
        >>> from pyro_osds.runtime.recording.recorder import record_operations
        >>> graph = record_operations(lambda z: (2 * z,), torch.zeros(2))
        >>> freeze(graph, (torch.zeros(2),))(torch.ones(2))
        (tensor([2., 2.]),)
    """
    asked = os.environ.get(VARIABLE, TORCHSCRIPT)
    if asked not in (TORCHSCRIPT, INTERPRETER):
        raise ValueError(f"The environment variable {VARIABLE} must be {TORCHSCRIPT} or {INTERPRETER}, got {asked!r}.")
    if asked == INTERPRETER or len(graph.graph.nodes) > _MANY_OPERATIONS:
        return Interpreter(graph)
    if missing := _missing():
        _log.info("The interpreter runs a recorded graph: this torch has no %s.", missing)
        return Interpreter(graph)
    try:
        return TorchScript(graph, arguments)
    except Exception as error:  # noqa: BLE001 - whatever TorchScript objects to, the interpreter needs none of it
        _log.warning(
            "The interpreter runs a recorded graph: TorchScript refused it (%s: %s).", type(error).__name__, error
        )

    return Interpreter(graph)


class TorchScript:
    """A graph traced, and run as it is: optimised, it is no faster and differs in its last bit.

    Arguments:
        graph: What was recorded.
        arguments: Arguments of the shapes that it was recorded for.
    """

    def __init__(self, graph: fx.GraphModule, arguments: tuple[Tensor, ...]) -> None:
        with warnings.catch_warnings(), torch.no_grad():
            # torch >= 2.13 announces the end of TorchScript; traced values that became constants are checked later.
            warnings.simplefilter("ignore")
            self.script = traced(graph.forward, arguments)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self.script(*arguments)


def _missing() -> str | None:
    """What torch lacks of TorchScript, or None."""
    if not hasattr(getattr(torch, "jit", None), "optimized_execution"):
        return "torch.jit.optimized_execution"

    return next((f"torch._C.{name}" for name in TRACING if not hasattr(torch._C, name)), None)
