"""Rivals of DOM2 for offline teams whose agents learn apart: MA-CQL, OMAR and MA-SfBC. MADiff is in `madiff.py`.

| method  | source                           | our deviations                                                      |
|---------|----------------------------------|---------------------------------------------------------------------|
| MA-CQL  | Pan et al. 2022 (2111.11188) and | DOM2's rows in a batch, learning rate and unit of reward, in which  |
|         | its public code                  | a caution of 0.02 at a mean reward of 5 is 2 in the code's unit,    |
|         |                                  | its own being 0.5 to 5; TD3's noise on target actions, which the    |
|         |                                  | code leaves out, as it does TD3's delay; inputs standardised by the |
|         |                                  | data, not by the batch; SiLU for ReLU; neither clipped gradients    |
|         |                                  | nor a pull of actions to zero; the policy handed back is the slowly |
|         |                                  | following target                                                    |
| OMAR    | the same                         | MA-CQL's, with a caution of 0.1, which is 10 in the code's unit;    |
|         |                                  | the best action of all rounds is kept, not of the last              |
| MA-SfBC | SfBC, Chen et al. 2023           | behaviour and critics learn side by side, not one after the other;  |
|         | (2209.14548), and its public     | critics by one-step targets on fresh candidates, not by returns     |
|         | code; as a team: DOM2 Sec. 5     | planned anew along whole episodes, twice; twins, the lesser counts; |
|         |                                  | 8 candidates in a target, not 16; DOM2's network, schedule and      |
|         |                                  | solver; networks an eighth as wide                                  |

Each agent sees o_j, a_j and r_j alone, in training as in acting; rows of a batch and noise levels are drawn once for
all, so that a team is one computation, as in DOM2. No episode is repeated. All settings that a source does not give
are our choice. For team imitation by diffusion take DOM2 with `value_weight=0` and `repeat_above=()`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.denoise import dpm_solver_1_step, noise_prediction_loss, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.networks import PerAgent, VectorNoise, mlp
from safediffkit.diffusion.schedule import Schedule, cosine_schedule
from safediffkit.learning import Standardise, Stateful, Watch, follow, ignore, repeat, seeded, standardise_team, words
from safediffkit.policy import History
from safediffkit.safety.critics import AgentCritics, cautious_step, mean_rewards, td_loss


def _check_numbers(config: "CQLConfig | OMARConfig") -> None:
    if config.conservative_weight < 0 or config.smoothing < 0 or config.random_actions < 1:
        raise ValueError(
            f"conservative_weight={config.conservative_weight}, smoothing={config.smoothing}, random_actions="
            f"{config.random_actions}: the first two may not be negative, and at least 1 random action is needed"
        )


@dataclass(frozen=True)
class CQLConfig:
    """Settings of MA-CQL, those that DOM2 has too being the same as DOM2's."""

    steps: int = 20_000
    seed: int = 0
    conservative_weight: float = 0.02  # alpha, for values in units of an agent's mean reward
    random_actions: int = 10  # uniform draws for each state
    smoothing: float = 0.2  # spread of the noise on target actions, cut off at 0.5; TD3's
    discount: float = 0.95  # gamma
    batch: int = 128  # source 1024
    hidden: int = 64
    learning_rate: float = 2e-3  # source 0.01
    target_rate: float = 0.01

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class OMARConfig:
    """Settings of OMAR: MA-CQL's, and those of the search for a better action."""

    steps: int = 20_000
    seed: int = 0
    rectify: float = 0.9  # c; source 1 in cooperative navigation, 0.1 to 1 elsewhere, by task and quality of the data
    rounds: int = 3
    samples: int = 10  # in a round
    spread: float = 2.0  # sigma in the first round
    sharpness: float = 100.0  # beta; source 1, for values that are, as rewards are, about a hundred times as large
    conservative_weight: float = 0.1  # with MA-CQL's 0.02 no better
    random_actions: int = 10
    smoothing: float = 0.2
    discount: float = 0.95
    batch: int = 128
    hidden: int = 64
    learning_rate: float = 2e-3
    target_rate: float = 0.01

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0 <= self.rectify <= 1 or min(self.rounds, self.samples) < 1 or self.spread <= 0:
            raise ValueError(
                f"rectify={self.rectify}, rounds={self.rounds}, samples={self.samples}, spread={self.spread}: rectify "
                "is a share from 0 (MA-CQL) to 1, there must be 1 round and 1 sample or more, and spread is above 0"
            )


