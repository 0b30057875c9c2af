import torch
from torch.nn.functional import silu

from safediffkit.safety.critics import Critics, expectile_loss, td_loss


def test_batched_critics_equal_separate_networks():
    torch.manual_seed(0)
    critics = Critics(3, 2, critics=4, hidden=8, layers=2)
    s, a = torch.randn(5, 6, 3), torch.randn(5, 6, 2)
    together = critics(s, a)
    assert together.shape == (4, 5, 6)
    for j in range(4):
        x = torch.cat([s, a], -1)
        for k, (w, b) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            x = x @ w[j] + b[j, 0]
            x = silu(x) if k < 2 else x
        torch.testing.assert_close(together[j], x[..., 0])
    assert (together[0] - together[1]).abs().min() > 0, "twins must start apart"


def test_td_loss_by_hand():
    # [SPI Eq. 10, 11]
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0]])  # two critics, two steps
    loss = td_loss(values, torch.tensor([1.0, 1.0]), torch.tensor([10.0, 10.0]), torch.tensor([False, True]), 0.5)
    # targets 6 and 1: critic 0 is off by (5, -1), critic 1 by (6, 1)
    assert loss.item() == ((25 + 1) + (36 + 1)) / 2


def test_sarsa_finds_the_values_of_a_chain():
    # [SPI Eq. 10, 11]
    # s0 -> s1 -> s2 (true end), rewards 1, 2, 4, discount 0.5: values 3, 4, 4; two signals at once
    torch.manual_seed(0)
    s = torch.eye(3)
    a = torch.zeros(3, 1)
    signal = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]])
    end = torch.tensor([False, False, True])
    critics = Critics(3, 1, critics=4, hidden=32, layers=1)
    adam = torch.optim.Adam(critics.parameters(), 0.01)
    for _ in range(800):
        values = critics(s, a).view(2, 2, 3)  # twins, signals, steps
        following = values.detach().amin(0).roll(-1, 1)
        loss = td_loss(values, signal, following, end, 0.5)
        adam.zero_grad()
        loss.backward()
        adam.step()
    expected = torch.tensor([[3.0, 4.0, 4.0], [0.25, 0.5, 1.0]])
    torch.testing.assert_close(critics(s, a).view(2, 2, 3), expected.expand(2, 2, 3), atol=0.02, rtol=0)


def test_the_reverse_expectile_of_two_equally_likely_values():
    # least at 0.9 of the way to the lesser one
    value = torch.tensor(0.9 * -1 + 0.1 * 2, requires_grad=True)
    (slope,) = torch.autograd.grad(expectile_loss(torch.tensor([2.0, -1.0]) - value, 0.1), value)
    torch.testing.assert_close(slope, torch.tensor(0.0))
    apart = [expectile_loss(torch.tensor([2.0, -1.0]) - at, 0.1) for at in (-0.8, -0.7, -0.6)]
    assert apart[1] < min(apart[0], apart[2])
