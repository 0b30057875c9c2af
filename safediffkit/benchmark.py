"""Command line: run a table of results, method by task by seed, and go on where it was interrupted.

    python -m safediffkit.benchmark spi --assets tutorials/assets --jobs 2

runs each missing `python -m safediffkit.train` command of the table in a process of its own. Its record, which holds
that command, goes to the assets; policies that no lesson loads go to `--runs`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TASKS = ("OfflineBallCircle-v0", "OfflineCarCircle-v0")  # of SPI's table
MORE_TASKS = (*TASKS, "OfflineBallRun-v0", "OfflineCarRun-v0")  # of the table of budgets
BUDGETS = (10, 20, 40)
PLANNERS = ("tcdp", "trebi", "cdd")
SEEDS = (0, 1, 2)
SHOWN = TASKS[0], 0  # the task and seed whose policies lesson 04 loads
Command = list[str]  # arguments of `python -m safediffkit.train`


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when every record is there, 1 when a run failed, 2 when the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.benchmark", description="Run a table of results; finished records are kept."
    )
    parser.add_argument("table", choices=TABLES, help="; ".join(f"{name}: {of}" for name, (_, _, of) in TABLES.items()))
    parser.add_argument("--assets", type=Path, default=Path("tutorials/assets"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=5000, help="updates of every run (default: 5000)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these methods, such as tcdp or bc-safe")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--show", action="store_true", help="run nothing; print the records there are as a table")
    given = parser.parse_args(arguments)
    make, folder, _ = TABLES[given.table]
    if given.show:
        show = by_budget if given.table == "budgets" else markdown
        print(show(sorted((given.assets / folder).glob("*-[0-9].json"))))
        return 0
    try:
        commands = make(given.assets, given.runs, given.steps)
    except OSError as error:
        parser.error(str(error))
    if given.only:
        if unknown := set(given.only) - {one[0] for one in commands}:
            parser.error(f"--only {unknown.pop()}: the table has {', '.join(sorted({one[0] for one in commands}))}")
        commands = [one for one in commands if one[0] in given.only]
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
            (imitate, reward, safety), share = _chosen(assets, task)
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


def _scores(records: list[Path]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    # task, method, rule and score
    for file in records:
        record = json.loads(file.read_text())
        name = file.stem.removesuffix(f"-{record['task']}-{record['config']['seed']}")
        yield from ((record["task"], name, rule, score) for rule, score in record["scores"].items())


def scores_of(records: list[Path]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Collect the scores of each (task, budget, method), one a seed. Of SPI's two rules the safer one counts."""
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for task, name, rule, score in _scores(records):
        if not rule.startswith("reward"):
            method = name.removesuffix(f"-{score['budget']:g}")
            cells.setdefault((task, f"{score['budget']:g}", method), []).append(score)
    return cells


def by_budget(records: list[Path]) -> str:
    """Draw up records as a Markdown table of tasks and budgets by methods: mean reward @ mean cost over seeds.

    A star marks a mean cost within the budget.
    """
    cells = scores_of(records)
    methods = [
        one for one in (*PLANNERS, "cdt", "fisor", "spi", "bc-safe", "bc") if any(one == key[2] for key in cells)
    ]
    lines = [f"| task | budget | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
    for task, budget in sorted({key[:2] for key in cells}, key=lambda key: (MORE_TASKS.index(key[0]), float(key[1]))):
        row = []
        for method in methods:
            scores = cells.get((task, budget, method), [])
            reward, cost = (
                sum(score[what]["mean"] for score in scores) / max(len(scores), 1)
                for what in ("normalised_reward", "cost")
            )
            row.append(f"{reward:.2f} @ {cost:.1f}{'*' * (cost <= float(budget))}" if scores else "-")
        lines.append(f"| {task} | {budget} | {' | '.join(row)} |")
    return "\n".join(lines)


def markdown(records: list[Path]) -> str:
    """Draw up records as a Markdown table: mean over seeds, and the least and greatest seed in brackets."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for task, method, rule, score in _scores(records):
        groups.setdefault((task, method, rule), []).append(score)
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


def budgets_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List the runs of every method on four tasks under three budgets, all with equal updates. [TCDP Table 1]

    BC-Safe is trained for each budget anew. Every other method is trained once and scored under each: those that can
    be told a budget are told it, the others drive as they always do.

    Raises:
        OSError: there is no record of the choice of weights of SPI, or of a planner, yet.
    """
    commands = []
    for seed in SEEDS:
        for task in MORE_TASKS:
            weights, share = _chosen(assets, task)
            chosen = {"spi": _weights(tuple(weights)) | {"safest_share": share}}
            chosen |= {name: _read(assets, task, name)["settings"] for name in PLANNERS}
            for name in (*PLANNERS, "cdt", "fisor", "spi", "bc", *(f"bc-safe-{b}" for b in BUDGETS)):
                shown = (task, seed) == SHOWN and name in PLANNERS  # lesson 05 loads them
                kept = assets / "policies" / task / name if shown else runs / "budgets" / f"{name}-{task}-{seed}"
                record = assets / "results" / "budgets" / f"{name}-{task}-{seed}.json"
                method, budgets = ("bc-safe", name.split("-")[-1:]) if "safe" in name else (name, map(str, BUDGETS))
                command = _command(
                    method, task, seed, steps, kept.with_suffix(".safetensors"), record, chosen.get(name, {})
                )
                commands.append([*command, "--budget", *budgets])
    return commands


TABLES = {
    "spi": (spi_table, "results", "SPI and its ablations"),
    "simplex": (simplex_table, f"policies/{SHOWN[0]}/simplex", "the policies of lesson 04"),
    "budgets": (budgets_table, "results/budgets", "all methods under three budgets"),
}


def _command(
    method: str, task: str, seed: int, steps: int, kept: Path, record: Path, settings: dict[str, float]
) -> Command:
    command = [method, task, "--seed", str(seed), "--steps", str(steps), "--out", str(kept), "--record", str(record)]
    return [*command, *(["--set"] if settings else []), *(f"{name}={value:.10g}" for name, value in settings.items())]


def _weights(weights: tuple[float, ...]) -> dict[str, float]:
    return {name: weight / sum(weights) for name, weight in zip(("imitate", "reward", "safety"), weights, strict=True)}


def _chosen(assets: Path, task: str) -> tuple[list[float], float]:
    chosen = _read(assets, task)
    return chosen["weights"], chosen["safest_share"]


def _read(assets: Path, task: str, planner: str = "") -> dict[str, Any]:
    file = assets / "results" / f"weights-{f'{planner}-' * bool(planner)}{task}.json"
    if not file.exists():
        more = f"--method {planner} --budget {' '.join(map(str, BUDGETS))} " if planner else ""
        command = f"python -m safediffkit.selection {task} {more}--out {file}"
        raise FileNotFoundError(f"no {file}: `{command}` chooses the weights and writes it")
    chosen: dict[str, Any] = json.loads(file.read_text())["chosen"]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
