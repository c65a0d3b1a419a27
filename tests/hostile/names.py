"""Values and names for hostile JSON."""

from typing import Any

from forge import INF, NAN

HOSTILE_VALUES: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 10**400, -(10**18), 16, 65536, 10**9),
    *(0.5, -0.0, 1e308, NAN, INF, -INF),
    *("", "x", "../x", "/x", "x" * 200_000, "a\0b", "a\nb", "\x1b[2J", "\ud800", "\u202e"),
    *([], [[]], [None], [0] * 50_000, ["x"] * 5, [1e999]),
    *({}, {"": 0}, {"a": {"b": []}}),
]
BAD_NAMES = [
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "/tmp/x",
    "..",
    ".",
    "C:\\x",
    "..\\x",
    "\\\\server\\x",
    "a/../../x",
    "~root/x",
    "file:///etc/passwd",
    "slices/00000/../../../x.npy",
    "/slices/00000/00000000.npy",
    "slices//00000000.npy",
    "x\0y",
    "x\ny",
    "\x1b]0;x\x07",
    "\u202ex",
    ".hidden",
    " x",
    "x" * 300,
    "slices/00000/00000000.npy/",
    "./slices/00000/00000000.npy",
]
