import base64
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from ipywidgets import HTML, Dropdown, FloatSlider, HBox, IntProgress, Widget
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from plotly.graph_objects import Figure

from safediffkit.lessons import Guesses, site
from safediffkit.widgets import explore, walker
from safediffkit.worlds.pixel_world import PixelWorld

TUTORIALS = site.REPOSITORY / "tutorials"
TEXTS = [*sorted(TUTORIALS.glob("*.ipynb")), *sorted(TUTORIALS.glob("*.md"))]


def texts(path):
    """Give the markdown of a file, cell by cell."""
    if path.suffix == ".md":
        return [path.read_text()]
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_formula_of_the_lessons_becomes_mathml(path):
    left = [tex for text in texts(path) for tex in re.findall(r'<code class="tex">.*?</code>', site.markdown(text))]
    assert left == []


@pytest.mark.parametrize(
    ("tex", "holds"),
    [
        (r"\big\| x \big\|^2", "‖"),
        (r"\arg\max_a Q", ">arg<"),
        (r"c'", "′"),
        (r"\big\{ x \big\}", ">{<"),
        (r"\mathbb{E}[x]", "𝔼"),
    ],
)
def test_what_the_converter_hands_through_is_mended(tex, holds):
    made = site.mathml(tex, "block")
    assert made.startswith("<math alttext=")
    assert holds in made.replace("&#x1D53C;", "𝔼")


def test_a_formula_that_cannot_be_converted_stays_as_it_stands():
    assert site.mathml(r"\nonsense < 1", "inline") == r'<code class="tex">\nonsense &lt; 1</code>'


@pytest.fixture
def root(tmp_path):
    """A repository of two lessons, a text, a picture and a source file."""
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials/glossary.md").write_text("# Glossary\n\nSee [one](00_one.ipynb) and [code](../code.py#L2).")
    (tmp_path / "tutorials/equation_map.md").write_text("no heading")
    (tmp_path / "tutorials/dot.png").write_bytes(base64.b64decode("iVBORw0KGgo="))
    (tmp_path / "code.py").write_text('"""Two\n\nlines."""\n\nx = "<a href=\'nowhere\'>"\n')
    for name, source in {
        "00_one": (
            "# One\n\n[two](02_two.ipynb#Part-two), [word](glossary.md#word), "
            "![a dot](dot.png), <a href='../code.py'>code</a>"
        ),
        "02_two": "## Part two\n\n[far](https://example.org), [up](#Part-two), `[no](link.md)`",
    }.items():
        facts = {"title": f"Lesson {name[3:]}", "minutes": 5, "equations": []}
        facts["prerequisites"] = ["00_one"] if name == "02_two" else []
        notebook = new_notebook(cells=[new_markdown_cell(source)], metadata={"safediffkit": facts})
        nbformat.write(notebook, tmp_path / f"tutorials/{name}.ipynb")
    return tmp_path


def read(path):
    return nbformat.read(path, 4)


def build(root, out="out"):
    site.build(root / out, root, read)
    return {str(path.relative_to(root / out)): path for path in (root / out).rglob("*") if path.is_file()}


def test_links_between_files_become_links_between_pages(root):
    made = build(root)
    assert made.keys() == {
        *("index.html", "00_one.html", "02_two.html", "glossary.html", "equation_map.html", "source/code.py.html"),
        *("pictures/tutorials/dot.png", "style.css", "plotly.min.js"),
    }
    one, two = made["00_one.html"].read_text(), made["02_two.html"].read_text()
    for link in ("02_two.html#Part-two", "glossary.html#word", "source/code.py.html"):
        assert f'href="{link}"' in one
    assert 'src="pictures/tutorials/dot.png" alt="a dot"' in one
    assert 'href="https://example.org"' in two
    assert '<h2 id="Part-two">' in two
    assert 'href="source/code.py.html#L2"' in made["glossary.html"].read_text()
    source = made["source/code.py.html"].read_text()
    assert source.count('class="line"') == 5
    assert "&lt;a href='nowhere'&gt;" in source


def test_the_first_page_maps_the_lessons(root):
    index = build(root)["index.html"].read_text()
    assert '<a href="02_two.html">2 · Lesson two</a>: 5 minutes, after lesson 0' in index
    assert 'href="glossary.html"' in index


