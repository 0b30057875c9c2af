"""Record a data set in the real simulator: scripted controllers, from cautious to reckless, each with its own noise.

`python -m safediffkit.data.collect OfflineBallCircle-v0 --episodes 400 --seed 0 --out ball.hdf5`

Those of one robot are here, those of teams, as for landmarks-medium, in `teams.py`.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy.random import Generator
from torch import Tensor

from safediffkit.data import teams
from safediffkit.data.dataset import Dataset
from safediffkit.data.tasks import TEAMS, Task, find_task
from safediffkit.data.tuning import Settings, improve, named

CONTROLLERS = Path(__file__).with_name("controllers.json")
EPISODES = 400  # unless `--episodes` says otherwise
DRAWS = 2  # episodes run for each one kept
LIMITS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)  # shares of the task's greatest cost to tune a setting for
ROUNDS, POPULATION = 6, 20  # of the cross-entropy method for each limit


# --- controllers: (observation, settings) -> action, without memory ---


def ball_circle(observation: Float32[np.ndarray, "obs"], s: Settings) -> tuple[float, float]:
    """Push a ball clockwise around the origin: pure pursuit of a circle whose sides are cut at |x| = x_limit."""
    x, y, vx, vy = (10 * observation[:2]).tolist() + (5 * observation[2:4]).tolist()
    dx, dy = _pursue_circle(x, y, s)
    return s["gain"] * (s["speed"] * dx - vx), s["gain"] * (s["speed"] * dy - vy)


def car_circle(observation: Float32[np.ndarray, "obs"], s: Settings) -> tuple[float, float]:
    """Steer a car along the same path as `ball_circle`, at constant throttle but for braking in turns."""
    x, y = (10 * observation[:2]).tolist()
    dx, dy = _pursue_circle(x, y, s)
    off = _heading_error(observation, dx, dy)
    return -max(s["throttle"] - s["brake"] * abs(off), 0.1), s["gain"] * off


def ball_run(observation: Float32[np.ndarray, "obs"], s: Settings) -> tuple[float, float]:
    """Push a ball along y = side, at one speed up to x = switch and at another beyond."""
    x, y, vx, vy = (10 * observation[:2]).tolist() + (5 * observation[2:4]).tolist()
    speed = s["speed"] if x < s["switch"] else s["late_speed"]
    return s["gain"] * (speed - vx), s["gain"] * (s["pull"] * (s["side"] - y) - vy)


def car_run(observation: Float32[np.ndarray, "obs"], s: Settings) -> tuple[float, float]:
    """Drive a car along y = side, at one speed up to x = switch and at another beyond."""
    x, y = (10 * observation[:2]).tolist()
    speed = s["speed"] if x < s["switch"] else s["late_speed"]
    off = _heading_error(observation, *_unit(2.0, s["side"] - y))
    # 0.29 a m/s holds a speed
    return -0.29 * speed - s["gain"] * (speed - float(np.hypot(*observation[2:4]))), s["steer"] * off


def _pursue_circle(x: float, y: float, s: Settings) -> tuple[float, float]:
    ahead = math.atan2(y, x) - s["lookahead"]
    target_x = max(-s["x_limit"], min(s["x_limit"], s["radius"] * math.cos(ahead)))
    return _unit(target_x - x, s["radius"] * math.sin(ahead) - y)


def _unit(x: float, y: float) -> tuple[float, float]:
    length = math.hypot(x, y) or 1.0
    return x / length, y / length


def _heading_error(observation: Float32[np.ndarray, "obs"], dx: float, dy: float) -> float:
    # positive: turn right. The car's front points against its yaw, and its negative throttle drives forward.
    forward_x, forward_y = -float(observation[5]), -float(observation[4])
    return math.atan2(forward_y * dx - forward_x * dy, forward_x * dx + forward_y * dy)


@dataclass(frozen=True)
class Controller:
    """A controller, its settings' ranges for tuning and drawing, and what it does in words."""

    act: Callable[[Float32[np.ndarray, "obs"], Settings], tuple[float, float]]
    ranges: dict[str, tuple[float, float]]
    words: str


