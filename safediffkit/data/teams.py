"""Scripted teams for the worlds of many agents: how they act, how they are tuned, and what is recorded of them.

A team in a world of landmarks first shares the landmarks out among its agents, by lot and more likely so that the ways
are short. Then each goes to its own and keeps off team mates. Recorded by `python -m safediffkit.data.collect`. All of
it is our choice: DOM2's own data, of trained networks, are not published with the paper.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from safediffkit.data.dataset import Dataset
from safediffkit.data.tasks import Task, find_task
from safediffkit.data.tuning import Settings, improve, named
from safediffkit.policy import History, Policy
from safediffkit.safety.barriers import stopping_margin
from safediffkit.worlds.merge import ACCELERATION, LENGTH, MERGE, OUTCOMES, TOP_SPEED, outcome
from safediffkit.worlds.rollout import rollout

# Settings of a landmark team: ranges to tune within, and how the clumsy team is set with which tuning starts.
# The least temperature and noise are above 0 so that the best team, too, shows many ways and small disturbances.
RANGES = {
    "temperature": (0.2, 1.5),  # m of way that make a sharing e times less likely
    "clash": (0.0, 2.0),  # m of way that two agents on one landmark count as
    "speed": (0.2, 2.0),  # m/s, the greatest that is wanted
    "gain": (0.2, 10.0),  # 1/s, wanted speed for each m of way
    "stiffness": (0.1, 4.0),  # s/m, force for each m/s that is missing
    "radius": (0.0, 0.8),  # m, nearer team mates are kept off
    "strength": (0.0, 10.0),  # 1/m, force for each m that one is too near
    "noise": (0.1, 1.0),  # spread of the Gaussian noise on the force
}
CLUMSY = dict(zip(RANGES, (1.5, 0.0, 0.4, 0.8, 0.4, 0.0, 0.0, 1.0), strict=True))
ROUNDS, POPULATION, TRIES = 20, 32, 6  # of the cross-entropy method; episodes for each guess
JUDGED = 100  # episodes by which a round's mean settings are judged
# How mixed-safety teams differ from the expert, from careful to reckless: settings drawn evenly for each episode.
MIXED = {"temperature": (0.2, 0.5), "clash": (0.0, 1.0), "radius": (0.0, 0.5), "strength": (0.0, 8.0)}
MIXED |= {"noise": (0.1, 0.5)}
# Settings of a car's driver, drawn evenly for each car and episode. Drivers of a margin below 0 look too late, or not
# at all.
DRIVERS = {
    "speed": (14.0, 30.0),  # m/s, wanted
    "window": (0.0, 2.0),  # s between the arrivals at the merging lane, wanted
    "margin": (-10.0, 10.0),  # m, least stopping margin to whoever is ahead
    "noise": (0.0, 0.3),  # spread of the Gaussian noise on the action
}
ATTITUDES = {1.0: 0.45, -1.0: 0.35, 0.0: 0.2}  # how often a driver yields, presses on, ignores who would meet it
LOT = "scripted, landmarks shared out by lot, tuned by the cross-entropy method; "
EPISODES = {"landmarks.landmarks": 550, "landmarks.cooperative_navigation": 800, "merge.merge": 600}  # of a pack


@dataclass(frozen=True)
class LandmarkTeam:
    """A team that shares the landmarks out and goes to them; `settings`, of RANGES, broadcast over worlds and agents.

    `seed` decides the sharing out, torch's own random numbers the noise. Where team mates' velocities are seen
    (`velocities`), they are not heeded.
    """

    settings: dict[str, Float[Tensor, "*#worlds"]]
    seed: int
    velocities: bool = False

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Go on towards the landmark that each agent got at the start of the episode."""
        s, agents = {name: value[..., None] for name, value in self.settings.items()}, history.observation.shape[-2]
        each = 4 if self.velocities else 2  # numbers of a team mate
        count = (history.observation.shape[-1] - 4 - each * (agents - 1)) // 2

        first, place = history.observations[:, 0], history.observation[..., 2:4]
        # as the first agent sees them: each lists the landmarks in an order of its own
        spots = first[:, 0, None, 2:4] + first[:, 0, 4 : 4 + 2 * count].unflatten(-1, (count, 2))
        lengths = (spots[:, None] - first[:, :, None, 2:4]).norm(dim=-1)
        shared = share_out(lengths, self.settings["temperature"], self.settings["clash"], self.seed)
        way = spots.take_along_dim(shared[..., None], 1) - place
        mates = history.observation[..., 4 + 2 * count :].unflatten(-1, (agents - 1, each))[..., :2]
        wanted = s["gain"] * way
        wanted = wanted * (s["speed"] / wanted.norm(dim=-1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
        force: Tensor = s["stiffness"] * (wanted - history.observation[..., :2])
        gaps = mates.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        force = force - s["strength"] * ((s["radius"][..., None] - gaps).relu() * mates / gaps).sum(-2)
        force = force + s["noise"] * torch.randn_like(force)
        return force.clamp(-1, 1)


def share_out(
    lengths: Float[Tensor, "worlds agents _"],
    temperature: Float[Tensor, "*#worlds"],
    clash: Float[Tensor, "*#worlds"],
    seed: int,
) -> Int[Tensor, "worlds agents"]:
    """Draw a landmark for each agent, with probability proportional to exp(-(ways + clash x pairs) / temperature).

    `ways` is the sum of the agents' ways in m, and `pairs` the number of pairs of agents that got the same landmark.
    """
    agents, landmarks = lengths.shape[1:]
    choices = torch.cartesian_prod(*[torch.arange(landmarks)] * agents).view(-1, agents)
    ways = torch.stack([lengths[:, j, choices[:, j]] for j in range(agents)]).sum(0)
    pairs = ((choices[:, :, None] == choices[:, None]).sum((1, 2)) - agents) / 2
    luck = -torch.empty(len(lengths), len(choices)).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    return choices[(luck - (ways + clash * pairs) / temperature).argmax(1)]


@dataclass(frozen=True)
class Drivers:
    """Drivers that yield, press on or ignore, each by its own settings of DRIVERS and its attitude (1, -1 or 0)."""

    settings: dict[str, Float[Tensor, "worlds agents"]]

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Accelerate for the wanted speed, which the next car's arrival may change; brake for whoever is ahead."""
        s, seen = self.settings, history.observation
        x, speed = seen[..., 0], seen[..., 2]
        there, dx, dy, dv, counts = seen[..., 5:10].unbind(-1)
        left, theirs = MERGE - x, (MERGE - x - dx) / (speed + dv).clamp_min(1)
        wanted, yields = s["speed"], s["attitude"] > 0
        arrival = theirs + s["attitude"] * s["window"]
        in_time = left / arrival.clamp_min(0.2)  # the speed that gets it there then
        meets = (there > 0) & (dy.abs() > 2) & (left > 0) & (theirs > -1) & (s["attitude"] != 0)
        wanted = torch.where(meets, torch.where(yields, in_time.minimum(wanted), in_time.maximum(wanted)), wanted)
        push = (wanted.clamp(0, TOP_SPEED) - speed) / ACCELERATION + s["noise"] * torch.randn_like(x)
        margin = stopping_margin(dx - LENGTH, -dv, ACCELERATION, 2.0)
        brakes = (there * counts > 0) & (dx > 0) & (margin < s["margin"])
        # with all force once 5 m are missing
        push = torch.where(brakes, push.minimum((margin - s["margin"]) / 5), push)
        return push.clamp(-1, 1)[..., None]


@dataclass(frozen=True)
class Uniform:
    """Actions drawn evenly from [-1, 1], `act` numbers each."""

    width: int

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Draw them by torch's own random numbers."""
        return 2 * torch.rand(*history.observation.shape[:-1], self.width) - 1


# --- tuning ---


def tune(task: str, seed: int, *, progress: bool = False) -> list[Settings]:
    """Tune a landmark team from CLUMSY on, for the return in its world, by the cross-entropy method.

    Gives the mean settings after each round up to medium, whose return is the nearest to half way from random's to
    the best's, and then the best.

    Raises:
        ValueError: no such task, or its team has nothing to tune.
        ImportError: the simulator is not installed.
    """
    from tqdm import tqdm

    facts = find_task(task)
    check_tunable(facts)
    rounds, returns = [], []
    low = _judged(Uniform(facts.act), facts, seed)
    with tqdm(total=ROUNDS, desc=f"tune {facts.world}", disable=not progress) as bar:
        for settings, _ in islice(_training(facts, seed), ROUNDS):
            rounds.append(settings)
            returns.append(_judged(_team([settings], seed, facts), facts, seed))
            bar.update()
            bar.set_postfix(random=f"{low:.1f}", now=f"{returns[-1]:.1f}")
    best = int(np.argmax(returns))
    medium = int(np.abs(np.array(returns[: best + 1]) - (low + returns[best]) / 2).argmin())
    return [*rounds[: medium + 1], rounds[best]]


def tunable(task: Task) -> bool:
    """Say whether a task's team has settings to be tuned: those of landmark teams, shared by all of one world."""
    return task.world.startswith("landmarks.")


def check_tunable(task: Task) -> None:
    """Refuse a task whose team has nothing to tune.

    Raises:
        ValueError: it has not.
    """
    if not tunable(task):
        raise ValueError(f"{task.name} has nothing to tune: its drivers are drawn anew for each episode; drop `--tune`")


def _training(task: Task, seed: int) -> Iterator[tuple[Settings, list[Dataset]]]:
    """Tune round by round; give the mean settings after each, and the episodes that it ran."""
    generator = np.random.default_rng(seed)
    least, most = np.array(list(RANGES.values())).T
    mean, spread = np.array(list(CLUMSY.values())), (most - least) / 4
    for number in range(ROUNDS):
        ran: list[Dataset] = []

        def value(guess: np.ndarray, start: int, ran: list[Dataset] = ran) -> float:
            team = _team([named(RANGES, guess)], start, task)
            ran.append(rollout(team, task.name, episodes=TRIES, budget=0, seed=start))
            return float(ran[-1].episode_returns().sum(1).mean())

        mean, spread, _ = improve(value, mean, spread, RANGES, POPULATION, generator)
        # a spread that narrows no faster than this: without it, tuning stops far from the best
        spread = spread.clip(0.15 * (most - least) * (1 - number / ROUNDS))
        yield named(RANGES, mean), ran


def _judged(policy: Policy, task: Task, seed: int) -> float:
    # starts that tuning and recording, both below 2^31, do not use
    episodes = rollout(policy, task.name, episodes=JUDGED, budget=0, seed=2**31 + seed)
    return float(episodes.episode_returns().sum(1).mean())


def _team(each: list[Settings], seed: int, task: Task) -> LandmarkTeam:
    # one for all episodes, or one for each
    settings = {name: torch.tensor([[settings[name]] for settings in each]) for name in RANGES}
    return LandmarkTeam(settings, seed, **task.keywords)


# --- recording ---


def record(task: str, episodes: int, seed: int, tuned: list[Settings]) -> Dataset:
    """Record a team's task; `tuned` are its world's settings as `tune` gives them, and cars need none.

    Raises:
        ValueError: no such task, `tuned` is too short, or medium-replay is to have more episodes than tuning ran.
        ImportError: the simulator is not installed.
    """
    facts = find_task(task)
    if tunable(facts) and len(tuned) < 2:
        raise ValueError(f"{task} needs the settings of a medium and of an expert team; add `--tune` to make them")
    # somewhere among 2^31 starts: evaluation, which counts from 0, will meet others
    start = int(np.random.default_rng([seed, *facts.name.encode()]).integers(2**31))

    def run(policy: Policy) -> Dataset:
        return rollout(policy, facts.name, episodes=episodes, budget=0, seed=start)

    if not tunable(facts):
        words = f"scripted drivers with settings drawn for each car and episode, evenly from {DRIVERS}, who yield to, "
        words += f"press on against or ignore who would meet them (shares {', '.join(map(str, ATTITUDES.values()))})"
        return _told(run(Drivers(_drawn_drivers(episodes, start))), facts, words, seed)
    medium, expert = tuned[-2:]
    half = episodes // 2
    match facts.name.removeprefix("landmarks-").removeprefix("cooperative-navigation-"):
        case "random":
            words, data = "none, actions drawn evenly from [-1, 1]", run(Uniform(facts.act))
        case "medium-replay":
            words = f"{LOT}all settings tried in {len(tuned) - 1} rounds of tuning, from {CLUMSY} up to {medium}"
            data = _replay(facts, episodes, seed, len(tuned) - 1)
        case "medium":
            words, data = f"{LOT}medium, {medium}", run(_team([medium], start, facts))
        case "medium-expert":
            words = f"{LOT}first half medium, {medium}, second half expert, {expert}"
            data = run(_team([medium] * (episodes - half) + [expert] * half, start, facts))
        case "expert":
            words, data = f"{LOT}expert, {expert}", run(_team([expert], start, facts))
        case _:
            words = f"{LOT}expert, {expert}, but for settings drawn evenly for each episode, {MIXED}"
            draw = torch.Generator().manual_seed(start)
            team = _team([expert], start, facts)
            data = run(replace(team, settings=team.settings | _drawn(MIXED, (episodes, 1), draw)))
    return _told(data, facts, words, seed)


def _replay(task: Task, episodes: int, seed: int, rounds: int) -> Dataset:
    ran = [each for _, runs in islice(_training(task, seed), rounds) for each in runs]
    total = TRIES * len(ran)
    if episodes > total:
        raise ValueError(f"{episodes} episodes of {task.name}: tuning up to medium ran {total}, so give at most these")
    names = ("observations", "actions", "rewards", "costs", "next_observations", "terminated")
    columns = {name: torch.cat([getattr(each, name) for each in ran]) for name in names}
    number = torch.cat([each.episode + TRIES * k for k, each in enumerate(ran)])
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.arange(episodes) * total // episodes] = True  # evenly over the time of tuning
    return Dataset(**columns, episode=number, provenance="").where(kept[number])


def _drawn_drivers(episodes: int, seed: int) -> dict[str, Tensor]:
    draw, shape = torch.Generator().manual_seed(seed), (episodes, 2)
    attitudes, shares = (torch.tensor(list(each)) for each in (ATTITUDES, ATTITUDES.values()))
    attitude = attitudes[torch.multinomial(shares, 2 * episodes, replacement=True, generator=draw)].view(shape)
    return _drawn(DRIVERS, shape, draw) | {"attitude": attitude}


def _drawn(ranges: dict[str, tuple[float, float]], shape: tuple[int, int], draw: torch.Generator) -> dict[str, Tensor]:
    return {name: low + (high - low) * torch.rand(shape, generator=draw) for name, (low, high) in ranges.items()}


def _told(data: Dataset, task: Task, words: str, seed: int) -> Dataset:
    earned, cost = data.episode_returns().sum(1), data.episode_costs().sum(1)
    simulator, told = "mpe2", ""
    if not tunable(task):
        outcomes = [outcome(data.where(data.episode == number)) for number in range(len(earned))]
        told = " Outcomes: " + ", ".join(f"{name} {outcomes.count(name)}" for name in OUTCOMES) + "."
        simulator = "highway-env"
    versions = ", ".join(f"{name} {version(name)}" for name in (simulator, "numpy", "torch"))
    provenance = (
        f"Self-collected by safediffkit as {task.name}. Simulator and versions: {versions}. Controllers: {words}. "
        f"Episodes: {len(earned)}. Seed {seed}. Sums over an episode and a team: mean return {earned.mean():.1f}, "
        f"mean cost {cost.mean():.2f}; {(cost > 0).float().mean():.0%} of the episodes cost.{told}"
    )
    return replace(data, provenance=provenance)
