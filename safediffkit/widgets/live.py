"""What Python redraws while its controls change, and a world to walk with buttons: these need a running kernel."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium
    import ipywidgets  # type: ignore[import-untyped, unused-ignore]  # it ships no types


def explore(draw: Callable[..., Any], **controls: "ipywidgets.Widget") -> "ipywidgets.VBox":
    """Show `draw(**values)` above which stand `controls`, and redraw whenever one of them changes.

    `draw` returns text (HTML), a plotly Figure, or both as a pair (Figure, text). The figure is changed in place, so
    its traces must keep their number and kinds. A notebook should hold one figure made so at the most, as each carries
    the whole of plotly (5 MB); text costs nothing.

    Raises:
        ValueError: `draw` changed the number of traces.
    """
    import ipywidgets
    from plotly.graph_objects import FigureWidget

    def parts() -> tuple[Any, str]:
        made = draw(**{name: control.value for name, control in controls.items()})
        return made if isinstance(made, tuple) else (None, made) if isinstance(made, str) else (made, "")

    def redraw(_: Any) -> None:
        fresh, text.value = parts()
        if shown is None:
            return
        if len(fresh.data) != len(shown.data):
            raise ValueError(f"draw made {len(fresh.data)} traces where it made {len(shown.data)} before")
        with shown.batch_update():
            for old, new in zip(shown.data, fresh.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
            shown.layout = fresh.layout

    for name, control in controls.items():
        if not control.description:
            control.description = name
        control.observe(redraw, names="value")
    figure, words = parts()
    text = ipywidgets.HTML(words)
    shown = None if figure is None else FigureWidget(figure)
    return ipywidgets.VBox([*controls.values(), text] + ([] if shown is None else [shown]))


def walker(
    world: "gymnasium.Env[Any, Any]", moves: str = "↑→↓←", names: str = "up right down left"
) -> "ipywidgets.VBox":
    """Walk through a world with one button an action; the world must be made with `render_mode="ansi"`.

    Under the buttons stand the world as text and what the walk has brought so far.

    Raises:
        ValueError: the world does not draw itself as text.
    """
    import ipywidgets

    if world.render_mode != "ansi":
        raise ValueError(f'the walker needs a world made with render_mode="ansi", not {world.render_mode!r}')
    buttons = [ipywidgets.Button(description=f"{m} {n}") for m, n in zip(moves, names.split(), strict=True)]
    again = ipywidgets.Button(description="start again")
    text = ipywidgets.HTML()
    tally = {"moves": 0, "reward": 0.0, "cost": 0.0}

    def show(ended: str) -> None:
        for button in buttons:
            button.disabled = bool(ended)
        sums = ", ".join(f"{name} {value:g}" for name, value in tally.items())
        drawn = escape(str(world.render()))
        text.value = f"<pre style='font-size: 20px; line-height: 1.4'>{drawn}</pre><p>{sums}{ended}</p>"

    def restart(_: Any) -> None:
        world.reset()
        tally.update(moves=0, reward=0.0, cost=0.0)
        show("")

    def move(action: int) -> None:
        _, reward, terminated, truncated, info = world.step(action)
        tally["moves"] += 1
        tally["reward"] += float(reward)
        tally["cost"] += info["cost"]
        show(": the episode is over" if terminated else ": the time is up" if truncated else "")

    for action, button in enumerate(buttons):
        button.on_click(lambda _, action=action: move(action))
    again.on_click(restart)
    restart(None)
    return ipywidgets.VBox([ipywidgets.HBox([*buttons, again]), text])


def simplex_buttons(
    value: tuple[int, int, int] = (1, 1, 1), corners: tuple[str, str, str] = ("imitate", "reward", "safety")
) -> "ipywidgets.VBox":
    """Choose three weights that sum to one: a triangle of buttons, one for each way to deal out the parts of `value`.

    The result has a `value`, the parts of the three weights, for `explore` to follow. The nearer a button to a corner,
    the larger that corner's weight: the first is at the top, then left, then right.

    Raises:
        ValueError: a part is negative, or there is none to deal out.
    """
    import ipywidgets
    import traitlets  # type: ignore[import-untyped, unused-ignore]  # it comes with ipywidgets

    parts = sum(value)
    if len(value) != 3 or min(value) < 0 or not parts:
        raise ValueError(f"value must hold three parts of at least 0, at least one of them positive; got {value}")
    buttons: dict[tuple[int, int, int], Any] = {}
    rows = []
    for top in range(parts, -1, -1):
        row = [(top, left, parts - top - left) for left in range(parts - top, -1, -1)]
        for point in row:
            shares = [str(Fraction(part, parts)) for part in point]
            words = ", ".join(f"{corner} {share}" for corner, share in zip(corners, shares, strict=True))
            buttons[point] = ipywidgets.Button(description=" · ".join(shares), tooltip=words, layout={"width": "125px"})
        rows.append(ipywidgets.HBox([buttons[point] for point in row]))
    first, *ends = (f"all <b>{corner}</b>" for corner in corners)
    order = " · ".join(corners)
    below = ipywidgets.HBox([ipywidgets.HTML(end) for end in ends], layout={"justify_content": "space-between"})
    below.layout.width = f"{129 * (parts + 1)}px"
    box = ipywidgets.VBox(
        [ipywidgets.HTML(f"{first} &nbsp; <small>(each button: {order})</small>"), *rows, below],
        layout={"align_items": "center", "width": f"{135 * (parts + 1)}px"},
    )
    box.add_traits(value=traitlets.Tuple(), description=traitlets.Unicode("weights"))

    def mark(_: Any) -> None:
        for point, button in buttons.items():
            button.button_style, button.icon = ("primary", "check") if point == box.value else ("", "")

    box.observe(mark, names="value")
    for point, button in buttons.items():
        button.on_click(lambda _, point=point: box.set_trait("value", point))
    box.value = tuple(value)
    return box


def ledger(rows: dict[str, Iterable[float]], sums: Iterable[str] = (), first: str = "move") -> str:
    """Write rows of numbers as an HTML table with one column a move, and the sum of each row named in `sums`."""
    numbers = {name: [float(value) for value in values] for name, values in rows.items()}
    moves = range(1, 1 + max(len(values) for values in numbers.values()))
    lines = [_line(first, [str(k) for k in moves], "<b>sum</b>")]
    for name, values in numbers.items():
        total = f"<b>{sum(values):.4f}</b>" if name in set(sums) else ""
        lines.append(_line(name, [f"{value:.4g}" for value in values], total))
    return f"<table style='border-spacing: 10px 2px; text-align: right'>{''.join(lines)}</table>"


def _line(name: str, entries: list[str], total: str) -> str:
    cells = "".join(f"<td>{entry}</td>" for entry in [*entries, total])
    return f"<tr><th scope='row' style='text-align: left'>{name}</th>{cells}</tr>"
