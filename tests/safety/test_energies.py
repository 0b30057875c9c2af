import math

import pytest
import torch

from safediffkit.diffusion.denoise import denoise, dpm_solver_2m_step
from safediffkit.diffusion.guidance import classifier, guide
from safediffkit.diffusion.schedule import NoiseLevel, cosine_schedule, vp_schedule
from safediffkit.safety.energies import Energy, contrastive_loss, follow_energy, regression_loss

SCHEDULE = cosine_schedule(100)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def fit(loss, updates=900, **sizes):
    """Train an energy of scalars on `loss(energy)`."""
    energy = Energy(1, **{"hidden": 64, **sizes})
    optimizer = torch.optim.Adam(energy.parameters(), 1e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        loss(energy).backward()
        optimizer.step()
        cycle.step()
    return energy


def slope(log_prob, x, level):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x, level).sum(), x)[0]


def unit_gaussian(x, level, condition=None):
    return level.like(x).sigma * x  # alpha² + sigma² = 1


# The case that tells the two apart: x ~ N(0, 1), R = -(x - 2)² / 2, beta 1. Then x_0 given x_k is N(alpha x, sigma²).


def reward(x):
    return -((x - 2) ** 2) / 2


def exact_energy(x, level):
    level = level.like(x)
    return (-((level.alpha * x - 2) ** 2) / (2 * (1 + level.sigma**2))).sum(-1)


def exact_regression(x, level):
    return reward(level.like(x).alpha * x).sum(-1)  # but for -sigma² / 2, which has no slope


def guided_mean_and_spread(log_prob):
    """Sample from quantiles of noise, which shows mean and spread without chance."""
    x = torch.special.ndtri((torch.arange(1000) + 0.5) / 1000)[:, None]
    with torch.no_grad():
        *_, last = denoise(guide(unit_gaussian, classifier(log_prob)), SCHEDULE, x, steps=50, solver=dpm_solver_2m_step)
    return float(last.mean()), float(last.std())


def test_exact_energy_tilts_a_gaussian_exactly_and_the_regressed_one_does_not():
    # N(0, 1) exp(R) is N(1, 1/2)
    assert guided_mean_and_spread(exact_energy) == pytest.approx((1.0, math.sqrt(0.5)), abs=5e-3)
    assert guided_mean_and_spread(exact_regression) == pytest.approx((1.450, 0.607), abs=5e-3)


def test_trained_energies_do_as_the_exact_ones():
    def contrastive(energy):
        x = torch.randn(16, 32, 1)
        return contrastive_loss(energy, SCHEDULE, x, reward(x)[..., 0])

    def regression(energy):
        x = torch.randn(512, 1)
        return regression_loss(energy, SCHEDULE, x, reward(x)[..., 0])

    mean, spread = guided_mean_and_spread(follow_energy(fit(contrastive, updates=600)))
    assert (mean, spread) == pytest.approx((1.0, math.sqrt(0.5)), abs=0.06)
    mean, spread = guided_mean_and_spread(follow_energy(fit(regression, updates=600)))
    assert (mean, spread) == pytest.approx((1.450, 0.607), abs=0.1)


@pytest.mark.parametrize("log_odds", [1.0, -2.0])
def test_a_contrastive_energy_has_the_exact_slope_on_two_points(log_odds):
    # x_0 is -1 or 1, evenly, weighing 1 and e^b: log E[weight | x_k] = log(1 + p (e^b - 1)), p = P(1 | x_k)
    def draw(*shape):
        return torch.randint(2, shape) * 2.0 - 1

    def loss(energy):
        x = draw(16, 32, 1)
        return contrastive_loss(energy, SCHEDULE, x, log_odds * (x[..., 0] > 0))

    def exact(x, level):
        level = level.like(x)
        share = torch.sigmoid(2 * level.alpha * x / level.sigma**2)
        return torch.log1p(share * math.expm1(log_odds)).sum(-1)

    energy = fit(loss)
    for k in (40, 60, 80):  # points a spread of 1.3, 0.7 and 0.3 from the middle
        level = SCHEDULE.level(k)
        x = level.alpha * draw(500, 1) + level.sigma * torch.randn(500, 1)
        expected = slope(exact, x, level)
        error = (slope(follow_energy(energy), x, level) - expected).square().mean().sqrt()
        assert error < 0.25 * expected.square().mean().sqrt(), f"level {k}"


def test_a_contrastive_energy_tilts_the_weights_of_a_mixture():
    # halves at -2 and 2, spread 0.3, where the right one weighs e^1.5: 0.818 of the tilted mixture
    means, spread, log_odds = torch.tensor([-2.0, 2.0]), 0.3, 1.5

    def mixture(x, level, condition=None):
        level = level.like(x)
        variance = level.alpha**2 * spread**2 + level.sigma**2
        away = x - level.alpha * means  # rows x 2
        share = (-(away**2) / (2 * variance)).softmax(-1)
        return level.sigma * (share * away).sum(-1, keepdim=True) / variance

    def loss(energy):
        x = means[torch.randint(2, (16, 32, 1))] + spread * torch.randn(16, 32, 1)
        return contrastive_loss(energy, SCHEDULE, x, log_odds * (x[..., 0] > 0))

    x = torch.special.ndtri((torch.arange(2000) + 0.5) / 2000)[:, None]
    shares = []
    for guided in (mixture, guide(mixture, classifier(follow_energy(fit(loss))))):
        with torch.no_grad():
            *_, last = denoise(guided, SCHEDULE, x, steps=50, solver=dpm_solver_2m_step)
        assert ((last.abs() - 2).abs() < 1).float().mean() > 0.97  # on the modes, not between them
        shares.append(float((last > 0).float().mean()))
    assert shares == pytest.approx([0.5, math.exp(1.5) / (1 + math.exp(1.5))], abs=0.03)


