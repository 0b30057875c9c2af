"""Make the three teams of lesson 7, of equally many updates on one record; those that are there already stay.

    python tutorials/assets/make_landmarks.py

Some minutes. Each is the command that its record holds; seed 0. "imitation" is DOM2 without values and without copies.
"""

import sys
from os.path import relpath
from pathlib import Path

from safediffkit.train import main as train

TASK, STEPS = "landmarks-medium-expert", "1500"
TEAMS = Path(__file__).parent / "policies" / TASK
COMMANDS = {
    "dom2": ["dom2", "network=mlp", "value_weight=0.3"],
    "imitation": ["dom2", "network=mlp", "value_weight=0", "repeat_above="],
    "ma-cql": ["ma-cql"],
}


def main():
    """Train whatever team is missing."""
    for name, (method, *settings) in COMMANDS.items():
        file = TEAMS / f"{name}.safetensors"
        if file.exists():
            continue
        change = ["--set", *settings] if settings else []
        if failed := train([method, TASK, "--steps", STEPS, *change, "--out", relpath(file)]):
            return failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
