from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import make_dataset
from torch import nn

from safediffkit import load_policy, save_policy
from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.schedule import vp_schedule
from safediffkit.methods import tcdp
from safediffkit.policy import History, allowance, hold
from safediffkit.safety.energies import Energy
from safediffkit.safety.imagination import WorldModel, fit_world

QUICK = tcdp.Config(
    steps=3,
    horizon=4,
    network="mlp",
    hidden=32,
    patch=1,
    levels=20,
    batch=32,
    groups=2,
    candidates=8,
    budgets=5,
    calls=4,
    imagined=0,
)


def runners(episodes=60, steps=12, seed=0):
    """Points on a line, each at a speed of its own from 0 to 1; speed earns reward, and costs from 0.5 on."""
    draw = torch.Generator().manual_seed(seed)
    speed = torch.rand(episodes, generator=draw)[:, None].expand(-1, steps)
    start = torch.randn(episodes, 1, generator=draw)
    path = torch.cat([start, start + speed.cumsum(1)], 1)
    return Dataset(
        observations=path[:, :-1].reshape(-1, 1),
        actions=speed.reshape(-1, 1),
        rewards=speed.reshape(-1),
        costs=(speed.reshape(-1) > 0.5).float(),
        next_observations=path[:, 1:].reshape(-1, 1),
        terminated=torch.zeros(episodes * steps, dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="made for a test",
    )


def test_windows_come_with_their_allowance_and_rank():
    windows = tcdp.Windows.of(runners(), horizon=4, budgets=5)
    speeds = runners().actions[windows.rows[:, 0], 0]
    # a runner either pays at every step or never
    assert torch.equal(windows.costs, (speeds > 0.5).float())
    assert (windows.costs.diff() >= 0).all()
    free = windows.costs == 0
    assert windows.quantiles[0, ~free].isnan().all()
    rewards = tcdp.beyond_usual(4 * speeds, _standard(runners().observations[windows.rows[:, 0]]))
    for quantiles, within in ((windows.quantiles[0], free), (windows.quantiles[-1], free | ~free)):
        ranked = quantiles[within][rewards[within].argsort()]
        assert (ranked.diff() >= -1e-3).all()  # more is better, among those within the budget; but for rounding
        assert ranked.mean().item() == pytest.approx(0.5)


def _standard(states):
    return (states - states.mean(0)) / states.std(0)


def test_the_end_of_an_episode_is_not_taken_for_safety():
    # pays at the first step of every four: the last window's own cost to go would be 0
    costs = (torch.arange(720) % 4 == 0).float()
    windows = tcdp.Windows.of(replace(runners(), costs=costs), horizon=3, budgets=5)
    last = windows.rows[:, 0] % 12 == 9
    # the last quarter, 3 of 12 steps, is shorter than a period; longer parts see a quarter of the steps pay, or a third
    assert (windows.costs[last] == 0).all()
    longer = replace(runners(steps=24), costs=(torch.arange(60 * 24) % 4 == 0).float())
    windows = tcdp.Windows.of(longer, horizon=3, budgets=5)
    last = windows.rows[:, 0] % 24 == 21
    assert torch.allclose(windows.costs[last], torch.tensor(1 / 6).sqrt())  # one of the last 6 steps, 20 ... 23, pays


def test_what_is_usual_from_a_state_is_no_merit():
    draw = torch.Generator().manual_seed(0)
    state, luck = torch.randn(5000, 3, generator=draw), torch.randn(5000, generator=draw)
    usual = 5 + 2 * state[:, 0] - state[:, 1] * state[:, 2] + state[:, 0] ** 3
    beyond = tcdp.beyond_usual(usual + luck, state)
    assert (beyond - luck).std() < 0.1  # 20 features fitted to 5,000 values take sqrt(20 / 5000) of the luck with them
    copies = torch.cat([state, state[:, :1]], 1)  # one observation is a copy of another
    assert (tcdp.beyond_usual(usual + luck, copies) - beyond).abs().max() < 0.01


def test_budgets_that_no_window_meets_are_left_out():
    costly = replace(runners(), costs=torch.ones(720))
    assert tcdp.Windows.of(costly, horizon=4, budgets=5).budgets.tolist() == [1.0]


def test_imitated_windows_are_within_their_budget_or_have_none():
    windows, draw = tcdp.Windows.of(make_dataset(episodes=30), 4, 9), torch.Generator().manual_seed(0)
    at, budget = windows.imitated(1000, 0.2, draw)
    given = ~budget[:, 0].isnan()
    assert given.sum() == 800
    assert (windows.costs[at[given]] <= budget[given, 0]).all()
    assert windows.costs[at[~given]].mean().item() == pytest.approx(windows.costs.mean().item(), abs=0.05)


def test_competitors_share_a_budget_and_those_over_it_are_the_worst():
    windows, draw = tcdp.Windows.of(make_dataset(episodes=30), 4, 9), torch.Generator().manual_seed(0)
    at, budget, reward = windows.competing(20, 16, draw)
    assert at.shape == reward.shape == (20, 16)
    within = windows.costs[at] <= budget
    assert within[:, :8].all()
    assert not within.all()
    assert ((reward[within] > 0) & (reward[within] < 1)).all()
    assert (reward[~within] == -1).all()


def test_the_energy_learns_the_tilt_given_the_present_state():
    # one step ahead is present + unit noise; R is that step, so log E[exp(R) | x_k] has the slope alpha everywhere
    torch.manual_seed(0)
    energy, schedule = Energy(1, 2, 32), vp_schedule(20)
    optimiser = torch.optim.Adam(energy.parameters(), 1e-2)
    for _ in range(300):
        present = torch.randn(8, 32, 1, 1)
        clean = torch.cat([present, present + torch.randn(8, 32, 1, 1)], 2)
        # the present state's own share of R is no concern of the plan, and must not disturb
        loss = tcdp.competition_loss(
            energy, schedule, clean, (clean[:, :, 1] - present[:, :, 0])[..., 0], torch.zeros(8, 1)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    level = schedule.level(4)
    x = torch.linspace(-1, 1, 9)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(energy(x, level, torch.zeros(9, 2)).sum(), x)
    assert (slope / level.alpha - 1).abs().mean() < 0.25


class Gaussian(nn.Module):
    """The exact noise model of windows whose numbers have spread 1 and, where a budget is given, that as their mean."""

    def forward(self, x, level, condition):
        level = level.like(x)
        return level.sigma * (x - level.alpha * condition.nan_to_num(0)[:, None])


class Linear(nn.Module):
    """The exact energy of exp(sum of x) on top of it, but for a constant: a slope of alpha everywhere."""

    def forward(self, x, level, condition):
        return level.alpha * x.sum(-1)


@pytest.mark.parametrize(("weight", "pull"), [(1.0, 0.0), (2.0, 0.0), (1.0, 1.0), (3.0, 0.5)])
def test_plans_follow_the_target_density_where_it_is_known(weight, pull):
    # [TCDP Eq. 1]
    # equal spreads make classifier-free guidance exact: mean weight x budget; exp(x) adds pull to it
    torch.manual_seed(0)
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 100, weight, 20, 1.0, 1, 1, pull)
    policy.noise_model, policy.energy = Gaussian(), Linear()
    present = torch.randn(2000, 2)
    plans = policy.sampler(torch.randn(2000, 4, 2), torch.full((2000, 1), 0.5), hold(present))
    assert torch.equal(plans[:, 0], present)
    # 20 strides and 12,000 draws
    assert plans[:, 1:].mean().item() == pytest.approx(0.5 * weight + pull, abs=0.05)
    assert plans[:, 1:].std().item() == pytest.approx(1.0, abs=0.05)


def test_the_present_state_and_the_budget_reach_the_energy_untouched():
    policy, seen = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1), []

    class Spy(Linear):
        def forward(self, x, level, condition):
            seen.append(condition)
            return super().forward(x, level, condition)

    policy.energy = Spy()
    present, budget = torch.randn(5, 2), torch.rand(5, 1)
    policy.sampler(torch.randn(5, 4, 2), budget, hold(present))
    assert len(seen) == 3
    assert all(torch.equal(condition, torch.cat([budget, present], 1)) for condition in seen)


