"""Draws from elsewhere: what holds them, axes of one, chains that are stuck, and copies that they lack."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS
from test_given import EXACT, NORMAL, Y, dataset, draws, flat, given, normal, posterior, target_of

from pyro_osds import OSDS, ModelWarning, evidence_from_samples
from pyro_osds.explore.given.copies import Copies, copies_of
from pyro_osds.explore.given.reading import given_draws
from pyro_osds.explore.given.survey import survey_of_draws
from pyro_osds.explore.symmetry.flips import Flip
from pyro_osds.explore.symmetry.mirrored import MirroredTarget
from pyro_osds.explore.symmetry.ordering import Exchange, OrderedTarget
from pyro_osds.target import FunctionTarget


class Tree:
    """What a tree of groups has: groups under their names, and variables of its own."""

    def __init__(self, groups):
        self.children, self.data_vars, self.sizes = groups, {}, {}

    def __getattr__(self, name):
        if name in self.__dict__.get("children", {}):
            return self.children[name]
        raise AttributeError(name)


@pytest.mark.parametrize("kind", ["dict", "posterior", "tree", "mapping", "one chain"])
def test_inference_data_gives_the_same_points(kind):
    values = {name: value for name, value in draws().items() if name != "kind"}
    idata = az.from_dict(
        posterior={name: value.numpy() for name, value in values.items()}, prior={"sd": np.ones((1, 5))}
    )
    held = {
        "dict": lambda: idata,
        "posterior": lambda: idata.posterior,
        "tree": lambda: Tree({"posterior": idata.posterior, "prior": idata.prior}),
        "mapping": lambda: {"posterior": idata.posterior},
        "one chain": lambda: idata.posterior.isel(chain=0),
    }[kind]()
    target = target_of()
    read, plain = given_draws(held, target), given_draws(values, target)
    if kind == "one chain":
        plain = given_draws({name: value[0] for name, value in values.items()}, target)
    torch.testing.assert_close(read.z, plain.z)
    assert read.num_chains == 4 and read.ignored == ("twice",)


def test_inference_data_without_a_posterior_names_its_groups():
    prior = az.from_dict(prior={"sd": np.ones((1, 5))})
    for held in (
        prior,
        xr.DataTree.from_dict({"/prior": dataset({"sd": torch.ones(1, 5)})}),
        Tree({"prior": prior.prior}),
    ):
        with pytest.raises(TypeError, match="has the group 'prior' and no group 'posterior'"):
            given_draws(held, target_of())


def test_inference_data_of_nuts_and_of_a_fit_are_given_and_checked_against():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(normal), num_samples=150, warmup_steps=50, num_chains=1, disable_progbar=True)
    mcmc.run(Y)
    first = evidence_from_samples(normal, mcmc.get_samples(group_by_chain=True), Y)
    osds = OSDS(normal, initial_samples=az.from_pyro(mcmc), disable_progbar=True)
    osds.run(Y)
    for evidence in (first, osds.evidence):
        assert abs(evidence.log_evidence - EXACT) < 4 * evidence.std_error + 1e-3
    idata = osds.to_inference_data()
    assert osds.check_against(idata).agrees and osds.check_against(idata.posterior).agrees
    with pytest.raises(ValueError, match=r"samples\['mu'\] has shape \(150, 1\) .*by \.squeeze\(-1\)"):
        osds.check_against({"mu": mcmc.get_samples()["mu"][:, None]})
    again = evidence_from_samples(normal, idata, Y)
    assert abs(again.log_evidence - EXACT) < 4 * again.std_error + 1e-3


@pytest.mark.parametrize(
    ("name", "change", "cure"),
    [
        ("sd", lambda x: x.flatten()[:, None], r"\(200, 1\) and the site has shape \(\): .* by \.squeeze\(-1\)"),
        ("sd", lambda x: x[..., None], r"last axis of one is too many.*\.squeeze\(-1\)"),
        ("mean", lambda x: x.flatten(0, 1)[..., None], r"last axis of one is too many.*\.squeeze\(-1\)"),
        ("mean", lambda x: x[..., None], r"last axis of one is too many.*\.squeeze\(-1\)"),
        ("mean", lambda x: x.flatten(0, 1)[:, None], r"\(200, 3\), by \.squeeze\(1\)"),
    ],
)
def test_an_axis_of_one_is_told_of_the_site_that_has_it(name, change, cure):
    grouped = draws()
    for values in (flat(grouped), grouped):
        with pytest.raises(ValueError, match=rf"initial_samples\['{name}'\] has shape .*{cure}"):
            given_draws({**values, name: change(grouped[name])}, target_of())


def test_an_axis_of_one_that_is_lacking_is_told_and_one_that_belongs_is_read():
    def single():
        with pyro.plate("group", 1):
            pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    target, x = OSDS(single)._problem.target((), {}), torch.randn(40)
    assert given_draws({"x": x[:, None], "a": x}, target).total == 40
    assert given_draws({"x": x.view(4, 10, 1), "a": x.view(4, 10)}, target).num_chains == 4
    assert given_draws({"x": x.view(1, 40, 1), "a": x.view(1, 40)}, target).total == 40
    for lacking in (x, x.view(4, 10)):
        with pytest.raises(ValueError, match=r"\['x'\] has shape .*whose last axis of one the draws lack"):
            given_draws({"x": lacking, "a": x}, target)


def test_the_log_evidence_of_draws_shows_no_bars(capfd):
    torch.manual_seed(0)
    sampler = OSDS.from_log_prob(lambda z: -0.5 * z.square().sum(-1), 1, num_samples=100)
    evidence_from_samples(sampler, torch.randn(200, 1))
    assert capfd.readouterr().err == "" and not sampler.settings.disable_progbar


def test_a_stuck_chain_is_named_and_left_out():
    torch.manual_seed(0)
    z = torch.randn(4, 250, 3)
    z[3] = 12.0 + 0.01 * torch.randn(250, 3)
    found = survey_of_draws(NORMAL, given(z.flatten(0, 1), 4))
    assert found.given.notes[0].startswith("chain 4 of 4 of the given draws did not converge")
    assert found.given.kept == (0, 1, 2) and found.given.num_chains == 3 and len(found.given.z) == 750
    assert "warm-up" not in " ".join(found.given.notes)
    assert abs(found.exploration.log_evidence - 1.5 * math.log(2 * math.pi)) < 4.5 * found.exploration.std_error + 0.03


@pytest.mark.parametrize("place", [lambda n: slice(n // 2, None), lambda n: slice(0, 3 * n // 4)])
def test_a_chain_that_leaves_or_comes_late_is_stuck_and_a_beginning_is_warm_up(place):
    torch.manual_seed(0)
    z = torch.randn(4, 240, 3)
    z[1, place(240)] += 15.0
    assert "chain 2 of 4" in survey_of_draws(NORMAL, given(z.flatten(0, 1), 4)).given.stuck
    z = torch.randn(4, 240, 3)
    z[1, :40] += 15.0
    found = survey_of_draws(NORMAL, given(z.flatten(0, 1), 4)).given
    assert not found.stuck and "leave out the warm-up" in found.notes[0]


def test_half_of_the_chains_stuck_is_told_as_a_cause():
    torch.manual_seed(0)
    z = torch.randn(4, 250, 3)
    z[2:] += 15.0
    with pytest.raises(
        ValueError, match="or half of the chains did not converge: half of them .* of chains that agree"
    ):
        survey_of_draws(NORMAL, given(z.flatten(0, 1), 4))


def test_agreement_says_that_a_chain_did_not_converge(tmp_path):
    pyro.set_rng_seed(0)
    samples = posterior()["mu"].view(4, 250)
    samples[3] = 10.0 + 0.01 * torch.randn(250)
    osds = OSDS(normal, initial_samples={"mu": samples}, disable_progbar=True, num_samples=250)
    with pytest.warns(ModelWarning, match="chain 4 of 4"):
        osds.run(Y)
    assert abs(osds.log_evidence - EXACT) < 4 * osds.log_evidence_se + 1e-3
    for agreement in (osds.agreement, osds.check_against({"mu": samples})):
        assert not agreement.agrees and agreement.sentence.startswith("The reference disagrees")
    assert "chain 4 of 4" in osds.agreement.sentence and any("did not converge" in line for line in osds.run_report)
    osds.save(tmp_path / "fit.pt")
    assert OSDS.load(tmp_path / "fit.pt", normal, Y).agreement.sentence == osds.agreement.sentence


def mirror_of(rows):
    density = FunctionTarget(lambda z: -0.5 * (z.square() - 25.0).square().sum(-1), dim=rows)
    return MirroredTarget(density, Flip(torch.arange(rows)[:, None]), torch.arange(rows), length=0.1)


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        (torch.ones(4, 100, 1), "sit in 1 of the 2 copies that symmetry makes (signs)"),
        (torch.tensor([1.0, -1, 1, -1])[:, None, None].expand(4, 100, 1), ""),
        (torch.tensor([1.0, 1, 1, -1])[:, None, None].expand(4, 100, 1), ""),  # one chain of four, by chance
        (torch.tensor([1.0, -1]).repeat(4, 50)[..., None], ""),
        (torch.tensor([1.0, 1]).repeat(4, 50)[..., None].index_fill(1, torch.tensor([7]), -1), "sit in 1 of the 2"),
        # Means and scales of both are right, and half of the copies are missing.
        (
            (2.0 * torch.randint(2, (4, 100, 1), generator=torch.Generator().manual_seed(1)) - 1).expand(4, 100, 2),
            "2 of the 4",
        ),
        (2.0 * torch.randint(2, (4, 100, 2), generator=torch.Generator().manual_seed(2)) - 1, ""),
        (2.0 * torch.randint(2, (4, 100, 60), generator=torch.Generator().manual_seed(3)) - 1, ""),
        (torch.ones(4, 100, 60), "sit in 1 of the 1,152,921,504,606,846,976 copies"),
        (
            2.0 * (torch.rand(4, 100, 1, generator=torch.Generator().manual_seed(4)) < 0.8) - 1,
            "spread unevenly over the 2",
        ),
    ],
)
def test_signs_that_draws_lack_by_more_than_chance(signs, said):
    z = 5.0 * signs + 0.1 * torch.randn(signs.shape)
    sentence = copies_of(mirror_of(signs.shape[-1]), z.flatten(0, 1), len(signs)).sentence()
    assert said in sentence if said else not sentence


def test_orders_that_draws_lack():
    rows = torch.arange(3)[:, None]
    three = FunctionTarget(lambda z: -0.5 * z.square().sum(-1), dim=3)
    ordered = OrderedTarget(three, Exchange(3, (rows,), ()), torch.arange(3))
    torch.manual_seed(0)
    z = torch.tensor([-5.0, 0.0, 5.0]) + torch.randn(400, 3)
    assert "sit in 1 of the 6 copies that symmetry makes (orders)" in copies_of(ordered, z, 4).sentence()
    assert not copies_of(ordered, torch.randn(400, 3), 4).sentence()
    assert copies_of(three, z, 4) is None


def test_chances_are_those_of_draws_of_copies():
    # By brute force: how often so many of six copies are seen by twelve independent draws.
    torch.manual_seed(0)
    seen = [len(row.unique()) for row in torch.randint(6, (4000, 12))]
    for number in range(1, 6):
        often = sum(each <= number for each in seen) / len(seen)
        if Copies(number, 6, "orders", 12.0, 0.5).lacks_some:
            assert often < 0.0027 + 4 * math.sqrt(0.0027 / len(seen))
    assert Copies(1, 6, "orders", 12.0, 1.0).lacks_some and not Copies(5, 6, "orders", 12.0, 0.3).lacks_some


def test_agreement_says_which_copies_draws_lack():
    def squared():
        x = pyro.sample("x", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(x**2, 5.0), obs=torch.tensor(25.0))

    grid = torch.linspace(-20.0, 20.0, 40001, dtype=torch.float64)
    log_prob = dist.Normal(0.0, 5.0).log_prob(grid) + dist.Normal(grid**2, 5.0).log_prob(torch.tensor(25.0).double())
    exact = torch.logsumexp(log_prob, 0).item() + math.log(1e-3)
    chosen = torch.multinomial(log_prob.exp() * (grid < 0), 1000, True, generator=torch.Generator().manual_seed(0))
    pyro.set_rng_seed(0)
    osds = OSDS(squared, initial_samples={"x": grid[chosen].float()}, disable_progbar=True, num_samples=250)
    with pytest.warns(ModelWarning, match="sit in 1 of the 2 copies"):
        osds.run()
    assert osds.evidence.reliable and abs(osds.log_evidence - exact) < 4 * osds.log_evidence_se + 1e-3
    assert not osds.agreement.agrees and "sit in 1 of the 2 copies" in osds.agreement.sentence
    assert "sit in 1 of the 2 copies" in osds.run_report[-1]
