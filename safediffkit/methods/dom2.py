"""Diffusion policies for teams: each agent imitates good episodes by diffusion and is pulled by its cautious critics.

Paper: "Beyond Conservatism: Diffusion Policies in Offline Multi-agent Reinforcement Learning" (DOM2). Our copy has no
appendix, so settings are ours, and marked so.

"Decentralised in training and execution" is read as follows. Agent j's policy and critics see o_j, a_j and r_j alone,
and no weight, statistic or loss is shared, so that its networks come out the same whatever the others record. Two
things are common, neither of them seen when acting: which episodes are repeated, which the team's return decides
[DOM2 Alg. 1], and the rows and noise levels of a batch, which are drawn once for all agents (the paper draws them for
each). So all agents are trained, and act, in one computation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.data.reshape import repeat_good_episodes, return_thresholds
from safediffkit.diffusion.denoise import noise_prediction_loss
from safediffkit.diffusion.networks import PerAgent, VectorNoise
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule
from safediffkit.learning import Standardise, Stateful, Watch, follow, ignore, repeat, seeded, standardise_team, words
from safediffkit.policy import History
from safediffkit.safety.critics import AgentCritics, cautious_step, mean_rewards

Network = Literal["unet", "mlp"]


@dataclass(frozen=True)
class Config:
    """Settings of DOM2; all values are our choice. Each ablation of the paper's Figure 6 changes one of them."""

    imitate: float = 1.0  # weight of the diffusion loss, 1 in Eq. 5; 0: without diffusion loss
    value_weight: float = 10.0  # eta of Eq. 5; 0: without policy improvement
    repeat_above: tuple[float, ...] = (0.5, 0.75, 0.9)  # share of episodes below each threshold, Alg. 1; (): no copies
    network: Network = "unet"  # "mlp": a plain MLP as noise network
    # zeta of Eq. 1; with 0.1, what an action of medium data is worth hides behind how often it was recorded
    conservative_weight: float = 0.02
    random_actions: int = 10  # uniform draws for each state, in Eq. 1's sum
    steps: int = 20_000
    seed: int = 0
    discount: float = 0.95  # gamma
    levels: int = 8  # N of Eqs. 3 and 4, at most 10 in the paper; see `DOM2.schedule`
    batch: int = 128  # S
    hidden: int = 64  # an update takes 0.05 s on one busy core for three agents
    learning_rate: float = 2e-3
    target_rate: float = 0.01  # rho of Alg. 2, for critics and policy

    def __post_init__(self) -> None:
        if min(self.imitate, self.value_weight, self.conservative_weight) < 0 or self.imitate + self.value_weight == 0:
            raise ValueError(
                f"imitate={self.imitate}, value_weight={self.value_weight}, conservative_weight="
                f"{self.conservative_weight}: none may be negative, and one of the first two must be above 0"
            )
        if self.random_actions < 1:
            raise ValueError(f"random_actions={self.random_actions}: the sum of [DOM2 Eq. 1] needs at least 1")


class DOM2(nn.Module):
    """The trained team: agent j draws its action by diffusion from its own observation, and all do so at once."""

    def __init__(self, agents: int, obs: int, act: int, hidden: int, levels: int, network: Network) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "agents": agents, "obs": obs, "act": act, "hidden": hidden, "levels": levels, "network": network,
        }  # fmt: skip
        self.agents, self.act_width = agents, act
        self.noise_model = PerAgent([VectorNoise(network, act, obs, hidden) for _ in range(agents)])
        self.critics = AgentCritics(obs, act, agents, hidden)
        # Measured with the exact noise of two modes at -0.6 and 0.6 of spread 0.05: in 8 strides, 95 % of the draws end
        # within 0.2 of a mode; 87 % with as many levels of `vp_schedule`, 83 % in 5 strides.
        self.schedule: Schedule = cosine_schedule(levels)
        self.scale = Standardise(agents * obs)  # every agent's numbers by their own mean and spread

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Draw one action for each agent of each world."""
        return self.propose(history.observation, 1)[:, 0]

    def propose(
        self, observation: Float[Tensor, "batch agents obs"], plans: int
    ) -> Float[Tensor, "batch plans agents act"]:
        """Draw `plans` actions of each agent for each of its observations.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        state = self.scaled(observation)
        if plans == 1:  # one axis less, hence faster
            return self.draw(state, state.shape[:-2])[:, None]
        return self.draw(state[:, None], (len(state), plans))

    def scaled(self, observation: Float[Tensor, "*batch agents obs"]) -> Float[Tensor, "*batch agents obs"]:
        """Standardise observations, as all networks want them."""
        return standardise_team(self.scale, observation, self.agents)

    def draw(
        self, state: Float[Tensor, "*#batch agents obs"], batch: tuple[int, ...]
    ) -> Float[Tensor, "*batch agents act"]:
        """Draw actions in the box [-1, 1] for (scaled) states by DPM-Solver-1; gradients flow. [DOM2 Eq. 4, corrected]

        It is `sample` with `dpm_solver_1_step` and `clip_clean`, but reads the states and all levels once beforehand.
        One stride goes to every level that the network is trained on, and the box is our choice.
        """
        x = torch.randn(*batch, self.agents, self.act_width).movedim(-2, 0)
        network: Any = self.noise_model.network  # whose first axis is that of the agents
        alpha, sigma = self.schedule.alpha.flip(0), self.schedule.sigma.flip(0)
        levels = NoiseLevel(*(scale.view(1, -1, *[1] * (x.ndim - 1)) for scale in (alpha, sigma)))
        known = network.read(levels, state.movedim(-2, 0)[:, None])
        at = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
        for k, ((a, s), (then_a, then_s)) in enumerate(zip(at, [*at[1:], (1.0, 0.0)], strict=True)):
            clean = (a * x - s * network.body(x, known[:, k])).clamp(-1, 1)
            left = then_s / s  # (x - a clean) / s is the noise, as in DDIM
            x = (then_a - left * a) * clean + left * x
        return x.movedim(0, -2)


