import subprocess
import sys

import numpy as np
import pytest
import torch

from safediffkit.data.dataset import Dataset
from safediffkit.worlds.merge import (
    ACCELERATION,
    CRASH_PENALTY,
    FINISH,
    OUTCOMES,
    SECONDS,
    SIGHT,
    STEPS,
    TOP_SPEED,
    main_road,
    margins,
    merge,
    outcome,
    positions,
)

LEFT, RIGHT, RAMP = range(3)


def start(world, *starts, seed=0):
    """Put the controlled cars at (lane, x, speed)."""
    return world.reset(seed, options={"starts": list(starts)})


def move(world, *actions):
    """Make one step, one number a car; the last number is for all cars that are left."""
    given = [*actions, *[actions[-1]] * (len(world.agents) - len(actions))]
    return world.step({name: np.array([action], np.float32) for name, action in zip(world.agents, given, strict=True)})


def drive(world, policy, seed=0, **options):
    """Record an episode: `policy` gives the action for a car's number and its observation."""
    seen, infos = world.reset(seed, **options)
    rows = []
    while world.agents:
        actions = [policy(i, seen[name]) for i, name in enumerate(world.agents)]
        before, (seen, rewards, ended, _, infos) = seen, move(world, *actions)
        rows.append((before, actions, rewards, infos, seen, ended))

    def stacked(column, key=None):
        values = [
            [row[column][name] if key is None else row[column][name][key] for name in world.possible_agents]
            for row in rows
        ]
        return torch.tensor(np.array(values), dtype=torch.float32)

    return Dataset(
        observations=stacked(0),
        actions=torch.tensor([row[1] for row in rows], dtype=torch.float32)[..., None],
        rewards=stacked(2),
        costs=stacked(3, "cost"),
        next_observations=stacked(4),
        terminated=torch.tensor([row[5]["car_0"] for row in rows]),
        episode=torch.zeros(len(rows), dtype=torch.long),
        provenance="made for a test",
    )


def cruise(speed):
    return lambda i, seen: float(np.clip(speed - seen[2], -1, 1))


def test_margin_is_gap_less_braking_distance_less_clearance():
    world = merge(braking=4.0, clearance=3.0)
    _, infos = start(world, (RIGHT, 30, 26), (RIGHT, 60, 20))
    # 30 m apart, 5 m of car: 25 - 6^2 / 8 - 3
    assert infos == {name: {"margin": 17.5, "cost": 0.0} for name in world.agents}
    # one that draws away needs no braking distance
    _, infos = start(world, (RIGHT, 30, 20), (RIGHT, 60, 26))
    assert infos["car_0"]["margin"] == 22
    _, infos = start(world, (RIGHT, 30, 26), (RIGHT, 40, 20))
    assert infos["car_1"] == {"margin": 5 - 4.5 - 3, "cost": 1.0}


def test_margin_is_read_off_observations_for_other_brakes():
    seen, infos = start(merge(3), (RAMP, 20, 25), (RIGHT, 30, 26), (RIGHT, 60, 20))
    rows = torch.tensor(np.stack(list(seen.values())))
    assert margins(rows).tolist() == [info["margin"] for info in infos.values()]
    torch.testing.assert_close(margins(rows), torch.tensor([SIGHT, 25 - 3.6 - 2, 25 - 3.6 - 2]))
    torch.testing.assert_close(margins(rows, braking=2.0, clearance=0.0)[1:], torch.tensor([16.0, 16.0]))
    assert torch.equal(margins(rows.expand(4, 3, -1)), margins(rows).expand(4, 3))


@pytest.mark.parametrize(
    ("one", "other", "counted"),
    [
        ((RIGHT, 50.0), (RIGHT, 60.0), True),
        ((LEFT, 50.0), (LEFT, 60.0), True),
        ((LEFT, 50.0), (RIGHT, 50.0), False),
        ((RAMP, 149.0), (RIGHT, 149.0), False),  # abreast, but the ramp has not turned towards the road
        ((RAMP, 150.0), (RIGHT, 149.0), True),
        ((RAMP, 150.0), (LEFT, 150.0), False),
        ((RAMP, 150.0), (RAMP, 100.0), True),
    ],
)
def test_only_the_same_and_the_merging_lane_count(one, other, counted):
    for pair in ((one, other), (other, one)):
        seen, infos = start(merge(), *((lane, x, 20) for lane, x in pair))
        gap = abs(one[1] - other[1]) - 5 - 2
        for name in seen:
            assert infos[name]["margin"] == pytest.approx(gap if counted else SIGHT)
            assert seen[name][9] == counted


