"""Trajectory-constrained diffusion planning: one planner for every budget, q(tau | cost <= budget) exp(beta R(tau)).

Paper: Zhang et al., "Enhancing Offline Safe Reinforcement Learning with Trajectory-Constrained Diffusion Planning"
(TCDP), an extended abstract of three pages: a sentence for each technique and no settings at all.

| part | the paper | ours |
|---|---|---|
| condition c <= b | cost to go relabelled, data augmented | a budget first, then a window within it: unbiased |
| what the network is told | the cost to go | its root rate, cost a step left: see `allowance` |
| reward R(tau) | normalised by quantiles | rank, within the budget, of reward beyond what is usual from a state |
| exp(beta R) | classifier guidance | a contrastive energy, to which windows over the budget are the worst |
| choice | - | of several plans, the one of the greatest energy among those predicted to keep within the budget |
| what is asked for | the budget | what imagined episodes, asked for it, spend a share of the budget on: see `wish` |
| network | DiT with adaLN-Zero | the same, small, with several states a token |
| actions | - | inverse dynamics, and a new plan every few steps |
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset, windows
from safediffkit.data.reshape import conditional_quantile, draw_within_budget
from safediffkit.diffusion.denoise import NoiseModel
from safediffkit.diffusion.guidance import classifier, classifier_free, guide
from safediffkit.diffusion.networks import Network, Patches, mlp
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule
from safediffkit.learning import Stateful, Watch, follow, ignore, repeat, seeded, words
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
from safediffkit.safety.energies import Energy, contrastive_loss
from safediffkit.safety.imagination import WorldModel, fit_world, spending

LAST_PART = 4  # the last quarter of an episode is the shortest stretch whose cost tells how costly its driver is


@dataclass(frozen=True)
class Config:
    """Settings of TCDP, the same for all tasks and budgets. The paper gives none: all are our choice."""

    steps: int = 6_000
    seed: int = 0
    horizon: int = 16  # H, states in a window
    safety_weight: float = 3.0  # w of classifier-free guidance, towards the budget
    reward_weight: float = 2.5  # beta, the one parameter to be set, says the paper [TCDP Eq. 1]
    share: float = 0.8  # of the budget is meant to be spent: what a plan will cost is a guess, and cars answer late
    imagined: int = 12  # episodes imagined under each of some budgets, to see what they really cost; 0: none
    forget: float = 0.2  # share of windows whose budget is not given, which classifier-free guidance needs
    groups: int = 8  # of windows that compete in an update of the energy
    candidates: int = 32  # windows in a group
    budgets: int = 33  # allowances from 0 to 1 that windows are drawn within and ranked within
    network: Network = "dit"  # z_theta, see `Patches`
    hidden: int = 64
    patch: int = 4  # states in a token
    levels: int = 100  # noise levels k
    batch: int = 128
    learning_rate: float = 1e-3  # falls to nothing like half a cosine
    average_rate: float = 0.005  # share of the way that the averaged networks, which plan, move at an update
    calls: int = 6  # of the network for a plan, at most
    temperature: float = 0.5  # spread of the noise that a plan starts from: below 1 it keeps to what is likely
    every: int = 2  # steps between two plans
    plans: int = 16  # drawn for a world, to choose from

    def __post_init__(self) -> None:
        check_calls(self.calls, self.levels)
        unfit = not 0 < self.forget < 1 or self.reward_weight < 0 or not 0 < self.share <= 1
        if unfit or self.budgets < 2 or self.imagined < 0:
            raise ValueError(
                f"forget={self.forget}, reward_weight={self.reward_weight}, share={self.share}, "
                f"budgets={self.budgets}, imagined={self.imagined}: needed are a share between 0 and 1, a weight of 0 "
                "or more, a share above 0 and up to 1, at least the two budgets 0 and 1, and 0 or more episodes"
            )


class TCDP(nn.Module):
    """The trained planner. It serves every budget, and one that changes on the way: it asks for what is left."""

    def __init__(
        self,
        obs: int,
        act: int,
        episode: int,
        horizon: int,
        network: Network,
        hidden: int,
        patch: int,
        levels: int,
        safety_weight: float,
        calls: int,
        temperature: float,
        every: int,
        plans: int,
        reward_pull: float = 1.0,
        share: float = 1.0,
        sampling: dict[str, Any] | None = None,
        spent: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "obs": obs, "act": act, "episode": episode, "horizon": horizon, "network": network, "hidden": hidden,
            "patch": patch, "levels": levels, "safety_weight": safety_weight, "calls": calls,
            "temperature": temperature, "every": every, "plans": plans, "reward_pull": reward_pull,
            "share": share, "sampling": sampling, "spent": spent,
        }  # fmt: skip
        self.episode, self.horizon, self.share = episode, horizon, share
        self.safety_weight, self.reward_pull = safety_weight, reward_pull  # a pull other than 1 changes beta, roughly
        self.schedule: Schedule = cosine_schedule(levels)
        self.noise_model = Patches(network, obs, horizon, 1, hidden, patch)
        self.energy = Energy((horizon - 1) * obs, 1 + obs, hidden=256)
        self.cost = mlp(horizon * obs, 256, 1)
        self.inverse = mlp(2 * obs, 128, act)
        self.scale = WindowScale(obs, horizon)
        self.sampler = WindowSampler(self.guided, self.schedule, self.scale, temperature, calls, sampling)
        self.planner = Planner(self.ask, self.sampler, self.scale, self.inverse, self.choose, plans, every)

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Follow the plan, made anew every few steps."""
        return self.planner.act(history)

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds plans horizon obs"]:
        """Draw windows of states, the present state first."""
        return self.planner.plan(history, plans)

    def ask(self, history: History) -> Float[Tensor, "worlds 1"]:
        """Allow what is left of the wish, spread over the steps left; over the last part where fewer are."""
        left = max(self.episode - history.actions.shape[1], self.episode // LAST_PART, self.horizon)
        return allowance(self.wish(history.budget) - history.costs.flatten(1).sum(1), left)[:, None]

    def wish(self, budget: Float[Tensor, "worlds"]) -> Float[Tensor, "worlds"]:
        """Find the budget to plan under so that an episode is likely to cost a share of this one. (Our choice.)

        A planner asked for 10 may cost 15, or nothing: predicted costs lean to the usual, and plans are not quite
        followed. What was asked for and spent in imagined episodes (see `calibrate_budget`) is read backwards here.
        Nothing is asked for where nothing is allowed, and never more than twice the budget.
        """
        aim = self.share * budget
        if (spent := self.arguments["spent"]) is None:
            return aim
        asked, cost = (torch.tensor(row).to(budget) for row in spent)
        cost = cost.cummax(0).values  # asked for more, it should not spend less
        upper = torch.searchsorted(cost, aim).clamp(1, len(cost) - 1)
        part = (aim - cost[upper - 1]) / (cost[upper] - cost[upper - 1]).clamp(min=1e-6)
        return torch.minimum(torch.lerp(asked[upper - 1], asked[upper], part.clamp(0, 1)), 2 * budget)

    def calibrate_budget(
        self, world: WorldModel, asked: Float[Tensor, "batch"], episodes: int = 12, seed: int = 0
    ) -> None:
        """Imagine what each of these rising budgets leads to when it is planned under as it is; keep that for `wish`.

        Raises:
            ValueError: there are fewer than two budgets, or no episodes.
        """
        if len(asked) < 2:
            raise ValueError(f"calibrate_budget reads between budgets: it needs two or more, not {asked.tolist()}")
        plain = deepcopy(self)
        plain.share, plain.arguments["spent"] = 1.0, None
        cost, _ = spending(plain, world, asked, episodes=episodes, seed=seed)
        self.arguments["spent"] = [asked.tolist(), cost.tolist()]

    def guided(self, condition: Float[Tensor, "batch 1"], present: Float[Tensor, "batch obs"]) -> NoiseModel:
        """Lean to windows of q(tau | c <= b) exp(beta R(tau)); `condition` is the budget. [TCDP Eq. 1, Table 1]"""
        reward = self.log_worth(condition, present)
        return guide(self.noise_model, classifier_free(self.safety_weight), classifier(reward, self.reward_pull))

    def log_worth(
        self, budget: Float[Tensor, "*#batch 1"], present: Float[Tensor, "*batch obs"]
    ) -> Callable[[Tensor, NoiseLevel], Tensor]:
        """Make R of Table 1: log E[exp(beta R) | x_k] of noisy windows with this present state, under this budget."""
        given = torch.cat([budget.expand(*present.shape[:-1], 1), present], -1)
        energy: Callable[..., Tensor] = self.energy
        return lambda x, level: energy(x[..., 1:, :].flatten(-2), level, given)

    def choose(
        self, plans: Float[Tensor, "worlds plans horizon obs"], budget: Float[Tensor, "worlds 1"]
    ) -> Int[Tensor, "worlds"]:
        """Of the plans predicted to keep within the budget take the one of the greatest energy, else the cheapest.

        On clean windows the energy is beta R. The choice is ours, after TREBI's. Guidance alone moves each plan a
        little beyond what was recorded, the next plan starts there, and where there are no data it finds no way back:
        cars sped up without end. Among several plans there is nearly always one that brakes.
        """
        energy = self.log_worth(budget[:, None], plans[..., 0, :])(plans, self.schedule.level(0))
        cost: Tensor = self.cost(plans.flatten(2))[..., 0]
        within = cost <= budget
        return torch.where(within.any(1), energy.where(within, -torch.inf).argmax(1), cost.argmin(1))


def competition_loss(
    energy: Callable[..., Tensor],
    schedule: Schedule,
    clean: Float[Tensor, "groups candidates horizon obs"],
    log_weight: Float[Tensor, "groups candidates"],
    budget: Float[Tensor, "groups 1"],
) -> Float[Tensor, ""]:
    """Let the energy tell which windows of a group weigh how much under equal noise. [CEP Eq. 12]

    The present state is never noisy, and each candidate has its own.
    """
    present, ahead = clean[:, :, 0], clean[:, :, 1:].flatten(2)
    given = torch.cat([budget[:, None].expand(*present.shape[:2], 1), present], -1)
    return contrastive_loss(lambda noisy, level, _: energy(noisy, level, given), schedule, ahead, log_weight)


def beyond_usual(
    values: Float[Tensor, "windows"], present: Float[Tensor, "windows obs"], degree: int = 3
) -> Float[Tensor, "windows"]:
    """Subtract from each value what is usual from its present state: a polynomial fitted by least squares.

    A plan cannot change its present state, so exp(beta R) times any function of that state is the same wish. Ranks,
    though, would spend most of their range on telling good states from bad ones, and little on the plans from one.
    """
    factors = torch.cat([torch.ones(len(present), 1), present], 1).double()
    products = torch.tensor(list(combinations_with_replacement(range(factors.shape[1]), degree)))
    features = torch.stack([factors[:, each].prod(1) for each in products], 1)
    gram = features.T @ features
    gram.diagonal().add_(1e-6 * len(present))  # some observations are functions of others
    usual: Tensor = features @ torch.linalg.solve(gram, features.T @ values.double())
    return values - usual.to(values)


@dataclass(frozen=True)
class Windows:
    """All windows of a dataset, the cheapest first, with what TCDP says of them: cost c(tau) and reward R(tau)."""

    rows: Int[Tensor, "windows horizon"]
    costs: Float[Tensor, "windows"]  # as allowances: the episode's cost from the window's start on, a step left
    budgets: Float[Tensor, "choices"]
    quantiles: Float[Tensor, "choices windows"]  # R under each budget; NaN where the window is not within it

    @classmethod
    def of(cls, dataset: Dataset, horizon: int, budgets: int) -> "Windows":
        """List and rank the windows.

        R ranks the reward earned within the window beyond what is usual from its present state.

        Raises:
            ValueError: no episode is as long as a window.
        """
        rows = windows(dataset, horizon)
        lengths = torch.bincount(dataset.episode)
        ends, shortest = lengths.cumsum(0), (lengths // LAST_PART).clamp(min=horizon)
        start = rows[:, 0]
        end = ends[dataset.episode[start]]
        # few steps before the end the cost to go is small whoever drives: look at the last part as a whole instead
        since = torch.minimum(start, end - shortest[dataset.episode[start]])
        costs = allowance(dataset.cost_to_go()[since], (end - since).float())
        costs, order = costs.sort()  # draws from windows in order are quick
        rows, grid = rows[order], torch.linspace(0, 1, budgets)
        present = dataset.observations[rows[:, 0]]
        present = (present - present.mean(0)) / present.std(0).clamp_min(1e-5)
        rewards = beyond_usual(dataset.rewards[rows].sum(1), present)
        grid = grid[grid >= costs[0]]
        quantiles = torch.stack([conditional_quantile(rewards, costs, budget) for budget in grid.tolist()])
        return cls(rows, costs, grid, quantiles)

    def imitated(
        self, size: int, forget: float, generator: torch.Generator
    ) -> tuple[Int[Tensor, "size"], Float[Tensor, "size 1"]]:
        """Draw windows of p(tau | c <= b) with their budgets, and a share `forget` of p(tau), whose budget is NaN."""
        free = round(forget * size)
        any_window = torch.randint(len(self.rows), (free,), generator=generator)
        at, budget = draw_within_budget(self.costs, self.budgets, size - free, generator)
        return torch.cat([any_window, at]), torch.cat([torch.full((free,), torch.nan), budget])[:, None]

    def competing(
        self, groups: int, candidates: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "groups candidates"], Float[Tensor, "groups 1"], Float[Tensor, "groups candidates"]]:
        """Draw groups of windows, half of each within one budget and half any, with the budget and each window's R.

        R is the rank within the budget. A window over it has R = -1, worse than the last: it has no place under
        p(tau | c <= b), but without examples the energy would go on rising there, and pull plans over the budget.
        """
        choices = torch.randint(len(self.budgets), (groups,), generator=generator)
        budgets, half = self.budgets[choices, None], candidates // 2
        within = torch.stack([draw_within_budget(self.costs, one, half, generator)[0] for one in budgets])
        anywhere = torch.randint(len(self.rows), (groups, candidates - half), generator=generator)
        at = torch.cat([within, anywhere], 1)
        return at, budgets, self.quantiles[choices[:, None], at].nan_to_num(-1.0)


def train(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> TCDP:
    """Train the four networks side by side and return the planner; nothing but the arguments matters.

    Raises:
        ValueError: no episode is as long as a window, the data have true ends and `config.imagined` is not 0, or
            `checkpoint` belongs to another run.
    """
    with seeded(config.seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        policy = TCDP(
            obs, act, int(torch.bincount(dataset.episode).max()), config.horizon, config.network, config.hidden,
            config.patch, config.levels, config.safety_weight, config.calls, config.temperature, config.every,
            config.plans, share=config.share,
        )  # fmt: skip
        known = Windows.of(dataset, config.horizon, config.budgets)
        # before all else, so that data in which nothing can be imagined are refused at once
        world = fit_world(dataset, seed=config.seed) if config.imagined else None
        policy.scale.fit(dataset.observations[known.rows])
        target = TCDP(**policy.arguments)
        target.load_state_dict(policy.state_dict())
        optimiser = torch.optim.AdamW(policy.parameters(), config.learning_rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)

        def read(at: Tensor) -> Tensor:
            scaled: Tensor = policy.scale(dataset.observations[known.rows[at]])
            return scaled

        def update() -> dict[str, Tensor]:
            # p(tau | c <= b), and p(tau) where no budget is given
            at, budget = known.imitated(config.batch, config.forget, generator)
            imitation = window_loss(policy.noise_model, policy.schedule, read(at), budget)

            # exp(beta R(tau)) among windows within one budget
            at, budget, reward = known.competing(config.groups, config.candidates, generator)
            contrast = competition_loss(policy.energy, policy.schedule, read(at), config.reward_weight * reward, budget)

            # what a window will have cost when its episode ends
            at = torch.randint(len(known.rows), (2 * config.batch,), generator=generator)
            cost = (policy.cost(read(at).flatten(1))[:, 0] - known.costs[at]).square().mean()

            # which action leads from a state to the next
            at = torch.randint(len(dataset), (2 * config.batch,), generator=generator)
            inverse = motion_loss(policy.scale, policy.inverse, dataset, at)

            optimiser.zero_grad()
            (imitation + contrast + cost + inverse).backward()
            optimiser.step()
            falling.step()
            follow(target, policy, config.average_rate)
            return {
                "imitation": imitation.detach(),
                "contrast": contrast.detach(),
                "cost": cost.detach(),
                "inverse": inverse.detach(),
            }

        parts: dict[str, Stateful] = {"policy": policy, "target": target, "optimiser": optimiser, "falling": falling}
        run = f"tcdp {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
        target.eval()
        target.arguments["sampling"] = target.sampler.measure(target.ask, dataset, config.seed)
        if world:
            target.calibrate_budget(world, budgets_to_ask(dataset), config.imagined, config.seed)
    return target


def budgets_to_ask(dataset: Dataset, size: int = 7) -> Float[Tensor, "batch"]:
    """List budgets from 0 to the greatest cost of a recorded episode; small ones, which differ most, lie closer."""
    return float(dataset.episode_costs().max()) * torch.linspace(0, 1, size).square()
