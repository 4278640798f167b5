r"""How many separated modes the particles sit in.

Two particles belong together if the straight line between them crosses no deep valley of the log density,

.. math:: \min_{0 < s < 1} \log\gamma\big((1-s) z_i + s z_j\big) > \min\{\log\gamma(z_i), \log\gamma(z_j)\} - h.

A log-concave density has no valley at all. On a curved one far particles do see valleys, near ones do not; so a mode is
a connected component of the graph that joins each particle to its nearest neighbours. The depth is :math:`h = 4 + D/2`:
a Hamiltonian move has a kinetic energy of :math:`D/2` on average, and what it can cross does not separate modes.

In many dimensions such lines are blind. Particles lie :math:`D/2` nats below their mode, the middle between two of them
lies nearer to the centres of both than they do, and what that gains hides a valley of :math:`3D/4` nats. So they are
looked at once more without that noise: each particle moves to the mean of its nearest neighbours, where the density is
higher there, and then :math:`h = 4 + D/8`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_osds.stats.moments import weighted_moments
from pyro_osds.target import finite_log_prob, in_chunks

# Random pairs that are looked at first: a mode with a share of one percent parts one in fifty of them, and is missed by
# all with probability 0.6 %. More cost five evaluations each where there is one mode.
_NUM_PAIRS = 256
# Fewer leave gaps in a mode on a line.
_NUM_NEIGHBOURS = 16
# Places between two particles: the ends are known, and a valley between modes is wide where they are far apart. Fewer
# miss one that is narrow, more cost an evaluation of each pair.
_INSIDE = (0.2, 0.35, 0.5, 0.65, 0.8)
# Depth of a valley that separates, nats, beside half of one for each dimension: what a kinetic energy now and then has
# above its average. With less, bends of a single mode are valleys; with more, modes that no particle travels between
# are one.
_DEPTH = 4.0
# Dimensions from which on noise is taken away: in fewer it hides no valley that a move would not cross.
_NOISY = 5
# Neighbours whose mean takes it away, and among how many they are looked for: a mean of more reaches into other modes,
# one of fewer leaves more noise.
_NUM_MEANS, _NUM_AMONG = (16, 8), 2048
# What is left of the noise, nats for each dimension, with some more for what neighbours have in common.
_NOISE_LEFT = 0.125
# Shares of the lines within and between modes that see a valley, at most and at least.
_WITHIN, _BETWEEN = 0.005, 0.9
# Neighbours of each particle that are looked at in one go, the nearest first.
_LOOKS = (1, 2, 4, 8, 16)
# Share of the particles that must sit in modes worth the name; where most do not, the graph says nothing.
_COUNTABLE = 0.5


class Modes(NamedTuple):
    """The modes that particles sit in.

    Arguments:
        labels: The mode of each particle, ``(N,)``, counted from 0.
        parted: Share of random pairs of particles with a valley between them; a single mode that is curved has some.
    """

    labels: Tensor
    parted: float

    @property
    def count(self) -> int:
        """How many modes there are."""
        return int(self.labels.max()) + 1


def find_modes(z: Tensor, log_prob: Tensor, log_prob_fn: Callable[[Tensor], Tensor], min_share: float = 0.005) -> Modes:
    """The mode of each particle.

    A few random pairs come first: where none of them is parted by a valley there is one mode, and little was spent.

    Arguments:
        z: Particles, ``(N, D)``.
        log_prob: Their log densities, ``(N,)``.
        log_prob_fn: The log density, ``(B, D) -> (B,)``.
        min_share: Share of the particles that makes a mode; one below 0.005 is worth 0.005 nats of the log evidence.

    Returns:
        The modes, by falling size; particles of smaller ones join the nearest mode.
        Where most particles sit in such small modes, there are more modes than can be told, and each particle gets a
        label of its own.

    Example:
        >>> z = torch.cat([torch.randn(100, 1) - 9, torch.randn(50, 1) + 9])
        >>> two = lambda z: torch.logsumexp(-0.5 * (z + torch.tensor([9.0, -9.0])).square(), -1)
        >>> find_modes(z, two(z), two).labels.bincount()
        tensor([100,  50])
    """
    first, second = torch.randint(len(z), (2, _NUM_PAIRS), device=z.device)
    seen_parted = _parted(z, log_prob, log_prob_fn, first, second, 0.5)
    parted = seen_parted.float().mean().item()
    # Where every point may be a mode of its own, each gap would be one.
    if z.shape[1] >= _NOISY and min_share > 0.0:
        seen = _modes_without_noise(z, log_prob, log_prob_fn, min_share, (first, second), seen_parted)
        if seen is not None:
            return seen._replace(parted=max(parted, seen.parted))
    if parted == 0.0:
        return Modes(torch.zeros(len(z), dtype=torch.long, device=z.device), parted)

    return _counted(z, log_prob, log_prob_fn, min_share, parted, 0.5)


def _modes_without_noise(
    z: Tensor,
    log_prob: Tensor,
    log_prob_fn: Callable[[Tensor], Tensor],
    min_share: float,
    pairs: tuple[Tensor, Tensor],
    seen_parted: Tensor,
) -> Modes | None:
    """The modes of particles near their centres, if there are several."""
    z, log_prob = _without_noise(z, log_prob, log_prob_fn)
    is_parted = _parted(z, log_prob, log_prob_fn, *pairs, _NOISE_LEFT)
    if not is_parted.any():
        return None
    # What comes to nothing leaves the random numbers as they are.
    with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []):
        modes = _counted(z, log_prob, log_prob_fn, min_share, is_parted.float().mean().item(), _NOISE_LEFT)
    first, second = (modes.labels[side] for side in pairs)
    within, between = (
        (is_parted | seen_parted)[first == second].float().mean(),
        is_parted[first != second].float().mean(),
    )

    # Without noise the particles of a funnel leave gaps. There lines within a part cross valleys, too; modes have all
    # of them between each other.
    return modes if within <= _WITHIN and between >= _BETWEEN else None


def _without_noise(z: Tensor, log_prob: Tensor, log_prob_fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Particles, each at the mean of its nearest neighbours where the density is higher, and their log densities."""
    others = z[torch.linspace(0, len(z) - 1, min(len(z), _NUM_AMONG), device=z.device).long()]
    nearest = torch.cdist(z, others).topk(min(max(_NUM_MEANS), len(others)), largest=False).indices
    for count in _NUM_MEANS:
        means = others[nearest[:, :count]].mean(1)
        with torch.no_grad():
            density = finite_log_prob(in_chunks(log_prob_fn, means))
        higher = density > log_prob
        z, log_prob = torch.where(higher[:, None], means, z), torch.where(higher, density, log_prob)

    return z, log_prob


