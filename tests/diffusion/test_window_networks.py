"""The three networks for windows: each must do all of this, so that one may stand for another."""

import pytest
import torch
from torch import nn

from safediffkit.diffusion.denoise import NoiseModel, dpm_solver_2m_step, noise_prediction_loss, sample
from safediffkit.diffusion.networks import DiT1D, TemporalUNet, WindowMLP
from safediffkit.diffusion.schedule import NoiseLevel, cosine_schedule, vp_schedule

OBS, HORIZON = 3, 6
SMALL = {
    "dit": (DiT1D, {"hidden": 16, "heads": 2}),
    "unet": (TemporalUNet, {"hidden": 16}),
    "mlp": (WindowMLP, {"hidden": 32}),
}


@pytest.fixture(params=SMALL)
def make(request):
    network, sizes = SMALL[request.param]
    return lambda obs=OBS, horizon=HORIZON, condition=0, **more: network(obs, horizon, condition, **sizes | more)


def lively(network):
    """Move every weight off its zero, as training does, so that all inputs show in the output."""
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network


@pytest.mark.parametrize("condition", [0, 2])
def test_it_is_a_noise_model_whose_output_starts_at_exactly_zero(make, condition):
    x, level = torch.randn(4, HORIZON, OBS), vp_schedule(5).level(2)
    given = torch.randn(4, condition) if condition else None
    network = make(condition=condition)
    assert isinstance(network, NoiseModel)
    assert torch.equal(make(condition=condition, predict="noise")(x, level, given), torch.zeros_like(x))
    assert torch.equal(network(x, level, given), level.sigma * x)  # v = 0


def test_dit_blocks_start_as_the_identity():
    network, tokens = DiT1D(OBS, HORIZON, hidden=16), torch.randn(4, HORIZON, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, torch.randn(4, 1, 16)), tokens)


def test_velocity_becomes_noise(make):
    network, x = lively(make()), torch.randn(5, HORIZON, OBS)
    level = vp_schedule(5).level(torch.arange(5))
    scales = level.like(x)
    noise = network(x, level)
    inner = network.network if isinstance(network, WindowMLP) else network
    inner.predict = "noise"
    velocity = network(x, level)
    clean = (x - scales.sigma * noise) / scales.alpha
    torch.testing.assert_close(velocity, scales.alpha * noise - scales.sigma * clean)


