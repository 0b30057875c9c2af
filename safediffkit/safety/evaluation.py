"""Judge a policy from recorded data alone, before it acts anywhere."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from safediffkit.data.dataset import Dataset
from safediffkit.learning import Standardise, follow, seeded
from safediffkit.policy import History, Policy
from safediffkit.safety.critics import Critics, td_loss


@dataclass(frozen=True)
class Prediction:
    """What episodes of a policy are predicted to sum to."""

    reward: float
    cost: float


def fitted_q_evaluation(
    policy: Policy,
    dataset: Dataset,
    *,
    visited: Float[Tensor, "batch obs"],
    horizon: int,
    steps: int = 3000,
    discount: float = 0.99,
    seed: int = 0,
) -> Prediction:
    """Predict a policy's episode reward and cost from recorded steps: fitted Q evaluation. [Le et al. 2019, Alg. 3]

    Values follow the recorded step and then one sampled action of the policy in each next state, drawn beforehand.
    They are discounted averages a step, and `horizon` of them are an episode. They are averaged over `visited`: states
    such as the policy is expected to meet throughout an episode, because from starts alone the discount would give the
    first steps most of the weight. The prediction is only as good as the data covers what the policy does.
    """
    with seeded(seed) as generator:
        scale = Standardise(dataset.observations.shape[1])
        scale.fit(dataset.observations)
        width = dataset.actions.shape[1]
        with torch.no_grad():
            following = _act(policy, dataset.next_observations, width)
            here = visited[torch.randint(len(visited), (2000,), generator=generator)]
            chosen = _act(policy, here, width)
        signals = torch.stack([dataset.rewards, dataset.costs])
        size = signals.abs().mean(1, keepdim=True).clamp_min(1e-6)
        signals = (1 - discount) * signals / size
        states, then = scale(dataset.observations), scale(dataset.next_observations)
        critics, target = (Critics(states.shape[1], following.shape[1], 2, 128) for _ in range(2))
        target.load_state_dict(critics.state_dict())
        optimiser = torch.optim.Adam(critics.parameters(), 1e-3, fused=True)
        for _ in range(steps):
            at = torch.randint(len(states), (512,), generator=generator)
            with torch.no_grad():
                future = target(then[at], following[at])
            values = critics(states[at], dataset.actions[at])
            loss = td_loss(values[None], signals[:, at], future, dataset.terminated[at], discount)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            follow(target, critics, 0.05)
        with torch.no_grad():
            predicted = target(scale(here), chosen).mean(1) * size[:, 0] * horizon
    return Prediction(*predicted.tolist())


def _act(policy: Policy, observations: Float[Tensor, "batch obs"], act: int) -> Float[Tensor, "batch act"]:
    return torch.cat([policy.act(History.start(rows, act)) for rows in observations.split(1000)])
