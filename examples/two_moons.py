"""
Two moons: a density without a model
====================================

``OSDS.from_log_prob`` takes any unnormalised log density. This one has two crescents, far apart, that hold a fifth
and four fifths of the mass. A chain of NUTS stays in the crescent in which it began and has no way
to know of the other one; R-hat, of that chain, is fine. ``OSDS`` finds both, with their shares. The evidence is known
by quadrature on a grid.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import MCMC, NUTS

from pyro_osds import OSDS

RADIUS, WIDTH = 4.0, 0.35
SHARES = torch.tensor([0.2, 0.8])


def log_density(z):
    """Points ``(B, 2)`` to log densities ``(B,)``."""
    ring = -0.5 * ((z.norm(dim=-1) - RADIUS) / WIDTH).square()
    sides = -0.5 * (z[:, :1] - torch.tensor([-RADIUS, RADIUS])).square()

    return ring + torch.logsumexp(sides + SHARES.log(), -1)


def quadrature(extent=9.0, num_points=1201):
    """Log evidence, and the share of the right-hand crescent."""
    line = torch.linspace(-extent, extent, num_points, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="ij")
    density = log_density(torch.stack([x.flatten(), y.flatten()], 1)).exp().view_as(x)
    total = density.sum()

    return (total * (line[1] - line[0]) ** 2).log().item(), (density[line > 0].sum() / total).item()


def nuts(args):
    kernel = NUTS(potential_fn=lambda params: -log_density(params["z"][None])[0])
    start = {"z": torch.tensor([-RADIUS, 0.0])}
    mcmc = MCMC(kernel, args.num_nuts, args.num_nuts, initial_params=start, disable_progbar=True)
    mcmc.run()

    return mcmc.get_samples()["z"]


def plot(panels):
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4.2), layout="constrained", sharey=True)
    for axis, (title, z) in zip(axes, panels.items(), strict=True):
        axis.plot(*z[:1500].T.numpy(), ".", markersize=2)
        axis.set(title=title, xlabel="$z_1$", aspect="equal", xlim=(-7, 7), ylim=(-5, 5))
    axes[0].set_ylabel("$z_2$")

    return figure


def main(args):
    pyro.set_rng_seed(args.seed)
    osds = OSDS.from_log_prob(log_density, 2, **args.options)
    osds.run()
    log_evidence, share = quadrature()
    ours, theirs = osds.get_samples()["z"], nuts(args)
    print(f"log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}, quadrature {log_evidence:.4f}")
    for reason in osds.evidence.reasons:
        print(f"NOT reliable: {reason}")
    for name, z in {"OSDS": ours, "NUTS, one chain": theirs}.items():
        print(f"share of the right-hand crescent, {name}: {(z[:, 0] > 0).float().mean():.3f}, quadrature {share:.3f}")
    figure = plot({"OSDS": ours, "NUTS, one chain": theirs})
    if args.plot is not None:
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two moons: a posterior in two pieces")
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--num-nuts", type=int, default=500, help="warm-up steps and draws of NUTS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="where the picture goes")
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    args.options = {"num_samples": args.num_samples, "num_chains": 4, "num_iterations": args.num_iterations}
    if args.smoke_test:
        args.options = {"num_samples": 50, "num_iterations": 10, "num_particles": 8, "escalate": False}
        args.num_nuts = 10
    main(args)
