from dataclasses import replace

import pytest
import torch
from builders import make_team

from safediffkit.baselines import offline_agents as rivals
from safediffkit.data.dataset import Dataset
from safediffkit.policy import History

TRAIN = {"ma-cql": rivals.train_cql, "omar": rivals.train_omar, "ma-sfbc": rivals.train_sfbc}
SMALL = {
    "ma-cql": rivals.CQLConfig(steps=5, hidden=8, batch=32, random_actions=3),
    "omar": rivals.OMARConfig(steps=5, hidden=8, batch=32, random_actions=3, samples=4),
    "ma-sfbc": rivals.SfBCConfig(steps=5, hidden=8, batch=32, levels=4, candidates=4, target_candidates=2),
}
FAST = {"hidden": 32, "batch": 128, "discount": 0.5, "learning_rate": 6e-3, "target_rate": 0.1}
SEARCH = {"rounds": 3, "samples": 10, "spread": 2.0, "sharpness": 100.0}


@pytest.fixture(params=TRAIN)
def method(request):
    return TRAIN[request.param], SMALL[request.param]


def bandits(actions, reward, seed=0):
    """A team whose observations say nothing, from its actions and what they earn."""
    count, agents, _ = actions.shape
    path = torch.randn(count + 1, agents, 3, generator=torch.Generator().manual_seed(seed))
    return Dataset(
        observations=path[:-1],
        actions=actions,
        rewards=reward(actions),
        costs=torch.zeros(count, agents),
        next_observations=path[1:],
        terminated=torch.zeros(count, dtype=torch.bool),
        episode=torch.arange(count) // 10,
        provenance="made for a test",
    )


