"""Step by step against Hugging Face diffusers, on its own alphas and timesteps."""

import warnings

import pytest
import torch

from safediffkit.diffusion.denoise import ddim_step, ddpm_step, denoise, dpm_solver_2m_step
from safediffkit.diffusion.schedule import Schedule, cosine_schedule, linear_schedule

with warnings.catch_warnings():  # its own imports warn; ours may not
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

COMMON = {"num_train_timesteps": 1000, "timestep_spacing": "trailing"}
KINDS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, ddim_step),
    "ddpm": (DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_small"}, ddpm_step),
    "2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
        dpm_solver_2m_step,
    ),
}


def curved(x, level, condition=None):
    return torch.tanh(1.3 * x + level.like(x).sigma)


# diffusers' own, under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("curve", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_equals_diffusers(kind, steps, curve):
    scheduler_class, options, solver = KINDS[kind]
    theirs = scheduler_class(beta_schedule=curve, **COMMON, **options)
    theirs.set_timesteps(steps)
    kept = theirs.alphas_cumprod.double()
    schedule = Schedule(kept.sqrt(), (1 - kept).sqrt())

    x = torch.randn(6, 2)
    torch.manual_seed(1)
    ours = list(denoise(curved, schedule, x, steps=steps, solver=solver, spacing="uniform"))
    assert [int((schedule.alpha == at.alpha).nonzero()) for at, _ in schedule.descend(steps, "uniform")] == (
        theirs.timesteps.tolist()
    )
    torch.manual_seed(1)
    for timestep, expected in zip(theirs.timesteps, ours[1:], strict=True):
        noise = curved(x, schedule.level(int(timestep)))
        x = theirs.step(noise, timestep, x).prev_sample
        # diffusers keeps its coefficients in single precision, and divides by alpha, 0.006 or 5e-5 at the start
        scale = float(expected.abs().max()) + 1
        torch.testing.assert_close(x.double() / scale, expected / scale, rtol=0, atol=2e-5)
        x = expected


def test_schedules_equal_diffusers():
    for name, ours in (("linear", linear_schedule(1000)), ("squaredcos_cap_v2", cosine_schedule(1000))):
        kept = DDPMScheduler(1000, beta_schedule=name).alphas_cumprod
        torch.testing.assert_close(ours.alpha**2, kept.double(), rtol=2e-4, atol=1e-6)
    kept = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(cosine_schedule(100).alpha ** 2, kept.double(), rtol=2e-4, atol=1e-6)
