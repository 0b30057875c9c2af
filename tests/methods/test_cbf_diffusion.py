from dataclasses import replace

import pytest
import torch

from safediffkit import load_policy, save_policy
from safediffkit.data.dataset import Dataset
from safediffkit.data.reshape import agents_apart
from safediffkit.methods import cbf_diffusion as cbf
from safediffkit.policy import History
from safediffkit.safety.values import Values

SMALL = cbf.Config(
    steps=3, barrier_steps=3, value_steps=3, horizon=4, hidden=8, levels=10, calls=3, plans=3, batch=16, groups=2,
    candidates=4, lookahead=2,
)  # fmt: skip
OBS = 10  # velocity, place, one landmark, one mate's place and velocity


def team_data(episodes=12, steps=12, seed=0):
    """Two agents on a plane: each drifts by what it pushes, and touching costs and hurts."""
    draw = torch.Generator().manual_seed(seed)
    count = episodes * steps
    action = torch.rand(count, 2, 2, generator=draw) * 2 - 1
    place = 0.3 * torch.randn(count, 2, 2, generator=draw)
    velocity = torch.randn(count, 2, 2, generator=draw)
    following = place + 0.1 * velocity + 0.05 * action

    def seen(place, velocity):
        return torch.cat([velocity, place, -place, place.flip(1) - place, velocity.flip(1) - velocity], -1)

    near = (following[:, 0] - following[:, 1]).norm(dim=-1) < 0.3
    return Dataset(
        observations=seen(place, velocity),
        actions=action,
        rewards=-following.norm(dim=-1),
        costs=near[:, None].float().expand(-1, 2).clone(),
        next_observations=seen(following, velocity),
        terminated=torch.zeros(count, dtype=torch.bool),
        episode=torch.arange(count) // steps,
        provenance="made for a test",
    )


@pytest.fixture(scope="module")
def trained():
    return cbf.train(team_data(), SMALL)


def start(worlds=3, seed=0):
    return History.start(torch.randn(worlds, 2, OBS, generator=torch.Generator().manual_seed(seed)), 2)


def test_a_barrier_judges_own_entries_and_neighbours_and_knows_who_is_absent():
    particles = cbf.Local.of("landmarks", OBS, agents=2)
    assert particles(torch.arange(10.0)).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    cars = cbf.Local.of("merge", 15, agents=2)
    state = cars(torch.tensor([9.0, 8, 7, 6, 5, 1, 11, 12, 13, 14, 0, 0, 0, 0, 0]))
    assert state[:10].tolist() == [9, 8, 7, 6, 5, 1, 11, 12, 13, 14]
    assert state[10:].isnan().all()


@pytest.mark.parametrize(
    ("world", "obs", "agents"), [("landmarks", 9, 2), ("landmarks", 20, 5), ("merge", 12, 2), ("merge", 5, 2)]
)
def test_observations_of_another_world_are_refused(world, obs, agents):
    with pytest.raises(ValueError, match=f"of {obs} numbers for each of {agents} agents"):
        cbf.Local.of(world, obs, agents)


def test_each_agent_is_a_world_of_its_own_to_its_planner():
    observations = torch.arange(24.0).view(2, 2, 3, 2)  # worlds, now, agents, obs
    none = torch.zeros(2, 1, 3)
    alone = cbf.apart(History(observations, torch.zeros(2, 1, 3, 1), none, none + 2, torch.tensor([3.0, 6.0])))
    assert torch.equal(alone.observations[4], observations[1, :, 1])
    assert alone.budget.tolist() == [1, 1, 1, 2, 2, 2]


def test_all_of_the_condition_is_forgotten_or_safety_alone():
    # [CBF Eq. 10]
    left = cbf.forgotten(torch.ones(20_000, 2), 0.2, torch.Generator().manual_seed(0))
    safety, reward = left.isnan().T
    assert safety.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert reward.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not (reward & ~safety).any()
    assert (left[~safety] == 1).all()


def test_windows_are_labelled_by_the_least_h_ahead_and_the_advantage():
    data = agents_apart(team_data(episodes=2, steps=5))
    values = Values(OBS, 2)
    for weight in values.parameters():
        torch.nn.init.zeros_(weight)  # V = 0 wherever a state is safe
    values.worst.fill_(-10.0)
    h = torch.full((len(data),), 0.5)
    h[2], h[3] = 0.05, -7.0  # of the first episode's five states
    config = replace(SMALL, horizon=3, discount=0.5, margin=0.1)
    known = cbf.Windows.of(data, h, values, config)
    assert known.rows[0].tolist() == [0, 1, 2]
    assert known.safety[:3].tolist() == pytest.approx([0.5, -1, -1])
    rewards = cbf.penalised(data, config.penalty)
    # r + 0.5 r' + 0.25 V'' - V, by hand: the second window ends where h < 0, and so at the worst; the third begins so
    expected = [rewards[0] + rewards[1] / 2, rewards[1] + rewards[2] / 2 - 10 / 4, rewards[2] + rewards[3] / 2]
    assert known.advantage[:3].tolist() == pytest.approx([float(each) for each in expected], abs=1e-5)
    assert known.rank.sort().values.tolist() == pytest.approx(((torch.arange(12) + 0.5) / 12).tolist(), abs=1e-5)


