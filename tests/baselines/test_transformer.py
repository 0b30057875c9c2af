from dataclasses import replace

import pytest
import torch
from builders import make_dataset
from torch.distributions import Normal

from safediffkit.baselines import transformer
from safediffkit.policy import History

QUICK = transformer.Config(steps=3, context=4, width=8, heads=2, layers=1, batch=8)


def _episodes(costs, returns, steps=10):
    """Make episodes of given cost and return, spread evenly over their steps."""
    data = make_dataset(len(costs), steps)
    spread = [torch.tensor(sums).repeat_interleave(steps) / steps for sums in (costs, returns)]
    return replace(data, costs=spread[0], rewards=spread[1])


def _untrained(**changes):
    torch.manual_seed(0)
    size = {"obs": 3, "act": 2, "length": 10, "frontier": 2, "context": 4, "width": 16, "layers": 2, "heads": 2}
    return transformer.CDT(**(size | changes))


def _window(steps=4):
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.randn(1, steps, width, generator=draw) for width in (3, 2)]
    return [*vectors, *(torch.randn(1, steps, generator=draw) for _ in range(2)), torch.arange(steps)[None]]


def _history(worlds=2, before=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sums = [torch.rand(worlds, before, generator=draw) for _ in range(2)]
    observations, actions = (torch.randn(worlds, before + k, 2 + k, generator=draw) for k in (1, 0))
    return History(observations, actions, *sums, torch.full((worlds,), 5.0))


def test_an_answer_depends_on_nothing_that_comes_later():
    policy, window = _untrained(), _window()
    before = policy(*window)
    for part, seen in ((0, True), (1, False), (2, True), (3, True)):
        changed = [column.clone() for column in window]
        changed[part][:, 2] += 1
        after = policy(*changed)
        for name in ("mean", "log_spread", "costs"):
            assert torch.equal(getattr(before, name)[:, :2], getattr(after, name)[:, :2])
        # the action of a step is guessed without seeing it, whether the step costs is not
        assert torch.equal(before.mean[:, 2], after.mean[:, 2]) != seen
        assert not torch.equal(before.costs[:, 2], after.costs[:, 2])
        assert not torch.equal(before.mean[:, 3], after.mean[:, 3])


def test_the_frontier_keeps_what_no_other_episode_beats():
    data = _episodes([0.0, 10.0, 0.0, 5.0, 20.0, 5.0], [3.0, 9.0, 4.0, 6.0, 8.0, 2.0])
    torch.testing.assert_close(transformer.frontier(data), torch.tensor([[0.0, 5.0, 10.0], [4.0, 6.0, 9.0]]))


def test_the_return_asked_is_the_frontiers_at_the_budget():
    points = torch.tensor([[1.0, 5.0, 10.0], [4.0, 6.0, 9.0]])
    asked = transformer.asked_return(points, torch.tensor([0.0, 1.0, 4.9, 5.0, 50.0]))
    assert asked.tolist() == [4.0, 4.0, 4.0, 6.0, 9.0]


def test_the_loss_is_the_gaussians():
    policy, window = _untrained(), _window()
    answer, actions = policy(*window), torch.rand(1, 4, 2)
    gaussian = Normal(answer.mean, answer.log_spread.exp())
    entropy = gaussian.entropy().sum(-1).mean()
    loss, measured = transformer.actor_loss(answer, actions, 0.3)
    torch.testing.assert_close(measured, entropy)
    torch.testing.assert_close(loss, -gaussian.log_prob(actions).sum(-1).mean() - 0.3 * entropy)


def test_relabelled_episodes_are_asked_for_more_than_they_did():
    draw = torch.Generator().manual_seed(3)
    costs = torch.randint(0, 50, (80,), generator=draw).float()
    returns = 10 * costs.sqrt() + 20 * torch.rand(80, generator=draw)
    data = _episodes(costs.tolist(), returns.tolist())
    costs, returns = data.episode_costs(), data.episode_returns()
    wishes = transformer.relabel(data, 60, draw)
    assert (wishes.costs >= costs[wishes.episode] - 1e-3).all()
    points = transformer.frontier(data)
    for cost, wished in zip(wishes.costs, wishes.returns, strict=True):
        assert wished >= points[1][points[0] <= cost + 1e-3].max()
    assert (wishes.costs.diff() > 0).all()
    torch.testing.assert_close(wishes.costs[[0, -1]], torch.stack([costs.min(), costs.max()]))
    # the nearest episode serves several wishes, and then others that earned hardly less take turns
    assert len(wishes.episode.unique()) > 10
    nearest = [
        torch.where(costs <= cost + 1e-3, torch.hypot(costs - cost, returns - wished), torch.inf).argmin()
        for cost, wished in zip(wishes.costs, wishes.returns, strict=True)
    ]
    lost = returns[torch.stack(nearest)] - returns[wishes.episode]
    assert 0 < lost.max() <= 0.1 * (returns.max() - returns.min()) + 1e-3


def test_relabelled_windows_join_the_recorded_ones():
    data = _episodes([0.0, 10.0, 4.0], [3.0, 9.0, 5.0], steps=6)
    rows = transformer.windows(data, 4)  # three windows an episode
    wishes = transformer.Relabelled(torch.tensor([2, 0]), torch.tensor([8.0, 7.0]), torch.tensor([6.0, 1.0]))
    chosen, shifts = transformer._with_relabelled(data, rows, wishes)
    assert data.episode[rows[chosen, 0]].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0]
    torch.testing.assert_close(shifts[:, :9], torch.zeros(2, 9))
    expected = torch.tensor([[3.0, 4.0], [2.0, 1.0]]).repeat_interleave(3, 1)
    torch.testing.assert_close(shifts[:, 9:], expected)


