"""Where recorded steps come from and go to: bundled packs, HDF5 files in DSRL's layout, DSRL's own files.

Whatever is read is checked first, and whatever is written appears under its name whole or not at all.
"""

import io
import os
import time
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from ssl import SSLError
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from safediffkit.data.dataset import Dataset
from safediffkit.data.tasks import TASKS, Task, find_task

FORMAT = 1
DSRL = "DSRL (Datasets for Safe RL, CC-BY)"
HALF = "Stored in half precision (float16)."
MIRROR = "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main"
PATIENCE = 10.0  # seconds of silence before a connection counts as dead
ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt; doubles with each further one

Array = NDArray[Any]
_COLUMNS = ("observations", "actions", "rewards", "costs", "terminals", "timeouts")
_NEXT = "next_observations"
_LAST = "last_next_observations"  # compact layout: one row an episode, since all others are the next row


def load(task: str, *, source: str = "bundled", path: Path | str | None = None) -> Dataset:
    """Load recorded episodes of a task.

    `source="bundled"` reads the pack that comes with safediffkit, `source="dsrl"` DSRL's own file in
    `$DSRL_DATASET_DIR` (else ~/.dsrl/datasets), downloaded first if it is not there. `path` reads that file instead.

    Raises:
        ValueError: unknown task or source, or the file holds something else (see `load_file`).
        OSError: the file is not there, cannot be read, or cannot be downloaded.
    """
    facts = find_task(task)
    if source not in ("bundled", "dsrl"):
        raise ValueError(f"unknown source {source!r}; choose 'bundled' or 'dsrl', or give path= to read a file")
    if path is not None:
        return load_file(path, facts)
    if source == "dsrl" and not facts.file:
        raise ValueError(f"DSRL has no data of {task}, which is a task of ours: load it without source=")
    if source == "dsrl":
        return _load_dsrl(facts)
    packs = resources.files("safediffkit.data").joinpath("packs")
    if not packs.joinpath(facts.pack).is_file():
        bundled = [name for name, other in TASKS.items() if packs.joinpath(other.pack).is_file()]
        raise FileNotFoundError(
            f"no pack of {task} comes with safediffkit, only of: {', '.join(bundled) or 'no task at all'}. "
            f"load({task!r}, source='dsrl') downloads DSRL's data; path= reads a file of yours"
        )
    with resources.as_file(packs.joinpath(facts.pack)) as file:
        return load_file(file, facts)


def load_file(path: Path | str, task: Task | None = None) -> Dataset:
    """Read an HDF5 file in DSRL's layout or in the compact one of the packs; all numbers become float32.

    An episode ends at a terminal, at a timeout and at the last row. With a `task`, widths, action box and episode
    length are checked as well. A file under DSRL's own name may hold actions outside the box, as some of DSRL's do
    (DSRL issue 5): they are clipped to it, which is what the simulator did with them, and `provenance` says so.

    Raises:
        OSError: the file cannot be read at all: missing, no permission, not HDF5, cut short, damaged.
        ValueError: it can, but a key is missing or wrong; says which, what was found and what is needed.
    """
    path = Path(path)
    if task and path.name == task.file:
        return _load(path, task, f"{DSRL}, file {path.name}, read from a local copy", clip=True)
    return _load(path, task, f"unknown origin: file {path.name}")


def write_file(dataset: Dataset, path: Path | str, *, compact: bool = False) -> None:
    """Write whole episodes to HDF5 in DSRL's layout, with `provenance` as an attribute of the file.

    The same dataset gives the same bytes. `compact` is the layout of the bundled packs, about a quarter of the size:
    half precision, and of `next_observations` only each episode's last, because the others are the next row.

    Raises:
        ValueError: the dataset could not be read back: no steps, NaN or infinity, not whole episodes in order, or,
            if `compact`, `next_observations` that are not the next row.
        OSError: the disk is full or the folder missing; an older file under this name is unharmed.
    """
    import h5py

    path = Path(path)
    terminals, episode = dataset.terminated.numpy(force=True), dataset.episode.numpy(force=True)
    last = np.ones(len(episode), dtype=bool)
    last[:-1] = episode[1:] != episode[:-1]
    floats = ("observations", "actions", "rewards", "costs", _NEXT)
    arrays = {key: getattr(dataset, key).numpy(force=True) for key in floats}
    arrays |= {"terminals": terminals, "timeouts": last & ~terminals}
    if not torch.equal(_checked(path, arrays, None, "").episode, dataset.episode.cpu()):
        raise ValueError(
            f"{path}: rows must be episode after episode, numbered 0, 0, ..., 1, 1, ..., with terminated only at an "
            "episode's last row; a batch is not (where(mask) keeps the order)"
        )
    provenance = dataset.provenance
    if compact:
        following = arrays.pop(_NEXT)
        if not np.array_equal(following[:-1][~last[:-1]], arrays["observations"][1:][~last[:-1]]):
            raise ValueError(f"{path}: compact needs next_observations that equal the next row inside an episode")
        arrays = {key: _halved(array) for key, array in (arrays | {_LAST: following[last]}).items()}
        provenance = provenance if HALF in provenance else f"{provenance} {HALF}".strip()
    # In memory first: HDF5 cannot recover from a full disk, a plain write can.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["provenance"] = provenance
        file.attrs["safediffkit_format"] = FORMAT
        for key, array in sorted(arrays.items()):
            options = {"compression": "gzip", "compression_opts": 9 if compact else 4, "shuffle": True}
            file.create_dataset(key, data=array, track_times=False, **options)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as sink:
            sink.write(image.getbuffer())
            _flush(sink)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _halved(array: Array) -> Array:
    fits = array.dtype == np.float32 and np.abs(array).max(initial=0) <= np.finfo(np.float16).max
    return array.astype(np.float16) if fits else array


