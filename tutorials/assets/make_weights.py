"""Score the paper's three roles of a barrier under other safety weights, in both worlds, with every seed.

    python tutorials/assets/make_weights.py [--policies runs/roles]

The policies are those that `python -m safediffkit.benchmark roles` has trained. It writes results/roles/weights/*.json,
one for each, as records of the same episodes that the table judges, and prints them as a table, the weight in the place
of the role; those that are there already are kept.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from safediffkit import load_policy, rollout, score
from safediffkit.benchmark import BARRIERS, SEEDS
from safediffkit.results import by_role
from safediffkit.train import circumstances, write_record
from safediffkit.worlds.rollout import measures

ASSETS = Path(__file__).parent
ROLES, WEIGHTS, EPISODES = ["condition", "filter", "guidance"], (0.0, 1.0, 2.0, 4.0), 50
FIRST = 1_000  # what the table's evaluation seeds are multiples of


def scores(policy, task, first):
    """Let the team play once for each weight of guidance by the barrier."""
    for weight in WEIGHTS:
        run = rollout(policy.with_roles(ROLES, guidance_weight=weight), task, episodes=EPISODES, budget=0, seed=first)
        yield f"{weight:g}", asdict(score(run, task, budget=0)) | measures(run, task)


def main():
    """Write the records that are missing."""
    parser = argparse.ArgumentParser(description="Score the barrier's roles under other safety weights.")
    parser.add_argument("--policies", type=Path, default=Path("runs/roles"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = ASSETS / "results" / "roles" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for task in BARRIERS:
            file, kept = folder / f"all-{task}-{seed}.json", given.policies / f"cbf-diffusion-{task}-{seed}.safetensors"
            if (task, seed) == ("merge-mixed-safety", 0):  # lesson 08's
                kept = ASSETS / "policies" / task / "cbf-diffusion.safetensors"
            if not file.exists():
                about = {"command": "python tutorials/assets/make_weights.py", "task": task, "config": {"seed": seed}}
                about |= {"roles": ROLES, "evaluation": {"episodes": EPISODES, "first_reset_seed": FIRST * (10 + seed)}}
                told = dict(scores(load_policy(kept), task, FIRST * (10 + seed)))
                write_record(file, about | {"scores": told} | circumstances())
    print(by_role(sorted(folder.glob("*-[0-9].json"))))


if __name__ == "__main__":
    main()
