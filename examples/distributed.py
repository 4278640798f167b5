"""
Several processes on one fit
============================

A logistic regression of 20,000 simulated rows, fitted by as many processes as ``torchrun`` starts, on the cores or GPUs
of one machine or of several::

    torchrun --nproc-per-node 2 examples/distributed.py

The first process explores; then all of them share out the rows of each batch of draws, in training and in drawing, and
end with the same flow, draws and log evidence, which are those of one process up to rounding. Without ``torchrun``, as
in a notebook, it is a group of one.
"""

import os
import time

import pyro
import pyro.distributions as dist
import torch
import torch.distributed

from pyro_osds import OSDS

NUM_ROWS, NUM_FEATURES = 20_000, 10
NUM_ITERATIONS = 1000  # optimiser steps at most
NUM_DRAWS = 20_000
# Draws per optimiser step, of all processes together. A recorded density evaluates 256 points at once: a batch is best
# that many for each process, or a multiple of it.
BATCH_SIZE = 512

# %%
# The model
# ---------


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


# %%
# Meet the other processes
# ------------------------
#
# ``torchrun`` tells each process by its environment who it is. On a machine with GPUs each process takes one.

on_gpu = torch.cuda.is_available()
backend = "nccl" if on_gpu else "gloo"
device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
if on_gpu:
    torch.cuda.set_device(device)
if "RANK" in os.environ:
    torch.distributed.init_process_group(backend)
else:
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)

# %%
# The same data in every process
# ------------------------------

generator = torch.Generator().manual_seed(0)
x = torch.randn(NUM_ROWS, NUM_FEATURES, generator=generator)
chance = torch.sigmoid(x @ torch.linspace(-0.5, 0.5, NUM_FEATURES))
y = torch.bernoulli(chance, generator=generator)
data = x.to(device), y.to(device)

# %%
# One fit by all of them
# ----------------------
#
# ``run`` and ``draw`` are for all processes at once; what is printed, one of them prints.

pyro.set_rng_seed(0)
osds = OSDS(regression, num_iterations=NUM_ITERATIONS, batch_size=BATCH_SIZE, distributed=True)
osds.run(*data)
start = time.perf_counter()
draws = osds.draw(NUM_DRAWS)
drawing = time.perf_counter() - start
if torch.distributed.get_rank() == 0:
    seconds = osds.fit.seconds
    print(f"{torch.distributed.get_world_size()} process(es)")
    print(f"log evidence {osds.log_evidence:.4f} +- {osds.log_evidence_se:.4f}")
    print(f"posterior means {osds.get_samples()['weights'].mean(0).cpu().numpy().round(3)}")
    print(f"explored {seconds['exploration_time']:.1f} s, trained {seconds['training_time']:.1f} s")
    print(f"{len(draws)} draws in {drawing:.1f} s, {draws.get_ESS():.0f} effective")
    for reason in osds.evidence.reasons:
        print(f"  NOT reliable: {reason}")
torch.distributed.destroy_process_group()
