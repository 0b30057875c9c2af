"""Command line: choose a method's settings from recorded episodes alone, before it acts anywhere.

    python -m safediffkit.selection OfflineBallCircle-v0 --out runs/weights.json
    python -m safediffkit.selection OfflineBallCircle-v0 --method tcdp --budget 10 20 40 --out runs/weights-tcdp.json

Each candidate is trained on 70 % of the episodes. The other 30 % predict what its episodes sum to: for SPI, which acts
by the "safest" rule, by fitted Q evaluation; for a planner by episodes imagined in a world model fitted to them. Chosen
is the greatest predicted reward among the candidates whose predicted cost is within the budget; for a planner, within
every budget, or else what goes over them by least.
"""

import argparse
import json
import sys
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safediffkit.train import METHODS, check_budgets, circumstances, command, write_record

if TYPE_CHECKING:
    from safediffkit.data.dataset import Dataset

WEIGHTS = ((0.7, 0.1, 0.2), (0.5, 0.1, 0.4))  # imitate, reward, safety
SHARES = (0.4, 0.5, 0.6)  # of the candidates, among which the "safest" rule picks
# the weight of a planner's guidance towards the budget; changing it needs no new training
GUIDANCE = {
    "tcdp": ("safety_weight", (2.0, 3.0, 4.0)),
    "trebi": ("cost_weight", (5.0, 10.0, 20.0)),
    "cdd": ("weight", (1.2, 1.5, 2.5)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when the record is written, 2 when the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.selection", description="Choose a method's settings from recorded episodes alone."
    )
    parser.add_argument("task", help='a DSRL task id, such as "OfflineBallCircle-v0"')
    parser.add_argument("--method", choices=("spi", *GUIDANCE), default="spi")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the record")
    parser.add_argument("--budget", type=float, nargs="+", default=[20.0], help="cost limits an episode (default: 20)")
    parser.add_argument("--steps", type=int, default=4000, help="updates a candidate (default: 4000)")
    parser.add_argument("--seed", type=int, default=100, help="not among the seeds of the reported runs (default: 100)")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists():
            raise ValueError(f"{given.out} exists already: move it away, or choose another name with --out")
        check_budgets(given.budget)
        if given.steps < 1:
            raise ValueError(f"--steps {given.steps}: at least 1 update is needed")
        if given.method == "spi" and len(given.budget) > 1:
            raise ValueError(f"--budget {given.budget}: SPI knows no budget, its weights are chosen for one")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        if given.method == "spi":
            record = select(given.task, budget=given.budget[0], steps=given.steps, seed=given.seed)
        else:
            record = select_guidance(given.task, given.method, budgets=given.budget, steps=given.steps, seed=given.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    write_record(given.out, {"command": command("selection", arguments), **record})
    print(json.dumps(record["chosen"], indent=1))
    return 0


def select_guidance(task: str, method: str, *, budgets: list[float], steps: int, seed: int) -> dict[str, Any]:
    """Train a planner once, and imagine its episodes under every budget with each weight of `GUIDANCE`.

    Where no weight keeps every budget, the one that goes over them by least is chosen.

    Raises:
        ValueError: the task is unknown.
    """
    import torch

    from safediffkit.data.tasks import find_task
    from safediffkit.learning import progress, words
    from safediffkit.methods import tcdp
    from safediffkit.safety.imagination import fit_world, spending

    torch.set_num_threads(1)
    low, high = find_task(task).rewards
    seen, unseen = _split(task, seed)
    place, settings, train = METHODS[method]
    module, (name, weights) = import_module(f"safediffkit.{place}"), GUIDANCE[method]
    config = getattr(module, settings)(steps=steps, seed=seed)
    calibrated = method == "tcdp"  # by imagined episodes, which depend on the weight
    known, world = fit_world(seen, seed=seed) if calibrated else None, fit_world(unseen, seed=seed)
    asked = torch.tensor(budgets, dtype=torch.float32)
    unmeasured = replace(config, imagined=0) if calibrated else config  # done below, for each weight
    policy = getattr(module, train)(seen, unmeasured, progress(steps, f"{method} {task}"))
    candidates: list[dict[str, Any]] = []
    over: list[float] = []  # the budgets, in all
    for weight in weights:
        candidate = deepcopy(policy)
        setattr(candidate, name, weight)
        candidate.sampler.measure(candidate.ask, seen, seed)
        if calibrated:
            candidate.calibrate_budget(known, tcdp.budgets_to_ask(seen), config.imagined, seed)
        cost, reward = spending(candidate, world, asked, seed=seed)
        over.append(float((cost - asked).clamp(min=0).sum()))
        candidates.append(
            {
                "settings": {name: weight},
                "imagined_normalised_reward": [round(one, 3) for one in ((reward - low) / (high - low)).tolist()],
                "imagined_cost": [round(one, 1) for one in cost.tolist()],
            }
        )

    def merit(k: int) -> tuple[float, float]:
        return -over[k], sum(candidates[k]["imagined_normalised_reward"])

    return {
        "task": task,
        "rule": "least excess of imagined cost over the budgets, then greatest imagined reward",
        "budget": budgets,
        "chosen": candidates[max(range(len(candidates)), key=merit)],
        "candidates": candidates,
        "config": words(config),
        "episodes": {"trained_on": len(seen.episode_costs()), "held_out": len(unseen.episode_costs())},
        **circumstances(),
    }


def _split(task: str, seed: int) -> "tuple[Dataset, Dataset]":
    # 70 % of the episodes to train on, and the others
    from safediffkit import load
    from safediffkit.data.reshape import split_episodes

    unseen, seen = split_episodes(load(task), 0.3, seed)
    return seen, unseen


def select(
    task: str,
    *,
    budget: float,
    steps: int,
    seed: int,
    weights: tuple[tuple[float, float, float], ...] = WEIGHTS,
) -> dict[str, Any]:
    """Train SPI for every triple of weights and predict, on held-out episodes, its own for every share of `SHARES`.

    Raises:
        ValueError: the task is unknown, or no candidate is predicted to stay within the budget.
    """
    import torch
    from tqdm import tqdm

    from safediffkit.data.reshape import safe_only
    from safediffkit.data.tasks import find_task
    from safediffkit.learning import words
    from safediffkit.methods import spi
    from safediffkit.safety.evaluation import fitted_q_evaluation

    torch.set_num_threads(1)
    facts = find_task(task)
    low, high = facts.rewards
    seen, unseen = _split(task, seed)
    visited = safe_only(unseen, budget).observations  # a policy worth choosing will be in such states
    candidates: list[dict[str, Any]] = []
    for imitate, reward, safety in tqdm(weights, desc=f"weights {task}", unit="candidate"):
        config = spi.Config(imitate=imitate, reward=reward, safety=safety, steps=steps, seed=seed, extraction="safest")
        policy = spi.train(seen, config)
        for share in SHARES:
            policy.safest_share = share
            predicted = fitted_q_evaluation(policy, unseen, visited=visited, horizon=facts.horizon, seed=seed)
            candidates.append(
                {
                    "weights": [imitate, reward, safety],
                    "safest_share": share,
                    "predicted_normalised_reward": round((predicted.reward - low) / (high - low), 3),
                    "predicted_cost": round(predicted.cost, 1),
                }
            )
            tqdm.write(str(candidates[-1]))
    safe = [one for one in candidates if one["predicted_cost"] <= budget]
    if not safe:
        raise ValueError(f"no candidate is predicted to cost at most {budget:g}: {candidates}")
    return {
        "task": task,
        "rule": "greatest predicted reward among the candidates predicted to cost at most the budget",
        "budget": budget,
        "chosen": max(safe, key=lambda one: one["predicted_normalised_reward"]),
        "candidates": candidates,
        "config": words(config),
        "episodes": {"trained_on": len(seen.episode_costs()), "held_out": len(unseen.episode_costs())},
        **circumstances(),
    }


if __name__ == "__main__":
    sys.exit(main())
