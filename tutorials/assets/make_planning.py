"""Make planning.npz, the bank of lesson 5: one planner in the simulator, under budgets that change half way.

    python tutorials/assets/make_planning.py

The planner is policies/OfflineBallCircle-v0/tcdp.safetensors; some minutes. Given a task and a planner of it, such as

    python tutorials/assets/make_planning.py OfflineCarRun-v0 runs/budgets/tcdp-OfflineCarRun-v0-0.safetensors

it makes nothing, and prints what 20 episodes cost before and after a change half way, and under each budget.
"""

import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from safediffkit import load_policy, rollout
from safediffkit.data.tasks import find_task
from safediffkit.widgets import Frame, bank, line
from safediffkit.worlds.bullet import positions

ASSETS = Path(__file__).parent
TASK, EPISODES, STEPS, EVERY = "OfflineBallCircle-v0", 5, 200, 2
BUDGETS = (0, 5, 10, 20, 40, 80)
CHANGES = {"it stays": lambda budget: budget, "nothing more": lambda budget: 0, "40 more": lambda budget: budget + 40}
LEFT, BOTTOM, ACROSS, UP = 12.0, -8.0, 11.0, 0.125  # where the chart of costs stands, and metres to a cost of 1


@dataclass(frozen=True)
class HalfWay:
    """A planner whose budget changes in the middle of the episode."""

    planner: Any
    budget: float
    half: int = STEPS // 2

    def act(self, history):
        """Plan under the first budget, and from half way on under the other."""
        if history.actions.shape[1] >= self.half:
            history = replace(history, budget=torch.full_like(history.budget, self.budget))
        return self.planner.act(history)


@cache
def planner():
    """Load the planner."""
    return load_policy(ASSETS / "policies" / TASK / "tcdp.safetensors")


def chart(step, cost):
    """Place a step and a cost in the chart beside the top view."""
    return np.stack(np.broadcast_arrays(LEFT + ACROSS * np.asarray(step) / STEPS, BOTTOM + UP * np.asarray(cost)), -1)


def frame(budget, change, *, seed):
    """Draw five episodes from above, and beside them what each has cost so far."""
    later = CHANGES[change](budget)
    run = rollout(HalfWay(planner(), later), TASK, episodes=EPISODES, budget=budget, seed=1 + seed)
    paths = positions(run.observations).view(EPISODES, STEPS, 2).numpy()
    costs = run.costs.view(EPISODES, STEPS).numpy()
    total, half = costs.sum(1), costs[:, STEPS // 2 :].sum(1)
    spent = chart(np.arange(STEPS), costs.cumsum(1))
    outcomes = ["safe" if cost <= max(budget, later) else "violating" for cost in total]
    paid = (costs > 0).reshape(EPISODES, -1, EVERY).any(-1)
    limit = [
        (0, budget),
        (STEPS / 2, budget),
        *([(STEPS / 2, later), (STEPS, later)] if change != "nothing more" else ()),
    ]
    return Frame(  # path and curve of an episode in turn
        paths=np.stack([paths, spent], 1).reshape(2 * EPISODES, STEPS, 2)[:, ::EVERY],
        violating=np.stack([paid, np.zeros_like(paid)], 1).reshape(2 * EPISODES, -1),
        outcomes=[outcome for outcome in outcomes for _ in range(2)],
        shapes=[line([chart(*corner) for corner in limit], label="budget")],
        numbers={
            "reward of an episode": run.episode_returns().mean(),
            "cost of an episode": total.mean(),
            "of which in the second half": half.mean(),
            "episodes within the budget (%)": 100 * np.mean([outcome == "safe" for outcome in outcomes]),
        },
    )


def tell(task, file):
    """Print what each half of an episode costs, if a budget is withdrawn half way or granted there, or stays."""
    steps, driver = find_task(task).horizon, load_policy(file)
    for before, after in ((40, 40), (40, 0), (0, 0), (0, 40)):
        policy = HalfWay(driver, after, steps // 2)
        costs = rollout(policy, task, episodes=20, budget=before, seed=1).costs.view(20, 2, -1)
        first, second = costs.sum(-1).mean(0).tolist()
        print(f"{task}, {before} at first, then {after}: {first:.1f} in the first half, {second:.1f} in the second")
    spent = [rollout(driver, task, episodes=20, budget=budget, seed=1).episode_costs().mean() for budget in BUDGETS]
    told = ", ".join(f"{budget}: {cost:.1f}" for budget, cost in zip(BUDGETS, spent, strict=True))
    print(f"{task}, cost by budget: {told}; rank correlation {spearmanr(BUDGETS, spent).statistic:.2f}")


def main():
    """Roll everything out once and write the bank; or tell of another planner."""
    torch.set_num_threads(1)
    if arguments := sys.argv[1:]:
        tell(*arguments)
        return
    made = bank(frame, {"budget": BUDGETS, "from half way on": list(CHANGES)}, seed=0)
    made.save(ASSETS / "planning.npz")


if __name__ == "__main__":
    main()
