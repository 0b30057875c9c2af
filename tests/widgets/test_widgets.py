import numpy as np
import pytest
from ipywidgets import FloatSlider, IntSlider

from safediffkit.figures import curves, grid_values
from safediffkit.widgets import explore, walker
from safediffkit.worlds.pixel_world import DOWN, RIGHT, PixelWorld


def test_text_follows_a_slider_and_needs_no_figure():
    box = explore(lambda a, b: f"{a * b}", a=IntSlider(2), b=IntSlider(3, description="factor"))
    a, b, text = box.children
    assert (a.description, b.description, text.value) == ("a", "factor", "6")
    a.value = 5
    assert text.value == "15"


def test_a_figure_follows_a_slider_in_place():
    def draw(height):
        return curves(np.arange(3), {"line": np.full(3, height)}, x="x", y="y", title=f"{height}"), f"height {height}"

    slider, text, figure = explore(draw, height=FloatSlider(value=1.0, max=9)).children
    trace = figure.data[0]
    slider.value = 4.0
    assert list(trace.y) == [4, 4, 4]
    assert figure.layout.title.text == "4.0"
    assert figure.layout.yaxis.title.text == "y"
    assert text.value == "height 4.0"


def test_a_heat_map_with_empty_cells_follows_a_slider():
    slider, _, figure = explore(lambda q: grid_values(np.full((3, 4, 4), q)), q=FloatSlider(value=1.0)).children
    slider.value = 7.0
    assert figure.data[0].z[0][1] == 7
    assert figure.data[0].z[0][0] is None


def test_a_figure_with_another_number_of_traces_is_refused():
    def draw(n):
        return curves(np.arange(2), {str(k): np.arange(2) for k in range(n)}, x="x", y="y")

    slider, _, _ = explore(draw, n=IntSlider(1)).children
    with pytest.raises(ValueError, match="2 traces where it made 1"):
        slider.value = 2


def test_the_walker_walks_ends_and_starts_again():
    buttons, text = walker(PixelWorld(2, render_mode="ansi")).children
    *moves, again = buttons.children
    assert [button.description for button in moves] == ["↑ up", "→ right", "↓ down", "← left"]
    moves[DOWN].click()
    assert ". T\n@ ." in text.value
    moves[DOWN].click()
    moves[RIGHT].click()
    assert "moves 3, reward 1, cost 0: the episode is over" in text.value
    assert all(button.disabled for button in moves)
    again.click()
    assert "moves 0, reward 0, cost 0" in text.value
    moves[RIGHT].click()
    assert "moves 1, reward 0, cost 1: the episode is over" in text.value


def test_the_walker_says_when_time_is_up_and_needs_a_drawing_world():
    buttons, text = walker(PixelWorld(3, horizon=1, render_mode="ansi")).children
    buttons.children[DOWN].click()
    assert "the time is up" in text.value
    with pytest.raises(ValueError, match='render_mode="ansi", not None'):
        walker(PixelWorld(3))
