"""Banks of pictures: every setting of a few sliders drawn beforehand, so that a browser shows each at once.

A `Frame` is what one setting shows, a `Bank` holds the frames of all settings, and a `Scene` stands behind them.
`packed` turns a bank into a small header and one piece of bytes, positions and heat rounded to what a screen shows.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

OUTCOMES = ("neutral", "safe", "violating", "chosen")
KINDS = ("danger", "goal", "safe", "start", "neutral")
Shape = dict[str, Any]
VERSION = 1
_ARRAYS = {  # the array fields of a Frame and their shapes, checked here so that a wrong one is told in plain words
    "paths": ("trajectories", "steps", 2),
    "violating": ("trajectories", "steps"),
    "heat": ("rows", "columns"),
    "arrows": ("arrows", 4),
    "values": ("values", 3),
}
_BEYOND = 2.0  # positions are kept up to this many views outside of the view


def region(x0: float, y0: float, x1: float, y1: float, kind: str = "danger", label: str = "") -> Shape:
    """Make a rectangle with the corners (x0, y0) and (x1, y1)."""
    return _shape("region", [x0, y0, x1, y1], kind, label)


def circle(x: float, y: float, radius: float, kind: str = "neutral", label: str = "") -> Shape:
    """Make a circle around (x, y)."""
    return _shape("circle", [x, y, radius], kind, label)


def line(points: Iterable[Sequence[float]], kind: str = "neutral", label: str = "") -> Shape:
    """Make a line through two points (x, y) or more."""
    flat = [number for x, y in points for number in (x, y)]
    if len(flat) < 4:
        raise ValueError(f"a line needs two points (x, y) or more; got {len(flat) // 2}")
    return _shape("line", flat, kind, label)


def arrow(x: float, y: float, dx: float, dy: float, kind: str = "neutral", label: str = "") -> Shape:
    """Make an arrow from (x, y) to (x + dx, y + dy)."""
    return _shape("arrow", [x, y, dx, dy], kind, label)


def grid(rows: int, columns: int, marks: Mapping[tuple[int, int], str] | None = None) -> Shape:
    """Make a grid of unit squares, row 0 on top, with a text on each square (row, column) named in `marks`.

    Square (row, column) has its centre at x = column + 0.5, y = rows - row - 0.5.
    """
    texts: list[list[Any]] = [[row, column, text] for (row, column), text in (marks or {}).items()]
    for row, column, text in texts:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"the mark {text!r} lies at {(row, column)}, outside of {rows} rows and {columns} columns")
    return _shape("grid", [rows, columns], "neutral", "") | {"marks": texts}


def _shape(form: str, numbers: Sequence[float], kind: str, label: str) -> Shape:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; it must be one of {', '.join(KINDS)}")
    plain = [float(number) for number in numbers]
    if not all(map(math.isfinite, plain)):
        raise ValueError(f"a {form} needs finite numbers; got {plain}")
    return {"form": form, "at": plain, "kind": kind, "label": label}


@dataclass(frozen=True)
class Scene:
    """The view, as (low, high, name with unit) of each axis, and the shapes that stand behind every setting.

    With `equal`, one unit is as long across as it is up.
    """

    x: tuple[float, float, str]
    y: tuple[float, float, str]
    shapes: Sequence[Shape] = ()
    equal: bool = True

    def __post_init__(self) -> None:
        for axis in ("x", "y"):
            low, high, _ = getattr(self, axis)
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"{axis} must run from a finite number to a larger one; got {low} to {high}")


@dataclass(frozen=True, eq=False)
class Frame:
    """What one setting shows: numpy arrays or torch tensors, and every part may be left out.

    Args:
        paths: positions (x, y); one step means points. NaN is not there: it pads shorter paths and breaks a line.
        outcomes: "neutral", "safe", "violating" or "chosen" for each path. Left out, it follows from `violating`.
        violating: the steps that violate, marked on the path.
        heat: a field that fills the view, row 0 at the bottom; NaN has no colour.
        arrows: x, y, dx, dy of each.
        values: x, y and a number to write there.
        shapes: what stands in this setting alone, as made by `region` and its like.
        numbers: a name with its unit, and the number; every setting must give the same names.
    """

    paths: Num[Any, "..."] | None = None  # trajectories, steps, 2
    outcomes: Sequence[str] | None = None
    violating: Bool[Any, "..."] | None = None  # trajectories, steps
    heat: Num[Any, "..."] | None = None  # rows, columns
    arrows: Num[Any, "..."] | None = None  # arrows, 4
    values: Num[Any, "..."] | None = None  # values, 3
    shapes: Sequence[Shape] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shape in _ARRAYS.items():
            if (given := getattr(self, name)) is None:
                continue
            array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
            *_, last = shape
            if array.ndim != len(shape) or (isinstance(last, int) and array.shape[-1] != last):
                needed = ", ".join(map(str, shape))
                way = "; give points one step, as in points[:, None]" if name == "paths" and array.ndim == 2 else ""
                raise ValueError(f"{name} must have the shape ({needed}), not {array.shape}{way}")
            object.__setattr__(self, name, array.astype(bool if name == "violating" else np.float32))
        if self.paths is None and (self.outcomes is not None or self.violating is not None):
            raise ValueError("outcomes and violating describe paths, but there are no paths: give Frame(paths=...)")
        if self.paths is not None:
            object.__setattr__(self, "outcomes", self._checked_outcomes(*self.paths.shape[:2]))
        object.__setattr__(self, "numbers", {name: float(number) for name, number in self.numbers.items()})

    def _checked_outcomes(self, trajectories: int, steps: int) -> tuple[str, ...]:
        if self.violating is not None and self.violating.shape != (trajectories, steps):
            raise ValueError(
                f"violating must have the shape {(trajectories, steps)} of paths, not {self.violating.shape}"
            )
        if self.outcomes is None:
            if self.violating is None:
                return ("neutral",) * trajectories
            return tuple("violating" if any_ else "safe" for any_ in self.violating.any(1))
        if len(self.outcomes) != trajectories:
            raise ValueError(f"outcomes must be one for each of the {trajectories} paths, not {len(self.outcomes)}")
        if unknown := set(self.outcomes) - set(OUTCOMES):
            raise ValueError(f"outcome {unknown.pop()!r} is unknown; it must be one of {', '.join(OUTCOMES)}")
        return tuple(self.outcomes)


@dataclass(frozen=True, eq=False)
class Bank:
    """The frames of all settings: those of the last axis follow one another, as in `itertools.product`."""

    axes: Mapping[str, tuple[float, ...] | tuple[str, ...]]
    frames: Sequence[Frame]
    seed: int = 0

    def __post_init__(self) -> None:
        settings = list(product(*self.axes.values()))
        if len(settings) != len(self.frames):
            raise ValueError(f"{len(settings)} settings need as many frames; got {len(self.frames)}")
        first = self.frames[0]
        for setting, frame in zip(settings, self.frames, strict=True):
            if frame.numbers.keys() != first.numbers.keys():
                given, needed = (", ".join(one.numbers) or "none" for one in (frame, first))
                raise ValueError(
                    f"every setting must give the same numbers: {setting} gives {given}; the first, {needed}"
                )
            for name, axis, what in (("paths", 0, "number of paths"), ("heat", slice(None), "shape of heat")):
                here, there = (None if (a := getattr(f, name)) is None else a.shape[axis] for f in (frame, first))
                if here != there:
                    raise ValueError(
                        f"every setting must have the same {what}: {setting} has {here}; the first, {there}"
                    )

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of settings along each axis."""
        return tuple(map(len, self.axes.values()))

    def frame(self, setting: Sequence[int]) -> Frame:
        """Give the frame of a setting, named by the place of its value along each axis."""
        return self.frames[int(np.ravel_multi_index(tuple(setting), self.shape))]

    def save(self, path: str | Path) -> None:
        """Write the bank to a file that `Bank.load` reads."""
        header = {
            "bank": VERSION,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "seed": self.seed,
            "shapes": [list(frame.shapes) for frame in self.frames],
            "numbers": [dict(frame.numbers) for frame in self.frames],
        }
        with Path(path).open("wb") as file:  # numpy would append .npz to a bare path
            np.savez_compressed(file, **{"header": np.array(json.dumps(header))}, **_stacked(self.frames))  # type: ignore[arg-type, unused-ignore]

    @staticmethod
    def load(path: str | Path) -> "Bank":
        """Read a bank that `save` wrote.

        Raises:
            ValueError: the file holds something else, or a bank of another version.
        """
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"])) if "header" in file else {}
            if header.get("bank") != VERSION:
                raise ValueError(f"{path} holds no bank of version {VERSION}; make it anew with bank(...).save(path)")
            arrays = {name: file[name] for name in file if name != "header"}
        frames = []
        for n, (shapes, numbers) in enumerate(zip(header["shapes"], header["numbers"], strict=True)):
            parts: dict[str, Any] = {name: array[n] for name, array in arrays.items()}
            if "outcomes" in parts:
                parts["outcomes"] = [OUTCOMES[code] for code in parts["outcomes"]]
            frames.append(Frame(**parts, shapes=shapes, numbers=numbers))
        return Bank({name: tuple(values) for name, values in header["axes"].items()}, frames, header["seed"])


