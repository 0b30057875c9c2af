import math
from dataclasses import replace

import pytest
import torch
from builders import make_dataset

from safediffkit.data.dataset import Dataset
from safediffkit.safety.barriers import (
    Barrier,
    Config,
    barrier_losses,
    barrier_value,
    label_rows,
    labels,
    safety_filter,
    stopping_margin,
    train_barrier,
)

YES, NO = torch.tensor(True), torch.tensor(False)


def column(*values):
    return torch.tensor(values)[:, None]


def first(state):
    return state[..., 0]


def test_stopping_margin_by_hand():
    # [CBF Def. 3]: from 10 m/s at 5 m/s² a car stops after 10 m
    assert stopping_margin(15.0, 10.0, 5.0, 2.0).item() == 3
    # the other car draws away: nothing to brake for, whatever the speed
    assert stopping_margin(15.0, torch.tensor([-10.0, 0.0]), 5.0, 2.0).tolist() == [13, 13]
    gap, braking = torch.tensor([[5.0], [9.0]]), torch.tensor([2.0, 4.0])
    assert stopping_margin(gap, 4.0, braking, 1.0).tolist() == [[0, 2], [4, 6]]
    with pytest.raises(ValueError, match="above 0; the least given is 0"):
        stopping_margin(1.0, 1.0, torch.tensor([1.0, 0.0]), 0.0)


def test_labels_leave_a_band():
    danger, safe = labels(torch.tensor([0.3, 0.4, 0.45, 0.5, 0.6, math.inf]), 0.4, 0.5)
    assert danger.tolist() == [True, False, False, False, False, False]
    assert safe.tolist() == [False, False, False, False, True, True]
    with pytest.raises(ValueError, match="swap them"):
        labels(torch.zeros(1), 0.5, 0.4)


def test_hinges_by_hand():
    # [CBF Eq. 12], h(s) = s
    state, following = column(0.5, 2.0, -1.0, 3.0), column(0.25, 2.0, -9.0, 1.0)
    start, danger = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])
    losses = barrier_losses(first, state, following, start, danger, dt=0.5, slope=0.25, margin=1.0)
    assert losses["start"].item() == (0.5 + 0) / 2
    assert losses["danger"].item() == (0 + 4) / 2
    # where h >= 0, the third row is out: 1 + 0.5 - 0.125, 1 - 0 - 0.5, 1 + 4 - 0.75
    assert losses["derivative"].item() == pytest.approx((1.375 + 0.5 + 4.25) / 3)


def test_an_empty_set_costs_nothing_and_has_a_gradient():
    s = column(-1.0, -2.0).requires_grad_()
    none = torch.zeros(2, dtype=torch.bool)
    losses = barrier_losses(first, s, s, none, none, dt=1.0, slope=1.0, margin=1.0)
    assert {name: loss.item() for name, loss in losses.items()} == {"start": 0, "danger": 0, "derivative": 0}
    (slope,) = torch.autograd.grad(sum(losses.values()), s)
    assert slope.tolist() == [[0], [0]]


def test_h_of_zero_counts_as_kept_in_the_derivative_term():
    s = column(0.0)
    loss = barrier_losses(first, s, column(-1.0), NO[None], NO[None], dt=0.5, slope=1.0, margin=0.25)
    assert loss["derivative"].item() == 2.25


def test_unlabelled_rows_count_and_do_not_teach():
    weight = torch.tensor(1.0, requires_grad=True)
    state, following, none = column(1.0, 2.0), column(0.5, 0.5), torch.zeros(2, dtype=torch.bool)

    def slope(labelled):
        loss = barrier_losses(
            lambda s: weight * s[..., 0],
            state,
            following,
            none,
            none,
            dt=1.0,
            slope=0.25,
            margin=0.0,
            labelled=labelled,
        )["derivative"]
        assert loss.item() == pytest.approx((0.25 + 1.0) / 2)
        return torch.autograd.grad(loss, weight)[0].item()

    assert slope(None) == pytest.approx(0.625)
    assert slope(torch.tensor([True, False])) == pytest.approx(0.125)


