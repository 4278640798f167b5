"""Missing observations: left out exactly where a mask or the distribution says so, else refused with the place."""

import contextlib
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_error
from pyro import poutine
from scipy import stats
from torch import nan, tensor

from pyro_osds import OSDS
from pyro_osds.model import ModelTarget
from pyro_osds.model.distributions.missing import nan_is_missing

Y = tensor([1.0, nan, 2.0, 0.5])
ROWS = tensor([[1.0, nan, 0.2], [2.0, 0.3, nan], [nan, nan, nan], [0.4, 0.1, -1.0], [nan, 0.7, 1.5]])
STANDARD = dist.Normal(torch.zeros(1), 1.0).to_event(1)


def points(target, count=64):
    torch.manual_seed(0)
    return torch.randn(count, target.dim, dtype=torch.float64)


def latents():
    return pyro.sample("mean", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.LogNormal(0.0, 1.0))


def assert_same_density(model, reference, **options):
    """The density and its gradient are those of the model with the missing rows left out."""
    target, expected = ModelTarget(model, **options), ModelTarget(reference)
    z = points(target)
    got, want = [], []
    for each, found in ((target, got), (expected, want)):
        at = z.clone().requires_grad_()
        log_prior, log_likelihood = each.log_prior_and_likelihood(at)
        found += [log_prior.detach(), log_likelihood.detach(), *torch.autograd.grad(log_likelihood.sum(), at)]
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), (a - b).abs().max()

    return target


def in_plate(make, obs, mask=None):
    def model():
        mean, scale = latents()
        around = poutine.mask(mask=mask) if mask is not None else poutine.scale(scale=1.0)
        with pyro.plate("rows", len(obs)), around:
            pyro.sample("y", make(mean, scale), obs=obs)

    return model


# What is masked, and the value that stands for missing.
MASKED = {
    "nan": (dist.Normal, [1.0, nan, 2.0, 0.5]),
    "infinite": (lambda m, s: dist.StudentT(3.0, m, s), [1.0, math.inf, 2.0, -math.inf]),
    "negative": (lambda m, s: dist.Gamma(s, m.exp()), [1.0, -9.0, 2.0, 0.5]),
    "on the bound": (lambda m, s: dist.Gamma(s, m.exp()), [1.0, 0.0, 2.0, 0.5]),
    "above one": (lambda m, s: dist.Beta(s, m.exp()), [0.1, 9.0, 1.0, 0.5]),
    "nan count": (lambda m, s: dist.Poisson(s), [1.0, nan, 2.0, 0.0]),
    "-1 count": (lambda m, s: dist.NegativeBinomial(s, logits=m), [1.0, -1.0, 2.0, 0.0]),
    "nan of two": (lambda m, s: dist.Bernoulli(logits=m), [1.0, nan, 1.0, 0.0]),
    "nan category": (lambda m, s: dist.Categorical(logits=torch.stack([m, s])), [1.0, nan, 1.0, 0.0]),
    "-1 category": (lambda m, s: dist.Categorical(logits=torch.stack([m, s])), [1, -1, 1, 0]),
    "too large": (lambda m, s: dist.Binomial(3, logits=m), [1.0, 99.0, 2.0, 0.0]),
    "zero-inflated": (lambda m, s: dist.ZeroInflatedPoisson(s, gate=m.sigmoid()), [1.0, nan, 2.0, 0.0]),
    "mixture": (
        lambda m, s: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.stack([s, s + 1]), 1.0)),
        [1.0, -3.0, 2.0, 0.5],
    ),
    "moving support": (lambda m, s: dist.Uniform(-20.0, 20.0 + s), [1.0, nan, 2.0, 0.5]),
    "log-normal": (dist.LogNormal, [1.0, -1.0, 2.0, 0.5]),
    "angle": (lambda m, s: dist.VonMises(m, s), [1.0, nan, 2.0, 0.5]),
}


