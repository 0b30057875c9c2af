"""Command line: run a table of results, method by task by seed, and go on where it was interrupted.

    python -m safediffkit.benchmark spi --assets tutorials/assets --jobs 2

runs each missing `python -m safediffkit.train` command of the table in a process of its own. Its record, which holds
that command, goes to the assets; policies that no lesson loads go to `--runs`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from safediffkit.data.tasks import QUALITIES
from safediffkit.results import by_budget, by_quality, by_role, markdown

Command = list[str]  # arguments of `python -m safediffkit.train`
Settings = dict[str, float | str]

TASKS = ("OfflineBallCircle-v0", "OfflineCarCircle-v0")  # of SPI's table
MORE_TASKS = (*TASKS, "OfflineBallRun-v0", "OfflineCarRun-v0")  # of the table of budgets
BUDGETS = (10, 20, 40)
PLANNERS = ("tcdp", "trebi", "cdd")
SEEDS = (0, 1, 2)
TEAM_SEEDS = (*SEEDS, 3, 4)  # of DOM2's table
# method and settings; imitation and all ablations are DOM2 with something left out
IMITATION: tuple[str, Settings] = ("dom2", {"network": "mlp", "value_weight": 0, "repeat_above": ""})
TEAMS: dict[str, tuple[str, Settings]] = {
    "dom2": ("dom2", {"network": "mlp"}),
    "ma-cql": ("ma-cql", {}),
    "omar": ("omar", {}),
    "ma-sfbc": ("ma-sfbc", {"network": "mlp"}),
    "madiff": ("madiff", {}),
    "imitation": IMITATION,
}
ABLATIONS: dict[str, tuple[str, Settings]] = {
    "dom2-without-imitation": ("dom2", {"network": "mlp", "imitate": 0}),
    "dom2-without-values": ("dom2", {"network": "mlp", "value_weight": 0}),
    "dom2-without-copies": ("dom2", {"network": "mlp", "repeat_above": ""}),
    "dom2-unet": ("dom2", {"network": "unet"}),
}
# settings of CBF-diffusion; imitation has as many updates
BARRIERS: dict[str, Settings] = {
    "landmarks-mixed-safety": {
        "network": "dit", "hidden": 64, "patch": 4, "temperature": 0.7, "steps": 9000, "foresight": 2, "caution": 0.05,
    },
    "merge-mixed-safety": {
        "world": "merge", "horizon": 16, "lookahead": 16, "foresight": 14, "penalty": 2, "steps": 2500,
        "value_steps": 1500,
    },
}  # fmt: skip
SHARES = (0.2, 0.05)  # of the episodes, for data efficiency
MIXTURE = "landmarks-medium-expert"  # the task of ablations and data shares
SHOWN = TASKS[0], 0  # the task and seed whose policies lesson 04 loads


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
    parser.add_argument(
        "--what",
        choices=("reward", "cost", "covered", "ways", "ablations"),
        default="reward",
        help="shown of landmarks",
    )
    given = parser.parse_args(arguments)
    make, folder, _ = TABLES[given.table]
    if given.show:
        shows: dict[str, Callable[[list[Path]], str]] = {"budgets": by_budget, "roles": by_role}
        shows["landmarks"] = by_part if given.what == "ablations" else partial(by_quality, what=given.what)
        print(shows.get(given.table, markdown)(sorted((given.assets / folder).glob("*-[0-9].json"))))
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


def by_part(records: list[Path]) -> str:
    """Draw up the return of DOM2 and of its ablations, on all episodes of the mixture, as a Markdown table."""
    compared = [file for file in records if MIXTURE in file.stem and "share" not in file.stem]
    return by_quality(compared, methods=("dom2", *ABLATIONS)).replace("dom2-", "").replace("without-", "without ")


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
                files = _files(assets, runs, "", name, task, seed, shown=(task, seed) == SHOWN)
                settings = {} if weights is None else _weights(weights) | {"safest_share": share}
                commands.append(_command(method, task, seed, steps, *files, settings))
    return commands


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
                files = _files(assets, runs, "budgets", name, task, seed, shown=shown)
                method, budgets = ("bc-safe", name.split("-")[-1:]) if "safe" in name else (name, map(str, BUDGETS))
                command = _command(method, task, seed, steps, *files, chosen.get(name, {}))
                commands.append([*command, "--budget", *budgets])
    return commands


def landmarks_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List the runs of DOM2, its rivals and imitation on landmarks of every quality, and on a part of the mixture.

    DOM2's ablations, those of its Figure 6, come last.
    """
    commands = []

    def add(label: str, method: str, settings: Settings, task: str, seed: int, share: float = 1.0) -> None:
        shown = (task, seed, share) == (MIXTURE, 0, 1.0) and label in ("dom2", "imitation", "ma-cql")  # lesson 07's
        name = label if share == 1 else f"{label}-share-{share:g}"
        files = _files(assets, runs, "landmarks", name, task, seed, shown=shown)
        command = _command(method, task, seed, steps, *files, settings)
        commands.append([*command, "--budget", "0", "--episodes", "50", *(["--share", str(share)] * (share < 1))])

    for seed in TEAM_SEEDS:
        for quality in QUALITIES:
            for label, (method, settings) in TEAMS.items():
                add(label, method, settings, f"landmarks-{quality}", seed)
    for seed in TEAM_SEEDS:
        for share in SHARES:
            for label, (method, settings) in TEAMS.items():
                add(label, method, settings, MIXTURE, seed, share)
    for seed in TEAM_SEEDS:
        for label, (method, settings) in ABLATIONS.items():
            add(label, method, settings, MIXTURE, seed)
    return commands


