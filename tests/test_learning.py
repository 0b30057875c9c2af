import pytest
import torch
from torch import nn

from safediffkit.learning import Standardise, follow, ignore, progress, repeat, seeded, words
from safediffkit.methods import spi


def test_seeded_repeats_itself_and_leaves_the_caller_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0) as first:
        a, b = torch.rand(2), torch.rand(2, generator=first)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0) as second:
        assert torch.equal(torch.rand(2), a)
        assert torch.equal(torch.rand(2, generator=second), b)


def test_follow_moves_a_share_of_the_way():
    target, source = nn.Linear(2, 1), nn.Linear(2, 1)
    before = target.weight.detach().clone()
    follow(target, source, 0.25)
    torch.testing.assert_close(target.weight, 0.75 * before + 0.25 * source.weight)


def test_standardise_measures_the_data_and_spares_constants():
    data = torch.stack([torch.linspace(-4, 8, 50), torch.full((50,), 3.0)], 1)
    scale = Standardise(2)
    scale.fit(data)
    scaled = scale(data)
    torch.testing.assert_close(scaled[:, 0].std(), torch.tensor(1.0))
    assert scaled[:, 1].abs().max() == 0


def test_words_are_json():
    import json

    assert json.loads(json.dumps(words(spi.Config())))["risk"] == "happened"


def test_progress_shows_losses_to_the_end(capsys):
    watch = progress(100, "toy")
    for step in range(1, 101):
        watch(step, {"loss": 0.125})
    err = capsys.readouterr().err
    assert "100/100" in err
    assert "loss=0.125" in err


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr("safediffkit.learning.CHECKPOINT_EVERY", 4)


def _fit(steps, checkpoint=None, stop=None, run="toy"):
    """A noisy little regression; with `stop`, killed at that update."""
    with seeded(3) as generator:
        net = nn.Linear(2, 1)
        adam = torch.optim.Adam(net.parameters(), 0.05)

        def update():
            x = torch.randn(8, 2, generator=generator) + 0.1 * torch.randn(8, 2)
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            return {"loss": loss.detach()}

        def watch(step, losses):
            if step == stop:
                raise KeyboardInterrupt

        parts = {"net": net, "adam": adam}
        repeat(update, parts, generator, steps=steps, run=run, watch=watch, checkpoint=checkpoint)
    return net


def test_an_interrupted_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    file = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        _fit(20, file, stop=11)
    assert file.exists()
    resumed = _fit(20, file)
    assert torch.equal(resumed.weight, _fit(20).weight)
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "run.checkpoint"
    _fit(4, file)
    with pytest.raises(ValueError, match="belongs to another run: toy; this one is: other"):
        _fit(8, file, run="other")
    file.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        _fit(8, file)
    assert file.read_bytes() == b"rubbish"


def test_ignore_ignores():
    assert ignore(1, {}) is None
