"""Rewrite requirements.lock: what pip's own resolver picks for pyproject.toml, one exact pin a line.

Present pins are kept where they still fit; `make lock UPGRADE=1` lets everything move to its newest allowed version.
Only the standard library is needed, and pip: this runs before anything of the lock is installed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
BINDER = ROOT / "binder" / "requirements.txt"
HEADER = """\
# Every package of the lessons, the simulators and the checks, pinned; install with `pip install --no-deps -r`.
# Made by `make lock` from pyproject.toml (`make lock UPGRADE=1` for newer versions): do not edit by hand.
# On Linux `make setup` takes the CPU build of torch, which satisfies its pin.
"""
BINDER_HEADER = """\
# The pins of requirements.lock, for Binder, installed before postBuild. Made by `make lock`: do not edit by hand.
--extra-index-url https://download.pytorch.org/whl/cpu
"""
CPU_BUILDS = "https://download.pytorch.org/whl/cpu/torch/"
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"}


def canonical(name: str) -> str:
    """Spell a package's name the one normal way."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(requirements: list[str], constraints: list[str], *options: str) -> list[dict]:
    """Ask pip what it would install, as the metadata of each package."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, limits, report = (Path(folder, name) for name in ("wanted.txt", "constraints.txt", "report.json"))
        wanted.write_text("\n".join(requirements))
        limits.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", *options]
        command += ["-r", str(wanted), "-c", str(limits), "--report", str(report)]
        # Some packages ask for a late 3.11 and Debian 12 has 3.11.2: the pins are to serve every 3.11.
        command += ["--python-version", "3.11.0", "--only-binary", ":all:", "--target", folder]
        subprocess.run(command, check=True)
        return [found["metadata"] for found in json.loads(report.read_text())["install"]]


def kept(direct: list[Requirement]) -> list[str]:
    """List the present pins, less those that pyproject.toml no longer allows."""
    if not LOCK.exists() or os.environ.get("UPGRADE"):
        return []
    allowed = {canonical(r.name): r.specifier for r in direct}
    pins = [Requirement(line) for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    return [f"{name}=={v}" for name, v in versions.items() if name not in allowed or allowed[name].contains(v)]


def for_binder(lines: list[str], pinned_apart: list[str]) -> str:
    """Write the pins as Binder needs them: Linux alone, torch's CPU build, and without what postBuild installs."""
    here = [line for line in lines if "darwin" not in line and line not in pinned_apart]
    return BINDER_HEADER + "".join(f"{line}+cpu\n" if line.startswith("torch==") else f"{line}\n" for line in here)


def main() -> None:
    """Resolve, add what only macOS needs, append what no resolver accepts, and write the file in one go."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    wanted += [r for extra in project["project"]["optional-dependencies"].values() for r in extra]
    pinned_apart = project["dependency-groups"]["no-deps"]
    constraints = kept([Requirement(r) for r in wanted])
    options = []
    # The CPU build, or the CUDA packages of the plain one would be pinned too.
    if sys.platform == "linux":
        wanted = [f"{r}+cpu" if Requirement(r).name == "torch" else r for r in wanted]
        constraints = [c for c in constraints if Requirement(c).name != "torch"]
        try:
            resolve([r for r in wanted if Requirement(r).name == "torch"], [], "--no-deps")
        except subprocess.CalledProcessError:
            print(f"No CPU build of torch at hand: looking at {CPU_BUILDS}", file=sys.stderr)
            options = ["--find-links", CPU_BUILDS]
    found = resolve(wanted, constraints, *options)

    pins = {canonical(m["name"]): m["version"].split("+")[0] for m in found}
    lines = {name: f"{name}=={version}" for name, version in pins.items()}
    # pip resolves for the machine it runs on; whoever runs this, the lock serves Linux and macOS.
    environment = {**default_environment(), **MACOS, "extra": ""}
    needs = [Requirement(r) for m in found for r in m.get("requires_dist", [])]
    macos = [r for r in needs if canonical(r.name) not in pins and r.marker and r.marker.evaluate(environment)]
    if macos:
        for m in resolve([f"{r.name}{r.specifier}" for r in macos], constraints, "--no-deps"):
            name = canonical(m["name"])
            lines[name] = f'{name}=={m["version"]} ; sys_platform == "darwin"'
    lines |= {canonical(Requirement(r).name): r for r in pinned_apart}
    lines.pop("pip", None)

    partial = LOCK.with_suffix(".partial")
    ordered = [lines[name] for name in sorted(lines)]
    partial.write_text(HEADER + "\n".join(ordered) + "\n")
    partial.replace(LOCK)
    BINDER.write_text(for_binder(ordered, pinned_apart))
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError:
        sys.exit("pip could not resolve pyproject.toml; requirements.lock is unchanged")
