"""Circles: turned without a change of the evidence, found where they are, cut where there is least mass."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from scipy.special import i0e, ive

from pyro_osds import OSDS
from pyro_osds.explore.circle.cut import best_cuts, goes_round, turned
from pyro_osds.explore.circle.turned import TurnedTarget, log_share_volume, turn
from pyro_osds.explore.coordinates import coordinates_of, in_coordinates
from pyro_osds.explore.journal import Journal
from pyro_osds.explore.stopped import survey_in_time
from pyro_osds.explore.survey import survey
from pyro_osds.model import ModelTarget
from pyro_osds.runtime.warnings import InterruptedWarning
from pyro_osds.target import FunctionTarget

TURN = 2 * math.pi


def log_i0(kappa):
    return math.log(i0e(kappa)) + kappa


def angles(loc, kappa):
    """Uniform phases, each seen once with a von Mises error."""
    loc = torch.as_tensor(loc, dtype=torch.float64)
    with pyro.plate("phases", len(loc)):
        phase = pyro.sample("phase", dist.Uniform(0.0, TURN))
        pyro.factor("seen", kappa * torch.cos(phase - loc))


def own_logits(loc, kappa):
    """The same as a log density of logits of shares of a turn; its evidence is I0(kappa) for each."""
    loc = torch.as_tensor(loc, dtype=torch.float64)

    def log_prob(z):
        return (kappa * torch.cos(TURN * torch.sigmoid(z) - loc) + log_share_volume(z)).sum(-1)

    return FunctionTarget(log_prob, len(loc), dtype=torch.float64)


def particles(loc, kappa, count=512):
    if kappa == 0.0:
        share = torch.rand(count, len(loc), dtype=torch.float64)
    else:
        share = (dist.VonMises(torch.tensor(loc).double(), torch.tensor(kappa).double()).sample((count,)) / TURN) % 1.0

    return torch.logit(share.clamp(1e-12, 1 - 1e-12))


# ---- turned ----


@pytest.mark.parametrize("cut", [0.0, 1e-9, 0.25, 0.5, 0.999])
def test_a_turn_is_a_rotation(cut):
    # Of the angle, within rounding, and back again.
    u, by = torch.linspace(-20, 20, 401, dtype=torch.float64)[:, None], torch.tensor([cut], dtype=torch.float64)
    angle, turned_angle = TURN * u.sigmoid(), TURN * turn(u, by).sigmoid()
    for function in (torch.cos, torch.sin):
        torch.testing.assert_close(function(turned_angle), function(angle + TURN * cut), rtol=0, atol=1e-12)
    back = turn(turn(u, by), -by)
    torch.testing.assert_close(back.sigmoid(), u.sigmoid(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kappa", [0.0, 3.0, 400.0])
def test_the_evidence_stays_by_quadrature(cut, kappa):
    # The integral over the turned line against the Bessel function, for an angle that lies on the old cut.
    target = TurnedTarget(own_logits([0.1], kappa), torch.tensor([0]), torch.tensor([cut], dtype=torch.float64))
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    log_evidence = torch.logsumexp(target.log_prob(grid[:, None]), 0) + math.log(80 / 400_000)
    assert log_evidence.item() == pytest.approx(log_i0(kappa), abs=1e-7)


def test_the_volume_is_the_derivative():
    # Against autograd, and the density of a function that is no circle has the same integral.
    index, cut = torch.tensor([0, 2]), torch.tensor([0.3, 0.8], dtype=torch.float64)
    target = TurnedTarget(own_logits([0.0, 1.0, 2.0], 2.0), index, cut)
    u = torch.randn(20, 3, dtype=torch.float64)
    for row, log_volume in zip(u, target.volume_inside(u), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: target.inside(x[None])[0], row)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_volume.item(), abs=1e-9)
    normal = FunctionTarget(lambda z: -0.5 * (z - 1.0).square().sum(-1) - 0.5 * math.log(TURN), 1, dtype=torch.float64)
    around = TurnedTarget(normal, index[:1], cut[:1])
    grid = torch.linspace(-60, 60, 2_000_001, dtype=torch.float64)[:, None]
    assert torch.logsumexp(around.log_prob(grid), 0).item() + math.log(120 / 2e6) == pytest.approx(0.0, abs=1e-4)


def test_gradients_are_those_of_the_density():
    # On both sides of the seam and near it, against differences.
    target = TurnedTarget(own_logits([0.2], 30.0), torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))
    u = torch.tensor([[-3.0], [-1e-2], [-1e-5], [1e-5], [1e-2], [3.0]], dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(target.log_prob(u).sum(), u)
    step = 1e-6
    with torch.no_grad():
        difference = (target.log_prob(u + step) - target.log_prob(u - step)) / (2 * step)
    torch.testing.assert_close(score[:, 0], difference, rtol=1e-4, atol=1e-4)


# ---- found ----


def symmetric_share(a):
    """A Beta(a, a) prior and a likelihood that is symmetric: both ends are alike and nothing goes round."""

    def model():
        p = pyro.sample("p", dist.Beta(a, a))
        pyro.factor("far", 3.0 * (p - 0.5).square())

    return model


def ramp():
    x = pyro.sample("x", dist.Uniform(0.0, 1.0))
    pyro.factor("up", 40.0 * (x - 0.5).abs())


def slope():
    x = pyro.sample("x", dist.Uniform(0.0, 1.0))
    pyro.factor("up", 2.0 * x)


def von_mises():
    pyro.sample("x", dist.VonMises(2.5, 1.0))


def twice():
    x = pyro.sample("x", dist.Uniform(-math.pi, math.pi))
    pyro.factor("twice", 9.0 * torch.cos(2.0 * x - 0.4))


def half_turn():
    x = pyro.sample("x", dist.Uniform(0.0, math.pi))
    pyro.factor("axis", 9.0 * torch.cos(2.0 * x - 0.4))


def half_turn_of_a_whole():
    x = pyro.sample("x", dist.Uniform(0.0, math.pi))
    pyro.factor("seen", 9.0 * torch.cos(x - 0.4))


def gaussian():
    pyro.sample("x", dist.Normal(0.0, 1.0))


def logistic():
    x = pyro.sample("x", dist.Logistic(0.0, 1.0))
    pyro.factor("seen", -0.5 * (x - 1.0).square())


def narrow():
    x = pyro.sample("x", dist.Uniform(0.0, TURN))
    pyro.factor("seen", 1e6 * (torch.cos(x - 1e-3) - 1.0))


@pytest.mark.parametrize(
    ("model", "is_circle"),
    [
        *((von_mises, True), (twice, True), (half_turn, True), (narrow, True)),
        *((half_turn_of_a_whole, False), (ramp, False), (slope, False), (gaussian, False), (logistic, False)),
        *((symmetric_share(a), False) for a in (0.1, 0.99, 1.01, 3.0)),
    ],
)
def test_what_goes_round(model, is_circle):
    # The density says it, whatever the site is called.
    target = ModelTarget(model)
    points = torch.randn(16, 1, dtype=torch.float64)
    assert goes_round(target, points, torch.tensor([0])).tolist() == [is_circle]


def test_a_model_without_circles_is_left_alone():
    # No evaluation, where no cut would gain anything, and no random number.
    rows = []

    def log_prob(z):
        rows.append(len(z))
        return -0.5 * z.square().sum(-1)

    z = torch.randn(512, 5, dtype=torch.float64)
    target, state = FunctionTarget(log_prob, 5, dtype=torch.float64), torch.get_rng_state()
    rows.clear()
    assert turned(target, z, torch.zeros(512)) is None
    assert not rows and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("loc", [0.0, 0.15, 6.2])
@pytest.mark.parametrize("kappa", [3.0, 10.0, 100.0])
def test_the_cut_lies_opposite(loc, kappa):
    # Of an angle on the old cut; the particles are whole again.
    pyro.set_rng_seed(0)
    z = particles([loc], kappa)
    cut, is_better = best_cuts(z)
    assert math.cos(TURN * cut.item() - loc) < -0.6 and is_better.item()
    assert turn(z, -cut).std() < 3.0


def test_the_cut_lies_between_modes():
    # One of two lies on the old cut: a new one on the other would be as bad.
    pyro.set_rng_seed(0)
    z = torch.cat([particles([0.0], 100.0), particles([math.pi], 100.0)])
    cut, is_better = best_cuts(z)
    assert is_better.item() and abs(math.sin(TURN * cut.item())) > 0.7


@pytest.mark.parametrize(("loc", "kappa"), [(math.pi, 10.0), (2.0, 100.0), (0.0, 0.0), (0.0, 0.5), (1.0, 0.5)])
def test_nothing_is_gained_where_the_cut_is_good(loc, kappa):
    # Or where all angles are nearly as likely.
    pyro.set_rng_seed(0)
    assert not best_cuts(particles([loc], kappa))[1].item()


# ---- as a whole ----


@pytest.mark.slow
@pytest.mark.parametrize(("loc", "kappa"), [([0.1, 6.2], 100.0), ([0.02, 3.0, 6.27], 400.0)])
def test_phases_on_the_cut_have_their_evidence(loc, kappa):
    # Each is I0(kappa) under its uniform prior: closed form. Draws lie on both sides of zero.
    pyro.set_rng_seed(1)
    osds = OSDS(angles, num_samples=500, disable_progbar=True)
    osds.run(loc, kappa)
    assert osds.evidence.reliable and osds.evidence.draws_reliable, osds.evidence
    assert_within_standard_error(osds.log_evidence, len(loc) * log_i0(kappa), osds.log_evidence_se + 1e-3)
    found = osds.fit.recipe.found
    circles = coordinates_of(found.target)["circles"]
    on_the_cut = [place for place, each in enumerate(loc) if min(each, TURN - each) < 0.2]
    assert circles[0].tolist() == on_the_cut
    assert f"{len(on_the_cut)} angle(s) cut elsewhere" in found.description()[0]
    draws = osds.get_samples()["phase"].double()
    assert ((draws >= 0) & (draws <= TURN)).all()
    want = ive(1, kappa) / ive(0, kappa)
    got = torch.cos(draws - torch.tensor(loc)).mean(0)
    np.testing.assert_allclose(got, want, atol=5 / kappa / math.sqrt(1000))


def test_a_log_density_of_ones_own():
    # Whatever coordinates were given: logits of shares of a turn are recognised by their density.
    pyro.set_rng_seed(2)
    target = own_logits([0.0, 0.0], 80.0)
    found = survey(target)
    assert coordinates_of(found.target)["circles"][0].tolist() == [0, 1]
    assert_within_standard_error(found.exploration.log_evidence, 2 * log_i0(80.0), found.exploration.std_error)
    again = in_coordinates(target, coordinates_of(found.target))
    z = found.exploration.z[:5]
    torch.testing.assert_close(again.log_prob(z), found.target.log_prob(z))


@pytest.mark.slow
def test_kept_saved_and_warm(tmp_path):
    # Files, a guide and a warm start know of the cut.
    pyro.set_rng_seed(3)
    osds = OSDS(angles, num_samples=200, disable_progbar=True)
    osds.run([0.0], 60.0)
    osds.save(tmp_path / "fit.pt")
    loaded = OSDS.load(tmp_path / "fit.pt", angles, [0.0], 60.0)
    assert torch.equal(loaded.get_samples()["phase"], osds.get_samples()["phase"])
    assert coordinates_of(loaded.fit.target)["circles"][0].tolist() == [0]
    assert loaded.evidence.log_evidence == osds.evidence.log_evidence
    weighed = loaded.draw(2000)
    assert_within_standard_error(torch.logsumexp(weighed.log_weights, 0) - math.log(2000), log_i0(60.0), 0.01)
    with pyro.plate("draws", 100, dim=-2):
        phases = osds.guide()["phase"]
    assert torch.cos(phases).mean() > 0.9 and (phases > math.pi).any() and (phases < math.pi).any()


@pytest.mark.parametrize("stop_after", [0.3, 0.7, 0.95])
def test_an_exploration_that_was_stopped_goes_on(stop_after):
    # Bit for bit, wherever the second look at the turned circle had come to.
    calls, stop_at = [], [math.inf]
    inside = own_logits([0.0, 3.0], 50.0)

    def log_prob(z):
        calls.append(len(z))
        if len(calls) == stop_at[0]:
            raise KeyboardInterrupt
        return inside.log_prob(z)

    target = FunctionTarget(log_prob, 2, dtype=torch.float64)
    pyro.set_rng_seed(4)
    calls.clear()
    whole = survey(target)
    stop_at[0] = int(stop_after * len(calls))
    pyro.set_rng_seed(4)
    calls.clear()
    journal = Journal()
    with pytest.warns(InterruptedWarning, match="interrupted"):
        _, stopped = survey_in_time(target, 64, None, journal, math.inf)
    assert stopped == "Ctrl-C"
    again, stopped = survey_in_time(target, 64, None, journal, math.inf)
    assert not stopped and torch.equal(again.exploration.z, whole.exploration.z)
    assert coordinates_of(again.target)["circles"][0].tolist() == [0]


@pytest.mark.slow
def test_bounds_that_move_and_a_density_of_two_turns():
    # A turn that begins at a latent, by its Bessel function; two turns are two modes, and each is whole.
    def moving():
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Uniform(start, start + TURN))
        pyro.factor("seen", 60.0 * torch.cos(x - start))

    def two_turns():
        x = pyro.sample("x", dist.Uniform(0.0, 2 * TURN))
        pyro.factor("seen", 40.0 * torch.cos(x))

    for model, index, want in ((moving, [1], log_i0(60.0)), (two_turns, [0], log_i0(40.0))):
        pyro.set_rng_seed(5)
        found = survey(ModelTarget(model))
        assert coordinates_of(found.target)["circles"][0].tolist() == index
        assert_within_standard_error(found.exploration.log_evidence, want, found.exploration.std_error)
