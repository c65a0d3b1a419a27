"""Training of one U-Net on slices of archives, for a fixed number of steps."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from dnnlib import config as configs
from dnnlib import files
from dnnlib.config import optional
from dnnlib.errors import UserError
from dnnlib.publish import Staged
from dnnlib.runs import Log
from dnnlib.text import count, format_time
from segmentation.archive_facts import collect_facts, pixels_of
from segmentation.arms import FULL, Arm
from segmentation.augment import augmentation
from segmentation.config import TrainUNetConfig
from segmentation.data import PairDataset, loader
from segmentation.draws import Draws
from segmentation.optimizer import Optimizer, half_precision
from segmentation.selection import select_all, select_arm
from segmentation.unet import TrainedUNet, UNetInfo, build_unet, configure_unet, save_unet, to_input
from segmentation.validation import Validation
from slices.leaks import doubts
from torch_utils.distributed import default_device

MODEL, RECORD, LOG = "unet.safetensors", "training.json", "log.txt"
_POINTS = 200  # points of the loss curve, about
_LINES = 10  # progress lines in the log, about


@dataclass(frozen=True)
class LossPoint:
    """One point of the loss curve."""

    step: int
    loss: float  # mean over the steps since the last point
    val: float | None = configs.optional(None)  # Dice of the validation patients, see validation.py

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}" + ("" if self.val is None else f"  validation Dice {self.val:.4f}")


@dataclass(frozen=True)
class TrainRecord:
    """The content of training.json."""

    model: str  # path of the saved U-Net, as the user gave it
    unet: UNetInfo
    device: str
    seconds: float
    curve: tuple[LossPoint, ...]
    libraries: str = optional("")  # versions of those that its weights depend on


def train_unet(
    config: TrainUNetConfig,
    archives: Sequence[str | os.PathLike],
    outdir: str | os.PathLike,
    force: bool = False,  # replace an existing U-Net
    exclude: Sequence[str | os.PathLike] = (),  # archives whose patients must not be learned from
    arm: Arm | None = None,  # of an experiment: `archives` are then R's, and that of the fakes; None: all their slices
    val: str | os.PathLike | None = None,  # archive of validation patients, for the curve
) -> TrainRecord:
    """Train a U-Net. Writes log.txt into `outdir` during the training, unet.safetensors and training.json at its end.

    Raises UserError for archives that don't fit each other, that have no classes, or that hold patients kept for
    testing. Also raises it for existing files without `force`, and for a loss that is no finite number.
    """
    outdir = Path(outdir)
    for name in (MODEL, RECORD):
        files.refuse_existing(outdir / name, force)
    config = config.augmented_for(arm)
    selected = select_arm(arm, archives, exclude) if arm else select_all(archives, exclude)
    data = PairDataset(selected, augmentation(config), _memory_for(config))
    draws = data.draws(config)
    validation = None if val is None else Validation(val, selected, exclude)
    info = UNetInfo(
        schema=data.schema,
        resolution=data.resolution,
        network=configure_unet(data.schema, data.resolution, config.width),
        training=config,
        arm=arm.notation if arm else "",
        archives=tuple(collect_facts(one.archive) for one in selected),
        learned=tuple(len(one) for one in selected),
        patients=tuple(sorted({record.patient for one in selected for record in one.records})),
        seen=tuple(sorted({patient for one in selected for patient in one.archive.info.seen})),
        drawn=draws.count(),
    )
    with contextlib.closing(Log(files.make_folder(outdir) / LOG)) as log:  # appends to an existing log
        for path in exclude:
            log(f"no patient is shared with {path}, as far as their names tell")
        for doubt in doubts([one.archive for one in selected], exclude):
            log(doubt)
        return _train(data, draws, info, validation, outdir, force, log)


def _memory_for(config: TrainUNetConfig) -> int | None:
    """Bytes that slices may take in memory; None: as many as usual. With 0, --workers processes make them."""
    # Beside a GPU, augmenting takes longer than the step. On a CPU it takes a small part of it, and workers would take
    # the cores of other trainings.
    return 0 if config.augment == FULL and default_device().type == "cuda" else None


def _train(
    data: PairDataset,
    draws: Draws,
    info: UNetInfo,
    validation: Validation | None,
    outdir: Path,
    force: bool,
    log: Log,
) -> TrainRecord:
    """Train a network and save it with its record."""
    device, start = default_device(), time.monotonic()
    log(_announce(data, info, device))
    network = build_unet(info.network, info.training.seed).to(device)
    curve = _optimize(network, data, draws, info, validation, log)
    seconds = time.monotonic() - start

    libraries = f"PyTorch {torch.__version__}, MONAI {importlib.metadata.version('monai')}"
    record = TrainRecord(str(outdir / MODEL), info, str(device), round(seconds, 2), curve, libraries)
    # Both files appear together, or neither.
    with Staged(outdir / MODEL, force) as staged:
        staged.write(outdir / RECORD, files.json_bytes(record))
        save_unet(staged.place(outdir / MODEL), TrainedUNet(network.eval(), info))
    log(f"trained in {format_time(seconds)}: {outdir / MODEL}")
    return record


def _optimize(
    network: torch.nn.Module,
    data: PairDataset,
    draws: Draws,
    info: UNetInfo,
    validation: Validation | None,
    log: Log,
) -> tuple[LossPoint, ...]:
    """Train a network in place. Returns the loss curve."""
    config = info.training
    device = next(network.parameters()).device
    optimizer = Optimizer(network, config, half_precision(device))
    batches = loader(data, draws, config.workers, pin=device.type == "cuda", log=log)

    interval, line = max(1, config.steps // _POINTS), max(1, config.steps // _LINES)
    curve = _Curve(config, device)
    network.train()
    with tqdm(batches, desc="U-Net", total=config.steps, unit="step", disable=None, leave=False) as progress:
        for step, pair in enumerate(progress, start=1):
            images = to_input(pair.contrasts.to(device, non_blocking=True), data.schema)  # [N, C, H, W]
            truth = pair.indices.to(device, non_blocking=True)[:, None]  # [N, 1, H, W]
            curve.add(optimizer.step(images, truth))
            if step == config.steps:
                optimizer.finish()

            reported = step % line == 0 or step == config.steps
            if reported or step % interval == 0:
                progress.set_postfix(loss=f"{curve.mark(step):.3f}")
            if reported:
                if validation is not None:
                    curve.validate(validation.dice(TrainedUNet(network, info)))
                    network.train()
                log(f"step {step:6d} of {config.steps}  {curve.points[-1]}")
    return tuple(curve.points)


class _Curve:
    """The loss curve of a training so far, and the steps since its last point."""

    def __init__(self, config: TrainUNetConfig, device: torch.device) -> None:
        self.points: list[LossPoint] = []
        self._config = config
        # Summed on the device: reading the loss at every step would make the CPU wait for it.
        self._total, self._steps = torch.zeros((), device=device), 0

    def add(self, loss: torch.Tensor) -> None:
        self._total, self._steps = self._total + loss, self._steps + 1

    def validate(self, dice: float) -> None:
        """Add the Dice of the validation patients to the last point."""
        self.points[-1] = replace(self.points[-1], val=dice)

    def mark(self, step: int) -> float:
        """Add a point and return its loss. Raises UserError if the loss is not finite."""
        loss = self._total.item() / self._steps
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step}: try a smaller --lr than {self._config.lr:g}")
        self.points.append(LossPoint(step, loss))
        self._total, self._steps = torch.zeros_like(self._total), 0
        return loss


def _in_half(device: torch.device) -> str:
    """For the log: in which 16-bit type the device computes, if it does."""
    half = half_precision(device)
    return f" in {half} where autocast allows it".replace("torch.", "") if half else ""


def _announce(data: PairDataset, info: UNetInfo, device: torch.device) -> str:
    """Lines for the log: what is about to be trained, and on which slices."""
    c = info.training
    sources = " + ".join(
        f"{a.file} ({'' if n == a.slices else f'{n} from '}{count(a.slices, 'slice')}, {count(a.patients, 'patient')})"
        for n, a in zip(info.learned, info.archives, strict=True)
    )
    arm = f"arm {info.arm}: " if info.arm else ""
    lines = [
        f"{arm}U-Net of width {c.width} on {sources}, {info.resolution}×{info.resolution}, {info.schema.describe()}",
        f"{count(c.steps, 'step')} of {count(c.batch, 'slice')}, learning rate {c.lr:g} falling to 0, "
        f"seed {c.seed}, augmentation {c.augment}, on {device}{_in_half(device)}",
        f"slices to draw: {info.drawn}; there are {int(data.has_lesion.sum())} with, "
        f"{int((~data.has_lesion).sum())} without",
    ]
    if data.absent:
        lines.append(f"warning: no slice has the class {', '.join(data.absent)}, so the U-Net can't learn it")
    if (pixels := pixels_of(info.archives)) and not pixels.is_one_size:
        lines.append(f"the slices have pixels of {pixels}: is this mixture intended?")
    lines += [f"pixel size unknown: {count(a.unmeasured, 'slice')} of {a.file}" for a in info.archives if a.unmeasured]
    return "\n".join(lines)
