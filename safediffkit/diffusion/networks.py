"""Networks that predict noise, in vectors and in windows, and the plain MLP that critics use.

The three for windows are interchangeable: x has the axes (..., horizon, obs), and one level, one condition, or one of
each per window. Sizes and details that no paper of ours gives are our choice.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.diffusion.schedule import NoiseLevel


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Stack `layers` hidden layers of equal width with SiLU between, and a linear one to the outputs."""
    widths = [inputs, *[hidden] * layers]
    stack = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*stack, nn.Linear(widths[-1], outputs))


class LevelWaves(nn.Module):
    """Turn a noise level into sines and cosines of its log_snr, which a linear layer reads easily."""

    width = 2 * 6
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 0.15 * 2.0 ** torch.arange(6), persistent=False)

    def forward(self, level: NoiseLevel) -> Float[Tensor, "*batch _"]:
        """Give the waves of a level whose last axis is 1, as `NoiseLevel.like` makes it."""
        # clamped: log_snr is infinite at clean data and at pure noise
        angles = level.log_snr.clamp(-10, 10) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


def read_condition(layer: nn.Linear | None, condition: Float[Tensor, "*batch _"]) -> Float[Tensor, "*batch hidden"]:
    """Read values, 0 for NaN, and beside each a flag, given or not: a budget of 0 is not "no budget".

    Raises:
        ValueError: the condition is not half as wide as the layer's inputs, or there is no layer for one.
    """
    width = layer.in_features // 2 if layer else 0
    if layer is None or condition.shape[-1] != width:
        raise ValueError(f"condition has width {condition.shape[-1]}; this network was made for {width}")
    given = ~condition.isnan()
    read: Tensor = layer(torch.cat([condition.where(given, 0), given.to(condition)], -1))
    return read


class Context(nn.Module):
    """Embed the level and the condition together: what is the same for a whole window, or for many, comes in here."""

    def __init__(self, condition: int, hidden: int) -> None:
        super().__init__()
        self.waves = LevelWaves()
        self.from_level = nn.Linear(self.waves.width, hidden)
        self.from_condition = nn.Linear(2 * condition, hidden, bias=False) if condition else None
        self.mix = nn.Linear(hidden, hidden)

    def forward(
        self, level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None
    ) -> Float[Tensor, "*#batch hidden"]:
        """Read a level shaped by `NoiseLevel.like` and a condition with as many axes; axes of size 1 stay so."""
        hidden: Tensor = self.from_level(self.waves(level))
        if condition is not None:
            hidden = hidden + read_condition(self.from_condition, condition)
        return nn.functional.silu(self.mix(nn.functional.silu(hidden)))


def _known(predict: str) -> str:
    if predict not in ("v", "noise"):
        raise ValueError(f'predict={predict!r}: a noise model predicts "v" or "noise"')
    return predict


def _noise(out: Tensor, x: Tensor, level: NoiseLevel, predict: str) -> Tensor:
    # v = alpha noise - sigma clean, so noise = alpha v + sigma x
    return out if predict == "noise" else level.alpha * out + level.sigma * x


class ResidualMLP(nn.Module):
    """A noise model for vectors: x of width `act`, conditions of width `condition` of which any entry may be NaN.

    Inside, it predicts v = alpha noise - sigma clean (`predict="v"`), which stays well scaled at both ends of the
    schedule, or noise itself (`predict="noise"`); it always hands out noise. [Salimans & Ho 2022, Section 4]

    Raises:
        ValueError: `predict` is neither "v" nor "noise"; in a call, the condition's width is not `condition`.
    """

    def __init__(self, act: int, condition: int = 0, hidden: int = 256, blocks: int = 2, predict: str = "v") -> None:
        super().__init__()
        self.predict = _known(predict)
        self.waves = LevelWaves()
        # The first layer comes in three parts, so that the level's is computed once for all rows that share a level,
        # and the condition's once for all candidates that share a condition.
        self.from_x = nn.Linear(act, hidden)
        self.from_level = nn.Linear(self.waves.width, hidden, bias=False)
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
        hidden = self.from_x(x) + self.from_level(self.waves(level))
        if condition is not None:
            hidden = hidden + read_condition(self.from_condition, condition)
        for block in self.blocks:
            hidden = hidden + block(nn.functional.silu(hidden))
        return _noise(self.last(nn.functional.silu(hidden)), x, level, self.predict)


