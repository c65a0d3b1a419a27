"""Bilinear sampling: against PyTorch's own, and its derivatives."""

import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops.grid_sample import grid_sample


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


def pictures_and_grid(device: str, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [2, 3, 5, 6], and a grid [2, 4, 7, 2] that goes beyond their edges."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn([2, 3, 5, 6], dtype=dtype, generator=generator)
    grid = torch.rand([2, 4, 7, 2], dtype=dtype, generator=generator) * 2.8 - 1.4
    return x.to(device).requires_grad_(), grid.to(device)


def reference(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_pytorchs(device, layout):
    x, grid = pictures_and_grid(device)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn([2, 3, 4, 7], dtype=x.dtype, device=device)
    y, expected = grid_sample(x, grid), reference(x, grid)
    torch.testing.assert_close(y, expected)
    (dx,), (dx_expected,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close(dx, dx_expected)


def test_derivatives_of_all_orders(device):
    x, grid = pictures_and_grid(device)
    assert torch.autograd.gradcheck(lambda x: grid_sample(x, grid), x)
    assert torch.autograd.gradgradcheck(lambda x: grid_sample(x, grid), x)
    # A function of third degree, so that the third derivative isn't 0.
    assert torch.autograd.gradgradcheck(
        lambda x: torch.autograd.grad(grid_sample(x, grid).pow(3).sum(), x, create_graph=True), x
    )


def test_the_penalty_of_a_gradient_reaches_weights_behind_the_sampling(device):
    """As R1 does: the slope of a weighted sum by the pictures, differentiated by the weights. All is known exactly."""
    x, grid = pictures_and_grid(device)
    w = torch.randn([2, 3, 4, 7], dtype=x.dtype, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad((grid_sample(x, grid) * w).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum() / 2, w)
    torch.testing.assert_close(found, reference(slope, grid))  # ∇w ½‖Sᵀw‖² = S Sᵀ w


def test_no_gradient_where_none_is_asked_for(device):
    x, grid = pictures_and_grid(device)
    with torch.no_grad():
        assert not grid_sample(x, grid).requires_grad
    assert not grid_sample(x.detach(), grid).requires_grad


def test_arguments_that_do_not_fit():
    x, grid = pictures_and_grid("cpu")
    for bad in (grid[:1], grid[..., :1], grid[0]):
        with pytest.raises(ValueError, match="expected pictures"):
            grid_sample(x, bad)
    with pytest.raises(ValueError, match="same type"):
        grid_sample(x, grid.to(torch.float32))
    with pytest.raises(ValueError, match="takes no gradient"):
        grid_sample(x, grid.requires_grad_())
