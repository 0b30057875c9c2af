"""Lessons with every exercise solved, for tests: `python -m safediffkit.lessons.solutions tutorials OUT`."""

import argparse
import ast
import json
import re
import shutil
from pathlib import Path

from safediffkit.lessons.notebooks import Cell, exercise_part, lesson_paths, read_notebook

PARTS = ("stub", "check", "solution")
_FENCE = re.compile(r"<details>.*?</summary>\s*```python\n(.*?)\n```\s*</details>", re.DOTALL)


def exercises(notebook: Cell) -> dict[str, dict[str, Cell]]:
    """Give the three cells of each exercise in a lesson: exercise -> part -> cell.

    Raises:
        ValueError: an exercise lacks a part, has one twice, or a cell's mark is not understood.
    """
    found: dict[str, dict[str, Cell]] = {}
    for cell in notebook["cells"]:
        if marked := exercise_part(cell):
            name, part = marked
            if part not in PARTS or part in found.get(name, {}):
                raise ValueError(
                    f"the parts of an exercise are {', '.join(PARTS)}, once each; {name} has another {part}"
                )
            found.setdefault(name, {})[part] = cell
    for name, cells in found.items():
        if missing := [part for part in PARTS if part not in cells]:
            raise ValueError(f"the exercise {name} has no {' and no '.join(missing)}: mark the cell in its metadata")
    return found


def solution_code(cell: Cell) -> str:
    """Take the code out of a folded solution.

    Raises:
        ValueError: the cell holds no folded block of Python.
    """
    fenced = _FENCE.findall(cell["source"])
    if len(fenced) != 1:
        raise ValueError(
            f"a solution is one python block inside <details>; this cell has {len(fenced)}: {cell['source']}"
        )
    return str(fenced[0])


def solve(notebook: Cell) -> Cell:
    """Put each solution in the place of its stub, and let each check insist that it is right; changes `notebook`.

    Raises:
        ValueError: an exercise lacks a part, or a check is more than `checks.<exercise>(<attempt>)`.
    """
    for name, cells in exercises(notebook).items():
        call = cells["check"]["source"].strip()
        if not (call.startswith(f"checks.{name}(") and isinstance(ast.parse(call, mode="eval").body, ast.Call)):
            raise ValueError(f"the check of {name} must be the one expression checks.{name}(<attempt>); it is {call}")
        cells["stub"]["source"] = solution_code(cells["solution"])
        cells["check"]["source"] = f"assert (verdict := {call}).right, verdict"
    return notebook


def solved_copy(folder: Path | str, out: Path | str) -> list[Path]:
    """Write the lessons of `folder`, solved, to `out`, and all that lies beside them as links; list the lessons.

    Raises:
        FileExistsError: there is something in `out` already.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder, or remove this one first")
    out.mkdir(parents=True, exist_ok=True)
    lessons = lesson_paths(folder)
    for path in sorted(folder.iterdir()):
        if path in lessons:
            (out / path.name).write_text(json.dumps(solve(read_notebook(path)), indent=1), encoding="utf-8")
        elif path.suffix == ".py" or path.name == "checks":  # copied, so that caches are not written into the source
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, out / path.name)
        elif not path.name.startswith("."):
            (out / path.name).symlink_to(path.resolve())
    return lesson_paths(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the lessons are")
    parser.add_argument("out", help="a new folder for the solved ones")
    arguments = parser.parse_args()
    for lesson in solved_copy(arguments.folder, arguments.out):
        print(lesson)
