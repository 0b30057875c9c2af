import subprocess
import sys
import warnings
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch

from safediffkit import rollout, score
from safediffkit.data.dataset import Dataset
from safediffkit.worlds.landmarks import (
    assignments,
    cooperative_navigation,
    coverage,
    landmarks,
    measures,
    near_the_nearest,
    predator_prey,
    simple_world,
)

TASKS = [landmarks, cooperative_navigation, predator_prey, simple_world]


def put(world, places, spots=(), velocities=()):
    """Place agents and landmarks by hand."""
    game = world.game
    for bodies, where in ((game.team, places), (game.world.landmarks, spots)):
        for body, at in zip(bodies, where, strict=False):
            body.state.p_pos = np.array(at, dtype=float)
    for agent, velocity in zip(game.team, velocities, strict=False):
        agent.state.p_vel = np.array(velocity, dtype=float)


def rest(world):
    """Let nobody push for a step."""
    return world.step(dict.fromkeys(world.agents, np.zeros(2)))


def play(world, seed, length=25):
    """Play an episode of random forces; give all that was seen."""
    random, seen = np.random.default_rng(7), [world.reset(seed=seed)[0]]
    for _ in range(length):
        seen.append(world.step({name: random.uniform(-1, 1, 2) for name in world.possible_agents})[0])
    return np.array([list(each.values()) for each in seen])


def spots(seen, count):
    """Read where the landmarks are from what the first agent sees."""
    return seen[0, 2:4] + seen[0, 4 : 4 + 2 * count].reshape(-1, 2)


def test_what_an_agent_sees_stands_in_the_promised_order():
    world = landmarks(agents=3, landmarks=2)
    world.reset(seed=0)
    put(world, [(0, 0), (1, 0), (0, 1)], [(0.5, 0.5), (-1, -1)], [(1, 2), (0, 0), (3, 4)])
    seen = world.game.observe()
    assert seen[0].tolist() == [1, 2, 0, 0, 0.5, 0.5, -1, -1, 1, 0, 0, 1]
    assert seen[2].tolist() == [3, 4, 0, 1, 0.5, -0.5, -1, -2, 0, -1, 1, -1]


def test_both_rewards_by_hand():
    gaps = np.array([[0.5, 2.0, 0.01], [0.25, 1.0, 4.0]])
    assert near_the_nearest(gaps).tolist() == [10, 4]
    assert coverage(gaps).tolist() == [15, 15]


@pytest.mark.parametrize(("make", "earned"), [(landmarks, [5 - 5, 10 - 10, 10 - 5]), (cooperative_navigation, None)])
def test_a_touch_takes_5_from_the_reward_and_costs_1(make, earned):
    world = make(agents=3, **({"landmarks": 3} if make is landmarks else {}))
    world.reset(seed=0)
    # a row in which only neighbours touch: their radii together are 0.3
    put(world, [(-0.29, 0), (0, 0), (0.29, 0)], [(-0.29, 0.2), (0, 0.02), (0.29, 0)])
    earned = earned or [5 + 10 + 10 - touched for touched in (5, 10, 5)]
    assert world.game.rewards() == pytest.approx(earned)
    # whoever touches two pays once; places move by the velocity of the step before, which was none
    assert [info["cost"] for info in rest(world)[4].values()] == [1, 1, 1]
    put(world, [(-1, 0), (0, 0), (0.29, 0)], [], [(0, 0)] * 3)
    assert [info["cost"] for info in rest(world)[4].values()] == [0, 1, 1]
    put(world, [(-1, 0), (0, 0), (0.31, 0)], [], [(0, 0)] * 3)
    assert [info["cost"] for info in rest(world)[4].values()] == [0, 0, 0]


@pytest.mark.parametrize("absent", ["copy", "far"])
def test_dismissed_landmarks_earn_nothing_and_are_seen_as_agreed(absent):
    world = landmarks(agents=1, landmarks=3, dismissed=1, absent=absent)
    world.reset(seed=0)
    put(world, [(0, 0)], [(0, 0), (0.5, 0), (0, 2)])
    world.game.dismiss(np.array([0]))
    assert world.game.rewards().tolist() == [2]
    # the landmark nearest to the dismissed one is the second
    seen = {"copy": [0.5, 0, 0.5, 0, 0, 2], "far": [0.5, 0, 0, 2, 4, 4]}
    assert world.game.observe()[0, 4:].tolist() == seen[absent]
    world.game.dismiss(np.array([1]))
    assert world.game.rewards().tolist() == [10]
    seen = {"copy": [0, 0, 0, 0, 0, 2], "far": [0, 0, 0, 2, 4, 4]}
    assert world.game.observe()[0, 4:].tolist() == seen[absent]