def test_a_link_to_nowhere_is_refused(root):
    (root / "code.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"00_one.ipynb links to ../code.py, but there is no file code.py"):
        build(root)


def test_a_site_replaces_a_site_and_nothing_else(root):
    (root / "out").mkdir()
    build(root)
    (root / "out/old.html").touch()
    assert "old.html" not in build(root)
    with pytest.raises(FileExistsError, match="holds other files"):
        site.build(root / "tutorials", root, read)


def page(*cells, widgets=()):
    """Write a lesson of these cells as a page, the widgets' states as nbclient stores them."""
    state = Widget.get_manager_state(drop_defaults=False)["state"] if widgets else {}
    notebook = new_notebook(cells=list(cells), metadata={})
    notebook.metadata["widgets"] = {site.WIDGETS: {"state": state}}
    lesson = Path("tutorials/01_pixel_world_cost_remap.ipynb")
    return site.lesson_page(nbformat.from_dict(notebook), lesson, [lesson], site.Links(site.REPOSITORY))


def code(source, *outputs, **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def test_folded_code_stays_folded_and_its_output_in_sight():
    output = new_output("stream", name="stdout", text="a < b")
    made = page(code("print('a < b')", output, jupyter={"source_hidden": True}))
    folded, _, after = made.partition("</details>")
    assert "<summary>Code of what follows</summary>" in folded
    assert '<pre class="output">a &lt; b</pre>' in after


def test_a_figure_is_drawn_by_the_page_and_named_by_its_title():
    figure = Figure({"layout": {"title": {"text": "Q<sup>c</sup> </script>"}}, "data": [{"y": [1, 2]}]})
    made = page(code("figure", new_output("display_data", data={site.PLOTLY: figure.to_plotly_json()})))
    assert 'aria-label="Qc "' in made
    assert '<script src="plotly.min.js"></script>' in made
    assert made.count("</script>") == 2


def test_the_richest_form_of_an_output_is_shown():
    html = {"text/html": "<b>html</b>", "text/plain": "plain"}
    text = {"text/markdown": "*markdown*", "text/plain": "plain"}
    made = page(*(code("x", new_output("execute_result", data=data)) for data in (html, text, {"text/plain": "<p>"})))
    assert "<b>html</b>" in made
    assert "<em>markdown</em>" in made
    assert "&lt;p&gt;" in made
    assert "plain" not in made.replace("plain-", "")


def test_a_failed_lesson_makes_no_page():
    with pytest.raises(RuntimeError, match=r"cost_remap.ipynb ended with ValueError: no"):
        page(code("x", new_output("error", ename="ValueError", evalue="no")))


def showing(widget):
    """Write a page that shows one widget."""
    view = {site.VIEW: {"model_id": widget.model_id}, "text/plain": "VBox(...)"}
    return page(code("x", new_output("execute_result", data=view)), widgets=[widget])


def test_controls_that_need_python_are_told_of_and_not_shown():
    made = showing(explore(lambda a, b: f"<b>{a}{b}</b>", a=FloatSlider(0.5), b=Dropdown(options=["x", "y"])))
    assert "<b>0.5x</b>" in made
    assert "Shown at a: 0.5, b: x. Its controls need Python" in made
    assert not re.search("<(input|select|button)", made)


def test_a_world_to_walk_shows_where_it_stands():
    made = showing(walker(PixelWorld(2, render_mode="ansi")))
    assert "@ T" in made
    assert "Its buttons need Python" in made
    assert "start again" not in made


def test_a_live_figure_becomes_a_still_one_with_its_arrays():
    def draw(weight):
        return Figure({"data": [{"y": np.arange(3.0)}], "layout": {"title": {"text": f"weight {weight}"}}}), "words"

    made = showing(explore(draw, weight=FloatSlider(0.5)))
    figure = json.loads(re.search(r'<script type="application/json">(.*?)</script>', made)[1])
    array = figure["data"][0]["y"]
    assert (array["dtype"], array["shape"]) == ("f8", "3")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(array["bdata"])), [0, 1, 2])
    assert figure["layout"]["title"]["text"] == "weight 0.5"
    assert "words" in made
    assert not re.search("<(input|select|button)", made)


def test_a_progress_bar_leaves_nothing():
    made = showing(HBox([HTML("training"), IntProgress(3), HTML("3/3")]))
    assert "training" not in made


def test_a_guess_stays_alive():
    guess = Guesses().choice("Which?", {"this": "", "that": ""}, right="this")
    made = showing(guess)
    assert "Which?" in made
    assert "need Python" not in made