def test_it_asks_for_what_is_left_over_the_steps_left():
    policy = tcdp.TCDP(2, 1, 10, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1)

    def asked(steps, spent, budget):
        past = torch.zeros(1, steps)
        past[:, :1] = spent
        history = History(torch.zeros(1, steps + 1, 2), torch.zeros(1, steps, 1), past, past, torch.tensor([budget]))
        return policy.ask(history).item()

    assert asked(0, 0.0, 10.0) == 1.0
    assert asked(0, 0.0, 2.5) == 0.5
    assert asked(5, 1.0, 6.0) == 1.0
    assert asked(5, 0.0, 1.25) == 0.5
    assert asked(5, 3.0, 2.0) == 0.0  # overspent
    assert asked(9, 0.0, 1.0) == 0.5  # one step left counts as the last part: a quarter, but a plan, 4, at least
    policy.share = 0.5
    assert asked(0, 0.0, 5.0) == 0.5
    assert asked(5, 1.0, 4.5) == 0.5  # half of the budget, less what is spent
    assert asked(5, 2.5, 4.5) == 0.0  # what remains is kept in reserve


class Last(nn.Module):
    """Takes a window's last number for its cost."""

    def forward(self, x):
        return x[..., -1:]


def test_the_plan_of_the_greatest_energy_within_the_budget_is_chosen():
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 3)
    policy.energy, policy.cost = Linear(), Last()
    plans = torch.zeros(2, 3, 4, 2)
    plans[0, 2, 1:3], plans[1, 1, 3, 0] = 1.0, 0.1
    plans[1, 0, 0] = 9.0  # the present state is no merit of a plan
    assert policy.choose(plans, torch.rand(2, 1)).tolist() == [2, 1]
    plans[..., 3, 1] = torch.tensor([[0.3, 0.5, 0.7], [0.5, 0.8, 0.4]])  # costs; they add to the energy, too
    assert policy.choose(plans, torch.tensor([[0.7], [0.9]])).tolist() == [2, 1]  # each is within its budget
    assert policy.choose(plans, torch.tensor([[0.6], [0.6]])).tolist() == [1, 0]  # the greatest of the others
    assert policy.choose(plans, torch.tensor([[0.2], [0.0]])).tolist() == [0, 2]  # the cheapest, as none is


