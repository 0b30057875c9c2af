"""Every lesson in JupyterLab, in a browser: it runs, and all that can be moved in it answers."""

import json
import os
import re
import statistics
from pathlib import Path

import pytest
from ui import probe
from ui.lab import Lab

TUTORIALS = Path(__file__).parents[2] / "tutorials"
LESSONS = [path.stem for path in sorted(TUTORIALS.glob("[0-9]*.ipynb"))]
# Medians in milliseconds. Quiet, a handler takes under 5 and a key 20: a loaded machine needs room.
HANDLER_BUDGET = float(os.environ.get("HANDLER_BUDGET_MS", "25"))
FRAME_BUDGET = float(os.environ.get("FRAME_BUDGET_MS", "250"))
OURS = (".safediffkit-explorer", ".safediffkit-predict")
HEIGHT = """() => {
  const [first, last] = [".jp-Cell", ".jp-Cell:last-of-type"].map(part => document.querySelector(part));
  return last.getBoundingClientRect().bottom - first.getBoundingClientRect().top; }"""
VIEWS = {"1280": (1280, "none"), "700": (700, "none"), "deuteranopia": (1280, "deuteranopia")}


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, browser, lab_url):
    """A lesson, open and run to its end; what asked for other places or complained is in `outside` and `errors`."""
    with Lab.opened(browser, lab_url) as lab:
        lab.name = request.param
        lab.run(f"{request.param}.ipynb")
        yield lab


def explorers(lesson):
    return lesson.page.locator(".safediffkit-explorer").all()


def kernel_state(lesson, root):
    """Give what the kernel knows of an Explorer that the page shows."""
    title = root.get_attribute("aria-label")
    states = [one["state"] for one in lesson.states("Explorer", "header", "state") if one["header"]["title"] == title]
    assert len(states) == 1, f"an Explorer's title names it, so each needs its own: {title}"
    return states[0]


def page_state(root):
    setting, step = root.get_attribute("data-setting"), int(root.get_attribute("data-step"))
    return [int(place) for place in setting.split(",")], step


def agree(lesson, root, **more):
    """Wait until the kernel says of the state what the page does, and what else is expected."""
    setting, step = page_state(root)
    wanted = {"setting": setting, "step": step} | more
    for _ in range(20):
        state = kernel_state(lesson, root)
        if state | wanted == state:
            return
        lesson.page.wait_for_timeout(250)
    raise AssertionError(f"the kernel holds {state}, and the page {wanted}")


def test_every_slider_of_an_explorer_answers_to_the_keyboard_in_time(lesson, latencies):
    for root in explorers(lesson):
        for slider in root.get_by_role("slider").all():
            before = probe.sight(root)
            least, now, most = probe.steps_of(slider)
            away = "ArrowRight" if now - least < most - now else "ArrowLeft"
            for _ in range(most - least):  # two neighbours may look the same, but not all
                probe.press(slider, away)
                probe.settle(root)
                if probe.picture(root) != before[0]:
                    break
            assert all(new != old for new, old in zip(probe.sight(root), before, strict=True)), probe.name(slider)
            handlers, frames = probe.timed(root, slider)
            title = f"{root.get_attribute('aria-label')}: {probe.name(slider)}"
            latencies.append(probe.row(lesson.name, title, handlers, frames))
            assert statistics.median(handlers) < HANDLER_BUDGET, title
            assert statistics.median(frames) < FRAME_BUDGET, title
        agree(lesson, root)


def test_a_slider_of_each_explorer_answers_to_the_mouse(lesson):
    for root in explorers(lesson):
        slider = root.get_by_role("slider").first
        if not slider.count():
            continue
        least, now, most = probe.steps_of(slider)
        before = probe.sight(root)
        probe.drag(slider, 0.9 if now < (least + most) / 2 else 0.1)
        probe.settle(root)
        assert all(new != old for new, old in zip(probe.sight(root), before, strict=True))
        agree(lesson, root)


def test_every_choice_of_an_explorer_answers_to_the_keyboard(lesson):
    for root in explorers(lesson):
        for box in root.get_by_role("combobox").all():
            options = box.locator("option").count()
            before, value = probe.sight(root), box.input_value()
            for _ in range(options):  # from the last option only the way up leads on
                last = int(box.evaluate("node => node.selectedIndex")) == options - 1
                probe.press(box, "ArrowUp" if last else "ArrowDown")
                probe.settle(root)
                if probe.name(box) == "speed" or probe.picture(root) != before[0]:
                    break
            assert box.input_value() != value
            if probe.name(box) != "speed":
                assert all(new != old for new, old in zip(probe.sight(root), before, strict=True)), probe.name(box)
        agree(lesson, root)


