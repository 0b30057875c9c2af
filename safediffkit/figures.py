"""Pictures: numbers in, a plotly Figure out. Nothing here shows or stores one, and plotly loads when first used.

Every function takes numpy arrays and torch tensors alike and returns an ordinary Figure, so pictures are combined
and changed with plotly's own means, as in `figure.add_traces(other.data)` or `figure.update_layout(height=300)`.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Num, Shaped

if TYPE_CHECKING:
    import plotly.graph_objects

# Okabe and Ito's palette, which stays distinct for colour-blind readers. Blue is always safe, vermilion always unsafe.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, BLACK, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#8C8C8C"
)  # fmt: skip
SAFE, UNSAFE = BLUE, VERMILION
_ARROWS = "↑→↓←"
_SIDES = ((0, 1), (1, 2), (2, 1), (1, 0))  # where up, right, down and left stand in a square cut into three by three


@cache
def _template() -> Any:
    from plotly.graph_objects import layout

    axis = {"showgrid": True, "gridcolor": "#E5E5E5", "zeroline": False, "linecolor": "#666666", "ticks": "outside"}
    return layout.Template(
        layout={
            "colorway": [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK],
            "font": {"family": "sans-serif", "size": 14, "color": "#222222"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "title": {"x": 0, "xref": "paper", "font": {"size": 16}},
            "margin": {"l": 70, "r": 20, "t": 50, "b": 55},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def _figure(*, title: str, x: str, y: str, width: int = 720, height: int = 400) -> "plotly.graph_objects.Figure":
    from plotly.graph_objects import Figure

    return Figure(
        layout={
            "template": _template(),
            "title": {"text": title},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "width": width,
            "height": height,
        }
    )


def _array(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    return _array(values).astype(float)


def reward_cost_scatter(
    returns: Num[Any, "episodes"],
    costs: Num[Any, "episodes"],
    budget: float,
    *,
    name: str = "",
    symbol: str = "circle",
    title: str = "",
    x: str = "cost of the episode",
    y: str = "return of the episode",
) -> "plotly.graph_objects.Figure":
    """Draw each episode as one point, those within the cost budget apart from those over it, and the budget as a line.

    To lay several policies over one another, give each a `name` and a `symbol` and add the traces of one figure to
    those of the first: `first.add_traces(second.data)`.
    """
    returns, costs = _numbers(returns), _numbers(costs)
    figure = _figure(title=title, x=x, y=y)
    within = costs <= budget
    for rows, colour, outcome in ((within, SAFE, "within budget"), (~within, UNSAFE, "over budget")):
        figure.add_scatter(
            x=costs[rows],
            y=returns[rows],
            mode="markers",
            name=f"{name}, {outcome}" if name else outcome,
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.7},
        )
    figure.add_vline(x=budget, line={"color": BLACK, "dash": "dash"}, annotation={"text": f"budget {budget:g}"})
    return figure


def top_view(
    trajectories: Num[Any, "episodes steps 2"],
    costs: Num[Any, "episodes steps"],
    *,
    budget: float = 0.0,
    radius: float | None = 7.0,
    band: float | None = 6.0,
    title: str = "",
) -> "plotly.graph_objects.Figure":
    """Draw trajectories from above, positions in metres; pad shorter episodes with NaN.

    Episodes whose cost is within `budget` are blue, the others grey, and every step that costs anything is vermilion.
    `radius` draws the circle to follow and `band` the safe strip |x| <= band; None leaves either out. The values
    given by default are those of the Circle tasks.
    """
    xy, costs = _numbers(trajectories), np.nan_to_num(_numbers(costs))
    figure = _figure(title=title, x="x (m)", y="y (m)", width=560, height=600)
    if band is not None:
        figure.add_vrect(x0=-band, x1=band, fillcolor=GREEN, opacity=0.08, line_width=0, layer="below")
        for edge in (-band, band):
            figure.add_vline(x=edge, line={"color": GREEN, "dash": "dash", "width": 1.5})
    if radius is not None:
        round_trip = np.linspace(0, 2 * np.pi, 181)
        figure.add_scatter(
            x=radius * np.cos(round_trip),
            y=radius * np.sin(round_trip),
            mode="lines",
            name=f"circle, {radius:g} m",
            line={"color": BLACK, "dash": "dot", "width": 1},
            hoverinfo="skip",
        )
    over = costs.sum(1) > budget
    costly = np.where(costs[..., None] > 0, xy, np.nan)
    for lines, name, colour, width in (
        (xy[~over], "within budget", SAFE, 1.5),
        (xy[over], "over budget", GREY, 1.0),
        (costly, "steps that cost", UNSAFE, 3.0),
    ):
        # one trace for all, cut by NaN: hundreds of traces would take plotly a hundred times as long
        cut = np.concatenate([lines, np.full((len(lines), 1, 2), np.nan)], 1).reshape(-1, 2)
        figure.add_scatter(x=cut[:, 0], y=cut[:, 1], mode="lines", name=name, line={"color": colour, "width": width})
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def pixel_map(
    width: int, walks: dict[str, Shaped[Any, "_ 2"]] | None = None, *, title: str = ""
) -> "plotly.graph_objects.Figure":
    """Draw the pixel world with any number of walks in it, each a name and the (row, column) squares stood on."""
    figure = _pixels(np.full((9, 3 * width), np.nan), width, title)
    for n, (name, squares) in enumerate((walks or {}).items()):
        at = _numbers(squares) + 0.14 * (n - (len(walks or {}) - 1) / 2)  # beside one another where walks share squares
        figure.add_scatter(
            x=at[:, 1],
            y=at[:, 0],
            mode="lines+markers",
            name=name,
            showlegend=True,
            line={
                "width": 3,
                "color": (VERMILION, BLUE, GREEN, PURPLE)[n % 4],
                "dash": ("solid", "dash", "dot")[n % 3],
            },
            marker={"size": 11, "symbol": "arrow", "angleref": "previous"},
        )
    return figure


def grid_values(
    values: Num[Any, "3 _ 4"],
    *,
    best: Literal["max", "min"] = "max",
    title: str = "",
    unit: str = "Q",
    low: float | None = None,
    high: float | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw the values of the pixel world's actions, a table over (row, column, action), as a heat map.

    Each square shows one value at each of its four sides, that of moving there, and in its middle an arrow for each
    action that is best by `best`: several where they tie. Trap and goal, where values are NaN or the same whatever
    one does, show their letter. `low` and `high` fix the colours' range, so that two maps can be compared.
    """
    q = _numbers(values)
    width = q.shape[1]
    cells = np.full((9, 3 * width), np.nan)
    for action, (down, right) in enumerate(_SIDES):
        cells[down::3, right::3] = q[..., action]
    cells[:3, -3:] = cells[-3:, -3:] = np.nan
    figure = _pixels(cells, width, title, unit, low, high)
    top = q.max(-1) if best == "max" else q.min(-1)
    for row, column in np.ndindex(3, width):
        if (row, column) in ((0, width - 1), (2, width - 1)):
            continue
        arrows = "".join(_ARROWS[a] for a in range(4) if np.isclose(q[row, column, a], top[row, column], atol=1e-9))
        figure.add_annotation(
            x=column, y=row, text=arrows, showarrow=False, font={"size": 18 if len(arrows) < 3 else 11}
        )
    return figure


