import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from safediffkit.data import collect as command
from safediffkit.data.collect import SCRIPTED, ball_circle, car_circle, collect, main, tune
from safediffkit.data.sources import load_file
from safediffkit.data.tasks import find_task

RUN = "OfflineBallRun-v0"


@pytest.fixture(scope="module")
def small():
    return collect(RUN, 3, 1)


def test_gives_whole_episodes_within_the_tasks_ranges(small):
    task = find_task(RUN)
    assert torch.bincount(small.episode).tolist() == [task.horizon] * 3
    assert small.observations.shape == (300, task.obs)
    assert small.actions.abs().max() <= 1
    assert small.episode_costs().max() <= task.costs[1]
    assert not small.terminated.any()
    inside = small.episode[1:] == small.episode[:-1]
    assert torch.equal(small.next_observations[:-1][inside], small.observations[1:][inside])
    assert "Self-collected" in small.provenance
    assert "Seed 1." in small.provenance


def test_same_seed_same_data_whatever_the_global_generators(small):
    np.random.seed(3)
    torch.manual_seed(3)
    again, other = collect(RUN, 3, 1), collect(RUN, 3, 2)
    assert torch.equal(again.observations, small.observations)
    assert torch.equal(again.actions, small.actions)
    assert again.provenance == small.provenance
    assert not torch.equal(other.actions, small.actions)


def test_command_writes_the_same_file_again(small, tmp_path):
    for name in ("one.hdf5", "two.hdf5"):
        main([RUN, "--episodes", "3", "--seed", "1", "--out", str(tmp_path / name)])
    assert (tmp_path / "one.hdf5").read_bytes() == (tmp_path / "two.hdf5").read_bytes()
    loaded = load_file(tmp_path / "one.hdf5", find_task(RUN))
    assert torch.equal(loaded.observations, small.observations)
    assert loaded.provenance == small.provenance


def test_thinning_keeps_the_best_of_each_cell():
    task = find_task(RUN)

    def episode(cost, reward):
        rows = np.zeros((1, 7), np.float32), np.zeros((1, 7), np.float32), np.zeros((1, 2), np.float32)
        return command._Episode(*rows, np.array([reward], np.float32), np.array([cost], np.float32), False)

    least, most = task.rewards
    crowd = [episode(40.0, least + 0.5 * (most - least) + k) for k in range(10)]
    rare = [episode(0.0, least), episode(80.0, most)]
    kept = command._thin(task, crowd + rare, 4)
    assert kept == [crowd[0], crowd[9], *rare]
    assert command._thin(task, crowd + rare, 12) == crowd + rare


def test_circle_controllers_turn_clockwise_and_stay_within_x_limit():
    tuned = json.loads(command.CONTROLLERS.read_text())
    # at the top of the circle, at rest: clockwise is along +x
    ball = ball_circle(np.array([0, 0.7, 0, 0, 0, 0, 0, 0], np.float32), tuned["OfflineBallCircle-v0"][0])
    assert ball[0] > 1
    # at its right and outside the limit: back inside
    ball = ball_circle(np.array([0.75, 0, 0, 0, 0, 0, 0, 0], np.float32), tuned["OfflineBallCircle-v0"][0])
    assert ball[0] < 0
    # a car at the top that faces +y (its yaw points to -y) turns right and drives forward
    car = car_circle(np.array([0, 0.7, 0, 0, -1, 0, 0, 0], np.float32), tuned["OfflineCarCircle-v0"][0])
    assert car[0] < 0 < car[1]


def test_stored_settings_cover_every_controller():
    stored = json.loads(command.CONTROLLERS.read_text())
    assert set(stored) == set(SCRIPTED) | {"landmarks.landmarks", "landmarks.cooperative_navigation"}
    for task in SCRIPTED:
        tuned = stored[task]
        assert len(tuned) == len(command.LIMITS)
        for settings in tuned:
            assert set(settings) == set(SCRIPTED[task].ranges)
            for name, (least, most) in SCRIPTED[task].ranges.items():
                assert least <= settings[name] <= most


@pytest.fixture
def brief_tuning(monkeypatch):
    monkeypatch.setattr(command, "LIMITS", (0.0,))
    monkeypatch.setattr(command, "ROUNDS", 2)
    monkeypatch.setattr(command, "POPULATION", 8)


def test_tuning_beats_its_start(brief_tuning):
    from safediffkit.worlds.bullet import make

    task, controller = find_task(RUN), SCRIPTED[RUN]
    middle = np.array([(low + high) / 2 for low, high in controller.ranges.values()])
    settings = np.array(list(tune(RUN, 0)[0].values()))
    world = make(RUN)
    start, tuned = (command._value(task, controller, world, guess, 0.0, 5) for guess in (middle, settings))
    assert tuned > start + 1  # the start is far over the limit


def test_tuning_stores_its_settings_beside_the_others(brief_tuning, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CONTROLLERS", tmp_path / "controllers.json")
    (tmp_path / "controllers.json").write_text('{"other": []}')
    main([RUN, "--tune", "--seed", "4"])
    stored = json.loads((tmp_path / "controllers.json").read_text())
    assert stored == {"other": [], RUN: tune(RUN, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OfflineBalRun-v0", "--out", "x.hdf5"], "did you mean 'OfflineBallRun-v0'"),
        (["OfflineAntRun-v0", "--out", "x.hdf5"], "no scripted controller for OfflineAntRun-v0"),
        ([RUN, "--out", "x.hdf5", "--episodes", "-3"], "--episodes -3"),
        ([RUN, "--out", "x.hdf5", "--episodes", "0"], "--episodes 0"),
        ([RUN, "--out", "x.hdf5", "--episodes", "many"], "invalid int value: 'many'"),
        ([RUN, "--out", "x.hdf5", "--seed", "-1"], "--seed -1"),
        ([RUN], "--out FILE"),
        ([RUN, "--out", "no/such/x.hdf5"], "there is no folder"),
        ([RUN, "--out", "old.hdf5"], "exists already"),
        ([RUN, "--out", "."], "exists already"),
        ([RUN, "--out", "old.hdf5/x.hdf5"], "there is no folder"),
        ([], "required: task"),
    ],
)
def test_wrong_arguments_get_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.hdf5").write_text("precious")
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old.hdf5"]
    assert (tmp_path / "old.hdf5").read_text() == "precious"


def test_unwritable_folder_is_found_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit) as exit:
        main([RUN, "--out", str(tmp_path / "x.hdf5")])
    assert exit.value.code == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_failed_write_leaves_nothing_and_says_so(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safediffkit.data.sources.write_file", full)
    with pytest.raises(SystemExit) as exit:
        main([RUN, "--episodes", "1", "--out", str(tmp_path / "x.hdf5")])
    assert exit.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_function_refuses_what_the_command_refuses():
    with pytest.raises(ValueError, match="unknown task"):
        collect("nothing", 1, 0)
    with pytest.raises(ValueError, match="no scripted controller"):
        collect("OfflineDroneRun-v0", 1, 0)
    with pytest.raises(ValueError, match="at least 1 episode"):
        collect(RUN, 0, 0)


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "safediffkit.data.collect", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "--episodes" in done.stdout
    assert not done.stderr
