"""The exercises of lesson 05."""

import torch

from safediffkit.lessons import Exercise

_COSTS = torch.tensor([35.0, 0.0, 12.0, 20.0, 0.0, 8.0])
_BUDGETS = torch.tensor([0.0, 10.0, 20.0, 40.0])
_NUMBERS = [(0.1, 0.6), (0.3, 0.9), (0.6, 0.7), (0.9, 0.1), (0.99, 0.99), (0.55, 0.35), (0.8, 0.5), (0.4, 0.2)]


def _pick(choices, number):
    """Pick one of `choices`, each with the same chance, if `number` is uniform in [0, 1)."""
    return choices[int(number * len(choices))]


def _places(mask):
    return mask.nonzero()[:, 0]


def _window_first(costs, budgets, u, v):
    window = int(u * len(costs))
    return window, _pick(budgets[budgets >= costs[window]], v)


def _within(costs, budgets, u, v, within=torch.le):
    budget = _pick(budgets, u)
    places = _places(within(costs, budget))
    return (_pick(places, v) if len(places) else -1), budget


def _nearest(costs, budgets, u, v):
    budget = _pick(budgets, u)
    away = (costs - budget).abs()
    return _pick(_places(away == away.min()), v), budget


relabel = Exercise(
    _within,
    trials=[(_COSTS, _BUDGETS, u, v) for u, v in _NUMBERS],
    slips={
        "window first": (
            _window_first,
            "You draw the window first and then one of its budgets. So a costly window, which has few budgets, meets "
            "each of them more often than a cheap one does: that is the biased way.",
        ),
        "cost equal to the budget": (
            _nearest,
            "You take a window whose cost is nearest to the budget. That asks for a cost *of* b, as CDD does, and not "
            "for a cost of *at most* b.",
        ),
        "budget left out": (
            lambda costs, budgets, u, v: (int(v * len(costs)), _pick(budgets, u)),
            "Window and budget are drawn apart, so some windows cost more than the budget they are shown under.",
        ),
        "less than": (
            lambda costs, budgets, u, v: _within(costs, budgets, u, v, torch.lt),
            "A window whose cost is just the budget is within it, too: <= and not <. Else nothing keeps a budget of 0.",
        ),
        "place among those within": (
            lambda costs, budgets, u, v: (int(v * (costs <= _pick(budgets, u)).sum()), _pick(budgets, u)),
            "That is the index among the windows within the budget. Return the index among all windows.",
        ),
        "numbers exchanged": (
            lambda costs, budgets, u, v: _within(costs, budgets, v, u),
            "u and v are exchanged: u chooses the budget, and v the window.",
        ),
        "order of the pair": (
            lambda costs, budgets, u, v: _within(costs, budgets, u, v)[::-1],
            "Both are right, but the pair is turned around: window first, then budget.",
        ),
        "cheapest": (
            lambda costs, budgets, u, v: (costs.argmin(), _pick(budgets, u)),
            "That is the cheapest window, whatever the budget. Any window within the budget has the same chance.",
        ),
    },
    why="Budget first, and then any window within it, each with the same chance: that is p(window | cost <= budget).",
    hint="First the budget, budgets[int(u * len(budgets))]. Then the places of the windows that cost at most that.",
)


def _share(rewards, costs, budget, i, ties=0.5, less=0):
    within = rewards[costs <= budget]
    below, equal = (within < rewards[i]).sum(), (within == rewards[i]).sum()
    return (below + ties * equal) / (len(within) - less)


def _stretched(rewards, costs, budget, i):
    within = rewards[costs <= budget]
    return (rewards[i] - within.min()) / (within.max() - within.min())


_REWARDS = torch.tensor([9.0, 2.0, 2.0, 5.0, 3.0, 8.0, 7.0, 2.0])
_PAID = torch.tensor([30.0, 0.0, 10.0, 5.0, 0.0, 20.0, 0.0, 40.0])

