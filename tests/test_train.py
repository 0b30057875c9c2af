import json
from dataclasses import replace

import pytest
import torch
from builders import make_dataset

from safediffkit import load_policy, train
from safediffkit.data.tasks import TEAMS

TASK = "OfflineBallRun-v0"
QUICK = ["--steps", "2", "--episodes", "2", "--set", "hidden=8"]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.hdf5"
    replace(make_dataset(episodes=3, steps=100, obs=7)).save(file)
    return ["--data", str(file)]


def test_spi_trains_saves_evaluates_and_writes_a_record(tmp_path, data, capsys):
    out = tmp_path / "deep" / "spi.safetensors"
    command = ["spi", TASK, "--seed", "3", "--out", str(out), *data, *QUICK, "imitate=0.2", "reward=0.3", "safety=0.5"]
    assert train.main(command) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["config"]["seed"] == 3
    assert record["config"]["imitate"] == 0.2
    assert record["data"] == "made for a test"
    assert set(record["scores"]) == {"reward", "safest"}
    assert record["scores"]["safest"]["episodes"] == 2
    assert "torch" in record["versions"]
    assert record["command"].startswith(f"python -m safediffkit.train spi {TASK} --seed 3")
    assert load_policy(out).arguments["hidden"] == 8
    assert sorted(p.name for p in out.parent.iterdir()) == ["spi.json", "spi.safetensors"]
    assert "normalised cost" in capsys.readouterr().out


def test_an_interrupted_command_goes_on(tmp_path, data, monkeypatch):
    monkeypatch.setattr("safediffkit.learning.CHECKPOINT_EVERY", 2)
    out = tmp_path / "bc.safetensors"
    command = ["bc", TASK, "--out", str(out), *data, "--steps", "6", "--episodes", "1", "--set", "hidden=8"]
    trained = []

    def stopping(steps, label):
        def watch(step, losses):
            trained.append(step)
            if len(trained) == 5:
                raise KeyboardInterrupt

        return watch

    monkeypatch.setattr("safediffkit.learning.progress", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.main(command)
    assert not out.exists()
    assert train.main(command) == 0
    assert trained == [1, 2, 3, 4, 5, 5, 6]
    assert not list(tmp_path.glob("*.checkpoint"))
    whole = tmp_path / "whole.safetensors"
    assert train.main([*command[:3], str(whole), *command[4:]]) == 0
    first, second = load_policy(out).state_dict(), load_policy(whole).state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_nothing_saved_is_overwritten(tmp_path, data, capsys):
    out = tmp_path / "bc.safetensors"
    out.write_text("precious")
    with pytest.raises(SystemExit, match="2"):
        train.main(["bc", TASK, "--out", str(out), *data, *QUICK])
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["spy", TASK], "invalid choice: 'spy'"),
        (["spi", "OfflineBallRum-v0"], "did you mean 'OfflineBallRun-v0'"),
        (["spi", TASK, "--set", "imitate=0.9"], "sum to 1"),
        (["spi", TASK, "--set", "imitatte=0.9"], "imitatte=0.9: give NAME=VALUE with a name among average_rate"),
        (["spi", TASK, "--steps", "0"], "at least 1 update"),
        (["spi", TASK, "--set", "hidden=wide"], "hidden=wide: an int is needed"),
        (["dom2", TASK, "--set", "repeat_above=0.5,high"], "repeat_above=0.5,high: a float is needed"),
        (["dom2", TASK, "--set", "repeat_above=0.5,"], "repeat_above=0.5,: a float is needed"),
        (["madiff", TASK, "--set", "execution=alone"], "only decentralised or centralised can be given here"),
        (["bc", TASK, "--share", "0"], "--share 0.0: above 0 and at most 1"),
        (["bc", TASK, "--episodes", "0"], "--episodes 0: at least 1"),
        (["bc", TASK, "--data", "missing.hdf5"], "missing.hdf5"),
        (["bc-safe", TASK, "--budget", "-3"], "--budget -3.0: 0 or more"),
        (["tcdp", TASK, "--budget", "10", "10"], "--budget 10.0 10.0: 0 or more is needed, and each budget once"),
        (["bc-safe", TASK, "--budget", "10", "20"], "bc-safe learns for one budget; train it once for each"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capsys, command, message):
    with pytest.raises(SystemExit, match="2"):
        train.main([*command, "--out", str(tmp_path / "p.safetensors")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bc_safe_learns_within_the_budget_it_is_judged_by():
    parsed = train._parser().parse_args(["bc-safe", TASK, "--out", "x", "--budget", "10"])
    _, config = train._configured(parsed)
    assert config.safe_within == 10


@pytest.mark.parametrize(("text", "shares"), [("0.5,0.75,0.9", (0.5, 0.75, 0.9)), ("0.5", (0.5,)), ("", ())])
def test_several_numbers_are_given_between_commas(text, shares):
    parsed = train._parser().parse_args(["dom2", TASK, "--out", "x", "--set", f"repeat_above={text}"])
    _, config = train._configured(parsed)
    assert config.repeat_above == shares


SMALL = ["network=mlp", "groups=2", "candidates=4", "budgets=3", "calls=2"]


def test_one_training_is_scored_under_each_budget(tmp_path, data, capsys):
    out = tmp_path / "tcdp.safetensors"
    command = ["tcdp", TASK, "--out", str(out), *data, *QUICK, *SMALL, "--budget", "10", "20.5", "40"]
    assert train.main(command) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["evaluation"]["budget"] == [10, 20.5, 40]
    assert {name: score["budget"] for name, score in record["scores"].items()} == {
        "policy at 10": 10, "policy at 20.5": 20.5, "policy at 40": 40,
    }  # fmt: skip
    assert load_policy(out).episode == 100
    assert "tcdp (policy at 20.5): normalised reward" in capsys.readouterr().out


def test_a_record_of_one_budget_reads_as_it_always_did(tmp_path, data):
    out = tmp_path / "bc.safetensors"
    assert train.main(["bc", TASK, "--out", str(out), *data, *QUICK, "--budget", "10"]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["evaluation"]["budget"] == 10
    assert list(record["scores"]) == ["policy"]


def test_a_team_learns_from_a_share_and_is_scored_in_shifted_worlds(tmp_path):
    out = tmp_path / "dom2.safetensors"
    command = ["dom2", "landmarks-expert", "--out", str(out), *QUICK, "network=mlp", "batch=4", "--share", "0.02"]
    assert train.main(command) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert "a share 0.02 of the episodes, drawn by seed 0" in record["data"]
    assert set(record["scores"]) == {"policy", *(f"policy, {name}" for name in TEAMS["landmarks-expert"].shifts)}
    assert 0 <= record["scores"]["policy, slow"]["covered"] <= 1
