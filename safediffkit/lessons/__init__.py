"""What the lessons share beside pictures: guesses, exercises that know the usual slips, and the pages around them.

Nothing is imported here: each name below is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safediffkit.lessons.exercise import Exercise as Exercise
    from safediffkit.lessons.exercise import Verdict as Verdict
    from safediffkit.lessons.map import lesson_map as lesson_map
    from safediffkit.lessons.notebooks import front_matter as front_matter
    from safediffkit.lessons.predict import Guesses as Guesses

_HOMES = {
    "Exercise": "safediffkit.lessons.exercise",
    "Guesses": "safediffkit.lessons.predict",
    "Verdict": "safediffkit.lessons.exercise",
    "front_matter": "safediffkit.lessons.notebooks",
    "lesson_map": "safediffkit.lessons.map",
}
__all__ = ["Exercise", "Guesses", "Verdict", "front_matter", "lesson_map"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
