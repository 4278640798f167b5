"""What depends on discrete latents that are summed jointly, seen at all of their joint values.

It has no rows of its own, no one value, and no prior without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_osds.model.discrete.elimination import log_probs
from pyro_osds.model.discrete.enumeration import is_changed
from pyro_osds.model.discrete.factors import same
from pyro_osds.model.discrete.joint import Joint
from pyro_osds.model.discrete.refusals import MovingSupportError, support_refusal
from pyro_osds.model.pyro_internals import enumerated_dim

RunAt = Callable[[Tensor, Mapping[str, Tensor]], Any]
"""Runs the model at a point, with a value for each of some discrete latents and all others enumerated."""


def with_dependence(joint: Joint, run_at: RunAt, points: Tensor, rounding: float) -> Joint:
    """A joint sum that knows what depends on it.

    Arguments:
    joint: The joint sum.
    run_at: Runs the model at a point, with a value for each of the discrete latents that are summed jointly.
    points: The points, ``(S, D)``.
    rounding: By what share of their size, or of one, two equal densities may differ.

    Raises:
    MovingSupportError: If the support of a continuous latent does.
    """
    tied: set[str] = set()
    has_plain_prior = True
    for row in points:
        run = run_at(row, joint.at(0))
        latents = {site["name"] for site in run.latents}
        seen = joint.read(lambda given, row=row: run_at(row, given), _everything)
        varying = {key for key, rows in seen.items() if not same(rows[:1], rows, rounding).all()}
        for kind, name in varying:
            if kind == "value":
                raise MovingSupportError(support_refusal(name))
            tied.add(name)
        rest = [site for site in run.discrete if site["name"] not in joint.values]
        for site in (*run.latents, *run.observed):
            parents = {parent["name"] for parent in rest if enumerated_dim(parent) in _wide_dims(site)}
            tied |= {site["name"]} if parents & tied else set()
            has_plain_prior &= not (parents and site["name"] in latents)
        has_plain_prior &= not (tied & latents) and not any(map(is_changed, run.discrete))

    return replace(joint, tied=frozenset(tied), has_plain_prior=has_plain_prior)


def _everything(run: Any) -> dict[tuple[str, str], Tensor]:
    """Log densities, values of continuous latents and of deterministic sites."""
    densities = {("density", name): value for name, value in log_probs(run).items()}
    values = {("value", name): value for name, value in run.values.items()}
    shown = {("shown", name): torch.as_tensor(value).double() for name, value in run.deterministics.items()}

    return {**densities, **values, **shown}


def _wide_dims(site: Any) -> set[int]:
    """Dimensions, counted from the right, in which a log density is not constant."""
    shape = site["log_prob"].shape

    return {-dim for dim in range(1, len(shape) + 1) if shape[-dim] > 1}
