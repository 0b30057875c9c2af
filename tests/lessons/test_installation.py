"""The check of the installation finds what is missing or too old and a wrong Python, and imports nothing."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from safediffkit.lessons import installation


def test_a_complete_installation_is_called_so():
    said = installation.check_installation()
    assert said.startswith("✓ All is well")
    assert "make setup" not in said


@pytest.mark.parametrize("name", ["torch", "anywidget", "pybullet", "dsrl"])
def test_a_missing_package_is_named_with_its_remedy(name, monkeypatch):
    def version(asked, real=installation.version):
        if asked == name:
            raise PackageNotFoundError(asked)
        return real(asked)

    monkeypatch.setattr(installation, "version", version)
    said = installation.check_installation()
    assert f"✗ {name}: not installed" in said
    assert said.count("✗") == 1
    assert "make setup" in said
    assert ("robots" in said) == (name in ("pybullet", "dsrl"))


def test_a_wrong_version_is_told_with_the_needed_one(monkeypatch):
    real = installation.version
    monkeypatch.setattr(installation, "version", lambda name: "1.0.0" if name == "torch" else real(name))
    assert "✗ torch: version 1.0.0 is installed, ==2.13.0 is needed" in installation.check_installation()


def test_a_wrong_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 1, "final", 0))
    assert "✗ Python 3.11" in installation.check_installation()


def test_nothing_heavy_is_imported():
    code = "import sys; from safediffkit.lessons import installation as i; i.check_installation(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "plotly", "anywidget", "pybullet", "gymnasium"} & set(done.stdout.split())
