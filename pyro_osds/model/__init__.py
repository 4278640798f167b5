"""The Pyro front-end: from a model, or a potential function, to a batched log density.

The only package that runs the user's code. From above to below: ``predictive`` draws observations; ``model_target``
and ``potential_target`` are what the sampler gets; ``ladder`` evaluates them in batches, by ``capture`` where it can;
``run`` is one run of the model, with ``discrete`` for its discrete latents and ``compat`` for what
``torch.func.vmap`` does not do; ``first_run`` makes the first run and ``trace`` reads it; ``reach`` tells which latents
the observations depend on; ``coordinates`` maps values to coordinates and ``sites`` lays these out in one vector;
``readings`` tells what draws mean at the sites.
"""

from pyro_osds.model.batching import CAPTURE, VECTORIZE, VectorizationWarning
from pyro_osds.model.discrete.decode import TEMPERATURES
from pyro_osds.model.potential import PotentialTarget, one_point
from pyro_osds.model.predictive import Predictive, prior_predictive, unchanging
from pyro_osds.model.target import ModelTarget

__all__ = [
    "CAPTURE",
    "TEMPERATURES",
    "VECTORIZE",
    "ModelTarget",
    "PotentialTarget",
    "Predictive",
    "VectorizationWarning",
    "one_point",
    "prior_predictive",
    "unchanging",
]
