import contextlib
import dataclasses
import errno
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

from safediffkit.data import sources
from safediffkit.data.dataset import Dataset
from safediffkit.data.sources import load, load_file, write_file
from safediffkit.data.tasks import TASKS, find_task

BALL = find_task("OfflineBallCircle-v0")
KEYS = ["observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"]


def tensors(dataset):
    return {f.name: getattr(dataset, f.name) for f in dataclasses.fields(Dataset) if f.name != "provenance"}


def assert_same(a, b, **tolerance):
    for name, column in tensors(a).items():
        assert column.dtype == tensors(b)[name].dtype, name
        torch.testing.assert_close(column, tensors(b)[name], **(tolerance or {"rtol": 0, "atol": 0}))


def halved(dataset):
    """Round as float16 does, so that nothing more is lost in a compact file."""
    return dataclasses.replace(
        dataset, **{k: v.half().float() for k, v in tensors(dataset).items() if v.dtype == torch.float32}
    )


def read(path):
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


@pytest.fixture
def raw():
    """Give the arrays of a right file: BallCircle, 3 episodes of 200, 5 and 2 steps, the second truly ended."""
    draw = np.random.default_rng(0)
    arrays = {
        "observations": draw.normal(size=(207, 8)),
        "next_observations": draw.normal(size=(207, 8)),
        "actions": draw.uniform(-1, 1, size=(207, 2)),
        "rewards": draw.normal(size=207),
        "costs": draw.integers(0, 2, size=207),
        "terminals": np.zeros(207, dtype=bool),
        "timeouts": np.zeros(207, dtype=bool),
    }
    arrays["timeouts"][[199, 206]] = arrays["terminals"][204] = True
    return arrays


@pytest.fixture
def store(tmp_path):
    def store(arrays, name="file.hdf5", **attributes):
        with h5py.File(tmp_path / name, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array)
            file.attrs.update(attributes)
        return tmp_path / name

    return store


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("agents", [(), (1,), (3,)])
@pytest.mark.parametrize("lengths", [(1,), (1, 1), (5, 1, 7), (200, 30)])
def test_what_is_saved_comes_back(make_dataset, tmp_path, lengths, agents):
    data = make_dataset(lengths, agents=agents, ended=[0])
    data.save(tmp_path / "a.hdf5")
    back = load_file(tmp_path / "a.hdf5")
    assert_same(back, data)
    assert back.provenance == data.provenance
    back.save(str(tmp_path / "b.hdf5"))
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    write_file(halved(data), tmp_path / "c.hdf5", compact=True)
    assert_same(load_file(tmp_path / "c.hdf5"), halved(data))


def test_layout_is_dsrls(make_dataset, tmp_path):
    data = make_dataset((4, 3, 2), ended=[1])
    data.save(tmp_path / "a.hdf5")
    arrays = read(tmp_path / "a.hdf5")
    assert sorted(arrays) == sorted(KEYS)
    assert np.flatnonzero(arrays["timeouts"]).tolist() == [3, 8]
    assert np.flatnonzero(arrays["terminals"]).tolist() == [6]
    assert {arrays[key].dtype for key in KEYS[:5]} == {np.dtype("float32")}
    assert {arrays[key].dtype for key in KEYS[5:]} == {np.dtype("bool")}


def test_compact_is_half_precision_without_next_rows(make_dataset, tmp_path):
    data = make_dataset((200, 200), ended=[0])
    write_file(data, tmp_path / "a.hdf5", compact=True)
    arrays = read(tmp_path / "a.hdf5")
    assert arrays.pop("last_next_observations").shape == (2, 8)
    assert sorted(arrays) == sorted(set(KEYS) - {"next_observations"})
    assert {arrays[key].dtype for key in ("observations", "actions", "rewards", "costs")} == {np.dtype("float16")}
    back = load_file(tmp_path / "a.hdf5", dataclasses.replace(BALL))
    assert_same(back, data, rtol=2**-11, atol=1e-7)
    assert back.provenance == f"{data.provenance} Stored in half precision (float16)."
    write_file(back, tmp_path / "b.hdf5", compact=True)
    assert load_file(tmp_path / "b.hdf5").provenance == back.provenance


def test_compact_keeps_single_precision_where_half_does_not_fit(make_dataset, tmp_path):
    data = make_dataset()
    data = dataclasses.replace(data, rewards=data.rewards * 1e6)
    write_file(data, tmp_path / "a.hdf5", compact=True)
    assert torch.equal(load_file(tmp_path / "a.hdf5").rewards, data.rewards)


