"""Widgets in a web page without a kernel: the same ESM as in a notebook, run by a small script (page.js)."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

# A widget's synced state, and its buffers as a saved notebook holds them: path, "base64" and text.
Saved = tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]
_HERE = Path(__file__).parent
_STYLE = "body { margin: 2rem auto; max-width: 1080px; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }"
_STYLE += " :root { color-scheme: light dark; } .sdk-title { display: none; }"


def place(name: str) -> str:
    """Give the HTML that marks where a widget of `embed(..., placed=True)` stands."""
    wait = "<noscript>This picture needs JavaScript, from this page alone.</noscript>"
    return f'<div class="safediffkit-widget" data-safediffkit-model="{escape(name)}">{wait}</div>'


def embed(states: Mapping[str, Saved], placed: bool = False) -> str:
    """Give HTML that runs widgets of ours, each under the name by which the page's address holds its state.

    A widget comes as what `widget.get_state()` gives, with no buffers, or as state and buffers of one model in a saved
    notebook's `metadata.widgets`. They stand where this HTML does, one below the other; or, if `placed`, wherever the
    page before it holds `place(name)`. Widgets of one kind share their code, so give those of one page together.

    Raises:
        ValueError: a widget brings no ESM with it, or a name could not stand in an address.
    """
    modules: dict[str, dict[str, str]] = {}
    models: dict[str, dict[str, Any]] = {}
    for name, (state, buffers) in states.items():
        if not name or set(name) & set('&=#%"\\<> '):
            raise ValueError(f"the name {name!r} cannot stand in an address: use letters, digits, - and _")
        if "_esm" not in state:
            raise ValueError(f"the widget {name!r} has no _esm: it is no anywidget, or was saved without defaults")
        module = {"esm": str(state["_esm"]), "css": str(state.get("_css", ""))}
        key = hashlib.sha256("\0".join(module.values()).encode()).hexdigest()[:16]
        modules[key] = module
        models[name] = {"module": key, **_parts(state, buffers)}
    data = json.dumps({"modules": modules, "models": models}, allow_nan=False).replace("<", "\\u003c")
    return "\n".join(
        [
            *(place(name) for name in states if not placed),
            f'<script type="application/json">{data}</script>',
            f"<script>{_runner()}</script>",
        ]
    )


def page(title: str, states: Mapping[str, Saved]) -> str:
    """Give a whole page that shows the widgets, and that no browser lets reach any other place."""
    digest = base64.b64encode(hashlib.sha256(_runner().encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{embed(states)}
</main>
</body>
</html>
"""


def _runner() -> str:
    return (_HERE / "page.js").read_text(encoding="utf-8")


def _parts(state: Mapping[str, Any], buffers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Part what JSON can hold of a state from its bytes, written as base64; models it refers to are left out."""
    raw = {name: value for name, value in state.items() if isinstance(value, bytes | bytearray | memoryview)}
    texts = {name: base64.b64encode(value).decode() for name, value in raw.items()}
    for buffer in buffers:
        texts[".".join(map(str, buffer["path"]))] = buffer["data"]
    plain = {
        name: value
        for name, value in state.items()
        if name not in texts and not name.startswith("_") and not str(value).startswith("IPY_MODEL_")
    }
    return {"state": plain, "buffers": texts}
