"""Predict, then reveal: questions that show their answer once the learner has committed to one."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets  # type: ignore[import-untyped, unused-ignore]  # it ships no types

_HERE = Path(__file__).parent
_ESM, _CSS = ((_HERE / f"predict.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))


class Guess(anywidget.AnyWidget):
    """One question in the page. It never waits: a notebook that runs unattended goes on with an open question.

    `given` is what was chosen or typed (None: nothing yet), `committed` whether that is final, `right` whether it is
    the answer (None while open). Setting `given` and then `committed` in Python does what the learner does in the page.
    """

    _esm = _ESM
    _css = _CSS
    kind = traitlets.Unicode("choice").tag(sync=True)  # choice, number or board
    question = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    remarks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    answer = traitlets.Any().tag(sync=True)
    tolerance = traitlets.Float(0.0).tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    reveal = traitlets.Unicode().tag(sync=True)
    given = traitlets.Any(None).tag(sync=True)
    committed = traitlets.Bool(False).tag(sync=True)
    score = traitlets.Unicode().tag(sync=True)  # of all guesses of the lesson; shown by a board alone

    @property
    def right(self) -> bool | None:
        """Say whether the guess is right, or None while the question is open."""
        if not self.committed:
            return None
        if self.kind == "choice":
            return bool(self.given == self.answer)
        return bool(abs(self.given - self.answer) <= self.tolerance)

    @traitlets.validate("given")  # type: ignore[untyped-decorator, unused-ignore]
    def _check_given(self, proposal: Any) -> Any:
        given = proposal["value"]
        if self.committed and given != self.given:
            raise traitlets.TraitError(f"this guess is committed: it stays {self.given!r}")
        if given is not None and self.kind == "choice" and given not in self.options:
            raise traitlets.TraitError(f"the choices are {', '.join(map(repr, self.options))}; got {given!r}")
        if given is not None and self.kind == "number" and (isinstance(given, bool) or not _is_number(given)):
            raise traitlets.TraitError(f"a guess here is a number; got {given!r}")
        return given

    @traitlets.validate("committed")  # type: ignore[untyped-decorator, unused-ignore]
    def _check_committed(self, proposal: Any) -> Any:
        if proposal["value"] and self.given is None:
            raise traitlets.TraitError("there is nothing to commit to: set `given` first")
        return proposal["value"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


class Guesses:
    """The guesses of one lesson, and how many of them were right.

    Running the cell of a question again keeps the guess that was committed there: starting the kernel anew forgets it.
    """

    def __init__(self) -> None:
        self._asked: dict[str, Guess] = {}
        self._boards: list[Guess] = []

    def choice(self, question: str, options: dict[str, str], *, right: str, reveal: str = "") -> Guess:
        """Ask for one of `options`, each with the remark that it gets, and then show `reveal`.

        Raises:
            ValueError: the right answer is not among the options, or there is nothing to choose between.
        """
        if right not in options or len(options) < 2:
            raise ValueError(
                f"right must be one of at least two options, {', '.join(map(repr, options))}; got {right!r}"
            )
        return self._ask(
            Guess(
                question=question,
                options=list(options),
                remarks=list(options.values()),
                answer=right,
                reveal=reveal,
            )
        )

    def number(self, question: str, *, right: float, tolerance: float, unit: str = "", reveal: str = "") -> Guess:
        """Ask for a number, right within `tolerance`, and then show `reveal`.

        Raises:
            ValueError: the tolerance is not positive, so that no guess could be right.
        """
        if not tolerance > 0:
            raise ValueError(f"tolerance must be above 0, or hardly any guess could be right; got {tolerance}")
        return self._ask(
            Guess(
                kind="number",
                question=question,
                answer=float(right),
                tolerance=float(tolerance),
                unit=unit,
                reveal=reveal,
            )
        )

    def score(self) -> str:
        """Say how many of the committed guesses are right, and how many questions are open."""
        verdicts = [guess.right for guess in self._asked.values()]
        done = len(verdicts) - verdicts.count(None)
        left = f"{verdicts.count(None)} still open" if None in verdicts else ""
        if not done:
            return f"no guess yet, {left}" if left else "no guess yet"
        return f"{verdicts.count(True)} of {done} right" + (f", {left}" if left else "")

    def board(self) -> Guess:
        """Show the score in the page, and keep it up to date."""
        self._boards.append(Guess(kind="board", score=self.score()))
        return self._boards[-1]

    def _ask(self, guess: Guess) -> Guess:
        before = self._asked.get(guess.question)
        if before and before.committed and (before.kind, before.options) == (guess.kind, guess.options):
            guess.given, guess.committed = before.given, True
        self._asked[guess.question] = guess
        guess.observe(self._update, names="committed")
        self._update(None)
        return guess

    def _update(self, _: Any) -> None:
        for board in self._boards:
            board.score = self.score()
