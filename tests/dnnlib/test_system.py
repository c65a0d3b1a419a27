"""Programs in unusual environments: terminals with few characters, users without a name, Windows."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib import system
from helpers.commands import ROOT

ENTRIES = ("dataset_tool.py", "train.py", "generate.py", "reproduce.py", "segmentation/__main__.py")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a new process. Environment variables with the value "" are removed there."""
    wanted = {k: v for k, v in {**os.environ, "PYTHONPATH": str(ROOT), **environment}.items() if v}
    return subprocess.run([sys.executable, "-c", code], env=wanted, capture_output=True)


# --- terminals --------------------------------------------------------------------------------------------------------

SPEAKING = r"""
import sys, click, tqdm
from dnnlib.system import run
@click.command()
def main():
    "7 × 7 … ± 1"
    for say in (print, click.echo, tqdm.tqdm.write, lambda text: click.echo(text, err=True)):
        say("5 × 5 … → é ‰ \udce9")
    with tqdm.tqdm(total=2, desc="× 3") as bar:
        bar.update()
run(main, args=sys.argv[1:] or ARGS)
"""


@pytest.mark.parametrize(
    "encoding, line",
    [
        ("ascii", rb"5 x 5 ... -> \xe9 \u2030 \xe9"),
        ("iso8859-15", b"5 x 5 ... -> \xe9 \\u2030 \\xe9".replace(b" x ", b" \xd7 ")),
        ("cp1252", b"5 \xd7 5 \x85 -> \xe9 \x89 \\xe9"),
        ("utf-8", "5 × 5 … → é ‰ ".encode() + rb"\xe9"),
    ],
)
def test_print_click_and_bars_write_other_signs_where_an_encoding_lacks_some(encoding, line):
    done = python("ARGS = []\n" + SPEAKING, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.splitlines() == [line] * 3, done.stderr
    assert done.stderr.count(line) == 1 and b"Traceback" not in done.stderr
    shown = python("ARGS = ['--help']\n" + SPEAKING, PYTHONIOENCODING=encoding)
    assert shown.returncode == 0 and b"7 " in shown.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_terminals_end_no_program(closed):
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote('ARGS = []' + SPEAKING)} {closed}"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True).returncode == 0


# --- users ------------------------------------------------------------------------------------------------------------

NAMELESS = """
import os, pwd
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
os.chdir(FOLDER)
import getpass
from dnnlib.system import run
run(lambda: print(getpass.getuser(), os.path.expanduser("~"), os.environ.get("XDG_CACHE_HOME"), sep="|"))
"""
NO_NAME = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), "")


@pytest.mark.parametrize("home", ["", "relative", "/dev/null"])
def test_a_user_without_name_and_home_gets_both(tmp_path, home):
    (tmp_path / "here").mkdir()
    code = NAMELESS.replace("FOLDER", repr(str(tmp_path / "here")))
    done = python(code, **NO_NAME | {"HOME": home, "TMPDIR": str(tmp_path)})
    own = str(tmp_path / f"stylegan2-mr-{os.getuid()}")
    name, found, cache = done.stdout.decode().strip().split("|")
    assert name == f"uid{os.getuid()}", done.stderr
    assert (found, cache) == (home, f"{own}/.cache") if home == "/dev/null" else (own, "None")
    assert list((tmp_path / "here").iterdir()) == [] and os.stat(own).st_mode & 0o777 == 0o700


def test_who_has_a_name_and_a_home_keeps_them(tmp_path):
    code = (
        f"import os; before = dict(os.environ)\n{SPEAKING.split('@click')[0]}run(lambda: print(before == os.environ))"
    )
    assert python(code, HOME=str(tmp_path), USER="me").stdout == b"True\n" and list(tmp_path.iterdir()) == []


def test_a_folder_that_others_made_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(system.tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"stylegan2-mr-{os.getuid()}"
    assert system._own_folder() == system._own_folder() == str(taken)
    taken.chmod(0o777)
    other = Path(system._own_folder())
    assert other != taken and other.parent == tmp_path and other.stat().st_mode & 0o777 == 0o700
    taken.rmdir()
    (tmp_path / "elsewhere").mkdir()
    taken.symlink_to(tmp_path / "elsewhere")
    assert Path(system._own_folder()) not in (taken, tmp_path / "elsewhere")


# --- systems ----------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_linux_and_macos_every_program_ends_with_one_message():
    code = f"""
import runpy, sys
sys.modules["fcntl"] = None
for entry in {ENTRIES}:
    for name in [name for name in sys.modules if name.split(".")[0] == "dnnlib"]:
        del sys.modules[name]
    sys.argv = [entry, "--help"]
    try:
        runpy.run_path(entry, run_name="__main__")
    except SystemExit as end:
        print(entry, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{entry} 2" for entry in ENTRIES], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(ENTRIES) and all("error: " in line and "Linux and macOS" in line for line in lines)


def test_a_checkout_below_a_folder_that_is_no_text_is_named(odd_folder):
    shutil.copytree(ROOT / "dnnlib", odd_folder / "dnnlib")
    done = subprocess.run([sys.executable, "-c", "import dnnlib"], cwd=odd_folder, capture_output=True, env=os.environ)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and rb"M\xfcller \xff/dnnlib" in done.stderr
