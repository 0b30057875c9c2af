from dataclasses import replace

import pytest
import torch

from safediffkit import load_policy, save_policy
from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.denoise import dpm_solver_1_step, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.learning import words
from safediffkit.methods import dom2
from safediffkit.policy import History

SMALL = dom2.Config(steps=3, hidden=8, batch=32, levels=4, random_actions=3)
# the plain network, which shape checks slow down less
QUICK = dom2.Config(
    steps=200, network="mlp", levels=6, hidden=32, batch=128, discount=0.5, learning_rate=6e-3, target_rate=0.1,
    random_actions=3,
)  # fmt: skip


def team_data(actions, reward, obs=3, steps=10, seed=0):
    """Episodes of a team whose observations say nothing, from its actions and what they earn."""
    count, agents, _ = actions.shape
    path = torch.randn(count + 1, agents, obs, generator=torch.Generator().manual_seed(seed))
    return Dataset(
        observations=path[:-1],
        actions=actions,
        rewards=reward(actions),
        costs=torch.zeros(count, agents),
        next_observations=path[1:],
        terminated=torch.zeros(count, dtype=torch.bool),
        episode=torch.arange(count) // steps,
        provenance="made for a test",
    )


def random_team(agents=3, count=60, act=2):
    actions = torch.rand(count, agents, act, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return team_data(actions, lambda a: a[..., 0] + 1)


def two_modes(count=1000):
    """Each of two agents pushes hard to either side, as often; agent 0 earns on the right, agent 1 on the left."""
    draw = torch.Generator().manual_seed(2)
    side = torch.randint(2, (count, 2, 1), generator=draw) * 2 - 1
    actions = 0.6 * side + 0.05 * torch.randn(count, 2, 1, generator=draw)
    return team_data(actions, lambda a: torch.stack([a[:, 0, 0] > 0, a[:, 1, 0] < 0], 1).float())


def lively(network="unet", agents=3):
    policy = dom2.DOM2(agents=agents, obs=3, act=2, hidden=8, levels=4, network=network)
    for weight in policy.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return policy


def drawn(policy, plans=8):
    torch.manual_seed(0)
    with torch.no_grad():
        return policy.propose(torch.randn(64, policy.agents, 3), plans).flatten(0, 1)


def differing(one, other):
    return [name for name, weight in one.state_dict().items() if not torch.equal(weight, other.state_dict()[name])]


@pytest.mark.parametrize("network", ["unet", "mlp"])
def test_its_sampler_is_dpm_solver_1_and_gradients_flow(network):
    # [DOM2 Eq. 4]
    policy, state = lively(network), torch.randn(5, 3, 3)
    guided = guide(policy.noise_model, clip_clean(-1.0, 1.0))
    weights = list(policy.noise_model.parameters())
    torch.manual_seed(0)
    expected = sample(guided, policy.schedule, (5, 3, 2), state, steps=4, solver=dpm_solver_1_step)
    torch.manual_seed(0)
    quick = policy.draw(state, (5,))
    torch.testing.assert_close(quick, expected, atol=1e-4, rtol=1e-4)
    assert (expected.abs() < 1).float().mean() > 0.2, "all at the walls would be no test"
    for mine, theirs in zip(
        torch.autograd.grad(quick.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-3)
        assert mine.abs().max() > 0


def test_many_plans_are_drawn_as_one_is():
    policy, observation = lively(), torch.randn(4, 3, 3)
    torch.manual_seed(0)
    one = policy.draw(policy.scaled(observation).repeat_interleave(2, 0), (8,))
    torch.manual_seed(0)
    torch.testing.assert_close(policy.propose(observation, 2), one.unflatten(0, (4, 2)))
    assert policy.propose(observation, 1).shape == (4, 1, 3, 2)


def test_the_policy_loss_by_hand():
    # [DOM2 Eq. 5]
    config = replace(SMALL, imitate=0.5, value_weight=2.0)
    recorded = torch.tensor([[1.0, -4.0], [3.0, -4.0]], requires_grad=True)  # sizes 2 and 4
    proposed = torch.tensor([[2.0, -2.0], [6.0, -2.0]], requires_grad=True)  # means 4 and -2
    loss = dom2.policy_loss(torch.tensor(3.0), proposed, recorded, config)
    torch.testing.assert_close(loss, torch.tensor(0.5 * 3 - 2 * (4 / 2 - 2 / 4) / 2))
    loss.backward()
    assert recorded.grad is None
    assert (proposed.grad < 0).all(), "more value is less loss, where values are negative too"


def test_an_agent_sees_its_own_observation_alone():
    policy, observation = lively(), torch.randn(6, 3, 3)
    other = observation.clone()
    other[:, 1] += 1.0
    acted = []
    for each in (observation, other):
        torch.manual_seed(0)
        acted.append(policy.act(History.start(each, 2)))
    moved = (acted[0] - acted[1]).abs().amax((0, 2))
    assert moved[[0, 2]].max() == 0
    assert moved[1] > 0.01
    values = policy.critics(observation, acted[0]) - policy.critics(other, acted[0])
    assert values[..., [0, 2]].abs().max() == 0


def test_an_agent_learns_from_its_own_records_alone():
    data, config = random_team(), replace(SMALL, steps=5, repeat_above=())
    shifted = data.rewards.clone(), data.actions.clone(), data.observations.clone()
    for column in shifted:
        column[:, 1] *= -0.5
    other = replace(data, rewards=shifted[0], actions=shifted[1], observations=shifted[2])
    one, two = dom2.train(data, config), dom2.train(other, config)
    state = {name: (one.state_dict()[name], two.state_dict()[name]) for name in one.state_dict()}
    for name, (a, b) in state.items():
        if "noise_model" in name and "weight" in name:
            assert torch.equal(a[[0, 2]], b[[0, 2]]), name
    name = "noise_model.network.body.last.weight"
    assert not torch.equal(state[name][0][1], state[name][1][1])


def test_both_modes_stay_without_and_the_better_one_wins_with_the_q_loss():
    # [DOM2 Eq. 5, Figure 1]
    imitator = drawn(dom2.train(two_modes(), replace(QUICK, value_weight=0.0)))
    improved = drawn(dom2.train(two_modes(), replace(QUICK, value_weight=0.4)))
    for actions in (imitator, improved):
        assert ((actions.abs() - 0.6).abs() < 0.2).float().mean() > 0.6  # 0.4 of uniform draws
    right = [(actions[..., 0] > 0).float().mean(0) for actions in (imitator, improved)]
    torch.testing.assert_close(right[0], torch.tensor([0.5, 0.5]), atol=0.15, rtol=0)
    torch.testing.assert_close(right[1], torch.tensor([0.9, 0.1]), atol=0.2, rtol=0)


def test_each_agent_finds_its_own_optimum():
    best = torch.tensor([0.5, -0.4, 0.0])
    actions = torch.rand(1000, 3, 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    data = team_data(actions, lambda a: -(a[..., 0] - best).square())  # negative values: the absolute value counts
    found = drawn(dom2.train(data, replace(QUICK, steps=150, batch=64, value_weight=2.0, repeat_above=())))
    torch.testing.assert_close(found[..., 0].mean(0), best, atol=0.2, rtol=0)


def test_copies_shift_the_policy_to_good_episodes():
    # [DOM2 Alg. 1]: even episodes push right and earn, odd ones left
    right = torch.arange(400) // 10 % 2 == 0
    data = team_data(torch.where(right, 0.5, -0.5)[:, None, None].expand(400, 2, 1).clone(), lambda a: a[..., 0])
    seen = {}
    for above in ((), (0.6, 0.6, 0.6)):  # 50 %, or four of five
        policy = dom2.train(data, replace(QUICK, steps=60, batch=64, value_weight=0.0, repeat_above=above))
        seen[above] = float((drawn(policy) > 0).float().mean())
    assert abs(seen[()] - 0.5) < 0.12
    assert seen[(0.6, 0.6, 0.6)] > 0.68


def test_conservatism_holds_unseen_actions_down():
    # [DOM2 Eq. 1]: only small actions are on record, and they earn nothing
    data = team_data(
        torch.rand(500, 2, 1, generator=torch.Generator().manual_seed(4)) * 0.4 - 0.2, lambda a: 0 * a[..., 0]
    )
    gaps = []
    for weight in (0.0, 1.0):
        policy = dom2.train(data, replace(QUICK, steps=60, conservative_weight=weight))
        state, far = torch.randn(64, 2, 3), torch.full((64, 2, 1), 0.9)
        with torch.no_grad():
            gaps.append(float((policy.critics(state, 0 * far) - policy.critics(state, far)).mean()))
    assert abs(gaps[0]) < 0.3
    assert gaps[1] > gaps[0] + 0.5


@pytest.mark.parametrize(
    "change", [{}, {"network": "mlp"}, {"imitate": 0.0}, {"repeat_above": ()}, {"value_weight": 0.0}]
)
def test_training_depends_on_its_arguments_alone(change):
    data, config = random_team(), replace(SMALL, **change)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    seen = []
    one = dom2.train(data, config, lambda step, losses: seen.append((step, losses)))
    assert torch.equal(torch.rand(1), expected)
    assert differing(one, dom2.train(data, config)) == []
    assert differing(one, dom2.train(data, replace(config, seed=1))) != []
    assert [step for step, _ in seen] == [1, 2, 3]
    told = {"imitation", "policy"} | ({"critics", "caution"} if config.value_weight else set())
    assert all(losses.keys() == told for _, losses in seen)
    assert words(config)["steps"] == 3


def test_every_ablation_changes_what_is_learned():
    # [DOM2 Figure 6]
    full = dom2.train(random_team(), SMALL)
    for change in ({"value_weight": 0.0}, {"imitate": 0.0}, {"repeat_above": ()}):
        assert differing(full, dom2.train(random_team(), replace(SMALL, **change))), change


def test_interrupted_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("safediffkit.learning.CHECKPOINT_EVERY", 4)
    data, config, file = random_team(), replace(SMALL, steps=10), tmp_path / "checkpoint"

    def stop(step, losses):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dom2.train(data, config, stop, checkpoint=file)
    went_on = []
    resumed = dom2.train(data, config, lambda step, losses: went_on.append(step), checkpoint=file)
    assert went_on[0] == 5
    assert differing(dom2.train(data, config), resumed) == []
    with pytest.raises(ValueError, match="another run"):
        dom2.train(data, replace(config, seed=2), checkpoint=file)


@pytest.mark.parametrize("network", ["unet", "mlp"])
def test_it_acts_the_same_after_saving(network, tmp_path):
    policy = dom2.train(random_team(), replace(SMALL, network=network))
    save_policy(policy, tmp_path / "p")
    again = load_policy(tmp_path / "p")
    history, acted = History.start(torch.randn(5, 3, 3), 2), []
    for either in (policy, again):
        torch.manual_seed(0)
        with torch.no_grad():
            acted.append(either.act(history))
    assert torch.equal(*acted)
    assert acted[0].shape == (5, 3, 2)
    assert acted[0].abs().max() <= 1
    assert again.arguments == policy.arguments


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="agents axis"):
        dom2.train(random_team().agent(0), SMALL)
    with pytest.raises(ValueError, match="of 2 agents; this policy is for 3"):
        lively().act(History.start(torch.zeros(1, 2, 3), 2))
    for change in ({"imitate": 0.0, "value_weight": 0.0}, {"conservative_weight": -1.0}, {"random_actions": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(SMALL, **change)
