"""Archives whose members are no stored slices: other types and shapes, headers that lie, pickles."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from forge import Trap, as_npy, build_zip, entry, npy_header
from runner import REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED, Cases

CASES = Cases(__file__)

HEADERS = [
    "{'descr': (), 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': [], 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': [('', 'u1')], 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 16, 16)",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-8, -16, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775808, 2, 2)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (8.0, 16, 16)}",
    "{'descr': '|u1', 'fortran_order': 1, 'shape': (8, 16, 16)}",
    "{'descr': '|u1', 'shape': (8, 16, 16)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "__import__('os').mkdir('x')",
    "(" * 9000,
    "-" * 9000 + "1",
    "[" * 150 + "]" * 150,
    "1+" * 4500 + "1",
    "[1]" * 3000,
    "'" * 9001,
    "{",
    "",
    "\0",
    "x" * 60_000,
    "{'descr': '|u1'," * 100,
    "\x1b[2J",
    "'''\n\n\nx",
]
SHAPES: list[tuple[int, ...]] = [
    *((), (0,), (8,), (2048,)),
    *((16, 16), (8, 16), (8, 256)),
    *((7, 16, 16), (9, 16, 16), (16, 16, 8), (8, 16, 15), (0, 16, 16), (8, 0, 16), (4, 32, 16)),
    *((1, 8, 16, 16), (8, 16, 16, 1)),
]
TYPES = [
    *("i1", "<i2", ">i2", "<f4", ">f8", "?", "<u2", ">u4", "<c8"),
    *("c16", "S1", "<U1", "<M8[s]", "m8[s]", "V3", "u1,u1", "f2", "g"),
]


# --- arrays ---------------------------------------------------------------------------------------------------------


@CASES.way("array", len(HEADERS))
def a_header_that_lies(bench, random, k):
    content = npy_header(HEADERS[k], bytes(2048), random.choice([(1, 0), (2, 0), (3, 0)]))
    bench.try_archive(bench.with_slice(bench.slices[0], content), REFUSED)


@CASES.way("array", len(SHAPES))
def another_shape(bench, random, k):
    bench.try_archive(bench.with_slice(bench.slices[0], as_npy(np.zeros(SHAPES[k], np.uint8))), REFUSED)


@CASES.way("array", len(TYPES))
def another_type(bench, random, k):
    content = as_npy(np.zeros(bench.stored[0].shape, TYPES[k]))
    bench.try_archive(bench.with_slice(bench.slices[0], content), REFUSED)


@CASES.way("array", 3)
def cut_short(bench, random, k):
    good = bench.members[bench.slices[0]]
    bench.try_archive(bench.with_slice(bench.slices[0], good[: random.randrange(len(good))]), REFUSED)


@CASES.way("array", 4)
def a_version_of_the_format_that_is_none(bench, random, k):
    good = bench.members[bench.slices[0]]
    content = b"\x93NUMPY" + bytes([(0, 4, 9, 255)[k], 0]) + good[8:]
    bench.try_archive(bench.with_slice(bench.slices[0], content), REFUSED)


@CASES.way("array")
def another_magic_word(bench, random, k):
    content = bench.members[bench.slices[0]].replace(b"NUMPY", b"NUMPI")
    bench.try_archive(bench.with_slice(bench.slices[0], content), REFUSED)


@CASES.way("array", 5)
def label_maps_that_are_not_one_hot(bench, random, k):
    changed = bench.stored[0].copy()
    changed[random.randrange(4, 8), random.randrange(16)] = (0, 1, 254, 255, 128)[k]
    bench.try_archive(bench.with_slice(bench.slices[0], as_npy(changed)), VALID_OR_REFUSED)


@CASES.way("array", 5)
def the_same_array_written_otherwise(bench, random, k):
    """Bytes in another order, a longer header, the type in other words."""
    good = as_npy(bench.stored[0])
    header = good[10 : good.index(b"\n")].decode().rstrip()
    contents = [npy_header(header + " " * random.randrange(3000), bench.stored[0].tobytes(), (v, 0)) for v in (1, 2, 3)]
    contents += [as_npy(np.asfortranarray(bench.stored[0]))]
    contents += [npy_header(header.replace("|u1", "<u1"), bench.stored[0].tobytes())]
    bench.try_archive(bench.with_slice(bench.slices[0], contents[k]), SAME)


@CASES.way("array")
def bytes_behind_it(bench, random, k):
    bench.try_archive(bench.with_slice(bench.slices[0], as_npy(bench.stored[0]) + b"more"), SAME_OR_REFUSED)


# --- pickles: code that runs when they are read ---------------------------------------------------------------------


def object_array(bench, k):
    """An array of objects, pickled."""
    shape = ((), (1,), (8, 16, 16))[k % 3]
    return npy_header(f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}", trap(bench, k))


def trap(bench, k):
    return pickle.dumps(Trap(bench.marker), protocol=k % 6)


def npz(bench, k):
    """An archive of NumPy's in place of an array."""
    buffer = io.BytesIO()
    np.savez(buffer, bench.stored[0])
    return buffer.getvalue()


def objects_in_fields(bench, k):
    return npy_header("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,)}", trap(bench, k))


def a_dictionary(bench, k):
    return as_npy(np.array([{"a": 1}], object))


MEMBERS = (object_array, trap, npz, objects_in_fields, a_dictionary)


@CASES.way("pickle", 4 * len(MEMBERS))
def as_a_slice(bench, random, k):
    member = MEMBERS[k % len(MEMBERS)](bench, k)
    bench.try_archive(bench.with_slice(random.choice(bench.slices), member), REFUSED)


@CASES.way("pickle", len(MEMBERS))
def as_the_index(bench, random, k):
    bench.try_archive(bench.with_index(MEMBERS[k](bench, k)), REFUSED)


@CASES.way("pickle", len(MEMBERS))
def as_the_archive(bench, random, k):
    bench.try_archive(MEMBERS[k](bench, k), REFUSED)


@CASES.way("pickle", 3)
def a_checkpoint_of_PyTorch(bench, random, k):
    members = [entry("archive/data.pkl", trap(bench, k)), entry("archive/version", b"3")]
    bench.try_archive(build_zip(members), REFUSED)


@pytest.mark.parametrize("way", CASES.ways)
def test_refused_or_read_correctly(way):
    CASES.check(way)


def test_a_trap_would_be_noticed(tmp_path):
    """If anything unpickled what these archives hold, there would be a folder."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()
