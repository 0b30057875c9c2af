import inspect
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from safediffkit.data.reshape import remap_cost
from safediffkit.worlds.pixel_world import (
    DOWN,
    LEFT,
    RIGHT,
    UP,
    PixelWorld,
    q_values,
    safe_path,
    walk,
    white_path,
)

WIDTHS = [2, 3, 6, 7, 40]


def total(signal: np.ndarray, discount: float) -> float:
    return float(discount ** np.arange(len(signal)) @ signal)


def follow(world: PixelWorld, *paths: list[int]) -> np.ndarray:
    """Make the policy that follows recorded walks; elsewhere it goes up."""
    policy = np.zeros((3, world.width, 4))
    policy[..., UP] = 1
    for path in paths:
        for square, action in zip(walk(world, path)[0][:-1], path, strict=True):
            policy[tuple(square)] = np.eye(4)[action]
    return policy


@pytest.mark.parametrize("kwargs", [{}, {"width": 2}, {"horizon": 5}, {"ends": False, "horizon": 9}])
def test_gymnasium_accepts_it_without_a_warning(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(PixelWorld(**kwargs), skip_render_check=False)
        check_env(PixelWorld(render_mode="ansi", **kwargs), skip_render_check=False)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_white_path_enters_the_trap_on_move_width_plus_one(width):
    world = PixelWorld(width)
    squares, rewards, costs = walk(world, white_path(width))
    assert len(white_path(width)) == width + 1
    assert costs.tolist() == [0.0] * width + [1.0]
    assert not rewards.any()
    assert tuple(squares[-1]) == world.trap


@pytest.mark.parametrize("width", WIDTHS)
def test_the_safe_path_reaches_the_goal_on_move_width_plus_one(width):
    world = PixelWorld(width)
    squares, rewards, costs = walk(world, safe_path(width))
    assert rewards.tolist() == [0.0] * width + [1.0]
    assert not costs.any()
    assert tuple(squares[-1]) == world.goal


def test_the_papers_printed_numbers():
    # [SPI Fig. 2] [SPI Eq. 4, 5]
    g = 0.9
    for width, printed in [(3, g**3), (6, g**6)]:
        assert total(walk(PixelWorld(width), white_path(width))[2], g) == pytest.approx(printed, rel=1e-12)
    remapped = remap_cost(walk(PixelWorld(6), white_path(6))[2])
    assert total(remapped, g) == pytest.approx(g**5 + g**4 + g**3 + g**2 + g + 1, rel=1e-12)


def test_paths_share_no_square_but_the_start():
    for width in (3, 6, 7):
        white = {tuple(s) for s in walk(PixelWorld(width), white_path(width))[0]}
        safe = {tuple(s) for s in walk(PixelWorld(width), safe_path(width))[0]}
        assert white & safe == {(0, 0)}


def test_steps_walls_and_ends():
    world = PixelWorld(3)
    observation, info = world.reset(seed=1)
    assert observation.tolist() == [0, 0]
    assert observation.dtype == np.float32
    assert info["cost"] == 0
    for wall in (UP, LEFT):
        assert world.step(wall)[0].tolist() == [0, 0]
    assert world.step(RIGHT)[0].tolist() == [0, 0.5]
    observation, reward, terminated, truncated, info = world.step(np.int64(RIGHT))
    assert (observation.tolist(), reward, terminated, truncated, info) == ([0, 1], 0.0, True, False, {"cost": 1.0})
    world.reset()
    for action in (DOWN, DOWN, RIGHT):
        assert not world.step(action)[2]
    assert world.step(RIGHT)[1:] == (1.0, True, False, {"cost": 0.0})


def test_the_time_limit_truncates():
    world = PixelWorld(horizon=3)
    world.reset()
    assert [world.step(UP)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    world.reset()
    assert world.step(UP)[2:4] == (False, False)


def test_without_ends_the_walk_stays_in_the_trap_at_no_further_cost():
    world = PixelWorld(3, ends=False, horizon=9)
    squares, _, costs = walk(world, [*white_path(3), LEFT, DOWN, LEFT, DOWN, UP, UP])
    assert len(costs) == 9
    assert costs.sum() == costs[3] == 1
    assert all(tuple(s) == world.trap for s in squares[4:])


@pytest.mark.parametrize("action", [4, -1, 1.5, "up"])
def test_an_unknown_action_is_refused(action):
    world = PixelWorld()
    world.reset()
    with pytest.raises(ValueError, match="unknown: 0 is up"):
        inspect.unwrap(PixelWorld.step)(world, action)  # past the shape checker, which would object to a str first


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"width": 1}, "at least 2 columns"), ({"horizon": 0}, "at least 1 move"), ({"ends": False}, "fixed length")],
)
def test_impossible_worlds_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PixelWorld(**kwargs)


