"""What a policy sees, what it must offer, and how it is kept on disk."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.diffusion.calibration import Calibration, calibrate
from safediffkit.diffusion.denoise import NoiseModel, denoise, dpm_solver_2m_step
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.schedule import Schedule

FORMAT = 1


@dataclass(frozen=True)
class History:
    """All that many worlds, stepped in lockstep, have shown so far in the present episode."""

    observations: Float[Tensor, "worlds now *agents obs"]
    actions: Float[Tensor, "worlds before *agents act"]
    rewards: Float[Tensor, "worlds before *agents"]
    costs: Float[Tensor, "worlds before *agents"]
    budget: Float[Tensor, "worlds"]  # cost allowed for the whole episode

    @classmethod
    def start(
        cls, observation: Float[Tensor, "worlds *agents obs"], act: int, budget: Float[Tensor, "worlds"] | None = None
    ) -> "History":
        """Begin an episode in each world: one observation, no action taken, nothing paid; no budget means 0."""
        worlds, *agents = observation.shape[:-1]
        none = observation.new_zeros(worlds, 0, *agents)
        limit = observation.new_zeros(worlds) if budget is None else budget
        return cls(observation[:, None], observation.new_zeros(*none.shape, act), none, none, limit)

    @property
    def observation(self) -> Float[Tensor, "worlds *agents obs"]:
        """Give the latest observation of each world."""
        return self.observations[:, -1]

    @property
    def budget_left(self) -> Float[Tensor, "worlds"]:
        """Subtract the cost spent so far, over all agents, from the budget; negative when overspent."""
        return self.budget - self.costs.flatten(1).sum(1)


@runtime_checkable
class Policy(Protocol):
    """Whatever can act in many worlds at once."""

    def act(self, history: History) -> Float[Tensor, "worlds *agents act"]:
        """Choose one action for each world."""
        ...


@dataclass(frozen=True)
class Each:
    """One policy for each agent of a team, none of which sees more than its own agent's part of the history.

    Agent j's policy is handed observations, actions, rewards and costs of agent j alone, without an agents axis, so
    that a policy for a single agent serves unchanged. The budget is the team's: each agent is told an equal share of
    it, of which only its own costs are taken (our choice; no agent knows what the others spent). [DOM2 Sec. 4.1]

    Raises:
        ValueError: the history is not that of a team with as many agents as there are policies.
    """

    policies: Sequence[Policy]

    def act(self, history: History) -> Float[Tensor, "worlds agents act"]:
        """Ask each policy for its own agent's actions."""
        agents = history.observations.shape[2] if history.observations.ndim == 4 else None
        if agents != len(self.policies):
            team = "a single agent without an agents axis" if agents is None else f"{agents} agents"
            raise ValueError(f"Each holds {len(self.policies)} policies for {team}: give it one policy per agent")
        share = history.budget / len(self.policies)
        own = [
            History(
                history.observations[:, :, j], history.actions[:, :, j], history.rewards[:, :, j],
                history.costs[:, :, j], share,
            )
            for j in range(agents)
        ]  # fmt: skip
        return torch.stack([policy.act(part) for policy, part in zip(self.policies, own, strict=True)], 1)


