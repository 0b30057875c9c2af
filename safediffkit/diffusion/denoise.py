"""Training and sampling. Predicted noise is the one currency: models give it, guidances bend it, solvers spend it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from safediffkit.diffusion.schedule import NoiseLevel, Schedule

Before = tuple[Tensor, NoiseLevel] | None


@runtime_checkable
class NoiseModel(Protocol):
    """Predicts the noise in `x`, given its level and a condition of which any entry may be NaN, "not given"."""

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Tensor | None, /) -> Tensor:
        """Predict noise of the shape of `x`; the level is one for all rows or one per row (see `NoiseLevel.like`)."""
        ...


@runtime_checkable
class Solver(Protocol):
    """Takes `x` from one noise level to a cleaner one."""

    def __call__(self, x: Tensor, noise: Tensor, at: NoiseLevel, to: NoiseLevel, before: Before, /) -> Tensor:
        """Step; `before` is the (predicted clean x, level) of the previous step, None on the first."""
        ...


def identity(x: Tensor) -> Tensor:
    """Give `x` back."""
    return x


def predict_clean(
    x: Float[Tensor, "*batch"], noise: Float[Tensor, "*batch"], level: NoiseLevel
) -> Float[Tensor, "*batch"]:
    """Take the noise out: (x - sigma noise) / alpha. [DDIM Eq. 9]"""
    level = level.like(x)
    return (x - level.sigma * noise) / level.alpha


def ddim_step(
    x: Float[Tensor, "*batch"], noise: Float[Tensor, "*batch"], at: NoiseLevel, to: NoiseLevel, before: Before = None
) -> Float[Tensor, "*batch"]:
    """Predict clean data, then put the same noise back, less of it. [DDIM Eq. 12, without randomness]"""
    clean, to = predict_clean(x, noise, at), to.like(x)
    return to.alpha * clean + to.sigma * noise


def ddpm_step(
    x: Float[Tensor, "*batch"], noise: Float[Tensor, "*batch"], at: NoiseLevel, to: NoiseLevel, before: Before = None
) -> Float[Tensor, "*batch"]:
    """Draw from the posterior q(x_to | x_at, predicted clean x), from torch's global generator. [DDPM Eqs. 6-7]

    Arriving at clean data, the posterior has no spread and nothing random is added. [SPI Eq. 3, 8]
    """
    clean, at, to = predict_clean(x, noise, at), at.like(x), to.like(x)
    keep = at.alpha / to.alpha  # signal kept on the way from `to` up to `at`
    added = (at.sigma - to.sigma) * (at.sigma + to.sigma) / to.alpha**2  # variance added there: 1 - keep², stably
    mean = (to.alpha * added * clean + keep * to.sigma**2 * x) / at.sigma**2
    return mean + added.sqrt() * to.sigma / at.sigma * torch.randn_like(x)


def dpm_solver_1_step(
    x: Float[Tensor, "*batch"], noise: Float[Tensor, "*batch"], at: NoiseLevel, to: NoiseLevel, before: Before = None
) -> Float[Tensor, "*batch"]:
    """Solve the noise ODE to first order: (a'/a) x - s' (e^h - 1) noise; equals DDIM. [DPM-Solver Eq. 3.7, DOM2 Eq. 4]

    DOM2 prints s (e^-h - 1) for the second factor, start and end exchanged, which adds noise instead of removing it.
    """
    at, to = at.like(x), to.like(x)
    grown = to.alpha * at.sigma / at.alpha  # s' e^h, finite even where s' = 0 makes h = log(a'/s') - log(a/s) infinite
    return to.alpha / at.alpha * x - (grown - to.sigma) * noise


def dpm_solver_2m_step(
    x: Float[Tensor, "*batch"], noise: Float[Tensor, "*batch"], at: NoiseLevel, to: NoiseLevel, before: Before = None
) -> Float[Tensor, "*batch"]:
    """Extrapolate predicted clean data along the last two steps, to second order. [DPM-Solver++ Algorithm 2]

    First order on the first step, and on the step to clean data, whose stride in log_snr is infinite.
    """
    clean, at, to = predict_clean(x, noise, at), at.like(x), to.like(x)
    if before is not None:
        clean_before, level_before = before
        ratio = (to.log_snr - at.log_snr) / (at.log_snr - level_before.like(x).log_snr)
        clean = clean + torch.where(to.sigma > 0, ratio / 2, 0) * (clean - clean_before)
    left = to.sigma / at.sigma  # share of the present x that stays
    return left * x + (to.alpha - left * at.alpha) * clean


def noise_prediction_loss(
    noise_model: NoiseModel,
    schedule: Schedule,
    clean: Float[Tensor, "batch ..."],
    condition: Float[Tensor, "batch ..."] | None = None,
    forget: float = 0.0,
) -> Float[Tensor, ""]:
    """Noise each row to a random level and score the noise guessed back by its mean squared error. [DDPM Eq. 14]

    [SPI Eq. 7, 9] [DOM2 Eq. 3] [CBF Eq. 4] [TCDP Eq. 2], whose score is -noise / sigma: the same loss, level by level.

    With probability `forget` a row's whole condition becomes NaN, "not given", which classifier-free guidance needs.

    Raises:
        ValueError: `forget` is no probability, or there is no condition to forget.
    """
    if not 0 <= forget <= 1 or (forget and condition is None):
        raise ValueError(f"forget={forget} must be a probability from 0 to 1, and 0 where no condition is given")
    rows = len(clean)
    level = schedule.level(torch.randint(len(schedule), (rows,)))
    noise = torch.randn_like(clean)
    scales = level.like(clean)
    if condition is not None and forget:
        forgotten = torch.rand(rows, *(1,) * (condition.ndim - 1)) < forget
        condition = condition.masked_fill(forgotten.to(condition.device), torch.nan)
    guess = noise_model(scales.alpha * clean + scales.sigma * noise, level, condition)
    return torch.nn.functional.mse_loss(guess, noise)


def denoise(
    noise_model: NoiseModel,
    schedule: Schedule,
    x: Float[Tensor, "..."],
    condition: Float[Tensor, "..."] | None = None,
    *,
    steps: int = 10,
    solver: Solver = ddim_step,
    project: Callable[[Tensor], Tensor] = identity,
    spacing: str = "log_snr",
) -> Iterator[Tensor]:
    """Yield every x on the way from noise to data, the first and the last included; gradients flow through all.

    `project` is applied to each x, the first included: it may pin what is known, such as the present state of a plan.

    Raises:
        ValueError: `steps` or `spacing` do not fit the schedule.
    """
    before: Before = None
    strides = schedule.descend(steps, spacing)
    x = project(x)
    yield x
    for at, to in strides:
        noise = noise_model(x, at, condition)
        here = predict_clean(x, noise, at), at
        x = project(solver(x, noise, at, to, before))
        before = here
        yield x


def sample(
    noise_model: NoiseModel,
    schedule: Schedule,
    shape: Sequence[int],
    condition: Float[Tensor, "..."] | None = None,
    *,
    steps: int = 10,
    solver: Solver = ddim_step,
    project: Callable[[Tensor], Tensor] = identity,
    spacing: str = "log_snr",
) -> Tensor:
    """Draw noise of `shape` from torch's global generator and denoise it; gradients flow through every step.

    Raises:
        ValueError: `steps` or `spacing` do not fit the schedule.
    """
    like = schedule.alpha if condition is None else condition
    x = torch.randn(*shape, dtype=like.dtype, device=like.device)
    for step in denoise(
        noise_model, schedule, x, condition, steps=steps, solver=solver, project=project, spacing=spacing
    ):
        x = step
    return x
