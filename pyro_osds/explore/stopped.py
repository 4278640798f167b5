"""What can be made of an exploration that was stopped: particles and a base to make do with, until it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_osds.explore.given.survey import survey_of_draws
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.modes import Modes
from pyro_osds.explore.particles import Annealing, Exploration, GivenDraws
from pyro_osds.explore.survey import Survey, survey
from pyro_osds.flow.base import gaussian_base
from pyro_osds.runtime.clock import OutOfTimeError, now, time_limit
from pyro_osds.runtime.warnings import InterruptedWarning, warn
from pyro_osds.symmetries import Symmetry
from pyro_osds.target import Target, as_target


def survey_in_time(
    target: Target,
    num_particles: int,
    starts: Tensor | None,
    journal: Journal,
    deadline: float,
    is_shared: bool = False,
    last: float = math.inf,
    given: GivenDraws | None = None,
    symmetries: Sequence[Symmetry] = (),
) -> tuple[Survey, str]:
    """Explore until that is done, or the time is over, or Ctrl-C stops it.

    Arguments:
        target: The target.
        num_particles: Particles on each replicate.
        starts: Unconstrained points to look around, ``(S, D)``, where no prior can be sampled.
        journal: Where all is noted; one that knows something already is gone on with.
        deadline: Time of :func:`~pyro_osds.runtime.clock.now`.
        is_shared: Whether other processes wait for what is found; they would not know of Ctrl-C, so it leaves nothing.
        last: When it ends in any case; until then one that was stopped at the same place before gets more time.
        given: Draws from elsewhere that take the place of the way from the prior.
        symmetries: Symmetries of the density that the user declares.

    Returns:
        What was found, and what stopped the exploration: ``"max_time"``, ``"Ctrl-C"`` or nothing.

    Raises:
        KeyboardInterrupt: If Ctrl-C came before there was anything to make do with.
    """
    try:
        journal.rewind()
        # What is not noted in between is done again by whoever goes on, and has to come to its end at some time.
        with time_limit(min(last, now() + 2**journal.num_stuck * (deadline - now()))):
            if given is not None:
                return survey_of_draws(target, given, num_particles, journal=journal, symmetries=symmetries), ""
            found = survey(target, num_particles, starts=starts, journal=journal, symmetries=symmetries)
            return found, ""
    except OutOfTimeError:
        journal.stop()
        return survey_so_far(target, journal, starts), "max_time"
    except KeyboardInterrupt:
        if journal.is_empty or is_shared:
            raise
        warn("Exploration was interrupted; what it has found is judged.", InterruptedWarning)

        return survey_so_far(target, journal, starts), "Ctrl-C"


def survey_so_far(target: Target, journal: Journal, starts: Tensor | None = None) -> Survey:
    """What can be made of an exploration that was stopped, without another evaluation of the density.

    The particles of the first way jump from the temperature that they have reached to the target at once. Where there
    are none, the base is a standard normal around the first start. Modes are not looked for.

    Arguments:
        target: The target that was explored.
        journal: What the exploration has noted.
        starts: Unconstrained points to look around, ``(S, D)``, as they were given to :func:`survey`.

    Returns:
        A base and particles to make do with; the log evidence is worth what its standard error says.
    """
    target = as_target(target)
    base, progress = None, "before its first temperature"
    if journal.reached is not None:
        target, exploration, base = journal.reached
        progress = "while it looked again"
    elif journal.place is None:
        exploration = _nothing_found(target, starts)
    elif isinstance(at := journal.place[0], Annealing):
        exploration, progress = at.at_once().result(settled=False), f"at an inverse temperature of {at.beta:.2g}"
    else:
        exploration = _highest(*at[0][:2])
    z = exploration.z
    base = base or gaussian_base(z[z.isfinite().all(-1)])
    modes = Modes(torch.zeros(len(z), dtype=torch.long, device=z.device), 0.0)

    return Survey(target, base, exploration, modes, exploration.num_evaluations, progress=progress)


def _highest(z: Tensor, log_prob: Tensor) -> Exploration:
    """The upper half of points on their way to the target, with no evidence from them."""
    chosen = log_prob.nan_to_num(-torch.inf).argsort(descending=True)[: len(z) // 2]
    nothing = z.new_full((2,), -torch.inf, dtype=torch.float64)

    return Exploration(z[chosen], log_prob[chosen], nothing, 0, len(z), 0.0, 0, start=z, settled=False)


def _nothing_found(target: Target, starts: Tensor | None) -> Exploration:
    """Points that nobody has looked at, so that there is something to begin with."""
    z = torch.randn(16 * target.dim, target.dim, dtype=target.dtype, device=target.device)
    z = z if starts is None else z + starts[:1].to(z)
    nothing = z.new_full((len(z),), -torch.inf)

    return Exploration(z, nothing, nothing[:2].double(), 0, 0, 0.0, 0, start=z, settled=False)