def _flush(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _load(path: Path, task: Task | None, origin: str, *, clip: bool = False) -> Dataset:
    """Read a file; `origin` is its provenance if it does not tell its own."""
    import h5py

    with path.open("rb"):
        pass  # Python's errors for a missing file, a folder or no permission are clearer than HDF5's
    try:
        # no lock: a file that we are still downloading is locked by ourselves, and finished ones never change
        with h5py.File(path, "r", locking=False) as file:
            keys, attributes = list(file), dict(file.attrs)
            wanted = [*_COLUMNS, _LAST if _LAST in file and _NEXT not in file else _NEXT]
            arrays = {key: np.asarray(file[key][()]) for key in wanted if isinstance(file.get(key), h5py.Dataset)}
    except (OSError, RuntimeError, KeyError) as error:
        raise OSError(f"{path} cannot be read: not HDF5, cut short, or damaged ({error})") from error
    if (version := attributes.get("safediffkit_format", FORMAT)) != FORMAT:
        raise ValueError(f"{path} has format {version}; this safediffkit reads format {FORMAT}")
    for key in wanted:
        if key not in arrays:
            raise ValueError(
                f"{path}: no array {key!r}; found {', '.join(map(str, keys)) or 'nothing'}, need {', '.join(wanted)}"
            )
    provenance = attributes.get("provenance")
    return _checked(path, arrays, task, provenance if isinstance(provenance, str) else origin, clip=clip)


def _checked(
    path: Path, arrays: dict[str, Array], task: Task | None, provenance: str, *, clip: bool = False
) -> Dataset:
    """Make a Dataset of the arrays of a file, or say what is wrong with them."""

    def check(right: bool | np.bool_, key: str, found: str, needed: str) -> None:
        if not right:
            raise ValueError(f"{path}: {key!r} has {found}; needed: {needed}")

    for key, array in arrays.items():
        check(array.dtype.kind in "biuf", key, f"type {array.dtype}", "numbers")
    shape, actions = arrays["observations"].shape, arrays["actions"].shape
    check(len(shape) in (2, 3), "observations", f"shape {shape}", "(steps, obs) or (steps, agents, obs)")
    check(shape[0] > 0, "observations", "zero steps", "at least one")
    row = shape[:-1] if task is None else (*shape[:1], *task.agents)
    obs = (*row, task.obs if task else shape[-1])
    act = (*row, task.act if task else actions[-1] if len(actions) == len(shape) else "act")
    shapes = {"observations": obs, _NEXT: obs, "actions": act, "rewards": row, "costs": row}
    shapes |= {"terminals": row[:1], "timeouts": row[:1]}
    columns = {}
    for key, array in arrays.items():
        if array.shape == (row[0], 1) and shapes.get(key) == row[:1]:
            array = array[:, 0]
        needed = f"{shapes.get(key)}: as many steps as observations" + (f", shaped as {task.name}" if task else "")
        check(array.shape == shapes.get(key, array.shape), key, f"shape {array.shape}", needed)
        with np.errstate(over="ignore"):
            columns[key] = array.astype(np.float32)
        bad = np.argwhere(~np.isfinite(columns[key]))
        check(not len(bad), key, f"{len(bad)} NaN or infinite values, the first in row {bad[:1, :1].sum()}", "none")

    terminated = columns["terminals"] != 0
    last = terminated | (columns["timeouts"] != 0)
    last[-1] = True
    episode = np.cumsum(last) - last
    if _LAST in columns:
        ends = (int(last.sum()), *obs[1:])
        check(columns[_LAST].shape == ends, _LAST, f"shape {columns[_LAST].shape}", f"{ends}: one row an episode")
        columns[_NEXT] = np.roll(columns["observations"], -1, axis=0)
        columns[_NEXT][last] = columns[_LAST]
    if task:
        low, high = task.box
        over = np.maximum(low - columns["actions"], columns["actions"] - high)
        rounding = 1e-3 * max(-low, high)  # of float16
        if clip and over.max() > rounding:
            columns["actions"] = columns["actions"].clip(low, high)
            provenance += f"; actions clipped to {low:g} ... {high:g}, as the simulator does"
        elif over.max() > rounding:
            found = f"values up to {over.max():.3g} outside, the furthest in row {over.argmax() // over[0].size}"
            check(False, "actions", found, f"the box of {task.name}, {low:g} to {high:g}")
        longest = np.bincount(episode).max()
        found = f"an episode of {longest} steps between its ends"
        check(longest <= task.horizon, "terminals or timeouts", found, f"at most {task.horizon} for {task.name}")
    floats = ("observations", "actions", "rewards", "costs", _NEXT)
    return Dataset(
        **{key: torch.from_numpy(columns[key]) for key in floats},
        terminated=torch.from_numpy(terminated),
        episode=torch.from_numpy(episode),
        provenance=provenance,
    )


def _load_dsrl(task: Task) -> Dataset:
    from fcntl import LOCK_EX, LOCK_NB, flock

    folder = Path(os.environ.get("DSRL_DATASET_DIR") or "~/.dsrl/datasets").expanduser()
    file, partial = folder / task.file, folder / f"{task.file}.partial"
    if file.exists():
        return load_file(file, task)
    folder.mkdir(parents=True, exist_ok=True)
    with partial.open("ab", buffering=0) as sink:
        try:
            flock(sink, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is downloading {file}; wait until it has finished") from error
        if file.exists():  # another process has finished just now, and `sink` may be its file
            return load_file(file, task)
        return _download(f"{MIRROR}/{task.file}", sink, partial, file, task)


def _download(url: str, sink: BinaryIO, partial: Path, file: Path, task: Task) -> Dataset:
    """Fetch a file into `sink`, look into it, and only then give it its name."""
    etag = partial.with_name(f"{partial.name}.etag")
    try:
        _fetch(url, sink, etag)
        _flush(sink)
    except OSError as error:
        size = sink.seek(0, os.SEEK_END)
        if not size:
            partial.unlink()
            etag.unlink(missing_ok=True)
        kept = f"; the {size} bytes that came are kept, another try goes on from there" if size else ""
        raise OSError(f"{error}{kept}. Offline? Get {url} elsewhere and put it at {file}") from error
    etag.unlink(missing_ok=True)
    try:
        dataset = _load(partial, task, f"{DSRL}, file {task.file}, downloaded from {url}", clip=True)
    except (OSError, ValueError) as error:
        partial.unlink()
        raise ValueError(f"{url} sent something else than DSRL's data, which was discarded: {error}") from error
    partial.replace(file)
    return dataset


def _fetch(url: str, sink: BinaryIO, etag: Path) -> None:
    """Try until `sink` holds the whole file, each time going on where the last connection ended."""
    problem = ""
    for attempt in range(ATTEMPTS):
        time.sleep(BACKOFF * 2 ** (attempt - 1) if attempt else 0)
        try:
            if _fetch_rest(url, sink, etag):
                return
            problem = "the connection was cut off"
        except HTTPError as error:
            error.close()
            problem = f"the server says {error.code} {error.reason}"
            if error.code == 416:  # we hold more than there is: not the same file
                sink.truncate(0)
            elif error.code < 500 and error.code not in (408, 429):
                raise OSError(f"cannot download {url}: {problem}") from error
        except URLError as error:
            problem = f"no connection ({error.reason})"
            if attempt == 0:  # most likely offline: say so at once
                raise ConnectionError(f"cannot download {url}: {problem}") from error
        except (HTTPException, TimeoutError, ConnectionError, SSLError) as error:
            problem = str(error) or type(error).__name__
    raise OSError(f"cannot download {url}: gave up after {ATTEMPTS} attempts: {problem}")


def _fetch_rest(url: str, sink: BinaryIO, etag: Path) -> bool:
    """Append over one connection what `sink` lacks; true if nothing is lacking then."""
    have = sink.seek(0, os.SEEK_END)
    known = etag.read_text() if have and etag.exists() else ""
    rest = {"Range": f"bytes={have}-", "If-Range": known} if known else {}
    with urlopen(Request(url, headers={"User-Agent": "safediffkit", **rest}), timeout=PATIENCE) as answer:
        tag = answer.headers.get("ETag", "")
        if answer.status == 206:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") or tag not in ("", known):
                sink.truncate(0)  # the rest of another file
                return False
        else:
            have = sink.truncate(0)
            etag.write_text("" if tag.startswith("W/") else tag)  # a weak tag does not promise the same bytes
        total = None if answer.length is None else have + answer.length
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
            while piece := answer.read1(1 << 18):
                bar.update(len(piece))
                while piece:  # an unbuffered file may take a part only
                    piece = piece[sink.write(piece) :]
        return total in (None, sink.seek(0, os.SEEK_END))
