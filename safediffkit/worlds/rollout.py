"""Let a policy act in a world and score what it did; the only border between numpy and torch."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safediffkit.data.dataset import Dataset
from safediffkit.data.tasks import find_task
from safediffkit.learning import seeded
from safediffkit.policy import History, Policy

_ROOM = 256  # steps that fit into a rollout's columns before they are doubled


@runtime_checkable
class Team(Protocol):
    """What a PettingZoo parallel environment offers, said here so that PettingZoo need not be installed."""

    possible_agents: list[str]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Begin an episode; give each agent's observation and infos."""
        ...

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Let all agents act at once; give observations, rewards, true ends, cuts and infos of each."""
        ...

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        """Say what an agent can see."""
        ...

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        """Say what an agent can do."""
        ...


World = str | gymnasium.Env[Any, Any] | Team | Callable[[], gymnasium.Env[Any, Any] | Team]


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Score:
    """How good and how safe the episodes of a rollout were.

    Rewards and costs are sums over an episode. The normalised pair is DSRL's: reward on the scale of its data, cost
    over budget (cost + 1 where the budget is 0), at most 1 being safe; None where no task was named. A team's sums
    are over its agents too.
    """

    episodes: int
    budget: float
    reward: Estimate
    cost: Estimate
    within_budget: Estimate  # share of episodes whose cost is at most the budget
    normalised_reward: Estimate | None
    normalised_cost: Estimate | None


def rollout(policy: Policy, world: World, *, episodes: int, budget: float, seed: int = 0) -> Dataset:
    """Record `episodes` episodes, all stepped in lockstep: one call of the policy a step serves every world.

    `world` is a task id such as "OfflineBallCircle-v0" or "landmarks-expert", a Gymnasium environment made with
    `gymnasium.make`, a PettingZoo parallel environment, or a function that makes one of the two. Episode i is reset
    with seed `seed` + i; torch's randomness depends on `seed` alone and the caller's is left untouched. A world whose
    episode has ended keeps its place in the history, its last observation repeated, until all have ended. Actions are
    clipped to the world's box and recorded as clipped.

    A team's columns have an agents axis, in the order of `possible_agents`. Its episode goes on while any agent is in
    it: one that left earlier keeps its last observation and earns and costs nothing. The end is a true one unless the
    time limit cut an agent off.

    Raises:
        ValueError: `episodes` is below 1, `budget` is negative, the task is unknown, the agents of a team see or do
            things of unequal size, or the policy's actions have the wrong shape or are not finite.
    """
    if episodes < 1 or not budget >= 0:
        raise ValueError(f"rollout needs at least 1 episode and a budget of 0 or more, not {episodes} and {budget}")
    worlds = [_as_one(_make(world)) for _ in range(episodes)]
    try:
        with torch.no_grad(), seeded(seed):
            return _lockstep(policy, worlds, budget, seed)
    finally:
        for each in worlds:
            each.close()


def task_world(task: str, **changes: Any) -> Any:
    """Make the world of a task: "landmarks-expert" lies in `landmarks()`, "OfflineCarRun-v0" in Bullet.

    `changes` are keywords of a team's world: `dismissed=3` takes three landmarks away.

    Raises:
        ValueError: there is no such task.
        ImportError: the simulator is not installed.
    """
    facts = find_task(task)
    module, _, function = facts.world.partition(".")
    make = getattr(import_module(f"safediffkit.worlds.{module}"), function)
    return make(facts.name, **changes) if facts.world == "bullet.make" else make(**{**facts.keywords, **changes})


def shifted_worlds(task: str, shift: str) -> Callable[[], Any]:
    """Make a function that makes the task's worlds as one of its `shifts` says; of several starts each has its turn.

    Raises:
        ValueError: there is no such task, or it has no such shift.
    """
    facts = find_task(task)
    if shift not in facts.shifts:
        raise ValueError(f"{facts.name} has no shift {shift!r}; it has {', '.join(facts.shifts) or 'none'}")
    changes = dict(facts.shifts[shift])
    starts = cycle({"start": start} for start in changes.pop("start", ()))
    return lambda: task_world(facts.name, **changes, **next(starts, {}))


def _make(world: World) -> Any:
    if isinstance(world, str):
        return task_world(world)
    if isinstance(world, gymnasium.Env):
        if world.spec is None:
            raise ValueError("an environment without a spec cannot be copied for each episode: pass a function instead")
        return _make(world.spec.id) if world.spec.id.startswith("Offline") else gymnasium.make(world.spec)
    return world() if callable(world) else deepcopy(world)


def _as_one(world: Any) -> Any:
    return _AsOne(world) if isinstance(world, Team) else world


class _AsOne:
    """Shows a team's world as a Gymnasium environment whose numbers have an agents axis in front."""

    def __init__(self, world: Any) -> None:
        self.world, self.names = world, list(world.possible_agents)
        spaces = [world.action_space(name) for name in self.names]
        sizes = [
            (name, world.observation_space(name).shape, space.shape)
            for name, space in zip(self.names, spaces, strict=True)
        ]
        if len({size[1:] for size in sizes}) != 1:
            raise ValueError(
                f"the agents of {world} need observations and actions of one size, not {sizes} (name, observation, "
                "action): fill them up inside the world, or hand out like agents as a team"
            )
        self.discrete = isinstance(spaces[0], gymnasium.spaces.Discrete)
        high = np.full((len(spaces), _width(spaces[0])), np.inf, np.float32)
        low = -high  # moves that are counted have no box
        if not self.discrete:
            low[:], high[:] = ([getattr(space, side) for space in spaces] for side in ("low", "high"))
        self.action_space = gymnasium.spaces.Box(low, high)
        self._seen = np.zeros((len(sizes), *sizes[0][1]), np.float32)

    def __str__(self) -> str:
        return str(self.world)

    def _see(self, observations: dict[str, Any]) -> NDArray[Any]:
        for j, name in enumerate(self.names):
            if name in observations:
                self._seen[j] = observations[name]
        return self._seen

    def reset(self, seed: int) -> tuple[NDArray[Any], dict[str, Any]]:
        return self._see(self.world.reset(seed=seed)[0]), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], bool, bool, dict[str, Any]]:
        moves = {
            name: int(action[j, 0]) if self.discrete else action[j]
            for j, name in enumerate(self.names)
            if name in self.world.agents
        }
        observations, rewards, _, cuts, infos = self.world.step(moves)
        costs = [infos.get(name, {}).get("cost", 0.0) for name in self.names]
        over, cut = not self.world.agents, any(cuts.values())
        earned = np.array([rewards.get(name, 0.0) for name in self.names])
        return self._see(observations), earned, over and not cut, over and cut, {"cost": np.array(costs)}

    def close(self) -> None:
        self.world.close()