@pytest.mark.parametrize("wrong", [{"dt": 0.0}, {"slope": -1.0}])
def test_time_and_slope_must_be_positive(wrong):
    settings = {"dt": 1.0, "slope": 1.0} | wrong
    with pytest.raises(ValueError, match="must be above 0"):
        barrier_losses(first, column(1.0), column(1.0), NO[None], NO[None], margin=0.0, **settings)
    with pytest.raises(ValueError, match="must be above 0"):
        barrier_value(first, column(1.0), column(1.0), NO[None], NO[None], NO[None], **settings)


def test_barrier_value_is_the_least_of_three_infima():
    # [CBF Eq. 8], three trajectories of two steps, h(s) = s
    state = torch.tensor([[1.0, 3.0], [1.0, -2.0], [4.0, 4.0]])[..., None]
    following = torch.tensor([[3.0, 2.5], [0.0, 0.0], [0.0, 0.0]])[..., None]
    start = torch.tensor([[True, False], [True, False], [False, False]])
    danger = torch.tensor([[False, False], [False, True], [False, False]])
    safe = torch.tensor([[True, True], [False, False], [False, False]])
    y = barrier_value(first, state, following, start, danger, safe, dt=0.5, slope=0.5)
    # starts give 1, safe steps 4 + 0.5 and -1 + 1.5; then starts 1, danger 2; then nothing
    assert y.tolist() == [0.5, 1, math.inf]
    y = barrier_value(first, -state, following, start, danger, safe, dt=0.5, slope=0.5)
    assert y[1].item() == -2, "dangerous with h = 2, and a start with h = -1"


def joined(own, neighbours):
    return torch.cat([own, neighbours.flatten(-2)], -1)


def test_barrier_heeds_neighbours_in_no_order():
    torch.manual_seed(0)
    barrier = Barrier(obs=2, features=3, hidden=16)
    own, neighbours = torch.randn(64, 2), torch.randn(64, 4, 3)
    barrier.fit(joined(own, neighbours))
    h = barrier(own, neighbours)
    assert h.shape == (64,)
    torch.testing.assert_close(barrier(own, neighbours[:, [2, 0, 3, 1]]), h)
    torch.testing.assert_close(barrier(joined(own, neighbours)), h)
    absent = torch.full((64, 2, 3), torch.nan)
    torch.testing.assert_close(barrier(own, torch.cat([absent, neighbours], 1)), h)
    moved = [barrier(own, neighbours.index_add(1, torch.tensor([j]), torch.ones(64, 1, 3))) for j in range(4)]
    assert all((other - h).abs().max() > 1e-4 for other in moved), "each neighbour matters to someone"
    fewer = barrier(own, neighbours[:, :3])
    assert (fewer >= h).all(), "one more neighbour never makes a state safer"
    assert (fewer > h + 1e-4).any()
    assert (barrier(own, neighbours[:, :0]) >= fewer).all()


def test_barrier_without_any_neighbour():
    torch.manual_seed(0)
    barrier, own = Barrier(obs=2, features=3, hidden=8), torch.randn(4, 2)
    alone = barrier(own)
    assert alone.isfinite().all()
    torch.testing.assert_close(barrier(own, torch.full((4, 2, 3), torch.nan)), alone)
    torch.testing.assert_close(barrier(own, torch.empty(4, 0, 3)), alone)
    barrier(joined(own, torch.full((4, 2, 3), torch.nan))).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in barrier.parameters())
    assert barrier.alone[0].weight.grad.abs().sum() > 0


def test_absent_neighbours_do_not_enter_the_scales():
    states = torch.tensor([[0.0, 1.0, torch.nan], [2.0, 3.0, 5.0]])
    barrier = Barrier(obs=1, features=1)
    barrier.fit(states)
    assert barrier.neighbour_scale.mean.item() == 3
    assert barrier.neighbour_scale.spread.item() == 2
    assert barrier.scale.mean.item() == 1


