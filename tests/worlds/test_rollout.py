import gymnasium
import numpy as np
import pytest
import torch

from safediffkit import rollout, score
from safediffkit.worlds.rollout import Estimate, measures, shifted_worlds


class Counter(gymnasium.Env):
    """Observation (seed, step); costs the action's size; ends truly after 2 + seed steps, or is cut at 5."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.length, self.step_count = 2 + seed % 100, 0
        return self._see(), {}

    def _see(self):
        return np.array([self.length, self.step_count], np.float32)

    def step(self, action):
        self.step_count += 1
        info = {"cost": abs(float(action[0]))}
        return self._see(), 1.0, self.step_count == self.length, self.step_count == 5, info


class Spy:
    def __init__(self, action=0.5, noise=False):
        self.seen, self.action, self.noise = [], action, noise

    def act(self, history):
        self.seen.append(history)
        action = torch.full((len(history.budget), 1), self.action)
        return action + torch.rand_like(action) if self.noise else action


def test_columns_that_run_out_of_room_grow(monkeypatch):
    def recorded():
        spy = Spy(noise=True)
        return rollout(spy, Counter, episodes=5, budget=3, seed=100), spy.seen[-1]

    (data, last), _ = recorded(), monkeypatch.setattr("safediffkit.worlds.rollout._ROOM", 2)
    again, last_again = recorded()
    for name in ("observations", "actions", "rewards", "costs", "next_observations", "terminated", "episode"):
        assert torch.equal(getattr(data, name), getattr(again, name))
    assert torch.equal(last.observations, last_again.observations)
    assert torch.equal(last.actions, last_again.actions)


def test_episodes_of_unequal_length_are_recorded_whole_and_apart():
    spy = Spy()
    data = rollout(spy, Counter, episodes=5, budget=3, seed=100)
    lengths = torch.bincount(data.episode).tolist()
    assert lengths == [2, 3, 4, 5, 5]  # episode 3 ends truly at its cut; episode 4 is cut
    assert data.episode_returns().tolist() == lengths
    assert data.terminated.nonzero()[:, 0].tolist() == [1, 4, 8, 13]
    for k in range(5):
        rows = data.episode == k
        assert torch.equal(data.observations[rows][1:], data.next_observations[rows][:-1])
        assert (data.observations[rows][:, 0] == 2 + k).all()
    assert len(spy.seen) == 5, "one call a step serves every world"


def test_the_policy_sees_the_whole_history():
    spy = Spy()
    rollout(spy, Counter, episodes=2, budget=3, seed=102)
    first, last = spy.seen[0], spy.seen[-1]
    assert first.observations.shape == (2, 1, 2)
    assert first.actions.shape == (2, 0, 1)
    assert first.budget_left.tolist() == [3, 3]
    assert last.observations.shape == (2, 5, 2)
    assert last.actions.shape == (2, 4, 1)
    assert last.budget_left.tolist() == [1, 1]
    assert last.observation[:, 1].tolist() == [4, 4]


def test_a_finished_world_keeps_its_place_and_spends_no_more():
    spy = Spy()
    rollout(spy, Counter, episodes=2, budget=3, seed=100)
    assert spy.seen[-1].observation[:, 1].tolist() == [2, 2]  # world 0 ended after step 2
    spy = Spy()
    rollout(spy, Counter, episodes=3, budget=3, seed=100)
    assert spy.seen[-1].budget_left.tolist() == [2.0, 1.5, 1.5]


def test_actions_are_clipped_and_recorded_as_clipped():
    data = rollout(Spy(7.0), Counter, episodes=1, budget=0, seed=100)
    assert data.actions.unique().tolist() == [1]
    assert data.costs.tolist() == [1, 1]


def test_the_seed_decides_and_the_caller_keeps_its_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    one, two, other = (rollout(Spy(-1.0, True), Counter, episodes=2, budget=0, seed=s) for s in (100, 100, 101))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one.actions, two.actions)
    assert not torch.equal(one.actions[:2], other.actions[:2])


def test_pixel_world_takes_discrete_actions():
    from safediffkit.worlds.pixel_world import PixelWorld, white_path

    moves = torch.tensor([float(move) for move in white_path(3)])

    class Walk:
        def act(self, history):
            return moves[history.actions.shape[1]].expand(len(history.budget), 1)

    data = rollout(Walk(), lambda: PixelWorld(3), episodes=2, budget=0, seed=0)
    assert data.costs.tolist() == [0, 0, 0, 1] * 2
    assert data.terminated.tolist() == [False, False, False, True] * 2


@pytest.mark.parametrize(
    ("policy", "keywords", "message"),
    [
        (Spy(), {"episodes": 0}, "at least 1 episode"),
        (Spy(), {"budget": -1}, "budget of 0 or more"),
        (Spy(float("nan")), {}, "finite"),
    ],
)
def test_bad_input_is_named(policy, keywords, message):
    with pytest.raises(ValueError, match=message):
        rollout(policy, Counter, **({"episodes": 1, "budget": 0, "seed": 100} | keywords))


def test_a_misspelt_task_names_the_right_one():
    with pytest.raises(ValueError, match="did you mean 'OfflineBallCircle-v0'"):
        rollout(Spy(), "OfflineBalCircle-v0", episodes=1, budget=0)


def test_bullet_by_id_and_by_environment_give_the_same_episodes():
    from safediffkit.worlds.bullet import make

    class Push:
        def act(self, history):
            return torch.tensor([1.0, 0.2]).expand(len(history.budget), 2)

    by_id = rollout(Push(), "OfflineBallRun-v0", episodes=2, budget=20, seed=4)
    by_environment = rollout(Push(), make("OfflineBallRun-v0"), episodes=2, budget=20, seed=4)
    assert len(by_id) == 200
    assert torch.equal(by_id.observations, by_environment.observations)
    alone = rollout(Push(), "OfflineBallRun-v0", episodes=1, budget=20, seed=5)
    assert torch.equal(by_id.where(by_id.episode == 1).observations, alone.observations)


class Pair:
    """Two agents that see (seed, step, own number) and pay their action's size; they leave after 2 and 4 steps."""

    possible_agents = ["left", "right"]  # noqa: RUF012
    leave = (2, 4)
    limit = 9
    act = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def observation_space(self, agent):
        return gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def action_space(self, agent):
        return self.act

    def reset(self, seed=None, options=None):
        self.agents, self.seed, self.now, self.asked = self.possible_agents[:], seed, 0, []
        return self._see(), {}

    def _see(self):
        return {name: np.array([self.seed, self.now, j]) for j, name in enumerate(("left", "right"))}

    def step(self, actions):
        self.now += 1
        self.asked.append(actions)
        last = dict(zip(self.possible_agents, self.leave, strict=True))
        here, seen = self.agents, self._see()
        ends, cuts = (dict.fromkeys(here, self.now == t) for t in (0, self.limit))
        ends |= {n: self.now == last[n] for n in here}
        self.agents = [n for n in here if not (ends[n] or cuts[n])]
        infos = {n: {"cost": abs(float(actions[n].sum()))} for n in here}
        return {n: seen[n] for n in here}, {n: float(self.now) for n in here}, ends, cuts, infos

    def close(self):
        pass


