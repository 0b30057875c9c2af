"""Pictures of teams: paths by agent, landmarks there and gone, and what agents at rest see."""

import pytest
import torch

from safediffkit.data.dataset import Dataset
from safediffkit.widgets.banks import Frame
from safediffkit.widgets.team_banks import SIZE, laid_out, landmark_circles, seen_from, spots_of, team_paths, visits
from safediffkit.worlds.landmarks import assignments, landmarks


def team(episodes=2, steps=3, agents=2, obs=20):
    count = episodes * steps
    x = torch.arange(count * agents * obs).float().view(count, agents, obs)
    costs = torch.zeros(count, agents)
    costs[1, 0] = 1
    return Dataset(
        observations=x,
        actions=torch.zeros(count, agents, 2),
        rewards=torch.zeros(count, agents),
        costs=costs,
        next_observations=x + 0.5,
        terminated=torch.zeros(count, dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="made up",
    )


def test_a_path_is_one_agents_and_starts_where_it_stood():
    run = team()
    parts = team_paths(run)
    assert parts["paths"].shape == (4, 4, 2)
    assert torch.equal(parts["paths"][3, 0], run.observations[3, 1, 2:4])
    assert torch.equal(parts["paths"][3, 1:], run.next_observations[3:, 1, 2:4])
    assert parts["violating"].nonzero().tolist() == [[0, 2]]  # seen after the step that led there
    assert Frame(**parts).outcomes == ("violating", "safe", "safe", "safe")


def test_what_is_no_team_or_of_uneven_length_is_refused():
    with pytest.raises(ValueError, match="agents axis"):
        team_paths(team().agent(0))
    with pytest.raises(ValueError, match="one length"):
        team_paths(team().where(torch.arange(6) < 5))


def test_landmarks_are_drawn_where_they_lie():
    # [DOM2 Fig. 1]
    world = landmarks(dismissed=3)
    whole = landmarks()
    seen, _ = whole.reset(seed=50_000)
    world.reset(seed=50_000)
    spots, present = laid_out(world)
    read = spots_of(torch.from_numpy(seen["agent_1"]))
    assert torch.cdist(read, spots).amin(1).max() < 1e-6
    assert [shape["kind"] for shape in landmark_circles(spots, present)] == [
        "goal" if there else "neutral" for there in present
    ]
    assert present.sum() == 3
    assert landmark_circles(spots)[2]["at"] == pytest.approx([*spots[2].tolist(), SIZE])


def test_agents_are_put_where_they_are_asked_to_stand():
    spots = [(0.5, 0.0), (-0.5, 0.0), (0.9, 0.9), (-0.9, 0.9), (0.9, -0.9), (-0.9, -0.9)]
    world = landmarks()
    seen = seen_from(world, [(0.45, 0.0), (0.0, 0.5), (-0.9, -0.9)], spots)
    assert seen[0, :6].tolist() == pytest.approx([0, 0, 0.45, 0, 0.05, 0])
    assert assignments(seen).tolist() == [3, -1, 0]
    # near a landmark is good, and to touch a team mate is not [DOM2 Sec. 1]
    assert world.game.rewards() == pytest.approx([10, 2**0.5, 10])
    seen_from(world, [(0.45, 0.0), (0.45, 0.2), (-0.9, -0.9)], spots)
    assert world.game.rewards() == pytest.approx([5, 1 / (0.05**2 + 0.2**2) ** 0.5 - 5, 10])


def test_visits_count_episodes_and_not_agents():
    spots = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    last = torch.tensor([[[0.1, 0.0], [0.0, 0.1]], [[1.0, 0.1], [0.0, 0.0]], [[0.5, 0.5], [2.0, 0.0]]])
    assert visits(last, spots)[:, 2].tolist() == [2, 1]
