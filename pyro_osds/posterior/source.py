"""A source of posterior draws other than the flow: its name, how it makes more draws, and the sentence that says so.

One network evaluation a draw is what the package promises, so whatever else gave the draws is said with the draws. A
source is made anew by each fit, from what the fit knows; draws and files hold its name alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro_osds.stats.weights import FlowDraws

if TYPE_CHECKING:
    from pyro_osds.posterior.draws import PosteriorDraws


@dataclass(frozen=True)
class DrawSource:
    """Where draws come from that no single network evaluation makes.

    Arguments:
        name: The stage, as it is called in reports and in the draws themselves (``PosteriorDraws.source``).
        makes: What the draws are, such as "draws of annealed SMC".
        more: So many fresh weighted draws, in the coordinates of the fit. The mean weight is the evidence.
        anew: Fresh posterior draws and the verdict on them, given those that there are.
        more_in: What makes them in another number of steps; None where a draw has no steps.

    Example:
        >>> import torch
        >>> nothing = torch.zeros(0)
        >>> none = FlowDraws(nothing[:, None], nothing, nothing, nothing, 0)
        >>> source = DrawSource("annealed SMC", "draws of annealed SMC", lambda count: none, lambda judged: judged)
        >>> source.sentence
        'draws of annealed SMC, not of one network evaluation'
    """

    name: str
    makes: str
    more: Callable[[int], FlowDraws]
    anew: Callable[[PosteriorDraws], PosteriorDraws]
    more_in: Callable[[int], Callable[[int], FlowDraws]] | None = None

    @property
    def sentence(self) -> str:
        """What the draws are, and that they do not come from one step of the flow."""
        return f"{self.makes}, not of one network evaluation"
