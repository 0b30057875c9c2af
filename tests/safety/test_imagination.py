from dataclasses import replace

import pytest
import torch
from builders import make_dataset
from torch import nn

from safediffkit.safety.imagination import fit_world, imagine, spending

STEPS = 20


def drifting(episodes=80, seed=0):
    """Points in the plane moved by a tenth of the action; going right earns, and costs 2 beyond x = 0.5."""
    draw = torch.Generator().manual_seed(seed)
    action = (torch.rand(episodes, 1, 2, generator=draw) * 2 - 1).expand(-1, STEPS, -1)
    action = (action + 0.3 * torch.randn(episodes, STEPS, 2, generator=draw)).clamp(-1, 1)
    start = torch.randn(episodes, 1, 2, generator=draw) * 0.3
    path = torch.cat([start, start + 0.1 * action.cumsum(1)], 1)
    data = make_dataset(episodes=episodes, steps=STEPS, obs=2)
    return replace(
        data,
        observations=path[:, :-1].reshape(-1, 2),
        next_observations=path[:, 1:].reshape(-1, 2),
        actions=action.reshape(-1, 2),
        rewards=action[..., 0].reshape(-1),
        costs=2.0 * (path[:, :-1, 0].reshape(-1) > 0.5),
    )


class Heading(nn.Module):
    """Always goes right with a given force, and keeps the budgets and histories that it was shown."""

    def __init__(self, force):
        super().__init__()
        self.force, self.shown = force, []

    def act(self, history):
        self.shown.append(history)
        return torch.tensor([self.force, 0.0]).expand(len(history.budget), 2)


@pytest.fixture(scope="module")
def world():
    return fit_world(drifting(), steps=800)


def test_a_step_is_predicted_as_it_is(world):
    state = torch.tensor([[0.0, 0.0], [0.8, 0.1], [-0.6, 0.4]])
    action = torch.tensor([[0.5, -0.5], [0.0, 0.3], [-0.4, 0.2]])
    following, reward, cost = world(state, action)
    assert (following - state - 0.1 * action).abs().max() < 0.02
    assert (reward - action[:, 0]).abs().max() < 0.05
    assert (cost - torch.tensor([0.0, 2.0, 0.0])).abs().max() < 0.1


@pytest.mark.parametrize(("force", "cost"), [(0.5, 2.0 * 9), (0.2, 0.0), (-0.5, 0.0)])
def test_an_imagined_episode_is_that_of_the_policy(world, force, cost):
    # from x = 0 by 0.05 a step: beyond 0.5 after 10 steps, for the last 9 of 20
    history = imagine(Heading(force), world, torch.zeros(2, 2), torch.tensor([1.0, 2.0]))
    assert history.rewards.sum(1).tolist() == pytest.approx([STEPS * force] * 2, abs=0.5)
    assert history.costs.sum(1).tolist() == pytest.approx([cost] * 2, abs=4.1)  # two steps of 2 sooner or later
    assert history.observations.shape == (2, STEPS + 1, 2)


def test_the_policy_sees_what_has_happened_and_its_own_budget(world):
    policy = Heading(0.5)
    whole = imagine(policy, world, torch.zeros(2, 2), torch.tensor([1.0, 2.0]))
    assert [len(seen.rewards[0]) for seen in policy.shown] == list(range(STEPS))
    assert all(torch.equal(seen.observations, whole.observations[:, : k + 1]) for k, seen in enumerate(policy.shown))
    assert all(seen.budget.tolist() == [1.0, 2.0] for seen in policy.shown)


def test_actions_beyond_the_limit_are_cut_and_the_world_has_an_end(world):
    edge = drifting().observations[:, 0].max()
    history = imagine(Heading(9.0), world, torch.tensor([[edge - 0.5, 0.0]]), torch.zeros(1))
    assert history.actions.max() == drifting().actions.max()
    assert history.observations[0, -1, 0] == edge


