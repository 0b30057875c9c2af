from dataclasses import replace

import pytest
import torch
from builders import make_team

from safediffkit.baselines import madiff
from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.denoise import denoise, dpm_solver_2m_step
from safediffkit.diffusion.guidance import classifier_free, clip_clean, guide
from safediffkit.diffusion.schedule import NoiseLevel, cosine_schedule
from safediffkit.policy import History, window_loss

SMALL = madiff.Config(steps=3, horizon=4, hidden=8, patch=2, levels=20, calls=4, batch=16)
BOTH = ("decentralised", "centralised")


def together(episodes=400, steps=4):
    """Two agents on a line go right or left together, as often; each step to the right earns them 1."""
    draw = torch.Generator().manual_seed(0)
    side = torch.randint(2, (episodes, 1, 1, 1), generator=draw) * 2.0 - 1
    start = torch.randn(episodes, 1, 2, 1, generator=draw)
    path = start + 0.2 * side * torch.arange(steps + 1)[None, :, None, None]
    flat = [each.flatten(0, 1) for each in (path[:, :-1], path[:, 1:], side.expand(-1, steps, 2, 1))]
    return Dataset(
        observations=flat[0],
        actions=0.5 * flat[2],
        rewards=(flat[2][..., 0] > 0).float(),
        costs=torch.zeros(len(flat[0]), 2),
        next_observations=flat[1],
        terminated=torch.zeros(len(flat[0]), dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="made for a test",
    )


def lively(execution, agents=3, **keywords):
    policy = madiff.MADiff(
        agents=agents, obs=3, act=2, starts=5, execution=execution, horizon=4, hidden=8, patch=2, levels=20,
        weight=1.2, calls=4, temperature=0.5, every=1, **keywords,
    )  # fmt: skip
    for weight in policy.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return policy.eval()


def acted(policy, observation):
    torch.manual_seed(0)
    with torch.no_grad():
        return policy.act(History.start(observation, 2))


@pytest.mark.parametrize("execution", BOTH)
def test_only_a_centralised_agent_knows_what_the_others_see(execution):
    policy, observation = lively(execution), torch.randn(6, 3, 3)
    other = observation.clone()
    other[:, 1] += 1.0
    moved = (acted(policy, observation) - acted(policy, other)).abs().amax((0, 2))
    assert moved[1] > 1e-3
    if execution == "decentralised":
        assert moved[[0, 2]].max() == 0
    else:
        assert moved[[0, 2]].min() > 1e-3


@pytest.mark.parametrize("execution", BOTH)
def test_plans_begin_with_what_is_and_a_decentralised_agent_draws_its_own(execution):
    policy, observation = lively(execution), torch.randn(4, 3, 3)
    with torch.no_grad():
        plans = policy.plan(History.start(observation, 2), 5)
        torch.testing.assert_close(plans[:, :, 0], observation[:, None].expand(-1, 5, -1, -1))
        torch.manual_seed(1)
        noise, condition = torch.randn(2, 4, 9), torch.zeros(2, 3)
        drawn = [policy.draw(noise, condition, lambda x: x) for _ in range(2)]
    assert torch.equal(*drawn) == (execution == "centralised")  # all noise is the caller's, or none


def test_an_agents_part_of_the_plan_is_from_its_own_view():
    policy, condition, present = lively("decentralised"), torch.randn(2, 3), torch.randn(2, 9)
    torch.manual_seed(0)
    drawn = policy.draw(torch.zeros(2, 4, 9), condition, madiff.hold_known(present, torch.ones(2, 9).bool()))
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 4, 9)
    for j in range(3):
        known = torch.eye(3)[j].expand(2, -1)
        guided = guide(policy.telling(known), classifier_free(1.2), clip_clean(policy.scale.low, policy.scale.high))
        *_, view = denoise(
            guided, policy.schedule, 0.5 * noise[:, j], condition, steps=4, solver=dpm_solver_2m_step,
            project=madiff.hold_known(present, madiff.mask(known, present)),
        )  # fmt: skip
        own = slice(3 * j, 3 * j + 3)
        torch.testing.assert_close(drawn[..., own], view[..., own], atol=1e-5, rtol=1e-4)


def test_tokens_are_steps_of_one_agent_and_see_all():
    network = madiff.TeamWindows(agents=2, obs=1, horizon=4, hidden=8, patch=2)
    seen = []
    network.network.forward = lambda x, level, condition: (seen.append(x), 2 * x)[1]
    x = torch.arange(8.0).view(1, 4, 2)  # agent 0 has the even numbers, agent 1 the odd ones
    out = network(x, NoiseLevel(torch.tensor(0.6), torch.tensor(0.8)), None)
    assert seen[0].tolist() == [[[0, 2], [4, 6], [1, 3], [5, 7]]]
    assert torch.equal(out, 2 * x)


def test_what_is_known_is_held_and_the_rest_left():
    present, x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.zeros(1, 2, 4)
    known = madiff.mask(torch.tensor([[0.0, 1.0]]), present)
    assert madiff.hold_known(present, known)(x).tolist() == [[[0, 0, 3, 4], [0, 0, 0, 0]]]


