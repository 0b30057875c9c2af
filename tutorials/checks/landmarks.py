"""The exercises of lesson 07."""

from collections.abc import Callable

import torch
from torch import Tensor

from safediffkit.diffusion.schedule import NoiseLevel
from safediffkit.lessons import Exercise

_RETURNS = torch.tensor([[90.0, 120.0, 140.0], [100.0, 100.0, 100.0], [250.0, 50.0, 200.0], [10.0, 20.0, 30.0]])

copies = Exercise(
    lambda returns, thresholds: 1 + (returns.sum(1) >= thresholds[:, None]).sum(0),
    trials=[(_RETURNS, torch.tensor([300.0, 350.0, 450.0])), (_RETURNS, torch.tensor([60.0, 130.0, 500.0]))],
    slips={
        "the original forgotten": (
            lambda returns, thresholds: (returns.sum(1) >= thresholds[:, None]).sum(0),
            "You counted the copies. D' begins as D itself, so each episode is in it once before any copy is made.",
        ),
        "strictly above": (
            lambda returns, thresholds: 1 + (returns.sum(1) > thresholds[:, None]).sum(0),
            "Close: an episode whose return is just a threshold reaches it. Line 4 says at least, not more than.",
        ),
        "one copy at the most": (
            lambda returns, thresholds: 1 + (returns.sum(1) >= thresholds[:, None]).any(0).int(),
            "Yours copies once, however many thresholds are reached. The loop adds one more copy for each of them.",
        ),
        "copies copied": (
            lambda returns, thresholds: 2 ** (returns.sum(1) >= thresholds[:, None]).sum(0),
            "Yours doubles with every threshold, as if copies were copied again. Line 4 takes episodes from D, not "
            "from D': each threshold adds one.",
        ),
        "poor episodes copied": (
            lambda returns, thresholds: 1 + (returns.sum(1) <= thresholds[:, None]).sum(0),
            "The comparison is turned round: yours copies the poor episodes.",
        ),
        "all thresholds to be reached": (
            lambda returns, thresholds: 1 + (returns.sum(1) >= thresholds[:, None]).all(0).int() * len(thresholds),
            "Yours copies only those episodes that reach every threshold. Each threshold counts on its own.",
        ),
        "each agent by itself": (
            lambda returns, thresholds: 1 + (returns >= thresholds[:, None, None]).any(2).sum(0),
            "Yours asks each agent for what the team is to reach. Sum the return over the agents first.",
        ),
        "mean over agents": (
            lambda returns, thresholds: 1 + (returns.mean(1) >= thresholds[:, None]).sum(0),
            "The thresholds are for the team's return: the sum over its agents, not their mean.",
        ),
    },
    why="Once as recorded, and once more for every threshold that the team's return reaches.",
    hint="Sum the returns over the agents, compare with every threshold, and count those reached. The original stays.",
)

_X = torch.tensor([[0.9, -1.6], [0.1, 2.2], [-0.4, 0.2]])
_NOISE = torch.tensor([[0.6, -0.9], [-1.2, 0.3], [0.5, 0.1]])


def _level(alpha: float) -> NoiseLevel:
    scale = torch.tensor(alpha)
    return NoiseLevel(scale, (1 - scale**2).sqrt())


def _boxed(x: Tensor, noise: Tensor, at: NoiseLevel, to: NoiseLevel) -> Tensor:
    clean = ((x - at.sigma * noise) / at.alpha).clamp(-1, 1)
    return to.alpha * clean + to.sigma * (x - at.alpha * clean) / at.sigma


def _printed(x: Tensor, noise: Tensor, at: NoiseLevel, to: NoiseLevel) -> Tensor:
    return to.alpha / at.alpha * x - at.sigma * (at.alpha * to.sigma / (to.alpha * at.sigma) - 1) * noise