class Actors(nn.Module):
    """The trained team of MA-CQL or OMAR: agent j's action is a function of its own observation."""

    def __init__(self, agents: int, obs: int, act: int, hidden: int) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"agents": agents, "obs": obs, "act": act, "hidden": hidden}
        self.actor = PerAgent([mlp(obs, hidden, act) for _ in range(agents)])
        self.critics = AgentCritics(obs, act, agents, hidden)
        self.scale = Standardise(agents * obs)

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Give each agent's one action.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        return self.choose(standardise_team(self.scale, history.observation, self.arguments["agents"]))

    def choose(self, state: Float[Tensor, "*batch agents obs"]) -> Float[Tensor, "*batch agents act"]:
        """Give each agent's action in the box [-1, 1] for (scaled) states."""
        action: Tensor = self.actor(state).tanh()
        return action


@torch.no_grad()
def rectified(
    values: Callable[[Float[Tensor, "plans batch agents act"]], Float[Tensor, "plans batch agents"]],
    proposed: Float[Tensor, "batch agents act"],
    *,
    rounds: int,
    samples: int,
    spread: float,
    sharpness: float,
) -> Float[Tensor, "batch agents act"]:
    """Search the box [-1, 1] for actions of higher value than those proposed, without following a gradient. [OMAR]

    Each round draws from a Gaussian, first of mean 0, then about the mean of the last round's draws weighed by
    exp(sharpness x value), with their spread about it. The best of all draws and of `proposed` is given back.
    """
    best, highest = proposed, values(proposed[None])[0]
    mean, scale = torch.zeros_like(proposed), torch.full_like(proposed, spread)
    for _ in range(rounds):
        drawn = (mean + scale * torch.randn(samples, *proposed.shape)).clamp(-1, 1)
        value = values(drawn)
        top, at = value.max(0)
        found = drawn.gather(0, at[None, ..., None].expand(1, *proposed.shape))[0]
        best = torch.where((top > highest)[..., None], found, best)
        highest = torch.maximum(top, highest)
        mean = ((sharpness * value).softmax(0)[..., None] * drawn).sum(0)
        scale = (drawn - mean).square().mean(0).sqrt()
    return best


def actor_loss(
    values: Float[Tensor, "batch agents"],
    proposed: Float[Tensor, "batch agents act"],
    better: Float[Tensor, "batch agents act"],
    rectify: float,
) -> Float[Tensor, ""]:
    """Weigh the values of proposed actions against their distance to better ones: (1 - c) (-Q) + c |a - a*|^2. [OMAR]

    The square is averaged over an action's numbers, as in the public code.
    """
    return (1 - rectify) * -values.mean() + rectify * (proposed - better.detach()).square().mean()


