"""Train one U-Net on the union of some archives, for a fixed number of steps."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dnnlib import files
from dnnlib.errors import UserError
from dnnlib.runs import Log
from dnnlib.staged import Staged
from dnnlib.text import count, format_time
from segmentation.config import TrainUNetConfig
from segmentation.data import UnionOfArchives, describe, describe_pixels, is_one_size, loader, pixels_of
from segmentation.draws import Draws
from segmentation.unet import TrainedUNet, UNetInfo, build_unet, configure_unet, save_unet, to_input
from slices.leaks import doubts
from torch_utils.distributed import default_device

MODEL, RECORD, LOG = "unet.safetensors", "training.json", "log.txt"
_POINTS = 200  # of the loss curve
_LINES = 10  # progress lines in the log


@dataclass(frozen=True)
class LossPoint:
    """Mean training loss of the steps since the point before."""

    step: int
    loss: float


@dataclass(frozen=True)
class TrainRecord:
    """What a training left: the content of training.json. Paths are as the user gave them."""

    model: str
    unet: UNetInfo
    device: str
    seconds: float
    curve: tuple[LossPoint, ...]


def train_unet(
    config: TrainUNetConfig,
    archives: Sequence[str | os.PathLike],
    outdir: str | os.PathLike,
    force: bool = False,
    exclude: Sequence[str | os.PathLike] = (),
) -> TrainRecord:
    """Train a U-Net; write unet.safetensors and training.json into `outdir` when it is done, log.txt on the way.

    force: replace those files if they are there. exclude: archives whose patients must not be among those learned from.
    Raises UserError for archives that don't fit each other, hold no classes or patients who are held out for testing,
    for files in the way, and for a loss that ran off.
    """
    outdir = Path(outdir)
    for name in (MODEL, RECORD):
        files.refuse_existing(outdir / name, force)
    data = UnionOfArchives(archives, exclude=exclude)
    draws = data.draws(config)
    info = UNetInfo(
        schema=data.schema,
        resolution=data.resolution,
        network=configure_unet(data.schema, data.resolution, config.width),
        training=config,
        archives=tuple(describe(archive) for archive in data.archives),
        patients=tuple(sorted({p for archive in data.archives for p in archive.info.patients})),
        seen=tuple(sorted({p for archive in data.archives for p in archive.info.seen})),
        drawn=data.count(draws),
    )
    with contextlib.closing(Log(files.make_folder(outdir) / LOG)) as log:  # goes on in a log that is there
        for path in exclude:
            log(f"no patient is shared with {path}, as far as their names tell")
        for doubt in doubts(data.archives, exclude):
            log(doubt)
        return _train(data, draws, info, outdir, force, log)


def _train(data: UnionOfArchives, draws: Draws, info: UNetInfo, outdir: Path, force: bool, log: Log) -> TrainRecord:
    config, device, start = info.training, default_device(), time.monotonic()
    log(_announce(data, info, device))
    network = build_unet(info.network, config.seed).to(device)
    curve = _optimize(network, data, draws, config, log)
    seconds = time.monotonic() - start

    record = TrainRecord(str(outdir / MODEL), info, str(device), round(seconds, 2), curve)
    with Staged(outdir / MODEL, force) as staged:
        staged.write(outdir / RECORD, files.json_bytes(record))
        save_unet(staged.place(outdir / MODEL), TrainedUNet(network.eval(), info))
    log(f"trained in {format_time(seconds)}: {outdir / MODEL}")
    return record


def segmentation_loss() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Soft Dice loss of the lesion classes plus cross-entropy of all: (logits [N, K, H, W], indices [N, 1, H, W]).

    Dice is summed over the batch before dividing, for most slices lack some class, whose own Dice would be noise.
    """
    from monai.losses import DiceCELoss  # takes seconds to import

    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def _optimize(
    network: torch.nn.Module, data: UnionOfArchives, draws: Draws, config: TrainUNetConfig, log: Log
) -> tuple[LossPoint, ...]:
    """Take config.steps steps of Adam; the network is changed in place. Returns the loss curve."""
    device = next(network.parameters()).device
    loss_of = segmentation_loss()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)  # one pass over all parameters
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps)
    batches = loader(data, draws, config.workers, pin=device.type == "cuda", log=log)

    interval, line = max(1, config.steps // _POINTS), max(1, config.steps // _LINES)
    curve: list[LossPoint] = []
    total, steps_since = torch.zeros((), device=device), 0  # summed on the device: asking at every step would stall it
    network.train()
    with tqdm(batches, desc="U-Net", total=config.steps, unit="step", disable=None, leave=False) as progress:
        for step, pair in enumerate(progress, start=1):
            images = to_input(pair.contrasts.to(device, non_blocking=True), data.schema)  # [N, C, H, W]
            truth = pair.indices.to(device, non_blocking=True)[:, None]  # [N, 1, H, W]
            loss = loss_of(network(images), truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total, steps_since = total + loss.detach(), steps_since + 1

            if step % interval == 0 or step == config.steps:
                curve.append(LossPoint(step, _finite(total.item() / steps_since, step, config)))
                total, steps_since = torch.zeros((), device=device), 0
                progress.set_postfix(loss=f"{curve[-1].loss:.3f}")
            if step % line == 0:
                log(f"step {step:6d} of {config.steps}  loss {curve[-1].loss:.4f}")
    return tuple(curve)


def _finite(loss: float, step: int, config: TrainUNetConfig) -> float:
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: try a smaller --lr than {config.lr:g}")
    return loss


def _announce(data: UnionOfArchives, info: UNetInfo, device: torch.device) -> str:
    c = info.training
    sources = " + ".join(
        f"{a.file} ({count(a.slices, 'slice')}, {count(a.patients, 'patient')})" for a in info.archives
    )
    lines = [
        f"U-Net of width {c.width} on {sources}, {info.resolution}×{info.resolution}, {info.schema.describe()}",
        f"{count(c.steps, 'step')} of {count(c.batch, 'slice')}, learning rate {c.lr:g} falling to 0, "
        f"seed {c.seed}, on {device}",
        f"slices to draw: {info.drawn}; the archives have {int(data.has_lesion.sum())} with, "
        f"{int((~data.has_lesion).sum())} without",
    ]
    if (pixel := pixels_of(info.archives)) and not is_one_size(pixel):
        lines.append(f"the slices have pixels of {describe_pixels(pixel)}: was it meant to mix them?")
    lines += [f"pixel size unknown: {count(a.unmeasured, 'slice')} of {a.file}" for a in info.archives if a.unmeasured]
    return "\n".join(lines)
