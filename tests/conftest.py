"""What all tests share: one torch thread, and the benchmarks told apart."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent / "benchmarks"

# Two busy threads make small networks many times slower than one.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        if BENCHMARKS in item.path.parents:
            item.add_marker(pytest.mark.benchmark)
