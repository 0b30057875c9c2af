"""The lessons as plain web pages that need no network and no kernel: `python -m safediffkit.lessons.site OUT`.

Every lesson is run; formulas become MathML, figures keep their plotly, and the widgets of this library stay alive. A
control that would need Python is never shown: what it last showed is, with a word on where it can be moved.
"""

import argparse
import copy
import html
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safediffkit.lessons.map import lesson_map
from safediffkit.lessons.notebooks import front_matter, lesson_paths
from safediffkit.widgets.page import embed, place

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
WIDGETS, VIEW = "application/vnd.jupyter.widget-state+json", "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"
PICTURES = {".png", ".svg", ".jpg", ".gif"}
REFERENCE = {
    "glossary.md": "Glossary: every word that the lessons print in bold",
    "equation_map.md": "Equation map: from each equation to the code, the lesson and the test",
}
# Commands that latex2mathml hands through, alone or after \big
LEFT_STANDING = {r"\arg": "arg", r"\|": "‖", r"\Vert": "‖", r"\{": "{", r"\}": "}"}
ELSEWHERE = re.compile(r"[a-z]+:|#|//")


@dataclass(frozen=True)
class Links:
    """Where the files of the repository stand in the site, and which of them the pages made so far point to."""

    root: Path
    wanted: dict[Path, None] = field(default_factory=dict)

    def rewrite(self, text: str, page: Path) -> str:
        """Point every link and picture in HTML, written for the file `page`, to its place in the site."""
        pattern = r"""(<(?:a|img)\b[^<>]*?\b(?:href|src)=)(["'])(.*?)\2"""
        return re.sub(pattern, lambda m: f'{m[1]}"{html.escape(self.place(html.unescape(m[3]), page))}"', text)

    def place(self, link: str, page: Path) -> str:
        """Give the address in the site of what `link` in the file `page` points to, relative to that page.

        Raises:
            FileNotFoundError: there is no such file in the repository.
        """
        if ELSEWHERE.match(link):
            return link
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / name))
        if not (self.root / target).is_file():
            raise FileNotFoundError(f"{page} links to {link}, but there is no file {target}")
        self.wanted[target] = None
        return os.path.relpath(address(target), address(page).parent) + (f"#{anchor}" if anchor else "")


def address(file: Path) -> Path:
    """Say where a file of the repository stands in the site: lessons at the top, sources and pictures in folders."""
    if file.suffix in PICTURES:
        return Path("pictures", *file.parts)
    top = file.parent == Path("tutorials") and file.suffix in (".ipynb", ".md")
    return Path(f"{file.stem}.html") if top else Path("source", *file.parts[:-1], f"{file.name}.html")


def build(out: Path, root: Path = REPOSITORY, run: Callable[[Path], Any] | None = None) -> list[Path]:
    """Write the whole site into `out`, which must be new or a site made before, and give the pages.

    `run` turns the path of a lesson into the notebook with its outputs; by default it is executed.

    Raises:
        FileExistsError: `out` holds something that is no site.
        FileNotFoundError: a link of a lesson leads nowhere.
    """
    if out.exists() and any(out.iterdir()) and not (out / "style.css").exists():
        raise FileExistsError(f"{out} holds other files: name a new folder, or one that `make site` made before")
    links, pages = Links(root), {}
    lessons = [path.relative_to(root) for path in lesson_paths(root / "tutorials")]
    for lesson in lessons:
        print(f"running {lesson.stem}", flush=True)
        notebook = (run or execute)(root / lesson)
        pages[address(lesson)] = lesson_page(notebook, lesson, lessons, links)
    pages[Path("index.html")] = index_page(links)
    done = set(lessons)
    while todo := [file for file in links.wanted if file not in done]:
        for file in todo:
            done.add(file)
            if file.suffix not in PICTURES:
                pages[address(file)] = other_page(file, links)
    shutil.rmtree(out, ignore_errors=True)
    for at, text in pages.items():
        (out / at).parent.mkdir(parents=True, exist_ok=True)
        (out / at).write_text(text)
    for file in done:
        if file.suffix in PICTURES:
            (out / address(file)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, out / address(file))
    (out / "style.css").write_text((HERE / "site.css").read_text() + colours())
    (out / "plotly.min.js").write_text(plotly_source())
    return sorted(out / at for at in pages)


