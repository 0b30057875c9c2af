import math
from itertools import pairwise

import pytest
import torch

from safediffkit.diffusion.denoise import (
    NoiseModel,
    Solver,
    ddim_step,
    ddpm_step,
    denoise,
    dpm_solver_1_step,
    dpm_solver_2m_step,
    noise_prediction_loss,
    predict_clean,
    sample,
)
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule, linear_schedule, vp_schedule

SOLVERS = [ddim_step, ddpm_step, dpm_solver_1_step, dpm_solver_2m_step]
SCHEDULES = [cosine_schedule(100), linear_schedule(1000), vp_schedule(50)]
SPACINGS = ["log_snr", "uniform", "quadratic"]
MEAN, SPREAD = 0.7, 0.5


def level(alpha: float, sigma: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor(alpha), torch.tensor(sigma))


def even_levels(count: int, noisy: float = -5.0, clean: float = 5.0) -> list[NoiseLevel]:
    log_snr = torch.linspace(noisy, clean, count)
    return [NoiseLevel(torch.sigmoid(2 * s).sqrt(), torch.sigmoid(-2 * s).sqrt()) for s in log_snr]


def scalars(schedule: Schedule, steps: int, spacing: str) -> list[tuple[float, float, float, float]]:
    """List (a, s, a', s') of every stride as plain floats, for formulas that share no code with the library."""
    pairs = schedule.descend(steps, spacing)
    return [(float(at.alpha), float(at.sigma), float(to.alpha), float(to.sigma)) for at, to in pairs]


def double(schedule: Schedule) -> Schedule:
    sigma = schedule.sigma.double()
    return Schedule((1 - sigma**2).sqrt(), sigma)


def test_models_and_solvers_fit_their_protocols(gaussian):
    assert isinstance(gaussian(0.0, 1.0), NoiseModel)
    assert all(isinstance(solver, Solver) for solver in SOLVERS)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", [ddim_step, dpm_solver_1_step])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_first_order_shrinks_a_gaussian_by_the_product_of_its_factors(gaussian, solver, schedule, spacing, steps):
    schedule = double(schedule)
    x = torch.randn(4, 3)
    factor = 1.0
    for a, s, to_a, to_s in scalars(schedule, steps, spacing):
        factor *= (to_a * a * SPREAD**2 + to_s * s) / (a**2 * SPREAD**2 + s**2)
    *_, last = denoise(gaussian(MEAN, SPREAD), schedule, x, steps=steps, solver=solver, spacing=spacing)
    expected = MEAN + factor * (x - schedule.alpha[-1] * MEAN)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_second_order_follows_its_own_recursion(gaussian, schedule, spacing, steps):
    schedule = double(schedule)
    x = torch.randn(4, 3)
    deviation, before, stride_before = 1.0, None, None
    for a, s, to_a, to_s in scalars(schedule, steps, spacing):
        clean = a * SPREAD**2 * deviation / (a**2 * SPREAD**2 + s**2)
        stride = math.inf if to_s == 0 else math.log(to_a / to_s) - math.log(a / s)
        r = None if before is None or to_s == 0 else stride_before / stride
        mixed = clean if r is None else (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        deviation = to_s / s * deviation - to_a * math.expm1(-stride) * mixed
        before, stride_before = clean, stride
    *_, last = denoise(gaussian(MEAN, SPREAD), schedule, x, steps=steps, solver=dpm_solver_2m_step, spacing=spacing)
    torch.testing.assert_close(last, MEAN + deviation * (x - schedule.alpha[-1] * MEAN), rtol=0, atol=1e-10)


def ddpm_factor_and_variance(a: float, s: float, to_a: float, to_s: float) -> tuple[float, float]:
    keep = a / to_a
    added = 1 - keep**2
    factor = to_a * added / s**2 * a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) + keep * to_s**2 / s**2
    return factor, added * to_s**2 / s**2


def test_ancestral_step_draws_from_the_posterior(gaussian):
    # [SPI Eq. 3, 8]
    at, to = even_levels(20)[8:10]
    a, s, to_a, to_s = (float(v) for v in (at.alpha, at.sigma, to.alpha, to.sigma))
    x = torch.randn(5, 2)
    factor, variance = ddpm_factor_and_variance(a, s, to_a, to_s)
    torch.manual_seed(7)
    drawn = torch.randn(5, 2)
    torch.manual_seed(7)
    result = ddpm_step(x, gaussian(MEAN, SPREAD)(x, at), at, to)
    expected = to_a * MEAN + factor * (x - a * MEAN) + math.sqrt(variance) * drawn
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 20])
def test_ancestral_sampling_has_the_variance_of_its_recursion(gaussian, steps):
    schedule = cosine_schedule(100)
    variance, mean = 1.0, -float(schedule.alpha[-1]) * MEAN
    for stride in scalars(schedule, steps, "log_snr"):
        factor, added = ddpm_factor_and_variance(*stride)
        variance, mean = factor**2 * variance + added, factor * mean
    draws = 200_000
    x = sample(gaussian(MEAN, SPREAD), schedule, (draws,), steps=steps, solver=ddpm_step)
    # five standard errors each
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / draws))
    assert float(x.mean()) == pytest.approx(MEAN + mean, abs=5 * math.sqrt(variance / draws))


