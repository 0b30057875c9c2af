from dataclasses import replace

import pytest
import torch
from builders import make_dataset
from torch import nn

from safediffkit.diffusion.calibration import Calibration
from safediffkit.diffusion.denoise import denoise
from safediffkit.diffusion.networks import Patches
from safediffkit.diffusion.schedule import cosine_schedule, vp_schedule
from safediffkit.policy import History, Planner, WindowSampler, WindowScale, allowance, hold, window_loss

HORIZON, OBS = 6, 2


def walks(windows=400, seed=0):
    """Windows that start anywhere and move by about (1, -2) a step."""
    draw = torch.Generator().manual_seed(seed)
    start = 5 * torch.randn(windows, 1, OBS, generator=draw) + 3
    steps = torch.tensor([1.0, -2.0]) + 0.1 * torch.randn(windows, HORIZON - 1, OBS, generator=draw)
    return torch.cat([start, start + steps.cumsum(1)], 1)


@pytest.fixture
def scale():
    fitted = WindowScale(OBS, HORIZON)
    fitted.fit(walks())
    return fitted


class Recorder:
    """The three functions of a planner whose plans lead straight along the mean displacement of the data."""

    def __init__(self):
        self.asked, self.drawn, self.offered = [], [], []

    def ask(self, history):
        self.asked.append(history.budget_left)
        return history.budget_left[:, None]

    def draw(self, x, condition, project):
        self.drawn.append((x, condition))
        return project(torch.zeros_like(x))

    def choose(self, plans, condition):
        self.offered.append((plans, condition))
        return torch.arange(len(plans)) % plans.shape[1]


def planner(scale, recorder, **settings):
    # "inverse dynamics": the action is the motion itself, in the units of the world
    def inverse(step):
        pair = scale.back(step.unflatten(-1, (2, OBS)))
        return pair[:, 1] - pair[:, 0]

    return Planner(recorder.ask, recorder.draw, scale, inverse, recorder.choose, **settings)


def later(history, steps=1, cost=0.0):
    """Let steps pass in which each world moves by (1, -2) and pays."""
    for _ in range(steps):
        worlds = len(history.observations)
        history = History(
            torch.cat([history.observations, history.observation[:, None] + torch.tensor([1.0, -2.0])], 1),
            torch.cat([history.actions, torch.zeros(worlds, 1, OBS)], 1),
            torch.cat([history.rewards, torch.zeros(worlds, 1)], 1),
            torch.cat([history.costs, torch.full((worlds, 1), cost)], 1),
            history.budget,
        )
    return history


def start(worlds=3, budget=10.0, seed=0):
    first = torch.randn(worlds, OBS, generator=torch.Generator().manual_seed(seed))
    return History.start(first, OBS, torch.full((worlds,), budget))


def test_scaled_windows_have_mean_0_and_spread_1_and_come_back(scale):
    scaled = scale(walks())
    assert scaled.mean(0).abs().max() < 1e-5
    assert (scaled.std(0) - 1).abs().max() < 1e-4
    assert (scale.back(scaled) - walks()).abs().max() < 1e-4
    assert (scale(walks()[:, :2]) - scaled[:, :2]).abs().max() == 0  # the first rows alone
    assert (scaled >= scale.low).all()
    assert (scaled <= scale.high).all()


def test_what_never_varies_is_not_blown_up():
    fitted = WindowScale(OBS, HORIZON)
    fitted.fit(torch.ones(5, HORIZON, OBS))
    assert fitted(torch.full((1, HORIZON, OBS), 1.5))[0, 0].tolist() == [0.5, 0.5]


def test_every_plan_starts_at_the_present_state(scale):
    recorder, history = Recorder(), later(start(), 2)
    plans = planner(scale, recorder).plan(history, 5)
    assert plans.shape == (3, 5, HORIZON, OBS)
    assert (plans[:, :, 0] - history.observation[:, None]).abs().max() < 1e-5
    # scaled zeros are the mean displacement of the data
    assert (plans[:, :, 1] - plans[:, :, 0] - torch.tensor([1.0, -2.0])).abs().max() < 0.05


def test_the_present_state_is_held_at_every_level(scale):
    present = torch.randn(4, OBS)
    seen = []

    def noise_model(x, level, condition):
        seen.append(x[:, 0])
        return torch.randn_like(x)

    *_, last = denoise(noise_model, cosine_schedule(20), torch.randn(4, HORIZON, OBS), steps=5, project=hold(present))
    assert len(seen) == 5
    assert all(torch.equal(row, present) for row in [*seen, last[:, 0]])


