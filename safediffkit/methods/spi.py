"""Safe policy improvement via a diffusion model: one policy pulled by imitation, reward value and safety value.

Paper: Yang et al., "Safe Policy Improvement via Diffusion Model for Offline Reinforcement Learning" (SPI). Settings
the paper does not give are ours, and marked so.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset, followed
from safediffkit.data.reshape import happened, remap_cost
from safediffkit.diffusion.denoise import NoiseModel, ddpm_step, noise_prediction_loss, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.networks import ResidualMLP
from safediffkit.diffusion.schedule import Schedule, vp_schedule
from safediffkit.learning import Standardise, Stateful, Watch, follow, ignore, repeat, seeded, words
from safediffkit.policy import History
from safediffkit.safety.critics import Critics, td_loss

Rule = Literal["reward", "safest"]


@dataclass(frozen=True)
class Config:
    """Settings of SPI; the paper gives the sum of the weights and the 50 candidates, the rest is our choice."""

    imitate: float = 0.4  # eta, weight of the KL term [SPI Eq. 6]
    reward: float = 0.1  # mu, weight of Q^r
    safety: float = 0.5  # phi, weight of Q^c'
    steps: int = 20_000
    seed: int = 0
    risk: Callable[[Tensor], Tensor] = happened  # f: cost -> [0, 1] [SPI Eq. 4]
    next_action: Literal["data", "policy"] = "data"  # a_{i+1} of Eqs. 10 and 11: as printed, or the policy's
    discount: float = 0.99  # gamma
    levels: int = 5  # T
    batch: int = 256
    hidden: int = 128
    learning_rate: float = 1e-3
    target_rate: float = 0.02  # share of the way that the target critics move at an update
    average_rate: float = 0.005  # the same for the averaged policy, which acts
    extraction: Rule = "reward"  # Eq. 12 as printed, or our variant: see `SPI.choose`
    candidates: int = 50  # copies of the state, n of Eq. 12
    safest_share: float = 0.5  # of the candidates, in our variant

    def __post_init__(self) -> None:
        weights = (self.imitate, self.reward, self.safety)
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"imitate, reward and safety must be at least 0 and sum to 1 [SPI Eq. 6]; got {weights}")


class SPI(nn.Module):
    """The trained policy: proposes candidate actions by diffusion and acts with the one its values like best."""

    def __init__(
        self, obs: int, act: int, hidden: int, levels: int, extraction: Rule, candidates: int, safest_share: float
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "hidden": hidden, "levels": levels,
            "extraction": extraction, "candidates": candidates, "safest_share": safest_share,
        }  # fmt: skip
        self.extraction, self.candidates, self.safest_share, self.act_width = extraction, candidates, safest_share, act
        self.noise_model = ResidualMLP(act, obs, hidden)
        self.critics = Critics(obs, act, 4, hidden)  # twins for the reward, then twins for safety
        self.schedule: Schedule = vp_schedule(levels)
        self.scale = Standardise(obs)

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Propose candidates for every world in one batch and extract one each. [SPI Eq. 12]"""
        actions = self.propose(history.observation, self.candidates)
        return actions[torch.arange(len(actions)), self.choose(history.observation, actions)]

    def variants(self) -> dict[str, "SPI"]:
        """Give this policy once with each extraction rule, weights shared."""
        both = {}
        for rule in get_args(Rule):
            both[rule] = copy(self)
            both[rule].extraction, both[rule].arguments = rule, {**self.arguments, "extraction": rule}
        return both

    def propose(self, observation: Float[Tensor, "batch obs"], plans: int) -> Float[Tensor, "batch plans act"]:
        """Sample `plans` actions for each observation from the safety distribution capturer D_omega. [SPI Eq. 6]"""
        scaled = self.scale(observation)[:, None]  # read once for all plans
        return propose(self.noise_model, self.schedule, scaled, (len(scaled), plans, self.act_width))

    def choose(
        self, observation: Float[Tensor, "batch obs"], actions: Float[Tensor, "batch plans act"]
    ) -> Int[Tensor, "batch"]:
        """Pick a candidate by the policy's rule.

        "reward" takes the greatest Q^r of all, as printed [SPI Eq. 12]. "safest" is ours: the greatest Q^r among the
        `safest_share` of the candidates with the greatest Q^c', because the printed rule can undo the guidance.
        """
        reward, safety = self.values(observation, actions)
        if self.extraction == "safest":
            kept = max(1, round(self.safest_share * actions.shape[1]))
            unsafe = safety.argsort(1, descending=True)[:, kept:]
            reward = reward.scatter(1, unsafe, -torch.inf)
        return reward.argmax(1)

    def values(
        self, observation: Float[Tensor, "batch obs"], actions: Float[Tensor, "batch plans act"]
    ) -> tuple[Float[Tensor, "batch plans"], Float[Tensor, "batch plans"]]:
        """Give Q^r and Q^c' of each candidate, the lesser of the twins.

        Both are discounted sums divided by their scale 1 / (1 - discount): Q^c' is 1 where no cost ever comes, and
        Q^r is in units of the mean size of a step's reward in the data.
        """
        scaled = self.scale(observation)[:, None].expand(-1, actions.shape[1], -1)
        reward, safety = pessimistic(self.critics(scaled, actions))
        return reward, safety