def test_an_energy_obeys_its_condition_and_knows_none_from_zero():
    # the weight is exp(c x) for c of -1 and 0, and exp(x) where no c is given: at clean data the slope is that factor
    choices = torch.tensor([-1.0, 0.0, torch.nan])

    def loss(energy):
        x, c = torch.randn(16, 32, 1), choices[torch.randint(3, (16, 1))]
        return contrastive_loss(energy, SCHEDULE, x, c.nan_to_num(1.0) * x[..., 0], c)

    energy = fit(loss, updates=500, condition=1)
    x = torch.linspace(-1, 1, 5)[:, None]
    slopes = [float(slope(follow_energy(energy, c.expand(1, 1)), x, SCHEDULE.level(0)).mean()) for c in choices]
    assert slopes == pytest.approx([-1, 0, 1], abs=0.15)


def test_losses_by_hand_and_one_level_a_group():
    energy, seen = Energy(2, condition=1), []
    energy.requires_grad_(False)
    for weight in energy.rest.parameters():
        torch.nn.init.zeros_(weight)
    energy.register_forward_pre_hook(lambda _, given: seen.append(given))
    schedule, log_weight = vp_schedule(5), torch.tensor([[0.0, 1, 2], [3, 1, 2]])
    x, condition = torch.zeros(2, 3, 2), torch.zeros(2, 1)
    # an energy that tells nothing is as good as a draw among three
    assert float(contrastive_loss(energy, schedule, x, log_weight, condition)) == pytest.approx(math.log(3))
    assert float(regression_loss(energy, schedule, x[0], log_weight[1])) == pytest.approx((9 + 1 + 4) / 3)
    (noisy, group_level, given), (_, row_level, _) = seen
    assert noisy.shape == (2, 3, 2)
    assert group_level.alpha.shape == (2,)
    assert given.shape == (2, 1, 1)
    assert row_level.alpha.shape == (3,)


def test_the_contrastive_loss_is_the_cross_entropy_of_the_candidates():
    energy, schedule = Energy(1), vp_schedule(2)
    values = torch.tensor([[0.5, -1.0, 2.0]])
    energy.forward = lambda x, level, condition=None: values
    log_weight = torch.tensor([[1.0, 0.0, 3.0]])
    labels = log_weight.exp() / log_weight.exp().sum()
    expected = float(-(labels * (values.exp() / values.exp().sum()).log()).sum())
    assert float(contrastive_loss(energy, schedule, torch.zeros(1, 3, 1), log_weight)) == pytest.approx(expected)
    # what is common to a group does not matter
    shifted = contrastive_loss(energy, schedule, torch.zeros(1, 3, 1), log_weight + 7)
    assert float(shifted) == pytest.approx(expected)


def test_the_slope_vanishes_with_the_signal():
    energy, x = Energy(3), torch.randn(5, 3)
    nothing, half = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0)), SCHEDULE.level(50)
    assert torch.equal(slope(energy, x, nothing), torch.zeros(5, 3))
    assert (slope(energy, x, half) != 0).all()


def test_windows_plans_and_conditions_are_lined_up():
    energy, level = Energy(6, condition=2), vp_schedule(5).level(2)
    x, condition = torch.randn(4, 5, 3, 2), torch.randn(4, 1, 2)  # 4 worlds, 5 plans, windows of 3 x 2
    together = follow_energy(energy, condition)(x, level)
    assert together.shape == (4, 5)
    for world in range(4):
        alone = energy(x[world].flatten(-2), level, condition[world])
        torch.testing.assert_close(together[world], alone)
    torch.testing.assert_close(follow_energy(energy, condition)(x.flatten(-2), level), together)
    torch.testing.assert_close(
        follow_energy(energy, condition[0, 0])(x, level), energy(x.flatten(-2), level, condition[:1].expand(4, 5, 2))
    )
    rows = vp_schedule(5).level(torch.arange(4))
    torch.testing.assert_close(
        follow_energy(energy, condition)(x, rows)[3], energy(x[3].flatten(-2), vp_schedule(5).level(3), condition[3])
    )


@pytest.mark.parametrize(("made", "given"), [(3, 2), (0, 1)])
def test_a_condition_of_the_wrong_width_is_named(made, given):
    with pytest.raises(ValueError, match=f"width {given}.*made for {made}"):
        Energy(2, made)(torch.zeros(1, 2), vp_schedule(5).level(2), torch.zeros(1, given))
