"""The equation map, written from tags: `python -m safediffkit.lessons.pages`, and `--check` to see that it is fresh."""

import argparse
import ast
import io
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safediffkit.lessons.notebooks import PAPERS, anchor, front_matter, lesson_paths, source_tags

_HEAD = """# Equation map

Every numbered equation of the four papers: what it says, the code that is it, the lessons that explain it and the tests
that hold it to a known answer. What has no code, no lesson or no test says why. This page is written by
`python -m safediffkit.lessons.pages` from the tags in docstrings, lessons and tests.
"""
_COLUMNS = "| equation | what it says | code | lessons | tests | why it lacks something |\n|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Mention:
    """A place that carries a tag: a function or test by name, with the line where it starts."""

    tag: str
    name: str
    file: Path
    line: int


@dataclass(frozen=True)
class Place:
    """A place in a paper: its tag, what stands there, and why it lacks something (empty where it does not)."""

    tag: str
    says: str
    why: str = ""


def read_places(path: Path | str) -> tuple[dict[str, str], list[Place]]:
    """Read the hand-written part: the papers' titles by short name, and what each place says.

    Raises:
        ValueError: a place stands there twice, or its tag is not understood.
    """
    written = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    places = [Place(**place) for place in written["place"]]
    tags = [place.tag for place in places]
    for tag in tags:
        if source_tags(f"[{tag}]") != [tag] or tags.count(tag) > 1:
            raise ValueError(f"{tag!r} must be a tag such as 'SPI Eq. 6', once in {path}")
    return written["papers"], places


def mentions_in_code(folder: Path | str) -> Iterator[Mention]:
    """Find the tags in the docstrings of modules, classes and functions; this room's own are examples of tags."""
    for file in sorted(Path(folder).rglob("*.py")):
        if Path(folder) / "lessons" in file.parents:
            continue
        for name, node in _named(ast.parse(file.read_text(encoding="utf-8")), file.stem):
            for tag in dict.fromkeys(source_tags(ast.get_docstring(node) or "")):
                yield Mention(tag, name, file, getattr(node, "lineno", 1))


def mentions_in_tests(folder: Path | str) -> Iterator[Mention]:
    """Find the tags in the comments and docstrings of tests; each belongs to the test that it stands in."""
    for file in sorted(Path(folder).rglob("test_*.py")):
        source = file.read_text(encoding="utf-8")
        comments = {
            token.start[0]: token.string
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                text = "\n".join([ast.get_docstring(node) or "", *(comments.get(line, "") for line in lines)])
                for tag in dict.fromkeys(source_tags(text)):
                    yield Mention(tag, node.name, file, node.lineno)


def _named(
    node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str, inside: str = ""
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    yield name, node
    for child in ast.walk(node) if isinstance(node, ast.FunctionDef) else node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and child is not node:
            yield from _named(
                child, f"{inside}{child.name}", f"{child.name}." if isinstance(child, ast.ClassDef) else ""
            )


def lesson_mentions(folder: Path | str) -> dict[str, list[Path]]:
    """Find which lessons say in their metadata that they cover a place: tag -> lessons."""
    found: dict[str, list[Path]] = {}
    for path in lesson_paths(folder):
        for tag in front_matter(path).equations:
            found.setdefault(tag, []).append(path)
    return found


def equation_map(root: Path | str) -> str:
    """Write the page for the repository at `root`."""
    root = Path(root)
    titles, places = read_places(root / "tutorials" / "equations.toml")
    code, tests = list(mentions_in_code(root / "safediffkit")), list(mentions_in_tests(root / "tests"))
    lessons = lesson_mentions(root / "tutorials")
    parts = [_HEAD]
    for paper in PAPERS:
        rows = [
            _row(
                place,
                [_link(m, root) for m in code if m.tag == place.tag],
                [f"[lesson {front_matter(path).number}]({path.name})" for path in lessons.get(place.tag, [])],
                [_link(m, root) for m in tests if m.tag == place.tag],
            )
            for place in places
            if place.tag.startswith(f"{paper} ")
        ]
        parts.append(f"## {paper}\n\n*{titles[paper]}*\n\n{_COLUMNS}{''.join(rows)}")
    return "\n".join(parts)


def gaps(root: Path | str) -> list[str]:
    """List what is wrong between papers, code, lessons and tests, in words; empty when nothing is."""
    root = Path(root)
    _, places = read_places(root / "tutorials" / "equations.toml")
    lessons = lesson_mentions(root / "tutorials")
    kinds = {
        "function": {mention.tag for mention in mentions_in_code(root / "safediffkit")},
        "lesson": set(lessons),
        "test": {mention.tag for mention in mentions_in_tests(root / "tests")},
    }
    known = {place.tag for place in places}
    wrong = [f"{tag} is tagged by a {kind} and not in equations.toml" for kind in kinds for tag in kinds[kind] - known]
    for place in places:
        lacks = [kind for kind, tags in kinds.items() if place.tag not in tags]
        if lacks and not place.why:
            wrong.append(f"{place.tag} has no {' and no '.join(lacks)}, and no reason why in equations.toml")
        if place.why and not lacks:
            wrong.append(f"{place.tag} lacks nothing any more: take its reason out of equations.toml")
    return sorted(wrong)


def _row(place: Place, code: list[str], lessons: list[str], tests: list[str]) -> str:
    name = f'<a id="{anchor(place.tag)}"></a>{place.tag}'
    cells = [name, place.says, *(", ".join(cell) or "–" for cell in (code, lessons, tests)), place.why]
    return f"| {' | '.join(cells)} |\n"


def _link(mention: Mention, root: Path) -> str:
    return f"[{mention.name}](../{mention.file.relative_to(root).as_posix()}#L{mention.line})"


def main(arguments: Iterable[str] | None = None) -> int:
    """Write the page, or say whether it is fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    page, text = chosen.root / "tutorials" / "equation_map.md", equation_map(chosen.root)
    if not chosen.check:
        page.write_text(text, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        print(f"{page} is stale: run `python -m safediffkit.lessons.pages`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