def policy_loss(
    imitation: Float[Tensor, ""],
    proposed: Float[Tensor, "batch agents"],
    recorded: Float[Tensor, "batch agents"],
    config: Config,
) -> Float[Tensor, ""]:
    """Weigh the diffusion loss against the values of proposed actions, by the size of those recorded. [DOM2 Eq. 5]

    The paper divides by the mean value itself, which turns the pull around where values are negative: the absolute
    value is ours. No gradient flows into it. Each agent's pull is divided by its own size.
    """
    pull = proposed.mean(0) / recorded.abs().mean(0).clamp_min(1e-6).detach()
    loss: Tensor = config.imitate * imitation - config.value_weight * pull.mean()
    return loss


def train(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> DOM2:
    """Train DOM2 as in Algorithm 2 and return the slowly following target policy, whose choice is ours.

    Raises:
        ValueError: the dataset has no agents axis, or `checkpoint` belongs to another run.
    """
    if dataset.rewards.ndim != 2:
        raise ValueError("DOM2 learns from a Dataset with an agents axis; unsqueeze one for a single agent")
    with seeded(config.seed) as generator:
        dataset = repeat_good_episodes(dataset, return_thresholds(dataset, config.repeat_above))
        _, agents, obs = dataset.observations.shape
        act = dataset.actions.shape[-1]
        policy = DOM2(agents, obs, act, config.hidden, config.levels, config.network)
        policy.scale.fit(dataset.observations.flatten(1))
        target = DOM2(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        actor = torch.optim.Adam(policy.noise_model.parameters(), config.learning_rate, fused=True)
        judge = torch.optim.Adam(policy.critics.parameters(), config.learning_rate, fused=True)

        observations, actions = policy.scaled(dataset.observations), dataset.actions
        next_observations = policy.scaled(dataset.next_observations)
        rewards = mean_rewards(dataset.rewards, config.discount)

        def update() -> dict[str, Tensor]:
            at = torch.randint(len(dataset), (config.batch,), generator=generator)
            state, action, then = observations[at], actions[at], next_observations[at]
            losses: dict[str, Tensor] = {}
            if config.value_weight > 0:  # else nobody asks the critics
                with torch.no_grad():
                    next_value = target.critics(then, target.draw(then, then.shape[:1])).amin(0)
                recorded, losses = cautious_step(
                    policy.critics, judge, state, action, rewards[at], next_value, dataset.terminated[at],
                    discount=config.discount, random_actions=config.random_actions, weight=config.conservative_weight,
                )  # fmt: skip

            imitation = noise_prediction_loss(policy.noise_model, policy.schedule, action, state)
            loss = config.imitate * imitation
            if config.value_weight > 0:
                policy.critics.requires_grad_(False)  # judge the policy without learning from it
                proposed = policy.critics(state, policy.draw(state, state.shape[:1]))[0]
                policy.critics.requires_grad_(True)
                loss = policy_loss(imitation, proposed, recorded[0].T, config)
            actor.zero_grad()
            loss.backward()
            actor.step()
            follow(target.critics, policy.critics, config.target_rate)
            follow(target.noise_model, policy.noise_model, config.target_rate)
            return losses | {"imitation": imitation.detach(), "policy": loss.detach()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "actor": actor, "judge": judge}
        run = f"dom2 {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()
