"""What Python redraws while its controls change, and a world to walk with buttons: these need a running kernel."""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium
    import ipywidgets  # type: ignore[import-untyped, unused-ignore]  # it ships no types


def explore(draw: Callable[..., Any], **controls: "ipywidgets.Widget") -> "ipywidgets.VBox":
    """Show `draw(**values)` above which stand `controls`, and redraw whenever one of them changes.

    `draw` returns text (HTML), a plotly Figure, or both as a pair (Figure, text). The figure is changed in place, so
    its traces must keep their number and kinds. A notebook should hold one figure made so at the most, as each carries
    the whole of plotly (5 MB); text costs nothing. The sliders of ipywidgets have no name that a screen reader could
    read: where all settings can be computed beforehand, an Explorer serves everyone.

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
