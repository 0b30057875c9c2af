"""The static pages, opened as files with no network: all links lead somewhere, and what is shown as live is alive."""

import os
import re
from html import unescape
from pathlib import Path

import pytest
from ui import probe
from ui.lab import Watched

from safediffkit.lessons.site import build

WIDGET = ".safediffkit-widget"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, made now; or those in the folder that the environment variable SITE names."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"]).resolve()
    out = tmp_path_factory.mktemp("site")
    build(out)
    return out


@pytest.fixture(scope="module")
def pages(site):
    return sorted(site.rglob("*.html"))


@pytest.fixture(scope="module")
def lessons(site):
    return sorted(site.glob("[0-9]*.html"))


@pytest.fixture(params=["light", "dark"])
def themed(request, browser):
    with Watched.opened(browser, "file:", color_scheme=request.param) as watched:
        watched.name = request.param
        yield watched


def show(watched, path):
    """Open a page and wait for its widgets and figures."""
    watched.page.goto(path.as_uri())
    alive = f"() => [...document.querySelectorAll('{WIDGET}')].every(place => !place.querySelector('noscript'))"
    watched.page.wait_for_function(alive)
    return watched.page


def test_every_page_opens_without_the_network_and_keeps_nobody_out(themed, pages, shots):
    sources = [path for path in pages if "source" in path.parts]
    shown = sorted({*pages} - {*sources[1:]})  # one source file looks like the other
    for path in shown if themed.name == "light" else shown[::3]:  # in the dark nothing but colours differs
        page = show(themed, path)
        assert probe.barriers(page, "html") == [], path.name
        assert page.locator("h1").count() == 1, path.name
        if len(path.relative_to(pages[0].parent).parts) == 1:
            page.screenshot(path=shots / f"site-{path.stem}-{themed.name}.png", full_page=True)
    assert themed.outside == []
    assert themed.errors == []


def test_every_link_leads_to_a_place_that_is_there(pages):
    texts = {path: path.read_text() for path in pages}
    for path, text in texts.items():
        for link in map(unescape, re.findall(r'<a [^>]*?href="([^"]*)"', text)):
            if re.match("https?:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor:
                assert f'id="{anchor}"' in map(unescape, re.findall(r'id="[^"]*"', texts[target])), (
                    f"{path.name}: {link}"
                )


def test_what_can_be_moved_is_alive_and_nothing_else_looks_so(watched, lessons):
    for path in lessons:
        page = show(watched, path)
        controls = "input, select, button, textarea, [role=slider], .jupyter-widgets"
        strangers = "([all, ours]) => [...document.querySelectorAll(all)].filter(one => !one.closest(ours)).length"
        assert page.evaluate(strangers, [controls, WIDGET]) == 0
        assert page.locator(".plot").count() == page.locator(".plot .main-svg:first-child").count()
        for root in page.locator(".safediffkit-explorer").all():
            slider = root.get_by_role("slider").first
            if not slider.count():
                continue
            before, at = probe.sight(root), root.get_attribute("data-setting") + root.get_attribute("data-step")
            least, now, most = probe.steps_of(slider)
            probe.drag(slider, 0.1 if now > (least + most) / 2 else 0.9)
            probe.settle(root)
            assert all(new != old for new, old in zip(probe.sight(root), before, strict=True))
            assert root.get_attribute("data-setting") + root.get_attribute("data-step") != at
        for root in page.locator(".safediffkit-predict").all():
            first = root.locator("input").first
            if first.get_attribute("type") == "number":
                first.fill("1")
            else:
                probe.press(first, "Space")
            probe.press(root.get_by_role("button", name="commit"), "Enter")
            assert root.get_by_role("status").text_content()
    assert watched.errors == []


def test_the_address_of_a_page_holds_what_was_moved(watched, lessons):
    page = show(watched, lessons[0])
    slider = page.locator(".safediffkit-explorer").first.get_by_role("slider").first
    probe.press(slider, "ArrowRight")
    page.wait_for_function("() => location.hash.includes('setting')")
    value = slider.input_value()
    page.reload()
    page.wait_for_selector(".safediffkit-explorer")
    assert slider.input_value() == value


def test_a_page_fits_a_narrow_window_and_paper(watched, lessons, site, shots):
    for path in [*lessons, site / "index.html", site / "equation_map.html"]:
        watched.page.set_viewport_size({"width": 400, "height": 800})
        page = show(watched, path)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path.name
        page.screenshot(path=shots / f"site-{path.stem}-400.png", full_page=True)
        page.emulate_media(media="print")
        assert page.locator(".safediffkit-widget button:visible").count() == 0
        assert (
            page.locator(".safediffkit-explorer canvas:visible").count()
            >= page.locator(".safediffkit-explorer").count()
        )
        page.pdf(path=shots / f"site-{path.stem}.pdf", format="A4")
        page.emulate_media(media="screen")