def _torn(episodes=40):
    """Even episodes push right, which earns and costs at each step; odd ones left, which does neither."""
    data = make_dataset(episodes)
    high = (data.episode % 2 == 0).float()
    return replace(data, actions=(1.6 * high - 0.8)[:, None].expand(-1, 2).clone(), rewards=high, costs=high)


def test_the_budget_decides():
    policy = transformer.train(_torn(), replace(QUICK, steps=150, width=32, batch=32, warm_up=10, learning_rate=3e-3))
    with torch.no_grad():
        start = History.start(torch.randn(20, 3), 2)
        spend, save = (policy.act(replace(start, budget=torch.full((20,), each))) for each in (10.0, 0.0))
    torch.testing.assert_close(spend, torch.full((20, 2), 0.8), atol=0.25, rtol=0)
    torch.testing.assert_close(save, torch.full((20, 2), -0.8), atol=0.25, rtol=0)


def test_it_looks_back_on_its_context_and_what_was_spent_alone():
    policy, history = _untrained(), _history()
    with torch.no_grad():
        acted = policy.act(history)
        early, late = history.observations.clone(), history.observations.clone()
        early[:, 2] += 1  # 7 states are known, of which the last 4 are read
        late[:, 3] += 1
        assert torch.equal(policy.act(replace(history, observations=early)), acted)
        assert not torch.equal(policy.act(replace(history, observations=late)), acted)
        costs = history.costs.clone()
        costs[:, 0] += 1
        assert not torch.equal(policy.act(replace(history, costs=costs)), acted)
        costs[:, 0] += 10
        broke = replace(history, costs=costs)
        costs = costs.clone()
        costs[:, 0] += 10
        assert torch.equal(policy.act(broke), policy.act(replace(history, costs=costs)))  # overspent asks for 0


def test_the_last_step_of_a_long_episode_has_a_place_in_time():
    policy = _untrained(length=3)
    with torch.no_grad():
        assert policy.act(_history(before=8)).shape == (2, 2)


def test_a_context_longer_than_every_episode_is_refused():
    with pytest.raises(ValueError, match="longest episode"):
        transformer.train(make_dataset(), replace(QUICK, context=11))
