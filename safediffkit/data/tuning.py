"""One round of the cross-entropy method, by which all scripted controllers here are tuned."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

Settings = dict[str, float]


def improve(
    value: Callable[[Float[np.ndarray, "_"], int], float],
    mean: Float[np.ndarray, "_"],
    spread: Float[np.ndarray, "_"],
    ranges: dict[str, tuple[float, float]],
    population: int,
    generator: Generator,
) -> tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"], float]:
    """Guess settings around `mean`, and give mean and spread of the best quarter, and the value of the best.

    `value(guess, seed)` says how good a guess is on episodes that the seed decides: the same for every guess.
    """
    least, most = np.array(list(ranges.values())).T
    guesses = np.clip(mean + spread * generator.standard_normal((population, len(mean))), least, most)
    guesses[0] = mean
    start = int(generator.integers(2**31))
    values = [value(guess, start) for guess in guesses]
    chosen = guesses[np.argsort(values)[-(population // 4) :]]
    return chosen.mean(0), chosen.std(0) + 0.01 * (most - least), max(values)


def named(ranges: dict[str, tuple[float, float]], numbers: Float[np.ndarray, "_"]) -> Settings:
    """Give each number the name of its range, rounded as settings are stored."""
    return dict(zip(ranges, numbers.round(4).tolist(), strict=True))
