"""Loading of native libraries, tested with toy libraries, which compile fast."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.ops import build, native
from toys import Toy, needs_compiler, script


def new_process(monkeypatch) -> None:
    """Make this process forget its loaded libraries and messages, as if it were a new one."""
    monkeypatch.setattr(native, "_statuses", {})


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    made = Toy(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(made.extensions))
    monkeypatch.setenv("CXX", str(made.compiler))
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setitem(build.LIBRARIES, "cpu", made.library)
    new_process(monkeypatch)
    return made


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for half a minute")


@needs_compiler
def test_library_is_built_once_and_loaded(toy, monkeypatch, capfd):
    assert native.available("cpu") and native.available("cpu")
    assert native.status("cpu").seconds > 0 and toy.number() == 7
    first = capfd.readouterr().err
    assert first.count("building native operators for cpu") == first.count("built in") == 1

    new_process(monkeypatch)
    assert native.available("cpu") and native.status("cpu").seconds == 0 and toy.number() == 7
    assert toy.compilations() == 1 and capfd.readouterr().err == ""
    assert [p.name for p in native.status("cpu").file.parent.iterdir()] == ["native.so"]


@needs_compiler
def test_changed_sources_headers_flags_and_compilers_are_other_libraries(toy, monkeypatch):
    def file() -> Path:
        new_process(monkeypatch)
        built = native.status("cpu").file
        assert built
        return built

    files = [file()]
    toy.header.write_text("#define NUMBER 8\n")
    files.append(file())
    assert toy.number() == 8
    toy.source.write_text(toy.source.read_text().replace("NUMBER", "NUMBER + 1"))
    files.append(file())
    assert toy.number() == 9
    monkeypatch.setitem(build.LIBRARIES, "cpu", build.Library("cpu", toy.folder, ("toy.cpp",), ("-O1",)))
    files.append(file())
    script(toy.compiler, '[ "$*" = --version ] && echo another version && exit', 'exec c++ "$@"')
    files.append(file())
    # Another machine: there -march=native defines other macros.
    script(toy.compiler, 'case "$*" in *-dM*) echo "#define __AVX9__ 1"; exit;; esac', 'exec c++ "$@"')
    files.append(file())
    assert len(set(files)) == 6 and all(f.is_file() for f in files)


@needs_compiler
def test_compiler_that_does_not_know_the_machine_builds_for_any(toy):
    script(toy.compiler, 'case "$*" in *march*) exit 1;; esac', 'exec c++ "$@"')
    assert native.available("cpu") and toy.number() == 7


@needs_compiler
def test_two_processes_share_one_build(toy):
    toy.hold.touch()
    processes = [toy.process(), toy.process()]
    try:
        building, waiting = sorted(p.stderr.readline() for p in processes)
    finally:
        toy.hold.unlink()
    assert "building native operators" in building and "waiting for another process" in waiting
    outputs = [p.communicate(timeout=60) for p in processes]
    assert [out for out, _ in outputs] == ["True\n", "True\n"], outputs
    assert toy.compilations() == 1


@needs_compiler
def test_killed_build_leaves_nothing_in_the_way(toy):
    toy.hold.touch()
    process = toy.process()
    try:
        wait_for(toy.compilations)
        process.kill()
        process.wait(timeout=60)
        toy.compiler.unlink()  # the compiler started by the killed process is still running
        script(toy.compiler, 'exec c++ "$@"')
        assert native.available("cpu") and toy.number() == 7
        assert [p.name for p in native.status("cpu").file.parent.iterdir()] == ["native.so"]
    finally:
        toy.hold.unlink()


@needs_compiler
def test_failed_build_is_reported_once_and_remembered(toy, monkeypatch, capfd):
    toy.source.write_text("int right;\nint wrong = missing;\n")
    assert not native.available("cpu") and not native.available("cpu")
    told = capfd.readouterr().err
    assert told.count("toy.cpp:2:13: error: ") == 1 and "missing" in told and "rebuild" in told
    assert len(told.splitlines()) < 8

    new_process(monkeypatch)
    assert not native.available("cpu") and toy.compilations() == 1
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 1 and "failed before" in told
    failure = next(toy.extensions.glob("*/failure.txt"))
    assert str(failure) in told and "error: " in failure.read_text() and "missing" in failure.read_text()

    monkeypatch.setenv(native.SWITCH, "rebuild")  # as a user does after the machine was repaired
    new_process(monkeypatch)
    assert not native.available("cpu") and not native.available("cpu") and toy.compilations() == 2
    monkeypatch.delenv(native.SWITCH)
    shutil.rmtree(failure.parent)
    new_process(monkeypatch)
    assert not native.available("cpu") and toy.compilations() == 3


@needs_compiler
def test_rebuild_replaces_a_library_once_per_process(toy, monkeypatch):
    native.available("cpu")
    monkeypatch.setenv(native.SWITCH, "rebuild")
    new_process(monkeypatch)
    assert native.available("cpu") and native.available("cpu") and toy.compilations() == 2


@needs_compiler
def test_library_that_does_not_load_is_a_failure(toy, monkeypatch, capfd):
    toy.source.write_text("void nowhere();\nstruct Early { Early() { nowhere(); } } early;\n")
    for report in ("undefined symbol", "failed before"):
        new_process(monkeypatch)
        assert not native.available("cpu") and report in capfd.readouterr().err
    assert toy.compilations() == 1


@needs_compiler
def test_damaged_file_is_reported(toy, monkeypatch, capfd):
    file = native.status("cpu").file
    file.unlink()  # this process has mapped the old file, which must not change
    file.write_bytes(b"no library")
    new_process(monkeypatch)
    assert not native.available("cpu") and "does not load" in capfd.readouterr().err


@needs_compiler
def test_want_of_memory_is_not_held_against_the_sources(toy, monkeypatch, capfd):
    script(toy.compiler, 'case "$*" in *" -c "*) echo "g++: fatal error: Killed signal" >&2; exit 1;; esac', 'c++ "$@"')
    assert not native.available("cpu") and "MAX_JOBS=1" in capfd.readouterr().err
    assert not list(toy.extensions.glob("*/failure.txt"))


@needs_compiler
def test_tools_that_are_missing_are_named_and_not_remembered(toy, monkeypatch, capfd):
    def told() -> str:
        new_process(monkeypatch)
        assert not native.available("cpu") and not native.available("cpu")
        (line,) = capfd.readouterr().err.splitlines()
        return line

    monkeypatch.setenv("CXX", str(toy.folder / "gone++"))
    assert "gone++" in told()
    empty = toy.folder / "empty"
    empty.mkdir()
    with monkeypatch.context() as patch:
        patch.delenv("CXX")
        patch.setenv("PATH", str(empty))
        patch.setattr(build, "sysconfig", SimpleNamespace(get_path=lambda name: str(empty)))
        assert "apt-get install g++" in told()
        script(empty / "c++")
        assert "pip install ninja" in told()
        patch.setitem(build.LIBRARIES, "cpu", build.Library("cpu", toy.folder, ("gone.cpp",), ()))
        assert "gone.cpp is missing" in told()
    assert not toy.extensions.exists()
    monkeypatch.setenv("CXX", str(toy.compiler))
    new_process(monkeypatch)
    assert native.available("cpu")


@needs_compiler
def test_compiler_may_be_a_command_of_several_words(toy, monkeypatch):
    """CXX may hold several words, such as "ccache g++"."""
    monkeypatch.setenv("CXX", f"env -u NOTHING {toy.compiler}")
    assert native.available("cpu") and toy.number() == 7


@needs_compiler
def test_compiler_set_to_link_libstdcpp_statically_links_the_shared_one(toy):
    """A second libstdc++ beside PyTorch's can't write numbers: messages would end at the first number."""
    script(toy.compiler, 'exec c++ "$@" -static-libstdc++')
    empty = ["-shared", "-x", "c++", os.devnull, "-o", toy.folder / "empty.so"]
    if sys.platform != "linux" or subprocess.run([toy.compiler, *empty], capture_output=True).returncode:
        pytest.skip("needs Linux, and a compiler with a static libstdc++")
    toy.source.write_text("""
