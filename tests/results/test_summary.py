"""What results say of themselves: summary, one line, and a card for notebooks."""

import functools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_osds import OSDS, Evidence, EvidenceCheck
from pyro_osds.results.summary import one_line, summary_card
from pyro_osds.runtime.text import Card
from pyro_osds.settings import Settings

Y = torch.tensor([1.2, 0.4, 2.1, 1.7, 0.9])
OPTIONS = {"num_samples": 50, "num_chains": 2, "num_iterations": 20, "num_particles": 16, "disable_progbar": True}
GOOD = Evidence(-7.19, 0.001, -7.2, 990.0, 0.12, 1000, True, (), EvidenceCheck(-7.18, 0.02))
BAD = Evidence(
    -7.19, 0.5, -9.0, 12.0, math.inf, 1000, False, ("pareto k is too high. Train longer.", "ess < 100 & so on")
)


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Cells(HTMLParser):
    """The text of each cell and item, and whether all tags are closed in their order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def cells(html):
    parsed = Cells(html)
    assert parsed.open == []
    return parsed.texts


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    osds = OSDS(conjugate, **OPTIONS)
    osds.run(Y)
    return osds


def test_summary_prints_what_one_decides_by(fitted, capsys):
    # MCMC's table, then evidence, bound, tail, draws, check, verdict, course, stage, seconds, each on its line.
    fitted.summary()
    printed = capsys.readouterr().out
    table, _, card = printed.partition("\nlog evidence ")
    assert "n_eff" in table and re.search(r"^ +mu +\d", table, re.M)
    names = [re.split(r"  +| (?=\d)", line)[0] for line in card.splitlines()[1:]]
    assert names[0] == "ELBO" and {"exploration", "verdict", "fit", "stage", "seconds"} <= set(names)
    evidence = fitted.evidence
    assert card.startswith(f"{evidence.log_evidence:.4f} +- {evidence.std_error:.4f}")
    assert f"ess          {evidence.ess:.0f} of {evidence.num_draws} draws" in card
    assert re.search(r"^verdict +draws: reliable; log evidence: reliable$", card, re.M) and re.search(
        r"^stage +flow$", card, re.M
    )
    assert re.search(r"^fit +1 dimension, base of 1 component, recipe calibrate, 20 iterations$", card, re.M)
    assert f"exploration {fitted.fit.seconds['exploration_time']:.1f}" in card


def test_repr_before_and_after(fitted):
    # The model, what is not the default, and what came out.
    given = "OSDS(conjugate, num_samples=50, num_chains=2, disable_progbar=True, num_iterations=20, num_particles=16)"
    assert repr(OSDS(conjugate, **OPTIONS)) == f"{given}: not run yet"
    evidence = fitted.evidence
    number = f"log evidence {evidence.log_evidence:.4f} +- {evidence.std_error:.4f}"
    assert repr(fitted) == f"{given}: 1 dimension, {number}, draws: reliable; log evidence: reliable"


def test_repr_computes_nothing():
    # After steps by hand nothing is judged, and looking at the sampler does not change that.
    osds = OSDS(conjugate, **OPTIONS)
    osds.step(Y)
    assert repr(osds).endswith(": 1 dimension, 1 iterations, not judged yet")
    assert "not judged yet" in osds._repr_html_() and not osds.fit.is_judged


def test_names_of_models():
    # A partial has that of its function, an object that of its type.
    assert one_line(functools.partial(conjugate, Y), Settings(), None).startswith("OSDS(conjugate):")
    assert one_line(torch.nn.Identity(), Settings(), None) == "OSDS(Identity): not run yet"


def test_notebook_card(fitted):
    # The same numbers in a table; angle brackets of a lambda are escaped.
    texts = cells(fitted._repr_html_())
    assert texts[0].startswith("OSDS(conjugate, ") and "draws: reliable; log evidence: reliable" in texts
    assert texts[texts.index("ELBO") + 1] == f"{fitted.evidence.elbo:.4f} (a lower bound)"
    html = OSDS(lambda: None)._repr_html_()
    assert "<lambda>" not in html and cells(html)[0] == "OSDS(<lambda>)"


def test_several_stages(fitted, monkeypatch):
    # A row for each, with its sentence.
    monkeypatch.setattr(fitted.fit, "run_report", ("flow: not reliable", "annealed refinement: reliable"))
    rows = dict(summary_card(conjugate, fitted.settings, fitted.fit).rows)
    assert (
        rows["stage 1"] == "flow: not reliable"
        and rows["stage 2"] == "annealed refinement: reliable"
        and "stage" not in rows
    )


def test_evidence_reads_well():
    # One line as repr, a card as text, reasons with it.
    assert repr(GOOD) == (
        "Evidence(log evidence -7.1900 +- 0.0010, ELBO -7.2000, pareto k 0.12, ess 990 of 1000, draws: reliable; "
        "log evidence: reliable)"
    )
    assert repr(BAD).endswith("NOT reliable, 2 reasons)") and "\n" not in repr(BAD)
    assert "exploration  -7.1800 +- 0.0200\n" in str(GOOD) and str(GOOD).endswith(
        "verdict      draws: reliable; log evidence: reliable"
    )
    assert "\nverdict      draws: reliable; log evidence: NOT reliable\n- pareto k is too high. Train" in str(BAD)
    assert str(BAD).endswith("\n- ess < 100 & so on")
    assert "annealed refinement" not in str(GOOD) and "not to be used above 0.67" in str(GOOD)


def test_evidence_in_a_notebook():
    # Reasons are items, and escaped.
    html = BAD._repr_html_()
    assert html.count("<li>") == 2 and "ess &lt; 100 &amp; so on" in html
    assert "ess < 100 & so on" in cells(html)


def test_a_tail_of_nothing():
    # Nearly equal weights have no k, and "-inf" would need an explanation.
    equal = Evidence(0.0, 0.0, 0.0, 1000.0, -math.inf, 1000, True, ())
    assert "pareto k     none: weights are nearly equal" in str(equal)
    # Of a few draws the tail is not known, and an exploration that has not begun has no evidence.
    few = replace(equal, ess=1.0, num_draws=16, check=EvidenceCheck(-math.inf, math.nan))
    assert "pareto k     unknown: there are too few draws to tell" in str(few) and "exploration" not in str(few)


def test_long_lines_are_broken():
    # Values go on below their own beginning, sentences behind their dash.
    card = Card("", (("name", "word " * 40),), ("more " * 40,))
    lines = card.text().splitlines()
    assert max(map(len, lines)) <= 100 and lines[1].startswith("     word") and lines[-1].startswith("  more")