def test_all_worlds_and_plans_are_drawn_in_one_batch_under_the_budget_left(scale):
    recorder = Recorder()
    history = replace(later(start(), 2, cost=1.5), budget=torch.tensor([10.0, 20.0, 2.0]))
    planner(scale, recorder, plans=4).act(history)
    ((noise, condition),) = recorder.drawn
    assert noise.shape == (12, HORIZON, OBS)
    assert condition[:, 0].tolist() == [7.0] * 4 + [17.0] * 4 + [-1.0] * 4
    ((plans, offered),) = recorder.offered
    assert plans.shape == (3, 4, HORIZON, OBS)
    assert offered[:, 0].tolist() == [7.0, 17.0, -1.0]


def test_the_action_leads_to_the_planned_next_state_from_where_the_world_is(scale):
    acting, history = planner(scale, Recorder(), every=3), start()
    assert (acting.act(history) - torch.tensor([1.0, -2.0])).abs().max() < 0.05
    history = later(history)
    strayed = replace(history, observations=history.observations + torch.tensor([[0.0], [0.1]])[None])
    # it is 0.1 ahead of the plan, so the action makes up for it
    assert (acting.act(strayed) - torch.tensor([0.9, -2.1])).abs().max() < 0.05


def test_a_motion_never_seen_is_not_asked_for(scale):
    acting, history = planner(scale, Recorder(), every=3), start()
    acting.act(history)
    history = later(history)
    lost = replace(history, observations=history.observations + torch.tensor([[0.0], [100.0]])[None])
    assert (acting.act(lost) - torch.tensor([1.0, -2.0])).abs().max() < 0.5


@pytest.mark.parametrize(("every", "replans"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6])])
def test_a_plan_is_followed_for_so_many_steps(scale, every, replans):
    recorder, history, made = Recorder(), start(), []
    acting = planner(scale, recorder, every=every)
    for step in range(7):
        before = len(recorder.drawn)
        acting.act(history)
        made += [step] if len(recorder.drawn) > before else []
        history = later(history)
    assert made == replans


def test_nothing_is_left_for_another_episode(scale):
    recorder = Recorder()
    acting = planner(scale, recorder, every=4)
    acting.act(start())
    acting.act(start(seed=1))  # a new episode: another start
    acting.act(later(start(seed=2)))  # another one, met on its way
    acting.act(start(worlds=2))  # fewer worlds
    acting.act(start(worlds=2))  # the same start once more: the plan for it still holds
    assert len(recorder.drawn) == 4


def test_a_new_budget_is_heard_at_once(scale):
    recorder, history = Recorder(), start()
    acting = planner(scale, recorder, every=5)
    acting.act(history)
    acting.act(replace(later(history), budget=torch.zeros(3)))
    assert [asked.tolist() for asked in recorder.asked] == [[10.0] * 3, [0.0] * 3]


def test_the_chosen_plan_is_the_one_followed(scale):
    class Fan(Recorder):
        def draw(self, x, condition, project):
            return project(torch.arange(len(x)).float()[:, None, None] % 3 * torch.ones_like(x))

    history = start()
    actions = planner(scale, Fan(), plans=3).act(history)  # world i takes plan i
    expected = [scale.mean[1] + i * scale.spread[1] for i in range(3)]
    assert (actions - torch.stack(expected)).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": HORIZON}, {"plans": 0}])
def test_a_plan_too_short_to_follow_is_refused(scale, settings):
    with pytest.raises(ValueError, match="can be followed for 1 to 5 steps"):
        planner(scale, Recorder(), **settings)


