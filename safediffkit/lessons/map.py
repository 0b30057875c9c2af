"""Which lesson builds on which, drawn from what the lessons say of themselves."""

from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap

from safediffkit.lessons.notebooks import FrontMatter, front_matter, lesson_paths

_WIDE, _HIGH, _ACROSS, _DOWN = 190, 74, 60, 26  # a box, and the room between boxes
_STYLE = "fill: currentColor; font-family: sans-serif; font-size: 14px"


@dataclass(frozen=True)
class Drawing:
    """A picture with its text, as HTML: a notebook shows it, `str` gives the source."""

    html: str

    def __str__(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "a drawing, shown where HTML is"

    def _repr_html_(self) -> str:
        return self.html


def lesson_map(folder: Path | str) -> Drawing:
    """Draw the lessons of `folder`, with arrows from each to those that build on it; the same stands below as a list.

    Raises:
        ValueError: a prerequisite is no lesson, or lessons wait for one another.
    """
    lessons = {lesson.name: lesson for lesson in map(front_matter, lesson_paths(folder))}
    for name, lesson in lessons.items():
        if unknown := [needed for needed in lesson.prerequisites if needed not in lessons]:
            raise ValueError(f"{name} builds on {', '.join(unknown)}; the lessons are {', '.join(lessons)}")
    at = _places(lessons)
    width = max((x for x, _ in at.values()), default=0) + _WIDE + 2
    height = max((y for _, y in at.values()), default=0) + _HIGH + 2
    parts = [_arrow(at[needed], at[name]) for name, lesson in lessons.items() for needed in lesson.prerequisites]
    parts += [_box(lesson, *at[name]) for name, lesson in lessons.items()]
    svg = (
        f'<svg role="img" aria-label="Map of the lessons; the list after it says the same" '
        f'viewBox="0 0 {width} {height}" style="width: 100%; max-width: {width}px; height: auto"><defs>'
        '<marker id="safediffkit-head" markerWidth="9" markerHeight="8" refX="9" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="currentColor"/></marker></defs>'
        f"{''.join(parts)}</svg>"
    )
    items = "".join(_item(lesson, lessons) for lesson in lessons.values())
    return Drawing(f'<div class="safediffkit-map">{svg}<ul>{items}</ul></div>')


def _places(lessons: dict[str, FrontMatter]) -> dict[str, tuple[int, int]]:
    """Put each lesson one column after the last that it needs, and below those already there."""

    @cache
    def column(name: str, behind: frozenset[str] = frozenset()) -> int:
        if name in behind:
            raise ValueError(f"these lessons wait for one another: {', '.join(sorted(behind))}")
        return max((column(needed, behind | {name}) + 1 for needed in lessons[name].prerequisites), default=0)

    at: dict[str, tuple[int, int]] = {}
    for name in lessons:
        x = 1 + column(name) * (_WIDE + _ACROSS)
        above = sum(x == taken for taken, _ in at.values())
        at[name] = (x, 1 + above * (_HIGH + _DOWN))
    return at


def _box(lesson: FrontMatter, x: int, y: int) -> str:
    lines = wrap(f"{lesson.number} · {lesson.title}", 24)[:2]
    texts = [
        f'<text x="{x + 12}" y="{y + 24 + 18 * k}" style="{_STYLE}">{escape(t)}</text>' for k, t in enumerate(lines)
    ]
    minutes = (
        f'<text x="{x + 12}" y="{y + _HIGH - 10}" style="{_STYLE}; font-size: 12px">{lesson.minutes} minutes</text>'
    )
    shape = (
        f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="6" fill="none" stroke="#0072B2" stroke-width="2"/>'
    )
    return shape + "".join(texts) + minutes


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x, y), (to_x, to_y) = (start[0] + _WIDE, start[1] + _HIGH // 2), (end[0] - 2, end[1] + _HIGH // 2)
    curve = f"M{x},{y} C{x + _ACROSS // 2},{y} {to_x - _ACROSS // 2},{to_y} {to_x},{to_y}"
    return (
        f'<path d="{curve}" fill="none" stroke="currentColor" stroke-width="1.5" marker-end="url(#safediffkit-head)"/>'
    )


def _item(lesson: FrontMatter, lessons: dict[str, FrontMatter]) -> str:
    numbers = [str(lessons[needed].number) for needed in lesson.prerequisites]
    after = f", after lesson{'s' * (len(numbers) > 1)} {' and '.join(numbers)}" if numbers else ""
    link = f'<a href="{escape(lesson.path.name)}">{lesson.number} · {escape(lesson.title)}</a>'
    return f"<li>{link}: {lesson.minutes} minutes{after}</li>"
