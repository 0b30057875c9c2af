"""What every method promises, however it learns."""

from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
from builders import make_dataset, make_team

from safediffkit import load_policy, save_policy
from safediffkit.learning import words
from safediffkit.policy import History
from safediffkit.safety.imagination import fit_world
from safediffkit.train import METHODS

WINDOWS = {"horizon": 4, "network": "dit", "hidden": 8, "patch": 2, "levels": 20, "calls": 4, "every": 2}
SMALL = {
    "spi": {"hidden": 8, "candidates": 8},
    "tcdp": WINDOWS | {"groups": 2, "candidates": 8, "budgets": 5, "plans": 3, "imagined": 2},
    "trebi": WINDOWS | {"plans": 3},
    "cdd": WINDOWS,
    "fisor": {"hidden": 8, "pool": 64},
    "cdt": {"context": 5, "width": 16, "layers": 1},
    "dom2": {"hidden": 8, "levels": 4, "random_actions": 3},
    "ma-cql": {"hidden": 8, "random_actions": 3},
    "omar": {"hidden": 8, "random_actions": 3, "samples": 4},
    "ma-sfbc": {"hidden": 8, "levels": 4, "candidates": 4, "target_candidates": 2},
    "madiff": {name: WINDOWS[name] for name in ("horizon", "hidden", "patch", "levels", "calls", "every")},
    "cbf-diffusion": {
        **{name: WINDOWS[name] for name in ("horizon", "hidden", "levels", "calls")},
        "barrier_steps": 3,
        "value_steps": 3,
        "lookahead": 1,
        "groups": 2,
        "candidates": 4,
        "plans": 3,
    },
    "bc": {"hidden": 8},
    "bc-safe": {"hidden": 8, "safe_within": 5.0},
}
# these learn from, and act for, several agents, of whom the last method needs to see velocities
TEAMS = {"dom2": 3, "ma-cql": 3, "omar": 3, "ma-sfbc": 3, "madiff": 3, "cbf-diffusion": 14}


def data_for(name):
    return make_team(obs=TEAMS[name]) if name in TEAMS else make_dataset()


@pytest.fixture(params=METHODS)
def method(request, monkeypatch):
    """A method's train function on small data, and a small configuration of it."""
    monkeypatch.setattr("safediffkit.methods.tcdp.fit_world", partial(fit_world, steps=3))
    place, settings, train = METHODS[request.param]
    module = import_module(f"safediffkit.{place}")
    config = getattr(module, settings)(steps=3, batch=32, **SMALL[request.param])
    return partial(getattr(module, train), data_for(request.param)), config


def differing(one, other):
    names = [name for name, weight in one.state_dict().items() if not torch.equal(weight, other.state_dict()[name])]
    return names + ["arguments"] * (one.arguments != other.arguments)


def test_training_depends_on_its_arguments_alone(method):
    train, config = method
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = train(config)
    assert torch.equal(torch.rand(1), expected)  # the caller's randomness is left as it was
    assert differing(one, train(config)) == []
    assert differing(one, train(replace(config, seed=1))) != []


def test_watch_sees_every_update(method):
    train, config = method
    seen = []
    train(config, lambda step, losses: seen.append((step, losses)))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert all(isinstance(loss, float) for _, losses in seen for loss in losses.values())
    assert all(losses.keys() == seen[0][1].keys() != set() for _, losses in seen)


def test_interrupted_training_goes_on_where_it_stopped(method, tmp_path, monkeypatch):
    monkeypatch.setattr("safediffkit.learning.CHECKPOINT_EVERY", 4)
    train, config = method
    config, file = replace(config, steps=10), tmp_path / "checkpoint"

    def stop(step, losses):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stop, checkpoint=file)
    went_on = []
    resumed = train(config, lambda step, losses: went_on.append(step), checkpoint=file)
    assert went_on[0] == 5
    assert differing(train(config), resumed) == []
    with pytest.raises(ValueError, match="another run"):
        train(replace(config, seed=2), checkpoint=file)


def test_it_acts_the_same_after_saving(method, tmp_path, request):
    train, config = method
    policy = train(config)
    seen = data_for(request.node.callspec.params["method"]).observations.shape[1:]
    save_policy(policy, tmp_path / "p")
    again = load_policy(tmp_path / "p")
    history = History.start(torch.randn(5, *seen), 2, torch.full((5,), 4.0))
    actions = []
    for either in (policy, again):
        torch.manual_seed(0)
        with torch.no_grad():
            actions.append(either.act(history))
    assert torch.equal(*actions)
    assert actions[0].shape == (5, *seen[:-1], 2)
    assert type(again) is type(policy)
    assert again.arguments == policy.arguments


def test_its_configuration_can_be_written_down(method):
    _, config = method
    assert words(config)["steps"] == 3
