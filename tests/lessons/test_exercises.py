"""Every exercise of every lesson, and what an exercise can tell."""

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from safediffkit.lessons import Exercise
from safediffkit.lessons.exercise import FAILED, OPEN, UNLIKE
from safediffkit.lessons.notebooks import lesson_paths, read_notebook
from safediffkit.lessons.solutions import exercises, solution_code

TUTORIALS = Path(__file__).parents[2] / "tutorials"
MODULES = [path.stem for path in sorted((TUTORIALS / "checks").glob("[!_]*.py"))]


def in_module(module):
    checks = importlib.import_module(f"checks.{module}")
    return {name: value for name, value in vars(checks).items() if isinstance(value, Exercise)}


ALL = [(module, name) for module in MODULES for name in in_module(module)]


def in_lessons():
    """Find the lesson of each module of checks: module -> (lesson, what it imports, its exercises' cells)."""
    found = {}
    for path in lesson_paths(TUTORIALS):
        notebook = read_notebook(path)
        code = [ast.parse(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        froms = [node for tree in code for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules = [alias.name for node in froms if node.module == "checks" for alias in node.names]
        imports = [node for tree in code for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for module in modules:
            found[module] = path.stem, imports, exercises(notebook)
    return found


LESSONS = in_lessons()


def run(code, imports, attempt):
    # a cell may use what its lesson imports
    names = {}
    exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    exec(code, names)
    return eval(attempt, names)


def attempt_of(cells):
    return cells["check"]["source"].split("(", 1)[1].rstrip(")\n")


@pytest.mark.parametrize(("module", "name"), ALL)
def test_every_slip_gets_its_own_hint(module, name):
    exercise = in_module(module)[name]
    assert exercise(exercise.solution).right
    assert len(exercise.slips) >= 3
    for slip, answer in exercise.slips.items():
        verdict = exercise(answer)
        assert (verdict.name, verdict.right) == (slip, False)
        assert len(verdict.words) > 20
    hints = [exercise(answer).words for answer in exercise.slips.values()]
    assert len(set(hints)) == len(hints)


@pytest.mark.parametrize(("module", "name"), ALL)
def test_stub_and_solution_stand_in_the_lesson(module, name):
    lesson, imports, found = LESSONS[module]
    assert name in found, f"{lesson} has no cells marked as the exercise {name}"
    cells, exercise = found[name], in_module(module)[name]
    untouched = exercise(run(cells["stub"]["source"], imports, attempt_of(cells)))
    assert untouched.name == OPEN, untouched
    solved = exercise(run(solution_code(cells["solution"]), imports, attempt_of(cells)))
    assert solved.right, solved


def test_every_lesson_has_two_exercises_and_no_unknown_one():
    for module, (lesson, _, found) in LESSONS.items():
        assert len(found) >= 2, lesson
        assert set(found) == set(in_module(module)), lesson
    assert {lesson for lesson, _, _ in LESSONS.values()} == {path.stem for path in lesson_paths(TUTORIALS)}


double = Exercise(
    lambda x: 2 * x,
    trials=[(1.0,), (np.array([1.0, 3.0]),)],
    slips={"squared": (lambda x: x**2, "That is the square.")},
    why="Twice.",
    hint="Try 1.",
)


def test_what_an_attempt_may_get():
    assert repr(double(lambda x: x + x)) == "✓ Right. Twice."
    assert double(lambda x: x * x).words == "That is the square."
    assert double(None).name == double(lambda x: None).name == OPEN
    failed = double(lambda x: x.nothing)
    assert failed.name == FAILED
    assert "AttributeError" in failed.words
    assert double(3).name == UNLIKE


def test_what_is_unlike_all_names_a_trial():
    words = double(lambda x: 2 * np.sum(x)).words
    assert words == "Not yet. Given x = [1., 3.], the answer is an array of shape (2,); yours is 8. Try 1."


def test_none_on_some_trials_is_an_answer():
    assert double(lambda x: 2.0 if np.ndim(x) == 0 else None).name == UNLIKE


def test_an_attempt_may_change_what_it_gets():
    def in_place(x):
        x *= 2
        return x

    assert double(in_place).right
    assert double(lambda x: 2 * x).right


def test_tensors_arrays_and_lists_compare_by_their_numbers():
    grown = Exercise(lambda x: (x + 1, x.sum()), trials=[(torch.ones(2),)], slips={"same": (lambda x: (x, 2.0), "No.")})
    assert grown(lambda x: [[2.0, 2.0], 2]).name != FAILED
    assert grown(lambda x: (np.array([2, 2]), torch.tensor(2))).right
    assert grown(lambda x: (x, torch.tensor([2.0]))).name == "same"
    assert grown(lambda x: "two").name == UNLIKE


def test_an_outcome_compares_what_it_likes():
    def slope(function):
        x = torch.tensor(3.0, requires_grad=True)
        return torch.autograd.grad(function(x), x)[0]

    square = Exercise(lambda x: x**2, outcome=slope, slips={"cubed": (lambda x: x**3, "Once too often.")})
    assert square(lambda x: x * x + 7).right
    assert square(lambda x: x * x * x).words == "Once too often."
    assert square(lambda x: None).name == OPEN


def test_a_value_may_be_asked_for():
    nine = Exercise(9.0, slips={"upside down": (1 / 9, "Turn it.")})
    assert nine(9).right
    assert nine(1 / 9).words == "Turn it."
    assert nine(None).name == OPEN
    assert nine(8).words == "Not yet. The answer is one number; yours is 8."
    assert nine(lambda: 9).name == UNLIKE


def test_slips_that_the_trials_cannot_tell_apart_are_refused():
    with pytest.raises(ValueError, match="'squared' from 'right'"):
        Exercise(lambda x: 2 * x, trials=[(2.0,)], slips={"squared": (lambda x: x**2, "")})
    slips = {"squared": (lambda x: x**2, ""), "again": (lambda x: x * x, "")}
    with pytest.raises(ValueError, match="'again' from 'squared'"):
        Exercise(lambda x: 2 * x, trials=[(3.0,)], slips=slips)
    with pytest.raises(ValueError, match="trials or an outcome"):
        Exercise(lambda x: 2 * x)


def test_a_verdict_is_shown_with_more_than_colour():
    verdict = double(lambda x: "<b>")
    assert "&lt;b&gt;" in verdict._repr_html_()
    assert "✗" in verdict._repr_html_()
    assert "✓" in double(double.solution)._repr_html_()
    assert "○" in double(None)._repr_html_()
