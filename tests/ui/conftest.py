"""JupyterLab on loopback and Debian's Chromium through Playwright, as fixtures."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ui.lab import Lab, Watched
from ui.server import jupyterlab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server", "--disable-dev-shm-usage"]
LATENCIES = pytest.StashKey[list[tuple[str, ...]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LATENCIES] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ui)


@pytest.fixture(scope="session")
def latencies(pytestconfig: pytest.Config) -> list[tuple[str, ...]]:
    """Rows of the table that the end of the run prints."""
    return pytestconfig.stash[LATENCIES]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if rows := config.stash[LATENCIES]:
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
