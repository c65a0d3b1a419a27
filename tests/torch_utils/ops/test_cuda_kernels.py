"""The CUDA kernels without a GPU: their source runs on the emulated device in emulation/, checked and counted."""

import contextlib
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emulation.harness import (
    CHECKED,
    DTYPES,
    ENVIRONMENT,
    FAST,
    HERE,
    PLAIN,
    SECTOR,
    SOURCES,
    Emulator,
    KernelError,
    build,
    compute_type,
    has_sanitizer,
)
from helpers.goldens import golden_arrays, golden_cases, golden_filter
from torch_utils.ops.bias_act import ACTIVATIONS
from torch_utils.ops.build import cuda_homes

KERNELS = [SOURCES / "cuda" / "tail.cu", SOURCES / "cuda" / "upfirdn2d.cu"]
NAMES = list(ACTIVATIONS)
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 2e-5, torch.float64: 1e-11}
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    if not has_sanitizer(tmp_path_factory.mktemp("compiler")):
        pytest.skip("no g++ with AddressSanitizer here: the emulated CUDA kernels are not tested")


@pytest.fixture(scope="session")
def emulator(compiler, tmp_path_factory):
    made = Emulator(tmp_path_factory.mktemp("checked"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def fast(compiler, tmp_path_factory):
    """A program without sanitizers, for large arrays. It still checks bounds and alignment of arrays."""
    made = Emulator(tmp_path_factory.mktemp("fast"), flags=FAST)
    yield made
    made.close()


def close(found, expected, tolerance):
    scale = max(1, float(expected.abs().max())) if expected.numel() else 1
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=tolerance, atol=tolerance * scale)


# ---- References, in double precision -------------------------------------------------------------------------


def tail_reference(
    order,
    x,
    act,
    alpha=0.2,
    gain=1.0,
    limit=math.inf,
    scale=None,
    noise=None,
    strength=None,
    bias=None,
    dy=None,
    v=None,
    w=None,
):
    """Compute the equations of operators.h. Orders 1 and 2 are derivatives of orders 0 and 1."""
    n, c, p = x.shape
    x = x.double().requires_grad_()
    noise = (torch.zeros(p) if noise is None else noise).double().expand(n, p)[:, None]
    # one factor for each sum: of x, of the noise, and of one
    factors = torch.ones(n, c), torch.ones(n, c), torch.zeros(n, c)
    given = scale, strength, bias
    a, b, e = ((g if g is not None else f).double().expand(n, c).clone() for f, g in zip(factors, given, strict=True))
    leaves = [x, *(factor.requires_grad_() for factor in (a, b, e))]
    u = x * a[:, :, None] + noise * b[:, :, None] + e[:, :, None]
    y = (gain * ACTIVATIONS[NAMES[act]].function(u, alpha)).clamp(-limit, limit)
    if order == 0:
        return {"out": y.detach()}
    dy = dy.double().requires_grad_()
    dx, *sums = torch.autograd.grad(y, leaves, dy, create_graph=True)
    if order == 1:
        return {"out": dx.detach(), "sums": torch.stack(sums).detach()}
    v = torch.zeros_like(x) if v is None else v.double()
    w = torch.zeros(3, n, c) if w is None else w.double()
    total = (dx * v).sum() + sum((s * k).sum() for s, k in zip(sums, w, strict=True))
    grads = torch.autograd.grad(total, [dy, *leaves], allow_unused=True)
    grads = [torch.zeros_like(l) if g is None else g for g, l in zip(grads, [dy, *leaves], strict=True)]
    return {"out": grads[0], "out_x": grads[1], "sums": torch.stack(grads[2:])}


def upfirdn2d_reference(x, f, out_size, up, down, padding, flip, gain=1.0):
    n, c, h, w = x.shape
    x, f = x.double(), f.double()
    size = [(out - 1) * d + k for out, d, k in zip(out_size, down[::-1], f.shape, strict=True)]
    grown = x.new_zeros(n, c, h * up[1], w * up[0])
    grown[:, :, :: up[1], :: up[0]] = x
    after = [s - pad - g for s, pad, g in zip(size, padding[::-1], grown.shape[2:], strict=True)]
    margins = torch.tensor([padding[0], after[1], padding[1], after[0]])
    z = F.pad(F.pad(grown, margins.clamp(min=0).tolist()), margins.clamp(max=0).tolist()).reshape(n * c, 1, *size)
    taps = f if flip else f.flip([0, 1])
    return gain * F.conv2d(z, taps[None, None], stride=down[::-1]).reshape(n, c, *out_size)


def draw_tail(seed, order, dtype, shape, operands="snib", shared_noise=False):
    """Draw inputs. Letters choose the operands: scale, noise, strength (i), bias, v and w."""
    random = torch.Generator().manual_seed(seed)
    n, c, p = shape

    def draw(*size, of=dtype):
        return torch.randn(*size, generator=random, dtype=torch.float64).to(of)

    operand = compute_type(dtype)
    keywords = {"x": draw(n, c, p)}
    if "s" in operands:
        keywords["scale"] = draw(n, c, of=operand)
    if "n" in operands:
        keywords["noise"] = draw(p, of=operand) if shared_noise else draw(n, p, of=operand)
    if "i" in operands:
        keywords["strength"] = draw(1, of=operand)
    if "b" in operands:
        keywords["bias"] = draw(c, of=operand)
    if order:
        keywords["dy"] = draw(n, c, p)
    if order == 2 and "v" in operands:
        keywords["v"] = draw(n, c, p)
    if order == 2 and "w" in operands:
        keywords["w"] = draw(3, n, c, of=operand)
    return keywords


def check_tail(emulator, order, keywords, act, launch, tolerance=None, **function):
    found, _ = emulator.run_tail(order=order, activation=act, **keywords, **function, **launch)
    dtype, pixels = keywords["x"].dtype, keywords["x"].shape[2]
    for name, expected in tail_reference(order, act=act, **keywords, **function).items():
        if name == "sums" and not pixels:
            continue  # no kernel is launched for these
        limit = tolerance or ROUNDING[compute_type(dtype) if name == "sums" else dtype]
        close(found[name], expected, limit * (max(1, pixels) ** 0.5 if name == "sums" else 1))
    return found


# ---- tail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("bias_act")["cases"], ids=lambda c: f"{c['case']}-{c['act']}")
def test_tail_meets_golden_values_and_derivatives(emulator, case):
    want = golden_arrays("bias_act", f"case{case['case']}_")
    act = ACTIVATIONS[case["act"]]
    shape = want["x"].shape
    n, c = (1, shape[0]) if case["dim"] == 0 else shape[:2]
    x, dy, v = (want[k].reshape(n, c, -1) for k in ("x", "dy", "v"))
    keywords = {
        "activation": NAMES.index(case["act"]),
        "alpha": case.get("alpha", act.alpha),
        "gain": case.get("gain", act.gain),
        "limit": case.get("clamp", math.inf),
        "bias": want["b"],
    }
    for channels_last in False, True:
        runs = [
            emulator.run_tail(
                x,
                order=order,
                dy=dy if order else None,
                v=v if order == 2 else None,
                channels_last=channels_last,
                **keywords,
            )[0]
            for order in range(3)
        ]
        found = {"y": runs[0]["out"], "dx": runs[1]["out"], "d2dy": runs[2]["out"], "d2x": runs[2]["out_x"]}
        for name, tensor in found.items():
            close(tensor.reshape(shape), want[name], 1e-5)
        close(runs[1]["sums"][2].sum(0), want["db"], 1e-5)


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("act", range(len(NAMES)), ids=NAMES)
def test_every_activation_meets_its_equations(emulator, act, order):
    for number, (dtype, channels_last) in enumerate(itertools.product(DTYPES, [False, True])):
        keywords = draw_tail(number, order, dtype, (2, 5, 37), "snibvw", shared_noise=channels_last)
        limit = 1.25 if number % 3 else math.inf
        check_tail(emulator, order, keywords, act, {"channels_last": channels_last}, gain=1.5, limit=limit)


OPERANDS = ["", "b", "s", "n", "ni", "sb", "snib", "v", "w", "bv", "snibv", "snibw", "snw", "niv"]


@pytest.mark.parametrize("operands", OPERANDS, ids=lambda o: o or "none")
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_every_operand_may_be_left_out(emulator, operands, channels_last):
    for order in range(3) if not set(operands) & set("vw") else [2]:
        for dtype, shared in [(torch.float32, True), (torch.float16, False)]:
            keywords = draw_tail(order, order, dtype, (3, 4, 64), operands, shared)
            check_tail(emulator, order, keywords, NAMES.index("swish"), {"channels_last": channels_last}, limit=0.75)
    if order == 2:  # neither the sums nor ∂x are computed
        whole, _ = emulator.run_tail(order=2, activation=8, channels_last=channels_last, **keywords)
        part, _ = emulator.run_tail(
            order=2, activation=8, channels_last=channels_last, sums=False, out_x=False, **keywords
        )
        assert list(part) == ["out"] and part["out"].equal(whole["out"])


SHAPES = [
    (1, 1, 1),
    (2, 3, 1),
    (1, 1, 7),
    (3, 1, 65),
    (2, 33, 9),
    (1, 257, 3),
    (2, 5, 515),
    (1, 2, 2051),
    (5, 64, 16),
    (1, 272, 16),
    (2, 20, 130),
    (0, 3, 5),
    (2, 3, 0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_tail_of_every_size_and_alignment(emulator, shape, channels_last):
    for number, (order, dtype) in enumerate(itertools.product(range(3), [torch.float16, torch.float32, torch.float64])):
        keywords = draw_tail(number, order, dtype, shape, "snibvw", shared_noise=order == 1)
        launch = {"channels_last": channels_last, "offset": number % 2}  # elements past an aligned address
        check_tail(emulator, order, keywords, NAMES.index("lrelu"), launch, limit=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_tail_of_more_rows_than_blocks(emulator, channels_last, dtype):
    """Tensors so large that a block goes on to further rows, instead of one more block being launched.

    Only the last blocks run, and only the last samples are compared.
    """
    for order in range(3):
        keywords = draw_tail(order, order, dtype, (150, 72, 72), "snibvw")
        launch = {"channels_last": channels_last, "first_block": -40}
        found, _ = emulator.run_tail(order=order, activation=NAMES.index("lrelu"), limit=1.5, **keywords, **launch)
        samples = {name: t if name in ("strength", "bias") else t[-2:] for name, t in keywords.items()}
        if order == 2:
            samples["w"] = keywords["w"][:, -2:]
        for name, expected in tail_reference(order, act=NAMES.index("lrelu"), limit=1.5, **samples).items():
            last = found[name][:, -2:] if name == "sums" else found[name][-2:]
            close(last, expected, 72**0.5 * ROUNDING[torch.float32] if name == "sums" else ROUNDING[dtype])


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_the_slope_is_told_by_the_output(emulator, act):
    for dtype, channels_last in itertools.product(DTYPES, [False, True]):
        given = draw_tail(1, 1, dtype, (2, 5, 83), "")
        function = {"alpha": 0.2, "gain": 1.5, "limit": 0.75}
        y = tail_reference(0, given["x"], NAMES.index(act), **function)["out"].to(dtype)
        y[..., 0] = 0.0 if act == "relu" else 0.5
        launch = {"activation": NAMES.index(act), "channels_last": channels_last, "x_is_output": True}
        found, _ = emulator.run_tail(y, order=1, dy=given["dy"], **launch, **function)
        below = {"linear": 1, "relu": 0, "lrelu": function["alpha"]}[act]
        slope = torch.where(y > 0, 1.0, torch.tensor(below, dtype=torch.float64)) * 1.5 * (y.abs() < 0.75)
        g = given["dy"].double() * slope
        close(found["out"], g, ROUNDING[dtype])
        close(found["sums"][2], g.sum(2), 10 * ROUNDING[compute_type(dtype)])


def test_tail_keeps_nan_and_infinity(emulator):
    x = torch.tensor([[[math.nan, math.inf, -math.inf, 0, -0.0, 1, -1, 5]]])
    for dtype in DTYPES:
        found, _ = emulator.run_tail(x.to(dtype), activation=NAMES.index("lrelu"), alpha=0.25, limit=2)
        assert torch.equal(found["out"].isnan(), x.isnan())
        close(found["out"][0, 0, 1:].double(), torch.tensor([2, -2, 0, 0, 1, -0.25, 2]).double(), ROUNDING[dtype])


# ---- upfirdn2d -----------------------------------------------------------------------------------------------


def gradient_of(f, padding, up, down, flip):
    """Settings of the gradient: up and down exchanged, the filter flipped, and the padding that goes with them."""
    return {
        "up": down,
        "down": up,
        "flip": not flip,
        "padding": (f.shape[1] - padding[0] - 1, f.shape[0] - padding[1] - 1),
    }


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@pytest.mark.parametrize("case", golden_cases("upfirdn2d")["cases"], ids=lambda c: f"{c['case']}-{c['filter']}")
def test_upfirdn2d_meets_golden_values_and_gradients(emulator, case):
    want = golden_arrays("upfirdn2d", f"case{case['case']}_")
    f = golden_filter(case)
    f = f.outer(f) if f.ndim == 1 else f
    padding = case["padding"] if isinstance(case["padding"], list) else [case["padding"]] * 4
    forward = {
        "up": pair(case["up"]),
        "down": pair(case["down"]),
        "padding": (padding[0], padding[2]),
        "flip": case["flip_filter"],
    }
    backward = gradient_of(f, forward["padding"], forward["up"], forward["down"], forward["flip"])
    for channels_last in False, True:
        common = {"f": f, "gain": case["gain"], "channels_last": channels_last}
        y, _ = emulator.run_upfirdn2d(want["x"], out_size=want["y"].shape[2:], **forward, **common)
        dx, _ = emulator.run_upfirdn2d(want["dy"], out_size=want["x"].shape[2:], **backward, **common)
        close(y, want["y"], 1e-5)
        close(dx, want["dx"], 1e-5)


def draw_filter_case(seed):
    random = np.random.RandomState(seed)
    taps = [(4, 4), (1, 1), (1, 12), (12, 1), (3, 5), (2, 7), (8, 8), (32, 32), (1, 32), (24, 1), (5, 2), (13, 13)]
    fh, fw = taps[seed % len(taps)]
    up, down = random.randint(1, 5, [2, 2]) if seed % 4 else [(2, 2), (1, 1)] if seed % 8 else [(1, 1), (2, 2)]
    h, w = (int(s) for s in random.randint(1, 41, 2))
    n, c = ((1, 1), (2, 3), (1, 33), (3, 8), (1, 5))[seed % 5]
    least = -9 if seed % 3 == 0 else -2
    before, after = random.randint(least, fw // 2 + 3, 2), random.randint(least, fh // 2 + 3, 2)
    padding = [int(s) for s in (before[0], after[0], before[1], after[1])]
    padding[0] += max(0, fw - w * int(up[0]) - padding[0] - padding[1])  # at least one output
    padding[2] += max(0, fh - h * int(up[1]) - padding[2] - padding[3])
    out_h = (h * up[1] + padding[2] + padding[3] - fh) // down[1] + 1
    out_w = (w * up[0] + padding[0] + padding[1] - fw) // down[0] + 1
    dtype = DTYPES[random.randint(4)]
    x = torch.from_numpy(random.randn(n, c, h, w)).to(dtype)
    f = torch.from_numpy(random.randn(fh, fw)).to(compute_type(dtype))
    return {
        "x": x,
        "f": f,
        "out_size": (int(out_h), int(out_w)),
        "up": tuple(map(int, up)),
        "down": tuple(map(int, down)),
        "padding": (padding[0], padding[2]),
        "flip": bool(random.randint(2)),
        "gain": float(random.uniform(0.5, 4)),
    }


@pytest.mark.parametrize("seed", range(60))
def test_upfirdn2d_meets_its_equation(emulator, seed):
    case = draw_filter_case(seed)
    expected = upfirdn2d_reference(**case)
    tolerance = ROUNDING[case["x"].dtype] * (4 if case["x"].dtype == torch.float32 else 1)
    for channels_last, offset in itertools.product([False, True], [0, 1]):
        found, _ = emulator.run_upfirdn2d(**case, channels_last=channels_last, offset=offset)
        close(found, expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("taps, up, down", [(4, 2, 1), (4, 1, 1), (4, 1, 2), (2, 1, 1), (8, 2, 1)])
def test_usual_filters_of_any_number_of_channels(emulator, taps, up, down, dtype):
    """These filters have their own kernels. With 16 bits, they take channels in pairs if possible."""
    # Without channels last, each channel is a picture of its own, so another number of channels shows nothing new.
    cases = [(c, True) for c in (1, 2, 6, 10, 18, 33, 34)] + [(c, False) for c in (1, 6)]
    if dtype == torch.bfloat16:  # the same kernels as float16
        cases = [(6, True), (33, True), (6, False)]
    for seed, (c, channels_last) in enumerate(cases):
        torch.manual_seed(seed)
        x, f = torch.randn(2, c, 11, 13).to(dtype), torch.randn(taps, taps)
        keywords = {"f": f, "up": (up, up), "down": (down, down), "padding": (2, 1), "flip": False, "gain": 1.5}
        keywords["out_size"] = tuple((size * up + 3 - taps) // down + 1 for size in x.shape[2:])
        expected = upfirdn2d_reference(x, **keywords)
        for offset in range(3):
            found, _ = emulator.run_upfirdn2d(x, **keywords, channels_last=channels_last, offset=offset)
            close(found, expected, ROUNDING[dtype] * 4)


def test_a_filter_too_large_is_refused(emulator):
    """Filters above 32×32 taps are refused. The public functions never pass them."""
    with pytest.raises(KernelError, match="32×32 taps"):
        emulator.run_upfirdn2d(
            torch.ones(1, 1, 6, 9), torch.ones(3020, 4), (756, 5), up=(1, 755), down=(2, 2), padding=(2, 1510)
        )


def test_upfirdn2d_of_nothing(emulator):
    for shape in (0, 3, 8, 8), (2, 0, 8, 8):
        found, _ = emulator.run_upfirdn2d(torch.zeros(shape), torch.ones(4, 4), (5, 5))
        assert found.shape == (*shape[:2], 5, 5)


# ---- Independence of the threads' order, and of 2^31 ---------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_the_order_of_threads_changes_nothing(emulator, channels_last):
    def results(**launch):
        launch["channels_last"] = channels_last
        for order, dtype in itertools.product(range(3), [torch.float32, torch.float16]):
            keywords = draw_tail(3, order, dtype, (1, 24, 600), "snibvw")
            yield from emulator.run_tail(order=order, activation=8, limit=1, **keywords, **launch)[0].values()
        for seed in 0, 4, 6, 7, 8:
            yield emulator.run_upfirdn2d(**draw_filter_case(seed), **launch)[0]

    forward, reverse, shuffled = range(3)
    expected = list(results(thread_order=forward))
    for launch in ({"thread_order": reverse}, {"thread_order": shuffled, "seed": 1}):
        for found, wanted in zip(results(**launch), expected, strict=True):
            assert torch.equal(found, wanted), launch


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_tail_beyond_two_to_the_31(emulator, channels_last):
    """Nearly all of the tensor is zeros, which take no memory. Only the last blocks have numbers."""
    random = torch.Generator().manual_seed(0)
    n, c, p = shape = (4200, 8, 256 * 256)
    total = math.prod(shape)
    assert total > 2**31
    last, bias = 1 << 16, torch.randn(c, generator=random)
    x = torch.randn(1, c, last // c, generator=random).half() if channels_last else torch.randn(1, 1, last).half()
    found, _ = emulator.run_tail(
        x,
        activation=NAMES.index("lrelu"),
        bias=bias,
        shape=shape,
        channels_last=channels_last,
        first_block=-64,
        rooms={"x": 2 * total, "out": 2 * total},
    )
    expected = F.leaky_relu(x.double() + (bias[:, None] if channels_last else bias[-1]).double(), 0.2)
    close(found["out"][..., -512:], expected[..., -512:], 2e-3)


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "channels_last"])
def test_upfirdn2d_beyond_two_to_the_31(emulator, channels_last):
    random = torch.Generator().manual_seed(0)
    n, c, h, w = shape = (4200, 8, 256, 256)
    assert math.prod(shape) > 2**31
    pictures = (1, c, 256, 256) if channels_last else (1, 1, 256, 256)  # the last ones
    x = torch.randn(pictures, generator=random).half()
    case = {"f": torch.rand(4, 4), "out_size": (256, 256), "up": (1, 1), "down": (1, 1), "padding": (2, 2)}
    found, _ = emulator.run_upfirdn2d(
        x,
        **case,
        shape=shape,
        channels_last=channels_last,
        first_block=-256,
        rooms={"x": 2 * math.prod(shape), "y": 2 * math.prod(shape)},
    )
    expected = upfirdn2d_reference(x, **case, flip=False, gain=1)
    close(found[:, :, -8:, -8:], expected[:, :, -8:, -8:], 2e-3)


@pytest.mark.parametrize("shape", [(70000, 1, 1), (1, 70000, 1), (70000, 1, 3), (1, 70000, 3), (1, 1, 70000)])
def test_no_size_exceeds_what_a_grid_may_have(emulator, shape):
    """A grid has at most 65535 blocks along y and z. If the last blocks run, all would be launched."""
    for channels_last in False, True:
        launch = {"channels_last": channels_last, "first_block": -4}
        x = draw_tail(0, 0, torch.float32, shape, "")["x"]
        found, _ = emulator.run_tail(x, activation=NAMES.index("relu"), **launch)
        assert found["out"].flatten()[-1] == x.flatten()[-1].clamp(min=0)
        found, _ = emulator.run_upfirdn2d(x[:, :, None], torch.ones(1, 1), (1, shape[2]), **launch)
        assert found.flatten()[-1] == x.flatten()[-1]


# ---- Traffic -------------------------------------------------------------------------------------------------

LARGE = [(16, 64, 64), (4, 64, 128), (2, 32, 256)]  # samples, channels, width
TRAFFIC = list(itertools.product(LARGE, [torch.float32, torch.float16], [False, True]))
TRAFFIC_IDS = [f"{n}x{c}x{w}x{w}-{str(d)[6:]}-{'last' if last else 'planes'}" for (n, c, w), d, last in TRAFFIC]


def sectors(*tensors) -> int:
    return sum(t.numel() * t.element_size() // SECTOR for t in tensors)


def check_coalesced(traffic, names) -> str:
    """Check that a warp's requests touch few sectors more than their bytes fill. Returns how many they touch."""
    counts = {name: traffic.arrays[name] for name in names}
    for name, count in counts.items():
        assert count["sectors"] * SECTOR <= 1.3 * count["bytes"], f"{name}: {count}"
    return ", ".join(f"{name} {count['sectors'] / count['requests']:.1f}" for name, count in counts.items())


@pytest.mark.slow
@pytest.mark.parametrize("size, dtype, channels_last", TRAFFIC, ids=TRAFFIC_IDS)
def test_tail_moves_little_more_than_it_must(fast, record_property, size, dtype, channels_last):
    n, c, width = size
    for operands, order in itertools.product(["b", "snib"], [0, 1]):
        keywords = draw_tail(0, order, dtype, (n, c, width * width), operands, shared_noise=True)
        found, traffic = fast.run_tail(
            order=order, activation=2, gain=2**0.5, limit=256, channels_last=channels_last, block_stride=8, **keywords
        )
        least = sectors(keywords["x"], found["out"], *(keywords[k] for k in ("noise", "dy") if k in keywords))
        least += sectors(found["sums"]) if order else 0
        written = ~found["out"][-1:].isnan()
        last = {k: t if k in ("noise", "strength", "bias") else t[-1:] for k, t in keywords.items()}
        expected = tail_reference(order, act=2, gain=2**0.5, limit=256, **last)["out"]
        assert written.any()
        close(found["out"][-1:][written], expected[written], ROUNDING[dtype])
        share = traffic.arrays["out"]["bytes"] / SECTOR / sectors(found["out"])  # the share that every 8th block writes
        ratio = traffic.sectors() / (least * share)
        assert ratio <= 1.05
        requests = check_coalesced(traffic, [k for k in ("x", "dy", "out") if k in traffic.arrays])
        record_property(f"{operands} order {order}", f"{ratio:.4f} of the least; sectors a request: {requests}")


@pytest.mark.slow
@pytest.mark.parametrize("size, dtype, channels_last", TRAFFIC, ids=TRAFFIC_IDS)
def test_upfirdn2d_moves_little_more_than_it_must(fast, record_property, size, dtype, channels_last):
    n, c, width = size
    f = torch.rand(4, 4)
    grow = {"up": (2, 2), "down": (1, 1), "padding": (2, 2), "flip": False, "gain": 4}
    shrink = {"up": (1, 1), "down": (2, 2), "padding": (1, 1), "flip": False, "gain": 1}
    for name, large_in, case in [
        ("up", False, grow),
        ("gradient of up", True, gradient_of(f, (2, 2), (2, 2), (1, 1), False)),
        ("down", True, shrink),
        ("gradient of down", False, gradient_of(f, (1, 1), (1, 1), (2, 2), False)),
    ]:
        before, after = (width, width // 2) if large_in else (width // 2, width)
        x = torch.randn(n, c, before, before).to(dtype)
        # Every 7th block runs. Groups of channels follow each other, so all of them are covered.
        y, traffic = fast.run_upfirdn2d(x, f, (after, after), channels_last=channels_last, block_stride=7, **case)
        written, expected = ~y.isnan(), upfirdn2d_reference(x[-1:], f, (after, after), **case)
        assert written[-1:].any()
        close(y[-1:][written[-1:]], expected[written[-1:]], ROUNDING[dtype])
        ratio = traffic.sectors() / (
            sectors(x, y) * (written.sum() / y.numel()).item()
        )  # relative to the share of these blocks
        assert ratio <= 1.2
        requests = check_coalesced(traffic, ["x", "y"])
        record_property(name, f"{ratio:.4f} of the least; sectors a request: {requests}")


# ---- Planted bugs --------------------------------------------------------------------------------------------

OUTSIDE, MISALIGNED, WRONG, POISON = "outside of all arrays", "misaligned address", "not close", "use-after-poison"
BUGS: list[
    tuple[str, str, str, int | None, str]
] = [  # (source, text, its replacement, which of its occurrences or all, the expected failure)
    ("tail.cu", "|| channel >= a.c) break;", ") break;", None, OUTSIDE),
    ("tail.cu", "aligned<typename E::Group>(pointer)", "pointer != &tail", None, MISALIGNED),
    ("tail.cu", "std::abs(y) <= a.limit", "true", None, WRONG),
    ("upfirdn2d.cu", "if (output + j * a.rows.up < rows.outputs) write", "write", None, OUTSIDE),
    ("upfirdn2d.cu", "aligned<typename E::Vector>(filter.x)", "filter.x != stream", None, MISALIGNED),
    ("upfirdn2d.cu", "&& aligned<ushort2>(filter.y)", "", None, MISALIGNED),
    ("upfirdn2d.cu", "depth % 2 == 0", "depth > 1", None, MISALIGNED),
    ("upfirdn2d.cu", ", bytes, stream", ", bytes / 2, stream", None, POISON),
    ("upfirdn2d.cu", "row >= 0 &&", "", None, OUTSIDE),
    ("upfirdn2d.cu", "- axis.pad", "- axis.pad - 1", None, WRONG),
]
for path in KERNELS:
    BUGS += [(path.name, "__syncthreads();", "", k, WRONG) for k in range(path.read_text().count("__syncthreads();"))]


@pytest.mark.slow
@pytest.mark.parametrize("name, text, replacement, place, outcome", BUGS, ids=[f"{b[0]}-{b[1]}-{b[3]}" for b in BUGS])
def test_planted_bugs_are_found(emulator, fast, tmp_path, name, text, replacement, place, outcome):
    sources, objects = tmp_path / "sources", tmp_path / "objects"
    shutil.copytree(SOURCES, sources)
    parts = (sources / "cuda" / name).read_text().split(text)
    assert len(parts) > 1, f"{name} no longer has {text}"
    glue = [replacement if place in (None, k) else text for k in range(len(parts) - 1)] + [""]
    (sources / "cuda" / name).write_text("".join(itertools.chain(*zip(parts, glue, strict=True))))
    like, flags = (emulator, CHECKED) if outcome == POISON else (fast, PLAIN)
    shutil.copytree(like.folder, objects, ignore=lambda *_: ["program", f"{Path(name).stem}.o"])
    planted = Emulator(objects, sources, flags)
    with contextlib.closing(planted), pytest.raises((KernelError, AssertionError), match=outcome):
        for channels_last, offset, thread_order in itertools.product([False, True], [0, 1], [0, 1]):
            launch = {"channels_last": channels_last, "offset": offset, "thread_order": thread_order}
            if name == "tail.cu":
                for order, shape in itertools.product([1, 2], [(2, 40, 130), (1, 12, 36)]):
                    keywords = draw_tail(0, order, torch.float32, shape, "snibvw")
                    check_tail(planted, order, keywords, NAMES.index("swish"), launch, limit=1)
            else:
                case = {"f": torch.rand(4, 4), "up": (1, 1), "down": (1, 1), "flip": True}
                case |= {"out_size": (21, 21), "padding": (2, 2), "gain": 1}
                for dtype, channels in (torch.float32, 8), (torch.float16, 6), (torch.float16, 9):
                    x = torch.randn(1, channels, 20, 20).to(dtype)
                    found, _ = planted.run_upfirdn2d(x, **case, **launch)
                    close(found, upfirdn2d_reference(x, **case), 5 * ROUNDING[dtype])


# ---- The emulator itself -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def selftest(compiler, tmp_path_factory):
    program = build([HERE / "selftest.cpp"], CHECKED, tmp_path_factory.mktemp("selftest"))

    def run(name) -> bytes:
        done = subprocess.run([program, name], capture_output=True, env=ENVIRONMENT)
        if done.returncode:
            raise KernelError(done.stderr.decode())
        return done.stdout

    return run


def counts(sectors, requests, size) -> str:
    return f"sectors {sectors} requests {requests} bytes {size}"


@pytest.mark.parametrize(
    "name, x, y",
    [
        ("coalesced", (8, 2, 256), (8, 2, 256)),
        ("strided", (64, 2, 256), (8, 2, 256)),  # a sector a lane
        ("shifted", (10, 2, 256), (8, 2, 256)),  # one sector more a warp
        ("vector", (32, 4, 1024), (32, 4, 1024)),
        ("loop", (15, 6, 480), (15, 6, 480)),  # three requests a warp: 64 threads cover 40 in one round, 32 in two
        ("broadcast", (8, 2, 256), (8, 2, 256)),
    ],
)
def test_emulator_counts_traffic_exactly(selftest, name, x, y):
    lines = selftest(name).decode().splitlines()
    assert lines[:2] == [f"x {counts(*x)}", f"y {counts(*y)}"]
    if name == "broadcast":  # two sectors a block, however often they are read
        assert lines[2] == f"b {counts(4, 4, 512)}"


@pytest.mark.parametrize(
    "name, message",
    [
        ("misaligned", r"block \(0, 0, 0\): thread 0 reads 16 bytes at a misaligned address"),
        ("out of bounds", r"thread 61 reads 4 bytes outside of all arrays, at byte 4152 of x, which has 4096"),
        ("write to input", r"thread 0 writes 4 bytes to the input x"),
        ("direct", r"AddressSanitizer: use-after-poison"),
        ("overrun", r"AddressSanitizer: use-after-poison"),
        ("divergent_barrier", r"threads 0 to 39 wait at the barrier in .*\n.*threads 40 to 63 have finished"),
        ("divergent_barriers", r"threads 0 to 31 wait at the barrier in .*\n.*threads 32 to 63 wait at the barrier in"),
        ("divergent_shuffle", r"threads 0 to 4 wait at the shuffle in .*\n.*threads 5 to 5 have finished"),
    ],
)
def test_emulator_refuses(selftest, name, message):
    with pytest.raises(KernelError, match=message):
        selftest(name)


def test_emulator_refuses_too_much_shared_memory(selftest):
    assert selftest("too much shared") == b"invalid argument"


def test_emulator_shows_shared_memory_that_nobody_wrote(selftest):
    assert np.isnan(np.frombuffer(selftest("poison"), np.float32)).all()


def test_emulator_synchronizes_at_barriers_only(selftest):
    expected = np.arange(63, -1, -1, dtype=np.float32)
    for name in "turn", "turn_reversed":
        assert np.array_equal(np.frombuffer(selftest(name), np.float32), expected)
    assert np.isnan(np.frombuffer(selftest("race"), np.float32)).any()


def test_emulator_shuffles(selftest):
    found = np.frombuffer(selftest("shuffles"), np.float32).reshape(64, 5).T
    thread = np.arange(64)
    lane = thread % 32
    assert np.array_equal(found[0], np.where(lane < 29, thread + 3, thread))
    assert np.array_equal(found[1], np.where(lane % 8 < 5, thread + 3, thread))
    assert np.array_equal(found[2], np.where((lane ^ 9) < (lane | 7) + 1, thread ^ 9, thread))
    assert np.array_equal(found[3], np.repeat([thread[:32].sum(), thread[32:].sum()], 32))
    assert np.array_equal(found[4], np.where(lane < 16, thread ^ 1, thread ^ 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_emulator_converts_every_bit_pattern(selftest, dtype):
    raw = selftest("half" if dtype == torch.float16 else "bfloat16")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(dtype).float()
    floats = torch.frombuffer(bytearray(raw[: 4 << 16]), dtype=torch.float32)
    torch.testing.assert_close(floats, expected, rtol=0, atol=0, equal_nan=True)
    endings = np.array([0x0000, 0x1000, 0x7FFF, 0x8000, 0x8001, 0xF000], np.uint32)
    given = torch.from_numpy((patterns.astype(np.uint32) << 16 | endings[:, None]).ravel().view(np.float32))
    found = torch.frombuffer(bytearray(raw[4 << 16 :]), dtype=dtype).float()
    torch.testing.assert_close(found, given.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit()[~given.isnan()], given.signbit()[~given.isnan()])


# ---- The compiler that counts, and the text ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("source", KERNELS, ids=lambda s: s.name)
def test_nvcc_keeps_every_kernel_in_registers(source, tmp_path):
    home = next(cuda_homes(), None)
    if home is None:
        pytest.skip("no nvcc here: neither compiled for GPUs nor are registers counted")
    command = [home / "bin" / "nvcc", "-O3", "-std=c++17", "-Xptxas", "-v", "-c", source, "-o", tmp_path / "kernels.o"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert "warning" not in report, report
    compiled = re.findall(r"Compiling entry function '\S+' for 'sm_(\d+)'", report)
    assert set(map(int, compiled)) == set(ARCHITECTURES)
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(used) >= len(compiled)
    assert set(used) == {("0", "0", "0")}, report


@pytest.mark.parametrize("source", [*KERNELS, SOURCES / "cuda" / "common.h"], ids=lambda s: s.name)
def test_kernels_have_one_text_for_all_compilers(source):
    text = source.read_text()
    assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", text)
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        inside = depth > 0 and not re.match(r"\s*namespace", line)
        assert not (line.startswith("#if") and inside), f"{source.name}:{number}: {line}"
        if not re.match(r"(inline )?namespace|}  // namespace", line):
            depth += line.count("{") - line.count("}")
