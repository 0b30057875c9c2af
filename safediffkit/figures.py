"""Pictures: numbers in, a plotly Figure out. Nothing here shows or stores one, and plotly loads when first used.

Every function takes numpy arrays and torch tensors alike and returns an ordinary Figure, so pictures are combined
and changed with plotly's own means, as in `figure.add_traces(other.data)` or `figure.update_layout(height=300)`.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Num, Shaped

if TYPE_CHECKING:
    import plotly.graph_objects

# Okabe and Ito's palette, which stays distinct for colour-blind readers. Blue is always safe, vermilion always unsafe.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, BLACK, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#8C8C8C"
)  # fmt: skip
SAFE, UNSAFE = BLUE, VERMILION
LINES = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]
_ARROWS = "↑→↓←"
_SIDES = ((0, 1), (1, 2), (2, 1), (1, 0))  # where up, right, down and left stand in a square cut into three by three


@cache
def _template() -> Any:
    from plotly.graph_objects import layout

    axis = {"showgrid": True, "gridcolor": "#E5E5E5", "zeroline": False, "linecolor": "#666666", "ticks": "outside"}
    return layout.Template(
        layout={
            "colorway": LINES,
            "font": {"family": "sans-serif", "size": 14, "color": "#222222"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "title": {"x": 0, "xref": "paper", "font": {"size": 16}},
            "margin": {"l": 70, "r": 20, "t": 70, "b": 55},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def _figure(*, title: str, x: str, y: str, width: int = 720, height: int = 420) -> "plotly.graph_objects.Figure":
    from plotly.graph_objects import Figure

    return Figure(
        layout={
            "template": _template(),
            "title": {"text": title},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "width": width,
            "height": height,
            "margin": {"t": 70 if title else 40},
        }
    )


def _array(values: Any) -> Shaped[np.ndarray, "..."]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _numbers(values: Any) -> Num[np.ndarray, "..."]:
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
    figure.add_vline(
        x=budget, line={"color": BLACK, "dash": "dash"}, annotation={"text": f"budget {budget:g}", "xshift": 4}
    )
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
    figure = _figure(title=title, x="x (m)", y="y (m)", width=720, height=580)
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    if band is not None:
        strip = {"text": f"safe: |x| ≤ {band:g} m", "font": {"size": 12}}
        figure.add_vrect(
            x0=-band,
            x1=band,
            fillcolor="#EBF6F3",
            line_width=0,
            layer="below",
            annotation=strip,
            annotation_position="bottom left",
        )
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
    for lines, name, colour, width, mode in (
        (xy[~over], "within budget", SAFE, 1.5, "lines"),
        (xy[over], "over budget", GREY, 1.0, "lines"),
        (costly, "steps that cost", UNSAFE, 3.0, "lines+markers"),  # markers, for a single step has no length
    ):
        # one trace for all, cut by NaN: hundreds of traces would take plotly a hundred times as long
        cut = np.concatenate([lines, np.full((len(lines), 1, 2), np.nan)], 1).reshape(-1, 2)
        cut = cut if len(cut) else np.full((1, 2), np.nan)  # kept from length zero for the widget
        figure.add_scatter(
            x=cut[:, 0],
            y=cut[:, 1],
            mode=mode,
            name=name,
            line={"color": colour, "width": width},
            marker={"color": colour, "size": 4},
        )
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def pixel_map(
    width: int, walks: dict[str, Shaped[Any, "_ 2"]] | None = None, *, title: str = ""
) -> "plotly.graph_objects.Figure":
    """Draw the pixel world with any number of walks in it, each a name and the (row, column) squares stood on."""
    walks = walks or {}
    figure = _pixels(np.full((9, 3 * width), np.nan), width, [(-0.3, 0, "<b>start</b>", 14)], title)
    for n, (name, squares) in enumerate(walks.items()):
        at = _numbers(squares) + 0.14 * (n - (len(walks) - 1) / 2)  # beside one another where walks share squares
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
    action that is best by `best`: several where they tie. What is to be large ("max") is drawn in blue, what is to
    be small ("min") in vermilion. Trap and goal show their name. `low` and `high` fix the range of the colours, so
    that two maps can be compared.
    """
    q = _numbers(values)
    width = q.shape[1]
    cells = np.full((9, 3 * width), np.nan)
    for action, (down, right) in enumerate(_SIDES):
        cells[down::3, right::3] = q[..., action]
    cells[:3, -3:] = cells[-3:, -3:] = np.nan
    top = q.max(-1, keepdims=True) if best == "max" else q.min(-1, keepdims=True)
    ties = np.isclose(q, top, atol=1e-9)
    texts: list[tuple[float, int, str, int]] = []
    for row, column in np.ndindex(3, width):
        if (row, column) not in ((0, width - 1), (2, width - 1)):
            arrows = [arrow for arrow, tie in zip(_ARROWS, ties[row, column], strict=True) if tie]
            many = len(arrows) > 1
            texts.append(
                (row, column, "".join(arrows[:2]) + "<br>" * (len(arrows) > 2) + "".join(arrows[2:]), 18 - 6 * many)
            )
    return _pixels(cells, width, texts, title, unit, low, high, "#F0905A" if best == "min" else SKY)


