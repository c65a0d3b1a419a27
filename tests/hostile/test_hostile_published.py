"""Published checkpoints that are hostile or damaged: refused with a reason, in little memory, with nothing executed."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dnnlib.errors import UserError
from helpers.goldens import GOLDEN
from helpers.published import (
    ORDERED,
    PERSISTENT,
    STORAGE,
    TENSOR,
    Called,
    Name,
    checkpoint_as_saved,
    dumps,
    object_as_saved,
    storage_bytes,
    tensor_as_saved,
)
from runner import Cases, memory, require
from training.config import GeneratorConfig
from training.networks.generator import Generator
from training.published.networks import read_published

CONSTANT = 64 << 20  # bytes that reading may take beside twice the file


class Bench:
    """Good checkpoints, and what must become of spoiled ones."""

    def __init__(self, folder: Path) -> None:
        self.n, self.folder, self.marker = 0, folder, folder / "executed"
        self.golden = (GOLDEN / "published_snapshot.pkl").read_bytes()
        config = GeneratorConfig(8, 1, 0, z_dim=4, w_dim=4, mapping_layers=1, channel_base=32, channel_max=4)
        self.networks = {"G_ema": Generator(config)}
        self.places = [at for _, _, at in pickletools.genops(self.golden)]  # of opcodes
        self.command = f"touch {self.marker}"
        read_published(GOLDEN / "published_snapshot.pkl")  # torch imports more of itself when a network is first built
        require(self.read(self.golden) is None and self.read(self.saved()) is None, "a good file is refused")

    def saved(self, *arguments: Any, **more: Any) -> bytes:
        """A checkpoint of a small generator. more: values beside it."""
        return checkpoint_as_saved(self.networks, *arguments, **more)

    def read(self, content: bytes) -> str | None:
        """Read a file. Returns the message of a refusal. Nothing may be executed, and memory is limited."""
        path = self.folder / "hostile.pkl"
        path.write_bytes(content)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, message = memory("VmHWM"), None
        try:
            read_published(path)
        except UserError as error:
            message = str(error)
            require(str(path) in message and len(message) <= 500, "not a message for a user:", message[:600])
            require(message.isprintable(), "not a line for a terminal:", repr(message[:600]))
        took = memory("VmHWM") - before
        require(took <= 2 * len(content) + CONSTANT, f"took {took >> 20} MiB for {len(content) >> 10} KiB")
        require(not self.marker.exists(), "code in the file was executed")
        return message

    def refuse(self, content: bytes, *words: str) -> None:
        """Read a file, which must be refused with these words."""
        message = self.read(content)
        require(message is not None, "was read, but must be refused")
        require(all(word in str(message) for word in words), f"expected {words}, found", message)


CASES = Cases(__file__, Bench)

# --- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("builtins", "set.__class__"),
    ("subprocess", "Popen"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.jit", "load"),
    ("torch.storage", "_load_from_bytes "),
    ("torch.storage", " _load_from_bytes"),
    ("torch.storage ", "_load_from_bytes"),
    ("torch", "storage._load_from_bytes"),
    ("torch.storage._load_from_bytes", ""),
    ("", "torch.storage._load_from_bytes"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("torch.storage", "_load_from_byteѕ"),  # a Cyrillic letter
    ("torch.storage", "_load_from_bytes\x1b[2J"),
    ("torch._utils", "_rebuild_tensor_v2x"),
    ("torch._utils", "_rebuild_tensor"),
    ("Torch._utils", "_rebuild_tensor_v2"),
    ("torch_utils.persistence", "_reconstruct_persistent_object"),
    ("torch_utils.persistence", "import_hook"),
    ("torch_utils.persistence.x", "_reconstruct_persistent_obj"),
    ("dnnlib.util", "call_func_by_name"),
    ("numpy.core.multiarray", "scalar2"),
    ("numpy", "load"),
    ("collections", "namedtuple"),
    ("copyreg", "_reconstructor"),
    ("functools", "partial"),
    ("_codecs", "encode"),
    ("x" * 900, "y" * 900),
]


def shown(module: str, name: str) -> str:
    """A part of the name that a message must contain."""
    return f"{module}.{name}"[:15]


@CASES.way("name", 2 * len(NAMES))
def it_is_called_beside_the_networks(bench, random, k):
    module, name = NAMES[k // 2]
    hostile = Called(Name(module, name), bench.command)
    bench.refuse(bench.saved(protocol=3 + k % 2, hostile=hostile), "asks for", shown(module, name), "no network needs")


@CASES.way("name", len(NAMES))
def it_is_called_first(bench, random, k):
    """The whole file is the call: there are no networks to be found later."""
    bench.refuse(dumps(Called(Name(*NAMES[k]), bench.command), 3 + k % 3), "asks for", shown(*NAMES[k]))


@CASES.way("name", len(NAMES))
def it_stands_within_a_tensor(bench, random, k):
    """One of the five pickles in the bytes of a storage asks for it."""
    place, pieces = k % 5, inner_pickles(torch.zeros(3))
    pieces[place] = dumps(Called(Name(*NAMES[k]), bench.command), 2)
    tensor = Called(TENSOR, Called(STORAGE, b"".join(pieces)), 0, (3,), (1,), False, Called(ORDERED))
    bench.refuse(bench.saved(tensor=tensor), "asks for", shown(*NAMES[k]), "no network needs")


def inner_pickles(tensor: torch.Tensor) -> list[bytes]:
    """The five pickles of a storage, and its numbers."""
    content, pieces = storage_bytes(tensor), []
    for _ in range(5):
        *_, (_, _, stop) = pickletools.genops(content)
        pieces.append(content[: stop + 1])
        content = content[stop + 1 :]
    return [*pieces, content]


@CASES.way("name", 6)
def it_is_admitted_elsewhere(bench, random, k):
    """The types of storages are admitted within storages only, and the other names only outside."""
    if k < 3:
        hostile = [
            Name("torch", "FloatStorage"),
            Called(Name("torch", "FloatStorage"), 3),
            Name("torch", "LongStorage"),
        ]
        bench.refuse(bench.saved(hostile=hostile[k]), "asks for torch.", "Storage")
        return
    inner = [Called(STORAGE, storage_bytes(torch.zeros(3))), Called(ORDERED), Called(PERSISTENT, {})][k - 3]
    tensor = Called(STORAGE, dumps(inner, 2 if k > 3 else 3))
    bench.refuse(bench.saved(tensor=tensor), "asks for", inner.function.name)


@CASES.way("name", 3)
def it_opens_a_pickle_within(bench, random, k):
    """Plain torch.load, pickle.loads: bytes within that would be executed in their turn."""
    trap = pickle.dumps(Trap(bench.command))
    names = [("torch", "load"), ("pickle", "loads"), ("torch.storage", "_load_from_bytes")]
    words = ["asks for torch.load", "asks for pickle.loads", "asks for posix.system"]
    bench.refuse(bench.saved(hostile=Called(Name(*names[k]), trap)), words[k])


class Trap:
    """Python's own unpickler executes a command when it reads this."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@CASES.way("name", 4)
