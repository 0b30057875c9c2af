"""Control barrier functions learned from records: h(state) >= 0 where danger can be kept off, below 0 in danger.

Paper: "CBF" is the control-barrier-function diffusion paper. A state is one flat vector: an agent's own entries, then
those of its neighbours, `features` each, all NaN for a neighbour that is not there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.networks import mlp
from safediffkit.learning import Standardise, Stateful, Watch, ignore, repeat, seeded, words


def stopping_margin(
    gap: Float[Tensor, "*#batch"] | float,
    closing_speed: Float[Tensor, "*#batch"] | float,
    braking: Float[Tensor, "*#batch"] | float,
    clearance: Float[Tensor, "*#batch"] | float,
) -> Float[Tensor, "*batch"]:
    """Give the metres left of a gap once a car has braked from its closing speed and kept its clearance.

    gap - V² / (2 b) - kappa_s, with gap and clearance in m, speed in m/s and braking in m/s². A neighbour that draws
    away, whose closing speed is below 0, needs no braking distance: the paper squares either sign, so this is our
    reading. [CBF Def. 3]

    Raises:
        ValueError: a braking is not above 0.
    """
    speed, brake = torch.as_tensor(closing_speed), torch.as_tensor(braking)
    if not (brake > 0).all():
        raise ValueError(f"braking is a deceleration in m/s² and must be above 0; the least given is {brake.min():g}")
    return gap - speed.clamp_min(0).square() / (2 * brake) - clearance


def labels(
    margin_or_distance: Float[Tensor, "*batch"], danger_below: float, safe_above: float
) -> tuple[Bool[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Tell dangerous states and safe ones, with a band between the two bounds that is neither.

    The paper calls every state one or the other. Public code leaves a band: with distances between discs of radius r,
    2 r and 2.5 r. The bounds themselves lie in the band. [GCBF+]

    Raises:
        ValueError: `danger_below` is above `safe_above`.
    """
    if danger_below > safe_above:
        raise ValueError(
            f"danger_below={danger_below:g} is above safe_above={safe_above:g}: states between would be both; swap them"
        )
    return margin_or_distance < danger_below, margin_or_distance > safe_above


def barrier_losses(
    h: Callable[[Tensor], Tensor],
    state: Float[Tensor, "*batch obs"],
    next_state: Float[Tensor, "*batch obs"],
    start: Bool[Tensor, "*batch"],
    danger: Bool[Tensor, "*batch"],
    *,
    dt: float,
    slope: float,
    margin: float,
    labelled: Bool[Tensor, "*batch"] | None = None,
) -> dict[str, Tensor]:
    """Hinge on what h must be: at least the margin at starts, at most minus it in danger, and slow to fall.

    max(0, margin - h) on start rows, max(0, margin + h) on dangerous ones, and max(0, margin - (h' - h) / dt - slope h)
    where h >= 0, with `dt` in seconds and `slope` a second; margin is gamma and slope alpha. Means where the paper sums
    (our choice), 0 where there is no row. The set X_{i,h} of the third term is undefined in the paper; h >= 0 is our
    reading. Rows that are not `labelled` count in the third term and teach nothing there: without that, steps into
    danger lift h where danger can no longer be avoided. (GCBF+ stops only the gradient of (h' - h) / dt there, because
    a policy learns from the rest; here there is none.) By default all rows teach, as printed. [CBF Eq. 12]

    Raises:
        ValueError: `dt` or `slope` is not above 0.
    """
    _positive(dt=dt, slope=slope)
    now = h(state)
    hinge = torch.relu(margin - _change(now, h(next_state), dt, slope))
    if labelled is not None:
        hinge = torch.where(labelled, hinge, hinge.detach())
    return {
        "start": _mean(torch.relu(margin - now), start),
        "danger": _mean(torch.relu(margin + now), danger),
        "derivative": _mean(hinge, now.detach() >= 0),
    }


