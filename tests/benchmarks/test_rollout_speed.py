"""Lockstep evaluation against one world at a time: the same policy, the same seeds, one run."""

import time

import pytest
import torch

from safediffkit import rollout
from safediffkit.methods.spi import SPI


@pytest.mark.benchmark
def test_lockstep_beats_one_world_at_a_time(record_property):
    torch.manual_seed(0)
    policy = SPI(8, 2, hidden=128, levels=5, extraction="reward", candidates=1, safest_share=0.2)
    arguments = {"world": "OfflineBallCircle-v0", "budget": 20}
    rollout(policy, **arguments, episodes=1, seed=0)  # loads the simulator

    start = time.perf_counter()
    together = rollout(policy, **arguments, episodes=20, seed=0)
    lockstep = time.perf_counter() - start

    start = time.perf_counter()
    for k in range(20):
        rollout(policy, **arguments, episodes=1, seed=k)
    alone = time.perf_counter() - start

    assert len(together) == 20 * 200
    ratio = alone / lockstep
    record_property("ratio", ratio)
    print(f"\none action sampled a step; one at a time {alone:.2f} s, lockstep {lockstep:.2f} s, ratio {ratio:.1f}")
    assert ratio > 3