_CIRCLE = {"x_limit": (4.0, 8.0), "radius": (5.0, 8.5), "lookahead": (0.05, 1.0)}
_PURSUIT = "pure pursuit of the circle clipped at |x| <= x_limit"
_SWITCH = "a straight run with a change of speed at some x"
SCRIPTED = {
    "OfflineBallCircle-v0": Controller(ball_circle, _CIRCLE | {"speed": (1.0, 12.0), "gain": (0.1, 3.0)}, _PURSUIT),
    "OfflineCarCircle-v0": Controller(
        car_circle, _CIRCLE | {"throttle": (0.2, 1.2), "brake": (0.0, 1.0), "gain": (0.2, 4.0)}, _PURSUIT
    ),
    "OfflineBallRun-v0": Controller(
        ball_run,
        {"side": (-3.0, 3.0), "switch": (0.0, 10.0), "speed": (0.5, 4.0), "late_speed": (0.5, 14.0)}
        | {"gain": (0.1, 3.0), "pull": (0.2, 2.0)},
        _SWITCH,
    ),
    "OfflineCarRun-v0": Controller(
        car_run,
        {"side": (-3.0, 3.0), "switch": (5.0, 9.6), "speed": (0.5, 2.0), "late_speed": (2.0, 4.0)}
        | {"gain": (0.0, 3.0), "steer": (0.2, 2.0)},
        _SWITCH,
    ),
}


# --- running episodes ---


@dataclass(frozen=True)
class _Noise:
    """Action noise of one episode: independent (theta = 1) or Ornstein-Uhlenbeck, with a stationary spread."""

    spread: float
    theta: float


@dataclass(frozen=True)
class _Episode:
    observations: Float32[np.ndarray, "steps obs"]
    next_observations: Float32[np.ndarray, "steps obs"]
    actions: Float32[np.ndarray, "steps act"]
    rewards: Float32[np.ndarray, "steps"]
    costs: Float32[np.ndarray, "steps"]
    terminated: bool


def _run(world: Any, controller: Controller, s: Settings, noise: _Noise, generator: Generator) -> _Episode:
    observation, _ = world.reset(seed=int(generator.integers(2**31)))
    observations, actions, rewards, costs = [observation], [], [], []
    terminated = truncated = False
    disturbance = noise.spread * generator.standard_normal(2)
    while not (terminated or truncated):
        action = np.clip(np.add(controller.act(observation, s), disturbance), -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = world.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        costs.append(info["cost"])
        fresh = math.sqrt(noise.theta * (2 - noise.theta)) * noise.spread
        disturbance = (1 - noise.theta) * disturbance + fresh * generator.standard_normal(2)
    seen = np.stack(observations)
    scores = np.array([rewards, costs], dtype=np.float32)
    return _Episode(seen[:-1], seen[1:], np.stack(actions), scores[0], scores[1], terminated)


def _draw(controller: Controller, tuned: list[Settings], generator: Generator) -> tuple[Settings, _Noise]:
    # Between two neighbouring tuned settings, the reckless ones more often: disturbed or slowed they cost less.
    place = (len(tuned) - 1) * math.sqrt(generator.random())
    below = min(int(place), len(tuned) - 2)
    low, high, part = tuned[below], tuned[below + 1], place - below
    # Then moved away from there by a width that is often small.
    width = generator.choice([0.0, 0.05, 0.15, 0.3], p=[0.2, 0.3, 0.3, 0.2])
    settings = {}
    for name, (least, most) in controller.ranges.items():
        value = (1 - part) * low[name] + part * high[name]
        settings[name] = float(value + width * (most - least) * generator.standard_normal())
    # the speed apart: mediocre episodes in the data are mostly slow ones
    if generator.random() < 0.3:
        for name in ("speed", "late_speed", "throttle"):
            if name in settings:
                settings[name] *= generator.uniform(0.3, 1.0)
    spread = generator.choice([0.0, generator.uniform(0, 0.2), generator.uniform(0.2, 0.6)], p=[0.3, 0.5, 0.2])
    return settings, _Noise(float(spread), float(generator.choice([1.0, 0.1])))


def _thin(task: Task, episodes: list[_Episode], keep: int) -> list[_Episode]:
    # Deal episodes out in turn over rows of cost, and in a row over cells of reward, the best of each cell first.
    least, most = task.rewards
    rows: dict[int, dict[int, list[int]]] = {}
    for number in sorted(range(len(episodes)), key=lambda number: -float(episodes[number].rewards.sum())):
        cost, reward = float(episodes[number].costs.sum()), float(episodes[number].rewards.sum())
        # zero cost is a row of its own: what is never unsafe is what learners are asked to find
        row = rows.setdefault(math.ceil(10 * cost / task.costs[1]), {})
        row.setdefault(math.floor(20 * (reward - least) / (most - least)), []).append(number)
    dealt = _deal([_deal([cell[:1] + sorted(cell[1:]) for cell in row.values()]) for row in rows.values()])
    return [episodes[number] for number in sorted(dealt[:keep])]


def _deal(groups: list[list[int]]) -> list[int]:
    return [number for turn in zip_longest(*groups) for number in turn if number is not None]


def collect(task: str, episodes: int, seed: int, *, progress: bool = False) -> Dataset:
    """Record `episodes` episodes of a task's scripted controllers; the same seed gives the same data.

    Raises:
        ValueError: no such task, no controller for it, a negative count or seed, or for medium-replay more episodes
            than tuning ran.
        ImportError: the simulator is not installed.
    """
    from tqdm import tqdm

    from safediffkit.worlds.bullet import make

    if episodes < 1 or seed < 0:
        raise ValueError(f"episodes {episodes} and seed {seed}: at least 1 episode and a seed from 0 on are needed")
    tuned = _load_controllers()
    if find_task(task).agents:
        return teams.record(task, episodes, seed, tuned.get(_group(task), []))
    facts, controller = _scripted(task)
    if facts.name not in tuned:
        raise ValueError(f"{CONTROLLERS.name} holds no tuned settings for {facts.name}; add `--tune` to make them")
    generator = np.random.default_rng(seed)
    world = make(facts.name)
    drawn: list[_Episode] = []
    with tqdm(total=DRAWS * episodes, desc=facts.name, unit="episode", disable=not progress) as bar:
        while len(drawn) < DRAWS * episodes:
            episode = _run(world, controller, *_draw(controller, tuned[facts.name], generator), generator)
            if episode.costs.sum() <= facts.costs[1]:  # DSRL's range
                drawn.append(episode)
                bar.update()
    world.close()
    kept = _thin(facts, drawn, episodes)

    def column(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(episode, name) for episode in kept]))

    lengths = torch.tensor([len(episode.rewards) for episode in kept])
    terminated = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    terminated[lengths.cumsum(0) - 1] = torch.tensor([episode.terminated for episode in kept])
    return Dataset(
        observations=column("observations"),
        actions=column("actions"),
        rewards=column("rewards"),
        costs=column("costs"),
        next_observations=column("next_observations"),
        terminated=terminated,
        episode=torch.repeat_interleave(torch.arange(len(kept)), lengths),
        provenance=_provenance(facts, controller, episodes, seed),
    )


