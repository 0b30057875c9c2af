import math

import pytest
import torch

from safediffkit.data.dataset import Dataset
from safediffkit.safety.barriers import stopping_margin
from safediffkit.safety.certificate import Grid, certify_on_grid, verify


def one_cell(*pushes, short=0.0, apart=9.0):
    """Certify h(s) = s - short on [1, 3] for s' = s / 2 + a, with slope dt = 1/2: h gains a - short / 2 in it."""
    return certify_on_grid(
        lambda s: s[..., 0] - short, lambda s, a: s / 2 + a, Grid((1.0,), (3.0,), (1,)), 1.0,
        actions=torch.tensor(pushes)[:, None], distance=lambda s: s[..., 0] - 2 + apart,
        dt=0.5, slope=1.0, dynamics_lipschitz=0.5,
    )  # fmt: skip


def test_slack_by_hand():
    # [CBF Eq. 3]: the cell's radius is 1, so the gain may be 1/2 + 1/2 less elsewhere in it, h and the distance 1 less
    assert one_cell(1.0).outcome == "certified"
    assert one_cell(-5.0, 1.0).outcome == "certified", "one action is enough"
    assert one_cell(0.999).outcome == "undecided"
    assert one_cell(0.0).outcome == "undecided"
    assert one_cell(-0.001).outcome == "refuted"
    assert one_cell(1.0, apart=1.0).outcome == "certified"
    assert one_cell(1.0, apart=0.999).outcome == "undecided"
    assert one_cell(1.0, apart=-0.001).outcome == "refuted"
    # where h < 0 all over the cell, nothing is asked
    assert one_cell(-9.0, short=3.001, apart=-9.0).outcome == "certified"
    assert one_cell(-9.0, short=2.999, apart=-9.0).outcome == "undecided"
    assert one_cell(-9.0, short=2.0).outcome == "refuted", "h = 0 is safe"


def test_leaving_by_hand():
    # the next state, 1 + a in the midpoint, is up to 1/2 off; the box ends at 3
    assert not one_cell(1.5).leaves.any()
    assert one_cell(1.501).leaves.all()
    assert one_cell(0.5, 1.501).leaves.all(), "the action that stays does not certify"
    assert not one_cell(1.0, 9.0).leaves.any()
    assert not one_cell(9.0, short=4.0).leaves.any()


BRAKING, DT, SLOPE = 2.0, 0.5, 0.5


def first(state):
    return state[..., 0]


def record(paths, costs):
    """Give episodes from their states, one more than the costs of each."""
    states, costs = torch.tensor(paths)[..., None], torch.tensor(costs)
    episodes, steps = costs.shape
    return Dataset(
        observations=states[:, :-1].reshape(-1, 1),
        actions=torch.zeros(episodes * steps, 1),
        rewards=torch.zeros(episodes * steps),
        costs=costs.flatten(),
        next_observations=states[:, 1:].reshape(-1, 1),
        terminated=torch.zeros(episodes * steps, dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="made for a test",
    )


# h(s) = s, slope 1, dt 0.5: a step may not lose more than half of h
PATHS = [[4.0, 3.0, 1.0], [-1.0, 2.0, 2.0], [8.0, 3.0, 0.5], [1.0, 0.5, 0.5]]
COSTS = [[0.0, 0], [0, 0], [0, 1], [0, 0]]


def test_verification_counts_by_hand():
    # [CBF Eq. 7]
    seen = verify(first, record(PATHS, COSTS), dt=0.5, slope=1.0, lookahead=5)
    # the third episode runs into danger, so its start is none
    assert (seen["start"].violated, seen["start"].of) == (1, 3)
    assert seen["start"].states.tolist() == [[-1]]
    # its last state, which no row begins with, is the only dangerous one, and h is 0.5 there
    assert (seen["danger"].violated, seen["danger"].of) == (1, 1)
    assert seen["danger"].states.tolist() == [[0.5]]
    # 3 -> 1, 8 -> 3 and 3 -> 0.5 lose too much; -1 is not asked
    assert (seen["derivative"].violated, seen["derivative"].of) == (3, 7)
    assert seen["derivative"].states.tolist() == [[3], [8], [3]]
    assert seen["derivative"].share == 3 / 7
    # of these 8 -> 3 and 3 -> 0.5 lead to danger
    assert (seen["derivative_safe"].violated, seen["derivative_safe"].of) == (1, 5)
    assert seen["derivative_safe"].states.tolist() == [[3]]


def test_verification_by_episode():
    seen = verify(first, record(PATHS, COSTS), dt=0.5, slope=1.0, lookahead=5, each="episode")
    assert (seen["derivative"].violated, seen["derivative"].of) == (2, 4)
    assert len(seen["derivative"].states) == 3
    assert (seen["start"].violated, seen["start"].of) == (1, 3)


def test_intervals_are_exact():
    def interval(h, confidence=0.95):
        starts = [[float(j + 1), 0.0] for j in range(10)]
        return verify(h, record(starts, [[0.0]] * 10), dt=0.5, slope=1.0, confidence=confidence)["start"]

    # Clopper and Pearson's ends have closed forms at none, at all, and at one of n
    none = interval(first)
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.025**0.1))
    every = interval(lambda s: -first(s))
    assert (every.low, every.high) == (pytest.approx(0.025**0.1), 1)
    one = interval(lambda s: first(s) - 1.5, confidence=0.9)
    assert one.violated == 1
    assert one.low == pytest.approx(1 - 0.95**0.1)
    below = sum(math.comb(10, k) * one.high**k * (1 - one.high) ** (10 - k) for k in range(2))
    assert below == pytest.approx(0.05)


