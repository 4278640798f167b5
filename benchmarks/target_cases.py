"""The targets of diffusion samplers, with a log evidence that is exact or known to a few thousandths of a nat.

Requirements are for default settings and one step.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from cases import (
    CIRCLE,
    CIRCLE_WEIGHTS,
    HERE,
    KNOWN,
    Case,
    four_gaussians,
    gaussian_shells,
    german_credit,
    logistic_regression,
    read_rows,
    shell_centres,
)
from torch import Tensor

from pyro_osds.symmetries import permutations, rotations, sign_flips

DATA = HERE / "data"

# ---- log densities ----

FORTY_MEANS = 80.0 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 40.0


def forty_gaussians(z: Tensor) -> Tensor:
    square = (z[:, None] - FORTY_MEANS.to(z)).square().sum(-1)

    return torch.logsumexp(-0.5 * square, -1) - math.log(40.0 * 2.0 * math.pi)


def tilted_wells(z: Tensor) -> Tensor:
    """Pairs of a tilted double well and a Gaussian, `x_1, v_1, x_2, v_2, ...`: two wells to the power of the pairs."""
    x, v = z[:, 0::2], z[:, 1::2]

    return (_tilted_well(x) - 0.5 * v.square()).sum(-1)


def _tilted_well(x: Tensor) -> Tensor:
    return 0.5 * x + 6.0 * x.square() - x.pow(4)


def tilted_well_share() -> float:
    """Probability of the positive well, by quadrature."""
    x = torch.linspace(0.0, 5.0, 10001, dtype=torch.float64)
    positive, negative = (torch.trapezoid(_tilted_well(side).exp(), x) for side in (x, -x))

    return (positive / (positive + negative)).item()


def even_wells(z: Tensor) -> Tensor:
    return -(z.square() - 4.0).square().sum(-1)


def funnel(z: Tensor) -> Tensor:
    x, rest = z[:, 0], z[:, 1:]
    log_neck = dist.Normal(0.0, 3.0).log_prob(x)

    return log_neck + dist.Normal(0.0, (0.5 * x)[:, None].exp()).log_prob(rest).sum(-1)


def four_particles(z: Tensor) -> Tensor:
    """DW-4: four particles in a plane, each pair in a double well, in orthonormal coordinates without the mean."""
    distance = _distances(z, 4, 2) - 4.0

    return -(0.9 * distance.pow(4) - 4.0 * distance.square()).sum(-1)


def lennard_jones(z: Tensor) -> Tensor:
    """LJ-13: thirteen particles in space under a Lennard-Jones potential, held together by a harmonic one."""
    inverse = _distances(z, 13, 3).pow(-6)

    return -2.0 * (inverse.square() - 2.0 * inverse).sum(-1) - 0.5 * z.square().sum(-1)


def _distances(z: Tensor, count: int, dim: int) -> Tensor:
    """Distances of all pairs of particles, from mean-free coordinates ``(B, (count - 1) * dim)``."""
    x = torch.einsum("bkd,kn->bnd", z.view(-1, count - 1, dim), _mean_free(z, count))
    first, second = torch.triu_indices(count, count, 1)

    # Far below any distance that has a density, so that particles that coincide have a finite one.
    return (x[:, first] - x[:, second]).square().sum(-1).clamp(min=1e-4).sqrt()


def with_their_centre(log_prob: Callable[[Tensor], Tensor], count: int, dim: int) -> Callable[[Tensor], Tensor]:
    """The same particles by their places, ``(B, count * dim)``: a standard normal centre leaves the log evidence.

    In mean-free coordinates to trade two particles is a reflection, here it is a permutation.
    """

    def of_places(z: Tensor) -> Tensor:
        centre_and_rest = torch.einsum("bnd,kn->bkd", z.view(-1, count, dim), _orthonormal(z, count))
        centre, rest = centre_and_rest[:, 0], centre_and_rest[:, 1:]

        return log_prob(rest.flatten(1)) - 0.5 * centre.square().sum(-1) - 0.5 * dim * math.log(2.0 * math.pi)

    return of_places


def _orthonormal(z: Tensor, count: int) -> Tensor:
    """Helmert's matrix, ``(count, count)``: a mean times a square root, and then rows without a mean."""
    mean = torch.full((1, count), count**-0.5, dtype=z.dtype, device=z.device)

    return torch.cat([mean, _mean_free(z, count)])


def _mean_free(z: Tensor, count: int) -> Tensor:
    """Helmert's matrix without its first row, ``(count - 1, count)``: orthonormal rows, each without a mean."""
    rows = torch.arange(1, count, dtype=z.dtype, device=z.device)[:, None]
    columns = torch.arange(count, device=z.device)
    basis = (columns < rows).to(z) - rows * (columns == rows)

    return basis / (rows * (rows + 1)).sqrt()


