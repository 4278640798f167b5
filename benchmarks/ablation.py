"""What each part of the method is worth: objectives and networks switched off one at a time, and fewer steps.

    python benchmarks/ablation.py [--seeds 0] [--only TARGET ...] [--part objectives|networks|steps] [--jobs 2]
    python benchmarks/ablation.py --report   # the tables in docs/method.md

Each row is a line of benchmarks/results/ablation.jsonl.

Objectives and networks: one row for each target and variant. All variants of a target and seed share one survey, so
that only training differs; each starts from the same random state and spends the same iterations in one go, without the
early stop and the larger flow that the package itself would use. "gap" is log Z - ELBO; "weight err" is the largest
error of a mode's share among resampled draws; "W2" is the exact Wasserstein distance of 500 raw draws, without weights,
from 500 true ones (Sinkhorn's without regularisation), and "floor" what true draws are apart from true ones; "folds" is
the share of draws where the map's determinant is negative. "CPU s" is the training, teacher included.

Steps: ELBO and log Z +- standard error of four samplers in 1, 2, 4 and 8 steps.
"""

import argparse
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import pyro
import torch
from cases import CIRCLE, CIRCLE_WEIGHTS, HERE, Case, all_cases
from document import DOCS, table, write_block
from report import found_modes
from runs import Record, keep, stored
from target_cases import FORTY_MEANS, even_wells, target_cases, tilted_wells
from torch import Tensor

from pyro_osds.explore.survey import Survey, survey
from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.diffusion import Diffusion
from pyro_osds.flow.leap import Leap
from pyro_osds.model import ModelTarget
from pyro_osds.stats.pareto import pareto_k
from pyro_osds.stats.weights import effective_sample_size, log_mean_weight, weigh
from pyro_osds.target import FunctionTarget
from pyro_osds.train.distillation import dyadic, self_distillation
from pyro_osds.train.flows import COVERING, LEAN, FlowOptions, FlowSize
from pyro_osds.train.objectives import exact_volume, forward_kl, reverse_kl
from pyro_osds.train.recipe import Recipe
from pyro_osds.train.teacher import TeacherBudget, train_teacher
from pyro_osds.train.trainer import Budget, Trainer
from pyro_osds.train.velocity import VelocityLeap

RESULTS = HERE / "results" / "ablation.jsonl"
NUM_ITERATIONS, NUM_WARM_UP, NUM_VELOCITY_ITERATIONS = 150, 150, 100
NUM_TIME_STEPS = 8
NUM_DRAWS, NUM_PATHS = 8192, 8192
# Many more than there are draws: resampling then adds next to nothing to the error of a mode's share.
NUM_RESAMPLED = 65536
NUM_TRANSPORTED, NUM_TRANSPORTS = 500, 8

# `first_round` and `elbo_gap`: all iterations in one round, and no stop before its end.
BUDGET = Budget(NUM_ITERATIONS, first_round=NUM_ITERATIONS, warm_up=NUM_WARM_UP, elbo_gap=0.0)
SINGLE = {"funnel 10-D", "ionosphere"}
MIXTURE = {"four Gaussians", "GMM40", "many-well 5-D"}
FOLDED = {"many-well 32-D"}
EVERYWHERE = SINGLE | MIXTURE | FOLDED
# Where the parts of distillation are looked at one by one: few modes, and many.
DISTILLED = {"four Gaussians", "many-well 32-D"}
STEPPED = ("four Gaussians",)


