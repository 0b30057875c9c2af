"""The picture in the README is what the library draws now."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parents[2] / "tutorials" / "assets"


def coarse(path):
    """Shrink a picture to 50 by 80 patches of grey: fonts differ between machines, and what is drawn does not."""
    grey = np.asarray(Image.open(path).convert("L"), float)
    rows, columns = (
        np.linspace(0, length, count + 1).astype(int) for length, count in zip(grey.shape, (50, 80), strict=True)
    )
    return np.add.reduceat(np.add.reduceat(grey, rows[:-1], 0), columns[:-1], 1) / np.outer(
        np.diff(rows), np.diff(columns)
    )


def test_the_picture_of_the_readme_is_what_is_drawn_now(browser, tmp_path):
    script = runpy.run_path(str(ASSETS / "make_explorer.py"))
    script["draw"](tmp_path / "now.png", browser)
    difference = np.abs(coarse(tmp_path / "now.png") - coarse(ASSETS / "explorer.png"))
    assert difference.mean() < 3  # of 255
    assert np.quantile(difference, 0.99) < 40
