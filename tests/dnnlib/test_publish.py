"""All files appear or none, in spite of kills, other programs, links, and file systems without locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib import files, publish
from dnnlib.errors import UserError
from dnnlib.locks import try_lock
from dnnlib.publish import Staged, recover
from helpers.commands import ROOT


def tree(folder):
    """Content of a folder, hidden files included: name -> bytes."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_text() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def run(script, *arguments):
    """Run a Python script, which may import this file, in a new process. Returns its exit status."""
    paths = (ROOT, ROOT / "tests", Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], env=environment).returncode


KILLED = (
    "import os, signal, sys; from dnnlib.publish import Staged\n"
    "with Staged(sys.argv[1]) as staged:\n"
    "    staged.place(sys.argv[1]).write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "x.zip"
    with pytest.raises(UserError, match=r"x.zip has appeared while its content was made, and stays as it is"):
        with Staged(path) as slow:
            place = slow.place(path)
            place.write_text("slow")
            with Staged(path) as fast:
                fast.write(path, b"fast")
            assert path.read_text() == "fast" and place.read_text() == "slow"
    assert tree(tmp_path) == {"x.zip": "fast"}
    with Staged(path, force=True) as first:
        first.write(path, b"first")
        files.write_bytes(path, b"second")
    assert tree(tmp_path) == {"x.zip": "first"}


def test_what_killed_processes_left_is_removed_and_what_is_in_use_stays(tmp_path):
    path = tmp_path / "x.zip"
    with Staged(path) as mine:
        mine.place(path).write_text("mine")
        for _ in range(3):
            assert run(KILLED, path) == -signal.SIGKILL
        assert len(tree(tmp_path)) == 6  # folder, lock and file, of this process and of the killed one
    assert tree(tmp_path)["x.zip"] == "mine"
    assert run(KILLED, path) == -signal.SIGKILL
    assert files.refuse_existing(path, force=True) == path and tree(tmp_path) == {"x.zip": "mine"}


def test_what_was_left_before_it_was_marked_is_removed(tmp_path):
    """A kill may come after the hidden folder's lock is made, but before the mark is written into it."""
    left, path = tmp_path / ".x.zip.0.part", tmp_path / "x.zip"
    left.mkdir()
    (left / "lock").touch()
    files.write_bytes(path, b"new")
    assert tree(tmp_path) == {"x.zip": "new"}
    left.mkdir()
    (left / "lock").touch()
    (left / "thesis.txt").write_text("mine")
    files.write_bytes(path, b"newer")
    assert tree(left) == {"lock": "", "thesis.txt": "mine"}


def test_a_leftover_below_a_folder_that_this_process_has_locked(tmp_path):
    """A conversion's folder of cut cases is such a folder."""
    opened = os.open(tmp_path, os.O_RDONLY)
    assert try_lock(opened) and run(KILLED, tmp_path / "x.zip") == -signal.SIGKILL
    files.write_bytes(tmp_path / "x.zip", b"new")
    os.close(opened)
    assert tree(tmp_path) == {"x.zip": "new"}


CROWD = """
import os, random, signal, sys, time
from pathlib import Path
from dnnlib import files
from dnnlib.publish import Staged
folder = Path(sys.argv[1])

def write(k, times):
    for n in range(times):
        files.write_bytes(folder / "x", f"{k}".encode() * 5000)
        with Staged(folder / "a", force=True) as three:
            for name in "abc":
                three.write(folder / name, f"{k} {n}".encode())

def begin(k, times):
    child = os.fork()
    if not child:
        try:
            write(k, times)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child

children = [begin(k, 25) for k in range(4)]
for k in range(12):
    child = begin(9, 1000)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_a_crowd_of_writers_of_which_some_are_killed(tmp_path):
    assert run(CROWD, tmp_path) == 0
    for name in "xa":
        recover(tmp_path / name)
    assert sorted(tree(tmp_path)) == ["a", "b", "c", "x"]
    assert len({(tmp_path / name).read_text() for name in "abc"}) == 1
    assert len(set((tmp_path / "x").read_text())) == 1


def test_nothing_planted_under_the_hidden_name_is_written_to_or_removed(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / ".x.zip.0.part").symlink_to("victim")
    (tmp_path / ".x.zip.1.part").mkdir()
    (tmp_path / ".x.zip.1.part" / "lock").write_text("mine")
    (tmp_path / ".x.zip.2.part").write_text("mine")
    (tmp_path / ".x.zip.3.part").symlink_to("nowhere")
    before = tree(tmp_path)
    files.write_bytes(tmp_path / "x.zip", b"new")
    assert tree(tmp_path) == {**before, "x.zip": "new"}


@pytest.mark.parametrize("target", ["mine", None], ids=["link to a file", "dangling link"])
def test_a_link_is_replaced_itself(tmp_path, target):
    if target:
        (tmp_path / "target").write_text(target)
    (tmp_path / "x.zip").symlink_to("target")
    with pytest.raises(UserError, match="x.zip exists already"):
        files.refuse_existing(tmp_path / "x.zip", force=False)
    with pytest.raises(UserError, match="has appeared"):
        files.write_bytes(tmp_path / "x.zip", b"new", force=False)
    files.write_bytes(tmp_path / "x.zip", b"new", force=True)
    assert tree(tmp_path) == {"x.zip": "new"} | ({"target": target} if target else {})


def test_files_have_the_permissions_that_the_user_wants(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o007, 0o660)):
        before = os.umask(umask)
        try:
            files.write_bytes(tmp_path / "file", b"")
            with Staged(tmp_path / f"folder{umask}") as one:
                one.place(tmp_path / f"folder{umask}").mkdir()
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode
        assert (tmp_path / f"folder{umask}").stat().st_mode & 0o777 == 0o777 & ~umask


# --- several at once ------------------------------------------------------------------------------------------------

NAMES = ("train.zip", "test.zip", "new/split.json")


def write_together(folder, force=True):
    with Staged(folder / NAMES[0], force) as several:
        for name in NAMES:
            several.write(folder / name, f"new {name}".encode())


NEW = {name: f"new {name}" for name in NAMES} | {"new": None}
# Kill a process at its n-th call that changes a name, for every n. After each kill, run it again and check the files.
KILLED_EVERYWHERE = """
import json, os, signal, sys
from pathlib import Path
from dnnlib import files
from test_publish import NAMES, NEW, tree, write_together

folder, force, before = Path(sys.argv[1]), sys.argv[2] == "force", json.loads(sys.argv[3])

def killing(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def publish(n):
    left = [n]
    for name in ("rename", "replace", "link", "unlink", "mkdir", "rmdir"):
        setattr(os, name, killing(getattr(os, name), left))
    write_together(folder, force)

seen, n = set(), 0
while True:
    n += 1
    child = os.fork()
    if not child:
        publish(n)
        os._exit(0)
    if not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        break
    seen.add(tuple(name for name in NAMES if (folder / name).exists()))
    # Killed in the last steps: the files are published, and only the hidden folder remains.
    if not force and tree(folder) == NEW:
        break
    files.refuse_existing(folder / NAMES[0], True)  # the next call of the same command
    assert tree(folder) in (before, NEW), (n, tree(folder))
    if tree(folder) == NEW:
        for name in NAMES: (folder / name).unlink()
        (folder / "new").rmdir()
        for name, content in before.items(): (folder / name).write_text(content)
assert tree(folder) == NEW, tree(folder)
assert n > 8 and len(seen) > 2, (n, seen)
"""


@pytest.mark.parametrize("old", [{}, {"train.zip": "old", "test.zip": "old"}, {"test.zip": "old"}])
def test_a_publication_that_is_killed_is_undone_by_the_next_call(tmp_path, old):
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    force = "force" if old else "new"
    assert run(KILLED_EVERYWHERE, tmp_path, force, json.dumps(old)) == 0


@pytest.mark.parametrize("function", ["replace", "rename", "mkdir"])
def test_a_publication_that_fails_is_undone_at_once(tmp_path, monkeypatch, function):
    for name in NAMES[:2]:
        (tmp_path / name).write_text("old")
    before, real = tree(tmp_path), getattr(os, function)

    def failing(source, *more):
        if "test.zip" in str(source) or Path(source).name == "new":
            raise OSError(errno.EIO, "no")
        return real(source, *more)

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(OSError) as caught:
        write_together(tmp_path)
    assert caught.value.errno == errno.EIO and str(tmp_path) in caught.value.filename
    assert ".part" not in caught.value.filename and tree(tmp_path) == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_that_appears_meanwhile_stays_and_none_of_the_others_appears(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    with pytest.raises(UserError, match=r"test.zip has appeared.*--force"), Staged(tmp_path / NAMES[0]) as several:
        for name in NAMES:
            several.write(tmp_path / name, b"new")
        (tmp_path / "test.zip").write_text("mine")
    assert tree(tmp_path) == {"test.zip": "mine"}
    (tmp_path / "test.zip").unlink()
    write_together(tmp_path, force=False)
    assert tree(tmp_path) == NEW


def test_a_file_in_the_place_of_one_that_is_to_be_put_back_is_not_lost(tmp_path):
    for name in NAMES[:2]:
        (tmp_path / name).write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from test_publish import write_together\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL); write_together(Path(sys.argv[1]))"
    )
    assert run(script, tmp_path) == -signal.SIGKILL
    (tmp_path / "test.zip").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match="test.zip has taken the place of .*old.1, which must be put back"):
            write_together(tmp_path)
    (tmp_path / "test.zip").rename(tmp_path / "elsewhere")
    recover(tmp_path / NAMES[0])
    assert tree(tmp_path) == {"elsewhere": "mine", "test.zip": "old", "train.zip": "old"}


# --- folders --------------------------------------------------------------------------------------------------------


def fill(folder, force=False, joins=False):
    with Staged(folder, force, joins=joins) as one:
        place = one.place(folder)
        (place / "case").mkdir(parents=True)
        for name in ("a", "case/b"):
            (place / name).write_text("new")
        return place


def test_a_folder_appears_replaces_or_joins(tmp_path):
    fill(tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": "new", "case": None, "case/b": "new"}
    for name in ("a", "mine"):
        (tmp_path / "out" / name).write_text("old")
    with pytest.raises(UserError, match="out has appeared"):
        fill(tmp_path / "out")
    fill(tmp_path / "out", force=True, joins=True)
    assert tree(tmp_path / "out") == {"a": "new", "case": None, "case/b": "new", "mine": "old"}
    fill(tmp_path / "out", force=True)
    assert tree(tmp_path) == {"out": None, "out/a": "new", "out/case": None, "out/case/b": "new"}


def test_a_folder_is_no_file_and_is_never_replaced_by_one(tmp_path):
    (tmp_path / "test.zip").mkdir()
    (tmp_path / "test.zip" / "mine").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(IsADirectoryError, match="test.zip"):
        write_together(tmp_path)
    with pytest.raises(IsADirectoryError, match="test.zip"):
        files.write_bytes(tmp_path / "test.zip", b"")
    assert tree(tmp_path) == before


def test_without_locks_only_old_leftovers_are_removed(tmp_path, monkeypatch):
    assert run(KILLED, tmp_path / "x.zip") == -signal.SIGKILL
    monkeypatch.setattr(publish, "try_lock", lambda file: None)
    files.write_bytes(tmp_path / "x.zip", b"new")
    left = [path for path in tmp_path.rglob("*") if path.name != "x.zip"]
    assert len(left) == 3
    for path in left:
        os.utime(path, (time.time() - 100_000,) * 2)
    files.write_bytes(tmp_path / "x.zip", b"new")
    assert tree(tmp_path) == {"x.zip": "new"}
