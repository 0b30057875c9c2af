"""MADiff: a whole team's windows drawn together by diffusion, each agent acting on its part. A rival of DOM2.

| method | source                             | our deviations                                                       |
|--------|------------------------------------|----------------------------------------------------------------------|
| MADiff | Zhu et al. 2024 (2305.17330) and   | a transformer whose tokens are some steps of one agent, each of them |
|        | its public code                    | seeing all the others, in place of convolutions over time with       |
|        |                                    | attention between agents; windows of 8 steps, none beyond an         |
|        |                                    | episode's end, not of 24 filled up with zeros; schedule of 100, not  |
|        |                                    | 200 levels, and DPM-Solver++(2M); the network is told whose present  |
|        |                                    | it is given; returns as rates a step left; the return asked for is a |
|        |                                    | quantile of those recorded from the same step on, not 0.9 of a       |
|        |                                    | hand-set scale; what TCDP's planner does: row 0 held in training, v, |
|        |                                    | displacements, the box; inverse dynamics for each agent, in both     |

Training joins what all agents saw. In execution, decentralised (MADiff-D) agent j knows its own observation alone and
imagines the others' present as well as their future; centralised (MADiff-C) one plan is made from what all see. They
differ in training too: the network learns to fill in what it will not be told. It stands apart from
`offline_agents.py`, whose methods share parts with each other and none with this one. All settings that the source
does not give are our choice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset, windows
from safediffkit.diffusion.denoise import NoiseModel, denoise, dpm_solver_2m_step
from safediffkit.diffusion.guidance import classifier_free, clip_clean, guide
from safediffkit.diffusion.networks import DiT1D, PerAgent, mlp
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule
from safediffkit.learning import Stateful, Watch, follow, ignore, repeat, seeded, words
from safediffkit.policy import History, Planner, WindowScale, check_calls, motion_loss

Execution = Literal["decentralised", "centralised"]


@dataclass(frozen=True)
class Config:
    """Settings of MADiff; those of the windows are TCDP's, but for their length."""

    steps: int = 20_000
    seed: int = 0
    execution: Execution = "decentralised"  # MADiff-D, or "centralised", MADiff-C
    weight: float = 1.2  # w of classifier-free guidance
    forget: float = 0.25  # share of windows whose returns are not given
    asked: float = 0.9  # share of recorded returns below the one asked for
    horizon: int = 8  # source 24
    hidden: int = 128
    patch: int = 4  # states of an agent in a token
    levels: int = 100  # source 200
    batch: int = 128  # source 32
    learning_rate: float = 1e-3  # source 2e-4
    average_rate: float = 0.005
    calls: int = 8  # of the network for a plan
    temperature: float = 0.7  # spread of the noise that a plan starts from
    every: int = 1  # steps between two plans

    def __post_init__(self) -> None:
        check_calls(self.calls, self.levels)
        if self.horizon < 2 or self.horizon % self.patch or not 0 <= self.forget <= 1 or not 0 <= self.asked <= 1:
            raise ValueError(
                f"horizon={self.horizon}, patch={self.patch}, forget={self.forget}, asked={self.asked}: a window has 2 "
                "steps or more, which patches divide without rest, and the last two are shares from 0 to 1"
            )


