import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

SCRIPT = Path(__file__).with_name("server.py")


def test_a_terminated_run_leaves_no_process_behind(tmp_path):
    run = subprocess.Popen([sys.executable, SCRIPT, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        url, group = run.stdout.readline().split()
        with urlopen(Request(f"{url}/api/kernels", data=b"{}", method="POST")) as answer:
            assert json.load(answer)["name"] == "python3"
        started = psutil.Process(int(group))
        family = [started, *started.children(recursive=True)]
        assert len(family) > 1
        run.send_signal(signal.SIGTERM)
        assert run.wait(40) == -signal.SIGTERM
        assert [process for process in family if process.is_running()] == []
    finally:
        run.stdout.close()
        run.kill()
        run.wait()
