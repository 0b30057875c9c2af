"""Draw explorer.png, the picture of the README: lesson 4's Explorer, two rules of extraction side by side.

    python tutorials/assets/make_explorer.py [OUT.png]

Chromium takes the picture of the page that `Explorer.save_html` writes; name it in the environment variable CHROMIUM if
it is not found. tests/ui holds the committed picture to what this draws now.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from safediffkit.widgets import Bank, Explorer, Scene, circle, region

ASSETS = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def explorer() -> Explorer:
    """Put the policies of the ten points over the strip they may drive in; the printed rule is pinned beside ours."""
    strip = [region(-9, -9, -6, 9, label="costs"), region(6, -9, 9, 9, label="costs"), circle(0, 0, 7)]
    return Explorer(
        Scene(x=(-9, 24, "x (m)"), y=(-9, 9, "y (m)"), shapes=strip),
        Bank.load(ASSETS / "driving.npz"),
        title="Five episodes of one trained policy: the paper's rule of extraction, and ours",
        steps="step",
        times=range(0, 200, 2),
        curve="cost of an episode",
        state={"setting": [4, 1, 2], "pinned": [4, 0, 2]},
    )


def draw(out: Path, browser: Browser) -> None:
    """Save the Explorer as a page, open it and take its picture at twice the resolution."""
    with tempfile.TemporaryDirectory() as folder:
        file = explorer().save_html(Path(folder) / "explorer.html")
        page = browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=2, reduced_motion="reduce")
        page.goto(file.as_uri())
        page.wait_for_function("() => document.querySelector('.safediffkit-explorer')?.dataset.drawn > 0")
        page.locator(".safediffkit-explorer").screenshot(path=out)
        page.close()


if __name__ == "__main__":
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS / "explorer.png", opened)
