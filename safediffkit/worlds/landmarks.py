"""DOM2's particle tasks: many agents and landmarks, some of which may vanish, and three stock scenarios of mpe2.

The functions make PettingZoo parallel environments, which `rollout` takes as they are, or as a function that makes
one: `rollout(policy, landmarks(dismissed=3), episodes=20, budget=0)`. An action is a force along x and y in [-1, 1].
The papers' scores cannot be compared with these worlds': start, prey and physics differ in the ways named below.
"""

from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from safediffkit.data.dataset import Dataset

RADIUS = 0.15  # of an agent, in m
INSTALL = "Install it by `make setup` in a clone, or by `pip install 'safediffkit[teams]'`"


def _particles() -> Any:
    # mpe2 and PettingZoo stay out of memory until a world is made
    try:
        return import_module("safediffkit.worlds.particles")
    except ImportError as error:
        raise ImportError(
            f"the particle worlds run in mpe2, and {error.name or error} is missing. {INSTALL}"
        ) from error


def near_the_nearest(gaps: Float[np.ndarray, "agents _"]) -> Float[np.ndarray, "agents"]:
    """Reward each agent for its own nearest landmark: min(1 / distance, 10).

    The paper says this reward in words only; its form is OMAR's, kept for one agent (our choice). [DOM2 Sec. 1]
    """
    closeness: np.ndarray = 1 / gaps.min(1).clip(0.1)
    return closeness


def coverage(gaps: Float[np.ndarray, "agents _"]) -> Float[np.ndarray, "agents"]:
    """Reward the whole team for each landmark by its nearest agent: the sum of min(1 / distance, 10). [OMAR]"""
    return np.full(len(gaps), (1 / gaps.min(0).clip(0.1)).sum())


def landmarks(
    agents: int = 3,
    landmarks: int = 6,
    dismissed: int = 0,
    v_min: float = 1.0,
    *,
    absent: Literal["copy", "far"] = "copy",
    velocities: bool = False,
    **keywords: Any,
) -> Any:
    """Make the world of three agents and six landmarks, all there in training, some dismissed in evaluation.

    Each agent earns `near_the_nearest`, less 5 for each team mate it touches, which also costs it 1. An observation is
    velocity 2, place 2, the way to each landmark 2 x landmarks, the way to each team mate 2 x (agents - 1). With
    `velocities` each team mate's velocity less the own follows the way to it, 4 x (agents - 1) in all: who is to keep
    clear of others must see how fast they come. DOM2's agents do not see it. [CBF Sec. 3.2]

    The nearest landmark comes first, for each agent its own (our choice). In a fixed order, what to do about them is a
    function of 12 numbers that jumps: a few hundred episodes do not teach a small network even to go to the nearest.

    The paper does not say how a dismissed landmark is seen. With "copy" (our choice) its numbers are those of the
    present landmark nearest to it, as if the two lay in one spot: every input stays within what training has shown,
    though never twice. With "far" they are a constant 4, beyond all that training has shown.

    Nobody touches at the start, and landmarks lie an agent's width apart (our choice), so that any set of landmarks
    can be covered without cost. `keywords`, here and below, are those of `Particles`: `steps`, `start`, `render_mode`.

    Raises:
        ValueError: there is no agent, no landmark is left, there is no room for all, or a keyword is out of range.
        ImportError: mpe2 is not installed.

    [DOM2 Fig. 1]
    """
    game = _particles().Landmarks(
        agents, landmarks, dismissed, reward=near_the_nearest, absent=absent, apart=True, velocities=velocities
    )
    return _particles().Particles(game, v_min=v_min, **keywords)


def cooperative_navigation(agents: int = 3, v_min: float = 1.0, **keywords: Any) -> Any:
    """Make mpe2's simple_spread with OMAR's reward: as many landmarks as agents, `coverage` less 5 a contact.

    With up to three agents a seed starts an episode as it does mpe2's own; they may touch from the start on. What is
    seen is `landmarks`'s: simple_spread's, the nearest landmark first, less the zeros that silent team mates say. DOM2
    shifts it with v_min 0.3. [DOM2 Sec. 5.2]

    Raises:
        ValueError: there is no agent, or a keyword is out of range.
        ImportError: mpe2 is not installed.
    """
    game = _particles().Landmarks(agents, agents, 0, reward=coverage, absent="copy", apart=False)
    game.title = f"cooperative navigation of {agents} agents"
    return _particles().Particles(game, v_min=v_min, **keywords)


