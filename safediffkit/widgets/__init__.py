"""Things to move: pictures that answer at once, pictures redrawn by Python, and a world to walk with buttons.

Nothing heavy is imported here: each name below is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safediffkit.widgets.banks import Bank as Bank
    from safediffkit.widgets.banks import Frame as Frame
    from safediffkit.widgets.banks import Scene as Scene
    from safediffkit.widgets.banks import arrow as arrow
    from safediffkit.widgets.banks import bank as bank
    from safediffkit.widgets.banks import circle as circle
    from safediffkit.widgets.banks import grid as grid
    from safediffkit.widgets.banks import line as line
    from safediffkit.widgets.banks import region as region
    from safediffkit.widgets.explorer import Explorer as Explorer
    from safediffkit.widgets.live import explore as explore
    from safediffkit.widgets.live import walker as walker

_ROOMS = {
    "banks": ("Bank", "Frame", "Scene", "arrow", "bank", "circle", "grid", "line", "region"),
    "explorer": ("Explorer",),
    "live": ("explore", "walker"),
}
_HOMES = {name: f"safediffkit.widgets.{room}" for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