def _counted(
    z: Tensor,
    log_prob: Tensor,
    log_prob_fn: Callable[[Tensor], Tensor],
    min_share: float,
    parted: float,
    noise: float,
) -> Modes:
    """The connected components of particles; ``noise`` is theirs, nats for each dimension."""
    chosen = spread_out(z)
    labels = _components(z[chosen], log_prob[chosen], log_prob_fn, noise)
    nearest = torch.cdist(z, z[chosen]).argmin(1)
    counts = labels[nearest].bincount()
    large = (counts >= min_share * len(z)).nonzero()[:, 0]
    if counts[large].sum() < _COUNTABLE * len(z):
        return Modes(torch.arange(len(z), device=z.device), parted)

    return Modes(_without_crumbs(z[chosen], labels, counts, large)[nearest], parted)


def spread_out(z: Tensor, count: int = 1024) -> Tensor:
    """Indices of at most so many points: one half at random, the other half those farthest from the first.

    A small mode may hold one point in a thousand, and that one lies far from the others.
    """
    if len(z) <= count:
        return torch.arange(len(z), device=z.device)
    order = torch.randperm(len(z), device=z.device)
    first, rest = order[: count // 2], order[count // 2 :]
    scaled = z / z.std(0).clamp(min=torch.finfo(z.dtype).tiny)
    farthest = torch.cdist(scaled[rest], scaled[first]).amin(1).topk(count - len(first)).indices

    return torch.cat([first, rest[farthest]])


def _components(z: Tensor, log_prob: Tensor, log_prob_fn: Callable[[Tensor], Tensor], noise: float) -> Tensor:
    """Connected components of the graph that joins each particle to its nearest neighbours, ``(N,)``."""
    partners = _neighbours(z)
    labels, edges = torch.arange(len(z), device=z.device), []
    # The nearest come first, and pairs that are joined by now need no other look: within one mode few are left.
    ends = [*_LOOKS, partners.shape[1]]
    for begin, end in zip([0, *ends], ends, strict=False):
        first = torch.arange(len(z), device=z.device).repeat_interleave(partners[:, begin:end].shape[1])
        second = partners[:, begin:end].reshape(-1)
        apart = labels[first] != labels[second]
        first, second = first[apart], second[apart]
        if len(first):
            joined = ~_parted(z, log_prob, log_prob_fn, first, second, noise)
            edges.append(torch.stack([first[joined], second[joined]]))
            labels = _connected(len(z), torch.cat(edges, 1))

    return labels


def _neighbours(z: Tensor) -> Tensor:
    """The nearest other particles of each in the given units, then in whitened ones, ``(N, K)``.

    Whitening squeezes the axis along which modes lie apart.
    """
    loc, scale_tril = weighted_moments(z, z.new_zeros(len(z)))
    whitened = torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT
    distances = [torch.cdist(points, points).fill_diagonal_(torch.inf) for points in (z, whitened)]
    count = min(_NUM_NEIGHBOURS, len(z) - 1)

    return torch.cat([distance.topk(count, largest=False).indices for distance in distances], 1)


def _connected(num_nodes: int, edges: Tensor) -> Tensor:
    """The component of each node, ``(N,)``, with edges ``(2, E)``: each takes the lowest node that it can reach.

    A library's would have to be imported, and would bring edges to the CPU.
    """
    first, second = torch.cat([edges, edges.flip(0)], 1)
    lowest, before = torch.arange(num_nodes, device=edges.device), None
    while before is None or not torch.equal(lowest, before):
        before = lowest
        lowest = lowest.scatter_reduce(0, first, lowest[second], "amin")
        # Whoever that node reaches by now is reached, too.
        lowest = lowest[lowest]

    return lowest.unique(return_inverse=True)[1]


def _parted(
    z: Tensor,
    log_prob: Tensor,
    log_prob_fn: Callable[[Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    noise: float,
) -> Tensor:
    """Whether a valley parts the particles of each pair, ``(P,)``, deeper than they lie below their mode."""
    shares = torch.tensor(_INSIDE, dtype=z.dtype, device=z.device)[:, None, None]
    points = torch.lerp(z[first], z[second], shares)
    with torch.no_grad():
        inside = finite_log_prob(in_chunks(log_prob_fn, points.flatten(0, 1))).view(len(shares), -1)
    lower_end = torch.minimum(log_prob[first], log_prob[second])

    return inside.amin(0) < lower_end - (_DEPTH + noise * z.shape[1])


def _without_crumbs(z: Tensor, labels: Tensor, counts: Tensor, large: Tensor) -> Tensor:
    """Labels renumbered by size; particles of tiny components get the label of the nearest particle of a large one."""
    large = large[counts[large].argsort(descending=True, stable=True)]
    member = (labels[:, None] == large).any(1)
    labels = torch.where(member, labels, labels[member][torch.cdist(z, z[member]).argmin(1)])
    renumbered = torch.zeros_like(counts)
    renumbered[large] = torch.arange(len(large), device=labels.device)

    return renumbered[labels]
