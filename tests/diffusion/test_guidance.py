import math
from itertools import pairwise

import pytest
import torch

from safediffkit.diffusion.denoise import dpm_solver_2m_step, predict_clean, sample
from safediffkit.diffusion.guidance import classifier, classifier_free, clip_clean, guide
from safediffkit.diffusion.schedule import NoiseLevel, Schedule, cosine_schedule, vp_schedule

MEAN, SPREAD = 0.7, 0.5


def fine_schedule(levels: int) -> Schedule:
    log_snr = torch.linspace(7, -7, levels)
    return Schedule(torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt())


def test_classifier_turns_a_prior_into_the_posterior(gaussian):
    # a reading y of x_0 with error r: the posterior of a Gaussian is the Gaussian of added precisions
    y, r = -0.4, 0.3

    def log_prob(x, level):
        level = level.like(x)
        gain = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)
        expected = MEAN + gain * (x - level.alpha * MEAN)
        spread = SPREAD**2 * (1 - gain * level.alpha)
        return (-((y - expected) ** 2) / (2 * (r**2 + spread))).sum(-1)

    precision = 1 / SPREAD**2 + 1 / r**2
    exact = gaussian((MEAN / SPREAD**2 + y / r**2) / precision, precision**-0.5)
    guided = guide(gaussian(MEAN, SPREAD), classifier(log_prob))
    schedule, x = cosine_schedule(), torch.randn(100, 2)
    level = schedule.level(torch.arange(100))
    torch.testing.assert_close(guided(x, level, None), exact(x, level), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_classifier_tilts_the_mean_exactly(gaussian, weight):
    # exp(w b x_0) moves the mean of N(m, s²) to m + w b s²
    b = 1.5

    def log_prob(x, level):
        level = level.like(x)
        gain = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)
        return b * (gain * x).sum(-1)

    guided = guide(gaussian(MEAN, SPREAD), classifier(log_prob, weight))
    with torch.no_grad():
        torch.manual_seed(1)
        ours = sample(guided, cosine_schedule(), (50, 2), steps=10)
        torch.manual_seed(1)
        exact = sample(gaussian(MEAN + weight * b * SPREAD**2, SPREAD), cosine_schedule(), (50, 2), steps=10)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


def test_gradients_flow_through_the_classifier_to_x_and_to_its_weights(gaussian):
    level = vp_schedule(5).level(2)
    slope = torch.tensor(0.8, requires_grad=True)

    def log_prob(x, level):
        return (slope * x**3).sum(-1)

    guided = guide(gaussian(MEAN, SPREAD), classifier(log_prob))
    assert torch.autograd.gradcheck(lambda x: guided(x, level, None), torch.randn(3, 2, requires_grad=True))
    x = torch.randn(3, 2)
    (gradient,) = torch.autograd.grad(guided(x, level, None).sum(), slope)
    torch.testing.assert_close(gradient, -level.sigma * 3 * x.square().sum())
    assert not x.requires_grad


class Recorder:
    """Noise model of N(y, spread(y)) that notes its calls; NaN for y means N(0, spread_none)."""

    def __init__(self, gaussian, spread=SPREAD, spread_none=SPREAD):
        self.gaussian, self.spreads, self.calls = gaussian, (spread, spread_none), []

    def __call__(self, x, level, condition):
        self.calls.append((len(x), condition))
        none = condition.isnan()
        following = self.gaussian(condition.where(~none, 0), self.spreads[0])(x, level)
        return self.gaussian(0.0, self.spreads[1])(x, level).where(none, following)


