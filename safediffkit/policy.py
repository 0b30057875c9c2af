"""What a policy sees, what it must offer, and how it is kept on disk."""

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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
