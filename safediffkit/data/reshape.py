"""Recorded experience in, reshaped experience out: what a method learns from, made out of what was recorded."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int, Shaped

if TYPE_CHECKING:  # torch is not imported here, so that a lesson on arrays starts at once
    import safediffkit.data.dataset

Risk = Callable[[Any], Any]  # f of SPI Eq. 4: costs in, risks from 0 (none) to 1 (full) of the same shape out


def happened(costs: Float[Any, "*batch"]) -> Bool[Any, "*batch"]:
    """Call any cost at all a full risk: true where the cost is above 0."""
    return costs > 0


def graded(limit: float) -> Risk:
    """Make a risk that grows with the cost and is full from `limit` on: min(cost / limit, 1).

    Raises:
        ValueError: `limit` is not above 0.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}: the cost that counts as full risk must be above 0")

    def graded_risk(costs: Any) -> Any:
        return (costs / limit).clip(max=1)

    graded_risk.__name__ = f"graded({limit:g})"  # what a result record calls it
    return graded_risk


def remap_cost(costs: Shaped[Any, "*batch"], risk: Risk = happened) -> Float[Any, "*batch"]:
    """Turn costs, which are to be small, into safety c' = 1 - risk(cost), which is to be large.

    `costs` is a numpy array or a torch tensor of any shape; floats keep their dtype, other numbers become floats.
    The paper leaves `risk` (its f) open; that any cost is a full risk is our choice, and `graded` offers another.

    Raises:
        TypeError: `costs` is neither an array nor a tensor.
        ValueError: a cost is negative, NaN or infinite, or `risk` gives a number outside [0, 1].

    [SPI Eq. 4]
    """
    if not hasattr(costs, "dtype"):
        raise TypeError(f"remap_cost needs a numpy array or a torch tensor, not a {type(costs).__name__}")
    costs = costs * 1.0
    _check(costs, (costs >= 0) & (costs < float("inf")), "costs must be finite and at least 0")
    danger = 0 * costs + risk(costs)  # a risk may answer in booleans; the dtype stays that of the costs
    _check(danger, (danger >= 0) & (danger <= 1), "risk must map costs into [0, 1], as graded(limit) does")
    return 1.0 - danger


def _check(values: Any, right: Any, need: str) -> None:
    if not right.all():
        raise ValueError(
            f"{need}; {int((~right).sum())} of them are not so, the first being {float(values[~right][0])}"
        )


def safe_only(dataset: "safediffkit.data.dataset.Dataset", budget: float) -> "safediffkit.data.dataset.Dataset":
    """Keep the episodes whose cost, summed over steps and agents, is within `budget`.

    Raises:
        ValueError: no episode is.
    """
    costs = _totals(dataset.episode_costs())
    safe = costs <= budget
    if not safe.any():
        raise ValueError(
            f"no episode costs at most {budget:g}: {_cheapest(costs)}; raise the budget or collect safer episodes"
        )
    kept = dataset.where(safe[dataset.episode])
    return replace(kept, provenance=f"{dataset.provenance}; only episodes of cost <= {budget:g}")


def split_episodes(
    dataset: "safediffkit.data.dataset.Dataset", share: float, seed: int
) -> "tuple[safediffkit.data.dataset.Dataset, safediffkit.data.dataset.Dataset]":
    """Give a share of the episodes, drawn by the seed, and the others.

    Raises:
        ValueError: `share` is not between 0 and 1, or leaves no episode on one side.
    """
    import torch

    episodes = int(dataset.episode[-1]) + 1
    count = round(share * episodes)
    if not 0 < count < episodes:
        raise ValueError(f"a share {share} of {episodes} episodes leaves none on one side: give one between 0 and 1")
    drawn = torch.zeros(episodes, dtype=torch.bool)
    drawn[torch.randperm(episodes, generator=torch.Generator().manual_seed(seed))[:count]] = True
    some, others = (dataset.where(chosen[dataset.episode]) for chosen in (drawn, ~drawn))
    return some, others


def return_thresholds(
    dataset: "safediffkit.data.dataset.Dataset", shares: tuple[float, ...] = (0.5, 0.75, 0.9)
) -> tuple[float, ...]:
    """Give the returns that these shares of the episodes lie below, for `repeat_good_episodes`; a team's is summed.

    DOM2 names no thresholds: that ours are quantiles of the recorded returns, and which, is our choice.

    Raises:
        ValueError: a share is not from 0 to 1, or there is no episode.
    """
    returns = _totals(dataset.episode_returns())
    if not len(returns) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares {shares} of {len(returns)} episodes: numbers from 0 to 1 of at least one are needed")
    return tuple(float(returns.quantile(share)) for share in shares)