#include <sstream>
extern "C" int toy() { std::ostringstream message; message << "found " << 7 << " of 9"; return message.str().size(); }
""")
    assert native.available("cpu")
    call = f"import ctypes, torch; print(ctypes.CDLL({str(native.status('cpu').file)!r}).toy())"
    printed = subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True
    )  # in another process, as it might crash
    assert printed.stdout.strip() == str(len("found 7 of 9")), printed.stderr


@needs_compiler
def test_ninja_of_the_environment_serves_without_being_on_the_path(toy, monkeypatch):
    scripts = toy.folder / "scripts"
    scripts.mkdir()
    (scripts / "ninja").symlink_to(shutil.which("ninja"))
    tools = toy.folder / "tools"
    tools.mkdir()
    for name in filter(shutil.which, ("c++", "as", "ld", "sh", "which")):
        (tools / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(build, "sysconfig", SimpleNamespace(get_path=lambda name: str(scripts)))
    assert native.available("cpu") and os.environ["PATH"] == str(tools)


def test_folder_that_cannot_be_written_is_reported(toy, monkeypatch, capfd):
    toy.extensions.write_text("in the way")
    assert not native.available("cpu") and "TORCH_EXTENSIONS_DIR" in capfd.readouterr().err


def give_to_another_user(path: Path, monkeypatch) -> None:
    """Give files to another user. Without root's rights, let this process take itself for another user."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@needs_compiler
