import json
from itertools import pairwise

import pytest
import torch

from safediffkit.diffusion.calibration import SOLVERS, SPACINGS, STEPS, Calibration, calibrate
from safediffkit.diffusion.denoise import ddim_step, denoise, dpm_solver_2m_step, sample
from safediffkit.diffusion.schedule import cosine_schedule, vp_schedule

SCHEDULE = cosine_schedule(200)
SHAPE = (400, 3, 2)
MEANS, SPREAD = torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.3


def mixture(x, level, condition=None):
    """Predict the exact noise of an even mixture of two Gaussians, each row of each window on its own."""
    level = level.like(x)
    variance = level.alpha**2 * SPREAD**2 + level.sigma**2
    away = x[..., None, :] - level.alpha[..., None] * MEANS.to(x)
    share = (-away.square().sum(-1) / (2 * variance)).softmax(-1)
    return level.sigma * (share[..., None] * away).sum(-2) / variance


@pytest.fixture(scope="module")
def mixed():
    return calibrate(mixture, SCHEDULE, SHAPE)


def lookup(calibration, **wanted):
    """Give the distances of the tries that match, in order of their calls."""
    return [t["distance"] for t in calibration.measured if all(t[name] == value for name, value in wanted.items())]


def test_the_fewest_calls_within_the_tolerance_win_and_2m_does_it(mixed):
    assert mixed.holds
    assert mixed.distance <= mixed.tolerance == 0.05
    assert mixed.solver == "dpm_solver_2m_step"
    assert mixed.steps < 15
    (mine,) = lookup(mixed, solver=mixed.solver, spacing=mixed.spacing, steps=mixed.steps)
    assert mine == mixed.distance
    fewer = [trial["distance"] for trial in mixed.measured if trial["steps"] < mixed.steps]
    assert fewer
    assert min(fewer) > mixed.tolerance
    # ddim needs more calls for as much
    ddim = [trial["steps"] for trial in mixed.measured if trial["solver"] == "ddim_step" and trial["distance"] <= 0.05]
    assert not ddim or min(ddim) > mixed.steps


def test_everything_asked_for_is_measured_and_gets_closer_with_more_calls(mixed):
    assert len(mixed.measured) == len(SOLVERS) * len(SPACINGS) * len(STEPS)
    for solver in SOLVERS:
        distances = lookup(mixed, solver=solver, spacing="log_snr")
        assert all(late < early for early, late in pairwise(distances[::2]))


def test_the_distance_is_to_the_converged_run_from_the_same_noise(mixed):
    x = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=SCHEDULE.alpha.dtype)
    *_, converged = denoise(mixture, SCHEDULE, x, steps=200, solver=dpm_solver_2m_step, spacing="uniform")
    *_, ours = denoise(mixture, SCHEDULE, x, **mixed.settings)
    expected = (ours - converged).square().mean((1, 2)).sqrt().mean()
    assert mixed.distance == pytest.approx(float(expected))


def test_a_gaussian_has_the_distance_of_its_closed_form(gaussian):
    # one step of ddim gives m + (a s² / v)(x - a m), the exact flow m + (s / root v)(x - a m), v = a² s² + sigma²
    mean, spread, schedule = 0.7, 0.5, cosine_schedule(1000)
    found = calibrate(
        gaussian(mean, spread), schedule, (500, 1), solvers=["ddim_step"], spacings=["uniform"], steps=[1]
    )
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    a, variance = schedule.alpha[-1], schedule.alpha[-1] ** 2 * spread**2 + schedule.sigma[-1] ** 2
    gap = (spread / variance.sqrt() - a * spread**2 / variance) * (x - a * mean)
    assert found.distance == pytest.approx(float(gap.abs().mean()), abs=0.005)
    assert not found.holds
    assert found.converged == 1000


def test_on_a_tie_the_first_named_wins(gaussian):
    # data of unit spread around 0: nothing moves along the flow, and every solver is as exact at many calls
    options = {"steps": [20], "tolerance": 0.5}
    for solvers in (["ddim_step", "dpm_solver_2m_step"], ["dpm_solver_2m_step", "ddim_step"]):
        for spacings in (["uniform", "log_snr"], ["log_snr", "uniform"]):
            found = calibrate(gaussian(0.0, 1.0), SCHEDULE, (50, 2), solvers=solvers, spacings=spacings, **options)
            assert (found.solver, found.spacing) == (solvers[0], spacings[0])


def test_it_survives_json_and_samples(mixed):
    again = Calibration(**json.loads(json.dumps(mixed.arguments)))
    assert again == mixed
    assert again.settings == {"solver": dpm_solver_2m_step, "spacing": mixed.spacing, "steps": mixed.steps}
    assert sample(mixture, SCHEDULE, (5, 2), **again.settings).shape == (5, 2)


def test_where_nothing_is_close_enough_the_closest_is_named():
    found = calibrate(mixture, SCHEDULE, (50, 2), steps=[3, 5], tolerance=1e-9)
    assert not found.holds
    assert found.distance == min(trial["distance"] for trial in found.measured) > 0


def test_condition_and_projection_are_those_of_sampling():
    seen = set()

    def model(x, level, condition):
        seen.add(id(condition))
        assert torch.equal(x[:, 0], condition)
        return mixture(x, level)

    condition = torch.zeros(50, 2)

    def pin(x):
        return torch.cat([condition[:, None], x[:, 1:]], 1)

    found = calibrate(model, SCHEDULE, (50, 3, 2), condition, project=pin, steps=[20])
    assert seen == {id(condition)}
    assert found.distance < 0.1


def test_it_leaves_the_callers_randomness_alone_and_repeats():
    state = torch.get_rng_state()
    first = calibrate(mixture, SCHEDULE, (20, 2), steps=[5])
    assert torch.equal(torch.get_rng_state(), state)
    assert calibrate(mixture, SCHEDULE, (20, 2), steps=[5]) == first
    assert calibrate(mixture, SCHEDULE, (20, 2), steps=[5], seed=1).measured != first.measured


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match=r"ddpm_step: choose from dpm_solver_2m_step, ddim_step"):
        calibrate(mixture, SCHEDULE, (2, 2), solvers=["ddpm_step"])
    with pytest.raises(ValueError, match=r"nothing to try.*the 5 levels"):
        calibrate(mixture, vp_schedule(5), (2, 2), steps=[5, 10])
    with pytest.raises(ValueError, match="'karras'"):
        calibrate(mixture, SCHEDULE, (2, 2), spacings=["karras"])
    with pytest.raises(ValueError, match="not finite"):
        calibrate(lambda x, level, condition: x / 0, SCHEDULE, (2,))
    assert set(SOLVERS.values()) == {ddim_step, dpm_solver_2m_step}
