"""What the calibration runs: every posterior with a known log evidence, mixtures with exchangeable components, and
random conjugate models."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pyro
import pyro.distributions as dist
import torch
from cases import HERE, Case, all_cases, gaussian_shells, posteriordb
from conjugate import FAMILIES, conjugate_model
from target_cases import even_wells, target_cases, tilted_wells
from torch import Tensor

KNOWN = json.loads((HERE / "data" / "calibration_evidence.json").read_text())
MIXTURES = json.loads((HERE / "data" / "mixtures.json").read_text())
NUM_CONJUGATE = 7  # models of each family
SEEDS = range(10)
# Errors of two runs of the same model are less telling than those of two models.
CONJUGATE_SEEDS = range(2)


@dataclass(frozen=True)
class Problem:
    """A case of the calibration.

    Arguments:
        case: The posterior and its log evidence.
        group: Whose coverage it counts for.
        seeds: The seeds that a full run has of it.
        is_slow: Whether a fit takes more than two minutes, so that it runs only when named.
    """

    case: Case
    group: str
    seeds: range = SEEDS
    is_slow: bool = False


@cache
def all_problems() -> dict[str, Problem]:
    """All of them by name."""
    problems = [*_known(), *_mixtures(), *_conjugates()]

    return {problem.case.name: problem for problem in problems}


# ---- known log evidences ----

# Groups of the cases of the other benchmarks.
GROUPS = {
    "eight schools": "hierarchy",
    "eight schools, centred": "hierarchy",
    "German credit": "regression",
    "radiata pine, density": "regression",
    "radiata pine, adjusted": "regression",
    "arK": "time series",
    "sblri": "regression",
    "gp_regr": "regression",
    "four Gaussians": "density",
    "GMM40": "density",
    "many-well 32-D": "density",
    "many-well 5-D": "density",
    "funnel 10-D": "density",
    "shells 2-D": "density",
    "shells 10-D": "density",
    "ionosphere": "regression",
    "sonar": "regression",
    "seeds": "hierarchy",
    "Brownian": "time series",
    "breast cancer": "regression",
}
# Those whose reference has a standard error like that of a run, known better here.
SHARPER = {
    "gp_regr": "gp_regr",
    "German credit": "german_credit",
    "breast cancer": "breast_cancer",
    "ionosphere": "ionosphere",
    "sonar": "sonar",
}
SLOW = frozenset({"Brownian", "many-well 32-D", "many-well 50-D"})


def _known() -> list[Problem]:
    cases = {case.name: case for case in (*all_cases(), *target_cases()) if not math.isnan(case.log_evidence)}
    cases |= {name: replace(cases[name], **_truth(key)) for name, key in SHARPER.items()}

    return [
        *(Problem(case, GROUPS[name], is_slow=name in SLOW) for name, case in cases.items()),
        *(Problem(case, group, is_slow=case.name in SLOW) for group, case in _more_cases()),
    ]


def _more_cases() -> list[tuple[str, Case]]:
    wide = (dist.Normal(0.0, 10.0), dist.HalfCauchy(25.0))
    half_normal = (dist.Normal(0.0, 5.0), dist.HalfNormal(5.0))
    textbook = [
        Case("normal mean", normal_mean, **_truth("normal_normal")),
        Case("coin, tosses", coin_tosses, **_truth("beta_bernoulli")),
        Case("coin, count", coin_count, **_truth("beta_binomial")),
        Case("correlated Gaussian 3-D", correlated_gaussian, **_truth("correlated_gaussian_3d")),
    ]
    hierarchies = [
        Case("eight schools, wide", schools(*wide), **_truth("eight_schools_wide")),
        Case("eight schools, wide, centred", schools(*wide, centred=True), **_truth("eight_schools_wide")),
        Case("eight schools, half-normal", schools(*half_normal), **_truth("eight_schools_half_normal")),
        Case("eight schools, pooled", pooled_schools, **_truth("eight_schools_complete_pooling")),
        Case("eight schools, not pooled", separate_schools, **_truth("eight_schools_no_pooling")),
    ]
    densities = [
        Case("shells 5-D", gaussian_shells, dim=5, **_truth("gaussian_shells_5d")),
        Case("spike and slab 2-D", spike_and_slab(2), **_truth("spike_slab_2d")),
        Case("spike and slab 10-D", spike_and_slab(10), **_truth("spike_slab_10d")),
        Case("many-well 2-D", tilted_wells, dim=2, **_truth("many_well_2d")),
        Case("many-well 10-D", tilted_wells, dim=10, **_truth("many_well_10d")),
        Case("many-well 50-D", five_wells, dim=50, **_truth("many_well_50d")),
    ]
    groups = {"textbook": textbook, "hierarchy": hierarchies, "density": densities}

    return [
        *((group, case) for group, cases in groups.items() for case in cases),
        ("time series", Case("hidden Markov", hidden_markov(), **_truth("hmm_example"))),
    ]


def _truth(name: str) -> dict[str, float]:
    return {"log_evidence": KNOWN[name]["log_evidence"], "log_evidence_se": KNOWN[name]["std_error"]}


def normal_mean() -> None:
    y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def coin_tosses() -> None:
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    with pyro.plate("toss", 10):
        pyro.sample("y", dist.Bernoulli(share), obs=torch.tensor([1.0] * 7 + [0.0] * 3))


def coin_count() -> None:
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    pyro.sample("y", dist.Binomial(10, share), obs=torch.tensor(7.0))


def correlated_gaussian() -> None:
    z = pyro.sample("z", dist.Uniform(-10.0, 10.0).expand([3]).to_event(1))
    likelihood = dist.MultivariateNormal(torch.zeros(3), 0.05 * torch.eye(3) + 0.95)
    pyro.factor("likelihood", likelihood.log_prob(z))


def spike_and_slab(dim: int) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", dist.Uniform(-10.0, 10.0).expand([dim]).to_event(1))
        parts = [dist.Normal(0.0, sd).log_prob(z).sum(-1) for sd in (0.08, 1.0)]
        pyro.factor("likelihood", torch.logaddexp(*parts) - math.log(2.0))

    return model


def five_wells(z: Tensor) -> Tensor:
    return even_wells(z[:, :5]) - 0.5 * z[:, 5:].square().sum(-1)


def schools(mu_prior: dist.Normal, tau_prior: dist.TorchDistribution, centred: bool = False) -> Callable[[], None]:
    data, _ = posteriordb("eight_schools")

    def model() -> None:
        mu, tau = pyro.sample("mu", mu_prior), pyro.sample("tau", tau_prior)
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau) if centred else dist.Normal(0.0, 1.0))
            mean = theta if centred else mu + tau * theta
            pyro.sample("y", dist.Normal(mean, data["sigma"]), obs=data["y"])

    return model


def pooled_schools() -> None:
    data, _ = posteriordb("eight_schools")
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", 8):
        pyro.sample("y", dist.Normal(mu, data["sigma"]), obs=data["y"])


def separate_schools() -> None:
    data, _ = posteriordb("eight_schools")
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])


def hidden_markov() -> Callable[[], None]:
    """The first state is uniform; Pyro's chains start one step before the first observation, hence its own site."""
    y = posteriordb("hmm_example")[0]["y"]

    def model() -> None:
        with pyro.plate("state", 2):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
            mu = pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0))
        emission = dist.Normal(mu, 1.0)
        pyro.sample("first", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), emission), obs=y[0])
        pyro.sample("rest", dist.DiscreteHMM(emission.log_prob(y[0]), theta.log(), emission), obs=y[1:])

    return model


