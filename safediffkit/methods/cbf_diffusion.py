"""Barriers and plans for teams: each agent plans by diffusion what it will see, and a learned barrier judges it.

Paper: Huang, "Diffusion Models for Offline Multi-agent Reinforcement Learning with Safety Constraints" (CBF). It gives
no settings, and its figures come from work on driving that has nothing to do with the method: none can be repeated.

| part | the paper | ours |
|---|---|---|
| agents | a network each, decentralised | decentralised; all agents are alike, so they share the networks |
| state and neighbours' states | tau_i = {s_i, o_i} | an agent's whole observation, which holds both: see `Local` |
| dangerous set X_{i,d} | too near, too fast | and what led there within `foresight` steps of the record: see `sooner` |
| safety in the condition y | y_i of Eq. 8 | least h along the window: by Eq. 8 a crash is fine as long as h < 0 there |
| reward in the condition y | "the reward under the trajectory" | rank of n-step advantage, with Eqs. 15 and 16 |
| what the values are for | not said | that advantage |
| values outside X_{i,h} | undefined there, though Eq. 16 reads them | as low as the worst that was recorded |
| policy | the loss of the barrier never meets it | the barrier is condition, filter or guidance: see `Role` |
| actions | inverse dynamics | the same |

Settings for each world, chosen on debugging episodes (reset seeds from 50,000 on):

    landmarks-mixed-safety --set network=dit hidden=64 patch=4 temperature=0.7 steps=4500 foresight=2 caution=0.05
    merge-mixed-safety --set world=merge horizon=16 lookahead=16 foresight=14 steps=2500 value_steps=1500 penalty=2.0

Cars that will meet where the ramp joins are in no danger until there, and then at once: to keep off it they must see it
nearly 3 s ahead, which is what the longer windows and the foresight are for.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset, windows
from safediffkit.data.reshape import agents_apart, conditional_quantile
from safediffkit.diffusion.denoise import NoiseModel
from safediffkit.diffusion.guidance import Guidance, classifier, classifier_free, guide
from safediffkit.diffusion.networks import Network, Patches, mlp
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule
from safediffkit.learning import Stateful, Watch, follow, ignore, repeat, seeded, words
from safediffkit.policy import History, Planner, WindowSampler, WindowScale, check_calls, motion_loss, window_loss
from safediffkit.safety.barriers import Barrier, safety_filter, train_barrier
from safediffkit.safety.barriers import Config as BarrierConfig
from safediffkit.safety.energies import Energy, contrastive_loss
from safediffkit.safety.values import Values, penalised, sooner, train_values

Role = Literal["condition", "filter", "guidance", "programme"]  # the last is the classical yardstick, not the paper's
World = Literal["landmarks", "merge"]
SECONDS = {"landmarks": 0.1, "merge": 0.2}  # of a step


@dataclass(frozen=True)
class Config:
    """Settings of CBF-diffusion. The paper gives none: all are our choice."""

    steps: int = 4_000  # updates of the planner
    seed: int = 0
    world: World = "landmarks"  # whose observations these are, see `Local`
    barrier_steps: int = 2_000
    slope: float = 1.0  # alpha of Eq. 12, a second
    margin: float = 0.1  # gamma of Eq. 12
    foresight: int = 1  # steps into danger that count as danger, see `sooner`
    lookahead: int = 8  # steps: no danger within so many makes a state safe, see `label_rows`
    value_steps: int = 2_000
    penalty: float = 1.0  # r_p of Eq. 13, in units of the rewards' spread
    expectile: float = 0.7  # of L^T in Eq. 15
    discount: float = 0.95  # gamma of Eqs. 13 and 16
    horizon: int = 8  # H, states in a window
    forget: float = 0.25  # p of Eq. 10, see `forgotten`
    weight: float = 1.5  # omega of classifier-free guidance
    ask_reward: float = 0.9  # the rank of advantage that is asked for
    safety_pull: float = 3.0  # of the role "guidance": weight of the barrier in exp(pull x safety), when trained
    guidance_weight: float = 1.0  # by which that slope is multiplied when acting; only 1 samples what is said there
    groups: int = 8  # of windows that compete in an update of the energy
    candidates: int = 32  # windows in a group
    network: Network = "mlp"  # see `Patches`
    hidden: int = 256
    patch: int = 1
    levels: int = 100  # K
    batch: int = 128
    learning_rate: float = 1e-3
    average_rate: float = 0.005
    calls: int = 6  # of the network for a plan, at most
    temperature: float = 0.5  # spread of the noise that a plan starts from
    every: int = 1  # steps between two plans
    plans: int = 16  # drawn for an agent, to choose from
    caution: float = 0.0  # the h that a plan or an action must keep as "filter" and "programme"

    def __post_init__(self) -> None:
        check_calls(self.calls, self.levels)
        if not 0 < self.forget < 0.5 or not 0.5 <= self.expectile < 1 or not 0 <= self.ask_reward <= 1:
            raise ValueError(
                f"forget={self.forget}, expectile={self.expectile}, ask_reward={self.ask_reward}: a share between "
                "0 and 0.5, an expectile from 0.5 to below 1 and a rank from 0 to 1 are needed"
            )


@dataclass(frozen=True)
class Local:
    """Where an agent's observation says what decides safety: its first entries, and its neighbours' at the end."""

    own: int
    neighbours: int
    features: int  # entries of a neighbour
    flagged: bool = False  # a neighbour's first entry is 1, or 0 where it is not there

    @classmethod
    def of(cls, world: World, obs: int, agents: int) -> "Local":
        """Read the layout off a world's observations.

        Raises:
            ValueError: observations of such a width are not that world's, or show no neighbours' velocities.
        """
        if world == "merge":
            local = cls(own=5, neighbours=(obs - 5) // 5, features=5, flagged=True)
            fits = obs == 5 + 5 * local.neighbours
        else:
            local = cls(own=4, neighbours=agents - 1, features=4)
            fits = obs >= 6 + 4 * local.neighbours and obs % 2 == 0
        if not fits or local.neighbours < 1:
            raise ValueError(
                f"observations of {obs} numbers for each of {agents} agents are not those of world={world!r}; a "
                "barrier needs 2 agents or more that see each other's velocity: landmarks(velocities=True), or merge()"
            )
        return local

    def __call__(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch _"]:
        """Pick the state that a `Barrier` judges; a neighbour that is not there is NaN."""
        others = observation[..., -self.neighbours * self.features :].unflatten(-1, (self.neighbours, self.features))
        if self.flagged:
            others = others.where(others[..., :1] > 0.5, torch.nan)
        return torch.cat([observation[..., : self.own], others.flatten(-2)], -1)


class CBFDiffusion(nn.Module):
    """The trained team: every agent plans what it will see, from its own observation alone, and a barrier judges."""

    def __init__(
        self,
        obs: int,
        act: int,
        agents: int,
        config: dict[str, Any],
        roles: list[str],
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "agents": agents, "config": config, "roles": roles, "sampling": sampling,
        }  # fmt: skip
        if unknown := set(roles) - set(get_args(Role)):
            raise ValueError(f"unknown roles {sorted(unknown)}: a barrier can be {', '.join(get_args(Role))}")
        self.roles, self.config = set(roles), (known := Config(**config))
        self.local, self.dt, horizon = Local.of(known.world, obs, agents), SECONDS[known.world], known.horizon
        self.barrier = Barrier(self.local.own, self.local.features)
        self.schedule: Schedule = cosine_schedule(known.levels)
        self.noise_model = Patches(known.network, obs, horizon, 2, known.hidden, known.patch)
        self.energy = Energy((horizon - 1) * obs, obs, hidden=256)
        self.worth = mlp(horizon * obs, 256, 1)
        self.inverse = mlp(2 * obs, 128, act)
        self.motion = mlp(obs + act, 128, obs)
        self.scale = WindowScale(obs, horizon)
        self.sampler = WindowSampler(self.guided, self.schedule, self.scale, known.temperature, known.calls, sampling)
        self.planner = Planner(self.ask, self.sampler, self.scale, self.inverse, self.choose, known.plans, known.every)

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Let every agent follow its own plan, made from its own observation alone. [CBF Eq. 6]"""
        alone = apart(history)
        action = self.planner.act(alone)
        if "programme" in self.roles:
            state = alone.observation
            action = safety_filter(self.h, self.move, state, action, dt=self.dt, slope=self.config.slope).action
        together: Tensor = action.unflatten(0, (-1, history.observation.shape[1]))
        return together

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds agents plans horizon obs"]:
        """Draw windows of what each agent will see, the present first. [CBF Eq. 5]"""
        alone = self.planner.plan(apart(history), plans)
        together: Tensor = alone.unflatten(0, (-1, history.observation.shape[1]))
        return together

    def variants(self) -> dict[str, "CBFDiffusion"]:
        """Give this policy once for each role of the barrier, without any, with the first three, and with all four."""
        every: dict[str, list[str]] = {"none": [], **{role: [role] for role in get_args(Role)}}
        every |= {"all": list(get_args(Role)[:3]), "shielded": list(get_args(Role))}
        return {name: self.with_roles(roles) for name, roles in every.items()}

    def with_roles(self, roles: list[str], **changes: Any) -> "CBFDiffusion":
        """Copy this policy with other roles of the barrier, or with other settings of how it acts, as `weight` is."""
        other = type(self)(**self.arguments | {"roles": roles, "config": self.arguments["config"] | changes})
        other.load_state_dict(self.state_dict())
        return other.eval()

    def h(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """Judge observations by the barrier, less what caution asks for: at least 0 is safe."""
        value: Tensor = self.barrier(self.local(observation)) - self.config.caution
        return value

    def move(
        self, observation: Float[Tensor, "batch obs"], action: Float[Tensor, "batch act"]
    ) -> Float[Tensor, "batch obs"]:
        """Predict the next observation: the model that the quadratic programme needs, and nothing else here."""
        change = self.motion(torch.cat([self.scale(observation[:, None])[:, 0], action], -1))
        there: Tensor = observation + change * self.scale.spread[1] + self.scale.mean[1]
        return there

    def ask(self, history: History) -> Float[Tensor, "worlds 2"]:
        """Ask for windows of a high advantage, and, if the barrier is a condition, safe by its margin all along."""
        asked = torch.tensor([1.0 if "condition" in self.roles else torch.nan, self.config.ask_reward])
        return asked.expand(len(history.observation), 2)

    def guided(self, condition: Float[Tensor, "batch 2"], present: Float[Tensor, "batch obs"]) -> NoiseModel:
        """Lean to what is asked for, and, if the barrier is guidance, up the slope of safety. [CBF Eq. 9]"""
        lean: list[Guidance] = [classifier_free(self.config.weight)]
        if "guidance" in self.roles:
            lean.append(classifier(self.log_safety(present), self.config.guidance_weight))
        return guide(self.noise_model, *lean)

    def log_safety(self, present: Float[Tensor, "*batch obs"]) -> Callable[[Tensor, NoiseLevel], Tensor]:
        """Make log E[exp(pull x safety) | x_k] of noisy windows with this present state."""
        energy: Callable[..., Tensor] = self.energy
        return lambda x, level: energy(x[..., 1:, :].flatten(-2), level, present)

    def choose(
        self, plans: Float[Tensor, "worlds plans horizon obs"], condition: Float[Tensor, "worlds 2"]
    ) -> Int[Tensor, "worlds"]:
        """Take the plan of the greatest worth; as filter, the barrier lets only those pass that it calls safe.

        Where none passes, the one whose least h is greatest is taken.
        """
        worth: Tensor = self.worth(plans.flatten(2))[..., 0]
        if "filter" not in self.roles:
            return worth.argmax(1)
        least = self.h(self.scale.back(plans)[..., 1:, :]).amin(-1)
        passed = least >= 0
        return torch.where(passed.any(1), worth.where(passed, -torch.inf).argmax(1), least.argmax(1))


def apart(history: History) -> History:
    """Make a world of each agent's part: what one agent has seen is all that its planner is shown."""
    agents = history.observations.shape[2]
    parts = {
        name: getattr(history, name).movedim(2, 1).flatten(0, 1)
        for name in ("observations", "actions", "rewards", "costs")
    }
    return History(**parts, budget=history.budget.repeat_interleave(agents) / agents)


def forgotten(
    condition: Float[Tensor, "batch 2"], forget: float, generator: torch.Generator
) -> Float[Tensor, "batch 2"]:
    """Leave a share `forget` of the rows without any condition, and as many without safety but with reward.

    The paper forgets all of y at once: the second half is ours, so that reward alone can be asked for. [CBF Eq. 10]
    """
    draw = torch.rand(len(condition), generator=generator)
    dropped = torch.stack([draw < 2 * forget, draw < forget], 1)
    return condition.masked_fill(dropped, torch.nan)


@dataclass(frozen=True)
class Windows:
    """All windows of a dataset of single agents with what is said of them: y(tau)."""

    rows: Int[Tensor, "windows horizon"]
    safety: Float[Tensor, "windows"]  # least h after the present state, in margins, clipped to -1 and 1
    advantage: Float[Tensor, "windows"]
    rank: Float[Tensor, "windows"]  # of the advantage, from 0 to 1

    @classmethod
    def of(cls, dataset: Dataset, h: Float[Tensor, "steps"], values: Values, config: Config) -> "Windows":
        """List the windows; `h` is what the barrier says of each recorded state.

        Raises:
            ValueError: no episode is as long as a window.
        """
        rows = windows(dataset, config.horizon)
        rewards = penalised(dataset, config.penalty)[rows[:, :-1]]
        fading = config.discount ** torch.arange(config.horizon - 1)
        first, last = rows[:, 0], rows[:, -1]
        value = values(dataset.observations, h >= 0).detach()
        ahead = (fading * rewards).sum(1) + config.discount ** (config.horizon - 1) * value[last]
        advantage = ahead - value[first]
        safety = (h[rows[:, 1:]].amin(1) / config.margin).clamp(-1, 1)
        return cls(rows, safety, advantage, conditional_quantile(advantage, torch.zeros(len(rows)), 0.0))


def learn_barrier(dataset: Dataset, config: Config) -> Barrier:
    """Learn the barrier that all agents share. [CBF Eq. 12]

    Of the same data under other costs, it takes the place of a trained team's `barrier`: as "filter" and "programme"
    it counts at once, while "condition" and "guidance" go on heeding the barrier that they were trained with.

    Raises:
        ValueError: as `train`.
    """
    alone, (_, agents, obs) = agents_apart(dataset), dataset.observations.shape
    local = Local.of(config.world, obs, agents)
    seen = replace(alone, observations=local(alone.observations), next_observations=local(alone.next_observations))
    return train_barrier(
        sooner(seen, config.foresight),
        BarrierConfig(
            dt=SECONDS[config.world], slope=config.slope, margin=config.margin, lookahead=config.lookahead,
            features=local.features, neighbours=local.neighbours, steps=config.barrier_steps, seed=config.seed,
        ),
    )  # fmt: skip


def train(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> CBFDiffusion:
    """Learn the barrier, then the values on its safe set, then the planner.

    `watch` and `checkpoint` see the planner's updates; what comes before takes less time, and comes out the same when
    it is made again.

    Raises:
        ValueError: the dataset has no agents axis, is not of the world that the config names, shows no danger or no
            safe start, or `checkpoint` belongs to another run.
    """
    alone = agents_apart(dataset)
    _, agents, obs = dataset.observations.shape
    act, local = dataset.actions.shape[-1], Local.of(config.world, obs, agents)
    with seeded(config.seed) as generator:
        barrier = learn_barrier(dataset, config)
        with torch.no_grad():
            h, next_h = barrier(local(alone.observations)), barrier(local(alone.next_observations))
        values = train_values(
            replace(alone, rewards=penalised(alone, config.penalty)), h >= 0, next_h >= 0,
            discount=config.discount, expectile=config.expectile, steps=config.value_steps, seed=config.seed,
        )  # fmt: skip
        known = Windows.of(alone, h, values, config)

        policy = CBFDiffusion(obs, act, agents, asdict(config), list(get_args(Role)[:3]))
        policy.barrier.load_state_dict(barrier.state_dict())
        policy.barrier.requires_grad_(False)
        policy.scale.fit(alone.observations[known.rows])
        target = CBFDiffusion(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        learning = [weight for weight in policy.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(learning, config.learning_rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
        given = torch.stack([known.safety, known.rank], 1)
        worth = known.advantage / known.advantage.std().clamp_min(1e-6)

        def read(at: Tensor) -> Tensor:
            scaled: Tensor = policy.scale(alone.observations[known.rows[at]])
            return scaled

        def draw(*size: int) -> Tensor:
            return torch.randint(len(known.rows), size, generator=generator)

        def update() -> dict[str, Tensor]:
            # what an agent will see, under y, a part of y, or nothing
            at = draw(config.batch)
            condition = forgotten(given[at], config.forget, generator)
            imitation = window_loss(policy.noise_model, policy.schedule, read(at), condition)

            # exp(pull x safety), among windows that compete
            at = draw(config.groups, config.candidates)
            clean = read(at.flatten()).unflatten(0, at.shape)
            present, pull = clean[:, :, 0], config.safety_pull * known.safety[at]
            contrast = contrastive_loss(
                lambda noisy, level, _: policy.energy(noisy, level, present),
                policy.schedule, clean[:, :, 1:].flatten(2), pull,
            )  # fmt: skip

            at = draw(2 * config.batch)
            gain = (policy.worth(read(at).flatten(1))[:, 0] - worth[at]).square().mean()

            # which action leads from a state to the next, and where an action leads
            at = torch.randint(len(alone), (2 * config.batch,), generator=generator)
            inverse = motion_loss(policy.scale, policy.inverse, alone, at)
            there = alone.next_observations[at]
            missed = (policy.move(alone.observations[at], alone.actions[at]) - there) / policy.scale.spread[1]

            losses = {"imitation": imitation, "contrast": contrast, "worth": gain, "inverse": inverse}
            losses["motion"] = missed.square().mean()
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
            falling.step()
            follow(target, policy, config.average_rate)
            return {name: loss.detach() for name, loss in losses.items()}

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "optimiser": optimiser, "falling": falling}
        run = f"cbf-diffusion {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
        target.eval()
        target.arguments["sampling"] = target.sampler.measure(target.ask, alone, config.seed)
    return target