def test_what_was_never_tested_has_no_share():
    seen = verify(lambda s: first(s) - 99, record(PATHS, [[0.0, 0]] * 4), dt=0.5, slope=1.0)
    for name in ("danger", "derivative"):
        assert seen[name].of == 0
        assert math.isnan(seen[name].share)
        assert (seen[name].low, seen[name].high) == (0, 1)
        assert seen[name].states.shape == (0, 1)


def test_nan_breaks_every_condition():
    seen = verify(lambda s: first(s) * torch.nan, record(PATHS, COSTS), dt=0.5, slope=1.0)
    assert [(count.violated, count.of) for count in seen.values()] == [(3, 3), (1, 1), (8, 8), (6, 6)]


def test_verification_refuses_nonsense():
    with pytest.raises(ValueError, match=r"0\.95 for example"):
        verify(first, record(PATHS, COSTS), dt=0.5, slope=1.0, confidence=95.0)


def test_a_grid_by_hand():
    grid = Grid((0.0, -1.0), (2.0, 1.0), (2, 1))
    assert grid.centres().tolist() == [[0.5, 0], [1.5, 0]]
    assert grid.radius() == pytest.approx(math.sqrt(1 + 4) / 2)
    assert Grid((0.0,), (1.0,), (4,)).centres()[:, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(ValueError, match="one of each"):
        Grid((0.0,), (1.0, 1.0), (2,))
    with pytest.raises(ValueError, match="must lie below"):
        Grid((1.0,), (0.0,), (2,))


def cart(state, action):
    """Move exactly for DT seconds under a constant force; position in m, speed in m/s, the wall at 0."""
    x, v = state.unbind(-1)
    a = action[..., 0]
    return torch.stack([x + v * DT + a * DT**2 / 2, v + a * DT], -1)


CART_LIPSCHITZ = torch.linalg.matrix_norm(torch.tensor([[1.0, DT], [0.0, 1.0]]), 2).item()


def room_to_stop(braking, clearance):
    # its slope is at most (1, v / braking), and no cart here is faster than 1 m/s
    return lambda s: stopping_margin(s[..., 0], -s[..., 1], braking, clearance), math.hypot(1, 1 / braking)


def certify(h, lipschitz, cells, forces=(-BRAKING, 0.0, BRAKING), **settings):
    return certify_on_grid(
        h,
        cart,
        Grid((-0.5, -1.0), (2.0, 1.0), cells),
        lipschitz,
        actions=torch.tensor(forces)[:, None],
        distance=first,
        **{"dt": DT, "slope": SLOPE, "dynamics_lipschitz": CART_LIPSCHITZ} | settings,
    )


def test_a_true_barrier_is_certified_on_a_fine_grid():
    # it counts on less than the brakes can do, and so has some slack everywhere
    h, lipschitz = room_to_stop(BRAKING / 2, 0.2)
    found = certify(h, lipschitz, (125, 100))
    assert found.outcome == "certified"
    assert found.certified.all()
    assert len(found.counterexamples()) == 0
    # whatever it calls safe lies in the viability kernel, position >= v² / (2 b)
    x, v = found.grid.centres().unbind(-1)
    kernel = x >= v.clamp_max(0).square() / (2 * BRAKING)
    safe = h(found.grid.centres()) >= 0
    assert kernel[safe].all()
    assert safe.sum() > 0.8 * kernel.sum()
    # no cart on its way to the wall needs to leave the box, but some that drive off do
    assert found.leaves.any()
    assert not (found.leaves & (v < -0.05) & (x < 1.5)).any()
    # near the wall and fast, it brakes
    assert (found.action[safe & (x < 0.8) & (v < -0.6)] == BRAKING).all()


def test_a_rash_barrier_is_refuted_by_states_that_are_lost():
    h, lipschitz = room_to_stop(4 * BRAKING, 0.0)
    found = certify(h, lipschitz, (50, 40), slope=1 / DT)
    assert found.outcome == "refuted"
    lost = found.counterexamples()
    assert len(lost) > 5
    x, v = lost.unbind(-1)
    assert (h(lost) >= 0).all()
    assert (x < v.square() / (2 * BRAKING)).all(), "outside of the viability kernel"
    for force in (-BRAKING, 0.0, BRAKING):
        assert (cart(lost, torch.full((len(lost), 1), force))[:, 0] < 0).all(), "beyond the wall, whatever it does"
    # with a gentler slope more states break the condition, some of which are not lost: h falls too fast there
    gentle = certify(h, lipschitz, (50, 40)).counterexamples()
    x, v = gentle.unbind(-1)
    assert len(gentle) > len(lost)
    assert (x >= v.square() / (2 * BRAKING)).any()


def test_calling_danger_safe_is_refuted():
    found = certify(lambda s: s[..., 0] + 0.3, 1.0, (50, 40), forces=(-3.0, 0.0, 3.0, 99.0))
    assert found.outcome == "refuted"
    x = found.counterexamples()[:, 0]
    assert (x >= -0.3).all()
    assert (x < 0).all()


def test_a_coarse_grid_cannot_decide():
    h, lipschitz = room_to_stop(BRAKING / 2, 0.2)
    found = certify(h, lipschitz, (10, 8))
    assert found.outcome == "undecided"
    assert found.undecided.any()
    assert not found.refuted.any()
    assert torch.equal(found.certified ^ found.undecided, torch.ones(80, dtype=torch.bool))
    # nor can a fine one with too large a bound
    assert certify(h, 20 * lipschitz, (50, 40)).outcome == "undecided"


def test_the_whole_kernel_cannot_be_certified():
    # on its rim full braking keeps h just so, without any slack: neither proof nor counterexample
    h, lipschitz = room_to_stop(BRAKING, 0.0)
    found = certify(h, lipschitz, (125, 100))
    assert found.outcome == "undecided"
    near = h(found.grid.centres()[found.undecided])
    assert near.min() < 0 < near.max()
    assert near.max() < 0.3


def test_cells_are_certified_for_all_of_their_states():
    # random states of certified cells, most of them no midpoints, keep the condition with one of the forces
    h, lipschitz = room_to_stop(BRAKING / 2, 0.2)
    found = certify(h, lipschitz, (30, 24))
    torch.manual_seed(0)
    centres = found.grid.centres()[found.certified]
    state = (centres + (torch.rand(40, *centres.shape) - 0.5) * found.grid.sizes()).flatten(0, 1)
    state = state[h(state) >= 0]
    best = torch.stack([h(cart(state, torch.full((len(state), 1), a))) for a in (-BRAKING, 0.0, BRAKING)]).amax(0)
    assert len(state) > 1000
    assert (best >= (1 - SLOPE * DT) * h(state)).all()
    assert (state[:, 0] >= 0).all()


def test_a_closed_world_never_leaves():
    # |s| <= 1 is kept by going home, and stays inside of the box
    grid = Grid((-1.5,), (1.5,), (60,))
    found = certify_on_grid(
        lambda s: 1 - s[..., 0].abs(), lambda s, a: s * a, grid, 1.0,
        actions=torch.tensor([[0.5], [1.0]]), distance=lambda s: 1.2 - s[..., 0].abs(),
        dt=0.5, slope=1.0, dynamics_lipschitz=1.0,
    )  # fmt: skip
    assert found.outcome == "certified"
    assert not found.leaves.any()


@pytest.mark.parametrize("wrong", [{"slope": 3.0}, {"slope": 0.0}, {"dynamics_lipschitz": -1.0}])
def test_nothing_is_certified_beyond_the_proof(wrong):
    with pytest.raises(ValueError, match="lipschitz" if "slope" not in wrong else "slope x dt"):
        certify(*room_to_stop(1.0, 0.2), (4, 4), **wrong)