def test_every_landmark_is_dismissed_as_often_as_any_other():
    world = landmarks(dismissed=3)
    gone = np.array([(world.reset(seed=k), ~world.game.present)[1] for k in range(200)])
    assert (gone.sum(1) == 3).all()
    assert np.abs(gone.mean(0) - 0.5).max() < 0.15  # over four standard deviations


@pytest.mark.parametrize("make", TASKS)
def test_a_seed_decides_the_whole_episode(make):
    assert np.array_equal(play(make(), 3), play(make(), 3))
    assert not np.array_equal(play(make(), 3, 0), play(make(), 4, 0))
    used = make()
    play(used, 9)
    assert np.array_equal(play(used, 3), play(make(), 3))


def test_a_shift_leaves_the_start_as_it_is():
    standard, shifted = landmarks().reset(seed=5)[0], landmarks(v_min=0.3).reset(seed=5)[0]
    assert all(np.array_equal(standard[name], shifted[name]) for name in standard)
    one, three = landmarks(dismissed=1), landmarks(dismissed=3)
    seen = [np.array(list(world.reset(seed=5)[0].values())) for world in (one, three)]
    assert np.array_equal(seen[0][:, :4], seen[1][:, :4])
    assert (one.game.present >= three.game.present).all()


def test_with_a_start_every_episode_begins_alike():
    world = landmarks(start=8, dismissed=3, v_min=0.5)
    first, speeds = world.reset(seed=0)[0], world.speeds
    again = world.reset(seed=1)[0]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert np.array_equal(speeds, world.speeds)
    expected = landmarks(dismissed=3, v_min=0.5).reset(seed=8)[0]
    assert all(np.array_equal(first[name], expected[name]) for name in first)


def test_nobody_touches_at_the_start_and_landmarks_can_be_covered_without():
    world = landmarks(agents=3, landmarks=6)
    for seed in range(50):
        seen = np.array(list(world.reset(seed=seed)[0].values()))
        for places in (seen[:, 2:4], spots(seen, 6)):
            gaps = np.linalg.norm(places[:, None] - places, axis=-1)
            assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 0.3 - 1e-6
    with pytest.raises(ValueError, match="no room for 40 bodies"):
        landmarks(agents=2, landmarks=40)


def test_a_slower_agent_goes_its_share_of_the_way():
    world = landmarks(agents=2, landmarks=2, v_min=0.3)
    world.reset(seed=0)
    put(world, [(-5, 0), (5, 0)])
    start = world.game.observe()[:, 2]
    for _ in range(10):
        seen = world.step(dict.fromkeys(world.agents, np.array([1.0, 0.0])))[0]
    # force 5 for 0.1 s a step, a quarter of the speed lost a step; a place moves by the velocity of the step before
    velocities = [2 * (1 - 0.75**k) for k in range(10)]
    moved = [seen[name][2] for name in world.agents] - start
    assert moved == pytest.approx(0.1 * sum(velocities) * world.speeds, abs=1e-5)


def test_speeds_are_drawn_for_each_agent_and_episode():
    world = landmarks(agents=4, v_min=0.4)
    drawn = np.array([(world.reset(seed=k), world.speeds)[1] for k in range(100)])
    assert drawn.min() >= 0.4
    assert drawn.max() <= 1
    assert drawn.min() < 0.45
    assert drawn.max() > 0.95
    assert len(np.unique(drawn)) == 400
    assert (landmarks().reset(seed=0), landmarks().speeds)[1].tolist() == [1, 1, 1]


def test_a_slower_hunter_has_a_lower_top_speed_and_gets_it_back():
    world = predator_prey(v_min=0.4)
    for v_min in (0.4, 1.0):
        world.v_min = v_min
        world.reset(seed=1)
        assert [hunter.max_speed for hunter in world.game.team] == world.speeds.tolist()
    assert world.speeds.tolist() == [1, 1, 1]


