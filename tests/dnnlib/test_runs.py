"""Run folders and their log."""

import errno
import os
import platform
import shutil
import subprocess
import sys

import pytest

from dnnlib import runs
from dnnlib.errors import UserError
from helpers.commands import ROOT
from helpers.disks import small_disk_at


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
    assert runs.is_in_use(tmp_path) and not runs.is_in_use(tmp_path / "nothing")
    # A killed process releases it.
    holder.kill()
    holder.communicate()
    for _ in range(2):
        assert not runs.is_in_use(tmp_path)
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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 KB."""
    with small_disk_at(tmp_path / "small", "16k") as folder:
        yield folder


def test_a_log_outlives_a_full_disk(small_disk, capfd):
    log = runs.Log(small_disk / "log.txt")
    lines = [f"line {n} {'x' * 100}" for n in range(101)]
    log(lines[0])
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    for line in lines[1:100]:
        log(line)
    assert (small_disk / "log.txt").stat().st_size <= 4096
    (small_disk / "other").unlink()
    log(lines[100])
    assert (small_disk / "log.txt").read_text().splitlines() == capfd.readouterr().out.splitlines() == lines
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    log("x" * 8192)
    log.close()
    assert "log.txt lacks its last lines: No space left" in capfd.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no file that is always full")
def test_a_log_outlives_a_terminal_that_is_a_file_on_a_full_disk(tmp_path):
    """As where a job scheduler keeps what a program prints."""
    program = "import sys; from dnnlib.runs import Log; log = Log(sys.argv[1]); log('one'); log('two')"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program, str(tmp_path / "log.txt")]
        told = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True).stderr
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n" and "Traceback" not in told


def test_a_read_only_run_folder_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError) as error, runs.held_run_folder(small_disk):
        pass
    assert error.value.errno == errno.EROFS and error.value.filename == str(small_disk)
