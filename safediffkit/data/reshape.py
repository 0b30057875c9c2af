"""Recorded experience in, reshaped experience out: what a method learns from, made out of what was recorded."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Shaped

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
    costs = dataset.episode_costs()
    costs = costs.reshape(len(costs), -1).sum(1)
    safe = costs <= budget
    if not safe.any():
        cheapest = f"the cheapest of {len(costs)} costs {float(costs.min()):g}" if len(costs) else "there are none"
        raise ValueError(f"no episode costs at most {budget:g}: {cheapest}; raise the budget or collect safer episodes")
    kept = dataset.where(safe[dataset.episode])
    return replace(kept, provenance=f"{dataset.provenance}; only episodes of cost <= {budget:g}")