class Team:
    """Agent j of the pair asks for (j + 1) / 4."""

    def __init__(self):
        self.seen = []

    def act(self, history):
        self.seen.append(history)
        return torch.tensor([[0.25], [0.5]]).expand(len(history.budget), 2, 1)


@pytest.mark.parametrize("world", [Pair, Pair()], ids=["function", "world"])
def test_a_team_has_an_agents_axis_in_every_column_but_two(world):
    policy = Team()
    data = rollout(policy, world, episodes=2, budget=3, seed=7)
    assert data.observations.shape == data.next_observations.shape == (8, 2, 3)
    assert data.observations[0].tolist() == [[7, 0, 0], [7, 0, 1]]
    assert data.observations[4].tolist() == [[8, 0, 0], [8, 0, 1]]
    assert data.actions.tolist() == [[[0.25], [0.5]]] * 8
    # who has left sees what it last saw, and neither earns nor pays
    assert data.observations[:4, 0, 1].tolist() == [0, 1, 2, 2]
    assert data.rewards[:4].tolist() == [[1, 1], [2, 2], [0, 3], [0, 4]]
    assert data.costs[:4].tolist() == [[0.25, 0.5], [0.25, 0.5], [0, 0.5], [0, 0.5]]
    assert data.terminated.nonzero()[:, 0].tolist() == [3, 7]
    assert data.episode.tolist() == [0] * 4 + [1] * 4
    last = policy.seen[-1]
    assert last.observations.shape == (2, 4, 2, 3)
    assert last.actions.shape == (2, 3, 2, 1)
    assert last.budget_left.tolist() == [1, 1]
    assert score(data, budget=2).reward.mean == 13
    assert score(data, budget=2).cost.mean == 2.5


def test_a_team_that_is_cut_has_no_true_end(monkeypatch):
    monkeypatch.setattr(Pair, "limit", 3)
    data = rollout(Team(), Pair, episodes=1, budget=0)
    assert len(data) == 3
    assert not data.terminated.any()


