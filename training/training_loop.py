"""The training loop: from a configuration to a run folder with snapshots."""

from __future__ import annotations

import contextlib
import copy
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tqdm

from dnnlib.files import sha256
from dnnlib.runs import Log
from dnnlib.text import count
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.distributed import default_device
from torch_utils.loading import minibatches
from torch_utils.ops import native
from torch_utils.sampler import EndlessSampler
from torch_utils.stats import Statistics
from training import reporter
from training.config import TrainingConfig
from training.ema import ema_beta, update_ema
from training.loss import Loss, Minibatch
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.snapshot import SnapshotInfo, save_snapshot, snapshot_name


@dataclass(frozen=True)
class Phase:
    """One kind of optimisation step: applied every `interval` minibatches, its gradient made up for by that much."""

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int
    accumulate: Callable[[Minibatch, float], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    snapshot: Path
    kimg: float
    interrupted: bool


class TrainingRun:
    """A run in progress: networks, optimisers, data, and how far it is."""

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, folder: Path, log: Log) -> None:
        self.config, self.dataset, self.folder, self.log = config, dataset, folder, log
        self.device = default_device()
        self.native = native.available(self.device.type)  # builds them, if it has to, before the clock starts
        self.codec = SliceCodec(dataset.schema)
        self.data_sha256 = sha256(dataset.archive.path)
        self.statistics = Statistics()
        self.nimg = 0
        self.step = 0
        torch.manual_seed(config.seed)
        self.generator = Generator(config.generator).to(self.device)
        self.discriminator = Discriminator(config.discriminator).to(self.device)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.loss = Loss(self.generator, self.discriminator, config.loss, self.statistics)
        self.phases = self._make_phases()
        self.reals = self._endless_reals()
        self.labels = self._all_labels()
        count = reporter.grid_size(dataset.resolution)
        self.grid_z = torch.randn([count, config.generator.z_dim], device=self.device)
        self.grid_c = self._random_labels(count)

    def run(self) -> Outcome:
        """Train until the configured length, or until Ctrl-C; either way the last snapshot is saved."""
        with _ctrl_c_sets_flag(self.log) as interrupted, self._progress_bar() as bar:
            self._describe()
            reporter.save_reals(self.folder / "reals.png", self.dataset, self.config.seed)
            self._save_fakes("fakesinit.png")
            tick, start = 0, time.time()
            tick_start, tick_nimg, maintenance = start, 0, 0.0
            while True:
                self._step()
                bar.update(self.config.batch / 1000)
                done = self.nimg >= self.config.kimg * 1000 or interrupted()
                # The first tick ends after one step, so that a user sees at once how fast it goes.
                if not done and tick > 0 and self.nimg < tick_nimg + self.config.kimg_per_tick * 1000:
                    continue
                tick_end = time.time()
                self._report(tick, tick_end - start, tick_end - tick_start, self.nimg - tick_nimg, maintenance)
                if done or (self.config.snap and tick > 0 and tick % self.config.snap == 0):
                    snapshot = self._save()
                if done:
                    break
                tick, tick_start, tick_nimg = tick + 1, time.time(), self.nimg
                maintenance = tick_start - tick_end
        return Outcome(snapshot, self.nimg / 1000, interrupted())

    # ---- One optimisation step -------------------------------------------------------------------------------

    def _step(self) -> None:
        real, real_c = next(self.reals)
        real, real_c = self.codec.to_network(real.to(self.device)), real_c.to(self.device)
        for phase in self.phases:
            if self.step % phase.interval == 0:
                z = torch.randn([len(real), self.config.generator.z_dim], device=self.device)
                self._optimise(phase, Minibatch(real, real_c, z, self._random_labels(len(real))))
        beta = ema_beta(self.config.batch, self.config.ema_kimg * 1000, self.nimg, self.config.ema_ramp)
        update_ema(self.ema, self.generator, beta)
        self.nimg += self.config.batch
        self.step += 1

    def _optimise(self, phase: Phase, minibatch: Minibatch) -> None:
        start = time.time()
        phase.module.requires_grad_(True)
        phase.optimizer.zero_grad(set_to_none=True)
        gain = phase.interval * self.config.batch_gpu / self.config.batch
        for part in minibatch.parts(self.config.batch_gpu):
            phase.accumulate(part, gain)
        phase.module.requires_grad_(False)
        self._replace_non_finite_gradients(phase)
        phase.optimizer.step()
        self.statistics.report(f"Timing/{phase.name}_sec", time.time() - start)

    def _replace_non_finite_gradients(self, phase: Phase) -> None:
        gradients = [p.grad for p in phase.module.parameters() if p.grad is not None]
        if torch.stack([g.sum() for g in gradients]).isfinite().all():  # one look for the usual case
            return
        count = sum((~g.isfinite()).sum() for g in gradients)
        self.statistics.report(f"Health/non_finite_gradients/{phase.name}", count)
        for gradient in gradients:
            gradient.nan_to_num_(nan=0, posinf=1e5, neginf=-1e5)

    def _make_phases(self) -> list[Phase]:
        """One optimiser per network serves both of its phases (StyleGAN2, section 3.1: lazy regularisation)."""
        loss, config = self.loss, self.config
        regularise_g, regularise_d = config.loss.pl_weight != 0, config.loss.r1_gamma != 0
        g_optimizer = self._make_optimizer(self.generator, config.pl_interval if regularise_g else None)
        d_optimizer = self._make_optimizer(self.discriminator, config.r1_interval if regularise_d else None)
        # The module of a phase alone gathers gradients; the other one is frozen.
        self.generator.requires_grad_(False)
        self.discriminator.requires_grad_(False)

        phases = [Phase("Gmain", self.generator, g_optimizer, 1, loss.generator_main)]
        if regularise_g:
            phases.append(Phase("Gpl", self.generator, g_optimizer, config.pl_interval, loss.generator_path_length))
        phases.append(Phase("Dmain", self.discriminator, d_optimizer, 1, loss.discriminator_main))
        if regularise_d:
            phases.append(Phase("Dr1", self.discriminator, d_optimizer, config.r1_interval, loss.discriminator_r1))
        return phases

    def _make_optimizer(self, module: torch.nn.Module, reg_interval: int | None) -> torch.optim.Adam:
        """Adam whose rate and decays are those of one network trained with a regulariser every reg_interval steps."""
        ratio = reg_interval / (reg_interval + 1) if reg_interval else 1.0
        return torch.optim.Adam(
            module.parameters(),
            lr=self.config.lrate * ratio,
            betas=(0.0**ratio, 0.99**ratio),
            eps=1e-8,
            fused=True,  # one pass over all parameters, on CPU too
        )

    # ---- Data ------------------------------------------------------------------------------------------------

    def _endless_reals(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = EndlessSampler(len(self.dataset), seed=self.config.seed)
        return minibatches(
            self.dataset,
            torch.utils.data.BatchSampler(order, self.config.batch, drop_last=False),
            # What fits in memory is soon there; on a CPU, processes beside would take time from the networks.
            0 if self.dataset.in_memory else self.config.data.workers,
            self.log,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            pin_memory=self.device.type == "cuda",
        )

    def _all_labels(self) -> torch.Tensor:
        """Class labels of the data, [len(dataset), c_dim]: fakes get theirs from the same distribution."""
        return torch.stack([self.dataset.label(n) for n in range(len(self.dataset))]).to(self.device)

    def _random_labels(self, count: int) -> torch.Tensor:
        return self.labels[torch.randint(len(self.labels), [count], device=self.device)]

    # ---- What the run shows and saves ------------------------------------------------------------------------

    def _describe(self) -> None:
        def millions(module: torch.nn.Module) -> str:
            return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} million parameters"

        mirrored = f", {len(self.dataset)} with their mirrored copies" if self.config.data.mirror else ""
        self.log(f"Data       {self.dataset.archive.path}: {count(self.dataset.num_originals, 'slice')}{mirrored}")
        self.log(f"Channels   {self.dataset.schema.describe()}, {self.dataset.resolution}×{self.dataset.resolution}")
        self.log(f"Generator  {millions(self.generator)}")
        self.log(f"Discrim.   {millions(self.discriminator)}")
        self.log(f"Device     {self.device}, {count(torch.get_num_threads(), 'thread')}")
        self.log(f"Operators  {'native' if self.native else 'plain PyTorch: python -m torch_utils.ops tells why'}")
        self.log(f"Output     {self.folder}")
        self.log(f"Training for {self.config.kimg:g} kimg; Ctrl-C stops after saving a snapshot")
        self.log()

    def _progress_bar(self) -> tqdm.tqdm:
        return tqdm.tqdm(
            total=self.config.kimg,
            unit="kimg",
            leave=False,
            disable=None,  # not in log files
            bar_format="{percentage:3.0f}% |{bar}| {n:.2f}/{total:g} kimg, {remaining} left",
        )

    def _report(self, tick: int, total: float, seconds: float, images: int, maintenance: float) -> None:
        cpu_memory, gpu_memory = reporter.memory_in_use(self.device)
        for name, value in {
            "Progress/tick": tick,
            "Progress/kimg": self.nimg / 1000,
            "Timing/total_sec": total,
            "Timing/sec_per_tick": seconds,
            "Timing/sec_per_kimg": seconds / images * 1000,
            "Timing/maintenance_sec": maintenance,
            "Resources/cpu_mem_gb": cpu_memory,
            "Resources/peak_gpu_mem_gb": gpu_memory,
        }.items():
            self.statistics.report(name, value)
        stats = self.statistics.collect()
        self.log(reporter.status_line(stats))
        for name, moments in stats.items():
            if name.startswith("Health/") and moments.mean > 0:
                self.log(
                    f"warning: {moments.mean * moments.num:.0f} gradients of {name.split('/')[-1]} were not finite"
                )
        reporter.append_stats(self.folder / "stats.jsonl", stats)

    def _save(self) -> Path:
        kimg = self.nimg / 1000
        self._save_fakes(f"fakes{int(kimg):06d}.png")
        path = self.folder / snapshot_name(kimg)
        networks = {"G": self.generator, "D": self.discriminator, "G_ema": self.ema}
        archive = self.dataset.archive
        info = SnapshotInfo(
            schema=self.dataset.schema,
            training=replace(self.config, data=replace(self.config.data, path=archive.path.name)),
            data_sha256=self.data_sha256,
            kimg=kimg,
            patients=self.dataset.patients,
            label_names=archive.info.label_names if self.config.data.cond else None,
            label_counts=self.dataset.label_counts,
            pixel=archive.info.pixels,
        )
        save_snapshot(path, networks, info)
        return path

    @torch.no_grad()
    def _save_fakes(self, name: str) -> None:
        images = [
            self.ema(z, c, noise_mode="const")
            for z, c in zip(
                self.grid_z.split(self.config.batch_gpu), self.grid_c.split(self.config.batch_gpu), strict=True
            )
        ]
        reporter.save_images(self.folder / name, torch.cat(images), self.dataset.schema)


@contextlib.contextmanager
def _ctrl_c_sets_flag(log: Log) -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C asks the loop to finish its step; the second one stops at once."""
    asked = []

    def ask(signum, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        log("Stopping after this step, to save a snapshot; press Ctrl-C again to stop without one")

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
