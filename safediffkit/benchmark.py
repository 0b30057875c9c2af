"""Command line: run a table of results, method by task by seed, and go on where it was interrupted.

    python -m safediffkit.benchmark spi --assets tutorials/assets --jobs 2

runs each missing `python -m safediffkit.train` command of the table in a process of its own. Its record, which holds
that command, goes to the assets; policies that no lesson loads go to `--runs`.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TASKS = ("OfflineBallCircle-v0", "OfflineCarCircle-v0")
SEEDS = (0, 1, 2)
SHOWN = TASKS[0], 0  # the task and seed whose policies lesson 04 loads
Command = list[str]  # arguments of `python -m safediffkit.train`


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when every record is there, 1 when a run failed, 2 when the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.benchmark", description="Run a table of results; finished records are kept."
    )
    parser.add_argument("table", choices=("spi", "simplex"), help="spi: the results; simplex: the lesson's policies")
    parser.add_argument("--assets", type=Path, default=Path("tutorials/assets"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=6000, help="updates of every run (default: 6000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    given = parser.parse_args(arguments)
    try:
        make = spi_table if given.table == "spi" else simplex_table
        commands = make(given.assets, given.runs, given.steps)
    except OSError as error:
        parser.error(str(error))
    missing = [one for one in commands if not Path(one[one.index("--record") + 1]).exists()]
    print(f"{len(commands) - len(missing)} of {len(commands)} records are there")
    with ThreadPoolExecutor(max(given.jobs, 1)) as pool:
        codes = list(pool.map(_run, missing))
    return int(any(codes))


def _run(arguments: Command) -> int:
    done = subprocess.run([sys.executable, "-m", "safediffkit.train", *arguments], capture_output=True, text=True)
    print(" ".join(arguments[:2]), "->", (done.stdout if done.returncode == 0 else done.stderr).strip(), flush=True)
    return done.returncode


def spi_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List the runs of SPI, its two ablations, BC and BC-Safe. [SPI Table 2, part of Table 1]

    An ablation sets one weight to zero and scales the others up to sum to one. SPI's weights are the ones that
    `safediffkit.selection` chose on held-out episodes for the "safest" rule; both rules are scored.

    Raises:
        OSError: there is no record of that choice yet.
    """
    commands = []
    for seed in SEEDS:
        for task in TASKS:
            imitate, reward, safety = _chosen(assets / "results" / f"weights-{task}.json")
            for name, method, weights in (
                ("spi", "spi", (imitate, reward, safety)),
                ("bc-safe", "bc-safe", None),
                ("bc", "bc", None),
                ("spi-without-safety", "spi", (imitate, reward, 0.0)),
                ("spi-without-reward", "spi", (imitate, 0.0, safety)),
            ):
                kept = assets / "policies" / task / name if (task, seed) == SHOWN else runs / f"{name}-{task}-{seed}"
                record = assets / "results" / f"{name}-{task}-{seed}.json"
                commands.append(_command(method, task, seed, steps, kept.with_suffix(".safetensors"), record, weights))
    return commands


def simplex_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List SPI at ten points of the simplex of weights, for the lesson's control; `runs` goes unused."""
    folder, commands = assets / "policies" / TASKS[0] / "simplex", []
    for i in range(4):
        for r in range(4 - i):
            s = 3 - i - r
            kept = folder / f"spi-{i}-{r}-{s}.safetensors"
            commands.append(_command("spi", TASKS[0], 0, steps, kept, kept.with_suffix(".json"), (i, r, s)))
    return commands


def _command(
    method: str, task: str, seed: int, steps: int, kept: Path, record: Path, weights: tuple[float, ...] | None
) -> Command:
    command = [method, task, "--seed", str(seed), "--steps", str(steps), "--out", str(kept), "--record", str(record)]
    if weights is None:
        return command
    shares = zip(("imitate", "reward", "safety"), weights, strict=True)
    return [*command, "--set", *(f"{name}={weight / sum(weights):.10g}" for name, weight in shares)]


def _chosen(file: Path) -> tuple[float, float, float]:
    if not file.exists():
        raise FileNotFoundError(f"no {file}: `python -m safediffkit.selection` chooses the weights and writes it")
    imitate, reward, safety = json.loads(file.read_text())["chosen"]["weights"]
    return imitate, reward, safety


if __name__ == "__main__":
    sys.exit(main())