@pytest.mark.parametrize("how", ["poutine", "distribution", "latent"])
@pytest.mark.parametrize("name", MASKED)
def test_masked_entries_are_not_looked_at(name, how):
    make, values = MASKED[name]
    obs = tensor(values)
    good = tensor([True, False, True, name != "infinite"]) & (obs != (0.0 if name == "on the bound" else 77.0))
    if name == "above one":
        good = tensor([True, False, False, True])
    before = obs.clone()
    if how == "poutine":
        model = in_plate(make, obs, good)
    elif how == "distribution":
        model = in_plate(lambda m, s: make(m, s).expand([4]).mask(good), obs)
    else:  # a mask that depends on a latent, and takes these entries out for all of its values

        def model():
            mean, scale = latents()
            with pyro.plate("rows", 4), poutine.mask(mask=good & (mean > -1e6)):
                pyro.sample("y", make(mean, scale), obs=obs)

        if name in ("on the bound", "above one"):
            pytest.skip("an entry on a bound may count there, so it is left as it is")
    target = assert_same_density(model, in_plate(make, obs[good]))
    assert target.backend == "captured" and all("No observation depends" in note for note in target.notes)
    assert torch.equal(obs.nan_to_num(nan=-77.0), before.nan_to_num(nan=-77.0))


def test_a_latent_mask_that_lets_a_missing_value_count_leaves_no_density():
    def model():
        mean, scale = latents()
        with pyro.plate("rows", 4), poutine.mask(mask=~Y.isnan() | (mean > 0.0)):
            pyro.sample("y", dist.Normal(mean, scale), obs=Y)

    target = ModelTarget(model)
    z = points(target)
    assert torch.equal(target.log_prob(z).isinf(), z[:, 0] > 0.0)


@pytest.mark.parametrize("mask", [tensor([True, False, True, True]), tensor(True), tensor(False)])
@pytest.mark.parametrize("as_unit", [False, True])
def test_factors_under_masks(mask, as_unit):
    # The value of a factor has no entries. Right-censored times are written so, event by event or as one sum.
    keep = mask.expand(4)

    def model():
        mean, scale = latents()
        terms = -((Y.nan_to_num(3.0) / scale) ** 2) + mean
        plate = pyro.plate("rows", 4) if mask.dim() else contextlib.nullcontext()
        terms = terms if mask.dim() else terms.sum()
        with plate, poutine.mask(mask=mask):
            if as_unit:
                pyro.sample("late", dist.Unit(terms), obs=torch.empty(*terms.shape, 0))
            else:
                pyro.factor("late", terms)

    def reference():
        mean, scale = latents()
        pyro.factor("late", (-((Y.nan_to_num(3.0) / scale) ** 2) + mean)[keep].sum())

    assert assert_same_density(model, reference).backend == "captured"


def test_an_expanded_mask():
    obs, mask = tensor([[1.0, nan, 2.0], [1.0, 3.0, nan]]), tensor([True, False, False])

    def model(obs, mask):
        def run():
            mean, scale = latents()
            with pyro.plate("a", 2, dim=-2), pyro.plate("b", obs.shape[1], dim=-1), poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(mean, scale), obs=obs)

        return run

    assert_same_density(model(obs, mask), model(obs[:, :1], tensor(True)))


def test_parts_of_independent_events():
    def model():
        mean, scale = latents()
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Gamma(scale, mean.exp()).expand([3]).mask(ROWS > 0).to_event(1), obs=ROWS)

    assert_same_density(model, in_plate(lambda m, s: dist.Gamma(s, m.exp()), ROWS[ROWS > 0]))