def test_the_loss_is_the_planners_where_all_is_known():
    policy, clean = lively("centralised"), torch.randn(16, 4, 9)
    model, schedule = policy.telling(torch.ones(16, 3)), cosine_schedule(20)
    torch.manual_seed(0)
    expected = window_loss(model, schedule, clean, torch.zeros(16, 3))
    torch.manual_seed(0)
    known = torch.ones(16, 9, dtype=torch.bool)
    torch.testing.assert_close(madiff.team_loss(model, schedule, clean, known, torch.zeros(16, 3)), expected)


def test_the_loss_counts_unknown_presents_and_no_known_ones():
    clean, schedule = torch.zeros(500, 2, 2), cosine_schedule(20)
    known = torch.tensor([True, False]).expand(500, 2)
    noisy = []

    def model(x, level, condition):
        noisy.append((x, level))
        return torch.zeros_like(x)

    torch.manual_seed(0)
    loss = madiff.team_loss(model, schedule, clean, known)
    x, level = noisy[0]
    assert (x[:, 0, 0] == 0).all()  # clean
    assert (x[:, 0, 1] != 0).all()
    noise = x / level.like(x).sigma  # what there is to guess, where anything is
    errors = (noise / level.like(x).alpha.clamp(min=0.02)).square()
    torch.testing.assert_close(loss, torch.cat([errors[:, 0, 1:], errors[:, 1]], 1).mean())


def test_actions_are_read_off_each_agents_own_motion():
    inverse, step = lively("centralised").inverse, torch.randn(5, 2, 3, 3)  # state and motion of three agents
    read = inverse(step.flatten(1)).view(5, 3, 2)
    own = torch.cat([step[:, 0], step[:, 1]], -1)
    torch.testing.assert_close(read, inverse.networks(own))
    step[:, :, 1] += 1.0
    moved = (inverse(step.flatten(1)).view(5, 3, 2) - read).abs().amax((0, 2))
    assert moved[[0, 2]].max() == 0
    assert moved[1] > 1e-3


def test_guidance_leans_to_returns_and_never_forgets_whose_present_is_known():
    policy = lively("centralised")
    seen = []
    policy.noise_model.forward = lambda x, level, condition: (seen.append(condition), x)[1]
    policy.draw(torch.randn(2, 4, 9), torch.full((2, 3), 0.7), lambda x: x)
    assert seen[0].shape == (4, 6)  # two windows, asked about without and with returns
    assert seen[0][:2, :3].isnan().all()
    assert (seen[0][2:, :3] == 0.7).all()
    assert (seen[0][:, 3:] == 1).all()


def test_the_returns_asked_for_by_hand():
    # rates a step left of two episodes of 5 steps, for agent 0: 1 and 3; agent 1 the reverse
    data = make_team(agents=2, episodes=2, steps=5)
    rate = torch.tensor([[1.0, 3.0], [3.0, 1.0]])[data.episode]
    data = replace(data, rewards=rate)
    for asked, expected in ((1.0, 1.0), (0.0, -1.0), (0.5, 0.0)):
        policy = madiff.train(data, replace(SMALL, asked=asked))
        spread = torch.tensor([1.0, 1.0, 3.0, 3.0]).std()  # two windows an episode
        torch.testing.assert_close(policy.wishes, torch.full((2, 2), expected / float(spread)))
    history = History.start(torch.zeros(4, 2, 3), 2)
    assert policy.ask(policy.side_by_side(history)).shape == (4, 2)


@pytest.fixture(scope="module")
def trained():
    config = madiff.Config(
        steps=250, horizon=4, hidden=32, patch=2, levels=20, calls=6, batch=128, average_rate=0.05, temperature=1.0
    )
    return {each: madiff.train(together(), replace(config, execution=each)) for each in BOTH}


def sides(policy, wish):
    """Draw plans under a return, and tell which agents of each go right."""
    policy.wishes.fill_(wish)
    torch.manual_seed(0)
    with torch.no_grad():
        plans = policy.plan(History.start(torch.randn(20, 2, 1), 1), 20).flatten(0, 1)
    travelled = plans[:, -1, :, 0] - plans[:, 0, :, 0]
    assert ((travelled.abs() - 0.6).abs() < 0.2).float().mean() > 0.85
    return travelled > 0


def test_only_a_central_plan_coordinates_what_nobody_can_see(trained):
    for execution, least, most in (("centralised", 0.9, 1.0), ("decentralised", 0.3, 0.7)):
        right = sides(trained[execution], torch.nan)
        assert 0.25 < right.float().mean() < 0.75  # both modes are alive
        alike = float((right[:, 0] == right[:, 1]).float().mean())
        assert least <= alike <= most, execution


@pytest.mark.parametrize("execution", BOTH)
def test_the_return_asked_for_is_planned_for(trained, execution):
    assert sides(trained[execution], 1.0).float().mean() > 0.9
    assert sides(trained[execution], -1.0).float().mean() < 0.1


@pytest.mark.parametrize("execution", BOTH)
def test_actions_are_those_that_make_the_plan_true(trained, execution):
    policy = trained[execution]
    policy.wishes.fill_(1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        actions = policy.act(History.start(torch.randn(50, 2, 1), 1))
    assert ((actions - 0.5).abs() < 0.15).float().mean() > 0.85


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="agents axis"):
        madiff.train(make_team().agent(0), SMALL)
    with pytest.raises(ValueError, match="of 2 agents; this policy is for 3"):
        lively("centralised").act(History.start(torch.zeros(1, 2, 3), 2))
    for change in ({"horizon": 5}, {"forget": 1.5}, {"asked": -0.1}, {"calls": 20}):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            replace(SMALL, **change)