def test_the_least_margin_is_not_always_the_nearest_cars():
    _, infos = start(merge(3), (RIGHT, 100, 10), (RIGHT, 112, 10), (RIGHT, 60, 10))
    assert infos["car_0"]["margin"] == pytest.approx(12 - 5 - 2)
    _, infos = start(merge(3), (RIGHT, 100, 10), (RIGHT, 112, 10), (RIGHT, 60, 30))
    assert infos["car_0"]["margin"] == pytest.approx(40 - 5 - 40 - 2)


def test_observation_layout():
    world = merge(3, neighbours=4)
    seen, _ = start(world, (RAMP, 20, 21), (RIGHT, 30, 25), (LEFT, 24, 28))
    assert seen["car_0"].dtype == np.float32
    # car_2 is nearer along the road; both are on other lanes
    nearest, next_one, nobody = [1, 4, -14.5, 7, 0], [1, 10, -10.5, 4, 0], [0] * 5
    np.testing.assert_allclose(seen["car_0"], [20, 14.5, 21, 0, 2, *nearest, *next_one, *nobody, *nobody])
    np.testing.assert_allclose(seen["car_2"][:10], [24, 0, 28, 0, 0, 1, -4, 14.5, -7, 0])
    # the own lane first, though farther away; then beyond SIGHT
    seen, _ = start(world, (RIGHT, 60, 20), (LEFT, 60, 20), (RIGHT, 80, 20))
    assert seen["car_0"][[6, 9, 11, 14]].tolist() == [20, 1, 0, 0]
    seen, _ = start(merge(), (RIGHT, 10, 20), (RIGHT, 10 + SIGHT, 20))
    assert seen["car_0"][5] == 1
    seen, infos = start(merge(), (RIGHT, 10, 20), (RIGHT, 11 + SIGHT, 20))
    assert not seen["car_0"][5:].any()
    assert infos["car_0"]["margin"] == SIGHT
    # fewer than there are: what is left out still counts
    seen, infos = start(merge(3, neighbours=1), (RIGHT, 100, 10), (RIGHT, 130, 10), (RIGHT, 60, 30))
    assert seen["car_0"].shape == (10,)
    assert seen["car_0"][6] == 30
    assert infos["car_0"]["cost"] == 1
    rows = torch.tensor(np.stack(list(seen.values())))
    assert positions(rows).tolist() == [[100, 4], [130, 4], [60, 4]]


@pytest.mark.parametrize("make", [merge, main_road])
@pytest.mark.parametrize(("cars", "background"), [(2, 0), (3, 2), (5, 3)])
def test_spaces_and_keys_are_those_of_a_parallel_world(make, cars, background):
    world = make(cars, background=background)
    assert world.possible_agents == [f"car_{i}" for i in range(cars)]
    assert world.agents == []
    seen, infos = world.reset(3)
    for agent in world.agents:
        assert world.observation_space(agent).shape == (5 + 5 * (cars - 1 + background),)
        assert world.observation_space(agent).contains(seen[agent])
        assert world.action_space(agent).low == -1
        assert world.action_space(agent).high == 1
    assert seen.keys() == infos.keys() == set(world.agents)
    given = {agent: world.action_space(agent).sample() for agent in world.agents}
    for part in world.step(given):
        assert part.keys() == set(world.possible_agents)


# the import of PettingZoo's check makes an environment in a way that it deprecates itself
@pytest.mark.filterwarnings("ignore:The old environment creation API:DeprecationWarning")
def test_pettingzoo_takes_it_for_a_parallel_world():
    from pettingzoo.test import parallel_api_test

    parallel_api_test(merge(3, background=1), num_cycles=30)


def test_an_action_is_an_acceleration_within_bounds():
    world = merge()
    start(world, (RAMP, 20, 20), (RIGHT, 60, 20))
    seen, *_ = move(world, 0.5, -1)
    assert seen["car_0"][2] == pytest.approx(20 + 0.5 * ACCELERATION * SECONDS)
    assert seen["car_1"][2] == pytest.approx(20 - ACCELERATION * SECONDS)
    start(world, (RAMP, 20, 20), (RIGHT, 60, 20))
    clipped, *_ = move(world, 7, -7)
    assert clipped["car_0"][2] == pytest.approx(20 + ACCELERATION * SECONDS)
    assert clipped["car_1"][2] == seen["car_1"][2]


