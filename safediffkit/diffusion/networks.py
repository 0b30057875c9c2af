"""Networks that predict noise, in vectors and in windows, the plain MLP that critics use, and networks of many agents.

The three for windows are interchangeable: x has the axes (..., horizon, obs), and one level, one condition, or one of
each per window. Sizes and details that no paper of ours gives are our choice.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, Literal

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


class AgentLinear(nn.Module):
    """Linear layers of one shape, one for each agent, as one batched product; the first axis is that of the agents."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.in_features, self.out_features = layers[0].in_features, layers[0].out_features
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        biased = layers[0].bias is not None
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers])) if biased else None

    def forward(self, x: Float[Tensor, "#agents *batch inputs"]) -> Float[Tensor, "agents *batch outputs"]:
        """Apply each layer to its agent's rows; an agents axis of size 1 stands for rows that all agents share."""
        weight, bias = self.weight, self.bias
        rows = x if len(x) == len(weight) else x.expand(len(weight), *x.shape[1:])
        rows = rows if x.ndim == 3 else rows.flatten(1, -2)
        out = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
        return out if x.ndim == 3 else out.unflatten(1, x.shape[1:-1])


class PerAgent(nn.Module):
    """A network for each agent, all evaluated together: agent j's rows pass through a copy of `networks[j]` alone.

    The networks are noise models for vectors, or take one tensor as `mlp`'s do. They give what they would give one
    after the other, to rounding, and so do their gradients; for a few rows that takes as long as one of them.

    Raises:
        ValueError: there is no network, they are not of one shape, or one has weights outside linear layers.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        shapes = [{name: weight.shape for name, weight in each.named_parameters()} for each in networks]
        if not networks or any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"{len(networks)} networks were given: PerAgent needs at least one, and all of one shape")
        self.network = _stacked(networks)

    def forward(
        self,
        x: Float[Tensor, "*batch agents _"],
        level: NoiseLevel | None = None,
        condition: Float[Tensor, "*#batch #agents _"] | None = None,
    ) -> Float[Tensor, "*batch agents _"]:
        """Give every agent its own network's output; without a level, that of networks which take x alone."""
        rows = x.movedim(-2, 0)
        if level is None:
            out: Tensor = self.network(rows)
            return out.movedim(0, -2)
        level = level.like(x)
        level = NoiseLevel(level.alpha.movedim(-2, 0), level.sigma.movedim(-2, 0))
        out = self.network(rows, level, None if condition is None else condition.movedim(-2, 0))
        return out.movedim(0, -2)


def _stacked(networks: Sequence[nn.Module]) -> nn.Module:
    layers = [each for each in networks if isinstance(each, nn.Linear)]
    if layers:
        return AgentLinear(layers)
    if any(True for _ in networks[0].parameters(recurse=False)):
        raise ValueError(f"PerAgent stacks linear layers; a {type(networks[0]).__name__} has weights of another kind")
    together = deepcopy(networks[0])
    for name, _ in networks[0].named_children():
        together.add_module(name, _stacked([each.get_submodule(name) for each in networks]))
    return together


def read_condition(layer: nn.Linear | AgentLinear | None, condition: Float[Tensor, "*batch _"]) -> Float[Tensor, "..."]:
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


class VectorNoise(nn.Module):
    """A noise model for vectors in two stages: `read` takes in level and condition, then `body` predicts v from x.

    Whoever denoises the same rows level by level may read all levels beforehand, in one call. `body` is "unet", a
    residual network in the shape of a U-Net as in DOM2 and SfBC, or "mlp", a plain one without residual connections.
    [DOM2 Section 4.1, Figure 6] DOM2's Figure 8 is not in our copy, so widths and details are our choice, and so is v.

    Raises:
        ValueError: there is no such body, or `hidden` is no multiple of 4; in a call, the condition's width is not
            `condition`.
    """

    def __init__(self, body: str, act: int, condition: int = 0, hidden: int = 128) -> None:
        super().__init__()
        if body not in BODIES or hidden % 4:
            raise ValueError(
                f"body={body!r}, hidden={hidden}: the body is one of {', '.join(map(repr, BODIES))}, and hidden a "
                "multiple of 4, since a U-Net is a quarter as wide in its middle"
            )
        self.body = BODIES[body](act, hidden)
        self.context = Context(condition, hidden // 2)
        self.shift = nn.Linear(hidden // 2, sum(self.body.widths))  # one product for all layers that it shifts
        _zero(self.body.last)

    def forward(
        self, x: Float[Tensor, "*batch act"], level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None = None
    ) -> Float[Tensor, "*batch act"]:
        """Predict noise. A condition's leading axes may be 1 where x's are not; without one, nothing is given."""
        level = level.like(x)
        return _noise(self.body(x, self.read(level, condition)), x, level, "v")

    def read(self, level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None) -> Float[Tensor, "*#batch _"]:
        """Give what `body` needs to know of a level shaped by `NoiseLevel.like` and a condition with as many axes."""
        shift: Tensor = self.shift(self.context(level, condition))
        return shift


class _UNetBody(nn.Module):
    def __init__(self, act: int, hidden: int) -> None:
        super().__init__()
        half, quarter = hidden // 2, hidden // 4
        self.widths = [hidden, half, quarter, quarter, half, hidden]
        self.down = nn.ModuleList(_VectorBlock(*pair) for pair in pairwise([act, hidden, half, quarter]))
        self.middle = _VectorBlock(quarter, quarter)
        # twice as much comes in as comes out of the block below: what was computed on the way down is joined
        self.up = nn.ModuleList(_VectorBlock(width, width) for width in (half, hidden))
        self.last = nn.Linear(2 * hidden, act)

    def forward(self, x: Float[Tensor, "*batch act"], shift: Float[Tensor, "*#batch _"]) -> Float[Tensor, "*batch act"]:
        shifts = shift.split(self.widths, -1)
        hidden, joined = x, []
        for block, part in zip(self.down, shifts[:3], strict=True):
            hidden = block(hidden, part)
            joined.append(hidden)
        hidden = self.middle(hidden, shifts[3])
        for block, part in zip(self.up, shifts[4:], strict=True):
            hidden = block(torch.cat([hidden, joined.pop()], -1), part)
        out: Tensor = self.last(torch.cat([hidden, joined.pop()], -1))
        return out


class _VectorBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs)
        self.then = nn.Linear(outputs, outputs)
        self.past = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(x)) + shift
        out: Tensor = self.past(x) + nn.functional.silu(self.then(hidden))
        return out


class _PlainBody(nn.Module):
    def __init__(self, act: int, hidden: int) -> None:
        super().__init__()
        self.widths = [hidden]
        self.from_x = nn.Linear(act, hidden)
        self.middle = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.last = nn.Linear(hidden, act)

    def forward(self, x: Float[Tensor, "*batch act"], shift: Float[Tensor, "*#batch _"]) -> Float[Tensor, "*batch act"]:
        out: Tensor = self.last(self.middle(self.from_x(x) + shift))
        return out


BODIES: dict[str, Callable[[int, int], Any]] = {"unet": _UNetBody, "mlp": _PlainBody}


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
