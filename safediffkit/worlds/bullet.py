"""The Bullet tasks of DSRL as Gymnasium environments: quiet, safe in notebooks, and seeded for real."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from safediffkit.data.tasks import BULLET as TASKS
from safediffkit.data.tasks import Task, find_task

__all__ = ["TASKS", "Scene", "Task", "find_task", "make", "positions", "scene", "speeds"]


@dataclass(frozen=True)
class Scene:
    """What costs a step in a task, and the numbers a top view needs. None: there is no such limit."""

    seconds: float  # duration of one step
    radius: float | None  # of the circle to run along, in metres, around the origin
    x_limit: float | None  # |x| beyond it costs 1 a step, in metres
    y_limit: float | None  # |y| beyond it costs 1 a step, in metres
    speed_limit: float | None  # a horizontal speed beyond it costs 1 a step, in m/s
    velocity_scale: float  # observed velocity / (m/s)
    velocity_entry: int  # where the observation holds the velocity along x; the one along y follows


def scene(task: str) -> Scene:
    """Give the geometry and the limits of a task.

    Raises:
        ValueError: there is no such task.
    """
    name = find_task(task, TASKS).name
    robot = next(robot for robot in ("Ball", "Car", "Drone", "Ant") if robot in name)
    scale, entry = {"Ball": (0.2, 2), "Car": (1.0, 2), "Drone": (0.2, 3), "Ant": (0.3, 3)}[robot]
    if "Circle" in name:
        return Scene(0.1, 7.0, 6.0, None, None, scale, entry)
    seconds = 1 / 60 if robot == "Drone" else 1 / 30
    return Scene(seconds, None, None, 2.0, 2.5 if robot == "Ball" else 1.5, scale, entry)


def positions(observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch 2"]:
    """Read where the robot is, x and y in metres: every Bullet task's observation starts with a tenth of them."""
    return 10 * observations[..., :2]


def speeds(task: str, observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
    """Read how fast the robot moves over the ground, in m/s.

    Raises:
        ValueError: there is no such task.
    """
    place = scene(task)
    entry = place.velocity_entry
    return torch.hypot(observations[..., entry], observations[..., entry + 1]) / place.velocity_scale


def make(task: str, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Make the simulator of a task, such as "OfflineBallCircle-v0". Many may live side by side.

    `reset(seed=k)` decides the whole episode but for the actions. Observations are float32, `info["cost"]` a float.
    With `render_mode="rgb_array"`, `render()` gives a picture of the robot (0.3 s); draw many from `positions`.

    Raises:
        ValueError: there is no such task or render mode.
        ImportError: the simulator is not installed; the message says how to install it.
    """
    name = find_task(task, TASKS).name
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"unknown render_mode {render_mode!r}: give None or 'rgb_array'")
    # dsrl would report that its other two simulators, which nobody asked for, are missing
    os.environ.setdefault("DSRL_SUPPRESS_IMPORT_ERROR", "1")
    # The first reset saves the state that later ones restore: make it the same state in every copy.
    random = np.random.RandomState(0)
    try:
        with _real_streams(), _random_numbers(random):
            import_module("dsrl.offline_bullet_safety_gym")  # registers the tasks
            world = gymnasium.make(name, disable_env_checker=True)
            world.reset()
    except ImportError as error:
        raise ImportError(
            f"{name} runs in Bullet-Safety-Gym, and {error.name or error} is missing. Install it by `make setup` in a "
            "clone, or by `pip install pybullet==3.2.7` and then "
            "`pip install --no-deps bullet-safety-gym==1.4.0 dsrl==0.1.0`"
        ) from error
    world.unwrapped.render_mode = render_mode
    return _Bullet(world)


class _Bullet(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives the simulator its own random numbers and a start that nothing before it can change."""

    def __init__(self, world: gymnasium.Env[Any, Any]) -> None:
        super().__init__(world)
        box = world.observation_space
        self.observation_space = gymnasium.spaces.Box(-1000.0, 1000.0, box.shape, np.float32)
        self._random = np.random.RandomState()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._random.seed(seed)
        # Restoring a state keeps motor targets and pending forces of the episode before. Overwrite the first and
        # spend the second, or a car's and a drone's start would depend on the last action of that episode.
        simulator: Any = self.unwrapped
        simulator.agent.apply_action(np.zeros(simulator.agent.act_dim))
        simulator.bc.stepSimulation()
        with _random_numbers(self._random):
            observation, info = self.env.reset(options=options)
        return observation.astype(np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(np.asarray(action, dtype=np.float64))
        info = info | {"cost": float(info["cost"])}
        return observation.astype(np.float32), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        simulator: Any = self.unwrapped
        # the red sphere that marks a cost would hide the robot
        simulator.bc.resetBasePositionAndOrientation(simulator.agent.violation_body_id, (0, 0, -100), (0, 0, 0, 1))
        with _real_streams():
            return simulator.render(mode="rgb_array").astype(np.uint8)


@contextmanager
def _random_numbers(random: np.random.RandomState) -> Iterator[None]:
    """Lend the simulator, which draws from numpy's global generator, ours; hand the caller's back untouched."""
    callers = np.random.get_state()  # noqa: NPY002
    np.random.set_state(random.get_state())  # noqa: NPY002
    try:
        yield
    finally:
        random.set_state(np.random.get_state())  # noqa: NPY002
        np.random.set_state(callers)  # noqa: NPY002


@contextmanager
def _real_streams() -> Iterator[None]:
    """Let the simulator silence the process's own output while it starts.

    It redirects `sys.stdout` and `sys.stderr` by file descriptor, which those of a notebook kernel lack.
    """
    stdout, stderr = sys.stdout, sys.stderr
    # Plain files on the descriptors: it would look up the C streams of ones with a name, in vain on macOS.
    with open(1, "w", closefd=False) as output, open(2, "w", closefd=False) as errors:
        sys.stdout, sys.stderr = output, errors
        try:
            with warnings.catch_warnings():
                # gymnasium casts the bounds of the simulator's spaces to narrower numbers
                warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
                yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
