"""Explorers saved as single files and opened without a network: every control, the address, themes, speed."""

import json
import re
import statistics
from urllib.parse import unquote

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from ui.lab import Watched

from safediffkit.widgets import Explorer, Frame, Scene, arrow, bank, circle, grid, line, region
from safediffkit.widgets.page import embed

SCENE = Scene(
    (-8, 8, "x (m)"),
    (-5, 5, "y (m)"),
    [
        circle(0, 0, 2, "danger", "obstacle"),
        region(6, -5, 8, 5, "goal", "goal"),
        circle(-7, 0, 0.6, "start", "start"),
        line([(-8, -4.5), (6, -4.5)], "neutral", "wall"),
    ],
)
HANDLER_MS = 5.0  # less than a third of a frame at 60 a second


def around(weight, episodes, seed):
    """64 paths of 64 steps around an obstacle."""
    t = np.linspace(0, 1, 64)
    noise = np.random.default_rng(seed).normal(size=(64, 64, 2)).cumsum(1) * 0.1
    rise = np.sign(noise[:, -1:, 1:]) * np.stack([0 * t, np.sin(np.pi * t) * weight], -1)
    paths = np.stack([-7 + 14 * t, 0 * t], -1) + noise + rise
    violating = np.linalg.norm(paths, axis=-1) < 2
    outcomes = np.where(violating.any(1), "violating", "safe")
    numbers = {"cost": violating.sum() / 64, "share safe": (outcomes == "safe").mean()}
    if episodes == "end early":
        paths[np.cumsum(violating, 1) > 1] = np.nan
    outcomes[3] = "chosen"
    x, y = np.meshgrid(np.linspace(-8, 8, 48), np.linspace(-5, 5, 30))
    heat = np.exp(-((abs(y) - weight) ** 2) - x**2 / 30)
    return Frame(paths=paths, outcomes=outcomes.tolist(), violating=violating, heat=heat, numbers=numbers)


@pytest.fixture(scope="module")
def explorer():
    made = bank(around, {"guidance weight": np.linspace(0, 4, 9), "episodes": ["end early", "go on"]})
    options = {"steps": "time (s)", "times": np.arange(64) / 10, "curve": "cost", "heat": "density"}
    return Explorer(SCENE, made, title="Paths around an obstacle", **options)


@pytest.fixture(scope="module")
def address(explorer, tmp_path_factory):
    return explorer.save_html(tmp_path_factory.mktemp("saved") / "paths.html").as_uri()


def opened(watched, address):
    watched.page.goto(address)
    root = watched.page.locator(".safediffkit-explorer")
    root.locator("canvas").first.wait_for()
    return root


def state(root):
    """The state as the widget itself tells it."""
    if not root.locator("details").evaluate("node => node.open"):
        root.locator("summary").click()
    return json.loads(root.get_by_role("textbox", name="state as JSON").input_value())


def seen(root):
    """What is to be seen and read: picture, text alternative, numbers."""
    canvas = root.locator("canvas").first
    picture = canvas.evaluate("canvas => canvas.toDataURL()")
    return picture, canvas.get_attribute("aria-label"), root.locator(".safediffkit-numbers").inner_text()


def changes(root, act):
    """Do something, and tell which of picture, text alternative and numbers it changed."""
    before = seen(root)
    act()
    return [old != new for old, new in zip(before, seen(root), strict=True)]


@pytest.mark.parametrize(
    ("role", "name", "key", "part"),
    [
        ("slider", "guidance weight", "ArrowRight", {"setting": [1, 0]}),
        ("combobox", "episodes", "ArrowDown", {"setting": [0, 1]}),
        ("slider", "time (s)", "ArrowLeft", {"step": 62}),
        ("slider", "time (s)", "Home", {"step": 0}),
        ("checkbox", "compare", "Space", {"pinned": [0, 0]}),
        ("spinbutton", "single out", "ArrowUp", {"single": 0}),
    ],
)
def test_every_control_moves_by_keyboard_and_changes_picture_and_text(watched, address, role, name, key, part):
    root = opened(watched, address)
    control = root.get_by_role(role, name=name, exact=True)
    control.focus()
    assert changes(root, lambda: watched.page.keyboard.press(key)) == [True] * 3
    assert (
        state(root) == {"version": 1, "seed": 0, "setting": [0, 0], "step": 63, "pinned": None, "single": None} | part
    )
    assert (watched.outside, watched.errors) == ([], [])