def test_compact_refuses_next_observations_that_are_not_the_next_row(make_dataset, tmp_path):
    data = make_dataset((5, 5))
    data.next_observations[7, 2] += 1e-6
    with pytest.raises(ValueError, match="equal the next row"):
        write_file(data, tmp_path / "a.hdf5", compact=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compact", [False, True])
def test_the_same_dataset_gives_the_same_bytes(make_dataset, tmp_path, compact):
    write_file(make_dataset(), tmp_path / "a.hdf5", compact=compact)
    time.sleep(1.1)  # HDF5 time stamps count seconds
    write_file(make_dataset(), tmp_path / "b.hdf5", compact=compact)
    write_file(make_dataset(seed=1), tmp_path / "c.hdf5", compact=compact)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    assert (tmp_path / "a.hdf5").read_bytes() != (tmp_path / "c.hdf5").read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("dsrl") is None, reason="dsrl is not installed")
def test_dsrls_own_loader_reads_what_we_write_and_its_facts_are_those_of_our_tasks(make_dataset, tmp_path):
    data = make_dataset((200, 200, 50), ended=[2])
    data.save(tmp_path / "ours.hdf5")
    code = """if True:
        import sys, dsrl.offline_bullet_safety_gym, gymnasium, numpy
        from safediffkit.data.tasks import BULLET
        worlds = {name: gymnasium.make(name).unwrapped for name in BULLET}
        theirs = worlds["OfflineBallCircle-v0"].get_dataset(h5path=sys.argv[1])
        numpy.savez(sys.argv[2], **theirs)
        for name, world in worlds.items():
            task, actions = BULLET[name], world.action_space
            assert task.rewards == (world.min_episode_reward, world.max_episode_reward), name
            assert task.costs == (world.min_episode_cost, world.max_episode_cost), name
            assert task.file == world.dataset_url.split("/")[-1], name
            assert ((task.obs,), (task.act,)) == (world.observation_space.shape, actions.shape), name
            assert task.box == (actions.low.min(), actions.high.max()), name
            assert task.horizon == gymnasium.spec(name).max_episode_steps, name
    """
    # in a process of its own, because the simulator's imports warn and print
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "ours.hdf5", tmp_path / "theirs.npz"],
        env=os.environ | {"DSRL_SUPPRESS_IMPORT_ERROR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    theirs = np.load(tmp_path / "theirs.npz")
    for key in KEYS[:5]:
        assert np.array_equal(theirs[key], getattr(data, key).numpy()), key
    assert np.array_equal(theirs["terminals"], data.terminated.numpy())
    assert np.flatnonzero(theirs["timeouts"]).tolist() == [199, 399]


# ---------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("where", ["h5py.File.create_dataset", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("trouble", [RuntimeError("crash"), KeyboardInterrupt(), OSError(errno.ENOSPC, "disk full")])
def test_trouble_while_writing_leaves_no_half_file(make_dataset, tmp_path, monkeypatch, older, where, trouble):
    path = tmp_path / "a.hdf5"
    if older:
        make_dataset().save(path)
    before = [(file.name, file.read_bytes()) for file in tmp_path.iterdir()]

    def fail(*args, **kwargs):
        raise trouble

    monkeypatch.setattr(where, fail)
    with pytest.raises(type(trouble)):
        make_dataset(seed=1).save(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == before


def test_a_disk_that_fills_up_harms_nothing(make_dataset, tmp_path):
    path = tmp_path / "a.hdf5"
    make_dataset().save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the system cuts longer writes short, as a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            make_dataset((2000,)).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_usual_permissions(make_dataset, tmp_path):
    make_dataset().save(tmp_path / "a.hdf5")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.hdf5").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_is_named(make_dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_dataset().save(tmp_path / "nowhere" / "a.hdf5")


@pytest.mark.parametrize("compact", [False, True])
def test_what_could_not_be_read_back_is_not_written(make_dataset, tmp_path, compact):
    data = make_dataset((3, 3))
    nan = data.rewards.clone()
    nan[4] = torch.nan
    wrong = {
        "zero steps": data.where(torch.zeros(6, dtype=torch.bool)),
        "'rewards' has 1 NaN or infinite values, the first in row 4": dataclasses.replace(data, rewards=nan),
        "episode after episode": dataclasses.replace(data, episode=data.episode + 1),
        "terminated only at": dataclasses.replace(data, terminated=torch.arange(6) == 1),
        "a batch is not": data.batch(6, torch.Generator().manual_seed(0)),
    }
    for message, dataset in wrong.items():
        with pytest.raises(ValueError, match=message):
            write_file(dataset, tmp_path / "a.hdf5", compact=compact)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- reading files of others


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("column", [False, True])
def test_dsrls_real_files_load(raw, store, dtype, column):
    arrays = {key: array if key in KEYS[5:] else array.astype(dtype) for key, array in raw.items()}
    if column:
        arrays |= {key: arrays[key][:, None] for key in ("rewards", "costs", "terminals", "timeouts")}
    path = store(arrays | {"extra": np.zeros(3), "words": b"more"})
    with h5py.File(path, "a") as file:
        file.create_group("infos/deep")
    data = load_file(path, BALL)
    assert {tensor.dtype for tensor in tensors(data).values()} == {torch.float32, torch.int64, torch.bool}
    assert data.rewards.shape == data.costs.shape == (207,)
    assert np.array_equal(data.rewards.numpy(), raw["rewards"].astype(dtype).astype("float32"))
    assert torch.bincount(data.episode).tolist() == [200, 5, 2]
    assert data.terminated.nonzero().tolist() == [[204]]
    assert data.provenance == "unknown origin: file file.hdf5"


def test_flags_may_be_numbers_and_both_set(raw, store):
    flags = {key: raw[key].astype("float64") for key in KEYS[5:]}
    flags["timeouts"][204] = 1
    data = load_file(store(raw | flags), BALL)
    assert torch.bincount(data.episode).tolist() == [200, 5, 2]
    assert data.terminated.nonzero().tolist() == [[204]]


def test_an_unfinished_last_episode_is_one(raw, store):
    raw["timeouts"][206] = False
    data = load_file(store(raw), BALL)
    assert torch.bincount(data.episode).tolist() == [200, 5, 2]
    assert data.terminated.sum() == 1


def test_actions_are_checked_up_to_rounding(raw, store):
    raw["actions"][:2] = [[1.0005, -1.0005], [np.float16(0.99999), -1]]
    assert load_file(store(raw), BALL).actions[0, 0] == np.float32(1.0005)
    raw["actions"][3, 1] = -1.25
    with pytest.raises(
        ValueError, match=r"'actions' has values up to 0.25 outside.* row 3; .*OfflineBallCircle.*-1 to 1"
    ):
        load_file(store(raw), BALL)
    assert load_file(store(raw)).actions[3, 1] == -1.25  # without a task there is no box


def test_actions_in_files_named_as_dsrls_are_clipped_and_provenance_says_so(raw, store):
    path = store(raw, BALL.file)
    assert "clipped" not in load_file(path, BALL).provenance
    raw["actions"][3] = [-7, 0.5]
    data = load_file(store(raw, BALL.file), BALL)
    assert data.actions[3].tolist() == [-1, 0.5]
    assert data.provenance.endswith("read from a local copy; actions clipped to -1 ... 1, as the simulator does")


def change(key, array):
    return lambda raw: raw | {key: array(raw[key])}


def put(key, row, *values):
    def changed(array):
        array = array.astype("float64")
        array[row : row + len(values)] = np.reshape(values, (-1,) + (1,) * (array.ndim - 1))
        return array

    return change(key, changed)


WRONG = {
    "zero steps": (lambda raw: {key: array[:0] for key, array in raw.items()}, "'observations' has zero steps"),
    "no next": (
        lambda raw: {k: v for k, v in raw.items() if k != KEYS[1]},
        "no array 'next_observations'; found act.*need",
    ),
    "empty file": (lambda raw: {}, "no array 'observations'; found nothing"),
    "short rewards": (change("rewards", lambda a: a[:-1]), r"'rewards' has shape \(206,\); needed: \(207,\)"),
    "short actions": (change("actions", lambda a: a[:-1]), r"'actions' has shape \(206, 2\); needed: \(207, 2\)"),
    "long next": (change(KEYS[1], lambda a: np.vstack([a, a])), r"'next_obs.* shape \(414, 8\); needed: \(207, 8\)"),
    "flat observations": (
        change("observations", np.ravel),
        r"'observations' has shape \(1656,\); needed: \(steps, obs\)",
    ),
    "scalar observations": (
        change("observations", lambda a: 1.0),
        r"'observations' has shape \(\); needed: \(steps, obs\)",
    ),
    "flat actions": (change("actions", lambda a: a[:, 0]), r"'actions' has shape \(207,\); needed: \(207, 2\)"),
    "scalar actions": (change("actions", lambda a: 0.0), r"'actions' has shape \(\); needed: \(207, 2\)"),
    "wide rewards": (
        change("rewards", lambda a: np.stack([a, a], 1)),
        r"'rewards' has shape \(207, 2\); needed: \(207,\)",
    ),
    "square costs": (change("costs", lambda a: a[None]), r"'costs' has shape \(1, 207\); needed: \(207,\)"),
    "width": (
        change("observations", lambda a: a[:, 1:]),
        r"'observ.* shape \(207, 7\); needed: \(207, 8\).*BallCircle",
    ),
    "next width": (change(KEYS[1], lambda a: a[:, 1:]), r"'next_obs.* shape \(207, 7\); needed: \(207, 8\)"),
    "action width": (change("actions", lambda a: a[:, 1:]), r"'actions' has shape \(207, 1\); needed: \(207, 2\)"),
    "nan": (put("rewards", 12, np.nan, 0, np.nan), "'rewards' has 2 NaN or infinite values, the first in row 12"),
    "infinity": (put("observations", 5, -np.inf), "'observations' has 8 NaN or infinite values, the first in row 5"),
    "too large": (put("costs", 0, 1e300), "'costs' has 1 NaN or infinite values, the first in row 0"),
    "nan flag": (put("timeouts", 3, np.nan), "'timeouts' has 1 NaN or infinite values, the first in row 3"),
    "words": (change("costs", lambda a: np.array([b"no"] * 207)), "'costs' has type .*; needed: numbers"),
    "nothing": (change("costs", lambda a: h5py.Empty("f4")), "'costs' has"),
    "long episode": (put("timeouts", 199, 0), "an episode of 205 steps between its ends; needed: at most 200"),
    "never ends": (put("timeouts", 199, *[0] * 8), "an episode of 205 steps"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content_is_refused_with_file_key_found_and_needed(raw, store, what):
    break_it, message = WRONG[what]
    path = store(break_it(raw))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_file(path, BALL)


def test_a_group_is_no_array(raw, store):
    del raw["costs"]
    path = store(raw)
    with h5py.File(path, "a") as file:
        file.create_group("costs")
    with pytest.raises(ValueError, match="no array 'costs'"):
        load_file(path)


def test_agents_must_agree(make_dataset, tmp_path, store):
    make_dataset(agents=(3,)).save(tmp_path / "a.hdf5")
    arrays = read(tmp_path / "a.hdf5")
    for key in ("rewards", "actions", "next_observations"):
        with pytest.raises(ValueError, match=f"'{key}' has shape .*13, 2"):
            load_file(store(arrays | {key: arrays[key][:, :2]}))
    with pytest.raises(ValueError, match=r"'terminals' has shape \(13, 3\); needed: \(13,\)"):
        load_file(store(arrays | {"terminals": np.zeros((13, 3), dtype=bool)}))
    with pytest.raises(ValueError, match=r"needed: \(steps, obs\) or \(steps, agents, obs\)"):
        load_file(store(arrays | {"observations": arrays["observations"][None]}))


def test_compact_files_need_one_last_row_an_episode(make_dataset, tmp_path, store):
    write_file(make_dataset(), tmp_path / "a.hdf5", compact=True)
    arrays = read(tmp_path / "a.hdf5")
    last = arrays["last_next_observations"]
    for wrong in (last[:2], last[:, :5], last[:, 0]):
        with pytest.raises(ValueError, match=r"'last_next_observations' has shape .*needed: \(3, 8\)"):
            load_file(store(arrays | {"last_next_observations": wrong}))
    unfinished = arrays["timeouts"].copy()
    unfinished[-1] = False
    assert_same(load_file(store(arrays | {"timeouts": unfinished})), load_file(tmp_path / "a.hdf5"))
    last[1, 3] = np.nan
    with pytest.raises(ValueError, match="'last_next_observations' has 1 NaN"):
        load_file(store(arrays | {"last_next_observations": last}))


def test_a_newer_format_is_refused(make_dataset, tmp_path):
    make_dataset().save(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file.attrs["safediffkit_format"] = 2
    with pytest.raises(ValueError, match="format 2; this safediffkit reads format 1"):
        load_file(tmp_path / "a.hdf5")


def test_a_file_that_cannot_be_read_at_all_is_an_os_error(make_dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.hdf5"):
        load_file(tmp_path / "missing.hdf5")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        load_file(tmp_path)
    path = tmp_path / "a.hdf5"
    for content in (b"", b"not HDF5 at all", b"<!doctype html>" * 999):
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"a\.hdf5 cannot be read: not HDF5, cut short, or damaged"):
            load_file(path)


@pytest.mark.parametrize("compact", [False, True])
def test_a_cut_or_damaged_file_is_never_taken_for_a_whole_one(make_dataset, tmp_path, compact):
    path = tmp_path / "a.hdf5"
    write_file(make_dataset((50,)), path, compact=compact)
    whole = path.read_bytes()
    for size in range(0, len(whole), 499):
        path.write_bytes(whole[:size])
        with pytest.raises(OSError, match="cannot be read"):
            load_file(path)
    draw = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        start = draw.integers(len(whole) - 64)
        damaged[start : start + 64] = draw.bytes(64)
        path.write_bytes(damaged)
        with contextlib.suppress(OSError, ValueError):  # no other error; bytes that mean nothing do no harm
            load_file(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission_is_said_as_such(make_dataset, tmp_path):
    make_dataset().save(tmp_path / "a.hdf5")
    (tmp_path / "a.hdf5").chmod(0)
    with pytest.raises(PermissionError, match=r"a\.hdf5"):
        load_file(tmp_path / "a.hdf5")


# ---------------------------------------------------------------- load


@pytest.fixture
def packs(tmp_path, monkeypatch):
    """Give an empty folder for the packs in place of the package's own."""
    monkeypatch.setattr(sources.resources, "files", lambda package: tmp_path)
    (tmp_path / "packs").mkdir()
    return tmp_path / "packs"


def test_load_gives_the_bundled_pack(make_dataset, packs):
    data = halved(make_dataset((200, 200)))
    write_file(data, packs / BALL.pack, compact=True)
    assert_same(load("OfflineBallCircle-v0"), data)
    with pytest.raises(FileNotFoundError, match=r"OfflineCarRun-v0.*only of: OfflineBallCircle-v0\..*source='dsrl'"):
        load("OfflineCarRun-v0")
    shutil.copy(packs / BALL.pack, packs / find_task("OfflineCarRun-v0").pack)
    with pytest.raises(ValueError, match="OfflineCarRun-v0"):
        load("OfflineCarRun-v0")


def test_load_without_any_pack_says_so(packs):
    with pytest.raises(FileNotFoundError, match="no task at all"):
        load("OfflineBallCircle-v0")


def test_the_packs_that_come_with_the_library_load():
    for task in TASKS.values():
        pack = sources.resources.files("safediffkit.data").joinpath("packs", task.pack)
        if pack.is_file():
            data = load(task.name)
            assert len(data.episode_starts()) >= 300
            assert os.path.getsize(str(pack)) <= 2_000_000
            assert "half precision" in data.provenance


def test_load_reads_a_given_file_and_checks_it_for_the_task(make_dataset, tmp_path, monkeypatch):
    make_dataset((200,)).save(tmp_path / "a.hdf5")
    assert len(load("OfflineBallCircle-v0", path=tmp_path / "a.hdf5")) == 200
    assert len(load("OfflineBallCircle-v0", path=str(tmp_path / "a.hdf5"))) == 200
    with pytest.raises(ValueError, match=r"needed: \(200, 7\).*OfflineCarRun-v0"):
        load("OfflineCarRun-v0", path=tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match="did you mean"):
        load("OfflineCarRn-v0", path=tmp_path / "a.hdf5")


@pytest.mark.parametrize("agents", [(), (2,), (3,)])
def test_a_teams_file_needs_its_agents(make_dataset, tmp_path, agents):
    data = make_dataset((25, 25), obs=20, agents=agents)
    data.save(tmp_path / "a.hdf5")
    if agents == (3,):
        assert_same(load("landmarks-medium", path=tmp_path / "a.hdf5"), data)
        make_dataset((200,), agents=(3,)).save(tmp_path / "b.hdf5")
        with pytest.raises(ValueError, match=r"needed: \(200, 8\).*shaped as OfflineBallCircle-v0"):
            load("OfflineBallCircle-v0", path=tmp_path / "b.hdf5")
    else:
        with pytest.raises(ValueError, match=r"needed: \(50, 3, 20\).*shaped as landmarks-medium"):
            load("landmarks-medium", path=tmp_path / "a.hdf5")


def test_dsrl_has_no_data_of_teams():
    with pytest.raises(ValueError, match="DSRL has no data of merge-mixed-safety"):
        load("merge-mixed-safety", source="dsrl")


def test_an_unknown_source_lists_the_choices():
    with pytest.raises(ValueError, match="unknown source 'web'; choose 'bundled' or 'dsrl'"):
        load("OfflineBallCircle-v0", source="web")
