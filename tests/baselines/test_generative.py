from dataclasses import replace

import pytest
import torch
from builders import make_dataset

from safediffkit.baselines import generative
from safediffkit.data.dataset import Dataset
from safediffkit.policy import History

QUICK = generative.FISORConfig(steps=3, hidden=8, batch=16, pool=32)


def _chain(choice, states=4):
    """Positions 0 to states - 1 in a row, then a pit that costs and ends the episode: every step that there can be.

    Without a choice all go right; with it, each position has one step to the right and one to the left, 0 a wall.
    """
    rows = []
    for position in range(states):
        for right in (True, False) if choice else (True,):
            then = max(position + (1 if right else -1), 0)
            rows.append((position, right, then, then == states, len(rows)))
    position, right, then, ended, episode = map(torch.tensor, zip(*rows, strict=True))
    places = torch.eye(states + 1)
    return Dataset(
        observations=places[position],
        actions=torch.where(right, 0.7, -0.7)[:, None],
        rewards=right.float(),
        costs=ended.float(),
        next_observations=places[then],
        terminated=ended,
        episode=episode,
        provenance="made for a test",
    )


def test_on_a_forced_chain_the_feasibility_value_fades_with_distance():
    # V_d = gamma^d (H + 1) - 1, d steps before the pit
    discount, danger = 0.9, 4.0
    value = generative.feasibility_target(torch.tensor([danger]), torch.tensor([99.0]), torch.tensor([True]), discount)
    for distance in range(30):
        torch.testing.assert_close(value, torch.tensor([discount**distance * (danger + 1) - 1]))
        value = generative.feasibility_target(torch.tensor([-1.0]), value, torch.tensor([False]), discount)
    assert discount**15 * 5 > 1 > discount**16 * 5  # so the pit is in sight from 15 steps away


def test_danger_now_outweighs_any_safety_to_come():
    target = generative.feasibility_target(torch.tensor([3.0]), torch.tensor([-1.0]), torch.tensor([False]), 0.9)
    torch.testing.assert_close(target, torch.tensor([3.0]))


def _exact(choice, config, states=4):
    """Solve the chain's fixed point: both actions equally likely, so V = tau min Q + (1 - tau) max Q."""
    value = torch.zeros(states)
    for _ in range(200):
        right = generative.feasibility_target(
            torch.tensor([-1.0] * (states - 1) + [config.danger]),
            torch.cat([value[1:], torch.zeros(1)]),
            torch.arange(states) == states - 1,
            config.discount,
        )
        left = generative.feasibility_target(
            torch.full((states,), -1.0),
            torch.cat([value[:1], value[:-1]]),
            torch.zeros(states, dtype=torch.bool),
            config.discount,
        )
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        value = config.expectile * low + (1 - config.expectile) * high if choice else right
    return value


@pytest.mark.parametrize("choice", [False, True])
def test_the_learned_feasibility_value_is_the_chains(choice):
    config = replace(QUICK, steps=300, hidden=32, batch=64, danger=3.0, discount=0.8, learning_rate=5e-3)
    config = replace(config, target_rate=0.3)
    policy = generative.train_fisor(_chain(choice), config)
    with torch.no_grad():
        learned = policy.feasibility(torch.eye(5)[:4])
    exact = _exact(choice, config)
    if not choice:
        torch.testing.assert_close(exact, 0.8 ** torch.arange(3.0, -1, -1) * 4 - 1)
    torch.testing.assert_close(learned, exact, atol=0.15, rtol=0)
    if choice:  # beside the pit, where going right costs, it goes left; both go far from it
        torch.manual_seed(0)
        history = History.start(torch.eye(5)[3].expand(100, -1).clone(), 1)
        with torch.no_grad():
            assert (policy.act(history) < 0).float().mean() > 0.95