def as_fives(force):
    """Say a force in [-1, 1] as mpe2's 5 numbers in [0, 1]."""
    x, y = np.asarray(force, np.float32)
    return np.array([0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)], np.float32)


@pytest.mark.parametrize("seed", range(5))  # in some of them agents touch from the start on
def test_cooperative_navigation_moves_as_mpe2s_simple_spread(seed):
    from mpe2 import simple_spread_v3

    stock, ours = simple_spread_v3.parallel_env(continuous_actions=True), cooperative_navigation()
    expected, seen = stock.reset(seed=seed)[0], ours.reset(seed=seed)[0]
    random = np.random.default_rng(0)
    for _ in range(25):
        for name in ours.possible_agents:
            ways = expected[name][4:10].reshape(3, 2)
            expected[name][4:10] = ways[np.linalg.norm(ways, axis=1).argsort()].ravel()
            assert np.array_equal(seen[name], expected[name][:14])
            assert (expected[name][14:] == 0).all()
        forces = {name: random.uniform(-1, 1, 2).astype(np.float32) for name in ours.agents}
        expected = stock.step({name: as_fives(force) for name, force in forces.items()})[0]
        seen = ours.step(forces)[0]


@pytest.mark.parametrize(
    ("make", "stock", "seen"), [(predator_prey, "simple_tag_v3", 16), (simple_world, "simple_world_comm_v3", 30)]
)
def test_a_chase_moves_and_rewards_as_mpe2s(make, stock, seen):
    theirs, ours = import_module(f"mpe2.{stock}").parallel_env(continuous_actions=True), make()
    expected, found = theirs.reset(seed=2)[0], ours.reset(seed=2)[0]
    random = np.random.default_rng(0)
    prey = [agent for agent in ours.game.world.agents if not agent.adversary]
    for _ in range(25):
        for name in ours.possible_agents:
            assert found[name].shape == (seen,)
            assert found[name] == pytest.approx(expected[name][:seen], abs=1e-5)
        forces = {name: random.uniform(-1, 1, 2).astype(np.float32) for name in ours.agents}
        moves = {name: as_fives(force) for name, force in forces.items()}
        found, rewards, *_ = ours.step(forces)
        # the prey's script has just acted: hand on what it did
        moves |= {agent.name: as_fives(agent.action.u / agent.accel) for agent in prey}
        for leader in set(moves) & {"leadadversary_0"}:
            moves[leader] = np.concatenate([moves[leader], np.zeros(4, np.float32)])
        expected, earned, *_ = theirs.step(moves)
        assert rewards == pytest.approx({name: earned[name] for name in rewards}, abs=1e-5)


def test_prey_flees_from_hunters_and_from_the_edge():
    world = predator_prey()
    world.reset(seed=0)
    (prey,) = (agent for agent in world.game.world.agents if not agent.adversary)

    def push(at, *hunters):
        put(world, hunters)
        prey.state.p_pos = np.array(at, dtype=float)
        return prey.action_callback(prey, world.game.world).u

    # three hunters in one spot weigh 3 / 0.5; walls on both sides cancel in the middle
    assert push((0, 0), *[(-0.5, 0)] * 3) == pytest.approx((4, 0))
    assert push((0, 0), (-0.5, 0), (0, -0.5), (9e9, 9e9)) == pytest.approx((4 / 2**0.5, 4 / 2**0.5))
    far = [(-9e9, 0)] * 3
    assert push((1.5, 0), *far) == pytest.approx((-4, 0), abs=1e-6)
    assert push((0, -0.99), *far) == pytest.approx((0, 4), abs=1e-6)


def test_the_prey_can_be_caught_and_that_is_no_cost():
    world = predator_prey()
    world.reset(seed=0)
    (prey,) = (agent for agent in world.game.world.agents if not agent.adversary)
    put(world, [(0, 0), (0.5, 0.5), (-0.5, 0.5)], [(0.9, -0.9), (-0.9, -0.9)])
    prey.state.p_pos = np.array((0.05, 0.0))
    _, rewards, _, _, infos = rest(world)
    assert list(rewards.values()) == [10, 10, 10]
    assert [info["cost"] for info in infos.values()] == [0, 0, 0]