def bank(
    draw: Callable[..., Frame], axes: Mapping[str, Iterable[Any]], seed: int = 0, *, limit: int = 8_000_000
) -> Bank:
    """Call `draw(value, ..., seed=seed)` for every setting, the combinations of one to three axes' values.

    Numbers become a slider, strings a box to choose from. `draw` gets the same seed every time: where it takes its
    noise from that alone, settings differ by their values and by nothing else. A bar shows progress if it takes long.

    Raises:
        ValueError: the axes are none that can be shown, the frames do not fit together, or the bank would be larger
            than `limit`, in bytes; that is seen as soon as the first setting is drawn.
    """
    from tqdm.auto import tqdm

    plain = {name: _plain(name, values) for name, values in axes.items()}
    if not 1 <= len(plain) <= 3:
        raise ValueError(f"a bank has one to three axes; got {len(plain)}: {', '.join(plain) or 'none'}")
    settings = list(product(*plain.values()))
    frames: list[Frame] = []
    largest = 0
    for setting in tqdm(settings, desc="settings", delay=0.5, leave=False):
        frames.append(draw(*setting, seed=seed))
        largest = max(largest, _size(frames[-1]))
        if largest * len(settings) > limit:
            raise ValueError(_too_large(largest, len(settings), frames[-1], limit))
    return Bank(plain, frames, seed)