@dataclass
class Study:
    """One target and seed: what the variants share, and what of it is expensive and made only once."""

    case: Case
    seed: int
    found: Survey
    groups: list[int]
    true_sets: list[Tensor]
    floor: float
    _made: dict = field(default_factory=dict)

    def recipe(self, name: str = "auto", **options) -> Recipe:
        options = {"budget": BUDGET, "found": self.found} | options
        chosen = {option.name: options.pop(option.name) for option in fields(FlowOptions) if option.name in options}
        flow_options = FlowOptions(num_time_steps=NUM_TIME_STEPS, disable_progbar=True, **chosen)

        return Recipe(name=name, groups=self.groups, options=flow_options, **options)

    def teacher(self, num_path: int = TeacherBudget.num_path) -> tuple[Diffusion, float]:
        """A trained teacher, and the seconds that it took."""
        return self._once(("teacher", num_path), lambda: self._teach(num_path))

    def velocity(self) -> tuple[VelocityLeap, float]:
        """The trained velocity network, and the seconds that it took."""
        return self._once("velocity", self._train_velocity)

    def distilled(self) -> tuple[Leap, float]:
        """The distilled flow, and the seconds that it and its teacher took."""
        return self._once("distilled", lambda: distil()(self))[0]

    def _teach(self, num_path: int) -> Diffusion:
        teacher = self.recipe("distill").teacher
        train_teacher(teacher, self.found.exploration.z, TeacherBudget(num_path=num_path))

        return teacher

    def _train_velocity(self) -> VelocityLeap:
        recipe = self.recipe(network="velocity", budget=replace(BUDGET, num_iterations=NUM_VELOCITY_ITERATIONS))
        recipe.run()

        return recipe.trainer.leap

    def _once(self, key, make: Callable) -> tuple:
        if key not in self._made:
            self._made[key] = timed(self.seed, make)

        return self._made[key]


def set_out(case: Case, seed: int) -> Study:
    pyro.set_rng_seed(seed)
    target = FunctionTarget(case.model, case.dim) if case.dim else ModelTarget(case.model)
    found = survey(target)
    groups = [] if case.dim else [site.stop - site.start for site in found.target.sites]

    true_sets = [true_draws(case.name, NUM_TRANSPORTED) for _ in range(NUM_TRANSPORTS)]
    true_sets = [] if true_sets[0] is None else true_sets
    others = [true_draws(case.name, NUM_TRANSPORTED) for _ in true_sets]

    return Study(case, seed, found, groups, true_sets, mean_distance(others, true_sets))