def test_weights_by_hand():
    config = generative.FISORConfig(reward_temperature=2.0, safety_temperature=3.0, reward_limit=50, safety_limit=60)
    # feasible state: a better action; one that is infeasible; one far better; infeasible: a safer action; far safer
    q = torch.tensor([[1.5, 1.5, 9.0, 0.0, 0.0], [-0.5, 0.1, 0.0, 0.5, 0.0]])
    v = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0, 9.0]])
    one, three = torch.tensor(1.0).exp(), torch.tensor(1.5).exp()
    expected = torch.stack([one, torch.tensor(0.0), torch.tensor(50.0), three, torch.tensor(60.0)])
    torch.testing.assert_close(generative.row_weights(q, v, config), expected)


def test_the_least_infeasible_candidate_is_taken():
    policy = generative.FISOR(3, 2, hidden=8, levels=3, candidates=16)
    history = History.start(torch.randn(5, 3), 2)
    with torch.no_grad():
        torch.manual_seed(1)
        taken = policy.act(history)
        torch.manual_seed(1)
        candidates = policy.propose(history.observation, 16)
        state = policy.scale(history.observation)[:, None].expand(-1, 16, -1)
        danger = policy.critics(state, candidates)[2:].amax(0)  # the twin that fears more
    torch.testing.assert_close(taken, candidates[torch.arange(5), danger.argmin(1)])
    assert len(danger.argmin(1).unique()) > 1


QUICK_TREBI = generative.TREBIConfig(
    steps=3, horizon=4, network="mlp", hidden=8, patch=2, levels=20, batch=16, plans=4, calls=4, every=2
)
QUICK_CDD = generative.CDDConfig(
    steps=3, horizon=4, network="mlp", hidden=8, patch=2, levels=20, batch=16, calls=4, every=2
)


def _drifts(episodes=60, steps=12):
    """Even episodes drift right, which earns and costs at each step; odd ones left, which does neither."""
    data = make_dataset(episodes, steps, obs=2, act=1)
    high = (data.episode % 2 == 0).float()
    step = (torch.arange(len(data)) % steps).float()
    at = torch.stack([data.observations[:, 0] * 0.1 + (2 * high - 1) * 0.5 * step, data.observations[:, 1] * 0.1], 1)
    then = at.clone()
    then[:-1] = at[1:]
    last = step == steps - 1
    then[last] = at[last] + torch.tensor([0.5, 0.0]) * (2 * high[last] - 1)[:, None]
    actions = (1.6 * high - 0.8)[:, None]
    return replace(data, observations=at, next_observations=then, actions=actions, rewards=high, costs=high)


def _start(worlds, budget):
    return History.start(torch.zeros(worlds, 2), 1, torch.full((worlds,), budget))


@pytest.mark.parametrize(
    ("train", "config"),
    [
        (generative.train_trebi, replace(QUICK_TREBI, cost_weight=4.0)),
        (generative.train_cdd, QUICK_CDD),
    ],
)
def test_a_planners_budget_decides(train, config):
    data = _drifts()
    policy = train(data, replace(config, steps=200, hidden=16, batch=64, learning_rate=6e-3, average_rate=0.05))
    with torch.no_grad():
        torch.manual_seed(0)
        spend, save = (policy.act(_start(40, budget)) for budget in (12.0, 0.0))
    assert (spend > 0.3).float().mean() > 0.8
    assert (save < -0.3).float().mean() > 0.8
    windows = policy.plan(_start(3, 0.0), 5)
    assert windows.shape == (3, 5, 4, 2)
    torch.testing.assert_close(windows[:, :, 0], torch.zeros(3, 5, 2))


def _trebi(**changes):
    arguments = {"obs": 2, "act": 1, "episode": 20, "horizon": 4, "network": "mlp", "hidden": 8, "patch": 2}
    arguments |= {"levels": 20, "reward_weight": 1.0, "cost_weight": 3.0, "discount": 0.9, "plans": 4}
    return generative.TREBI(**(arguments | {"calls": 4, "temperature": 1.0, "every": 2} | changes))


