"""The fast way through the U-Net computes the function of MONAI's network, and its gradients."""

import contextlib

import pytest
import torch

from segmentation.config import UNetConfig
from segmentation.fast_unet import compute_logits, fast_logits
from segmentation.optimizer import segmentation_loss
from segmentation.unet import build_unet
from torch_utils.ops import native

AFTER = ".conv.bias"  # of convolutions that instance normalization follows


CASES = [  # width, edges, contrasts, classes
    (2, (32, 32), 2, 3),
    (8, (64, 64), 4, 4),
    (16, (32, 48), 1, 2),
    (12, (32, 32), 4, 4),
    (32, (32, 32), 3, 2),
]


def batch(size: tuple[int, int], contrasts: int, classes: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand([3, contrasts, *size], generator=random) * 2 - 1
    images[0] = -1  # a blank slice: its deviation from its mean is rounding error
    return images, torch.randint(classes, [3, 1, *size], generator=random)


def perturbed(config: UNetConfig) -> torch.nn.Module:
    """A network whose normalizations are no longer those of the first step."""
    network = build_unet(config, seed=3)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=random)
    return network


def gradients(network: torch.nn.Module, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The gradients of all parameters with one, as one vector."""
    network.zero_grad(set_to_none=True)
    segmentation_loss()(logits, truth).backward()
    given = [p.grad.flatten() for name, p in network.named_parameters() if not name.endswith(AFTER)]
    return torch.cat(given)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the length of what is expected."""
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("width", "size", "contrasts", "classes"), CASES)
def test_logits_and_gradients_are_those_of_the_network(width, size, contrasts, classes):
    network = perturbed(UNetConfig(contrasts, classes, width)).double()
    images, truth = batch(size, contrasts, classes)
    found, expected = (f(images.double()) for f in (lambda x: fast_logits(network, x), network))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert distance(gradients(network, found, truth), gradients(network, expected, truth)) < 1e-9


@pytest.mark.parametrize("ops", ["native", "reference"])
@pytest.mark.parametrize(("width", "size", "contrasts", "classes"), CASES)
def test_single_precision_rounds_little(width, size, contrasts, classes, ops):
    if ops == "native" and not native.available("cpu"):
        pytest.skip(f"no native operators: {native.status('cpu').error}")
    network, exact = (perturbed(UNetConfig(contrasts, classes, width)) for _ in range(2))
    exact.double()
    distances = []
    for seed in range(3):
        images, truth = batch(size, contrasts, classes, seed)
        with native.reference_only() if ops == "reference" else contextlib.nullcontext():
            found = fast_logits(network, images)
            gradient = gradients(network, found, truth)
        expected = exact(images.double())
        assert distance(found, expected) < 1e-5
        distances.append(distance(gradient, gradients(exact, expected, truth)))
    # In some batches a unit is so near its kink that it falls on the other side, as happens to MONAI's network, too. At
    # width 32, that one misses the exact gradient by 1.1e-5 in single precision.
    assert min(distances) < 2e-5


def test_a_bias_before_normalization_neither_counts_nor_learns():
    network = build_unet(UNetConfig(2, 3, 4), seed=0)
    images, truth = batch((32, 32), 2, 3)
    before = fast_logits(network, images)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p += 5 * name.endswith(AFTER)
    torch.testing.assert_close(network(images), before, rtol=0, atol=1e-4)
    segmentation_loss()(fast_logits(network, images), truth).backward()
    assert {name for name, p in network.named_parameters() if p.grad is None} == {
        name for name, _ in network.named_parameters() if name.endswith(AFTER)
    }


@pytest.mark.parametrize(("size", "dtype"), [((40, 40), torch.float32), ((32, 32), torch.float64)])
def test_what_has_no_fast_way_goes_through_the_network(size, dtype):
    network = build_unet(UNetConfig(2, 3, 4), seed=0).to(dtype)
    images = batch(size, 2, 3)[0].to(dtype)
    with torch.no_grad():
        assert torch.equal(compute_logits(network, images), network(images))


def test_the_fast_way_is_taken(monkeypatch):
    network = build_unet(UNetConfig(2, 3, 4), seed=0)
    monkeypatch.setattr(network, "forward", None)
    assert compute_logits(network, batch((32, 32), 2, 3)[0]).shape == (3, 3, 32, 32)
