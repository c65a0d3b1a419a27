"""Output of a run: log, statistics, sheets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.runs import Log
from helpers.trainings import tiny_config
from slices.dataset import SliceDataset
from torch_utils.stats import Statistics
from training.minibatches import Latents
from training.reporter import Reporter, sheet_size, status_line, warnings
from training.state import TrainingState


@pytest.fixture
def run(tmp_path, archive) -> tuple[Reporter, TrainingState]:
    dataset = SliceDataset(archive, mirror=True)
    config = tiny_config(dataset)
    config = replace(config, data=replace(config.data, mirror=True))
    latents = Latents(torch.randn(24, 8), torch.zeros(24, 0))
    log = Log(tmp_path / "log.txt")
    return Reporter(config, dataset, tmp_path, log, latents), TrainingState.initial(config, torch.device("cpu"))


def test_a_run_is_described_before_it_starts(run, tmp_path):
    reporter, state = run
    reporter.start(state)
    text = (tmp_path / "log.txt").read_text()
    assert "drawn.zip: 24 slices, 48 with their mirrored copies" in text and "16×16" in text
    assert all(f"\n{word}" in text for word in ("Generator", "Discrim.", "Device     cpu", "Operators", "Output"))
    assert {"reals.png", "fakesinit.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_tick_is_a_line_of_the_log_and_of_the_statistics(run, tmp_path):
    reporter, state = run
    for tick, loss in enumerate((3.0, 5.0)):
        state.tick, state.tick_nimg, state.nimg = tick, state.nimg, state.nimg + 4
        reporter.statistics.report("Loss/G/loss", loss)
        reporter.tick(state)
        reporter.start_tick()
    first, second = (json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines())
    assert (first["Loss/G/loss"]["mean"], second["Loss/G/loss"]["mean"]) == (3, 5), "moments of one tick only"
    assert second["Progress/tick"]["mean"] == 1 and second["Progress/kimg"]["mean"] == pytest.approx(0.008)
    seconds, per_kimg = (second[f"Timing/{name}"]["mean"] for name in ("sec_per_tick", "sec_per_kimg"))
    assert per_kimg == pytest.approx(seconds * 1000 / 4)
    assert first["Timing/maintenance_sec"]["mean"] == 0 and first["Resources/cpu_mem_gb"]["mean"] > 0
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert len(lines) == 2 and lines[1].startswith("tick 1 ")


def test_status_line_is_as_users_of_stylegan2_ada_know_it():
    statistics = Statistics()
    values = {"Progress/tick": 7, "Progress/kimg": 28.04, "Timing/total_sec": 3700, "Timing/sec_per_tick": 12.34}
    values |= {"Timing/sec_per_kimg": 3.08, "Timing/maintenance_sec": 0.5}
    for name, value in {**values, "Resources/cpu_mem_gb": 1.5, "Resources/peak_gpu_mem_gb": 0}.items():
        statistics.report(name, value)
    words = status_line(statistics.collect()).split()
    assert words[:4] == ["tick", "7", "kimg", "28.0"] and words[-4:] == ["cpumem", "1.50", "gpumem", "0.00"]
    assert {"sec/tick", "12.3", "sec/kimg", "3.08", "maintenance", "0.5"} <= set(words)


def test_gradients_that_were_not_finite_are_warned_of():
    statistics = Statistics()
    for count in (2, 3):
        statistics.report("Health/non_finite_gradients/Gpl", count)
    statistics.report("Health/non_finite_gradients/Dr1", 0)
    assert warnings(statistics.collect()) == ["warning: 5 gradients of Gpl were not finite"]


def test_sheets_of_fakes_show_the_averaged_generator(run, tmp_path):
    """Sheets of fakes use the same latents each time, and do not depend on the microbatch size."""
    reporter, state = run
    reporter.save_fakes("a.png", state)
    state.generator.requires_grad_(True)
    with torch.no_grad():
        for parameter in state.generator.parameters():
            parameter += 1
    reporter.save_fakes("b.png", state)
    with torch.no_grad():
        for parameter in state.ema.synthesis.b16.parameters():
            parameter += 1
    reporter.save_fakes("c.png", state)
    a, b, c = (np.array(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_sheets_are_legible():
    assert [sheet_size(resolution) for resolution in (16, 128, 256, 1024)] == [24, 24, 12, 12]
