"""Teams of round bodies in mpe2's physics, as PettingZoo parallel environments; made by `worlds/landmarks.py`.

Physics, sizes and the chases' rewards are mpe2's. Its turn-by-turn stepping, which takes most of its time, is left
aside. mpe2 moves a body by the velocity of the step before, so a force is felt in the place one step late.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float
from mpe2._mpe_utils.core import Action, Landmark
from mpe2.simple_spread.simple_spread import Scenario as Spread
from pettingzoo import ParallelEnv

Rewards = Callable[[Float[np.ndarray, "agents _"]], Float[np.ndarray, "agents"]]
FAR = 4.0  # what stands for each coordinate of a dismissed landmark that is shown as far away
_TRIES = 1000


@runtime_checkable
class Game(Protocol):
    """What a team plays: who is in it, where an episode starts, what is seen and earned."""

    title: str
    world: Any  # mpe2's World: all bodies, and the physics in `world.step()`
    team: list[Any]  # the agents that are controlled; the others follow a script

    def place(self, random: np.random.Generator) -> None:
        """Put everything where an episode starts."""
        ...

    def observe(self) -> Float[np.ndarray, "agents obs"]:
        """Say what each of the team sees."""
        ...

    def rewards(self) -> Float[np.ndarray, "agents"]:
        """Say what each of the team earns for standing where it stands."""
        ...


class Particles(ParallelEnv):  # type: ignore[misc]  # PettingZoo is not typed
    """A team that plays a game for a fixed number of steps, of 0.1 s each; no episode has a true end.

    An action is a force along x and y in [-1, 1], as in the papers' data; mpe2's own 5 numbers in [0, 1] are two
    opposed ones for each, and one that does nothing. `info["cost"]` is 1 for each agent that touches a team mate.

    At reset each agent draws a speed v in [v_min, 1], by which its own force and top speed are multiplied; what
    collisions do to it is not (our choice). It is drawn after the places, so that a seed gives one start whatever the
    shift. With `start` every episode begins as seed `start` says, whatever the reset's seed. [DOM2 Sec. 5.2]

    Raises:
        ValueError: v_min is not above 0 and at most 1, there is no step, or the render mode is unknown.
    """

    def __init__(
        self,
        game: Game,
        *,
        v_min: float = 1.0,
        steps: int = 25,
        start: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not 0 < v_min <= 1 or steps < 1:
            raise ValueError(f"v_min={v_min} and steps={steps}: the lowest speed is in (0, 1], an episode has a step")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"unknown render_mode {render_mode!r}: give None or 'rgb_array'")
        self.metadata = {"name": game.title, "render_modes": ["rgb_array"], "render_fps": 10}
        self.game, self.v_min, self.steps, self.start, self.render_mode = game, v_min, steps, start, render_mode
        self.possible_agents = [agent.name for agent in game.team]
        self.agents: list[str] = []
        self.speeds = np.ones(len(game.team))
        self._own = [(5.0 if a.accel is None else a.accel, a.max_speed) for a in game.team]  # 5 is mpe2's default
        self._random, self._now = np.random.default_rng(), 0
        game.place(np.random.default_rng(0))
        sees = spaces.Box(-np.inf, np.inf, (game.observe().shape[1],), np.float32)
        self._sees = dict.fromkeys(self.possible_agents, sees)
        self._does = {name: spaces.Box(-1.0, 1.0, (2,), np.float32) for name in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Box:
        """Say what an agent sees: as many numbers for each of the team."""
        return self._sees[agent]

    def action_space(self, agent: str) -> spaces.Box:
        """Say what an agent can do: a force along x and one along y, each in [-1, 1]."""
        return self._does[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin an episode; the seed decides the start, the landmarks dismissed and the speeds."""
        seed = seed if self.start is None else self.start
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.game.place(self._random)
        self.speeds = self._random.uniform(self.v_min, 1.0, len(self.game.team))
        for agent, (_, top), speed in zip(self.game.team, self._own, self.speeds, strict=True):
            agent.max_speed = None if top is None else top * speed
            agent.action.c = np.zeros(self.game.world.dim_c)
        self.agents, self._now = self.possible_agents[:], 0
        return self._observations(), {name: {"cost": 0.0} for name in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Let all agents push at once for 0.1 s; forces beyond [-1, 1] are clipped.

        Raises:
            ValueError: no episode is under way, or an agent has no action of 2 finite numbers.
        """
        if not self.agents:
            raise ValueError("no episode is under way: call reset() first")
        forces = [np.asarray(actions.get(name, ()), dtype=float) for name in self.agents]
        if any(force.shape != (2,) or not np.isfinite(force).all() for force in forces):
            raise ValueError(f"each of {self.agents} needs an action of 2 finite numbers; given: {actions}")
        for agent, (strength, _), speed, force in zip(self.game.team, self._own, self.speeds, forces, strict=True):
            agent.action.u = force.clip(-1, 1) * strength * speed
        self.game.world.step()
        self._now += 1
        names, over = self.agents, self._now == self.steps
        rewards, contacts = self.game.rewards(), touching(self.game.team)
        self.agents = [] if over else names
        return (
            self._observations(),
            {name: float(reward) for name, reward in zip(names, rewards, strict=True)},
            dict.fromkeys(names, False),
            dict.fromkeys(names, over),
            {name: {"cost": float(mates.any())} for name, mates in zip(names, contacts, strict=True)},
        )

    def render(self) -> np.ndarray | None:
        """Draw the bodies from above as 240 x 240 pixels, if made with `render_mode="rgb_array"`."""
        return None if self.render_mode is None else picture(self.game.world)

    def _observations(self) -> dict[str, np.ndarray]:
        return dict(zip(self.possible_agents, self.game.observe().astype(np.float32), strict=True))


def _places(bodies: list[Any]) -> Float[np.ndarray, "_ 2"]:
    return np.array([body.state.p_pos for body in bodies])


def distances(ours: Float[np.ndarray, "_ 2"], theirs: Float[np.ndarray, "_ 2"]) -> Float[np.ndarray, "_ _"]:
    """Measure from each of ours to each of theirs."""
    gaps: np.ndarray = np.linalg.norm(ours[:, None] - theirs, axis=-1)
    return gaps


def touching(team: list[Any]) -> Bool[np.ndarray, "agents agents"]:
    """Say who touches whom: nearer than both radii together."""
    places, sizes = _places(team), np.array([agent.size for agent in team])
    near: np.ndarray = distances(places, places) < sizes[:, None] + sizes
    return near & ~np.eye(len(team), dtype=bool)


class Landmarks:
    """Agents cover landmarks: rewarded for being near them, less 5 for each team mate touched.

    Each sees its velocity, its place, the way to each landmark and to each team mate, as in simple_spread less the
    zeros that silent team mates say, and with the nearest landmark first. Of the landmarks, `dismissed` are drawn anew
    for each episode: they earn nothing, and `absent` says how they are seen. [DOM2 Fig. 1]

    With `apart` all start and all landmarks lie so far from each other that no two agents touch, neither at the start
    nor when each is on a landmark of its own. Up to 3 agents start in a square of half width 1, up to 10 in one of 2,
    as in OMAR; more of them in one that grows with the root of their number (our choice).
    """

    def __init__(
        self,
        agents: int,
        landmarks: int,
        dismissed: int,
        *,
        reward: Rewards,
        absent: str,
        apart: bool,
        velocities: bool = False,
    ) -> None:
        if agents < 1 or not 0 <= dismissed < landmarks:
            raise ValueError(
                f"agents={agents}, landmarks={landmarks}, dismissed={dismissed}: there must be an agent, "
                "and a landmark that is not dismissed"
            )
        if absent not in ("copy", "far"):
            raise ValueError(
                f"absent={absent!r}: a dismissed landmark is seen as a 'copy' of another, or as 'far' away"
            )
        self.title = f"landmarks, {agents} agents and {landmarks} landmarks, {dismissed} dismissed"
        self.world = Spread().make_world(agents)
        self.world.landmarks = [Landmark() for _ in range(landmarks)]
        for landmark in self.world.landmarks:
            landmark.collide = False
        self.team = self.world.agents
        self.half_width = 1.0 if agents <= 3 else 2.0 * max(1.0, (agents / 10) ** 0.5)
        self.dismissed, self.absent, self.apart, self.reward = dismissed, absent, apart, reward
        self.velocities = velocities
        self.present = np.ones(landmarks, dtype=bool)
        self._others = np.array([[k for k in range(agents) if k != j] for j in range(agents)], dtype=int)
        self._shown = np.arange(landmarks)

    def place(self, random: np.random.Generator) -> None:
        """Scatter agents and landmarks, then dismiss some: the same start whatever their number."""
        spacing = 2 * self.team[0].size if self.apart else 0.0
        for bodies in (self.team, self.world.landmarks):
            for body, place in zip(bodies, _scatter(random, len(bodies), self.half_width, spacing), strict=True):
                body.state.p_pos, body.state.p_vel = place, np.zeros(2)
        self.dismiss(random.permutation(len(self.present))[: self.dismissed])

    def dismiss(self, which: np.ndarray) -> None:
        """Dismiss these landmarks and no others."""
        self.present[:] = True
        self.present[which] = False
        spots, stay = _places(self.world.landmarks), np.flatnonzero(self.present)
        self._shown = stay[distances(spots, spots[stay]).argmin(1)]  # itself, where it is present
        for bodies, colour in ((self.team, (0.35, 0.35, 0.85)), (self.world.landmarks, (0.25, 0.25, 0.25))):
            for body in bodies:
                body.color = np.array(colour)
        for k in which:
            self.world.landmarks[k].color = np.full(3, 0.9)

    def observe(self) -> Float[np.ndarray, "agents obs"]:
        """List velocity, place, the way to each landmark and the way to each team mate, 2 numbers each.

        The nearest landmark comes first, see `landmarks`. With `velocities`, each way to a team mate is followed by
        that mate's velocity less the own.
        """
        places, spots = _places(self.team), _places(self.world.landmarks)
        ways = spots[self._shown] - places[:, None]
        if self.absent == "far":
            ways[:, ~self.present] = FAR
        order = np.linalg.norm(ways, axis=-1).argsort(1, kind="stable")
        ways = np.take_along_axis(ways, order[..., None], 1)
        mates = places[self._others] - places[:, None]
        velocities = np.array([agent.state.p_vel for agent in self.team])
        if self.velocities:
            mates = np.concatenate([mates, velocities[self._others] - velocities[:, None]], -1)
        rows = len(places)
        return np.concatenate([velocities, places, ways.reshape(rows, -1), mates.reshape(rows, -1)], 1)

    def rewards(self) -> Float[np.ndarray, "agents"]:
        """Reward nearness to the landmarks that are present, less 5 for each team mate touched."""
        gaps = distances(_places(self.team), _places(self.world.landmarks)[self.present])
        earned: np.ndarray = self.reward(gaps) - 5.0 * touching(self.team).sum(1)
        return earned


def _scatter(random: np.random.Generator, count: int, half_width: float, spacing: float) -> Iterator[np.ndarray]:
    taken = np.zeros((0, 2))
    for _ in range(count):
        for _ in range(_TRIES):
            place = random.uniform(-half_width, half_width, 2)
            if (distances(taken, place[None]) >= spacing).all():
                break
        else:
            raise ValueError(f"no room for {count} bodies {spacing} apart in a square of half width {half_width}")
        taken = np.concatenate([taken, place[None]])
        yield place


class Chase:
    """A team of mpe2's hunters after prey that follows the script `flee`; rewards are mpe2's, shared by the team.

    In `simple_world_comm` the hunters' leader can speak, and is not hidden from by forests. Here it is silent, and the
    numbers that would be its words are cut from what all see (our choice), so that hunters see and do things of one
    size; that it sees into the forests stays.
    """

    def __init__(self, title: str, scenario: Any) -> None:
        self.title, self.scenario, self.world = title, scenario, scenario.make_world()
        self.team = [agent for agent in self.world.agents if agent.adversary]
        self._words = sum(self.world.dim_c for agent in self.team if not agent.silent)
        for agent in self.world.agents:
            agent.silent = True
            agent.action_callback = None if agent.adversary else flee

    def place(self, random: np.random.Generator) -> None:
        """Start as mpe2 does."""
        self.scenario.reset_world(self.world, random)

    def observe(self) -> Float[np.ndarray, "agents obs"]:
        """See what mpe2 shows, words apart."""
        seen = np.stack([self.scenario.observation(agent, self.world) for agent in self.team])
        return seen[:, : seen.shape[1] - self._words]

    def rewards(self) -> Float[np.ndarray, "agents"]:
        """Earn what mpe2 gives."""
        return np.array([float(self.scenario.reward(agent, self.world)) for agent in self.team])


def flee(prey: Any, world: Any) -> Action:
    """Push with full force away from hunters, each weighing 1 / distance, and from the edges of the square.

    A rule of ours: OMAR's and so DOM2's prey is a trained network that is not published with the paper. The edges at
    x, y = -1, 1 weigh like hunters on the nearest spot of each, up to 1 / 0.05, or the faster prey would just run off.
    """
    at = prey.state.p_pos
    away = at - _places([agent for agent in world.agents if agent.adversary])
    push = (away / np.square(away).sum(1, keepdims=True).clip(1e-6)).sum(0)
    push = push + 1 / (1 + at).clip(0.05) - 1 / (1 - at).clip(0.05)
    action = Action()
    action.u = prey.accel * push / max(float(np.linalg.norm(push)), 1e-6)
    action.c = np.zeros(world.dim_c)
    return action


def picture(world: Any, pixels: int = 240) -> np.ndarray:
    """Draw all bodies as discs, agents on top, in a square that holds them all."""
    reach = max(1.2, float(np.abs(_places(world.entities)).max()) + 0.2)
    across = (np.arange(pixels) + 0.5) / pixels * 2 * reach - reach
    image = np.full((pixels, pixels, 3), 255, dtype=np.uint8)
    for body in [*world.landmarks, *world.agents]:
        x, y = body.state.p_pos
        inside = (across - x) ** 2 + (across[::-1, None] - y) ** 2 <= body.size**2
        image[inside] = (255 * np.asarray(body.color)).astype(np.uint8)
    return image
