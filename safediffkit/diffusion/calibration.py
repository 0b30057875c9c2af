"""How few network calls will do: measured for a trained model, once, and stored beside it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safediffkit.diffusion.denoise import (
    NoiseModel,
    Solver,
    ddim_step,
    denoise,
    dpm_solver_2m_step,
    identity,
)
from safediffkit.diffusion.schedule import Schedule

# The preferred first. Solvers that add noise of their own cannot be told from another draw, so they are not here.
SOLVERS: dict[str, Solver] = {"dpm_solver_2m_step": dpm_solver_2m_step, "ddim_step": ddim_step}
SPACINGS = ("log_snr", "uniform", "quadratic")
STEPS = (3, 4, 5, 6, 8, 10, 15, 20)


@dataclass(frozen=True)
class Calibration:
    """How to sample a model, and the measurements that say so."""

    solver: str
    spacing: str
    steps: int
    distance: float  # of these settings to the converged run, in the units of x
    tolerance: float  # the distance asked for; see `holds`
    converged: int  # network calls of the converged run
    measured: list[dict[str, Any]]  # solver, spacing, steps and distance of every try

    @property
    def holds(self) -> bool:
        """Tell whether the tolerance was met at all."""
        return self.distance <= self.tolerance

    @property
    def arguments(self) -> dict[str, Any]:
        """Give all of it in JSON's words: `Calibration(**arguments)` makes it again."""
        return asdict(self)

    @property
    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments of `sample` and `denoise` that it stands for."""
        return {"solver": SOLVERS[self.solver], "spacing": self.spacing, "steps": self.steps}


def calibrate(
    noise_model: NoiseModel,
    schedule: Schedule,
    shape: Sequence[int],
    condition: Float[Tensor, "..."] | None = None,
    *,
    tolerance: float = 0.05,
    solvers: Sequence[str] = tuple(SOLVERS),
    spacings: Sequence[str] = SPACINGS,
    steps: Sequence[int] = STEPS,
    project: Callable[[Tensor], Tensor] = identity,
    temperature: float = 1.0,
    seed: int = 0,
) -> Calibration:
    """Find the fewest network calls whose samples are within `tolerance` of a converged run from the same noise.

    The converged run is DPM-Solver++(2M) over every level of the schedule. The distance is the root mean square over
    the entries of a row, averaged over the rows along the first axis; so a row that ends on another mode counts as one
    row. Among settings of equally many calls within the tolerance, those named first win, 2M on log_snr unless told
    otherwise; where none is within it, the closest wins and `Calibration.holds` is false. Calibrate the model as it
    will be sampled, with its guidances (a strong one asks for more calls), its projection and its `temperature`, the
    spread of the noise that is begun with. The rule, the distance and its tolerance, 5 % of the spread of standardised
    data, are our choice.

    Raises:
        ValueError: a solver is not one of `SOLVERS`, a spacing is unknown, or there is nothing to try: every number of
            `steps` is as large as the schedule. Or the converged run is not finite.
    """
    if strange := [name for name in solvers if name not in SOLVERS]:
        raise ValueError(f"cannot calibrate {', '.join(strange)}: choose from {', '.join(SOLVERS)}")
    tries = sorted({count for count in steps if count < len(schedule)})
    if not tries or not solvers or not spacings:
        raise ValueError(
            f"nothing to try: solvers {list(solvers)}, spacings {list(spacings)}, and of steps {list(steps)} those "
            f"below the {len(schedule)} levels of the schedule"
        )
    like = schedule.alpha if condition is None else condition
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype).to(like.device)
    noise *= temperature

    @torch.no_grad()
    def run(solver: str, spacing: str, count: int) -> Tensor:
        chain = denoise(
            noise_model,
            schedule,
            noise,
            condition,
            steps=count,
            solver=SOLVERS[solver],
            spacing=spacing,
            project=project,
        )
        *_, last = chain
        return last

    converged = run("dpm_solver_2m_step", "uniform", len(schedule))
    if not converged.isfinite().all():
        raise ValueError("the converged run is not finite: the model, or a guidance too strong, throws samples off")
    measured: list[dict[str, Any]] = [
        {
            "solver": solver,
            "spacing": spacing,
            "steps": count,
            "distance": _apart(run(solver, spacing, count), converged),
        }
        for count in tries
        for solver in solvers
        for spacing in spacings
    ]
    # in order of calls, then of preference: the first within the tolerance is the one
    within = (trial for trial in measured if trial["distance"] <= tolerance)
    best = next(within, None) or min(measured, key=lambda trial: trial["distance"])
    return Calibration(**best, tolerance=tolerance, converged=len(schedule), measured=measured)


def _apart(samples: Tensor, converged: Tensor) -> float:
    return float((samples - converged).reshape(len(samples), -1).square().mean(1).sqrt().mean())