def run(policy, budget, worlds=20, steps=12, change=None):
    """Let runners run; after half of the steps the budget may change."""
    history = History.start(torch.zeros(worlds, 1), 1, torch.full((worlds,), budget))
    with torch.no_grad():
        for step in range(steps):
            if change is not None and step == steps // 2:
                history = replace(history, budget=torch.full((worlds,), change))
            action = policy.act(history)
            observations = torch.cat([history.observations, (history.observation + action)[:, None]], 1)
            actions, speed = torch.cat([history.actions, action[:, None]], 1), action
            rewards, costs = (
                torch.cat([history.rewards, speed], 1),
                torch.cat([history.costs, (speed > 0.5).float()], 1),
            )
            history = History(observations, actions, rewards, costs, history.budget)
    return history


@pytest.fixture(scope="module")
def runner():
    settings = {"hidden": 64, "groups": 8, "learning_rate": 3e-3, "average_rate": 0.05}
    config = replace(QUICK, steps=400, safety_weight=2.0, reward_weight=4.0, **settings)
    return tcdp.train(runners(), config)


def test_one_training_serves_every_budget(runner):
    torch.manual_seed(0)
    nothing, all_of_it = run(runner, 0.0), run(runner, 12.0)
    assert nothing.costs.sum(1).mean() < 1
    assert all_of_it.costs.sum(1).mean() > 6


def test_the_energy_makes_it_faster_within_the_budget(runner):
    torch.manual_seed(0)
    plain = deepcopy(runner)
    plain.reward_pull, plain.planner.plans = 0.0, 1
    for budget in (0.0, 12.0):
        fast, slow = run(runner, budget, worlds=60), run(plain, budget, worlds=60)
        assert fast.rewards.mean() > slow.rewards.mean() + 0.03
    assert plain.planner.ask.__self__ is plain  # a copy plans by its own networks


def test_a_budget_that_changes_on_the_way_is_obeyed(runner):
    torch.manual_seed(0)
    stopped, let_go = run(runner, 12.0, change=0.0), run(runner, 0.0, change=12.0)
    assert stopped.costs[:, 7:].mean() < 0.2
    assert let_go.costs[:, :6].mean() < 0.2
    assert let_go.costs[:, 7:].mean() > 0.4


def test_plans_start_at_the_present_state():
    policy = tcdp.train(make_dataset(), replace(QUICK, network="dit", patch=2, plans=3))
    history = History.start(torch.randn(5, 3), 2, torch.full((5,), 4.0))
    with torch.no_grad():
        plans = policy.plan(history, 2)
    assert plans.shape == (5, 2, 4, 3)
    assert (plans[:, :, 0] - history.observation[:, None]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [{"forget": 0.0}, {"forget": 1.0}, {"reward_weight": -1.0}, {"budgets": 1}, {"share": 0.0}, {"imagined": -1}],
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="share between 0 and 1"):
        replace(QUICK, **wrong)


@pytest.mark.parametrize("calls", [0, 20])
def test_numbers_of_calls_that_cannot_be_made_are_refused(calls):
    with pytest.raises(ValueError, match=f"calls={calls} with levels=20"):
        replace(QUICK, calls=calls)


def test_windows_longer_than_every_episode_are_refused():
    with pytest.raises(ValueError, match="horizon 16 gives no window"):
        tcdp.train(make_dataset(), replace(QUICK, horizon=16))