def barrier_value(
    h: Callable[[Tensor], Tensor],
    state: Float[Tensor, "*batch horizon obs"],
    next_state: Float[Tensor, "*batch horizon obs"],
    start: Bool[Tensor, "*batch horizon"],
    danger: Bool[Tensor, "*batch horizon"],
    safe: Bool[Tensor, "*batch horizon"],
    *,
    dt: float,
    slope: float,
) -> Float[Tensor, "*batch"]:
    """Give each trajectory the least of h on starts, -h in danger, and (h' - h) / dt + slope h where safe.

    Above 0, no condition on a barrier is broken along the way. An empty set's infimum is +inf, as everywhere, so a
    trajectory without any such row has +inf. [CBF Eq. 8]

    Raises:
        ValueError: `dt` or `slope` is not above 0.
    """
    _positive(dt=dt, slope=slope)
    now = h(state)
    terms = (now, start), (-now, danger), (_change(now, h(next_state), dt, slope), safe)
    return torch.stack([term.where(rows, torch.inf).amin(-1) for term, rows in terms]).amin(0)


def _change(now: Tensor, following: Tensor, dt: float, slope: float) -> Tensor:
    return (following - now) / dt + slope * now


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    return values[rows].sum() / rows.sum().clamp_min(1)


def _positive(**given: float) -> None:
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")


