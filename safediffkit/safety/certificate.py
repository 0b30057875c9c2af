"""How far a barrier can be trusted: shares of broken conditions on held-out data, and a proof on a grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safediffkit.data.dataset import Dataset
from safediffkit.safety.barriers import label_rows


@dataclass(frozen=True)
class Violated:
    """How often a condition is broken, with an exact binomial interval, and the states that break it."""

    violated: int
    of: int
    low: float  # ends of the interval for the share
    high: float
    states: Float[Tensor, "steps obs"]  # counterexamples

    @property
    def share(self) -> float:
        """Give the share of violations; NaN where the condition was never put to the test."""
        return self.violated / self.of if self.of else float("nan")


@torch.no_grad()
def verify(
    h: Callable[[Tensor], Tensor],
    dataset: Dataset,
    *,
    dt: float,
    slope: float,
    lookahead: int = 32,
    confidence: float = 0.95,
    each: Literal["step", "episode"] = "step",
) -> dict[str, Violated]:
    """Count on held-out data how often h breaks the three conditions on a barrier: "start", "danger", "derivative".

    h >= 0 on starts, h < 0 in danger, and (h' - h) / dt + slope h >= 0 at every recorded step from h >= 0, unlabelled
    ones included: that judges the barrier together with the behaviour on record. "derivative_safe" counts those among
    them that no danger follows, where the behaviour is no excuse. States are labelled as in training, by `label_rows`.
    An h that is NaN breaks all. Intervals are Clopper and Pearson's, exact for independent draws.
    Steps of an episode are not: with `each="episode"`, where an episode breaks a condition if any of its steps does,
    the interval holds for independent episodes. [CBF Eq. 7]

    Raises:
        ValueError: `confidence` lies outside (0, 1), `each` is something else, or `lookahead` is below 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, 0.95 for example")
    if each not in ("step", "episode"):
        raise ValueError(f'each={each!r}: count each "step" or each "episode"')
    rows = label_rows(dataset, lookahead)
    now, following = h(rows.state), h(rows.next_state)
    moving, slow = rows.moves & ~(now < 0), (following - now) / dt + slope * now >= 0
    conditions = {
        "start": (rows.start, now >= 0),
        "danger": (rows.danger, now < 0),
        "derivative": (moving, slow),
        "derivative_safe": (moving & rows.safe, slow),
    }
    result = {}
    for name, (tested, holds) in conditions.items():
        broken = tested & ~holds
        # bincount: by step each row is its own group
        group = rows.episode if each == "episode" else torch.arange(len(now))
        of, violated = (int((torch.bincount(group[which]) > 0).sum()) for which in (tested, broken))
        low, high = _exact_interval(violated, of, confidence)
        result[name] = Violated(violated, of, low, high, rows.state[broken])
    return result


def _exact_interval(violated: int, of: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not of:
        return 0.0, 1.0
    interval = binomtest(violated, of).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Grid:
    """A box of states cut into `cells` equal parts along each entry.

    Raises:
        ValueError: `low`, `high` and `cells` differ in length, an entry has no extent, or fewer than one cell.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == len(self.cells) > 0:
            raise ValueError(
                f"low={self.low}, high={self.high}, cells={self.cells}: one of each for each entry is needed"
            )
        if any(a >= b for a, b in zip(self.low, self.high, strict=True)) or min(self.cells) < 1:
            raise ValueError(f"low={self.low} must lie below high={self.high}, with at least one of cells={self.cells}")

    def sizes(self) -> Float[Tensor, "obs"]:
        """Give a cell's edges."""
        extent = torch.tensor(self.high, dtype=torch.float64) - torch.tensor(self.low, dtype=torch.float64)
        return extent / torch.tensor(self.cells)

    def centres(self) -> Float[Tensor, "batch obs"]:
        """Give the cells' midpoints; the last entry of the state varies fastest."""
        axes = [
            low + (torch.arange(count, dtype=torch.float64) + 0.5) * size
            for low, count, size in zip(self.low, self.cells, self.sizes(), strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def radius(self) -> float:
        """Give the distance from a cell's midpoint to its corners."""
        return float(self.sizes().norm()) / 2


@dataclass(frozen=True)
class Certificate:
    """What is proved of each cell of a grid: `certified`, `refuted` by its midpoint, or neither, `undecided`."""

    grid: Grid
    certified: Bool[Tensor, "batch"]
    refuted: Bool[Tensor, "batch"]
    leaves: Bool[Tensor, "batch"]  # certified, but no certifying action surely stays in the grid's box
    action: Float[Tensor, "batch act"]  # the one that keeps h best

    @property
    def undecided(self) -> Bool[Tensor, "batch"]:
        """Tell the cells that are too coarse to tell."""
        return ~self.certified & ~self.refuted

    @property
    def outcome(self) -> Literal["certified", "refuted", "undecided"]:
        """Judge the barrier: refuted by one counterexample, certified only by all cells."""
        if self.refuted.any():
            return "refuted"
        return "certified" if self.certified.all() else "undecided"

    def counterexamples(self) -> Float[Tensor, "batch obs"]:
        """Give the states that refute the barrier."""
        return self.grid.centres()[self.refuted]


@torch.no_grad()
def certify_on_grid(
    h: Callable[[Tensor], Tensor],
    dynamics: Callable[[Tensor, Tensor], Tensor],
    grid: Grid,
    lipschitz: float,
    *,
    actions: Float[Tensor, "plans act"],
    distance: Callable[[Tensor], Tensor],
    dt: float,
    slope: float,
    dynamics_lipschitz: float,
) -> Certificate:
    """Prove, cell by cell, that h is a barrier for `dynamics` with one of the `actions`, or show a state where not.

    Two conditions at every state of the box: h < 0 in danger, where `distance` < 0; and where h >= 0, some action has
    h(s') >= (1 - slope dt) h(s). Both are looked at in the midpoints, and hold in a whole cell if they hold there with
    slack: `lipschitz` bounds the change of h a unit of Euclidean distance, `dynamics_lipschitz` that of s' under each
    action, and `distance` changes by at most 1 a unit, as distances do. If all cells are certified and none `leaves`,
    h >= 0 is never left, for ever; with cells that leave, not before the state leaves the box. This holds for
    slope dt <= 1: beyond, the condition allows h < 0 at the next step. It is a proof up to rounding, as good as the
    bounds given, and about the states at the steps, not between them. A counterexample breaks a condition: it need not
    be lost, as h may also fall too fast for its slope. Midpoints are float64: make a network `.double()`. [CBF Eq. 3]

    Raises:
        ValueError: slope x dt lies outside (0, 1], or a Lipschitz bound is below 0.
    """
    if not 0 < slope * dt <= 1:
        raise ValueError(
            f"slope x dt = {slope * dt:g} must lie above 0 and be at most 1: above, h may jump below 0 in one step and "
            "nothing is certified; lower the slope or shorten dt"
        )
    if min(lipschitz, dynamics_lipschitz) < 0:
        raise ValueError(f"lipschitz={lipschitz} and dynamics_lipschitz={dynamics_lipschitz} must be at least 0")
    centres, radius, keep = grid.centres(), grid.radius(), 1 - slope * dt
    now, apart = h(centres), distance(centres)
    negative = now + lipschitz * radius < 0  # all over the cell

    shape = len(actions), len(centres), -1
    following = dynamics(centres[None].expand(*shape), actions.to(centres)[:, None].expand(*shape))
    rises = h(following) - keep * now
    slack = lipschitz * (dynamics_lipschitz + keep) * radius
    low, high = (torch.tensor(bound, dtype=torch.float64) + sign * dynamics_lipschitz * radius
                 for bound, sign in ((grid.low, 1), (grid.high, -1)))  # fmt: skip
    stays = ((following >= low) & (following <= high)).all(-1)

    keeps = negative | (rises >= slack).any(0)
    apart_or_negative = negative | (apart >= radius)
    refuted = ~(now < 0) & ((apart < 0) | ~(rises >= 0).any(0))
    certified = keeps & apart_or_negative
    leaves = certified & ~negative & ~((rises >= slack) & stays).any(0)
    return Certificate(grid, certified, refuted, leaves, actions[rises.argmax(0)])
