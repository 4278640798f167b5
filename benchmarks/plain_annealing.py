"""Plain annealed SMC beside a run: no flow, no search, the processor seconds that the run took."""

import math
import time

import pyro
from cases import Case

from pyro_osds.explore.annealing import explore
from pyro_osds.explore.particles import Exploration
from pyro_osds.explore.survey import first_way
from pyro_osds.target import Target

# Replicates, particles of the first run on each, and the pace: those of the stage of that name.
NUM_REPLICATES, NUM_PARTICLES = 16, 64
PACE = {"ess_threshold": 0.8, "num_moves": 3, "max_temperatures": 1000, "max_leapfrog": 40}


def annealed_in(case: Case, target: Target, seed: int, seconds: float) -> tuple[float, float, float]:
    """Log evidence, its standard error, and the seconds of the last run, from the prior or a wide reference.

    The first run, which may take longer, tells for how many particles there is time: a power of two times as many,
    since a run takes about as many times longer. Where that one ends early, it tells the same of a further run.
    """
    pyro.set_rng_seed(seed)
    num_particles = NUM_PARTICLES
    way, _ = first_way(target, None)
    while True:
        begun = time.process_time()
        run: Exploration = explore(way, num_particles, NUM_REPLICATES, phase=case.name, **PACE)
        taken = time.process_time() - begun
        # The runs before only looked for how many particles there may be: all seconds are those of one run.
        if 2.0 * taken > seconds:
            return run.log_evidence, run.std_error, taken
        num_particles *= 2 ** math.floor(math.log2(seconds / taken))