@pytest.mark.parametrize("kind", ["dirichlet", "normal", "hmm", "one-hot", "multinomial", "wishart"])
def test_whole_events(kind):
    ok = tensor([True, False, True])
    rows = {
        "dirichlet": (
            lambda m, s: dist.Dirichlet(torch.stack([s, s + 1])), tensor([[0.2, 0.8], [nan, 0.1], [0.4, 0.6]])
        ),
        "normal": (
            lambda m, s: dist.MultivariateNormal(m.expand(2), s * torch.eye(2)),
            tensor([[0.2, 2.0], [nan, 0.1], [0.4, 0.6]]),
        ),
        "hmm": (
            lambda m, s: dist.GaussianHMM(STANDARD, s * torch.eye(1), STANDARD, torch.eye(1), STANDARD, duration=3),
            tensor([[[1.0], [2.0], [3.0]], [[1.0], [nan], [3.0]], [[0.0], [2.0], [3.0]]]),
        ),
        "one-hot": (
            lambda m, s: dist.OneHotCategorical(logits=torch.stack([m, s])), tensor([[0.0, 1], [nan, 0], [1, 0]])
        ),
        "multinomial": (
            lambda m, s: dist.Multinomial(3, logits=torch.stack([m, s])), tensor([[2.0, 1], [-1.0, -1.0], [0, 3]])
        ),
        "wishart": (
            lambda m, s: dist.Wishart(tensor(3.0), scale_tril=s * torch.eye(2)),
            torch.stack([torch.eye(2), torch.full((2, 2), nan), 2 * torch.eye(2)]),
        ),
    }  # fmt: skip
    make, obs = rows[kind]
    assert_same_density(in_plate(make, obs, ok), in_plate(make, obs[ok]))


def test_nan_masked_normal_in_plates():
    assert_same_density(in_plate(dist.NanMaskedNormal, Y), in_plate(dist.Normal, Y[~Y.isnan()]))
    assert_same_density(in_plate(dist.NanMaskedNormal, Y[::2]), in_plate(dist.Normal, Y[::2]))


@pytest.mark.parametrize("shared", [True, False])
def test_nan_masked_multivariate_normal_in_a_plate(shared):
    # Against scipy's density of the part that is there, row by row.
    factor = tensor([[1.0, 0, 0], [0.5, 1, 0], [-0.3, 0.2, 2]])
    sizes = torch.ones(5) if shared else torch.linspace(0.5, 2.0, 5)
    shift = tensor([0.0, 1.0, -1.0])

    def model():
        mean, scale = latents()
        tril = scale * factor if shared else scale * sizes[:, None, None] * factor
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.NanMaskedMultivariateNormal(mean + shift, scale_tril=tril), obs=ROWS)

    target = ModelTarget(model)
    z = points(target)
    got = target.log_prior_and_likelihood(z)[1]
    covariance = (factor @ factor.T).double().numpy()
    for row, value in zip(z.numpy(), got.tolist(), strict=True):
        expected = 0.0
        for y, size in zip(ROWS.double().numpy(), sizes.double().numpy(), strict=True):
            there = np.flatnonzero(~np.isnan(y))
            if len(there):
                center = row[0] + shift.double().numpy()[there]
                part = covariance[np.ix_(there, there)] * (math.exp(row[1]) * size) ** 2
                expected += stats.multivariate_normal.logpdf(y[there], center, part)
        assert value == pytest.approx(expected, rel=1e-7)  # `ROWS` is in single precision
    assert target.backend == "captured"


def test_many_patterns_of_missing_entries():
    # More patterns than are evaluated one by one; against Pyro's own density, pattern by pattern.
    torch.manual_seed(1)
    rows = torch.randn(200, 6)
    rows[torch.rand(200, 6) < 0.5] = nan
    model = in_plate(lambda m, s: dist.NanMaskedMultivariateNormal(m.expand(6), s * torch.eye(6) + 0.3), rows)
    target = ModelTarget(model, capture=False)
    z = points(target, 3)
    got = target.log_prior_and_likelihood(z)[1]
    for row, value in zip(z, got, strict=True):
        fn = dist.NanMaskedMultivariateNormal(row[0].expand(6), row[1].exp() * torch.eye(6).double() + 0.3)
        assert value.item() == pytest.approx(fn.log_prob(rows.double()).sum().item(), rel=1e-10)


