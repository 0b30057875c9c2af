"""What every training loop shares: seeding, target networks, and a watcher that sees the losses go by."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

CHECKPOINT_EVERY = 1000
Watch = Callable[[int, dict[str, float]], None]


def ignore(step: int, losses: dict[str, float]) -> None:
    """Watch nothing."""


def words(config: Any) -> dict[str, Any]:
    """Say a config in JSON's words: functions by their names."""
    return {
        field.name: value.__name__ if callable(value := getattr(config, field.name)) else value
        for field in fields(config)
    }


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Make torch's randomness inside the block depend on `seed` alone and leave the caller's untouched.

    Yields a generator of its own for drawing batches, so that what is drawn does not depend on how many random
    numbers the networks use.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the weights of `target` a share `rate` of the way to those of `source` (soft target, EMA with 1 - decay)."""
    targets: list[Tensor] = list(target.parameters())
    sources: list[Tensor] = list(source.parameters())
    torch._foreach_lerp_(targets, sources, rate)


class Standardise(nn.Module):
    """Give observations mean 0 and spread 1, as measured on the training data; part of the policy it serves."""

    mean: Tensor
    spread: Tensor

    def __init__(self, obs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs))
        self.register_buffer("spread", torch.ones(obs))

    def fit(self, observations: Float[Tensor, "steps obs"]) -> None:
        """Measure mean and spread; an entry that hardly varies is not blown up."""
        self.mean.copy_(observations.mean(0))
        self.spread.copy_(observations.std(0).clamp_min(1e-3))

    def forward(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        """Standardise an observation."""
        return (observation - self.mean) / self.spread


def standardise_team(
    scale: Standardise, observation: Float[Tensor, "*batch agents obs"], agents: int
) -> Float[Tensor, "*batch agents obs"]:
    """Standardise a team's observations, every agent's numbers by their own mean and spread.

    Raises:
        ValueError: there are more or fewer agents than the policy, whose scale this is, was made for.
    """
    if observation.shape[-2] != agents:
        raise ValueError(f"observations of {observation.shape[-2]} agents; this policy is for {agents}")
    scaled: Tensor = scale(observation.flatten(-2)).view(observation.shape)
    return scaled


def progress(steps: int, label: str) -> Watch:
    """Watch with a progress bar that shows the latest losses."""
    from tqdm import tqdm

    bar = tqdm(total=steps, desc=label, unit="update", mininterval=1.0)

    def watch(step: int, losses: dict[str, float]) -> None:
        bar.update(step - bar.n)
        if step % 100 == 0 or step == steps:
            bar.set_postfix({name: f"{loss:.3g}" for name, loss in losses.items()}, refresh=False)
        if step == steps:
            bar.close()

    return watch


@runtime_checkable
class Stateful(Protocol):
    """A network, optimiser or the like, whose state can be taken out and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Take the state out."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put a state back."""
        ...


def repeat(
    update: Callable[[], dict[str, Tensor]],
    parts: Mapping[str, Stateful],
    generator: torch.Generator,
    *,
    steps: int,
    run: str,
    watch: Watch,
    checkpoint: Path | None = None,
) -> None:
    """Call `update` until `steps` updates are done, and tell `watch` the number done and the losses after each.

    With `checkpoint`, the state of all parts and of the random numbers is kept in that file every `CHECKPOINT_EVERY`
    updates, and a run that finds the file goes on from there: the weights come out as if it had never stopped. `run`
    says in words which run it is.

    Raises:
        ValueError: the checkpoint belongs to another run, or is damaged.
    """
    done = _resume(parts, generator, run, checkpoint) if checkpoint and checkpoint.exists() else 0
    for step in range(done + 1, steps + 1):
        losses = update()
        watch(step, {name: float(loss) for name, loss in losses.items()})
        if checkpoint and step % CHECKPOINT_EVERY == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            partial = checkpoint.with_name(checkpoint.name + ".partial")
            rng = {"torch": torch.get_rng_state(), "batches": generator.get_state()}
            torch.save({"run": run, "step": step, "parts": state, **rng}, partial)
            partial.replace(checkpoint)


def _resume(parts: Mapping[str, Stateful], generator: torch.Generator, run: str, checkpoint: Path) -> int:
    try:
        kept = torch.load(checkpoint, weights_only=True)  # tensors and numbers only: nothing in it is executed
        owner, step = kept["run"], int(kept["step"])
    except (RuntimeError, ValueError, UnpicklingError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{checkpoint} is no readable checkpoint ({error}); delete it to start again") from error
    if owner != run:
        raise ValueError(f"{checkpoint} belongs to another run: {owner}; this one is: {run}. Delete it to start again")
    for name, part in parts.items():
        part.load_state_dict(kept["parts"][name])
    torch.set_rng_state(kept["torch"])
    generator.set_state(kept["batches"])
    return step
