"""Agreement: which side misses something, from weights at reference draws and errors of parameters."""

import math

import pytest
import torch

from pyro_osds.posterior.agreement import compare_with_reference, parameter_errors


def normal_log_prob(x, loc=0.0, scale=1.0):
    return -0.5 * ((x - loc) / scale).square() - math.log(scale * math.sqrt(2 * math.pi))


def held_against(flow, reference, log_posterior, log_flow):
    """The verdict on draws of a flow and of a reference, of one number each."""
    table = parameter_errors({"x": flow}, {"x": reference})
    return compare_with_reference(
        log_posterior(flow) - log_flow(flow), log_posterior(reference) - log_flow(reference), table
    )


def test_both_right(float64):
    # Bounds on both sides of the log evidence, 3, and both estimates within their errors.
    torch.manual_seed(0)
    flow, reference = 1.1 * torch.randn(20_000), torch.randn(4000)
    got = held_against(flow, reference, lambda x: 3.0 + normal_log_prob(x), lambda x: normal_log_prob(x, 0.0, 1.1))
    # The flow's own moments are those of its draws: weights would correct the ten percent.
    assert got.elbo < 3.0 < got.eubo
    assert abs(got.log_evidence - 3.0) <= 4 * got.std_error
    assert abs(got.forward_log_evidence - 3.0) <= 4 * got.forward_std_error
    exact = held_against(torch.randn(20_000), reference, lambda x: 3.0 + normal_log_prob(x), normal_log_prob)
    assert exact.agrees and str(exact).startswith("Flow and reference agree")


def two_modes(x):
    return torch.logaddexp(normal_log_prob(x, -6.0), normal_log_prob(x, 6.0)) - math.log(2)


def test_the_flow_lost_a_mode(float64):
    # Its own evidence is ln 2 too low; the one from the reference is right.
    torch.manual_seed(1)
    flow, reference = 6 + torch.randn(4000), torch.randn(4000) + torch.tensor([-6.0, 6.0]).repeat(2000)
    got = held_against(flow, reference, two_modes, lambda x: normal_log_prob(x, 6.0))
    assert not got.agrees and got.sentence.startswith("The flow disagrees: reference draws lie where")
    assert abs(got.log_evidence + math.log(2)) <= 4 * got.std_error + 1e-6
    assert abs(got.forward_log_evidence) <= 4 * got.forward_std_error and got.eubo > 10


def test_the_reference_lost_a_mode(float64):
    # At its own draws all is well, so only the parameters tell.
    torch.manual_seed(2)
    flow, reference = torch.randn(4000) + torch.tensor([-6.0, 6.0]).repeat(2000), 6 + torch.randn(4000)
    got = held_against(flow, reference, two_modes, two_modes)
    assert (
        not got.agrees and got.sentence.startswith("The reference disagrees: at its own draws") and "x" in got.sentence
    )
    assert abs(got.forward_log_evidence - got.log_evidence) < 1e-6


def test_the_reference_is_of_another_model(float64):
    # Draws where the posterior has no density are not explained away.
    reference = torch.linspace(-1, 1, 100)
    log_weight = torch.where(reference < 0, -torch.inf, 0.0)
    table = parameter_errors({"x": reference}, {"x": reference})
    got = compare_with_reference(torch.zeros(100), log_weight, table)
    assert not got.agrees and "50% of its draws have density zero" in got.sentence
    with pytest.raises(ValueError, match="finite at 0 of 100 reference draws"):
        compare_with_reference(torch.zeros(100), torch.full((100,), -torch.inf), table)


def test_parameter_errors(float64):
    # A row for each number, by its index; sites that one side lacks are left out.
    torch.manual_seed(3)
    ours, theirs = torch.randn(5000, 2, 2) + 0.5, 2 * torch.randn(4000, 2, 2)
    table = parameter_errors({"x": ours, "y": ours}, {"x": theirs, "z": theirs})
    assert list(table.index) == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]
    for _, row in table.iterrows():
        assert abs(row["mean_error"] - 0.25) <= 4 * row["std_error"]
        assert abs(row["sd_ratio"] - 0.5) <= 0.5 * 4 * math.sqrt(1 / 4000)
        assert math.isclose(row["std_error"], math.hypot(0.5 / math.sqrt(5000), 1 / math.sqrt(4000)), rel_tol=0.3)


def test_autocorrelated_reference_has_a_larger_error(float64):
    # A chain that stays for twenty steps knows a twentieth as much.
    torch.manual_seed(4)
    slow = torch.randn(200).repeat_interleave(20)
    row = parameter_errors({"x": torch.randn(10**5)}, {"x": slow}).loc["x"]
    assert 0.5 / math.sqrt(200) < row["std_error"] < 2 / math.sqrt(200)


def test_a_tail_of_equal_weights_is_none(float64):
    # Weights that differ by hundredths have no tail that matters, whatever shape k finds in it: the reference is wrong.
    torch.manual_seed(4)
    flow, reference = torch.randn(4000), 0.5 + torch.randn(4000)
    tail = 0.01 * torch.rand(4000).pow(-0.8)
    table = parameter_errors({"x": flow}, {"x": reference})
    got = compare_with_reference(torch.zeros(4000), tail.clamp(max=2.0), table)
    assert got.eubo < 0.1 and got.sentence.startswith("The reference disagrees: at its own draws")


@pytest.mark.parametrize("fall", [20.0, 200.0, 5000.0])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_no_agreement_where_log_evidences_are_many_nats_apart(float64, fall, is_ragged):
    # A quarter of the draws where the posterior has no more than exp(-fall): no standard error explains that.
    torch.manual_seed(5)
    log_weight = torch.zeros(4000)
    log_weight[3000:] -= fall * (torch.rand(1000) + 0.5 if is_ragged else 1.0)
    table = parameter_errors({"x": torch.randn(4000)}, {"x": torch.randn(4000)})
    got = compare_with_reference(torch.zeros(4000), log_weight, table)
    assert not got.agrees and got.sentence.startswith("The reference disagrees: some of its draws lie where")
    above = compare_with_reference(torch.zeros(4000), fall + log_weight.abs(), table)
    assert not above.agrees and above.sentence.startswith("The flow disagrees")


def test_what_was_taken_out_is_said_first(float64):
    table = parameter_errors({"x": torch.randn(4000)}, {"x": torch.randn(4000)})
    well = compare_with_reference(torch.zeros(4000), torch.zeros(4000), table)
    assert well.agrees and well.with_objections() is well
    got = well.with_objections("chain 4 of 4 did not converge", "they sit in 1 of 2 copies")
    assert not got.agrees and " agree:" not in got.sentence
    assert got.sentence.startswith("The reference disagrees: chain 4 of 4 did not converge; they sit in 1 of 2 copies.")


def test_a_standard_deviation_of_heavy_tails_tells_little():
    # Two sets of exact draws of Student's t with two degrees of freedom, whose variance does not exist.
    torch.manual_seed(0)
    draws = torch.distributions.StudentT(torch.tensor(2.0).double()).sample(torch.Size([12, 4000]))
    for one, other in draws.view(6, 2, 4000):
        errors = parameter_errors({"z": one}, {"z": other})
        assert abs(math.log(errors["sd_ratio"].item())) < 3 * errors["sd_ratio_std_error"].item()
    # Of a normal number a ratio is known as well as before.
    normal = parameter_errors({"z": torch.randn(4000)}, {"z": torch.randn(4000)})
    assert normal["sd_ratio_std_error"].item() == normal["std_error"].item()
