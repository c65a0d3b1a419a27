"""Jobs run side by side: in order, in slots of their own, and never on their own when somebody was killed."""

import contextlib
import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from dnnlib.errors import Failure, UserError
from dnnlib.jobs import Graph, Job, held
from dnnlib.slots import Slots, find_slots, gpu_ids
from helpers.commands import ROOT
from helpers.job_graph import NEEDS, PROGRAMS, WORK, notes, ten_jobs, worker

# Takes the place of `srun`: notes its own words, and is the parent of the command, as srun's daemon is.
SRUN = '#!/bin/sh\necho "srun $1 $2" >> "$(dirname "$0")/srun.txt"\nshift 2\n"$@"\nstatus=$?\nexit $status\n'


@pytest.fixture
def srun(tmp_path):
    path = tmp_path / "srun"
    path.write_text(SRUN)
    path.chmod(0o755)
    return path


def at_once(lines):
    """Return the largest number of jobs that were at work at the same time, by the notes of all."""
    working, most = 0, 0
    for what, *_ in lines:
        working += {"start": 1, "finish": -1}.get(what, 0)
        most = max(most, working)
    return most


def test_jobs_start_in_order_and_after_what_they_need(tmp_path):
    graph = ten_jobs(tmp_path, "x")
    graph.run(Slots(3))
    lines = [(what, name) for what, name, *_ in notes(tmp_path) if what != "work"]
    for name, needs in NEEDS.items():
        assert all(lines.index(("finish", need)) < lines.index(("start", name)) for need in needs)
    assert 1 < at_once(notes(tmp_path)) <= 3
    assert graph.results("c") == [tmp_path / "c.txt"] and (tmp_path / "c.txt").read_text() == "xcxa\n\n"
    graph.run(Slots(1))
    assert len(notes(tmp_path, "start")) == 10, "nothing to do"


# Works until three jobs have started, so that jobs wait for each other if too few run at once.
UNTIL_THREE = WORK.replace(
    "time.monotonic() < until", "time.monotonic() < until or open(log).read().count('start') < 3"
)


@pytest.mark.parametrize("launched", [True, False])
def test_as_many_jobs_as_slots_run_at_once(tmp_path, srun, monkeypatch, launched):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    slots = find_slots(3, f"'{srun}' --gres=gpu:1 -n1") if launched else Slots(3)
    jobs = [worker(name, script=UNTIL_THREE, alone=launched) for name in "abcdefg"]
    Graph(tmp_path, PROGRAMS, jobs).run(slots)
    assert at_once(notes(tmp_path)) == 3 and len(notes(tmp_path, "finish")) == 7
    assert {tuple(words[3:]) for words in notes(tmp_path)} == {("-", "5")}, "the user's own number of threads"
    if launched:
        assert (tmp_path / "srun.txt").read_text() == "srun --gres=gpu:1 -n1\n" * 7


def test_a_gpu_has_one_job_at_a_time(tmp_path, capfd):
    jobs = [worker(name, seconds=0.1) for name in "abcdef"]
    jobs.insert(3, worker("x", alone=True))
    Graph(tmp_path, PROGRAMS, jobs).run(Slots(2, gpus=("4", "GPU-5f")))
    busy = {}
    for what, name, _, gpu, _ in notes(tmp_path):
        if what == "start":
            assert not busy.get(gpu) and (name != "x" or not any(busy.values()))
            busy[gpu] = name
        elif what == "finish":
            busy[gpu] = None
    assert {"4", "GPU-5f"} <= busy.keys() and len(notes(tmp_path, "start")) == 7
    out = capfd.readouterr().out
    assert f"a: make a (GPU 4; output in {tmp_path}/jobs/a.txt)" in out and "=== x: make x" in out
    assert re.search(r"^\[7/7\] \w: took ", out, re.MULTILINE) and "hello from x" in out and "hello from a" not in out
    assert "hello from a" in (tmp_path / "jobs" / "a.txt").read_text()


def test_a_job_computes_on_one_thread_unless_it_is_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for n in (1, 2):
        Graph(tmp_path, PROGRAMS, [worker("a"), worker("x", alone=True)]).run(Slots(n))
        assert [words[1::3] for words in notes(tmp_path, "start")] == [["a", "1"], ["x", "-"]]


