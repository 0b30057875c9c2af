"""Small datasets and policies that several test files use."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.policy import History


def make_dataset(episodes: int = 6, steps: int = 10, obs: int = 3, act: int = 2, seed: int = 0) -> Dataset:
    """Random episodes of equal length in which a_0 earns reward and costs once it is above 0."""
    draw = torch.Generator().manual_seed(seed)
    path = torch.randn(episodes, steps + 1, obs, generator=draw)
    action = torch.rand(episodes * steps, act, generator=draw) * 2 - 1
    return Dataset(
        observations=path[:, :-1].reshape(-1, obs),
        actions=action,
        rewards=action[:, 0] + 1,
        costs=(action[:, 0] > 0).float(),
        next_observations=path[:, 1:].reshape(-1, obs),
        terminated=torch.zeros(episodes * steps, dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="made for a test",
    )


def make_team(agents: int = 3, **keywords: int) -> Dataset:
    """The episodes of a team, each agent's being those of `make_dataset` with a seed of its own."""
    parts = [make_dataset(**keywords, seed=j) for j in range(agents)]
    names = ("observations", "actions", "rewards", "costs", "next_observations")
    return replace(parts[0], **{name: torch.stack([getattr(part, name) for part in parts], 1) for name in names})


class Linear(nn.Module):
    """A deterministic policy, linear in the observation."""

    def __init__(self, obs: int, act: int) -> None:
        super().__init__()
        self.arguments = {"obs": obs, "act": act}
        self.layer = nn.Linear(obs, act)

    def act(self, history: History) -> Tensor:
        return self.layer(history.observation).tanh()