class WindowMLP(nn.Module):
    """A noise model for windows that sees them as one long vector: the fastest of the three by far on one core.

    Raises:
        ValueError: see `ResidualMLP`; in a call, the window is not `horizon` x `obs`.
    """

    def __init__(
        self, obs: int, horizon: int, condition: int = 0, hidden: int = 256, blocks: int = 2, predict: str = "v"
    ) -> None:
        super().__init__()
        self.window = horizon, obs
        self.network = ResidualMLP(horizon * obs, condition, hidden, blocks, predict)

    def forward(
        self,
        x: Float[Tensor, "*batch horizon obs"],
        level: NoiseLevel,
        condition: Float[Tensor, "*#batch _"] | None = None,
    ) -> Float[Tensor, "*batch horizon obs"]:
        """Predict noise. A condition's leading axes may be 1 where x's are not; without one, nothing is given."""
        _check_window(x, self.window)
        noise: Tensor = self.network(x.flatten(-2), level, condition).reshape(x.shape)
        return noise


class DiT1D(nn.Module):
    """A transformer over the steps of a window, told level and condition by adaLN-Zero. [DiT, Section 3.2]

    Every block starts as the identity and the output as zero. SiLU stands for DiT's GELU, at a quarter of its price.

    Raises:
        ValueError: `heads` does not divide `hidden`, or `predict` is neither "v" nor "noise"; in a call, the condition
            or the window has another size than the network was made for.
    """

    def __init__(
        self,
        obs: int,
        horizon: int,
        condition: int = 0,
        hidden: int = 128,
        blocks: int = 2,
        heads: int = 4,
        predict: str = "v",
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"heads={heads} do not divide hidden={hidden}: each head gets an equal part of the width")
        self.window, self.predict = (horizon, obs), _known(predict)
        self.from_x = nn.Linear(obs, hidden)
        self.place = nn.Parameter(_places(horizon, hidden))
        self.context = Context(condition, hidden)
        self.blocks = nn.ModuleList(_DiTBlock(hidden, heads) for _ in range(blocks))
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.last = nn.Linear(hidden, obs)
        for layer in (self.modulate, self.last):
            _zero(layer)

    def forward(
        self,
        x: Float[Tensor, "*batch horizon obs"],
        level: NoiseLevel,
        condition: Float[Tensor, "*#batch _"] | None = None,
    ) -> Float[Tensor, "*batch horizon obs"]:
        """Predict noise. A condition's leading axes may be 1 where x's are not; without one, nothing is given."""
        _check_window(x, self.window)
        level = level.like(x)
        context = self.context(level, None if condition is None else condition[..., None, :])
        tokens = self.from_x(x) + self.place
        for block in self.blocks:
            tokens = block(tokens, context)
        shift, scale = self.modulate(context).chunk(2, -1)
        return _noise(self.last(_modulated(tokens, shift, scale)), x, level, self.predict)


