import json
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from safediffkit import figures
from safediffkit.figures import BLUE, SAFE, UNSAFE

NAN = float("nan")


def draw_all(kind):
    """Draw one figure of each sort from numbers made by `kind`."""
    return {
        "scatter": figures.reward_cost_scatter(kind([1.0, 2.0, 3.0]), kind([0.0, 10.0, 11.0]), 10),
        "top": figures.top_view(kind([[[0.0, 1.0], [7.0, 2.0]]]), kind([[0.0, 1.0]])),
        "map": figures.pixel_map(3, {"a walk": kind([[0, 0], [0, 1]])}),
        "grid": figures.grid_values(kind(np.arange(36.0).reshape(3, 3, 4))),
        "curves": figures.curves(kind([1.0, 2.0]), {"a": kind([1.0, 10.0])}, x="time (s)", y="height (m)"),
        "plane": figures.score_plane({"a": (kind([0.5, 0.25, 0.75]), kind([1.5, 1.0, 2.5]))}, limit=1),
        "dots": figures.interval_dots(
            ["g", "h"], {"a": kind([[1.0, 0.5, 3.0], [2.0, 2.0, 2.0]])}, x="data", y="return"
        ),
        "bars": figures.result_bars(["a"], kind([1.0]), kind([[0.5, 2.0]]), y="cost"),
    }


def test_arrays_and_tensors_give_the_same_pictures():
    from_arrays, from_tensors = draw_all(np.asarray), draw_all(lambda v: torch.as_tensor(v))
    for name, figure in from_arrays.items():
        assert isinstance(figure, go.Figure)
        assert figure.to_json() == from_tensors[name].to_json()


@pytest.mark.parametrize("name", ["scatter", "top", "map", "grid", "curves", "plane", "dots"])
def test_both_axes_have_titles_and_the_shared_template(name):
    figure = draw_all(np.asarray)[name]
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text
    assert figure.layout.template.layout.colorway[0] == BLUE
    assert figure.layout.template.layout.paper_bgcolor == "white"


def test_a_tensor_that_needs_gradients_can_be_drawn():
    assert figures.curves(torch.ones(2, requires_grad=True), {}, x="x", y="y")


def test_scatter_parts_episodes_at_the_budget():
    figure = draw_all(np.asarray)["scatter"]
    within, over = figure.data
    assert (list(within.x), list(within.y), within.marker.color) == ([0, 10], [1, 2], SAFE)
    assert (list(over.x), list(over.y), over.marker.color) == ([11], [3], UNSAFE)
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 10
    named = figures.reward_cost_scatter(np.ones(1), np.ones(1), 0, name="BC")
    assert [trace.name for trace in named.data] == ["BC, within budget", "BC, over budget"]


def test_top_view_parts_outcomes_and_marks_the_steps_that_cost():
    safe, unsafe = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[5.0, 1.0], [6.5, 1.0], [NAN, NAN]]
    figure = figures.top_view(np.array([safe, unsafe, safe]), np.array([[0, 0, 0], [0, 1, NAN], [0, 0, 0]]))
    circle, within, over, costly = figure.data
    np.testing.assert_allclose(np.hypot(circle.x, circle.y), 7.0)
    np.testing.assert_array_equal(within.x, [0, 1, 2, NAN, 0, 1, 2, NAN])
    np.testing.assert_array_equal(over.x, [5, 6.5, NAN, NAN])
    assert within.line.color == SAFE
    assert costly.line.color == UNSAFE
    assert np.array(costly.x)[~np.isnan(costly.x)].tolist() == [6.5]
    assert costly.mode == "lines+markers"  # one costly step alone must be seen
    assert {shape.x0 for shape in figure.layout.shapes} == {-6, 6}
    assert figure.layout.yaxis.scaleanchor == "x"


def test_top_view_follows_the_budget_and_leaves_the_scene_out():
    xy, costs = np.zeros((2, 3, 2)), np.array([[0, 1, 1], [1, 1, 1]])
    figure = figures.top_view(xy, costs, budget=2, radius=None, band=None)
    within, over, _ = figure.data
    assert len(within.x) == len(over.x) == 4
    assert not figure.layout.shapes


def test_the_number_of_traces_does_not_grow_with_episodes():
    many = figures.top_view(np.zeros((200, 5, 2)), np.zeros((200, 5)))
    assert len(many.data) == len(figures.top_view(np.zeros((2, 5, 2)), np.zeros((2, 5))).data) == 4


def arrows_of(figure):
    return dict(zip(zip(figure.data[2].y, figure.data[2].x, strict=True), figure.data[2].text, strict=True))


def test_grid_values_stand_at_the_side_one_moves_to():
    values = np.zeros((3, 4, 4))
    values[1, 2] = [1, 2, 3, 4]  # up, right, down, left
    figure = figures.grid_values(values, low=0, high=5)
    heat = figure.data[0]
    shown = {(y, x): z for y, row in zip(heat.y, heat.z, strict=True) for x, z in zip(heat.x, row, strict=True)}
    around = [(1 - 1 / 3, 2), (1, 2 + 1 / 3), (1 + 1 / 3, 2), (1, 2 - 1 / 3)]
    found = [next(z for at, z in shown.items() if np.allclose(at, place)) for place in around]
    assert found == [1, 2, 3, 4]
    assert (heat.zmin, heat.zmax) == (0, 5)
    assert all(z is None for row in heat.z[:3] for z in row[-3:])


