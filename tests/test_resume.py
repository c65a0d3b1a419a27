"""Runs that are killed, and go on: the real command, the real signals."""

import os
import random
import signal
import subprocess
import time

import pytest

from helpers.runs import equal, go, left_over, start, state_of, stats_of
from helpers.train_faulty import PLACES
from torch_utils import checkpoint
from training import snapshot
from training.state_file import find_states

# A state after every step, a snapshot every other tick of five steps; all phases; augmentation that becomes more
# probable every four steps.
ADA = ("--aug=ada", "--ada-kimg=0.2", "--target=-0.5", "--augpipe=bgcfnc")
OPTIONS = ("--kimg=0.1", "--snap=2", "--state-minutes=0.000001", "--mixing=0.9", *ADA)


def begin(folder, archive):
    return [f"--run-dir={folder}", f"--data={archive}", *OPTIONS]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed: its archive and its folder."""
    from helpers.drawn import write_archive

    folder = tmp_path_factory.mktemp("straight")
    archive = write_archive(folder / "drawn.zip")
    go(*begin(folder / "run", archive))
    return archive, folder / "run"


def require_same_end(folder, straight):
    """Assert that a run has ended like the undisturbed one, to the bit, and that nothing else is left in its folder."""
    assert equal(state_of(folder).tensors, state_of(straight).tensors)
    found, wanted = (state_of(run).metadata["position"]["ada"] for run in (folder, straight))
    assert found == wanted and wanted["p"] > 0.1
    last = "network-snapshot-000000.safetensors"
    found, wanted = (checkpoint.load(run / last, snapshot.KIND, snapshot.VERSION).tensors for run in (folder, straight))
    assert equal(found, wanted)
    assert stats_of(folder) == stats_of(straight)
    ticks = [line.split()[1] for line in (folder / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert ticks == [str(n) for n in range(len(stats_of(straight)))], "each tick stands there once"
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in straight.iterdir()}, "leftovers of killed processes are gone"


def test_killed_at_every_place_one_after_the_other(tmp_path, straight):
    """One unchanged command, killed eight times in a row."""
    archive, undisturbed = straight
    folder = tmp_path / "run"
    for number, place in enumerate(PLACES, start=1):
        number = 3 if place in ("step", "state", "writing a state") else 1
        go(*begin(folder, archive), fault={"place": place, "number": number, "how": "kill"}, expected=-signal.SIGKILL)
        assert len(find_states(folder)) <= 3
    output = go(*begin(folder, archive))
    assert "Continuing from training-state-" in output
    require_same_end(folder, undisturbed)
    assert "finished" in go(*begin(folder, archive)), "nothing is left to do"
    require_same_end(folder, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, straight):
    """Twenty moments, each from 0 to 0.4 s after a process has begun to train."""
    archive, undisturbed = straight
    draw = random.Random(0)
    folder, killed = tmp_path / "run", 0
    while killed < 20:
        process = start(*begin(folder, archive), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(("tick", "Continuing", "Training for")):
                break
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        process.communicate()
        killed += 1
        assert process.returncode in (-signal.SIGKILL, 0)
        if process.returncode == 0:
            require_same_end(folder, undisturbed)
            folder = tmp_path / f"run-{killed}"
    if folder.exists():
        go(*begin(folder, archive))
        require_same_end(folder, undisturbed)


@pytest.mark.slow
def test_ranks_that_are_killed_go_on(tmp_path, straight):
    """Two ranks: one is killed, then the launcher; the run then ends as without a kill, and no process is left."""
    archive, _ = straight
    two = [*begin(tmp_path / "two", archive), "--gpus=2"]
    go(*two)
    killed = [*begin(tmp_path / "killed", archive), "--gpus=2"]
    output = go(*killed, fault={"place": "step", "number": 4, "how": "kill", "rank": 1}, expected=1)
    assert "rank 1 was killed" in output and f"--resume={tmp_path / 'killed'}" in output.splitlines()[-1]
    assert "SIGTERM" not in output, "the other rank was told to end, not asked to save"
    assert (tmp_path / "killed" / "log.txt").read_text().endswith("lack of memory\n")
    assert not left_over(tmp_path)
    process = start(*killed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("Continuing"))
    process.kill()
    process.communicate()
    deadline = time.time() + 10
    while left_over(tmp_path) and time.time() < deadline:
        time.sleep(0.2)
    assert not left_over(tmp_path)
    go(*killed)
    require_same_end(tmp_path / "killed", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, number, status",
    [
        (1, signal.SIGINT, 130),
        (1, signal.SIGTERM, 143),
        (2, signal.SIGINT, 130),
        (2, signal.SIGUSR1, 138),
    ],
)
def test_signals_save_the_state_and_the_run_goes_on(tmp_path, straight, processes, number, status):
    """Ctrl-C goes to the whole process group, as a terminal sends it."""
    archive, _ = straight
    command = [*begin(tmp_path / "run", archive), f"--gpus={processes}", "--kimg=1000", "--state-minutes=60"]
    process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick 0"):
            time.sleep(0.5)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
    assert process.wait(timeout=60) == status, "".join(lines)
    text = "".join(lines)
    assert "Traceback" not in text and text.count("saving the state after this step") == 1, text
    assert f"--resume={tmp_path / 'run'}" in text and not left_over(tmp_path)
    step = state_of(tmp_path / "run").metadata["position"]["step"]
    assert step > 1
    output = go(f"--resume={tmp_path / 'run'}", f"--kimg={(step + 2) * 0.004}")
    assert f"Continuing from training-state-{step:06d}.safetensors" in output