def test_missing_values_beside_discrete_latents():
    def model(obs, mask):
        def run():
            mean, scale = latents()
            with pyro.plate("rows", len(obs)):
                k = pyro.sample("k", dist.Bernoulli(0.3)).long()
                with poutine.mask(mask=mask):
                    pyro.sample("y", dist.Categorical(logits=torch.stack([mean * k, scale - k], -1)), obs=obs)

        return run

    obs = tensor([0, -1, 1, 1])
    good = obs >= 0
    target = assert_same_density(model(obs, good), model(obs[good], tensor(True)))
    # Given the rest, a discrete latent without an observation has its prior.
    draws = [target.infer_discrete({"mean": tensor(0.3), "scale": tensor(1.0)})["k"][1].item() for _ in range(300)]
    assert_within_standard_error(sum(draws) / 300, 0.3, math.sqrt(0.21 / 300))


def test_imputed_covariates():
    x, y = tensor([1.0, nan, 2.0]), tensor([1.0, 2.0, 0.0])

    def model(x):
        mean, scale = latents()
        missing = pyro.sample("missing", dist.Normal(0.0, 2.0).expand([1]).to_event(1))
        whole = x.clone()
        whole[x.isnan()] = missing
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(mean * whole, scale), obs=y)

    target = ModelTarget(model, (x,))
    z = points(target)
    mean, scale, missing = z[:, :1], z[:, 1:2].exp(), z[:, 2:]
    whole = torch.stack([torch.ones(64), missing[:, 0], 2 * torch.ones(64)], -1).double()
    expected = torch.distributions.Normal(mean * whole, scale).log_prob(y.double()).sum(-1)
    assert torch.allclose(target.log_prior_and_likelihood(z)[1], expected, atol=1e-10)


@pytest.mark.parametrize("how", ["mask", "obs_mask", "NanMaskedNormal"])
def test_evidence_of_a_model_with_missing_rows(how):
    # Normal mean, unit scale: the evidence of the three values that are there has a closed form.
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            if how == "obs_mask":
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=~y.isnan())
            elif how == "mask":
                with poutine.mask(mask=~y.isnan()):
                    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            else:
                pyro.sample("y", dist.NanMaskedNormal(mean, 1.0), obs=y)

    pyro.set_rng_seed(0)
    osds = OSDS(model, num_samples=500, num_chains=2, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        osds.run(Y)
    exact = stats.multivariate_normal.logpdf([1.0, 2.0, 0.5], np.zeros(3), np.eye(3) + 1.0)
    assert osds.evidence.reliable, osds.evidence.reasons
    assert_within_standard_error(osds.log_evidence, exact, osds.log_evidence_se)
    assert osds.to_inference_data() is not None


# ---- refused ----


def test_missing_values_without_a_mask_have_their_cures():
    with pytest.raises(ValueError, match=r"'y' has the value nan at index \(1,\) \(1 of 4 values\)") as caught:
        ModelTarget(in_plate(dist.Normal, Y))
    assert "poutine.mask(mask=~y.isnan())" in str(caught.value) and "obs_mask=~y.isnan()" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda m, s: dist.MultivariateNormal(m.expand(3), s * torch.eye(3)), "NanMaskedMultivariateNormal"),
        (lambda m, s: dist.Normal(m, s).expand([3]).to_event(1), "before .to_event"),
        (lambda m, s: dist.MultivariateStudentT(s + 2, m.expand(3), torch.eye(3)), "Leave whole events out"),
    ],
)
def test_missing_parts_of_events_have_the_cure_that_fits(make, cure):
    with pytest.raises(ValueError, match=rf"'y' has the value nan at index \(0,\) \(4 of 5 values\).*{cure}"):
        ModelTarget(in_plate(make, ROWS))


def covariate(x, mask=None, part="loc"):
    mean, scale = latents()
    with pyro.plate("rows", len(x)), poutine.mask(mask=tensor(True) if mask is None else mask):
        fn = dist.Normal(mean * x, scale) if part == "loc" else dist.Normal(mean, x)
        pyro.sample("y", fn, obs=torch.ones(len(x)))


