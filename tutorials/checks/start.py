"""The exercises of lesson 0: what they ask for, and the slips that their checks know."""

import numpy as np

from safediffkit.lessons import Exercise


def _best_allowed(rewards, costs, limit):
    return np.where(costs <= limit, rewards, -np.inf).argmax()


def _budget_left(costs, limit):
    return limit - (np.cumsum(costs) - costs)


_EPISODES = [
    (np.array([9.0, 5.0, 7.0, 6.0, 3.0]), np.array([30.0, 20.0, 21.0, 3.0, 0.0]), 20.0),
    (np.array([2.0, 8.0, 4.0, 1.0, 6.0]), np.array([0.0, 12.0, 5.0, 9.0, 4.0]), 5.0),
    (np.array([9.0, 5.0, 7.0]), np.array([0.0, 30.0, 1.0]), 20.0),
    (np.array([1.0, 2.0, 9.0, 7.0]), np.array([8.0, 0.0, 50.0, 10.0]), 10.0),
]

best_allowed = Exercise(
    _best_allowed,
    trials=_EPISODES,
    why="The limit decides who may compete, the reward who wins.",
    slips={
        "limit ignored": (
            lambda r, c, b: r.argmax(),
            "That is the best of all episodes, allowed or not: the limit has no say in it.",
        ),
        "safest only": (
            lambda r, c, b: c.argmin(),
            "That is the cheapest episode. Any cost up to the limit is allowed: among those, reward decides.",
        ),
        "index of a shorter list": (
            lambda r, c, b: r[c <= b].argmax(),
            "That is its place among the allowed ones. Its number among all is asked: masking by -inf keeps that.",
        ),
        "condition turned around": (
            lambda r, c, b: np.where(c > b, r, -np.inf).argmax(),
            "The condition is turned around: you chose among the episodes that are over the limit.",
        ),
        "at the limit is out": (
            lambda r, c, b: np.where(c < b, r, -np.inf).argmax(),
            "An episode that costs exactly the limit is within it: use <=, not <.",
        ),
    },
)

budget_left = Exercise(
    _budget_left,
    trials=[(np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]), 2.0), (np.array([1.0, 0.0, 0.5]), 3.0)],
    why="A planner that is told what is left can spend it late or early, and stop in time.",
    slips={
        "one move late": (
            lambda c, b: b - np.cumsum(c),
            "Off by one move: what a move will cost is not yet spent when you choose it. Take it out of the sum.",
        ),
        "this move alone": (
            lambda c, b: b - c,
            "You subtract the cost of this one move. What is left depends on all the moves before it.",
        ),
        "the whole episode": (
            lambda c, b: b - c.sum() + 0 * c,
            "You subtract the cost of the whole episode at once. At move k nobody knows what comes later.",
        ),
        "spent, not left": (
            lambda c, b: np.cumsum(c) - c,
            "That is what has been spent. What is left is the limit minus that.",
        ),
        "cut off at zero": (
            lambda c, b: np.maximum(b - (np.cumsum(c) - c), 0),
            "Do not cut it off at zero: a number below zero tells by how much the budget is overspent.",
        ),
    },
)
