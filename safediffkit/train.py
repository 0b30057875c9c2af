"""Command line: train a method on a task's data, save the policy, evaluate it and write down what came out.

    python -m safediffkit.train spi OfflineBallCircle-v0 --seed 0 --out runs/spi.safetensors

writes the policy to that file and the result record beside it (runs/spi.json). Interrupted, the same command goes on
from the last checkpoint. `--set name=value` changes any field of the method's Config. `--budget 10 20 40` scores the
one trained policy under each of these budgets. A team is scored in its task's shifted worlds too. `--share 0.05` trains
on one episode in twenty.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# the module of each, its Config and its function that trains
METHODS = {
    "spi": ("methods.spi", "Config", "train"),
    "tcdp": ("methods.tcdp", "Config", "train"),
    "trebi": ("baselines.generative", "TREBIConfig", "train_trebi"),
    "cdd": ("baselines.generative", "CDDConfig", "train_cdd"),
    "fisor": ("baselines.generative", "FISORConfig", "train_fisor"),
    "cdt": ("baselines.transformer", "Config", "train"),
    "dom2": ("methods.dom2", "Config", "train"),
    "ma-cql": ("baselines.offline_agents", "CQLConfig", "train_cql"),
    "omar": ("baselines.offline_agents", "OMARConfig", "train_omar"),
    "ma-sfbc": ("baselines.offline_agents", "SfBCConfig", "train_sfbc"),
    "madiff": ("baselines.madiff", "Config", "train"),
    "cbf-diffusion": ("methods.cbf_diffusion", "Config", "train"),
    "bc": ("baselines.imitation", "Config", "train"),
    "bc-safe": ("baselines.imitation", "Config", "train"),
}
PACKAGES = ("safediffkit", "torch", "numpy", "gymnasium", "bullet-safety-gym", "pybullet", "mpe2", "highway-env")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when the record is written, 2 when the arguments make no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    record_file = given.record or given.out.with_suffix(".json")
    checkpoint = given.out.with_name(given.out.name + ".checkpoint")
    try:
        train, config = _configured(given)
        for file in (given.out, record_file):
            if file.exists():
                raise ValueError(f"{file} exists already: move it away, or choose another name with --out")
        result = _run(given, train, config, checkpoint)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    write_record(record_file, {"command": command("train", arguments), **result})
    checkpoint.unlink(missing_ok=True)
    for name, score in result["scores"].items():
        reward, cost = score["normalised_reward"], score["normalised_cost"]
        print(f"{given.method} ({name}): normalised reward {reward['mean']:.3f}, normalised cost {cost['mean']:.3f}")
    print(f"policy: {given.out}\nrecord: {record_file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m safediffkit.train",
        description="Train a method on a task's data, save the policy, evaluate it, write a result record.",
        epilog="An interrupted run goes on from its last checkpoint when the same command is given again.",
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("task", help='a task, such as "OfflineBallCircle-v0", or "landmarks-expert" for a team')
    parser.add_argument("--out", type=Path, required=True, help="file for the policy; the record gets its name + .json")
    parser.add_argument("--record", type=Path, help="file for the record, if not beside the policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="number of updates (default: the method's)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="other fields of the method's Config"
    )
    parser.add_argument("--data", type=Path, help="an HDF5 file in DSRL's layout (default: the bundled pack)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the episodes to learn from, drawn by the seed (default: 1)"
    )
    parser.add_argument("--source", choices=("bundled", "dsrl"), default="bundled")
    parser.add_argument(
        "--budget", type=float, nargs="+", default=[20.0], help="cost limits an episode, scored each (default: 20)"
    )
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate (default: 20)")
    return parser


def _configured(given: argparse.Namespace) -> tuple[Any, Any]:
    place, settings, train = METHODS[given.method]
    module = import_module(f"safediffkit.{place}")
    make = getattr(module, settings)
    known = {field.name: field.type for field in fields(make)}
    changes: dict[str, Any] = {"seed": given.seed}
    if given.method == "bc-safe":
        if len(given.budget) > 1:
            raise ValueError(f"--budget {_listed(given.budget)}: bc-safe learns for one budget; train it once for each")
        changes["safe_within"] = given.budget[0]
    for change in given.set:
        name, equals, value = change.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {change}: give NAME=VALUE with a name among {', '.join(sorted(known))}")
        changes[name] = _value(change, value, known[name])
    if given.steps is not None:
        changes["steps"] = given.steps
    config = replace(make(), **changes)
    if config.steps < 1:
        raise ValueError(f"--steps {config.steps}: at least 1 update is needed")
    if not 0 < given.share <= 1:
        raise ValueError(f"--share {given.share}: above 0 and at most 1 is needed")
    if given.episodes < 1:
        raise ValueError(f"--episodes {given.episodes}: at least 1 is needed")
    check_budgets(given.budget)
    return getattr(module, train), config


def check_budgets(budgets: list[float]) -> None:
    """Refuse budgets that no episode can keep, and the same one twice.

    Raises:
        ValueError: a budget is negative, not a finite number, or there twice.
    """
    if not all(0 <= budget < math.inf for budget in budgets) or len(set(budgets)) < len(budgets):
        raise ValueError(f"--budget {_listed(budgets)}: 0 or more is needed, and each budget once")


def _listed(budgets: list[float]) -> str:
    return " ".join(map(str, budgets))


def _value(change: str, text: str, kind: Any) -> Any:
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"--set {change}: {'an int' if kind is int else 'a float'} is needed") from None
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind == float | None:
        return None if text == "None" else _value(change, text, float)
    if kind == tuple[float, ...]:
        return tuple(_value(change, part, float) for part in text.split(",")) if text else ()
    raise ValueError(f"--set {change}: only {' or '.join(map(str, get_args(kind)))} can be given here")


def _run(given: argparse.Namespace, train: Any, config: Any, checkpoint: Path) -> dict[str, Any]:
    import torch

    from safediffkit import load, rollout, save_policy, score
    from safediffkit.data.reshape import split_episodes
    from safediffkit.data.tasks import find_task
    from safediffkit.learning import progress, words
    from safediffkit.worlds.rollout import measures, shifted_worlds

    torch.set_num_threads(1)  # two busy threads on two cores made a small update forty times slower
    dataset = load(given.task, source=given.source, path=given.data)
    if given.share < 1:
        provenance = f"{dataset.provenance}; a share {given.share:g} of the episodes, drawn by seed {config.seed}"
        dataset = replace(split_episodes(dataset, given.share, config.seed)[0], provenance=provenance)
    for file in filter(None, (given.out, given.record)):
        file.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    watch = progress(config.steps, f"{given.method} {given.task}")
    policy = train(dataset, config, watch, checkpoint=checkpoint)
    minutes = (time.perf_counter() - start) / 60
    seed = 10_000 + 1_000 * config.seed  # of the evaluation: no world that the data was recorded in
    variants = policy.variants() if hasattr(policy, "variants") else {"policy": policy}
    worlds: dict[str, Any] = {"": given.task}
    worlds |= {f", {shift}": shifted_worlds(given.task, shift) for shift in find_task(given.task).shifts}
    scores = {}
    several = len(given.budget) > 1
    for (name, variant), (shift, world), budget in product(variants.items(), worlds.items(), given.budget):
        episodes = rollout(variant, world, episodes=given.episodes, budget=budget, seed=seed)
        told = asdict(score(episodes, given.task, budget=budget)) | measures(episodes, given.task)
        scores[f"{name}{shift} at {budget:g}" if several else name + shift] = told
    save_policy(policy, given.out)
    budgets = given.budget if several else given.budget[0]
    return {
        "method": given.method,
        "task": given.task,
        "config": words(config),
        "data": dataset.provenance,
        "evaluation": {"episodes": given.episodes, "budget": budgets, "first_reset_seed": seed},
        "scores": scores,
        "minutes_of_training": round(minutes, 2),
        **circumstances(),
    }


def circumstances() -> dict[str, Any]:
    """Say on what kind of machine, when and with which versions a figure was made."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, one torch thread",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: told for name in PACKAGES if (told := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # those of an extra
        return None


def command(name: str, arguments: list[str] | None) -> str:
    """Spell the command that is running, so that a record can be made again."""
    return f"python -m safediffkit.{name} {shlex.join(sys.argv[1:] if arguments is None else arguments)}"


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main())
