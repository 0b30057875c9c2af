"""JupyterLab on loopback and Debian's Chromium through Playwright, as fixtures."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ui.lab import Lab, Watched
from ui.server import jupyterlab
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server", "--disable-dev-shm-usage"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ui)
    # the longest file first: last, it would keep one process idle
    items.sort(key=lambda item: item.path.stem != "test_site")


class ByLesson(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
    """What shares an open lesson, or a file's other fixtures, stays in one process."""

    def _split_scope(self, nodeid: str) -> str:
        lesson = re.search(r"\[(\d\d_\w+)", nodeid)
        return lesson[1] if lesson else nodeid.partition("::")[0]


# --dist loadgroup, made for this, does nothing under pytest 9.2: it renames tests by an attribute that is no more.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByLesson | None:
    return ByLesson(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture
def latencies(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Rows of the table that the end of the run prints; they travel with the test's report."""
    rows: list[tuple[str, ...]] = []
    request.node.user_properties.append(("latencies", rows))
    return rows


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    told = [
        value for one in reports for name, value in one.user_properties if name == "latencies" and one.when == "call"
    ]
    if rows := [tuple(row) for table in told for row in table]:
        terminalreporter.section("how fast the widgets answer (ms: median, maximum)")
        head = ("lesson", "control", "handler", "", "key to frame", "")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = (
                f"{cell:{'<' if k < 2 else '>'}{width}}"
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            terminalreporter.write_line("  ".join(cells))


@pytest.fixture(scope="session")
def shots() -> Path:
    """A folder for screenshots, to be looked at: environment variable SHOTS, or build/screenshots."""
    folder = Path(os.environ.get("SHOTS", ROOT / "build/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        missing = "no Chromium: `apt install chromium`, or name one in the environment variable CHROMIUM"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lessons, since a browser may save."""
    folder = tmp_path_factory.mktemp("lab") / "tutorials"
    shutil.copytree(ROOT / "tutorials", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    return folder


@pytest.fixture(scope="session")
def lab_url(notebooks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with jupyterlab(notebooks, tmp_path_factory.mktemp("home")) as (url, _):
        yield url


@pytest.fixture
def watched(browser: "Browser") -> Iterator[Watched]:
    """A page from which nothing leaves the machine: files, and what they hold."""
    with Watched.opened(browser, "file:") as page:
        yield page


@pytest.fixture
def lab(browser: "Browser", lab_url: str) -> Iterator[Lab]:
    with Lab.opened(browser, lab_url) as lab:
        yield lab
