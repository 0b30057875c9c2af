import json

import numpy as np
import pytest
import torch

from safediffkit.widgets import Bank, Frame, Scene, arrow, bank, circle, grid, line, region
from safediffkit.widgets.banks import OUTCOMES, packed

SCENE = Scene((-8, 8, "x (m)"), (-4, 4, "y (m)"))


def walks(weight, kind, seed):
    random = np.random.default_rng(seed)
    paths = weight * random.normal(size=(5, 9, 2))
    violating = paths[..., 0] > 2
    return Frame(paths=paths, violating=violating, heat=weight * np.eye(3), numbers={"cost": weight})


def made(seed=0):
    return bank(walks, {"weight": [0.0, 1.0, 2.0], "kind": ["a", "b"]}, seed)


def part(header, blob, name, kind, shape=-1):
    start, length = header["parts"][name]
    return np.frombuffer(blob, kind, offset=start, count=length // np.dtype(kind).itemsize).reshape(shape)


def positions(header, blob):
    """Turn the rounded positions back, as explorer.js does."""
    levels = part(header, blob, "paths", "<i2", (-1, header["trajectories"], header["steps"], 2)).astype(float)
    low, high = np.transpose(header["range"])
    return np.where(levels == -32768, np.nan, low + (levels + 32767) / 65534 * (high - low))


def test_positions_come_back_within_half_a_step_of_the_rounding():
    b = made()
    header, blob = packed(SCENE, b)
    paths = np.stack([frame.paths for frame in b.frames])
    step = 5 * np.array([16, 8]) / 65534  # five views wide, 65535 levels
    assert (np.abs(positions(header, blob) - paths) <= 0.51 * step).all()


def test_what_is_not_there_stays_so_and_what_is_far_off_is_held_at_the_edge():
    paths = np.array([[[0, 0], [np.nan, 1], [np.inf, -1e30]]])
    header, blob = packed(SCENE, bank(lambda w, seed: Frame(paths=paths), {"w": [1]}))
    back = positions(header, blob)[0, 0]
    assert back[1] == pytest.approx([np.nan] * 2, nan_ok=True)
    assert back[2] == pytest.approx([40, -20])


def test_outcomes_violations_and_heat_come_back():
    b = made()
    header, blob = packed(SCENE, b)
    outcomes = part(header, blob, "outcomes", np.uint8, (6, 5))
    assert [[OUTCOMES[code] for code in codes] for codes in outcomes] == [list(f.outcomes) for f in b.frames]
    bits = np.unpackbits(part(header, blob, "violating", np.uint8), bitorder="little")[: 6 * 5 * 9]
    assert (bits.reshape(6, 5, 9) == np.stack([frame.violating for frame in b.frames])).all()
    heat = part(header, blob, "heat", np.uint8, (6, 3, 3))
    assert header["heat"] == {"rows": 3, "columns": 3, "low": 0, "high": 2}
    assert heat[:, 0, 0].tolist() == [0, 0, 127, 127, 254, 254]


def test_heat_that_is_not_there_has_no_colour_and_infinite_heat_an_end_of_the_scale():
    heat = np.array([[np.nan, -np.inf, 1.0, 3.0, np.inf]])
    header, blob = packed(SCENE, bank(lambda w, seed: Frame(heat=heat), {"w": [1]}))
    assert part(header, blob, "heat", np.uint8).tolist() == [255, 0, 0, 254, 254]
    header, blob = packed(SCENE, bank(lambda w, seed: Frame(heat=np.full((1, 2), np.nan)), {"w": [1]}))
    assert part(header, blob, "heat", np.uint8).tolist() == [255, 255]


def test_the_header_is_json_even_where_a_number_is_none():
    header, _ = packed(SCENE, bank(lambda w, seed: Frame(numbers={"log": -np.inf, "two": 2}), {"w": [1]}))
    assert json.loads(json.dumps(header, allow_nan=False))["numbers"] == [{"log": None, "two": 2}]


def test_every_setting_gets_the_same_seed_and_plain_values():
    seen = []

    def draw(*setting, seed):
        seen.append((*setting, seed))
        return Frame()

    b = bank(draw, {"w": np.linspace(0, 1, 2), "steps": torch.tensor([1, 2]), "kind": ["a"]}, seed=7)
    assert seen == [(0.0, 1, "a", 7), (0.0, 2, "a", 7), (1.0, 1, "a", 7), (1.0, 2, "a", 7)]
    assert all(type(value) in (float, int, str) for setting in seen for value in setting)
    assert (b.shape, b.frame([1, 0, 0])) == ((2, 2, 1), b.frames[2])


def test_shorter_paths_fewer_arrows_and_values_are_padded():
    def draw(n, seed):
        return Frame(paths=np.ones((2, n, 2)), arrows=np.ones((n, 4)), values=np.ones((n, 3)))

    header, blob = packed(SCENE, bank(draw, {"steps": [1, 3]}))
    gone = np.isnan(positions(header, blob)).all((1, 3))
    assert gone.tolist() == [[False, True, True], [False, False, False]]
    assert np.isnan(part(header, blob, "arrows", "<f4", (2, 3, 4))).sum((1, 2)).tolist() == [8, 0]
    assert np.isnan(part(header, blob, "values", "<f4", (2, 3, 3))).sum((1, 2)).tolist() == [6, 0]


def test_torch_tensors_do_as_well():
    paths = torch.zeros(2, 3, 2, requires_grad=True)
    frame = Frame(paths=paths, violating=torch.tensor([[False] * 3, [True] * 3]), numbers={"c": torch.tensor(2.0)})
    assert isinstance(frame.paths, np.ndarray)
    assert (frame.outcomes, frame.numbers) == (("safe", "violating"), {"c": 2.0})


def test_a_saved_bank_is_the_same_bank(tmp_path):
    b = bank(lambda n, seed: Frame(paths=np.ones((2, n, 2)), shapes=[circle(0, 0, n)], numbers={"n": n}), {"n": [1, 2]})
    b.save(tmp_path / "ship.bank")
    again = Bank.load(tmp_path / "ship.bank")
    assert packed(SCENE, again) == packed(SCENE, b)
    assert (again.axes, again.seed) == (b.axes, b.seed)
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match=r"other.npz holds no bank of version 1"):
        Bank.load(tmp_path / "other.npz")


