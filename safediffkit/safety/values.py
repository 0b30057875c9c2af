"""Values learned from records alone, without asking what any other action would be worth: implicit Q-learning."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from safediffkit.data.dataset import Dataset
from safediffkit.learning import Standardise, Stateful, Watch, follow, ignore, repeat, seeded
from safediffkit.safety.critics import Critics, expectile_loss, td_loss


class Values(nn.Module):
    """Twins Q of state and action, and V of a state, which is the worst there is outside the safe set."""

    worst: Tensor

    def __init__(self, obs: int, act: int, hidden: int = 128) -> None:
        super().__init__()
        self.scale = Standardise(obs)
        self.critics, self.state = Critics(obs, act, 2, hidden), Critics(obs, 0, 1, hidden)
        self.register_buffer("worst", torch.zeros(()))

    def forward(
        self, observation: Float[Tensor, "*batch obs"], safe: Bool[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Give V, never below the worst recorded discounted return, and equal to it where a state is not safe.

        Eq. 16 reads V at whatever follows a safe state, though Eq. 15 never learns it outside: the worst is our choice.
        """
        return self.of(self.scale(observation)).maximum(self.worst).where(safe, self.worst)

    def of(self, scaled: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """Give what the network says of scaled states."""
        value: Tensor = self.state(scaled, scaled[..., :0])[0]
        return value


def penalised(dataset: Dataset, penalty: float) -> Float[Tensor, "steps *agents"]:
    """Charge for each step into danger: r - r_p there, in units of the rewards' spread. [CBF Eq. 13]

    As printed r_p falls due at every step, which changes no preference; "when the agent enters the dangerous set",
    says the text, and that is what is done. The unit is our choice.
    """
    return dataset.rewards / dataset.rewards.std().clamp_min(1e-6) - penalty * (dataset.costs > 0)


def sooner(dataset: Dataset, steps: int) -> Dataset:
    """Charge each step for the greatest cost of the next `steps` ones of its episode, itself included.

    What can no longer be avoided is dangerous, too, and where danger comes up at once, as where two roads meet, records
    that run into it tell so; with 1 nothing changes. Of a state from which some records run into danger and others do
    not, the barrier decides by how many. All of this is our choice.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"foresight={steps}: a step foresees at least its own cost, which is foresight=1")
    costs = dataset.costs.clone()
    for ahead in range(1, steps):
        same = dataset.episode[ahead:] == dataset.episode[:-ahead]
        costs[:-ahead] = costs[:-ahead].maximum(dataset.costs[ahead:] * same)
    return replace(dataset, costs=costs)


def train_values(
    dataset: Dataset,
    safe: Bool[Tensor, "steps"],
    next_safe: Bool[Tensor, "steps"],
    *,
    discount: float = 0.95,
    expectile: float = 0.7,
    steps: int = 2_000,
    batch: int = 256,
    learning_rate: float = 1e-3,
    target_rate: float = 0.02,
    seed: int = 0,
    watch: Watch = ignore,
) -> Values:
    """Draw V towards an expectile of Q, and Q to r + gamma V', on steps from safe states. [CBF Eq. 15] [CBF Eq. 16]

    L^T is read as the expectile loss. The lesser of twins and a slow copy for Eq. 15 are implicit Q-learning's; V' is
    0 after a true end. Settings are our choice.

    Raises:
        ValueError: no state is safe, or the dataset has an agents axis.
    """
    rows = safe.nonzero()[:, 0]
    if not len(rows) or dataset.rewards.ndim != 1:
        raise ValueError(
            f"train_values needs steps of single agents (see `agents_apart`) and safe states among them; given are "
            f"rewards of shape {tuple(dataset.rewards.shape)} and {len(rows)} safe states"
        )
    with seeded(seed) as generator:
        obs, act = dataset.observations.shape[1], dataset.actions.shape[1]
        values, slow = Values(obs, act), Values(obs, act)
        values.scale.fit(dataset.observations)
        values.worst.copy_(dataset.return_to_go(discount).min())
        slow.load_state_dict(values.state_dict())
        adam = torch.optim.Adam(values.parameters(), learning_rate, fused=True)

        def update() -> dict[str, Tensor]:
            at = rows[torch.randint(len(rows), (batch,), generator=generator)]
            state, action = values.scale(dataset.observations[at]), dataset.actions[at]
            with torch.no_grad():
                following = values(dataset.next_observations[at], next_safe[at])
                judged = slow.critics(state, action).amin(0)
            value = expectile_loss(judged - values.of(state), expectile)
            guesses = values.critics(state, action)
            critics = td_loss(guesses, dataset.rewards[at], following, dataset.terminated[at], discount)
            adam.zero_grad()
            (value + critics).backward()
            adam.step()
            follow(slow, values, target_rate)
            return {"value": value.detach(), "critics": critics.detach()}

        parts: dict[str, Stateful] = {"values": values, "slow": slow, "adam": adam}
        run = f"values on {len(dataset)} steps: {dataset.provenance}"
        repeat(update, parts, generator, steps=steps, run=run, watch=watch)
    return values.eval()