def execute(path: Path) -> Any:
    """Run a notebook in a fresh kernel, in its own folder, and give it with its outputs and its widgets' states."""
    import nbformat
    from nbclient import NotebookClient

    # The default renderer would put all of plotly into each notebook once more.
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=True,
        extra_arguments=["--log-level=ERROR"],  # else it warns of plain text between us, which stays on this machine
    )
    client.execute()
    return notebook


def lesson_page(notebook: Any, lesson: Path, lessons: list[Path], links: Links) -> str:
    """Write an executed lesson as a page."""
    models = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    alive, widgets = embedded({key: model for key, model in models.items() if lives(model)})
    cells = "\n".join(cell_html(cell, models, alive, lesson, links) for cell in notebook.cells)
    at = lessons.index(lesson)
    steps = {"Before": lessons[at - 1 : at], "Next": lessons[at + 1 : at + 2]}
    on = "".join(
        f'<p>{word}: <a href="{address(file)}">{html.escape(title_of(links.root / file))}</a></p>'
        for word, files in steps.items()
        for file in files
    )
    banner = (
        f'<p class="note">You are reading lesson {lesson.stem.partition("_")[0]} as a web page. What moves here, moves '
        'without Python. To change the code and to do the exercises, <a href="index.html#run">open it in '
        "JupyterLab</a>.</p>"
    )
    body = banner + cells + f'<nav aria-label="lessons">{on}</nav>' + widgets
    return page_html(title_of(links.root / lesson), body, address(lesson))


def cell_html(cell: Any, models: dict[str, Any], alive: dict[str, str], lesson: Path, links: Links) -> str:
    """Write one cell: text, or code and what it put out."""
    if cell.cell_type == "markdown":
        return links.rewrite(markdown(cell.source), lesson)
    if cell.cell_type != "code" or not cell.source.strip():
        return ""
    code = highlighted(cell.source)
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        code = f'<details class="code"><summary>Code of what follows</summary>{code}</details>'
    if cell.metadata.get("safediffkit", {}).get("part") == "stub":
        code = f'<p class="note">Yours to write, in JupyterLab:</p>{code}'
    return code + "\n".join(output_html(output, models, alive, lesson, links) for output in cell.outputs)


def output_html(output: Any, models: dict[str, Any], alive: dict[str, str], lesson: Path, links: Links) -> str:
    """Write one output in the richest form that a plain page can show."""
    if output.output_type == "stream":
        return f'<pre class="output">{html.escape(output.text)}</pre>' if output.text.strip() else ""
    if output.output_type == "error":
        raise RuntimeError(f"a cell of {lesson} ended with {output.ename}: {output.evalue}")
    data = output.data
    if VIEW in data:
        key = data[VIEW]["model_id"]
        return alive[key] if key in alive else frozen(key, models)
    if PLOTLY in data:
        return plot(data[PLOTLY])
    if "text/html" in data:
        return f'<div class="output">{links.rewrite(data["text/html"], lesson)}</div>'
    if "text/markdown" in data:
        return f'<div class="output">{links.rewrite(markdown(data["text/markdown"]), lesson)}</div>'
    if "image/svg+xml" in data:
        return f'<figure class="output">{data["image/svg+xml"]}</figure>'
    if "image/png" in data:
        words = html.escape(data.get("text/plain", "picture"))
        return f'<figure class="output"><img src="data:image/png;base64,{data["image/png"]}" alt="{words}"></figure>'
    return f'<pre class="output">{html.escape(data.get("text/plain", ""))}</pre>'


# Widgets ---------------------------------------------------------------------------------------------------------


def lives(model: Any) -> bool:
    """Tell whether a widget is one of ours, which work without a kernel."""
    return str(model["state"].get("_anywidget_id", "")).startswith("safediffkit.")


