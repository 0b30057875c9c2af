from dataclasses import replace

import pytest
import torch

from safediffkit.data.dataset import Dataset
from safediffkit.safety.values import penalised, sooner, train_values

QUICK = {"steps": 1500, "batch": 64, "learning_rate": 5e-3, "target_rate": 0.1}


def steps(observations, actions, rewards, next_observations, terminated):
    count = len(rewards)
    return Dataset(
        observations=torch.tensor(observations).view(count, -1),
        actions=torch.tensor(actions).view(count, -1),
        rewards=torch.tensor(rewards),
        costs=torch.zeros(count),
        next_observations=torch.tensor(next_observations).view(count, -1),
        terminated=torch.full((count,), terminated),
        episode=torch.arange(count),
        provenance="made for a test",
    )


def test_only_steps_into_danger_are_charged_in_units_of_the_spread():
    # [CBF Eq. 13]
    data = replace(
        steps([0.0] * 4, [0.0] * 4, [0.0, 2.0, 0.0, 2.0], [0.0] * 4, True), costs=torch.tensor([0, 1.0, 0, 3])
    )
    spread = data.rewards.std()
    torch.testing.assert_close(penalised(data, 0.5), data.rewards / spread - torch.tensor([0, 0.5, 0, 0.5]))


def test_what_leads_into_danger_within_the_foresight_is_charged_in_its_episode():
    data = steps([0.0] * 8, [0.0] * 8, [0.0] * 8, [0.0] * 8, False)
    data = replace(data, costs=torch.tensor([0, 0, 2.0, 0, 0, 1, 0, 0]), episode=torch.arange(8) // 4)
    assert torch.equal(sooner(data, 1).costs, data.costs)
    assert sooner(data, 2).costs.tolist() == [0, 2, 2, 0, 1, 1, 0, 0]
    assert sooner(data, 4).costs.tolist() == [2, 2, 2, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="foresight=0"):
        sooner(data, 0)


@pytest.mark.parametrize("expectile", [0.5, 0.8])
def test_the_value_is_the_expectile_of_what_the_recorded_actions_are_worth(expectile):
    # one state, two actions worth 0 and 1, as often: tau (1 - v) = (1 - tau) v. [CBF Eq. 15]
    data = steps([0.0, 0.0] * 8, [-1.0, 1.0] * 8, [0.0, 1.0] * 8, [0.0, 0.0] * 8, True)
    safe = torch.ones(16, dtype=torch.bool)
    values = train_values(data, safe, safe, expectile=expectile, **QUICK)
    assert values(torch.zeros(1, 1), safe[:1]).item() == pytest.approx(expectile, abs=0.05)


def test_a_reward_for_ever_is_worth_its_sum():
    # [CBF Eq. 16]: 1 + 0.5 + 0.25 + ...
    data = steps([0.0] * 8, [0.0] * 8, [1.0] * 8, [0.0] * 8, False)
    safe = torch.ones(8, dtype=torch.bool)
    values = train_values(data, safe, safe, discount=0.5, **QUICK)
    assert values(torch.zeros(1, 1), safe[:1]).item() == pytest.approx(2.0, abs=0.05)


def test_what_follows_outside_the_safe_set_is_worth_the_worst_on_record():
    # from 0 a step earns 1 and leads to 1, where no state is safe: 1 + 0.5 x (-3). [CBF Eq. 16]
    data = steps([0.0, 1.0] * 8, [0.0] * 16, [1.0, -3.0] * 8, [1.0, 1.0] * 8, False)
    safe = data.observations[:, 0] == 0
    values = train_values(data, safe, torch.zeros(16, dtype=torch.bool), discount=0.5, **QUICK)
    told = values(torch.tensor([[0.0], [1.0]]), torch.tensor([True, False]))
    torch.testing.assert_close(told, torch.tensor([-0.5, -3.0]), atol=0.05, rtol=0)
    assert values.worst == -3


def test_the_same_seed_gives_the_same_values_and_leaves_the_callers_numbers():
    data, safe = steps([0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], False), torch.tensor([True, True])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (train_values(data, safe, safe, steps=3, seed=seed) for seed in (1, 1))
    assert torch.equal(torch.rand(1), expected)
    third = train_values(data, safe, safe, steps=3, seed=2)
    weights = [torch.cat([w.flatten() for w in each.parameters()]) for each in (one, other, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_safe_states_or_with_an_agents_axis_it_says_what_is_needed():
    data, none = steps([0.0], [0.0], [0.0], [0.0], True), torch.tensor([False])
    with pytest.raises(ValueError, match="0 safe states"):
        train_values(data, none, none)
