"""A regression with a flat prior from beginning to end: the draws are good, and only the log evidence is undefined."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from torch.distributions import constraints

from pyro_osds import OSDS, compare_evidence
from pyro_osds.results.compare import UnreliableEvidenceWarning

X = torch.linspace(-1.0, 2.0, 20)
DESIGN = torch.stack([torch.ones(20), X], 1)
SIGMA = 0.7
Y = 1.5 - 0.8 * X + SIGMA * torch.tensor([1.0, -0.4, 0.3, -1.7, 0.6, 0.1, -0.9, 1.3, 0.2, -0.5] * 2)
VERDICT = "draws: reliable; log evidence: undefined (improper prior of site 'beta')"


def masked(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1).mask(False))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, SIGMA), obs=y)


def improper(x, y):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, SIGMA), obs=y)


def proper(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * x, SIGMA), obs=y)


def run(model):
    pyro.set_rng_seed(0)
    osds = OSDS(model, disable_progbar=True)
    osds.run(X, Y)

    return osds


@pytest.fixture(scope="module", params=[masked, improper], ids=lambda model: model.__name__)
def fitted(request):
    # One warning, of the reason that there is; a second one would be an error.
    with pytest.warns(UnreliableEvidenceWarning, match="prior of site 'beta' is improper") as warned:
        osds = run(request.param)
    assert len(warned) == 1

    return osds


def test_nothing_is_climbed_for(fitted):
    # One stage: no flow could give an evidence that does not exist.
    (report,) = fitted.run_report
    assert report.startswith("flow: log evidence undefined, ELBO ") and report.endswith(VERDICT)


def test_verdicts_in_code(fitted):
    evidence = fitted.evidence
    assert evidence.draws_reliable and not evidence.reliable and evidence.is_settled
    assert evidence.improper_sites == ("beta",) and evidence.draws_reasons == ()
    assert math.isnan(evidence.log_evidence) and math.isnan(evidence.std_error) and math.isnan(fitted.log_evidence)
    (reason,) = evidence.reasons
    assert "prior of site 'beta' is improper" in reason and "The draws are not affected." in reason


def test_draws_are_those_of_least_squares(fitted):
    # With a flat prior the posterior is N(beta_hat, sigma^2 (X'X)^-1).
    design, y = DESIGN.double(), Y.double()
    precision = design.T @ design / SIGMA**2
    covariance = precision.inverse()
    mean, variance = covariance @ design.T @ y / SIGMA**2, covariance.diagonal()
    beta = fitted.get_samples()["beta"].double()
    assert beta.shape == (4000, 2)
    size = 4000 * fitted_share(beta)
    for column, truth, spread in zip(beta.T, mean, variance, strict=True):
        assert_within_standard_error(column.mean(), truth, math.sqrt(spread / size))
        assert_within_standard_error((column - truth).square().mean(), spread, spread.item() * math.sqrt(2 / size))


def fitted_share(beta):
    """Share of effective draws, as the chains themselves tell it."""
    from pyro_osds.stats.chains import mixing

    share = mixing(beta.view(4, 1000, 2))[1]
    assert share > 0.5

    return share


def test_the_integral_is_right_up_to_its_constant(fitted):
    # Least squares know it: the Gaussian integral of the likelihood over all coefficients.
    design, y = DESIGN.double(), Y.double()
    covariance = (design.T @ design / SIGMA**2).inverse()
    mean = covariance @ design.T @ y / SIGMA**2
    at_mode = dist.Normal(design @ mean, SIGMA).log_prob(y).sum()
    expected = at_mode + math.log(2 * math.pi) + 0.5 * covariance.logdet()
    assert abs(fitted.evidence.log_integral - expected.item()) < 0.02


def test_what_is_printed(fitted, capsys):
    # In the summary, in one line and in a notebook, word for word.
    fitted.summary()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"verdict {VERDICT}" in printed and "log evidence undefined" in printed and "stage flow" in printed
    assert repr(fitted).endswith(f"log evidence undefined, {VERDICT}")
    html = fitted._repr_html_().replace("&#x27;", "'").replace("&#39;", "'")
    assert VERDICT in html and "undefined" in html
    assert VERDICT in repr(fitted.evidence) and f"verdict      {VERDICT}" in str(fitted.evidence)


def test_what_is_stored(fitted):
    # Verdicts as numbers and in words.
    group = fitted.to_inference_data()["fit"]
    assert str(group["verdict"].values) == VERDICT
    assert int(group["draws_reliable"]) == 1 and int(group["reliable"]) == 0
    assert str(group["draws_reasons"].values) == "" and "improper" in str(group["reasons"].values)
    assert math.isnan(float(group["log_evidence"]))


def test_what_is_compared(fitted):
    # It comes last, without a number, and its draws are said to be good; stored results say the same.
    other = run(proper)
    assert other.evidence.reliable and other.evidence.verdict == "draws: reliable; log evidence: reliable"
    for flat in (fitted, fitted.to_inference_data()):
        with pytest.warns(UnreliableEvidenceWarning):
            table = compare_evidence({"flat": flat, "proper": other})
        assert list(table.index) == ["proper", "flat"]
        assert table["draws_reliable"].tolist() == [True, True] and table["reliable"].tolist() == [True, False]
        assert math.isnan(table.loc["flat", "log_evidence"]) and "improper" in table.loc["flat", "flag"]
