"""One flat table of recorded steps; the same container goes into training and comes out of a rollout."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Steps of recorded episodes, one row a step, episode after episode.

    `terminated` marks true ends only: an episode cut by its time limit is not terminated. With several agents,
    an agents axis follows the steps axis everywhere but in `terminated` and `episode`. A batch is a small Dataset.
    """

    observations: Float[Tensor, "steps *agents obs"]
    actions: Float[Tensor, "steps *agents act"]
    rewards: Float[Tensor, "steps *agents"]
    costs: Float[Tensor, "steps *agents"]
    next_observations: Float[Tensor, "steps *agents obs"]
    terminated: Bool[Tensor, "steps"]
    episode: Int[Tensor, "steps"]
    provenance: str

    def __len__(self) -> int:
        """Give the number of steps."""
        return len(self.rewards)

    def _rows(self, rows: Tensor) -> "Dataset":
        return self._each(lambda column: column[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Dataset":
        columns = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "provenance"}
        return Dataset(**columns, provenance=self.provenance)

    def where(self, mask: Bool[Tensor, "steps"]) -> "Dataset":
        """Keep the rows where `mask` is true; kept episodes are numbered anew from 0, in order.

        A mask that keeps whole episodes keeps them usable: `windows` and the sums to go take the rows of an episode
        for consecutive steps.
        """
        kept = self._rows(mask)
        return replace(kept, episode=torch.unique_consecutive(kept.episode, return_inverse=True)[1])

    def batch(self, size: int, generator: torch.Generator | None = None) -> "Dataset":
        """Draw `size` rows uniformly with replacement: steps to learn from, no longer episodes to sum over."""
        return self._rows(torch.randint(len(self), (size,), generator=generator))

    def agent(self, j: int) -> "Dataset":
        """Give the rows of agent `j` alone, without an agents axis."""
        if self.rewards.ndim != 2:
            raise ValueError(f"agent({j}) needs a Dataset with an agents axis; this one has a single agent")
        return self._each(lambda column: column[:, j] if column.ndim > 1 else column)

    def episode_starts(self) -> Int[Tensor, "episodes"]:
        """Give the first row of each episode."""
        new = torch.ones(len(self), dtype=torch.bool)
        new[1:] = self.episode[1:] != self.episode[:-1]
        return new.nonzero()[:, 0]

    def _per_episode(self, values: Tensor) -> Tensor:
        totals = values.new_zeros(int(self.episode[-1]) + 1 if len(self) else 0, *values.shape[1:])
        return totals.index_add(0, self.episode, values)

    def episode_returns(self) -> Float[Tensor, "episodes *agents"]:
        """Sum the rewards of each episode."""
        return self._per_episode(self.rewards)

    def episode_costs(self) -> Float[Tensor, "episodes *agents"]:
        """Sum the costs of each episode."""
        return self._per_episode(self.costs)

    def return_to_go(self, discount: float = 1.0) -> Float[Tensor, "steps *agents"]:
        """Sum the (discounted) rewards from each step to the end of its episode."""
        return self._to_go(self.rewards, discount)

    def cost_to_go(self, discount: float = 1.0) -> Float[Tensor, "steps *agents"]:
        """Sum the (discounted) costs from each step to the end of its episode."""
        return self._to_go(self.costs, discount)

    def _to_go(self, values: Tensor, discount: float) -> Tensor:
        # backwards over time, all episodes at once
        starts = self.episode_starts()
        ends = torch.cat([starts[1:], torch.tensor([len(self)])])
        result, later = values.clone(), values.new_zeros(len(starts), *values.shape[1:])
        for back in range(1, int((ends - starts).max()) + 1 if len(self) else 0):
            going = ends - back >= starts
            rows = (ends - back)[going]
            later[going] = values[rows] + discount * later[going]
            result[rows] = later[going]
        return result

    def save(self, path: Path | str) -> None:
        """Write to HDF5 in DSRL's layout, with `provenance` as a file attribute (see `sources.write_file`)."""
        from safediffkit.data.sources import write_file

        write_file(self, Path(path))


def windows(dataset: Dataset, horizon: int) -> Int[Tensor, "windows horizon"]:
    """List the rows of every run of `horizon` consecutive steps; none crosses an episode end.

    Raises:
        ValueError: `horizon` is below 1 or longer than every episode.
    """
    starts = torch.arange(len(dataset) - horizon + 1) if 1 <= horizon <= len(dataset) else torch.arange(0)
    starts = starts[dataset.episode[starts] == dataset.episode[starts + horizon - 1]]
    if not len(starts):
        longest = int(torch.bincount(dataset.episode).max()) if len(dataset) else 0
        raise ValueError(
            f"horizon {horizon} gives no window: it must be from 1 to the longest episode, {longest} steps"
        )
    return starts[:, None] + torch.arange(horizon)


def followed(dataset: Dataset) -> Int[Tensor, "steps"]:
    """List the rows whose next row goes on with the same episode, and those that truly end it.

    The rest, cut by a time limit, have a next observation but no next action on record.

    Raises:
        ValueError: there is no such row.
    """
    follows = dataset.terminated.clone()
    follows[:-1] |= dataset.episode[1:] == dataset.episode[:-1]
    if not follows.any():
        raise ValueError(
            f"none of the {len(dataset)} steps is followed by another of its episode; whole episodes are needed"
        )
    return follows.nonzero()[:, 0]