# ---- mixtures with exchangeable components ----


def _mixtures() -> list[Problem]:
    """Their log evidence counts every order of the components."""
    return [
        Problem(Case(f"mixture of {name}", mixture(name), entry["log_evidence"]), "mixture")
        for name, entry in MIXTURES.items()
    ]


def mixture(name: str) -> Callable[[], None]:
    """Means with iid normal priors; weights equal, or unknown with a uniform prior."""
    entry = MIXTURES[name]
    y, count, sd = torch.tensor(entry["y"]), entry["num_components"], entry["sd"]

    def model() -> None:
        weights = torch.full((count,), 1.0 / count)
        if not entry["weights_known"]:
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(count)))
        with pyro.plate("component", count):
            mean = pyro.sample("mean", dist.Normal(0.0, entry["prior_sd"]))
        with pyro.plate("row", len(y)):
            component = dist.Categorical(weights)
            pyro.sample("y", dist.MixtureSameFamily(component, dist.Normal(mean, sd)), obs=y)

    return model


# ---- random conjugate models ----


def _conjugates() -> list[Problem]:
    problems = []
    for family in FAMILIES:
        # A jump of the density is no business of a smooth flow: what counts there is the verdict.
        group = "conjugate, with a jump" if family == "Pareto-uniform" else "conjugate"
        for seed in range(NUM_CONJUGATE):
            model, log_evidence = conjugate_model(family, seed)
            problems.append(Problem(Case(f"{family} {seed}", model, log_evidence), group, CONJUGATE_SEEDS))

    return problems
