"""Round trips of stored bytes and network values."""

import numpy as np
import torch

from helpers.drawn import SCHEMAS
from slices.codec import SliceCodec
from slices.schema import BRATS, Schema

RESOLUTION = 8


def draw(schema, count=6, seed=0):
    """Random stored joint slices, uint8 [N, C + K, H, W]."""
    rng = np.random.default_rng(seed)
    contrasts = rng.integers(0, 256, (count, schema.num_contrasts, RESOLUTION, RESOLUTION), dtype=np.uint8)
    return schema.join(contrasts, rng.integers(0, max(1, schema.num_maps), (count, RESOLUTION, RESOLUTION)))


@SCHEMAS
def test_stored_slices_come_back_from_the_network(schema):
    stored = torch.from_numpy(draw(schema, 40))
    codec = SliceCodec(schema)
    images = codec.to_network(stored)
    assert images.dtype == torch.float32 and -1 <= images.min() and images.max() <= 1
    assert torch.equal(codec.to_stored(images), stored)


def test_every_gray_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = SliceCodec(Schema(("t1",)))  # no label maps: every value is a gray level
    assert torch.equal(codec.to_stored(codec.to_network(levels)), levels)
    assert torch.equal(
        codec.to_stored(torch.tensor([-3.0, -1, 1, 3]).reshape(1, 1, 2, 2)).ravel(), levels.new_tensor([0, 0, 255, 255])
    )


def test_label_maps_become_one_hot_where_largest():
    maps = torch.tensor([[0.1, 0.2, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5], [-1, -1, -1, -1], [-0.9, -1, -0.9, -1]])
    images = torch.cat([torch.zeros(4, 4), maps], dim=1).reshape(4, 8, 1, 1)
    stored = SliceCodec(BRATS).to_stored(images)[:, 4:, 0, 0]  # [N, K]
    assert stored.argmax(dim=1).tolist() == [2, 0, 0, 0]  # of equal values, the first class wins
    assert stored.sum(dim=1).tolist() == [255] * 4
    assert set(stored.unique().tolist()) == {0, 255}
