import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from safediffkit.worlds.bullet import TASKS, find_task, make, positions, scene, speeds

STEPS = 25


def actions(task, seed, steps=STEPS):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, TASKS[task].act)).astype(np.float32)


def drive(world, task, seed):
    """Run an episode's start; returns all that was seen, as one row a step."""
    rows = [np.append(world.reset(seed=seed)[0], [0, 0])]
    for action in actions(task, seed):
        observation, reward, terminated, truncated, info = world.step(action)
        rows.append(np.append(observation, [reward, info["cost"]]))
        if terminated or truncated:
            break
    return np.stack(rows)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_as_its_record_says(task):
    facts, world = find_task(task), make(task)
    observation, _ = world.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation.shape == world.observation_space.shape == (facts.obs,)
    assert world.action_space.shape == (facts.act,)
    assert (world.action_space.low == facts.box[0]).all()
    assert (world.action_space.high == facts.box[1]).all()
    assert world.spec.max_episode_steps == facts.horizon
    assert world.observation_space.contains(observation)
    observation, reward, terminated, truncated, info = world.step(np.zeros(facts.act))
    assert observation.dtype == np.float32
    assert [type(value) for value in (reward, terminated, truncated, info["cost"])] == [float, bool, bool, float]


@pytest.mark.parametrize("task", TASKS)
def test_seed_decides_the_episode_whatever_came_before(task):
    used, fresh = make(task), make(task)
    drive(used, task, 1)
    used.reset()
    drive(used, task, 2)
    np.random.seed(5)
    expected = drive(fresh, task, 3)
    np.random.seed(6)
    assert np.array_equal(drive(used, task, 3), expected)
    assert not np.array_equal(drive(used, task, 4)[0], expected[0])


def test_numpys_global_generator_is_left_alone():
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    seen = [np.random.random()]
    world = make("OfflineCarRun-v0")
    seen.append(np.random.random())
    drive(world, "OfflineCarRun-v0", 0)
    world.reset()
    seen.append(np.random.random())
    assert np.array_equal(seen, expected)


def test_without_a_seed_episodes_differ():
    world = make("OfflineBallCircle-v0")
    world.reset(seed=0)
    second, third = world.reset()[0], world.reset()[0]
    assert not np.array_equal(second, third)
    world.reset(seed=0)
    assert np.array_equal(world.reset()[0], second)
    assert not np.array_equal(make("OfflineBallCircle-v0").reset()[0], make("OfflineBallCircle-v0").reset()[0])


@pytest.mark.parametrize("task", ["OfflineBallCircle-v0", "OfflineCarCircle-v0"])
def test_worlds_in_lockstep_do_not_disturb_each_other(task):
    worlds = [make(task) for _ in range(3)]
    rows = [[np.append(world.reset(seed=seed)[0], [0, 0])] for seed, world in enumerate(worlds)]
    for step in range(STEPS):
        for seed, world in enumerate(worlds):
            observation, reward, _, _, info = world.step(actions(task, seed)[step])
            rows[seed].append(np.append(observation, [reward, info["cost"]]))
    for seed in range(3):
        assert np.array_equal(np.stack(rows[seed]), drive(make(task), task, seed))


@pytest.mark.parametrize("task", TASKS)
def test_positions_and_speeds_are_the_simulators(task):
    world = make(task)
    world.reset(seed=0)
    for action in actions(task, 0, 10):
        observation = torch.from_numpy(world.step(action)[0])
    agent = world.unwrapped.agent
    torch.testing.assert_close(positions(observation), torch.tensor(agent.get_position()[:2], dtype=torch.float32))
    speed = torch.tensor(float(np.hypot(*agent.get_linear_velocity()[:2])))
    torch.testing.assert_close(speeds(task, observation), speed)
    assert positions(observation.expand(4, 3, -1)).shape == (4, 3, 2)


@pytest.mark.parametrize("task", TASKS)
def test_scene_is_the_simulators(task):
    place, simulator = scene(task), make(task).unwrapped
    assert place.seconds == pytest.approx(simulator.dt)
    if "Circle" in task:
        assert (place.radius, place.x_limit) == (simulator.task.circle.radius, simulator.task.x_lim)
        assert place.y_limit is place.speed_limit is None
    else:
        assert (place.y_limit, place.speed_limit) == (simulator.task.y_lim, simulator.agent.velocity_constraint)
        assert place.radius is place.x_limit is None


def test_costs_follow_the_scene():
    world = make("OfflineBallRun-v0")
    observation, _ = world.reset(seed=0)
    place, fast = scene("OfflineBallRun-v0"), []
    for _ in range(40):
        observation, _, _, _, info = world.step([1.0, 0.0])
        fast.append(float(speeds("OfflineBallRun-v0", torch.from_numpy(observation))) > place.speed_limit)
        assert info["cost"] == fast[-1]
    assert set(fast) == {False, True}


def test_render_shows_the_robot_not_the_cost_sphere():
    world = make("OfflineBallRun-v0", render_mode="rgb_array")
    world.reset(seed=0)
    for _ in range(40):
        *_, info = world.step([1.0, 0.0])
    picture = world.render()
    assert info["cost"] == 1
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.std() > 0
    r, g, b = picture.astype(int).transpose(2, 0, 1)
    assert ((r - g > 40) & (abs(g - b) < 30)).mean() < 0.001  # red, as the walls beside the track are not
    assert make("OfflineBallRun-v0").render() is None


def test_wrong_names_are_answered():
    with pytest.raises(ValueError, match="did you mean 'OfflineBallCircle-v0'"):
        make("OfflineBallCirle-v0")
    with pytest.raises(ValueError, match="render_mode 'human'"):
        make("OfflineBallCircle-v0", render_mode="human")
    with pytest.raises(ValueError, match="unknown task"):
        scene("nothing")


def python(code):
    environment = {name: value for name, value in os.environ.items() if name != "DSRL_SUPPRESS_IMPORT_ERROR"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )


def test_starts_without_a_word_and_with_streams_that_are_no_files():
    # as in a notebook kernel, whose streams have no file descriptor
    done = python(
        "import io, sys; sys.stdout = sys.stderr = io.StringIO()\n"
        "from safediffkit.worlds.bullet import make\n"
        "streams = sys.stdout, sys.stderr\n"
        "world = make('OfflineBallRun-v0'); world.reset(seed=0); world.step([0, 0]); world.close()\n"
        "assert (sys.stdout, sys.stderr) == streams, 'the streams were not put back'\n"
        "assert not sys.stdout.getvalue(), sys.stdout.getvalue()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("absent", ["pybullet", "bullet_safety_gym", "dsrl"])
def test_absent_simulator_is_named_with_the_way_to_install_it(absent):
    done = python(
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from safediffkit.worlds.bullet import make\n"
        "make('OfflineBallRun-v0')"
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: OfflineBallRun-v0")
    assert absent in last
    assert "pip install pybullet==3.2.7" in last
    assert "pip install --no-deps bullet-safety-gym==1.4.0 dsrl==0.1.0" in last
    assert "make setup" in last
