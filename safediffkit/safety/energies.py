"""Energies of noisy data, which `classifier` follows to sample q(x) exp(beta R(x)) instead of q(x).

What tilts q so at every noise level is log E[exp(beta R(x_0)) | x_k]. A network that is trained to guess beta R from
noisy x by least squares learns E[beta R(x_0) | x_k] instead: right on clean data, wrong wherever R bends.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.diffusion.networks import LevelWaves, mlp, read_condition
from safediffkit.diffusion.schedule import NoiseLevel, Schedule


class Energy(nn.Module):
    """Gives each noisy vector of width `width` one value; windows are flattened by the caller.

    Raises:
        ValueError: in a call, the condition's width is not `condition`.
    """

    def __init__(self, width: int, condition: int = 0, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.width = width
        self.waves = LevelWaves()
        self.from_x = nn.Linear(width, hidden)
        self.from_level = nn.Linear(self.waves.width, hidden, bias=False)
        self.from_condition = nn.Linear(2 * condition, hidden, bias=False) if condition else None
        self.rest = mlp(hidden, hidden, 1, layers - 1)

    def forward(
        self, x: Float[Tensor, "*batch width"], level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Give the energies. A condition's leading axes may be 1 where x's are not; any entry of it may be NaN."""
        level = level.like(x)
        # What noisy x tells of clean x, it tells through alpha x / sigma². Reading alpha x makes the slope vanish with
        # the signal, as the true one does; else its error, divided by alpha, would throw the first steps far off.
        hidden = self.from_x(level.alpha * x) + self.from_level(self.waves(level))
        if condition is not None:
            hidden = hidden + read_condition(self.from_condition, condition)
        values: Tensor = self.rest(nn.functional.silu(hidden))
        return values.squeeze(-1)


def contrastive_loss(
    energy: Callable[..., Tensor],
    schedule: Schedule,
    clean: Float[Tensor, "groups candidates width"],
    log_weight: Float[Tensor, "groups candidates"],
    condition: Float[Tensor, "groups condition"] | None = None,
) -> Float[Tensor, ""]:
    """Let the energy tell, of a group of candidates under equal noise, which weighs how much. [CEP Eq. 12]

    `log_weight` is beta R; the candidates of a group share the condition and one random level. The least loss is at
    log E[exp(beta R) | x_k] up to a constant per level and condition: exactly so in the limit of many candidates, and
    with labels normalised in each group, as here, nearly so for few.
    """
    noisy, level = _noised(schedule, clean)
    guess = energy(noisy, level, None if condition is None else condition[:, None])
    return nn.functional.cross_entropy(guess, log_weight.softmax(-1))


def regression_loss(
    energy: Energy,
    schedule: Schedule,
    clean: Float[Tensor, "batch width"],
    log_weight: Float[Tensor, "batch"],
    condition: Float[Tensor, "batch condition"] | None = None,
) -> Float[Tensor, ""]:
    """Regress beta R on noisy x by least squares: the rival, whose least loss is at E[beta R | x_k]. [Diffuser]"""
    noisy, level = _noised(schedule, clean)
    return nn.functional.mse_loss(energy(noisy, level, condition), log_weight)


def follow_energy(
    energy: Energy, condition: Float[Tensor, "*batch condition"] | None = None
) -> Callable[[Float[Tensor, "..."], NoiseLevel], Float[Tensor, "..."]]:
    """Make of an energy what `classifier` takes: the value of each x, or of each window, under the condition.

    The condition's leading axes may be 1, or left out at the front, where x's are not.
    """

    def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
        flat = x if x.shape[-1] == energy.width else x.flatten(-2)
        values: Tensor = energy(flat, level, condition)
        return values

    return log_prob


def _noised(schedule: Schedule, clean: Tensor) -> tuple[Tensor, NoiseLevel]:
    level = schedule.level(torch.randint(len(schedule), (len(clean),)))
    scales = level.like(clean)
    return scales.alpha * clean + scales.sigma * torch.randn_like(clean), level
