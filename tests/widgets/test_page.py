import base64
import json
import re

import numpy as np
import pytest
from ipywidgets import IntSlider
from ipywidgets.embed import dependency_state

from safediffkit.widgets import Explorer, Frame, Scene, bank
from safediffkit.widgets.page import embed, page, place

SCENE = Scene((-1, 1, "x"), (-1, 1, "y"))


def explorer(title):
    return Explorer(SCENE, bank(lambda w, seed: Frame(paths=np.zeros((1, 2, 2))), {"w": [1]}), title=title)


def data(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_two_widgets_share_their_code():
    html = embed({"one": (explorer("one").get_state(), []), "two": (explorer("two </script>").get_state(), [])})
    held = data(html)
    assert len(held["modules"]) == 1
    assert [model["state"]["header"]["title"] for model in held["models"].values()] == ["one", "two </script>"]
    assert html.count("data-safediffkit-model=") - html.count("[data-safediffkit-model=") == 2
    assert html.count("</script>") == 2


def test_a_model_of_a_saved_notebook_does_as_well():
    one = explorer("saved")
    saved = dependency_state(one, drop_defaults=False)[one.model_id]
    live, stored = data(embed({"x": (one.get_state(), [])})), data(embed({"x": (saved["state"], saved["buffers"])}))
    assert live["models"]["x"]["buffers"] == stored["models"]["x"]["buffers"] == {
        "bank": base64.b64encode(one.bank).decode()
    }  # fmt: skip
    assert live["models"]["x"]["state"]["state"] == stored["models"]["x"]["state"]["state"] == one.state
    assert "layout" not in live["models"]["x"]["state"]


def test_the_places_may_stand_elsewhere():
    html = embed({"x": (explorer("x").get_state(), [])}, placed=True)
    assert place("x") not in html
    assert place("x") in page("x", {"x": (explorer("x").get_state(), [])})


def test_what_cannot_be_embedded_is_refused():
    with pytest.raises(ValueError, match="'slider' has no _esm"):
        embed({"slider": (IntSlider().get_state(), [])})
    with pytest.raises(ValueError, match="cannot stand in an address"):
        embed({"a b": (explorer("x").get_state(), [])})
