"""Programs on odd ground: terminals without the signs, users without a name, file names that are no text, Windows."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from commands import ROOT
from dnnlib import config, files, runs, system
from dnnlib.stages import Programs, Stage, Stages
from drawn import draw_head, write_archive, write_case
from slices.archive.edit import merge
from slices.archive.reader import ArchiveReader
from slices.convert.cut_cases import Origin, origin_of
from slices.convert.recognition import find_cases
from slices.convert.releases import release_of_name
from torch_utils import checkpoint

ENTRIES = ("dataset_tool.py", "train.py", "generate.py", "reproduce.py", "segmentation/__main__.py")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own; names with a value of "" are taken out of its environment."""
    wanted = {k: v for k, v in {**os.environ, "PYTHONPATH": str(ROOT), **environment}.items() if v}
    return subprocess.run([sys.executable, "-c", code], env=wanted, capture_output=True)


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder whose name is not UTF-8."""
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/M\xfcller \xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    return folder


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


# --- names of files that are no text ----------------------------------------------------------------------------------


def test_what_is_written_can_be_read_again(tmp_path):
    assert config.to_json({"a\udce4": ["\udcff", {"ü": "ü"}]}) == {r"a\xe4": [r"\xff", {"ü": "ü"}]}
    files.write_json(tmp_path / "x.json", {"name": "\ud800 \udc80"})
    assert files.read_json(tmp_path / "x.json") == {"name": r"\ud800 \x80"}
    log = runs.Log(tmp_path / "log.txt")
    log("× \udcfc")
    log.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "× \\xfc\n"


def test_data_below_a_folder_that_is_no_text_are_converted_and_merged(odd):
    for n in range(2):
        write_case(odd / "source", f"P{n}", draw_head(seed=n))
    options = ["--release", "2018", "--resolution", "64", "--workers", "1"]
    command = [sys.executable, ROOT / "dataset_tool.py", "convert", "--source", odd / "source", "--dest"]
    done = subprocess.run([*command, odd / "\udce9.zip", *options], capture_output=True, env=os.environ)
    assert done.returncode == 0 and rb"M\xfcller \xff/\xe9.zip" in done.stdout, done.stderr
    assert [path.name for path in odd.iterdir() if path.name.startswith(".")] == []
    other = write_archive(odd / "other.zip", resolution=64, count=3)
    merge([odd / "\udce9.zip", other], odd / "both.zip")
    made = ArchiveReader(odd / "both.zip").info.made
    assert [source["name"] for source in made["sources"]] == [r"\xe9.zip", "other.zip"]


def test_a_case_cut_from_such_a_folder_is_known_again(odd):
    write_case(odd, "P0", draw_head(seed=0))
    origin = origin_of(find_cases(odd, release_of_name("2018")).cases[0])
    assert config.from_json(Origin, config.to_json(origin)) == origin
    assert origin.files[0].path.endswith(r"/M\xfcller \xff/P0/P0_t1.nii.gz")


def test_networks_are_saved_below_such_a_folder(odd):
    checkpoint.save(odd / "a.safetensors", {"x": torch.arange(3)}, {"data": "a.zip"}, kind="toy")
    tensors, metadata = checkpoint.load(odd / "a.safetensors", kind="toy")
    assert tensors["x"].tolist() == [0, 1, 2] and metadata == {"data": "a.zip"}


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


def test_a_checkout_below_a_folder_that_is_no_text_is_named(odd):
    shutil.copytree(ROOT / "dnnlib", odd / "dnnlib")
    done = subprocess.run([sys.executable, "-c", "import dnnlib"], cwd=odd, capture_output=True, env=os.environ)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and rb"M\xfcller \xff/dnnlib" in done.stderr


# --- strangers in the working folder ----------------------------------------------------------------------------------


@pytest.fixture
def strangers(tmp_path, monkeypatch) -> Path:
    """A working folder with modules of this project's names, none of which may run."""
    for name in ("train.py", "dataset_tool.py", "config.py", "slices/__init__.py", "dnnlib/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a stranger runs')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("program", [[str(ROOT / "segmentation")], ["-m", "segmentation"], [str(ROOT / "train.py")]])
def test_modules_of_the_working_folder_are_not_taken_for_the_projects(strangers, program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("Usage: "), done.stderr


def test_stages_run_the_projects_own_segmentation(strangers):
    (strangers / "segmentation.py").write_text("raise SystemExit('a stranger runs')")
    (strangers / "record.txt").write_text("of an earlier run")
    stages = Stages(strangers, Programs(ROOT, {}))
    command = ["-m", "segmentation", "train", "--help"]
    stages.run(Stage("unet", "", command, [], ["record.txt"], replaces=False))


# --- make -------------------------------------------------------------------------------------------------------------


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