class WindowScale(nn.Module):
    """Turns windows of states into numbers of spread 1, as measured on the training data, and back.

    Row 0 is the present state. The other rows are displacements from it, each row with a mean and a spread of its own
    (our choice): a step's motion, from which the action is read, would drown in the rounding of whole states.
    """

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, obs: int, horizon: int) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("spread", 1.0), ("low", -torch.inf), ("high", torch.inf)):
            self.register_buffer(name, torch.full((horizon, obs), value))

    def fit(self, windows: Float[Tensor, "windows horizon obs"]) -> None:
        """Measure mean and spread of every number, and the box that all windows lie in; what never varies stays."""
        relative = torch.cat([windows[:, :1], windows[:, 1:] - windows[:, :1]], 1)
        self.mean.copy_(relative.mean(0))
        self.spread.copy_(relative.std(0))
        self.spread[self.spread < 1e-5] = 1.0
        scaled = (relative - self.mean) / self.spread
        self.low.copy_(scaled.amin(0))
        self.high.copy_(scaled.amax(0))

    def forward(self, windows: Float[Tensor, "*batch rows obs"]) -> Float[Tensor, "*batch rows obs"]:
        """Scale windows, or only their first rows."""
        present = windows[..., :1, :]
        relative = torch.cat([present, windows[..., 1:, :] - present], -2)
        rows = windows.shape[-2]
        return (relative - self.mean[:rows]) / self.spread[:rows]

    def back(self, scaled: Float[Tensor, "*batch rows obs"]) -> Float[Tensor, "*batch rows obs"]:
        """Undo the scaling."""
        rows = scaled.shape[-2]
        relative = scaled * self.spread[:rows] + self.mean[:rows]
        present = relative[..., :1, :]
        return torch.cat([present, relative[..., 1:, :] + present], -2)


def hold(present: Float[Tensor, "batch obs"]) -> Callable[[Tensor], Tensor]:
    """Make the `project` of `denoise` that keeps row 0 of each window at the present state, clean at every level."""

    def project(x: Tensor) -> Tensor:
        return torch.cat([present[:, None].to(x), x[:, 1:]], 1)

    return project


def window_loss(
    noise_model: NoiseModel,
    schedule: Schedule,
    clean: Float[Tensor, "batch horizon obs"],
    condition: Float[Tensor, "batch _"] | None = None,
) -> Float[Tensor, ""]:
    """Score the noise guessed back in windows whose row 0, the present state, is known and clean. [TCDP Eq. 2]

    Both choices are ours. Row 0 is held at every level, in training as in planning, as in Decision Diffuser. The
    error is divided by alpha, which makes it that of v: under the plain loss the noisiest levels, which decide where a
    plan goes at all, count for nothing (tried on BallCircle: the actions of its plans were off by a tenth more).
    """
    level = schedule.level(torch.randint(len(schedule), (len(clean),)))
    noise, scales = torch.randn_like(clean), level.like(clean)
    noisy = hold(clean[:, 0])(scales.alpha * clean + scales.sigma * noise)
    error = (noise_model(noisy, level, condition) - noise)[:, 1:]
    return (error / scales.alpha.clamp(min=0.02)).square().mean()


