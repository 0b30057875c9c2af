"""Explorer: a bank of pictures with sliders, drawn in the browser by explorer.js; a move needs no kernel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Num

try:
    import anywidget
    import traitlets  # type: ignore[import-untyped, unused-ignore]  # it ships no types
except ImportError as error:
    raise ImportError("an Explorer needs anywidget: pip install 'safediffkit[lab]'") from error

from safediffkit.widgets.banks import KINDS, OUTCOMES, VERSION, Bank, Scene, packed

_HERE = Path(__file__).parent
_KEYS = ("version", "seed", "setting", "step", "pinned", "single")


class Explorer(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]  # as untyped as ipywidgets
    """Show a bank over its scene: a control for each axis, a scrubber over the steps, and numbers as text.

    Args:
        scene: the view, and what stands behind every setting.
        made: the settings, as `bank` made them.
        title: says what is seen; it is also the name by which a screen reader announces the picture.
        steps: names the scrubber over the paths' steps, with the unit; None shows whole paths without a scrubber.
        times: the number shown for each step; 0, 1, 2, ... if left out.
        trail: how much of a path is drawn at a step: the "past", "none" (points alone), or "all".
        play: the axis that the play button moves; the scrubber if left out.
        curve: the number to draw as a curve over the axis last moved.
        heat: names the heat, with its unit.
        words: what this picture calls an outcome or a kind of shape: {"safe": "within budget"}.
        groups: kinds of paths told apart by their markers; path i belongs to group i modulo their number.
        state: where to begin, any part of what the attribute `state` holds.

    The attribute `state` holds the setting as places along the axes, the step, the setting pinned beside it, and the
    path singled out (the latter two may be None), and the version and seed they refer to. It follows every move in the
    browser, and the browser follows it. To change a part, assign that part: `explorer.state = {"setting": [2, 0]}`.

    Raises:
        ValueError: an option names something that the bank does not have.
        traitlets.TraitError: the state does not fit the bank; then the old one stays.
    """

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"
    header = traitlets.Dict().tag(sync=True)
    bank = traitlets.Bytes().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        scene: Scene,
        made: Bank,
        *,
        title: str,
        steps: str | None = "step",
        times: Num[Any, "steps"] | Sequence[float] | None = None,
        trail: Literal["past", "none", "all"] = "past",
        play: str | None = None,
        curve: str | None = None,
        heat: str = "",
        words: Mapping[str, str] | None = None,
        groups: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        header, blob = packed(scene, made)
        count = header["steps"]
        header |= {
            "title": title,
            "scrubber": steps if count > 1 else None,
            "times": list(range(count)) if times is None else [float(time) for time in np.asarray(times)],
            "trail": trail,
            "play": play,
            "curve": curve,
            "heatName": heat,
            "words": dict(words or {}),
            "groups": list(groups),
        }
        if count and len(header["times"]) != count:
            raise ValueError(f"times must be one number for each of the {count} steps; got {len(header['times'])}")
        if play is not None and play not in made.axes:
            raise ValueError(f"play names {play!r}, which is no axis of the bank; it has {', '.join(made.axes)}")
        if curve is not None and curve not in (names := made.frames[0].numbers):
            raise ValueError(f"curve names {curve!r}, but the frames' numbers are {', '.join(names) or 'none'}")
        if unknown := set(header["words"]) - {*OUTCOMES, *KINDS, "violating part"}:
            known = ", ".join(dict.fromkeys((*OUTCOMES, "violating part", *KINDS)))
            raise ValueError(f"words has {unknown.pop()!r}, which is neither an outcome nor a kind of shape: {known}")
        self._made = made
        super().__init__(header=header, bank=blob, state=checked(state or {}, header))

    @traitlets.validate("state")  # type: ignore[untyped-decorator, unused-ignore]
    def _validated(self, proposal: Any) -> dict[str, Any]:
        return checked(proposal["value"], self.header, dict(self.state))

    @property
    def setting(self) -> dict[str, float | str]:
        """The value of each axis at present."""
        axes = self._made.axes.items()
        return {name: values[at] for (name, values), at in zip(axes, self.state["setting"], strict=True)}

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the present setting."""
        return dict(self._made.frame(self.state["setting"]).numbers)

    def save_html(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one file that shows this Explorer in any browser, without a kernel and without a network.

        The address of the opened page ends in the present state, so that a bookmark or a link returns to it.

        Raises:
            FileExistsError: there is such a file already, and `overwrite` is not set.
        """
        from safediffkit.widgets.page import page

        path = Path(path)
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(page(self.header["title"], {"explorer": (self.get_state(), [])}))
        return path


def checked(
    state: Mapping[str, Any], header: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Complete a state by the one before it, or else by the first, and refuse what does not fit the header's bank.

    Raises:
        traitlets.TraitError: it does not fit; the message says what would.
    """
    axes = header["axes"]
    first = {
        "version": VERSION,
        "seed": header["seed"],
        "setting": [0] * len(axes),
        "step": max(header["steps"] - 1, 0),
        "pinned": None,
        "single": None,
    }
    if unknown := set(state) - set(_KEYS):
        raise traitlets.TraitError(f"state has no {unknown.pop()!r}; it has {', '.join(_KEYS)}")
    whole = {**first, **(before or {}), **state}
    if whole["version"] != VERSION:
        raise traitlets.TraitError(f"state is of version {whole['version']}, and this Explorer reads version {VERSION}")
    if whole["seed"] != header["seed"]:
        raise traitlets.TraitError(
            f"state belongs to a bank with the seed {whole['seed']}, this one has the seed {header['seed']}: "
            f"make it with bank(..., seed={whole['seed']})"
        )
    for name in ("setting", "pinned"):
        if name == "pinned" and whole[name] is None:
            continue
        places = whole[name]
        if not isinstance(places, list | tuple) or len(places) != len(axes):
            raise traitlets.TraitError(f"{name} must be {len(axes)} places, one for each axis; got {places!r}")
        whole[name] = [
            _place(place, len(axis["values"]), f"{name} along {axis['name']!r}")
            for place, axis in zip(places, axes, strict=True)
        ]
    whole["step"] = _place(whole["step"], max(header["steps"], 1), "step")
    if whole["single"] is not None:
        whole["single"] = _place(whole["single"], header["trajectories"], "single")
    return whole


def _place(place: Any, length: int, name: str) -> int:
    if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= place < length:
        raise traitlets.TraitError(f"{name} must be a whole number from 0 to {length - 1}; got {place!r}")
    return int(place)