def _pixels(
    cells: Float[np.ndarray, "9 _"],
    width: int,
    texts: list[tuple[float, int, str, int]],
    title: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    colour: str = SKY,
) -> "plotly.graph_objects.Figure":
    """Draw 9 x 3 width values, nine to a square, with texts (row, column, text, size) on squares; NaN is grass."""
    figure = _figure(title=title, x="column", y="row", width=max(360, 130 + 96 * width), height=390)
    figure.add_heatmap(
        z=np.where(np.isnan(cells), np.array(None), cells),  # a widget's table may not hold NaN, which is no valid JSON
        x=(np.arange(3 * width) - 1) / 3,
        y=(np.arange(9) - 1) / 3,
        zmin=low,
        zmax=high,
        colorscale=[(0, "white"), (1, colour)],
        colorbar={"title": {"text": unit}},
        showscale=bool(unit),
        text=[["" if np.isnan(v) else f"{v:.2f}" if abs(v) < 9.995 else f"{v:.1f}" for v in row] for row in cells],
        texttemplate="%{text}" if width <= 8 else "",
        textfont={"size": 11, "color": BLACK},
        hovertemplate=f"{unit} %{{z:.4f}}<extra></extra>",
        hoverongaps=False,
    )
    borders = [((c - 0.5, -0.5), (c - 0.5, 2.5)) for c in range(width + 1)]
    borders += [((-0.5, r - 0.5), (width - 0.5, r - 0.5)) for r in range(4)]
    x, y = np.array([(*line, (np.nan, np.nan)) for line in borders]).reshape(-1, 2).T
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": "#444444", "width": 1}, hoverinfo="skip", showlegend=False
    )
    # names stand high in their squares, so that a walk's arrowhead in the middle stays in sight
    texts = [*texts, (-0.3, width - 1, "<b>trap</b>", 14), (1.7, width - 1, "<b>goal</b>", 14)]
    figure.add_scatter(
        x=[c for _, c, _, _ in texts],
        y=[r for r, _, _, _ in texts],
        text=[text for _, _, text, _ in texts],
        mode="text",
        textfont={"size": [size for _, _, _, size in texts], "color": BLACK},
        hoverinfo="skip",
        showlegend=False,
    )
    place = {"type": "rect", "x0": width - 1.5, "x1": width - 0.5, "opacity": 0.35, "line_width": 0, "layer": "below"}
    figure.update_layout(
        shapes=[
            {**place, "y0": -0.5, "y1": 0.5, "fillcolor": VERMILION},
            {**place, "y0": 1.5, "y1": 2.5, "fillcolor": GREEN},
        ],
        plot_bgcolor="#EEF1EC",
        xaxis={"range": [-0.5, width - 0.5], "dtick": 1, "showgrid": False, "constrain": "domain"},
        yaxis={"range": [2.5, -0.5], "dtick": 1, "showgrid": False, "scaleanchor": "x", "constrain": "domain"},
    )
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
        style = {"dash": dash, "color": LINES[n % len(LINES)]}  # said here, so that panels side by side agree
        figure.add_scatter(x=_numbers(along), y=_numbers(values), mode="lines", name=name, line=style)
    if log_y:
        figure.update_yaxes(type="log", dtick=1, tickformat="~g")
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
    figure.add_bar(x=names, y=values, error_y=error, marker={"color": BLUE}, width=0.6, showlegend=False)
    if limit is not None:
        figure.add_hline(y=limit, line={"color": VERMILION, "dash": "dash"}, annotation={"text": f"limit {limit:g}"})
    return figure