def repeat_good_episodes(
    dataset: "safediffkit.data.dataset.Dataset", thresholds: tuple[float, ...]
) -> "safediffkit.data.dataset.Dataset":
    """Append each episode once more for every threshold that its return, summed over agents, reaches. [DOM2 Alg. 1]

    Copies follow the recorded episodes and are episodes of their own, numbered on.

    Raises:
        ValueError: a threshold is NaN.
    """
    import torch

    if any(threshold != threshold for threshold in thresholds):
        raise ValueError(f"thresholds {thresholds}: a return can reach a number, not NaN")
    returns = _totals(dataset.episode_returns())
    reached = [returns >= threshold for threshold in thresholds]
    copies = [dataset.where(good[dataset.episode]) for good in reached if good.any()]
    if not copies:
        return dataset
    parts, episode, known = [dataset, *copies], [], 0
    for part in parts:
        episode.append(part.episode + known)
        known = int(episode[-1][-1]) + 1
    columns = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("observations", "actions", "rewards", "costs", "next_observations", "terminated")
    }
    told = ", ".join(f"{threshold:g} ({int(good.sum())})" for threshold, good in zip(thresholds, reached, strict=True))
    provenance = f"{dataset.provenance}; episodes once more for each return they reach (how many do): {told}"
    return replace(dataset, **columns, episode=torch.cat(episode), provenance=provenance)


def agents_apart(dataset: "safediffkit.data.dataset.Dataset") -> "safediffkit.data.dataset.Dataset":
    """Make an episode of each agent's part in each episode: what agents learn from who share one network.

    All episodes of agent 0 come first, then those of agent 1, and so on; the agents axis is gone.

    Raises:
        ValueError: the dataset has no agents axis.
    """
    import torch

    if dataset.rewards.ndim != 2:
        raise ValueError("agents_apart needs a Dataset with an agents axis; this one has a single agent")
    agents, episodes = dataset.rewards.shape[1], int(dataset.episode.max()) + 1 if len(dataset) else 0
    names = ("observations", "actions", "rewards", "costs", "next_observations")
    columns = {name: getattr(dataset, name).transpose(0, 1).flatten(0, 1) for name in names}
    return replace(
        dataset,
        **columns,
        terminated=dataset.terminated.repeat(agents),
        episode=torch.cat([dataset.episode + j * episodes for j in range(agents)]),
        provenance=f"{dataset.provenance}; its {agents} agents apart",
    )


def draw_within_budget(
    costs: Float[Any, "windows"], budgets: Float[Any, "choices"], size: int, generator: Any = None
) -> tuple[Int[Any, "size"], Float[Any, "size"]]:
    """Draw pairs (window, budget) whose windows, under each budget, are distributed as p(window | cost <= budget).

    The budget comes first, uniformly among those that some window satisfies, and then a window, uniformly among those
    within it. The other way round, one random admissible budget for each window, a window that satisfies few budgets
    meets each of them more often than a cheap one does, and p(window | cost <= budget) comes out biased towards
    costly windows. `costs` and `budgets` are torch tensors, `generator` one of torch's.

    Raises:
        ValueError: no window is within any of the budgets.
    """
    import torch

    # whoever draws again and again sorts the windows once
    in_order = bool((costs.diff() >= 0).all())
    ascending, order = (costs, torch.arange(len(costs))) if in_order else costs.sort()
    affordable = torch.searchsorted(ascending, budgets.to(ascending), right=True)  # windows within each budget
    budgets, affordable = budgets[affordable > 0], affordable[affordable > 0]
    if not len(budgets):
        raise ValueError(f"no window is within any of the budgets: {_cheapest(costs)}; give a larger budget")
    choice = torch.randint(len(budgets), (size,), generator=generator)
    share = torch.rand(size, generator=generator, dtype=torch.float64)  # float32 could not tell 2^24 windows apart
    rank = (share * affordable[choice]).long().clamp(max=affordable[choice] - 1)
    return order[rank], budgets[choice]


def conditional_quantile(
    values: Float[Any, "windows"], costs: Float[Any, "windows"], budget: float
) -> Float[Any, "windows"]:
    """Say which share of the windows within `budget` each of them outdoes in value: mid-ranks from 0 to 1.

    Any increasing map of the values leaves them as they are, so one reward weight serves every budget and every
    task. Equal values share the middle of their ranks. A window over the budget has no rank among those within: NaN,
    since a number could be mistaken for one.

    Raises:
        ValueError: no window is within the budget.
    """
    import torch

    within = costs <= budget
    if not within.any():
        raise ValueError(f"no window costs at most {budget:g}: {_cheapest(costs)}; give a larger budget")
    chosen = values[within]
    ascending = chosen.sort().values
    below, upto = (torch.searchsorted(ascending, chosen, right=right).to(values) for right in (False, True))
    quantiles = torch.full_like(values, torch.nan)
    quantiles[within] = (below + upto) / (2 * len(chosen))
    return quantiles


def _totals(sums: Any) -> Any:
    return sums if sums.ndim == 1 else sums.sum(1)  # over agents


def _cheapest(costs: Any) -> str:
    return f"the cheapest of {len(costs)} costs {float(costs.min()):g}" if len(costs) else "there are none"