def timed(seed: int, make: Callable) -> tuple:
    """What is made, from the same random state whatever was made before, and the seconds."""
    pyro.set_rng_seed(seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make()

    return made, time.process_time() - start


# ---- the variants: from a study to a trained leap and the seconds ----

Build = Callable[[Study], tuple[Leap | VelocityLeap, float]]


def recipe(name: str, size: Callable[[Study], FlowSize] | None = None) -> Build:
    """As the package does it, perhaps with a flow of another size."""

    def build(study):
        return timed(study.seed, lambda: _run(study.recipe(name, size=size(study) if size else None)))

    return build


def from_gaussian(study):
    found = replace(study.found, base=gaussian_base(study.found.exploration.z))

    return timed(study.seed, lambda: _run(study.recipe("calibrate", found=found)))


def _run(recipe: Recipe) -> Leap:
    recipe.run()

    return recipe.trainer.leap


def splines(share: float) -> Callable[[Study], FlowSize]:
    """The flow of the default recipe with splines in none or all of its blocks."""

    def size(study):
        usual = COVERING if study.found.is_folded else LEAN

        return replace(usual, num_spline_blocks=int(share * usual.num_blocks))

    return size


def default_with(points: bool = True, plain: bool = False, **objective) -> Build:
    """The default recipe with another objective; what comes before it stays the same."""

    def build(study):
        return timed(study.seed, lambda: train(study))

    def train(study):
        recipe = study.recipe()
        trainer, z = recipe.trainer, study.found.exploration.z
        covers, batch_size = recipe.name == "cover", trainer.budget.batch_size
        if plain:
            aim = reverse_kl(trainer.target, batch_size)
        else:
            aim = exact_volume(trainer.target, batch_size, points=z if covers and points else None, **objective)
        warm_up = forward_kl(z, batch_size) if covers else None

        return _train(Trainer(trainer.leap, trainer.target, trainer.budget, aim, warm_up, disable_progbar=True))

    return build


def distil(num_path: int = TeacherBudget.num_path, calibrate: bool = True, **distillation) -> Build:
    """Distillation with parts left out. The teacher is shared; its seconds count for each."""

    def build(study):
        teacher, seconds = study.teacher(num_path)
        leap, more_seconds = timed(study.seed, lambda: train(study, teacher))

        return leap, seconds + more_seconds

    def train(study, teacher):
        trainer, z = study.recipe("distill").trainer, study.found.exploration.z
        budget = trainer.budget if calibrate else replace(trainer.budget, num_iterations=0)
        aim = exact_volume(trainer.target, budget.batch_size, points=z, num_steps=dyadic(NUM_TIME_STEPS))
        warm_up = self_distillation(teacher, NUM_TIME_STEPS, budget.batch_size, **distillation)

        return _train(Trainer(trainer.leap, trainer.target, budget, aim, warm_up, disable_progbar=True))

    return build


def _train(trainer: Trainer) -> Leap:
    trainer.run()

    return trainer.leap


def velocity(volume: str) -> Build:
    """One trained network, weighed in two ways."""

    def build(study):
        leap, seconds = study.velocity()

        return VelocityLeap(leap.diffusion, 1, volume), seconds

    return build


@dataclass(frozen=True)
class Variant:
    part: str
    name: str
    build: Build
    targets: set[str]


VARIANTS = [
    Variant("objectives", "calibrate", recipe("calibrate"), FOLDED),
    Variant("objectives", "cover", recipe("cover"), SINGLE | MIXTURE),
    Variant("objectives", "no covering direction", default_with(coverage=0.0), EVERYWHERE),
    Variant("objectives", "no look at the tails", default_with(tail_share=0.0), SINGLE | FOLDED),
    Variant("objectives", "no look at particles", default_with(points=False), FOLDED),
    Variant(
        "objectives",
        "only KL(q, p), path gradients",
        default_with(False, coverage=0.0, tail_share=0.0),
        SINGLE | FOLDED,
    ),
    Variant("objectives", "only KL(q, p), plain gradients", default_with(plain=True), EVERYWHERE),
    Variant("objectives", "distill", Study.distilled, EVERYWHERE),
    Variant("objectives", "distill, no volume consistency", distil(volume_weight=0.0), DISTILLED),
    Variant("objectives", "distill, no state consistency", distil(state_weight=0.0), DISTILLED),
    Variant("objectives", "distill, no teacher path weights", distil(num_path=0), DISTILLED),
    Variant("objectives", "distill, no shortcut", distil(shortcut=False), DISTILLED),
    Variant("objectives", "distill, no calibration", distil(calibrate=False), DISTILLED),
    Variant("networks", "Gaussian base", from_gaussian, MIXTURE),
    Variant("networks", "no splines", recipe("auto", splines(0.0)), SINGLE | FOLDED),
    Variant("networks", "splines everywhere", recipe("auto", splines(1.0)), SINGLE | FOLDED),
    Variant("networks", "velocity, published volume", velocity("published"), EVERYWHERE),
    Variant("networks", "velocity, exact volume", velocity("exact"), EVERYWHERE),
]


# ---- true draws, and how far others are from them ----


def true_draws(name: str, count: int) -> Tensor | None:
    """Independent draws of a target that has them."""
    if name == "four Gaussians":
        return CIRCLE[torch.multinomial(CIRCLE_WEIGHTS, count, True)] + 0.5 * torch.randn(count, 2)
    if name == "GMM40":
        return FORTY_MEANS[torch.randint(len(FORTY_MEANS), (count,))] + torch.randn(count, 2)
    if name == "funnel 10-D":
        log_variance = 3.0 * torch.randn(count, 1)
        return torch.cat([log_variance, (0.5 * log_variance).exp() * torch.randn(count, 9)], 1)
    if name == "many-well 5-D":
        return _on_grid(lambda x: even_wells(x[:, None]), (count, 5))
    if name == "many-well 32-D":
        x = _on_grid(lambda x: tilted_wells(torch.stack([x, torch.zeros_like(x)], 1)), (count, 16))
        return torch.stack([x, torch.randn_like(x)], -1).flatten(1)

    return None


def _on_grid(log_prob: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Tensor:
    """Draws of a density on the line, by its distribution function on a fine grid."""
    grid = torch.linspace(-5.0, 5.0, 20001, dtype=torch.float64)
    cumulative = torch.softmax(log_prob(grid), 0).cumsum(0)
    index = torch.searchsorted(cumulative, torch.rand(shape, dtype=torch.float64)).clamp(max=len(grid) - 1)

    return grid[index].float()


def distance(left: Tensor, right: Tensor) -> float:
    """Wasserstein distance between equally many draws, by an exact transport plan."""
    costs = torch.cdist(left.double(), right.double()).square().numpy()

    import ot  # a table is made from stored results without it

    return math.sqrt(ot.emd2([], [], costs, numItermax=1_000_000))


def mean_distance(left: list[Tensor], right: list[Tensor]) -> float:
    """Over pairs of sets; nan where there are none."""
    distances = [distance(*pair) for pair in zip(left, right, strict=True)]

    return sum(distances) / len(distances) if distances else math.nan


# ---- the tables ----


def elbo(log_weight: Tensor) -> float:
    return log_weight[log_weight.isfinite()].mean().item()


def weight_error(case: Case, z: Tensor, log_weight: Tensor) -> float:
    if not log_weight.isfinite().any():
        return math.nan
    chosen = torch.multinomial(torch.softmax(log_weight.double(), 0), NUM_RESAMPLED, replacement=True)

    return found_modes(case, z[chosen]).max_error


def measured(study: Study, name: str, build: Build) -> Record:
    leap, seconds = build(study)
    pyro.set_rng_seed(study.seed + 1)
    draws = weigh(leap, study.found.target, NUM_DRAWS)
    log_weight, truth = draws.log_weight, study.case.log_evidence
    log_evidence, std_error = log_mean_weight(log_weight)
    drawn = draws.z.split(NUM_TRANSPORTED)[: len(study.true_sets)]

    return {
        "target": study.case.name,
        "seed": study.seed,
        "variant": name,
        "gap": truth - elbo(log_weight),
        "error": log_evidence - truth,
        "std_error": math.hypot(std_error, study.case.log_evidence_se),
        "pareto_k": pareto_k(log_weight),
        "ess": effective_sample_size(log_weight) / len(log_weight),
        "weight_error": weight_error(study.case, draws.z, log_weight),
        "transport": mean_distance(drawn, study.true_sets),
        "floor": study.floor,
        "folds": leap.fold_share() if isinstance(leap, VelocityLeap) else None,
        "seconds": seconds,
    }


def step_records(study: Study) -> list[Record]:
    """Four samplers in fewer and fewer steps."""
    teacher, _ = study.teacher()
    free, _ = study.velocity()
    flow, _ = study.distilled()
    target, truth = study.found.target, study.case.log_evidence
    rows = []
    for num_steps in dyadic(NUM_TIME_STEPS):
        pyro.set_rng_seed(study.seed + 1)
        with torch.no_grad():
            log_weights = {"teacher, path weights": teacher.log_weight(teacher.simulate(NUM_PATHS, num_steps))}
        published, exact = (VelocityLeap(free.diffusion, num_steps, volume) for volume in ("published", "exact"))
        log_weights["velocity, published volume"] = weigh(published, target, NUM_DRAWS).log_weight
        log_weights["velocity, exact volume"] = weigh(exact, target, NUM_DRAWS).log_weight
        log_weights["distilled flow, exact"] = weigh(
            Leap(flow.base, flow.flow, num_steps), target, NUM_DRAWS
        ).log_weight
        for name, log_weight in log_weights.items():
            log_evidence, std_error = log_mean_weight(log_weight)
            rows.append({
                "target": study.case.name,
                "seed": study.seed,
                "steps": num_steps,
                "sampler": name,
                "elbo_error": elbo(log_weight) - truth,
                "error": log_evidence - truth,
                "std_error": std_error,
                "folds": exact.fold_share() if name.startswith("velocity") else None,
            })  # fmt: skip

    return rows


HEADER = ["target", "seed", "variant", "gap", "log Z error", "se", "pareto k", "ESS"]
HEADER += ["weight err", "W2", "floor", "folds", "CPU s"]
STEP_HEADER = ["target", "seed", "steps", "sampler", "ELBO - log Z", "log Z error", "se", "folds"]


def variants_table(records: list[Record]) -> str:
    rows = [
        [
            found["target"],
            found["seed"],
            found["variant"],
            f"{found['gap']:.4f}",
            f"{abs(found['error']):.4f}",
            f"{found['std_error']:.4f}",
            f"{found['pareto_k']:.2f}",
            f"{found['ess']:.3f}",
            _or_dash(found["weight_error"], 3),
            _or_dash(found["transport"], 2),
            _or_dash(found["floor"], 2),
            "0" if found["folds"] is None else f"{found['folds']:.3f}",
            f"{found['seconds']:.1f}",
        ]
        for found in records
    ]

    return table(HEADER, rows, "lrl" + "r" * 10)


def steps_table(records: list[Record]) -> str:
    rows = [
        [
            found["target"],
            found["seed"],
            found["steps"],
            found["sampler"],
            f"{found['elbo_error']:+.4f}",
            f"{found['error']:+.4f}",
            f"{found['std_error']:.4f}",
            "0" if found["folds"] is None else f"{found['folds']:.3f}",
        ]
        for found in records
    ]

    return table(STEP_HEADER, rows, "lrrlrrrr")


def _or_dash(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def records_of(task: tuple[str, int, str | None]) -> list[Record]:
    """What was measured of one target and seed, for both tables."""
    name, seed, part = task
    torch.set_num_threads(1)
    study = set_out(cases()[name], seed)
    found = []
    if part != "steps":
        found.append(measured(study, f"default: {study.recipe().name}", recipe("auto")))
        chosen = [variant for variant in VARIANTS if name in variant.targets and part in (None, variant.part)]
        found += [measured(study, variant.name, variant.build) for variant in chosen]

    return found + (step_records(study) if part in (None, "steps") and name in STEPPED else [])


def cases() -> dict[str, Case]:
    return {case.name: case for case in [*target_cases(), *all_cases()] if case.name in EVERYWHERE}


def tables_of(records: list[Record]) -> dict[str, str]:
    """Both tables, as far as there is something for them."""
    kinds = (("ablation", "variant", variants_table), ("steps", "sampler", steps_table))
    rows = {name: (make, [each for each in records if key in each]) for name, key, make in kinds}

    return {name: make(found) for name, (make, found) in rows.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="+", default=list(cases()), choices=cases(), metavar="TARGET", help=f"of {', '.join(cases())}"
    )
    parser.add_argument("--part", choices=("objectives", "networks", "steps"), help="default: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time, each on one core")
    parser.add_argument("--report", action="store_true", help="write the tables, run nothing")
    args = parser.parse_args()
    if args.report:
        for name, text in tables_of(stored(RESULTS)).items():
            write_block(name, text, DOCS / "method.md")
        return
    names = [name for name in args.only if args.part != "steps" or name in STEPPED]
    # The longest first, so that the cores end together.
    names.sort(key=lambda name: name not in FOLDED)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        tasks = [(name, seed, args.part) for name in names for seed in args.seeds]
        for found in pool.imap(records_of, tasks, 1):
            for record in found:
                keep(record, RESULTS, "target", "seed", "variant", "steps", "sampler")
            for text in tables_of(found).values():
                print(f"{text}\n", flush=True)


if __name__ == "__main__":
    main()
