"""Output of a run: log, statistics, sheets."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.runs import Log
from helpers.trainings import tiny_config
from slices.dataset import SliceDataset
from torch_utils.distributed import World
from torch_utils.stats import Statistics
from torch_utils.stopwatch import Stopwatch
from training.minibatches import FakeSource
from training.reporter import Reporter, bad_steps, sheet_size, status_line, warnings
from training.state import TrainingState


@pytest.fixture
def run(tmp_path, archive) -> tuple[Reporter, TrainingState]:
    dataset = SliceDataset(archive, mirror=True)
    config = tiny_config(dataset)
    config = replace(config, data=replace(config.data, mirror=True))
    world, log = World(device=torch.device("cpu")), Log(tmp_path / "log.txt")
    state = TrainingState.initial(config, world.device)
    inputs = FakeSource(config, dataset, state.generator).draw(0, "sheet", range(24))
    return Reporter(config, dataset, tmp_path, log, world, inputs, state), state


def test_a_run_is_described_before_it_starts(run, tmp_path):
    reporter, state = run
    reporter.start(None)
    text = (tmp_path / "log.txt").read_text()
    assert "drawn.zip: 24 slices, 48 with their mirrored copies" in text and "16×16" in text
    assert all(f"\n{word}" in text for word in ("Generator", "Discrim.", "Device     cpu", "Operators", "Output"))
    assert {"reals.png", "fakesinit.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "augmented.png").exists()
    reporter.config = tiny_config(reporter.dataset, aug="ada")
    reporter.start(None)
    assert (tmp_path / "augmented.png").exists()


def test_a_tick_tells_where_its_process_began(run, tmp_path):
    reporter, state = run
    state.nimg = state.tick_nimg = 12
    reporter.start(None)
    state.nimg = 16
    reporter.tick(Stopwatch(state.device))
    (line,) = (json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines())
    assert line["Progress/continued_kimg"]["mean"] == pytest.approx(0.012)


def test_a_tick_is_a_line_of_the_log_and_of_the_statistics(run, tmp_path):
    reporter, state = run
    for tick, loss in enumerate((3.0, 5.0)):
        state.tick, state.tick_nimg, state.nimg = tick, state.nimg, state.nimg + 4
        state.statistics.report("Loss/G/loss", loss)
        reporter.tick(Stopwatch(state.device))
        with reporter.maintenance():
            time.sleep(0.01)
    first, second = (json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines())
    assert (first["Loss/G/loss"]["mean"], second["Loss/G/loss"]["mean"]) == (3, 5), "moments of one tick only"
    assert second["Progress/tick"]["mean"] == 1 and second["Progress/kimg"]["mean"] == pytest.approx(0.008)
    seconds, per_kimg = (second[f"Timing/{name}"]["mean"] for name in ("sec_per_tick", "sec_per_kimg"))
    assert per_kimg == pytest.approx(seconds * 1000 / 4)
    assert first["Timing/maintenance_sec"]["mean"] == 0 and second["Timing/maintenance_sec"]["mean"] >= 0.01
    assert first["Resources/cpu_mem_gb"]["mean"] > 0
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert len(lines) == 2 and lines[1].startswith("tick 1 ")


def test_status_line_is_as_users_of_stylegan2_ada_know_it():
    statistics = Statistics()
    values = {"Progress/tick": 7, "Progress/kimg": 28.04, "Timing/total_sec": 3700, "Timing/sec_per_tick": 12.34}
    values |= {"Timing/sec_per_kimg": 3.08, "Timing/maintenance_sec": 0.5, "Timing/left_sec": 7300}
    values |= {"Progress/processes": 2, "Health/bad_steps/Gmain": 1, "Health/bad_steps/Dmain": 0}
    for name, value in {**values, "Resources/cpu_mem_gb": 1.5, "Resources/peak_gpu_mem_gb": 0}.items():
        statistics.report(name, value)
    words = status_line(statistics.collect()).split()
    assert words[:4] == ["tick", "7", "kimg", "28.0"]
    assert words[-8:] == ["cpumem", "1.50", "gpumem", "0.00", "processes", "2", "bad", "1"]
    assert "left 2h 01m 40s" in " ".join(words)
    assert {"sec/tick", "12.3", "sec/kimg", "3.08", "maintenance", "0.5"} <= set(words)


def test_phases_that_were_left_out_are_warned_of():
    statistics = Statistics()
    for bad in (True, True, False):
        statistics.report("Health/bad_steps/Gpl", bad)
    statistics.report("Health/bad_steps/Dr1", False)
    stats = statistics.collect()
    assert bad_steps(stats) == {"Dr1": 0, "Gpl": 2}
    assert warnings(stats) == ["warning: Gpl was left out 2 times, as a gradient was no finite number"]


def test_a_continued_run_counts_on(run, tmp_path):
    """Seconds go on; the speed is that of the images shown since."""
    reporter, state = run
    state.seconds, state.nimg, state.tick, state.tick_nimg = 1000, 8, 1, 4
    reporter.start(None)
    state.nimg = 12
    reporter.tick(Stopwatch(state.device))
    stats = json.loads((tmp_path / "stats.jsonl").read_text())
    assert 1000 < stats["Timing/total_sec"]["mean"] < 1100
    per_kimg, seconds = (stats[f"Timing/{name}"]["mean"] for name in ("sec_per_kimg", "sec_per_tick"))
    assert per_kimg == pytest.approx(seconds / 4 * 1000)


def test_sheets_of_fakes_show_the_averaged_generator(run, tmp_path):
    """Sheets of fakes use the same latents each time, and do not depend on the size of a part."""
    reporter, state = run
    reporter.save_fakes("a.png")
    state.generator.requires_grad_(True)
    with torch.no_grad():
        for parameter in state.generator.parameters():
            parameter += 1
    reporter.save_fakes("b.png")
    with torch.no_grad():
        for parameter in state.ema.synthesis.b16.parameters():
            parameter += 1
    reporter.save_fakes("c.png")
    a, b, c = (np.array(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_sheets_are_legible():
    assert [sheet_size(resolution) for resolution in (16, 128, 256, 1024)] == [24, 24, 12, 12]
