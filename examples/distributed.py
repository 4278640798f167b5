"""
Several processes on one fit
============================

A logistic regression of 20,000 simulated rows, fitted by as many processes as ``torchrun`` starts, on the cores or GPUs
of one machine or of several:

    torchrun --nproc-per-node 2 examples/distributed.py

The first process explores; then all of them share out the rows of each batch of draws, in training and in drawing, and
end with the same flow, draws and log evidence, which are those of one process up to rounding. Without ``torchrun`` the
script is a group of one.
"""

import argparse
import os
import time

import pyro
import pyro.distributions as dist
import torch
import torch.distributed

from pyro_osds import OSDS


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def join_group():
    """Meet the other processes; the device of this one."""
    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        torch.distributed.init_process_group(backend)
    else:
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)

    return device


def simulate(num_rows, num_features, device):
    """The same data in every process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, num_features, generator=generator)
    chance = torch.sigmoid(x @ torch.linspace(-0.5, 0.5, num_features))

    return x.to(device), torch.bernoulli(chance, generator=generator).to(device)


def main(args):
    data = simulate(args.num_rows, 10, join_group())
    pyro.set_rng_seed(args.seed)
    # A recorded density evaluates 256 points at once: a batch is best that many for each process, or a multiple of it.
    osds = OSDS(
        regression,
        num_samples=args.num_samples,
        num_iterations=args.num_iterations,
        batch_size=args.batch_size,
        distributed=True,
    )
    osds.run(*data)
    start = time.perf_counter()
    draws = osds.draw(args.num_draws)  # by all processes, as run
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Several processes on one fit")
    parser.add_argument("--num-rows", type=int, default=20_000)
    parser.add_argument("--num-samples", type=int, default=1000, help="posterior draws per chain")
    parser.add_argument("--num-iterations", type=int, default=1000, help="optimiser steps at most")
    parser.add_argument("--batch-size", type=int, default=512, help="draws per step, of all processes together")
    parser.add_argument("--num-draws", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke-test", action="store_true", help="a tiny run; its numbers mean nothing")
    args = parser.parse_args()
    if args.smoke_test:
        args.num_rows, args.num_samples, args.num_iterations, args.num_draws = 100, 50, 20, 1000
    main(args)