@pytest.mark.parametrize("weight", [-1.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("leading", [(5,), (5, 3)])
def test_classifier_free_is_exact_for_equal_spreads_and_calls_once(gaussian, weight, leading):
    model, y, x = Recorder(gaussian), torch.randn(*leading, 2), torch.randn(*leading, 2)
    guided = guide(model, classifier_free(weight))
    schedule = vp_schedule(5)
    for level in (schedule.level(3), schedule.level(torch.arange(5))):
        model.calls.clear()
        torch.testing.assert_close(guided(x, level, y), gaussian(weight * y, SPREAD)(x, level), rtol=0, atol=1e-12)
        assert [rows for rows, _ in model.calls] == [10]


def test_classifier_free_takes_one_condition_for_all_rows(gaussian):
    guided = guide(Recorder(gaussian), classifier_free(2.0))
    x, y, level = torch.randn(5, 2), torch.randn(1, 2), vp_schedule(5).level(3)
    torch.testing.assert_close(guided(x, level, y), guided(x, level, y.expand(5, 2)))


@pytest.mark.parametrize(("weight", "given"), [(1, True), (0, False)])
def test_weights_one_and_zero_call_one_side_only(gaussian, weight, given):
    model, y, x = Recorder(gaussian), torch.randn(5, 2), torch.randn(5, 2)
    level = vp_schedule(5).level(3)
    guided = guide(model, classifier_free(weight))(x, level, y)
    ((rows, condition),) = model.calls
    assert rows == 5
    assert torch.equal(guided, gaussian(y if given else 0.0, SPREAD)(x, level))
    assert torch.equal(condition, y) if given else condition.isnan().all()


def test_classifier_free_without_a_condition_is_the_plain_model(gaussian):
    model, x, level = gaussian(MEAN, SPREAD), torch.randn(5, 2), vp_schedule(5).level(3)
    assert torch.equal(guide(model, classifier_free(3.0))(x, level, None), model(x, level))


def test_classifier_free_on_unequal_spreads_is_not_the_tilted_density(gaussian):
    # spreads 1 and 0.5, weight 2: the flow multiplies spreads, 0.5² / 1; the density p(x) (p(x|y) / p(x))² has 0.378
    guided = guide(Recorder(gaussian, spread=0.5, spread_none=1.0), classifier_free(2.0))

    def spread(levels: int) -> float:
        schedule, y = fine_schedule(levels), torch.zeros(1, 1)
        x = torch.ones(1, 1)
        for at, to in schedule.descend(levels, "uniform"):
            noise = guided(x, at, y)
            x = to.like(x).alpha * predict_clean(x, noise, at) + to.like(x).sigma * noise
        return float(x)

    errors = [spread(levels) - 0.25 for levels in (100, 200, 400)]
    assert abs(2 * errors[-1] - errors[-2]) < 2e-4  # the limit, with the first-order error taken out
    assert all(abs(late) < 0.6 * abs(early) for early, late in pairwise(errors))
    assert 1 / math.sqrt(2 / 0.5**2 - 1) == pytest.approx(0.378, abs=1e-3)


def test_clip_clean_keeps_the_implied_clean_x_in_its_box():
    level = cosine_schedule(5).level(torch.arange(5))
    clean, noise = 3 * torch.randn(5, 4), torch.randn(5, 4)
    x = level.like(clean).alpha * clean + level.like(clean).sigma * noise

    def exact(x, level, condition):
        return noise

    for low, high in ((-1.0, 1.0), (torch.tensor([-1.0, -2, -3, 0]), torch.tensor([1.0, 2, 3, 0.5]))):
        guided = guide(exact, clip_clean(low, high))(x, level, None)
        boxed = clean.clamp(torch.as_tensor(low), torch.as_tensor(high))
        assert not torch.equal(boxed, clean)
        torch.testing.assert_close(predict_clean(x, guided, level), boxed, rtol=0, atol=1e-9)
        inside = boxed == clean
        torch.testing.assert_close(guided[inside], noise[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipped_samples_end_in_the_box(gaussian, dtype):
    torch.set_default_dtype(dtype)
    guided = guide(gaussian(0.9, 2.0), clip_clean(-1.0, 1.0))
    for solver in (dpm_solver_2m_step, None):
        x = sample(guided, cosine_schedule(), (500, 2), steps=10, **({"solver": solver} if solver else {}))
        assert x.abs().max() <= 1 + 1e-5
        assert (x.abs() > 0.999).any()


def test_the_last_guidance_has_the_last_word(gaussian):
    x, level = torch.randn(50, 2), vp_schedule(5).level(2)

    def push(x, level):
        return 5 * x.sum(-1)

    clipped_last = guide(gaussian(0.0, 1.0), classifier(push), clip_clean(-1, 1))(x, level, None)
    clipped_first = guide(gaussian(0.0, 1.0), clip_clean(-1, 1), classifier(push))(x, level, None)
    assert predict_clean(x, clipped_last, level).abs().max() <= 1 + 1e-12
    assert predict_clean(x, clipped_first, level).abs().max() > 1.5
    model = gaussian(0.0, 1.0)
    assert guide(model) is model
    assert isinstance(level, NoiseLevel)
