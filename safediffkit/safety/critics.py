"""Value networks that judge an action in a state, and the losses that train them."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from safediffkit.diffusion.networks import PerAgent, mlp


class Critics(nn.Module):
    """Several value networks of one shape, evaluated together: one batched product a layer.

    On one core this costs the same as one network after the other at large batches and a third at small ones.
    """

    def __init__(self, obs: int, act: int, critics: int, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        widths = [obs + act, *[hidden] * layers, 1]
        shapes = list(pairwise(widths))
        self.weights = nn.ParameterList(torch.empty(critics, i, o) for i, o in shapes)
        self.biases = nn.ParameterList(torch.empty(critics, 1, o) for _, o in shapes)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "critics *batch"]:
        """Give every network's value of each action."""
        pair = torch.cat([observation, action], -1)
        x = pair.reshape(1, -1, pair.shape[-1]).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = nn.functional.silu(x)
        return x.view(-1, *pair.shape[:-1])


class AgentCritics(nn.Module):
    """Twin value networks for each agent, which see that agent's observation and action alone; evaluated together."""

    def __init__(self, obs: int, act: int, agents: int, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.network = PerAgent([mlp(obs + act, hidden, 1, layers) for _ in range(2 * agents)])

    def forward(
        self, observation: Float[Tensor, "*batch agents obs"], action: Float[Tensor, "*batch agents act"]
    ) -> Float[Tensor, "2 *batch agents"]:
        """Give both twins' value of each agent's own action."""
        pair = torch.cat([observation, action], -1)
        values: Tensor = self.network(torch.cat([pair, pair], -2))
        return torch.stack(values[..., 0].chunk(2, -1))


def td_loss(
    values: Float[Tensor, "critics *signals batch"],
    signal: Float[Tensor, "*signals batch"],
    next_value: Float[Tensor, "*signals batch"],
    terminated: Bool[Tensor, "batch"],
    discount: float,
) -> Float[Tensor, ""]:
    """Square the gap between each critic and signal + discount x next value, no future after a true end.

    The mean over the batch is summed over signals and critics, so that adding one slows no other down.
    With the recorded next action's value this is SARSA. [SPI Eq. 10] [SPI Eq. 11]
    """
    target = (signal + discount * next_value * ~terminated).detach()
    return (values - target).square().mean(-1).sum()


def expectile_loss(gap: Float[Tensor, "*batch"], expectile: float) -> Float[Tensor, ""]:
    """Square `gap` = target - value, weighed by `expectile` where above 0, else by the rest. [IQL]

    Above one half the value is drawn to the greater targets, below to the lesser ones ("reverse"). [FISOR]
    """
    weight = torch.where(gap > 0, expectile, 1 - expectile)
    return (weight * gap.square()).mean()


def conservative_loss(
    values_random: Float[Tensor, "plans *signals batch"],
    values_data: Float[Tensor, "*signals batch"],
    weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Hold values down at random actions, up at recorded ones: weight x (log sum exp Q(random) - Q(data)). [DOM2 Eq. 1]

    The random actions are drawn uniformly from all there are, `plans` of them for each state. The mean over the batch
    is summed over signals and critics, as `td_loss` does. DOM2's words, large values encouraged and low ones penalised
    in the data, leave the sign open; its formula is this one. [CQL Eq. 4, the variant with entropy]
    """
    return weight * (values_random.logsumexp(0) - values_data).mean(-1).sum()


def mean_rewards(reward: Float[Tensor, "steps agents"], discount: float) -> Float[Tensor, "steps agents"]:
    """Scale rewards so that values are means over steps, in units of an agent's mean reward (our choice).

    So a caution, and a weight of values against imitation, mean the same in every world.
    """
    return (1 - discount) * reward / reward.abs().mean(0).clamp_min(1e-6)


def cautious_step(
    critics: AgentCritics,
    optimiser: torch.optim.Optimizer,
    state: Float[Tensor, "batch agents obs"],
    action: Float[Tensor, "batch agents act"],
    reward: Float[Tensor, "batch agents"],
    next_value: Float[Tensor, "batch agents"],
    terminated: Bool[Tensor, "batch"],
    *,
    discount: float,
    random_actions: int,
    weight: float,
) -> tuple[Float[Tensor, "2 agents batch"], dict[str, Float[Tensor, ""]]]:
    """Update twins by `td_loss` and `weight` times `conservative_loss`, recorded actions beside uniform draws.

    Gives both twins' values of the recorded actions before the step, and both losses. [DOM2 Eq. 1]
    """
    random = torch.rand(random_actions, *action.shape) * 2 - 1
    judged = torch.cat([action[None], random])
    # plans, twins, agents, batch
    values = critics(state.expand(len(judged), *state.shape), judged).permute(1, 0, 3, 2)
    difference = td_loss(values[0], reward.T, next_value.T, terminated, discount)
    caution = conservative_loss(values[1:], values[0])
    optimiser.zero_grad()
    (difference + weight * caution).backward()
    optimiser.step()
    return values[0].detach(), {"critics": difference.detach(), "caution": caution.detach()}