def embedded(models: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Write widgets of ours so that they work in a page: the place of each, and what must stand after them all."""
    if not models:
        return {}, ""
    # Names that the next run gives again: a link to a state holds the name of its widget.
    names = {key: f"w{number}" for number, key in enumerate(models, 1)}
    states = {names[key]: (model["state"], model.get("buffers", [])) for key, model in models.items()}
    return {key: f'<div class="output">{place(name)}</div>' for key, name in names.items()}, embed(states, placed=True)


def frozen(key: str, models: dict[str, Any]) -> str:
    """Write what a widget that needs a kernel showed last, without its controls, and say where they can be moved."""
    parts, controls = shown(key, models)
    if not parts:
        return ""
    at = f"Shown at {html.escape(', '.join(controls))}. Its controls" if controls else "Its buttons"
    note = f'{at} need Python: <a href="index.html#run">open the lesson in JupyterLab</a> to use them.'
    return f'<div class="output frozen">{"".join(parts)}<p class="note">{note}</p></div>'


def shown(key: str, models: dict[str, Any]) -> tuple[list[str], list[str]]:
    """List what a widget and those in it show, as HTML, and the settings of its controls, as words."""
    model = models[key]
    state, kind = model["state"], model["model_name"]
    if "IntProgress" in kind or "FloatProgress" in kind:
        return [], []
    if kind == "HTMLModel":
        return [f"<div>{state.get('value', '')}</div>"] if state.get("value") else [], []
    if str(state.get("_anywidget_id")).startswith("plotly."):
        return [plot(figure_of(model))], []
    if "children" in state:
        inner = [child.removeprefix("IPY_MODEL_") for child in state["children"]]
        # A progress bar with the words at its two ends
        if any("Progress" in models[child]["model_name"] for child in inner):
            return [], []
        found = [shown(child, models) for child in inner]
        return [part for parts, _ in found for part in parts], [name for _, names in found for name in names]
    value = state["_options_labels"][state["index"]] if "_options_labels" in state else state.get("value")
    return [], [f"{state['description']}: {value}"] if state.get("description") and value is not None else []


def figure_of(model: Any) -> dict[str, Any]:
    """Give the figure that a plotly FigureWidget holds, its arrays written as plotly reads them in text."""
    state = copy.deepcopy({name: model["state"][name] for name in ("_widget_data", "_widget_layout")})
    for buffer in model.get("buffers", []):
        name, *way, last, _ = buffer["path"]
        if name in state:
            holder = state[name]
            for step in way:
                holder = holder[step]
            array = holder[last]
            kind = np.dtype(array["dtype"]).str[1:]
            holder[last] = {"dtype": kind, "bdata": buffer["data"], "shape": ", ".join(map(str, array["shape"]))}
    return {"data": state["_widget_data"], "layout": state["_widget_layout"]}


def plot(figure: Any) -> str:
    """Write a plotly figure, to be drawn by the page."""
    title = figure["layout"].get("title", {}).get("text") or "figure"
    words = html.escape(re.sub(r"<[^>]*>", "", title))
    data = json.dumps({"data": figure["data"], "layout": figure["layout"]}).replace("<", "\\u003c")
    wide = figure["layout"].get("width", 700)
    high = figure["layout"].get("height", 450)
    return (
        f'<figure class="plot" tabindex="0" aria-label="{words}"><div style="width: {wide}px; height: {high}px">'
        f'<script type="application/json">{data}</script></div></figure>'
    )


def plotly_source() -> str:
    """Give plotly's own script, and the few lines that draw the figures of a page with it."""
    from plotly.offline import get_plotlyjs

    draw = """
for (const script of document.querySelectorAll(".plot script")) {
  const { data, layout } = JSON.parse(script.textContent);
  Plotly.newPlot(script.parentElement, data, layout, { displayModeBar: false });
}
"""
    return str(get_plotlyjs()) + draw


# Text ------------------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Write markdown as HTML, its formulas as MathML and its code coloured."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<div class="formula" tabindex="0">{mathml(body, "block")}</div>'

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

        def heading(self, text: str, level: int, **attrs: Any) -> str:
            # The names that JupyterLab gives headings, so that links to them work in both
            name = html.escape(html.unescape(re.sub(r"<[^>]*>", "", text)).replace(" ", "-"))
            return f'<h{level} id="{name}">{text}</h{level}>\n'

        def block_code(self, code: str, info: str | None = None) -> str:
            return highlighted(code, info or "text")

        def link(self, text: str, url: str, title: str | None = None) -> str:
            # The long names of tests may part at their underscores.
            return super().link(text.replace("_", "_<wbr>"), url, title)

        def table(self, text: str) -> str:
            return f'<div class="table" tabindex="0" role="region" aria-label="table"><table>{text}</table></div>'

        def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
            kind = "th" if head else "td"
            return f"<{kind}{f' class={align}' if align else ''}>{text}</{kind}>\n"

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(text)


def mathml(tex: str, display: str) -> str:
    """Write a formula as MathML, or as it stands, marked by the class `tex`, if it cannot be converted."""
    from latex2mathml.converter import convert

    try:
        # A sign of its own, since few fonts have the prime that belongs into a superscript
        made = convert(tex.strip().replace("'", "′"), display=display)
    except Exception:  # it raises many kinds
        made = "\\"
    for command, sign in LEFT_STANDING.items():
        made = made.replace(f">{command}<", f">{sign}<")
    if "\\" in made:
        return f'<code class="tex">{html.escape(tex.strip())}</code>'
    return made.replace("<math ", f'<math alttext="{html.escape(tex.strip())}" ', 1)


def highlighted(code: str, language: str = "python") -> str:
    """Colour code."""
    return f'<pre class="code">{"".join(lines(code, language))}</pre>'


def lines(code: str, language: str) -> list[str]:
    """Colour code and give its lines, each HTML that stands by itself."""
    from pygments import highlight  # type: ignore[import-untyped, unused-ignore]  # it ships no types
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped, unused-ignore]
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped, unused-ignore]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped, unused-ignore]

    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True))).splitlines(keepends=True)