def test_tab_reaches_every_control_in_the_order_of_the_page(watched, address):
    root = opened(watched, address)
    root.locator("details").evaluate("node => { node.open = true; }")
    names = []
    for _ in range(12):
        watched.page.keyboard.press("Tab")
        names.append(
            watched.page.evaluate(
                "document.activeElement.labels?.[0]?.textContent ?? document.activeElement.textContent"
            )
        )
    assert names[:7] == ["guidance weight", "episodes", "play", "time (s)", "speed", "compare", "single out"]
    assert names[-3:] == ["copy JSON", "restore", "copy link"]


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_play_moves_the_scrubber_and_stops_at_the_end(browser, address, motion):
    with Watched.opened(browser, "file:", reduced_motion=motion) as watched:
        root = opened(watched, address)
        time = root.get_by_role("slider", name="time (s)")
        root.get_by_role("combobox", name="speed").select_option("4")
        if motion == "reduce":
            root.get_by_role("button", name="play").press("Enter")
            expect(root).to_have_attribute("data-step", re.compile(r"^([3-9]|\d\d)$"), timeout=20_000)
            root.get_by_role("button", name="pause").press("Space")
            at = time.input_value()
            watched.page.wait_for_timeout(500)
            assert 3 <= int(at) < 63
            assert time.input_value() == at
        else:
            drawn = int(root.get_attribute("data-drawn"))
            root.get_by_role("button", name="play").press("Enter")
            root.get_by_role("button", name="pause").wait_for()
            root.get_by_role("button", name="play").wait_for()
            assert time.input_value() == "63"
            assert int(root.get_attribute("data-drawn")) > drawn + 10
        assert watched.errors == []


def test_the_address_follows_and_restores_the_state(watched, address, explorer):
    root = opened(watched, address)
    assert "#" not in watched.page.url
    root.get_by_role("slider", name="guidance weight").press("End")
    root.get_by_role("checkbox", name="compare").press("Space")
    expect(watched.page).to_have_url(re.compile("pinned%22%3A%5B"))
    link = watched.page.url
    expected = {**explorer.state, "setting": [8, 0], "pinned": [8, 0]}
    assert json.loads(unquote(link.partition("#explorer=")[2])) == expected
    before = seen(root)
    watched.page.reload()
    assert seen(root) == before
    assert state(root) == expected
    watched.page.goto(link.replace("8%2C0", "2%2C1"))  # the same page, another address
    assert root.get_attribute("data-setting") == "2,1"
    assert (watched.outside, watched.errors) == ([], [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"version": 9}, "version 9, this picture reads version 1"),
        ({"seed": 5}, "seed 5, this picture was made with the seed 0"),
        ({"setting": [9, 0]}, "from 0 to 8, not 9"),
        ({"step": 0.5}, "not 0.5"),
        ({"colour": 1}, 'no "colour"'),
        ([1], "must be a JSON object"),
        ("{", "no JSON"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_words(watched, address, given, words):
    root = opened(watched, address)
    root.get_by_role("slider", name="guidance weight").press("ArrowRight")
    root.locator("summary").press("Enter")
    text = given if isinstance(given, str) else json.dumps(given)
    root.get_by_role("textbox", name="state as JSON").fill(text)
    assert changes(root, lambda: root.get_by_role("button", name="restore").press("Enter")) == [False] * 3
    assert words in root.get_by_role("alert").inner_text()
    assert root.get_attribute("data-setting") == "1,0"
    if isinstance(given, dict):  # and in an address
        watched.page.goto("about:blank")
        watched.page.goto(f"{address}#explorer={text}")
        assert words in root.get_by_role("alert").inner_text()
        assert root.get_attribute("data-setting") == "0,0"
    assert watched.errors == []


def test_a_state_comes_back_from_its_json(watched, address):
    root = opened(watched, address)
    wanted = {**state(root), "setting": [3, 1], "step": 20, "single": 7}
    root.get_by_role("textbox", name="state as JSON").fill(json.dumps(wanted))
    root.get_by_role("button", name="restore").press("Enter")
    assert state(root) == wanted
    root.get_by_role("button", name="copy link").press("Enter")
    assert root.locator(".sdk-said").inner_text()


def test_the_mouse_singles_out_for_as_long_as_it_hovers_and_a_click_keeps_it(watched, address):
    root = opened(watched, address)
    box = root.locator("canvas").first.bounding_box()
    tip = root.locator(".sdk-tip")

    def hover():
        for share in np.linspace(0.2, 0.8, 40):  # along the middle, until a path is near
            watched.page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.45 * box["height"])
            if tip.is_visible():
                return

    assert changes(root, hover) == [True] * 3
    assert tip.inner_text() in root.locator(".safediffkit-numbers").inner_text()
    number = root.get_by_role("spinbutton", name="single out").input_value()
    watched.page.mouse.down()
    watched.page.mouse.up()
    watched.page.mouse.move(2, 2)
    assert not tip.is_visible()
    assert state(root)["single"] == int(number) - 1