class TeamWindows(nn.Module):
    """A noise model for windows of a team, in which `patch` states of one agent are a token that sees all others.

    The agents' numbers stand side by side in the last axis. The condition is a return for each agent, any of which may
    be NaN, and for each agent whether its present is known.
    """

    def __init__(self, agents: int, obs: int, horizon: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.agents, self.patch = agents, patch
        self.network = DiT1D(patch * obs, agents * horizon // patch, 2 * agents, hidden)

    def forward(
        self, x: Float[Tensor, "*batch horizon obs"], level: NoiseLevel, condition: Float[Tensor, "*#batch _"] | None
    ) -> Float[Tensor, "*batch horizon obs"]:
        """Predict noise."""
        parts = x.unflatten(-1, (self.agents, -1)).unflatten(-3, (-1, self.patch)).movedim(-2, -4)
        noise: Tensor = self.network(parts.flatten(-2).flatten(-3, -2), level, condition)
        noise = noise.unflatten(-2, parts.shape[-4:-2]).unflatten(-1, parts.shape[-2:])
        return noise.movedim(-4, -2).reshape(x.shape)


class OwnMotions(nn.Module):
    """Inverse dynamics for each agent: its action from its own (scaled) state and motion, the team's side by side."""

    def __init__(self, agents: int, obs: int, act: int) -> None:
        super().__init__()
        self.agents = agents
        self.networks = PerAgent([mlp(2 * obs, 128, act) for _ in range(agents)])

    def forward(self, step: Float[Tensor, "batch _"]) -> Float[Tensor, "batch _"]:
        """Read actions off the team's state and, after it, its motion."""
        own = step.unflatten(1, (2, self.agents, -1)).movedim(1, 2).flatten(2)
        action: Tensor = self.networks(own).flatten(1)
        return action


class MADiff(nn.Module):
    """The trained team, which acts by planning."""

    wishes: Tensor

    def __init__(
        self,
        agents: int,
        obs: int,
        act: int,
        starts: int,
        execution: Execution,
        horizon: int,
        hidden: int,
        patch: int,
        levels: int,
        weight: float,
        calls: int,
        temperature: float,
        every: int,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "agents": agents, "obs": obs, "act": act, "starts": starts, "execution": execution, "horizon": horizon,
            "hidden": hidden, "patch": patch, "levels": levels, "weight": weight, "calls": calls,
            "temperature": temperature, "every": every,
        }  # fmt: skip
        self.agents, self.execution, self.weight = agents, execution, weight
        self.calls, self.temperature = calls, temperature
        self.schedule: Schedule = cosine_schedule(levels)
        self.noise_model = TeamWindows(agents, obs, horizon, hidden, patch)
        self.inverse = OwnMotions(agents, obs, act)
        self.scale = WindowScale(agents * obs, horizon)
        self.register_buffer("wishes", torch.zeros(starts, agents))  # the returns asked for at each step
        self.planner = Planner(self.ask, self.draw, self.scale, self.inverse, every=every)

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Let each agent follow its part of the plan.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        action: Tensor = self.planner.act(self.side_by_side(history)).unflatten(1, (self.agents, -1))
        return action

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds plans horizon agents obs"]:
        """Draw windows of states, the present first; decentralised, agent j's part is of a plan of its own.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        drawn: Tensor = self.planner.plan(self.side_by_side(history), plans).unflatten(-1, (self.agents, -1))
        return drawn

    def side_by_side(self, history: History) -> History:
        """Join the agents' numbers, so that the team is planned for as one.

        Raises:
            ValueError: there are more or fewer agents than the policy was made for.
        """
        if history.observation.shape[1] != self.agents:
            raise ValueError(f"observations of {history.observation.shape[1]} agents; this policy is for {self.agents}")
        return History(
            history.observations.flatten(2), history.actions.flatten(2), history.rewards.sum(2), history.costs.sum(2),
            history.budget,
        )  # fmt: skip

    def ask(self, history: History) -> Float[Tensor, "worlds agents"]:
        """Ask for each agent's high return from this step on; nothing that happened changes it."""
        now = min(history.rewards.shape[1], len(self.wishes) - 1)
        return self.wishes[now].expand(len(history.budget), -1)

    def draw(
        self,
        x: Float[Tensor, "batch horizon obs"],
        condition: Float[Tensor, "batch agents"],
        project: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "batch horizon obs"]:
        """Denoise windows; decentralised, once for each agent, and of each window only the knowing agent's part."""
        present = project(x)[:, 0]
        known = torch.ones(len(x), self.agents)
        if self.execution == "decentralised":
            # nothing is shared between agents, noise neither
            x = torch.randn(len(x), self.agents, *x.shape[1:]).flatten(0, 1)
            known = torch.eye(self.agents).repeat(len(present), 1)
            present, condition = (each.repeat_interleave(self.agents, 0) for each in (present, condition))
        guided = guide(self.telling(known), classifier_free(self.weight), clip_clean(self.scale.low, self.scale.high))
        *_, drawn = denoise(
            guided, self.schedule, self.temperature * x, condition, steps=self.calls, solver=dpm_solver_2m_step,
            project=hold_known(present, mask(known, present)),
        )  # fmt: skip
        if self.execution == "centralised":
            return drawn
        views = drawn.unflatten(0, (-1, self.agents)).unflatten(-1, (self.agents, -1))
        own: Tensor = views.diagonal(dim1=1, dim2=3).mT.flatten(2)
        return own

    def telling(self, known: Float[Tensor, "batch agents"]) -> NoiseModel:
        """Make the noise model that is told whose present is known, whatever it is told of returns."""

        def told(x: Tensor, level: NoiseLevel, condition: Tensor | None, /) -> Tensor:
            # guidance asks twice in one call, so rows come as often as it asks
            knows = known.repeat(len(x) // len(known), 1)
            wish = torch.full_like(knows, torch.nan) if condition is None else condition.expand_as(knows)
            noise: Tensor = self.noise_model(x, level, torch.cat([wish, knows], -1))
            return noise

        return told


def mask(known: Float[Tensor, "batch agents"], present: Float[Tensor, "batch obs"]) -> Bool[Tensor, "batch obs"]:
    """Mark the numbers of those agents whose present is known."""
    return known.bool().repeat_interleave(present.shape[1] // known.shape[1], 1)


def hold_known(present: Float[Tensor, "batch obs"], known: Bool[Tensor, "batch obs"]) -> Callable[[Tensor], Tensor]:
    """Make the `project` of `denoise` that keeps what is known of row 0 as it is, and leaves the rest to be drawn."""

    def project(x: Tensor) -> Tensor:
        return torch.cat([torch.where(known, present, x[:, 0])[:, None], x[:, 1:]], 1)

    return project


def team_loss(
    noise_model: NoiseModel,
    schedule: Schedule,
    clean: Float[Tensor, "batch horizon obs"],
    known: Bool[Tensor, "batch obs"],
    condition: Float[Tensor, "batch _"] | None = None,
) -> Float[Tensor, ""]:
    """Score the noise guessed back in windows of whose row 0 a part is known and clean: all of it is `window_loss`."""
    level = schedule.level(torch.randint(len(schedule), (len(clean),)))
    noise, scales = torch.randn_like(clean), level.like(clean)
    noisy = hold_known(clean[:, 0], known)(scales.alpha * clean + scales.sigma * noise)
    error = (noise_model(noisy, level, condition) - noise) / scales.alpha.clamp(min=0.02)
    guessed = torch.ones_like(clean)
    guessed[:, 0] = (~known).float()
    return (error.square() * guessed).sum() / guessed.sum()


def train(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> MADiff:
    """Train a model of the team's windows given their returns and part of their present, and inverse dynamics.

    Raises:
        ValueError: the dataset has no agents axis, no episode is as long as a window, or `checkpoint` belongs to
            another run.
    """
    if dataset.rewards.ndim != 2:
        raise ValueError("MADiff learns from a Dataset with an agents axis; unsqueeze one for a single agent")
    rows = windows(dataset, config.horizon)
    with seeded(config.seed) as generator:
        _, agents, obs = dataset.observations.shape
        since = (torch.arange(len(dataset)) - dataset.episode_starts()[dataset.episode])[rows[:, 0]]
        policy = MADiff(
            agents, obs, dataset.actions.shape[-1], int(since.max()) + 1, config.execution, config.horizon,
            config.hidden, config.patch, config.levels, config.weight, config.calls, config.temperature, config.every,
        )  # fmt: skip
        left = torch.bincount(dataset.episode)[dataset.episode[rows[:, 0]]] - since
        rates = dataset.return_to_go()[rows[:, 0]] / left[:, None]  # an agent's mean reward a step left
        rates = (rates - rates.mean(0)) / rates.std(0).clamp_min(1e-6)
        for step, wish in enumerate(policy.wishes):
            wish.copy_(rates[since == step].quantile(config.asked, dim=0))
        team = replace(
            dataset, observations=dataset.observations.flatten(1), actions=dataset.actions.flatten(1),
            rewards=dataset.rewards.sum(1), costs=dataset.costs.sum(1),
            next_observations=dataset.next_observations.flatten(1),
        )  # fmt: skip
        policy.scale.fit(team.observations[rows])
        target = MADiff(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        optimiser = torch.optim.AdamW(policy.parameters(), config.learning_rate, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)

        def update() -> dict[str, Tensor]:
            at = torch.randint(len(rows), (config.batch,), generator=generator)
            clean = policy.scale(team.observations[rows[at]])
            wish = rates[at].masked_fill(torch.rand(len(at), 1) < config.forget, torch.nan)
            known = torch.ones_like(wish)
            if config.execution == "decentralised":
                known = torch.eye(agents)[torch.randint(agents, (len(at),))]
            imitation = team_loss(policy.telling(known), policy.schedule, clean, mask(known, clean[:, 0]), wish)
            step = torch.randint(len(team), (2 * config.batch,), generator=generator)
            inverse = motion_loss(policy.scale, policy.inverse, team, step)
            optimiser.zero_grad()
            (imitation + inverse).backward()
            optimiser.step()
            decay.step()
            follow(target, policy, config.average_rate)
            return {"imitation": imitation.detach(), "inverse": inverse.detach()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "optimiser": optimiser, "decay": decay}
        run = f"madiff {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()
