"""Run folders and their log."""

import os
import platform
import subprocess
import sys

import pytest

from dnnlib import runs
from dnnlib.errors import UserError
from helpers.commands import ROOT


def test_run_folders_count_up_past_gaps_and_strangers(tmp_path):
    (tmp_path / "00007-old").mkdir()
    (tmp_path / "notes").mkdir()
    assert runs.make_run_folder(tmp_path, "x").name == "00008-x"
    assert runs.make_run_folder(tmp_path, "y").name == "00009-y"
    assert runs.make_run_folder(tmp_path / "new", "z").name == "00000-z"


def test_a_run_folder_in_use_is_refused_with_its_holder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    with pytest.raises(UserError) as refusal:
        with runs.held_run_folder(tmp_path):
            pytest.fail("two processes hold the folder")
    expected = f"{tmp_path} is in use by another training (process {holder.pid} on {platform.node()})"
    assert str(refusal.value) == expected
    # A killed process releases it.
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with runs.held_run_folder(tmp_path):
            pass
    with pytest.raises(OSError) as error, runs.held_run_folder(tmp_path / "nothing"):
        pass
    assert error.value.filename == str(tmp_path / "nothing")


HOLDER = """
import sys, time
from pathlib import Path
from dnnlib.runs import held_run_folder
with held_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_log_without_a_file_is_silent(tmp_path, capfd):
    silent, log = runs.Log(None), runs.Log(tmp_path / "log.txt")
    silent("nobody reads this")
    log("first")
    silent.close()
    log.close()
    assert capfd.readouterr() == ("first\n", "") and (tmp_path / "log.txt").read_text() == "first\n"


def test_a_log_outlives_a_full_disk(tmp_path, capfd):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = runs.Log(tmp_path / "log.txt")
    log("first")
    log("second")
    assert capfd.readouterr().out == "first\nsecond\n"