def test_speeds_stay_between_standstill_and_the_top():
    world = merge()
    data = drive(world, lambda i, seen: (1, -1)[i])
    speeds = data.next_observations[:, :, 2]
    assert speeds[-1].tolist() == pytest.approx([TOP_SPEED, 0], abs=1e-5)
    assert (speeds >= -1e-5).all()
    assert (speeds <= TOP_SPEED + 1e-5).all()
    stopped = data.next_observations[speeds[:, 1] < 1e-5, 1, 0]
    assert stopped.max() - stopped.min() < 1e-3  # braking holds the car where it stands


@pytest.mark.parametrize("speed", [12, 20, 30])
def test_a_car_on_the_ramp_changes_to_the_right_lane(speed):
    world = merge()
    start(world, (RAMP, 140, speed), (RIGHT, 10, 0))
    while world.agents and world.cars[0].position[0] < FINISH - 1:
        seen, *_ = move(world, 0, 0)
        x, y, _, heading, lane = seen["car_0"][:5]
        assert y > 3.9  # no swing into the left lane
        assert lane == (RAMP if y > 6 else RIGHT)
        if x < 225:
            assert lane == RAMP
        if 170 < x < 210:
            assert -0.3 < heading < -0.05  # up the bend, which rises by 6.5 m over 80 m
    assert y == pytest.approx(4, abs=0.05)


def test_who_ignores_the_other_crashes_and_the_margin_warned_first():
    world = merge()
    # both 170 m before the merging lane at 20 m/s
    data = drive(world, lambda i, seen: 0, options={"starts": [(RAMP, 60, 20), (RIGHT, 60, 20)]})
    assert outcome(data) == "crash"
    assert len(data) < STEPS
    assert data.terminated.nonzero().tolist() == [[len(data) - 1]]
    bent = data.next_observations[:, 0, 0] >= 150
    assert torch.equal(data.costs, bent[:, None].expand_as(data.costs).float())
    assert data.costs[-10:].all()  # 2 s ahead and more
    assert data.rewards[-1].tolist() == pytest.approx([20 / TOP_SPEED - CRASH_PENALTY] * 2, abs=0.05)


def test_braking_avoids_the_crash():
    world, late = merge(), {"starts": [(RAMP, 60, 20), (RIGHT, 60, 20)]}

    def yields(i, seen):
        return -0.5 if i == 1 and 80 < seen[0] < 140 else cruise(20)(i, seen)

    data = drive(world, yields, options=late)
    assert len(data) == STEPS
    assert not data.terminated.any()
    assert not data.costs.any()


@pytest.mark.parametrize("make", [merge, main_road])
def test_every_start_is_safe_and_every_crash_is_costly(make):
    draw, crashes = np.random.default_rng(0), 0
    world = make(3, background=2)
    for seed in range(6):
        _, infos = world.reset(seed)
        assert all(info["margin"] >= 2 and info["cost"] == 0 for info in infos.values())
        data = drive(world, lambda i, seen: draw.uniform(-1, 0.8) if i else 0.3, seed)
        for j in range(3):
            crashed = data.rewards[-1, j] < -CRASH_PENALTY / 2
            assert crashed == world.cars[j].crashed
            assert data.costs[-1, j] >= crashed
        crashes += bool(data.terminated[-1])
    assert crashes > 0


def episode(before, after, *, crashed=False):
    """Make an episode of two steps in which cars get from `before` to `after`."""
    x = torch.tensor([before, after, after])[..., None].float()
    column = torch.zeros(2, len(before))
    return Dataset(
        observations=x[:2],
        actions=column[..., None],
        rewards=column,
        costs=column,
        next_observations=x[1:],
        terminated=torch.tensor([False, crashed]),
        episode=torch.zeros(2, dtype=torch.long),
        provenance="made for a test",
    )


@pytest.mark.parametrize(
    ("before", "after", "crashed", "expected"),
    [
        ([60, 40], [400, 380], False, "leader first"),
        ([40, 60], [380, 400], False, "leader first"),
        ([60, 40], [380, 400], False, "follower first"),
        ([60, 40, 20], [390, 400, 410], False, "follower first"),
        ([60, 40, 20], [410, 390, 400], False, "leader first"),
        ([60, 40], [400, 309], False, "slow"),
        ([60, 40], [400, 310], False, "leader first"),
        ([60, 40], [380, 400], True, "crash"),
        ([60, 40], [200, 190], True, "crash"),
    ],
)
def test_outcomes(before, after, crashed, expected):
    assert outcome(episode(before, after, crashed=crashed)) == expected
    assert expected in OUTCOMES


