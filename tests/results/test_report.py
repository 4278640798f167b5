"""What a run tells about itself: the right numbers under the right names."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_osds.posterior.draws import PosteriorDraws
from pyro_osds.posterior.verdict import Evidence, EvidenceCheck
from pyro_osds.results.report import arrays, fit_group, fit_stats_dims, fit_stats_group, sample_stats
from pyro_osds.stats.weights import FlowDraws
from pyro_osds.train.teacher import TeacherHistory
from pyro_osds.train.trainer import History

EVIDENCE = Evidence(
    -3.0,
    0.1,
    -3.5,
    80.0,
    0.6,
    100,
    False,
    ("one reason", "another"),
    EvidenceCheck(-2.9, 0.2),
    EvidenceCheck(-2.8, 0.05),
    draws_reliable=False,
    draws_reasons=("one reason",),
)
FOUND = SimpleNamespace(modes=SimpleNamespace(count=2), base=SimpleNamespace(num_components=4))


def test_arrays():
    # Of tensors with gradients, of any type, and of numbers.
    got = arrays({"x": torch.ones(2, requires_grad=True), "n": torch.tensor([1, 2]), "c": 3.0})
    assert all(isinstance(value, np.ndarray) for value in got.values())
    assert got["x"].tolist() == [1.0, 1.0] and got["n"].dtype == np.int64 and got["c"].item() == 3.0


def test_sample_stats():
    # Of the proposal that each draw is, by chain and draw.
    proposals = FlowDraws(torch.zeros(5, 1), torch.arange(5.0), 10 * torch.arange(5.0), torch.zeros(5), 0)
    draws = PosteriorDraws(proposals, torch.tensor([[4, 4, 0], [1, 2, 3]]), torch.full((2, 3), 0.5), EVIDENCE)
    stats = sample_stats(draws)
    assert stats["lp"].tolist() == [[40.0, 40.0, 0.0], [10.0, 20.0, 30.0]]
    assert stats["log_weight"].tolist() == [[4.0, 4.0, 0.0], [1.0, 2.0, 3.0]]
    assert stats["acceptance_rate"].tolist() == [[0.5] * 3] * 2
    assert stats["diverging"].dtype == torch.bool and not stats["diverging"].any()
    assert stats["log_marginal_likelihood"].tolist() == [-3.0, -3.0]


def test_fit():
    # The evidence, its check, what exploration found, and how the density was evaluated.
    assert fit_group(EVIDENCE, FOUND, "cover", "captured", ("flow: one", "annealed refinement: two")) == {
        "log_evidence": -3.0,
        "std_error": 0.1,
        "elbo": -3.5,
        "ess": 80.0,
        "pareto_k": 0.6,
        "num_draws": 100,
        "reliable": 0,
        "reasons": "one reason\nanother",
        "draws_reliable": 0,
        "draws_reasons": "one reason",
        "verdict": "draws: NOT reliable; log evidence: NOT reliable",
        "exploration_log_evidence": -2.9,
        "exploration_std_error": 0.2,
        "refinement_log_evidence": -2.8,
        "refinement_std_error": 0.05,
        "bridge_log_evidence": -2.8,
        "bridge_std_error": 0.05,
        "num_modes": 2,
        "num_base_components": 4,
        "search": "",
        "recipe": "cover",
        "backend": "captured",
        "rung": "captured",
        "source": "flow",
        "run_report": "flow: one\nannealed refinement: two",
    }


def test_fit_without_exploration():
    # One mode, no base, and a check that is not a number.
    evidence = Evidence(-3.0, 0.0, -3.0, 100.0, -math.inf, 100, True, ())
    got = fit_group(evidence, None, "point", "vmap", ())
    assert math.isnan(got["exploration_log_evidence"]) and math.isnan(got["exploration_std_error"])
    assert (got["num_modes"], got["num_base_components"], got["reliable"], got["reasons"]) == (1, 0, 1, "")
    assert (got["draws_reliable"], got["draws_reasons"]) == (1, "")
    assert got["verdict"] == "draws: reliable; log evidence: reliable"


@pytest.fixture
def histories():
    history = History(
        loss=[3.0, 2.0, 1.0], terms={"kl": [3.0, 2.0, math.nan]}, step=[2, 3], elbo=[-2.0, -1.0], gap=[1.0, 0.5],
        ess=[0.5, 0.9], pareto_k=[0.8, 0.3], num_skipped=1,
    )  # fmt: skip

    return history, TeacherHistory({"refinement": [5.0, 4.0]})


def test_fit_stats(histories):
    # By step, by round, and by step of each of the teacher's losses.
    stats = fit_stats_group(*histories, torch.tensor([0.5, -0.5]))
    assert stats["log_weight"].tolist() == [0.5, -0.5]
    assert stats["loss"].tolist() == [3.0, 2.0, 1.0] and stats["teacher_refinement"].tolist() == [5.0, 4.0]
    assert stats["elbo"].tolist() == [-2.0, -1.0] and stats["num_skipped"] == 1
    np.testing.assert_array_equal(stats["kl"], [3.0, 2.0, math.nan])


def test_dimensions_fit_the_values(histories):
    # Every array has as many dimensions as names, and the same name always means the same length.
    stats, dims = fit_stats_group(*histories, torch.zeros(4)), fit_stats_dims(*histories)
    assert {name for name, value in stats.items() if np.ndim(value)} == dims.keys()
    lengths = {}
    for name, names in dims.items():
        assert len(names) == stats[name].ndim
        lengths.setdefault(names[0], set()).add(len(stats[name]))
    assert lengths == {"flow_draw": {4}, "iteration": {3}, "refinement_iteration": {2}, "round": {2}}


def test_nothing_was_trained():
    # Empty arrays with their dimensions.
    stats, dims = (
        fit_stats_group(History(), TeacherHistory(), torch.empty(0)),
        fit_stats_dims(History(), TeacherHistory()),
    )
    assert all(len(stats[name]) == 0 for name in dims) and dims["loss"] == ("iteration",) and dims["elbo"] == ("round",)
