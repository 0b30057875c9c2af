"""Equation map, glossary, lesson map, and what the lessons say of themselves."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from safediffkit.lessons import front_matter, lesson_map
from safediffkit.lessons.notebooks import anchor, bold_terms, lesson_paths, prose, read_notebook, source_tags
from safediffkit.lessons.pages import equation_map, gaps, main, mentions_in_code, mentions_in_tests, read_places

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
LESSONS = pytest.mark.parametrize("path", lesson_paths(TUTORIALS), ids=lambda path: path.stem)
LINK = re.compile(r"\[\[([^\]]+)\]\]\(equation_map\.md#([^)]+)\)")


def text_of(path):
    return "\n\n".join(cell["source"] for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")


def test_nothing_is_missing_between_papers_code_lessons_and_tests():
    assert gaps(ROOT) == []


def test_the_equation_map_is_fresh():
    assert main(["--check", "--root", str(ROOT)]) == 0


def test_every_numbered_equation_of_the_papers_has_its_row():
    _, places = read_places(TUTORIALS / "equations.toml")
    tags = {place.tag for place in places}
    counts = {"SPI": 12, "TCDP": 2, "DOM2": 5, "CBF": 16}
    assert {f"{paper} Eq. {k}" for paper, last in counts.items() for k in range(1, last + 1)} <= tags


def test_links_of_the_map_lead_to_their_lines():
    links = re.findall(r"\[(\w[\w.]*)\]\(\.\./([^#)]+)#L(\d+)\)", equation_map(ROOT))
    assert len(links) > 20
    for name, file, line in links:
        named = (ROOT / file).read_text().splitlines()[int(line) - 1 :]
        last = name.split(".")[-1]  # a class without bases ends in a colon
        assert int(line) == 1 or re.search(rf" {last}[(:]", " ".join(named[:2])), (name, file, line)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("[SPI Eq. 6]", ["SPI Eq. 6"]),
        ("a [SPI Eq. 10, 11], [DOM2 Eq. 4].", ["SPI Eq. 10", "SPI Eq. 11", "DOM2 Eq. 4"]),
        ("[DPM-Solver Eq. 3.7, DOM2 Eq. 4]", ["DOM2 Eq. 4"]),
        ("[SPI Sec. 4.1, Fig. 2] [DDPM Eq. 14]", ["SPI Sec. 4.1", "SPI Fig. 2"]),
        ("[Ho & Salimans 2022 Eq. 6, whose weight is this one less 1] [0, 1]", []),
    ],
)
def test_tags_are_read(text, tags):
    assert source_tags(text) == tags


def test_mentions_know_where_they_stand(tmp_path):
    (tmp_path / "a.py").write_text('class A:\n    def f(self):\n        """F. [SPI Eq. 6]"""\n')
    (tmp_path / "test_a.py").write_text('def test_f():\n    # [SPI Eq. 6]\n    assert "[SPI Eq. 7]"\n')
    assert [(m.tag, m.name, m.line) for m in mentions_in_code(tmp_path)] == [("SPI Eq. 6", "A.f", 2)]
    assert [(m.tag, m.name, m.line) for m in mentions_in_tests(tmp_path)] == [("SPI Eq. 6", "test_f", 1)]


def test_a_stale_page_is_told(tmp_path, capsys):
    for folder in ("tutorials", "safediffkit", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tutorials" / "equations.toml").write_text(
        '[papers]\nSPI = "S"\nTCDP = "T"\nDOM2 = "D"\nCBF = "C"\n[[place]]\ntag = "SPI Eq. 1"\nsays = "All."\n'
    )
    root = ["--root", str(tmp_path)]
    assert main(["--check", *root]) == 1
    assert "stale" in capsys.readouterr().err
    assert main(root) == main(["--check", *root]) == 0
    (tmp_path / "safediffkit" / "m.py").write_text('"""M. [SPI Eq. 2]"""\n')
    assert gaps(tmp_path) == [
        "SPI Eq. 1 has no function and no lesson and no test, and no reason why in equations.toml",
        "SPI Eq. 2 is tagged by a function and not in equations.toml",
    ]


@LESSONS
def test_a_lesson_tags_exactly_what_its_metadata_lists(path):
    _, places = read_places(TUTORIALS / "equations.toml")
    known = {place.tag for place in places}
    links = LINK.findall(text_of(path))
    assert all(place == anchor(tag) for tag, place in links), "a link leads elsewhere than it says"
    assert {tag for tag, _ in links} <= known
    assert set(front_matter(path).equations) <= {tag for tag, _ in links}
    bare = source_tags(LINK.sub("", text_of(path)))
    assert not bare, "tags in a lesson are links, outside of the formula"


@LESSONS
def test_bold_is_for_the_first_use_of_a_glossary_term(path):
    bold = Counter(term.lower() for term in bold_terms(prose(read_notebook(path))))
    assert set(bold) <= set(glossary())
    assert set(bold.values()) <= {1}


def glossary():
    entries = re.findall(
        r'^<a id="([^"]+)"></a>\n\*\*([^*]+)\*\*: .{20,}', (TUTORIALS / "glossary.md").read_text(), re.M
    )
    assert all(place == anchor(term) for place, term in entries)
    return [term.lower() for _, term in entries]


def test_every_glossary_entry_is_used_and_in_order():
    terms = glossary()
    assert terms == sorted(terms)
    assert (TUTORIALS / "glossary.md").read_text().count("**") == 2 * len(terms)
    used = {term.lower() for path in lesson_paths(TUTORIALS) for term in bold_terms(prose(read_notebook(path)))}
    assert set(terms) <= used


@LESSONS
def test_a_lesson_says_how_long_it_takes_and_asks_for_a_guess(path):
    lesson = front_matter(path)
    assert f"About {lesson.minutes} minutes" in text_of(path)
    assert text_of(path).startswith(f"# {lesson.number} · {lesson.title}\n")
    code = [cell["source"] for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
    assert any("guesses.choice(" in source or "guesses.number(" in source for source in code)


def make_lesson(folder, name, needs=(), **changes):
    said = {"title": name, "minutes": 5, "prerequisites": list(needs), "equations": []} | changes
    (folder / f"{name}.ipynb").write_text(json.dumps({"metadata": {"safediffkit": said}, "cells": []}))


def test_the_map_draws_every_lesson_and_arrow():
    drawn = str(lesson_map(TUTORIALS))
    lessons = [front_matter(path) for path in lesson_paths(TUTORIALS)]
    assert drawn.count("<rect") == drawn.count("<li>") == len(lessons)
    assert drawn.count("marker-end") == sum(len(lesson.prerequisites) for lesson in lessons)
    assert all(lesson.title in drawn for lesson in lessons)
    assert lesson_map(TUTORIALS)._repr_html_() == drawn


def test_a_map_that_cannot_be_drawn_is_refused(tmp_path):
    make_lesson(tmp_path, "01_a", ["02_b"])
    with pytest.raises(ValueError, match="01_a builds on 02_b"):
        lesson_map(tmp_path)
    make_lesson(tmp_path, "02_b", ["01_a"])
    with pytest.raises(ValueError, match="wait for one another"):
        lesson_map(tmp_path)


def test_missing_front_matter_is_named(tmp_path):
    make_lesson(tmp_path, "01_a", minutes="long")
    with pytest.raises(ValueError, match=r'01_a.ipynb needs a int "minutes".*\'long\''):
        front_matter(tmp_path / "01_a.ipynb")