def roles_table(assets: Path, runs: Path, steps: int) -> list[Command]:
    """List the runs of CBF-diffusion, which score every role of the barrier, and of imitation.

    Updates are as many as a world needs: `steps` goes unused.
    """
    commands = []
    for seed in SEEDS:
        for task, given in BARRIERS.items():
            settings, updates = given.copy(), int(given["steps"])
            del settings["steps"]
            for name, (method, chosen) in (("cbf-diffusion", ("cbf-diffusion", settings)), ("imitation", IMITATION)):
                shown = (task, seed) == ("merge-mixed-safety", 0)  # lesson 08's
                files = _files(assets, runs, "roles", name, task, seed, shown=shown)
                command = _command(method, task, seed, updates, *files, chosen)
                commands.append([*command, "--budget", "0", "--episodes", "50"])
    return commands


TABLES = {
    "spi": (spi_table, "results", "SPI and its ablations"),
    "simplex": (simplex_table, f"policies/{SHOWN[0]}/simplex", "the policies of lesson 04"),
    "budgets": (budgets_table, "results/budgets", "all methods under three budgets"),
    "roles": (roles_table, "results/roles", "roles of a barrier in a team's plans"),
    "landmarks": (landmarks_table, "results/landmarks", "teams among landmarks that may vanish"),
}


def _files(assets: Path, runs: Path, table: str, name: str, task: str, seed: int, *, shown: bool) -> tuple[Path, Path]:
    # of the policy, which goes to the assets if a lesson loads it, and of the record; a name may hold a dot
    run = f"{name}-{task}-{seed}"
    policy = assets / "policies" / task / name if shown else runs / table / run
    return policy.with_name(f"{policy.name}.safetensors"), assets / "results" / table / f"{run}.json"


def _command(method: str, task: str, seed: int, steps: int, kept: Path, record: Path, settings: Settings) -> Command:
    command = [method, task, "--seed", str(seed), "--steps", str(steps), "--out", str(kept), "--record", str(record)]
    told = (f"{name}={value if isinstance(value, str) else f'{value:.10g}'}" for name, value in settings.items())
    return [*command, *(["--set"] if settings else []), *told]


def _weights(weights: tuple[float, ...]) -> Settings:
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