def lattice_field(z: Tensor) -> Tensor:
    """phi^4 on a periodic lattice of 16 x 8 sites, in the broken phase: all fields positive, or all negative."""
    field, strength, hopping = z.view(-1, 16, 8), 0.022, 0.3
    alone = (1.0 - 2.0 * strength) * field.square() + strength * field.pow(4)
    neighbours = field.roll(1, 1) + field.roll(1, 2)

    return (2.0 * hopping * field * neighbours - alone).sum((1, 2))


LATTICE_SIGNS = (torch.stack([torch.full((128,), mean) for mean in (-2.087, 2.087)]), torch.full((2,), 0.5))

FORTY_WIDE_MEANS = 80.0 * torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) - 40.0


def forty_wide_gaussians(z: Tensor) -> Tensor:
    square = torch.cdist(z, FORTY_WIDE_MEANS.to(z)).square()

    return torch.logsumexp(-0.5 * square, -1) - math.log(40.0) - 25.0 * math.log(2.0 * math.pi)


# ---- Pyro models ----


def ionosphere() -> Callable[[], None]:
    return _standardized_regression("ionosphere")


def sonar() -> Callable[[], None]:
    return _standardized_regression("sonar")


def _standardized_regression(name: str) -> Callable[[], None]:
    rows = read_rows(DATA / f"{name}.csv")
    x, label = rows[:, :-1], rows[:, -1]
    sd = x.std(0, correction=0)
    # A feature of Ionosphere is 0 everywhere: it keeps its weight, which then has its prior.
    x = (x - x.mean(0)) / torch.where(sd > 0, sd, 1.0)

    return logistic_regression(x, (label + 1.0) / 2.0, 1.0)


def breast_cancer() -> Callable[[], None]:
    """The prior matters: a plane separates the classes, so without one the posterior is improper."""
    rows = read_rows(DATA / "breast_cancer.csv")
    y, x = rows[:, 1], rows[:, 2:]

    return logistic_regression(x / x.std(0, correction=0), y, 10.0)


def seeds() -> Callable[[], None]:
    germinated, total, x1, x2 = read_rows(DATA / "seeds.csv").T

    def model() -> None:
        tau = pyro.sample("tau", dist.Gamma(0.01, 0.01))
        a_0 = pyro.sample("a_0", dist.Normal(0.0, 10.0))
        a_1 = pyro.sample("a_1", dist.Normal(0.0, 10.0))
        a_2 = pyro.sample("a_2", dist.Normal(0.0, 10.0))
        a_12 = pyro.sample("a_12", dist.Normal(0.0, 10.0))
        with pyro.plate("plate", len(total)):
            b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
            logits = a_0 + a_1 * x1 + a_2 * x2 + a_12 * x1 * x2 + b
            pyro.sample("germinated", dist.Binomial(total, logits=logits), obs=germinated)

    return model


def brownian() -> Callable[[], None]:
    """A random walk with unknown scales, not observed in its middle; one site a step, as Pyro writes a time series."""
    observed = read_rows(DATA / "brownian.csv")[:, 0]
    seen = observed.isfinite()

    def model() -> None:
        innovation = pyro.sample("innovation_scale", dist.LogNormal(0.0, 2.0))
        observation = pyro.sample("observation_scale", dist.LogNormal(0.0, 2.0))
        loc, locs = torch.zeros(()), []
        for t in pyro.markov(range(len(observed))):
            loc = pyro.sample(f"loc_{t}", dist.Normal(loc, innovation))
            locs.append(loc)
        with pyro.plate("time", int(seen.sum())):
            pyro.sample("y", dist.Normal(torch.stack(locs)[seen], observation), obs=observed[seen])

    return model


def _known(name: str) -> dict[str, Any]:
    return {"log_evidence": KNOWN[name]["log_evidence"], "log_evidence_se": KNOWN[name]["std_error"]}


