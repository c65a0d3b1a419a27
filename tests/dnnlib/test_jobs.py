"""Jobs are skipped exactly if nothing has changed, and end on signals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib.code_hash import program_sha256
from dnnlib.errors import UserError
from dnnlib.fingerprints import describe_input, fingerprint
from dnnlib.jobs import Graph, Job, Programs, held, result_of
from dnnlib.slots import Slots
from helpers.commands import ROOT

PROGRAMS = Programs(ROOT, {})
COPY = "import sys; from pathlib import Path; Path(sys.argv[2]).write_text(Path(sys.argv[1]).read_text() + sys.argv[3])"


class Folder:
    """An output folder in which jobs run one at a time."""

    def __init__(self, outdir, programs=PROGRAMS):
        self.outdir, self.programs, self.records = outdir, programs, outdir / "jobs"

    def run(self, job):
        graph = Graph(self.outdir, self.programs, [job])
        graph.run(Slots(1))
        return graph.results(job.name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in.txt").write_text("input ")
    return Folder(tmp_path)


def copy(folder, suffix="done"):
    """Run a job that copies in.txt to out.txt and appends a word. Returns whether it ran."""
    before = (folder.outdir / "out.txt").stat().st_mtime_ns if (folder.outdir / "out.txt").exists() else None
    command = ["-c", COPY, "{out}/in.txt", "{out}/out.txt", suffix]
    (result,) = folder.run(Job("copy", "copy", command, [folder.outdir / "in.txt"], ["out.txt"], replaces=False))
    assert result.read_text() == (folder.outdir / "in.txt").read_text() + suffix
    return result.stat().st_mtime_ns != before


def test_a_job_runs_again_only_if_options_inputs_or_results_changed(folder):
    assert copy(folder)
    assert not copy(folder)
    assert copy(folder, suffix="other options")
    (folder.outdir / "in.txt").write_text("another input ")
    assert copy(folder, suffix="other options")
    (folder.outdir / "out.txt").write_text("damaged")
    assert copy(folder, suffix="other options")
    (folder.outdir / "out.txt").unlink()
    assert copy(folder, suffix="other options")
    assert not copy(folder, suffix="other options")


GO_ON = """
import sys; from pathlib import Path
folder, option, status = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "log.txt").open("a") as log: log.write(option)
sys.exit(status)
"""


def test_a_job_goes_on_in_the_folder_of_its_options(folder, capfd):
    """A folder named by the fingerprint: the same one after an interruption, another one for other options."""

    def call(option, status):
        status_file = folder.outdir / "status.py"  # no option: it may differ between calls of the same job
        status_file.write_text(GO_ON.replace("int(sys.argv[3])", str(status)))
        command = ["-c", f"exec(open({str(status_file)!r}).read())", "{out}/runs/{fingerprint}", option]
        outputs = ["runs/{fingerprint}/log.txt"]
        return folder.run(Job("go on", "", command, [folder.outdir / "in.txt"], outputs, replaces=False))[0]

    for status in (143, 130):
        with pytest.raises(SystemExit):
            call("a", status)
        assert "; the same command skips finished jobs and continues this one" in capfd.readouterr().err
    first = call("a", 0)
    assert first.read_text() == "aaa" and call("a", 0) == first and first.read_text() == "aaa"
    second = call("b", 0)
    assert second.read_text() == "b" and second.parent != first.parent
    (folder.outdir / "in.txt").write_text("another input ")
    assert call("b", 0).read_text() == "b" and len(list((folder.outdir / "runs").iterdir())) == 3


def test_a_job_that_failed_is_not_done(folder, capfd):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('half'); sys.exit(int(sys.argv[2]))", "{out}/out.txt"]
    for code, expected in ((2, 2), (1, 1), (130, 130)):
        with pytest.raises(SystemExit) as stopped:
            folder.run(Job("half", "fail", [*command, str(code)], [], ["out.txt"]))
        assert stopped.value.code == expected
        assert not json.loads((folder.records / "half.json").read_text())["complete"]
    assert "half ended early" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        folder.run(Job("half", "", ["-c", "import os; os.kill(os.getpid(), 9)"], [], ["out.txt"]))
    assert "half ended early (killed, most likely for lack of memory); the same" in capfd.readouterr().err
    folder.run(Job("half", "succeed", [*command, "0"], [], ["out.txt"]))
    assert json.loads((folder.records / "half.json").read_text())["complete"]


def test_ctrl_c_lets_the_job_end_in_its_own_time(tmp_path):
    """In a terminal, Ctrl-C reaches the pipeline and the job at once. A training then saves a snapshot."""
    job = (
        "import signal, sys, time; signal.signal(signal.SIGINT, lambda *a: None); print('ready', flush=True);"
        "time.sleep(0.5); time.sleep(0.5); open(sys.argv[1], 'w').write('saved'); sys.exit(130)"
    )
    script = (
        "from dnnlib.jobs import Graph, Job, Programs; from dnnlib.slots import Slots; from pathlib import Path;"
        f"job = Job('slow', '', ['-c', {job!r}, '{{out}}/out.txt'], [], ['out.txt']);"
        f"Graph(Path({str(tmp_path)!r}), Programs(Path(), {{}}), [job]).run(Slots(1))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("ready"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "out.txt").read_text() == "saved"
    assert not json.loads((tmp_path / "jobs" / "slow.json").read_text())["complete"]


# A job that prints its process id, reports SIGTERM if asked to, and would run for a long time.
LONG = """
import os, signal, sys, time
def end(*_):
    print("ended", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end if sys.argv[1] == "heeds" else signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
time.sleep(60)
"""


def begin(outdir, how="heeds", prefix=""):
    """Start a pipeline of one long job in a new process. Returns the process and the job's process id."""
    script = (
        # nohup, below which tests may run, has its children ignore SIGHUP.
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"{prefix}\nfrom dnnlib.jobs import Graph, Job, Programs; from dnnlib.slots import Slots\n"
        "from pathlib import Path\n"
        f"job = Job('long', '', ['-c', {LONG!r}, {how!r}], [], [])\n"
        f"Graph(Path({str(outdir)!r}), Programs(Path(), {{}}), [job]).run(Slots(1))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("ready"):
            return process, int(line.split()[1])
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_pipeline_ends_its_job(tmp_path, sent):
    """Batch systems and container runtimes send the signal to the parent only."""
    process, job = begin(tmp_path)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)  # returns when the job, which inherits the pipe, has ended too
    assert process.returncode == 128 + sent and "ended" in out
    assert "long ended early; the same command skips finished jobs" in err and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)


