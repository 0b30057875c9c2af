"""DOM2's fourth task: a half cheetah whose front and hind leg are two agents."""

import warnings
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from safediffkit.worlds.landmarks import INSTALL


def half_cheetah(*, steps: int = 1000, render_mode: str | None = None) -> Any:
    """Make HalfCheetah 2x3 of `mamujoco_v1`: two agents with three joints each, and one reward for both.

    Each sees 12 numbers: its joints and their neighbours, and the body's position and velocity. Nothing costs. It is
    Gymnasium's HalfCheetah-v5, where the paper has v2. The paper's "random" and "extreme" variants are left out: their
    numbers stand in its Appendix C.1, which is not part of the text that we have. [DOM2 Sec. 5.3]

    Raises:
        ValueError: `steps` is below 1.
        ImportError: gymnasium-robotics or MuJoCo is not installed.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: an episode has at least 1")
    try:
        with redirect_stderr(StringIO()):  # it says something about other worlds than this
            import mujoco
            from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise ImportError(f"HalfCheetah runs in MaMuJoCo, and {error.name or error} is missing. {INSTALL}") from error
    mujoco.set_mju_user_warning(_pass_on)
    return mamujoco_v1.parallel_env("HalfCheetah", "2x3", max_episode_steps=steps, render_mode=render_mode)


def _pass_on(message: str) -> None:
    # Left alone, MuJoCo writes its warnings into a file in the present folder, one for each copy of the world about an
    # outdated word in Gymnasium's model.
    if "settotalmass" not in message:
        warnings.warn(message, stacklevel=2)