def _plain(name: str, values: Iterable[Any]) -> tuple[float, ...] | tuple[str, ...]:
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    if not plain:
        raise ValueError(f"the axis {name!r} has no values")
    if all(isinstance(value, str) for value in plain):
        return tuple(plain)
    if all(isinstance(value, int | float) and math.isfinite(value) for value in plain):
        return tuple(plain)
    raise ValueError(f"the values of the axis {name!r} must be finite numbers, or all of them texts; got {plain}")


def _size(frame: Frame) -> int:
    """Count the bytes that `packed` makes of one setting."""
    paths, rest = 0 if frame.paths is None else frame.paths.size, 0
    for name, each in (("heat", 1), ("arrows", 4), ("values", 4)):
        rest += 0 if (array := getattr(frame, name)) is None else array.size * each
    return int(paths * 2.125) + len(frame.outcomes or ()) + rest + len(json.dumps([*frame.shapes]))


def _too_large(size: int, settings: int, frame: Frame, limit: int) -> str:
    paths = () if frame.paths is None else frame.paths.shape
    each = f" x {paths[0]} paths x {paths[1]} steps" if paths else ""
    heat = "" if frame.heat is None else f", heat of {frame.heat.shape[0]} x {frame.heat.shape[1]}"
    return (
        f"this bank would hold {size * settings / 1e6:.1f} MB ({settings} settings{each}{heat}), more than the limit "
        f"of {limit / 1e6:.1f} MB. Take fewer settings, fewer paths or fewer steps (as in paths[::2, ::3]), or coarser "
        f"heat, or raise the limit: bank(..., limit={math.ceil(size * settings / 1e6)}_000_000)"
    )