def predator_prey(v_min: float = 1.0, **keywords: Any) -> Any:
    """Make mpe2's simple_tag as its three hunters play it: 10 for each touch of the scripted prey, to all of them.

    An observation is the hunter's velocity 2 and place 2, the way to 2 obstacles, 2 team mates and the prey, and the
    prey's velocity: 16 numbers. The prey follows `flee`, a rule of ours. DOM2 shifts it with v_min 0.4. [DOM2 Sec. 5.2]

    Raises:
        ValueError: a keyword is out of range.
        ImportError: mpe2 is not installed.
    """
    return _chase("predator-prey", "simple_tag", v_min=v_min, **keywords)


def simple_world(v_min: float = 1.0, **keywords: Any) -> Any:
    """Make mpe2's simple_world_comm as its four hunters play it: obstacle, food, forests and two scripted prey.

    Each touch of a prey gives 5 to all, and each pays 0.1 x its distance to the nearest prey. The leader sees into the
    forests but does not speak, and food means nothing to our prey, which follows `flee` (both our choice), so that all
    see 30 numbers. This is the paper's "World"; DOM2 shifts it with v_min 0.5. [DOM2 Sec. 5.2]

    Raises:
        ValueError: a keyword is out of range.
        ImportError: mpe2 is not installed.
    """
    return _chase("world", "simple_world_comm", v_min=v_min, **keywords)


def _chase(title: str, name: str, **keywords: Any) -> Any:
    particles = _particles()
    scenario = import_module(f"mpe2.{name}.{name}").Scenario()
    return particles.Particles(particles.Chase(title, scenario), **keywords)


def assignments(
    observations: Float[Tensor, "*batch agents obs"], landmarks: int = 6, *, radius: float = RADIUS
) -> Int[Tensor, "*batch agents"]:
    """Tell which landmark each agent is on, numbered from left to right: the nearest if within `radius`, else -1.

    The radius is an agent's (our choice). A dismissed landmark seen as a copy counts with the one that it copies. To
    count the ways in which a team covers the landmarks from one start, take the last `next_observations` of each
    episode in a world made with `start`, and count the distinct rows.

    Raises:
        ValueError: the observations are too short for so many landmarks.
    """
    end = 4 + 2 * landmarks
    if observations.shape[-1] < end:
        raise ValueError(f"{landmarks} landmarks need observations of {end} numbers or more: see `landmarks`")
    ways = observations[..., 4:end].unflatten(-1, (landmarks, 2))
    gap, nearest = ways.norm(dim=-1).min(-1)
    across = ways[..., 0]
    # apart by more than what half precision rounds
    left = across < across.gather(-1, nearest[..., None]) - 2e-3
    return torch.where(gap <= radius, left.sum(-1), -1)


def measures(episodes: Dataset) -> dict[str, float]:
    """Say of episodes among six landmarks how safe they were, and whether and in how many ways landmarks were covered.

    "safe" is the share of an agent's steps without a touch, "gap" the least free space between two agents in m, below
    0 where they overlap, averaged over episodes. An episode is "covered" if at its end each agent is on a landmark of
    its own. "ways" are the different covers among the episodes of one start, averaged over starts.
    """
    ends = episodes.next_observations[episodes.episode.diff(append=torch.tensor([-1])) != 0]
    starts = episodes.observations[episodes.episode_starts()]
    taken = assignments(ends)
    shared = (taken[:, :, None] == taken[:, None]).sum((1, 2)) > taken.shape[1]
    covered = ~shared & (taken >= 0).all(1)
    _, group = starts.flatten(1).unique(dim=0, return_inverse=True)
    ways = [len(taken[covered & (group == number)].unique(dim=0)) for number in range(int(group.max()) + 1)]
    places = episodes.next_observations[..., 2:4]
    apart = torch.cdist(places, places) + 9 * torch.eye(places.shape[1])
    least = torch.full((len(ends),), torch.inf).scatter_reduce(0, episodes.episode, apart.amin((1, 2)), "amin")
    return {
        "safe": (episodes.costs == 0).float().mean().item(),
        "gap": least.mean().item() - 2 * RADIUS,
        "covered": covered.float().mean().item(),
        "ways": sum(ways) / len(ways),
    }
