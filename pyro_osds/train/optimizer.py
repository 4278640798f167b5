"""The optimiser: Adam on a one-cycle schedule in each round, or one of ``pyro.optim`` that the user chose.

A chosen one is made once for each flow and goes on through all rounds; its schedule takes a step with every optimiser
step. Callables of Pyro are asked once for each parameter, by its name in the flow, such as
``blocks.0.network.layers.0.weight``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch.nn import Module
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_osds.runtime.light_adam import LightAdam

# Share of a round in which the learning rate rises. A flow that starts as the identity needs no longer rise (torch's
# default is 0.3), and the fall, in which weights settle, gets the time.
_WARM_UP_SHARE = 0.1
# A one-cycle schedule needs two steps to warm up, a tenth of twenty; a shorter round runs a part of it.
_MIN_SCHEDULE = 20


def check_optim(optim: Any) -> None:
    """Refuse what is neither None nor a Pyro optimiser.

    Raises:
        TypeError: If it is anything else.

    Example:
        >>> check_optim(torch.optim.SGD)
        Traceback (most recent call last):
        TypeError: optim must be one of pyro.optim, such as pyro.optim.Adam({"lr": 1e-3}), or None; got type. A torch
        optimiser becomes one by pyro.optim.PyroOptim(torch.optim.SGD, {"lr": 1e-3}).
    """
    if optim is not None and not isinstance(optim, PyroOptim):
        raise TypeError(
            f'optim must be one of pyro.optim, such as pyro.optim.Adam({{"lr": 1e-3}}), or None; got '
            f"{type(optim).__name__}. A torch optimiser becomes one by "
            'pyro.optim.PyroOptim(torch.optim.SGD, {"lr": 1e-3}).'
        )


def one_cycle(optimizer: LightAdam, learning_rate: float, num_steps: int | None = None) -> tuple[Any, Any]:
    """Adam with its schedule for one round; without a number of steps there is no schedule.

    Arguments:
        optimizer: Adam on what is trained.
        learning_rate: The peak of the schedule.
        num_steps: Steps of the round.
    """
    if num_steps is None:
        return optimizer, None

    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(num_steps, _MIN_SCHEDULE), pct_start=_WARM_UP_SHARE
    )


def chosen(module: Module, optim: PyroOptim) -> tuple[Any, Any]:
    """The torch optimiser and schedule, or None, that a Pyro optimiser stands for; its own state stays untouched.

    Arguments:
        module: What is trained.
        optim: A Pyro optimiser.

    Example:
        >>> optimizer, scheduler = chosen(torch.nn.Linear(1, 1), PyroOptim(torch.optim.SGD, {"lr": 0.1}))
        >>> type(optimizer).__name__, len(optimizer.param_groups), scheduler
        ('SGD', 2, None)
    """
    groups = [
        {"params": [parameter], **_asked(optim.pt_optim_args, name)} for name, parameter in module.named_parameters()
    ]
    optimizer: Any = optim.pt_optim_constructor(groups, **_defaults(groups))  # type: ignore[operator]
    if not isinstance(optim, PyroLRScheduler):
        return optimizer, None

    return optimizer, optim.pt_scheduler_constructor(optimizer, **optim.kwargs)


def clip(module: Module, optim: PyroOptim) -> None:
    """Clip gradients as the Pyro optimiser's ``clip_args`` say, parameter by parameter."""
    for name, parameter in module.named_parameters():
        if clip_args := _asked(optim.pt_clip_args, name):
            PyroOptim._clip_grad(parameter, **clip_args)


def step_schedule(scheduler: Any, loss: float) -> None:
    """One step of a schedule, if there is one; those that wait for a plateau see the loss."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
    elif scheduler is not None:
        with warnings.catch_warnings():
            # A first step that was skipped, since its gradient was not finite, is no mistake in the order of calls.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()


def _asked(given: Any, name: str) -> Any:
    return given(name) if callable(given) else given


def _defaults(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Options that a constructor may ask for although all groups have them: those of the first group."""
    return {name: value for name, value in groups[0].items() if name != "params"}
