"""Reading lessons: what a notebook says of itself, its cells, its terms in bold and the formulas that it tells of."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
PAPERS = ("SPI", "TCDP", "DOM2", "CBF")
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]+(?:\n[^*\n]+)?)\*\*|__([^_\n]+)__")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@dataclass(frozen=True)
class FrontMatter:
    """What a lesson says of itself in its metadata, under the key "safediffkit"."""

    path: Path
    title: str
    minutes: int
    prerequisites: tuple[str, ...]
    equations: tuple[str, ...]

    @property
    def name(self) -> str:
        """Give the file's name without its ending, as prerequisites name it."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Give the lesson's number, with which its file's name starts."""
        return int(self.name.partition("_")[0])


def read_notebook(path: Path | str) -> Cell:
    """Load a notebook with each cell's source as one text."""
    notebook: Cell = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def lesson_paths(folder: Path | str) -> list[Path]:
    """List the lessons of a folder: the notebooks whose names start with a number, in its order."""
    return sorted(Path(folder).glob("[0-9]*.ipynb"))


def front_matter(path: Path | str) -> FrontMatter:
    """Read what a lesson says of itself.

    Raises:
        ValueError: something is missing or of the wrong kind.
    """
    path = Path(path)
    said = read_notebook(path)["metadata"].get("safediffkit", {})
    for key, kind in {"title": str, "minutes": int, "prerequisites": list, "equations": list}.items():
        if not isinstance(said.get(key), kind):
            need = f'a {kind.__name__} "{key}" under "safediffkit"'
            raise ValueError(f"the metadata of {path.name} needs {need}; it has {said.get(key)!r}")
    return FrontMatter(path, said["title"], said["minutes"], tuple(said["prerequisites"]), tuple(said["equations"]))


def exercise_part(cell: Cell) -> tuple[str, str] | None:
    """Give the name of the exercise that a cell belongs to, and which part it is: stub, check or solution."""
    marked = cell["metadata"].get("safediffkit", {})
    return (marked["exercise"], marked["part"]) if "exercise" in marked else None


def prose(notebook: Cell) -> str:
    """Give the text of a lesson without code and formulas."""
    text = "\n\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return _FORMULA.sub(" ", _CODE.sub(" ", text))


def bold_terms(text: str) -> list[str]:
    """List what stands in bold, in order."""
    found = _BOLD.findall(text)
    return [" ".join((stars or lines).split()) for stars, lines in found]


def source_tags(text: str) -> list[str]:
    """List the places in the papers that a text names in brackets: "SPI Eq. 6", "SPI Fig. 2".

    One bracket may name several, as in [SPI Eq. 10, 11] or [DPM-Solver Eq. 3.7, DOM2 Eq. 4]; others' are left out.
    """
    found = []
    for bracket in re.findall(r"\[([^\[\]]+)\]", text):
        paper, kind = "", ""
        for part in bracket.split(", "):
            if read := re.fullmatch(r"(?:(.+) )?(Eqs?\.|Sec\.|Fig\.|Table|Alg\.) ?([\d.]*\d)", part.strip()):
                paper, kind = read[1] or paper, read[2].replace("Eqs", "Eq")
                number = read[3]
            elif re.fullmatch(r"\d+", part.strip()) and kind:
                number = part.strip()
            else:
                paper = kind = ""
                continue
            if paper in PAPERS:
                found.append(f"{paper} {kind} {number}")
    return found


def anchor(tag: str) -> str:
    """Name the place of a tag, or of a glossary's term, in its page: "SPI Eq. 6" stands at spi-eq-6."""
    return re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")