def target_cases() -> list[Case]:
    halves, forty = torch.full((2,), 0.5), torch.full((40,), 1.0 / 40.0)
    return [
        Case(
            "four Gaussians",
            four_gaussians,
            0.0,
            max_error=0.02,
            max_pareto_k=0.5,
            max_seconds=90.0,
            max_weight_error=0.03,
            modes=(CIRCLE, CIRCLE_WEIGHTS),
            dim=2,
        ),
        Case(
            "GMM40",
            forty_gaussians,
            0.0,
            max_error=0.05,
            min_ess=0.5,
            max_seconds=180.0,
            all_modes=True,
            modes=(FORTY_MEANS, forty),
            dim=2,
        ),
        Case(
            "many-well 32-D",
            tilted_wells,
            **_known("many_well_32d"),
            max_error=0.2,
            max_seconds=180.0,
            max_weight_error=0.03,
            wells=(list(range(0, 32, 2)), tilted_well_share()),
            dim=32,
        ),
        Case(
            "many-well 5-D",
            even_wells,
            **_known("many_well_5d"),
            max_error=0.1,
            max_seconds=90.0,
            wells=(list(range(5)), 0.5),
            dim=5,
        ),
        Case("funnel 10-D", funnel, 0.0, max_error=0.05, min_elbo=-0.10, max_seconds=90.0, dim=10),
        Case(
            "shells 2-D",
            gaussian_shells,
            **_known("gaussian_shells_2d"),
            max_error=0.05,
            max_seconds=90.0,
            modes=(shell_centres(2), halves),
            dim=2,
        ),
        Case(
            "shells 10-D",
            gaussian_shells,
            **_known("gaussian_shells_10d"),
            max_error=0.05,
            max_seconds=90.0,
            modes=(shell_centres(10), halves),
            dim=10,
        ),
        Case("ionosphere", ionosphere(), **_known("ionosphere"), max_error=0.05, min_elbo=-111.70, max_seconds=90.0),
        Case("sonar", sonar(), **_known("sonar"), max_error=0.05, min_elbo=-108.60, max_seconds=90.0),
        Case("seeds", seeds(), **_known("seeds"), max_error=0.05, min_elbo=-73.43, max_seconds=90.0),
        Case("Brownian", brownian(), **_known("brownian"), max_error=0.05, min_elbo=1.11, max_seconds=90.0),
        Case(
            "breast cancer",
            breast_cancer(),
            **_known("breast_cancer"),
            max_error=0.1,
            min_elbo=-77.80,
            max_seconds=90.0,
        ),
        Case(
            "German credit",
            german_credit(),
            **_known("german_credit"),
            max_error=0.05,
            min_elbo=-585.11,
            max_seconds=90.0,
        ),
    ]


def beyond_one_bijection() -> list[Case]:
    """Rings, permutations and modes that multiply, whose log evidence was found by long annealing or a closed form.

    DW-4 and LJ-13 as Koehler, Klein, Noe 2020 (2006.02425) and Akhound-Sadegh et al. 2024 (2402.06121) have them.
    """
    wells = (list(range(0, 64, 2)), tilted_well_share())
    more_wells = (list(range(0, 128, 2)), tilted_well_share())
    wide = (FORTY_WIDE_MEANS, torch.full((40,), 1.0 / 40.0))
    return [
        Case("DW-4 6-D", four_particles, 29.665, 0.006, max_error=0.05, max_seconds=120.0, dim=6),
        Case("many-well 64-D", tilted_wells, 329.3914, max_error=0.1, max_weight_error=0.02, wells=wells, dim=64),
        Case(
            "many-well 128-D", tilted_wells, 658.7827, max_error=0.3, max_weight_error=0.02, wells=more_wells, dim=128
        ),
        Case(
            "phi^4 16 x 8", lattice_field, 134.937, 0.002, max_error=0.05, all_modes=True, modes=LATTICE_SIGNS, dim=128
        ),
        Case("LJ-13 36-D", lennard_jones, 59.88, 0.01, max_error=0.3, dim=36),
        Case(
            "GMM40 50-D",
            forty_wide_gaussians,
            0.0,
            max_error=0.1,
            all_modes=True,
            max_seconds=900.0,
            modes=wide,
            dim=50,
        ),
    ]


def with_symmetries() -> list[Case]:
    """Cases from beyond one bijection, their symmetries declared; particles by their places, with a normal centre."""
    four, thirteen = with_their_centre(four_particles, 4, 2), with_their_centre(lennard_jones, 13, 3)
    return [
        Case(
            "DW-4 8-D, declared",
            four,
            29.665,
            0.006,
            max_error=0.05,
            max_seconds=120.0,
            dim=8,
            symmetries=(rotations("z", dim=2), permutations("z", num_blocks=4)),
        ),
        Case(
            "phi^4 16 x 8, declared",
            lattice_field,
            134.937,
            0.002,
            max_error=0.05,
            all_modes=True,
            modes=LATTICE_SIGNS,
            dim=128,
            symmetries=(sign_flips("z"),),
        ),
        Case(
            "LJ-13 39-D, declared",
            thirteen,
            59.88,
            0.01,
            max_error=0.3,
            dim=39,
            symmetries=(rotations("z", dim=3), permutations("z", num_blocks=13)),
        ),
    ]