def _provenance(task: Task, controller: Controller, episodes: int, seed: int) -> str:
    return (
        f"Self-collected by safediffkit in {task.name}, not DSRL's data. Simulator and versions: {_versions()}. "
        f"Controllers: scripted, {controller.words}, tuned by the cross-entropy method for {len(LIMITS)} cost limits "
        "from cautious to reckless, their settings mixed and disturbed anew for each episode, with Gaussian or "
        f"Ornstein-Uhlenbeck action noise. Kept: {episodes} of {DRAWS * episodes} episodes of cost at most "
        f"{task.costs[1]:g}, dealt evenly over cells of cost and reward. Seed {seed}."
    )


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("bullet-safety-gym", "pybullet", "gymnasium", "numpy"))


# --- tuning ---


def tune(task: str, seed: int, *, progress: bool = False) -> list[Settings]:
    """Tune a task's controller by the cross-entropy method, once for each cost limit of `LIMITS`, cautious first.

    A team is tuned for its return alone: see `teams.tune`.

    Raises:
        ValueError: no such task or no controller for it.
        ImportError: the simulator is not installed.
    """
    from tqdm import tqdm

    from safediffkit.worlds.bullet import make

    if find_task(task).agents:
        return teams.tune(task, seed, progress=progress)
    facts, controller = _scripted(task)
    generator = np.random.default_rng(seed)
    world = make(facts.name)
    least, most = np.array(list(controller.ranges.values())).T
    mean, tuned = (least + most) / 2, []
    tries = 2
    with tqdm(total=len(LIMITS) * ROUNDS, desc=f"tune {facts.name}", disable=not progress) as bar:
        for number, share in enumerate(LIMITS):
            spread = (most - least) / (3 if number == 0 else 6)  # later limits start from the one before

            def value(guess: np.ndarray, start: int, share: float = share) -> float:
                tried = [_value(facts, controller, world, guess, share, start + k) for k in range(tries)]
                return float(np.mean(tried))

            for _ in range(ROUNDS):
                mean, spread, best = improve(value, mean, spread, controller.ranges, POPULATION, generator)
                bar.update()
                bar.set_postfix(limit=share * facts.costs[1], value=f"{best:.3f}")
            tuned.append(named(controller.ranges, mean))
    world.close()
    return tuned