@pytest.mark.parametrize("grace, signals", [(0.2, 1), (100, 2)], ids=["in time", "at a second signal"])
def test_a_job_that_does_not_heed_a_signal_is_killed(tmp_path, grace, signals):
    process, job = begin(tmp_path, "ignores", f"import dnnlib.commands; dnnlib.commands.GRACE = {grace}")
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a process with its parent")
def test_a_job_ends_with_a_pipeline_that_is_killed(tmp_path):
    process, job = begin(tmp_path)
    process.kill()
    out, _ = process.communicate(timeout=30)
    assert "ended" in out


def test_a_second_call_waits_for_its_turn(tmp_path):
    process, job = begin(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"is at work there; wait for it \(process {process.pid} on "):
            with held(tmp_path):
                pass
    process.terminate()
    process.communicate(timeout=30)
    with held(tmp_path):
        pass


def test_force_is_passed_only_for_what_the_job_itself_left(folder):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:]))", "{out}/out.txt"]
    (out,) = folder.run(Job("write", "", [*command, "one"], [], ["out.txt"]))
    assert out.read_text() == "one"
    folder.run(Job("write", "", [*command, "two"], [], ["out.txt"]))
    assert out.read_text() == "two --force"


def test_what_a_job_did_not_make_is_not_replaced(folder):
    (folder.outdir / "out.txt").write_text("mine")
    write = Job("write", "", ["-c", "import sys; open(sys.argv[1], 'w')", "{out}/out.txt"], [], ["out.txt"])
    for _ in range(2):
        with pytest.raises(UserError, match="out.txt exists already, but not from this job"):
            folder.run(write)
    assert (folder.outdir / "out.txt").read_text() == "mine"


def test_a_moved_output_folder_is_still_done(folder, tmp_path, monkeypatch):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('x')", "{out}/out.txt"]
    write = Job("write", "", command, [], ["out.txt"])
    folder.run(write)
    moved = tmp_path.rename(tmp_path.parent / "moved [1]")
    before = (moved / "out.txt").stat().st_mtime_ns
    Folder(moved, PROGRAMS).run(write)
    monkeypatch.chdir(moved.parent)
    Folder(Path("moved [1]"), PROGRAMS).run(write)
    assert (moved / "out.txt").stat().st_mtime_ns == before


