"""Downloads from a server on the loopback interface; nothing here touches a real network."""

import hashlib
import os
import re
import resource
import socket
import threading
import time
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from safediffkit.data import sources
from safediffkit.data.sources import load
from safediffkit.data.tasks import find_task

TASK = find_task("OfflineBallCircle-v0")


class Mirror(ThreadingHTTPServer):
    """Serve one file, in as bad a way as told: each request takes the next trouble off the list."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.troubles, self.requests, self.hung = content, [], [], threading.Event()
        self.ranges, self.tags, self.lengths = True, True, True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        mirror, content = self.server, self.server.content
        mirror.requests.append((self.path, self.headers.get("Range")))
        trouble = mirror.troubles.pop(0) if mirror.troubles else None
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        if isinstance(trouble, int):
            return self.send_error(trouble)
        if trouble == "silent":
            return mirror.hung.wait()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if mirror.ranges else 0
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            shift = 1 if trouble == "wrong range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
        if mirror.tags:
            self.send_header("ETag", '"another"' if trouble == "wrong tag" else tag)
        if mirror.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + (len(content) - start) // 2 if trouble in ("cut", "stall") else len(content)
        self.wfile.write(content[start:end])
        if trouble == "stall":
            self.wfile.flush()
            mirror.hung.wait()


@pytest.fixture
def content(make_dataset, tmp_path):
    make_dataset((200, 200)).save(tmp_path / "source.hdf5")
    return (tmp_path / "source.hdf5").read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "cache" / "dsrl"))
    return tmp_path / "cache" / "dsrl"


@pytest.fixture
def mirror(content, folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "BACKOFF", 0.01)
    server = Mirror(content)
    monkeypatch.setattr(sources, "MIRROR", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.hung.set()
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def fetch():
    return load(TASK.name, source="dsrl")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def ranges(mirror):
    return [span for _, span in mirror.requests]


def test_a_file_is_downloaded_once_and_then_used(mirror, folder, content, make_dataset, capfd):
    data = fetch()
    assert torch.equal(data.actions, make_dataset((200, 200)).actions)
    assert (folder / TASK.file).read_bytes() == content
    assert names(folder) == [TASK.file]
    assert mirror.requests == [(f"/{TASK.file}", None)]
    assert f"{TASK.file}: 100%" in capfd.readouterr().err
    assert torch.equal(fetch().actions, data.actions)
    assert len(mirror.requests) == 1


def test_provenance_tells_dsrl_downloaded_and_local_apart(mirror, folder, content, tmp_path, monkeypatch):
    import h5py

    assert fetch().provenance == "made up for a test, é"  # what a file says of itself comes first
    (folder / TASK.file).unlink()
    with h5py.File(tmp_path / "source.hdf5", "a") as file:
        del file.attrs["provenance"]
    mirror.content = (tmp_path / "source.hdf5").read_bytes()
    name = f"DSRL (Datasets for Safe RL, CC-BY), file {TASK.file}"
    assert fetch().provenance == f"{name}, downloaded from {mirror.url}/{TASK.file}"
    assert fetch().provenance == f"{name}, read from a local copy"


def test_a_file_already_there_needs_no_network(folder, content, monkeypatch):
    monkeypatch.setattr(sources, "urlopen", None)
    folder.mkdir(parents=True)
    (folder / TASK.file).write_bytes(content)
    assert len(fetch()) == 400


def test_the_folder_is_dsrls_own_by_default(content, tmp_path, monkeypatch):
    monkeypatch.delenv("DSRL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".dsrl" / "datasets"
    folder.mkdir(parents=True)
    (folder / TASK.file).write_bytes(content)
    assert len(fetch()) == 400


def test_the_default_mirror_is_the_maintained_one():
    assert sources.MIRROR == "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main"


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_file_that_is_not_there_is_not_asked_for_again(mirror, folder, code):
    mirror.troubles = [code]
    with pytest.raises(OSError, match=rf"{TASK.file}: the server says {code} .*put it at {folder / TASK.file}"):
        fetch()
    assert len(mirror.requests) == 1
    assert names(folder) == []


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(mirror, folder, code):
    mirror.troubles = [code, code]
    assert len(fetch()) == 400
    assert len(mirror.requests) == 3
    assert names(folder) == [TASK.file]


def test_back_off_doubles_and_ends(mirror, folder, monkeypatch):
    waits = []
    monkeypatch.setattr(sources.time, "sleep", waits.append)
    monkeypatch.setattr(sources, "BACKOFF", 1.0)
    mirror.troubles = [503] * 9
    with pytest.raises(OSError, match="gave up after 4 attempts: the server says 503"):
        fetch()
    assert waits == [0, 1, 2, 4]
    assert names(folder) == []


@pytest.mark.parametrize("trouble", ["silent", "stall"])
def test_a_silent_server_times_out_and_is_asked_again(mirror, content, folder, monkeypatch, trouble):
    monkeypatch.setattr(sources, "PATIENCE", 0.5)
    mirror.troubles = [trouble]
    with within(5):
        assert len(fetch()) == 400
    assert len(mirror.requests) == 2
    assert (folder / TASK.file).read_bytes() == content
    (folder / TASK.file).unlink()
    mirror.troubles = ["silent"] * 9
    with within(5), pytest.raises(OSError, match=r"gave up after 4 attempts: .*timed out"):
        fetch()
    assert names(folder) == []


@pytest.mark.parametrize("trouble", ["cut", "stall"])
def test_what_is_cut_off_is_gone_on_with(mirror, content, folder, monkeypatch, trouble):
    monkeypatch.setattr(sources, "PATIENCE", 0.5)
    mirror.troubles = [trouble, "cut"]
    assert len(fetch()) == 400
    half = len(content) // 2
    assert ranges(mirror) == [None, f"bytes={half}-", f"bytes={half + (len(content) - half) // 2}-"]
    assert (folder / TASK.file).read_bytes() == content
    assert names(folder) == [TASK.file]


def cut_off(mirror):
    """Fail so that half of the file is kept."""
    mirror.troubles = ["cut", 404]
    with pytest.raises(OSError, match=f"the {len(mirror.content) // 2} bytes that came are kept"):
        fetch()
    mirror.requests.clear()


def test_a_later_call_goes_on_too(mirror, content, folder):
    cut_off(mirror)
    assert names(folder) == [f"{TASK.file}.partial", f"{TASK.file}.partial.etag"]
    assert (folder / f"{TASK.file}.partial").read_bytes() == content[: len(content) // 2]
    assert len(fetch()) == 400
    assert ranges(mirror) == [f"bytes={len(content) // 2}-"]
    assert (folder / TASK.file).read_bytes() == content
    assert names(folder) == [TASK.file]


def test_halves_of_different_files_are_never_joined(mirror, folder, make_dataset, tmp_path):
    cut_off(mirror)
    make_dataset((200, 200), seed=1).save(tmp_path / "source.hdf5")
    mirror.content = (tmp_path / "source.hdf5").read_bytes()
    assert torch.equal(fetch().actions, make_dataset((200, 200), seed=1).actions)
    assert (folder / TASK.file).read_bytes() == mirror.content
    assert len(mirror.requests) == 1  # the server itself saw that the tag is another


@pytest.mark.parametrize("trouble", ["wrong range", "wrong tag", 416])
def test_a_rest_that_does_not_fit_starts_the_download_again(mirror, content, folder, trouble):
    cut_off(mirror)
    mirror.troubles = [trouble]
    assert len(fetch()) == 400
    assert ranges(mirror) == [f"bytes={len(content) // 2}-", None]
    assert (folder / TASK.file).read_bytes() == content
    assert names(folder) == [TASK.file]


def test_a_server_that_ignores_ranges_starts_again(mirror, content, folder):
    mirror.ranges = False
    mirror.troubles = ["cut"]
    assert len(fetch()) == 400
    assert ranges(mirror) == [None, f"bytes={len(content) // 2}-"]
    assert (folder / TASK.file).read_bytes() == content


def test_without_a_tag_nothing_is_gone_on_with(mirror, content, folder):
    mirror.tags = False
    mirror.troubles = ["cut"]
    assert len(fetch()) == 400
    assert ranges(mirror) == [None, None]
    assert (folder / TASK.file).read_bytes() == content


def test_without_a_length_the_content_decides(mirror, content, folder):
    mirror.lengths = False
    assert len(fetch()) == 400
    (folder / TASK.file).unlink()
    mirror.troubles = ["cut"]
    with pytest.raises(ValueError, match=r"discarded: .*cut short"):
        fetch()
    assert names(folder) == []


def test_a_complete_part_left_by_a_crash_does_no_harm(mirror, content, folder):
    cut_off(mirror)
    (folder / f"{TASK.file}.partial").write_bytes(content)
    assert len(fetch()) == 400
    assert names(folder) == [TASK.file]


@pytest.mark.parametrize("wrong", ["page", "empty", "other task"])
def test_wrong_content_is_discarded(mirror, content, folder, make_dataset, tmp_path, wrong):
    make_dataset((200,), obs=7).save(tmp_path / "other.hdf5")
    mirror.content = {"page": b"<!doctype html>log in to this network", "empty": b""}.get(
        wrong, (tmp_path / "other.hdf5").read_bytes()
    )
    message = {"other task": r"\(200, 8\)"}.get(wrong, "not HDF5")
    with pytest.raises(ValueError, match=f"{TASK.file} sent something else.*discarded.*{message}"):
        fetch()
    assert names(folder) == []
    mirror.content = content
    assert len(fetch()) == 400
    assert names(folder) == [TASK.file]


def test_offline_fails_within_seconds_and_says_which_file_to_put_where(folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "MIRROR", f"http://127.0.0.1:{port}")
    with within(3), pytest.raises(OSError, match=r"refused.*Offline") as caught:
        fetch()
    assert f"Get http://127.0.0.1:{port}/{TASK.file} elsewhere and put it at {folder / TASK.file}" in str(caught.value)
    assert names(folder) == []


def test_offline_by_name_lookup_fails_at_once(folder, monkeypatch):
    def no_names(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    monkeypatch.setenv("no_proxy", "*")
    with within(3), pytest.raises(OSError, match=r"huggingface.*name resolution.*put it at") as caught:
        fetch()
    assert str(folder / TASK.file) in str(caught.value)


def test_going_offline_half_way_keeps_what_came(mirror, content, folder, monkeypatch):
    cut_off(mirror)
    url = sources.MIRROR
    monkeypatch.setattr(sources, "MIRROR", "http://127.0.0.1:1")
    with pytest.raises(OSError, match="bytes that came are kept"):
        fetch()
    monkeypatch.setattr(sources, "MIRROR", url)
    assert len(fetch()) == 400
    assert ranges(mirror) == [f"bytes={len(content) // 2}-"]


def test_a_disk_that_fills_up_is_no_network_trouble(mirror, content, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the system cuts longer writes short, as a full disk
    try:
        with pytest.raises(OSError, match=r"File too large.* 10000 bytes that came are kept"):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(mirror.requests) == 1
    assert (folder / f"{TASK.file}.partial").read_bytes() == content[:10_000]
    assert len(fetch()) == 400
    assert (folder / TASK.file).read_bytes() == content


def test_ctrl_c_keeps_what_came(mirror, content, folder, monkeypatch):
    mirror.troubles = ["cut"]

    def interrupt(seconds):
        if seconds:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert len(fetch()) == 400
    assert ranges(mirror) == [None, f"bytes={len(content) // 2}-"]


def test_two_downloads_of_one_file_do_not_mix(mirror, folder):
    folder.mkdir(parents=True)
    with (folder / f"{TASK.file}.partial").open("ab") as other:
        flock(other, LOCK_EX)
        with pytest.raises(OSError, match=f"another process is downloading {re.escape(str(folder / TASK.file))}"):
            fetch()
    assert len(fetch()) == 400
    assert names(folder) == [TASK.file]


def test_a_download_that_another_process_has_just_finished_is_used(mirror, content, folder, monkeypatch):
    folder.mkdir(parents=True)

    def finish_first(sink, flags):
        os.replace(folder / f"{TASK.file}.partial", folder / TASK.file)
        (folder / TASK.file).write_bytes(content)

    monkeypatch.setattr("fcntl.flock", finish_first)
    assert len(fetch()) == 400
    assert (folder / TASK.file).read_bytes() == content
    assert not mirror.requests