def test_not_given_is_not_zero_after_one_update(make):
    network, schedule = make(condition=1), vp_schedule(5)
    level = schedule.level(2)
    x = torch.randn(32, HORIZON, OBS)
    missing, zero = torch.full((32, 1), torch.nan), torch.zeros(32, 1)
    assert torch.equal(network(x, level, missing), network(x, level, zero))  # untrained: nothing is read yet
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):  # zeroed layers open one after the other
        loss = noise_prediction_loss(network, schedule, x + 1, zero, forget=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert (network(x, level, missing) - network(x, level, zero)).abs().max() > 1e-6
    torch.testing.assert_close(network(x, level, missing), network(x, level, None))


def test_each_entry_of_the_condition_may_be_missing(make):
    network, x, level = lively(make(condition=2)), torch.randn(1, HORIZON, OBS), vp_schedule(5).level(2)
    patterns = [[a, b] for a in (0.0, 1.0, torch.nan) for b in (0.0, 1.0, torch.nan)]
    outputs = torch.cat([network(x, level, torch.tensor([pattern])).flatten(1) for pattern in patterns])
    assert outputs.isfinite().all()
    assert torch.pdist(outputs).min() > 1e-4


def test_several_leading_axes_shared_conditions_and_levels_a_row(make):
    network, x, condition = lively(make(condition=2)), torch.randn(4, 5, HORIZON, OBS), torch.randn(4, 1, 2)
    steps, schedule = torch.tensor([0, 1, 2, 4]), vp_schedule(5)
    together = network(x, schedule.level(steps), condition)
    for world in range(4):
        for plan in range(5):
            alone = network(x[world, plan], schedule.level(int(steps[world])), condition[world, 0])
            torch.testing.assert_close(together[world, plan], alone)
    shared = network(x, schedule.level(2), condition[:1])
    apart = network(x, schedule.level(torch.full((4,), 2)), condition[:1].expand(4, 5, 2))
    torch.testing.assert_close(shared, apart)
    torch.testing.assert_close(
        network(x, schedule.level(2)), network(x, schedule.level(2), torch.full((1, 1, 2), torch.nan))
    )


def test_the_order_of_the_steps_and_every_step_matter(make):
    network, level = lively(make()), vp_schedule(5).level(2)
    x = torch.randn(1, HORIZON, OBS)
    assert not torch.allclose(network(x.flip(1), level).flip(1), network(x, level))
    shaken = x.expand(HORIZON, HORIZON, OBS) + torch.eye(HORIZON)[:, :, None]
    changed = (network(shaken, level) - network(x, level)).abs().amin((1, 2))
    assert (changed > 1e-7).all(), "each step must be seen from every other"


def test_gradients_reach_the_windows(make):
    network, level = lively(make(horizon=4)), vp_schedule(5).level(2)
    assert torch.autograd.gradcheck(lambda x: network(x, level), torch.randn(2, 4, OBS, requires_grad=True))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_ends_of_the_schedule_are_finite(make, alpha, sigma):
    level = NoiseLevel(torch.tensor(alpha), torch.tensor(sigma))
    assert lively(make())(torch.randn(3, HORIZON, OBS), level).isfinite().all()


@pytest.mark.parametrize("horizon", [1, 2, 7, 8])
def test_any_horizon_will_do(make, horizon):
    x = torch.randn(2, horizon, OBS)
    assert lively(make(horizon=horizon))(x, vp_schedule(5).level(2)).shape == x.shape


@pytest.mark.parametrize(("made", "given"), [(3, 2), (0, 1)])
def test_a_condition_of_the_wrong_width_is_named(make, made, given):
    with pytest.raises(ValueError, match=f"width {given}.*made for {made}"):
        make(condition=made)(torch.zeros(1, HORIZON, OBS), vp_schedule(5).level(2), torch.zeros(1, given))


def test_a_window_of_another_size_is_named(make):
    with pytest.raises(ValueError, match=rf"\(1, 5, {OBS}\).*{HORIZON} steps x {OBS} values"):
        make()(torch.zeros(1, 5, OBS), vp_schedule(5).level(2))


def test_impossible_sizes_and_predictions_are_named(make):
    with pytest.raises(ValueError, match="predict='score'"):
        make(predict="score")
    with pytest.raises(ValueError, match=r"heads=3.*hidden=16"):
        DiT1D(OBS, HORIZON, hidden=16, heads=3)
    with pytest.raises(ValueError, match=r"hidden=20.*multiple of 8"):
        TemporalUNet(OBS, HORIZON, hidden=20)


@pytest.mark.parametrize(("kind", "hidden"), [(DiT1D, 32), (TemporalUNet, 16), (WindowMLP, 128)])
def test_it_learns_the_mean_and_spread_of_windows_given_and_not(kind, hidden):
    # lines from 0 whose slope is -1 or 1 by the condition, moved as a whole by N(0, 0.3²); without a condition, both
    torch.set_default_dtype(torch.float32)
    line = torch.linspace(0, 1, HORIZON)[:, None]
    network, schedule, updates = kind(1, HORIZON, condition=1, hidden=hidden), cosine_schedule(), 300
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, updates)
    for _ in range(updates):
        slope = torch.randint(2, (128, 1)) * 2.0 - 1
        clean = slope[..., None] * line + 0.3 * torch.randn(128, 1, 1)
        loss = noise_prediction_loss(network, schedule, clean, slope, forget=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()

    def draw(slope):
        condition = torch.full((600, 1), slope)
        with torch.no_grad():
            x = sample(network, schedule, (600, HORIZON, 1), condition, steps=10, solver=dpm_solver_2m_step)
        return x.mean(0), x.std(0), (x[:, -1] - x[:, 0]).flatten()

    for slope in (-1.0, 1.0):
        mean, spread, slopes = draw(slope)
        torch.testing.assert_close(mean, slope * line, rtol=0, atol=0.1)
        torch.testing.assert_close(spread, torch.full_like(line, 0.3), rtol=0, atol=0.1)
        assert ((slopes - slope).abs() < 0.4).float().mean() > 0.9  # each window moves as a whole
    mean, spread, slopes = draw(torch.nan)
    torch.testing.assert_close(mean, 0 * line, rtol=0, atol=0.2)
    torch.testing.assert_close(spread, (0.3**2 + line**2).sqrt(), rtol=0, atol=0.15)
    assert ((slopes.abs() - 1).abs() < 0.5).float().mean() > 0.8
