"""Command line: choose SPI's weights and safest share from recorded episodes alone, before it acts anywhere.

    python -m safediffkit.selection OfflineBallCircle-v0 --out runs/weights.json

Each candidate is trained on 70 % of the episodes and acts by the "safest" rule. Fitted Q evaluation on the other 30 %
predicts what its episodes sum to; chosen is the greatest predicted reward among the candidates whose predicted cost is
within the budget.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from safediffkit.train import circumstances, command, write_record

WEIGHTS = ((0.7, 0.1, 0.2), (0.5, 0.1, 0.4))  # imitate, reward, safety
SHARES = (0.4, 0.5, 0.6)  # of the candidates, among which the "safest" rule picks


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when the record is written, 2 when the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.selection", description="Choose SPI's weights from recorded episodes alone."
    )
    parser.add_argument("task", help='a DSRL task id, such as "OfflineBallCircle-v0"')
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the record")
    parser.add_argument("--budget", type=float, default=20.0, help="cost limit an episode (default: 20)")
    parser.add_argument("--steps", type=int, default=4000, help="updates a candidate (default: 4000)")
    parser.add_argument("--seed", type=int, default=100, help="not among the seeds of the reported runs (default: 100)")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists():
            raise ValueError(f"{given.out} exists already: move it away, or choose another name with --out")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record = select(given.task, budget=given.budget, steps=given.steps, seed=given.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    write_record(given.out, {"command": command("selection", arguments), **record})
    print(json.dumps(record["chosen"], indent=1))
    return 0


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

    from safediffkit import load
    from safediffkit.data.reshape import safe_only
    from safediffkit.data.tasks import find_task
    from safediffkit.learning import words
    from safediffkit.methods import spi
    from safediffkit.safety.evaluation import fitted_q_evaluation

    torch.set_num_threads(1)
    facts, dataset = find_task(task), load(task)
    low, high = facts.rewards
    episodes = int(dataset.episode[-1]) + 1
    held_out = torch.zeros(episodes, dtype=torch.bool)
    held_out[torch.randperm(episodes, generator=torch.Generator().manual_seed(seed))[: round(0.3 * episodes)]] = True
    seen, unseen = dataset.where(~held_out[dataset.episode]), dataset.where(held_out[dataset.episode])
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
        "episodes": {"trained_on": episodes - int(held_out.sum()), "held_out": int(held_out.sum())},
        **circumstances(),
    }


if __name__ == "__main__":
    sys.exit(main())
