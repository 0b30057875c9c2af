"""Is everything here that the lessons need? Asked without importing any of it, and answered with plain advice."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

# The simulated robots need these two beside the extra `sim`. No extra names them: they install with `--no-deps` only.
_APART = ("bullet-safety-gym", "dsrl")
_LATER = dict.fromkeys(("pybullet", *_APART), " (needed for the simulated robots, from lesson 4 on)")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: what, whether it is as needed, and in words what was found and what to do."""

    what: str
    well: bool
    words: str


def check_installation() -> str:
    """Say what the lessons need and do not find, each with its remedy, or that all is well.

    Nothing is imported, so a broken or missing package cannot break the check.
    """
    found = list(findings())
    amiss = [f"✗ {finding.what}: {finding.words}" for finding in found if not finding.well]
    if not amiss:
        return (
            f"✓ All is well: Python {sys.version.split()[0]} and {len(found) - 1} packages, as the lessons need them."
        )
    remedy = (
        "What to do: in the folder of the project run `make setup`, which installs every package at its pinned "
        "version, and open the lessons with `make lab`. If you did so already, this notebook runs on another Python: "
        "choose the kernel “Python 3 (ipykernel)” in the menu Kernel, Change Kernel."
    )
    return "\n".join([*amiss, "", f"This notebook runs on {sys.executable}.", remedy])


def findings() -> Iterator[Finding]:
    """Look for the right Python and then for each package that the lessons ask for."""
    from packaging.requirements import Requirement

    right = sys.version_info[:2] == (3, 11)
    yield Finding("Python 3.11", right, f"this is {sys.version.split()[0]}; the simulator has no build for it")
    asked = [Requirement(line) for line in requires("safediffkit") or []]
    extras = [{"extra": name} for name in ("", "lab", "sim")]
    wanted = {r.name: r for r in asked if not r.marker or any(r.marker.evaluate(extra) for extra in extras)}
    for name, requirement in (wanted | {name: Requirement(name) for name in _APART}).items():
        purpose = _LATER.get(name, "")
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Finding(name, False, f"not installed{purpose}")
            continue
        fits = requirement.specifier.contains(here, prereleases=True)
        yield Finding(name, fits, f"version {here} is installed, {requirement.specifier} is needed{purpose}")
