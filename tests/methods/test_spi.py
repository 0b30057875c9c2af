from dataclasses import replace

import pytest
import torch
from builders import make_dataset

from safediffkit import load_policy, save_policy
from safediffkit.baselines import imitation
from safediffkit.methods import spi
from safediffkit.policy import History

QUICK = spi.Config(steps=120, hidden=32, batch=64, discount=0.5, learning_rate=3e-3, candidates=8)


def _mean_action(policy, plans=1):
    with torch.no_grad():
        return policy.propose(torch.zeros(256, 3), plans)[..., 0].mean().item()


def _history(worlds):
    return History.start(torch.randn(worlds, 3), 2)


@pytest.mark.parametrize("weights", [(0.5, 0.4, 0.2), (-0.1, 0.6, 0.5)])
def test_weights_must_be_a_share_each(weights):
    # [SPI Eq. 6]
    imitate, reward, safety = weights
    with pytest.raises(ValueError, match="sum to 1"):
        spi.Config(imitate=imitate, reward=reward, safety=safety)


def test_the_weights_pull_where_they_say():
    # [SPI Eq. 6]
    # in this data a_0 > 0 earns reward and costs
    data = make_dataset(episodes=40)
    greedy = spi.train(data, replace(QUICK, imitate=0.2, reward=0.8, safety=0.0))
    safe = spi.train(data, replace(QUICK, imitate=0.2, reward=0.0, safety=0.8))
    imitator = spi.train(data, replace(QUICK, imitate=1.0, reward=0.0, safety=0.0))
    assert _mean_action(greedy) > 0.3
    assert _mean_action(safe) < -0.1
    assert abs(_mean_action(imitator)) < 0.3


def test_the_critics_rank_actions():
    # [SPI Eq. 10, 11]
    policy = spi.train(make_dataset(episodes=40), QUICK)
    actions = torch.tensor([[-0.8, 0.0], [0.8, 0.0]]).expand(64, 2, 2)
    with torch.no_grad():
        reward, safety = policy.values(torch.randn(64, 3), actions)
    assert reward[:, 1].mean() > reward[:, 0].mean() + 0.1
    assert safety[:, 0].mean() > safety[:, 1].mean() + 0.1


def test_the_printed_rule_takes_the_greatest_reward_value_and_ours_stays_among_the_safest():
    # [SPI Eq. 12]
    class Judged(spi.SPI):
        def values(self, observation, actions):
            return actions[..., 0], actions[..., 1]  # Q^r, Q^c'

    candidates = torch.tensor([[[0.9, 0.1], [0.5, 0.8], [0.2, 0.9], [0.7, 0.3], [0.1, 0.2]]])
    common = {"obs": 3, "act": 2, "hidden": 8, "levels": 2, "candidates": 5}
    printed = Judged(extraction="reward", safest_share=0.4, **common)
    ours = Judged(extraction="safest", safest_share=0.4, **common)  # the safest two: 2, then 1
    safest = Judged(extraction="safest", safest_share=0.01, **common)  # at least one is kept
    state = torch.zeros(1, 3)
    assert [p.choose(state, candidates).item() for p in (printed, ours, safest)] == [0, 1, 2]


def test_variants_share_weights_and_survive_saving(tmp_path):
    policy = spi.train(make_dataset(), replace(QUICK, steps=2))
    both = policy.variants()
    assert {rule: p.extraction for rule, p in both.items()} == {"reward": "reward", "safest": "safest"}
    assert policy.extraction == "reward"
    save_policy(both["safest"], tmp_path / "p")
    again = load_policy(tmp_path / "p")
    assert again.extraction == "safest"
    history = _history(5)
    torch.manual_seed(0)
    acted = both["safest"].act(history)
    torch.manual_seed(0)
    assert torch.equal(again.act(history), acted)
    assert acted.shape == (5, 2)
    assert acted.abs().max() <= 1


def test_the_policy_loss_by_hand():
    # [SPI Eq. 6]
    values = torch.tensor([[2.0, 4.0], [2.0, 4.0], [0.5, 0.5], [0.5, 0.5]])
    config = spi.Config(imitate=0.5, reward=0.2, safety=0.3)
    # each value is divided by its own size, so every normalised mean is 1 here
    loss = spi.policy_loss(torch.tensor(3.0), values, config)
    torch.testing.assert_close(loss, torch.tensor(0.5 * 3 - 0.2 - 0.3))


def test_the_policys_next_action_is_an_option():
    data, config = make_dataset(), replace(QUICK, steps=20)
    recorded = spi.train(data, config)
    own = spi.train(data, replace(config, next_action="policy"))
    assert not torch.equal(recorded.critics.weights[0], own.critics.weights[0])


def test_bc_learns_the_recorded_action_and_bc_safe_the_safe_one():
    data = make_dataset(episodes=40)
    high = data.episode % 2 == 0  # even episodes push right and cost, odd ones left and are free
    data = replace(data, actions=torch.where(high, 0.8, -0.8)[:, None].expand(-1, 2).clone(), costs=high.float())
    config = imitation.Config(steps=150, hidden=32, batch=64, learning_rate=3e-3)
    everything = imitation.train(data, config)
    safe = imitation.train(data, replace(config, safe_within=0.0))
    with torch.no_grad():
        assert everything(torch.zeros(1, 3)).abs().max() < 0.3
        torch.testing.assert_close(safe(torch.zeros(1, 3)), torch.full((1, 2), -0.8), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="no episode"):
        imitation.train(data, replace(config, safe_within=-1.0))
