"""SPI's pixel world: three rows of squares, a trap, a goal, and every value in it worked out exactly.

    S . . . . T        S start (0, 0)         moving into T costs 1
    . . . . . .        T trap  (0, width-1)   moving into G rewards 1
    . . . . . G        G goal  (2, width-1)   every other move costs and rewards nothing

The paper describes its Figure 2 in words only, so the places of trap and goal are our choice. The number of a move
counts from 1, and move k is discounted by discount^(k-1), as in Eq. 5 where the sum starts at i = 0. The white path
enters the trap on move width+1. Then both kinds of printed numbers come out: its cost is discount^width (discount^3
for width 3, discount^6 for width 6), and its c' is discount^0 + ... + discount^(width-1) (up to discount^5 for
width 6), as moves 1 to width count 1 each and the move into the trap counts 0. [SPI Sec. 4.1, Fig. 2]
"""

from math import ceil, log
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Bool, Float, Int

UP, RIGHT, DOWN, LEFT = range(4)
_ROWS = 3
_STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


class PixelWorld(gymnasium.Env[Float[np.ndarray, "2"], int | np.int64]):
    """A grid of 3 rows and `width` columns. Actions: 0 up, 1 right, 2 down, 3 left; walls stop a move.

    An observation is (row / 2, column / (width - 1)). The world is also handed out as tables over
    (row, column, action): `next_square`, `rewards`, `costs`, and `ended`, the moves that end the episode.

    With `ends=False`, trap and goal do not end the episode: whoever is in stays in, at no further cost or reward,
    and every episode takes exactly `horizon` moves. So the same walk has the same cost in both variants.

    Raises:
        ValueError: `width` is below 2, `horizon` below 1, or `ends=False` without a `horizon`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012
    next_square: Int[np.ndarray, "3 _ 4 2"]
    rewards: Float[np.ndarray, "3 _ 4"]
    costs: Float[np.ndarray, "3 _ 4"]
    ended: Bool[np.ndarray, "3 _ 4"]

    def __init__(
        self, width: int = 6, *, ends: bool = True, horizon: int | None = None, render_mode: str | None = None
    ) -> None:
        _check_width(width)
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon is {horizon}: an episode needs at least 1 move, or None for no time limit")
        if not ends and horizon is None:
            raise ValueError("ends=False makes episodes of a fixed length: say how long, as in horizon=20")
        self.width, self.ends, self.horizon, self.render_mode = width, ends, horizon, render_mode
        # with a spec, gymnasium's checker can make the world anew and so try its render modes
        kwargs = {"width": width, "ends": ends, "horizon": horizon}
        self.spec = EnvSpec("PixelWorld-v0", entry_point=f"{__name__}:PixelWorld", kwargs=kwargs)
        self.start, self.trap, self.goal = (0, 0), (0, width - 1), (_ROWS - 1, width - 1)
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(4)

        squares = np.moveaxis(np.indices((_ROWS, width)), 0, -1)
        inside = self._at(squares, self.trap) | self._at(squares, self.goal)
        moved = np.clip(squares[:, :, None] + _STEPS, 0, (_ROWS - 1, width - 1))
        self.next_square = np.where(inside[..., None, None], squares[:, :, None], moved)
        entered = ~inside[..., None]
        self.costs = (entered & self._at(self.next_square, self.trap)).astype(float)
        self.rewards = (entered & self._at(self.next_square, self.goal)).astype(float)
        self.ended = (self.costs + self.rewards > 0) & ends
        self.square, self.moves = self.start, 0

    @staticmethod
    def _at(squares: Int[np.ndarray, "*any 2"], place: tuple[int, int]) -> Bool[np.ndarray, "*any"]:
        found: np.ndarray[Any, np.dtype[np.bool_]] = (squares == place).all(-1)
        return found

    def _observation(self) -> Float[np.ndarray, "2"]:
        return np.array([self.square[0] / (_ROWS - 1), self.square[1] / (self.width - 1)], np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float[np.ndarray, "2"], dict[str, Any]]:
        """Put the agent on the start square; nothing here is random."""
        super().reset(seed=seed)
        self.square, self.moves = self.start, 0
        return self._observation(), {"cost": 0.0}

    def step(self, action: int | np.int64) -> tuple[Float[np.ndarray, "2"], float, bool, bool, dict[str, float]]:
        """Make one move; `info["cost"]` is its cost.

        Raises:
            ValueError: `action` is not 0, 1, 2 or 3.
        """
        if action not in range(4):
            raise ValueError(f"action {action!r} is unknown: 0 is up, 1 right, 2 down, 3 left")
        move = (*self.square, int(action))
        row, column = self.next_square[move]
        self.square, self.moves = (int(row), int(column)), self.moves + 1
        truncated = self.moves == self.horizon
        info = {"cost": float(self.costs[move])}
        return self._observation(), float(self.rewards[move]), bool(self.ended[move]), truncated, info

    def render(self) -> str | None:
        """Draw the world as text, `@` being the agent, if made with `render_mode="ansi"`."""
        if self.render_mode != "ansi":
            return None
        letters = {self.trap: "T", self.goal: "G", self.square: "@"}
        rows = [" ".join(letters.get((row, column), ".") for column in range(self.width)) for row in range(_ROWS)]
        return "\n".join(rows)


def white_path(width: int) -> list[int]:
    """List the moves of the paper's white trajectory: it steps around the trap, then enters it on move width+1.

    Raises:
        ValueError: `width` is below 2.

    [SPI Fig. 2]
    """
    _check_width(width)
    return [RIGHT] * (width - 2) + [DOWN, RIGHT, UP]


def safe_path(width: int) -> list[int]:
    """List the moves of a shortest safe walk along the bottom row; it reaches the goal on move width+1 too.

    Raises:
        ValueError: `width` is below 2.
    """
    _check_width(width)
    return [DOWN, DOWN] + [RIGHT] * (width - 1)


def walk(
    world: PixelWorld, actions: list[int]
) -> tuple[Int[np.ndarray, "_ 2"], Float[np.ndarray, "steps"], Float[np.ndarray, "steps"]]:
    """Walk from the start until the moves are used up or the episode ends.

    Returns:
        The squares stood on (the start first, so one more than there are moves), and each move's reward and cost.
    """
    world.reset()
    squares, rewards, costs = [world.square], [], []
    for action in actions:
        _, reward, terminated, truncated, info = world.step(action)
        squares.append(world.square)
        rewards.append(reward)
        costs.append(info["cost"])
        if terminated or truncated:
            break
    return np.array(squares), np.array(rewards, float), np.array(costs, float)


def q_values(
    world: PixelWorld,
    signal: Float[np.ndarray, "3 _ 4"],
    *,
    discount: float,
    policy: Float[np.ndarray, "3 _ 4"] | Literal["max", "min"] = "max",
) -> Float[np.ndarray, "3 _ 4"]:
    """Work out Q exactly, by dynamic programming, for any signal given as a table over (row, column, action).

    `signal` is `world.rewards`, `world.costs`, `remap_cost(world.costs)` or a mix of them. `policy` says who acts
    after the first move: "max" or "min" for the one that does so best, or a table of action probabilities.
    The sum runs to the world's time limit, counted from the first move; without one it runs on until what is left
    out is below 1e-12 of the largest signal. Squares from which nobody can move hold NaN.

    Raises:
        ValueError: `discount` is outside [0, 1], or is 1 in a world without a time limit, a table is misshapen,
            or `policy` is another word.

    [SPI Sec. 3.1] [SPI Eq. 5, 10, 11]
    """
    shape = world.costs.shape
    if signal.shape != shape or (isinstance(policy, np.ndarray) and policy.shape != shape):
        raise ValueError(f"this world needs tables of shape {shape}: 3 rows, {world.width} columns, 4 actions")
    if not isinstance(policy, np.ndarray) and policy not in ("max", "min"):
        raise ValueError(f"policy is {policy!r}: it must be 'max', 'min' or a table of action probabilities")
    if not 0 <= discount <= 1 or (discount == 1 and world.horizon is None):
        raise ValueError(
            f"discount is {discount}: it must lie in [0, 1], and below 1 if the world has no time limit (horizon=...)"
        )
    if world.horizon is not None:
        sweeps = world.horizon
    else:
        sweeps = 1 if discount == 0 else ceil(log(1e-12 * (1 - discount)) / log(discount))
    rows, columns = world.next_square[..., 0], world.next_square[..., 1]
    goes_on = discount * ~world.ended
    q = np.zeros(shape)
    for _ in range(sweeps):
        value = (policy * q).sum(-1) if isinstance(policy, np.ndarray) else q.max(-1) if policy == "max" else q.min(-1)
        before, q = q, signal + goes_on * value[rows, columns]
        if np.array_equal(before, q):
            break
    if world.ends:
        q[world.trap] = q[world.goal] = np.nan
    return q


def _check_width(width: int) -> None:
    if width < 2:
        raise ValueError(f"width is {width}: a pixel world needs at least 2 columns, so that the start is not the trap")
