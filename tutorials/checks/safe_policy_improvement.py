"""The exercises of lesson 04."""

import torch
from jaxtyping import Float
from torch import Tensor

from safediffkit.lessons import Exercise


def _normal(values: Tensor) -> Tensor:
    return values.mean() / values.abs().mean().detach()


def _plain(values: Tensor) -> Tensor:
    return values.mean() / values.abs().mean()


def _signed(values: Tensor) -> Tensor:
    return values.mean() / values.mean().detach()


def _value_and_slopes(loss) -> Float[Tensor, "_"]:
    """Try a loss on three actions: its value, and its slope in each of the six values."""
    q = torch.tensor([40.0, -10.0, 60.0], requires_grad=True), torch.tensor([0.9, 0.8, -0.4], requires_grad=True)
    value = torch.as_tensor(loss(torch.tensor(2.0), *q, 0.1, 0.3), dtype=torch.float32)
    if value.numel() != 1:
        raise ValueError("the loss must be one number: take the mean over the actions")
    slopes = torch.autograd.grad(value.sum(), q, allow_unused=True) if value.requires_grad else (None, None)
    return torch.cat([value.reshape(1), *(torch.zeros(3) if slope is None else slope for slope in slopes)])


eq6 = Exercise(
    lambda i, r, s, m, p: (1 - m - p) * i - m * _normal(r) - p * _normal(s),
    outcome=_value_and_slopes,
    slips={
        "sign flipped": (
            lambda i, r, s, m, p: (1 - m - p) * i + m * _normal(r) + p * _normal(s),
            "The sign is turned: a loss is made small, and values are to be large.",
        ),
        "sign of safety flipped": (
            lambda i, r, s, m, p: (1 - m - p) * i - m * _normal(r) + p * _normal(s),
            "The sign of the safety value is turned. It counts safety, not cost: large is good.",
        ),
        "imitation unweighed": (
            lambda i, r, s, m, p: i - m * _normal(r) - p * _normal(s),
            "Your weights sum to 1.4: imitation gets what reward and safety leave, 1 - reward - safety.",
        ),
        "raw values": (
            lambda i, r, s, m, p: (1 - m - p) * i - m * r.mean() - p * s.mean(),
            "The raw values are on different scales: the reward, in tens, drowns the safety. Divide each by its size.",
        ),
        "divided by the mean": (
            lambda i, r, s, m, p: (1 - m - p) * i - m * _signed(r) - p * _signed(s),
            "Divide by the mean of the absolute values. Without them, a negative mean turns the pull around.",
        ),
        "divisor not detached": (
            lambda i, r, s, m, p: (1 - m - p) * i - m * _plain(r) - p * _plain(s),
            "The number is right, its gradient is not: detach the divisor. "
            "Where all values are positive the quotient is always 1, and nothing would pull.",
        ),
    },
    hint="Compared are the loss, with weights 0.6, 0.1 and 0.3, and its slope in each value of three actions.",
)

SHARE, KEPT = 0.3, 6


def _inside(first: Tensor, second: Tensor, best=torch.argmax, safe: bool = True) -> Tensor:
    """Among those with the largest `second`, take the one with the largest `first`."""
    rows = second.argsort(descending=safe)[:KEPT]
    return rows[best(first[rows])]


def _outside(r: Tensor, s: Tensor) -> Tensor:
    return r.where(s >= s.sort(descending=True)[0][KEPT - 1], torch.tensor(0.0)).argmin()


safest = Exercise(
    lambda q_reward, q_safety, share: _inside(q_reward, q_safety),
    trials=[(*torch.rand(2, 20, generator=torch.Generator().manual_seed(seed)), SHARE) for seed in range(8)],
    slips={
        "wrong end kept": (
            lambda r, s, share: _inside(r, s, safe=False),
            "You kept the wrong end: the greatest Qᶜ′ is the safest.",
        ),
        "least reward": (
            lambda r, s, share: _inside(r, s, best=torch.argmin),
            "argmin finds the least reward among the safest. Turn it around.",
        ),
        "reward ignored": (
            lambda r, s, share: s.argmax(),
            "That is the single safest candidate: you ignore the reward value.",
        ),
        "safety ignored": (lambda r, s, share: r.argmax(), "That is the printed rule: you ignore the safety value."),
        "judges exchanged": (
            lambda r, s, share: _inside(s, r),
            "Exchanged: you keep the best by reward, and take the safest of those.",
        ),
        "place among the kept": (
            lambda r, s, share: r[s.argsort(descending=True)[:KEPT]].argmax(),
            "That is the place among the kept ones. Return the index among all candidates.",
        ),
        "thrown away": (
            lambda r, s, share: _outside(r, s),
            "argmin finds a candidate that you had thrown away. Turn it around.",
        ),
    },
    hint="Return the index of one candidate. Of 20 candidates, a share of 0.3 keeps 6.",
)
