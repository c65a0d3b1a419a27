"""Configuration, files, run folders, text; and that the lists of dependencies agree."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from commands import ROOT
from dnnlib import config, files, runs, text
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.processes import _interrupts_held, _result, map_in_order


@dataclass(frozen=True)
class Inner:
    x: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple[int, int]
    by_name: dict[str, Inner]
    maybe: int | None = None


@dataclass(frozen=True)
class Later:
    x: int
    more: tuple[int, ...] = config.optional(())


EXAMPLE = Outer(Inner(1.5, ("a", "b")), (1, 2), {"k": Inner(2)}, None)


def test_dataclasses_survive_json():
    assert config.from_json(Outer, config.to_json(EXAMPLE)) == EXAMPLE


def test_optional_fields_are_in_json_only_where_they_say_something():
    assert config.to_json(Later(1)) == {"x": 1}
    assert config.to_json(Later(1, (2,))) == {"x": 1, "more": [2]}
    for one in (Later(1), Later(1, (2,))):
        assert config.from_json(Later, config.to_json(one)) == one


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pair": [1, 2, 3]}, r"Outer.pair: expected 2 values, found 3"),
        ({"pair": [1, "2"]}, r"Outer.pair\[1\]: expected int, found '2'"),
        ({"pair": [1, True]}, r"Outer.pair\[1\]: expected int, found True"),
        ({"inner": {"x": "1"}}, r"Outer.inner.x: expected float, found '1'"),
        ({"inner": {}}, r"Outer.inner: the field 'x' is missing"),
        ({"inner": 3}, r"Outer.inner: expected an object, found 3"),
        ({"by_name": {"k": {"x": 1, "y": 2}}}, r"Outer.by_name\['k'\]: unknown field 'y'"),
        ({"by_name": []}, r"Outer.by_name: expected an object"),
        ({"maybe": 1.5}, r"Outer.maybe: expected int, found 1.5"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_field(change, message):
    with pytest.raises(UserError, match=message):
        config.from_json(Outer, {**config.to_json(EXAMPLE), **change})


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


def test_user_errors_and_full_disks_end_with_code_2_and_bugs_with_a_traceback():
    @click.command()
    @click.argument("what")
    @reports_user_errors
    def command(what):
        raise {
            "user": UserError("3 is not 4: use 4"),
            "disk": OSError(errno.ENOSPC, "No space left on device", "x.zip"),
            "bug": KeyError("x"),
        }[what]

    invoke = CliRunner().invoke
    assert (invoke(command, ["user"]).exit_code, invoke(command, ["user"]).output) == (2, "error: 3 is not 4: use 4\n")
    disk = invoke(command, ["disk"])
    assert disk.exit_code == 2 and disk.output.startswith("error: x.zip: No space left on device; free some space")
    assert isinstance(invoke(command, ["bug"]).exception, KeyError)


def test_run_folders_count_up_past_gaps_and_strangers(tmp_path):
    (tmp_path / "00007-old").mkdir()
    (tmp_path / "notes").mkdir()
    assert runs.make_run_folder(tmp_path, "x").name == "00008-x"
    assert runs.make_run_folder(tmp_path, "y").name == "00009-y"
    assert runs.make_run_folder(tmp_path / "new", "z").name == "00000-z"


def test_parse_integers():
    assert text.parse_integers("0-3, 7,9-9", limit=10) == [0, 1, 2, 3, 7, 9]
    for wrong in ("", "3-1", "a", "1..3", "-1"):
        with pytest.raises(UserError, match="list of whole numbers"):
            text.parse_integers(wrong, limit=10)
    with pytest.raises(UserError, match="99999999999 is too large: numbers go up to 9"):
        text.parse_integers("0-99999999999", limit=10)


@pytest.mark.parametrize(
    "seconds, expected", [(12.4, "12s"), (185, "3m 05s"), (3723, "1h 02m 03s"), (183840, "2d 03h 04m")]
)
def test_format_time(seconds, expected):
    assert text.format_time(seconds) == expected


def test_format_table():
    table = text.format_table(["name", "n"], [["a", 1], ["long name", 234]])
    assert table == "name         n\n---------  ---\na            1\nlong name  234"


def test_one_worker_is_this_process_and_works_as_asked():
    done = []
    results = map_in_order(lambda n: done.append(n) or n * n, [1, 2, 3], workers=1)
    assert next(results) == 1 and done == [1]
    assert list(results) == [4, 9]


def test_a_worker_that_dies_is_reported():
    with pytest.raises(UserError, match="a worker process was killed.*use fewer --workers"):
        list(map_in_order(os._exit, [3, 3, 3], workers=2))


def want_memory(n):
    raise MemoryError("Unable to allocate 89.3 MiB")


@pytest.mark.parametrize("workers, advice", [(1, "more than there is for one process"), (2, "use fewer --workers")])
def test_want_of_memory_is_one_message(workers, advice):
    with pytest.raises(UserError, match=f"out of memory .Unable to allocate 89.3 MiB.: .*{advice}"):
        list(map_in_order(want_memory, range(3), workers))


@pytest.mark.parametrize("broken", ["Event", "SimpleQueue", "Lock"])
def test_without_semaphores_one_process_does_all(monkeypatch, capsys, broken):
    """As where shared memory is full, read-only or missing, at the first one that is made or at a later one."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), broken, full)
    assert list(map_in_order(lambda n: (n, os.getpid()), range(3), workers=2)) == [(n, os.getpid()) for n in range(3)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "one process instead of 2, for want of shared memory (No space left on device): see /dev/shm" in line


def test_a_process_that_cannot_be_started_is_reported(monkeypatch):
    def none_left(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", none_left)
    with pytest.raises(UserError, match="can't be started .Resource temporarily unavailable.: use fewer --workers"):
        list(map_in_order(abs, range(3), workers=2))


@pytest.mark.parametrize("sender", ["this thread", "another thread"])
def test_an_interrupt_waits_until_a_process_has_started(sender):
    started, go = [], threading.Event()

    def send():
        go.wait()
        if sender == "another thread":
            signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=send)
    other.start()  # before the mask, as the threads of a pool or of a progress bar
    with pytest.raises(KeyboardInterrupt), _interrupts_held():
        if sender == "this thread":
            signal.raise_signal(signal.SIGINT)
        go.set()
        other.join()
        started.append(True)
    assert started == [True] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def remember_set_up():
    os.environ["SET_UP"] = "done"


def read_set_up(_):
    return os.environ.get("SET_UP")


def test_every_worker_is_set_up_and_this_process_is_not():
    assert list(map_in_order(read_set_up, range(6), workers=2, set_up=remember_set_up)) == ["done"] * 6
    assert "SET_UP" not in os.environ


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_environment_yml_lists_what_pyproject_does():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    in_yml = re.findall(r"^      - (\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert in_yml == listed
    readme = (ROOT / "README.md").read_text()
    for requirement in listed:
        name = re.match(r"[a-z]+", requirement)[0]
        assert re.search(rf"^\| `{name}`", readme, re.MULTILINE), f"the README gives no reason for {name}"


def test_nothing_below_imports_from_above():
    """The floors of the house: a file imports only from lower ones, and training and segmentation not each other."""
    floors = {"dnnlib": 1, "slices": 2, "torch_utils": 2, "training": 3, "segmentation": 3}
    for package, floor in floors.items():
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
                if name != package and name in floors:
                    assert floors[name] < floor, f"{path.relative_to(ROOT)} imports {name}"
                if path.name != "__main__.py":  # is a program itself
                    assert name not in ("train", "generate", "dataset_tool", "reproduce", "reproduction"), path


def test_only_slices_knows_the_channels():
    for package in ("torch_utils", "training", "segmentation"):  # dnnlib knows nothing of pictures
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"127\.5|\b128\b", path.read_text()), path


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """As the kernel does where memory runs out: nothing of the family is left, and no pipe stays open."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\n"
        "from dnnlib.processes import map_in_order\n"
        "def work(n):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    pids = set()\n"
        "    for pid in map_in_order(work, range(6), 2):\n"
        "        print(pid, flush=True)\n"
        "        if (n := globals().setdefault('n', 0) + 1) == 3:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        globals()['n'] = n\n"
    )
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, _ = process.communicate(timeout=60)  # ends when the last one that holds the pipe does
    assert process.returncode == -signal.SIGKILL and len(out.split()) == 3


def test_ctrl_c_between_the_locks_of_a_future_is_a_ctrl_c():
    """As Python's own waiting for a result ends when it is interrupted while it takes the lock again."""

    class Interrupted:
        def result(self):
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("cannot release un-acquired lock")

    with pytest.raises(KeyboardInterrupt):
        _result(Interrupted())

    class Failed:
        def result(self):
            raise RuntimeError("of the function's own")

    with pytest.raises(RuntimeError, match="own"):
        _result(Failed())


@pytest.mark.parametrize("text", ["[" * 9000 + "]" * 9000, '{"a": ' * 3000 + "1" + "}" * 3000])
def test_deep_nesting_is_refused_by_every_python(text):
    """Some parse any depth, and then nothing that follows can."""
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        config.parse_json(text)
    assert config.parse_json("[" * 60 + "]" * 60)[0] and config.parse_json("null") is None
