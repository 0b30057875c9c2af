"""Behaviour cloning: imitate what was recorded, all of it (BC) or its safe episodes alone (BC-Safe)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.data.reshape import safe_only
from safediffkit.diffusion.networks import mlp
from safediffkit.learning import Standardise, Stateful, Watch, ignore, repeat, seeded, words
from safediffkit.policy import History


@dataclass(frozen=True)
class Config:
    """Settings of behaviour cloning, as in DSRL's benchmark but for our network size and number of updates."""

    safe_within: float | None = None  # BC-Safe: learn from episodes whose cost is at most this; None: from all
    steps: int = 20_000
    seed: int = 0
    batch: int = 256
    hidden: int = 128
    layers: int = 2
    learning_rate: float = 1e-3


class Imitation(nn.Module):
    """A deterministic policy: one action for each observation, inside the box [-1, 1]."""

    def __init__(self, obs: int, act: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.arguments = {"obs": obs, "act": act, "hidden": hidden, "layers": layers}
        self.network = mlp(obs, hidden, act, layers)
        self.scale = Standardise(obs)

    def forward(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        """Give the action for each observation."""
        action: Tensor = self.network(self.scale(observation)).tanh()
        return action

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Act on the latest observation alone."""
        action: Tensor = self(history.observation)
        return action


def train(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> Imitation:
    """Regress the recorded actions on the observations by least squares.

    Raises:
        ValueError: no episode is as safe as `config.safe_within` asks, or `checkpoint` belongs to another run.
    """
    if config.safe_within is not None:
        dataset = safe_only(dataset, config.safe_within)
    with seeded(config.seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        policy = Imitation(obs, act, config.hidden, config.layers)
        policy.scale.fit(dataset.observations)
        optimiser = torch.optim.Adam(policy.parameters(), config.learning_rate, fused=True)

        def update() -> dict[str, Tensor]:
            batch = dataset.batch(config.batch, generator)
            loss = (policy(batch.observations) - batch.actions).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return {"imitation": loss.detach()}

        run = f"imitation {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        parts: dict[str, Stateful] = {"policy": policy, "optimiser": optimiser}
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return policy.eval()
