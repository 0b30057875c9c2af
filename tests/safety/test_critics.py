import math

import torch
from torch.nn.functional import silu

from safediffkit.safety.critics import AgentCritics, Critics, conservative_loss, expectile_loss, td_loss


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


def test_conservative_loss_by_hand():
    # [DOM2 Eq. 1]
    # two random actions of value 1 and 1 + log 3: log(e + 3e) = 1 + log 4; twins, two agents, a batch of two
    random = torch.tensor([1.0, 1.0 + math.log(3)])[:, None, None, None].expand(2, 2, 2, 2)
    data = torch.tensor([0.0, 1.0]).expand(2, 2, 2)
    # mean over the batch, sum over twins and agents
    torch.testing.assert_close(conservative_loss(random, data), torch.tensor(4 * (1 + math.log(4) - 0.5)))
    torch.testing.assert_close(conservative_loss(random, data, 0.1), torch.tensor(0.4 * (1 + math.log(4) - 0.5)))


def test_conservatism_pushes_by_softmax_less_share_in_the_data():
    # [DOM2 Eq. 1]
    # three actions in all, each on the list of random ones once; the recorded ones are (0, 0, 1, 2) of a batch of four
    values = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    recorded = torch.tensor([0, 0, 1, 2])
    conservative_loss(values[:, None].expand(3, 4), values[recorded], 2.0).backward()
    torch.testing.assert_close(values.grad, 2 * (values.detach().softmax(0) - torch.tensor([0.5, 0.25, 0.25])))


def test_conservatism_leaves_values_whose_softmax_is_the_data():
    values = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    share = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    conservative_loss(values[:, None].expand(3, 10), values[share]).backward()
    torch.testing.assert_close(values.grad, torch.zeros(3))


def test_conservative_values_of_two_actions_one_of_them_never_tried():
    # [DOM2 Eq. 1]
    # least where 2 (Q_0 - 1) = w (1 - p_0) and p_1 = 0: without weight Q_0 = 1, the untried one falls on and on
    values = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([values], 0.05)
    for _ in range(400):
        gap = td_loss(values[None, :1], torch.ones(1), torch.zeros(1), torch.tensor([False]), 0.9)
        adam.zero_grad()
        (gap + conservative_loss(values[:, None, None], values[None, :1], 0.5)).backward()
        adam.step()
    first, untried = values.detach()
    share = values.detach().softmax(0)[0]
    torch.testing.assert_close(2 * (first - 1), 0.5 * (1 - share), atol=0.01, rtol=0)
    assert untried < first - 2


def test_each_agents_twins_judge_its_own_pair():
    torch.manual_seed(0)
    critics = AgentCritics(obs=3, act=2, agents=3, hidden=8)
    state, action = torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 2)
    values = critics(state, action)
    assert values.shape == (2, 4, 5, 3)
    assert (values[0] - values[1]).abs().min() > 0, "twins must start apart"
    for changed in (
        critics(state + torch.eye(3)[1][:, None], action),
        critics(state, action + torch.eye(3)[1][:, None]),
    ):
        moved = (values - changed).abs()
        assert moved[..., [0, 2]].max() == 0
        assert moved[..., 1].min() > 0
    # twin k of agent j is network k x agents + j
    alone = state[..., 2, :], action[..., 2, :]
    x = torch.cat(alone, -1)
    for k, layer in enumerate([critics.network.network[at] for at in (0, 2, 4)]):
        x = x @ layer.weight[5] + layer.bias[5, 0]
        x = silu(x) if k < 2 else x
    torch.testing.assert_close(values[1, ..., 2], x[..., 0])