def it_is_of_another_stylegan(bench, random, k):
    if k < 2:
        tf = Called(Name("dnnlib.tflib.network", "Network"), state={"static_kwargs": {}})
        bench.refuse(
            dumps((tf, tf, tf), 3) if k else dumps({"G": tf}, 3), "TensorFlow", "convert it first", "legacy.py"
        )
        return

    def third(name: str, state: dict) -> None:
        if name == "synthesis":
            array = Called(Name("numpy.core.multiarray", "_reconstruct"), Name("numpy", "ndarray"), (0,), b"b")
            array.state = (1, (2,), Called(Name("numpy", "dtype"), "i8", False, True), False, bytes(16))
            state["_modules"]["input"] = object_as_saved("SynthesisInput", {"size": array})
        if name.endswith("conv1"):
            state["_buffers"]["magnitude_ema"] = tensor_as_saved(torch.ones([]))

    def only_averages(name: str, state: dict) -> None:
        third("" if name == "synthesis" else name, state)

    bench.refuse(bench.saved(third if k == 2 else only_averages), "StyleGAN3", "another network")


# --- tensors ----------------------------------------------------------------------------------------------------------

LAYOUTS: list[tuple[Any, Any, Any]] = [  # offset, shape and strides in a storage of 6 numbers
    (0, (7,), (1,)),
    (1, (6,), (1,)),
    (7, (1,), (1,)),
    (1 << 62, (1,), (1,)),
    (0, (2, 3), (3, 2)),
    (0, (2, 3), (4, 1)),
    (0, (6,), (0,)),
    (0, (1 << 40, 1 << 40), (0, 0)),
    (0, (1 << 70,), (0,)),
    (0, (0,), (1,)),
    (0, (0, 1 << 39), (1 << 39, 1)),
    (-1, (6,), (1,)),
    (0, (-6,), (-1,)),
    (0, (6,), (-1,)),
    (0, (6,), (1, 1)),
    (0, (6, 1), (1,)),
    (0, (1,) * 9, (1,) * 9),
    (0, [6], (1,)),
    (0, (6.0,), (1,)),
    (True, (6,), (1,)),
    (0, (True,), (1,)),
    (0, 6, 1),
    (None, None, None),
    (0, ("6",), ("1",)),
]


