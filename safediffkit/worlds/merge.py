"""Cars that must share a lane: a ramp joins a main road, or all follow one another; on highway-env's road and cars.

    left lane   y = 0    =====================================================================
    right lane  y = 4    ------------------------------------------------------------- - - - -
    ramp        y = 14.5 ___________________ bends ________ y = 8, merging lane __/
    x in metres          0                150            230                   310 = FINISH

The world steps highway-env's road, cars and drivers itself: no gym environment of theirs, hence none of their pandas
observations, and pictures that no video driver turns black. The simulator's controller steers: it keeps the lane,
and takes a car on the ramp over to the right lane from x = 230 on, waiting for nobody. So who goes first, and whether
it ends well, is decided by accelerations alone. The stopping margin counts pairs on one lane, and pairs of which one
is on the right lane and the other on the ramp past its bend, where the ways meet ahead: never cars merely abreast.
Roads, starts, rewards and thresholds are our choice; the paper's driving figures come without any.

| entry of an observation | meaning | unit |
|---|---|---|
| 0 | own position along the road, x | m |
| 1 | own position across the road, y; 0 the middle of the left lane, growing to the right | m |
| 2 | own speed | m/s |
| 3 | own heading; 0 along the road, positive to the right | rad |
| 4 | own lane: 0 left, 1 right, 2 ramp and merging lane | - |
| 5 + 5 i | neighbour i is there: 1 or 0; if 0, the other four are 0 too | - |
| 6 + 5 i | its x less the own | m |
| 7 + 5 i | its y less the own | m |
| 8 + 5 i | its speed along the road less the own along the road | m/s |
| 9 + 5 i | its lane counts: 1 the same lane, or merging with it; 0 another lane | - |

Neighbours are within SIGHT along the road, those whose lane counts first, and the nearer before the farther.
[CBF Sec. 4.1, Fig. 1]
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from safediffkit.data.dataset import Dataset
from safediffkit.safety.barriers import stopping_margin

Outcome = Literal["leader first", "follower first", "slow", "crash"]
OUTCOMES: tuple[Outcome, ...] = ("leader first", "follower first", "slow", "crash")
SECONDS = 0.2  # duration of one step
STEPS = 80  # of an episode without a crash
ACCELERATION = 5.0  # m/s^2, of actions 1 and -1: it is also the braking that a stopping margin counts on
TOP_SPEED = 30.0  # m/s; no car reverses
SLOW_SPEED = 10.0  # m/s; driving slower than this is penalised
SLOW_PENALTY, CRASH_PENALTY = 0.5, 20.0  # of one step at standstill; of a crash
SIGHT = 150.0  # metres ahead and behind
BEND, MERGE, FINISH = 150.0, 230.0, 310.0  # x in metres: the ramp nears the road, runs beside it, is no more
LENGTH = 5.0  # of every car, in metres
_OWN = _EACH = 5  # entries of an observation: the car's own, and those of each neighbour
_LEFT, _RIGHT, _RAMP = 0, 1, 2
_WIDTH, _RAMP_Y, _SWING = 4.0, 14.5, 3.25  # metres: a lane's width, the ramp's y at first, its bend's amplitude
_EARLY = 0.75  # seconds by which the car on the ramp may be early or late for whom it would meet
_END = 1200.0  # x in metres, where nobody gets to
_SUBSTEPS = 3  # the simulator's steps in one of ours
_PICTURE, _PIXELS = (1000, 120), 4.0  # width and height of a picture in pixels; pixels a metre
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))  # Okabe and Ito's


def merge(
    cars: int = 2,
    *,
    background: int = 0,
    neighbours: int | None = None,
    braking: float = ACCELERATION,
    clearance: float = 2.0,
    render_mode: str | None = None,
) -> "CarWorld":
    """Make the world in which car_0 comes up a ramp and the other controlled cars drive on the right lane it joins.

    `background` cars, which brake for whoever is ahead (IDM) and keep their lane, drive ahead on the right lane and,
    every second one, on the left. `neighbours` is how many others an observation holds (None: all). `braking` in
    m/s^2 and `clearance` in metres are those of the stopping margin. With `render_mode="rgb_array"`, `render()` draws.

    Raises:
        ValueError: fewer than 2 cars, a negative number, or an unknown render mode.
        ImportError: highway-env is not installed; the message says how to install it.
    """
    return CarWorld(True, cars, background, neighbours, braking, clearance, render_mode)


def main_road(
    cars: int = 2,
    *,
    background: int = 0,
    neighbours: int | None = None,
    braking: float = ACCELERATION,
    clearance: float = 2.0,
    render_mode: str | None = None,
) -> "CarWorld":
    """Make the world without a ramp: all controlled cars follow one another on the right lane, car_0 last.

    Nobody changes lane, so no follower gets first. The other arguments, and what is raised, are as in `merge`.
    """
    return CarWorld(False, cars, background, neighbours, braking, clearance, render_mode)


def margins(
    observations: Float[Tensor, "*batch obs"], *, braking: float = ACCELERATION, clearance: float = 2.0
) -> Float[Tensor, "*batch"]:
    """Give the least stopping margin in metres to the neighbours whose lane counts; SIGHT where there is none.

    gap - V^2 / (2 braking) - clearance, with the gap from bumper to bumper along the road in metres, V the speed in
    m/s at which it closes, `braking` in m/s^2 and `clearance` in metres. Below 0 is dangerous.

    Raises:
        ValueError: the observations are not this world's, `braking` is not above 0, or `clearance` is negative.

    [CBF Def. 3]
    """
    _check_braking(braking, clearance)
    if observations.shape[-1] <= _OWN or (observations.shape[-1] - _OWN) % _EACH:
        raise ValueError(f"observations of {observations.shape[-1]} entries: needed are {_OWN} + {_EACH} a neighbour")
    there, dx, _, dv, counts = observations[..., _OWN:].unflatten(-1, (-1, _EACH)).unbind(-1)
    gap, closing = dx.abs() - LENGTH, -dx.sign() * dv
    margin: Tensor = stopping_margin(gap, closing, braking, clearance)
    return margin.where((there * counts) > 0, SIGHT).amin(-1)


def positions(observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch 2"]:
    """Read where the car is: x along the road and y across it, in metres."""
    return observations[..., :2]


def outcome(episode: Dataset) -> Outcome:
    """Say how an episode went for the controlled cars; thresholds are our choice.

    The leader is the controlled car that is ahead (largest x) at the start. In this order:
    "crash": the episode ended by one, the only way to end truly. "slow": some controlled car ended short of FINISH,
    x = 310 m, the end of the merging lane. "leader first": the leader ended ahead. "follower first": another did.

    Raises:
        ValueError: `episode` holds no step, those of several episodes, or of a single agent.

    [CBF Fig. 1]
    """
    if not len(episode) or episode.observations.ndim != 3 or episode.episode[0] != episode.episode[-1]:
        raise ValueError(
            "outcome needs the steps of one episode with an agents axis: "
            "select it by data.where(data.episode == 0), for instance"
        )
    before, after = episode.observations[0, :, 0], episode.next_observations[-1, :, 0]
    if episode.terminated[-1]:
        return "crash"
    if (after < FINISH).any():
        return "slow"
    return "leader first" if after.argmax() == before.argmax() else "follower first"


def measures(episodes: Dataset) -> dict[str, float]:
    """Say of episodes how safe they were, and the share of each outcome.

    "safe" is the share of a car's steps at a margin of 0 or more, "margin" the least margin in m of any car, averaged
    over episodes.
    """
    least = torch.full((len(episodes.episode_starts()),), torch.inf)
    least = least.scatter_reduce(0, episodes.episode, margins(episodes.next_observations).amin(1), "amin")
    outcomes = [outcome(episodes.where(episodes.episode == number)) for number in range(len(least))]
    return {
        "safe": (episodes.costs == 0).float().mean().item(),
        "margin": least.mean().item(),
        **{name: outcomes.count(name) / len(outcomes) for name in OUTCOMES},
    }


class CarWorld:
    """A world of several controlled cars with PettingZoo's parallel interface; made by `merge` or `main_road`.

    An action is one number in [-1, 1]: the acceleration along the road in units of ACCELERATION. A car's reward for
    a step is its speed / TOP_SPEED, less up to SLOW_PENALTY in proportion to how far it is below SLOW_SPEED, less
    CRASH_PENALTY if it has crashed. `infos[car]["margin"]` is the car's `margins` to everybody within SIGHT in
    metres, `infos[car]["cost"]` 1 where that is below 0. A crash of any controlled car ends the episode for all.
    """

    metadata: dict[str, Any] = {"name": "cars", "render_modes": ["rgb_array"], "render_fps": round(1 / SECONDS)}  # noqa: RUF012

    def __init__(
        self,
        ramp: bool,
        cars: int,
        background: int,
        neighbours: int | None,
        braking: float,
        clearance: float,
        render_mode: str | None,
    ) -> None:
        if cars < 2 or background < 0 or (neighbours is not None and neighbours < 1):
            raise ValueError(
                f"cars={cars}, background={background}, neighbours={neighbours}: at least 2 controlled cars, "
                "0 cars in the background and 1 neighbour (or None, for all) are needed"
            )
        _check_braking(braking, clearance)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"unknown render_mode {render_mode!r}: give None or 'rgb_array'")
        self._ramp, self._background, self._braking, self._clearance = ramp, background, braking, clearance
        self._neighbours = cars - 1 + background if neighbours is None else neighbours
        self._highway, self._random = _simulator(), np.random.default_rng()
        self.render_mode = render_mode
        self.possible_agents = [f"car_{i}" for i in range(cars)]
        self.agents: list[str] = []
        self._space = spaces.Box(-np.inf, np.inf, (_OWN + _EACH * self._neighbours,), np.float32)
        self._steering = spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def unwrapped(self) -> "CarWorld":
        """Give the world itself, as PettingZoo's checks ask for."""
        return self

    def observation_space(self, agent: str) -> spaces.Box:
        """Give the space of a car's observations, one for all cars; the table above says what is where."""
        return self._space

    def action_space(self, agent: str) -> spaces.Box:
        """Give the space of a car's actions, one for all cars."""
        return self._steering

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Float[np.ndarray, "obs"]], dict[str, dict[str, float]]]:
        """Put all cars at the start; a seed decides the whole episode but for the actions.

        Starts are safe: on one lane cars are at least 14 m apart from bumper to bumper, at 20 to 25 m/s. To choose
        them, give `options={"starts": [(lane, x, speed), ...]}`, one for each controlled car, in metres and m/s.

        Raises:
            ValueError: `starts` is not a lane of this world, a place before the ramp's bend and a speed for each car.
        """
        if seed is not None:
            self._random = np.random.default_rng(seed)
        draw, last = self._random.uniform, len(self.possible_agents) - self._ramp
        self.agents, self._step = list(self.possible_agents), 0
        self.road = _road(self._highway, self._ramp)
        starts = [(_RIGHT, 60.0 + 35.0 * i + draw(-8, 8), draw(20, 25)) for i in range(last)]
        if self._ramp:
            # timed to meet one of the two rearmost, so that cars that ignore each other often crash
            _, x, speed = starts[self._random.integers(min(last, 2))]
            own, until = draw(20, 25), (MERGE - x) / speed + draw(-_EARLY, _EARLY)
            # never yet where the ramp bends: nothing counts there at the start
            starts.insert(0, (_RAMP, float(np.clip(MERGE - own * until, 10.0, BEND - 10.0)), own))
        if options and "starts" in options:
            starts = self._checked(options["starts"])
        self.cars = [self._put(self._highway.Car, *start) for start in starts]
        for i in range(self._background):
            lane, ahead = (_RIGHT, last + i // 2) if i % 2 == 0 else (_LEFT, i // 2)
            start = (lane, 60.0 + 35.0 * ahead + draw(-8, 8), draw(20, 25))
            self._put(self._highway.Driver, *start, enable_lane_change=False, target_speed=draw(18, 25))
        return self._look()

    def _checked(self, starts: Any) -> list[tuple[int, float, float]]:
        lanes = (_LEFT, _RIGHT, _RAMP) if self._ramp else (_LEFT, _RIGHT)
        fits = len(starts) == len(self.possible_agents) and all(
            lane in lanes and 0 <= x <= (BEND if lane == _RAMP else MERGE) and 0 <= speed <= TOP_SPEED
            for lane, x, speed in starts
        )
        if not fits:
            raise ValueError(
                f"starts={starts}: needed are {len(self.possible_agents)} of (lane, x, speed), lanes {lanes}, x from 0 "
                f"to {MERGE:g} m (on the ramp to {BEND:g} m), speeds from 0 to {TOP_SPEED:g} m/s"
            )
        return list(starts)

    def _put(self, kind: Any, lane: int, x: float, speed: float, **settings: Any) -> Any:
        nodes = ("j", "k", 0) if lane == _RAMP else ("a", "b", lane)
        place = self.road.network.get_lane(nodes).position(x, 0.0)
        car = kind(self.road, place, speed=speed, target_lane_index=nodes, **settings)
        self.road.vehicles.append(car)
        return car

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, Float[np.ndarray, "obs"]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, float]],
    ]:
        """Drive for SECONDS; actions beyond [-1, 1] are clipped.

        Raises:
            ValueError: the episode is over, or `actions` does not hold one finite number for each car.
        """
        if not self.agents:
            raise ValueError("the episode is over, or has not begun: call reset first")
        given = {name: np.asarray(action, float).reshape(-1) for name, action in actions.items()}
        if set(given) != set(self.agents) or not all(a.size == 1 and np.isfinite(a).all() for a in given.values()):
            raise ValueError(f"step needs one finite number for each of {', '.join(self.agents)}; it got {actions}")
        self._drive([ACCELERATION * float(np.clip(given[name][0], -1, 1)) for name in self.agents])
        self._step += 1
        crashed = [bool(car.crashed) for car in self.cars]
        speeds = [float(car.speed) for car in self.cars]
        names, ended = self.agents, any(crashed)
        cut = self._step == STEPS and not ended
        observations, infos = self._look()
        rewards = dict(zip(names, map(_reward, speeds, crashed), strict=True))
        if ended or cut:
            self.agents = []
        return observations, rewards, dict.fromkeys(names, ended), dict.fromkeys(names, cut), infos

    def _drive(self, accelerations: list[float]) -> None:
        seconds = SECONDS / _SUBSTEPS
        for _ in range(_SUBSTEPS):
            for car, wanted in zip(self.cars, accelerations, strict=True):
                car.follow_road()
                if car.target_lane_index == ("b", "c", _RAMP):
                    car.target_lane_index = ("b", "c", _RIGHT)
                possible = np.clip(wanted, -car.speed / seconds, (TOP_SPEED - car.speed) / seconds)
                # not car.act, whose cruise control would choose the acceleration
                car.action = {"acceleration": possible, "steering": car.steering_control(car.target_lane_index)}
            for driver in self.road.vehicles[len(self.cars) :]:
                driver.act()
            self.road.step(seconds)

    def _look(self) -> tuple[dict[str, Float[np.ndarray, "obs"]], dict[str, dict[str, float]]]:
        everyone = self.road.vehicles
        x, y = np.stack([each.position for each in everyone]).T
        speed, heading = np.array([(each.speed, each.heading) for each in everyone]).T
        lane = np.array([_lane(each.lane_index) for each in everyone])
        along, counts = speed * np.cos(heading), _counts(x, lane)
        rows = np.zeros((len(self.cars), _OWN + _EACH * max(len(everyone) - 1, self._neighbours)), np.float32)
        for i, row in enumerate(rows):
            row[:_OWN] = x[i], y[i], speed[i], heading[i], lane[i]
            far = np.abs(x - x[i])
            seen = np.flatnonzero((far <= SIGHT) & (np.arange(len(x)) != i))
            seen = seen[np.lexsort((far[seen], ~counts[i, seen]))]
            others = (np.ones(len(seen)), x[seen] - x[i], y[seen] - y[i], along[seen] - along[i], counts[i, seen])
            row[_OWN : _OWN + _EACH * len(seen)] = np.stack(others, 1).ravel()
        margin = margins(torch.from_numpy(rows), braking=self._braking, clearance=self._clearance).tolist()
        kept = rows[:, : self._space.shape[0]]
        infos = {
            name: {"margin": m, "cost": float(m < 0)} for name, m in zip(self.possible_agents, margin, strict=True)
        }
        return dict(zip(self.possible_agents, kept, strict=True)), infos

    def render(self) -> np.ndarray | None:
        """Draw the road around the controlled cars, car_0 in blue, as height x width x RGB; None without a render mode.

        Cars in the background are light blue, crashed ones red.
        """
        if self.render_mode is None:
            return None
        pygame, graphics = import_module("pygame"), import_module("highway_env.road.graphics")
        # A bare surface needs no display: highway-env's viewer would stay black under SDL_VIDEODRIVER=dummy.
        surface = graphics.WorldSurface(_PICTURE, 0, pygame.Surface(_PICTURE))
        surface.scaling = _PIXELS
        middle = np.mean([car.position[0] for car in self.cars])
        surface.move_display_window_to(np.array([middle, (_RAMP_Y if self._ramp else _WIDTH) / 2]))
        for i, car in enumerate(self.cars):
            car.color = None if car.crashed else _COLOURS[i % len(_COLOURS)]
        graphics.RoadGraphics.display(self.road, surface)
        graphics.RoadGraphics.display_traffic(self.road, surface, offscreen=True)
        picture: np.ndarray = pygame.surfarray.array3d(surface).swapaxes(0, 1)
        return picture.copy()

    def close(self) -> None:
        """Do nothing: there is nothing open."""


