"""CDT, the constrained decision transformer: asked for a return and a cost, it recalls actions that led to both.

| method | source                            | our deviations                                                        |
|--------|-----------------------------------|-----------------------------------------------------------------------|
| CDT    | Liu et al. 2023 (2302.07351) and  | width 64, 2 layers and 4 heads, not 128, 3 and 8; SiLU; no dropout;   |
|        | its public code (OSRL)            | learning rate 1e-3; batches of 64 windows; 5,000 updates; windows lie |
|        |                                   | whole inside their episode, so nothing is padded; returns and costs   |
|        |                                   | in units of the data, not of constants tuned for each task; the       |
|        |                                   | frontier is the greatest return seen within a cost, not a polynomial; |
|        |                                   | the return asked for at a budget is read off it, not tuned by hand;   |
|        |                                   | relabelled returns reach a tenth of the data's range above it, not a  |
|        |                                   | limit set for each task; an overspent budget is asked for as 0        |
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset, windows
from safediffkit.learning import Standardise, Stateful, Watch, ignore, repeat, seeded, words
from safediffkit.policy import History


@dataclass(frozen=True)
class Config:
    """Settings of CDT, from its public code where no other source is named."""

    steps: int = 5_000  # our choice; source 100,000
    seed: int = 0
    context: int = 10  # steps that the transformer looks back on
    width: int = 64  # our choice; source 128
    layers: int = 2  # our choice; source 3
    heads: int = 4  # our choice; source 8
    batch: int = 64  # windows, of `context` actions each; our choice; source 2048
    learning_rate: float = 1e-3  # our choice; source 1e-4
    warm_up: int = 500  # updates over which the learning rate rises
    weight_decay: float = 1e-4
    clip: float = 0.25  # greatest norm of the gradient
    cost_weight: float = 0.02  # of the loss on whether the step costs
    temperature: float = 0.1  # initial weight of the entropy
    temperature_rate: float = 1e-4  # its learning rate
    augment: float = 0.2  # relabelled episodes, as a share of the recorded ones
    shun: float = 70.0  # episodes are drawn in proportion to `shun` less their cost


class Answer(NamedTuple):
    """What the transformer says at each step of a window."""

    mean: Float[Tensor, "batch horizon act"]  # of the action, before the box [-1, 1]
    log_spread: Float[Tensor, "batch horizon act"]
    costs: Float[Tensor, "batch horizon"]  # log-odds that the step, with the action taken, costs


class Block(nn.Module):
    """Attend to what came before, then think it over."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_thought = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.thought = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Change each token in the light of itself and the earlier ones."""
        heads = self.queries_keys_values(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).flatten(2))
        x = x + self.thought(self.before_thought(x))
        return x


class CDT(nn.Module):
    """The trained policy: one network for every budget, reading the last steps of the history."""

    frontier: Tensor
    units: Tensor

    def __init__(
        self, obs: int, act: int, length: int, frontier: int, context: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "length": length, "frontier": frontier,
            "context": context, "width": width, "layers": layers, "heads": heads,
        }  # fmt: skip
        self.context, self.length = context, length
        self.scale = Standardise(obs)
        self.register_buffer("frontier", torch.zeros(2, frontier))  # costs, and the greatest return within each
        self.register_buffer("units", torch.ones(2))  # of returns and costs
        self.from_return, self.from_cost = nn.Linear(1, width), nn.Linear(1, width)
        self.from_observation, self.from_action = nn.Linear(obs, width), nn.Linear(act, width)
        self.from_time = nn.Embedding(length, width)
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.to_action, self.to_cost = nn.Linear(width, 2 * act), nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self,
        observations: Float[Tensor, "batch horizon obs"],
        actions: Float[Tensor, "batch horizon act"],
        returns: Float[Tensor, "batch horizon"],
        costs: Float[Tensor, "batch horizon"],
        time: Int[Tensor, "#batch horizon"],
    ) -> Answer:
        """Answer at every step, from what came before it and the return and cost asked from there to the end.

        The action at a step is guessed without seeing it; whether the step costs, with it.
        """
        asked_return, asked_cost = (returns / self.units[0])[..., None], (costs / self.units[1])[..., None]
        tokens = [
            self.from_return(asked_return),
            self.from_cost(asked_cost),
            self.from_observation(self.scale(observations)),
            self.from_action(actions),
        ]
        x = torch.stack(tokens, 2) + self.from_time(time.clamp_max(self.length - 1))[:, :, None]
        x = self.last(self.blocks(self.first(x.flatten(1, 2)))).unflatten(1, (-1, 4))
        mean, spread = self.to_action(x[:, :, 2]).chunk(2, -1)  # where the observation was the last thing read
        log_spread = -5 + 3.5 * (spread.tanh() + 1)  # from -5 to 2, as in the source
        return Answer(mean, log_spread, self.to_cost(x[:, :, 3])[..., 0])

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Act by the mean of the action, asking for what is left of the budget and of the frontier's return at it."""
        worlds, now = history.observations.shape[:2]
        recent = slice(max(now - self.context, 0), now)
        # what was still to come at each step, had the present budget been asked for from the start
        returns = asked_return(self.frontier, history.budget)[:, None] - _before(history.rewards)
        costs = (history.budget[:, None] - _before(history.costs)).clamp_min(0)
        unknown = history.actions.new_zeros(worlds, 1, history.actions.shape[-1])  # now, and what it costs
        actions = torch.cat([history.actions, unknown], 1)
        time = torch.arange(now, device=actions.device)[None, recent]
        answer = self(history.observations[:, recent], actions[:, recent], returns[:, recent], costs[:, recent], time)
        action: Tensor = answer.mean[:, -1].clamp(-1, 1)
        return action