def test_arrows_point_to_the_best_action_and_show_ties():
    values = np.zeros((3, 4, 4))
    values[1, 2] = [1, 2, 3, 4]
    values[2, 0] = [1, 5, 5, 1]
    for best, at, arrow in [("max", (1, 2), "←"), ("min", (1, 2), "↑"), ("max", (2, 0), "→↓"), ("min", (2, 0), "↑←")]:
        assert arrows_of(figures.grid_values(values, best=best))[at] == arrow
    assert arrows_of(figures.grid_values(values))[(0, 1)] == "↑→<br>↓←"
    assert (0, 3) not in arrows_of(figures.grid_values(values))


def test_large_values_are_shortened_and_wide_worlds_carry_no_numbers():
    heat = figures.grid_values(np.full((3, 3, 4), 10.0)).data[0]
    assert heat.text[0][1] == "10.0"
    assert figures.grid_values(np.zeros((3, 12, 4))).data[0].texttemplate == ""


def test_pixel_map_draws_each_walk():
    figure = figures.pixel_map(4, {"one": np.array([[0, 0], [1, 0]]), "two": np.array([[0, 0], [0, 1]])})
    one, two = figure.data[-2:]
    assert (one.name, two.name) == ("one", "two")
    np.testing.assert_allclose(np.diff(one.y), [1])
    np.testing.assert_allclose(np.diff(two.x), [1])
    assert one.x[0] != two.x[0]
    assert len(figures.pixel_map(4).data) == len(figure.data) - 2


def test_bars_hold_their_intervals_and_the_limit():
    figure = figures.result_bars(
        ["a", "b"], np.array([1.0, 3.0]), np.array([[0.5, 2.0], [2.5, 3.25]]), y="cost", limit=2
    )
    assert list(figure.data[0].error_y.array) == [1.0, 0.25]
    assert list(figure.data[0].error_y.arrayminus) == [0.5, 0.5]
    assert figure.layout.shapes[0].y0 == 2
    assert figures.result_bars(["a"], np.ones(1), y="cost").data[0].error_y.array is None


def test_the_score_plane_holds_its_intervals_and_colours_by_the_limit():
    scores = {"a": ([0.5, 0.4, 0.7], [1.0, 0.5, 2.5]), "b": ([0.9, 0.9, 0.9], [1.1, 1.0, 1.5])}
    figure = figures.score_plane({k: (np.array(r), np.array(c)) for k, (r, c) in scores.items()}, limit=1)
    a, b = figure.data
    assert (a.x, a.y, a.marker.color, b.marker.color) == ((1.0,), (0.5,), SAFE, UNSAFE)
    assert a.marker.symbol != b.marker.symbol
    np.testing.assert_allclose([a.error_x.array[0], a.error_x.arrayminus[0]], [1.5, 0.5])
    np.testing.assert_allclose([a.error_y.array[0], a.error_y.arrayminus[0]], [0.2, 0.1])
    assert figure.layout.shapes[0].x0 == 1


def test_dots_stand_side_by_side_within_their_group_with_their_intervals():
    middle = np.array([[1.0, 0.5, 3.0], [2.0, 2.0, 2.0]])
    a, b = figures.interval_dots(["g", "h"], {"a": middle, "b": middle + 1}, x="data", y="return").data
    np.testing.assert_allclose(a.x, [-0.2, 0.8])
    np.testing.assert_allclose(b.x, [0.2, 1.2])
    np.testing.assert_allclose(a.error_y.array, [2, 0])
    np.testing.assert_allclose(a.error_y.arrayminus, [0.5, 0])
    assert a.marker.symbol != b.marker.symbol


def test_figures_beside_one_another_keep_their_axes_and_parts():
    drawn = draw_all(np.asarray)
    joined = figures.beside(drawn["curves"], drawn["top"], drawn["scatter"], drawn["top"])
    count = len(drawn["curves"].data)
    assert len(joined.data) == count + 2 * len(drawn["top"].data) + len(drawn["scatter"].data)
    assert {trace.xaxis for trace in joined.data[count : count + 4]} == {"x2"}
    assert joined.layout.yaxis2.scaleanchor == "x2"
    assert joined.layout.xaxis.domain[1] < joined.layout.xaxis2.domain[0]
    assert joined.layout.xaxis3.title.text == "cost of the episode"
    over = drawn["top"].layout.shapes
    moved = [shape for shape in joined.layout.shapes if shape.xref == "x2"]
    assert [(shape.x0, shape.yref) for shape in moved] == [(s.x0, "y2 domain") for s in over]
    names = [trace.name for trace in joined.data if trace.showlegend is not False]
    assert len(names) == len(set(names))


def test_curves_differ_without_colour_and_may_be_logarithmic():
    figure = figures.curves(np.arange(2), {"a": np.ones(2), "b": np.ones(2)}, x="t", y="v", log_y=True)
    assert figure.data[0].line.dash != figure.data[1].line.dash
    assert figure.data[0].line.color != figure.data[1].line.color
    twins = figures.beside(figure, figure).data
    assert [twins[0].line.color, twins[1].line.color] == [twins[2].line.color, twins[3].line.color]
    assert figure.layout.yaxis.type == "log"


def test_every_picture_is_valid_json():
    def refuse(constant):
        raise ValueError(constant)

    for figure in draw_all(np.asarray).values():
        json.loads(figure.to_json(), parse_constant=refuse)


def test_importing_loads_neither_plotly_nor_torch():
    code = (
        "import sys, safediffkit.figures, safediffkit.widgets; sys.exit(bool({'torch', 'plotly'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
