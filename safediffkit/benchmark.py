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
from typing import Any

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
    parser.add_argument("--steps", type=int, default=5000, help="updates of every run (default: 5000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--show", action="store_true", help="run nothing; print the records there are as a table")
    given = parser.parse_args(arguments)
    if given.show:
        print(markdown(sorted((given.assets / "results").glob("*-[0-9].json"))))
        return 0
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
    """List the runs of SPI, its two ablations, BC and BC-Safe. [SPI Table 1, Table 2]

    An ablation sets one weight to zero and scales the others up to sum to one. SPI's weights and share are those that
    `safediffkit.selection` chose on held-out episodes for the "safest" rule; both rules are scored.

    Raises:
        OSError: there is no record of that choice yet.
    """
    commands = []
    for seed in SEEDS:
        for task in TASKS:
            (imitate, reward, safety), share = _chosen(assets / "results" / f"weights-{task}.json")
            for name, method, weights in (
                ("spi", "spi", (imitate, reward, safety)),
                ("bc-safe", "bc-safe", None),
                ("bc", "bc", None),
                ("spi-without-safety", "spi", (imitate, reward, 0.0)),
                ("spi-without-reward", "spi", (imitate, 0.0, safety)),
            ):
                kept = assets / "policies" / task / name if (task, seed) == SHOWN else runs / f"{name}-{task}-{seed}"
                record = assets / "results" / f"{name}-{task}-{seed}.json"
                settings = {} if weights is None else _weights(weights) | {"safest_share": share}
                commands.append(_command(method, task, seed, steps, kept.with_suffix(".safetensors"), record, settings))
    return commands


def markdown(records: list[Path]) -> str:
    """Draw up records as a Markdown table: mean over seeds, and the least and greatest seed in brackets."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for file in records:
        record = json.loads(file.read_text())
        name = file.stem.removesuffix(f"-{record['task']}-{record['config']['seed']}")
        for rule, score in record["scores"].items():
            groups.setdefault((record["task"], name, rule), []).append(score)
    lines = [
        "| task | method | rule | seeds | normalised reward | cost | within budget |",
        "|---|---|---|---|---|---|---|",
    ]
    for names, scores in sorted(groups.items()):
        figures = []
        for key in ("normalised_reward", "cost", "within_budget"):
            means = [score[key]["mean"] for score in scores]
            figures.append(f"{sum(means) / len(means):.2f} ({min(means):.2f} to {max(means):.2f})")
        lines.append(f"| {' | '.join(names)} | {len(scores)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def simplex_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List SPI at ten points of the simplex of weights, for the lesson's control; `runs` goes unused."""
    folder, commands = assets / "policies" / TASKS[0] / "simplex", []
    for i in range(4):
        for r in range(4 - i):
            s = 3 - i - r
            kept = folder / f"spi-{i}-{r}-{s}.safetensors"
            commands.append(_command("spi", *SHOWN, steps, kept, kept.with_suffix(".json"), _weights((i, r, s))))
    return commands


def _command(
    method: str, task: str, seed: int, steps: int, kept: Path, record: Path, settings: dict[str, float]
) -> Command:
    command = [method, task, "--seed", str(seed), "--steps", str(steps), "--out", str(kept), "--record", str(record)]
    return [*command, *(["--set"] if settings else []), *(f"{name}={value:.10g}" for name, value in settings.items())]


def _weights(weights: tuple[float, ...]) -> dict[str, float]:
    return {name: weight / sum(weights) for name, weight in zip(("imitate", "reward", "safety"), weights, strict=True)}


def _chosen(file: Path) -> tuple[list[float], float]:
    if not file.exists():
        raise FileNotFoundError(f"no {file}: `python -m safediffkit.selection` chooses the weights and writes it")
    chosen = json.loads(file.read_text())["chosen"]
    return chosen["weights"], chosen["safest_share"]


if __name__ == "__main__":
    sys.exit(main())
