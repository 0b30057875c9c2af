"""The exercises of lesson 01."""

from safediffkit.lessons import Exercise

lost = Exercise(
    lambda n, discount: discount ** (n - 1) / (1 - discount),
    trials=[(1, 0.5), (4, 0.9), (7, 0.8)],
    slips={
        "weight off by one": (
            lambda n, discount: discount**n / (1 - discount),
            "Off by one: move 1 is weighed by γ^0, so move n is weighed by γ^(n-1).",
        ),
        "the move alone": (
            lambda n, discount: discount ** (n - 1),
            "That is move n alone. The episode ends there: what about the moves after it?",
        ),
        "what was collected": (
            lambda n, discount: (1 - discount ** (n - 1)) / (1 - discount),
            "That is what the first one collected. What did it miss?",
        ),
        "the sum up to move n": (
            lambda n, discount: (1 - discount**n) / (1 - discount),
            "That is n harmless moves. But move n was not harmless, and what was missed is asked.",
        ),
        "sign turned": (
            lambda n, discount: -(discount ** (n - 1)) / (1 - discount),
            "The size is right, the sign is turned: the loss is safe minus unsafe.",
        ),
        "safe for ever": (
            lambda n, discount: 1 / (1 - discount),
            "That is all that the second one gets. The first one got something too.",
        ),
    },
    why="Move n is weighed by γ^(n-1), and all moves after it are missing too.",
    hint="Try n = 1 by hand: the first one collects nothing at all, so it loses all that the second one gets.",
)

GAMMA = 0.9
ratio = Exercise(
    GAMMA / (1 - GAMMA),
    slips={
        "the last move forgotten": (
            1 / (1 - GAMMA),
            "Close. But the move into the goal is a safe move itself, and counts 1.",
        ),
        "upside down": ((1 - GAMMA) / GAMMA, "Upside down: that is φ/μ."),
        "upside down, the last move forgotten": (
            1 - GAMMA,
            "Upside down, and mind that the move into the goal is a safe move itself.",
        ),
        "one move only": (1.0, "That would do if dawdling brought just one move of safety. It goes on for ever."),
        "no weight": (0.0, "Without any weight on the reward, nothing speaks for the goal."),
    },
    why="Going in brings μ/φ + 1, as that move is safe too; dawdling brings 1/(1-γ) = 10.",
    hint="Going in brings μ/φ + 1. What does dawdling bring?",
)