def test_an_agent_acts_on_what_it_sees_alone(trained):
    history, changed = start(), start()
    changed.observations[:, :, 1] += 1.0
    torch.manual_seed(1)
    acted = trained.act(history)
    torch.manual_seed(1)
    again = trained.act(changed)
    torch.testing.assert_close(acted[:, 0], again[:, 0])
    assert not torch.allclose(acted[:, 1], again[:, 1])


def test_as_a_filter_the_barrier_lets_the_best_safe_plan_pass_and_else_the_safest(trained):
    policy = trained.with_roles(["filter"])
    plans = torch.zeros(2, 3, SMALL.horizon, OBS)
    plans[..., 1:, 0] = torch.tensor([[1.0, 2, 3], [1, 2, 3]])[..., None]
    present = torch.full((2, 2), torch.nan)
    policy.worth = torch.nn.Linear(SMALL.horizon * OBS, 1)
    torch.nn.init.zeros_(policy.worth.weight)
    policy.worth.weight.data[0, OBS] = 1.0  # the third plan is worth most
    policy.scale.back = lambda scaled: scaled
    policy.h = lambda seen: 2.5 - seen[..., 0] - torch.tensor([0.0, 9.0]).view(2, 1, 1)
    assert policy.choose(plans, present).tolist() == [1, 0]
    policy.roles.clear()
    assert policy.choose(plans, present).tolist() == [2, 2]


def test_the_quadratic_programme_changes_the_planned_action_no_more_than_h_asks(trained):
    history = start()
    plain, filtered = trained.with_roles([]), trained.with_roles(["programme"])
    for policy in (plain, filtered):
        policy.planner.act = lambda alone: torch.full((6, 2), 0.5)
    filtered.h = lambda seen: 1.0 - seen[..., 0]
    filtered.move = lambda seen, action: torch.cat([action[:, :1] + 0 * seen[:, :1], seen[:, 1:]], 1)
    filtered.config = replace(filtered.config, slope=5.0)  # of 1 / (2 dt): h may halve in a step
    acted, now = filtered.act(history), history.observation[..., 0]
    most = 1 - 0.5 * (1 - now)  # h' >= h / 2
    torch.testing.assert_close(acted[..., 0], most.clamp(-1, 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(acted[..., 1], plain.act(history)[..., 1], atol=1e-4, rtol=0)


def test_guidance_goes_up_the_slope_of_safety_and_the_condition_asks_for_it(trained):
    # [CBF Eq. 9]
    history = start()
    assert trained.with_roles(["guidance"]).ask(history)[:, 0].isnan().all()
    asked = trained.with_roles(["condition"]).ask(history)
    assert asked.tolist() == [[1.0, pytest.approx(0.9)]] * 3
    x, present, level = torch.randn(3, SMALL.horizon, OBS), torch.randn(3, OBS), trained.schedule.level(torch.tensor(5))
    plain, guided = (trained.with_roles(roles).guided(asked, present)(x, level, asked) for roles in ([], ["guidance"]))
    probe = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(trained.log_safety(present)(probe, level).sum(), probe)
    torch.testing.assert_close(guided, plain - level.sigma * slope)


def test_caution_is_the_h_that_must_be_kept(trained):
    seen = start().observation
    torch.testing.assert_close(trained.with_roles([], caution=0.3).h(seen), trained.h(seen) - 0.3)


def test_a_barrier_of_other_costs_takes_the_place_of_a_teams(trained):
    data, seen = team_data(), start().observation
    torch.testing.assert_close(cbf.learn_barrier(data, SMALL)(trained.local(seen)), trained.h(seen))
    fewer = replace(data, costs=data.costs * (data.episode >= 6)[:, None])
    swapped = trained.with_roles(["filter"])
    swapped.barrier = cbf.learn_barrier(fewer, SMALL)
    assert not torch.allclose(swapped.h(seen), trained.h(seen))
    torch.testing.assert_close(swapped.with_roles(["programme"]).h(seen), swapped.h(seen))


def test_the_variants_are_every_role_alone_none_the_papers_three_and_all_four(trained):
    roles = {name: sorted(policy.roles) for name, policy in trained.variants().items()}
    assert roles == {
        "none": [], "condition": ["condition"], "filter": ["filter"], "guidance": ["guidance"],
        "programme": ["programme"], "all": ["condition", "filter", "guidance"],
        "shielded": ["condition", "filter", "guidance", "programme"],
    }  # fmt: skip
    with pytest.raises(ValueError, match="unknown roles"):
        trained.with_roles(["shield"])


def test_plans_begin_with_what_is_seen_and_are_the_same_once_saved(trained, tmp_path):
    # [CBF Eq. 5]
    save_policy(trained, tmp_path / "team.safetensors")
    again, history = load_policy(tmp_path / "team.safetensors"), start()
    plans = []
    for policy in (trained, again):
        torch.manual_seed(0)
        plans.append(policy.plan(history, 2))
    assert torch.equal(*plans)
    assert plans[0].shape == (3, 2, 2, SMALL.horizon, OBS)
    torch.testing.assert_close(plans[0][..., 0, :], history.observation[:, :, None].expand(-1, -1, 2, -1))


def test_unfit_data_and_settings_are_refused():
    data = team_data()
    with pytest.raises(ValueError, match="agents axis"):
        cbf.train(data.agent(0), SMALL)
    with pytest.raises(ValueError, match="are starts that"):
        cbf.train(replace(data, costs=torch.zeros_like(data.costs)), SMALL)
    with pytest.raises(ValueError, match="forget"):
        cbf.Config(forget=0.6)
    with pytest.raises(ValueError, match="calls"):
        cbf.Config(calls=0)
