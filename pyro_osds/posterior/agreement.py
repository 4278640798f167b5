r"""The flow held against draws from elsewhere, such as those of NUTS or Stan: which of the two misses something?

With weights :math:`w = \gamma / q` at reference draws of the posterior *p*, through the inverse of the flow,

.. math::
    \mathrm{EUBO} = \mathrm{E}_p \log w \ \ge\ \log Z, \qquad
    \log \hat Z_p = -\log \mathrm{E}_p\, w^{-1}, \qquad
    \mathrm{ELBO} = \mathrm{E}_q \log w \ \le\ \log Z.

A part of the posterior that the flow lacks has large weights: the upper bound and :math:`\log \hat Z_p` rise above the
flow's own log evidence. A part that the reference lacks leaves both where they are, since there the flow is not asked;
then only the parameters disagree.

Sources: Beyond ELBOs, Blessing et al. 2024 (2406.07423); reciprocal importance sampling, Gelfand and Dey 1994.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from pyro_osds.stats.chains import MAX_LENGTH
from pyro_osds.stats.pareto import pareto_k
from pyro_osds.stats.thresholds import (
    CERTAIN_NATS,
    LARGE_NATS,
    MAX_LOST,
    MAX_PARETO_K,
    MAX_SIGMAS,
    SMALL_ERROR,
    SMALL_NATS,
)
from pyro_osds.stats.weights import WeightSummary, log_mean_weight, summarize_weights

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """How the flow and reference draws agree.

    Arguments:
        agrees: Whether neither the evidences nor the parameters differ by more than chance and what matters.
        sentence: Which side disagrees, and what to do.
        elbo: Mean log weight of the flow's own draws, nats; a lower bound of the log evidence.
        log_evidence: Log evidence from the flow's own draws, nats.
        std_error: Its standard error, nats.
        eubo: Mean log weight of the reference draws, nats; an upper bound if they are draws of the posterior.
        eubo_std_error: Its standard error, nats, that takes autocorrelation into account.
        forward_log_evidence: Log evidence from the reference draws, nats.
        forward_std_error: Its standard error, nats.
        parameters: A row for each number at each site: ``mean_error`` in standard deviations of the reference, its
            ``std_error``, and ``sd_ratio``, the flow's standard deviation over the reference's, with the standard error
            of its logarithm, ``sd_ratio_std_error``, which heavy tails make large.

    Example:
        >>> import pandas as pd
        >>> print(Agreement(True, "Flow and reference agree.", -2.1, -2.0, 0.01, -1.9, 0.1, -2.0, 0.1, pd.DataFrame()))
        Flow and reference agree.
    """

    agrees: bool
    sentence: str
    elbo: float
    log_evidence: float
    std_error: float
    eubo: float
    eubo_std_error: float
    forward_log_evidence: float
    forward_std_error: float
    parameters: pd.DataFrame = field(repr=False)

    def __str__(self) -> str:
        return self.sentence

    def with_objections(self, stuck: str = "", lacking: str = "") -> Agreement:
        """The same, after what speaks against the reference draws and was taken out before they were compared.

        Arguments:
            stuck: A sentence on chains that were left out, or nothing.
            lacking: A sentence on copies of one mode that the draws lack, or nothing.

        Example:
            >>> import pandas as pd
            >>> well = Agreement(True, "Well.", -2.1, -2.0, 0.01, -1.9, 0.1, -2.0, 0.1, pd.DataFrame())
            >>> print(well.with_objections(lacking="they sit in 1 of 2 copies"))  # doctest: +ELLIPSIS
            The reference disagrees: they sit in 1 of 2 copies. In a single copy nothing else differs: log evidence ...
        """
        objections = [text for text in (stuck, lacking) if text]
        if not objections:
            return self
        what = "Of what is left" if stuck else "In a single copy"
        rest = self.sentence
        if self.agrees:
            rest = (
                f"{what} nothing else differs: log evidence {self.log_evidence:.3f} +- {self.std_error:.3f} from the "
                f"flow, {self.forward_log_evidence:.3f} from the reference draws."
            )

        return replace(self, agrees=False, sentence=f"The reference disagrees: {'; '.join(objections)}. {rest}")


def compare_with_reference(log_weight: Tensor, reference_log_weight: Tensor, parameters: pd.DataFrame) -> Agreement:
    """The verdict on both sides.

    Arguments:
        log_weight: Log weights of the flow's own draws, ``(S,)``.
        reference_log_weight: Log weights of the reference draws, in their order, ``(R,)``.
        parameters: As :func:`parameter_errors` makes it.

    Example:
        >>> import torch
        >>> torch.manual_seed(0) and None
        >>> table = parameter_errors({"x": torch.randn(4000)}, {"x": torch.randn(1000)})
        >>> compare_with_reference(torch.zeros(4000), torch.zeros(1000), table).agrees
        True
    """
    own = summarize_weights(log_weight)
    usable = reference_log_weight[reference_log_weight.isfinite()].double()
    if len(usable) < 2:
        raise ValueError(
            f"The log density is finite at {len(usable)} of {len(reference_log_weight)} reference draws; check that "
            "they are draws of this model, in its own parameters."
        )
    inflation = math.sqrt(len(usable) / _effective(usable))
    eubo, eubo_error = usable.mean().item(), inflation * usable.std().item() / math.sqrt(len(usable))
    reciprocal, reciprocal_error = log_mean_weight(-usable)
    forward, forward_error = -reciprocal, inflation * reciprocal_error
    numbers = (eubo, eubo_error, forward, forward_error)
    lost = len(reference_log_weight) - len(usable)
    sentence = _sentence(own, *numbers, lost / len(reference_log_weight), pareto_k(usable), parameters)
    agrees = not sentence
    sentence = sentence or _AGREE.format(own.log_mean_weight, own.std_error, forward)

    return Agreement(agrees, sentence, own.elbo, own.log_mean_weight, own.std_error, *numbers, parameters)


_AGREE = (
    "Flow and reference agree: log evidence {0:.3f} +- {1:.3f} from the flow, {2:.3f} from the reference draws, and no "
    "parameter differs by what matters."
)


def _sentence(
    own: WeightSummary,
    eubo: float,
    eubo_error: float,
    forward: float,
    forward_error: float,
    lost: float,
    k: float,
    parameters: pd.DataFrame,
) -> str:
    """What disagrees, or nothing."""
    log_evidence = own.log_mean_weight
    # Standard errors of heavy tails may be anything; beyond what Markov's inequality allows they do not matter.
    chance = MAX_SIGMAS * math.hypot(own.std_error, forward_error)
    differs = abs(forward - log_evidence) > max(SMALL_NATS, min(chance, CERTAIN_NATS))
    if forward < log_evidence - CERTAIN_NATS:
        return (
            f"The reference disagrees: some of its draws lie where the posterior has hardly any (log evidence "
            f"{forward:.3f} from them, {log_evidence:.3f} from the flow, more apart than chance explains); leave out "
            "warm-up and chains that did not converge, and check that both are the same model of the same data."
        )
    if lost > MAX_LOST:
        return (
            f"The reference disagrees: {lost:.0%} of its draws have density zero under this model; check that both are "
            "the same model of the same data."
        )
    # A heavy tail of weights that hardly differ, as k alone would have it, proposes nothing too little.
    missing = eubo - log_evidence
    above = missing > max(LARGE_NATS, MAX_SIGMAS * eubo_error) or (k > MAX_PARETO_K and missing > SMALL_NATS)
    if (differs and forward > log_evidence) or (above and not parameters.empty and _worst(parameters) is not None):
        return (
            f"The flow disagrees: reference draws lie where it proposes too little (upper bound {eubo:.3f}, log "
            f"evidence {forward:.3f} from the reference, {log_evidence:.3f} from the flow); raise num_iterations or "
            "num_particles."
        )
    if differs:
        return (
            f"The flow disagrees: its log evidence {log_evidence:.3f} lies above the {forward:.3f} from the reference "
            "draws; a few heavy draws may carry it, so raise num_samples or num_iterations."
        )
    worst = _worst(parameters)
    if worst is not None:
        row = parameters.loc[worst]
        return (
            f"The reference disagrees: at its own draws the flow's density is right, yet {worst} differs (mean by "
            f"{row['mean_error']:+.2f} sd, sd ratio {row['sd_ratio']:.2f}); the reference lacks a part of the "
            "posterior, so run it longer or from several starts."
        )

    return ""


def _worst(parameters: pd.DataFrame) -> str | None:
    """The parameter that differs most, if it differs by more than chance and by what matters."""
    mean = parameters["mean_error"].abs()
    scale = parameters["sd_ratio"].map(math.log).abs()
    bad_mean = mean[mean > np.maximum(SMALL_ERROR, MAX_SIGMAS * parameters["std_error"])]
    bad_scale = scale[scale > np.maximum(SMALL_ERROR, MAX_SIGMAS * parameters["sd_ratio_std_error"])]
    worst = max((bad_mean, bad_scale), key=lambda bad: -math.inf if bad.empty else bad.max())

    return None if worst.empty else str(worst.idxmax())


def parameter_errors(draws: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> pd.DataFrame:
    """Errors of means and standard deviations against reference draws, a row for each number.

    Arguments:
        draws: Posterior draws by site, ``(S, *shape)``.
        reference: Reference draws by site, ``(R, *shape)``, in the order in which they were made.
    """
    import pandas as pd  # here, since it takes half a second

    rows = {}
    for name in reference:
        if name not in draws:
            continue
        ours, theirs = (values[name].reshape(len(values[name]), -1).double() for values in (draws, reference))
        shape = reference[name].shape[1:]
        for column in range(theirs.shape[1]):
            index = ",".join(map(str, np.unravel_index(column, shape))) if shape else ""
            rows[f"{name}[{index}]" if index else name] = _errors(ours[:, column], theirs[:, column])

    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["mean_error", "std_error", "sd_ratio", "sd_ratio_std_error"]
    )


def _errors(ours: Tensor, theirs: Tensor) -> tuple[float, float, float, float]:
    sd = theirs.std().item()
    ratio = ours.std().item() / sd if sd > 0 else math.inf
    error = (ours.mean() - theirs.mean()).item() / sd if sd > 0 else math.inf

    std_error = math.hypot(ratio / math.sqrt(_effective(ours)), 1.0 / math.sqrt(_effective(theirs)))
    # The variance of the log of a standard deviation is a quarter of the kurtosis less one: heavy tails tell little.
    kurtosis = max(_kurtosis(ours), _kurtosis(theirs))

    return error, std_error, ratio, std_error * math.sqrt(max(kurtosis - 1.0, 4.0) / 4.0)


def _kurtosis(values: Tensor) -> float:
    variance = values.var(correction=0)

    return ((values - values.mean()).pow(4).mean() / variance.square()).item() if variance > 0 else 1.0


def _effective(values: Tensor) -> float:
    """Effective number of a sequence of draws; chains one after the other count as one."""
    # Its cost grows with the square of the length, so the share is that of the beginning.
    head = values[:MAX_LENGTH]
    if not head.std() > 0:
        return float(len(values))
    share = effective_sample_size(head[None], chain_dim=0, sample_dim=1).item() / len(head)

    # Draws that alternate have a negative one, and are better than independent.
    return len(values) * (share if 0 < share < 1 else 1.0)
