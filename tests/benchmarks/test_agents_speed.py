"""Agents that act in one computation against a loop over their networks, one after the other."""

import time

import pytest
import torch

from safediffkit.diffusion.denoise import dpm_solver_1_step, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.networks import PerAgent, VectorNoise
from safediffkit.methods.dom2 import DOM2
from safediffkit.policy import History

AGENTS, OBS, ACT, HIDDEN, LEVELS = 3, 24, 2, 64, 8


@pytest.fixture
def team():
    """A team, and the separate networks that its own was made of."""
    torch.manual_seed(0)
    policy = DOM2(AGENTS, OBS, ACT, HIDDEN, LEVELS, "unet").eval()
    networks = [VectorNoise("unet", ACT, OBS, HIDDEN) for _ in range(AGENTS)]
    for weight in torch.nn.ModuleList(networks).parameters():
        torch.nn.init.normal_(weight, std=0.1)
    policy.noise_model = PerAgent(networks)
    return policy, networks


def least(*runs, rounds=20, times=5):
    """Give the seconds of processor time that each run takes at the least, in turn, to share the machine's moods."""

    def seconds(run):
        start = time.process_time()
        for _ in range(times):
            run()
        return (time.process_time() - start) / times

    with torch.no_grad():
        return map(min, zip(*[[seconds(run) for run in runs] for _ in range(rounds)], strict=True))


# With one world, as each agent meets it, and with 20, where the products themselves begin to count: 4.5 and 3.6 as
# measured, less room for what other processes do to the caches.
@pytest.mark.parametrize(("worlds", "needed"), [(1, 3.0), (20, 3.0)])
def test_three_agents_act_together_in_a_third_of_the_time(team, worlds, needed, record_property):
    policy, networks = team
    history = History.start(torch.randn(worlds, AGENTS, OBS), ACT)

    def alone(j):
        state = policy.scaled(history.observation)[:, j]
        guided = guide(networks[j], clip_clean(-1.0, 1.0))
        return sample(guided, policy.schedule, (worlds, ACT), state, steps=LEVELS, solver=dpm_solver_1_step)

    singles = []
    for network in networks:
        singles.append(DOM2(1, OBS, ACT, HIDDEN, LEVELS, "unet").eval())
        singles[-1].noise_model = PerAgent([network])
    one = History.start(history.observation[:, :1], ACT)

    def loop():
        return torch.stack([alone(j) for j in range(AGENTS)], 1)

    def short_cuts():  # the loop, each agent with our short cuts: what batching alone brings
        return torch.cat([single.act(one) for single in singles], 1)

    together, apart, apart_quick = least(lambda: policy.act(history), loop, short_cuts)
    ratio, batching = apart / together, apart_quick / together
    record_property("ratio", ratio)
    record_property("batching_alone", batching)
    print(
        f"\n{worlds} worlds: together {1e3 * together:.2f} ms, loop {1e3 * apart:.2f} ms, ratio {ratio:.2f}; "
        f"loop with the short cuts {1e3 * apart_quick:.2f} ms, ratio {batching:.2f}"
    )
    assert ratio > needed
