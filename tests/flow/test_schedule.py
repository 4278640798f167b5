"""Schedule: the log signal is the integral of the rate, and next to no signal is left at the base."""

import math

import pytest
import torch
from scipy.integrate import quad

from pyro_osds.flow.schedule import CosineSchedule, LinearSchedule

# Each with its rate by hand: twice the derivative of the log signal.
SCHEDULES = {
    "cosine": (CosineSchedule(), lambda t: math.pi * 0.995 / math.tan(0.5 * math.pi * (0.005 + 0.995 * t))),
    "wide cosine": (CosineSchedule(0.1), lambda t: math.pi * 0.9 / math.tan(0.5 * math.pi * (0.1 + 0.9 * t))),
    "linear": (LinearSchedule(), lambda t: 0.1 + 19.9 * (1 - t)),
    "constant": (LinearSchedule(3.0, 3.0), lambda t: 3.0),
}


@pytest.fixture(params=SCHEDULES, ids=lambda name: name.replace(" ", "_"))
def schedule(request, float64):
    return SCHEDULES[request.param]


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9])
def test_log_signal_is_minus_half_the_integral_of_the_rate(schedule, t):
    # Against numerical integration from t to 1.
    schedule, rate = schedule
    integral, _ = quad(rate, t, 1.0, epsabs=1e-12)
    assert math.isclose(schedule.log_signal(torch.tensor(t)).item(), -0.5 * integral, rel_tol=1e-9)


def test_log_signal_rises_to_zero(schedule):
    # Strictly, in any shape, and the posterior has no noise.
    t = torch.linspace(0, 1, 101)
    log_signal = schedule[0].log_signal(t)
    assert (log_signal.diff() > 0).all() and abs(log_signal[-1].item()) < 1e-14
    assert torch.equal(schedule[0].log_signal(t[1:].view(5, 1, 20)).view(-1), log_signal[1:])


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()], ids=["cosine", "linear"])
def test_the_base_keeps_less_than_a_percent(schedule):
    # With the default settings, in single precision too; noise never has more variance than the base.
    log_signal = schedule.log_signal(torch.linspace(0, 1, 101))
    assert 0 < log_signal[0].exp() < 0.01 and (log_signal <= 0).all()