def _pixels(
    cells: np.ndarray[Any, Any], width: int, title: str, unit: str = "", low: float | None = None,
    high: float | None = None,
) -> "plotly.graph_objects.Figure":  # fmt: skip
    """Draw 9 x 3 width values, nine to a square, where NaN stays white, and the pixel world's lines and letters."""
    figure = _figure(title=title, x="column", y="row", width=max(360, 130 + 96 * width), height=390)
    figure.add_heatmap(
        z=cells,
        x=(np.arange(3 * width) - 1) / 3,
        y=(np.arange(9) - 1) / 3,
        zmin=low,
        zmax=high,
        colorscale="Cividis",
        colorbar={"title": {"text": unit}},
        showscale=bool(unit),
        texttemplate="%{z:.2f}" if width <= 8 else "",
        textfont={"size": 10},
        hovertemplate=f"{unit} %{{z:.4f}}<extra></extra>",
        hoverongaps=False,
    )
    lines = [{"x0": c - 0.5, "x1": c - 0.5, "y0": -0.5, "y1": 2.5} for c in range(width + 1)]
    lines += [{"x0": -0.5, "x1": width - 0.5, "y0": r - 0.5, "y1": r - 0.5} for r in range(4)]
    for line in lines:
        figure.add_shape(type="line", line={"color": "#444444", "width": 1}, **line)
    for row, letter, colour in ((0, "trap", VERMILION), (2, "goal", GREEN)):
        place = {"x0": width - 1.5, "x1": width - 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", fillcolor=colour, opacity=0.3, line_width=0, layer="below", **place)
        figure.add_annotation(x=width - 1, y=row, text=f"<b>{letter}</b>", showarrow=False)
    figure.update_xaxes(range=[-0.5, width - 0.5], dtick=1, showgrid=False)
    figure.update_yaxes(range=[2.5, -0.5], dtick=1, showgrid=False, scaleanchor="x", scaleratio=1)
    return figure


def curves(
    along: Num[Any, "steps"],
    lines: dict[str, Num[Any, "steps"]],
    *,
    x: str,
    y: str,
    title: str = "",
    log_y: bool = False,
) -> "plotly.graph_objects.Figure":
    """Draw named curves over one common axis; `x` and `y` are the axis titles, with their units."""
    figure = _figure(title=title, x=x, y=y)
    for n, (name, values) in enumerate(lines.items()):
        dash = ("solid", "dash", "dot", "dashdot")[n % 4]  # so that curves differ without colour too
        figure.add_scatter(x=_numbers(along), y=_numbers(values), mode="lines", name=name, line={"dash": dash})
    if log_y:
        figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return figure


def result_bars(
    names: list[str],
    values: Num[Any, "batch"],
    intervals: Num[Any, "batch 2"] | None = None,
    *,
    y: str,
    title: str = "",
    limit: float | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw one bar a name, with its interval (low, high) if given, and `limit` as a line."""
    values = _numbers(values)
    figure = _figure(title=title, x="", y=y)
    error = None
    if intervals is not None:
        low, high = _numbers(intervals).T
        error = {"type": "data", "symmetric": False, "array": high - values, "arrayminus": values - low}
    figure.add_bar(x=names, y=values, error_y=error, marker={"color": BLUE}, width=0.6)
    if limit is not None:
        figure.add_hline(y=limit, line={"color": VERMILION, "dash": "dash"}, annotation={"text": f"limit {limit:g}"})
    return figure