def test_an_explorer_compares_singles_out_and_plays_by_keyboard(lesson):
    for root in explorers(lesson):
        compare = alone(root)
        before = probe.picture(root)
        probe.press(compare, "Space")
        probe.settle(root)
        assert probe.picture(root) != before
        agree(lesson, root, pinned=page_state(root)[0])
        probe.press(compare, "Space")

        for number in root.get_by_role("spinbutton", name="single out").all():
            before = probe.sight(root)
            probe.press(number, "ArrowUp")
            probe.settle(root)
            assert probe.picture(root) != before[0]
            agree(lesson, root, single=0)
            probe.press(number, "ArrowDown")

        for button in root.get_by_role("button", name="play").all():
            for slider in root.get_by_role("slider").all():
                probe.press(slider, "Home")
            before = int(root.get_attribute("data-drawn"))
            probe.press(button, "Enter")
            root.page.wait_for_function(
                "([root, drawn]) => root.dataset.drawn > drawn", arg=[root.element_handle(), before]
            )
            probe.press(root.get_by_role("button", name="pause"), "Enter")
            assert root.get_by_role("button", name="play").count() == 1
        agree(lesson, root)


def test_an_explorer_gives_its_state_as_text_and_takes_it_back(lesson):
    for root in explorers(lesson):
        probe.press(root.locator("summary"), "Enter")
        text = root.get_by_role("textbox", name="state as JSON")
        state = json.loads(text.input_value())
        assert (state["setting"], state["step"]) == page_state(root)
        wanted = [0 if place else 1 for place in state["setting"]]
        text.fill(json.dumps(state | {"setting": wanted}))
        probe.press(root.get_by_role("button", name="restore"), "Enter")
        assert page_state(root)[0] == wanted
        agree(lesson, root)
        text.fill(json.dumps(state | {"version": 99}))
        probe.press(root.get_by_role("button", name="restore"), "Enter")
        assert "99" in root.get_by_role("alert").text_content()
        assert page_state(root)[0] == wanted
        probe.press(root.locator("summary"), "Enter")


def test_a_move_in_the_kernel_moves_the_page(lesson):
    for root in explorers(lesson):
        title = root.get_attribute("aria-label")
        to = [1 - min(place, 1) for place in page_state(root)[0]]
        said = lesson.kernel(f"""
from ipywidgets.widgets.widget import _instances
for _widget in _instances.values():
    if type(_widget).__name__ == "Explorer" and _widget.header["title"] == {title!r}:
        _widget.state = {{"setting": {to}}}
""")
        assert said == ""
        lesson.page.wait_for_function(
            "([root, setting]) => root.dataset.setting === setting",
            arg=[root.element_handle(), ",".join(map(str, to))],
        )


def test_every_guess_can_be_made(lesson):
    guesses = lesson.page.locator(".safediffkit-predict").all()
    for k, root in enumerate(guesses):
        question = root.locator("legend").text_content()
        by_mouse = k == len(guesses) - 1
        inputs = root.locator("input")
        if inputs.first.get_attribute("type") == "number":
            inputs.first.focus()
            lesson.page.keyboard.type("12.5")
        elif by_mouse:
            root.locator("label").last.click()
        else:
            probe.press(inputs.first, "Space")
            probe.press(inputs.first, "ArrowDown")
        assert root.get_by_role("status").text_content() == ""
        commit = root.get_by_role("button", name="commit")
        commit.click() if by_mouse else probe.press(commit, "Enter")
        assert root.get_by_role("status").text_content()
        assert inputs.first.is_disabled()
        lesson.page.wait_for_timeout(300)
        asked = [one for one in lesson.states("Guess", "question", "given", "committed") if one["question"] == question]
        assert [(one["committed"], one["given"] is not None) for one in asked] == [(True, True)]


def test_a_control_that_python_answers_changes_what_is_shown(lesson):
    shown = """node => [...node.querySelectorAll('.widget-html-content, .js-plotly-plot .main-svg')]
      .map(part => part.innerHTML).join()"""
    for box in lesson.page.locator(
        ".jp-OutputArea-output > .widget-vbox, .jp-OutputArea-output > * > .widget-vbox"
    ).all():
        controls = box.locator(".noUi-handle, select, button").all()
        if not controls or box.locator(".safediffkit-explorer, .widget-progress").count():
            continue
        box.scroll_into_view_if_needed()
        if box.locator(".js-plotly-plot").count() or "FigureWidget" in box.inner_html():
            box.locator(".main-svg").first.wait_for(timeout=60_000)
        before = box.evaluate(shown)
        for control in controls:
            kind = control.evaluate("node => node.localName")
            probe.press(control, {"button": "Enter", "select": "ArrowDown"}.get(kind, "ArrowRight"))
            lesson.page.wait_for_timeout(1500)
            if box.evaluate(shown) != before:
                break
        assert box.evaluate(shown) != before, box.inner_text()


