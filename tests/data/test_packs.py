import numpy as np
import pytest
import torch

from safediffkit.data.sources import load
from safediffkit.data.tasks import TASKS
from safediffkit.worlds.bullet import positions, scene, speeds

PACKED = {  # least normalised reward at zero cost, and over all
    "OfflineBallCircle-v0": (0.8, 1.0),
    "OfflineCarCircle-v0": (0.75, 0.95),
    "OfflineBallRun-v0": (0.3, 1.0),
    "OfflineCarRun-v0": (0.95, 1.1),
}


@pytest.fixture(scope="module", params=PACKED)
def pack(request):
    return TASKS[request.param], load(request.param)


def scores(task, dataset):
    least, most = task.rewards
    return (dataset.episode_returns() - least) / (most - least), dataset.episode_costs()


def test_is_small_and_under_a_name_of_ours(pack):
    from importlib import resources

    task, _ = pack
    file = resources.files("safediffkit.data").joinpath("packs", task.pack)
    assert len(file.read_bytes()) <= 2_000_000
    assert task.pack != task.file


def test_has_enough_whole_episodes(pack):
    task, dataset = pack
    assert (torch.bincount(dataset.episode) == task.horizon).all()
    assert dataset.episode[-1] + 1 >= 300
    assert not dataset.terminated.any()
    assert set(dataset.costs.tolist()) == {0.0, 1.0}


def test_reaches_the_frontier(pack):
    task, dataset = pack
    rewards, costs = scores(task, dataset)
    safe, overall = PACKED[task.name]
    assert rewards[costs == 0].max() >= safe
    assert rewards.max() >= overall


def test_covers_dsrls_costs_without_a_large_hole(pack):
    task, dataset = pack
    costs = dataset.episode_costs().sort().values
    assert costs[0] == task.costs[0]
    assert 0.95 * task.costs[1] <= costs[-1] <= task.costs[1]
    assert costs.diff().max() <= 0.06 * task.costs[1]


def test_is_a_natural_mix_that_is_unsafe_to_imitate(pack):
    task, dataset = pack
    rewards, costs = scores(task, dataset)
    limit = min(20.0, task.costs[1] / 4)
    assert 0.2 <= (costs <= limit).float().mean() <= 0.55
    assert costs.mean() > 0.3 * task.costs[1]
    assert rewards[costs <= limit].std() > 0.05
    # far from the frontier at every cost level, not on it alone
    for low in np.linspace(0, 0.75, 4) * task.costs[1]:
        row = rewards[(low <= costs) & (costs <= low + task.costs[1] / 4)]
        assert len(row) >= 20
        assert row.max() - row.quantile(0.25) > 0.1


def test_costs_are_those_of_the_scene(pack):
    task, dataset = pack
    place, after = scene(task.name), dataset.next_observations
    x, y = positions(after).abs().unbind(-1)
    over = [
        value - limit
        for value, limit in ((x, place.x_limit), (y, place.y_limit), (speeds(task.name, after), place.speed_limit))
        if limit is not None
    ]
    excess = torch.stack(over).amax(0)
    clear = excess.abs() > 0.02  # beyond the rounding of the stored numbers
    assert clear.float().mean() > 0.8
    assert torch.equal(dataset.costs[clear] == 1, excess[clear] > 0)


def test_provenance_says_what_it_is(pack):
    task, dataset = pack
    for words in ("Self-collected", task.name, "bullet-safety-gym 1.4.0", "pybullet 3.2.7", "cross-entropy", "Seed "):
        assert words in dataset.provenance