def test_allowances_of_recorded_windows_and_of_histories_agree():
    # an episode that goes on as it was recorded asks, at each step, for what it is about to spend
    data = runners(episodes=1)
    windows = tcdp.Windows.of(data, horizon=4, budgets=5)
    left = torch.arange(12, 3, -1.0)
    assert torch.equal(windows.costs.sort().values, allowance(data.cost_to_go()[:9], left).sort().values)


def test_a_wish_is_what_imagined_episodes_spent_the_aim_on():
    # asked for 0, 10, 20, 40 they spent 0, 5, 15, 30
    spent = [[0.0, 10.0, 20.0, 40.0], [0.0, 5.0, 15.0, 30.0]]
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1, spent=spent)
    budget = torch.tensor([0.0, 5.0, 10.0, 22.5, 30.0, 99.0])
    assert torch.allclose(policy.wish(budget), torch.tensor([0.0, 10.0, 15.0, 30.0, 40.0, 40.0]), atol=1e-4)
    policy.share = 0.5
    assert policy.wish(torch.tensor([10.0])).item() == pytest.approx(10.0, abs=1e-4)
    past = torch.tensor([[3.0]])
    history = History(torch.zeros(1, 2, 2), torch.zeros(1, 1, 1), past, past, torch.tensor([10.0]))
    assert policy.ask(history).item() == pytest.approx((7 / 49) ** 0.5, abs=1e-4)  # 10, of which 3 are spent


def test_a_wish_stays_within_twice_the_budget_and_never_asks_for_less_to_get_more():
    # small wishes spend nothing, and 30 happened to spend less than 20
    spent = [[0.0, 10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 9.0, 8.0, 20.0]]
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1, spent=spent)
    wishes = policy.wish(torch.linspace(0, 20, 81))
    assert wishes[0] == 0
    assert (wishes <= torch.linspace(0, 40, 81) + 1e-4).all()
    assert (wishes.diff() >= 0).all()


def test_a_budget_without_end_asks_for_the_most_and_whole_numbers_will_do():
    spent = [[0.0, 2.0, 10.0, 40.0], [32.0, 12.0, 48.0, 60.0]]
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1, share=0.8, spent=spent)
    assert policy.wish(torch.tensor([40.0, torch.inf])).isfinite().all()
    endless = History.start(torch.zeros(1, 2), 1, torch.tensor([torch.inf]))
    assert policy.ask(endless).item() == pytest.approx((40 / 50) ** 0.5)
    policy.arguments["spent"] = None
    assert policy.ask(endless).item() == 1


def test_budgets_are_calibrated_as_they_are_and_without_the_reserve(monkeypatch):
    policy = tcdp.TCDP(2, 1, 50, 4, "mlp", 8, 1, 20, 1.0, 3, 1.0, 1, 1, share=0.6, spent=[[0.0, 1.0], [0.0, 9.0]])

    def imagined(plain, world, budgets, *, episodes, seed):
        assert (plain.share, plain.arguments["spent"]) == (1.0, None)
        assert plain.planner.ask.__self__ is plain
        return 2 * budgets, budgets

    monkeypatch.setattr(tcdp, "spending", imagined)
    world = WorldModel(2, 1, episodes=1, steps=1)
    policy.calibrate_budget(world, torch.tensor([0.0, 5.0]))
    assert policy.arguments["spent"] == [[0.0, 5.0], [0.0, 10.0]]
    assert policy.share == 0.6
    with pytest.raises(ValueError, match="needs two or more"):
        policy.calibrate_budget(world, torch.tensor([5.0]))


def test_data_with_true_ends_are_refused_before_any_training():
    data = replace(make_dataset(), terminated=torch.arange(60) == 9)
    with pytest.raises(ValueError, match="imagined=0"):
        tcdp.train(data, replace(QUICK, imagined=1), lambda step, losses: pytest.fail("it trained"))
    tcdp.train(data, QUICK)


def test_training_ends_with_both_measurements_which_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(tcdp, "fit_world", partial(fit_world, steps=3))
    policy = tcdp.train(runners(), replace(QUICK, imagined=2, share=0.6))
    asked, cost = policy.arguments["spent"]
    assert asked[0] == 0
    assert asked[-1] == runners().episode_costs().max()
    assert len(cost) == len(asked)
    assert policy.share == 0.6
    assert policy.arguments["sampling"]["steps"] in (3, 4)
    save_policy(policy, tmp_path / "p")
    again = load_policy(tmp_path / "p")
    assert again.sampler.settings == policy.sampler.settings
    assert torch.equal(again.wish(torch.tensor([5.0])), policy.wish(torch.tensor([5.0])))