def test_a_missing_covariate_is_named():
    with pytest.raises(
        ValueError,
        match=r"'loc' of Normal at site 'y' is nan at index \(1,\) \(1 of 4 entries\), and the model's argument 'x'",
    ):
        ModelTarget(covariate, (Y,))


def test_an_infinite_covariate_is_named():
    # There is no point at which the observations are possible, so none is asked for.
    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=torch.ones(len(x)))

    with pytest.raises(ValueError, match=r"site 'y'. Argument 'x' holds inf: leave such rows out, or mend the data."):
        OSDS(model, disable_progbar=True).run(tensor([1.0, math.inf]))


@pytest.mark.parametrize("part", ["loc", "scale"])
def test_a_missing_covariate_under_a_mask_has_no_gradient(part):
    mask = ~Y.isnan()
    with pytest.raises(ValueError, match=rf"'{part}' of Normal at site 'y'.*A mask takes.*x.nan_to_num") as caught:
        ModelTarget(covariate, (Y,), {"mask": mask, "part": part})
    assert "None" not in str(caught.value)
    # The cure cures.
    whole, there = Y.nan_to_num(1.0), Y[mask]
    assert_same_density(lambda: covariate(whole, mask, part), lambda: covariate(there, None, part))


def test_a_missing_covariate_that_no_latent_meets_is_fine():
    def model():
        mean, scale = latents()
        pyro.sample("z", dist.Normal(0.0, Y).mask(~Y.isnan()).to_event(1), obs=torch.ones(4))
        pyro.sample("y", dist.Normal(mean, scale), obs=tensor(1.0))

    assert ModelTarget(model).log_prob(torch.zeros(1, 2)).isfinite().all()


def by_parts(loc, covariance, y):
    """Log densities of what is there of one row after the other, by their own determinants and inverses."""
    total = []
    for m, c, row in zip(loc, covariance, y, strict=True):
        at = row.isfinite().nonzero()[:, 0]
        if len(at) == 0:
            total.append(0.0 * m.sum())
            continue
        part, d = c[at][:, at], row[at] - m[at]
        log_det = part.logdet()
        total.append(-0.5 * (d @ part.inverse() @ d + log_det + len(at) * math.log(2.0 * math.pi)))

    return torch.stack(total)


@pytest.mark.parametrize("shape", [(), (5, 1), (1, 7), (5, 7)])
@pytest.mark.parametrize("loc_shape", [(), (7,), (5, 7)])
def test_patterns_of_missing_entries_by_parts_of_matrices(shape, loc_shape):
    """Covariances of groups, of rows, and of one for all; means likewise; values, and gradients of both."""
    random = torch.Generator().manual_seed(3)
    y = 30.0 + torch.randn(5, 7, 3, generator=random, dtype=torch.float64)
    y[torch.rand(y.shape, generator=random) < 0.4] = torch.nan
    y[2, 3] = torch.nan
    loc = (30.0 + torch.randn(*loc_shape, 3, generator=random, dtype=torch.float64)).requires_grad_()
    root = torch.randn(*shape, 3, 3, generator=random, dtype=torch.float64).requires_grad_()
    covariance = root @ root.mT + 0.5 * torch.eye(3, dtype=torch.float64)
    weights = torch.randn(5, 7, generator=random, dtype=torch.float64)
    with nan_is_missing():
        got = dist.NanMaskedMultivariateNormal(loc, covariance_matrix=covariance).expand([5, 7]).log_prob(y)
    whole = loc.expand(5, 7, 3).reshape(-1, 3), covariance.expand(5, 7, 3, 3).reshape(-1, 3, 3)
    expected = by_parts(*whole, y.reshape(-1, 3)).reshape(5, 7)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad((weights * got).sum(), (loc, root), retain_graph=True)
    by_hand = torch.autograd.grad((weights * expected).sum(), (loc, root))
    torch.testing.assert_close(gradients, by_hand, rtol=1e-8, atol=1e-8)
