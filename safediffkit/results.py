"""Records of a table of results, read and drawn up as Markdown."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from safediffkit.data.tasks import QUALITIES

ORDER = ("OfflineBallCircle-v0", "OfflineCarCircle-v0", "OfflineBallRun-v0", "OfflineCarRun-v0")
METHODS = ("tcdp", "trebi", "cdd", "cdt", "fisor", "spi", "bc-safe", "bc")
OUTCOMES = ("leader first", "follower first", "slow", "crash")  # of cars that merge
TEAMS = ("dom2", "ma-cql", "omar", "ma-sfbc", "madiff", "imitation")
# worlds, and what records call them; the ways of covering are counted from few starts
SHIFTS = {"six": "policy"} | {shift: f"policy, {shift}" for shift in ("three dismissed", "three far", "slow")}
WAYS = {"six": "policy, four starts", "three dismissed": "policy, four starts, three dismissed"}


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
    methods = [one for one in METHODS if any(one == key[2] for key in cells)]
    lines = [f"| task | budget | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
    for task, budget in sorted({key[:2] for key in cells}, key=lambda key: (ORDER.index(key[0]), float(key[1]))):
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
    lines = [
        "| task | method | rule | seeds | normalised reward | cost | within budget |",
        "|---|---|---|---|---|---|---|",
    ]
    for names, scores in sorted(team_scores(records).items()):
        figures = [_spread(scores, what, 2) for what in ("normalised_reward", "cost", "within_budget")]
        lines.append(f"| {' | '.join(names)} | {len(scores)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def team_scores(records: list[Path]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Collect the scores of each (task, method, variant and shift, such as "policy, three dismissed"), one a seed.

    A method that learned from a share of the episodes is "dom2-share-0.2".
    """
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for task, name, rule, score in _scores(records):
        cells.setdefault((task, name, rule), []).append(score)
    return cells


def interval(values: list[float]) -> tuple[float, float]:
    """Give the mean over seeds and half the width of its 95 % interval (Student's); nan for a single seed."""
    from scipy.stats import sem, t

    mean = sum(values) / len(values)
    return mean, float(sem(values) * t.ppf(0.975, len(values) - 1)) if len(values) > 1 else math.nan


def by_quality(records: list[Path], what: str = "reward", methods: tuple[str, ...] = TEAMS) -> str:
    """Draw up figures of teams as a Markdown table: quality of the data and world by methods, mean and interval.

    `what` is "reward", of an episode, in which a star marks the first and each whose mean is within the first's
    interval; or "cost", "covered" or "ways", see `worlds.landmarks.measures`.
    """
    cells = team_scores(records)
    lines = [f"| data | landmarks | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
    parts = [(f"landmarks-{quality}", "") for quality in QUALITIES]
    shares = {(task, name.removeprefix("dom2")) for task, name, _ in cells if name.startswith("dom2-share")}
    parts += sorted(shares, reverse=True)
    for (task, part), (shift, rule) in product(parts, (WAYS if what == "ways" else SHIFTS).items()):
        found = {name: cells[task, name + part, rule] for name in methods if (task, name + part, rule) in cells}
        if found:
            told = {name: interval(list(map(of(what), scores))) for name, scores in found.items()}
            first, wide = max(told.values())
            least = math.inf if what != "reward" else first if math.isnan(wide) else first - wide
            digits = 0 if what == "reward" else 2 if what == "covered" else 1
            shown = [
                _told(*told[name], digits) + "*" * (told[name][0] >= least) if name in told else "-" for name in methods
            ]
            data = task.removeprefix("landmarks-") + part.replace("-share-", ", share ")
            lines.append(f"| {data} | {shift} | {' | '.join(shown)} |")
    return "\n".join(lines)


def of(what: str) -> Callable[[dict[str, Any]], float]:
    """Make a function that reads a score's figure, or the mean where it is an estimate."""
    return lambda score: float(score[what]["mean"] if isinstance(score[what], dict) else score[what])


def by_role(records: list[Path]) -> str:
    """Draw up CBF-diffusion's roles of the barrier, and imitation, as a Markdown table.

    Means over seeds; of return and violations the least and the greatest, too. Violations are an episode's cost; an
    episode without any is clean. The worst margin is the least free gap between two agents, or a car's least stopping
    margin. Outcomes are shares of episodes, in the order of `OUTCOMES`.
    """
    lines = [
        "| data | method | role | return | violations | clean | safe states | worst margin, m | outcomes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, name, role), scores in team_scores(records).items():

        def mean(what: str, scores: list[dict[str, Any]] = scores) -> float:
            return sum(map(of(what), scores)) / len(scores)

        margin = "margin" if "margin" in scores[0] else "gap"
        shares = " / ".join(f"{mean(one):.2f}" for one in OUTCOMES) if OUTCOMES[0] in scores[0] else "-"
        cells = [
            task.removesuffix("-mixed-safety"), name, "-" if role == "policy" else role,
            _spread(scores, "reward", 0), _spread(scores, "cost", 2),
            f"{mean('within_budget'):.2f}", f"{mean('safe'):.3f}", f"{mean(margin):.2f}", shares,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(scores: list[dict[str, Any]], what: str, digits: int) -> str:
    values = list(map(of(what), scores))
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _told(mean: float, wide: float, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if math.isnan(wide) else f" ± {wide:.{digits}f}")
