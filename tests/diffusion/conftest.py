from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from safediffkit.diffusion.denoise import NoiseModel
from safediffkit.diffusion.schedule import NoiseLevel


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Closed forms are compared to rounding: in double, and from a fixed seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def gaussian() -> Callable[[float | Tensor, float], NoiseModel]:
    """Make the exact noise model of data drawn from N(mean, spread²): noise = sigma (x - alpha mean) / variance."""

    def make(mean: float | Tensor, spread: float) -> NoiseModel:
        def noise(x: Tensor, level: NoiseLevel, condition: Tensor | None = None) -> Tensor:
            level = level.like(x)
            return level.sigma * (x - level.alpha * mean) / (level.alpha**2 * spread**2 + level.sigma**2)

        return noise

    return make