class Barrier(nn.Module):
    """A barrier network over an agent's own state and any number of neighbours, in any order.

    One value for the own state alone, one for it beside each neighbour, and h is the least of them, as the least
    distance decides in Definition 3; one more neighbour never makes a state safer. That is our choice, as the paper
    names no network: pooled features learned the training states by heart in our trials. It cannot tell a trap that
    only several neighbours make together. Callable on flat states, as `barrier_losses` wants it, or on own states and
    neighbours.

    Raises:
        ValueError: in a call, the width does not fit, or a neighbour is NaN in part.
    """

    def __init__(self, obs: int, features: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"obs": obs, "features": features, "hidden": hidden}
        self.obs, self.features = obs, features
        self.scale, self.neighbour_scale = Standardise(obs), Standardise(features)
        self.alone = mlp(obs, hidden, 1)
        self.beside = mlp(obs + features, hidden, 1) if features else None

    def forward(
        self, state: Float[Tensor, "*batch _"], neighbours: Float[Tensor, "*batch agents _features"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Give h; a neighbour whose features are all NaN is not there."""
        own, others = self.split(state) if neighbours is None else (state, neighbours)
        if own.shape[-1] != self.obs or others.shape[-1] != self.features:
            raise ValueError(
                f"own state and neighbours have widths {own.shape[-1]} and {others.shape[-1]}; this barrier was made "
                f"for obs={self.obs} and features={self.features}"
            )
        missing = others.isnan()
        absent = missing.all(-1, keepdim=True)
        if (missing & ~absent).any():
            raise ValueError(
                "a neighbour has NaN beside numbers: give all of its features, or NaN for all of an absent one"
            )
        own = self.scale(own)
        values = self.alone(own)
        if self.beside:
            pair = [own[..., None, :].expand(*others.shape[:-1], -1), self.neighbour_scale(others.where(~missing, 0.0))]
            beside = self.beside(torch.cat(pair, -1)).where(~absent, torch.inf)
            values = torch.cat([values, beside.squeeze(-1)], -1)
        least: Tensor = values.amin(-1)
        return least

    def split(self, state: Float[Tensor, "*batch _"]) -> tuple[Tensor, Tensor]:
        """Part flat states into own states and neighbours."""
        own, rest = state[..., : self.obs], state[..., self.obs :]
        if own.shape[-1] < self.obs or (rest.shape[-1] % self.features if self.features else rest.shape[-1]):
            raise ValueError(
                f"a state of {state.shape[-1]} entries is not obs={self.obs} and {self.features} for each neighbour; "
                "make the barrier with the obs and features that the data has"
            )
        return own, rest.reshape(*rest.shape[:-1], rest.shape[-1] // max(self.features, 1), self.features)

    def fit(self, states: Float[Tensor, "steps _"]) -> None:
        """Measure mean and spread of own entries, and of the neighbours' that are there."""
        own, others = self.split(states)
        self.scale.fit(own)
        present = others[~others.isnan().any(-1)]
        if self.features and len(present) > 1:
            self.neighbour_scale.fit(present)


@dataclass(frozen=True)
class Rows:
    """The states of a dataset and what is known of each; agents, where there are several, stand below each other."""

    state: Float[Tensor, "steps obs"]
    next_state: Float[Tensor, "steps obs"]
    start: Bool[Tensor, "steps"]
    danger: Bool[Tensor, "steps"]
    safe: Bool[Tensor, "steps"]
    moves: Bool[Tensor, "steps"]  # next_state follows state; not so for an episode's last state
    episode: Int[Tensor, "steps"]


def label_rows(dataset: Dataset, lookahead: int) -> Rows:
    """Read off recorded costs which states are dangerous, safe, or a start that a barrier must keep.

    A cost above 0 marks the state that the step leads to as dangerous, as simulators count it: they charge for the
    state after the step. Safe is what no danger follows within `lookahead` recorded steps, and the rest is unlabelled,
    the way into danger above all. Starts are the first states of episodes as far as they are safe: a start from which
    the record runs into danger may be lost already. All of this is our choice; the paper takes the sets as given.
    Row t is step t (and agent j row t x agents + j). Dangerous last states, which no row begins with, come after all.

    Raises:
        ValueError: `lookahead` is below 1.
    """
    if lookahead < 1:
        raise ValueError(f"lookahead={lookahead} must be at least 1 step")
    costly, steps = dataset.costs.reshape(len(dataset), -1) > 0, torch.arange(len(dataset))
    first = torch.zeros(len(dataset), dtype=torch.bool)
    first[dataset.episode_starts()] = True
    last = first.roll(-1)
    danger = costly.roll(1, 0) & ~first[:, None]
    # the next step that costs, whichever episode it is of, and the last step of the own one
    ahead = steps[:, None].where(costly, len(dataset)).flip(0).cummin(0).values.flip(0)
    end = steps.where(last, len(dataset)).flip(0).cummin(0).values.flip(0)
    soon = (ahead < steps[:, None] + lookahead) & (ahead <= end[:, None])
    safe = ~danger & ~soon

    agents = costly.shape[1]
    state, following = dataset.observations.flatten(0, -2), dataset.next_observations.flatten(0, -2)
    lost = (costly & last[:, None]).flatten()
    ends = following[lost]
    true, false = torch.ones(len(ends), dtype=torch.bool), torch.zeros(len(ends), dtype=torch.bool)
    episode = dataset.episode.repeat_interleave(agents)
    return Rows(
        state=torch.cat([state, ends]),
        next_state=torch.cat([following, ends]),
        start=torch.cat([(first[:, None] & safe).flatten(), false]),
        danger=torch.cat([danger.flatten(), true]),
        safe=torch.cat([safe.flatten(), false]),
        moves=torch.cat([torch.ones_like(lost), false]),
        episode=torch.cat([episode, episode[lost]]),
    )


@dataclass(frozen=True)
class Config:
    """Settings of a learned barrier; the paper gives none. The slope is GCBF+'s, the rest is our choice."""

    dt: float = 0.1  # seconds a step, as recorded
    slope: float = 1.0  # alpha, a second; slope x dt above 1 lets h jump below 0
    margin: float = 0.1  # gamma; GCBF+'s 0.02 took longer to learn in our trials
    start: float = 1.0  # weights of the three terms
    danger: float = 1.0
    derivative: float = 1.0
    lookahead: int = 32  # steps, see `label_rows`
    all_teach: bool = False  # True: the derivative term learns from unlabelled steps too, as printed
    features: int = 0  # entries a neighbour, after the own ones
    neighbours: int = 0  # of the recorded states; the barrier takes any number
    steps: int = 2000
    batch: int = 256
    hidden: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(dt=self.dt, slope=self.slope)
        if min(self.margin, self.start, self.danger, self.derivative) < 0:
            raise ValueError("margin and the weights start, danger and derivative must be at least 0")
        if bool(self.features) != bool(self.neighbours):
            raise ValueError(
                f"features={self.features} and neighbours={self.neighbours}: give both for states with neighbours, "
                "or neither"
            )


def train_barrier(
    dataset: Dataset, config: Config = Config(), watch: Watch = ignore, *, checkpoint: Path | None = None
) -> Barrier:
    """Learn a barrier from a dataset whose costs mark danger (see `label_rows`); agents share one. [CBF Eq. 12]

    Raises:
        ValueError: no state is dangerous, or none is a safe start; widths do not fit, or numbers are missing;
            `checkpoint` belongs to another run.
    """
    rows = label_rows(dataset, config.lookahead)
    starts, dangers = rows.start.nonzero()[:, 0], rows.danger.nonzero()[:, 0]
    obs = rows.state.shape[1] - config.neighbours * config.features
    if not len(starts) or not len(dangers):
        raise ValueError(
            f"of {len(dataset)} steps {len(dangers)} lead to danger (cost above 0) and {len(starts)} are starts that "
            "stay safe; a barrier needs both: record safe and unsafe episodes, or shorten lookahead"
        )
    if obs < 1 or rows.state[:, :obs].isnan().any():
        raise ValueError(
            f"states of {rows.state.shape[1]} entries with {config.neighbours} neighbours of {config.features} leave "
            f"{max(obs, 0)} own ones, which must be 1 or more and never NaN"
        )
    labelled = rows.moves & (rows.safe | rows.danger | config.all_teach)
    with seeded(config.seed) as generator:
        barrier = Barrier(obs, config.features, config.hidden)
        barrier.fit(rows.state)
        adam = torch.optim.Adam(barrier.parameters(), config.learning_rate, fused=True)
        few = max(config.batch // 4, 1)  # of the rare rows, so that each batch has some

        def update() -> dict[str, Tensor]:
            draws = (len(rows.state), config.batch), (len(starts), few), (len(dangers), few)
            at, begin, fall = (torch.randint(of, (size,), generator=generator) for of, size in draws)
            at = torch.cat([at, starts[begin], dangers[fall]])
            losses = barrier_losses(
                barrier, rows.state[at], rows.next_state[at], rows.start[at], rows.danger[at],
                dt=config.dt, slope=config.slope, margin=config.margin, labelled=labelled[at],
            )  # fmt: skip
            weights = {"start": config.start, "danger": config.danger, "derivative": config.derivative}
            adam.zero_grad()
            torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
            adam.step()
            return {name: loss.detach() for name, loss in losses.items()}

        parts: dict[str, Stateful] = {"barrier": barrier, "adam": adam}
        run = f"barrier {words(config)} on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=config.steps, run=run, watch=watch, checkpoint=checkpoint)
    return barrier.eval()


@dataclass(frozen=True)
class Filtered:
    """Actions after the filter, and whether it could do what it should."""

    action: Float[Tensor, "batch act"]
    feasible: Bool[Tensor, "batch"]  # some action of the box keeps the linearised condition
    kept: Bool[Tensor, "batch"]  # the condition itself holds at `action`, up to 1e-5


def safety_filter(
    barrier: Callable[[Tensor], Tensor],
    dynamics: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "batch obs"],
    action: Float[Tensor, "batch act"],
    *,
    dt: float,
    slope: float,
    low: Float[Tensor, "*#batch #act"] | float = -1.0,
    high: Float[Tensor, "*#batch #act"] | float = 1.0,
    rounds: int = 1,
) -> Filtered:
    """Change actions as little as possible so that h(s') >= (1 - slope dt) h(s) and they lie in their box.

    The condition is linearised in the action and the least squared change found by quadratic programming, the whole
    batch at once: exact where h(s') is linear in the action. More `rounds` linearise again at what was found (our
    choice). Of an h that is the least of several values, as `Barrier` is, only the least one's slope is seen: `kept`
    tells where that did not do. Where no action of the box will do, the one that breaks the linearised condition least
    is given. Beware of slope x dt above 1: the condition then lets h jump below 0.
    [Ames et al. 2014] [Agrawal & Sreenath 2017]

    Raises:
        ValueError: `dt` or `slope` is not above 0, `rounds` is below 1, the box is empty, h or its slope in the action
            is not finite, or the dynamics do not carry a gradient from action to next state.
        ImportError: clarabel is not installed.
    """
    _positive(dt=dt, slope=slope, rounds=rounds)
    box = [torch.as_tensor(bound, dtype=torch.float64).expand(action.shape) for bound in (low, high)]
    if not (box[0] <= box[1]).all():
        raise ValueError("a lower bound of the actions lies above the upper one (or is NaN): low <= high is needed")
    nearest = action.double().clamp(*box)
    changed = nearest.to(action)
    with torch.no_grad():
        floor = ((1 - slope * dt) * barrier(state)).double()
    for _ in range(int(rounds)):
        value, steepness = _linearised(barrier, dynamics, state, changed)
        found, feasible = _closest(nearest, action.double(), steepness, floor - value, changed.double(), box)
        changed = found.to(action)
    with torch.no_grad():
        kept = barrier(dynamics(state, changed)).double() >= floor - 1e-5
    return Filtered(changed, feasible, kept)


def _linearised(
    barrier: Callable[[Tensor], Tensor], dynamics: Callable[[Tensor, Tensor], Tensor], state: Tensor, action: Tensor
) -> tuple[Tensor, Tensor]:
    """Give h(s') and its gradient in the action."""
    with torch.enable_grad():
        at = action.detach().requires_grad_()
        value = barrier(dynamics(state, at))
        if not value.requires_grad:
            raise ValueError(
                "h(s') carries no gradient of the action: write barrier and dynamics in torch, without no_grad or numpy"
            )
        (steepness,) = torch.autograd.grad(value.sum(), at, materialize_grads=True)
    if not (value.isfinite().all() and steepness.isfinite().all()):
        raise ValueError("h(s') or its slope in the action is not finite: check the states for NaN")
    return value.detach().double(), steepness.double()


def _closest(
    nearest: Tensor, wanted: Tensor, steepness: Tensor, short: Tensor, at: Tensor, box: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Find the closest actions with steepness · (a - at) >= short in the box, and whether there are any."""
    need = short + (steepness * at).sum(-1)
    # the corner that raises h most; where h does not care, the wish stays
    corner = torch.where(steepness > 0, box[1], box[0]).where(steepness != 0, nearest)
    best = (steepness * corner).sum(-1)
    feasible = best >= need - 1e-9 * (1 + need.abs())
    result = torch.where(feasible[:, None], nearest, corner)
    need = need.minimum(best)
    # nearest is the closest of the box, so nothing is to be solved where it keeps the condition
    solve = feasible & ((steepness * nearest).sum(-1) < need)
    if solve.any():
        bounds = [bound[solve] for bound in box]
        result[solve] = _quadratic_programme(wanted[solve], steepness[solve], need[solve], *bounds)
    return result, feasible


def _quadratic_programme(wanted: Tensor, steepness: Tensor, need: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Minimise |a - wanted|² with steepness · a >= need and low <= a <= high: all rows as one sparse programme."""
    try:
        import clarabel  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("safety_filter solves with clarabel: pip install clarabel") from error
    import numpy as np
    from scipy import sparse

    rows, act = wanted.shape
    size = steepness.norm(dim=-1, keepdim=True)
    sloped = sparse.csr_array(
        ((-steepness / size).numpy().ravel(), np.arange(rows * act), np.arange(0, rows * act + 1, act)),
        shape=(rows, rows * act),
    )
    one = sparse.eye_array(rows * act, format="csr")
    bounds = np.concatenate([(-need / size[:, 0]).numpy(), high.numpy().ravel(), -low.numpy().ravel()])
    left = sparse.csc_matrix(sparse.vstack([sloped, one, -one]))  # an infinite bound's row is dropped by clarabel
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    # the gap is one number for the whole batch, and an action's error goes with its root
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(one),
        -wanted.numpy().ravel(),
        left,
        bounds,
        [clarabel.NonnegativeConeT(len(bounds))],
        settings,
    ).solve()
    if solution.status not in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved):
        raise RuntimeError(f"clarabel gave up on {rows} quadratic programmes: {solution.status}")
    return torch.tensor(solution.x, dtype=torch.float64).reshape(rows, act).clamp(low, high)
