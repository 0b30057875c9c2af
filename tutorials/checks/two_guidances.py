"""The exercises of lesson 03."""

import torch

from safediffkit.lessons import Exercise

_WITHOUT, _GIVEN = torch.tensor([[0.4, -1.0], [0.1, 0.7]]), torch.tensor([[0.9, -0.2], [-0.6, 0.5]])

classifier_free = Exercise(
    lambda without, given, w: without + w * (given - without),
    trials=[(_WITHOUT, _GIVEN, w) for w in (1.0, 0.0, 2.5)],
    slips={
        "weight off by one": (
            lambda without, given, w: (1 + w) * given - w * without,
            "Off by one: that is Ho and Salimans' way to count. Here w = 1 must give the guess with the condition, "
            "and w = 0 the one without.",
        ),
        "guesses swapped": (
            lambda without, given, w: given + w * (without - given),
            "The two guesses are swapped: the more weight, the more your rule forgets the condition.",
        ),
        "sign flipped": (
            lambda without, given, w: without - w * (given - without),
            "The sign is turned: you start at the right place and walk away from the condition.",
        ),
        "the difference alone": (
            lambda without, given, w: w * (given - without),
            "That is the push alone. It is added to the guess without the condition, which holds everything else.",
        ),
        "conditional guess, enlarged": (
            lambda without, given, w: w * given,
            "That enlarges the whole guess, also what has nothing to do with the condition. Enlarge the difference.",
        ),
        "added up": (
            lambda without, given, w: without + w * given,
            "Your weights sum to 1 + w, so the guess gets too large. Take out what both guesses have in common.",
        ),
    },
    why="At w = 0 the condition is ignored, at w = 1 followed, and beyond 1 exaggerated.",
    hint="At w = 0 it must be the guess without the condition, at w = 1 the guess with it, and in between a mixture.",
)

energy_guidance = Exercise(
    lambda noise, slope, sigma: noise - sigma * slope,
    trials=[(_WITHOUT, _GIVEN, torch.tensor(0.6)), (_GIVEN, _WITHOUT, torch.tensor(0.2))],
    slips={
        "sign flipped": (
            lambda noise, slope, sigma: noise + sigma * slope,
            "The sign is turned: a step goes *against* the noise, so this one goes down the energy.",
        ),
        "sigma forgotten": (
            lambda noise, slope, sigma: noise - slope,
            "The slope is a score, and noise is a score times -sigma. Without sigma, the push is far too strong "
            "at low noise levels.",
        ),
        "sigma forgotten, sign flipped": (
            lambda noise, slope, sigma: noise + slope,
            "That adds a score to a noise. Turn the slope into a noise first: times -sigma.",
        ),
        "sigma squared": (
            lambda noise, slope, sigma: noise - sigma**2 * slope,
            "One sigma too many: noise is the score times -sigma, not times its square.",
        ),
        "divided by sigma": (
            lambda noise, slope, sigma: noise - slope / sigma,
            "You divide where you should multiply: noise is the score *times* -sigma.",
        ),
        "the slope alone": (
            lambda noise, slope, sigma: -sigma * slope,
            "That is the push alone, in the right size. Without the guess of the noise nothing keeps to the record.",
        ),
    },
    why="Scores add up, and each of them is a noise divided by -sigma.",
    hint="Write the score of what is asked for: -noise / sigma + slope. Then turn it back into a noise.",
)

_TRIALS = [
    (torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.5, 0.3, 0.2]), 2.0),
    (torch.tensor([-3.0, -0.2]), torch.tensor([0.9, 0.1]), 0.5),
]

energy = Exercise(
    lambda rewards, chances, beta: (chances * (beta * rewards).exp()).sum().log(),
    trials=_TRIALS,
    slips={
        "the average reward": (
            lambda rewards, chances, beta: beta * (chances * rewards).sum(),
            "That is the average of beta R, which a network learns by its squared error. Take the exponential of each "
            "first, then average, then the logarithm.",
        ),
        "logarithm forgotten": (
            lambda rewards, chances, beta: (chances * (beta * rewards).exp()).sum(),
            "The average is right. Guidance adds up scores, which are slopes of *logarithms*: take its logarithm.",
        ),
        "chances forgotten": (
            lambda rewards, chances, beta: (beta * rewards).exp().mean().log(),
            "You count all paths alike. Each counts by its chance.",
        ),
        "summed without chances": (
            lambda rewards, chances, beta: (beta * rewards).logsumexp(0),
            "That sums over the paths as if each were certain. Each counts by its chance.",
        ),
        "beta outside": (
            lambda rewards, chances, beta: beta * (chances * rewards.exp()).sum().log(),
            "Beta belongs inside the exponential: E[exp(beta R)], not E[exp(R)] to the power of beta. To enlarge an "
            "energy that was trained for beta = 1 is this very slip.",
        ),
        "divided by beta": (
            lambda rewards, chances, beta: (chances * (beta * rewards).exp()).sum().log() / beta,
            "That is the energy divided by beta, which brings it back to the scale of a reward. The guidance "
            "needs the logarithm itself.",
        ),
        "exponential of the average": (
            lambda rewards, chances, beta: (beta * (chances * rewards).sum()).exp(),
            "You average first. A rare path with a great reward should count for much: take exponentials first, "
            "average, and then take the logarithm.",
        ),
        "chances inside": (
            lambda rewards, chances, beta: (beta * chances * rewards).exp().sum().log(),
            "The chances stand inside the exponential. They weigh the exponentials: chance times exp(beta R).",
        ),
        "sign flipped": (
            lambda rewards, chances, beta: -(chances * (beta * rewards).exp()).sum().log(),
            "The sign is turned. Here a large energy is good, as the gradient is followed upwards.",
        ),
    },
    why="It lies between the average of beta R and its maximum: the greater beta, the more the best path decides.",
    hint="Inside out: exponential of beta times reward, average with the chances, logarithm.",
)