def test_it_draws_itself():
    world = PixelWorld(3, render_mode="ansi")
    world.reset()
    world.step(DOWN)
    assert world.render() == ". . T\n@ . .\n. . G"
    assert PixelWorld(3).render() is None


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("width", [3, 6, 7])
def test_q_of_a_walk_is_the_sum_along_it(width, ends):
    # [SPI Sec. 3.1] [SPI Eq. 5]
    world = PixelWorld(width, ends=ends, horizon=50)
    policy = follow(world, white_path(width), safe_path(width))
    for signal in (world.costs, world.rewards, remap_cost(world.costs)):
        q = q_values(world, signal, discount=0.9, policy=policy)
        for path in (white_path(width), safe_path(width)):
            squares, _, _ = walk(world, path + [UP] * (50 - len(path)))
            moves = path + [UP] * (50 - len(path))
            steps = [signal[(*square, move)] for square, move in zip(squares[:-1], moves, strict=False)]
            assert q[(0, 0, path[0])] == pytest.approx(total(np.array(steps), 0.9), abs=1e-12)


def test_q_solves_bellmans_equation_without_a_time_limit():
    # [SPI Eq. 10, 11]
    world = PixelWorld(5)
    random = np.full((3, 5, 4), 0.25)
    q = q_values(world, world.costs, discount=0.95, policy=random)
    value = np.nan_to_num(q.mean(-1))
    target = world.costs + 0.95 * ~world.ended * value[world.next_square[..., 0], world.next_square[..., 1]]
    open_squares = ~np.isnan(q)
    np.testing.assert_allclose(q[open_squares], target[open_squares], atol=1e-11)
    assert np.isnan(q[world.trap]).all()
    assert open_squares.sum() == (15 - 2) * 4


def test_q_of_the_best_walk():
    world = PixelWorld(6)
    q = q_values(world, world.rewards, discount=0.9)
    assert q[0, 0, DOWN] == pytest.approx(0.9**6)
    assert q[0, 0, UP] == pytest.approx(0.9**7)
    assert q_values(world, world.costs, discount=0.9, policy="min")[0, 4].tolist() == [0, 1, 0, 0]


def test_with_a_fixed_length_the_remap_cannot_change_the_best_action():
    world, discount = PixelWorld(6, ends=False, horizon=20), 0.9
    constant = (1 - discount**20) / (1 - discount)
    random = np.full((3, 6, 4), 0.25)
    for least, most in [("min", "max"), (random, random)]:
        cost = q_values(world, world.costs, discount=discount, policy=least)
        safety = q_values(world, remap_cost(world.costs), discount=discount, policy=most)
        np.testing.assert_allclose(cost + safety, constant, atol=1e-12)


def test_with_ends_the_remap_prefers_dawdling_to_the_goal():
    world = PixelWorld(6)
    q = q_values(world, remap_cost(world.costs), discount=0.9)
    assert q[2, 4, LEFT] == pytest.approx(10)
    assert q[2, 4, RIGHT] == pytest.approx(1)


def test_q_refuses_what_has_no_value():
    world = PixelWorld(3)
    with pytest.raises(ValueError, match="below 1 if the world has no time limit"):
        q_values(world, world.costs, discount=1.0)
    with pytest.raises(ValueError, match="must lie in"):
        q_values(world, world.costs, discount=1.2)
    with pytest.raises(ValueError, match="3 columns, 4 actions"):
        q_values(world, PixelWorld(4).costs, discount=0.5)
    with pytest.raises(ValueError, match="'max', 'min' or a table"):
        inspect.unwrap(q_values)(world, world.costs, discount=0.5, policy="best")
    assert q_values(PixelWorld(3, horizon=4), world.costs, discount=1.0)[0, 1, RIGHT] == 1
    assert q_values(world, world.costs, discount=0.0)[0, 1].tolist() == [0, 1, 0, 0]


def test_it_is_a_gymnasium_environment():
    assert isinstance(PixelWorld(), gymnasium.Env)