def test_slots_of_this_machine(tmp_path, monkeypatch):
    assert gpu_ids({"CUDA_VISIBLE_DEVICES": "2, GPU-ab,MIG-1,-1,3"}) == ("2", "GPU-ab", "MIG-1")
    assert gpu_ids({"CUDA_VISIBLE_DEVICES": ""}) == ()
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\n[ $1 = -L ] && printf 'GPU 0: A (UUID: x)\\n  MIG 1g (UUID: y)\\nGPU 1: A (UUID: z)\\n'")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_ids({}) == ("0", "1")
    smi.write_text("#!/bin/sh\necho 'GPU access blocked'\nexit 9")
    assert gpu_ids({}) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3")
    assert find_slots() == Slots(2, ("7", "3")) and find_slots(1) == Slots(1, ("7", "3"))
    assert [find_slots(4).environment(n, False)["CUDA_VISIBLE_DEVICES"] for n in range(4)] == ["7", "3", "7", "3"]
    assert find_slots(launcher="sh -c").number == 100
    for wrong, message in (("no-such-srun -n1", "there is no program no-such-srun"), ("srun 'x", "is no command")):
        with pytest.raises(UserError, match=message):
            find_slots(launcher=wrong)


FAIL = "import sys; print('\\n'.join(map(str, range(99)))); print('50 %\\r100 %'); sys.exit(int(sys.argv[1]))"


def test_what_is_at_work_is_said_now_and_then(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("dnnlib.pool._QUIET", 0.1)
    jobs = [worker(name, seconds=0.5, kind="k", work=2) for name in "abcd"]
    Graph(tmp_path, PROGRAMS, jobs).run(Slots(2))
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("at work: ")]
    assert lines[0] == "at work: a (0s), b (0s)" and re.fullmatch(r"at work: c .*, d .*; about \ds left", lines[-1])
    Graph(tmp_path, PROGRAMS, jobs).run(Slots(2))
    assert capfd.readouterr().out == "4 jobs done before with these options, inputs and sources\n"


@pytest.mark.parametrize("status, expected", [(2, 2), (7, 1), (143, 143)])
def test_after_a_failure_jobs_at_work_finish_and_none_is_started(tmp_path, capfd, status, expected):
    def graph(status):
        fails = Job("bad", "fail", ["-c", FAIL, str(status)], [], ["bad.txt"])
        return Graph(tmp_path, PROGRAMS, [worker("a", seconds=1), fails, worker("c")])

    with pytest.raises(SystemExit) as stopped:
        graph(status).run(Slots(2))
    assert stopped.value.code == expected
    assert [words[:2] for words in notes(tmp_path) if words[0] != "work"] == [["start", "a"], ["finish", "a"]]
    err = capfd.readouterr().err
    assert f"bad ended early; all its output is in {tmp_path}/jobs/bad.txt" in err
    assert "no other job is started; waiting for 1 job at work" in err
    assert "    98\n    100 %\n" in err and "    84\n" not in err, "the last lines"
    with pytest.raises(Failure, match=f"bad ended without an error, but {tmp_path} holds no bad.txt"):
        graph(0).run(Slots(1))
    assert len(notes(tmp_path, "start")) == 1, "a is done, and c is not started"


def test_a_mistake_found_when_a_job_starts_ends_no_other_job(tmp_path):
    (tmp_path / "b.txt").write_text("mine")
    with pytest.raises(UserError, match="b.txt exists already, but not from this job"):
        Graph(tmp_path, PROGRAMS, [worker("a"), worker("b"), worker("c")]).run(Slots(2))
    assert [words[:2] for words in notes(tmp_path) if words[0] != "work"] == [["start", "a"], ["finish", "a"]]


# --- kills ------------------------------------------------------------------------------------------------------------


