"""Warps on the CPU, compared with their definition as matrices."""

import math

import numpy as np
import pytest
import torch

from helpers.operator_faces import native_operators
from torch_utils.ops.registered import OPERATORS
from torch_utils.ops.warp import warp

CENTER = 5
TAPS = np.random.default_rng(0).normal(size=12) + 1
TAPS /= TAPS.sum()  # of no wavelet: the definition holds for any


@pytest.fixture(autouse=True, scope="module")
def native():
    with native_operators("cpu"):
        yield


def move(x, maps):
    return warp(x, maps, torch.from_numpy(TAPS))


def maps_around_center(width, *moves):
    """Maps of (angle, factor along x, factor along y, shift x, shift y), around the center of pictures."""
    far, maps = (width - 1) / 2, []
    for angle, a, b, x, y in moves:
        matrix = np.array([[math.cos(angle) * a, -math.sin(angle) * b], [math.sin(angle) * a, math.cos(angle) * b]])
        maps.append(np.column_stack([matrix, far + np.array([x, y]) - matrix @ [far, far]]))
    return torch.tensor(np.stack(maps))


def continued(width):
    """R along one axis, from pixels to 3·width − 2 of them."""
    pixels = np.abs(np.arange(1 - width, 2 * width - 1))
    return np.eye(width)[width - 1 - np.abs(width - 1 - pixels)]


def enlarged(pixels):
    """U along one axis: pixel i adds its taps around sample 2·i."""
    matrix = np.zeros((2 * pixels, pixels))
    for i in range(pixels):
        for k, tap in enumerate(TAPS):
            if 0 <= 2 * i + k - CENTER < 2 * pixels:
                matrix[2 * i + k - CENTER, i] = 2 * tap
    return matrix


def shrunk(width):
    """D along one axis, of samples from −CENTER on: pixel j takes those around 2·j."""
    matrix = np.zeros((width, 2 * width + 10))
    for j in range(width):
        matrix[j, 2 * j : 2 * j + 12] = TAPS
    return matrix


def sampled(map_, width):
    """S: [samples², (enlarged picture)²], both at twice the resolution."""
    size, edge = 2 * width + 10, 2 * (3 * width - 2)
    matrix = np.zeros((size * size, edge * edge))
    for n, (row, column) in enumerate(np.ndindex(size, size)):
        place = map_ @ [(column - CENTER) / 2, (row - CENTER) / 2, 1]  # in pixels of the picture
        x, y = 2 * (place + width - 1)  # in samples of the enlarged picture with its reflections
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < edge and 0 <= j < edge:
                    matrix[n, i * edge + j] = (1 - abs(y - i)) * (1 - abs(x - j))
    return matrix


def definition(map_, width):
    """D S U R as a matrix [W², W²]."""
    up, down = enlarged(3 * width - 2) @ continued(width), shrunk(width)
    return np.kron(down, down) @ (sampled(map_, width) @ np.kron(up, up))


WIDTH = 5
MOVES = [
    (0.3, 1.1, 0.9, 0.4, -1.3),
    (math.pi / 2, 1, 1, 0, 0),
    (0, -1, 1, 3, -2),
    (2.0, 0.4, 0.5, 0, 0),
    (-0.7, 2.5, 3, 2, 1),  # sees the end of the reflections
    (0.1, 1, 1, 9, -8.5),  # and beyond
]


@pytest.mark.parametrize("channels", [1, 8, 11])
def test_warps_are_the_product_of_their_steps(channels):
    maps = maps_around_center(WIDTH, *MOVES)
    x = torch.randn(len(MOVES), channels, WIDTH, WIDTH, dtype=torch.float64)
    found = move(x, maps)
    back = OPERATORS.warp(x, maps, torch.from_numpy(TAPS), True)
    for n, map_ in enumerate(maps.numpy()):
        matrix = torch.from_numpy(definition(map_, WIDTH))
        flat = x[n].flatten(1)  # [channels, W²]
        torch.testing.assert_close(found[n].flatten(1), flat @ matrix.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(back[n].flatten(1), flat @ matrix, rtol=0, atol=1e-12)


def test_pictures_far_away_are_0_and_the_identity_is_exact():
    maps = maps_around_center(WIDTH, (0, 1, 1, 1000, 0), (0, 1, 1, 0, 0), (0.5, 1e6, 1e6, 0, 0))
    x = torch.randn(3, 3, WIDTH, WIDTH)
    found = move(x, maps)
    assert (found[0] == 0).all() and torch.equal(found[1], x[1]) and found.isfinite().all()
    assert not torch.equal(move(x, maps + 1e-9)[1], x[1])


@pytest.mark.parametrize("width", [1, 2, 33])
def test_any_width(width):
    maps = maps_around_center(width, *MOVES)
    x, y = torch.randn(2, len(MOVES), 3, width, width, dtype=torch.float64)
    back = OPERATORS.warp(y, maps, torch.from_numpy(TAPS), True)
    assert float((move(x, maps) * y).sum()) == pytest.approx(float((x * back).sum()), rel=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_other_types_are_rounded_once(dtype, tolerance):
    maps = maps_around_center(16, *MOVES)
    x = torch.randn(len(MOVES), 5, 16, 16).to(dtype)
    found, wanted = move(x.contiguous(memory_format=torch.channels_last), maps), move(x.double(), maps)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_a_picture_does_not_depend_on_the_others():
    maps = maps_around_center(16, *MOVES)
    x = torch.randn(len(MOVES), 5, 16, 16)
    together = move(x, maps)
    for n in range(len(MOVES)):
        assert torch.equal(move(x[n : n + 1], maps[n : n + 1])[0], together[n])


def test_derivatives_of_all_orders():
    maps = maps_around_center(4, *MOVES[:3])
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: move(x, maps), x)
    assert torch.autograd.gradgradcheck(lambda x: move(x, maps).pow(3), x)


def test_wrong_arguments_are_refused():
    x, maps, taps = torch.randn(2, 3, 5, 5), maps_around_center(5, *MOVES[:2]), torch.from_numpy(TAPS)
    for given in (
        (x[:, :, :4], maps, taps),
        (x[0], maps, taps),
        (x, maps[:1], taps),
        (x, maps.float(), taps),
        (x, maps, taps[:8]),
        (x, maps * math.nan, taps),
        (x, maps * 1e12, taps),
        (x.int(), maps, taps),
    ):
        with pytest.raises((ValueError, RuntimeError), match="expected|map"):
            warp(*given)
