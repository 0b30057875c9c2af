"""What stands in binder/ says what the lock and pyproject.toml say, and repo2docker understands it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"


def lines(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "-"))]


def test_binder_installs_the_pins_of_the_lock():
    apart = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["no-deps"]
    wanted = [line for line in lines(ROOT / "requirements.lock") if "darwin" not in line and line not in apart]
    assert lines(BINDER / "requirements.txt") == [f"{x}+cpu" if x.startswith("torch==") else x for x in wanted]
    assert all(requirement in (BINDER / "postBuild").read_text() for requirement in apart)


@pytest.mark.parametrize("script", ["postBuild", "start"])
def test_the_scripts_can_run_and_stop_at_the_first_error(script):
    assert os.access(BINDER / script, os.X_OK)
    assert "set -euo pipefail" in (BINDER / script).read_text()
    assert subprocess.run(["bash", "-n", str(BINDER / script)], check=False).returncode == 0


def test_start_hands_on_to_the_command_with_one_thread():
    command = [str(BINDER / "start"), sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_repo2docker_takes_binder_for_a_python_project(tmp_path):
    plan = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    said = subprocess.run(plan, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    dockerfile = said.stdout + said.stderr
    assert said.returncode == 0, dockerfile[-2000:]
    assert "python=3.11" in dockerfile
    assert '-r "binder/requirements.txt"' in dockerfile
    assert "RUN ./binder/postBuild" in dockerfile
    assert "binder/start" in dockerfile.partition("R2D_ENTRYPOINT=")[2].splitlines()[0]
