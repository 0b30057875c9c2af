"""Pictures of cars that merge: drives from above, fans of what each car plans, and shares of outcomes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safediffkit.widgets.banks import Scene, Shape, line, region

CARS = ("car from the ramp", "car on the road")
OUTCOMES = {"leader first": "safe", "follower first": "goal", "slow": "start", "crash": "danger"}  # kinds of shapes
_APART, _FAR = 19.0, 30.0  # metres: from road to road; up to which a car is drawn ahead of the other
_LANE, _RAMP, _JOINED, _HALF = 4.0, 14.5, 8.0, 2.0  # y of the right lane and of the ramp, as in `merge`; half a lane
_TELL, _END = 318.0, 370.0  # x from which an outcome stands below the road, and where the view ends


def road_scene(drives: int, *, bend: float, merge: float, finish: float) -> Scene:
    """Draw as many roads as there are drives, one below the other and without the left lane, in metres.

    The ramp turns from x = `bend` on, runs beside the road from `merge` on, and is no more at `finish`.
    """
    along = np.linspace(bend, merge, 9)
    swing = _JOINED + (_RAMP - _JOINED) * (1 + np.cos(np.pi * (along - bend) / (merge - bend))) / 2
    ramp = [(0.0, _RAMP), *zip(along.tolist(), swing.tolist(), strict=True)]
    near, far = _LANE + _HALF, _LANE - _HALF
    edges = [
        [(0.0, far), (_END, far)],
        [(0.0, near), (merge, near)],
        [(x, y - _HALF) for x, y in ramp],
        [*((x, y + _HALF) for x, y in ramp), (finish, _JOINED + _HALF), (finish, near), (_END, near)],
    ]
    roads = [line([(x, -y - _APART * k) for x, y in edge]) for k in range(drives) for edge in edges]
    across = (-_APART * drives, 0.0, "one drive below the other (m)")
    return Scene((0.0, _END, "along the road (m)"), across, roads, equal=False)


def from_above(
    places: Float[Tensor, "episodes agents steps 2"],
    violating: Bool[Tensor, "episodes agents steps"],
    outcomes: Sequence[str],
    *,
    every: int = 2,
) -> dict[str, Any]:
    """Give the parts of a Frame that show drives on the roads of `road_scene`, each with its outcome written on it.

    With two cars, path 2 k is that of the first in drive k, path 2 k + 1 that of the second: see `CARS`. Places are in
    m, NaN where a drive has ended; only one step in `every` is kept.
    """
    x, y = places.unbind(-1)
    paths = torch.stack([x, -y - _APART * torch.arange(len(places))[:, None, None]], -1)
    heights = [-_APART * k - _LANE - _HALF - 9 for k in range(len(outcomes))]
    return {
        "paths": paths.flatten(0, 1)[:, ::every],
        "violating": violating.flatten(0, 1)[:, ::every],
        "shapes": [
            line([(_TELL, height), (_END - 2, height)], kind=OUTCOMES[told], label=told)
            for height, told in zip(heights, outcomes, strict=True)
        ],
    }


def fan_scene(end: float) -> Scene:
    """Draw two panels, `end` seconds wide each: what one car plans, and a second to the right what the other does."""
    starts = dict(zip(CARS, (0.0, end + 1), strict=True))
    titles = [
        region(start, 0.86 * _FAR, start + end, _FAR, kind="neutral", label=f"plans {name.removeprefix('car ')}")
        for name, start in starts.items()
    ]
    ahead = f"seconds ahead: from 0 to {end:g} for one car, from {end + 1:g} to {2 * end + 1:g} for the other"
    level = [line([(start, 0), (start + end, 0)]) for start in starts.values()]
    up = (-_FAR, _FAR, "car from the ramp ahead by (m)")
    return Scene((-0.2, 2 * end + 1.2, ahead), up, [*level, *titles], equal=False)


def fans(
    ahead: Float[Tensor, "agents plans horizon"],
    refused: Bool[Tensor, "agents plans"],
    chosen: Int[Tensor, "agents"],
    *,
    end: float,
    keep: float,
) -> dict[str, Any]:
    """Give the parts of a Frame that show all that two cars plan, in the panels of `fan_scene`.

    `ahead` is how far the car from the ramp will be in front of the other, in m, as each plan of each car has it. A
    window that is refused has the outcome "violating", the one that is followed "chosen". In the strip the cars are
    less than `keep` metres from middle to middle.

    Raises:
        ValueError: there are not two cars.
    """
    if len(ahead) != 2:
        raise ValueError(f"plans of two cars are needed, not of {len(ahead)}")
    starts = torch.tensor([0.0, end + 1])
    time = torch.linspace(0, end, ahead.shape[2]) + starts[:, None, None]
    outcomes = [
        "chosen" if k == chosen[car] else "violating" if refused[car, k] else "neutral"
        for car in range(2)
        for k in range(ahead.shape[1])
    ]
    return {
        "paths": torch.stack([time.expand_as(ahead), ahead], -1).flatten(0, 1),
        "outcomes": outcomes,
        "shapes": [region(start, -keep, start + end, keep) for start in starts.tolist()],
    }


def share_scene(values: Sequence[float], name: str) -> Scene:
    """Make room for the columns of `stacked_shares`, each of which stands at its value."""
    room = 2 * _half(values)
    return Scene((min(values) - room, max(values) + room, name), (0, 100, "share of drives (%)"), equal=False)


def stacked_shares(values: Sequence[float], shares: Sequence[Mapping[str, float]]) -> list[Shape]:
    """Stack the shares of `OUTCOMES`, in percent: one column for each value, over it."""
    shapes, half = [], _half(values)
    for value, each in zip(values, shares, strict=True):
        low = 0.0
        for told, kind in OUTCOMES.items():
            if each[told] > 0:
                shapes.append(region(value - half, low, value + half, low + each[told], kind=kind))
            low += each[told]
    return shapes


def _half(values: Sequence[float]) -> float:
    # of a column's width: a third of the least distance between two
    return min((b - a for a, b in pairwise(sorted(values))), default=1.0) / 3
