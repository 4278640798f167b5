"""A run that ends in annealed SMC, seen from OSDS: draws, more draws, files, tables, and what still is the flow."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error

from pyro_osds import OSDS, compare_evidence
from pyro_osds.posterior import escalation
from pyro_osds.runtime.warnings import OSDSWarning, UnreliableEvidenceWarning

# Four particles in a plane, each pair in a double well (DW-4): rings of rotations and permutations. Its log evidence by
# three long runs of annealed SMC.
LOG_EVIDENCE, ERROR = 29.665, 0.006
SENTENCE = "draws of annealed SMC, not of one network evaluation"


def basis():
    rows = torch.arange(1, 4)[:, None]
    columns = torch.arange(4)
    plain = (columns < rows) * 1.0 - rows * (columns == rows)
    return plain / (rows * (rows + 1.0)).sqrt()


def four_particles(z):
    """``(B, 6) -> (B,)``."""
    x = torch.einsum("...kd,kn->...nd", z.unflatten(-1, (3, 2)), basis().to(z))
    first, second = torch.triu_indices(4, 4, 1)
    distance = (x[..., first, :] - x[..., second, :]).square().sum(-1).clamp(min=1e-12).sqrt() - 4.0
    return -(0.9 * distance.pow(4) - 4.0 * distance.square()).sum(-1)


def model():
    prior = dist.Normal(0.0, 3.0).expand([6]).to_event(1)
    z = pyro.sample("z", prior)
    pyro.factor("particles", four_particles(z) - prior.log_prob(z))


@pytest.fixture(scope="module")
def fitted():
    # A flow that is hardly trained, and called hopeless: its refinement would find the way from so near to the base.
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(escalation, "HOPELESS_ESS", 1.0)
        patch.setattr(escalation, "HOPELESS_NATS", 0.0)
        pyro.set_rng_seed(0)
        osds = OSDS(model, num_samples=250, num_iterations=12, target_std_error=0.05, disable_progbar=True)
        osds.run()
        return osds


def test_the_result(fitted):
    # No further flow is trained, the evidence is right, and the sentence says what the draws are.
    assert [line.split(":")[0] for line in fitted.run_report] == ["flow", "annealed SMC"]
    assert fitted.run_report[1].endswith(f"log evidence: reliable; {SENTENCE}")
    evidence = fitted.evidence
    assert evidence.reliable and evidence.draws_reliable and evidence.elbo < evidence.log_evidence
    assert_within_standard_error(evidence.log_evidence, LOG_EVIDENCE, math.hypot(evidence.std_error, ERROR))
    # Rotations and reflections of a posterior that has them: no direction is preferred.
    z = fitted.get_samples()["z"]
    assert z.shape == (1000, 6)
    assert_within_standard_error((z[:, 0] * z[:, 1]).mean(), 0.0, 3 * (z[:, 0] * z[:, 1]).std() / math.sqrt(1000))


def test_more_draws(fitted):
    # Those of annealed SMC, whose mean weight is the evidence; on request those of the flow.
    torch.manual_seed(1)
    draws = fitted.draw(3000)
    assert len(draws) == 3000 and draws.log_abs_det.isnan().all() and draws.samples["z"].shape == (3000, 6)
    each = draws.log_weights.unique().double()
    estimate = draws.get_log_normalizer().item()
    assert_within_standard_error(estimate, LOG_EVIDENCE, 1.5 * each.std().item() / math.sqrt(len(each)))
    flow = fitted.draw(500, num_steps=1)
    assert flow.log_abs_det.isfinite().all() and len(flow.log_weights.unique()) > 400
    assert [len(batch) for batch in fitted.draw_batches(100, batch_size=60)] == [60, 40]


def test_files_and_fresh_draws(fitted, tmp_path):
    # From a file: the same, and the same fresh draws, weighted or not; also where fresh ones were asked for before.
    fitted.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", model)
    assert again.evidence == fitted.evidence and again.run_report == fitted.run_report
    assert torch.equal(again.get_samples()["z"], fitted.get_samples()["z"])
    torch.manual_seed(2)
    ours = fitted.draw(50).z
    torch.manual_seed(2)
    assert torch.equal(again.draw(50).z, ours)
    again.redraw()
    again.save(tmp_path / "fit.pt")
    for one in (OSDS.load(tmp_path / "fit.pt", model), again):
        torch.manual_seed(3)
        fresh = one.get_samples()["z"]
        assert not torch.equal(fresh, fitted.get_samples()["z"]) and one.fit.draws.source == "annealed SMC"
        assert_within_standard_error(one.log_evidence, LOG_EVIDENCE, math.hypot(one.log_evidence_se, ERROR))


def test_a_step_goes_back_to_the_flow(fitted, tmp_path):
    fitted.save(tmp_path / "fit.pt")
    again = OSDS.load(tmp_path / "fit.pt", model)
    again.redraw()
    again.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEvidenceWarning)
        assert again.fit.draws.source == "" and not again.evidence.reliable


def test_tables(fitted, capsys):
    fitted.summary()
    assert SENTENCE in " ".join(capsys.readouterr().out.split())
    idata = fitted.to_inference_data()
    assert str(idata["fit"]["source"].values) == "annealed SMC"
    assert float(idata["fit"]["log_evidence"]) == fitted.log_evidence
    table = compare_evidence({"a": fitted, "b": idata})
    assert table["reliable"].all() and table["log_bayes_factor"].abs().max() == 0.0


def test_guide_and_neutra_are_the_flow(fitted):
    with pytest.warns(OSDSWarning, match="guide is the flow, whose verdict was bad; the posterior draws are draws of"):
        guide = fitted.guide
    assert guide()["z"].shape == (6,)
    with pytest.warns(OSDSWarning, match=r"neutra is the flow.* draw\(n, num_steps=1\)"):
        fitted.neutra()
