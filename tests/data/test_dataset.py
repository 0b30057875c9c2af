import dataclasses

import pytest
import torch

from safediffkit.data.dataset import Dataset, windows
from safediffkit.data.tasks import BULLET, TASKS, find_task

LENGTHS = [(1,), (4,), (3, 1, 2), (1, 1, 1), (7, 7, 2, 9)]
AGENTS = [(), (1,), (3,)]


def columns(dataset):
    return {f.name: getattr(dataset, f.name) for f in dataclasses.fields(Dataset) if f.name != "provenance"}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(columns(a).values(), columns(b).values(), strict=True))


def naive_to_go(values, episode, discount):
    result = torch.zeros_like(values)
    for now in range(len(values)):
        later = now
        while later < len(values) and episode[later] == episode[now]:
            result[now] += discount ** (later - now) * values[later]
            later += 1
    return result


@pytest.mark.parametrize("agents", AGENTS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_sums_over_episodes_equal_naive_loops(make_dataset, lengths, agents):
    data = make_dataset(lengths, agents=agents)
    parts = list(zip(data.rewards.split(lengths), data.costs.split(lengths), strict=True))
    torch.testing.assert_close(data.episode_returns(), torch.stack([rewards.sum(0) for rewards, _ in parts]))
    torch.testing.assert_close(data.episode_costs(), torch.stack([costs.sum(0) for _, costs in parts]))
    assert data.episode_returns().shape == (len(lengths), *agents)
    assert data.episode_starts().tolist() == [sum(lengths[:i]) for i in range(len(lengths))]
    for discount in (1.0, 0.9, 0.0):
        torch.testing.assert_close(data.return_to_go(discount), naive_to_go(data.rewards, data.episode, discount))
        torch.testing.assert_close(data.cost_to_go(discount), naive_to_go(data.costs, data.episode, discount))


def test_to_go_starts_at_the_episode_sum_and_leaves_the_data_alone(make_dataset):
    data = make_dataset((200, 3))
    before = {name: column.clone() for name, column in columns(data).items()}
    torch.testing.assert_close(data.cost_to_go()[data.episode_starts()], data.episode_costs())
    assert all(torch.equal(column, before[name]) for name, column in columns(data).items())


@pytest.mark.parametrize("agents", AGENTS)
def test_where_keeps_rows_and_numbers_episodes_anew(make_dataset, agents):
    data = make_dataset((2, 3, 1, 4), agents=agents)
    mask = (data.episode == 1) | (data.episode == 3)
    kept = data.where(mask)
    assert kept.episode.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(kept.next_observations, data.next_observations[mask])
    torch.testing.assert_close(kept.episode_returns(), data.episode_returns()[[1, 3]])
    assert kept.provenance == data.provenance
    assert len(data) == 10
    assert same(data.where(torch.ones(10, dtype=torch.bool)), data)


def test_where_may_keep_nothing(make_dataset):
    none = make_dataset().where(torch.zeros(13, dtype=torch.bool))
    assert len(none) == 0
    assert none.episode_returns().shape == (0,)
    assert none.cost_to_go().shape == (0,)
    assert none.episode_starts().shape == (0,)
    with pytest.raises(ValueError, match="0 steps"):
        windows(none, 1)


@pytest.mark.parametrize("agents", AGENTS)
def test_batch_draws_whole_rows_by_the_generator_alone(make_dataset, agents):
    data = make_dataset((7, 5, 9), agents=agents)
    batch = data.batch(400, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert same(batch, data.batch(400, torch.Generator().manual_seed(1)))
    assert not same(batch, data.batch(400, torch.Generator().manual_seed(2)))
    # observations are all different, so they tell which row each is
    equal = (batch.observations[:, None] == data.observations[None]).flatten(2).all(2)
    assert (equal.sum(1) == 1).all()
    assert same(batch, data._rows(equal.int().argmax(1)))
    assert equal.any(0).all()  # 400 draws of 21 rows miss one of them about once in ten million


def test_batch_is_uniform_and_with_replacement(make_dataset):
    counts = torch.bincount(make_dataset((3, 1)).batch(40_000, torch.Generator().manual_seed(0)).episode)
    assert (counts / 40_000 - torch.tensor([0.75, 0.25])).abs().max() < 0.01


def test_agent_gives_the_table_of_one_agent(make_dataset):
    data = make_dataset((4, 2), agents=(3,), ended=[1])
    for j in range(3):
        alone = data.agent(j)
        assert alone.observations.shape == (6, 8)
        assert torch.equal(alone.actions, data.actions[:, j])
        assert torch.equal(alone.costs, data.costs[:, j])
        assert torch.equal(alone.terminated, data.terminated)
        torch.testing.assert_close(alone.return_to_go(0.9), data.return_to_go(0.9)[:, j])
    with pytest.raises(ValueError, match="agents axis"):
        data.agent(0).agent(0)
    with pytest.raises(IndexError):
        data.agent(3)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("horizon", [1, 2, 3, 8])
def test_windows_are_all_runs_inside_an_episode(make_dataset, lengths, horizon):
    data = make_dataset(lengths)
    expected = [
        [start + i for i in range(horizon)]
        for start in range(len(data) - horizon + 1)
        if len({int(data.episode[start + i]) for i in range(horizon)}) == 1
    ]
    if expected:
        assert windows(data, horizon).tolist() == expected
    else:
        with pytest.raises(ValueError, match=f"horizon {horizon}.*longest episode, {max(lengths)} steps"):
            windows(data, horizon)


@pytest.mark.parametrize("horizon", [0, -3])
def test_windows_of_no_length_are_refused(make_dataset, horizon):
    with pytest.raises(ValueError, match=f"horizon {horizon} "):
        windows(make_dataset(), horizon)


def test_shapes_that_disagree_are_refused(make_dataset):
    data = make_dataset()
    with pytest.raises(Exception, match="costs"):
        dataclasses.replace(data, costs=data.costs[1:])
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.costs = data.rewards


def test_find_task_names_the_nearest_one():
    assert find_task("OfflineCarRun-v0") is TASKS["OfflineCarRun-v0"]
    for misspelt, right in [
        ("OfflineBallCirle-v0", "OfflineBallCircle-v0"),
        ("BallCircle", "OfflineBallCircle-v0"),
        ("offlinecarrun-v0", "OfflineCarRun-v0"),
        ("OfflineAntRun", "OfflineAntRun-v0"),
        ("DroneCircle-v0", "OfflineDroneCircle-v0"),
        ("landmark-expert", "landmarks-expert"),
        ("CooperativeNavigation-medium", "cooperative-navigation-medium"),
    ]:
        with pytest.raises(ValueError, match=f"did you mean {right!r}"):
            find_task(misspelt)
    with pytest.raises(ValueError, match="unknown task 'chess'") as caught:
        find_task("chess")
    assert all(name in str(caught.value) for name in TASKS)
    assert "did you mean" not in str(caught.value)


def test_tasks_never_share_a_file_name_with_dsrl():
    files = [task.file for task in BULLET.values()] + [task.pack for task in TASKS.values()]
    assert len(set(files)) == len(BULLET) + len(TASKS)
    assert all(task.pack.startswith("safediffkit-") for task in TASKS.values())