def _before(values: Float[Tensor, "worlds before"]) -> Float[Tensor, "worlds now"]:
    # sums of what came before each step, the present one included
    return torch.cat([values.new_zeros(len(values), 1), values.cumsum(1)], 1)


def frontier(dataset: Dataset) -> Float[Tensor, "2 points"]:
    """List the episodes that no other beats at equal or lesser cost: costs and returns, both rising."""
    costs, returns = dataset.episode_costs(), dataset.episode_returns()
    order = torch.tensor(sorted(range(len(costs)), key=lambda i: (float(costs[i]), -float(returns[i]))))
    best = returns[order].cummax(0).values
    rises = torch.ones(len(best), dtype=torch.bool)
    rises[1:] = best[1:] > best[:-1]
    return torch.stack([costs[order][rises], best[rises]])


def asked_return(frontier: Float[Tensor, "2 points"], budget: Float[Tensor, "worlds"]) -> Float[Tensor, "worlds"]:
    """Give the greatest return that the data shows within each budget; below all costs, the cheapest episodes' own."""
    within = torch.searchsorted(frontier[0].contiguous(), budget.contiguous(), right=True)
    return frontier[1][(within - 1).clamp_min(0)]


class Relabelled(NamedTuple):
    """Episodes to imitate under other wishes than they fulfilled; each wish is better than what they did."""

    episode: Int[Tensor, "choices"]
    returns: Float[Tensor, "choices"]
    costs: Float[Tensor, "choices"]


def relabel(dataset: Dataset, count: int, generator: torch.Generator) -> Relabelled:
    """Pair wishes for returns above the frontier with the nearest episodes that stay within the cost wished for.

    Costs are spread evenly over the data's range, returns drawn from the frontier upwards. An episode that is nearest
    to several wishes keeps the first; the others take one within its cost that earned hardly less, the likelier the
    nearer. "Hardly", a tenth of the data's range of returns, is our choice; the source has a number for each task.
    """
    costs, returns = dataset.episode_costs(), dataset.episode_returns()
    points = frontier(dataset)
    wished_costs = torch.linspace(float(costs.min()), float(costs.max()), count)
    best = points[1][(torch.searchsorted(points[0], wished_costs, right=True) - 1).clamp_min(0)]
    little = 0.1 * (returns.max() - returns.min())
    top = returns.max() + little
    wished_returns = best + torch.rand(count, generator=generator) * (top - best)
    taken: list[int] = []
    for cost, wish in zip(wished_costs, wished_returns, strict=True):
        within = (costs <= cost + 1e-4).nonzero()[:, 0]  # rounding must not lose the cheapest
        near = int(within[torch.hypot(costs[within] - cost, returns[within] - wish).argmin()])
        if near in taken:
            within = ((costs <= costs[near]) & (returns >= returns[near] - little)).nonzero()[:, 0]
            distance = torch.hypot(costs[within] - costs[near], returns[within] - returns[near])
            near = int(within[torch.multinomial(1 / (1 + distance), 1, generator=generator)])
        taken.append(near)
    return Relabelled(torch.tensor(taken, dtype=torch.long), wished_returns, wished_costs)