def interval_dots(
    groups: list[str], series: dict[str, Num[Any, "batch 3"]], *, x: str, y: str, title: str = ""
) -> "plotly.graph_objects.Figure":
    """Draw for each group and name a dot with its interval, given as (middle, low, high); NaN leaves a gap.

    Names of one group stand side by side, told apart by colour and symbol.
    """
    figure = _figure(title=title, x=x, y=y)
    colours = (BLUE, VERMILION, ORANGE, GREEN, PURPLE, GREY)
    symbols = ("circle", "square", "diamond", "x", "star", "cross")
    for n, (name, values) in enumerate(series.items()):
        middle, low, high = _numbers(values).T
        figure.add_scatter(
            x=np.arange(len(groups)) + (n - (len(series) - 1) / 2) * 0.8 / len(series),
            y=middle,
            error_y={
                "symmetric": False,
                "array": high - middle,
                "arrayminus": middle - low,
                "thickness": 1,
                "width": 0,
            },
            mode="markers",
            name=name,
            marker={"color": colours[n % 6], "symbol": symbols[n % 6], "size": 9},
        )
    figure.update_xaxes(tickvals=list(range(len(groups))), ticktext=groups, range=[-0.5, len(groups) - 0.5])
    return figure


def score_plane(
    scores: dict[str, tuple[Num[Any, "3"], Num[Any, "3"]]],
    *,
    limit: float | None = None,
    title: str = "",
    x: str = "normalised cost",
    y: str = "normalised reward",
) -> "plotly.graph_objects.Figure":
    """Draw each name as one point in the plane of cost and reward, each given as (mean, low, high): reward, cost.

    `limit` draws the cost that is still allowed; points left of it, or on it, are blue, the others vermilion. Symbols
    tell the names apart.
    """
    figure = _figure(title=title, x=x, y=y)
    symbols = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon", "triangle-down")
    for n, (name, (reward, cost)) in enumerate(scores.items()):
        (r, r_low, r_high), (c, c_low, c_high) = _numbers(reward), _numbers(cost)
        colour = SAFE if limit is None or c <= limit else UNSAFE
        figure.add_scatter(
            x=[c],
            y=[r],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbols[n % len(symbols)], "size": 11},
            error_x={"symmetric": False, "array": [c_high - c], "arrayminus": [c - c_low], "color": GREY},
            error_y={"symmetric": False, "array": [r_high - r], "arrayminus": [r - r_low], "color": GREY},
        )
    if limit is not None:
        figure.add_vline(x=limit, line={"color": BLACK, "dash": "dash"}, annotation={"text": f"limit {limit:g}"})
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure


def beside(
    *figures: "plotly.graph_objects.Figure", width: int = 1080, height: int = 470, gap: float = 0.12
) -> "plotly.graph_objects.Figure":
    """Put figures side by side as the panels of one, with one legend below; `gap` is a share of the width."""
    from plotly.graph_objects import Figure

    joined = Figure(layout={"template": _template(), "width": width, "height": height})
    panel = (1 - gap * (len(figures) - 1)) / len(figures)
    named: set[str] = set()
    for n, figure in enumerate(figures):
        left, k = n * (panel + gap), str(n + 1) if n else ""
        for trace in figure.data:
            trace = trace.to_plotly_json() | {"xaxis": f"x{k}", "yaxis": f"y{k}"}
            if name := trace.get("name"):
                trace |= {"legendgroup": name, "showlegend": name not in named}
                named.add(name)
            joined.add_trace(trace)
        for kind in ("shapes", "annotations"):
            for part in figure.layout[kind]:
                moved = {end: _moved(part[end] or end[0], k) for end in ("xref", "yref")}
                getattr(joined, f"add_{kind[:-1]}")(part.to_plotly_json() | moved)
        across, up = (figure.layout[axis].to_plotly_json() for axis in ("xaxis", "yaxis"))
        across |= {"domain": [left, min(left + panel, 1.0)], "anchor": f"y{k}"}
        up |= {"anchor": f"x{k}"} | ({"scaleanchor": f"x{k}"} if "scaleanchor" in up else {})
        joined.update_layout({f"xaxis{k}": across, f"yaxis{k}": up})
        joined.add_annotation(
            text=figure.layout.title.text or "",
            font={"size": 15},
            x=left,
            y=1.02,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            align="left",
        )
    joined.update_layout(legend={"x": 0, "xanchor": "left", "y": -0.34, "yanchor": "top"}, margin={"r": 60, "b": 130})
    return joined


def _moved(axis: str, k: str) -> str:
    """Say which axis of the whole "x", "x domain" and the like of panel `k` is."""
    return f"{axis[0]}{k}{axis[1:]}"
