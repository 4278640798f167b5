"""A type checker sees typos in a user's script, and the types of what comes back; what is right passes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from pyro_osds import choices
from pyro_osds.model import CAPTURE, TEMPERATURES, VECTORIZE
from pyro_osds.osds import OSDS
from pyro_osds.posterior.draws import CORRECTIONS
from pyro_osds.train.recipe import NETWORKS, RECIPES
from pyro_osds.train.velocity import VOLUMES

ROOT = Path(__file__).parents[2]
# With the environment that the tests run in, where lint and types are installed into it.
PYRIGHT = shutil.which("pyright", path=str(Path(sys.executable).parent))

SCRIPT = """\
from typing import Any

import arviz as az
import torch
from pyro.infer import MCMC

from pyro_osds import OSDS, Evidence, OSDSKernel, compare_evidence, fit_many


def model(y: torch.Tensor) -> None: ...
def gaussian(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * z.square().sum(-1)


# What is right.
osds = OSDS(model, num_samples=500, num_chains=2, recipe="cover", max_time=60, capture=False, initial_params=None)
osds.run(torch.zeros(3))
evidence: Evidence = osds.evidence
draws: dict[str, torch.Tensor] = osds.get_samples(group_by_chain=True)
idata: az.InferenceData = osds.to_inference_data(dims={"theta": ["school"]})
fits: dict[str, OSDS] = fit_many({"a": osds, "b": (osds, torch.zeros(2))}, torch.zeros(3), num_jobs=2)
numbers: dict[str, float] = fit_many({"a": osds}, read=lambda fit: fit.log_evidence)
table = compare_evidence({"a": osds, "b": idata}, prior={"a": 0.5, "b": 0.5})
best: float = table["log_evidence"].iloc[0]
density = OSDS.from_log_prob(gaussian, 2, num_samples=100, correction="psis", dtype=torch.float64)
mcmc = MCMC(OSDSKernel(model, num_iterations=500), num_samples=100)
agreement = osds.check_against(draws)

# What is wrong.
OSDS(model, num_sample=500)
OSDS(model, recipe="destill")
OSDS(model, correction="PSIS")
OSDS(model, network="affine")
OSDS(model, vectorize=True)
OSDS(model, warmup_steps=500)
OSDS.from_log_prob(gaussian, 2, learning_rat=0.1)
OSDS.from_log_prob(gaussian, 2, volume="paper")
OSDSKernel(model, num_samples=500)
osds.get_samples(group_by_chains=True)
osds.evidense
osds.evidence.log_evidense
osds.infer_discrete(temperature=2)
fits["a"].log_evidense
wrong: dict[str, str] = fit_many({"a": osds}, read=lambda fit: fit.log_evidence)
compare_evidence([osds, osds])
"""


@pytest.mark.skipif(PYRIGHT is None, reason="pyright is of the extra dev: make types installs it")
def test_typos_are_type_errors(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "reportMissingImports": True}))
    run = subprocess.run(
        [PYRIGHT, "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    found = json.loads(run.stdout)["generalDiagnostics"]
    errors = {each["range"]["start"]["line"]: each["message"] for each in found if each["severity"] == "error"}
    lines = SCRIPT.splitlines()
    first = lines.index("# What is wrong.") + 1
    assert set(errors) == set(range(first, len(lines))), {
        (lines[line], errors.get(line)) for line in set(errors) ^ set(range(first, len(lines)))
    }


def test_the_types_are_what_is_allowed():
    lists = {
        choices.Correction: CORRECTIONS,
        choices.RecipeName: RECIPES,
        choices.Network: NETWORKS,
        choices.Volume: VOLUMES,
        choices.Vectorize: VECTORIZE,
        choices.Capture: CAPTURE,
        choices.Temperature: TEMPERATURES,
    }
    assert all(get_args(kind) == allowed for kind, allowed in lists.items())


def test_no_option_is_forgotten():
    import inspect

    own = set(inspect.signature(OSDS).parameters) - {"model"}
    density = own - {"potential_fn"}
    kernel = own - {"num_samples", "num_chains"}
    assert set(choices.DensityOptions.__annotations__) | set(choices._Options.__annotations__) == density
    assert set(choices.KernelOptions.__annotations__) | set(choices._Options.__annotations__) == kernel
