"""Pictures of teams among landmarks: where each agent went and touched a mate, and which landmarks were there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safediffkit.widgets.banks import Shape, circle

SIZE = 0.15  # m, radius of an agent: who is so near is on a landmark, as `assignments` counts


def team_paths(run: Any) -> dict[str, Any]:
    """Give the parts of a Frame that show a team's Dataset, in m: path i is that of agent i modulo their number.

    Steps at which an agent touches a team mate are those that violate. All episodes must be of one length, and places
    stand at 2 and 3 of an observation, as in `landmarks`.

    Raises:
        ValueError: the dataset has no agents axis, or its episodes differ in length.
    """
    if run.rewards.ndim != 2:
        raise ValueError("team_paths needs a Dataset with an agents axis; this one has a single agent")
    episodes = len(run.episode.unique())
    if len(run) % episodes or (run.episode.bincount() != len(run) // episodes).any():
        raise ValueError(f"{len(run)} steps of {episodes} episodes: all episodes must be of one length")
    before, after = (rows[..., 2:4].unflatten(0, (episodes, -1)) for rows in (run.observations, run.next_observations))
    places = torch.cat([before[:, :1], after], 1).float()
    touched = run.costs.unflatten(0, (episodes, -1)) > 0
    touched = torch.cat([torch.zeros_like(touched[:, :1]), touched], 1)
    return {"paths": places.transpose(1, 2).flatten(0, 1), "violating": touched.transpose(1, 2).flatten(0, 1)}


def spots_of(observation: Float[Tensor, "obs"], landmarks: int = 6) -> Float[Tensor, "_ 2"]:
    """Read where the landmarks lie, in m, off what one agent sees while all are there; the nearest comes first."""
    ways: Tensor = observation[4 : 4 + 2 * landmarks].unflatten(0, (landmarks, 2))
    return (observation[2:4] + ways).float()


def laid_out(world: Any) -> tuple[Float[Tensor, "_ 2"], Bool[Tensor, "_"]]:
    """Tell of a world made by `landmarks`, as it stands: where its landmarks lie, in m, and which are there."""
    spots = [landmark.state.p_pos for landmark in world.game.world.landmarks]
    return torch.as_tensor(np.array(spots), dtype=torch.float32), torch.as_tensor(world.game.present)


def seen_from(
    world: Any, places: Sequence[tuple[float, float]], spots: Sequence[tuple[float, float]]
) -> Float[Tensor, "agents obs"]:
    """Give what agents at rest at `places` see of landmarks on `spots`, in m; it moves those of `world`, all there."""
    game = world.game
    for bodies, where in ((game.team, places), (game.world.landmarks, spots)):
        for body, place in zip(bodies, where, strict=True):
            body.state.p_pos, body.state.p_vel = np.array(place, dtype=float), np.zeros(2)
    game.dismiss(np.array([], dtype=int))
    return torch.as_tensor(game.observe(), dtype=torch.float32)


def landmark_circles(spots: Float[Tensor, "_ 2"], present: Bool[Tensor, "_"] | None = None) -> list[Shape]:
    """Draw landmarks as circles of an agent's size: of the kind "goal", or "neutral" for those dismissed."""
    there = [True] * len(spots) if present is None else present.tolist()
    return [
        circle(x, y, SIZE, kind="goal" if stays else "neutral")
        for (x, y), stays in zip(spots.tolist(), there, strict=True)
    ]


def visits(last: Float[Tensor, "episodes agents 2"], spots: Float[Tensor, "_ 2"]) -> Float[Tensor, "_ 3"]:
    """Count the episodes that end with an agent on each landmark: the `values` of a Frame, x, y and the count."""
    on = torch.cdist(last.flatten(0, 1), spots).unflatten(0, last.shape[:2]) <= SIZE
    return torch.cat([spots, on.any(1).sum(0)[:, None].float()], 1)