def test_code_that_others_may_have_written_is_not_run(toy, monkeypatch, capfd):
    file = native.status("cpu").file
    folder, lock = file.parent, file.parent.with_suffix(".lock")
    assert file.stat().st_mode & 0o022 == folder.stat().st_mode & 0o022 == 0
    capfd.readouterr()
    real_load = torch.ops.load_library

    def told(load=None) -> str:
        new_process(monkeypatch)
        monkeypatch.setattr(torch.ops, "load_library", load or (lambda path: pytest.fail("code was run")))
        served = native.available("cpu")
        assert served == (load is not None)
        return capfd.readouterr().err

    for path in (file, folder):
        for mode in (0o775, 0o757):
            path.chmod(mode)
            line = told()
            assert line.count("\n") == 1 and f"{path} can be written by other users, so nothing is run" in line
        path.chmod(0o755)
        with monkeypatch.context() as patch:
            give_to_another_user(path, patch)
            assert f"{path if os.geteuid() == 0 else folder} belongs to another user" in told()
        os.chown(path, os.geteuid(), -1)
        other = path.rename(path.with_name("elsewhere"))
        path.symlink_to(other)
        assert f"{path} is a link" in told()
        path.unlink()
        other.rename(path)
    toy.extensions.chmod(0o777)
    assert f"all users can write {toy.extensions}" in told() and "TORCH_EXTENSIONS_DIR" in told()
    toy.extensions.chmod(0o1777)  # as /tmp
    assert told(real_load) == ""

    file.unlink()  # so that the next call would build
    victim = toy.folder / "victim"
    lock.unlink()
    lock.symlink_to(victim)
    assert str(lock) in told() and not victim.exists()
    lock.unlink()
    os.mkfifo(lock)
    assert str(lock) in told()


@needs_compiler
def test_a_generous_umask_makes_no_library_that_is_refused(toy, monkeypatch, capfd):
    before = os.umask(0)
    try:
        assert native.available("cpu")
    finally:
        os.umask(before)
    toy.extensions.chmod(0o755)
    new_process(monkeypatch)
    capfd.readouterr()
    assert native.available("cpu") and capfd.readouterr().err == ""


@needs_compiler
def test_builds_below_a_folder_whose_name_is_no_text_end_with_words_or_a_library(toy, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", os.fsdecode(bytes(toy.folder) + b"/M\xfcller and sons"))
    for _ in range(2):
        new_process(monkeypatch)
        served = native.available("cpu")
        assert served or capfd.readouterr().err.count("no native operators for cpu") == 1


def test_reference_can_be_chosen(toy, monkeypatch, capfd):
    with native.reference_only():
        assert not native.available("cpu") and toy.compilations() == 0
    monkeypatch.setenv(native.SWITCH, "reference")
    assert not native.available("cpu") and not native.available("cuda")
    assert toy.compilations() == 0 and capfd.readouterr().err == ""
    assert "reference" in native.status("cpu").error

    monkeypatch.setenv(native.SWITCH, "fast")
    new_process(monkeypatch)
    with pytest.raises(UserError, match="STYLEGAN2_MR_OPS='fast': expected reference or rebuild"):
        native.available("cpu")


@needs_compiler
def test_reference_only_ends_with_its_block(toy):
    assert native.available("cpu")
    with native.reference_only(), native.reference_only():
        assert not native.available("cpu")
    assert native.available("cpu")


def test_other_devices_and_missing_cards_are_no_news(toy, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not native.available("cuda") and not native.available("mps") and not native.available("meta")
    assert capfd.readouterr().err == ""
