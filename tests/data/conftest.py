"""Made-up recordings for the tests of datasets, files and downloads."""

import pytest
import torch

from safediffkit.data.dataset import Dataset


@pytest.fixture
def make_dataset():
    """Make random episodes of the given lengths; next_observations are the next row inside an episode."""

    def make(lengths=(5, 1, 7), *, obs=8, act=2, agents=(), ended=(), seed=0) -> Dataset:
        draw = torch.Generator().manual_seed(seed)
        steps = sum(lengths)
        observations = torch.randn(steps, *agents, obs, generator=draw)
        lasts = torch.tensor(lengths, dtype=torch.int64).cumsum(0) - 1
        following = observations.roll(-1, 0)
        following[lasts] = torch.randn(len(lengths), *agents, obs, generator=draw)
        terminated = torch.zeros(steps, dtype=torch.bool)
        terminated[lasts[list(ended)]] = True
        return Dataset(
            observations=observations,
            actions=torch.rand(steps, *agents, act, generator=draw) * 2 - 1,
            rewards=torch.randn(steps, *agents, generator=draw),
            costs=torch.rand(steps, *agents, generator=draw).round(),
            next_observations=following,
            terminated=terminated,
            episode=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)),
            provenance="made up for a test, é",
        )

    return make