@pytest.mark.parametrize("widget", OURS)
def test_nobody_is_kept_out_of_our_widgets(lesson, widget):
    assert probe.barriers(lesson.page, widget) == []


def test_screenshots_are_there_to_be_looked_at(lesson, shots):
    page = lesson.page
    lesson.command("application:toggle-left-area")
    session = page.context.new_cdp_session(page)
    for view, (width, vision) in VIEWS.items():
        session.send("Emulation.setEmulatedVisionDeficiency", {"type": vision})
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        whole = page.evaluate(HEIGHT)
        page.set_viewport_size({"width": width, "height": min(int(whole) + 200, 16_000)})
        page.evaluate("document.querySelector('.jp-Cell').scrollIntoView()")
        page.wait_for_timeout(1500)
        path = shots / f"{lesson.name}-{view}.png"
        page.screenshot(path=path)
        assert path.stat().st_size > 50_000
        for root in page.locator(", ".join(OURS)).all():
            assert root.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), f"{view}: cut off at the right"
    page.set_viewport_size({"width": 1280, "height": 1000})


@pytest.mark.parametrize("lesson", ["06_barrier_hinge_losses"], indirect=True)
def test_lesson_06_shows_a_condition_that_is_kept_and_not_enough(lesson):
    page = lesson.page
    root = page.locator(".safediffkit-explorer[aria-label^='Six cars']")
    probe.press(root.get_by_role("combobox", name="barrier"), "Home")
    kept, jumped = at_both_ends(root, "slope")
    assert kept["steps that broke the condition"] == jumped["steps that broke the condition"] == 0
    assert kept["cars in the wall"] == 0 < jumped["cars in the wall"]
    assert kept["least h"] >= 0 > jumped["least h"]


@pytest.mark.parametrize("lesson", ["06_barrier_hinge_losses"], indirect=True)
def test_lesson_06_plays_the_learning_of_a_barrier(lesson):
    root = lesson.page.locator(".safediffkit-explorer[aria-label='A barrier learns']")
    update = root.get_by_role("slider", name="update")
    probe.press(update, "Home")
    probe.settle(root)
    before = probe.sight(root)
    probe.press(root.get_by_role("button", name="play"), "Enter")
    lesson.page.wait_for_function("root => +root.dataset.setting.split(',')[0] > 1", arg=root.element_handle())
    probe.press(root.get_by_role("button", name="pause"), "Enter")
    probe.settle(root)
    assert all(new != old for new, old in zip(probe.sight(root), before, strict=True))


@pytest.mark.parametrize("lesson", ["07_multi_agent_landmarks"], indirect=True)
def test_lesson_07_shows_landmarks_vanish_and_a_method_with_one_way(lesson):
    root = lesson.page.locator(".safediffkit-explorer[aria-label='Eight teams choose']")
    which = root.get_by_role("combobox", name="landmarks")
    seen = {}
    for key in ("End", "Home"):
        probe.press(which, key)
        probe.settle(root)
        seen[key] = probe.sight(root)
    assert all(new != old for new, old in zip(seen["Home"], seen["End"], strict=True))
    probe.press(root.get_by_role("combobox", name="team"), "End")  # MA-CQL, the same action every time
    slider = root.get_by_role("slider", name="start")
    for _ in range(4):
        probe.settle(root)
        assert numbers(root)["different ways"] <= 1
        probe.press(slider, "ArrowRight")


@pytest.mark.parametrize("lesson", ["07_multi_agent_landmarks"], indirect=True)
def test_lesson_07_holds_values_down_and_mends_the_pull(lesson):
    cautious = lesson.page.locator(".safediffkit-explorer[aria-label^='A value network']")
    probe.press(cautious.get_by_role("slider", name="updates"), "End")
    weight = cautious.get_by_role("slider", name="weight")
    probe.press(weight, "Home")
    probe.settle(cautious)
    dream = numbers(cautious)
    for _ in range(3):
        probe.press(weight, "ArrowRight")
    probe.settle(cautious)
    held = numbers(cautious)
    assert dream["value promised"] > held["value promised"]
    assert dream["what it earns"] < 0 < held["what it earns"]

    pulled = lesson.page.locator(".safediffkit-explorer[aria-label^='Nine actions']")
    probe.press(pulled.get_by_role("slider", name="foot"), "Home")
    worse = {}
    for key in ("Home", "End"):
        probe.press(pulled.get_by_role("combobox", name="divided by"), key)
        probe.settle(pulled)
        worse[key] = numbers(pulled)["actions that got worse"]
    assert worse == {"Home": 9, "End": 0}