def test_ancestral_sampling_adds_nothing_on_the_last_step(gaussian):
    at, x = even_levels(20)[8], torch.randn(5, 2)
    noise = gaussian(MEAN, SPREAD)(x, at)
    result = ddpm_step(x, noise, at, level(1.0, 0.0))
    torch.testing.assert_close(result, predict_clean(x, noise, at), rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [ddim_step, dpm_solver_1_step, dpm_solver_2m_step])
def test_one_step_by_hand(solver):
    # [DOM2 Eq. 4]
    # 2M falls back to first order on its first step
    at, to = level(0.28118288, 0.95965420), level(0.44219691, 0.89691800)
    result = solver(torch.ones(1), torch.full((1,), 0.5), at, to, None)
    assert float(result) == pytest.approx(1.2664990142, abs=1e-8)  # the scales have eight digits


def test_dom2_as_printed_explodes_where_ours_does_not(gaussian):
    # [DOM2 Eq. 4]
    model, schedule, x = gaussian(0.0, SPREAD), linear_schedule(1000), torch.ones(1)

    def printed(x, noise, at, to, before):
        ratio = at.alpha * to.sigma / (to.alpha * at.sigma)
        return to.alpha / at.alpha * x - at.sigma * (ratio - 1) * noise

    def last_before_clean(solver):
        return list(denoise(model, schedule, x, steps=10, solver=solver))[-2]

    ours, theirs = last_before_clean(dpm_solver_1_step), last_before_clean(printed)
    assert 0.4 < float(ours) < 0.7
    assert float(theirs.abs()) > 100
    at, to = even_levels(20)[8:10]
    assert not torch.allclose(printed(x, x / 2, at, to, None), dpm_solver_1_step(x, x / 2, at, to))