def uniform(count=1000, agents=3, seed=3):
    return torch.rand(count, agents, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def acted(policy, agents, worlds=256):
    torch.manual_seed(0)
    with torch.no_grad():
        return policy.act(History.start(torch.randn(worlds, agents, 3), 1))


def test_an_agent_sees_its_own_observation_alone(method):
    train, config = method
    policy, observation = train(make_team(), config), torch.randn(6, 3, 3)
    for weight in policy.parameters():  # as if trained long
        torch.nn.init.normal_(weight, std=0.5)
    other = observation.clone()
    other[:, 1] += 1.0
    actions = []
    for each in (observation, other):
        torch.manual_seed(0)
        with torch.no_grad():
            actions.append(policy.act(History.start(each, 2)))
    moved = (actions[0] - actions[1]).abs().amax((0, 2))
    assert moved[[0, 2]].max() == 0
    assert moved[1] > 0.01
    assert actions[0].abs().max() < 1 + 1e-5


def test_an_agent_learns_from_its_own_records_alone(method):
    train, config = method
    data = make_team()
    columns = {name: getattr(data, name).clone() for name in ("rewards", "actions", "observations")}
    for column in columns.values():
        column[:, 1] *= -0.5
    one, two = (train(each, config).state_dict() for each in (data, replace(data, **columns)))
    own = [name for name in one if name.endswith("weight") and "critics" not in name]
    assert own
    for name in own:
        assert torch.equal(one[name][[0, 2]], two[name][[0, 2]]), name
    for name in (name for name in one if "critics" in name):  # both twins of three agents
        assert torch.equal(one[name][[0, 2, 3, 5]], two[name][[0, 2, 3, 5]]), name
    assert any(not torch.equal(one[name][1], two[name][1]) for name in own)


def test_each_agent_of_ma_cql_goes_where_it_earns():
    data = bandits(uniform(), lambda a: a[..., 0] * torch.tensor([1.0, -1.0, 1.0]))
    policy = rivals.train_cql(data, rivals.CQLConfig(steps=60, **FAST, random_actions=3))
    torch.testing.assert_close(acted(policy, 3)[..., 0].mean(0), torch.tensor([1.0, -1.0, 1.0]), atol=0.1, rtol=0)


def test_each_agent_of_omar_finds_its_own_optimum():
    best = torch.tensor([0.4, -0.3, 0.0])
    data = bandits(uniform(), lambda a: -(a[..., 0] - best).square())
    fast = FAST | {"batch": 64, "learning_rate": 3e-3}
    policy = rivals.train_omar(data, rivals.OMARConfig(steps=300, **fast, random_actions=1, rectify=0.5))
    torch.testing.assert_close(acted(policy, 3)[..., 0].mean(0), best, atol=0.2, rtol=0)


def test_the_search_finds_the_top_of_a_quadratic():
    # [OMAR]
    torch.manual_seed(0)
    best = torch.rand(50, 2, 2) * 1.6 - 0.8

    def values(actions):
        return -(actions - best).square().sum(-1)

    proposed = torch.zeros_like(best)
    found = rivals.rectified(values, proposed, **SEARCH | {"rounds": 30, "samples": 100})
    torch.testing.assert_close(found, best, atol=0.12, rtol=0)
    seen = []

    def watched(actions):
        seen.append(values(actions))
        return seen[-1]

    quick = rivals.rectified(watched, proposed, **SEARCH)
    torch.testing.assert_close(values(quick), torch.cat(seen).amax(0))  # the best of all rounds
    assert (values(quick) >= values(proposed)).all()
    assert (values(quick) > values(proposed)).float().mean() > 0.9
    assert -values(quick).mean() < 0.12  # 30 draws from the whole box: 0.04 at the best, 0.6 for the mean of one
    torch.testing.assert_close(rivals.rectified(values, best, **SEARCH), best)  # nothing is better


def test_the_search_finds_the_higher_of_two_hills():
    def values(actions):
        hills = torch.tensor([0.5, 1.0]) * (-((actions - torch.tensor([-0.6, 0.6])) / 0.2).square()).exp()
        return hills.sum(-1)

    stuck = torch.full((100, 2, 1), -0.6)
    slope = torch.autograd.functional.jacobian(lambda a: values(a).sum(), stuck)
    assert slope.abs().max() < 1e-3  # a gradient would stay where it is
    torch.manual_seed(0)
    found = rivals.rectified(values, stuck, **SEARCH | {"samples": 40})
    assert ((found - 0.6).abs() < 0.25).float().mean() > 0.9


def test_the_next_round_is_drawn_about_the_weighed_mean():
    # values of a line, 10 a: of draws at -1 and 1 the weights are those of exp(+-10 sharpness)
    seen = []

    def values(actions):
        seen.append(actions)
        return 10 * actions[..., 0]

    torch.manual_seed(0)
    rivals.rectified(values, torch.zeros(1, 1, 1), rounds=2, samples=20_000, spread=1.0, sharpness=0.05)
    _, first, second = seen
    weights = (0.05 * 10 * first).exp()
    mean = float((weights * first).sum() / weights.sum())
    spread = float((first - mean).square().mean().sqrt())
    expected = (mean + spread * torch.randn(100_000)).clamp(-1, 1)
    assert mean > 0.1
    torch.testing.assert_close(second.mean(), expected.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(second.std(), expected.std(), atol=0.02, rtol=0)


def test_the_actors_loss_by_hand():
    # [OMAR]
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    proposed = torch.tensor([[[0.0, 0.0], [0.5, 0.0]]], requires_grad=True)
    better = torch.tensor([[[1.0, 1.0], [0.5, 1.0]]], requires_grad=True)
    loss = rivals.actor_loss(values, proposed, better, 0.25)
    torch.testing.assert_close(loss, torch.tensor(-0.75 * 1.5 + 0.25 * 3 / 4))
    loss.backward()
    assert better.grad is None
    assert (values.grad < 0).all()
    assert (proposed.grad <= 0).all()  # towards the better ones
    torch.testing.assert_close(rivals.actor_loss(values, proposed, better, 0.0), -values.mean())


def test_values_are_mean_rewards_where_rewards_are_constant():
    data = bandits(uniform(400, 2), lambda a: torch.tensor([3.0, -2.0]).expand(len(a), 2).clone())
    policy = rivals.train_cql(data, rivals.CQLConfig(steps=120, **FAST, conservative_weight=0.0))
    with torch.no_grad():
        values = policy.critics(policy.scale(data.observations.flatten(1)).view(-1, 2, 3), data.actions)
    torch.testing.assert_close(values.mean(1), torch.tensor([[1.0, -1.0]] * 2), atol=0.1, rtol=0)


def test_conservatism_holds_unseen_actions_down():
    # only small actions are on record, and they earn nothing [CQL]
    data = bandits(0.2 * uniform(500, 2), lambda a: 0 * a[..., 0])
    gaps = []
    for weight in (0.0, 1.0):
        policy = rivals.train_cql(data, rivals.CQLConfig(steps=60, **FAST, conservative_weight=weight))
        state, far = torch.randn(64, 2, 3), torch.full((64, 2, 1), 0.9)
        with torch.no_grad():
            gaps.append(float((policy.critics(state, 0 * far) - policy.critics(state, far)).mean()))
    assert abs(gaps[0]) < 0.3
    assert gaps[1] > gaps[0] + 0.5


def test_candidates_are_drawn_in_proportion_to_the_exponential_of_their_value():
    # [SfBC]
    torch.manual_seed(0)
    values = torch.tensor([[0.1, 0.3], [0.4, 0.0]]).expand(40_000, 2, 2)  # batch, plans, agents
    candidates = torch.tensor([-1.0, 1.0])[None, :, None, None].expand(40_000, 2, 2, 1)
    for sharpness in (0.0, 3.0):
        share = (rivals.resampled(candidates, values, sharpness) > 0).float().mean((0, 2))
        expected = torch.sigmoid(sharpness * torch.tensor([0.3, -0.3]))
        torch.testing.assert_close(share, expected, atol=0.01, rtol=0)
    # agents draw apart
    both = rivals.resampled(candidates, 0 * values, 1.0)[..., 0]
    assert abs(float((both[:, 0] * both[:, 1]).mean())) < 0.02


def test_the_soft_value_by_hand():
    values = torch.tensor([[[0.0], [1.0]]])
    torch.testing.assert_close(rivals.soft_value(values, 0.0), torch.tensor([[0.5]]))
    torch.testing.assert_close(rivals.soft_value(values, 2.0), torch.tensor([[2.0]]).sigmoid())
    torch.testing.assert_close(rivals.soft_value(values, 100.0), torch.tensor([[1.0]]))


def test_sfbc_keeps_both_modes_and_takes_the_better_whose_value_it_knows():
    # each agent pushes hard to either side, as often; agent 0 earns on the right, agent 1 on the left
    draw = torch.Generator().manual_seed(2)
    side = torch.randint(2, (1000, 2, 1), generator=draw) * 2 - 1
    actions = 0.6 * side + 0.05 * torch.randn(1000, 2, 1, generator=draw)
    data = bandits(actions, lambda a: torch.stack([a[:, 0, 0] > 0, a[:, 1, 0] < 0], 1).float())
    config = rivals.SfBCConfig(steps=180, network="mlp", levels=6, target_candidates=4, **FAST)
    policy = rivals.train_sfbc(data, config)
    with torch.no_grad():
        drawn, _ = policy.judged(torch.randn(64, 2, 3), 8)
        assert ((drawn.abs() - 0.6).abs() < 0.2).float().mean() > 0.6
        torch.testing.assert_close((drawn > 0).float().mean((0, 1, 3)), torch.tensor([0.5, 0.5]), atol=0.2, rtol=0)
        chosen = (acted(policy, 2)[..., 0] > 0).float().mean(0)
        torch.testing.assert_close(chosen, torch.tensor([1.0, 0.0]), atol=0.1, rtol=0)
        # who always picks well earns 1 + 0.5 + 0.25 + ... = 2 from a good action on, 1 from a bad one, in returns'
        # spread; whoever picks as was recorded 1.5 and 0.5
        unit = data.return_to_go(0.5).std(0)
        state = torch.randn(64, 2, 3)
        good = torch.tensor([[0.6], [-0.6]]).expand(64, 2, 1)
        values = [policy.critics(state, action).mean((0, 1)) * unit for action in (good, -good)]
    torch.testing.assert_close(torch.stack(values), torch.tensor([[2.0, 2.0], [1.0, 1.0]]), atol=0.25, rtol=0)


def test_what_does_not_fit_is_refused(method):
    train, config = method
    with pytest.raises(ValueError, match="agents axis"):
        train(make_team().agent(0), config)
    with pytest.raises(ValueError, match="of 2 agents; this policy is for 3"):
        train(make_team(), config).act(History.start(torch.zeros(1, 2, 3), 2))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (rivals.CQLConfig, {"conservative_weight": -1.0}),
        (rivals.CQLConfig, {"random_actions": 0}),
        (rivals.OMARConfig, {"smoothing": -0.1}),
        (rivals.OMARConfig, {"rectify": 1.5}),
        (rivals.OMARConfig, {"samples": 0}),
        (rivals.SfBCConfig, {"candidates": 0}),
        (rivals.SfBCConfig, {"sharpness": -1.0}),
    ],
)
def test_settings_without_sense_are_named(kind, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        kind(**change)