def _with_clean(clean: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the step with another guess of the clean action."""
    return lambda x, noise, at, to: (
        to.alpha * clean(x, noise, at) + to.sigma * (x - at.alpha * clean(x, noise, at)) / at.sigma
    )


boxed_step = Exercise(
    _boxed,
    trials=[(_X, _NOISE, _level(0.5), _level(0.8)), (_X, _NOISE, _level(0.3), _level(0.6))],
    slips={
        "no box": (
            _with_clean(lambda x, noise, at: (x - at.sigma * noise) / at.alpha),
            "That is Eq. 4 mended, without the box. Clamp the clean guess to [-1, 1] before you go on with it.",
        ),
        "as printed": (
            _printed,
            "That is Eq. 4 as printed, which adds noise: its second factor has the sigma of the level we come from. "
            "Go by way of the clean guess.",
        ),
        "box around the result": (
            lambda x, noise, at, to: _with_clean(lambda x, noise, at: (x - at.sigma * noise) / at.alpha)(
                x, noise, at, to
            ).clamp(-1, 1),
            "You clamped what comes out. It still holds noise, and noise may well lie outside of the box: only the "
            "clean guess must not.",
        ),
        "old noise kept": (
            lambda x, noise, at, to: to.alpha * ((x - at.sigma * noise) / at.alpha).clamp(-1, 1) + to.sigma * noise,
            "The box is right, but the old noise does not fit the clamped guess any more: alpha clean + sigma noise is "
            "not x. Take the noise that does: (x - at.alpha clean) / at.sigma. (Some public code does it your way.)",
        ),
        "sigma of the level we come from": (
            lambda x, noise, at, to: (
                to.alpha * ((x - at.sigma * noise) / at.alpha).clamp(-1, 1)
                + x
                - at.alpha * ((x - at.sigma * noise) / at.alpha).clamp(-1, 1)
            ),
            "Nearly: you put all of the noise back, at.sigma of it. On the cleaner level there is to.sigma of it.",
        ),
        "not divided by alpha": (
            _with_clean(lambda x, noise, at: (x - at.sigma * noise).clamp(-1, 1)),
            "The noise is out, but what is left is at.alpha times the clean action. Divide before you clamp.",
        ),
        "sign flipped": (
            _with_clean(lambda x, noise, at: ((x + at.sigma * noise) / at.alpha).clamp(-1, 1)),
            "The sign is turned: to get the clean guess, noise is taken out of x.",
        ),
    },
    why="Without the clamp it is Eq. 4 mended. With it, no guess ever leaves the box of possible forces.",
    hint="First the clean guess, (x - at.sigma noise) / at.alpha, clamped. Then the noise that goes with it. Then "
    "to.alpha times the one plus to.sigma times the other.",
)

_RANDOM = torch.tensor([[0.2, 1.5, -0.4], [1.1, 0.3, 0.8], [-0.7, 0.9, 0.0], [0.5, -1.2, 0.6]])
_RECORDED = torch.tensor([0.9, 0.4, -0.3])

caution = Exercise(
    lambda random, recorded: (random.logsumexp(0) - recorded).mean(),
    trials=[(_RANDOM, _RECORDED), (2 * _RANDOM[:2], _RECORDED.flip(0))],
    slips={
        "sign turned": (
            lambda random, recorded: (recorded - random.logsumexp(0)).mean(),
            "The sign is turned: a loss is made small, so yours lifts what nobody tried, and sinks what is on record.",
        ),
        "mean for log-sum-exp": (
            lambda random, recorded: (random.mean(0) - recorded).mean(),
            "The mean pushes all random actions down alike. The log of the sum of exponentials pushes hardest where "
            "the value is greatest: at the action that a policy would be tempted by.",
        ),
        "the greatest alone": (
            lambda random, recorded: (random.amax(0) - recorded).mean(),
            "The greatest alone is the limit of this formula for large values. The log-sum-exp is softer: others get "
            "their share of the push.",
        ),
        "log forgotten": (
            lambda random, recorded: (random.exp().sum(0) - recorded).mean(),
            "The log is missing: exponentials of values are compared with a value.",
        ),
        "mean inside of the log": (
            lambda random, recorded: (random.exp().mean(0).log() - recorded).mean(),
            "That differs by the log of the number of random actions. It pulls just the same, as a constant has no "
            "slope; but Eq. 1 has the sum.",
        ),
        "over the batch": (
            lambda random, recorded: random.logsumexp(1).mean() - recorded.mean(),
            "You summed over the states. For each state on its own, sum over its random actions: dimension 0.",
        ),
        "record forgotten": (
            lambda random, recorded: random.logsumexp(0).mean(),
            "That only pushes down. The recorded actions must be held up, or all values sink.",
        ),
    },
    why="Pushed down is what looks best among random actions, held up is what is on record.",
    hint="random.logsumexp(0) has one number for each state. Take the recorded value off, and average.",
)


def _values_and_slopes(pull: Callable[..., Tensor]) -> list[Tensor]:
    """Give what the pull is and how it changes with both its inputs, where values are positive, negative and mixed."""
    found = []
    for proposed, recorded in (([0.5, 1.0], [0.8, 1.2]), ([-2.0, -1.0], [-1.5, -3.5]), ([0.3, -0.6], [-1.0, 0.5])):
        inputs = [torch.tensor(values, requires_grad=True) for values in (proposed, recorded)]
        value = pull(*inputs, 0.5)
        slopes = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        found += [value.detach(), *slopes]
    return found


q_loss = Exercise(
    lambda proposed, recorded, eta: -eta * proposed.mean() / recorded.abs().mean().detach(),
    outcome=_values_and_slopes,
    slips={
        "as printed": (
            lambda proposed, recorded, eta: -eta * proposed.mean() / recorded.mean().detach(),
            "That is the formula as printed. Where the values on record are negative, so is the divisor, and the pull "
            "turns round: take their sizes.",
        ),
        "size of the mean": (
            lambda proposed, recorded, eta: -eta * proposed.mean() / recorded.mean().abs().detach(),
            "The sign is right now. But where positive and negative values cancel, their mean is almost 0, and the "
            "pull gets huge: take the mean of the sizes, not the size of the mean.",
        ),
        "sign turned": (
            lambda proposed, recorded, eta: eta * proposed.mean() / recorded.abs().mean().detach(),
            "The sign is turned: this is a loss, and a large value is to make it small.",
        ),
        "divisor not detached": (
            lambda proposed, recorded, eta: -eta * proposed.mean() / recorded.abs().mean(),
            "The numbers are right. But the divisor only sets the scale, and a gradient flows into it: detach it.",
        ),
        "not divided": (
            lambda proposed, recorded, eta: -eta * proposed.mean(),
            "It is not divided by the size of the values on record. So eta would mean something else in each world.",
        ),
        "divided by the proposed": (
            lambda proposed, recorded, eta: -eta * proposed.mean() / proposed.abs().mean().detach(),
            "The size comes from the values of recorded actions, which do not move while the policy learns.",
        ),
        "size of the proposed": (
            lambda proposed, recorded, eta: -eta * proposed.abs().mean() / recorded.abs().mean().detach(),
            "Sizes belong below the line alone. Above it, a negative value must stay a bad one.",
        ),
    },
    why="The divisor is a size: it sets the scale, and has no say in the direction.",
    hint="Minus eta, times the mean of the proposed values, over the mean of abs() of the recorded ones, detached.",
)
