"""The native operators against plain PyTorch and against a copy, in one run.

    python benchmarks/ops.py

It prints ratios of medians, forward, and forward + backward (f+b).

"PyTorch" is how a good user of PyTorch would write the operator: in place where autograd allows it, filters as two
depthwise convolutions. "best" is the fastest other way known; torch_utils/ops/reference.py is one of these ways.
"copy" is the time to copy as many bytes as the operator has to read and write. With gradients it is the time of
autograd's copy of such a tensor, and of each operand that takes a gradient, since autograd needs some microseconds for
every tensor, however small. On a CPU, native 3×3 convolutions are compared with PyTorch's too. Take figures on an idle
machine.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.system import run
from dnnlib.text import format_table
from torch_utils.distributed import default_device
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_gradfix import conv2d
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SIZES = {
    "cpu": {"demo": [(16, 16, 64, 64), (16, 32, 32, 32)], "256×256": [(4, 64, 256, 256), (4, 128, 128, 128)]},
    "cuda": {"demo": [(16, 16, 64, 64)], "256×256": [(32, 512, 32, 32), (32, 128, 256, 256)]},
}
# Batch, channels, resolution.
CONVOLUTIONS = [(16, 16, 64), (16, 32, 32), (16, 64, 32), (16, 64, 8), (1, 64, 256), (1, 128, 128)]
CLAMP = 256.0
SQRT2 = 2**0.5


@click.command()
@click.option("--seconds", type=click.FloatRange(0), default=1.5, show_default=True, help="for each comparison")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def main(seconds: float, dtype: str) -> None:
    device = default_device()
    keep_freed_memory()
    print(f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads, {dtype}")
    if not native.available(device.type):
        raise click.ClickException(f"no native operators for {device.type}: python -m torch_utils.ops tells why")
    rows = []
    for (size, shapes), layout in itertools.product(SIZES[device.type].items(), LAYOUTS):
        for shape in shapes:
            x = torch.randn(shape, device=device, dtype=getattr(torch, dtype)).to(memory_format=LAYOUTS[layout])
            for name, operator in operators(x).items():
                rows.append([name, size, "×".join(map(str, shape)), layout])
                rows[-1] += compare(operator, x, seconds, backward=False)
                rows[-1] += compare(operator, x, seconds, backward=True)
    columns = ["ms", "PyTorch ÷", "best ÷", "÷ copy"]
    print(format_table(["operator", "for", "shape", "layout", *columns, *[f"{c} f+b" for c in columns]], rows))
    if device.type == "cpu" and dtype == "float32":
        print()
        columns = ["3×3 convolution", "batch", "ms", "PyTorch ÷", "ms f+b", "PyTorch ÷ f+b"]
        print(format_table(columns, convolutions(seconds)))


class Operator(NamedTuple):
    native: Callable
    others: list[Callable]  # PyTorch's way first
    moved: float  # tensors of x's size that are read and written, forward
    moved_both: float  # forward and backward
    operands: list[torch.Tensor]  # that take a gradient, besides x


def operators(x: torch.Tensor) -> dict[str, Operator]:
    n, c, h, w = x.shape
    bias = torch.randn(c, device=x.device)
    scale = torch.rand(n, c, device=x.device) + 0.5
    noise = torch.randn(n, 1, h, w, device=x.device)
    strength = torch.tensor(0.3, device=x.device)
    for t in (bias, scale, strength):
        t.requires_grad_()
    f = setup_filter([1, 3, 3, 1]).to(x.device)
    taps = (torch.tensor([1.0, 3, 3, 1], device=x.device) / 8).to(x.dtype)

    def activate(u: torch.Tensor) -> torch.Tensor:
        u = F.leaky_relu_(u, 0.2)
        if torch.is_grad_enabled():  # autograd keeps what the next two would overwrite
            return (u * SQRT2).clamp(-CLAMP, CLAMP)
        return u.mul_(SQRT2).clamp_(-CLAMP, CLAMP)

    def pytorch_bias_act(x):
        return activate(x + bias.to(x.dtype)[:, None, None])

    def pytorch_tail(x):
        u = x * scale.to(x.dtype)[:, :, None, None]
        return activate(u.add_((noise * strength).to(x.dtype)).add_(bias.to(x.dtype)[:, None, None]))

    def depthwise(x, stride=1, gain=1.0):
        x = F.conv2d(x, (taps * gain).reshape(1, 1, 1, 4).expand(c, -1, -1, -1), groups=c, stride=(1, stride))
        return F.conv2d(x, (taps * gain).reshape(1, 1, 4, 1).expand(c, -1, -1, -1), groups=c, stride=(stride, 1))

    def pytorch_up(x):
        grown = F.pad(x.reshape(n, c, h, 1, w, 1), [0, 1, 0, 0, 0, 1]).reshape(n, c, h * 2, w * 2)
        return depthwise(F.pad(grown, [2, 1, 2, 1]), gain=2)

    def pytorch_up_transposed(x):
        weight = (taps.outer(taps) * 4).expand(c, 1, 4, 4)
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=c)

    def pytorch_down(x):
        return depthwise(F.pad(x, [1, 1, 1, 1]), stride=2)

    return {
        "bias_act": Operator(lambda x: bias_act(x, bias, act="lrelu", clamp=CLAMP), [pytorch_bias_act], 2, 5, [bias]),
        "tail": Operator(
            lambda x: synthesis_tail(x, scale, noise, strength, bias, act="lrelu", clamp=CLAMP),
            [pytorch_tail],
            2 + 1 / c,
            5 + 2 / c,
            [scale, strength, bias],
        ),
        "upfirdn2d ×2": Operator(lambda x: upsample2d(x, f), [pytorch_up, pytorch_up_transposed], 5, 10, []),
        "upfirdn2d ×1/2": Operator(lambda x: downsample2d(x, f), [pytorch_down], 1.25, 2.5, []),
    }


def compare(operator: Operator, x: torch.Tensor, seconds: float, backward: bool) -> list[str]:
    """Milliseconds, then time of PyTorch's way and of the best other way over ours, and ours over that of a copy."""

    def run(function: Callable, x: torch.Tensor = x) -> Callable[[], None]:
        gradients = [torch.ones_like(y) for y in as_list(function(x))]

        def once() -> None:
            for operand in operator.operands:
                operand.grad = None  # as an optimizer leaves it
            with torch.set_grad_enabled(backward):
                y = as_list(function(x.detach().requires_grad_(backward)))
                if backward:
                    torch.autograd.backward(y, gradients)

        return once

    def copy(x: torch.Tensor) -> list[torch.Tensor]:
        return [x.clone(), *[operand.clone() for operand in operator.operands if backward]]

    native_run = run(operator.native)

    def with_reference() -> None:
        with native.reference_only():
            native_run()

    # Autograd's copy of a tensor copies the gradient as well.
    size = round(x.numel() * (operator.moved_both / 4 if backward else operator.moved / 2))
    same_bytes = torch.randn(size, device=x.device).to(x.dtype)
    candidates = [native_run, run(copy, same_bytes), *[run(f) for f in operator.others], with_reference]
    mine, copied, *others = medians(candidates, seconds, x.device)
    return [f"{mine * 1e3:.2f}", f"{others[0] / mine:.1f}", f"{min(others) / mine:.1f}", f"{mine / copied:.2f}"]


