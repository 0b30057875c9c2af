"""Episodes that a policy is likely to have, imagined in a world fitted to recorded steps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.networks import mlp
from safediffkit.learning import Standardise, seeded
from safediffkit.policy import History, Policy


class LearnedWorld(nn.Module):
    """Says what a step leads to, earns and costs: the mean of a few networks, none of which is sure of itself.

    It knows states like the recorded ones, and never leaves the box that they lie in. Its episodes begin where the
    recorded ones did and are as long as the longest of them.
    """

    low: Tensor
    high: Tensor
    price: Tensor
    starts: Tensor

    def __init__(self, obs: int, act: int, episodes: int, steps: int, members: int = 2, hidden: int = 256) -> None:
        super().__init__()
        self.act_width, self.steps = act, steps
        self.given, self.comes = Standardise(obs + act), Standardise(obs + 1)
        # a step's motion and reward, both scaled, and the log-odds that it costs
        self.members = nn.ModuleList(mlp(obs + act, hidden, obs + 2, layers=2) for _ in range(members))
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(obs))
        self.register_buffer("price", torch.ones(()))  # of a step that costs
        self.register_buffer("starts", torch.zeros(episodes, obs))

    def forward(
        self, observation: Float[Tensor, "batch obs"], action: Float[Tensor, "batch act"]
    ) -> tuple[Float[Tensor, "batch obs"], Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Give the next observation, the reward and the cost."""
        given = self.given(torch.cat([observation, action], 1))
        said = torch.stack([member(given) for member in self.members]).mean(0)
        change = said[:, :-1] * self.comes.spread + self.comes.mean
        following = (observation + change[:, :-1]).clamp(self.low, self.high)
        return following, change[:, -1], self.price * (said[:, -1] > 0)


def fit_world(
    dataset: Dataset, *, steps: int = 2500, batch: int = 256, learning_rate: float = 2e-3, seed: int = 0
) -> LearnedWorld:
    """Fit a world to recorded steps by least squares, and to which of them cost something by cross-entropy.

    Raises:
        ValueError: the dataset is empty.
    """
    if not len(dataset):
        raise ValueError("fit_world needs recorded steps; the dataset has none")
    with seeded(seed) as generator:
        lengths = torch.bincount(dataset.episode)
        world = LearnedWorld(
            dataset.observations.shape[1], dataset.actions.shape[1], len(lengths), steps=int(lengths.max())
        )
        world.starts.copy_(dataset.observations[lengths.cumsum(0) - lengths])
        given = torch.cat([dataset.observations, dataset.actions], 1)
        comes = torch.cat([dataset.next_observations - dataset.observations, dataset.rewards[:, None]], 1)
        costly = (dataset.costs > 0).float()
        world.given.fit(given)
        world.comes.fit(comes)
        world.low.copy_(dataset.observations.amin(0))
        world.high.copy_(dataset.observations.amax(0))
        world.price.copy_(dataset.costs.sum() / costly.sum().clamp(min=1))
        given, comes = world.given(given), world.comes(comes)
        optimiser = torch.optim.AdamW(world.parameters(), learning_rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            loss = torch.zeros(())
            for member in world.members:
                at = torch.randint(len(given), (batch,), generator=generator)
                said = member(given[at])
                loss = loss + (said[:, :-1] - comes[at]).square().mean()
                loss = loss + nn.functional.binary_cross_entropy_with_logits(said[:, -1], costly[at])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    return world.eval()


@torch.no_grad()
def imagine(
    policy: Policy, world: LearnedWorld, first: Float[Tensor, "worlds obs"], budget: Float[Tensor, "worlds"]
) -> History:
    """Let a policy act for whole episodes from these observations, all in lockstep, without any simulator.

    Actions are clipped to [-1, 1]. Good for what episodes cost and earn on average: a single one drifts away from what
    it would have been.
    """
    columns: dict[str, tuple[int, ...]] = {"rewards": (world.steps,), "costs": (world.steps,)}
    columns |= {"observations": (world.steps + 1, first.shape[1]), "actions": (world.steps, world.act_width)}
    kept = {name: first.new_zeros(len(first), *shape) for name, shape in columns.items()}
    kept["observations"][:, 0] = first

    def so_far(now: int) -> History:
        past = {name: kept[name][:, :now] for name in ("actions", "rewards", "costs")}
        return History(kept["observations"][:, : now + 1], **past, budget=budget)

    for now in range(world.steps):
        action = policy.act(so_far(now)).clamp(-1, 1)
        following, reward, cost = world(kept["observations"][:, now], action)
        kept["observations"][:, now + 1], kept["actions"][:, now] = following, action
        kept["rewards"][:, now], kept["costs"][:, now] = reward, cost
    return so_far(world.steps)


def spending(
    policy: Policy, world: LearnedWorld, budgets: Float[Tensor, "budgets"], *, episodes: int = 12, seed: int = 0
) -> tuple[Float[Tensor, "budgets"], Float[Tensor, "budgets"]]:
    """Imagine what budgets lead to: cost and reward of an episode under each, averaged over the same few starts."""
    with seeded(seed) as generator:
        first = world.starts[torch.randperm(len(world.starts), generator=generator)[:episodes]]
        several = first.repeat(len(budgets), 1), budgets.repeat_interleave(len(first))
        history = imagine(policy, world, *several)
    cost, reward = (column.sum(1).view(len(budgets), -1).mean(1) for column in (history.costs, history.rewards))
    return cost, reward
