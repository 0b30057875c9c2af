"""Exercises that know the usual slips, and say what went wrong and why."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from html import escape
from inspect import signature
from textwrap import fill
from typing import Any

import numpy as np

RIGHT, OPEN, FAILED, UNLIKE = "right", "not attempted yet", "stopped with an error", "not yet"


@dataclass(frozen=True)
class Verdict:
    """What an attempt gets: whether it is right, the name of what it is (a slip's name, for one), and words for it."""

    right: bool
    name: str
    words: str

    def __repr__(self) -> str:
        return fill(f"{self._mark} {self.words}", 100)

    def _repr_html_(self) -> str:
        colour, line = ("#0072B2", "solid") if self.right else ("#8C8C8C", "dotted")
        if not self.right and self.name != OPEN:
            colour, line = "#D55E00", "double"
        style = f"border-left: 6px {line} {colour}; padding: 0.3em 0.8em; max-width: 46em"
        return f'<div class="safediffkit-verdict" role="status" style="{style}">{self._mark} {escape(self.words)}</div>'

    @property
    def _mark(self) -> str:
        return "✓" if self.right else "○" if self.name == OPEN else "✗"


class Exercise:
    """One exercise: call it with an attempt and it gives a `Verdict`.

    `solution` and every slip are functions, tried on the same `trials` (each a tuple of arguments), or else plain
    values. `slips` maps the name of a usual wrong answer to that answer and its hint. `outcome(function)`, given
    instead of trials, makes the numbers that are compared: values together with gradients, for one. `why` follows
    "Right."; `hint` closes what an answer gets that is unlike all others.

    Raises:
        ValueError: the trials cannot tell two of the answers apart, or there is nothing to try them on.
    """

    def __init__(
        self,
        solution: Any,
        trials: Sequence[tuple[Any, ...]] = (),
        slips: Mapping[str, tuple[Any, str]] | None = None,
        outcome: Callable[[Callable[..., Any]], Any] | None = None,
        *,
        why: str = "",
        hint: str = "",
    ) -> None:
        slips = slips or {}
        if callable(solution) and bool(trials) == bool(outcome):
            raise ValueError("an exercise on a function needs either trials or an outcome to compare")
        self.solution = solution
        self.slips = {name: answer for name, (answer, _) in slips.items()}
        self._hints = {name: hint for name, (_, hint) in slips.items()}
        self._trials, self._outcome, self._why, self._hint = list(trials), outcome, why, hint
        self._known = {RIGHT: self._results(solution)} | {
            name: self._results(slip) for name, slip in self.slips.items()
        }
        names = list(self._known)
        for k, name in enumerate(names):
            for other in names[:k]:
                if self._first_difference(self._known[name], self._known[other]) is None:
                    raise ValueError(f"nothing tells {name!r} from {other!r}: add a trial on which they differ")

    def __call__(self, attempt: Any) -> Verdict:
        """Compare an attempt with the solution and with every slip."""
        if callable(self.solution) and attempt is not None and not callable(attempt):
            return Verdict(False, UNLIKE, f"A function is asked for here, and yours is {_words(attempt)}.")
        if not callable(self.solution) and callable(attempt):
            return Verdict(False, UNLIKE, f"{_kind(self.solution).capitalize()} is asked for here, not a function.")
        empty = []

        def watched(*args: Any) -> Any:
            result = attempt(*args)
            empty.append(result is None)
            return result

        try:
            yours = [None] if attempt is None else self._results(watched if callable(attempt) else attempt)
        except Exception as error:
            if not (empty and all(empty)):
                return Verdict(False, FAILED, f"It stopped with {type(error).__name__}: {error}")
            yours = [None]
        if attempt is None or (empty and all(empty)):
            words = "Not attempted yet: replace the None above by your answer, then run that cell and this one again."
            return Verdict(False, OPEN, words)
        for name, results in self._known.items():
            if self._first_difference(yours, results) is None:
                words = f"Right. {self._why}".strip() if name == RIGHT else self._hints[name]
                return Verdict(name == RIGHT, name, words)
        return Verdict(False, UNLIKE, f"Not yet. {self._example(attempt, yours)} {self._hint}".strip())

    def _results(self, answer: Any) -> list[Any]:
        if not callable(self.solution):
            return [answer]
        if self._outcome:
            return [self._outcome(answer)]
        return [answer(*deepcopy(trial)) for trial in self._trials]  # a copy, as an attempt may change what it gets

    def _first_difference(self, some: list[Any], others: list[Any]) -> int | None:
        pairs = zip(some, others, strict=True)
        return next((k for k, (one, other) in enumerate(pairs) if not _alike(one, other)), None)

    def _example(self, attempt: Any, yours: list[Any]) -> str:
        k = self._first_difference(yours, self._known[RIGHT])
        needed, got = self._known[RIGHT][k or 0], yours[k or 0]
        given = "The"
        if callable(self.solution) and self._trials:
            names = list(signature(self.solution).parameters)
            values = zip(names, self._trials[k or 0], strict=False)
            given = "Given " + ", ".join(f"{name} = {_words(value)}" for name, value in values) + ", the"
        return f"{given} answer is {_kind(needed)}; yours is {_words(got)}."


def _plain(value: Any) -> Any:
    """Bring tensors, numbers and lists of numbers to arrays; what holds no numbers stays as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().numpy()
    if isinstance(value, tuple | list) and any(hasattr(part, "shape") for part in value):
        return [_plain(part) for part in value]
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        return [_plain(part) for part in value]
    return array.astype(float) if array.dtype.kind in "buif" else value


def _alike(one: Any, other: Any) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return type(one) is type(other) and bool(one == other)
    if one.size == other.size == 1:  # one number is one number, however it is wrapped
        one, other = one.reshape(()), other.reshape(())
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def _kind(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, np.ndarray):
        return f"an array of shape {plain.shape}" if plain.size != 1 else "one number"
    return f"{len(plain)} parts" if isinstance(plain, list) else f"a {type(value).__name__}"


def _words(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, list) and not isinstance(value, str):
        return f"({', '.join(map(_words, plain))})"
    if not isinstance(plain, np.ndarray):
        return repr(value)
    if plain.size == 1:
        return f"{plain.item():.4g}"
    text = np.array2string(plain, precision=3, threshold=8, edgeitems=3, separator=", ").replace("\n", "")
    return text if plain.size <= 8 else f"{text} of shape {plain.shape}"
