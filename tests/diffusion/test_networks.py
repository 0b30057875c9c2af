import itertools

import pytest
import torch
from torch import nn

from safediffkit.diffusion.denoise import NoiseModel, dpm_solver_2m_step, noise_prediction_loss, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.networks import ResidualMLP, mlp
from safediffkit.diffusion.schedule import NoiseLevel, cosine_schedule, vp_schedule


def lively(*args, **kwargs) -> ResidualMLP:
    """Make a network whose last layer is not zero, so that its inputs show in its output."""
    network = ResidualMLP(*args, **kwargs)
    nn.init.normal_(network.last.weight)
    return network


def test_mlp_has_the_layers_asked_for():
    network = mlp(5, 16, 2, layers=3)
    assert [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)] == [
        (5, 16),
        (16, 16),
        (16, 16),
        (16, 2),
    ]
    assert network(torch.zeros(7, 5)).shape == (7, 2)


def test_it_is_a_noise_model_that_starts_at_zero_velocity():
    x, level = torch.randn(6, 2), vp_schedule(5).level(2)
    velocity, noise = ResidualMLP(2), ResidualMLP(2, predict="noise")
    assert isinstance(velocity, NoiseModel)
    torch.testing.assert_close(velocity(x, level), level.sigma * x)
    torch.testing.assert_close(noise(x, level), torch.zeros(6, 2))


def test_velocity_becomes_noise():
    network, x = lively(2), torch.randn(6, 2)
    level = vp_schedule(5).level(torch.tensor([0, 1, 2, 3, 4, 0]))
    scales = level.like(x)
    with torch.no_grad():
        noise = network(x, level)
        network.predict = "noise"
        velocity = network(x, level)
    clean = (x - scales.sigma * noise) / scales.alpha
    torch.testing.assert_close(velocity, scales.alpha * noise - scales.sigma * clean)


def test_every_subset_of_the_condition_may_be_missing_and_zero_is_not_missing():
    network, x, level = lively(2, 3), torch.randn(1, 2), vp_schedule(5).level(2)
    outputs = []
    for pattern in itertools.product([0.0, 1.0, torch.nan], repeat=3):
        output = network(x, level, torch.tensor([pattern]))
        assert output.isfinite().all()
        outputs.append(output)
    assert torch.pdist(torch.cat(outputs)).min() > 1e-3  # all 27 differ
    torch.testing.assert_close(network(x, level, torch.full((1, 3), torch.nan)), network(x, level, None))


def test_missing_entries_leave_all_gradients_finite():
    network = lively(2, 3)
    condition = torch.tensor([[1.0, torch.nan, 0.0]], requires_grad=True)
    network(torch.randn(1, 2), vp_schedule(5).level(2), condition).sum().backward()
    assert condition.grad is not None
    assert condition.grad.isfinite().all()
    assert condition.grad[0, 1] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_candidates_may_share_a_condition_and_rows_a_level():
    network, x, condition = lively(2, 3), torch.randn(4, 5, 2), torch.randn(4, 1, 3)
    shared = network(x, vp_schedule(5).level(2), condition)
    apart = network(x, vp_schedule(5).level(torch.full((4,), 2)), condition.expand(4, 5, 3))
    torch.testing.assert_close(shared, apart)
    flat = network(x.flatten(0, 1), vp_schedule(5).level(torch.full((20,), 2)), condition.expand(4, 5, 3).flatten(0, 1))
    torch.testing.assert_close(shared.flatten(0, 1), flat)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_ends_of_the_schedule_are_finite(alpha, sigma):
    assert lively(2)(torch.randn(3, 2), NoiseLevel(torch.tensor(alpha), torch.tensor(sigma))).isfinite().all()


def test_the_level_matters():
    network, x, schedule = lively(2, predict="noise"), torch.randn(1, 2), cosine_schedule()
    outputs = network(x.expand(100, 2), schedule.level(torch.arange(100)))
    assert torch.pdist(outputs).min() > 1e-5


@pytest.mark.parametrize(("made", "given"), [(3, 2), (0, 1)])
def test_a_condition_of_the_wrong_width_is_named(made, given):
    with pytest.raises(ValueError, match=f"width {given}.*made for {made}"):
        ResidualMLP(2, made)(torch.zeros(1, 2), vp_schedule(5).level(2), torch.zeros(1, given))


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="predict='score'"):
        ResidualMLP(2, predict="score")


def test_it_learns_a_mixture_with_and_without_its_condition():
    torch.set_default_dtype(torch.float32)
    corners = torch.tensor([[0.6, 0.6], [-0.6, 0.6], [-0.6, -0.6], [0.6, -0.6]])
    network, schedule = ResidualMLP(2, 1, hidden=64), cosine_schedule()
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    for _ in range(1000):
        which = torch.randint(4, (256,))
        clean = corners[which] + 0.05 * torch.randn(256, 2)
        # label 0 is a real label here, as a budget of 0 is
        loss = noise_prediction_loss(network, schedule, clean, which[:, None].float(), forget=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def draw(condition):
        guided = guide(network, clip_clean(-1, 1))
        with torch.no_grad():
            x = sample(guided, schedule, (1000, 2), condition, steps=10, solver=dpm_solver_2m_step)
        distance, nearest = torch.cdist(x, corners).min(1)
        return float((distance < 0.25).float().mean()), nearest.bincount(minlength=4) / 1000

    close, shares = draw(torch.full((1000, 1), torch.nan))
    assert close > 0.9
    assert 0.15 < shares.min() < shares.max() < 0.35
    for label in range(4):
        close, shares = draw(torch.full((1000, 1), float(label)))
        assert close > 0.95
        assert shares[label] > 0.95
