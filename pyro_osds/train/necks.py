"""After training: base draws for necks that the flow lacks, found once, and again from where it began if cut short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_osds.explore.necks.covered import cover_necks
from pyro_osds.explore.necks.tilted import Tilted
from pyro_osds.runtime.clock import OutOfTimeError, time_limit
from pyro_osds.runtime.resume import random_state, set_random_state
from pyro_osds.runtime.warnings import InterruptedWarning, warn
from pyro_osds.target import Target
from pyro_osds.train.trainer import Trainer


@dataclass
class NeckLook:
    """What is known of the necks of a trained flow.

    Arguments:
        found: Particles of the necks that it lacked.
        is_over: Whether it was looked for them.
        random: Random numbers where a look that was cut short began; it is repeated from there.
    """

    found: tuple[Tilted, ...] = ()
    is_over: bool = False
    random: dict[str, Any] | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it was cut short and would go on."""
        return self.random is not None

    def run(self, trainer: Trainer, target: Target, deadline: float) -> None:
        """Give base draws to the necks that a trained flow lacks; cut short, that is done when it is run again.

        Arguments:
            trainer: The trainer, whose leap gets another base.
            target: The target.
            deadline: Time of :func:`~pyro_osds.runtime.clock.now` at which it is left.
        """
        if self.is_over:
            return
        if self.random is not None:
            set_random_state(self.random)
        self.random = random_state()
        try:
            with time_limit(deadline):
                leap, self.found = cover_necks(trainer.leap, target)
        except OutOfTimeError:
            return
        except KeyboardInterrupt:
            trainer.history.interrupted = True
            warn("The look for necks was interrupted; the flow stays as it was trained.", InterruptedWarning)
            return
        trainer.leap.base, trainer.history.interrupted = leap.base, False
        self.is_over, self.random = True, None
