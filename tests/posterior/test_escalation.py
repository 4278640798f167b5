"""Escalation: which stages are climbed for which verdicts, what is kept and reported, and when climbing ends."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyro_osds.flow.base import gaussian_base
from pyro_osds.flow.coupling import FlowMap
from pyro_osds.flow.leap import Leap
from pyro_osds.posterior import escalation
from pyro_osds.posterior.escalation import Escalation
from pyro_osds.posterior.verdict import Evidence, EvidenceCheck
from pyro_osds.target import NotFiniteError
from pyro_osds.train.trainer import History


def verdict(reliable, share=0.5, log_evidence=-1.0):
    """Draws with nothing but a verdict, and that share of them effective."""
    reasons = () if reliable else ("A reason.",)
    evidence = Evidence(
        log_evidence,
        0.01,
        -1.5,
        1000 * share,
        0.6,
        1000,
        reliable,
        reasons,
        draws_reliable=reliable,
        draws_reasons=reasons,
        log_integral=log_evidence,
        is_settled=reliable,
    )

    return SimpleNamespace(evidence=evidence, refinement=None, is_whole=True)


class FakeRecipe:
    """Counts the larger flows, each of them better or not."""

    def __init__(self, better=True, iterations_left=100, leap=None, folded=False):
        self.found = SimpleNamespace(target="the target", is_folded=folded)
        self.trainer = self._trainer(leap or Leap(gaussian_base(torch.randn(50, 1)), FlowMap(1)), 10)
        self.iterations_left = iterations_left
        self.surveys = []
        self.is_paused = False
        self._better = better

    def _trainer(self, leap, num_steps):
        return SimpleNamespace(leap=leap, history=History(loss=[0.0] * num_steps))

    def run_larger(self, found):
        self.surveys.append(found)
        self.iterations_left = 0
        if self._better:
            self.trainer = self._trainer(Leap(gaussian_base(torch.randn(50, 1)), FlowMap(1)), 110)
        else:
            self.trainer.history.loss += [0.0] * 100


class Climb:
    """One run through the stages, with all that was asked for and kept."""

    def __init__(self, first, after=None, walked=None, recipe=None, deadline=math.inf, explored=None):
        self.recipe = recipe or FakeRecipe()
        self.first, self.judged, self.walks, self.kept = first, [], [], []
        self.after, self.walked, self.explored = after or verdict(False), walked or verdict(True), explored
        self.explorations = []
        explore = self.explore if explored else None
        Escalation(self.recipe, self.judge, self.walk, explore, deadline).climb(first, self.keep)

    def judge(self, leap):
        self.judged.append(leap)
        return self.after

    def walk(self, leap, draws):
        self.walks.append((leap, draws))
        return self.walked

    def explore(self, draws):
        self.explorations.append(draws)
        return self.explored

    def keep(self, draws, report):
        self.kept.append((draws, report))

    @property
    def stages(self):
        return [report.split(":")[0] for _, report in self.kept]


@pytest.fixture(autouse=True)
def refinements(monkeypatch):
    """Refinements and second surveys leave their arguments behind."""
    made = []
    monkeypatch.setattr(escalation, "refine", lambda *arguments: made.append(arguments) or "particles")
    monkeypatch.setattr(escalation, "resurvey", lambda found, particles: (found, particles))

    return made


def test_a_good_verdict_is_the_end(refinements):
    # Only the report of the flow, however few draws are effective.
    for share in (0.9, 0.1):
        climb = Climb(verdict(True, share))
        assert climb.stages == ["flow"] and climb.kept[0][0] is climb.first
        assert not climb.judged and not climb.walks and not climb.recipe.surveys and not refinements


def test_wrong_tails_are_refined():
    # Many draws are effective: no larger flow, a refinement from the flow that there is, given its draws.
    climb = Climb(verdict(False, 0.5))
    assert climb.stages == ["flow", "annealed refinement"] and not climb.recipe.surveys
    assert climb.walks == [(climb.recipe.trainer.leap, climb.first)]
    assert climb.kept[1][0] is climb.walked


def test_a_poor_flow_is_replaced(refinements):
    # Few draws effective: particles of a short refinement, a survey of those, the larger flow, and its verdict.
    recipe = FakeRecipe()
    leap, found = recipe.trainer.leap, recipe.found
    climb = Climb(verdict(False, 0.1), after=verdict(True), recipe=recipe)
    assert climb.stages == ["flow", "larger flow"] and climb.kept[1][0] is climb.after
    assert refinements == [(leap, "the target", 64)] and recipe.surveys == [(found, "particles")]
    assert climb.judged == [recipe.trainer.leap] and recipe.trainer.leap is not leap and not climb.walks


def test_particles_of_the_second_opinion_are_used_again(refinements):
    # No other refinement is made for the larger flow.
    first = verdict(False, 0.1)
    first.refinement = "those particles"
    climb = Climb(first)
    assert not refinements and climb.recipe.surveys[0][1] == "those particles"


def test_all_the_stages():
    # The larger flow is not believed either: a refinement from it, given its own draws.
    climb = Climb(verdict(False, 0.1), after=verdict(False))
    assert climb.stages == ["flow", "larger flow", "annealed refinement"]
    assert climb.walks == [(climb.recipe.trainer.leap, climb.after)]
    assert [draws for draws, _ in climb.kept] == [climb.first, climb.after, climb.walked]


def test_a_larger_flow_that_is_no_better():
    # It is reported, nothing is drawn anew, and the refinement starts from the first flow.
    recipe = FakeRecipe(better=False)
    leap = recipe.trainer.leap
    climb = Climb(verdict(False, 0.1), recipe=recipe)
    assert climb.kept[1] == (climb.first, "larger flow: ELBO no higher after 110 iterations in all")
    assert not climb.judged and climb.walks == [(leap, climb.first)]
    assert climb.stages == ["flow", "larger flow", "annealed refinement"]


def test_the_refinement_is_the_last_stage_where_there_is_no_annealed_smc():
    # Whatever it says is kept.
    climb = Climb(verdict(False), walked=verdict(False))
    assert climb.stages == ["flow", "annealed refinement"] and climb.kept[1][0] is climb.walked
    assert climb.kept[1][1].endswith("draws: NOT reliable; log evidence: NOT reliable")


def test_annealed_smc_follows_a_refinement_that_is_not_believed():
    # Given the refinement's draws; with a good verdict it is kept whatever its number, and says that it is no one step.
    climb = Climb(verdict(False), walked=verdict(False, log_evidence=5.0), explored=verdict(True, log_evidence=-9.0))
    assert climb.stages == ["flow", "annealed refinement", "annealed SMC"] and climb.explorations == [climb.walked]
    assert climb.kept[2][0] is climb.explored
    assert climb.kept[2][1].endswith("log evidence: reliable; draws of annealed SMC, not of one network evaluation")


@pytest.mark.parametrize(("log_evidence", "taken"), [(-0.9, True), (-1.0, False), (-1.1, False), (math.nan, False)])
def test_the_better_founded_stage_is_kept(log_evidence, taken):
    # Where no verdict is good, the higher evidence: annealing that misses a part is too low.
    climb = Climb(verdict(False), walked=verdict(False), explored=verdict(False, log_evidence=log_evidence))
    assert climb.stages == ["flow", "annealed refinement", "annealed SMC"]
    assert climb.kept[2][0] is (climb.explored if taken else climb.walked)
    assert climb.kept[2][1].endswith("not of one network evaluation" if taken else "; not taken")


@pytest.mark.parametrize(
    ("log_evidence", "std_error", "old_error", "taken"),
    [
        (-2.0, 0.1, 137.0, True),  # two draws of a flow carry all of its weight
        (-2.0, 0.1, math.inf, True),
        (-1.5, 0.1, 0.3, True),
        (-2.0, 0.1, 0.3, False),
        (-1.5, 0.3, 0.1, False),
        (-0.9, 0.3, 0.1, True),
    ],
)
def test_a_flow_that_knows_nothing_is_not_kept_for_its_number(log_evidence, std_error, old_error, taken):
    walked, explored = verdict(False), verdict(False, log_evidence=log_evidence)
    walked.evidence = replace(walked.evidence, std_error=old_error)
    explored.evidence = replace(explored.evidence, std_error=std_error)
    climb = Climb(verdict(False), walked=walked, explored=explored)
    assert climb.kept[2][0] is (explored if taken else walked)


def test_annealed_smc_without_a_refinement():
    # A velocity network has no refinement, and may be helped by exploring all the same.
    recipe = FakeRecipe(leap=SimpleNamespace(can_invert=False), iterations_left=0)
    climb = Climb(verdict(False), recipe=recipe, explored=verdict(True))
    assert climb.stages == ["flow", "annealed SMC"] and climb.explorations == [climb.first]


def test_no_annealed_smc_where_the_refinement_is_believed():
    # Nor after the deadline.
    climb = Climb(verdict(False), explored=verdict(True))
    assert climb.stages == ["flow", "annealed refinement"] and not climb.explorations
    climb = Climb(verdict(False), explored=verdict(True), deadline=time.perf_counter() - 1)
    assert climb.stages == ["flow"] and not climb.explorations


def test_what_is_settled_is_not_climbed_for():
    # With an improper prior there is no evidence, and more work would not make one.
    first = verdict(True)
    first.evidence = replace(first.evidence, reliable=False, reasons=("Improper.",), log_evidence=math.nan)
    climb = Climb(first, explored=verdict(True))
    assert climb.stages == ["flow"] and climb.kept[0][0] is first


@pytest.mark.parametrize(
    ("share", "elbo", "folded", "skips"),
    [
        (0.0005, -5.0, True, True),
        (math.nan, -5.0, True, True),
        (0.0005, -3.0, True, False),
        (0.0015, -5.0, True, False),
        (0.0005, -5.0, False, False),
    ],
)
@pytest.mark.parametrize("reliable", [True, False])
def test_a_hopeless_flow_is_no_start(share, elbo, folded, skips, reliable):
    # Few draws effective, the ELBO far below exploration, and valleys everywhere: straight to annealed SMC, and no
    # further. A posterior with a single mode, or weights that are merely poor, go the usual way.
    first = verdict(False, share)
    first.evidence = replace(first.evidence, elbo=elbo, check=EvidenceCheck(-1.0, 0.1))
    climb = Climb(first, recipe=FakeRecipe(folded=folded), walked=verdict(False), explored=verdict(reliable))
    usual = ["flow", "larger flow", "annealed refinement", "annealed SMC"]
    assert climb.stages == (["flow", "annealed SMC"] if skips else usual)


@pytest.mark.parametrize(
    ("share", "larger"), [(0.0, True), (0.199, True), (0.2, False), (1.0, False), (math.nan, True)]
)
def test_what_is_poor(share, larger):
    # Less than a fifth of the draws effective, or no draw with any weight.
    assert ("larger flow" in Climb(verdict(False, share)).stages) == larger


def test_no_iterations_left():
    # A flow of a size that was asked for does not grow.
    climb = Climb(verdict(False, 0.1), recipe=FakeRecipe(iterations_left=0))
    assert climb.stages == ["flow", "annealed refinement"] and not climb.recipe.surveys


def test_nothing_begins_after_the_deadline():
    # The flow is kept and reported all the same.
    climb = Climb(verdict(False, 0.1), deadline=time.perf_counter() - 1)
    assert climb.stages == ["flow"] and not climb.recipe.surveys and not climb.walks


def test_the_deadline_may_pass_on_the_way(monkeypatch):
    # A larger flow that was begun in time is kept; no refinement follows.
    now = [0.0]
    monkeypatch.setattr(escalation, "is_past", lambda deadline: now[0] > deadline)
    recipe = FakeRecipe()
    inner = recipe.run_larger

    def run_larger(found):
        now[0] = 2.0
        inner(found)

    recipe.run_larger = run_larger
    climb = Climb(verdict(False, 0.1), recipe=recipe, deadline=1.0)
    assert climb.stages == ["flow", "larger flow"] and not climb.walks


@pytest.mark.parametrize("failing", ["larger flow", "annealed refinement", "annealed SMC"])
def test_a_stage_that_cannot_begin_costs_nothing(monkeypatch, failing):
    # None of its starting points has a density: the next stage comes, and the draws that there are stay.
    def fails(*arguments):
        raise NotFiniteError("The log density is not finite.", torch.zeros(1))

    if failing == "larger flow":
        monkeypatch.setattr(escalation, "refine", fails)
    elif failing == "annealed refinement":
        monkeypatch.setattr(Climb, "walk", fails)
    else:
        monkeypatch.setattr(Climb, "explore", fails)
    climb = Climb(verdict(False, 0.1), walked=verdict(False), explored=verdict(False, log_evidence=-2.0))
    assert climb.stages == ["flow", "larger flow", "annealed refinement", "annealed SMC"]
    number = climb.stages.index(failing)
    draws, report = climb.kept[number]
    assert draws is climb.kept[number - 1][0] and report.startswith(f"{failing}: could not begin, since none of its")


def test_interrupted_training_is_not_followed():
    # Neither before a larger flow nor after one.
    recipe = FakeRecipe()
    recipe.trainer.history.interrupted = True
    assert Climb(verdict(False, 0.1), recipe=recipe).stages == ["flow"]
    recipe = FakeRecipe()
    inner = recipe.run_larger

    def run_larger(found):
        inner(found)
        recipe.trainer.history.interrupted = True

    recipe.run_larger = run_larger
    climb = Climb(verdict(False, 0.1), recipe=recipe)
    assert climb.stages == ["flow", "larger flow"] and not climb.walks


@pytest.mark.parametrize("stage", ["larger flow", "annealed refinement"])
def test_ctrl_c_on_a_stage_keeps_the_last_one(stage):
    # It is for the caller to catch; what was kept before stays.
    class Interrupted(Climb):
        def judge(self, leap):
            if stage == "larger flow":
                raise KeyboardInterrupt
            return super().judge(leap)

        def walk(self, leap, draws):
            raise KeyboardInterrupt

        def __init__(self, first):
            try:
                super().__init__(first)
            except KeyboardInterrupt:
                self.interrupted = True

    climb = Interrupted(verdict(False, 0.1))
    assert climb.interrupted and climb.stages == ["flow", "larger flow"][: 1 if stage == "larger flow" else 2]


def test_only_a_bijection_is_refined():
    # A velocity network, or a model without continuous latents, ends with its own verdict.
    climb = Climb(verdict(False), recipe=FakeRecipe(leap=SimpleNamespace(can_invert=False), iterations_left=0))
    assert climb.stages == ["flow"] and not climb.walks


def test_reports_name_the_numbers():
    # Evidence, weights, iterations and verdict, stage by stage.
    climb = Climb(verdict(False, 0.1, -3.25), walked=verdict(True, 0.8, -3.0))
    assert climb.kept[0][1] == (
        "flow: log evidence -3.2500 +- 0.0100, ELBO -1.5000, pareto k 0.60, effective sample size 100 of 1000 "
        "(10 iterations): draws: NOT reliable; log evidence: NOT reliable"
    )
    assert "(110 iterations): draws: NOT reliable; log evidence: NOT reliable" in climb.kept[1][1]
    assert climb.kept[2][1].startswith("annealed refinement: log evidence -3.0000")
    assert climb.kept[2][1].endswith("): draws: reliable; log evidence: reliable")
