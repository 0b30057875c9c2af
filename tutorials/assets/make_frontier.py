"""Draw frontier.png, the README's picture of the table of budgets: what each method spends and earns under each.

    python tutorials/assets/make_frontier.py [OUT.png]

It reads the records in results/budgets. Chromium takes the picture; name it in the environment variable CHROMIUM if it
is not found.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import mean

from make_explorer import FLAGS
from playwright.sync_api import sync_playwright
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from safediffkit.benchmark import BUDGETS, MORE_TASKS
from safediffkit.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from safediffkit.results import scores_of

ASSETS = Path(__file__).parent
METHODS = {  # name, colour and symbol
    "tcdp": ("TCDP", BLUE, "circle"),
    "trebi": ("TREBI", VERMILION, "square"),
    "cdd": ("CDD", ORANGE, "diamond"),
    "cdt": ("CDT", GREEN, "triangle-up"),
    "fisor": ("FISOR", PURPLE, "x"),
    "spi": ("SPI, safest share", SKY, "star"),
    "bc-safe": ("BC-Safe", BLACK, "triangle-down"),
    "bc": ("BC", GREY, "cross"),
}
TOP = 100  # of the axis of costs


def figure() -> Figure:
    """Draw a column for each task, costs above and rewards below; bars reach from the least to the greatest seed."""
    found = scores_of(sorted((ASSETS / "results" / "budgets").glob("*-[0-9].json")))
    titles = [task.removeprefix("Offline").removesuffix("-v0") for task in MORE_TASKS]
    drawn = make_subplots(
        2, 4, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.06, horizontal_spacing=0.05
    )
    for column, task in enumerate(MORE_TASKS, 1):
        for row, what in enumerate(("cost", "normalised_reward"), 1):
            for n, (method, (name, colour, symbol)) in enumerate(METHODS.items()):
                seeds = [[one[what]["mean"] for one in found.get((task, f"{b:g}", method), [])] for b in BUDGETS]
                middle = [mean(each) if each else None for each in seeds]
                drawn.add_scatter(
                    x=[k + (n - 3.5) * 0.1 for k in range(len(BUDGETS))],
                    y=middle,
                    error_y={
                        "symmetric": False,
                        "array": [max(each) - mean(each) if each else None for each in seeds],
                        "arrayminus": [mean(each) - min(each) if each else None for each in seeds],
                        "thickness": 1,
                        "width": 0,
                    },
                    mode="markers",
                    name=name,
                    marker={"color": colour, "symbol": symbol, "size": 11 if method == "tcdp" else 8},
                    showlegend=row == column == 1,
                    row=row,
                    col=column,
                )
        for k, budget in enumerate(BUDGETS):
            drawn.add_shape(
                type="line", x0=k - 0.45, x1=k + 0.45, y0=budget, y1=budget, line={"dash": "dash"}, row=1, col=column
            )
    drawn.update_xaxes(tickvals=list(range(len(BUDGETS))), ticktext=[f"{b}" for b in BUDGETS], range=[-0.5, 2.5])
    drawn.update_xaxes(title="budget", row=2)
    drawn.update_yaxes(range=[-4, TOP], row=1)
    drawn.update_yaxes(title="mean cost of an episode<br>(dashed: the budget)", row=1, col=1)
    drawn.update_yaxes(title="normalised reward", row=2, col=1)
    layout = {"template": "plotly_white", "width": 1200, "height": 680, "margin": {"l": 80, "r": 20, "t": 40, "b": 90}}
    drawn.update_layout(**layout, legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.1})
    return drawn


if __name__ == "__main__":
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS / "frontier.png"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        page = playwright.chromium.launch(executable_path=chromium, args=FLAGS).new_page(
            viewport={"width": 1200, "height": 680}, device_scale_factor=2
        )
        file = Path(folder) / "frontier.html"
        figure().write_html(file)
        page.goto(file.as_uri())
        page.locator(".plot-container").screenshot(path=out)
