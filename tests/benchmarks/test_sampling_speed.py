"""Sampling against Hugging Face diffusers: the same network, noise levels, solver and steps, the same samples."""

import time
import warnings

import pytest
import torch

from safediffkit.diffusion.denoise import ddim_step, denoise, dpm_solver_2m_step
from safediffkit.diffusion.networks import DiT1D
from safediffkit.diffusion.schedule import Schedule

with warnings.catch_warnings():  # its own imports warn; ours may not
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

COMMON = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
KINDS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, ddim_step),
    "2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
        dpm_solver_2m_step,
    ),
}
STEPS = 10


# diffusers' own, under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
# One plan for one world, where the solver's own work shows, and 64 plans, where the network is nearly all there is:
# 1.1 and 1.0 as measured, less room for what other processes do to the caches.
@pytest.mark.parametrize(("plans", "least"), [(1, 0.9), (64, 0.85)])
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_costs_no_more_than_with_diffusers(kind, plans, least, record_property):
    torch.manual_seed(0)
    network = DiT1D(obs=8, horizon=16, hidden=64).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    scheduler_class, options, solver = KINDS[kind]
    scheduler = scheduler_class(**COMMON, **options)
    kept = scheduler.alphas_cumprod
    schedule = Schedule(kept.sqrt(), (1 - kept).sqrt())
    noise = torch.randn(plans, 16, 8)

    def ours():
        *_, x = denoise(network, schedule, noise, steps=STEPS, solver=solver, spacing="uniform")
        return x

    def theirs():
        scheduler.set_timesteps(STEPS)
        x = noise
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, schedule.level(timestep)), timestep, x).prev_sample
        return x

    def seconds(run):
        # of this process alone, which all runs on one thread: what else the machine does is not counted
        start = time.process_time()
        run()
        return time.process_time() - start

    with torch.no_grad():
        # the same samples, but for single precision, which dividing by alpha = 0.0005 at the start blows up
        torch.testing.assert_close(ours(), theirs(), rtol=0, atol=0.02)
        # A busy machine only ever adds time, so the least of each is the least disturbed; in turn, to share its moods.
        rounds = [(seconds(ours), seconds(theirs)) for _ in range(200 if plans == 1 else 30)]
    mine, diffusers = map(min, zip(*rounds, strict=True))

    ratio = diffusers / mine
    record_property("ratio", ratio)
    print(f"\n{kind}, {plans} plans, {STEPS} steps: diffusers {diffusers:.4f} s, ours {mine:.4f} s, ratio {ratio:.2f}")
    assert ratio > least
