"""What a lesson takes to run and to read: `python -m safediffkit.lessons.running tutorials/*.ipynb`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safediffkit.lessons.notebooks import Cell, exercise_part, front_matter, prose, read_notebook

MAX_SECONDS, MAX_MEGABYTES = 60, 700
# A reader's minutes, in words and cells: prose of this kind is read twice in places, and a cell is run and looked at.
WORDS_A_MINUTE, MINUTES_A_CELL, MINUTES_AN_EXERCISE = 130, 0.4, 4


@dataclass(frozen=True)
class Run:
    """How long a lesson ran, and the most memory that its kernel held (None: not measured on this system)."""

    seconds: float
    megabytes: float | None


def run_lesson(path: Path | str, timeout: int = 120) -> Run:
    """Execute a lesson in a kernel of its own and measure it; a cell that fails raises, the file stays as it is."""
    import nbformat
    from nbclient import NotebookClient

    path = Path(path).resolve()
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call, unused-ignore]
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources)
    start = time.perf_counter()
    with client.setup_kernel():
        for k, cell in enumerate(notebook.cells):
            client.execute_cell(cell, k)
        return Run(time.perf_counter() - start, _peak_megabytes(client))


def _peak_megabytes(client: Any) -> float | None:
    # not ru_maxrss: on Linux a process takes that over from the one that started it
    status = Path(f"/proc/{client.km.provisioner.pid}/status")
    if not status.exists():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def reading_minutes(notebook: Cell, seconds: float) -> float:
    """Estimate how long a learner takes for a lesson that runs for `seconds`."""
    code = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    tasks = sum((exercise_part(cell) or ("", ""))[1] == "stub" for cell in notebook["cells"])
    words = len(prose(notebook).split()) / WORDS_A_MINUTE
    return float(words + code * MINUTES_A_CELL + tasks * MINUTES_AN_EXERCISE + seconds / 60)


def report(path: Path | str, run: Run) -> str:
    """Write one line on a lesson: what it took, and the minutes that it states beside those estimated."""
    memory = "not measured" if run.megabytes is None else f"{run.megabytes:.0f} MB at most"
    minutes = reading_minutes(read_notebook(path), run.seconds)
    stated = front_matter(path).minutes
    return f"{Path(path).stem}: {run.seconds:.0f} s, {memory}, {stated} minutes stated, {minutes:.0f} estimated"


if __name__ == "__main__":
    for lesson in sys.argv[1:]:
        print(report(lesson, run_lesson(lesson)), flush=True)
