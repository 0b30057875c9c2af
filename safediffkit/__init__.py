"""Safe offline reinforcement learning with diffusion models: the library behind the lessons.

Nothing heavy is imported here: each name below is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safediffkit.data.sources import load as load
    from safediffkit.policy import load_policy as load_policy
    from safediffkit.policy import save_policy as save_policy
    from safediffkit.worlds.rollout import rollout as rollout
    from safediffkit.worlds.rollout import score as score

__version__ = "0.1.0"
_HOMES = {
    "load": "safediffkit.data.sources",
    "load_policy": "safediffkit.policy",
    "rollout": "safediffkit.worlds.rollout",
    "save_policy": "safediffkit.policy",
    "score": "safediffkit.worlds.rollout",
}
__all__ = ["__version__", "load", "load_policy", "rollout", "save_policy", "score"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