def _spent(costs, budget):
    before = len(costs)
    none = torch.zeros(1, before)
    path, actions = torch.zeros(1, before + 1, 2), torch.zeros(1, before, 1)
    return History(path, actions, none, torch.tensor(costs)[None], torch.tensor([budget]))


@pytest.mark.parametrize("now", [0, 7, 19])
def test_trebis_budget_left_is_the_even_spenders_future(now):
    # b_t = (b_0 - spent) / gamma^t; who spends evenly has the discounted sum of the remaining steps left
    left = _trebi().ask(_spent([0.25] * now, 5.0))
    ahead = sum(0.25 * 0.9**step for step in range(20 - now))
    torch.testing.assert_close(left, torch.tensor([[ahead]]))


def test_without_discount_trebis_budget_left_is_the_difference():
    policy = _trebi(discount=1.0)
    policy.units.fill_(2.0)
    torch.testing.assert_close(policy.ask(_spent([1.0, 0.0, 1.5], 5.0)), torch.tensor([[1.25]]))
    assert policy.ask(_spent([9.0], 5.0)).item() == 0


class _Judged(generative.TREBI):
    """Reads return and cost off the plan: its second and third state."""

    def judge(self, x, level):
        return x[..., 1, 0], x[..., 2, 0]


def _plans(rewards, costs):
    windows = torch.zeros(1, len(rewards), 4, 2)
    windows[0, :, 1, 0], windows[0, :, 2, 0] = torch.tensor(rewards), torch.tensor(costs)
    return windows


def test_trebi_drops_what_breaks_the_budget():
    policy = _Judged(**_trebi().arguments)
    plans = _plans([9.0, 5.0, 7.0, 1.0], [3.0, 0.5, 1.0, 2.0])
    for budget, chosen in ((5.0, 0), (1.0, 2), (0.7, 1), (0.1, 1)):  # with 0.1 none is left: the cheapest
        assert policy.choose(plans, torch.tensor([[budget]])).item() == chosen
    assert policy.choose(_plans([1.0, 8.0], [2.0, 3.0]), torch.tensor([[1.0]])).item() == 0


def test_trebis_cost_pulls_only_beyond_the_budget():
    policy, plans = _Judged(**_trebi().arguments), _plans([2.0, 2.0], [0.5, 1.5]).requires_grad_()
    values = policy.log_prob(plans, policy.schedule.level(0), torch.tensor([[1.0]]))
    torch.testing.assert_close(values, torch.tensor([[2.0, 2.0 - 3 * 0.5]]))
    (slope,) = torch.autograd.grad(values.sum(), plans)
    torch.testing.assert_close(slope[0, :, 2, 0], torch.tensor([0.0, -3.0]))
    torch.testing.assert_close(slope[0, :, 1, 0], torch.tensor([1.0, 1.0]))


def test_cdd_asks_for_rates_over_the_steps_left():
    policy = generative.CDD(
        obs=2,
        act=1,
        episode=20,
        frontier=2,
        horizon=4,
        network="mlp",
        hidden=8,
        patch=2,
        levels=20,
        weight=1.5,
        calls=4,
        temperature=0.5,
        every=2,
    )
    policy.frontier.copy_(torch.tensor([[0.0, 6.0], [30.0, 50.0]]))
    policy.units.copy_(torch.tensor([1.0, 2.0]))
    history = replace(_spent([1.0] * 4, 8.0), rewards=torch.tensor([[2.0, 3.0, 4.0, 1.0]]))
    # 16 steps left for a cost of 4 and a return of 40
    torch.testing.assert_close(policy.ask(history), torch.tensor([[0.5, (40 / 16 - 1) / 2]]))
    # 3 are left, but no recorded window begins within the last 4 steps
    late = _spent([0.0] * 17, 1.0)
    torch.testing.assert_close(policy.ask(late), torch.tensor([[0.5, (30 / 4 - 1) / 2]]))
