"""A JupyterLab on loopback that ends with everything it started, however the test run ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--IdentityProvider.token=",
    "--ServerApp.disable_check_xsrf=True",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
]
# No look at the news (the network), no autosave, and every cell in the page at once.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@contextmanager
def jupyterlab(folder: Path, home: Path, seconds: float = 60) -> Iterator[tuple[str, int]]:
    """Serve `folder`, with an empty `home` as its own, and give the address and the process id of the server."""
    for name, values in SETTINGS.items():
        file = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    places = {"CONFIG": "config", "DATA": "data", "RUNTIME": "run"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": f"{home}/{place}" for name, place in places.items()}
    environment |= {f"JUPYTERLAB_{name.upper()}_DIR": f"{home}/{name}" for name in ("settings", "workspaces")}
    environment |= {"HOME": str(home), "IPYTHONDIR": f"{home}/ipython", "OMP_NUM_THREADS": "1"}
    environment["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home / "log"
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--port={port}", f"--ServerApp.root_dir={folder}"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    with ending(server):
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
        while not answers(f"{url}/api/status"):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield url, server.pid


@contextmanager
def ending(server: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End the server's process group, and its kernels, which are groups of their own; on SIGTERM too."""

    def end() -> None:
        with suppress(psutil.NoSuchProcess):
            kernels = psutil.Process(server.pid).children(recursive=True)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            _, left = psutil.wait_procs([psutil.Process(server.pid), *kernels], timeout=15)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        server.wait(10)

    def terminated(number: int, _: FrameType | None) -> None:
        end()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        end()
        signal.signal(signal.SIGTERM, before)


def answers(url: str) -> bool:
    """Tell whether something answers at an address of this machine."""
    with suppress(URLError, OSError):
        return bool(build_opener(ProxyHandler({})).open(url, timeout=2).read())
    return False


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, jupyterlab(Path(sys.argv[1]), Path(made)) as (address, group):
        print(address, group, flush=True)
        signal.pause()
