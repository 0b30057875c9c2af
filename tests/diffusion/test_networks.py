import itertools

import pytest
import torch
from torch import nn

from safediffkit.diffusion.denoise import NoiseModel, dpm_solver_2m_step, noise_prediction_loss, sample
from safediffkit.diffusion.guidance import clip_clean, guide
from safediffkit.diffusion.networks import PerAgent, ResidualMLP, TemporalUNet, VectorNoise, mlp
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


KINDS = {
    "residual": lambda hidden=8: lively(2, 3, hidden=hidden),
    "unet": lambda hidden=8: moved(VectorNoise("unet", 2, 3, hidden)),
    "mlp": lambda hidden=8: moved(VectorNoise("mlp", 2, 3, hidden)),
}


def moved(network):
    """Move all weights, the zeros of the last layer included."""
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.5)
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [2, torch.tensor([0, 1, 2, 3, 4])])
def test_agents_together_are_their_separate_networks(kind, level):
    separate = [KINDS[kind]() for _ in range(3)]
    together = PerAgent(separate)
    x, condition, level = torch.randn(5, 3, 2), torch.randn(5, 3, 3), vp_schedule(5).level(level)
    condition[0, 0, 1] = torch.nan
    noise = together(x, level, condition)
    apart = torch.stack([each(x[:, j], level, condition[:, j]) for j, each in enumerate(separate)], 1)
    torch.testing.assert_close(noise, apart)
    noise.square().sum().backward()
    apart.square().sum().backward()
    for name, weight in together.network.named_parameters():
        grads = [each.get_parameter(name).grad for each in separate]
        mine = weight.grad.mT if name.endswith("weight") else weight.grad[:, 0]
        torch.testing.assert_close(mine, torch.stack(grads), atol=1e-4, rtol=1e-4)
        assert mine.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_agents_may_share_a_condition_and_candidates_too(kind):
    together = PerAgent([KINDS[kind]() for _ in range(3)])
    x, condition, level = torch.randn(5, 4, 3, 2), torch.randn(5, 1, 1, 3), vp_schedule(5).level(2)
    expected = together(x.flatten(0, 1), level, condition.expand(5, 4, 3, 3).flatten(0, 1))
    torch.testing.assert_close(together(x, level, condition).flatten(0, 1), expected)


def test_agents_of_plain_mlps_take_x_alone():
    separate = [mlp(4, 8, 1) for _ in range(3)]
    x = torch.randn(6, 3, 4)
    apart = torch.stack([each(x[:, j]) for j, each in enumerate(separate)], 1)
    torch.testing.assert_close(PerAgent(separate)(x), apart)
    torch.testing.assert_close(PerAgent([nn.Linear(4, 1, bias=False)])(x[:, :1]).shape, torch.Size([6, 1, 1]))


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(ValueError, match=r"2 networks were given: .* of one shape"):
        PerAgent([mlp(4, 8, 1), mlp(4, 9, 1)])
    with pytest.raises(ValueError, match="0 networks"):
        PerAgent([])
    with pytest.raises(ValueError, match="Conv1d has weights of another kind"):
        PerAgent([TemporalUNet(3, 8, hidden=8)])


@pytest.mark.parametrize("body", ["unet", "mlp"])
def test_the_two_stages_make_a_noise_model_that_starts_at_zero_velocity(body):
    x, level, condition = torch.randn(6, 2), vp_schedule(5).level(2), torch.randn(6, 3)
    network = VectorNoise(body, 2, 3, 8)
    assert isinstance(network, NoiseModel)
    torch.testing.assert_close(network(x, level, condition), level.sigma * x)
    network, scales = moved(network), level.like(x)
    velocity = network.body(x, network.read(scales, condition))
    torch.testing.assert_close(network(x, level, condition), scales.alpha * velocity + scales.sigma * x)
    assert (network(x, level, condition) - network(x, level, condition + 1)).abs().min() > 0
    assert (network(x, level, condition) - network(x, vp_schedule(5).level(3), condition)).abs().min() > 0


@pytest.mark.parametrize(("body", "hidden"), [("net", 8), ("unet", 6)])
def test_an_unknown_body_or_width_is_named(body, hidden):
    with pytest.raises(ValueError, match=f"body='{body}', hidden={hidden}"):
        VectorNoise(body, 2, 3, hidden)