def call(outdir, word, *options):
    """Start the ten jobs in a process of its own."""
    command = [sys.executable, "-c", "import runpy, sys; runpy.run_module('helpers.job_graph', run_name='__main__')"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with open(f"{outdir}.out", "ab") as out:
        return subprocess.Popen([*command, outdir, word, *options], stdout=out, stderr=out, env=environment)


def offspring(pid):
    """Process ids of a process's children, and of theirs."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def is_at_work(pid, now=math.inf):
    """Return whether a process exists and has not ended. now: one that began later has only got its id."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        return fields[0] not in "ZX" and int(fields[19]) / os.sysconf("SC_CLK_TCK") <= now
    return False


def wait_until(condition):
    """Wait for something that takes less than the grace, after which processes are killed anyhow."""
    late = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < late, "in vain"
        time.sleep(0.01)


def kill_one(process, chance, delay):
    """Kill the parent or one of its offspring after some time. Returns all processes that there were, or None."""
    try:
        process.wait(timeout=delay)
        return None
    except subprocess.TimeoutExpired:
        pass
    family = offspring(process.pid)
    victim = chance.choice([process.pid, *([chance.choice(family)] if family else [])])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return [*family, victim]


def check_nobody_works(outdir, family):
    """Wait for all processes to end, as they do at once, and check that the log then stands still."""
    jobs, now = [words[2] for words in notes(outdir, "start")], time.clock_gettime(time.CLOCK_BOOTTIME)
    wait_until(lambda: not any(is_at_work(pid, now) for pid in [*family, *jobs]))
    before = notes(outdir)
    time.sleep(0.1)
    assert notes(outdir) == before
    with held(outdir):
        pass


def check_nothing_was_done_twice(outdir):
    lines = [(what, name) for what, name, *_ in notes(outdir) if what != "work"]
    for name in NEEDS:
        finished = [n for n, line in enumerate(lines) if line == ("finish", name)]
        assert not finished or ("start", name) not in lines[finished[0] :], f"{name} was done twice"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tmp_path, srun, kills):
    """SIGKILL of the parent, of a guard, of a launcher or of a job. Every other graph finds results of another word."""
    chance = random.Random(0)
    done = graphs = 0
    while done < kills:
        graphs += 1
        outdir, word = tmp_path / f"out-{graphs // 2}", f"word-{graphs % 2}"
        (outdir / "log.txt").unlink(missing_ok=True)
        launcher = [f"{srun} --gres=gpu:1 -n1"] * chance.randrange(2)
        status = None
        while status != 0:
            process = call(outdir, word, "3", *launcher)
            family = kill_one(process, chance, 0.3 + 0.5 * chance.random()) if done < kills else None
            status = process.wait(timeout=60)
            if family is not None:
                done += 1
                check_nobody_works(outdir, family)
        check_nothing_was_done_twice(outdir)
        ten_jobs(tmp_path / word, word).run(Slots(8))
        for name in NEEDS:
            assert (outdir / f"{name}.txt").read_bytes() == (tmp_path / word / f"{name}.txt").read_bytes()


@pytest.mark.parametrize(
    "sent, launched", [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGHUP, False)]
)
def test_a_signal_ends_all_jobs(tmp_path, srun, sent, launched):
    outdir = tmp_path / "out"
    process = call(outdir, "x", "3", *[f"{srun} --gres=gpu:1 -n1"] * launched)
    wait_until(lambda: len(notes(outdir, "start")) >= 4)
    family = offspring(process.pid)
    process.send_signal(sent)
    assert process.wait(timeout=30) == 128 + sent
    check_nobody_works(outdir, family)
    told = (tmp_path / "out.out").read_text()
    assert f"{sent.name}: " in told and "at work must end" in told and "Traceback" not in told
    names = re.findall(r"^(.+) ended early; the same command skips finished jobs and starts", told, re.MULTILINE)
    assert len(names) == 1


LEAVES = """
import os, signal, sys, time
child = os.fork()
if child == 0:
    if sys.argv[2] == "leaves the group": os.setsid()
    if sys.argv[2] == "ignores": signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)"])
time.sleep(0.5)
open(sys.argv[1], "w").write(str(child))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux finds orphans")
@pytest.mark.parametrize("how", ["stays", "leaves the group", "ignores"])
def test_what_a_job_leaves_behind_is_ended(tmp_path, monkeypatch, how):
    monkeypatch.setattr("dnnlib.commands.GRACE", 0.3)
    job = Job("leaves", "", ["-c", LEAVES, "{out}/child.txt", how], [], ["child.txt"])
    Graph(tmp_path, PROGRAMS, [job]).run(Slots(1))
    child = int((tmp_path / "child.txt").read_text())
    wait_until(lambda: not is_at_work(child))


def two_long_jobs(outdir, slots, first=""):
    """Start two jobs that work for long, in a process of its own, and wait until they do. first: how they begin."""
    work = first + WORK.replace("float(seconds)", "99")
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from helpers.job_graph import *\n"
        f"Graph(Path({str(outdir)!r}), PROGRAMS, [worker(name, script={work!r}) for name in 'abc']).run({slots!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    wait_until(lambda: len(notes(outdir, "start")) >= 2)
    return process


def test_ctrl_c_twice_kills(tmp_path):
    process = two_long_jobs(tmp_path, Slots(2), "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    check_nobody_works(tmp_path, [])


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("victim", ["parent", "guard", "launcher", "job"])
def test_nobody_works_on_below_a_launcher_when_one_is_killed(tmp_path, srun, victim):
    process = two_long_jobs(tmp_path, Slots(2, launcher=(str(srun), "--gres=gpu:1", "-n1")))
    family = offspring(process.pid)  # two guards, two launchers, two jobs
    victims = {"parent": process.pid, "guard": family[0], "launcher": family[2], "job": family[4]}
    assert len(family) == 6
    os.kill(victims[victim], signal.SIGKILL)
    if victim != "parent":
        wait_until(lambda: sum(map(is_at_work, family)) <= 3)  # the other job works on, as it might finish
        process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    check_nobody_works(tmp_path, family)
