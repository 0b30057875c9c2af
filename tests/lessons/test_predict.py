import subprocess
import sys

import pytest
import traitlets

from safediffkit.lessons import Guesses


def asked(guesses):
    choice = guesses.choice("How much?", {"a lot": "too much.", "little": ""}, right="little", reveal="Look.")
    return choice, guesses.number("How far?", right=5.3, tolerance=0.5, unit="m")


def test_the_score_counts_committed_guesses():
    guesses = Guesses()
    assert guesses.score() == "no guess yet"
    choice, number = asked(guesses)
    assert guesses.score() == "no guess yet, 2 still open"
    choice.given = "a lot"
    assert choice.right is None
    choice.committed = True
    assert choice.right is False
    number.given = 5.7
    number.committed = True
    assert number.right is True
    assert guesses.score() == "1 of 2 right"


def test_a_board_follows_the_score():
    guesses = Guesses()
    board = guesses.board()
    choice, _ = asked(guesses)
    choice.given = "little"
    choice.committed = True
    assert board.score == guesses.score() == "1 of 1 right, 1 still open"


def test_a_cell_run_again_keeps_what_was_committed():
    guesses = Guesses()
    first, _ = asked(guesses)
    first.given = "a lot"
    first.committed = True
    again, other = asked(guesses)
    assert again.given == "a lot"
    assert again.committed
    assert not other.committed
    assert guesses.score() == "0 of 1 right, 1 still open"


def test_a_commitment_is_final_and_needs_a_guess():
    choice, number = asked(Guesses())
    with pytest.raises(traitlets.TraitError, match="set `given` first"):
        choice.committed = True
    with pytest.raises(traitlets.TraitError, match="'a lot', 'little'"):
        choice.given = "some"
    with pytest.raises(traitlets.TraitError, match="a number"):
        number.given = float("nan")
    number.given = 3
    number.committed = True
    with pytest.raises(traitlets.TraitError, match="stays 3"):
        number.given = 5.3


def test_questions_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="one of at least two"):
        Guesses().choice("?", {"a": "", "b": ""}, right="c")
    with pytest.raises(ValueError, match="one of at least two"):
        Guesses().choice("?", {"a": ""}, right="a")
    with pytest.raises(ValueError, match="above 0"):
        Guesses().number("?", right=1.0, tolerance=0.0)


def test_the_room_loads_nothing_until_it_is_used():
    code = (
        "import sys, safediffkit.lessons; from safediffkit.lessons import Exercise, lesson_map; "
        "print({'anywidget', 'torch', 'ipywidgets', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
