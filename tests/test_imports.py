"""The import order of the rooms, and how little `import safediffkit` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import safediffkit

PACKAGE = Path(safediffkit.__file__).parent
# Each line may import the lines above it, and nothing beside it.
ORDER = (
    {"data", "diffusion"},
    {"learning"},
    {"safety", "policy"},
    {"worlds"},
    {
        "methods",
        "baselines",
        "data.teams",
        "results",
    },  # these teams drive a simulator through worlds; results reads records
    {"benchmark", "train", "data.collect"},  # train and collect are commands
    {"selection"},  # and so is this one, which writes records as train does
)
SEES = {room: set().union(*ORDER[:line]) for line, rooms in enumerate(ORDER) for room in rooms}
SEES |= {"figures": {"data"}, "widgets": {"figures"}, "lessons": {"figures", "widgets"}}
# they let a policy act or judge it, so they must know what one is
BESIDE = {"safety.evaluation": {"policy"}, "safety.imagination": {"policy"}}
LAZY = {name: home.removeprefix("safediffkit.") for name, home in safediffkit._HOMES.items()}
HEAVY = {"torch", "plotly", "pybullet", "h5py", "gymnasium", "scipy"}


def room(module):
    """Name the room that a module, given without the leading package, stands in."""
    apart = [name for name in SEES if "." in name and f"{module}.".startswith(f"{name}.")]
    return apart[0] if apart else module.partition(".")[0]


def imported(source):
    """List what a file of the package takes from it, wherever in the file it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"safediffkit.{'.' * node.level}"]
        elif isinstance(node, ast.ImportFrom) and node.module == "safediffkit":
            names = [f"safediffkit.{LAZY.get(alias.name, alias.name)}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # a name taken from a package may be one of its modules
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("safediffkit.") for name in names if name.startswith("safediffkit."))


def crossings(module, source):
    """List the imports of `module` that go against the order."""
    allowed = {room(module)} | SEES[room(module)] | BESIDE.get(module, set())
    return [taken for taken in imported(source) if room(taken) not in allowed]


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # its lazy names come from everywhere
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    assert room(module) in SEES, f"{module} stands in no room of the import order"
    assert crossings(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("diffusion.denoise", "def f():\n    from safediffkit.safety import critics", ["safety.critics"]),
        ("diffusion.denoise", "from safediffkit.data.dataset import Dataset", ["data.dataset.Dataset"]),
        ("data.dataset", "from safediffkit.data.collect import main", ["data.collect.main"]),
        ("data.dataset", "from safediffkit.data import collect", ["data.collect"]),
        ("policy", "from safediffkit import rollout", ["worlds.rollout"]),
        ("policy", "if True:\n    import safediffkit.methods.spi", ["methods.spi"]),
        ("methods.spi", "from . import tcdp", ["."]),
        ("figures", "from safediffkit.worlds.bullet import make", ["worlds.bullet.make"]),
        ("methods.spi", "from safediffkit.worlds.rollout import score\nimport torch", []),
        ("data.collect", "from safediffkit.worlds.rollout import rollout", []),
    ],
)
def test_a_wrong_import_is_seen(module, source, wrong):
    assert crossings(module, source) == wrong


def fresh(code):
    """Run code in a new interpreter, and give what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded(module):
    """Name every top-level package that importing `module` in a new interpreter loads."""
    return set(fresh(f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})").split())


def test_the_package_imports_nothing_heavy():
    assert not HEAVY & loaded("safediffkit")


@pytest.mark.parametrize("module", ["safediffkit.data.reshape", "safediffkit.worlds.pixel_world"])
def test_the_first_lesson_needs_no_torch(module):
    assert "torch" not in loaded(module)


def test_import_takes_at_most_twice_as_long_as_numpy():
    timed = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    # in turn, and the least of each: other work on the machine only ever adds
    pairs = [[float(fresh(timed.format(name))) for name in ("safediffkit", "numpy")] for _ in range(5)]
    ours, numpys = map(min, zip(*pairs, strict=True))
    assert ours <= 2 * numpys


@pytest.mark.parametrize("name", safediffkit.__all__)
def test_lazy_names_resolve(name):
    assert name in dir(safediffkit)
    value = getattr(safediffkit, name)
    if name in safediffkit._HOMES:
        assert value.__module__ == safediffkit._HOMES[name]


def test_type_checkers_see_the_lazy_names():
    nodes = ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("safediffkit")]
    assert {alias.asname: node.module for node in froms for alias in node.names} == safediffkit._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"no attribute 'roll_out'.*rollout"):
        _ = safediffkit.roll_out
