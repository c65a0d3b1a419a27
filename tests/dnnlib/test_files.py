"""Single files appear only when they are complete. test_publish.py tests several files at once."""

import os
import signal
import subprocess
import sys

import pytest

from dnnlib import config, files, runs
from helpers.commands import ROOT


def test_atomic_path_keeps_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    files.write_bytes(path, b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal, sys; from dnnlib.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and path.read_text() == "old"


def test_operating_system_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as caught:
        files.write_bytes(tmp_path / "none" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "none" / "file")


def test_what_is_written_can_be_read_again(tmp_path):
    assert config.to_json({"a\udce4": ["\udcff", {"ü": "ü"}]}) == {r"a\xe4": [r"\xff", {"ü": "ü"}]}
    files.write_json(tmp_path / "x.json", {"name": "\ud800 \udc80"})
    assert files.read_json(tmp_path / "x.json") == {"name": r"\ud800 \x80"}
    log = runs.Log(tmp_path / "log.txt")
    log("× \udcfc")
    log.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "× \\xfc\n"