def test_an_allowance_is_the_root_of_the_rate():
    assert allowance(torch.tensor([0.0, 5.0, 20.0, 50.0, -3.0]), 20).tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert allowance(torch.tensor([4.0, 4.0]), torch.tensor([4.0, 16.0])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("network", ["dit", "unet", "mlp"])
def test_patches_take_any_network_and_any_division(network):
    for patch in (1, 2, 3):
        model = Patches(network, OBS, HORIZON, 1, 16, patch)
        x, condition = torch.randn(4, HORIZON, OBS), torch.rand(4, 1)
        level = cosine_schedule(10).level(torch.arange(4))
        # it starts at v = 0, so the noise is sigma x: rows and entries come back where they were
        assert torch.allclose(model(x, level, condition), level.like(x).sigma * x, atol=1e-6)
    with pytest.raises(ValueError, match="patch=4"):
        Patches(network, OBS, HORIZON, patch=4)
    with pytest.raises(ValueError, match="one of 'dit', 'unet', 'mlp'"):
        Patches("cnn", OBS, HORIZON)


def test_the_loss_asks_for_nothing_that_is_known():
    clean, schedule, seen = walks(64), cosine_schedule(20), []

    def omniscient(x, level, condition):
        seen.append(x[:, 0])
        noise = (x - level.like(x).alpha * clean) / level.like(x).sigma
        noise[:, 0] = 1e3  # an answer about row 0 does not count
        return noise

    assert window_loss(omniscient, schedule, clean).item() < 1e-3
    assert torch.equal(seen[0], clean[:, 0])


def test_the_loss_is_that_of_v():
    # a guess that is off by alpha is off by 1 in v = (noise - sigma x) / alpha, at every level
    clean = walks(64)

    def off(x, level, condition):
        level = level.like(x)
        return (x - level.alpha * clean) / level.sigma + level.alpha

    assert window_loss(off, vp_schedule(20), clean).item() == pytest.approx(1.0, abs=1e-3)


def test_patches_learn_windows_given_their_start():
    torch.manual_seed(0)
    fitted = WindowScale(OBS, HORIZON)
    fitted.fit(walks())
    model, schedule = Patches("mlp", OBS, HORIZON, 0, 64, 2), cosine_schedule(50)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    data = fitted(walks())
    for _ in range(150):
        loss = window_loss(model, schedule, data[torch.randint(len(data), (64,))])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        *_, drawn = denoise(model, schedule, torch.randn(300, HORIZON, OBS), steps=8, project=hold(data[:300, 0]))
    ends = drawn[:, -1] - drawn[:, -1].mean(0)
    assert drawn[:, 1:].mean().abs() < 0.2
    assert 0.6 < ends.std().item() < 1.4


def sampler(calls, guided=None, temperature=1.0):
    """Draws windows of a density whose numbers have the condition as their mean, and a spread of 1."""

    def known(condition, present):
        return lambda x, level, told: level.like(x).sigma * (x - level.like(x).alpha * told[:, None])

    return WindowSampler(guided or known, vp_schedule(50), WindowScale(OBS, HORIZON), temperature, calls)


DATA = make_dataset(episodes=30, obs=OBS)


def by_budget(history):
    return history.budget[:, None] / 10


def test_what_is_measured_is_how_windows_are_drawn_from_then_on():
    torch.manual_seed(0)
    draw, present, condition = sampler(calls=6), torch.randn(300, OBS), torch.full((300, 1), 0.5)
    noise, called = torch.randn(300, HORIZON, OBS), []

    def counting(condition, present):
        def model(x, level, told):
            called.append(len(x))
            return level.like(x).sigma * (x - level.like(x).alpha * told[:, None])

        return model

    assert draw.settings["steps"] == 6
    found = Calibration(**draw.measure(by_budget, DATA))
    assert found.holds
    assert {trial["steps"] for trial in found.measured} == {3, 4, 5, 6}
    assert found.steps < 6
    draw.guided = counting
    plans = draw(noise, condition, hold(present))
    assert called == [300] * found.steps
    assert torch.equal(plans[:, 0], present)
    assert plans[:, 1:].mean().item() == pytest.approx(0.5, abs=0.05)


def test_it_is_measured_as_it_will_be_sampled():
    seen = []

    def spying(condition, present):
        seen.append((condition, present))
        return lambda x, level, told: level.like(x).sigma * (x - level.like(x).alpha * told[:, None])

    hot, cold = (sampler(4, spying, temperature).measure(by_budget, DATA) for temperature in (1.0, 0.5))
    assert hot["measured"] != cold["measured"]
    (condition, present), (other, _) = seen
    assert present.shape == (64, OBS)
    assert 0 < 10 * condition.min() < 10 * condition.max() <= DATA.episode_costs().max()
    assert torch.equal(condition, other)  # the same seed draws the same states and budgets


def test_a_model_that_cannot_be_sampled_well_in_time_says_so():
    def wavy(condition, present):
        def model(x, level, told):
            level = level.like(x)
            return (x - level.alpha * torch.sin(9 * x)) / level.sigma  # what it takes for clean leaps to and fro

        return model

    draw = sampler(calls=3, guided=wavy)
    found = Calibration(**draw.measure(by_budget, DATA))
    assert not found.holds
    assert found.distance == min(trial["distance"] for trial in found.measured)
    assert draw.settings["steps"] == 3