def _stacked(frames: Sequence[Frame]) -> dict[str, Shaped[np.ndarray, "settings ..."]]:
    """Stack each array of the frames, the shorter ones padded with what is not there."""
    stacked: dict[str, np.ndarray] = {}
    for name in _ARRAYS:
        arrays = [getattr(frame, name) for frame in frames]
        if all(array is None for array in arrays):
            continue
        shape = np.max([array.shape for array in arrays if array is not None], axis=0)
        kind, nothing = (bool, False) if name == "violating" else (np.float32, np.nan)
        stacked[name] = np.full((len(frames), *shape), nothing, dtype=kind)
        for n, array in enumerate(arrays):
            if array is not None:
                stacked[name][n][tuple(slice(length) for length in array.shape)] = array
    if "paths" in stacked:
        codes = [[OUTCOMES.index(outcome) for outcome in frame.outcomes or ()] for frame in frames]
        stacked["outcomes"] = np.array(codes, dtype=np.uint8)
    return stacked


def packed(scene: Scene, made: Bank) -> tuple[dict[str, Any], bytes]:
    """Turn a bank into a header that JSON can hold and one piece of bytes; each part starts at a multiple of four.

    Positions are rounded to the 65535 steps of a 16-bit integer over five times the view, heat to 255 colours.
    """
    arrays = _stacked(made.frames)
    header: dict[str, Any] = {
        "version": VERSION,
        "seed": made.seed,
        "axes": [{"name": name, "values": list(values)} for name, values in made.axes.items()],
        "scene": {"x": list(scene.x), "y": list(scene.y), "shapes": list(scene.shapes), "equal": scene.equal},
        "shapes": [list(frame.shapes) for frame in made.frames],
        "numbers": [
            {name: number if math.isfinite(number) else None for name, number in frame.numbers.items()}
            for frame in made.frames
        ],
        "trajectories": 0,
        "steps": 0,
        "outcomes": list(OUTCOMES),
    }
    parts: dict[str, np.ndarray] = {}
    if "paths" in arrays:
        _, header["trajectories"], header["steps"], _ = arrays["paths"].shape
        header["range"] = [list(_range(*scene.x[:2])), list(_range(*scene.y[:2]))]
        parts |= {"paths": _rounded(arrays["paths"], scene), "outcomes": arrays["outcomes"]}
    if "violating" in arrays:
        parts["violating"] = np.packbits(arrays["violating"], bitorder="little")
    if "heat" in arrays:
        finite = arrays["heat"][np.isfinite(arrays["heat"])]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
        levels = np.clip((arrays["heat"] - low) / (high - low), 0, 1) * 254
        parts["heat"] = np.where(np.isnan(levels), 255, np.round(levels)).astype(np.uint8)
        _, rows, columns = levels.shape
        header["heat"] = {"rows": rows, "columns": columns, "low": low, "high": high}
    parts |= {name: arrays[name].astype("<f4") for name in ("arrows", "values") if name in arrays}
    blob = bytearray()
    header["parts"] = {}
    for name, part in parts.items():
        header["parts"][name] = [len(blob), part.nbytes]
        blob += part.tobytes() + bytes(-part.nbytes % 4)
    return header, bytes(blob)


def _range(low: float, high: float) -> tuple[float, float]:
    return low - _BEYOND * (high - low), high + _BEYOND * (high - low)


def _rounded(paths: Float[np.ndarray, "settings trajectories steps 2"], scene: Scene) -> Shaped[np.ndarray, "..."]:
    low, high = np.transpose([_range(*scene.x[:2]), _range(*scene.y[:2])])
    levels = np.round(np.clip((paths - low) / (high - low), 0, 1) * 65534) - 32767
    gone = np.isnan(paths).any(-1, keepdims=True)
    return np.where(gone, -32768, np.nan_to_num(levels)).astype("<i2")