@CASES.way("tensor", len(LAYOUTS))
def it_lies_beyond_its_storage(bench, random, k):
    tensor = Called(TENSOR, Called(STORAGE, storage_bytes(torch.zeros(6))), *LAYOUTS[k], False, Called(ORDERED))
    bench.refuse(bench.saved(tensor=tensor), "tensor")


def replaced(place: int, change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], None]:
    def replace(pieces: list[bytes]) -> None:
        old = pieces[place]
        pieces[place] = change(old)
        require(pieces[place] != old, "nothing is changed")

    return replace


STORAGES: list[tuple[Callable[[list[bytes]], Any], str]] = [  # of a storage of 6 numbers
    (replaced(5, lambda b: b[:-1]), "in 23 bytes"),
    (replaced(5, lambda b: b + b"x"), "in 25 bytes"),
    (replaced(5, lambda b: struct.pack("<q", 7) + b[8:]), "a storage of 6 numbers"),
    (replaced(5, lambda b: struct.pack("<q", -1) + b[8:]), "a storage of 6 numbers"),
    (replaced(5, lambda b: b[:7]), "cut off"),
    (replaced(3, lambda b: b.replace(b"K\x06", b"K\x07")), "a storage of 7 numbers"),
    (replaced(3, lambda b: b.replace(b"K\x06", b"J\xff\xff\xff\xff")), "damaged"),
    (replaced(3, lambda b: b.replace(b"K\x06", b"\x8a\x08" + b"\xff" * 7 + b"\x7f")), "9223372036854775807 numbers"),
    (replaced(3, lambda b: b.replace(b"FloatStorage", b"HalfStorage")), "2 bytes each in 24"),
    (replaced(3, lambda b: b.replace(b"FloatStorage", b"UntypedStorage")), "asks for torch.UntypedStorage"),
    (replaced(3, lambda b: b.replace(b"X\x07\0\0\0storage", b"X\x07\0\0\0storagf")), "persistent id"),
    (replaced(3, lambda b: b[:-2] + b"."), "one storage"),
    (replaced(3, lambda b: b[:-1] + b"Q."), "a persistent id that is no storage"),
    (replaced(0, lambda b: dumps(7, 2)), "another form"),
    (replaced(1, lambda b: dumps(1002, 2)), "another form"),
    (replaced(2, lambda b: dumps({"little_endian": False}, 2)), "little-endian"),
    (replaced(2, lambda b: dumps([], 2)), "little-endian"),
    (replaced(4, lambda b: dumps([], 2)), "one storage"),
    (replaced(4, lambda b: dumps(["other"], 2)), "one storage"),
    (replaced(4, lambda b: dumps(["a", "b"], 2)), "one storage"),
    (lambda pieces: pieces.__setitem__(slice(None), [b"PK\x03\x04" + bytes(50)]), "protocol"),
    (lambda pieces: pieces.clear(), "cut off"),
]