def propose(
    noise_model: NoiseModel, schedule: Schedule, condition: Float[Tensor, "*#batch obs"], shape: tuple[int, ...]
) -> Float[Tensor, "*batch act"]:
    """Denoise actions of `shape` given (scaled) observations; gradients flow to the noise model."""
    guided = guide(noise_model, clip_clean(-1.0, 1.0))
    return sample(guided, schedule, shape, condition, steps=len(schedule), solver=ddpm_step)


def pessimistic(values: Float[Tensor, "4 *batch"]) -> Float[Tensor, "2 *batch"]:
    """Keep the lesser twin of each pair: reward, then safety."""
    return values.view(2, 2, *values.shape[1:]).amin(1)


def policy_loss(imitation: Float[Tensor, ""], values: Float[Tensor, "4 batch"], config: Config) -> Float[Tensor, ""]:
    """Weigh imitation against both values, each divided by its size. [SPI Eq. 6]

    The paper adds the raw values; without the division mu and phi would depend on the units of the reward. As in
    diffusion Q-learning one twin pulls, drawn at random, and the other gives the size.
    """
    twins = values.view(2, 2, -1)
    pull = int(torch.randint(2, ()))
    reward, safety = twins[:, pull].mean(1) / twins[:, 1 - pull].abs().mean(1).detach()
    loss: Tensor = config.imitate * imitation - config.reward * reward - config.safety * safety
    return loss


def train(dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None) -> SPI:
    """Train SPI as in Algorithm 1 and return the policy; nothing but the arguments matters.

    Raises:
        ValueError: the dataset has no two consecutive steps, or `checkpoint` belongs to another run.
    """
    with seeded(config.seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        policy = SPI(obs, act, config.hidden, config.levels, config.extraction, config.candidates, config.safest_share)
        policy.scale.fit(dataset.observations)
        target = SPI(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        actor = torch.optim.Adam(policy.noise_model.parameters(), config.learning_rate, fused=True)
        judge = torch.optim.Adam(policy.critics.parameters(), config.learning_rate, fused=True)

        observations, actions = policy.scale(dataset.observations), dataset.actions
        next_observations = policy.scale(dataset.next_observations)
        # the average-per-step scale of `SPI.values`
        safety = remap_cost(dataset.costs, config.risk)
        signals = torch.stack([dataset.rewards / dataset.rewards.abs().mean().clamp_min(1e-6), safety])
        signals = signals * (1 - config.discount)
        rows = followed(dataset)  # the others lack the next action that Eqs. 10 and 11 need

        def update() -> dict[str, Tensor]:
            at = rows[torch.randint(len(rows), (config.batch,), generator=generator)]
            state, action, then = observations[at], actions[at], next_observations[at]
            with torch.no_grad():
                if config.next_action == "policy":
                    next_action = propose(target.noise_model, policy.schedule, then, action.shape)
                else:
                    next_action = actions[(at + 1).clamp_max(len(actions) - 1)]  # unused after a true end
                next_value = pessimistic(target.critics(then, next_action))
            values = policy.critics(state, action).view(2, 2, -1).transpose(0, 1)
            critic_loss = td_loss(values, signals[:, at], next_value, dataset.terminated[at], config.discount)
            judge.zero_grad()
            critic_loss.backward()
            judge.step()

            imitation = noise_prediction_loss(policy.noise_model, policy.schedule, action, state)
            proposed = propose(policy.noise_model, policy.schedule, state, action.shape)
            policy.critics.requires_grad_(False)  # judge the policy without learning from it
            loss = policy_loss(imitation, policy.critics(state, proposed), config)
            policy.critics.requires_grad_(True)
            actor.zero_grad()
            loss.backward()
            actor.step()
            follow(target.critics, policy.critics, config.target_rate)
            follow(target.noise_model, policy.noise_model, config.average_rate)
            return {"critics": critic_loss.detach(), "imitation": imitation.detach(), "policy": loss.detach()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "actor": actor, "judge": judge}
        run = f"spi {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()
