"""Draw top_view.png, the picture of the README: two trained policies in the simulator, seen from above.

    python tutorials/assets/make_top_view.py

Plotly's kaleido writes the PNG and needs a Chrome or Chromium: name it in BROWSER_PATH if it is not found.
"""

from pathlib import Path

import torch

from safediffkit import load_policy, rollout, score
from safediffkit.figures import beside, top_view
from safediffkit.worlds.bullet import positions

ASSETS = Path(__file__).parent
TASK, BUDGET, EPISODES = "OfflineBallCircle-v0", 20, 5


def main() -> None:
    """Roll both policies out on the same starts and write the picture."""
    torch.set_num_threads(1)
    folder = ASSETS / "policies" / TASK
    policies = {
        "Cloning all recorded drivers (BC)": load_policy(folder / "bc.safetensors"),
        "SPI, safest share of candidates": load_policy(folder / "spi.safetensors").variants()["safest"],
    }
    panels = []
    for name, policy in policies.items():
        run = rollout(policy, TASK, episodes=EPISODES, budget=BUDGET, seed=1)
        paths, costs = positions(run.observations).view(EPISODES, -1, 2), run.costs.view(EPISODES, -1)
        result = score(run, TASK, budget=BUDGET)
        assert result.normalised_reward is not None
        words = (
            f"{name}:<br>reward {result.normalised_reward.mean:.2f}, cost {result.cost.mean:.0f} of {BUDGET} allowed"
        )
        panels.append(top_view(paths, costs, budget=BUDGET, title=words))
    beside(*panels, width=960, height=540).write_image(ASSETS / "top_view.png", scale=2)


if __name__ == "__main__":
    main()
