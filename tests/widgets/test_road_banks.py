import pytest
import torch

from safediffkit.widgets import Frame
from safediffkit.widgets.road_banks import (
    CARS,
    OUTCOMES,
    fan_scene,
    fans,
    from_above,
    road_scene,
    share_scene,
    stacked_shares,
)
from safediffkit.worlds import merge


def test_outcomes_are_the_worlds_and_each_has_a_kind_of_its_own():
    assert tuple(OUTCOMES) == merge.OUTCOMES
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)


def test_a_car_on_its_lane_is_between_the_lines_of_its_own_road():
    scene = road_scene(2, bend=merge.BEND, merge=merge.MERGE, finish=merge.FINISH)
    places = torch.tensor([[20.0, 14.5], [20.0, 4.0]])[None, :, None].expand(2, 2, 3, 2)
    frame = Frame(**from_above(places, torch.zeros(2, 2, 3, dtype=torch.bool), ["slow", "crash"], every=1))
    edges = [sorted(shape["at"][1] for shape in scene.shapes[start : start + 4]) for start in (0, 4)]
    heights = frame.paths[:, 0, 1].tolist()
    for k in range(2):
        ramp_low, ramp_high, road_low, road_high = edges[k]
        ramp, road = heights[2 * k : 2 * k + 2]
        assert ramp_low < ramp < ramp_high < road_low < road < road_high
        assert scene.y[0] <= ramp_low
        assert road_high <= scene.y[1]
    assert [shape["label"] for shape in frame.shapes] == ["slow", "crash"]
    left, low, right, high = frame.shapes[0]["at"]
    assert merge.FINISH < left < right < scene.x[1], "behind the end of the ramp"
    assert edges[1][3] < low == high < -6


def test_steps_are_thinned_and_those_below_the_margin_stay_marked():
    places, below = torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, dtype=torch.bool)
    below[0, 1, 2] = True
    frame = Frame(**from_above(places, below, ["slow"], every=2))
    assert frame.paths.shape == (2, 3, 2)
    assert frame.violating.tolist() == [[False] * 3, [False, True, False]]
    assert frame.outcomes == ("safe", "violating")


def test_fans_stand_in_their_panels_and_say_what_became_of_each_plan():
    ahead = torch.arange(12.0).view(2, 2, 3)
    refused, chosen = torch.tensor([[True, False], [True, True]]), torch.tensor([1, 0])
    frame = Frame(**fans(ahead, refused, chosen, end=3.0, keep=7.0))
    assert frame.outcomes == ("violating", "chosen", "chosen", "violating")
    assert frame.paths[..., 0].tolist() == [[0, 1.5, 3]] * 2 + [[4, 5.5, 7]] * 2
    assert frame.paths[..., 1].flatten().tolist() == list(range(12))
    titles = [shape["label"] for shape in fan_scene(3.0).shapes if shape["label"]]
    assert [f"car {title.removeprefix('plans ')}" for title in titles] == list(CARS)
    with pytest.raises(ValueError, match="two cars"):
        fans(ahead[:1], refused[:1], chosen[:1], end=3.0, keep=7.0)


def test_shares_are_stacked_to_a_hundred():
    one = {"leader first": 50.0, "follower first": 0.0, "slow": 30.0, "crash": 20.0}
    shapes = stacked_shares([0, 1.5], [one, one])
    assert [shape["at"][1::2] for shape in shapes[:3]] == [[0, 50], [50, 80], [80, 100]]
    assert [shape["kind"] for shape in shapes[:3]] == ["safe", "start", "danger"]
    assert shapes[3]["at"][0] == pytest.approx(1.5 + shapes[0]["at"][0])
    scene = share_scene([0, 1.5], "weight")
    for value, shape in zip([0, 1.5], shapes[::3], strict=True):  # around its value, and within the picture
        left, _, right, _ = shape["at"]
        assert (left + right) / 2 == pytest.approx(value)
        assert scene.x[0] < left < right < scene.x[1]
    assert shapes[0]["at"][2] < shapes[3]["at"][0]