def motion_loss(
    scale: WindowScale, inverse: nn.Module, dataset: Dataset, rows: Int[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Regress the actions of recorded steps on their scaled (state, motion to the next state): inverse dynamics."""
    motion = scale(torch.stack([dataset.observations[rows], dataset.next_observations[rows]], 1))
    loss: Tensor = (inverse(motion.flatten(1)) - dataset.actions[rows]).square().mean()
    return loss


def allowance(cost: Float[Tensor, "*batch"], steps: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Say a cost to go as the root of its rate, cost a step left: 0 is none, 1 a cost of 1 at each step (our choice).

    Unlike the cost itself, the rate means the same all along an episode, and in episodes of any length; the root
    tells small rates, which are those asked for, better apart. A negative cost, an overspent budget, allows nothing.
    """
    return (cost.clamp(min=0) / steps).clamp(max=1).sqrt()


def first(windows: Float[Tensor, "worlds plans horizon obs"], condition: Float[Tensor, "worlds _"]) -> Tensor:
    """Choose the first plan of each world: a plain draw."""
    return torch.zeros(len(windows), dtype=torch.long)


def check_calls(calls: int, levels: int) -> None:
    """Refuse numbers of network calls that no schedule of so many levels can be walked in.

    Raises:
        ValueError: there is not one call, or not fewer than levels.
    """
    if not 1 <= calls < levels:
        raise ValueError(f"calls={calls} with levels={levels}: at least 1 call is needed, and fewer than levels")


@dataclass
class WindowSampler:
    """Draws windows by diffusion, within the box of all recorded ones: the `draw` of a `Planner`.

    `guided` makes the noise model of plans under a condition, from present states.
    """

    guided: Callable[[Float[Tensor, "batch condition"], Float[Tensor, "batch obs"]], NoiseModel]
    schedule: Schedule
    scale: WindowScale
    temperature: float  # spread of the noise that a plan starts from
    calls: int  # of the network for a plan, at most
    measured: dict[str, Any] | None = None  # the arguments of a `Calibration`

    def __call__(
        self,
        x: Float[Tensor, "batch horizon obs"],
        condition: Float[Tensor, "batch condition"],
        project: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "batch horizon obs"]:
        """Denoise windows."""
        boxed, x = self._boxed(condition, project(x)[:, 0]), self.temperature * x
        *_, plans = denoise(boxed, self.schedule, x, condition, project=project, **self.settings)
        return plans

    @property
    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments of `denoise`: as measured, else DPM-Solver++(2M) in `calls` calls."""
        if self.measured is None:
            return {"solver": dpm_solver_2m_step, "steps": self.calls}
        return Calibration(**self.measured).settings

    def measure(
        self, ask: Callable[[History], Float[Tensor, "worlds condition"]], dataset: Dataset, seed: int = 0
    ) -> dict[str, Any]:
        """Find how few calls of the network will do, `calls` at most; keep the measurement and hand it back.

        Plans are drawn from 64 recorded states under what `ask` makes of budgets between 0 and the dearest episode's.
        The tolerance, 3 % of the windows' spread, is our choice: at 5 %, 3 calls passed for TCDP on BallCircle, whose
        imagined episodes under a budget of 20 then earned a normalised reward of 0.74, against 0.82 with 6 or 12 calls.
        Where even `calls` of them end farther from a converged run, the nearest settings are taken and
        `Calibration.holds` is false: a planner has to answer in time.
        """
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(dataset), (64,), generator=draw)
        budget = float(dataset.episode_costs().max()) * torch.rand(64, generator=draw)
        history = History.start(dataset.observations[rows], dataset.actions.shape[1], budget)
        present, condition = self.scale(history.observation[:, None])[:, 0], ask(history)
        found = calibrate(
            self._boxed(condition, present), self.schedule, (len(present), *self.scale.mean.shape), condition,
            steps=range(min(3, self.calls), self.calls + 1), solvers=["dpm_solver_2m_step"], project=hold(present),
            temperature=self.temperature, tolerance=0.03,
        )  # fmt: skip
        self.measured = found.arguments
        return self.measured

    def _boxed(self, condition: Tensor, present: Tensor) -> NoiseModel:
        return guide(self.guided(condition, present), clip_clean(self.scale.low, self.scale.high))


@dataclass
class Planner:
    """Acts by planning: draws windows of states from the present one on, and reads actions off by inverse dynamics.

    What a method wants is in three functions. `ask` turns a history into the condition, `draw` denoises windows from
    noise given the condition and the `project` that holds the present state, `choose` picks one of a world's plans;
    all three work on scaled windows.

    A plan is followed for `every` steps by all worlds together, then made anew; also when a budget was changed, or
    when the history is not the one that it was made for, so that nothing carries over into another episode.
    """

    ask: Callable[[History], Float[Tensor, "worlds condition"]]
    draw: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]
    scale: WindowScale
    inverse: Callable[[Tensor], Tensor]  # scaled (state, motion to the next state), flat -> action
    choose: Callable[[Tensor, Tensor], Tensor] = first
    plans: int = 1
    every: int = 1
    _kept: tuple[int, Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a plan that ends before it is made anew."""
        if not 1 <= self.every < len(self.scale.mean) or self.plans < 1:
            raise ValueError(
                f"every={self.every} and plans={self.plans}: a plan of {len(self.scale.mean)} states can be followed "
                f"for 1 to {len(self.scale.mean) - 1} steps, and there must be at least one"
            )

    def plan(self, history: History, plans: int) -> Float[Tensor, "worlds plans horizon obs"]:
        """Draw `plans` windows for each world, the present state first, all in one batch; in the units of the world."""
        return self.scale.back(self._draw(history, self.ask(history), plans))

    def act(self, history: History) -> Float[Tensor, "worlds act"]:
        """Follow the plan: take the action that leads from the state that is to the planned next one."""
        now, present = history.actions.shape[1], history.observation
        if not self._fits(history):
            condition = self.ask(history)
            drawn = self._draw(history, condition, self.plans)
            chosen = drawn[torch.arange(len(drawn)), self.choose(drawn, condition)]
            self._kept = now, self.scale.back(chosen), present.clone(), history.budget.clone()
        assert self._kept is not None
        since, path, _, _ = self._kept
        step = self.scale(torch.stack([present, path[:, now - since + 1]], 1))
        # tracking may have strayed from the plan: ask for no motion that was never seen
        step = step.clamp(self.scale.low[:2], self.scale.high[:2])
        action: Tensor = self.inverse(step.flatten(1))
        return action

    def _draw(self, history: History, condition: Tensor, plans: int) -> Tensor:
        present = self.scale(history.observation[:, None]).repeat_interleave(plans, 0)
        noise = torch.randn(len(present), *self.scale.mean.shape)
        windows = self.draw(noise, condition.repeat_interleave(plans, 0), hold(present[:, 0]))
        plan: Tensor = windows.unflatten(0, (-1, plans))
        return plan

    def _fits(self, history: History) -> bool:
        if self._kept is None:
            return False
        since, _, present, budget = self._kept
        return (
            since <= history.actions.shape[1] < since + self.every
            and torch.equal(present, history.observations[:, since])
            and torch.equal(budget, history.budget)
        )


def save_policy(policy: nn.Module, path: Path | str) -> None:
    """Write a policy as one safetensors file: weights, with the class and its arguments as JSON in the header.

    The policy is an `nn.Module` of this package with an attribute `arguments`: the JSON-able keyword arguments
    its class was made with. The file appears whole or not at all.

    Raises:
        TypeError: the policy does not say how to make it again.
    """
    arguments = getattr(policy, "arguments", None)
    if not isinstance(policy, nn.Module) or not isinstance(arguments, dict):
        raise TypeError(
            f"cannot save a {type(policy).__name__}: save_policy needs an nn.Module with an attribute `arguments`, "
            "the dict of keyword arguments that makes it again"
        )
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    kind = f"{type(policy).__module__}:{type(policy).__qualname__}"
    header = {"format": FORMAT, "kind": kind, "arguments": arguments, "sha256": _digest(kind, arguments, weights)}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(weights, partial, metadata={"safediffkit": json.dumps(header)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_policy(path: Path | str) -> Any:
    """Read a policy that `save_policy` wrote. Nothing in the file is executed.

    Raises:
        OSError: the file cannot be read at all.
        ValueError: it is not such a file, was altered, or needs another version of safediffkit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}; `save_policy(policy, path)` writes one")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("safediffkit", "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a safediffkit policy, or is damaged: {error}") from error
    if not isinstance(header, dict) or not {"format", "kind", "arguments", "sha256"} <= header.keys():
        raise ValueError(f"{path} is a safetensors file but not a safediffkit policy: it lacks the JSON header")
    if header["format"] != FORMAT:
        raise ValueError(f"{path} has policy format {header['format']}; this safediffkit reads format {FORMAT}")
    kind, arguments = header["kind"], header["arguments"]
    if header["sha256"] != _digest(kind, arguments, weights):
        raise ValueError(f"{path} was altered after it was saved: its contents do not match its checksum")
    module, _, name = str(kind).partition(":")
    cls = getattr(import_module(module), name, None) if module.startswith("safediffkit.") else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module):
        raise ValueError(f"{path} holds a {kind!r}, which is no policy of this version of safediffkit")
    policy = cls(**arguments)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit a {name} with its arguments: {error}") from error
    return policy.eval()


def _digest(kind: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, kind, arguments], sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
