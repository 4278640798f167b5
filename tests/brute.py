"""Brute force over discrete latents: one plain run of the model for each joint value of all their elements."""

import itertools

import pyro
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to


def latent_sites(trace):
    nodes = trace.nodes.items()

    return {
        n: s for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and type(s["fn"]) is not _Subsample
    }


def assignments(sites, values=None):
    """All joint values of some discrete sites, ``[{name: value}, ...]``.

    Arguments:
        sites: The sites of a plain run.
        values: What one element can be, where the site's distribution does not say so.
    """
    choices = []
    for name, site in sites.items():
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        given = (values or {}).get(name)
        each = base.enumerate_support(expand=False).reshape(-1, *base.event_shape) if given is None else given
        shape = site["fn"].shape()
        elements = shape[: len(shape) - each.dim() + 1]
        rows = itertools.product(each, repeat=elements.numel())
        choices.append([torch.stack(row).reshape((*elements, *each.shape[1:])) for row in rows])

    return [dict(zip(sites, row, strict=True)) for row in itertools.product(*choices)]


def joint_log_probs(model, u, values=None):
    """Assignments, and the log density of each with Jacobians, ``(A,)``.

    Arguments:
        model: The model; supports do not depend on latents.
        u: Unconstrained values of the continuous latents.
        values: As for :func:`assignments`.
    """
    with pyro.validation_enabled(False):
        sites = latent_sites(poutine.trace(model).get_trace())
        constrained, jacobian = {}, torch.zeros(())
        for name, value in u.items():
            transform = biject_to(sites[name]["fn"].support)
            constrained[name] = transform(value)
            jacobian = jacobian + transform.log_abs_det_jacobian(value, constrained[name]).sum()
        rows = assignments({name: site for name, site in sites.items() if name not in u}, values)
        traces = [poutine.trace(poutine.condition(model, {**constrained, **row})).get_trace() for row in rows]

        return rows, torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in traces]) + jacobian


def by_site(target, row):
    """Unconstrained values of the sites of a target at one point."""
    return {s.name: row[s.start : s.stop].reshape(s.unconstrained_shape) for s in target.sites}
