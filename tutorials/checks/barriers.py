"""The exercises of lesson 06."""

from collections.abc import Callable

import torch
from torch import Tensor

from safediffkit.lessons import Exercise

margin = Exercise(
    lambda gap, closing_speed, braking, clearance: gap - closing_speed.clamp(min=0) ** 2 / (2 * braking) - clearance,
    trials=[
        (torch.tensor([15.0, 4.0, 9.0]), torch.tensor([10.0, -4.0, 6.0]), 5.0, 2.0),
        (torch.tensor([1.0, 1.0]), torch.tensor([1.5, -0.5]), 2.0, 0.1),
    ],
    slips={
        "receding neighbour braked for": (
            lambda gap, closing_speed, braking, clearance: gap - closing_speed**2 / (2 * braking) - clearance,
            "That is the printed formula. Where the closing speed is below 0 the other draws away, and you brake for "
            "it all the same: the square has lost the sign.",
        ),
        "receding neighbour credited": (
            lambda gap, closing_speed, braking, clearance: (
                gap - closing_speed * closing_speed.abs() / (2 * braking) - clearance
            ),
            "A neighbour that draws away needs no braking distance, but it does not give you a negative one either: "
            "the margin is about the gap that there is now.",
        ),
        "twice the braking distance": (
            lambda gap, closing_speed, braking, clearance: gap - closing_speed.clamp(min=0) ** 2 / braking - clearance,
            "Your car needs twice the way. While it brakes it is half as fast on average: divide by 2 b.",
        ),
        "speed not squared": (
            lambda gap, closing_speed, braking, clearance: gap - closing_speed.clamp(min=0) / (2 * braking) - clearance,
            "The speed counts twice: a faster car brakes for longer, and covers more ground while it does. Square it.",
        ),
        "multiplied by the brakes": (
            lambda gap, closing_speed, braking, clearance: (
                gap - closing_speed.clamp(min=0) ** 2 * braking / 2 - clearance
            ),
            "With your formula better brakes need more room. Divide by the braking.",
        ),
        "clearance added": (
            lambda gap, closing_speed, braking, clearance: (
                gap - closing_speed.clamp(min=0) ** 2 / (2 * braking) + clearance
            ),
            "The clearance is room that must stay free, so it is taken off the gap, not added to it.",
        ),
        "clearance forgotten": (
            lambda gap, closing_speed, braking, clearance: gap - closing_speed.clamp(min=0) ** 2 / (2 * braking),
            "The car stops in time, but it may touch the wall. Keep the clearance as well.",
        ),
        "sign turned": (
            lambda gap, closing_speed, braking, clearance: (
                closing_speed.clamp(min=0) ** 2 / (2 * braking) + clearance - gap
            ),
            "The sign is turned: a margin is what is left over, so more gap must mean more margin.",
        ),
    },
    why="A neighbour that draws away, closing speed below 0, needs no braking distance.",
    hint="Gap, less the way that braking takes (none if the other draws away), less the clearance.",
)


