"""Episodes that a policy is likely to have, imagined in a world model fitted to recorded steps.

Model-based evaluation of a policy, with a small ensemble as in PETS (Chua et al. 2018, 1805.12114); that its members
are averaged, and not sampled, is our choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.networks import mlp
from safediffkit.learning import Standardise, seeded
from safediffkit.policy import History, Policy


class WorldModel(nn.Module):
    """Predicts what a step leads to, earns and costs: the mean of a few networks.

    It knows states and actions like the recorded ones, and never leaves the box that they lie in. Its episodes begin
    where the recorded ones did, and are as long as the longest of them: there are no true ends.
    """

    low: Tensor
    high: Tensor
    price: Tensor
    starts: Tensor

    def __init__(self, obs: int, act: int, episodes: int, steps: int, members: int = 2, hidden: int = 256) -> None:
        super().__init__()
        self.act_width, self.steps = act, steps
        self.inputs, self.outputs = Standardise(obs + act), Standardise(obs + 1)
        # a step's motion and reward, both scaled, and the log-odds that it costs
        self.members = nn.ModuleList(mlp(obs + act, hidden, obs + 2, layers=2) for _ in range(members))
        for name in ("low", "high"):  # of (observation, action)
            self.register_buffer(name, torch.zeros(obs + act))
        self.register_buffer("price", torch.ones(()))  # of a step that costs, on average
        self.register_buffer("starts", torch.zeros(episodes, obs))

    def forward(
        self, observation: Float[Tensor, "batch obs"], action: Float[Tensor, "batch act"]
    ) -> tuple[Float[Tensor, "batch obs"], Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Give the next observation, the reward and the expected cost."""
        obs = observation.shape[1]
        pair = torch.cat([observation, action], 1).clamp(self.low, self.high)
        said = torch.stack([member(self.inputs(pair)) for member in self.members])
        change = said[..., :-1].mean(0) * self.outputs.spread + self.outputs.mean
        following = (observation + change[:, :-1]).clamp(self.low[:obs], self.high[:obs])
        return following, change[:, -1], self.price * said[..., -1].sigmoid().mean(0)


def fit_world(
    dataset: Dataset, *, steps: int = 2500, batch: int = 256, learning_rate: float = 2e-3, seed: int = 0
) -> WorldModel:
    """Fit a world model by least squares, and to which steps cost something by cross-entropy.

    Raises:
        ValueError: the dataset has fewer than two steps, several agents, or true ends.
    """
    if len(dataset) < 2 or dataset.observations.ndim != 2 or dataset.terminated.any():
        raise ValueError(
            f"fit_world needs two recorded steps or more, of a single agent, whose episodes are cut by a time limit; "
            f"given are {len(dataset)} steps, observations of shape {tuple(dataset.observations.shape)} and "
            f"{int(dataset.terminated.sum())} true ends (TCDP trains without one if imagined=0)"
        )
    with seeded(seed) as generator:
        lengths = torch.bincount(dataset.episode)
        world = WorldModel(
            dataset.observations.shape[1], dataset.actions.shape[1], len(lengths), steps=int(lengths.max())
        )
        pairs = torch.cat([dataset.observations, dataset.actions], 1)
        change = torch.cat([dataset.next_observations - dataset.observations, dataset.rewards[:, None]], 1)
        costly = (dataset.costs > 0).float()
        world.inputs.fit(pairs)
        world.outputs.fit(change)
        for name, value in (
            ("low", pairs.amin(0)),
            ("high", pairs.amax(0)),
            ("price", dataset.costs.sum() / costly.sum().clamp(min=1)),
            ("starts", dataset.observations[dataset.episode_starts()]),
        ):
            getattr(world, name).copy_(value)
        inputs, outputs = world.inputs(pairs), world.outputs(change)
        optimiser = torch.optim.AdamW(world.parameters(), learning_rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            loss = torch.zeros(())
            for member in world.members:
                at = torch.randint(len(inputs), (batch,), generator=generator)
                said = member(inputs[at])
                loss = loss + (said[:, :-1] - outputs[at]).square().mean()
                loss = loss + nn.functional.binary_cross_entropy_with_logits(said[:, -1], costly[at])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    return world.eval()


@torch.no_grad()
def imagine(
    policy: Policy, world: WorldModel, first: Float[Tensor, "worlds obs"], budget: Float[Tensor, "worlds"]
) -> History:
    """Let a policy act for whole episodes from these observations, all in lockstep, without any simulator.

    Actions are clipped to the box of the recorded ones. Good for what episodes cost and earn on average: a single one
    drifts away from what it would have been.

    Raises:
        ValueError: the policy's actions have the wrong shape or are not finite.
    """
    columns: dict[str, tuple[int, ...]] = {"rewards": (world.steps,), "costs": (world.steps,)}
    columns |= {"observations": (world.steps + 1, first.shape[1]), "actions": (world.steps, world.act_width)}
    kept = {name: first.new_zeros(len(first), *shape) for name, shape in columns.items()}
    kept["observations"][:, 0] = first
    low, high = world.low[first.shape[1] :], world.high[first.shape[1] :]

    def so_far(now: int) -> History:
        past = {name: kept[name][:, :now] for name in ("actions", "rewards", "costs")}
        return History(kept["observations"][:, : now + 1], **past, budget=budget)

    for now in range(world.steps):
        action = policy.act(so_far(now))
        if action.shape != (len(first), world.act_width) or not action.isfinite().all():
            needed = (len(first), world.act_width)
            raise ValueError(f"the policy gave actions of shape {tuple(action.shape)}; finite ones of {needed} needed")
        action = action.clamp(low, high)
        following, reward, cost = world(kept["observations"][:, now], action)
        kept["observations"][:, now + 1], kept["actions"][:, now] = following, action
        kept["rewards"][:, now], kept["costs"][:, now] = reward, cost
    return so_far(world.steps)


def spending(
    policy: Policy, world: WorldModel, budgets: Float[Tensor, "batch"], *, episodes: int = 12, seed: int = 0
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Imagine what budgets lead to: cost and reward of an episode under each, averaged over the same few starts.

    Raises:
        ValueError: there is not one episode or budget to imagine, or the policy's actions are no actions.
    """
    if episodes < 1 or not len(budgets):
        raise ValueError(f"spending needs at least 1 episode and 1 budget, not {episodes} and {len(budgets)}")
    with seeded(seed) as generator:
        first = world.starts[torch.randperm(len(world.starts), generator=generator)[:episodes]]
        history = imagine(policy, world, first.repeat(len(budgets), 1), budgets.repeat_interleave(len(first)))
    cost, reward = (column.sum(1).view(len(budgets), -1).mean(1) for column in (history.costs, history.rewards))
    return cost, reward
