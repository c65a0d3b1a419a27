"""Stored bytes ↔ network values."""

import torch

from slices.schema import LABEL_OFF, LABEL_ON, Schema


class SliceCodec:
    """Stored uint8 in 0..255 <-> network values in [−1, 1], for joint slices of one schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def to_network(self, stored: torch.Tensor) -> torch.Tensor:
        """uint8 [N, …, H, W], all channels or some -> float32 of the same shape in [−1, 1]."""
        # The conversion makes a copy of the bytes, so the rest may be done in place.
        return stored.to(torch.float32).div_(127.5).sub_(1)

    def to_stored(self, images: torch.Tensor) -> torch.Tensor:
        """Network values [N, C + K, H, W] -> uint8: contrasts clamped, label maps one-hot at their largest value."""
        contrasts, maps = images.split([self.schema.num_contrasts, self.schema.num_maps], dim=1)
        # (x + 1) · 127.5, plus 0.5 because the conversion to bytes rounds down: values are rounded to the nearest.
        stored = [(contrasts * 127.5 + 128).clamp(0, 255).to(torch.uint8)]
        if self.schema.num_maps:
            # argmax gives the number of the largest map, [N, 1, H, W]; scatter_ sets it in [N, K, H, W].
            on = torch.zeros_like(maps, dtype=torch.bool).scatter_(1, maps.argmax(dim=1, keepdim=True), True)
            stored.append(torch.where(on, LABEL_ON, LABEL_OFF).to(torch.uint8))
        return torch.cat(stored, dim=1)
