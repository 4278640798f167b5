"""How a space was searched: its numbers, its bound, and where they can be read."""

import math
import pickle

import pytest
import torch

from pyro_osds import OSDS
from pyro_osds.explore.search.coverage import Coverage, upper_bound


@pytest.mark.parametrize(("count", "num_draws"), [(0, 10), (1, 10), (3, 50), (12, 192)])
def test_the_bound_is_exceeded_with_probability_one_in_twenty(count, num_draws):
    # By the binomial distribution itself: with that probability of a single one, so few are seen in 5 % of cases.
    bound = upper_bound(count, num_draws)
    tail = sum(math.comb(num_draws, k) * bound**k * (1 - bound) ** (num_draws - k) for k in range(count + 1))
    assert tail == pytest.approx(0.05, abs=1e-9)


def test_the_bound_holds_of_what_is_thrown():
    # Draws of a known distribution over basins: the bound of its unseen ones fails in one of twenty repeats at most.
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
    failed = 0
    for _ in range(400):
        counts = torch.multinomial(probs, 60, replacement=True).bincount(minlength=len(probs))
        unseen = probs[counts == 0].sum().item()
        failed += unseen > Coverage(60, 60, 6, int((counts == 1).sum())).unseen
    assert failed <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_no_point_at_rest_is_no_knowledge():
    nothing = Coverage(12, 0, 1, 0)
    assert (nothing.known_share, nothing.unseen) == (0.0, 1.0)
    assert nothing.sentence().endswith("no random one came to rest, so that nothing bounds what was not seen")


def test_the_verdict_carries_it(tmp_path, capsys):
    def log_prob(z):
        return torch.logaddexp(-0.5 * (z - 5).square().sum(-1), -0.5 * (z + 5).square().sum(-1))

    torch.manual_seed(0)
    osds = OSDS.from_log_prob(log_prob, 2, num_samples=100, num_iterations=100, disable_progbar=True)
    osds.run()
    searched = osds.evidence.searched
    assert searched.num_basins == 2 and searched.known_share == 1.0
    assert searched.unseen == pytest.approx(1 - 0.05 ** (1 / searched.num_random))
    osds.summary()
    assert searched.sentence() in " ".join(capsys.readouterr().out.split())
    assert str(osds.to_inference_data()["fit"]["search"].item()) == searched.sentence()
    assert pickle.loads(pickle.dumps(osds.evidence)).searched == searched
    osds.save(tmp_path / "fit.pt")
    assert OSDS.load(tmp_path / "fit.pt", log_prob).evidence.searched == searched
