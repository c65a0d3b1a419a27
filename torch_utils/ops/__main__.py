"""The self-check `python -m torch_utils.ops`: list the native operators, and compare them with the reference."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import torch

from dnnlib.cli import HELP
from dnnlib.errors import reports_user_errors
from dnnlib.system import run
from dnnlib.text import format_table
from torch_utils.ops import build, native
from torch_utils.ops.bias_act import ACTIVATIONS, NATIVE_ON_CPU, bias_act
from torch_utils.ops.conv2d_gradfix import conv2d
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import upfirdn2d

# Largest allowed difference from the reference in float64, relative to the largest value.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FIXED = ("noise", "f")  # tensors that take no gradient


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    settings: str  # for messages
    function: Callable[..., torch.Tensor]  # takes the tensors by name
    tensors: dict[str, torch.Tensor]  # float64, on the CPU
    on_cpu: bool = True  # whether CPUs have a native operator for it


@dataclass(frozen=True)
class Operator:
    """An operator, and calls that show whether it is right."""

    cases: Callable[[], Iterator[Case]]
    only: tuple[str, torch.dtype] | None = None  # the only device and type with a native version; None: all


@click.command(context_settings=HELP)
@reports_user_errors
def main() -> None:
    """Show which native operators are built for which device, and compare them with plain PyTorch.

    The exit code is 1 if they differ. A device without native operators is no failure.
    """
    click.echo(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    serving = [device for device in build.LIBRARIES if _introduce(device)]
    rows, complaints = [], []
    for device in serving:
        for name, operator in OPERATORS.items():
            dtypes = [dtype for dtype in TOLERANCES if operator.only in (None, (device, dtype))]
            if not dtypes:
                continue
            cases = [case for case in operator.cases() if case.on_cpu or device != "cpu"]
            found = {dtype: _compare(cases, device, dtype) for dtype in dtypes}
            wrong = [complaint for _, complaint in found.values() if complaint]
            complaints += [f"{name} on {device}, {complaint}" for complaint in wrong]
            differences = [f"{found[dtype][0]:.1e}" if dtype in found else "" for dtype in TOLERANCES]
            rows.append([name, device, *differences, "FAILED" if wrong else "OK"])
    if rows:
        names = [str(dtype).removeprefix("torch.") for dtype in TOLERANCES]
        click.echo("\nThe largest difference from plain PyTorch in float64, derivatives included:")
        click.echo(format_table(["", "", *names, ""], rows))
    for complaint in complaints:
        click.echo(f"FAILED: {complaint}")
    sys.exit(1 if complaints else 0)


def _introduce(device: str) -> bool:
    """Print which operators a device uses. Returns whether they are native."""
    status = native.status(device)
    if status.error is not None:
        click.echo(f"{device}: plain PyTorch, as there are no native operators: {status.error}")
        return False
    title = torch.cuda.get_device_name() if device == "cuda" else f"threads: {torch.get_num_threads()}"
    click.echo(f"{device}: native operators ({title})")
    click.echo(f"  {status.file}, built {f'in {status.seconds:.0f} s' if status.seconds else 'before'}")
    for tool in status.tools:
        click.echo(f"  {tool}")
    return True


def _compare(cases: list[Case], device: str, dtype: torch.dtype) -> tuple[float, str]:
    """Return the largest difference in all cases, and a complaint about the worst one, empty if it is within limits."""
    worst, complaint = 0.0, ""
    for case in cases:
        try:
            found = _derivatives(case, device, dtype, dtype)
            with native.reference_only():
                expected = _derivatives(case, device, dtype, torch.float64)
        except RuntimeError as error:
            return math.inf, f"{dtype}, {case.settings}: {error}"
        for name, right in expected.items():
            difference = _difference(found[name], right)
            if difference > worst:
                worst = difference
                if worst > TOLERANCES[dtype]:
                    complaint = f"{dtype}, {case.settings}: {name} differs by {worst:.1e}; expected {TOLERANCES[dtype]}"
    return worst, complaint


def _difference(found: torch.Tensor, right: torch.Tensor) -> float:
    """Largest difference relative to the largest value, or to 1 if all values are small. NaN counts as infinite."""
    if found.shape != right.shape:
        return math.inf
    difference = ((found.double() - right).abs().max() / right.abs().max().clamp(min=1)).item()
    return math.inf if math.isnan(difference) else difference


def _derivatives(case: Case, device: str, numbers: torch.dtype, compute: torch.dtype) -> dict[str, torch.Tensor]:
    """Compute the value, first and second derivatives in type `compute`, from inputs rounded to type `numbers`."""
    random = torch.Generator().manual_seed(0)

    def weights(like: torch.Tensor) -> torch.Tensor:
        """Random numbers that stand for the gradient of a loss by `like`."""
        drawn = torch.randn(like.shape, generator=random, dtype=torch.float64).to(numbers)
        return torch.empty_like(like, requires_grad=False).copy_(drawn)  # in the layout of `like`

    tensors = {name: t.to(numbers).to(device, compute, copy=True) for name, t in case.tensors.items()}
    inputs = {name: t.requires_grad_() for name, t in tensors.items() if name not in FIXED}
    y = case.function(**tensors)
    inputs["dy"] = dy = weights(y).requires_grad_()  # second derivatives depend on dy too
    first = torch.autograd.grad(y, [t for t in inputs.values() if t is not dy], dy, create_graph=True)
    second = torch.autograd.grad(first, list(inputs.values()), [weights(g) for g in first], allow_unused=True)
    results = {"value": y}
    # `inputs` ends with dy, which has no first derivative.
    results |= {f"derivative by {name}": g for name, g in zip(inputs, first, strict=False)}
    for (name, t), g in zip(inputs.items(), second, strict=True):
        results[f"second derivative by {name}"] = torch.zeros_like(t) if g is None else g
    return {name: t.detach() for name, t in results.items()}


def _bias_act() -> Iterator[Case]:
    """All activations, with and without bias and clamp, in both memory layouts."""
    for act in ACTIVATIONS:
        for shape, clamp, layout in [
            ([5, 6], None, torch.contiguous_format),
            ([2, 5, 9, 7], 0.6, torch.contiguous_format),
            ([2, 16, 24, 24], 0.6, torch.channels_last),
        ]:
            # Default arguments keep the values of this iteration; a closure would see those of the last one.
            def function(x, b=None, act=act, clamp=clamp):
                return bias_act(x, b, act=act, gain=1.5, clamp=clamp)

            # x is an odd and b an even number of eighths. So x + b stays away from the kinks of lrelu and clamp, which
            # rounding to 16 bits could otherwise cross.
            x = ((_draw(*shape) * 4).round() * 2 + 1) / 8
            b = (_draw(shape[1]) * 4).round() / 4
            for tensors in ({"x": x.contiguous(memory_format=layout), "b": b}, {"x": x}):
                settings = f"act={act}, clamp={clamp}, {', '.join(tensors)} {shape}"
                yield Case(settings, function, tensors, on_cpu=act in NATIVE_ON_CPU)


def _synthesis_tail() -> Iterator[Case]:
    """All activations, with noise that samples share or have for themselves, in both memory layouts."""
    for act in ACTIVATIONS:
        for shape, noise, clamp, layout in [
            ([2, 5, 9, 7], [9, 7], 0.6, torch.contiguous_format),
            ([3, 16, 24, 24], [3, 1, 24, 24], None, torch.channels_last),
        ]:
            tensors = {
                "x": _draw(*shape).contiguous(memory_format=layout),
                "scale": _draw(*shape[:2]).sigmoid() + 0.5,
                "noise": _draw(*noise),
                "strength": _draw(),
                "bias": _draw(shape[1]),
            }

            def function(act=act, clamp=clamp, **tensors):
                return synthesis_tail(act=act, clamp=clamp, **tensors)

            yield Case(f"act={act}, clamp={clamp}, x {shape}", function, tensors, on_cpu=act in NATIVE_ON_CPU)


def _upfirdn2d() -> Iterator[Case]:
    """Filters as networks use them, and one with different settings along x and y."""
    square, row = _draw(4, 4), _draw(12)
    for shape, f, options in [
        ([2, 3, 16, 16], square, {"up": 2, "padding": (2, 1), "gain": 4}),
        ([2, 3, 16, 16], square, {"down": 2, "padding": 1}),
        ([2, 3, 16, 16], square, {"padding": (2, 1), "flip_filter": True}),
        ([2, 3, 16, 16], row, {"up": 2, "padding": (6, 5), "gain": 4}),
        ([2, 3, 16, 16], row, {"down": 2, "padding": 5}),
        ([1, 2, 11, 13], _draw(3, 5), {"up": (3, 2), "down": (2, 3), "padding": (4, -1, -2, 5), "gain": 0.5}),
        ([1, 2, 11, 13], None, {"up": 2, "down": 3}),
    ]:

        def function(x, f=None, options=options):
            return upfirdn2d(x, f, **options)

        for layout in (torch.contiguous_format, torch.channels_last):
            x = _draw(*shape).contiguous(memory_format=layout)
            yield Case(f"{options}, x {shape}", function, {"x": x} if f is None else {"x": x, "f": f})


def _conv2d() -> Iterator[Case]:
    """3×3 convolutions that are large enough to be native on a CPU."""
    for shape, channels in [([2, 16, 30, 29], 48), ([3, 64, 20, 20], 32)]:

        def function(x, w):
            return conv2d(x, w, padding=1)

        x = _draw(*shape).contiguous(memory_format=torch.channels_last)
        # The weight is scaled by 1/√fan_in, so results are about 1, as the tolerances expect.
        yield Case(f"x {shape}", function, {"x": x, "w": _draw(channels, shape[1], 3, 3) / (shape[1] * 9) ** 0.5})


_random = torch.Generator().manual_seed(0)


def _draw(*shape: int) -> torch.Tensor:
    """Unit normal numbers, float64."""
    return torch.randn(shape, generator=_random, dtype=torch.float64)


OPERATORS = {
    "bias_act": Operator(_bias_act),
    "synthesis_tail": Operator(_synthesis_tail),
    "upfirdn2d": Operator(_upfirdn2d),
    "conv2d 3×3": Operator(_conv2d, only=("cpu", torch.float32)),
}


if __name__ == "__main__":
    run(main, prog_name="python -m torch_utils.ops")
