"""
One giant leap
==============

A diffusion walks from noise to a posterior in many small steps; a flow learns to do it in one. Three figures, on
four Gaussians on a circle with weights 0.1, 0.2, 0.3 and 0.4, whose log evidence is exactly 0:

1. the paths of the teacher, and the one step of its student;
2. what is left of the evidence bound when there are fewer and fewer steps: the weights of the diffusion's paths, the
   published one-step network with the published and with the exact volume, and the bijective flow;
3. how the flow stretches space, which is what makes its weights exact.

It takes some minutes. These figures are of a run that is stored with the pages.

.. image:: /figures/one_giant_leap_paths.png
.. image:: /figures/one_giant_leap_steps.png
.. image:: /figures/one_giant_leap_stretch.png
"""

# sphinx_gallery_thumbnail_path = "figures/one_giant_leap_paths.png"

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from pyro_osds.explore.survey import survey
from pyro_osds.stats.weights import log_mean_weight, weigh
from pyro_osds.target import FunctionTarget
from pyro_osds.train.distillation import dyadic
from pyro_osds.train.flows import FlowOptions
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.teacher import TeacherBudget
from pyro_osds.train.trainer import Budget
from pyro_osds.train.velocity import VelocityLeap

# %%
# The posterior
# -------------

CENTRES = 3.0 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4])
TRUE_LOG_EVIDENCE = 0.0


def log_density(z):
    square = (z[:, None] - CENTRES).square().sum(-1)

    return torch.logsumexp(SHARES.log() - 2.0 * square - np.log(0.5 * np.pi), -1)


# %%
# Teacher, student, and the published network
# -------------------------------------------
#
# All start from one exploration. These are parts of ``OSDS(..., recipe="distill")`` and of
# ``OSDS(..., network="velocity")``, put together by hand so that the teacher can be shown.

NUM_PARTICLES = 64
NUM_MATCHING = 600  # iterations of the teacher's score matching
NUM_WARM_UP = 800  # iterations of distillation
NUM_ITERATIONS = 500  # iterations on exact weights after that
NUM_VELOCITY = 300  # iterations of the published network
NUM_TIME_STEPS = 16

