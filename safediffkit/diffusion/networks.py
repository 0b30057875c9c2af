"""Networks that predict noise, and the plain MLP that critics use."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.diffusion.schedule import NoiseLevel


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Stack `layers` hidden layers of equal width with SiLU between, and a linear one to the outputs."""
    widths = [inputs, *[hidden] * layers]
    stack = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*stack, nn.Linear(widths[-1], outputs))


class ResidualMLP(nn.Module):
    """A noise model for vectors: x of width `act`, conditions of width `condition` of which any entry may be NaN.

    Inside, it predicts v = alpha noise - sigma clean (`predict="v"`), which stays well scaled at both ends of the
    schedule, or noise itself (`predict="noise"`); it always hands out noise. [Salimans & Ho 2022, Section 4]

    Raises:
        ValueError: `predict` is neither "v" nor "noise"; in a call, the condition's width is not `condition`.
    """

    frequencies: Tensor

    def __init__(self, act: int, condition: int = 0, hidden: int = 256, blocks: int = 2, predict: str = "v") -> None:
        super().__init__()
        if predict not in ("v", "noise"):
            raise ValueError(f'predict={predict!r}: a ResidualMLP predicts "v" or "noise"')
        self.predict, self.condition = predict, condition
        self.register_buffer("frequencies", 0.15 * 2.0 ** torch.arange(6), persistent=False)
        # The first layer comes in three parts, so that the level's is computed once for all rows that share a level,
        # and the condition's once for all candidates that share a condition.
        self.from_x = nn.Linear(act, hidden)
        self.from_level = nn.Linear(2 * 6, hidden, bias=False)
        self.from_condition = nn.Linear(2 * condition, hidden, bias=False) if condition else None
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, act)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "*batch act"], level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None = None
    ) -> Float[Tensor, "*batch act"]:
        """Predict noise. A condition's leading axes may be 1 where x's are not; without one, nothing is given."""
        level = level.like(x)
        # clamped: log_snr is infinite at clean data and at pure noise
        angles = level.log_snr.clamp(-10, 10) * self.frequencies
        hidden = self.from_x(x) + self.from_level(torch.cat([angles.sin(), angles.cos()], -1))
        if condition is not None:
            hidden = hidden + self._read(condition)
        for block in self.blocks:
            hidden = hidden + block(nn.functional.silu(hidden))
        out: Tensor = self.last(nn.functional.silu(hidden))
        return out if self.predict == "noise" else level.alpha * out + level.sigma * x

    def _read(self, condition: Tensor) -> Tensor:
        if self.from_condition is None or condition.shape[-1] != self.condition:
            raise ValueError(f"condition has width {condition.shape[-1]}; this network was made for {self.condition}")
        # beside each value a flag, given or not: a budget of zero is not "no budget"
        given = ~condition.isnan()
        read: Tensor = self.from_condition(torch.cat([condition.where(given, 0), given.to(condition)], -1))
        return read