def colours() -> str:
    """Write the colours of code for light pages and for dark ones."""
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped, unused-ignore]

    light, dark = (
        HtmlFormatter(style=style, nobackground=True).get_style_defs("pre") for style in ("default", "github-dark")
    )
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


# Pages -----------------------------------------------------------------------------------------------------------


def other_page(file: Path, links: Links) -> str:
    """Write a text of the repository as a page: markdown as such, anything else with numbered lines to link to."""
    text = (links.root / file).read_text()
    if file.suffix == ".md":
        body = links.rewrite(markdown(text), file)
        title = re.search(r"^# (.+)", text, flags=re.MULTILINE)
        return page_html(title[1] if title else file.stem.replace("_", " "), body, address(file))
    language = {".py": "python", ".js": "javascript", ".toml": "toml", ".json": "json"}.get(file.suffix, "text")
    numbered = "".join(
        f'<span class="line" id="L{number}"><a href="#L{number}" aria-label="line {number}">{number}</a>{line}</span>'
        for number, line in enumerate(lines(text, language), 1)
    )
    body = f"<h1><code>{file}</code></h1>\n" + f'<pre class="code source">{numbered}</pre>'
    return page_html(str(file), body, address(file))


def index_page(links: Links) -> str:
    """Write the first page: the lessons, how long they take and what they build on, and how to run them."""
    folder = Path("tutorials")
    lessons = links.rewrite(str(lesson_map(links.root / folder)), folder / "index.md")
    pages = "".join(
        f'<li><a href="{links.place(name, folder / "index.md")}">{words}</a></li>' for name, words in REFERENCE.items()
    )
    body = f"""<h1>safediffkit</h1>
<p>Learn safe offline reinforcement learning with diffusion models by doing it. These pages hold the lessons as they
came out when they were last run. What moves here, moves without Python.</p>
<h2 id="lessons">Lessons</h2>{lessons}
<h2 id="pages">To look things up</h2><ul>{pages}</ul>
<h2 id="run">Run a lesson yourself</h2>
<p>To change code, do the exercises and move what needs Python, open the lessons in JupyterLab. On your own machine,
with Python 3.11 and <code>make</code> at hand, in a clone of the repository:</p>
<pre class="code">make lab</pre>
<p>The README there also tells how to open one in Binder, where nothing has to be installed.</p>"""
    return page_html("safediffkit: the lessons", body, Path("index.html"))


def title_of(path: Path) -> str:
    """Give a lesson's number and title."""
    lesson = front_matter(path)
    return f"{lesson.number} · {lesson.title}"


def page_html(title: str, body: str, place: Path) -> str:
    """Write a whole page around its body."""
    up = "../" * (len(place.parts) - 1)
    plotly = f'<script src="{up}plotly.min.js"></script>' if '<figure class="plot"' in body else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{up}style.css">
</head>
<body>
<a class="skip" href="#main">Skip to the text</a>
<header><nav aria-label="site"><a href="{up}index.html">safediffkit: all lessons</a></nav></header>
<main id="main">
{body}
</main>
{plotly}
</body>
</html>
"""


def main() -> None:
    """Build the site from the command line."""
    parser = argparse.ArgumentParser(description="Run all lessons and write them as static pages.")
    parser.add_argument("out", type=Path, help="folder to write")
    out = parser.parse_args().out
    pages = build(out)
    print(f"{len(pages)} pages: open {out / 'index.html'}")


if __name__ == "__main__":
    main()