def _value(task: Task, controller: Controller, world: Any, guess: np.ndarray, share: float, seed: int) -> float:
    settings = dict(zip(controller.ranges, guess.tolist(), strict=True))
    episode = _run(world, controller, settings, _Noise(0.0, 1.0), np.random.default_rng(seed))
    reward = (float(episode.rewards.sum()) - task.rewards[0]) / (task.rewards[1] - task.rewards[0])
    return reward - 0.05 * max(float(episode.costs.sum()) - share * task.costs[1], 0.0)


def _scripted(task: str) -> tuple[Task, Controller]:
    facts = find_task(task)
    if facts.name not in SCRIPTED:
        known = ", ".join([*SCRIPTED, *TEAMS])
        raise ValueError(f"there is no scripted controller for {facts.name}, only for {known}")
    return facts, SCRIPTED[facts.name]


def _group(task: str) -> str:
    """Name the settings that a task uses: all of one world of teams share theirs."""
    facts = find_task(task)
    return facts.world if facts.agents else facts.name


def _load_controllers() -> dict[str, list[Settings]]:
    return json.loads(CONTROLLERS.read_text()) if CONTROLLERS.exists() else {}


def _store_controllers(controllers: dict[str, list[Settings]]) -> None:
    partial = CONTROLLERS.with_suffix(".partial")
    partial.write_text(json.dumps(controllers, indent=1, sort_keys=True) + "\n")
    partial.replace(CONTROLLERS)


# --- the command ---


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m safediffkit.data.collect`; wrong arguments end it with code 2 before anything is run."""
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.data.collect",
        usage=argparse.SUPPRESS,  # so that an error is one line
        description=(__doc__ or "").replace("`", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", help="a DSRL Bullet id, such as OfflineBallCircle-v0, or a team's, as landmarks-medium")
    parser.add_argument("--episodes", type=int, help="episodes to keep (default 400, for teams those of the pack)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data (default 0)")
    parser.add_argument("--out", type=Path, help="HDF5 file to write, which must not exist yet")
    parser.add_argument("--compact", action="store_true", help="half precision, next observations left out")
    parser.add_argument("--tune", action="store_true", help="first tune the controllers anew and store their settings")
    given = parser.parse_args(arguments)
    try:
        facts = find_task(given.task)
        if not facts.agents:
            _scripted(given.task)
        elif given.tune:
            teams.check_tunable(facts)
    except ValueError as error:
        parser.error(str(error))
    if given.episodes is None:
        given.episodes = teams.EPISODES.get(facts.world, EPISODES)
    if given.episodes < 1:
        parser.error(f"--episodes {given.episodes}: at least 1 is needed")
    if given.seed < 0:
        parser.error(f"--seed {given.seed}: a number from 0 on is needed")
    if given.out is None and not given.tune:
        parser.error("say where to write by --out FILE (only --tune goes without)")
    if given.out is not None:
        folder = given.out.absolute().parent
        if given.out.exists() or given.out.is_symlink():
            parser.error(f"--out {given.out} exists already; give another name or remove it first")
        if not folder.is_dir():
            parser.error(f"--out {given.out}: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            parser.error(f"--out {given.out}: the folder {folder} cannot be written to")
    if given.tune and not os.access(CONTROLLERS.parent, os.W_OK):
        parser.error(f"--tune stores settings in {CONTROLLERS}, which cannot be written to")
    try:
        if given.tune:
            tuned = tune(given.task, given.seed, progress=True)
            _store_controllers(_load_controllers() | {_group(given.task): tuned})
        if given.out is not None:
            from safediffkit.data.sources import write_file

            dataset = collect(given.task, given.episodes, given.seed, progress=True)
            write_file(dataset, given.out, compact=given.compact)
            print(f"wrote {given.episodes} episodes, {len(dataset)} steps, to {given.out}\n{dataset.provenance}")
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
