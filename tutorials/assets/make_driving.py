"""Make driving.npz, the bank of lesson 4: ten policies in the simulator, by two rules of extraction, on equal starts.

    python tutorials/assets/make_driving.py

The policies are those of policies/OfflineBallCircle-v0/simplex, which `make results` trains; about a minute.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from safediffkit import load_policy, rollout, score
from safediffkit.widgets import Frame, bank, circle, line
from safediffkit.worlds.bullet import positions

ASSETS = Path(__file__).parent
TASK, EPISODES, EVERY = "OfflineBallCircle-v0", 5, 2
PARTS = [(i, r, 3 - i - r) for i in range(3, -1, -1) for r in range(3 - i, -1, -1)]
NAMES = ["{}, {}, {}".format(*parts) for parts in PARTS]
RULES = {"Eq. 12, as printed": "reward", "ours, safest share": "safest"}
BUDGETS = (5, 10, 20, 40, 80)
CORNERS = np.array([(16.5, 5.0), (11.5, -2.5), (21.5, -2.5)])  # of the triangle of weights: imitate, reward, safety


@cache
def drive(name, rule, seed):
    """Roll five episodes out; give positions, costs, and the mean reward and cost of an episode."""
    file = ASSETS / "policies" / TASK / "simplex" / "spi-{}-{}-{}.safetensors".format(*PARTS[NAMES.index(name)])
    policy = load_policy(file).variants()[RULES[rule]]
    run = rollout(policy, TASK, episodes=EPISODES, budget=0, seed=1 + seed)
    result = score(run, TASK, budget=20)
    paths = positions(run.observations).view(EPISODES, -1, 2)[:, ::EVERY].numpy()
    costs = run.costs.view(EPISODES, -1).numpy()
    return paths, costs, result.normalised_reward.mean


def place(parts):
    """Where three weights lie in the triangle."""
    return np.array(parts) / sum(parts) @ CORNERS


def triangle(name, rule, budget, seed):
    """Draw the ten points, each safe or not by its mean cost; a ring marks the present one."""
    shapes = [line([*CORNERS, CORNERS[0]])]
    for parts, other in zip(PARTS, NAMES, strict=True):
        within = drive(other, rule, seed)[1].sum(1).mean() <= budget
        shapes.append(circle(*place(parts), 0.35, kind="safe" if within else "danger"))
    labels = zip(CORNERS, ("imitate", "reward", "safety"), strict=True)
    shapes += [circle(*corner, 0.05, label=label) for corner, label in labels]
    return [*shapes, circle(*place(PARTS[NAMES.index(name)]), 0.7, kind="start")]


def frame(name, rule, budget, *, seed):
    """Draw one policy's five episodes, judged by the budget."""
    paths, costs, reward = drive(name, rule, seed)
    total = costs.sum(1)
    paid = costs.reshape(EPISODES, -1, EVERY).max(-1) > 0
    return Frame(
        paths=paths,
        violating=paid,
        outcomes=["safe" if cost <= budget else "violating" for cost in total],
        shapes=triangle(name, rule, budget, seed),
        numbers={
            "reward (normalised)": reward,
            "cost of an episode": total.mean(),
            "episodes within the budget (%)": 100 * (total <= budget).mean(),
        },
    )


def main():
    """Roll everything out once and write the bank."""
    torch.set_num_threads(1)
    made = bank(frame, {"thirds of imitate, reward, safety": NAMES, "rule": list(RULES), "budget": BUDGETS}, seed=0)
    made.save(ASSETS / "driving.npz")


if __name__ == "__main__":
    main()
