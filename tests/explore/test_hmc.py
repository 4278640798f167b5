"""Hamiltonian moves: the leapfrog can be run backwards, keeps volumes and, up to its order, the energy."""

import models
import pytest
import torch
from helpers import log_abs_det_of_jacobian

from pyro_osds.explore.hmc import Points, chosen, kinetic_energy, leapfrog
from pyro_osds.target import log_prob_and_score

SCALE = torch.tensor([[2.0, 0.0], [0.5, 0.3]], dtype=torch.float64)


def evaluate(z):
    return Points(z, *log_prob_and_score(models.log_gamma, z), (z[:, 0],))


def started(count=20):
    return evaluate(0.3 * torch.randn(count, 2)), torch.randn(count, 2)


@pytest.mark.parametrize("scale_tril", [None, SCALE])
def test_the_leapfrog_runs_backwards(float64, scale_tril):
    # From the end with the momentum turned round, back to the start; densities and parts are those of the end.
    points, momentum = started()
    end, last = leapfrog(evaluate, points, momentum, 0.1, 5, scale_tril)
    torch.testing.assert_close(end.log_prob, models.log_gamma(end.z))
    assert torch.equal(end.parts[0], end.z[:, 0]) and (end.z - points.z).abs().amin() > 1e-4
    back, first = leapfrog(evaluate, end, -last, 0.1, 5, scale_tril)
    torch.testing.assert_close(back.z, points.z)
    torch.testing.assert_close(first, -momentum)


@pytest.mark.parametrize("scale_tril", [None, SCALE])
def test_the_leapfrog_keeps_volumes(float64, scale_tril):
    # Of points and momenta together, with a step size of its own for each point.
    points, momentum = started(4)
    step = torch.tensor([[0.1], [0.2], [0.3], [0.4]])

    def moved(both, step):
        z = both[:, :2]
        log_prob = models.log_gamma(z)
        (score,) = torch.autograd.grad(log_prob.sum(), z, create_graph=True)
        end, last = leapfrog(differentiable, Points(z, log_prob, score), both[:, 2:], step, 3, scale_tril)
        return torch.cat([end.z, last], 1)

    def differentiable(z):
        log_prob = models.log_gamma(z)
        return Points(z, log_prob, torch.autograd.grad(log_prob.sum(), z, create_graph=True)[0])

    both = torch.cat([points.z, momentum], 1)
    for row, size in zip(both, step, strict=True):
        log_abs_det = log_abs_det_of_jacobian(lambda x, size=size: moved(x, size), row[None])
        torch.testing.assert_close(log_abs_det, torch.zeros(1), rtol=0.0, atol=1e-9)


def test_the_energy_is_kept_to_second_order(float64):
    # Over the same time, half the step size leaves a quarter of the error.
    points, momentum = started(200)
    energy = kinetic_energy(momentum) - points.log_prob

    def error(step_size, num_steps):
        end, last = leapfrog(evaluate, points, momentum, step_size, num_steps, SCALE)
        return (kinetic_energy(last) - end.log_prob - energy).abs().mean().item()

    assert error(0.02, 10) / error(0.01, 20) == pytest.approx(4.0, rel=0.1)


def test_points_that_are_accepted_are_new(float64):
    # All that is known of them comes along.
    new, _ = started(3)
    old, _ = started(3)
    mixed = chosen(torch.tensor([True, False, True]), new, old)
    for index, source in enumerate((new, old, new)):
        for part, expected in zip((*mixed[:3], mixed.parts[0]), (*source[:3], source.parts[0]), strict=True):
            assert torch.equal(part[index], expected[index])