def test_what_each_budget_leads_to(world):
    class Spender(nn.Module):
        """Goes right until half of the budget is spent, then back."""

        def act(self, history):
            force = torch.where(history.costs.sum(1) < history.budget / 2, 1.0, -1.0)
            return torch.stack([force, torch.zeros_like(force)], 1)

    asked = torch.tensor([0.0, 4.0, 20.0])
    cost, reward = spending(Spender(), world, asked, episodes=30)
    assert (cost.diff() > 0).all()
    assert (reward.diff() > 0).all()
    again, _ = spending(Spender(), world, asked, episodes=30)
    assert torch.equal(cost, again)
    few, _ = spending(Heading(-1.0), world, asked, episodes=200)  # there are 80: each start once
    assert torch.equal(few, few[:1].expand(3))  # the same starts under each budget


def test_the_world_depends_on_its_arguments_alone():
    torch.manual_seed(1)
    one = fit_world(drifting(), steps=3)
    again, other = fit_world(drifting(), steps=3), fit_world(drifting(), steps=3, seed=1)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(one.members[0][0].weight, other.members[0][0].weight)


def test_what_costs_by_chance_is_imagined_at_its_mean():
    data = drifting()
    lucky = (torch.rand(len(data), generator=torch.Generator().manual_seed(0)) < 0.3).float()
    world = fit_world(replace(data, costs=lucky), steps=400)
    cost, _ = spending(Heading(0.0), world, torch.tensor([1.0]), episodes=80)
    assert cost.item() == pytest.approx(0.3 * STEPS, abs=1.0)


def test_imagining_leaves_the_callers_randomness_alone_and_depends_on_the_seed(world):
    class Random(nn.Module):
        def act(self, history):
            return torch.rand(len(history.budget), 2) * 2 - 1

    budgets = torch.tensor([1.0, 1.0])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    spending(Random(), world, budgets, seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = (spending(Random(), world, budgets, seed=seed)[1] for seed in (1, 2))
    assert torch.equal(spending(Random(), world, budgets, seed=1)[1], again)
    assert not torch.equal(again, other)


def team():
    """Two agents, each with the steps of the same one."""
    alone = make_dataset()
    doubled = {
        field: getattr(alone, field)[:, None].expand(-1, 2, *getattr(alone, field).shape[1:])
        for field in ("observations", "actions", "rewards", "costs", "next_observations")
    }
    return replace(alone, **doubled)


@pytest.mark.parametrize(
    "unfit",
    [
        make_dataset().where(torch.arange(60) < 1),
        replace(make_dataset(), terminated=torch.arange(60) == 9),
        team(),
    ],
)
def test_data_that_no_world_can_be_fitted_to_are_refused(unfit):
    with pytest.raises(ValueError, match="fit_world needs two recorded steps or more, of a single agent"):
        fit_world(unfit)


def test_nothing_to_imagine_is_refused(world):
    with pytest.raises(ValueError, match="at least 1 episode and 1 budget, not 0 and 1"):
        spending(Heading(0.1), world, torch.tensor([1.0]), episodes=0)


@pytest.mark.parametrize("wrong", [torch.full((1, 2), torch.nan), torch.zeros(1, 3)])
def test_what_is_no_action_is_refused(world, wrong):
    class Wrong(nn.Module):
        def act(self, history):
            return wrong

    with pytest.raises(ValueError, match=r"finite ones of \(1, 2\) needed"):
        imagine(Wrong(), world, torch.zeros(1, 2), torch.zeros(1))


def test_a_world_where_nothing_costs_is_free():
    data = replace(drifting(), costs=torch.zeros(80 * STEPS))
    assert fit_world(data, steps=200)(torch.randn(50, 2), torch.zeros(50, 2))[2].max() < 0.02


def test_episodes_begin_where_recorded_ones_did(world):
    assert torch.equal(world.starts, drifting().observations[::STEPS])
    assert world.steps == STEPS