def _lockstep(policy: Policy, worlds: list[Any], budget: float, seed: int) -> Dataset:
    space = worlds[0].action_space
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    observation = np.stack([each.reset(seed=seed + i)[0] for i, each in enumerate(worlds)]).astype(np.float32)
    going = np.ones(len(worlds), dtype=bool)
    count, agents = len(worlds), observation.shape[1:2] if isinstance(worlds[0], _AsOne) else ()
    shapes = {"observations": observation.shape[1:], "actions": (*agents, _width(space, len(agents)))}
    # Columns with room to spare: thousands of small arrays, kept one a step, would scatter over the heap and hold it.
    # Of numpy, since writing single numbers into a tensor takes many times as long.
    kept = {name: np.zeros((count, _ROOM, *agents), dtype=np.float32) for name in ("rewards", "costs")}
    kept |= {name: np.zeros((count, _ROOM), dtype=bool) for name in ("terminated", "live")}
    kept |= {name: np.zeros((count, _ROOM, *shape), dtype=np.float32) for name, shape in shapes.items()}
    kept["observations"][:, 0] = observation
    limit, now = torch.full((count,), float(budget)), 0
    while going.any():
        if now + 1 == kept["rewards"].shape[1]:
            kept = {name: np.concatenate([column, np.zeros_like(column)], 1) for name, column in kept.items()}
        actions, rewards, costs = (torch.from_numpy(kept[name][:, :now]) for name in ("actions", "rewards", "costs"))
        history = History(torch.from_numpy(kept["observations"][:, : now + 1]), actions, rewards, costs, limit)
        action = _checked(policy.act(history), space, (count, *shapes["actions"])).numpy()
        for i in np.flatnonzero(going):
            move = int(action[i, 0]) if discrete else action[i]
            observation[i], kept["rewards"][i, now], ended, cut, info = worlds[i].step(move)
            kept["costs"][i, now] = info.get("cost", 0.0)
            kept["terminated"][i, now], kept["live"][i, now] = ended, True
            going[i] = not (ended or cut)
        kept["actions"][:, now], now = action, now + 1
        kept["observations"][:, now] = observation
    columns = {name: torch.from_numpy(column) for name, column in kept.items()}
    return _table(columns, now, f"rollout of {type(policy).__name__} in {worlds[0]}, seed {seed}")