quantile = Exercise(
    _share,
    trials=[(_REWARDS, _PAID, budget, i) for budget, i in ((10.0, 3), (10.0, 1), (25.0, 6), (40.0, 0), (0.0, 4))],
    slips={
        "among all windows": (
            lambda rewards, costs, budget, i: _share(rewards, torch.zeros_like(costs), budget, i),
            "You rank among all windows, those over the budget included. Under a small budget even the best window "
            "then has a poor rank, and the reward pulls less.",
        ),
        "ties count in full": (
            lambda rewards, costs, budget, i: _share(rewards, costs, budget, i, ties=1),
            "You count equal windows in full (<=). Count them half: it stands in the middle of its equals.",
        ),
        "ties do not count": (
            lambda rewards, costs, budget, i: _share(rewards, costs, budget, i, ties=0),
            "You count only those that it outdoes (<). Equal ones, itself among them, count half.",
        ),
        "itself left out": (
            lambda rewards, costs, budget, i: _share(rewards, costs, budget, i, less=1),
            "You divide by the number of the others. Divide by the number of all windows within the budget.",
        ),
        "stretched": (
            _stretched,
            "You stretch the rewards from least to most. Then a single record-breaker squeezes all others together; "
            "count how many are outdone instead.",
        ),
        "upside down": (
            lambda rewards, costs, budget, i: 1 - _share(rewards, costs, budget, i),
            "That is upside down: the greatest reward must come out near 1.",
        ),
        "over the budget": (
            lambda rewards, costs, budget, i: _share(rewards, -costs, -budget, i),
            "The comparison of costs is turned: you rank among the windows that cost the budget or more.",
        ),
    },
    why="Any increasing map of the rewards leaves it as it is, so one beta fits every budget.",
    hint="Among the windows that cost at most the budget: those it outdoes, plus half of its equals, over how many.",
)


def _allow(budget, paid, step, steps, *, spent=True, left=True, least=0.0, most=1.0, power=0.5):
    cost = max(budget - sum(paid) * spent, least)
    return min(cost / (steps - step if left else steps), most) ** power


allow = Exercise(
    _allow,
    trials=[
        (20.0, [0.0, 0.0, 1.0, 1.0], 4, 200),
        (20.0, [1.0] * 15 + [0.0] * 85, 100, 200),
        (20.0, [1.0] * 30, 150, 200),
        (80.0, [0.0] * 150, 150, 200),
    ],
    slips={
        "what is spent forgotten": (
            lambda budget, paid, step, steps: _allow(budget, paid, step, steps, spent=False),
            "You ask for the whole budget at every step, also when it is spent: budget - sum(paid) is left.",
        ),
        "over the whole episode": (
            lambda budget, paid, step, steps: _allow(budget, paid, step, steps, left=False),
            "You spread what is left over the whole episode. Only steps - step of it are still to come.",
        ),
        "root forgotten": (
            lambda budget, paid, step, steps: _allow(budget, paid, step, steps, power=1),
            "That is the rate itself. The network is told its square root.",
        ),
        "more than 1 a step": (
            lambda budget, paid, step, steps: _allow(budget, paid, step, steps, most=float("inf")),
            "A step costs 1 at most, so a rate above 1 says no more than 1: cut it off there.",
        ),
        "overspent": (
            lambda budget, paid, step, steps: _allow(
                budget, paid, step, steps, least=0.0 if sum(paid) <= budget else sum(paid) - budget
            ),
            "Where more is spent than the budget, you allow the debt. Nothing is left, and so 0 is allowed.",
        ),
        "square": (
            lambda budget, paid, step, steps: _allow(budget, paid, step, steps, power=2),
            "You square the rate. Take its root, which tells small rates better apart.",
        ),
    },
    why="The same number means the same haste at any step of any episode, also after somebody changed the budget.",
    hint="What is left, at least 0, over the steps left, at most 1; of that the square root.",
)