def test_a_move_of_64_paths_of_64_steps_is_drawn_in_time(watched, address, latencies):
    root = opened(watched, address)
    for compare in (False, True):
        for name in ("guidance weight", "time (s)"):
            slider = root.get_by_role("slider", name=name)
            took = []
            for _ in range(2):  # the first time the browser still compiles what is drawn
                slider.press("Home")
                took.clear()
                for _ in range(8):
                    slider.press("ArrowRight")
                    took.append(float(root.get_attribute("data-ms")))
            told = f"saved page, 64 x 64{', two settings' if compare else ''}"
            latencies.append((told, name, f"{statistics.median(took):.1f}", f"{max(took):.1f}", "", ""))
            assert statistics.median(took) < HANDLER_MS
        root.get_by_role("checkbox", name="compare").press("Space")


@pytest.mark.parametrize("width", [1280, 700, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_at_every_width_in_both_themes(browser, address, shots, width, scheme):
    size = {"width": width, "height": 900}
    with Watched.opened(browser, "file:", viewport=size, color_scheme=scheme, device_scale_factor=2) as watched:
        root = opened(watched, address)
        root.get_by_role("slider", name="guidance weight").fill("4")
        watched.page.screenshot(path=shots / f"saved-{scheme}-{width}.png", full_page=True)
        root.get_by_role("checkbox", name="compare").check()
        root.get_by_role("slider", name="guidance weight").fill("7")
        root.locator("summary").click()
        watched.page.screenshot(path=shots / f"saved-{scheme}-{width}-compare.png", full_page=True)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        canvas = root.locator("canvas").first
        sharp = canvas.evaluate("node => node.width / node.clientWidth")
        assert sharp == pytest.approx(2, rel=0.01)
        corner = canvas.evaluate("node => [...node.getContext('2d').getImageData(2, 2, 1, 1).data]")
        assert (max(corner[:3]) < 60) == (scheme == "dark")
        assert Axe().run(watched.page).response["violations"] == []


def test_the_theme_may_change_while_it_is_shown(watched, address):
    root = opened(watched, address)

    def darken():
        drawn = root.get_attribute("data-drawn")
        watched.page.emulate_media(color_scheme="dark")
        expect(root).not_to_have_attribute("data-drawn", drawn)  # the browser tells of it when it comes to it

    assert changes(root, darken) == [True, False, False]
    # JupyterLab has the last word
    assert changes(root, lambda: watched.page.evaluate("document.body.dataset.jpThemeLight = 'true'"))[0]


def test_what_has_no_use_is_not_there(watched, tmp_path):
    made = bank(lambda spread, seed: Frame(paths=spread * np.eye(2)[:, None]), {"spread": [1.0, 2.0]})
    path = Explorer(SCENE, made, title="Two points").save_html(tmp_path / "points.html")
    root = opened(watched, path.as_uri())
    assert root.get_by_role("slider").count() == 1
    assert root.get_by_role("button", name="play").count() == 0
    assert root.locator("canvas").count() == 1


def test_play_may_move_an_axis(watched, tmp_path):
    made = bank(lambda spread, seed: Frame(paths=spread * np.eye(2)[:, None]), {"spread": [0.5, 1.0, 2.0]})
    path = Explorer(SCENE, made, title="Two points", play="spread").save_html(tmp_path / "points.html")
    root = opened(watched, path.as_uri())
    root.get_by_role("button", name="play").press("Enter")
    expect(root).to_have_attribute("data-setting", "2")
    root.get_by_role("button", name="play").wait_for()
    root.get_by_role("button", name="play").press("Enter")
    assert root.get_attribute("data-setting") == "0"


def gallery(kind, seed):
    """One frame with every part."""
    t = np.linspace(0, 3, 25)
    paths = np.stack([np.stack([3 + 2 * np.cos(t + k), 1.5 + np.sin(t * (1 + k / 5))], -1) for k in range(6)])
    values = [[c + 0.5, r + 0.25, 0.3 * r - 0.1 * c] for r in range(3) for c in range(6)]
    blocks = [region(2, 1, 4, 2, kind, kind)]
    arrows = np.array([[1, 1, 0.5, 0.5], [5, 2, -0.4, 0.2]])
    return Frame(paths=paths, violating=paths[..., 0] > 4, arrows=arrows, values=np.array(values), shapes=blocks)


def test_every_part_is_drawn(browser, shots, tmp_path):
    marks = {(0, 5): "trap", (2, 5): "goal"}
    scene = Scene((0, 6, "column"), (0, 3, "row"), [grid(3, 6, marks), arrow(0.2, 2.8, 1, 0, label="wind")])
    made = bank(gallery, {"kind": ["danger", "goal", "safe", "start", "neutral"]})
    path = Explorer(scene, made, title="Every part", groups=["hunter", "prey"], trail="all").save_html(
        tmp_path / "a.html"
    )
    with Watched.opened(browser, "file:", viewport={"width": 800, "height": 700}) as watched:
        root = opened(watched, path.as_uri())
        pictures = set()
        for kind in made.axes["kind"]:
            root.get_by_role("combobox", name="kind").select_option(kind)
            pictures.add(seen(root)[0])
            assert f"region “{kind}”" in seen(root)[1]
            watched.page.screenshot(path=shots / f"saved-parts-{kind}.png")
        assert len(pictures) == 5
        assert watched.errors == []


def test_outcomes_and_shapes_go_by_the_words_of_the_picture(watched, tmp_path):
    made = bank(gallery, {"kind": ["danger", "goal"]})
    words = {"violating": "too far", "danger": "keep out"}
    path = Explorer(SCENE, made, title="Words", words=words).save_html(tmp_path / "words.html")
    picture, text, _ = seen(opened(watched, path.as_uri()))
    plain = Explorer(SCENE, made, title="Words").save_html(tmp_path / "plain.html")
    plain_picture, plain_text, _ = seen(opened(watched, plain.as_uri()))
    assert "too far" in text
    assert "(keep out)" in text
    assert "violating" in plain_text
    assert "(danger)" in plain_text
    assert picture != plain_picture  # the legend


def test_two_on_a_page_keep_their_states_apart(watched, explorer, tmp_path):
    states = {name: (explorer.get_state(), []) for name in ("left", "right")}
    path = tmp_path / "two.html"
    path.write_text(f"<!DOCTYPE html><html lang='en'><title>two</title>{embed(states)}</html>")
    watched.page.goto(path.as_uri())
    roots = watched.page.locator(".safediffkit-explorer")
    roots.nth(1).wait_for()
    for n, key in enumerate(("ArrowRight", "End")):
        roots.nth(n).get_by_role("slider", name="guidance weight").press(key)
    expect(watched.page).to_have_url(re.compile("left=.*right="))
    watched.page.reload()
    roots.nth(1).wait_for()
    assert [roots.nth(n).get_attribute("data-setting") for n in range(2)] == ["1,0", "8,0"]
