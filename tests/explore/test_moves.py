"""Crossovers: they leave the density of all particles as it is, and mix what multiplies."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.moves import HamiltonianMover
from pyro_osds.explore.paths import ReferencePath
from pyro_osds.stats.gaussian import Gaussian
from pyro_osds.target import FunctionTarget


def path_to(log_prob, dim, width=3.0):
    reference = Gaussian(torch.zeros(dim), width * torch.eye(dim))

    return ReferencePath.from_density(FunctionTarget(log_prob, dim), reference)


def crossed(log_prob, z, beta, num_replicates=1, num_crossovers=8):
    """Particles after crossovers alone, and the mover."""
    path = path_to(log_prob, z.shape[1])
    mover = HamiltonianMover(path, 1, 1, num_crossovers=num_crossovers, num_replicates=num_replicates)
    before = path.log_densities(z)
    z, after = mover._crossed(z, before, beta)
    for ours, theirs in zip(after, path.log_densities(z), strict=True):
        torch.testing.assert_close(ours, theirs)

    return z, mover


def wells(z):
    """In each coordinate two wells at -2 and 2, the second of four times the mass."""
    return torch.logaddexp(-32.0 * (z + 2.0).square(), math.log(4.0) - 32.0 * (z - 2.0).square()).sum(-1)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_crossovers_leave_a_correlated_normal_as_it_is(beta, float64):
    torch.manual_seed(0)
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.8, 0.3], [0.8, 2.0, 0.5], [0.3, 0.5, 0.5]]))
    normal = MultivariateNormal(torch.ones(3), scale_tril=root)
    # The tempered density of two normals is one, too.
    precision = (1.0 - beta) * torch.eye(3) / 9.0 + beta * torch.linalg.inv(root @ root.mT)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (beta * torch.linalg.inv(root @ root.mT) @ torch.ones(3))
    count = 100_000
    z, mover = crossed(normal.log_prob, MultivariateNormal(mean, covariance).sample([count]), beta)
    assert 1 / 3 <= mover.traded <= 0.5
    sd = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 4 * sd / math.sqrt(count)).all()
    outer = sd[:, None] * sd
    assert ((z.mT.cov() - covariance).abs() < 4 * outer * math.sqrt(2.0 / count)).all()


def test_a_wrong_acceptance_would_be_seen(float64):
    # The same draws with all trades accepted: correlations halve at once.
    torch.manual_seed(0)
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    z = torch.randn(20_000, 2) @ root.mT
    path = path_to(lambda z: 0.0 * z.sum(-1), 2)
    mover = HamiltonianMover(path, 1, 1, num_crossovers=8)
    assert mover._crossed(z, path.log_densities(z), 1.0)[0].mT.corrcoef()[0, 1] < 0.1


def test_particles_that_share_all_wells_part_and_shares_stay(float64):
    torch.manual_seed(0)
    side = (torch.arange(1024) % 5 > 0).double()[:, None]
    z = 4.0 * side - 2.0 + torch.randn(1024, 20) / 8.0
    found, mover = crossed(wells, z, 1.0)
    positive = (found > 0).double()
    # What is traded is neither lost nor made.
    assert torch.equal(positive.sum(0), (z > 0).double().sum(0))
    assert torch.equal(found.sort(0).values, z.sort(0).values)
    of_pairs = positive.mT.corrcoef()[~torch.eye(20, dtype=torch.bool)]
    assert of_pairs.abs().max() < 5 / math.sqrt(1024) and mover.traded == 0.5


def test_replicates_trade_among_themselves_only(float64):
    torch.manual_seed(0)
    z = torch.randn(4, 7, 3) + 100.0 * torch.arange(4)[:, None, None]
    found, _ = crossed(lambda z: 0.0 * z.sum(-1), z.flatten(0, 1), 1.0, num_replicates=4)
    assert torch.equal(found.view(4, 7, 3).sort(1).values, z.sort(1).values) and not torch.equal(found, z.flatten(0, 1))


def test_no_more_trades_where_none_is_accepted(float64):
    # A ridge: any trade of one coordinate leads off it.
    torch.manual_seed(0)

    def ridge(z):
        return -0.5e6 * (z[:, 0] - z[:, 1]).square() - 0.5 * z[:, 0].square()

    along = torch.randn(512, 1).expand(-1, 2)
    found, mover = crossed(ridge, along, 1.0, num_crossovers=20)
    assert mover.num_crossovers == 0 and mover.num_evaluations < 20 * 512
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=0.01, rtol=0.0)


def test_a_single_coordinate_is_not_traded(float64):
    torch.manual_seed(0)
    z = torch.randn(64, 1)
    found, mover = crossed(wells, z, 1.0)
    assert torch.equal(found, z) and mover.num_evaluations == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_particles(count, float64):
    torch.manual_seed(0)
    z, _ = crossed(wells, torch.full((count, 2), 2.0), 1.0)
    assert torch.equal(z, torch.full((count, 2), 2.0))


def test_densities_of_zero_and_nan_are_never_traded_for(float64):
    torch.manual_seed(0)

    def half(z):
        inside = torch.where(z[:, 0] * z[:, 1] > 0.0, -0.5 * z.square().sum(-1), -torch.inf)
        return torch.where(z[:, 1] > 5.0, torch.nan, inside)

    signs = 1.0 - 2.0 * torch.randint(2, (256, 1))
    z = signs * torch.randn(256, 2).abs()
    found, _ = crossed(half, z, 1.0)
    assert (found[:, 0] * found[:, 1] > 0.0).all()


def test_wells_that_multiply_have_their_evidence(float64):
    """Their log evidence in closed form; without crossovers the particles that are left share most of their wells."""
    torch.manual_seed(0)
    dim, path = 32, path_to(wells, 32)
    truth = dim * math.log(5.0 * math.sqrt(math.pi / 32.0))
    pace = {"ess_threshold": 0.8, "num_moves": 3, "max_temperatures": 200}
    errors = []
    for num_crossovers in (0, 2):
        run = explore(path, 64, 16, num_crossovers=num_crossovers, **pace)
        positive = (run.z > 0).double().view(16, 64, dim).mean(1)
        errors.append((run.std_error, (positive - 0.8).square().mean().sqrt().item()))
        assert abs(run.log_evidence - truth) < 4 * max(run.std_error, 0.05)
    assert errors[1][1] < 0.6 * errors[0][1]
