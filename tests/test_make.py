"""`make setup` with any Python, and what it says about an environment that is there."""

import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from helpers.commands import ROOT


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_takes_any_path_of_a_python_and_tells_what_an_environment_is_of(tmp_path):
    project = tmp_path / "my project"
    project.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    venv.create(project / ".venv", symlinks=True)  # without pip: nothing can be installed here
    stamp = project / ".venv" / ".complete"
    stamp.write_text(f"{project.resolve()}\n")

    def make(*arguments: str) -> tuple[int, str]:
        # `make test` passes its own options on to a make below it.
        outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        run = subprocess.run(["make", "setup", *arguments], cwd=project, capture_output=True, text=True, env=outer)
        return run.returncode, run.stdout + run.stderr

    other = tmp_path / "another Python" / "python3"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho 3.99.0 in /another")
    other.chmod(0o755)
    same = other.with_name("the same")
    same.symlink_to(Path(sys.executable).resolve())
    assert make() == make(f"PYTHON={same}") == (0, "")
    code, words = make(f"PYTHON={other}")
    assert code == 2 and f"error: .venv is of Python {platform.python_version()}" in words
    assert "not of 3.99.0 in /another: make clean-venv" in words
    code, words = make(f"PYTHON={tmp_path / 'no such'}")
    assert code == 2 and "error: no " in words

    stamp.write_text("/elsewhere\n")
    code, words = make()
    assert code == 0 and ".venv was made in /elsewhere" in words
    for name in ("python", "python3", f"python3.{sys.version_info[1]}"):
        (project / ".venv" / "bin" / name).unlink(missing_ok=True)
    code, words = make()
    assert code == 2 and "error: the Python of .venv is gone" in words and stamp.exists()
