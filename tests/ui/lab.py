"""A browser page that may not leave the machine, and a notebook of JupyterLab in one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

NOTEBOOK = "window.jupyterapp.shell.currentWidget"
CODE_CELLS = f"{NOTEBOOK}.content.widgets.filter(cell => cell.model.type === 'code')"
READY = f"""() => {{
  const context = {NOTEBOOK}?.sessionContext;
  return context?.isReady && context.session?.kernel?.status === 'idle' }}"""
OUTPUTS = f"{CODE_CELLS}.flatMap(cell => cell.model.outputs.toJSON())"
ERRORS = f"""() => {OUTPUTS}
  .filter(output => output.output_type === 'error').map(output => output.ename + ': ' + output.evalue)"""
# After an error the cells that follow never run.
DONE = f"""() => ({ERRORS})().length || {CODE_CELLS}.every(cell =>
  !cell.model.sharedModel.source.trim() ||
  cell.model.executionCount > 0 && cell.model.executionState !== 'running')"""
SHUT_DOWN = f"""() => Promise.race([
  {NOTEBOOK}.sessionContext.shutdown().then(() => true), new Promise(done => setTimeout(done, 5000))])"""
RUN = f"""async code => {{
  let said = '';
  const future = {NOTEBOOK}.sessionContext.session.kernel.requestExecute({{code, store_history: false}});
  future.onIOPub = ({{header, content}}) => {{
    if (header.msg_type === 'stream') said += content.text;
    if (header.msg_type === 'error') said += content.ename + ': ' + content.evalue;
  }};
  await future.done;
  return said.trim(); }}"""


class Watched:
    """A page, with what it asked of other places and the errors on its console."""

    def __init__(self, page: "Page", allowed: str) -> None:
        self.page = page
        self.allowed = allowed
        self.outside: list[str] = []
        self.errors: list[str] = []

    @classmethod
    @contextmanager
    def opened(cls, browser: "Browser", allowed: str, **context: Any) -> Iterator[Self]:
        """Open a page that reaches nothing but addresses that start as `allowed` does."""
        made = browser.new_context(
            **{"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce"} | context
        )
        made.set_default_timeout(20_000)
        here = cls(made.new_page(), allowed)
        made.route("**/*", here._gate)
        here.page.on("console", here._listen)
        here.page.on("pageerror", lambda error: here.errors.append(str(error)))
        try:
            yield here
        finally:
            here.leave()
            made.close()

    def _gate(self, route: "Route") -> None:
        if route.request.url.startswith((self.allowed, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def _listen(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def leave(self) -> None:
        """Do what must be done before the page closes."""


class Lab(Watched):
    """One notebook in JupyterLab; `allowed` is the server's address."""

    def run(self, notebook: str, seconds: float = 120) -> None:
        """Open a notebook and run all of it.

        Raises:
            AssertionError: a cell ended with an error.
        """
        self.open(notebook)
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(DONE, timeout=1000 * seconds)
        errors = self.page.evaluate(ERRORS)
        assert not errors, errors

    def open(self, notebook: str) -> None:
        """Open a notebook and wait for its kernel; the toolbar says "idle" too early."""
        self.page.goto(f"{self.allowed}/lab/tree/{notebook}?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
        self.page.wait_for_function(READY, timeout=90_000)

    def command(self, name: str) -> None:
        """Start a command of JupyterLab without waiting: its promise would have no time limit."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def kernel(self, code: str) -> str:
        """Run code in the notebook's kernel, and give what it printed or raised."""
        return str(self.page.evaluate(RUN, code))

    def states(self, kind: str, *names: str) -> list[dict[str, Any]]:
        """Give these parts of the state of every widget of a class in the kernel, oldest first."""
        code = f"""
import json as _json
from ipywidgets.widgets.widget import _instances
print(_json.dumps([w.get_state({names}) for w in _instances.values() if type(w).__name__ == {kind!r}]))
"""
        return list(json.loads(self.kernel(code)))

    def leave(self) -> None:
        """End the kernel: one for each notebook would stay and eat memory."""
        with suppress(Exception):
            self.page.evaluate(SHUT_DOWN)