def _simulator() -> Any:
    try:
        parts = [import_module(f"highway_env.{name}") for name in ("road.road", "road.lane", "vehicle.behavior")]
        controller = import_module("highway_env.vehicle.controller")
    except ImportError as error:
        raise ImportError(
            f"the worlds of cars run in highway-env, and {error.name or error} is missing. Install it by `make setup` "
            "in a clone, or by `pip install highway-env==1.12.1`"
        ) from error
    road, lane, behavior = parts
    return SimpleNamespace(
        Network=road.RoadNetwork,
        Road=road.Road,
        Line=lane.LineType,
        Straight=lane.StraightLane,
        Sine=lane.SineLane,
        Driver=behavior.IDMVehicle,
        Car=controller.ControlledVehicle,
    )


def _road(highway: Any, ramp: bool) -> Any:
    """Build the two lanes of the main road, in sections between nodes a, b, c, d, and the ramp from j over k to b."""
    network, line = highway.Network(), highway.Line
    solid, dashed, none = line.CONTINUOUS_LINE, line.STRIPED, line.NONE

    def straight(nodes: str, start: float, end: float, y: float, sides: list[int]) -> None:
        lane = highway.Straight([start, y], [end, y], line_types=sides, speed_limit=TOP_SPEED)
        network.add_lane(*nodes, lane)

    for nodes, start, end in (("ab", 0.0, MERGE), ("bc", MERGE, FINISH), ("cd", FINISH, _END)):
        straight(nodes, start, end, 0.0, [solid, dashed])
        straight(nodes, start, end, _WIDTH, [none, dashed if ramp and nodes == "bc" else solid])
    if ramp:
        straight("jk", 0.0, BEND, _RAMP_Y, [solid, solid])
        y, bend = _RAMP_Y - _SWING, MERGE - BEND  # half a cosine wave
        sine = highway.Sine([BEND, y], [MERGE, y], _SWING, np.pi / bend, np.pi / 2, line_types=[solid, solid])
        network.add_lane("k", "b", sine)
        straight("bc", MERGE, FINISH, _RAMP_Y - 2 * _SWING, [none, solid])
    return highway.Road(network=network, neighbour_vehicles_connected_lanes=True)


def _lane(index: tuple[str, str, int]) -> int:
    return _RAMP if index[0] in "jk" else index[2]


def _counts(x: Float[np.ndarray, "_"], lane: np.ndarray) -> Bool[np.ndarray, "_ _"]:
    """Say which pairs the margin counts: on one lane, or one on the right lane and one past the ramp's bend."""
    merging, right = (lane == _RAMP) & (x >= BEND), lane == _RIGHT
    joining = merging[:, None] & right
    counts: np.ndarray[Any, np.dtype[np.bool_]] = (lane[:, None] == lane) | joining | joining.T
    return counts


def _reward(speed: float, crashed: bool) -> float:
    slowness = max(0.0, 1 - speed / SLOW_SPEED)
    return speed / TOP_SPEED - SLOW_PENALTY * slowness - CRASH_PENALTY * crashed


def _check_braking(braking: float, clearance: float) -> None:
    if not braking > 0 or not clearance >= 0:
        raise ValueError(f"a margin needs braking above 0 m/s^2 and clearance of 0 m or more: {braking}, {clearance}")
