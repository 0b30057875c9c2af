import subprocess
import sys

import pytest
import torch

from safediffkit.data.reshape import conditional_quantile, draw_within_budget

COSTS = torch.tensor([5.0, 0.0, 2.0, 2.0, 9.0])
BUDGETS = torch.tensor([0.0, 2.0, 5.0, 6.0])  # satisfied by 1, 3, 4 and 4 windows


def draws(costs=COSTS, budgets=BUDGETS, size=40_000, seed=0):
    return draw_within_budget(costs, budgets, size, torch.Generator().manual_seed(seed))


def frequencies(window, budget):
    """How often each window was drawn under each budget."""
    return torch.stack([torch.bincount(window[budget == b], minlength=len(COSTS)) / len(window) for b in BUDGETS])


def test_draws_follow_the_closed_form():
    # p(b) = 1 / 4, p(window | b) = 1 / (windows within b)
    within = (BUDGETS[:, None] >= COSTS).double()
    expected = within / within.sum(1, keepdim=True) / 4
    assert (frequencies(*draws()) - expected).abs().max() < 0.01  # four times the spread of a count


def test_one_random_budget_for_each_window_is_another_distribution():
    # the biased relabelling: p(b | window) uniform makes p(window | b = 6) = (1/2, 1/4, 1/3, 1/3) / (17/12)
    draw = torch.Generator().manual_seed(0)
    window = torch.randint(4, (40_000,), generator=draw)  # none of the budgets admits window 4
    admitted = COSTS[window, None] <= BUDGETS
    budget = BUDGETS[torch.multinomial(admitted.double(), 1, generator=draw)[:, 0]]
    biased = frequencies(window, budget)[3]
    expected = torch.tensor([6.0, 3.0, 4.0, 4.0, 0.0]) / 17
    assert (biased / biased.sum() - expected).abs().max() < 0.02
    unbiased = frequencies(*draws())[3]
    assert (unbiased / unbiased.sum() - torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]) / 4).abs().max() < 0.02


def test_the_order_of_the_windows_does_not_matter():
    order = COSTS.argsort(stable=True)
    window, budget = draws()
    sorted_window, sorted_budget = draws(COSTS[order])
    assert torch.equal(budget, sorted_budget)
    assert torch.equal(COSTS[window], COSTS[order][sorted_window])


def test_budgets_that_nothing_satisfies_are_never_drawn():
    window, budget = draws(budgets=torch.tensor([-1.0, 0.0]), size=100)
    assert budget.unique().tolist() == [0.0]
    assert window.unique().tolist() == [1]
    with pytest.raises(ValueError, match="within any of the budgets: the cheapest of 5 costs 0"):
        draws(budgets=torch.tensor([-1.0]))


def test_a_seeded_generator_decides_the_draws_and_leaves_the_global_one_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, again, other = draws(size=50), draws(size=50), draws(size=50, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])


def test_quantiles_are_mid_ranks_among_the_windows_within():
    values = torch.tensor([30.0, 10.0, 20.0, 20.0, 5.0])
    quantiles = conditional_quantile(values, COSTS, 5.0)
    assert quantiles[:4].tolist() == [7 / 8, 1 / 8, 4 / 8, 4 / 8]  # the two 20s share ranks 1 and 2 of 4
    assert quantiles[4].isnan()  # not within: it has no rank there
    assert conditional_quantile(values, COSTS, 0.0)[1] == 0.5  # alone: better than half of itself


@pytest.mark.parametrize("change", [torch.exp, lambda v: 100 * v - 3, lambda v: v.abs().sqrt() * v.sign()])
def test_quantiles_do_not_feel_increasing_maps(change):
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    costs = torch.arange(200.0)
    expected = conditional_quantile(values, costs, 149.0)
    assert torch.equal(conditional_quantile(change(values), costs, 149.0)[:150], expected[:150])
    assert expected[:150].mean().item() == pytest.approx(0.5)  # mid-ranks always average to a half


def test_quantiles_do_not_feel_windows_beyond_the_budget():
    values, costs = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 5.0])
    low = conditional_quantile(values, costs, 1.0)
    values[2] = -7.0
    assert torch.equal(conditional_quantile(values, costs, 1.0)[:2], low[:2])


def test_quantiles_within_a_budget_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at most -1: the cheapest of 5 costs 0"):
        conditional_quantile(COSTS, COSTS, -1.0)


def test_the_module_still_needs_no_torch_to_import():
    code = "import sys, safediffkit.data.reshape as r; r.draw_within_budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