def test_a_bank_that_would_be_too_large_is_refused_after_its_first_setting():
    calls = []

    def draw(w, seed):
        calls.append(w)
        return Frame(paths=np.zeros((100, 100, 2)))

    with pytest.raises(
        ValueError, match=r"42\.\d MB \(1000 settings x 100 paths x 100 steps\).*8\.0 MB.*fewer.*limit="
    ):
        bank(draw, {"w": range(1000)})
    assert len(calls) == 1
    assert len(bank(draw, {"w": range(3)}, limit=130_000).frames) == 3


def test_the_size_is_told_right():
    from safediffkit.widgets.banks import _size

    b = made()
    _, blob = packed(SCENE, b)
    assert sum(map(_size, b.frames)) == pytest.approx(len(blob), rel=0.1)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"paths": np.zeros((3, 2))}, r"shape \(trajectories, steps, 2\), not \(3, 2\); give points one step"),
        ({"paths": np.zeros((3, 4, 3))}, r"not \(3, 4, 3\)"),
        ({"arrows": np.zeros((3, 2))}, r"arrows must have the shape \(arrows, 4\)"),
        ({"heat": np.zeros(3)}, r"heat must have the shape \(rows, columns\)"),
        ({"paths": np.zeros((1, 1, 2)), "outcomes": ["fine"]}, "'fine' is unknown; it must be one of neutral, safe"),
        ({"paths": np.zeros((2, 1, 2)), "outcomes": ["safe"]}, "each of the 2 paths, not 1"),
        ({"paths": np.zeros((2, 1, 2)), "violating": np.ones((1, 1), bool)}, r"shape \(2, 1\) of paths, not \(1, 1\)"),
        ({"outcomes": ["safe"]}, "there are no paths"),
    ],
)
def test_a_frame_that_makes_no_sense_is_refused(parts, match):
    with pytest.raises(ValueError, match=match):
        Frame(**parts)


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda w, seed: Frame(numbers={f"n{w}": 0}), r"same numbers: \(2,\) gives n2; the first, n1"),
        (lambda w, seed: Frame(paths=np.zeros((w, 1, 2))), r"same number of paths: \(2,\) has 2; the first, 1"),
        (lambda w, seed: Frame(heat=np.zeros((1, w))), r"same shape of heat"),
        (lambda w, seed: Frame(heat=np.zeros((1, 1)) if w > 1 else None), r"the first, None"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(draw, match):
    with pytest.raises(ValueError, match=match):
        bank(draw, {"w": [1, 2]})


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        ({}, "one to three axes; got 0: none"),
        ({name: [1] for name in "abcd"}, "got 4: a, b, c, d"),
        ({"w": []}, "'w' has no values"),
        ({"w": [1, "a"]}, "'w' must be finite numbers, or all of them texts"),
        ({"w": [1, np.nan]}, "finite"),
    ],
)
def test_axes_that_cannot_be_shown_are_refused(axes, match):
    with pytest.raises(ValueError, match=match):
        bank(lambda *_, seed: Frame(), axes)


def test_shapes_say_what_is_wrong_with_them():
    with pytest.raises(ValueError, match="kind 'bad' is unknown; it must be one of danger"):
        circle(0, 0, 1, "bad")
    with pytest.raises(ValueError, match="two points"):
        line([(0, 0)])
    with pytest.raises(ValueError, match="finite"):
        region(0, 0, np.inf, 1)
    with pytest.raises(ValueError, match=r"'goal' lies at \(3, 0\), outside of 3 rows"):
        grid(3, 6, {(3, 0): "goal"})
    with pytest.raises(ValueError, match="x must run from a finite number to a larger one; got 1 to 1"):
        Scene((1, 1, "x"), (0, 1, "y"))
    assert arrow(0, 1, 2, 3, label="wind") == {
        "form": "arrow", "at": [0, 1, 2, 3], "kind": "neutral", "label": "wind"
    }  # fmt: skip