def test_a_job_depends_on_its_program_and_all_that_this_imports(tmp_path):
    for name, content in {
        "write.py": "import sys\nfrom room import way\nopen(sys.argv[1], 'w').write('x')",
        "room/__init__.py": "",
        "room/way.py": "def late():\n    import room.end",
        "room/end.py": "",
        "room/csrc/tail.cu": "",
        "room/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    write = Job("write", "", ["write.py", "{out}/out.txt"], [], ["out.txt"], replaces=False)

    def made(programs=Programs(tmp_path)):
        program_sha256.cache_clear()
        (out,) = Folder(tmp_path, programs).run(write)
        return out.stat().st_mtime_ns

    last = made()
    for name in ("write.py", "room/way.py", "room/end.py", "room/csrc/tail.cu"):
        with (tmp_path / name).open("a") as file:
            file.write("\n# changed")
        assert made() != last, name
        last = made()
    (tmp_path / "room" / "other.py").write_text("# changed")
    assert made() == last
    (tmp_path / "write.py").write_text((tmp_path / "write.py").read_text() + "\n")
    only_end = Programs(tmp_path, {"write.py": ("room/end.py",)})
    last = made(only_end)
    (tmp_path / "write.py").write_text((tmp_path / "write.py").read_text() + "\n")
    assert made(only_end) == last, "its entry imports nothing"


def test_an_entry_belongs_to_the_first_words_of_a_command(tmp_path):
    for name in ("tool/__main__.py", "tool/train.py", "tool/test.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    programs = Programs(tmp_path, {"tool train": ("tool/train.py",), "tool test": ("tool/test.py",)})
    found = {words: programs.sources_of(["-m", *words.split(), "--x"]) for words in ("tool train", "tool test", "tool")}
    assert len(set(found.values())) == 3
    assert found["tool"] == program_sha256("tool/__main__.py", root=tmp_path)


def test_records_of_earlier_versions_are_read(folder):
    """Content of jobs/<name>.json. A change of its form would make finished jobs of all users run again."""
    folder.run(Job("none", "", ["-c", "", "{out}/a"], [folder.outdir / "in.txt"], ["in.txt"], replaces=False))
    record = json.loads((folder.records / "none.json").read_text())
    assert 0 < record.pop("seconds") < 60
    assert record == {
        "complete": True,
        "wanted": "606daa955364e640c6ab1d2d1896d11f4d362f7b0ceedc111bcef51cd4701c84",
        "command": ["-c", "", "{out}/a"],
        "results": {"in.txt": "89376c74952f378642b303e54e670668f97a46eb0e419273c99b8059e976c587"},
        "kind": "none",
    }


def reads(name, *others, outputs=None):
    """Return a job that reads results of others, which are written as NAME or NAME:INDEX."""
    needs = [result_of(*((lambda n, i="0": (n, int(i)))(*other.split(":")))) for other in others]
    return Job(name, "", ["-c", "", *needs], [], [f"{name}.txt"] if outputs is None else outputs)


@pytest.mark.parametrize(
    "jobs, message",
    [
        ([reads("a"), reads("a")], "two jobs have one name"),
        ([reads("a", "b")], "a needs result 0 of b, which is not there"),
        ([reads("a"), reads("b", "a:1")], "b needs result 1 of a, which is not there"),
        ([reads("a", "c"), reads("b", "a"), reads("c", "b")], "in a circle: "),
        ([reads("a", "a")], "in a circle: a <- a"),
        ([reads("../a")], "'../a' is no name of a file"),
    ],
)
def test_graphs_that_make_no_sense(tmp_path, jobs, message):
    with pytest.raises(ValueError, match=message):
        Graph(tmp_path, PROGRAMS, jobs)


def test_results_go_from_job_to_job(folder):
    """Also a job that reads what stands after it; a result in the command is an input by its content."""
    words = ["-c", COPY, "{out}/in.txt", "{out}/file-7", "one"]
    first = Job("first", "", words, [], ["in.txt", "file-*"], replaces=False)
    words = ["-c", COPY, result_of("first", 1), "{out}/second", "two"]
    second = Job("second", "", words, [], ["second"], replaces=False)
    graph = Graph(folder.outdir, PROGRAMS, [second, first])
    graph.run(Slots(1))
    assert graph.results("first") == [folder.outdir / "in.txt", folder.outdir / "file-7"]
    assert graph.results("second")[0].read_text() == "input onetwo"
    (folder.outdir / "file-7").write_text("damaged")
    graph.run(Slots(1))
    assert graph.results("second")[0].read_text() == "input onetwo"


def unseen_end(folder, job, before):
    """Have a job's command end while nobody is there to complete its record. before: text of its old output."""
    if before is not None:
        (folder.outdir / "out.txt").write_text(before)
    graph = Graph(folder.outdir, PROGRAMS, [job])
    graph.begin(graph.look(job))
    (folder.outdir / "out.txt").write_text("new")


@pytest.mark.parametrize("before, redone", [(None, False), ("old", False), ("new", True)])
def test_a_job_that_ended_unseen_is_not_done_again(folder, capfd, before, redone):
    """It is known by its outputs, unless they may be older."""
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('redone')", "{out}/out.txt"]
    job = Job("job", "", command, [], ["out.txt"], replaces=False)
    unseen_end(folder, job, before)
    (out,) = folder.run(job)
    assert out.read_text() == ("redone" if redone else "new")
    assert ("had ended before, with these options" in capfd.readouterr().out) == (not redone)
    assert json.loads((folder.records / "job.json").read_text())["complete"]


@pytest.mark.parametrize("how", ["other options", "continues", "failed"])
def test_outputs_that_do_not_show_that_a_job_has_ended(folder, how):
    word = "{fingerprint}" if how == "continues" else "x"
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('redone')", "{out}/out.txt", word]
    job = Job("job", "", command, [], ["out.txt"], replaces=False)
    unseen_end(folder, job, None)
    if how == "failed":
        graph = Graph(folder.outdir, PROGRAMS, [job])
        graph.fail(graph.look(job))
    if how == "other options":
        job = dataclasses.replace(job, command=[*command, "y"])
    assert folder.run(job)[0].read_text() == "redone"


def test_an_output_folder_may_be_called_in_many_ways(folder, monkeypatch):
    """A short name may be part of an option's: `out` of --outdir."""
    outdir = folder.outdir / "out"
    outdir.mkdir()
    write = "import sys; open(sys.argv[2] + '/file', 'a').write('once')"

    def run(where):
        job = Job("write", "", ["-c", write, "--outdir=in", str(where)], [], ["file"], replaces=False)
        Graph(where, PROGRAMS, [job]).run(Slots(1))

    run(outdir)
    monkeypatch.chdir(folder.outdir)
    run(Path("out"))
    assert (outdir / "file").read_text() == "once"


def test_a_file_is_read_once_in_a_process(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("dnnlib.fingerprints.sha256", lambda path: read.append(path) or str(len(read)))
    path = tmp_path / "big.zip"
    path.write_text("x")
    assert describe_input(path) == describe_input(path) == "1" and len(read) == 1
    os.utime(path, (1, 1))
    assert describe_input(path) == "2"
    (tmp_path / "new").write_text("y")
    (tmp_path / "new").rename(path)
    assert describe_input(path) == "3"


def described(path):
    return fingerprint(describe_input(path))


def test_changes_behind_links_are_seen(tmp_path):
    """Links to folders and files: several to the same one, circular ones, and broken ones."""
    store = tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    for name in ("a.nii", "b.nii", "deep/c.nii"):
        (store / name).write_text(name[-5])
    source = tmp_path / "source"
    source.mkdir()
    (source / "HGG").symlink_to("../store")
    (source / "again").symlink_to(store / "deep")
    (source / "one.nii").symlink_to("../store/b.nii")
    (store / "deep" / "loop").symlink_to("..")
    (source / "nowhere").symlink_to("none")
    for file in store.rglob("*.nii"):
        os.utime(file, (1, 1))
    states = [described(source)]

    def change(what):
        what()
        states.append(described(source))
        assert states[-1] not in states[:-1] and described(source) == states[-1]

    change(lambda: (store / "deep" / "d.nii").write_text("new"))
    change(lambda: (store / "deep" / "d.nii").unlink() or (store / "deep" / "table.csv").write_text("new"))

    def exchange():  # names, sizes and modification times stay the same
        time.sleep(0.02)  # a tick of the kernel's clock
        (store / "a.nii").rename(store / "x")
        (store / "b.nii").rename(store / "a.nii")
        (store / "x").rename(store / "b.nii")

    change(exchange)
    change(lambda: (source / "again").unlink())
    change(lambda: (source / "again").symlink_to(tmp_path))
    (store / ".hidden").write_text("no data")
    assert described(source) == states[-1]


def test_commands_are_those_of_the_graph_in_its_order(folder):
    """An output folder may hold records of jobs that another graph had."""

    def job(name):
        words = ["-c", COPY, "{out}/in.txt", f"{{out}}/{name}.txt", name]
        return Job(name, "", words, [folder.outdir / "in.txt"], [f"{name}.txt"], replaces=False)

    Graph(folder.outdir, PROGRAMS, [job("a"), job("c")]).run(Slots(1))
    graph = Graph(folder.outdir, PROGRAMS, [job("c"), job("b")])
    graph.run(Slots(1))
    assert [command.rpartition(" ")[2] for command in graph.commands()] == ["c", "b"]
    assert len(graph.records()) == 3
