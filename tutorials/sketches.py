"""Drawings for the lessons that are made from plain formulas: nothing in them was trained or simulated."""

import numpy as np

from safediffkit.widgets import Frame, Scene, arrow, bank, circle, line, region

IDEAS = (
    "SPI: choose among candidates",
    "TCDP: plan to a budget",
    "DOM2: keep many solutions",
    "CBF: a learned barrier",
)
_PATHS, _STEPS = 24, 40


def four_ideas():
    """Sketch what each of the four papers adds to a diffusion model: the view, and one picture for each idea."""
    scene = Scene(x=(-5, 5, "position east (m)"), y=(-4, 4, "position north (m)"))
    return scene, bank(_idea, {"idea": IDEAS}, seed=0)


def _idea(name, *, seed):
    random = np.random.default_rng(seed)
    return dict(zip(IDEAS, (_candidates, _budget, _many, _barrier), strict=True))[name](random)


def _padded(paths):
    """Fill up with paths that are not there: every setting of a bank has equally many."""
    missing = np.full((_PATHS - len(paths), _STEPS, 2), np.nan)
    return np.concatenate([paths, missing])


def _outcomes(known):
    return [*known, *["neutral"] * (_PATHS - len(known))]


def _candidates(random):
    """Straight moves out of one place: those through the danger are out, of the others the farthest east is taken."""
    angle, reach = random.normal(0.25, 0.55, _PATHS), random.uniform(2, 6.5, _PATHS)
    tips = np.stack([reach * np.cos(angle), reach * np.sin(angle)], -1)
    paths = np.array([-3.5, -1.5]) + tips[:, None] * np.linspace(0, 1, _STEPS)[:, None]
    hit = (paths[..., 0] > 1.5) & (paths[..., 1] < 0)
    safe = ~hit.any(1)
    best = np.where(safe, tips[:, 0], -np.inf).argmax()
    outcomes = np.where(safe, "safe", "violating").astype(object)
    outcomes[best] = "chosen"
    shapes = [region(1.5, -4, 5, 0, label="danger"), circle(-3.5, -1.5, 0.25, kind="start", label="now")]
    return Frame(paths=paths, outcomes=list(outcomes), violating=hit, shapes=shapes)


def _budget(random):
    """Ways into a costly strip and out again: a way costs what it spends inside, and a budget allows short stays."""
    along = np.linspace(-4.5, 4.5, _STEPS)
    depth = np.linspace(0.2, 4.2, _PATHS) + random.normal(0, 0.08, _PATHS)
    paths = np.stack([np.tile(along, (_PATHS, 1)), 2 - depth[:, None] * np.exp(-(along**2) / 4)], -1)
    inside = paths[..., 1] < 0
    within = inside.mean(1) <= 0.2
    outcomes = np.where(within, "safe", "violating").astype(object)
    outcomes[np.flatnonzero(within)[-1]] = "chosen"
    shapes = [
        region(-5, -4, 5, 0, label="every step in here costs"),
        circle(-4.5, 2, 0.25, kind="start", label="now"),
        circle(4.5, 2, 0.25, kind="goal", label="goal"),
    ]
    return Frame(paths=paths, outcomes=list(outcomes), violating=inside, shapes=shapes)


def _many(random):
    """Three agents and six landmarks: several ways of sharing them out, none better than another."""
    starts = np.array([(-0.6, -3), (0, -3), (0.6, -3)])
    goals = np.array([(3.6 * np.cos(a), 3.2 * np.sin(a)) for a in np.linspace(0.25, np.pi - 0.25, 6)])
    share = np.stack([random.choice(6, 3, replace=False) for _ in range(_PATHS // 3)])
    origin, end = np.tile(starts, (len(share), 1)), goals[share.ravel()]
    time = np.linspace(0, 1, _STEPS)[:, None]
    bend = random.normal(0, 0.5, (_PATHS, 1, 2)) * np.sin(np.pi * time)
    paths = origin[:, None] * (1 - time) + end[:, None] * time + bend
    shapes = [circle(x, y, 0.3, kind="goal", label=f"landmark {k + 1}") for k, (x, y) in enumerate(goals)]
    shapes += [circle(x, y, 0.12, kind="start") for x, y in starts]
    return Frame(paths=paths, outcomes=["neutral"] * 21 + ["chosen"] * 3, shapes=shapes)


def _barrier(random):
    """Ways past an obstacle; the barrier lies a stopping distance before it."""
    along = np.linspace(-4.5, 4.5, _STEPS)
    top = np.concatenate([np.linspace(0.3, 3.5, _PATHS // 2), -np.linspace(0.3, 3.5, _PATHS // 2)])
    paths = np.stack([np.tile(along, (_PATHS, 1)), top[:, None] * np.exp(-(along**2) / 3)], -1)
    paths[..., 1] += 0.05 * random.normal(size=(_PATHS, 1))
    distance = np.linalg.norm(paths, axis=-1)
    crossed = distance < 1.9
    outcomes = np.where(crossed.any(1), "violating", "safe").astype(object)
    outcomes[np.where(crossed.any(1), np.inf, np.abs(top)).argmin()] = "chosen"
    shapes = [
        circle(0, 0, 1.1, kind="danger", label="obstacle"),
        circle(0, 0, 1.9, kind="neutral", label="barrier: h = 0"),
        arrow(-4.5, 0, 0.9, 0, kind="start", label="speed"),
        line([(1.1, -1.4), (1.9, -1.4)], kind="neutral", label=""),
    ]
    return Frame(paths=paths, outcomes=list(outcomes), violating=crossed, shapes=shapes)


_SIDES = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # up, right, down, left


def moves_on_a_grid(q, best, fine=20):
    """Draw the four values of every square, (rows, columns, 4) for up, right, down and left, as what a Frame shows.

    Heat fills a triangle at each side, scaled from the least value (0) to the greatest (1). Arrows mark the moves of
    the `best` value, "max" or "min".
    """
    rows, columns, _ = q.shape
    x, y = np.meshgrid(*[(np.arange(n * fine) + 0.5) / fine for n in (columns, rows)])
    from_centre = np.stack([x % 1 - 0.5, y % 1 - 0.5], -1)
    side = (from_centre @ _SIDES.T).argmax(-1)
    table = q[::-1]  # heat has row 0 at the bottom
    low, high = np.nanmin(q), np.nanmax(q)  # NaN stands on squares where nobody moves any more
    scaled = (table - low) / max(high - low, 1e-12)
    centres = np.stack(np.meshgrid(np.arange(columns) + 0.5, rows - np.arange(rows) - 0.5), -1)
    at = centres[:, :, None] + (0.27, 0.36) * _SIDES
    good = np.isclose(q, getattr(q, best)(-1, keepdims=True))
    start = centres[:, :, None] + 0.01 * _SIDES
    return {
        "heat": scaled[y.astype(int), x.astype(int), side],
        "values": np.concatenate([at, q[..., None]], -1)[np.isfinite(q)],
        "arrows": np.concatenate([start, np.broadcast_to(0.12 * _SIDES, start.shape)], -1)[good],
    }