class _DiTBlock(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend = nn.Linear(hidden, 3 * hidden)
        self.gather = nn.Linear(hidden, hidden)
        self.think = mlp(hidden, 4 * hidden, hidden, layers=1)
        self.modulate = nn.Linear(hidden, 6 * hidden)
        _zero(self.modulate)

    def forward(
        self, tokens: Float[Tensor, "*batch horizon hidden"], context: Float[Tensor, "*#batch 1 hidden"]
    ) -> Float[Tensor, "*batch horizon hidden"]:
        shift, scale, gate, then_shift, then_scale, then_gate = self.modulate(context).chunk(6, -1)
        parts = self.attend(_modulated(tokens, shift, scale))
        # the fast kernels want exactly four axes: windows, heads, horizon, width
        parts = parts.reshape(-1, parts.shape[-2], 3, self.heads, tokens.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2).reshape(tokens.shape)
        tokens = torch.addcmul(tokens, gate, self.gather(seen))
        return torch.addcmul(tokens, then_gate, self.think(_modulated(tokens, then_shift, then_scale)))


class TemporalUNet(nn.Module):
    """A noise model for windows made of 1-D convolutions over the horizon, at three resolutions. [Diffuser]

    Raises:
        ValueError: `hidden` is no multiple of 8, or `predict` is neither "v" nor "noise"; in a call, the condition or
            the window has another size than the network was made for.
    """

    def __init__(self, obs: int, horizon: int, condition: int = 0, hidden: int = 64, predict: str = "v") -> None:
        super().__init__()
        if hidden % 8:
            raise ValueError(f"hidden={hidden} is no multiple of 8: channels are normalised in 8 groups")
        self.window, self.predict = (horizon, obs), _known(predict)
        self.context = Context(condition, hidden)
        self.fine = _ConvBlock(obs, hidden, hidden)
        self.middle = _ConvBlock(hidden, 2 * hidden, hidden)
        self.coarse = _ConvBlock(2 * hidden, 2 * hidden, hidden)
        self.middle_again = _ConvBlock(4 * hidden, hidden, hidden)
        self.fine_again = _ConvBlock(2 * hidden, hidden, hidden)
        self.halve = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in (hidden, 2 * hidden))
        self.last = nn.Conv1d(hidden, obs, 1)
        _zero(self.last)

    def forward(
        self,
        x: Float[Tensor, "*batch horizon obs"],
        level: NoiseLevel,
        condition: Float[Tensor, "*#batch _"] | None = None,
    ) -> Float[Tensor, "*batch horizon obs"]:
        """Predict noise. A condition's leading axes may be 1 where x's are not; without one, nothing is given."""
        _check_window(x, self.window)
        level = level.like(x)
        context = self.context(level, None if condition is None else condition[..., None, :])
        # convolutions want exactly three axes: windows, channels, horizon
        context = context.expand(*x.shape[:-2], 1, -1).reshape(-1, 1, context.shape[-1])
        fine = self.fine(x.reshape(-1, *self.window).transpose(1, 2), context)
        middle = self.middle(self.halve[0](fine), context)
        coarse = self.coarse(self.halve[1](middle), context)
        middle = self.middle_again(_doubled(coarse, middle), context)
        fine = self.fine_again(_doubled(middle, fine), context)
        out = self.last(fine).transpose(1, 2).reshape(x.shape)
        return _noise(out, x, level, self.predict)


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 5, padding=2)
        self.then = nn.Conv1d(outputs, outputs, 5, padding=2)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))
        self.modulate = nn.Linear(hidden, 2 * outputs)
        self.past = nn.Conv1d(inputs, outputs, 1)

    def forward(
        self, x: Float[Tensor, "windows inputs horizon"], context: Float[Tensor, "#windows 1 hidden"]
    ) -> Float[Tensor, "windows outputs horizon"]:
        shift, scale = self.modulate(context).transpose(1, 2).chunk(2, 1)
        hidden = torch.addcmul(shift, self.norms[0](self.first(x)), 1 + scale)
        hidden = self.norms[1](self.then(nn.functional.silu(hidden)))
        out: Tensor = self.past(x) + nn.functional.silu(hidden)
        return out


NETWORKS: dict[str, Callable[..., nn.Module]] = {"dit": DiT1D, "unet": TemporalUNet, "mlp": WindowMLP}
Network = Literal["dit", "unet", "mlp"]


class Patches(nn.Module):
    """A noise model for windows that reads `patch` states as one token, which is as many times faster. [DiT, 3.2]

    `network` is "dit", "unet" or "mlp", see `NETWORKS`. That tokens hold several states is our choice.

    Raises:
        ValueError: there is no such network, or `patch` does not divide `horizon`.
    """

    def __init__(
        self, network: str, obs: int, horizon: int, condition: int = 0, hidden: int = 64, patch: int = 1
    ) -> None:
        super().__init__()
        if network not in NETWORKS or horizon % patch:
            raise ValueError(
                f"network={network!r}, horizon={horizon}, patch={patch}: the network is one of "
                f"{', '.join(map(repr, NETWORKS))}, and a patch of the horizon must leave no rest"
            )
        self.patch = patch
        self.network = NETWORKS[network](patch * obs, horizon // patch, condition, hidden)

    def forward(
        self,
        x: Float[Tensor, "*batch horizon obs"],
        level: NoiseLevel,
        condition: Float[Tensor, "*#batch _"] | None = None,
    ) -> Float[Tensor, "*batch horizon obs"]:
        """Predict noise."""
        tokens = x.unflatten(-2, (-1, self.patch)).flatten(-2)
        noise: Tensor = self.network(tokens, level, condition).reshape(x.shape)
        return noise


def _doubled(coarse: Tensor, fine: Tensor) -> Tensor:
    # to the very length of the finer one: a horizon need not be a multiple of 4
    return torch.cat([nn.functional.interpolate(coarse, size=fine.shape[-1]), fine], 1)


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, nn.functional.layer_norm(tokens, tokens.shape[-1:]), 1 + scale)


def _places(horizon: int, hidden: int) -> Tensor:
    # neighbouring steps start with similar codes: sines and cosines of wavelengths 2 pi ... 20,000 pi, to be learned on
    angles = torch.arange(horizon)[:, None] * 10_000 ** (-torch.arange(0, hidden, 2) / hidden)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :hidden]


def _zero(layer: nn.Linear | nn.Conv1d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _check_window(x: Tensor, window: tuple[int, int]) -> None:
    if x.shape[-2:] != window:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this network was made for windows: its last two axes must be "
            f"{window[0]} steps x {window[1]} values"
        )