@pytest.mark.parametrize(("solver", "order"), [(ddim_step, 1), (dpm_solver_1_step, 1), (dpm_solver_2m_step, 2)])
def test_order_of_convergence(gaussian, solver, order):
    def error(strides: int) -> float:
        model, levels = gaussian(MEAN, SPREAD), even_levels(strides + 1)
        x, before = torch.ones(1), None
        for at, to in pairwise(levels):
            noise = model(x, at)
            here = predict_clean(x, noise, at), at
            x, before = solver(x, noise, at, to, before), here
        first, last = levels[0], levels[-1]

        # the exact flow keeps x's distance to the mean in units of the spread
        def spread(k: NoiseLevel) -> torch.Tensor:
            return (k.alpha**2 * SPREAD**2 + k.sigma**2).sqrt()

        exact = last.alpha * MEAN + spread(last) / spread(first) * (1 - first.alpha * MEAN)
        return float((x - exact).abs())

    slopes = [math.log2(error(n) / error(2 * n)) for n in (25, 50, 100)]
    assert slopes == pytest.approx([order] * 3, abs=0.12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_row_may_have_its_own_level(solver):
    clean_to = NoiseLevel(torch.tensor([0.6, 1.0, 0.9]), torch.tensor([0.8, 0.0, math.sqrt(0.19)]))
    at = NoiseLevel(torch.tensor([0.3, 0.6, 0.5]), (1 - torch.tensor([0.3, 0.6, 0.5]) ** 2).sqrt())
    first = NoiseLevel(torch.tensor([0.1, 0.2, 0.3]), (1 - torch.tensor([0.1, 0.2, 0.3]) ** 2).sqrt())
    x, noise, clean = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    torch.manual_seed(3)
    together = solver(x, noise, at, clean_to, (clean, first))
    torch.manual_seed(3)
    torch.randn(3, 4, 2)
    for i in range(3):
        if solver is ddpm_step and i != 1:
            continue  # random: only the row that arrives at clean data can be compared
        a, t, f = (NoiseLevel(k.alpha[i], k.sigma[i]) for k in (at, clean_to, first))
        torch.testing.assert_close(together[i], solver(x[i], noise[i], a, t, (clean[i], f)), rtol=0, atol=1e-12)


def test_denoise_yields_every_x_and_projects_each(gaussian):
    def pin(x):
        return torch.cat([torch.full_like(x[:, :1], 0.25), x[:, 1:]], 1)

    x = torch.randn(6, 2)
    steps = list(denoise(gaussian(MEAN, SPREAD), cosine_schedule(), x, steps=7, project=pin))
    assert len(steps) == 8
    torch.testing.assert_close(steps[0], pin(x))
    assert all((step[:, 0] == 0.25).all() for step in steps)
    free = list(denoise(gaussian(MEAN, SPREAD), cosine_schedule(), x, steps=7))
    assert free[0] is x
    torch.testing.assert_close(free[-1][:, 1], steps[-1][:, 1])


def test_the_condition_reaches_the_model_and_the_levels_are_the_schedules():
    seen = []

    def model(x, level, condition):
        seen.append((float(level.alpha), condition))
        return x

    condition = torch.ones(2, 3)
    schedule = vp_schedule(5)
    sample(model, schedule, (2, 1), condition, steps=5)
    assert [alpha for alpha, _ in seen] == schedule.alpha.flip(0).tolist()
    assert all(given is condition for _, given in seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_depends_on_torchs_seed_alone(gaussian, solver):
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return sample(gaussian(MEAN, SPREAD), cosine_schedule(), (5, 2), steps=5, solver=solver)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_flow_through_sampling(gaussian, solver):
    def endpoint(mean: torch.Tensor) -> torch.Tensor:
        def model(x, level, condition):
            noise = gaussian(mean, SPREAD)(x, level)
            return noise + 0.1 * torch.sin(mean * x)  # so that the derivative varies

        torch.manual_seed(5)
        return sample(model, cosine_schedule(), (8, 2), steps=5, solver=solver).square().mean()

    mean = torch.tensor(MEAN, requires_grad=True)
    (slope,) = torch.autograd.grad(endpoint(mean), mean)
    with torch.no_grad():
        measured = (endpoint(mean + 1e-5) - endpoint(mean - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(measured), rel=1e-6)
    assert abs(float(slope)) > 0.1


def test_impossible_steps_are_refused(gaussian):
    with pytest.raises(ValueError, match="1 to 5 steps"):
        sample(gaussian(0.0, 1.0), vp_schedule(5), (2,), steps=10)
    with pytest.raises(ValueError, match="'karras'"):
        next(denoise(gaussian(0.0, 1.0), vp_schedule(5), torch.zeros(2), steps=5, spacing="karras"))


def test_the_loss_of_the_exact_model_is_what_noise_hides(gaussian):
    # [SPI Eq. 9] [DOM2 Eq. 3] [CBF Eq. 4] [TCDP Eq. 2]
    schedule, rows = vp_schedule(50), 200_000
    loss = noise_prediction_loss(gaussian(MEAN, SPREAD), schedule, MEAN + SPREAD * torch.randn(rows, 1))
    data = schedule.alpha**2 * SPREAD**2
    left = data / (data + schedule.sigma**2)  # variance of the noise given x, level by level
    assert float(loss) == pytest.approx(float(left.mean()), rel=0.02)  # about five standard errors


def test_the_loss_draws_levels_evenly_and_noises_rows_by_their_level():
    # [SPI Eq. 7, 9]
    schedule, rows, seen = vp_schedule(5), 50_000, {}

    def model(x, level, condition):
        seen.update(x=x, level=level)
        return torch.zeros_like(x)

    loss = noise_prediction_loss(model, schedule, torch.full((rows, 2), 3.0))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(1, abs=0.03)  # all of the noise is missed
    for alpha, sigma in zip(schedule.alpha, schedule.sigma, strict=True):
        mine = seen["level"].alpha == alpha
        assert float(mine.double().mean()) == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / rows))
        assert float(seen["x"][mine].mean()) == pytest.approx(3 * float(alpha), abs=0.05)
        assert float(seen["x"][mine].std()) == pytest.approx(float(sigma), rel=0.05)


@pytest.mark.parametrize("shape", [(8,), (4, 3)])
@pytest.mark.parametrize("forget", [0.0, 0.25, 1.0])
def test_forgetting_takes_whole_rows(forget, shape):
    rows, seen = 20_000, {}

    def model(x, level, condition):
        seen["condition"] = condition
        return x

    condition = torch.randn(rows, *shape)
    noise_prediction_loss(model, vp_schedule(5), torch.randn(rows, 2), condition, forget)
    gone = seen["condition"].flatten(1).isnan()
    assert (gone.all(1) == gone.any(1)).all()
    kept = ~gone.any(1)
    assert torch.equal(seen["condition"][kept], condition[kept])
    assert float(gone.double().mean()) == pytest.approx(forget, abs=5 * math.sqrt(forget * (1 - forget) / rows))
    assert not condition.isnan().any()  # the caller's data stays as it was


@pytest.mark.parametrize(("condition", "forget"), [(None, 0.1), (torch.zeros(3, 1), -0.1), (torch.zeros(3, 1), 1.5)])
def test_senseless_forgetting_is_refused(gaussian, condition, forget):
    with pytest.raises(ValueError, match=f"forget={forget}"):
        noise_prediction_loss(gaussian(0.0, 1.0), vp_schedule(5), torch.zeros(3, 2), condition, forget)
