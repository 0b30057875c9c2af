import re
import subprocess
import sys

import numpy as np
import pytest
import traitlets

import safediffkit.widgets as widgets
from safediffkit.widgets import Explorer, Frame, Scene, bank, region

SCENE = Scene((-1, 1, "x"), (-1, 1, "y"), [region(0, 0, 1, 1, label="trap")])
PATHS = np.random.default_rng(0).uniform(-1, 1, size=(4, 6, 2))


def explorer(**options):
    axes = {"weight": [0.0, 0.5, 1.0], "episodes": ["end early", "go on"]}
    made = bank(lambda weight, kind, seed: Frame(paths=PATHS, numbers={"cost": weight, "return": 1}), axes, seed=3)
    return Explorer(SCENE, made, **{"title": "A <trap>"} | options)


def test_it_begins_with_the_first_setting_and_the_last_step():
    one = explorer()
    assert one.state == {"version": 1, "seed": 3, "setting": [0, 0], "step": 5, "pinned": None, "single": None}
    assert one.setting == {"weight": 0.0, "episodes": "end early"}
    assert one.numbers == {"cost": 0.0, "return": 1.0}


def test_a_state_may_be_given_in_part():
    one = explorer(state={"setting": (1, 1), "single": 2})
    assert one.setting == {"weight": 0.5, "episodes": "go on"}
    one.state = {"setting": [2, 0]}
    assert (one.setting["weight"], one.numbers["cost"], one.state["single"]) == (1.0, 1.0, 2)
    one.set_state({"state": {**one.state, "pinned": [0, 1], "single": None}})  # as the browser does
    assert (one.state["pinned"], one.state["single"]) == ([0, 1], None)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"version": 2}, "version 2, and this Explorer reads version 1"),
        ({"seed": 0}, r"seed 0, this one has the seed 3: make it with bank\(..., seed=0\)"),
        ({"setting": [3, 0]}, "setting along 'weight' must be a whole number from 0 to 2; got 3"),
        ({"setting": [0]}, "must be 2 places"),
        ({"setting": "00"}, "must be 2 places"),
        ({"pinned": [0, 2]}, "pinned along 'episodes'"),
        ({"step": 6}, "step must be a whole number from 0 to 5; got 6"),
        ({"step": True}, "got True"),
        ({"single": 4}, "single must be a whole number from 0 to 3"),
        ({"place": 1}, "state has no 'place'; it has version, seed"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_the_old_one_stays(state, match):
    one = explorer()
    before = dict(one.state)
    with pytest.raises(traitlets.TraitError, match=match):
        one.state = state
    assert one.state == before
    with pytest.raises(traitlets.TraitError, match=match):
        explorer(state=state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"curve": "costs"}, "curve names 'costs', but the frames' numbers are cost, return"),
        (
            {"words": {"sound": "safe"}},
            "words has 'sound', which is neither an outcome nor a kind of shape: neutral",
        ),
        ({"play": "time"}, "play names 'time', which is no axis of the bank; it has weight, episodes"),
        ({"times": [1.0, 2.0]}, "one number for each of the 6 steps; got 2"),
        ({"trail": "future"}, "trail"),
    ],
)
def test_an_option_that_names_what_is_not_there_is_refused(options, match):
    with pytest.raises(Exception, match=match) as caught:
        explorer(**options)
    assert caught.type.__name__ in ("ValueError", "TypeCheckError")


def test_points_have_no_scrubber():
    made = bank(lambda w, seed: Frame(paths=PATHS[:, :1]), {"w": [1]})
    assert Explorer(SCENE, made, title="points").header["scrubber"] is None
    assert explorer(steps=None).header["scrubber"] is None
    assert explorer(steps="time (s)").header["scrubber"] == "time (s)"


def test_the_saved_page_asks_for_nothing_and_is_not_overwritten(tmp_path):
    one = explorer()
    path = one.save_html(tmp_path / "trap.html")
    text = path.read_text()
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)
    assert "default-src 'none'" in text
    assert '<html lang="en">' in text
    assert "<title>A &lt;trap&gt;</title>" in text
    with pytest.raises(FileExistsError):
        one.save_html(path)
    assert one.save_html(path, overwrite=True).read_text() == text


def test_the_names_come_lazily():
    code = "import sys; from safediffkit.widgets import Frame, bank, walker; print(callable(bank))"
    code += "; print(*[name for name in ('torch', 'anywidget', 'ipywidgets', 'plotly') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"]
    assert sorted(widgets.__all__) == dir(widgets)
    for name in widgets.__all__:
        assert getattr(widgets, name).__module__ == widgets._HOMES[name]
    with pytest.raises(AttributeError, match=r"no attribute 'explorer_'.*Explorer"):
        _ = widgets.explorer_