def test_outcomes_of_driven_episodes():
    ahead = {"starts": [(RAMP, 40, 20), (RIGHT, 60, 20)]}

    def paced(one, two):
        return outcome(drive(merge(), lambda i, seen: cruise((one, two)[i])(i, seen), options=ahead))

    assert paced(19, 25) == "leader first"
    assert paced(28, 18) == "follower first"
    assert paced(12, 25) == "slow"
    assert outcome(drive(main_road(), cruise(22))) == "leader first"


@pytest.mark.parametrize("make", [merge, main_road])
def test_a_seed_decides_the_episode(make):
    def driven(world, seed):
        data = drive(world, lambda i, seen: 0.4 * np.sin(0.1 * seen[0] + i), seed)
        return data.next_observations, data.rewards, data.costs

    used = make(background=2)
    first = driven(used, 0)
    for world in (used, make(background=2)):
        assert all(torch.equal(a, b) for a, b in zip(first, driven(world, 0), strict=True))
    assert not torch.equal(first[0][0], driven(used, 6)[0][0])
    # without a seed, episodes go on from the last one
    used.reset(5)
    after = used.reset()[0]["car_0"]
    assert not np.array_equal(after, used.reset()[0]["car_0"])
    used.reset(5)
    assert np.array_equal(after, used.reset()[0]["car_0"])


def test_rewards_are_for_speed():
    world = merge()
    start(world, (RAMP, 20, 15), (RIGHT, 60, 5))
    _, rewards, *_ = move(world, 0, 0)
    assert rewards == pytest.approx({"car_0": 0.5, "car_1": 1 / 6 - 0.25})


def test_pictures_are_not_black(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # under which highway-env's own viewer draws nothing
    world = merge(background=2, render_mode="rgb_array")
    world.reset(0)
    first = world.render()
    move(world, 1, 1)
    assert first.shape == (120, 1000, 3)
    assert first.dtype == np.uint8
    assert first.std() > 0
    assert not np.array_equal(first, world.render())
    for colour in ((0, 114, 178), (230, 159, 0)):  # car_0 and car_1, 5 m x 2 m at 4 pixels a metre
        assert 80 < (first == colour).all(-1).sum() <= 160
    assert merge().render() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: merge(1), "at least 2 controlled cars"),
        (lambda: main_road(background=-1), "background=-1"),
        (lambda: merge(neighbours=0), "neighbours=0"),
        (lambda: merge(braking=0), "braking above 0"),
        (lambda: merge(clearance=-1), "clearance of 0 m or more"),
        (lambda: merge(render_mode="human"), "render_mode 'human'"),
        (lambda: margins(torch.zeros(11)), "11 entries"),
        (lambda: margins(torch.zeros(10), braking=-1.0), "braking above 0"),
        (lambda: merge().step({}), "call reset first"),
        (lambda: outcome(episode([1, 2], [3, 4]).agent(0)), "agents axis"),
        (lambda: start(merge(), (RAMP, 20, 20)), "needed are 2"),
        (lambda: start(merge(), (RAMP, 160, 20), (RIGHT, 20, 20)), "on the ramp to 150 m"),
        (lambda: start(main_road(), (RAMP, 20, 20), (RIGHT, 20, 20)), r"lanes \(0, 1\)"),
    ],
)
def test_bad_input_is_answered(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(
    "actions", [{}, {"car_0": 0.0}, {"car_0": 0.0, "car_1": np.nan}, {"car_0": 0.0, "car_1": [0, 0]}]
)
def test_bad_actions_are_answered(actions):
    world = merge()
    world.reset(0)
    with pytest.raises(ValueError, match="one finite number for each of car_0, car_1"):
        world.step(actions)


def test_absent_simulator_is_named_with_the_way_to_install_it():
    code = (
        "import sys; sys.modules['highway_env'] = None\n"
        "from safediffkit.worlds.merge import merge\n"
        "assert not {'pygame', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "merge()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install highway-env==1.12.1" in last
    assert "make setup" in last
