"""Generative rivals of TCDP: two planners and a diffusion policy.

| method | source                            | our deviations                                                        |
|--------|-----------------------------------|-----------------------------------------------------------------------|
| FISOR  | Zheng et al. 2024 (2401.10700)    | h is 1 where a step costs, not 25, which calls most states infeasible |
|        | and its public code               | in our data; networks 2x128, not 3x256; learning rate 1e-3; faster    |
|        |                                   | target networks; 5,000 updates; rows are drawn in proportion to their |
|        |                                   | weights instead of weighted, the same in expectation; weights below 1 |
|        |                                   | count where the state is infeasible, as in the paper: its code lifts  |
|        |                                   | them to 1; a time limit is no true end; the values bootstrapped from  |
|        |                                   | are bounded by what the data shows                                    |
| TREBI  | Lin et al. 2023 (2306.00603),     | windows, network, schedule, solver, replanning and inverse dynamics   |
|        | TCDP Table 1                      | are TCDP's; 16 plans, not 64; the cost bends a plan only while it is   |
|        |                                   | predicted to break the budget; both predictions in units of their     |
|        |                                   | spread, so that one pair of weights serves all tasks                  |
| CDD    | Decision Diffuser, Ajay et al.    | windows, network, schedule, solver, replanning and inverse dynamics   |
|        | 2022 (2211.15657), with a cost    | are TCDP's; cost and return as rates a step left; the return asked    |
|        | beside the return: TCDP Table 1   | for is read off the data's frontier, as CDT's is, not tuned by hand   |

FISOR knows no budget; the planners serve every budget, read from the history. All settings that a source does not give
are our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safediffkit.baselines.transformer import asked_return, frontier
from safediffkit.data.dataset import Dataset, windows
from safediffkit.diffusion.denoise import NoiseModel, ddpm_step, noise_prediction_loss, sample
from safediffkit.diffusion.guidance import classifier, classifier_free, clip_clean, guide
from safediffkit.diffusion.networks import Network, Patches, ResidualMLP, mlp
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule, vp_schedule
from safediffkit.learning import Standardise, Stateful, Watch, follow, ignore, repeat, seeded, words
from safediffkit.policy import (
    History,
    Planner,
    WindowSampler,
    WindowScale,
    allowance,
    check_calls,
    motion_loss,
    window_loss,
)
from safediffkit.safety.critics import Critics, expectile_loss
from safediffkit.safety.energies import Energy, regression_loss


@dataclass(frozen=True)
class FISORConfig:
    """Settings of FISOR, from its public code where no other source is named.

    `danger` was chosen by the recorded episodes of OfflineBallCircle-v0 that cost nothing, whose states are all
    feasible: with 25 less than a quarter of these is called so, with 1 seven tenths.
    """

    steps: int = 5_000  # our choice
    seed: int = 0
    danger: float = 1.0  # h of a step that costs, -1 that of one that does not; our choice, source 25
    discount: float = 0.99  # gamma
    expectile: float = 0.9  # tau: of the reward value, and in reverse of the feasibility value
    reward_temperature: float = 3.0  # alpha_1
    safety_temperature: float = 5.0  # alpha_2
    reward_limit: float = 100.0  # greatest weight in feasible states
    safety_limit: float = 150.0  # greatest weight in infeasible ones
    levels: int = 5  # T
    candidates: int = 16  # N
    pool: int = 1024  # rows that are weighed at each update, of which `batch` train the policy; our choice
    batch: int = 256
    hidden: int = 128  # our choice
    learning_rate: float = 1e-3  # our choice; source 3e-4 for a million updates
    target_rate: float = 0.05  # our choice; source 0.005
    average_rate: float = 0.005  # our choice; source 0.001


class FISOR(nn.Module):
    """The trained policy: proposes actions by diffusion and takes the least infeasible one; it knows no budget."""

    def __init__(self, obs: int, act: int, hidden: int, levels: int, candidates: int) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "hidden": hidden, "levels": levels, "candidates": candidates,
        }  # fmt: skip
        self.act_width, self.candidates = act, candidates
        self.noise_model = ResidualMLP(act, obs, hidden)
        self.critics = Critics(obs, act, 4, hidden)  # twins for the reward, then twins for feasibility
        self.states = Critics(obs, 0, 2, hidden)  # values of states: reward, then feasibility
        self.schedule: Schedule = vp_schedule(levels)
        self.scale = Standardise(obs)

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Propose candidates for each world and take the one with the least Q_h. [FISOR]"""
        actions = self.propose(history.observation, self.candidates)
        state = self.scale(history.observation)[:, None].expand(-1, self.candidates, -1)
        least = cautious(self.critics(state, actions))[1].argmin(1)
        return actions[torch.arange(len(actions)), least]

    def propose(self, observation: Float[Tensor, "batch obs"], plans: int) -> Float[Tensor, "batch plans act"]:
        """Draw actions from the weighted diffusion policy."""
        state = self.scale(observation)[:, None]  # read once for all plans
        guided = guide(self.noise_model, clip_clean(-1.0, 1.0))
        shape = (len(state), plans, self.act_width)
        return sample(guided, self.schedule, shape, state, steps=len(self.schedule), solver=ddpm_step)

    def feasibility(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """Give V_h of each state: at most 0 where, as far as the data shows, no cost need ever come. [FISOR]"""
        value: Tensor = self.values(self.scale(observation))[1]
        return value

    def values(self, state: Float[Tensor, "*batch obs"]) -> Float[Tensor, "2 *batch"]:
        """Give V_r and V_h of (scaled) states."""
        value: Tensor = self.states(state, state[..., :0])
        return value


def cautious(values: Float[Tensor, "4 *batch"]) -> Float[Tensor, "2 *batch"]:
    """Keep of each pair of twins the one that fears more: the lesser reward, the greater infeasibility."""
    twins = values.view(2, 2, *values.shape[1:])
    return torch.stack([twins[0].amin(0), twins[1].amax(0)])


def feasibility_target(
    danger: Float[Tensor, "batch"],
    next_value: Float[Tensor, "batch"],
    terminated: Bool[Tensor, "batch"],
    discount: float,
) -> Float[Tensor, "batch"]:
    """Back up the worst danger to come: (1 - gamma) h + gamma max(h, V_h'); h alone at a true end. [FISOR]

    `danger` is h, above 0 where a step costs. Where h is -1 for d steps and H ever after, the value is
    gamma^d (H + 1) - 1: a great H keeps far dangers in sight, 25 at discount 0.99 for 324 steps.
    """
    ahead = (1 - discount) * danger + discount * torch.maximum(danger, next_value)
    return torch.where(terminated, danger, ahead)


def row_weights(
    actions: Float[Tensor, "2 batch"], states: Float[Tensor, "2 batch"], config: FISORConfig
) -> Float[Tensor, "batch"]:
    """Weigh recorded actions: in feasible states by reward, if the action is feasible too, elsewhere by safety. [FISOR]

    `actions` holds Q_r and Q_h, `states` V_r and V_h.
    """
    (q_reward, q_danger), (v_reward, v_danger) = actions, states
    good = (config.reward_temperature * (q_reward - v_reward)).exp().clamp_max(config.reward_limit)
    safe = (config.safety_temperature * (v_danger - q_danger)).exp().clamp_max(config.safety_limit)
    return torch.where(v_danger > 0, safe, good * (q_danger <= 0))


def train_fisor(
    dataset: Dataset, config: FISORConfig = FISORConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> FISOR:
    """Train FISOR: both values by expectiles, then a diffusion policy on recorded actions weighed by them.

    Raises:
        ValueError: the dataset is empty, or `checkpoint` belongs to another run.
    """
    if not len(dataset):
        raise ValueError("FISOR needs recorded steps; the dataset has none")
    with seeded(config.seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        policy = FISOR(obs, act, config.hidden, config.levels, config.candidates)
        policy.scale.fit(dataset.observations)
        target = FISOR(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        judges = [*policy.critics.parameters(), *policy.states.parameters()]
        judge = torch.optim.Adam(judges, config.learning_rate, fused=True)
        actor = torch.optim.Adam(policy.noise_model.parameters(), config.learning_rate, fused=True)

        observations, actions = policy.scale(dataset.observations), dataset.actions
        next_observations = policy.scale(dataset.next_observations)
        # as in the source: rewards such that episode returns span as much as an episode has steps
        returns, lengths = dataset.episode_returns(), torch.bincount(dataset.episode)
        unit = (returns.max() - returns.min()).clamp_min(1e-6) / lengths.max()
        rewards = dataset.rewards / unit
        # No value is better or worse than the best or worst recorded episode going on for ever at the same rate.
        # Without this bound, our choice, the expectile of the networks' errors feeds on itself until values blow up.
        seen = dataset.return_to_go(config.discount) / unit / (1 - config.discount ** int(lengths.max()))
        worst, best = float(seen.min()), float(seen.max())
        danger = torch.where(dataset.costs > 0, config.danger, -1.0)

        def update() -> dict[str, Tensor]:
            pool = torch.randint(len(dataset), (config.pool,), generator=generator)
            at = pool[: config.batch]
            state, action, ended = observations[at], actions[at], dataset.terminated[at]
            with torch.no_grad():
                next_reward, next_danger = policy.values(next_observations[at])
                next_reward, next_danger = next_reward.clamp(worst, best), next_danger.clamp(-1, config.danger)
                reward_target = rewards[at] + config.discount * next_reward * ~ended
                danger_target = feasibility_target(danger[at], next_danger, ended, config.discount)
                q_reward, q_danger = cautious(target.critics(state, action))
            v_reward, v_danger = policy.values(state)
            values = expectile_loss(q_reward - v_reward, config.expectile)
            feasibility = expectile_loss(q_danger - v_danger, 1 - config.expectile)
            twins = policy.critics(state, action).view(2, 2, -1)
            critics = (twins - torch.stack([reward_target, danger_target])[:, None]).square().mean(-1).sum()
            judge.zero_grad()
            (values + feasibility + critics).backward()
            judge.step()

            with torch.no_grad():
                judged = cautious(target.critics(observations[pool], actions[pool]))
                weights = row_weights(judged, policy.values(observations[pool]), config)
            # a pool without any weight is drawn from evenly
            chosen = pool[torch.multinomial(weights + 1e-6, config.batch, replacement=True, generator=generator)]
            imitation = noise_prediction_loss(
                policy.noise_model, policy.schedule, actions[chosen], observations[chosen]
            )
            actor.zero_grad()
            imitation.backward()
            actor.step()
            follow(target.critics, policy.critics, config.target_rate)
            follow(target.noise_model, policy.noise_model, config.average_rate)
            follow(target.states, policy.states, 1.0)  # the values have no slow copy; the target policy is handed back
            return {
                "critics": critics.detach(),
                "values": values.detach(),
                "feasibility": feasibility.detach(),
                "imitation": imitation.detach(),
            }

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "actor": actor, "judge": judge}
        run = f"fisor {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return target.eval()


@dataclass(frozen=True)
class TREBIConfig:
    """Settings of TREBI; those of the windows are TCDP's, so that the two differ in their guidance alone."""

    steps: int = 6_000
    seed: int = 0
    reward_weight: float = 2.0  # beta, on returns in units of their spread; our choice
    cost_weight: float = 10.0  # beta n, on costs in units of their spread; our choice, in the source's range of n
    discount: float = 0.99  # gamma
    plans: int = 16  # source 64
    horizon: int = 16
    network: Network = "dit"
    hidden: int = 64
    patch: int = 4  # states in a token
    levels: int = 100
    batch: int = 128
    learning_rate: float = 1e-3
    average_rate: float = 0.005
    calls: int = 6  # of the network for a plan, at most
    temperature: float = 0.5  # spread of the noise that a plan starts from
    every: int = 2  # steps between two plans

    def __post_init__(self) -> None:
        check_calls(self.calls, self.levels)


class TREBI(nn.Module):
    """The trained planner, guided by predictions of reward and cost."""

    units: Tensor

    def __init__(
        self,
        obs: int,
        act: int,
        episode: int,
        horizon: int,
        network: str,
        hidden: int,
        patch: int,
        levels: int,
        reward_weight: float,
        cost_weight: float,
        discount: float,
        plans: int,
        calls: int,
        temperature: float,
        every: int,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "episode": episode, "horizon": horizon, "network": network, "hidden": hidden,
            "patch": patch, "levels": levels, "reward_weight": reward_weight, "cost_weight": cost_weight,
            "discount": discount, "plans": plans, "calls": calls, "temperature": temperature,
            "every": every, "sampling": sampling,
        }  # fmt: skip
        self.episode, self.discount = episode, discount
        self.reward_weight, self.cost_weight = reward_weight, cost_weight
        self.schedule: Schedule = cosine_schedule(levels)
        self.noise_model = Patches(network, obs, horizon, 0, hidden, patch)
        # the present state, which is never noisy, is their condition
        self.reward, self.cost = (Energy((horizon - 1) * obs, obs, hidden=256) for _ in range(2))
        self.inverse = mlp(2 * obs, 128, act)
        self.scale = WindowScale(obs, horizon)
        self.register_buffer("units", torch.ones(1))  # of the cost to go
        self.sampler = WindowSampler(self.guided, self.schedule, self.scale, temperature, calls, sampling)
        self.planner = Planner(self.ask, self.sampler, self.scale, self.inverse, self.choose, plans, every)

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Follow the plan, made anew every few steps."""
        return self.planner.act(history)

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds plans horizon obs"]:
        """Draw windows of states, the present state first."""
        return self.planner.plan(history, plans)

    def ask(self, history: History) -> Float[Tensor, "worlds 1"]:
        """Give the budget that remains, b_t = (b_0 - spent) / gamma^t, in units of the cost to go; at least 0. [TREBI]

        Costs are discounted, and so b_0 is what a budget spent evenly over the episode is worth at its start.
        """
        now, gamma = history.costs.shape[1], self.discount
        worth = sum(gamma**step for step in range(self.episode)) / self.episode
        spent = (history.costs * gamma ** torch.arange(now)).sum(1)
        left = (history.budget * worth - spent) / gamma**now
        return left.clamp_min(0)[:, None] / self.units

    def guided(self, condition: Float[Tensor, "batch 1"], present: Float[Tensor, "batch obs"]) -> NoiseModel:
        """Lean to windows of q(tau) exp(beta (R - n C)); `condition` is the budget. [TCDP Table 1]"""

        def any_window(x: Tensor, level: NoiseLevel, _: Tensor | None, /) -> Tensor:
            noise: Tensor = self.noise_model(x, level)  # it knows no budget
            return noise

        return guide(any_window, classifier(lambda x, level: self.log_prob(x, level, condition[:, 0])))

    def log_prob(
        self, x: Float[Tensor, "*batch horizon obs"], level: NoiseLevel, budget: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch"]:
        """Weigh the predicted return against the predicted cost beyond the budget."""
        reward, cost = self.judge(x, level)
        return self.reward_weight * reward - self.cost_weight * (cost - budget).clamp_min(0)

    def judge(
        self, x: Float[Tensor, "*batch horizon obs"], level: NoiseLevel
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Predict return and cost from noisy windows' present state on, in units of their spread."""
        present, ahead = x[..., 0, :], x[..., 1:, :].flatten(-2)
        reward, cost = (energy(ahead, level, present) for energy in (self.reward, self.cost))
        return reward, cost

    def choose(
        self, plans: Float[Tensor, "worlds plans horizon obs"], budget: Float[Tensor, "worlds 1"]
    ) -> Int[Tensor, "worlds"]:
        """Drop the plans predicted to break the budget and take the best of the rest; if none is left, the cheapest."""
        reward, cost = self.judge(plans, self.schedule.level(0))
        worst = reward.amin(1, keepdim=True)
        return torch.where(cost <= budget, reward, worst - (cost - budget)).argmax(1)


def train_trebi(
    dataset: Dataset, config: TREBIConfig = TREBIConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> TREBI:
    """Train a model of all windows, and two predictions from noisy windows by least squares.

    Raises:
        ValueError: no episode is as long as a window, or `checkpoint` belongs to another run.
    """
    rows = windows(dataset, config.horizon)
    with seeded(config.seed) as generator:
        policy = TREBI(
            dataset.observations.shape[1], dataset.actions.shape[1], int(torch.bincount(dataset.episode).max()),
            config.horizon, config.network, config.hidden, config.patch, config.levels, config.reward_weight,
            config.cost_weight, config.discount, config.plans, config.calls, config.temperature, config.every,
        )  # fmt: skip
        returns, costs = (to_go(config.discount)[rows[:, 0]] for to_go in (dataset.return_to_go, dataset.cost_to_go))
        returns = (returns - returns.mean()) / returns.std().clamp_min(1e-6)
        policy.units.copy_(costs.std().clamp_min(1e-6))
        energies = {"reward": returns, "cost": costs / policy.units}
        trained: TREBI = _train_planner(policy, dataset, rows, config, generator, watch, checkpoint, energies=energies)
        return trained


@dataclass(frozen=True)
class CDDConfig:
    """Settings of CDD; those of the windows are TCDP's."""

    steps: int = 6_000
    seed: int = 0
    weight: float = 1.5  # w of classifier-free guidance; source 1.2 and more
    forget: float = 0.25  # share of windows whose cost and return are not given
    horizon: int = 16
    network: Network = "dit"
    hidden: int = 64
    patch: int = 4  # states in a token
    levels: int = 100
    batch: int = 128
    learning_rate: float = 1e-3
    average_rate: float = 0.005
    calls: int = 6  # of the network for a plan, at most
    temperature: float = 0.5
    every: int = 2

    def __post_init__(self) -> None:
        check_calls(self.calls, self.levels)


class CDD(nn.Module):
    """The trained planner, conditioned on cost and return alike."""

    frontier: Tensor
    units: Tensor

    def __init__(
        self,
        obs: int,
        act: int,
        episode: int,
        frontier: int,
        horizon: int,
        network: str,
        hidden: int,
        patch: int,
        levels: int,
        weight: float,
        calls: int,
        temperature: float,
        every: int,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "episode": episode, "frontier": frontier, "horizon": horizon, "network": network,
            "hidden": hidden, "patch": patch, "levels": levels, "weight": weight, "calls": calls,
            "temperature": temperature, "every": every, "sampling": sampling,
        }  # fmt: skip
        self.episode, self.horizon, self.weight = episode, horizon, weight
        self.schedule: Schedule = cosine_schedule(levels)
        self.noise_model = Patches(network, obs, horizon, 2, hidden, patch)
        self.inverse = mlp(2 * obs, 128, act)
        self.scale = WindowScale(obs, horizon)
        self.register_buffer("frontier", torch.zeros(2, frontier))
        self.register_buffer("units", torch.tensor([0.0, 1.0]))  # mean and spread of the return a step
        self.sampler = WindowSampler(self.guided, self.schedule, self.scale, temperature, calls, sampling)
        self.planner = Planner(self.ask, self.sampler, self.scale, self.inverse, every=every)

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Follow the plan, made anew every few steps."""
        return self.planner.act(history)

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds plans horizon obs"]:
        """Draw windows of states, the present state first."""
        return self.planner.plan(history, plans)

    def ask(self, history: History) -> Float[Tensor, "worlds 2"]:
        """Ask for what is left of the budget, and of the greatest return that the data shows within it."""
        left = max(self.episode - history.rewards.shape[1], self.horizon)
        return_left = asked_return(self.frontier, history.budget) - history.rewards.sum(1)
        return self.wish(history.budget_left, return_left, left)

    def wish(
        self,
        cost: Float[Tensor, "*batch"],
        returns: Float[Tensor, "*batch"],
        left: float | Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch 2"]:
        """Say a cost and a return to go as rates over the steps left."""
        return torch.stack([allowance(cost, left), (returns / left - self.units[0]) / self.units[1]], -1)

    def guided(self, condition: Float[Tensor, "batch 2"], present: Float[Tensor, "batch obs"]) -> NoiseModel:
        """Lean to windows of q(tau | c = b, r = r_b,max). [TCDP Table 1]"""
        return guide(self.noise_model, classifier_free(self.weight))


def train_cdd(
    dataset: Dataset, config: CDDConfig = CDDConfig(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> CDD:
    """Train a model of windows given the cost and the return to go that they had.

    Raises:
        ValueError: no episode is as long as a window, or `checkpoint` belongs to another run.
    """
    rows = windows(dataset, config.horizon)
    with seeded(config.seed) as generator:
        lengths, edge = torch.bincount(dataset.episode), frontier(dataset)
        policy = CDD(
            dataset.observations.shape[1], dataset.actions.shape[1], int(lengths.max()), edge.shape[1],
            config.horizon, config.network, config.hidden, config.patch, config.levels, config.weight, config.calls,
            config.temperature, config.every,
        )  # fmt: skip
        policy.frontier.copy_(edge)
        here = rows[:, 0]
        left = (lengths.cumsum(0)[dataset.episode[here]] - here).float()
        costs, returns = dataset.cost_to_go()[here], dataset.return_to_go()[here]
        policy.units.copy_(torch.stack([(returns / left).mean(), (returns / left).std().clamp_min(1e-6)]))
        wishes = policy.wish(costs, returns, left)
        trained: CDD = _train_planner(policy, dataset, rows, config, generator, watch, checkpoint, wishes=wishes)
        return trained


def _train_planner(
    policy: Any,
    dataset: Dataset,
    rows: Int[Tensor, "windows horizon"],
    config: TREBIConfig | CDDConfig,
    generator: torch.Generator,
    watch: Watch,
    checkpoint: Path | None,
    *,
    wishes: Float[Tensor, "windows condition"] | None = None,
    energies: Mapping[str, Float[Tensor, "windows"]] | None = None,
) -> Any:
    # what both planners learn: windows, CDD's under wishes, inverse dynamics, and TREBI's energies by regression
    policy.scale.fit(dataset.observations[rows])
    target = type(policy)(**policy.arguments)
    target.load_state_dict(policy.state_dict())
    optimiser = torch.optim.AdamW(policy.parameters(), config.learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)  # to nothing, as TCDP's

    def update() -> dict[str, Tensor]:
        at = torch.randint(len(rows), (config.batch,), generator=generator)
        clean = policy.scale(dataset.observations[rows[at]])
        given = None
        if wishes is not None and isinstance(config, CDDConfig):
            given = wishes[at].masked_fill(torch.rand(len(at), 1) < config.forget, torch.nan)
        losses = {"imitation": window_loss(policy.noise_model, policy.schedule, clean, given)}
        for name, values in (energies or {}).items():
            energy, ahead = getattr(policy, name), clean[:, 1:].flatten(1)
            losses[name] = regression_loss(energy, policy.schedule, ahead, values[at], clean[:, 0])
        step = torch.randint(len(dataset), (2 * config.batch,), generator=generator)
        losses["inverse"] = motion_loss(policy.scale, policy.inverse, dataset, step)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        decay.step()
        follow(target, policy, config.average_rate)
        return {name: loss.detach() for name, loss in losses.items()}

    parts: dict[str, Stateful] = {"policy": policy, "target": target, "optimiser": optimiser, "decay": decay}
    run = f"{type(policy).__name__.lower()} {words(config)} on {len(dataset)} steps: {dataset.provenance}"
    repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    target.eval().arguments["sampling"] = target.sampler.measure(target.ask, dataset, config.seed)
    return target
