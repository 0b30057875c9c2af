"""How fast the noise comes in: q(x_k | x_0) = N(alpha_k x_0, sigma_k² I) with alpha² + sigma² = 1."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """Scales of signal and noise at one level, or at one level per row: x = alpha clean + sigma noise."""

    alpha: Float[Tensor, "*batch"]
    sigma: Float[Tensor, "*batch"]

    @property
    def log_snr(self) -> Float[Tensor, "*batch"]:
        """Give log(alpha / sigma), natural; infinite for clean data. [DPM-Solver's lambda, DOM2 Eq. 4]"""
        return self.alpha.log() - self.sigma.log()

    def like(self, x: Float[Tensor, "..."]) -> "NoiseLevel":
        """Shape the scales so that they multiply `x` row by row: trailing axes of size 1, dtype and device of `x`."""
        shape = self.alpha.shape + (1,) * (x.ndim - self.alpha.ndim)
        return NoiseLevel(self.alpha.to(x).reshape(shape), self.sigma.to(x).reshape(shape))


@dataclass(frozen=True)
class Schedule:
    """The noise levels a model is trained on, ordered clean -> noisy.

    Raises:
        ValueError: the levels do not get strictly noisier.
    """

    alpha: Float[Tensor, "levels"]
    sigma: Float[Tensor, "levels"]

    def __post_init__(self) -> None:
        """Refuse levels in another order: sampling would run and give nonsense."""
        if not len(self) or not (self.log_snr.diff() < 0).all():
            raise ValueError("a Schedule needs at least one level, and alpha / sigma must fall from each to the next")

    @property
    def log_snr(self) -> Float[Tensor, "levels"]:
        """Give log(alpha / sigma) of every level, natural."""
        return NoiseLevel(self.alpha, self.sigma).log_snr

    def __len__(self) -> int:
        """Give the number of levels."""
        return len(self.alpha)

    def level(self, k: int | Int[Tensor, "*batch"]) -> NoiseLevel:
        """Look up level `k`, from 0 (almost clean) to `len(schedule) - 1` (almost pure noise)."""
        return NoiseLevel(self.alpha[k], self.sigma[k])

    def descend(self, steps: int, spacing: str = "log_snr") -> Iterator[tuple[NoiseLevel, NoiseLevel]]:
        """Walk from the noisiest level to clean data (alpha 1, sigma 0) in `steps` strides `(at, to)`.

        Every stride starts on a level of the schedule, no two on the same one, so a network is asked only about
        levels it was trained on. Strides are even in log(alpha / sigma) ("log_snr", once that is above -3), in the
        index ("uniform", elsewhere called trailing) or in its root ("quadratic": short strides near clean data).

        Raises:
            ValueError: `steps` is below 1 or above the number of levels, or `spacing` is unknown.
        """
        levels = len(self)
        if not 1 <= steps <= levels:
            raise ValueError(f"steps={steps} is impossible: a schedule of {levels} levels allows 1 to {levels} steps")
        share = torch.arange(1, steps + 1, dtype=torch.float64) / steps  # of the way from clean to noisy
        if spacing == "log_snr":
            noise = -self.log_snr.double().cpu()
            # Beyond log_snr -3 there is 1/400 of signal: one stride for all of it. Measured on a mixture with known
            # noise, cosine schedule, 10 strides of 2M: error 0.08 with even strides over everything, 0.04 so.
            noisiest = noise[-1].clamp(max=3)
            nearest = torch.searchsorted((noise[1:] + noise[:-1]) / 2, noise[0] + share * (noisiest - noise[0]))
            nearest[-1] = levels - 1
        elif spacing in ("uniform", "quadratic"):
            nearest = (levels * share ** (1 if spacing == "uniform" else 2) - 0.5).floor().long().clamp(min=0)
        else:
            raise ValueError(f'unknown spacing {spacing!r}; there are "log_snr", "uniform" and "quadratic"')
        # rounding may land two strides on one level: push them apart, first upwards, then back below the top
        rank = torch.arange(steps)
        distinct = torch.minimum((nearest - rank).cummax(0).values + rank, levels - steps + rank)
        starts = [self.level(k) for k in reversed(distinct.tolist())]
        clean = NoiseLevel(torch.ones_like(self.alpha[0]), torch.zeros_like(self.sigma[0]))
        return zip(starts, [*starts[1:], clean], strict=True)


def cosine_schedule(levels: int = 100) -> Schedule:
    """Let alpha fall like a quarter cosine; variances are capped at 0.999. [Nichol & Dhariwal 2021, Eq. 17]"""
    offset = 0.008  # keeps the first levels from being almost free of noise
    angle = (torch.arange(levels + 1, dtype=torch.float64) / levels + offset) / (1 + offset) * math.pi / 2
    kept = angle.cos() ** 2
    return _from_log_signal((kept[1:] / kept[:-1]).clamp(min=0.001).log().cumsum(0))


def linear_schedule(levels: int = 1000) -> Schedule:
    """Let the variance that a level adds grow linearly from 1e-4 to 0.02 in 1000 levels. [DDPM Sec. 4] [SPI Eq. 2]"""
    # other counts thin out or fill in the same curve, so that all of them end at the same, nearly pure, noise
    curve = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)
    points = np.interp(np.arange(1, levels + 1) / levels, np.arange(1001) / 1000, [0.0, *curve.tolist()])
    return _from_log_signal(torch.from_numpy(points))


def vp_schedule(levels: int = 5) -> Schedule:
    """Sample the variance-preserving SDE with rates 0.1 to 10, fit for very few levels. [Diffusion-QL's code]"""
    time = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    return _from_log_signal(-0.1 * time - 0.5 * (10 - 0.1) * time**2)


def _from_log_signal(log_signal: Tensor) -> Schedule:
    # log of alpha², in double: 1 - alpha² of an almost clean level would be lost to rounding otherwise
    dtype = torch.get_default_dtype()
    return Schedule((log_signal / 2).exp().to(dtype), (-torch.expm1(log_signal)).sqrt().to(dtype))
