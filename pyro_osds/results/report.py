"""What a run tells about itself, as groups of arrays for InferenceData."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_osds.explore.survey import Survey
from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.evidence import Evidence, EvidenceCheck
from pyro_osds.train.teacher import TeacherHistory
from pyro_osds.train.trainer import History


def arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays."""
    return {name: torch.as_tensor(value).detach().cpu().numpy() for name, value in values.items()}


def sample_stats(draws: PosteriorDraws) -> dict[str, Tensor]:
    """The group ``sample_stats``: what is known of each draw, and of each chain."""
    num_chains = len(draws.index)

    return {
        "lp": draws.proposals.log_prob[draws.index],
        "log_weight": draws.proposals.log_weight[draws.index],
        "acceptance_rate": draws.acceptance,
        "diverging": torch.zeros_like(draws.index, dtype=torch.bool),
        "log_marginal_likelihood": torch.full((num_chains,), draws.evidence.log_evidence, dtype=torch.float64),
    }


def fit_group(
    evidence: Evidence, found: Survey | None, recipe: str, backend: str, run_report: Sequence[str], source: str = ""
) -> dict[str, Any]:
    """The group ``fit``: the evidence, its check, and how the run went about it."""
    check = evidence.check or EvidenceCheck(math.nan, math.nan)
    refinement = evidence.refinement or EvidenceCheck(math.nan, math.nan)

    return {
        "log_evidence": evidence.log_evidence,
        "std_error": evidence.std_error,
        "elbo": evidence.elbo,
        "ess": evidence.ess,
        "pareto_k": evidence.pareto_k,
        "num_draws": evidence.num_draws,
        "reliable": int(evidence.reliable),
        "reasons": "\n".join(evidence.reasons),
        "draws_reliable": int(evidence.draws_reliable),
        "draws_reasons": "\n".join(evidence.draws_reasons),
        "verdict": evidence.verdict,
        "exploration_log_evidence": check.log_evidence,
        "exploration_std_error": check.std_error,
        "refinement_log_evidence": refinement.log_evidence,
        "refinement_std_error": refinement.std_error,
        "num_modes": found.modes.count if found else 1,
        "num_base_components": found.base.num_components if found else 0,
        "search": evidence.searched.sentence() if evidence.searched else "",
        "recipe": recipe,
        "backend": backend,
        # As they were called before.
        "rung": backend,
        "bridge_log_evidence": refinement.log_evidence,
        "bridge_std_error": refinement.std_error,
        "run_report": "\n".join(run_report),
        # Where the posterior draws come from.
        "source": source or "flow",
    }


def fit_stats_group(history: History, taught: TeacherHistory, log_weight: Tensor) -> dict[str, Any]:
    """The group ``fit_stats``: training by step and by round, and the log weights of the flow's fresh draws."""
    return {
        "log_weight": log_weight.detach().cpu().numpy(),
        "loss": np.asarray(history.loss),
        **{name: np.asarray(values) for name, values in history.terms.items()},
        **{f"teacher_{name}": np.asarray(values) for name, values in taught.terms.items()},
        "gap": np.asarray(history.gap),
        "step": np.asarray(history.step),
        "elbo": np.asarray(history.elbo),
        "ess": np.asarray(history.ess),
        "pareto_k": np.asarray(history.pareto_k),
        "num_skipped": history.num_skipped,
    }


def fit_stats_dims(history: History, taught: TeacherHistory) -> dict[str, Sequence[str]]:
    """Dimensions of the variables of ``fit_stats``."""
    return {
        "log_weight": ("flow_draw",),
        "loss": ("iteration",),
        **{name: ("iteration",) for name in history.terms},
        **{f"teacher_{name}": (f"{name}_iteration",) for name in taught.terms},
        **{name: ("round",) for name in ("gap", "step", "elbo", "ess", "pareto_k")},
    }