@pytest.mark.parametrize("make", TASKS)
def test_the_worlds_keep_to_pettingzoos_rules(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PettingZoo warns of in its own worlds
        from pettingzoo import ParallelEnv
        from pettingzoo.test.parallel_test import parallel_api_test
    assert isinstance(make(), ParallelEnv)
    parallel_api_test(make(), 60)


def test_an_episode_ends_by_the_clock_and_never_truly():
    world = landmarks(steps=2)
    world.reset(seed=0)
    assert not any(rest(world)[3].values())
    _, _, ends, cuts, _ = rest(world)
    assert all(cuts.values())
    assert not any(ends.values())
    assert world.agents == []
    with pytest.raises(ValueError, match="reset"):
        world.step({})


def test_forces_are_clipped_and_must_be_complete():
    strong, full = landmarks(agents=1), landmarks(agents=1)
    for world, force in ((strong, 9.0), (full, 1.0)):
        world.reset(seed=0)
        world.step({"agent_0": np.full(2, force)})
    assert np.array_equal(strong.game.observe(), full.game.observe())
    for bad in ({}, {"agent_0": np.zeros(3)}, {"agent_0": np.array([np.nan, 0])}):
        with pytest.raises(ValueError, match="2 finite numbers"):
            full.step(bad)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"agents": 0}, "there must be an agent"),
        ({"landmarks": 3, "dismissed": 3}, "not dismissed"),
        ({"dismissed": -1}, "dismissed=-1"),
        ({"absent": "gone"}, "'copy' of another"),
        ({"v_min": 0.0}, "lowest speed"),
        ({"v_min": 1.5}, "lowest speed"),
        ({"steps": 0}, "steps=0"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_bad_settings_are_named(keywords, message):
    # what is no Literal at all would not get past the shape checks of the tests
    unchecked = getattr(landmarks, "__wrapped__", landmarks) if "absent" in keywords else landmarks
    with pytest.raises(ValueError, match=message):
        unchecked(**keywords)


def test_without_mpe2_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpe2", None)
    for name in [name for name in sys.modules if name.startswith(("mpe2.", "safediffkit.worlds.particles"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"mpe2.* is missing.*safediffkit\[teams\]"):
        landmarks()


def test_no_simulator_is_loaded_before_a_world_is_made():
    rooms = ", ".join(f"safediffkit.worlds.{name}" for name in ("landmarks", "mamujoco", "rollout"))
    heavy = "{'mpe2', 'pettingzoo', 'pygame', 'mujoco', 'gymnasium_robotics'}"
    code = f"import sys, {rooms}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_assignments_by_hand():
    world = landmarks(agents=3, landmarks=3)
    world.reset(seed=0)
    put(world, [(1, 0), (0, 0.1), (-0.7, 0)], [(0, 0), (1, 0), (-1, 0)])
    seen = torch.from_numpy(world.game.observe())
    assert assignments(seen, 3).tolist() == [2, 1, -1]
    assert assignments(seen, 3, radius=0.35).tolist() == [2, 1, 0]
    assert assignments(seen.expand(4, 5, 3, -1), 3).shape == (4, 5, 3)
    world.game.dismiss(np.array([0]))
    put(world, [(1, 0), (0, 0.1), (-0.7, 0)])
    assert assignments(torch.from_numpy(world.game.observe()), 3)[1] == -1, "nobody is on a dismissed landmark"
    with pytest.raises(ValueError, match="6 landmarks need observations of 16"):
        assignments(seen, 6)


class ToLandmark:
    """Send agent j to the j-th landmark from the left: a pull like a spring, and a brake."""

    def act(self, history):
        seen = history.observation
        agents = torch.arange(seen.shape[1])
        ways = seen[..., 4:16].unflatten(-1, (6, 2))
        order = ways[..., 0].argsort(-1)[:, agents, agents]
        ways = ways[torch.arange(len(ways))[:, None], agents, order]
        return 4 * ways - 1.5 * seen[..., :2]


def test_a_scripted_team_reaches_its_landmarks_and_score_sums_over_it():
    data = rollout(ToLandmark(), partial(landmarks, start=3), episodes=2, budget=4, seed=0)
    assert data.observations.shape == (50, 3, 20)
    assert data.actions.shape == (50, 3, 2)
    assert data.actions.abs().max() <= 1
    assert data.rewards.shape == data.costs.shape == (50, 3)
    assert not data.terminated.any()
    last = data.next_observations[24::25]
    assert assignments(last).tolist() == [[0, 1, 2]] * 2
    assert score(data, budget=4).reward.mean == pytest.approx(float(data.rewards.sum()) / 2)


def test_a_world_and_a_function_that_makes_it_give_the_same_episodes():
    used = predator_prey()
    play(used, 0, 5)
    by_world, by_function = (rollout(ToPrey(), w, episodes=3, budget=0, seed=1) for w in (used, predator_prey))
    assert torch.equal(by_world.next_observations, by_function.next_observations)
    assert torch.equal(by_world.rewards, by_function.rewards)


class ToPrey:
    """Run at the prey: the last but two numbers seen are the way to it."""

    def act(self, history):
        return 9 * history.observation[..., -4:-2]


def test_a_picture_shows_every_body_at_its_place():
    world = landmarks(agents=1, landmarks=2, dismissed=1, render_mode="rgb_array")
    world.reset(seed=0)
    put(world, [(0, 0)], [(0.6, 0), (0, 0.6)])
    world.game.dismiss(np.array([1]))
    image = world.render()
    assert image.shape == (240, 240, 3)
    # 100 pixels a unit, the origin in the middle, y upwards
    assert image[120, 120].tolist() == [89, 89, 216]
    assert image[120, 180].tolist() == [63, 63, 63]
    assert image[60, 120].tolist() == [229, 229, 229]
    assert (image == 255).all(-1).mean() > 0.9
    assert landmarks().render() is None


def test_half_cheetah_has_two_like_agents_and_one_reward(tmp_path, monkeypatch):
    from safediffkit.worlds.mamujoco import half_cheetah

    class Push:
        def act(self, history):
            return torch.full((*history.observation.shape[:-1], 3), 0.5)

    monkeypatch.chdir(tmp_path)
    by_world, by_function = (rollout(Push(), w, episodes=2, budget=0) for w in (half_cheetah(steps=9), _short_cheetah))
    assert by_world.observations.shape == (18, 2, 12)
    assert by_world.actions.shape == (18, 2, 3)
    assert torch.equal(by_world.rewards[:, 0], by_world.rewards[:, 1])
    assert torch.equal(by_world.observations, by_function.observations)
    assert not torch.equal(by_world.observations[0], by_world.observations[9])
    assert not by_world.terminated.any()
    assert not list(tmp_path.iterdir()), "MuJoCo wrote a log"
    with pytest.raises(ValueError, match="steps=0"):
        half_cheetah(steps=0)


def _short_cheetah():
    from safediffkit.worlds.mamujoco import half_cheetah

    return half_cheetah(steps=9)


def test_measures_say_how_safe_and_in_how_many_ways():
    """Three agents far apart but for one touch, each at the end of two episodes on a landmark, or all on one."""
    spots = torch.tensor([[-0.8, 0], [-0.4, 0], [0, 0], [0.4, 0], [0.8, 0], [0, 0.9]])

    def seen(*places):
        at = torch.tensor(places)
        ways = (spots - at[:, None]).flatten(1)
        mates = torch.zeros(3, 4)
        return torch.cat([torch.zeros(3, 2), at, ways, mates], 1)

    start = seen((0.0, -0.9), (0.5, -0.9), (-0.5, -0.9))
    ends = [
        seen((-0.8, 0.0), (0.0, 0.0), (0.8, 0.0)),
        seen((0.8, 0.0), (0.0, 0.0), (-0.8, 0.0)),
        seen((0.8, 0.0), (0.0, 0.0), (-0.8, 0.0)),
        seen((0.4, 0.0), (0.5, 0.0), (-0.8, 0.0)),  # two share one, and overlap by 0.2 m
    ]
    costs = torch.zeros(4, 3)
    costs[3, :2] = 1
    data = Dataset(
        observations=start.expand(4, 3, 20), actions=torch.zeros(4, 3, 2), rewards=torch.zeros(4, 3), costs=costs,
        next_observations=torch.stack(ends), terminated=torch.zeros(4, dtype=torch.bool), episode=torch.arange(4),
        provenance="made for a test",
    )  # fmt: skip
    told = measures(data)
    assert told["safe"] == pytest.approx(10 / 12)
    assert told["gap"] == pytest.approx((3 * (0.8 - 0.3) + (0.1 - 0.3)) / 4)
    assert told["covered"] == pytest.approx(3 / 4)
    assert told["ways"] == 2