def _width(space: gymnasium.Space[Any], agents: int = 0) -> int:
    # how many numbers an action has, agents axes apart; one that counts moves has a single number
    return int(np.prod((space.shape or ())[agents:]))


def _checked(action: Tensor, space: gymnasium.Space[Any], needed: tuple[int, ...]) -> Tensor:
    if action.shape != needed or not action.isfinite().all():
        raise ValueError(f"the policy gave actions of shape {tuple(action.shape)}; finite ones of {needed} are needed")
    if isinstance(space, gymnasium.spaces.Box):
        action = action.clamp(torch.from_numpy(space.low), torch.from_numpy(space.high))
    return action


def _table(kept: dict[str, Tensor], steps: int, provenance: str) -> Dataset:
    # columns of shape (worlds, steps, ...), flattened episode after episode, rows after an episode's end dropped
    live = kept["live"][:, :steps]
    episode = torch.arange(len(live))[:, None].expand_as(live)
    rows = {name: kept[name][:, :steps][live] for name in ("observations", "actions", "rewards", "costs", "terminated")}
    next_observations = kept["observations"][:, 1 : steps + 1][live]
    return Dataset(**rows, next_observations=next_observations, episode=episode[live], provenance=provenance)


def score(dataset: Dataset, task: str | None = None, *, budget: float) -> Score:
    """Score recorded episodes as DSRL does, with bootstrap 95 % intervals over episodes.

    Raises:
        ValueError: the budget is negative, the task unknown, or there is no episode.
    """
    if not budget >= 0 or not len(dataset):
        raise ValueError(f"score needs recorded steps and a budget of 0 or more, not {len(dataset)} and {budget}")
    reward, cost = (  # a team's is the sum over its agents
        column.double().reshape(len(column), -1).sum(1).numpy()
        for column in (dataset.episode_returns(), dataset.episode_costs())
    )
    normalised: tuple[Estimate | None, Estimate | None] = (None, None)
    if task is not None:
        low, high = find_task(task).rewards
        spare = 1.0 if budget == 0 else 0.0
        normalised = _estimate((reward - low) / (high - low)), _estimate((cost + spare) / (budget + spare))
    return Score(len(reward), budget, _estimate(reward), _estimate(cost), _estimate(cost <= budget), *normalised)


def measures(dataset: Dataset, task: str) -> dict[str, float]:
    """Say more of a task's episodes than their sums do, as its world can: see `measures` there; {} if it cannot.

    Raises:
        ValueError: there is no such task.
    """
    if not find_task(task).measures:
        return {}
    module, _, function = find_task(task).measures.partition(".")
    told: dict[str, float] = getattr(import_module(f"safediffkit.worlds.{module}"), function)(dataset)
    return told


def _estimate(values: NDArray[Any]) -> Estimate:
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if np.ptp(values) == 0:  # nothing to resample: one episode, or all alike
        return Estimate(mean, mean, mean)
    result = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0))
    return Estimate(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