@CASES.way("tensor", len(STORAGES))
def its_storage_is_damaged(bench, random, k):
    change, words = STORAGES[k]
    pieces = inner_pickles(torch.zeros(6))
    change(pieces)
    tensor = Called(TENSOR, Called(STORAGE, b"".join(pieces)), 0, (6,), (1,), False, Called(ORDERED))
    bench.refuse(bench.saved(tensor=tensor), words)


@CASES.way("tensor", 5)
def it_is_another_than_the_network_has(bench, random, k):
    spoiled = [
        torch.zeros(4, 3, 4),
        torch.zeros(4, 4, 4).double(),
        torch.full((4, 4, 4), torch.nan),
        torch.full((4, 4, 4), torch.inf),
        torch.eye(4).repeat(4, 1, 1).half(),
    ]

    def change(name: str, state: dict) -> None:
        if name == "synthesis.b4":
            state["_parameters"]["const"] = tensor_as_saved(spoiled[k])

    bench.refuse(bench.saved(change), "G_ema.synthesis.b4.const", ("the network that it", "not finite")[k in (2, 3)])


# --- shapes of values -------------------------------------------------------------------------------------------------


def nested(levels: int, make: Callable[[Any], Any]) -> Any:
    value: Any = None
    for _ in range(levels):
        value = make(value)
    return value


CONTAINERS: list[Callable[[Any], Any]] = [
    lambda inner: [inner],
    lambda inner: (inner,),
    lambda inner: (1, 2, 3, inner),
    lambda inner: {"a": inner},
    lambda inner: object_as_saved("Generator", {"_modules": {"synthesis": inner}}),
]


