"""pyproject.toml, requirements.lock and what is installed agree; `make setup` finds its way, or says what it lacks."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINUX = {"sys_platform": "linux", "platform_system": "Linux"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin"}
# What the two packages of the group `no-deps` ask for, and run without.
WAIVED = {
    ("dsrl", "gym"),
    ("dsrl", "safety-gymnasium"),
    ("bullet-safety-gym", "gymnasium"),
}


def pins(platform):
    """Read the lock as one platform does: name -> version."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [r for r in wanted if not r.marker or r.marker.evaluate(platform)]
    return {r.name: str(r.specifier).removeprefix("==") for r in here}


LOCK = pins(default_environment())


def declared():
    """List every requirement of pyproject.toml, as (who asks, for what)."""
    project = PROJECT["project"]
    groups = {"dependencies": project["dependencies"], "build": PROJECT["build-system"]["requires"]}
    groups |= project["optional-dependencies"] | PROJECT["dependency-groups"]
    return [(group, Requirement(line)) for group, lines in groups.items() for line in lines]


def taken():
    """Name every package that a file of the library imports, wherever in the file it does."""
    sources = [path.read_text() for path in (ROOT / "safediffkit").rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    homes = packages_distributions()
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"safediffkit"}
    return {canonicalize_name(homes[top][0]) for top in tops}


def test_the_core_dependencies_are_those_the_library_imports():
    asked = {group: set() for group, _ in declared()}
    for group, wanted in declared():
        asked[group].add(canonicalize_name(wanted.name))
    assert asked["dependencies"] <= taken()
    assert taken() <= asked["dependencies"].union(
        *(asked[group] for group in ("sim", "teams", "no-deps", "lab", "site"))
    )


def needs(platform):
    """Walk from pyproject.toml through the installed packages: every (who asks, for what) on one platform."""
    todo, asked, seen = declared(), [], set()
    while todo:
        who, wanted = todo.pop()
        asked.append((who, wanted))
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen or name not in LOCK:
                continue
            seen.add((name, extra))
            theirs = map(Requirement, distribution(name).requires or [])
            environment = {**default_environment(), **platform, "extra": extra}
            todo += [(name, r) for r in theirs if not r.marker or r.marker.evaluate(environment)]
    return asked


@pytest.mark.parametrize("platform", [LINUX, MACOS], ids=["linux", "macos"])
def test_the_lock_holds_all_that_is_needed_and_no_more(platform):
    lock = pins({**default_environment(), **platform})
    asked = [(who, canonicalize_name(r.name), r.specifier) for who, r in needs(platform)]
    unmet = {(who, name) for who, name, allowed in asked if name not in lock or not allowed.contains(lock[name])}
    assert unmet == WAIVED
    assert lock.keys() == {name for who, name, _ in asked if (who, name) not in WAIVED}


def test_the_lock_is_sorted_exact_and_without_pip():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "pip" not in names
    assert [x for x in lines if not re.fullmatch(r'[a-z0-9-]+==[0-9][\w.]*( ; sys_platform == "darwin")?', x)] == []


@pytest.mark.parametrize("name", LOCK)
def test_what_is_installed_is_what_is_locked(name):
    # the CPU build of torch carries a local label
    assert distribution(name).version.partition("+")[0] == LOCK[name]


@pytest.mark.parametrize("name", LOCK)
def test_every_pin_serves_every_python_3_11(name):
    # Debian 12 has 3.11.2
    assert "3.11.0" in SpecifierSet(distribution(name).metadata["Requires-Python"] or "")


def test_the_citation_names_the_four_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert [paper["notes"].split()[0].strip('"') for paper in citation["references"]] == ["SPI", "TCDP", "DOM2", "CBF"]
    assert all(paper["authors"] and paper["title"] and paper["year"] for paper in citation["references"])


@pytest.fixture
def clone(tmp_path):
    """Copy what `make setup` reads, beside a PATH that holds make's helpers and no Python at all."""
    (tmp_path / "bin").mkdir()
    for tool in ("make", "sh", "sed", "uname", "id", "rm", "touch", "mkdir", "chmod", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def setup(clone, *arguments):
    environment = {"PATH": str(clone / "bin"), "HOME": str(clone), "PYENV_ROOT": str(clone)}
    make = ["make", "-C", str(clone), "setup", *arguments]
    return subprocess.run(make, env=environment, capture_output=True, text=True, timeout=60)


def fake_python(clone, pip):
    """Put a python3.11 on the PATH whose venv holds a python that notes what pip is asked for, and answers `pip`."""
    inner = f'case "$*" in *" install "*) echo "$*" >> {clone}/asked; {pip};; esac'
    outer = f"""case "$*" in *venv\\ --clear*) mkdir -p .venv/bin
cat > .venv/bin/python <<'END'
#!/bin/sh
{inner}
END
chmod +x .venv/bin/python;; esac"""
    (clone / "bin" / "python3.11").write_text(f"#!/bin/sh\n{outer}\n")
    (clone / "bin" / "python3.11").chmod(0o755)


def test_setup_without_python_says_how_to_get_one(clone):
    done = setup(clone)
    assert done.returncode != 0
    assert "needs Python 3.11" in done.stderr
    assert "pyenv install 3.11" in done.stderr
    assert not (clone / ".venv").exists()


def test_setup_with_a_wrong_python_names_it(clone):
    (clone / "bin" / "python3").symlink_to(shutil.which("false"))
    done = setup(clone, "PYTHON=python3")
    assert done.returncode != 0
    assert "python3 is not one" in done.stderr


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="macOS takes the plain torch")
def test_setup_asks_for_the_cpu_torch_first_and_once_only(clone):
    fake_python(clone, "exit 0")
    done = setup(clone)
    assert done.returncode == 0, done.stderr
    torch, lock, project = (clone / "asked").read_text().splitlines()
    assert torch.endswith(f"--no-deps torch=={LOCK['torch']}+cpu")
    assert lock.endswith("--no-deps -r requirements.lock")
    assert project.endswith("--no-deps --no-build-isolation -e .")
    assert "Nothing to be done" in setup(clone).stdout
    os.utime(clone / "requirements.lock", (4e9, 4e9))
    assert setup(clone).returncode == 0
    assert len((clone / "asked").read_text().splitlines()) == 6


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="macOS takes the plain torch")
def test_setup_turns_to_the_cpu_index_when_nothing_is_at_hand(clone):
    fake_python(clone, 'case "$*" in *index-url*|*requirements.lock*|*-e*) ;; *) exit 1;; esac')
    done = setup(clone)
    assert done.returncode == 0, done.stderr
    asked = (clone / "asked").read_text().splitlines()
    assert "--index-url https://download.pytorch.org/whl/cpu torch==" in asked[1]
    assert len(asked) == 4


def test_a_setup_that_fails_is_not_taken_for_done(clone):
    fake_python(clone, "exit 0")
    assert setup(clone).returncode == 0
    os.utime(clone / "requirements.lock", (4e9, 4e9))
    fake_python(clone, 'case "$*" in *"-e ."*) echo no space left >&2; exit 1;; esac')
    shutil.rmtree(clone / ".venv" / "bin")
    done = setup(clone)
    assert done.returncode != 0
    assert "no space left" in done.stderr
    assert not (clone / ".venv" / ".installed").exists()