def _hinges(h: Tensor, h_next: Tensor, dt: float, slope: float, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    fall = torch.relu(margin - (h_next - h) / dt - slope * h)
    return torch.relu(margin - h), torch.relu(margin + h), fall * (h >= 0)


def _with_third(third: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Make the three hinges with another argument of the third."""
    return lambda h, h_next, dt, slope, margin: (
        *_hinges(h, h_next, dt, slope, margin)[:2],
        torch.relu(third(h, h_next, dt, slope, margin)) * (h >= 0),
    )


_H, _NEXT = torch.tensor([0.5, 0.05, -0.2, 0.0, 1.0, 0.3]), torch.tensor([0.3, 0.1, -0.5, -0.1, 0.2, 0.28])

hinges = Exercise(
    _hinges,
    trials=[(_H, _NEXT, 0.2, 1.5, 0.1), (_NEXT, _H, 0.5, 0.5, 0.3)],
    slips={
        "start and danger swapped": (
            lambda h, h_next, dt, slope, margin: (
                torch.relu(margin + h),
                torch.relu(margin - h),
                _hinges(h, h_next, dt, slope, margin)[2],
            ),
            "Start and danger are swapped: yours asks for h above 0 in danger, and below 0 at the start.",
        ),
        "sign of all hinges": (
            lambda h, h_next, dt, slope, margin: (
                torch.relu(h - margin),
                torch.relu(-margin - h),
                torch.relu((h_next - h) / dt + slope * h - margin) * (h >= 0),
            ),
            "The hinges open to the wrong side: yours punish a condition that is kept, and let one go that is broken.",
        ),
        "no hinge": (
            lambda h, h_next, dt, slope, margin: (
                margin - h,
                margin + h,
                (margin - (h_next - h) / dt - slope * h) * (h >= 0),
            ),
            "Without max(0, ...) a state that keeps its condition by far is rewarded, and makes up for one that breaks "
            "it. A hinge is flat once the condition holds.",
        ),
        "change not divided by dt": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h_next - h) - slope * h),
            "h_next - h is a change in one step. The slope is a rate, 1 a second: divide the change by dt.",
        ),
        "change divided by dt twice": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h_next - h) / dt**2 - slope * h),
            "The change is divided by dt twice. Once makes it a rate of change; twice would be an acceleration.",
        ),
        "all divided by dt": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h_next - h + slope * h) / dt),
            "The brackets reach too far: dt divides the change of h alone. slope times h is a rate already.",
        ),
        "change turned round": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h - h_next) / dt - slope * h),
            "The change is what comes less what is: h_next - h. Yours punishes an h that rises.",
        ),
        "sign of the slope": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h_next - h) / dt + slope * h),
            "The sign of the slope's part is turned. Far from danger h may fall: slope times h allows that, so it is "
            "subtracted as the change is.",
        ),
        "slope forgotten": (
            _with_third(lambda h, h_next, dt, slope, margin: margin - (h_next - h) / dt),
            "Yours allows no fall of h at all, however large h is. slope times h says how fast it may fall.",
        ),
        "margin forgotten": (
            lambda h, h_next, dt, slope, margin: _hinges(h, h_next, dt, slope, 0.0),
            "The margin is missing. Without it h = 0 everywhere would cost nothing, and tell nothing apart.",
        ),
        "asked everywhere": (
            lambda h, h_next, dt, slope, margin: (
                *_hinges(h, h_next, dt, slope, margin)[:2],
                torch.relu(margin - (h_next - h) / dt - slope * h),
            ),
            "All three are right where h >= 0. Below 0 the third is not asked: multiply it by (h >= 0).",
        ),
    },
    why="Each is 0 where its condition holds by at least the margin, and grows by one for each unit short of it.",
    hint="Write each condition as 'this is at least the margin': h, then -h, then (h_next - h) / dt + slope h. The "
    "hinge is max(0, margin - this).",
)

upper_end = Exercise(
    lambda of, confidence: 1 - ((1 - confidence) / 2) ** (1 / of),
    trials=[(10, 0.95), (112, 0.95), (300, 0.9)],
    slips={
        "the share that was seen": (
            lambda of, confidence: 0.0,
            "That is the share that was seen. A true share of 1 in 1000 would hardly ever show in 100 draws.",
        ),
        "one side only": (
            lambda of, confidence: 1 - (1 - confidence) ** (1 / of),
            "Close: you spend all of 1 - confidence on this end. Half of it belongs to the other end of the interval.",
        ),
        "complement forgotten": (
            lambda of, confidence: ((1 - confidence) / 2) ** (1 / of),
            "That is 1 - p, the share that keeps the condition. What is the share that breaks it?",
        ),
        "confidence and its rest swapped": (
            lambda of, confidence: 1 - ((1 + confidence) / 2) ** (1 / of),
            "That is a far too small share: with it, no violation would be seen almost always. The interval ends where "
            "that gets unlikely.",
        ),
        "whole confidence as the chance": (
            lambda of, confidence: 1 - confidence ** (1 / of),
            "With that share, no violation is seen as often as your confidence says. At the interval's end that must "
            "be unlikely: half of 1 - confidence.",
        ),
        "divided instead of rooted": (
            lambda of, confidence: 1 - (1 - confidence) / 2 / of,
            "Draws multiply: (1 - p) to the power of their number. To undo a power, take a root.",
        ),
        "rule of three": (
            lambda of, confidence: 3 / of,
            "The rule of three is a good guess for one end at 95 %, and it ignores the confidence. Solve "
            "(1 - p) ** of = (1 - confidence) / 2 for p.",
        ),
    },
    why="With this share, a draw of so many without any violation has just the chance (1 - confidence) / 2.",
    hint="Solve (1 - p) ** of = (1 - confidence) / 2 for p.",
)