def as_list(y: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return y if isinstance(y, list) else [y]


def medians(functions: list[Callable], seconds: float, device: torch.device) -> list[float]:
    """Median seconds of a call of each function, from 5 rounds or more.

    seconds: about how long all of it takes. The functions take turns, so that a slow moment of the machine meets them
    all. Before the calls that count there are as many others, which leave caches and free memory as that function
    leaves them. With tensors as large as the caches this takes about eight calls.
    """
    times: list[list[float]] = [[] for _ in functions]
    begun = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() < begun + seconds:
        for function, own in zip(functions, times, strict=True):
            calls = 8 if own and own[-1] < 0.05 else 1
            for _ in range(calls):
                function()
            synchronize(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            synchronize(device)
            own.append((time.perf_counter() - start) / calls)
    return [statistics.median(own) for own in times]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def convolutions(seconds: float) -> list[list[str]]:
    """Forward, and forward with the gradients of input and weight."""
    rows = []
    for batch, c, resolution in CONVOLUTIONS:
        x, weight = torch.randn(batch, c, resolution, resolution), torch.randn(c, c, 3, 3)
        x, weight = (t.to(memory_format=torch.channels_last).requires_grad_() for t in (x, weight))
        dy = torch.randn_like(x)
        rows.append([f"{c} channels, {resolution}×{resolution}", str(batch)])
        for backward in (False, True):

            def call(convolve: Callable, x=x, weight=weight, dy=dy, backward=backward) -> Callable[[], None]:
                def once() -> None:
                    with torch.set_grad_enabled(backward):
                        y = convolve(x, weight, padding=1)
                        if backward:
                            torch.autograd.grad(y, [x, weight], dy)

                return once

            mine, other = medians([call(conv2d), call(F.conv2d)], seconds, torch.device("cpu"))
            rows[-1] += [f"{mine * 1e3:.2f}", f"{other / mine:.1f}"]
    return rows


if __name__ == "__main__":
    run(main)