@CASES.way("nesting", 3 * len(CONTAINERS))
def it_is_too_deep(bench, random, k):
    """The dictionary of the networks is the first of 100 levels."""
    levels = [100, 101, 150][k // 5]
    if k % 5 == 4:
        levels = levels // 3 + 1  # an object has the levels of itself, its state and its parts
    sys.setrecursionlimit(20_000)
    bench.refuse(bench.saved(hostile=nested(levels, CONTAINERS[k % 5])), "nested more than 100 levels")


@CASES.way("nesting", len(CONTAINERS))
def it_is_just_not_too_deep(bench, random, k):
    levels = 30 if k == 4 else 99
    require(bench.read(bench.saved(hostile=nested(levels, CONTAINERS[k]))) is None, "was refused")


@CASES.way("nesting", 3)
def its_parts_multiply(bench, random, k):
    """Each part holds the next one twice, or a part holds one very often."""
    leaf = object_as_saved("Generator", {"_parameters": {f"p{n}": None for n in range(1000)}})
    double = nested(
        30, lambda inner: object_as_saved("Generator", {"_modules": {"a": inner or leaf, "b": inner or leaf}})
    )
    wide = object_as_saved("Generator", {"_modules": {f"m{n}": leaf for n in range(20_000)}})
    wider = object_as_saved("Generator", {"_modules": {f"m{n}": wide for n in range(90)}})

    def change(name: str, state: dict) -> None:
        if name == "":
            state["_modules"]["more"] = (double, wide, wider)[k]

    bench.refuse(bench.saved(change), "more than 10000 parts")


def u8(number: int) -> bytes:
    return struct.pack("<Q", number)


LONG = b"X" + struct.pack("<I", 2000) + b"x" * 2000
EMOJI = b"X" + struct.pack("<I", 904) + b"x" * 900 + "😀".encode()
READ = "holds no network G_ema"  # the refusal of a file whose values are all right, but are no networks
RAW: list[tuple[bytes, str]] = [  # opcodes of a value in a dictionary; words of the refusal
    (b"N", READ),
    (b"]\x94h\x00a", "contains itself"),
    (b"}\x94\x8c\x01ah\x00s", "contains itself"),
    (b"]\x94(]\x94(h\x00eh\x01e", "contains itself"),
    (b"]\x94h\x00\x85\x94a", "contains itself"),
    (b"(]\x94" + b"".join(b"h%c" % n * 2 + b"\x86\x94" for n in range(90)) + b"t", READ),
    (b"(]\x94" + b"".join(b"h%c" % n * 2 + b"\x86\x94" for n in range(110)) + b"t", "nested more than 100"),
    (b"(" * 200, "nested more than 100"),
    (b"]" * 200_000, ""),
    (b"N" * 400_000, "more than 300000 opcodes"),
    (b"}\x94" * 200_000, "more than 300000 opcodes"),
    (b"}\x94\x8c\x01aNs" * 90_000, "more than 300000 opcodes"),
    (b"N" + b"".join(b"r" + struct.pack("<I", n << 8) for n in range(100_000)), READ),
    (EMOJI * 10_000, "bytes of names"),
    (LONG * 5000, "a key without a value"),
    (b"\x8e" + u8(1 << 63), "cut off"),
    (b"\x8e" + u8(1 << 40), "cut off"),
    (b"\x8d" + u8((1 << 64) - 1), "cut off"),
    (b"B\xff\xff\xff\xff", "cut off"),
    (b"X\xff\xff\xff\xff", "cut off"),
    (b"C\xff", "cut off"),
    (b"\x8c\xff", "cut off"),
    (b"\x8a\x09", "cut off"),
    (b"\x8a\xff" + b"\x7f" * 255, "a number of 255 bytes"),
    (b"\x8a\x0a" + b"\x7f" * 10, READ),
    (b"\x95" + b"\xff" * 8, "cut off"),
    (b"\x95" + u8(0) + b"N", READ),
    (b"\x8c\x01\xff", "not UTF-8"),
    (b"\x8c\x03\xed\xa0\x80", "not UTF-8"),
    (b"c" + b"x" * 2000, "a name without an end"),
    (b"cos", "a name without an end"),
    (b"c\xff\xff\nsystem\n", "not UTF-8"),
    (b"K\x01K\x02\x93", "a name that is no text"),
    (LONG + LONG + b"\x93", "a name that is no text"),
    (b"}K\x01K\x02s", "expected a name as key, found 1"),
    (b"}NK\x02s", "expected a name as key, found None"),
    (b"})K\x02s", "expected a name as key, found ()"),
    (b"}]K\x02s", "expected a name as key, found []"),
    (b"}" + LONG + b"Ns", "expected a name as key, found a text of 2000 bytes"),
    (b"NN", "a key without a value"),
    (b"]NNs", "expected a dict"),
    (b"}Na", "expected a list"),
    (b"K\x01)R", "a call of 1"),
    (b"ccollections\nOrderedDict\n]R", "a call of collections.OrderedDict"),
    (b"ccollections\nOrderedDict\nN\x85R", "a dictionary of another form"),
    (b"cbuiltins\nset\nN\x85R", "a set of another form"),
    (b"cnumpy\nndarray\n)R", "a call of numpy.ndarray"),
    (b"cnumpy\nndarray\n)\x81", "a call of numpy.ndarray"),
    (b"cnumpy\ndtype\n\x8c\x02O8\x85R", "of a number"),
    (b"cnumpy\ndtype\n)R", "of a number"),
    (b"cnumpy\ndtype\n\x8c\x02f8\x85R(K\x03\x8c\x01>tb", "little-endian"),
    (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02f8\x85RC\x01x\x86R", "a number of another size"),
    (b"cnumpy.core.multiarray\nscalar\n)R", "a number of another form"),
    (b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n)R", "an object without class and state"),
    (b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R", "an object without class and state"),
    (b"ctorch.storage\n_load_from_bytes\nN\x85R", "a storage that is not bytes"),
    (b"ctorch.storage\n_load_from_bytes\n)R", "a storage that is not bytes"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "a tensor of another form"),
    (b"ctorch._utils\n_rebuild_parameter\nN\x89N\x87R", "a parameter that is no tensor"),
    (b"]K\x01b", "with a state"),
    (b"NNb", READ),
    (b"NQ", "a persistent id"),
    (b"h\x05", "number 5 of the memo"),
    (b"j\xff\xff\xff\xff", "number 4294967295 of the memo"),
    (b"(\x94", "a value is missing"),
    (b"(\x86", "a value is missing"),
    (b"(R", "a value is missing"),
    (b"(b", "a value is missing"),
    (b"(\x93", "a value is missing"),
    (b"(a", "a value is missing"),
    (b"(tt" + b"t" * 5, "a mark is missing"),
    (b".", "before all values are in their places"),
    *((b"(" + code, f"the opcode {code[0]:#04x}") for code in (b"ios\nsystem\n", b"o", b"\x92", b"0", b"1", b"2")),
    *((code, f"the opcode {code[0]:#04x}") for code in (b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x01\x01\x01")),
    *(
        (code, f"the opcode {code[0]:#04x}")
        for code in (b"I1\n", b"S'x'\n", b"P1\n", b"\x96", b"\x97", b"\x80\x04", b"\xff")
    ),
]


@CASES.way("opcodes", len(RAW))
def they_are_none_of_a_network(bench, random, k):
    opcodes, words = RAW[k]
    bench.refuse(b"\x80\x04}(\x8c\x01x" + opcodes + b"u.", words)


STARTS = [
    (b"", "an empty file"),
    (b"\x80", "cut off"),
    (b"\x80\x04", "cut off"),
    (b"\x80\x04.", "a value is missing"),
    (b"\x80\x01N.", "protocol 2 to 5"),
    (b"\x80\x06N.", "protocol 2 to 5"),
    (pickle.dumps({}, 0), "protocol 2 to 5"),
    (b"PK\x03\x04" + bytes(100), "protocol 2 to 5"),
    (b'{"a": 1}', "protocol 2 to 5"),
    *((dumps(value), READ) for value in (None, [], {}, {"G_ema": 1}, {"G_ema": {}}, {"G": {}, "D": None}, (1, 2, 3))),
    (dumps({"G_ema": object_as_saved("Generator", {})}), "G_ema has no synthesis"),
    (dumps({"G_ema": object_as_saved("Generator", {"_modules": []})}), "G_ema has no synthesis"),
    (dumps({"G_ema": Called(ORDERED)}), READ),
]


@CASES.way("file", len(STARTS))
def it_is_no_checkpoint(bench, random, k):
    content, words = STARTS[k]
    bench.refuse(content, words)


@CASES.way("file", 30)
def it_ends_early(bench, random, k):
    bench.refuse(bench.golden[: random.randrange(len(bench.golden))])


@CASES.way("file", 3)
def it_goes_on_behind_its_end(bench, random, k):
    bench.refuse(bench.golden + [b"x", bench.golden, b"\x80\x04N."][k], "more bytes behind its end")


# --- chance -----------------------------------------------------------------------------------------------------------

OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]


@CASES.way("chance", 200)
def it_is_spoiled(bench, random, k):
    """Bits flipped, ends cut off, pieces copied elsewhere, opcodes and sizes replaced: read or refused, as it comes."""
    content = bytearray(bench.golden)
    places = bench.places
    for _ in range(random.choice((1, 1, 3, 10))):
        at = random.choice((random.choice(places), random.randrange(len(content))))
        kind = k % 5
        if kind == 0:
            content[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del content[at : at + random.choice((1, 8, 1000, len(content)))]
        elif kind == 2:
            begin, size = random.choice(places), random.choice((1, 20, 5000))
            content[at : at + random.choice((0, size))] = content[begin : begin + size]
        elif kind == 3:
            content[random.choice(places)] = random.choice(OPCODES)
        else:
            content[at + 1 : at + 1 + random.choice((1, 4, 8))] = random.choice((b"\0", b"\xff", b"\x7f")) * 4
        places = [place for place in places if place < len(content)] or [0]
        content = content or bytearray(b"\x80")
    bench.read(bytes(content))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("way", CASES.ways)
def test_a_published_checkpoint_is_read_without_executing_it(way):
    CASES.check(way)
