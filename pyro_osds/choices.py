"""Options whose values are words, and the options of the sampler together, as types: a typo is seen before a run.

Modules read the words that are allowed off these types, so that there is one list of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import os

    from pyro.optim import PyroOptim
    from torch import Tensor

    from pyro_osds.runtime.watch.callback import RunProgress
    from pyro_osds.symmetries import Symmetry

Correction: TypeAlias = Literal["imh", "psis", "none"]
RecipeName: TypeAlias = Literal["auto", "calibrate", "cover", "distill", "few_steps"]
Network: TypeAlias = Literal["coupling", "velocity"]
Volume: TypeAlias = Literal["published", "exact"]
Vectorize: TypeAlias = Literal["auto", "vmap", "loop"]
Capture: TypeAlias = Literal["auto", False]
Temperature: TypeAlias = Literal[0, 1]


class _Options(TypedDict, total=False):
    """What both ways to a sampler take."""

    num_steps: int
    disable_progbar: bool
    initial_params: Mapping[str, Tensor] | Tensor | None
    init_strategy: Callable[..., Any]
    max_plate_nesting: int | None
    transforms: Mapping[str, Any] | None
    correction: Correction
    num_iterations: int
    max_time: float | None
    target_std_error: float
    escalate: bool
    batch_size: int
    learning_rate: float
    optim: PyroOptim | None
    num_particles: int
    recipe: RecipeName
    num_time_steps: int
    network: Network
    volume: Volume
    num_blocks: int | None
    hidden_features: int | None
    warm_start: bool
    distributed: bool
    seed: int | None
    callback: Callable[[RunProgress], Any] | None
    checkpoint: str | os.PathLike[str] | None
    initial_samples: Any
    symmetries: Symmetry | Sequence[Symmetry]
    vectorize: Vectorize
    capture: Capture


class DensityOptions(_Options, total=False):
    """Options of :class:`~pyro_osds.OSDS` for any density, as ``OSDS.from_log_prob`` takes them."""

    num_samples: int
    num_chains: int


class KernelOptions(_Options, total=False):
    """Options of :class:`~pyro_osds.OSDSKernel`; numbers of samples and chains are those of ``MCMC``."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