def train_cql(
    dataset: Dataset, config: CQLConfig = CQLConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> Actors:
    """Train MA-CQL: an actor and conservative twin critics for each agent, by TD3.

    Raises:
        ValueError: the dataset has no agents axis, or `checkpoint` belongs to another run.
    """
    return _train_actors("ma-cql", dataset, config, watch, checkpoint)


def train_omar(
    dataset: Dataset, config: OMARConfig = OMARConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> Actors:
    """Train OMAR: MA-CQL whose actors are drawn to better actions that a search has found.

    Raises:
        ValueError: the dataset has no agents axis, or `checkpoint` belongs to another run.
    """
    return _train_actors("omar", dataset, config, watch, checkpoint)


def _train_actors(
    name: str, dataset: Dataset, config: CQLConfig | OMARConfig, watch: Watch, checkpoint: Path | None
) -> Actors:
    agents, obs, act = _sizes(name, dataset)
    with seeded(config.seed) as generator:
        policy = Actors(agents, obs, act, config.hidden)
        policy.scale.fit(dataset.observations.flatten(1))
        target = Actors(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        actor = torch.optim.Adam(policy.actor.parameters(), config.learning_rate, fused=True)
        judge = torch.optim.Adam(policy.critics.parameters(), config.learning_rate, fused=True)

        observations, actions = standardise_team(policy.scale, dataset.observations, agents), dataset.actions
        next_observations = standardise_team(policy.scale, dataset.next_observations, agents)
        rewards = mean_rewards(dataset.rewards, config.discount)

        def update() -> dict[str, Tensor]:
            at = torch.randint(len(dataset), (config.batch,), generator=generator)
            state, action, then = observations[at], actions[at], next_observations[at]
            with torch.no_grad():
                noise = (config.smoothing * torch.randn_like(action)).clamp(-0.5, 0.5)
                next_value = target.critics(then, (target.choose(then) + noise).clamp(-1, 1)).amin(0)
            _, losses = cautious_step(
                policy.critics, judge, state, action, rewards[at], next_value, dataset.terminated[at],
                discount=config.discount, random_actions=config.random_actions, weight=config.conservative_weight,
            )  # fmt: skip

            def first_twin(many: Tensor) -> Tensor:
                value: Tensor = policy.critics(state.expand(len(many), *state.shape), many)[0]
                return value

            policy.critics.requires_grad_(False)  # judge the actors without learning from it
            proposed = better = policy.choose(state)
            rectify = 0.0
            if isinstance(config, OMARConfig):
                rectify = config.rectify
                better = rectified(
                    first_twin, proposed, rounds=config.rounds, samples=config.samples, spread=config.spread,
                    sharpness=config.sharpness,
                )  # fmt: skip
            loss = actor_loss(first_twin(proposed[None])[0], proposed, better, rectify)
            policy.critics.requires_grad_(True)
            actor.zero_grad()
            loss.backward()
            actor.step()
            follow(target.critics, policy.critics, config.target_rate)
            follow(target.actor, policy.actor, config.target_rate)
            return losses | {"actor": loss.detach()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "actor": actor, "judge": judge}
        run = f"{name} {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()


@dataclass(frozen=True)
class SfBCConfig:
    """Settings of MA-SfBC; those of diffusion and critics are DOM2's."""

    steps: int = 20_000
    seed: int = 0
    sharpness: float = 100.0  # alpha when acting, for values in units of the spread of returns to go
    target_sharpness: float = 20.0  # alpha in targets
    candidates: int = 32  # when acting
    target_candidates: int = 8  # source 16
    network: Literal["unet", "mlp"] = "unet"
    levels: int = 8  # source 15 steps
    discount: float = 0.95
    batch: int = 128
    hidden: int = 64  # source 512
    learning_rate: float = 2e-3
    target_rate: float = 0.01

    def __post_init__(self) -> None:
        if min(self.candidates, self.target_candidates) < 1 or min(self.sharpness, self.target_sharpness) < 0:
            raise ValueError(
                f"candidates={self.candidates}, target_candidates={self.target_candidates}, sharpness={self.sharpness},"
                f" target_sharpness={self.target_sharpness}: 1 candidate or more is needed, and none sharper than 0"
            )


class SfBC(nn.Module):
    """The trained team of MA-SfBC: agent j draws candidates from a model of its behaviour, and picks by their value."""

    def __init__(
        self, agents: int, obs: int, act: int, hidden: int, levels: int, network: str, candidates: int, sharpness: float
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "agents": agents, "obs": obs, "act": act, "hidden": hidden, "levels": levels, "network": network,
            "candidates": candidates, "sharpness": sharpness,
        }  # fmt: skip
        self.candidates, self.sharpness, self.act_width = candidates, sharpness, act
        self.noise_model = PerAgent([VectorNoise(network, act, obs, hidden) for _ in range(agents)])
        self.critics = AgentCritics(obs, act, agents, hidden)
        self.schedule: Schedule = cosine_schedule(levels)
        self.scale = Standardise(agents * obs)

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Draw candidates and let each agent pick one of its own.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        candidates, values = self.judged(
            standardise_team(self.scale, history.observation, self.arguments["agents"]), self.candidates
        )
        return resampled(candidates, values, self.sharpness)

    def judged(
        self, state: Float[Tensor, "batch agents obs"], plans: int
    ) -> tuple[Float[Tensor, "batch plans agents act"], Float[Tensor, "batch plans agents"]]:
        """Draw `plans` actions of each agent's recorded behaviour in its (scaled) state, and give their values too."""
        guided = guide(self.noise_model, clip_clean(-1.0, 1.0))
        shape = len(state), plans, state.shape[1], self.act_width
        drawn = sample(guided, self.schedule, shape, state[:, None], steps=len(self.schedule), solver=dpm_solver_1_step)
        return drawn, self.critics(state[:, None].expand(-1, plans, -1, -1), drawn).amin(0)


def resampled(
    candidates: Float[Tensor, "batch plans agents act"], values: Float[Tensor, "batch plans agents"], sharpness: float
) -> Float[Tensor, "batch agents act"]:
    """Let each agent draw one of its candidates with probability proportional to exp(sharpness x value). [SfBC]"""
    gumbel = -torch.empty_like(values).exponential_().log()  # the greatest of logits + Gumbel noise is such a draw
    at = (sharpness * values + gumbel).argmax(1, keepdim=True)[..., None]
    return candidates.gather(1, at.expand(-1, -1, -1, candidates.shape[-1]))[:, 0]


def soft_value(values: Float[Tensor, "batch plans agents"], sharpness: float) -> Float[Tensor, "batch agents"]:
    """Average the values of candidates as `resampled` would draw them. [SfBC]"""
    return ((sharpness * values).softmax(1) * values).sum(1)


def train_sfbc(
    dataset: Dataset, config: SfBCConfig = SfBCConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> SfBC:
    """Train MA-SfBC: a diffusion model of each agent's behaviour, and critics that see its candidates alone.

    Raises:
        ValueError: the dataset has no agents axis, or `checkpoint` belongs to another run.
    """
    agents, obs, act = _sizes("ma-sfbc", dataset)
    with seeded(config.seed) as generator:
        policy = SfBC(
            agents, obs, act, config.hidden, config.levels, config.network, config.candidates, config.sharpness
        )
        policy.scale.fit(dataset.observations.flatten(1))
        target = SfBC(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        optimiser = torch.optim.Adam(policy.parameters(), config.learning_rate, fused=True)

        observations, actions = standardise_team(policy.scale, dataset.observations, agents), dataset.actions
        next_observations = standardise_team(policy.scale, dataset.next_observations, agents)
        # values in units of the spread of returns to go, as in the source, where alpha is for such
        rewards = dataset.rewards / dataset.return_to_go(config.discount).std(0).clamp_min(1e-6)

        def update() -> dict[str, Tensor]:
            at = torch.randint(len(dataset), (config.batch,), generator=generator)
            state, action, then = observations[at], actions[at], next_observations[at]
            with torch.no_grad():
                _, ahead = target.judged(then, config.target_candidates)
                next_value = soft_value(ahead, config.target_sharpness)
            values = policy.critics(state, action).mT  # twins, agents, batch
            difference = td_loss(values, rewards[at].T, next_value.T, dataset.terminated[at], config.discount)
            imitation = noise_prediction_loss(policy.noise_model, policy.schedule, action, state)
            optimiser.zero_grad()
            (difference + imitation).backward()  # no network is in both
            optimiser.step()
            follow(target, policy, config.target_rate)
            return {"critics": difference.detach(), "imitation": imitation.detach()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "optimiser": optimiser}
        run = f"ma-sfbc {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()


def _sizes(name: str, dataset: Dataset) -> tuple[int, int, int]:
    if dataset.rewards.ndim != 2:
        raise ValueError(f"{name} learns from a Dataset with an agents axis; unsqueeze one for a single agent")
    _, agents, obs = dataset.observations.shape
    return agents, obs, dataset.actions.shape[-1]
