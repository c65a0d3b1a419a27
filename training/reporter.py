"""Output of a training run: description, status lines, stats.jsonl, sheets of slices, progress bar."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import torch
import tqdm
from torch import nn

from dnnlib.runs import Log
from dnnlib.text import count, format_time, tool_version
from slices import render
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.distributed import World
from torch_utils.ops import native
from torch_utils.stats import Moments
from torch_utils.stopwatch import Stopwatch
from training.ada import LEAKS, leak_warning
from training.augment.sheet import save_augmented
from training.config import TrainingConfig
from training.minibatches import FakeInputs
from training.networks.generator import Generator
from training.networks.shapes import block_type
from training.state import TrainingState
from training.state_file import LoadedState
from training.tensorboard import TensorBoard

_BAD_STEPS = "Health/bad_steps/"
_AUGMENT = "Progress/augment"


class Reporter:
    """Writes the log, stats.jsonl and sheets of a run, in the first process. In the others it does nothing."""

    def __init__(
        self,
        config: TrainingConfig,
        dataset: SliceDataset,
        folder: Path,
        log: Log,
        world: World,
        inputs: FakeInputs,
        state: TrainingState,
    ) -> None:
        """inputs: what the fakes of all sheets are made of, so that sheets can be compared."""
        self.config, self.dataset, self.folder, self.log = config, dataset, folder, log
        self.world, self.inputs, self.state = world, inputs, state
        self._lines = Log(folder / "stats.jsonl" if world.first else None, shown=False)
        self._board = TensorBoard(folder, state.nimg) if world.first else None
        self._warned_of_leaks = False
        self._start_clock()

    # ---- Clock -----------------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        self._start = self._tick_start = time.time()
        self._seconds_before = self.state.seconds  # of training, in earlier processes
        self._nimg_before = self.state.nimg  # shown by earlier processes
        self._maintenance = 0.0  # seconds since the last tick

    def seconds(self) -> float:
        """Return the seconds of training so far, those before the run was continued included."""
        return self._seconds_before + time.time() - self._start

    @contextlib.contextmanager
    def maintenance(self) -> Iterator[None]:
        """Count the seconds of the block as maintenance, not as training: saving, drawing sheets, measuring."""
        start = time.time()
        yield
        self._maintenance += time.time() - start

    # ---- Start -----------------------------------------------------------------------------------------------

    def start(self, saved: LoadedState | None) -> None:
        """Describe the run, save the first sheets, and start the clock. saved: state from which a run continues."""
        if self.world.first:
            self.describe()
            if saved is None:
                self.save_reals()
                if self.config.augment is not None:
                    save_augmented(self.dataset, self.config, self.folder / "augmented.png")
                self.save_fakes("fakesinit.png")
            else:
                self.log(f"Continuing from {saved.path.name}, {self.state.nimg / 1000:g} kimg")
            self.log()
        self._start_clock()

    def describe(self) -> None:
        """Describe data, networks and machine in the log."""
        dataset, config, device, state = self.dataset, self.config, self.world.device, self.state
        mirrored = f", {len(dataset)} with their mirrored copies" if config.data.mirror else ""
        operators = native.available(device.type)
        threads = count(torch.get_num_threads(), "thread")
        processes = f"{self.world.size} processes, {threads} each" if self.world.size > 1 else threads
        self.log(f"Data       {dataset.archive.path}: {count(dataset.num_originals, 'slice')}{mirrored}")
        self.log(f"Channels   {dataset.schema.describe()}, {dataset.resolution}×{dataset.resolution}")
        self.log(f"Generator  {_parameters(state.generator)}")
        self.log(f"Discrim.   {_parameters(state.discriminator)}")
        self.log(f"Device     {_name_device(device)}, {processes}")
        self.log(f"Software   stylegan2-mr {tool_version()}, PyTorch {torch.__version__}")
        self.log(f"Precision  {describe_precision(state.generator)}")
        self.log(f"Minibatch  {config.batch} slices in {count(config.parts, 'part')} of {config.batch_gpu}")
        self.log(f"Operators  {'native' if operators else 'plain PyTorch; for the reason: python -m torch_utils.ops'}")
        self.log(f"Output     {self.folder}")
        self.log(f"Training for {config.kimg:g} kimg; Ctrl-C stops after saving the state and a snapshot")

    # ---- Progress --------------------------------------------------------------------------------------------

    def progress_bar(self) -> tqdm.tqdm:
        """Return a progress bar in kimg, which stays below the log."""
        return tqdm.tqdm(
            total=self.config.kimg,
            initial=self.state.nimg / 1000,
            unit="kimg",
            leave=False,
            # None is tqdm's word for: no bar unless the output is a terminal.
            disable=None if self.world.first else True,
            bar_format="{percentage:3.0f}% |{bar}| {n:.2f}/{total:g} kimg, {remaining} left",
        )

    def tick(self, stopwatch: Stopwatch) -> None:
        """Write the status line, warnings and statistics of the tick that just ended, and start the next one's clock.

        stopwatch: has the seconds of the phases of this process.
        """
        statistics, state, now = self.state.statistics, self.state, time.time()
        seconds = now - self._tick_start - self._maintenance
        # Those that were shown before the run was continued are not counted in its time.
        images = state.nimg - max(state.tick_nimg, self._nimg_before)
        # A run may continue where a tick ends. Then there is only the speed so far.
        per_kimg = 1000 * (seconds / images if images else self.seconds() / state.nimg)
        cpu_memory, gpu_memory = memory_in_use(self.world.device)
        measured: dict[str, float] = {
            "Progress/tick": state.tick,
            "Progress/kimg": state.nimg / 1000,
            "Progress/processes": self.world.size,
            "Progress/continued_kimg": self._nimg_before / 1000,
            **({} if state.ada is None else {_AUGMENT: state.ada.p}),
            "Timing/total_sec": self.seconds(),
            "Timing/sec_per_tick": seconds,
            "Timing/sec_per_kimg": per_kimg,
            "Timing/left_sec": max(self.config.kimg - state.nimg / 1000, 0) * per_kimg,
            "Timing/maintenance_sec": self._maintenance,
            "Resources/cpu_mem_gb": cpu_memory,
            "Resources/peak_gpu_mem_gb": gpu_memory,
        }
        for name, value in measured.items():
            statistics.report(name, value)
        for name, values in stopwatch.collect().items():
            statistics.report(name, torch.tensor(values))
        stats = statistics.collect()
        if self._board is not None:
            self.log(status_line(stats))
            for warning in [*warnings(stats), *self._leak()]:
                self.log(warning)
            self._lines(json.dumps({name: m._asdict() for name, m in stats.items()} | {"timestamp": time.time()}))
            self._board.tick(stats, state.nimg)
        self._tick_start, self._maintenance = now, 0.0

    def _leak(self) -> list[str]:
        """Warn once for a process, if augmentations are so probable that the generator learns to make them."""
        ada = self.state.ada
        if self._warned_of_leaks or ada is None or ada.p < LEAKS:
            return []
        self._warned_of_leaks = True
        return [f"warning: {leak_warning(ada.p)}"]

    def measures(self, values: Mapping[str, float]) -> None:
        """Report what the evaluation of a snapshot measured."""
        if values and self._board is not None:
            self.log("Measured   " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
            self._board.measures(values, self.state.nimg)

    def flush(self) -> None:
        """Write the lines that a full disk has held back, if there is room now."""
        self.log.flush()
        self._lines.flush()

    def close(self) -> None:
        """Close the files of statistics and curves."""
        self._lines.close()
        if self._board is not None:
            self._board.close()

    # ---- Sheets of slices ------------------------------------------------------------------------------------

    def save_reals(self) -> None:
        """Save a sheet of real slices drawn at random, without mirrored copies."""
        # A generator of its own: the sheet must not change the random numbers of the training.
        order = np.random.RandomState(self.config.seed).permutation(self.dataset.num_originals)
        chosen = order[: sheet_size(self.dataset.resolution)]
        self._save_sheet("reals.png", np.stack([self.dataset[int(i)].stored.numpy() for i in chosen]))

    @torch.no_grad()
    def save_fakes(self, name: str) -> None:
        """Save a sheet of slices from the averaged generator."""
        if not self.world.first:
            return
        # batch_gpu latents at a time, as in training: more might not fit into memory. One (z, c) pair per share.
        columns = (column.split(self.config.batch_gpu) for column in (self.inputs.z, self.inputs.c))
        shares = zip(*columns, strict=True)
        images = torch.cat([self.state.ema(z, c, noise_mode="const") for z, c in shares])  # [N, C + K, H, W]
        self._save_sheet(name, SliceCodec(self.dataset.schema).to_stored(images.cpu()).numpy())

    def _save_sheet(self, name: str, stored: np.ndarray) -> None:
        """Save stored slices, uint8 [N, C + K, H, W], as one picture."""
        render.save(render.sheet(stored, self.dataset.schema), self.folder / name)


def sheet_size(resolution: int) -> int:
    """Number of slices on a sheet, few enough to be legible."""
    return 12 if resolution >= 256 else 24


def describe_precision(generator: Generator) -> str:
    """Describe the types in which the blocks of both networks compute."""
    blocks = generator.synthesis.blocks
    types = [block_type(block.half_type, block.conv1.weight) for block in blocks]
    lowest, highest = (str(kind).removeprefix("torch.") for kind in (types[0], types[-1]))
    if lowest == highest:
        return highest
    size = blocks[types.index(types[-1])].conv1.resolution
    return f"{highest} from {size}×{size} up, {lowest} below"


def status_line(stats: dict[str, Moments]) -> str:
    """Format the line of a tick, in the order that users of StyleGAN2-ADA know."""
    value = {name: moments.mean for name, moments in stats.items()}
    return "  ".join(
        [
            f"tick {value['Progress/tick']:<5.0f}",
            f"kimg {value['Progress/kimg']:<8.1f}",
            f"time {format_time(value['Timing/total_sec']):<12s}",
            f"left {format_time(value['Timing/left_sec']):<12s}",
            f"sec/tick {value['Timing/sec_per_tick']:<7.1f}",
            f"sec/kimg {value['Timing/sec_per_kimg']:<7.2f}",
            f"maintenance {value['Timing/maintenance_sec']:<6.1f}",
            f"cpumem {value['Resources/cpu_mem_gb']:<6.2f}",
            f"gpumem {value['Resources/peak_gpu_mem_gb']:<6.2f}",
            f"processes {value['Progress/processes']:<3.0f}",
            f"bad {sum(bad_steps(stats).values()):<4d}",
            *([f"augment {value[_AUGMENT]:.3f}"] if _AUGMENT in value else []),
        ]
    ).rstrip()


def bad_steps(stats: dict[str, Moments]) -> dict[str, int]:
    """Count the applications of each phase that had a gradient that is no finite number."""
    return {
        name.removeprefix(_BAD_STEPS): round(moments.mean * moments.num)
        for name, moments in stats.items()
        if name.startswith(_BAD_STEPS)
    }


def warnings(stats: dict[str, Moments]) -> list[str]:
    """Lines for the phases that had bad steps."""
    return [
        f"warning: {phase} was left out {count(number, 'time')}, as a gradient was no finite number"
        for phase, number in bad_steps(stats).items()
        if number
    ]


def memory_in_use(device: torch.device) -> tuple[float, float]:
    """Return the memory of this process, and the peak memory of its tensors on the GPU since the last call, in GiB."""
    gpu = 0.0
    if device.type == "cuda":
        gpu = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return psutil.Process(os.getpid()).memory_info().rss / 2**30, gpu


def _name_device(device: torch.device) -> str:
    """A device in words: cpu, or cuda:0 with the name of the GPU."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _parameters(network: nn.Module) -> str:
    """Number of parameters in words."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters"
