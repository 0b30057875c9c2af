import inspect
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from safediffkit.data.dataset import Dataset
from safediffkit.data.reshape import (
    agents_apart,
    graded,
    remap_cost,
    repeat_good_episodes,
    return_thresholds,
    safe_only,
    split_episodes,
)

KINDS = [np.asarray, torch.as_tensor]


@pytest.mark.parametrize("kind", KINDS)
def test_remap_is_one_where_safe_and_zero_where_any_cost(kind):
    # [SPI Eq. 4]
    assert remap_cost(kind([[0.0, 1.0], [0.25, 3.0]])).tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_graded_risk_grows_to_full_at_the_limit(kind):
    assert remap_cost(kind([0.0, 1.0, 4.0, 9.0]), graded(4)).tolist() == [1.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_risk_of_our_own_may_be_given(kind):
    assert remap_cost(kind([0.0, 1.0]), lambda c: c / (1 + c)).tolist() == [1.0, 0.5]
    assert remap_cost(kind([0.0, 3.0]), lambda c: c > 4).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("costs", "dtype"),
    [
        (np.zeros(2, np.float32), np.float32),
        (np.zeros(2), np.float64),
        (np.array([0, 2]), np.float64),
        (np.array([False, True]), np.float64),
        (torch.zeros(2, dtype=torch.float64), torch.float64),
        (torch.zeros(2, dtype=torch.float16), torch.float16),
        (torch.tensor([0, 2]), torch.float32),
        (torch.tensor([False, True]), torch.float32),
    ],
)
def test_floats_keep_their_dtype_and_the_rest_becomes_floats(costs, dtype):
    for risk in (None, graded(2)):
        remapped = remap_cost(costs) if risk is None else remap_cost(costs, risk)
        assert remapped.dtype == dtype
        assert type(remapped) is type(costs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_left_alone(kind):
    costs = kind([0.0, 1.0])
    remap_cost(costs)
    assert costs.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bad", "named"), [(-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_impossible_costs_are_named(kind, bad, named):
    with pytest.raises(ValueError, match=f"finite and at least 0; 1 of them .* {named}"):
        remap_cost(kind([0.0, bad, 1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_risk_outside_its_range_is_named(kind):
    with pytest.raises(ValueError, match=r"into \[0, 1\].*; 2 of them .* 2\.0"):
        remap_cost(kind([0.0, 2.0, 3.0]), lambda c: c)


def test_what_is_no_array_and_a_limit_of_zero_are_refused():
    with pytest.raises(TypeError, match="not a list"):
        inspect.unwrap(remap_cost)([0.0, 1.0])  # past the shape checker, which would object first
    with pytest.raises(ValueError, match="limit is 0"):
        graded(0)


def recorded(costs_of_episodes: list[list[float]], agents: int | None = None) -> Dataset:
    costs = torch.tensor([c for episode in costs_of_episodes for c in episode])
    steps = len(costs)
    if agents:
        costs = costs[:, None].expand(steps, agents)
    wide = torch.arange(steps, dtype=torch.float32).reshape(-1, *[1] * (costs.ndim - 1), 1).expand(*costs.shape, 1)
    episode = torch.cat([torch.full((len(c),), n) for n, c in enumerate(costs_of_episodes)])
    return Dataset(wide, wide, costs, costs, wide, torch.zeros(steps, dtype=torch.bool), episode, "made up")


def test_safe_only_keeps_whole_episodes_within_the_budget():
    kept = safe_only(recorded([[0.0, 3.0], [0.0, 1.0, 1.0], [5.0], [0.0]]), budget=2)
    assert kept.observations[:, 0].tolist() == [2, 3, 4, 6]
    assert kept.episode.tolist() == [0, 0, 0, 1]
    assert kept.episode_costs().tolist() == [2.0, 0.0]
    assert kept.provenance == "made up; only episodes of cost <= 2"


def test_safe_only_counts_the_cost_of_all_agents():
    kept = safe_only(recorded([[1.0], [2.0]], agents=2), budget=2)
    assert kept.episode_costs().tolist() == [[1.0, 1.0]]


def test_safe_only_names_the_cheapest_episode_if_none_is_safe():
    with pytest.raises(ValueError, match="at most 2: the cheapest of 2 costs 3"):
        safe_only(recorded([[3.0], [2.0, 2.0]]), budget=2)
    with pytest.raises(ValueError, match="at most nan"):
        safe_only(recorded([[3.0]]), budget=float("nan"))


@pytest.mark.parametrize("agents", [None, 2])
def test_an_episode_comes_once_more_for_every_threshold_it_reaches(agents):
    # [DOM2 Alg. 1]
    data = recorded([[0.0, 3.0], [1.0], [2.0, 2.0, 1.0], [0.0]], agents)  # returns 3, 1, 5, 0 of each agent
    team = agents or 1
    repeated = repeat_good_episodes(data, (5.0 * team, 3.0 * team, 9.0 * team, 3.0 * team))
    rows = repeated.observations.flatten(1)[:, 0].tolist()
    assert rows == [*range(7), *[3, 4, 5], *[0, 1, 3, 4, 5], *[0, 1, 3, 4, 5]]
    assert repeated.episode.tolist() == [0, 0, 1, 2, 2, 2, 3, *[4] * 3, *[5] * 2, *[6] * 3, *[7] * 2, *[8] * 3]
    returns = repeated.episode_returns().reshape(9, -1).sum(1) / team
    assert returns.tolist() == [3, 1, 5, 0, 5, 3, 5, 3, 5]
    assert torch.equal(repeated.actions, repeated.observations)
    assert "made up; episodes once more for each return they reach" in repeated.provenance
    assert f"{9 * team} (0)" in repeated.provenance


def test_the_team_s_return_is_the_sum_over_agents():
    data = replace(recorded([[1.0], [2.0]], agents=2), rewards=torch.tensor([[4.0, -1.0], [1.0, 1.0]]))
    assert repeat_good_episodes(data, (3.0,)).rewards[2:].tolist() == [[4.0, -1.0]]


def test_without_a_reached_threshold_nothing_is_repeated():
    data = recorded([[1.0], [2.0]])
    assert repeat_good_episodes(data, ()) is data
    assert repeat_good_episodes(data, (7.0,)) is data
    with pytest.raises(ValueError, match="NaN"):
        repeat_good_episodes(data, (float("nan"),))


def test_thresholds_are_quantiles_of_the_teams_returns():
    data = recorded([[float(n)] for n in (4, 0, 3, 1, 2)], agents=2)  # 0 to 8 in steps of 2
    assert return_thresholds(data, (0.0, 0.5, 0.75, 1.0)) == (0.0, 4.0, 6.0, 8.0)
    # of ten different episodes the best five come again, the best three once more, and so does the very best
    ten = recorded([[float(n)] for n in range(10)])
    repeated = repeat_good_episodes(ten, return_thresholds(ten))
    assert torch.bincount(repeated.rewards.long()).tolist() == [1, 1, 1, 1, 1, 2, 2, 3, 3, 4]
    with pytest.raises(ValueError, match="shares"):
        return_thresholds(data, (1.5,))
    with pytest.raises(ValueError, match="of 0 episodes"):
        return_thresholds(data.where(torch.zeros(5, dtype=torch.bool)))


def test_remapping_arrays_needs_no_torch():
    code = "import sys, safediffkit.data.reshape, safediffkit.worlds.pixel_world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def test_agents_apart_are_episodes_of_their_own():
    column = torch.arange(12.0).view(4, 3)  # four steps, three agents
    team = Dataset(
        observations=column[..., None], actions=-column[..., None], rewards=column, costs=column,
        next_observations=column[..., None] + 1, terminated=torch.tensor([False, True, False, False]),
        episode=torch.tensor([0, 0, 1, 1]), provenance="made for a test",
    )  # fmt: skip
    alone = agents_apart(team)
    assert alone.rewards.tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert alone.episode.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert alone.terminated.tolist() == [False, True, False, False] * 3
    assert torch.equal(alone.episode_returns(), team.episode_returns().T.flatten())
    for j in range(3):
        assert torch.equal(alone.observations[4 * j : 4 * j + 4], team.agent(j).observations)
    with pytest.raises(ValueError, match="agents axis"):
        agents_apart(alone)


def test_episodes_are_split_whole_and_by_the_seed(make_dataset):
    data = make_dataset((3,) * 10)
    some, others = split_episodes(data, 0.3, 0)
    assert [len(part.episode_starts()) for part in (some, others)] == [3, 7]
    both = torch.cat([some.rewards, others.rewards]).sort().values
    assert torch.equal(both, data.rewards.sort().values)
    assert torch.equal(split_episodes(data, 0.3, 0)[0].rewards, some.rewards)
    assert not torch.equal(split_episodes(data, 0.3, 1)[0].rewards, some.rewards)
    for share in (0.0, 0.04, 1.0):
        with pytest.raises(ValueError, match="10 episodes leaves none on one side"):
            split_episodes(data, share, 0)
