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

    def seconds(episodes, seed):
        start = time.perf_counter()
        assert len(rollout(policy, **arguments, episodes=episodes, seed=seed)) == 200 * episodes
        return time.perf_counter() - start

    # A busy machine only ever adds time, so the least of each is the least disturbed; for single worlds, of many more.
    rounds = [(seconds(20, seed=0), [seconds(1, seed=k) for k in range(7)]) for _ in range(3)]
    lockstep = min(together for together, _ in rounds)
    alone = 20 * min(min(singles) for _, singles in rounds)

    ratio = alone / lockstep
    record_property("ratio", ratio)
    print(f"\none action sampled a step; one at a time {alone:.2f} s, lockstep {lockstep:.2f} s, ratio {ratio:.1f}")
    assert ratio > 3
