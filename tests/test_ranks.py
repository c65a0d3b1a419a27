"""The same run on one and on several processes, started by the real command."""

import json

import pytest

from helpers.runs import go, left_over, relative_difference, state_of, stats_of
from training.state_file import find_states

# Six parts of two slices: they divide over 1, 2 and 3 processes. Eight steps with all phases, half of them augmented.
# The recipe `auto` would depend on the number of processes.
ADA = ("--aug=ada", "--ada-kimg=0.1", "--target=-0.9", "--augpipe=bgcfnc")
SIX_PARTS = ("--cfg=stylegan2", "--batch=12", "--batch-gpu=2", "--kimg=0.096", "--snap=0", *ADA)


def train(tmp_path, archive, processes, *options, double=True):
    """Train in a folder named after the number of processes. Returns the folder."""
    folder = tmp_path / f"{processes}"
    go(f"--run-dir={folder}", f"--data={archive}", *SIX_PARTS, f"--gpus={processes}", *options, double=double)
    return folder


def test_two_processes_compute_what_one_does(tmp_path, archive):
    """Every weight, moment, buffer, running mean and statistic of the tick under way."""
    one, two = (train(tmp_path, archive, processes) for processes in (1, 2))
    found, wanted = state_of(two), state_of(one)
    assert wanted.metadata["position"]["step"] == 8 and any(name.startswith("statistics.") for name in wanted.tensors)
    assert relative_difference(found, wanted) < 1e-12
    assert found.metadata["position"]["ada"] == wanted.metadata["position"]["ada"]
    assert wanted.metadata["position"]["ada"]["p"] > 0.4
    log = (two / "log.txt").read_text()
    assert "2 processes, 1 thread each" in log and "6 parts of 2" in log
    assert log.count("\ntick 0 ") == 1, "one process speaks"
    assert not left_over(tmp_path)


@pytest.mark.slow
def test_three_processes_and_single_precision(tmp_path, archive):
    one, three = (train(tmp_path, archive, processes) for processes in (1, 3))
    assert relative_difference(state_of(three), state_of(one)) < 1e-12
    single = tmp_path / "single"
    single.mkdir()
    one, two, three = (train(single, archive, processes, double=False) for processes in (1, 2, 3))
    for folder in (two, three):
        assert relative_difference(state_of(folder), state_of(one)) < 1e-4
        # Deviations too, although they are differences of sums.
        for found, wanted in zip(stats_of(folder), stats_of(one), strict=True):
            for name, moments in wanted.items():
                assert found[name] == pytest.approx(moments, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_gradients_of_bfloat16_add_up_in_float32(tmp_path, archive):
    """One step, as the next one rounds what differs. A sum in bfloat16 would be off by 2e-3."""
    options = ("--precision=bf16", "--kimg=0.012")
    one, two = (train(tmp_path, archive, processes, *options, double=False) for processes in (1, 2))
    assert "Precision  bfloat16 from" in (two / "log.txt").read_text()
    assert relative_difference(state_of(two), state_of(one)) < 1e-4


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, archive):
    straight = train(tmp_path, archive, 1)
    folder = tmp_path / "changing"
    for processes, kimg in ((1, 0.024), (2, 0.048), (3, 0.072), (1, 0.096)):
        begin = [f"--run-dir={folder}", f"--data={archive}", *SIX_PARTS]
        again = [f"--resume={folder}"]
        options = begin if not folder.exists() else again
        go(*options, f"--gpus={processes}", f"--kimg={kimg}", double=True)
    assert relative_difference(state_of(folder), state_of(straight)) < 1e-12
    for found, wanted in zip(stats_of(folder), stats_of(straight), strict=True):
        assert found.keys() == wanted.keys()
        for name, moments in wanted.items():
            for key, value in moments.items():
                assert found[name][key] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.slow
def test_a_measurement_may_take_longer_than_the_time_limit(tmp_path, archive):
    folder = tmp_path / "run"
    go(f"--run-dir={folder}", f"--data={archive}", *SIX_PARTS, "--gpus=2", measuring=8)
    (line,) = (json.loads(line) for line in (folder / "metric-dummy.jsonl").read_text().splitlines())
    assert (line["kimg"], line["value"]) == (0.096, 0.096)


def test_processes_with_different_weights_stop(tmp_path, archive):
    """A device that computes wrong is found out when the state is saved, and the state is not."""
    folder = tmp_path / "run"
    output = go(
        f"--run-dir={folder}",
        f"--data={archive}",
        *SIX_PARTS,
        "--gpus=2",
        fault={"place": "step", "number": 3, "how": "other weights", "rank": 1},
        expected=1,
    )
    last = output.strip().splitlines()[-2:]
    assert "different values of D.b4.out.bias after step 8" in last[0] and f"--resume={folder}" in last[1], output
    assert output.count("error:") == 1
    assert [path.name for path in find_states(folder)] == ["training-state-000001.safetensors"]