def test_each_agents_action_is_clipped_to_its_own_box(monkeypatch):
    boxes = {"left": gymnasium.spaces.Box(-1.0, 0.125, (1,)), "right": gymnasium.spaces.Box(-1.0, 1.0, (1,))}
    monkeypatch.setattr(Pair, "action_space", lambda self, agent: boxes[agent])
    data = rollout(Team(), Pair, episodes=1, budget=0)
    assert data.actions[:, :, 0].tolist() == [[0.125, 0.5]] * 4


def test_a_team_takes_discrete_actions(monkeypatch):
    monkeypatch.setattr(Pair, "act", gymnasium.spaces.Discrete(5))
    monkeypatch.setattr(Pair, "leave", (1, 2))
    asked = []

    def step(self, actions, stock=Pair.step):
        asked.append(actions)
        return stock(self, {name: np.array([move]) for name, move in actions.items()})

    monkeypatch.setattr(Pair, "step", step)

    class Move:
        def act(self, history):
            return torch.tensor([[3.0], [4.0]]).expand(len(history.budget), 2, 1)

    data = rollout(Move(), Pair, episodes=1, budget=0)
    assert asked == [{"left": 3, "right": 4}, {"right": 4}]
    assert all(type(move) is int for moves in asked for move in moves.values())
    assert data.costs.tolist() == [[3, 4], [0, 4]]


def test_a_team_of_unlike_agents_and_wrong_actions_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"shape \(1, 1\); finite ones of \(1, 2, 1\)"):
        rollout(Spy(), Pair, episodes=1, budget=0)
    monkeypatch.setattr(Pair, "action_space", lambda self, agent: gymnasium.spaces.Box(-1, 1, (1 + (agent == "left"),)))
    with pytest.raises(ValueError, match=r"'left', \(3,\), \(2,\)"):
        rollout(Team(), Pair, episodes=1, budget=0)


def test_score_by_hand():
    data = rollout(Spy(), Counter, episodes=4, budget=0, seed=100)  # costs 1, 1.5, 2, 2.5
    result = score(data, budget=1.5)
    assert result.cost.mean == 1.75
    assert result.within_budget.mean == 0.5
    assert result.normalised_cost is None
    assert result.cost.low < 1.75 < result.cost.high
    assert result.cost.low >= 1
    assert result.cost.high <= 2.5


def test_score_agrees_with_dsrl():
    from safediffkit.worlds.bullet import make

    data = rollout(Spy(), Counter, episodes=4, budget=0, seed=100)
    world = make("OfflineBallCircle-v0").unwrapped
    for budget in (0, 20):
        world.set_target_cost(budget)
        reward, cost = world.get_normalized_score(3.5, 1.75)
        result = score(data, "OfflineBallCircle-v0", budget=budget)
        assert result.normalised_reward.mean == pytest.approx(reward)
        assert result.normalised_cost.mean == pytest.approx(cost)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    from safediffkit.worlds.rollout import _estimate

    rng = np.random.default_rng(0)
    covered = [(e := _estimate(rng.normal(size=20))).low <= 0 <= e.high for _ in range(200)]
    assert 0.88 <= np.mean(covered) <= 0.98


def test_equal_episodes_need_no_bootstrap():
    data = rollout(Spy(), Counter, episodes=1, budget=0, seed=100)
    assert score(data, budget=0).cost == Estimate(1.0, 1.0, 1.0)


def test_score_refuses_nothing_and_negative_budgets():
    data = rollout(Spy(), Counter, episodes=1, budget=0, seed=100)
    with pytest.raises(ValueError, match="budget"):
        score(data, budget=-1)
    with pytest.raises(ValueError, match="recorded steps"):
        score(data.where(torch.zeros(2, dtype=torch.bool)), budget=1)


def test_shifted_worlds_change_what_the_task_says_and_take_starts_in_turn():
    make = shifted_worlds("landmarks-expert", "four starts, three dismissed")
    worlds = [make() for _ in range(5)]
    assert [world.start for world in worlds] == [0, 1, 2, 3, 0]
    assert all(world.game.dismissed == 3 for world in worlds)
    assert shifted_worlds("cooperative-navigation-medium", "slow")().v_min == 0.3
    with pytest.raises(ValueError, match="no shift 'fast'; it has three dismissed, three far"):
        shifted_worlds("landmarks-expert", "fast")
    with pytest.raises(ValueError, match="it has none"):
        shifted_worlds("OfflineBallRun-v0", "slow")


def test_only_some_worlds_tell_more_than_sums():
    from safediffkit import load

    data = load("merge-mixed-safety")
    told = measures(data.where(data.episode < 20), "merge-mixed-safety")
    shares = {name: told[name] for name in ("leader first", "follower first", "slow", "crash")}
    assert sum(shares.values()) == pytest.approx(1)
    assert 0 < told["safe"] < 1
    assert measures(data, "OfflineBallRun-v0") == {}
