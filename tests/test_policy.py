import json

import pytest
import torch
from builders import Linear
from safetensors.torch import save_file

from safediffkit import load_policy, save_policy
from safediffkit.baselines.imitation import Imitation
from safediffkit.policy import Each, History, Policy


def _history(worlds=4, obs=3):
    return History.start(torch.randn(worlds, obs), 2, torch.full((worlds,), 5.0))


def test_history_tells_the_latest_observation_and_the_budget_left():
    costs = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    seen = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    history = History(seen, torch.zeros(2, 3, 1), costs, costs, torch.tensor([5.0, 1.0]))
    assert torch.equal(history.observation, seen[:, -1])
    assert history.budget_left.tolist() == [3, 1]


@pytest.mark.parametrize("agents", [(), (3,)])
def test_an_episode_starts_with_one_observation_and_nothing_else(agents):
    seen = torch.randn(4, *agents, 5)
    history = History.start(seen, 2)
    assert torch.equal(history.observation, seen)
    assert history.actions.shape == (4, 0, *agents, 2)
    assert history.rewards.shape == history.costs.shape == (4, 0, *agents)
    assert history.budget_left.tolist() == [0, 0, 0, 0]
    assert History.start(seen, 2, torch.ones(4)).budget_left.tolist() == [1, 1, 1, 1]


def test_budget_left_counts_every_agent():
    costs = torch.ones(1, 3, 2)
    history = History(torch.zeros(1, 4, 2, 1), torch.zeros(1, 3, 2, 1), costs, costs, torch.tensor([10.0]))
    assert history.budget_left.tolist() == [4]


class Peep:
    """Keep what is seen, and act on all of it: the sum of every number shown."""

    def act(self, history):
        self.seen = history
        columns = (history.observations, history.actions, history.rewards, history.costs, history.budget)
        return sum(column.flatten(1).sum(1) if column.ndim > 1 else column for column in columns)[:, None]


def _team_history(agents=3):
    shapes = {"observations": (2, 4, agents, 5), "actions": (2, 3, agents, 1)}
    shapes |= {"rewards": (2, 3, agents), "costs": (2, 3, agents)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("changed", ["observations", "actions", "rewards", "costs"])
def test_no_agent_sees_anothers_part_of_the_history(changed):
    columns, budget = _team_history(), torch.tensor([6.0, 9.0])
    team = Each([Peep(), Peep(), Peep()])
    before = team.act(History(**columns, budget=budget))
    columns[changed] = columns[changed].clone()
    columns[changed][:, :, 1] += 1
    after = team.act(History(**columns, budget=budget))
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.isclose(after[:, 1], before[:, 1]).any()


def test_each_agent_gets_its_own_rows_without_an_agents_axis_and_a_share_of_the_budget():
    columns, policies = _team_history(), [Peep(), Peep(), Peep()]
    history = History(**columns, budget=torch.tensor([6.0, 9.0]))
    assert isinstance(Each(policies), Policy)
    Each(policies).act(history)
    for j, policy in enumerate(policies):
        for name, column in columns.items():
            assert torch.equal(getattr(policy.seen, name), column[:, :, j])
        assert policy.seen.budget.tolist() == [2, 3]
        assert torch.allclose(policy.seen.budget_left, torch.tensor([2.0, 3.0]) - columns["costs"][:, :, j].sum(1))


def test_policies_for_one_agent_serve_in_a_team_unchanged():
    policies = [Imitation(5, 2, 16, 2) for _ in range(2)]
    seen = torch.randn(4, 2, 5)
    actions = Each(policies).act(History.start(seen, 2))
    assert actions.shape == (4, 2, 2)
    for j, policy in enumerate(policies):
        assert torch.equal(actions[:, j], policy.act(History.start(seen[:, j], 2)))


def test_a_team_needs_as_many_policies_as_agents():
    with pytest.raises(ValueError, match="2 policies for 3 agents"):
        Each([Peep(), Peep()]).act(History.start(torch.zeros(1, 3, 5), 1))
    with pytest.raises(ValueError, match="2 policies for a single agent"):
        Each([Peep(), Peep()]).act(_history())


def test_a_policy_acts_the_same_after_a_round_trip(tmp_path):
    policy = Imitation(3, 2, 16, 2)
    policy.scale.fit(torch.randn(20, 3))
    save_policy(policy, tmp_path / "p.safetensors")
    again = load_policy(tmp_path / "p.safetensors")
    history = _history()
    assert isinstance(again, Policy)
    assert torch.equal(again.act(history), policy.act(history))
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_what_cannot_be_made_again_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="arguments"):
        save_policy(torch.nn.Linear(1, 1), tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_failing_write_keeps_the_older_file(tmp_path, monkeypatch):
    file = tmp_path / "p.safetensors"
    save_policy(Imitation(3, 2, 16, 2), file)
    kept = file.read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safediffkit.policy.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_policy(Imitation(3, 2, 16, 2), file)
    assert file.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [file]


def test_missing_foreign_and_damaged_files_are_told_apart(tmp_path):
    file = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="save_policy"):
        load_policy(file)
    file.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ValueError, match="not a safediffkit policy, or is damaged"):
        load_policy(file)
    save_file({"w": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="not a safediffkit policy: it lacks"):
        load_policy(file)
    save_policy(Imitation(3, 2, 16, 2), file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        load_policy(file)


def test_altered_weights_are_noticed(tmp_path):
    file = tmp_path / "p.safetensors"
    save_policy(Imitation(3, 2, 16, 2), file)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="altered"):
        load_policy(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"arguments": {"obs": 3, "act": 2, "hidden": 17, "layers": 2}}, "altered"),
        ({"kind": "os:system"}, "altered"),
    ],
)
def test_an_altered_header_is_noticed(tmp_path, change, message):
    policy = Imitation(3, 2, 16, 2)
    file = tmp_path / "p.safetensors"
    save_policy(policy, file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["safediffkit"])
    save_file(policy.state_dict(), file, metadata={"safediffkit": json.dumps(header | change)})
    with pytest.raises(ValueError, match=message):
        load_policy(file)


def test_only_policies_of_this_package_are_made(tmp_path):
    # correctly signed, but of a class that lives elsewhere
    save_policy(Linear(3, 2), tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="no policy of this version"):
        load_policy(tmp_path / "p.safetensors")
