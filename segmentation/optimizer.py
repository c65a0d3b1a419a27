"""Steps of a U-Net's training: loss, Adam, learning rate, mixed precision, and the average of the last weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from segmentation.config import TrainUNetConfig
from segmentation.fast_unet import compute_logits


def segmentation_loss() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Soft Dice loss of the lesion classes plus cross-entropy of all classes.

    The loss takes logits [N, K, H, W] and class indices [N, 1, H, W]. Its Dice is that of the whole batch, not a mean
    over slices: most slices lack some class, so their own Dice would be noise.
    """
    from monai.losses import DiceCELoss  # takes seconds to import

    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that a device computes logits in while training; None: float32, as on every CPU."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class Optimizer:
    """Trains a network in place, one step after the other.

    Weights, their gradients, the loss and Adam's moments are float32 always. With a 16-bit type, the operators that
    PyTorch's autocast chooses compute in it. float16 has too small a range for gradients, so these are then scaled.
    """

    def __init__(self, network: torch.nn.Module, config: TrainUNetConfig, half: torch.dtype | None = None) -> None:
        self.network, self.half = network, half
        self._device_type = next(network.parameters()).device.type
        self._loss_of = segmentation_loss()
        self._adam = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)  # one kernel for all parameters
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._adam, T_max=config.steps)
        self._scaler = torch.amp.GradScaler(self._device_type, enabled=half is torch.float16)
        self._average = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_swa_multi_avg_fn()
        )
        # The last step counts in any case: without a share to average, it alone.
        self._steps_before = config.steps - max(1, round(config.steps * config.average))
        self._steps = 0

    def step(self, images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Take a step with images [N, C, H, W] and class indices [N, 1, H, W]. Returns the loss, on the device."""
        with torch.autocast(self._device_type, dtype=self.half, enabled=self.half is not None):
            logits = compute_logits(self.network, images)
        loss = self._loss_of(logits.float(), truth)
        self._adam.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._adam)
        self._scaler.update()
        self._schedule.step()
        self._steps += 1
        if self._steps > self._steps_before:
            self._average.update_parameters(self.network)
        return loss.detach()

    def finish(self) -> None:
        """Give the network the mean of its weights over the last steps. Its normalization keeps no statistics."""
        self.network.load_state_dict(self._average.module.state_dict())
