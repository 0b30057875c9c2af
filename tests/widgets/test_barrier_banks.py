import numpy as np
import pytest
import torch

from safediffkit.widgets import Scene
from safediffkit.widgets.barrier_banks import barrier_field, cell_centres, level_lines

SCENE = Scene((-2, 2, "gap (m)"), (-1, 1, "speed (m/s)"))


def test_cells_stand_in_the_middle_of_their_share_of_the_view():
    x, y = cell_centres(SCENE, rows=2, columns=4)
    assert x.tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert y.tolist() == [-0.5, 0.5]


def test_a_plane_is_cut_along_a_straight_line():
    x, y = np.linspace(0, 3, 7), np.linspace(0, 2, 5)
    (line,) = level_lines(x + 2 * y[:, None], x, y, level=1.7)
    np.testing.assert_allclose(line @ [1, 2], 1.7)
    assert {line[0, 0] == 0, line[-1, 0] == 0} == {True, False}, "it runs from one edge of the grid to another"
    assert (np.diff(line[:, 0]) > 0).all() or (np.diff(line[:, 0]) < 0).all(), "in order"


def test_a_circle_is_closed_and_round():
    x, y = np.linspace(-2, 2, 81), np.linspace(-1.5, 1.5, 61)
    (line,) = level_lines(1 - x**2 - y[:, None] ** 2, x, y)
    np.testing.assert_allclose(np.hypot(*line.T), 1, atol=2e-3)
    assert (line[0] == line[-1]).all()
    steps = np.hypot(*np.diff(line, axis=0).T)
    assert steps.sum() == pytest.approx(2 * np.pi, rel=1e-2)
    assert steps.max() < 0.08, "no jump"


def test_two_circles_are_two_lines():
    x, y = np.linspace(-3, 3, 61), np.linspace(-1, 1, 21)
    lines = level_lines(0.5 - np.hypot(np.abs(x) - 1.5, y[:, None]), x, y)
    assert sorted(np.sign(line[:, 0].mean()) for line in lines) == [-1, 1]
    assert all((line[0] == line[-1]).all() for line in lines)


def test_a_saddle_is_cut_in_two():
    lines = level_lines(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.arange(2), np.arange(2))
    assert [len(line) for line in lines] == [2, 2]
    ends = {tuple(point) for line in lines for point in line}
    assert ends == {(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)}


def test_what_is_not_finite_ends_a_line_and_what_is_level_counts_as_above():
    x, y = np.arange(5.0), np.arange(3.0)
    values = np.tile(y[:, None] - 0.5, 5)
    values[0, 2] = np.nan
    assert sorted(line[:, 0].tolist() for line in level_lines(values, x, y)) in ([[0, 1], [3, 4]], [[1, 0], [4, 3]])
    assert level_lines(np.zeros((3, 5)), x, y) == level_lines(np.ones((3, 5)), x, y) == []
    (line,) = level_lines(np.tile(y[:, None] - 1, 5), x, y)
    assert (line[:, 1] == 1).all()


def test_values_must_fit_the_grid():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) do not fit 2 rows and 3 columns"):
        level_lines(np.zeros((3, 2)), np.arange(3), np.arange(2))


def test_a_field_shows_a_barrier_as_it_is():
    # h = x - y: larger to the right and lower down
    parts = barrier_field(lambda s: s[:, 0] - s[:, 1], SCENE, rows=20, columns=40, limit=0.5)
    heat, (zero,) = parts["heat"], parts["shapes"]
    assert heat.shape == (20, 40)
    assert (heat.min(), heat.max()) == (-0.5, 0.5)
    x, y = cell_centres(SCENE, 20, 40)
    np.testing.assert_allclose(heat, (x - y[:, None]).clip(-0.5, 0.5), atol=1e-6)
    assert zero["kind"] == "goal"
    points = np.reshape(zero["at"], (-1, 2))
    np.testing.assert_allclose(points[:, 0], points[:, 1], atol=2e-3)
    assert len(points) > 18


def test_a_field_of_a_network_needs_no_gradient():
    h = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    parts = barrier_field(h, SCENE, rows=4, columns=6)
    assert isinstance(parts["heat"], np.ndarray)
    assert barrier_field(lambda s: s.new_ones(len(s)), SCENE)["shapes"] == []
