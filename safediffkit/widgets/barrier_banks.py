"""Pictures of a barrier over a plane of states: how large it is, and where it changes its sign."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from safediffkit.widgets.banks import Scene, line

Corner = tuple[int, int, int]


def cell_centres(scene: Scene, rows: int, columns: int) -> tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]:
    """Give the x and the y of the cells that heat of so many rows and columns has in a scene, row 0 at the bottom."""
    (left, right, _), (bottom, top, _) = scene.x, scene.y
    across, up = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    return left + (right - left) * across, bottom + (top - bottom) * up


def barrier_field(
    h: Callable[[Any], Any], scene: Scene, *, rows: int = 60, columns: int = 80, limit: float = 1.0
) -> dict[str, Any]:
    """Give the parts of a Frame that show a barrier h over a scene's plane: its heat, and h = 0 as lines.

    `h` takes a float32 tensor of points (x, y), one a row. Heat is cut off at -limit and limit, so that its colours
    tell most near h = 0. The lines have the kind "goal": name it by words={"goal": "h = 0"}.
    """
    import torch

    x, y = cell_centres(scene, rows, columns)
    points = np.stack(np.broadcast_arrays(x, y[:, None]), -1).reshape(-1, 2)
    with torch.no_grad():
        values = h(torch.as_tensor(points, dtype=torch.float32)).reshape(rows, columns).cpu().numpy()
    zero = [line(points.round(3).tolist(), kind="goal") for points in level_lines(values, x, y)]
    return {"heat": values.clip(-limit, limit), "shapes": zero}


def level_lines(
    values: Num[Any, "_ _"], x: Num[Any, "_"], y: Num[Any, "_"], level: float = 0.0
) -> list[Float[np.ndarray, "_ 2"]]:
    """Find the lines on which values over a grid cross a level, by marching squares; a closed line ends as it begins.

    `values[row, column]` stands at (x[column], y[row]). In between they are taken to be linear along the grid's edges;
    a square with opposite corners above and the others not is cut in two. A value that is not finite ends a line.

    Raises:
        ValueError: the shapes do not fit.
    """
    values, x, y = (np.asarray(one, dtype=float) for one in (values, x, y))
    if values.shape != (len(y), len(x)):
        raise ValueError(f"values of shape {values.shape} do not fit {len(y)} rows and {len(x)} columns")
    above = values >= level
    ends: dict[Corner, list[Corner]] = {}  # an edge: 0 to the right or 1 upwards, from (row, column)
    corners = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]])
    mixed = np.isfinite(corners).all(0) & (corners >= level).any(0) & (corners < level).any(0)
    for row, column in np.argwhere(mixed).tolist():
        around = [(0, row, column), (1, row, column + 1), (0, row + 1, column), (1, row, column)]
        crossed = [edge for edge in around if above[edge[1:]] != above[_other(edge)]]
        for one, two in zip(crossed[::2], crossed[1::2], strict=True):
            ends.setdefault(one, []).append(two)
            ends.setdefault(two, []).append(one)

    def spot(edge: Corner) -> tuple[float, float]:
        (row, column), (up, right) = edge[1:], _other(edge)
        share = (level - values[row, column]) / (values[up, right] - values[row, column])
        return x[column] + share * (x[right] - x[column]), y[row] + share * (y[up] - y[row])

    found = []
    while ends:
        # where a line begins if there is such an edge, anywhere on a closed one otherwise
        at = next((edge for edge, others in ends.items() if len(others) == 1), next(iter(ends)))
        points = [spot(at)]
        while others := ends.get(at):
            following = others.pop()
            ends[following].remove(at)
            for edge in (at, following):
                if not ends[edge]:
                    del ends[edge]
            at = following
            points.append(spot(at))
        found.append(np.array(points))
    return found


def _other(edge: Corner) -> tuple[int, int]:
    """Give the corner at which an edge ends."""
    upwards, row, column = edge
    return row + upwards, column + 1 - upwards