def test_barrier_refuses_what_does_not_fit():
    barrier = Barrier(obs=2, features=3)
    with pytest.raises(ValueError, match="6 entries is not obs=2 and 3 for each"):
        barrier(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="widths 1 and 3"):
        barrier(torch.zeros(1, 1), torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="NaN beside numbers"):
        barrier(torch.tensor([[0.0, 0.0, 1.0, torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="3 entries is not obs=2 and 0"):
        Barrier(obs=2)(torch.zeros(1, 3))


def record(costs, lengths, agents=()):
    """Give steps whose state is their number, one unit a step, a hundred an episode."""
    state = torch.cat([100.0 * j + torch.arange(length) for j, length in enumerate(lengths)])
    state = state[:, *[None for _ in agents], None].expand(-1, *agents, 1)
    return Dataset(
        observations=state,
        actions=torch.zeros_like(state),
        rewards=torch.zeros(len(state), *agents),
        costs=torch.tensor(costs, dtype=torch.float32),
        next_observations=state + 1,
        terminated=torch.zeros(len(state), dtype=torch.bool),
        episode=torch.cat([torch.full((length,), j) for j, length in enumerate(lengths)]),
        provenance="made for a test",
    )


def test_rows_are_labelled_from_costs():
    rows = label_rows(record([0.0, 0, 0, 1, 0, 0, 0, 0, 2], [6, 3]), lookahead=2)
    assert rows.state[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    # step 3 leads into state 4; the last step into a state of its own
    assert rows.danger.nonzero()[:, 0].tolist() == [4, 9]
    # states 2 and 3 are up to two steps before it, as are 101 and 102
    assert rows.safe.nonzero()[:, 0].tolist() == [0, 1, 5, 6]
    assert rows.start.nonzero()[:, 0].tolist() == [0, 6]
    assert rows.moves.tolist() == [True] * 9 + [False]
    assert rows.episode.tolist() == [0] * 6 + [1] * 4
    rows = label_rows(record([0.0, 0, 0, 1, 0, 0, 0, 0, 2], [6, 3]), lookahead=3)
    assert rows.start.nonzero()[:, 0].tolist() == [0], "danger in the next episode's reach, not in this one's"
    assert label_rows(record([0.0, 0, 1, 0], [2, 2]), 9).start.nonzero()[:, 0].tolist() == [0]
    with pytest.raises(ValueError, match="lookahead=0"):
        label_rows(record([0.0], [1]), 0)


def test_rows_of_agents_are_labelled_apart():
    costs = [[0.0, 0], [1, 0], [0, 0], [0, 1]]
    together = label_rows(record(costs, [4], (2,)), lookahead=1)
    for j in range(2):
        alone = label_rows(record([row[j] for row in costs], [4]), lookahead=1)
        mine = torch.arange(8) % 2 == j
        for name in ("danger", "safe", "start"):
            assert getattr(together, name)[:8][mine].tolist() == getattr(alone, name)[:4].tolist()
    assert together.danger[8:].tolist() == [True]
    assert together.state[8].tolist() == [4]


def drive(episodes=60, steps=20, dt=0.1, seed=0):
    """Roll carts towards a wall at 0: half brake as hard as they can, half only a tenth of it. States are (x, v)."""
    draw = torch.Generator().manual_seed(seed)
    x, v = 0.2 + 1.3 * torch.rand(episodes, generator=draw), -1.5 * torch.rand(episodes, generator=draw)
    brake = torch.where(torch.arange(episodes) % 2 == 0, 2.0, 0.2)
    path = [torch.stack([x, v], -1)]
    for _ in range(steps):
        x, v = path[-1].unbind(-1)
        then = (v + brake * dt).clamp_max(0)
        path.append(torch.stack([x + dt * (v + then) / 2, then], -1))
    states = torch.stack(path, 1)
    return Dataset(
        observations=states[:, :-1].reshape(-1, 2),
        actions=brake.repeat_interleave(steps)[:, None],
        rewards=torch.zeros(episodes * steps),
        costs=(states[:, 1:, 0] < 0).float().flatten(),
        next_observations=states[:, 1:].reshape(-1, 2),
        terminated=torch.zeros(episodes * steps, dtype=torch.bool),
        episode=torch.arange(episodes).repeat_interleave(steps),
        provenance="carts and a wall, made for a test",
    )


def test_training_finds_the_states_from_which_carts_can_stop():
    watched = []
    barrier = train_barrier(drive(), Config(steps=400), lambda step, losses: watched.append(losses))
    assert set(watched[0]) == {"start", "danger", "derivative"}
    unseen = label_rows(drive(seed=1), 32)
    h = barrier(unseen.state)
    assert (h[unseen.start] >= 0).float().mean() > 0.9
    assert (h[unseen.danger] < 0).float().mean() > 0.97
    # against the viability kernel, position >= v² / (2 b); half of the carts on record could have stopped and did not
    x, v = torch.cartesian_prod(torch.linspace(-0.3, 1.5, 40), torch.linspace(-1.4, 0.0, 40)).unbind(-1)
    kernel, safe = x >= v.square() / 4, barrier(torch.stack([x, v], -1)) >= 0
    assert safe[kernel].float().mean() > 0.9
    assert safe[~kernel].float().mean() < 0.15


def test_training_depends_on_its_arguments_alone():
    dataset, config = drive(12), Config(steps=3, hidden=8)
    torch.manual_seed(1)
    one = train_barrier(dataset, config)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = train_barrier(dataset, config)
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    other = train_barrier(dataset, replace(config, seed=1))
    assert not torch.equal(one.alone[0].weight, other.alone[0].weight)


def test_training_learns_of_any_number_of_neighbours():
    # danger: a neighbour within 0.5; as training sees one or two of them, so three are judged after
    torch.manual_seed(0)

    def scene(episodes, neighbours):
        place, draw = torch.randn(episodes, neighbours, 2), torch.rand(episodes, neighbours, 1)
        missing = (draw < 0.3) & (torch.arange(neighbours)[:, None] > 0)
        return torch.cat([torch.zeros(episodes, 1), place.masked_fill(missing, torch.nan).flatten(1)], 1)

    def near(states):
        return (states[:, 1:].unflatten(1, (-1, 2)).norm(dim=-1) < 0.5).any(1)

    still = scene(600, 2)
    one = torch.zeros(600)
    dataset = Dataset(
        observations=still,
        actions=one[:, None],
        rewards=one,
        costs=near(still).float(),
        next_observations=still,
        terminated=one > 0,
        episode=torch.arange(600),
        provenance="discs that stand still, made for a test",
    )
    barrier = train_barrier(dataset, Config(steps=300, features=2, neighbours=2, learning_rate=3e-3))
    unseen = scene(500, 3)
    assert ((barrier(unseen) < 0) == near(unseen)).float().mean() > 0.95


@pytest.mark.parametrize("agents", [0, 3])
def test_training_takes_neighbours_and_agents(agents):
    flat = make_dataset(episodes=12, steps=4, obs=6)
    flat = replace(flat, costs=torch.zeros(48).index_fill(0, torch.tensor([5, 14]), 1.0))
    if agents:
        columns = ("observations", "actions", "rewards", "costs", "next_observations")
        flat = replace(flat, **{name: torch.stack([getattr(flat, name)] * agents, 1) for name in columns})
    gone = torch.arange(6) >= 4
    flat = replace(flat, observations=flat.observations.masked_fill(gone & (flat.rewards > 1)[..., None], torch.nan))
    barrier = train_barrier(flat, Config(steps=2, hidden=8, features=2, neighbours=2))
    assert (barrier.obs, barrier.features) == (2, 2)
    assert barrier(flat.observations).isfinite().all()


def test_training_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("safediffkit.learning.CHECKPOINT_EVERY", 2)
    dataset, config, path = drive(12), Config(steps=5, hidden=8), tmp_path / "kept"

    def stop(step, losses):
        if step == 3:
            raise KeyboardInterrupt

    whole = train_barrier(dataset, config)
    with pytest.raises(KeyboardInterrupt):
        train_barrier(dataset, config, stop, checkpoint=path)
    seen = []
    resumed = train_barrier(dataset, config, lambda step, losses: seen.append(step), checkpoint=path)
    assert seen == [3, 4, 5]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_last_states_do_not_enter_the_derivative_term(monkeypatch):
    drawn = []

    def spy(h, state, next_state, *masks, labelled, **settings):
        drawn.append(labelled[state[:, 0] == 103])
        return barrier_losses(h, state, next_state, *masks, labelled=labelled, **settings)

    monkeypatch.setattr("safediffkit.safety.barriers.barrier_losses", spy)
    train_barrier(record([0.0, 0, 0, 0, 0, 1], [3, 3]), Config(steps=3, hidden=8, lookahead=1))
    labelled = torch.cat(drawn)
    assert len(labelled) > 20
    assert not labelled.any()


def test_training_refuses_what_cannot_teach():
    dataset = drive(12)
    with pytest.raises(ValueError, match="0 lead to danger"):
        train_barrier(replace(dataset, costs=torch.zeros(len(dataset))))
    with pytest.raises(ValueError, match="0 are starts"):
        train_barrier(replace(dataset, costs=torch.ones(len(dataset))))
    with pytest.raises(ValueError, match="leave 0 own ones"):
        train_barrier(dataset, Config(features=1, neighbours=2))
    with pytest.raises(ValueError, match="never NaN"):
        train_barrier(replace(dataset, observations=dataset.observations * torch.nan))
    for wrong in ({"dt": 0.0}, {"slope": 0.0}, {"margin": -1.0}, {"features": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Config(**wrong)


# A point that the action moves: s' = s + dt B a; h may be any function of it.
PUSH = torch.tensor([[1.0, 0.5], [0.0, 2.0]])


def pushed(state, action):
    return state + 0.5 * action @ PUSH.T


def test_filter_equals_the_closed_form_without_a_box():
    torch.manual_seed(0)
    state, action, normal = torch.randn(64, 2), torch.randn(64, 2), torch.tensor([1.0, -0.5])

    def h(s):
        return s @ normal + 0.3

    found = safety_filter(h, pushed, state, action, dt=0.5, slope=0.4, low=-math.inf, high=math.inf)
    # with g the gradient of h(s') in a: the wish itself, or its projection on the plane where the condition is tight
    g = 0.5 * normal @ PUSH
    short = 0.8 * h(state) - h(pushed(state, action))
    expected = action + short.clamp_min(0)[:, None] * g / g.square().sum()
    torch.testing.assert_close(found.action, expected, atol=1e-5, rtol=1e-5)
    assert found.feasible.all()
    assert found.kept.all()
    content = short < 0
    assert 10 < content.sum() < 54
    assert torch.equal(found.action[content], action[content]), "a safe wish is granted to the last bit"


def test_filter_in_a_box_by_hand():
    # h(s') = a_0 + a_1 - 1 >= (1 - 1) h: a_0 + a_1 >= 1, plainly; the box cuts a_0 at 0.25
    def h(s):
        return s.sum(-1) - 1

    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([0.25, 1.0])
    wishes = torch.tensor([[0.0, 0.0], [3.0, 0.9], [-1.0, 1.0]])
    # the projection of the first, (0.5, 0.5), leaves the box; the second wish, cut to the box, keeps the condition
    found = safety_filter(h, lambda s, a: s + a, torch.zeros(3, 2), wishes, dt=1.0, slope=1.0, low=low, high=high)
    expected = torch.tensor([[0.25, 0.75], [0.25, 0.9], [0.0, 1.0]])
    torch.testing.assert_close(found.action, expected, atol=1e-6, rtol=0)
    assert found.feasible.all()


def test_filter_is_closest_to_the_wish_and_not_to_its_cut():
    # a_0 + a_1 <= 0: of the box it is (1, -1) that comes closest to (3, 0), while (1, 0) would go to (0.5, -0.5)
    found = safety_filter(
        lambda s: -s.sum(-1), lambda s, a: s + a, torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), dt=1.0, slope=1.0
    )
    torch.testing.assert_close(found.action, torch.tensor([[1.0, -1.0]]), atol=1e-6, rtol=0)


def test_filter_forgives_rounding():
    # h misses 0 by a hair, and no action changes that; or only the corner will do
    state, wish = torch.tensor([[-1e-10, 0.0], [-2 - 1e-10, 0.0]], dtype=torch.float64), torch.zeros(2, 2).double()

    def dynamics(s, a):
        return s + torch.stack([a.sum(-1) * (s[:, 0] < -1), 0 * a[:, 0]], -1)

    found = safety_filter(first, dynamics, state, wish, dt=1.0, slope=1.0)
    assert found.feasible.all()
    torch.testing.assert_close(found.action, torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), atol=1e-4, rtol=0)


def test_filter_says_when_no_action_will_do():
    def h(s):
        return s[..., 0] - 5 * s[..., 1]

    state = torch.tensor([[-9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    wish = torch.tensor([[0.1, 0.2, 0.3]]).expand(3, 3)
    found = safety_filter(h, lambda s, a: s + a, state, wish, dt=1.0, slope=1.0)
    # from h = -9 no action in the box reaches 0; the best is (1, -1), and the third entry does not matter
    assert found.feasible.tolist() == [False, True, True]
    assert found.kept.tolist() == [False, True, True]
    torch.testing.assert_close(found.action[0], torch.tensor([1.0, -1.0, 0.3]))
    assert (h(state + found.action)[1:] >= -1e-6).all()
    dead = safety_filter(lambda s: s[..., 0] - 1, lambda s, a: s + 0 * a, state, wish, dt=1.0, slope=1.0)
    assert dead.feasible.tolist() == [False, False, True]
    torch.testing.assert_close(dead.action, wish)


def test_filter_linearises_again_where_h_bends():
    # stay out of a disc of radius 1: from (2, 0) straight at it, 1 - slope dt = 0
    def h(s):
        return s.square().sum(-1) - 1

    state, wish = torch.tensor([[2.0, 0.1]]), torch.tensor([[-1.5, 0.0]])
    settings = {"dt": 1.0, "slope": 1.0, "low": -3.0, "high": 3.0}
    once = safety_filter(h, lambda s, a: s + a, state, wish, **settings)
    again = safety_filter(h, lambda s, a: s + a, state, wish, rounds=8, **settings)
    # the closest point outside the disc is the wished place, moved out along its radius
    place = torch.tensor([0.5, 0.1])
    torch.testing.assert_close(state[0] + again.action[0], place / place.norm(), atol=1e-4, rtol=0)
    assert again.kept.all()
    assert (once.action - wish).norm() > (again.action - wish).norm() + 0.1, "h is convex: one round goes too far"


def test_filter_keeps_carts_from_the_wall():
    # [CBF Def. 3] as barrier; the wish is full speed ahead, and the discrete condition is kept at each step
    dt, braking = 0.1, 2.0

    def dynamics(s, a):
        x, v = s.unbind(-1)
        return torch.stack([x + v * dt + a[..., 0] * dt**2 / 2, v + a[..., 0] * dt], -1)

    def h(s):
        return stopping_margin(s[..., 0], -s[..., 1], braking / 2, 0.05)

    state, wish = torch.tensor([[1.0, 0.0], [2.0, -1.0]]), torch.full((2, 1), -2.0)
    reckless, least = state, h(state)
    for _ in range(60):
        reckless = dynamics(reckless, wish)
        found = safety_filter(h, dynamics, state, wish, dt=dt, slope=2.0, low=-2.0, high=2.0, rounds=4)
        assert found.feasible.all()
        state = dynamics(state, found.action)
        least = least.minimum(h(state))
    assert (reckless[:, 0] < 0).all()
    assert (least >= -1e-3).all()
    assert (state[:, 0] < 0.2).all(), "they do get close"


@pytest.mark.parametrize(("slope", "jumps"), [(1.0, False), (2.0, False), (3.0, True)])
def test_the_discrete_condition_is_not_enough_when_slope_times_dt_is_above_1(slope, jumps):
    # h(s) = s, dt = 0.5: the least s' that the condition allows is (1 - slope dt) s
    state, wish = torch.tensor([[1.0]]), torch.tensor([[-9.0]])
    found = safety_filter(first, lambda s, a: s + a, state, wish, dt=0.5, slope=slope, low=-9.0, high=9.0)
    following = (state + found.action).item()
    assert following == pytest.approx(1 - slope * 0.5, abs=1e-5)
    assert found.kept.all()
    assert (following < -0.1) == jumps


def test_filter_refuses_what_it_cannot_solve():
    state, wish = torch.ones(1, 1), torch.ones(1, 1)

    def run(h=first, dynamics=lambda s, a: s + a, **settings):
        safety_filter(h, dynamics, state, wish, **({"dt": 0.1, "slope": 1.0} | settings))

    with pytest.raises(ValueError, match="low <= high"):
        run(low=1.0, high=-1.0)
    with pytest.raises(ValueError, match="no gradient of the action"):
        run(dynamics=lambda s, a: s + a.detach())
    with pytest.raises(ValueError, match="not finite"):
        run(h=lambda s: first(s) * torch.nan)
    for wrong in ({"dt": 0.0}, {"slope": -1.0}, {"rounds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            run(**wrong)


def test_filter_names_the_missing_solver(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "clarabel", None)
    with pytest.raises(ImportError, match="pip install clarabel"):
        safety_filter(first, lambda s, a: s + a, torch.ones(1, 1), -torch.ones(1, 1), dt=0.1, slope=1.0)
