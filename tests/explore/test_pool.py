"""Particles that go on moving leave the posterior as it is."""

import math

import torch
from helpers import assert_within_standard_error

from pyro_osds.explore.hmc import Pool


def ring(u):
    return -0.5 * ((u.norm(dim=-1) - 2.0) / 0.2).square()


def test_particles_come_to_the_density_and_stay(float64):
    # From one point of a ring to all of it: the angle becomes uniform, the radius keeps its moments.
    pool = Pool(ring, torch.tensor([[2.0, 0.0]]).repeat(2000, 1))
    for _ in range(60):
        pool.move()
    radius = pool.u.norm(dim=-1)
    # Of r exp(-(r - 2)^2 / 0.08): the mean is 2 + 0.04 / 2.
    assert_within_standard_error(radius.mean(), 2.02, radius.std() / 2000**0.5)
    cosine = pool.u[:, 0] / radius
    assert_within_standard_error(cosine.mean(), 0.0, math.sqrt(0.5 / 2000))
    torch.testing.assert_close(pool.log_prob, ring(pool.u))
    assert pool.num_evaluations == 2000 * (1 + 5 * 60)


def test_particles_do_not_enter_a_hard_core(float64):
    pool = Pool(
        lambda u: torch.where(u.norm(dim=-1) > 1.0, -0.5 * u.square().sum(-1), math.inf),
        torch.tensor([[2.0, 0.0]]).repeat(500, 1),
    )
    for _ in range(20):
        pool.move()
    assert (pool.u.norm(dim=-1) > 1.0).all()
    assert pool.u.std() > 0.5


def test_particles_without_a_density_stay_where_they_are(float64):
    pool = Pool(lambda u: torch.full((len(u),), math.nan), torch.ones(8, 2))
    pool.move()
    torch.testing.assert_close(pool.u, torch.ones(8, 2))
