"""The exercises of lesson 08."""

from collections.abc import Callable

import torch
from torch import Tensor

from safediffkit.lessons import Exercise


def _sum(paid: Callable[[Tensor, Tensor, float], Tensor], first: int = 0) -> Callable[..., float]:
    """Make a discounted sum of what is paid at each step."""

    def charged(rewards: Tensor, danger: Tensor, penalty: float, discount: float) -> float:
        fading = discount ** torch.arange(first, first + len(rewards))
        return float((fading * paid(rewards, danger.float(), penalty)).sum())

    return charged


charged = Exercise(
    _sum(lambda rewards, danger, penalty: rewards - penalty * danger),
    trials=[
        (torch.tensor([0.8, 0.6, 0.9, 0.7]), torch.tensor([False, True, True, False]), 2.0, 0.9),
        (torch.tensor([1.0, -19.0]), torch.tensor([False, True]), 0.5, 0.8),
    ],
    slips={
        "charged at every step": (
            _sum(lambda rewards, danger, penalty: rewards - penalty),
            "That is Eq. 13 as it is printed: the penalty falls due at every step. A drive in danger and one far from "
            "it pay the same. Charge the steps in danger alone.",
        ),
        "penalty added": (
            _sum(lambda rewards, danger, penalty: rewards + penalty * danger),
            "The sign is turned: yours pays for danger. A penalty is subtracted.",
        ),
        "reward lost in danger": (
            _sum(lambda rewards, danger, penalty: rewards * (1 - danger) - penalty * danger),
            "In danger, yours charges the penalty in place of the reward. The step still earns what it earns: subtract "
            "from it.",
        ),
        "no discount": (
            lambda rewards, danger, penalty, discount: float((rewards - penalty * danger).sum()),
            "The discount is missing: what comes t steps later counts discount ** t.",
        ),
        "penalty not discounted": (
            lambda rewards, danger, penalty, discount: float(
                (discount ** torch.arange(len(rewards)) * rewards - penalty * danger).sum()
            ),
            "Only the rewards are discounted in yours. The bracket of Eq. 13 holds both: later danger counts less.",
        ),
        "first step discounted": (
            _sum(lambda rewards, danger, penalty: rewards - penalty * danger, first=1),
            "Your weights begin with the discount, as the paper's sum does, which starts at t = 1. That only makes "
            "everything smaller by one factor. Here the first step counts in full: begin with discount ** 0.",
        ),
    },
    why="A step in danger costs the penalty, and the rest is an ordinary discounted return.",
    hint="At each step, the reward less the penalty if it is dangerous; the first counts in full, each later one by "
    "another factor of the discount less.",
)

_NAN = torch.nan


def _forget(y: Tensor, forgotten: Tensor) -> Tensor:
    return y.masked_fill(forgotten[:, None], _NAN)


shown = Exercise(
    _forget,
    trials=[
        (torch.tensor([[1.0, 0.9], [0.0, 0.2], [-1.0, 0.5], [0.3, 0.0]]), torch.tensor([False, True, False, True])),
        (torch.tensor([[0.5, 0.1]]), torch.tensor([False])),
    ],
    slips={
        "Eq. 10 word for word": (
            lambda y, forgotten: (1 - forgotten.float())[:, None] * y + forgotten.float()[:, None] * _NAN,
            "Word for word (1 - beta) y + beta nothing. But nothing is NaN, and 0 times NaN is NaN: your network is "
            "never shown anything. Choose between the two instead of adding them up.",
        ),
        "0 for nothing": (
            lambda y, forgotten: y.masked_fill(forgotten[:, None], 0.0),
            "Yours shows 0 where it should show nothing. But 0 is a wish like any other: the lowest rank of all, and "
            "h exactly at the edge. Nothing is NaN.",
        ),
        "kept and forgotten swapped": (
            lambda y, forgotten: y.masked_fill(~forgotten[:, None], _NAN),
            "Swapped: beta = 1 forgets, and yours forgets the others.",
        ),
        "only safety forgotten": (
            lambda y, forgotten: torch.stack([y[:, 0].masked_fill(forgotten, _NAN), y[:, 1]], 1),
            "Yours forgets the safety and goes on showing the return. Eq. 10 forgets all of y at once. (The planner "
            "below learns from both kinds.)",
        ),
        "everything shown": (
            lambda y, forgotten: y,
            "Nothing is forgotten in yours, so the network never learns what drives are like without any wish. "
            "Guidance needs that as well.",
        ),
    },
    why="Rows with beta = 1 show nothing, and all others show y as it is.",
    hint="masked_fill, or torch.where, with the mask as a column: forgotten[:, None]. Nothing is torch.nan.",
)


def _follow(worth: Tensor, least: Tensor) -> int:
    passed = least >= 0
    kept = worth.where(passed, torch.tensor(-torch.inf))
    return int(kept.argmax() if passed.any() else least.argmax())


follow = Exercise(
    _follow,
    trials=[
        (torch.tensor([0.9, -0.4, -0.7, -0.5]), torch.tensor([-0.2, 0.1, 0.8, 0.3])),
        (torch.tensor([0.3, 0.8, 0.5]), torch.tensor([0.4, 0.0, 0.1])),
        (torch.tensor([0.2, 0.9, 0.6]), torch.tensor([-0.5, -0.3, -0.1])),
    ],
    slips={
        "greatest worth of all": (
            lambda worth, least: int(worth.argmax()),
            "The barrier has no say in yours: it takes the plan of the greatest worth, though it may be refused.",
        ),
        "safest of all": (
            lambda worth, least: int(least.argmax()),
            "Yours takes the safest plan there is, however little it is worth. A filter refuses what is not safe, and "
            "does not care for how safe the rest is.",
        ),
        "first that passes": (
            lambda worth, least: int((least >= 0).float().argmax()) if (least >= 0).any() else int(least.argmax()),
            "Yours takes the first plan that passes. Take the one of the greatest worth among them.",
        ),
        "refused ones count as 0": (
            lambda worth, least: int((worth * (least >= 0)).argmax()) if (least >= 0).any() else int(least.argmax()),
            "A refused plan counts as 0 in yours, and so it beats the others where all of those are worth less than 0. "
            "Make it -torch.inf.",
        ),
        "nothing safe, so any": (
            lambda worth, least: int(worth.where(least >= 0, torch.tensor(-torch.inf)).argmax()),
            "Right as long as a plan passes. Where none does, all of them are -inf in yours, and it takes the first. "
            "Take the one whose least h is greatest.",
        ),
        "0 refused": (
            lambda worth, least: (
                int(worth.where(least > 0, torch.tensor(-torch.inf)).argmax())
                if (least > 0).any()
                else int(least.argmax())
            ),
            "Nearly: h = 0 is safe, too. Condition by condition, a barrier asks for h at least 0.",
        ),
    },
    why="The barrier refuses, the worth decides among the rest; and where nothing passes, the least bad is taken.",
    hint="Which plans pass, least >= 0? If any does, the greatest worth among them; if none, the greatest least.",
)
