import math
from itertools import pairwise

import pytest
import torch

from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule, linear_schedule, vp_schedule

SPACINGS = ["log_snr", "uniform", "quadratic"]


@pytest.mark.parametrize("make", [cosine_schedule, linear_schedule, vp_schedule])
@pytest.mark.parametrize("levels", [1, 5, 100, 1000])
def test_signal_and_noise_keep_the_variance_at_one(make, levels):
    schedule = make(levels)
    assert len(schedule) == levels
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(levels), rtol=0, atol=1e-15)
    assert schedule.log_snr[-1] < -2.5  # the noisiest level is nearly pure noise, however few levels there are


def test_schedules_come_in_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    schedule = cosine_schedule()
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float32
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(100), rtol=0, atol=2e-7)


def test_linear_is_ddpms_product_of_kept_signal():
    # [SPI Eq. 2, 7]
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    torch.testing.assert_close(linear_schedule(1000).alpha, kept.sqrt(), rtol=1e-12, atol=0)
    # fewer levels lie on the same curve
    torch.testing.assert_close(linear_schedule(100).alpha, kept.sqrt()[9::10], rtol=1e-12, atol=0)


def test_cosine_follows_its_curve_until_the_cap():
    def curve(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = cosine_schedule(100)
    for k in (0, 49, 98):
        assert float(schedule.alpha[k] ** 2) == pytest.approx(curve((k + 1) / 100) / curve(0), rel=1e-10)
    assert float(schedule.alpha[99] / schedule.alpha[98]) == pytest.approx(math.sqrt(0.001))


def test_vp_is_diffusion_qls_product_of_kept_signal():
    step = torch.arange(1, 6)
    kept = torch.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * step - 1) / 25).cumprod(0)
    torch.testing.assert_close(vp_schedule(5).alpha, kept.sqrt(), rtol=1e-12, atol=0)


def test_level_takes_one_index_or_many():
    schedule = vp_schedule(5)
    assert schedule.level(3).alpha == schedule.alpha[3]
    many = schedule.level(torch.tensor([[0, 4], [2, 2]]))
    assert many.sigma.shape == (2, 2)
    assert many.sigma[0, 1] == schedule.sigma[4]
    torch.testing.assert_close(many.log_snr, (many.alpha / many.sigma).log())
    with pytest.raises(IndexError):
        schedule.level(5)


def test_like_shapes_the_scales_to_multiply_row_by_row():
    level = vp_schedule(5).level(torch.tensor([0, 1, 2]))
    like = level.like(torch.zeros(3, 7, 2, dtype=torch.float32))
    assert like.alpha.shape == like.sigma.shape == (3, 1, 1)
    assert like.alpha.dtype == torch.float32
    assert like.like(torch.zeros(3, 7, 2)).alpha.shape == (3, 1, 1)
    assert NoiseLevel(torch.tensor(1.0), torch.tensor(0.0)).like(torch.zeros(4, 2)).sigma.shape == (1, 1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [cosine_schedule, linear_schedule, vp_schedule])
def test_descend_goes_from_the_noisiest_level_to_clean_without_stopping_twice(make, spacing):
    schedule = make(37)
    for steps in range(1, 38):
        strides = list(schedule.descend(steps, spacing))
        assert len(strides) == steps
        assert strides[0][0].sigma == schedule.sigma[-1]
        assert (strides[-1][1].alpha, strides[-1][1].sigma) == (1, 0)
        for (_, to), (at, _) in pairwise(strides):
            assert (to.alpha, to.sigma) == (at.alpha, at.sigma)
        assert all(to.log_snr > at.log_snr for at, to in strides)
        assert all(bool((schedule.alpha == at.alpha).any()) for at, _ in strides)


def test_spacings_are_even_in_what_they_name():
    schedule = linear_schedule(1000)

    def starts(spacing: str) -> list[int]:
        return [int((schedule.alpha == at.alpha).nonzero()) for at, _ in schedule.descend(5, spacing)]

    assert starts("uniform") == [999, 799, 599, 399, 199]
    assert starts("quadratic") == [999, 639, 359, 159, 39]
    after_noise = schedule.log_snr[starts("log_snr")[1:]]
    even = (schedule.log_snr[0] + 3) / 5
    torch.testing.assert_close(after_noise.diff(), even.expand(3), rtol=0, atol=0.06)  # the levels are that far apart


@pytest.mark.parametrize("steps", [0, -3, 6])
def test_impossible_steps_name_what_is_possible(steps):
    with pytest.raises(ValueError, match=rf"steps={steps} .* 5 levels allows 1 to 5 steps"):
        vp_schedule(5).descend(steps)


def test_unknown_spacing_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'karras'.*log_snr.*uniform.*quadratic"):
        vp_schedule(5).descend(3, "karras")


def test_levels_in_the_wrong_order_are_refused():
    good = vp_schedule(5)
    with pytest.raises(ValueError, match="must fall"):
        Schedule(good.alpha.flip(0), good.sigma.flip(0))
    with pytest.raises(ValueError, match="at least one level"):
        Schedule(torch.ones(0), torch.ones(0))