def _with_relabelled(
    dataset: Dataset, rows: Int[Tensor, "windows horizon"], relabelled: Relabelled
) -> tuple[Int[Tensor, "choices"], Float[Tensor, "2 choices"]]:
    # windows to learn from, the recorded ones and then those of relabelled episodes, and by how much more return and
    # cost to go is wished for in each than there was
    owner = dataset.episode[rows[:, 0]]
    again = [(owner == episode).nonzero()[:, 0] for episode in relabelled.episode.tolist()]
    wish = torch.arange(len(again)).repeat_interleave(torch.tensor([len(part) for part in again], dtype=torch.long))
    more_return = relabelled.returns - dataset.episode_returns()[relabelled.episode]
    more_cost = relabelled.costs - dataset.episode_costs()[relabelled.episode]
    shifts = torch.cat([torch.zeros(2, len(rows)), torch.stack([more_return, more_cost])[:, wish]], 1)
    return torch.cat([torch.arange(len(rows)), *again]), shifts


def actor_loss(
    answer: Answer, actions: Float[Tensor, "batch horizon act"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Score recorded actions by their log-likelihood and reward entropy; give the loss and the entropy.

    Both are summed over the components of an action, to which the target, minus their number, refers.
    """
    error = (actions - answer.mean) / answer.log_spread.exp()
    log_likelihood = (-0.5 * error.square() - answer.log_spread - 0.5 * math.log(2 * math.pi)).sum(-1).mean()
    entropy = (answer.log_spread + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).mean()
    return -log_likelihood - temperature * entropy, entropy


def train(dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None) -> CDT:
    """Train the transformer on recorded and relabelled windows.

    Raises:
        ValueError: no episode is `context` steps long, or `checkpoint` belongs to another run.
    """
    rows = windows(dataset, config.context)
    with seeded(config.seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        lengths = torch.bincount(dataset.episode)
        edge = frontier(dataset)
        size = {"context": config.context, "width": config.width, "layers": config.layers, "heads": config.heads}
        policy = CDT(obs, act, int(lengths.max()), edge.shape[1], **size)
        policy.scale.fit(dataset.observations)
        episode_costs, episode_returns = dataset.episode_costs(), dataset.episode_returns()
        policy.frontier.copy_(edge)
        policy.units.copy_(torch.stack([episode_returns.abs().max(), episode_costs.max()]).clamp_min(1e-6))
        log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        optimiser = torch.optim.AdamW(
            policy.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warming = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: min(1.0, (done + 1) / config.warm_up))
        thermostat = torch.optim.Adam([log_temperature], config.temperature_rate)

        returns, costs = dataset.return_to_go(), dataset.cost_to_go()
        time = torch.arange(len(dataset)) - dataset.episode_starts()[dataset.episode]
        relabelled = relabel(dataset, round(config.augment * len(lengths)), generator)
        chosen, shifts = _with_relabelled(dataset, rows, relabelled)
        wished_costs = episode_costs[dataset.episode[rows[chosen, 0]]] + shifts[1]
        shares = (config.shun - wished_costs).clamp_min(1).double().cumsum(0)  # none is left out for good

        def update() -> dict[str, Tensor]:
            drawn = torch.rand(config.batch, dtype=torch.float64, generator=generator) * shares[-1]
            index = torch.searchsorted(shares, drawn).clamp_max(len(shares) - 1)
            at, shift = rows[chosen[index]], shifts[:, index, None]
            answer = policy(
                dataset.observations[at], dataset.actions[at], returns[at] + shift[0], costs[at] + shift[1], time[at]
            )
            imitation, entropy = actor_loss(answer, dataset.actions[at], math.exp(log_temperature.item()))
            foresight = nn.functional.binary_cross_entropy_with_logits(answer.costs, (dataset.costs[at] > 0).float())
            optimiser.zero_grad()
            (imitation + config.cost_weight * foresight).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
            optimiser.step()
            warming.step()
            thermostat.zero_grad()
            (log_temperature.exp() * (entropy.detach() + act)).backward()  # rises while entropy is below -act
            thermostat.step()
            return {"imitation": imitation.detach(), "entropy": entropy.detach(), "costs": foresight.detach()}

        parts: dict[str, Stateful] = {
            "policy": policy, "optimiser": optimiser, "warming": warming,
            "temperature": nn.ParameterList([log_temperature]), "thermostat": thermostat,
        }  # fmt: skip
        run = f"cdt {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return policy.eval()