@pytest.mark.parametrize("lesson", ["08_cbf_diffusion"], indirect=True)
def test_lesson_08_says_that_a_clearance_makes_danger_of_more_steps(lesson):
    root = lesson.page.locator(".safediffkit-explorer[aria-label^='Four recorded merges']")
    shares = [told["of all recorded steps in danger (%)"] for told in at_both_ends(root, "clearance")]
    assert 0 < shares[0] < shares[1]


@pytest.mark.parametrize("lesson", ["08_cbf_diffusion"], indirect=True)
def test_lesson_08_bends_plans_away_from_danger(lesson):
    for title in ("The joint plans of one moment", "Two cars merge by joint plans, from above"):
        root = lesson.page.locator(f".safediffkit-explorer[aria-label='{title}']")
        none, most = at_both_ends(root, "weight")
        (what,) = (name for name in none if "moments" in name or name.startswith("steps in danger"))
        assert most[what] < none[what]


@pytest.mark.parametrize("lesson", ["08_cbf_diffusion"], indirect=True)
def test_lesson_08_draws_an_expectile_from_the_mean_towards_the_greatest(lesson):
    root = lesson.page.locator(".safediffkit-explorer[aria-label='The expectile of twenty samples']")
    low, high = at_both_ends(root, "expectile")
    assert low["V"] == pytest.approx(low["mean of the samples"], abs=0.2)
    assert low["V"] < high["V"] < high["greatest of the samples"]


def alone(root):
    """End the comparison with which a lesson may begin, and give the box that starts one."""
    compare = root.get_by_role("checkbox", name="compare")
    if compare.is_checked():
        probe.press(compare, "Space")
        probe.settle(root)
    return compare


def at_both_ends(root, control):
    """Give the numbers that an Explorer says with a slider at its least and at its greatest value."""
    alone(root)
    slider, told = root.get_by_role("slider", name=control), []
    for key in ("Home", "End"):
        probe.press(slider, key)
        probe.settle(root)
        least, now, most = probe.steps_of(slider)
        assert now == {"Home": least, "End": most}[key], f"{control} did not follow the key {key}"
        told.append(numbers(root))
    return told


def numbers(root):
    """Give the numbers that an Explorer says, by their names."""
    said = root.locator(".sdk-number").all_text_contents()
    return {text.rpartition(" ")[0]: float(text.rpartition(" ")[2]) for text in said}


def test_nothing_left_the_machine_and_nothing_complained(lesson):
    assert lesson.outside == []
    assert lesson.errors == []


def focus_in(page, selector, presses=60):
    """Press Tab until the focus is within what matches."""
    for _ in range(presses):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{presses} times Tab do not lead to {selector}")


def test_a_person_with_no_mouse_can_do_lesson_01(lab):
    lab.open("01_pixel_world_cost_remap.ipynb")
    page = lab.page
    keyboard = page.keyboard
    keyboard.press("Escape")
    cells = page.locator(".jp-Cell").count()

    def run_to(selector):
        """Press Shift and Enter, as the lesson says, until what matches is there; then go back to its cell."""
        for _ in range(cells):
            keyboard.press("Shift+Enter")
            page.wait_for_timeout(500)
            if page.locator(selector).count():
                break
        keyboard.press("ArrowUp")

    run_to(".safediffkit-predict")
    focus_in(page, ".safediffkit-predict input")
    keyboard.press("Space")
    keyboard.press("ArrowDown")
    focus_in(page, ".safediffkit-predict button")
    keyboard.press("Enter")
    assert re.match("[✓✗]", page.locator(".safediffkit-predict").first.get_by_role("status").text_content())

    # A widget keeps the keys for itself; Shift and Tab lead back to its cell.
    for _ in range(5):
        if not page.evaluate("document.activeElement.closest('.safediffkit-predict')"):
            break
        keyboard.press("Shift+Tab")
    run_to(".safediffkit-explorer")
    root = page.locator(".safediffkit-explorer").first
    before = probe.sight(root)
    focus_in(page, ".safediffkit-explorer input[type=range]")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    probe.settle(root)
    assert all(new != old for new, old in zip(probe.sight(root), before, strict=True))
