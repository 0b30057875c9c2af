"""Every lesson, solved, in a kernel of its own: it runs, in time, in little memory, and its minutes are plausible."""

import json
from pathlib import Path

import pytest

from safediffkit.lessons.notebooks import front_matter, lesson_paths, read_notebook
from safediffkit.lessons.running import MAX_MEGABYTES, MAX_SECONDS, reading_minutes, report, run_lesson
from safediffkit.lessons.solutions import solve, solved_copy

TUTORIALS = Path(__file__).parents[2] / "tutorials"


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solved")
    return {path.stem: path for path in solved_copy(TUTORIALS, folder)}


# what the notebook tools warn of between themselves is not ours to keep
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("lesson", [path.stem for path in lesson_paths(TUTORIALS)])
def test_a_solved_lesson_runs_in_time_and_memory(solved, lesson, capsys):
    run = run_lesson(solved[lesson])
    with capsys.disabled():
        print(f"\n{report(solved[lesson], run)}", end=" ")
    assert run.seconds < MAX_SECONDS
    assert run.megabytes is None or run.megabytes < MAX_MEGABYTES
    stated = front_matter(solved[lesson]).minutes
    assert stated == pytest.approx(reading_minutes(read_notebook(TUTORIALS / f"{lesson}.ipynb"), run.seconds), rel=0.3)


def cell(kind, source, part=None, name="double"):
    marked = {"safediffkit": {"exercise": name, "part": part}} if part else {}
    return {"cell_type": kind, "source": source, "metadata": marked}


def exercise():
    solution = "<details><summary>Solution</summary>\n\n```python\nx = 2\n```\n\n</details>"
    return [
        cell("code", "x = None", "stub"),
        cell("code", "checks.double(x)", "check"),
        cell("markdown", solution, "solution"),
    ]


def test_solving_puts_the_solution_in_the_place_of_the_stub():
    first, second, third = solve({"cells": exercise()})["cells"]
    assert first["source"] == "x = 2"
    assert second["source"] == "assert (verdict := checks.double(x)).right, verdict"
    assert "<details>" in third["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells.pop(1), "no check"),
        (lambda cells: cells.append(cells[0]), "another stub"),
        (lambda cells: cells[2].update(source="x = 2"), "has 0"),
        (lambda cells: cells[1].update(source="print(checks.double(x))"), "one expression"),
    ],
)
def test_a_half_made_exercise_is_refused(change, message):
    cells = exercise()
    change(cells)
    with pytest.raises(ValueError, match=message):
        solve({"cells": cells})


def test_a_copy_leaves_the_source_alone_and_asks_for_an_empty_place(tmp_path):
    source = tmp_path / "lessons"
    (source / "checks").mkdir(parents=True)
    (source / "checks" / "a.py").write_text("")
    (source / "glossary.md").write_text("words")
    (source / "01_a.ipynb").write_text(json.dumps({"cells": exercise(), "metadata": {}}))
    (copied,) = solved_copy(source, tmp_path / "out")
    assert read_notebook(copied)["cells"][0]["source"] == "x = 2"
    assert read_notebook(source / "01_a.ipynb")["cells"][0]["source"] == "x = None"
    assert (tmp_path / "out" / "glossary.md").read_text() == "words"
    assert (tmp_path / "out" / "checks" / "a.py").exists()
    with pytest.raises(FileExistsError, match="not empty"):
        solved_copy(source, tmp_path / "out")
