"""What a test looks at in a widget, and what it does to one: by role and name, as a person would."""

import statistics
from typing import TYPE_CHECKING, Any

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

# The time of the last key that reached the page, and of the frame after the redraw that followed.
WATCH = """root => {
  root.frames = [];
  let began = 0;
  document.addEventListener("keydown", () => (began = performance.now()), true);
  new MutationObserver(() => requestAnimationFrame(() => root.frames.push(performance.now() - began)))
    .observe(root, { attributes: true, attributeFilter: ["data-drawn"] });
}"""
PICTURES = "root => [...root.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join()"


def picture(root: "Locator") -> str:
    """Give what is drawn, pixel by pixel."""
    return str(root.evaluate(PICTURES))


def words(root: "Locator") -> str:
    """Give what is said of the picture: its text alternative and the numbers under it."""
    told = [canvas.get_attribute("aria-label") or "" for canvas in root.locator("canvas").all()]
    return " ".join([*told, *root.locator(".safediffkit-numbers").all_text_contents()])


def sight(root: "Locator") -> tuple[str, str]:
    """Give picture and words."""
    return picture(root), words(root)


def name(control: "Locator") -> str:
    """Give a control's accessible name."""
    return str(control.evaluate("node => node.labels?.[0]?.textContent ?? node.ariaLabel ?? node.textContent")).strip()


def press(control: "Locator", key: str) -> None:
    """Press a key where the focus is, after putting it on the control."""
    control.focus()
    control.page.keyboard.press(key)


def settle(root: "Locator") -> None:
    """Wait for two frames: one to draw, one to show."""
    root.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def steps_of(slider: "Locator") -> tuple[int, int, int]:
    """Give a slider's least, present and greatest value."""
    return tuple(int(slider.evaluate(f"node => +node.{part}")) for part in ("min", "value", "max"))  # type: ignore[return-value]


def timed(root: "Locator", slider: "Locator", presses: int = 12) -> tuple[list[float], list[float]]:
    """Move a slider to and fro, and give the milliseconds of each handler and from each key to the frame drawn."""
    handlers = []
    root.evaluate(WATCH)
    for k in range(presses):
        least, now, most = steps_of(slider)
        forward = now < most and (k % 4 < 2 or now == least)
        press(slider, "ArrowRight" if forward else "ArrowLeft")
        root.page.wait_for_function("([root, n]) => root.frames.length > n", arg=[root.element_handle(), k])
        handlers.append(float(root.get_attribute("data-ms") or "nan"))
    return handlers, list(root.evaluate("root => root.frames"))


def row(lesson: str, control: str, handlers: list[float], frames: list[float]) -> tuple[str, ...]:
    """Make a line of the table of latencies."""
    numbers = [statistics.median(handlers), max(handlers), statistics.median(frames), max(frames)]
    return (lesson[:2], control[:60], *(f"{number:.1f}" for number in numbers))


def drag(slider: "Locator", share: float) -> None:
    """Drag a slider's handle with the mouse to a share of its length."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    least, now, most = steps_of(slider)
    # The middle of the handle runs half a handle inside both ends.
    at = box["x"] + 8 + (box["width"] - 16) * (now - least) / max(most - least, 1)
    mouse, height = slider.page.mouse, box["y"] + box["height"] / 2
    mouse.move(at, height)
    mouse.down()
    mouse.move(box["x"] + 8 + (box["width"] - 16) * share, height, steps=8)
    mouse.up()


def barriers(page: "Page", within: str) -> list[str]:
    """List what axe finds serious or critical in the parts of a page that match a selector."""
    if not page.locator(within).count():
        return []
    # No preloading: axe would fetch style sheets once more, which a page opened as a file may not.
    options = {"resultTypes": ["violations"], "preload": False}
    found: list[dict[str, Any]] = Axe().run(page, {"include": [[within]]}, options).response["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html'][:200]}" for one in bad for node in one["nodes"]]