pyro.set_rng_seed(0)
target = FunctionTarget(log_density, dim=2)
found = survey(target, num_particles=NUM_PARTICLES)
options = FlowOptions(num_time_steps=NUM_TIME_STEPS)
budget = Budget(NUM_ITERATIONS, first_round=NUM_ITERATIONS, warm_up=NUM_WARM_UP)
teacher_budget = TeacherBudget(NUM_MATCHING, NUM_MATCHING // 5, NUM_TIME_STEPS)
distilled = Recipe(found, "distill", budget, teacher_budget=teacher_budget, options=options)
distilled.run()
published = Recipe(found, budget=Budget(NUM_VELOCITY), options=replace(options, network="velocity"))
published.run()
teacher, leap, velocity = distilled.teacher, distilled.with_steps(1), published.trainer.leap

# %%
NUM_DRAWS = 8192
log_evidence, std_error = log_mean_weight(weigh(leap, target, NUM_DRAWS).log_weight)
print(f"log evidence of the flow {log_evidence:.4f} +- {std_error:.4f}, exact {TRUE_LOG_EVIDENCE:.4f}")

# %%
# First figure: paths
# -------------------
#
# The same base draws go three ways.

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
MODE_COLOURS = (BLUE, ORANGE, GREEN, PINK)
EXTENT = 5.4


def draw_density(axis):
    """The posterior in shades of grey."""
    line = torch.linspace(-EXTENT, EXTENT, 200)
    x, y = torch.meshgrid(line, line, indexing="xy")
    density = log_density(torch.stack([x.flatten(), y.flatten()], 1)).exp().view_as(x)
    levels = [level * density.max().item() for level in (0.004, 0.02, 0.1, 0.3, 0.6)]
    axis.contourf(x, y, density, levels=[*levels, density.max().item()], cmap="Greys", alpha=0.35, zorder=0)
    axis.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
    axis.set_xticks(range(-4, 5, 2))
    axis.set_yticks(range(-4, 5, 2))


with torch.no_grad():
    diffused = teacher.simulate(48, 64).x
    start = diffused[0]
    flowed = teacher.flow(start, 64)
    arrived = leap(start)[0]
    walks = [leap.base.from_whitened(states.flatten(0, 1)).view_as(states) for states in (diffused, flowed)]
walks.append(torch.stack([walks[0][0], arrived]))
walks[0] = walks[0][:, :12]  # noise fills the picture soon
titles = ("Teacher: diffusion, 64 steps", "Teacher: probability flow, 64 steps", "Student: one step")
figure, axes = plt.subplots(1, 3, num="one_giant_leap_paths", figsize=(12.6, 4.9), layout="constrained", sharey=True)
for axis, walk, title in zip(axes, walks, titles, strict=True):
    draw_density(axis)
    modes = torch.cdist(walk[-1], CENTRES.to(walk)).argmin(1)
    for mode, colour in enumerate(MODE_COLOURS):
        chosen = walk[:, modes == mode].numpy()
        axis.plot(chosen[..., 0], chosen[..., 1], color=colour, linewidth=0.9, alpha=0.7, zorder=2)
        axis.scatter(*chosen[0].T, s=14, facecolor="white", edgecolor=colour, linewidth=0.9, zorder=3)
        axis.scatter(*chosen[-1].T, s=16, color=colour, zorder=4)
    axis.set(xlabel="$z_1$", title=title)
axes[0].set_ylabel("$z_2$")
point = {"marker": "o", "linestyle": "", "markersize": 6}
key = [plt.Line2D([], [], color=GREY, markerfacecolor="white", label="base draw", **point)]
key += [plt.Line2D([], [], color=GREY, label="posterior draw, coloured by its mode", **point)]
figure.legend(handles=key, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %%
# Second figure: steps
# --------------------
#
# ELBO and log evidence by number of steps. An ELBO above the line is none.


def path_weights(teacher, num_draws, num_steps):
    with torch.no_grad():
        return teacher.log_weight(teacher.simulate(num_draws, num_steps))


def draw(diffusion, target, num_draws, num_steps, volume):
    return weigh(VelocityLeap(diffusion, num_steps, volume), target, num_draws).log_weight


def estimates(log_weight):
    """ELBO and log evidence, each with its standard error, nats."""
    finite = log_weight[log_weight.isfinite()]

    return (finite.mean().item(), finite.std().item() / len(finite) ** 0.5), log_mean_weight(log_weight)


samplers = {
    "diffusion, backward-kernel path weights": (ORANGE, "s", lambda k: path_weights(teacher, NUM_DRAWS, k)),
    "velocity network, published volume": (
        PINK,
        "D",
        lambda k: draw(velocity.diffusion, target, NUM_DRAWS, k, "published"),
    ),
    "velocity network, exact volume": (GREEN, "^", lambda k: draw(velocity.diffusion, target, NUM_DRAWS, k, "exact")),
    "bijective flow (distilled)": (BLUE, "o", lambda k: weigh(distilled.with_steps(k), target, NUM_DRAWS).log_weight),
}
steps = dyadic(NUM_TIME_STEPS)
figure, axes = plt.subplots(1, 2, num="one_giant_leap_steps", figsize=(11.5, 4.6), layout="constrained")
for name, (colour, marker, log_weights) in samplers.items():
    bounds, evidences = zip(*(estimates(log_weights(k)) for k in steps), strict=True)
    for axis, values in zip(axes, (bounds, evidences), strict=True):
        value, std_error = np.array(values).T
        axis.plot(steps, value, color=colour, marker=marker, markersize=5, label=name)
        axis.fill_between(steps, value - 2 * std_error, value + 2 * std_error, color=colour, alpha=0.2, linewidth=0)
    print(f"{name}:")
    for k, bound, evidence in zip(steps, bounds, evidences, strict=True):
        print(f"  {k:2d} steps: ELBO {bound[0]:8.3f}, log evidence {evidence[0]:7.3f} +- {evidence[1]:.3f}")
folds = [f"{VelocityLeap(velocity.diffusion, k).fold_share():.1%} in {k}" for k in steps]
print(f"velocity network, share of draws with a negative determinant: {', '.join(folds)} steps")
for axis, label in zip(axes, ("mean log weight (nats)", "log evidence (nats)"), strict=True):
    # A band may be wider than everything else, so only the lines set the limits.
    heights = np.concatenate([line.get_ydata() for line in axis.lines] + [[TRUE_LOG_EVIDENCE]])
    margin = 0.08 * np.ptp(heights)
    axis.set_ylim(heights.min() - margin, heights.max() + margin)
    axis.axhline(TRUE_LOG_EVIDENCE, color="black", linestyle="--", linewidth=1.2, zorder=1, label="true log Z")
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, steps)
    axis.grid(alpha=0.25)
    axis.set(xlabel="network evaluations per draw", ylabel=label)
axes[0].set_title("ELBO: a bound only where weights are exact")
axes[1].set_title("Log evidence")
handles, labels = axes[0].get_legend_handles_labels()
handles.append(Patch(color=GREY, alpha=0.25, linewidth=0))
figure.legend(handles, [*labels, "two standard errors"], loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %%
# Third figure: stretch
# ---------------------
#
# A grid of the base, in whitened coordinates, and what the flow makes of it.

# Grey in the middle: lines of no stretch stay visible on white.
STRETCH = LinearSegmentedColormap.from_list("stretch", [BLUE, "#C8C8C8", ORANGE])
HALF_WIDTH = 3.0


def coloured_lines(lines, values, limit):
    """Short segments, so that the colour follows the stretch along each line."""
    segments = np.stack([lines[:, :-1], lines[:, 1:]], 2).reshape(-1, 2, 2)
    middle = 0.5 * (values[:, :-1] + values[:, 1:])
    collection = LineCollection(segments, cmap=STRETCH, linewidth=1.0)
    collection.set_array(middle.ravel())
    collection.set_clim(-limit, limit)

    return collection


along = torch.linspace(-HALF_WIDTH, HALF_WIDTH, 600)
across = torch.linspace(-HALF_WIDTH, HALF_WIDTH, 37)
x, y = torch.meshgrid(across, along, indexing="ij")
lines = torch.cat([torch.stack([x, y], -1), torch.stack([y, x], -1)])
with torch.no_grad():
    z, log_abs_det = leap(lines.flatten(0, 1))
pushed, log_abs_det = z.view_as(lines), log_abs_det.view(lines.shape[:2])
limit = log_abs_det.abs().quantile(0.99).item()
figure, (left, right) = plt.subplots(1, 2, num="one_giant_leap_stretch", figsize=(11, 4.9), layout="constrained")
draw_density(right)
for axis, grid in ((left, lines), (right, pushed)):
    collection = coloured_lines(grid.numpy(), log_abs_det.numpy(), limit)
    axis.add_collection(collection)
left.set(xlim=(-HALF_WIDTH - 0.1, HALF_WIDTH + 0.1), ylim=(-HALF_WIDTH - 0.1, HALF_WIDTH + 0.1), aspect="equal")
left.set(xlabel="$x_1$", ylabel="$x_2$", title="Grid on the base (whitened)")
right.set(xlabel="$z_1$", ylabel="$z_2$", title="The same grid after one step")
figure.colorbar(collection, ax=[left, right], label="log |det| of the flow (nats)", extend="both", shrink=0.9)
plt.show()
