"""NIfTI files that are cut, flipped, forged or huge, each as one file of a case that is converted."""

from __future__ import annotations

import gzip
import pickle
import struct
from typing import Any

import numpy as np
import pytest

from forge import FIELDS, INF, NAN, Trap, flipped, nifti, pack_gzip, repeated
from runner import REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED, Cases

CASES = Cases(__file__)
CONTRAST = "t1ce"
NAMES = ("t1", "t1ce", "t2", "flair", "seg")


# --- truncated and flipped ------------------------------------------------------------------------------------------


def cut(bench, name, place, filled):
    """The case's file up to a place; filled: with zeros, as a file may look after a crash."""
    content = bench.files[name]
    zeros = bytes(len(content) - place) if filled else b""
    bench.try_case({name: content[:place] + zeros}, REFUSED if content[place:].strip(b"\0") or not zeros else SAME)


ENDS = (0, 1, 2, 3, 9, 10, 11, -1, -8, -9)


@CASES.way("truncated gzip", len(ENDS))
def cut_at_a_telling_place(bench, random, k):
    name = random.choice(NAMES)
    cut(bench, name, ENDS[k] % len(bench.files[name]), filled=k % 4 == 3)


@CASES.way("truncated gzip", 12)
def cut_anywhere(bench, random, k):
    name = random.choice(NAMES)
    cut(bench, name, random.randrange(len(bench.files[name])), filled=k % 4 == 3)


@CASES.way("truncated nifti", 5)
def not_compressed(bench, random, k):
    content = nifti(bench.volumes[NAMES[k]])
    bench.try_case({NAMES[k]: content[: random.randrange(len(content))]}, REFUSED)


PLACES = {"header": (0, 10), "start": (10, 60), "end": (-8, None), "anywhere": (10, None)}


@CASES.way("flipped bytes of gzip", 7 * len(PLACES))
def somewhere(bench, random, k):
    name, (start, end) = random.choice(NAMES), list(PLACES.values())[k % len(PLACES)]
    content = bench.files[name]
    places = range(len(content))[start:end]
    bench.try_case({name: flipped(content, places, random)}, VALID_OR_REFUSED, same_voxels=name)


@CASES.way("flipped bytes of nifti headers", 3 * len(FIELDS))
def in_a_field(bench, random, k):
    name, (place, form) = random.choice(NAMES), list(FIELDS.values())[k % len(FIELDS)]
    content = flipped(nifti(bench.volumes[name]), range(place, place + struct.calcsize(form)), random, 2)
    bench.try_case({name: pack_gzip(content) if k % 2 else content}, VALID_OR_REFUSED)


@CASES.way("flipped bytes of nifti headers", 10)
def anywhere(bench, random, k):
    name = random.choice(NAMES)
    content = flipped(nifti(bench.volumes[name]), range(352), random, 2)
    bench.try_case({name: pack_gzip(content) if k % 2 else content}, VALID_OR_REFUSED)


# --- bombs ----------------------------------------------------------------------------------------------------------

START = b"\x1f\x8b\x08\0\0\0\0\0\0\3"  # of a gzip stream


@CASES.way("gzip bomb", 2)
def gigabytes_behind_a_volume(bench, random, k):
    name = ("t1", "seg")[k]
    zeros = repeated(bytes(1 << 20), 20_000, before=nifti(bench.volumes[name]))
    bench.try_case({name: START + zeros + bytes(8)}, REFUSED)


@CASES.way("gzip bomb", 2)
def gigabytes_in_many_streams(bench, random, k):
    content = pack_gzip(nifti(bench.volumes["t2"])) + gzip.compress(bytes(1 << 22)) * (10, 5000)[k]
    bench.try_case({"t2": content}, REFUSED)


LARGE = ((32767, 32767, 32767), (2048, 2048, 2048), (800, 800, 400), (30000, 1, 1), (32767, 32767, 1))


@CASES.way("gzip bomb", len(LARGE))
def a_header_that_promises_more_than_there_is(bench, random, k):
    content = nifti(bench.volumes[NAMES[k]], dim=(3, *LARGE[k], 1, 1, 1, 1))
    bench.try_case({NAMES[k]: pack_gzip(content)}, REFUSED)


@CASES.way("gzip bomb", 3)
def the_same_not_compressed(bench, random, k):
    shape = ((1000, 1000, 250), (32767, 32767, 32767), (2000, 1000, 250))[k]
    bench.try_case({NAMES[k]: nifti(bench.volumes[NAMES[k]], dim=(3, *shape, 1, 1, 1, 1))}, REFUSED)


@CASES.way("gzip bomb", 2)
def a_header_that_promises_much_and_it_comes(bench, random, k):
    big = nifti(np.zeros((1, 1, 1), np.uint8), dim=(3, 32767, 32767, 32, 1, 1, 1, 1))[:352]
    bench.try_case({("flair", "seg")[k]: START + repeated(bytes(1 << 20), 20_000, before=big) + bytes(8)}, REFUSED)


@CASES.way("gzip bomb", 2)
def voxels_as_far_behind_the_header_as_can_be_said(bench, random, k):
    name = ("t1", "seg")[k]
    header = nifti(bench.volumes[name], vox_offset=4e9)[:352]
    bench.try_case({name: START + repeated(bytes(1 << 20), 4000, before=header) + bytes(8)}, REFUSED)


@CASES.way("gzip bomb")
def nothing_many_times(bench, random, k):
    bench.try_case({"t1": pack_gzip(b"") * 200_000}, REFUSED)


@CASES.way("gzip bomb")
def nothing_many_times_before_a_volume(bench, random, k):
    content = pack_gzip(b"") * 200_000 + pack_gzip(nifti(bench.volumes["t1"]))
    bench.try_case({"t1": content}, SAME, same_voxels="t1")


@CASES.way("gzip bomb")
def a_name_in_gzips_header_of_any_length(bench, random, k):
    packed = pack_gzip(nifti(bench.volumes[CONTRAST]))
    bench.try_case(
        {CONTRAST: START[:3] + b"\x08" + START[4:] + b"n" * 5_000_000 + b"\0" + packed[10:]}, VALID_OR_REFUSED
    )


@CASES.way("gzip bomb")
def an_extension_of_the_header_that_goes_on(bench, random, k):
    good = nifti(bench.volumes[CONTRAST])
    content = good[:348] + b"\1\0\0\0" + struct.pack("<ii", 2**31 - 16, 6) + good[352:]
    bench.try_case({CONTRAST: pack_gzip(content)}, VALID_OR_REFUSED)


# --- shapes ---------------------------------------------------------------------------------------------------------

COUNTS = (0, 1, 2, 4, 5, 6, 7, 8, -1, 100, 32767)
L, P, S = 24, 20, 16


@CASES.way("shape", len(COUNTS))
def another_number_of_dimensions_in_the_header(bench, random, k):
    name, count = random.choice(NAMES), COUNTS[k]
    ones = 4 <= count <= 7  # behind the third, they are as good as not there
    content = nifti(bench.volumes[name], dim=(count, L, P, S, 1, 1, 1, 1))
    bench.try_case({name: content}, SAME_OR_REFUSED if ones else REFUSED)


@CASES.way("shape", 6)
def another_length_in_the_header(bench, random, k):
    dim = [3, L, P, S, 1, 1, 1, 1]
    dim[random.randrange(1, 4)] = random.choice([0, -1, -32768, 32767])
    bench.try_case({"t1": nifti(bench.volumes["t1"], dim=tuple(dim))}, REFUSED)


DIMENSIONS = ((L,), (L, P), (L, P, S, 2), (L, P, S, 1, 3), (L, P, S, 1, 1, 1, 2), (1, 1, 1, L, P))


@CASES.way("shape", len(DIMENSIONS))
def really_of_another_number_of_dimensions(bench, random, k):
    name = random.choice(NAMES)
    bench.try_case({name: nifti(np.resize(bench.volumes[name], DIMENSIONS[k]))}, REFUSED)


@CASES.way("shape", 6)
def of_no_length(bench, random, k):
    shape = [L, P, S, 1, 1][: 3 + k % 3]
    shape[random.randrange(3)] = 0
    content = nifti(np.zeros(shape, np.int16), dim=(len(shape), *shape, *[1] * (7 - len(shape))))
    bench.try_case({random.choice(NAMES): content}, REFUSED)


OTHERS = ((S, P, L), (P, L, S), (L, P, S - 1), (L + 1, P, S), (1, 1, 1), (L * P * S, 1, 1))


@CASES.way("shape", len(OTHERS))
def another_one_than_the_rest(bench, random, k):
    name = random.choice(NAMES)
    bench.try_case({name: nifti(np.resize(bench.volumes[name], OTHERS[k]))}, REFUSED)


ODD = ((1, 1, 1), (1, P, S), (L, 1, S), (L, P, 1), (1, 1, S), (2, 2, 2), (300, 2, 3), (1, 1, 700))


@CASES.way("shape", len(ODD))
def all_of_one_odd_shape(bench, random, k):
    """A single slice, column or voxel is a volume."""
    bench.try_case({kind: nifti(np.resize(v, ODD[k])) for kind, v in bench.volumes.items()}, VALID_OR_REFUSED)


# --- values ---------------------------------------------------------------------------------------------------------


@CASES.way("values", 5)
def the_same_everywhere(bench, random, k):
    """There is nothing that could be a head."""
    voxels = np.full((L, P, S), (0, 1, -1, 32767, -32768)[k], np.int16)
    bench.try_case({kind: nifti(voxels) for kind in NAMES if kind != "seg"}, REFUSED)


BAD = (NAN, INF, -INF)


@CASES.way("values", 9)
def some_that_are_not_finite(bench, random, k):
    name, bad = random.choice(NAMES), BAD[k % 3]
    voxels = bench.volumes[name].astype(("float32", "float64")[k % 2])
    voxels.flat[random.sample(range(voxels.size), (1, 5, 7000)[k // 3])] = bad
    # Outside the head, NaN is background.
    bench.try_case({name: nifti(voxels, order="<>"[k % 2])}, VALID_OR_REFUSED if k % 3 == 0 else REFUSED)


@CASES.way("values", 4)
def none_that_is_finite_or_all_too_large(bench, random, k):
    name, voxels = random.choice(NAMES), np.full((L, P, S), (*BAD, 1e300)[k])
    bench.try_case({name: nifti(voxels, order="<>"[k % 2])}, REFUSED)


@CASES.way("values", 9)
def a_scale_or_offset_that_is_not_finite(bench, random, k):
    name = random.choice(NAMES)
    fields = {("scl_slope", "scl_inter", "vox_offset")[k // 3]: BAD[k % 3]}
    bench.try_case({name: nifti(bench.volumes[name], **fields)}, VALID_OR_REFUSED)


PLACINGS = {
    "pixdim": [1.0] * 8,
    "srow": [-1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0],
    "quatern": [0.0] * 6,
}


@CASES.way("values", 9)
def a_place_that_is_not_finite(bench, random, k):
    name, field = random.choice(NAMES), list(PLACINGS)[k // 3]
    values = list(PLACINGS[field])
    values[random.randrange(len(values))] = BAD[k % 3]
    codes: dict[str, Any] = {"sform_code": int(field == "srow"), "qform_code": int(field == "quatern")}
    bench.try_case({name: nifti(bench.volumes[name], **{field: tuple(values)}, **codes)}, VALID_OR_REFUSED)


ROWS = [-1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0]
AFFINES: list[list[float]] = [
    [0.0] * 12,
    [1.0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
    [1e6, 1e6, 0, 0, 0, 1e-9, 0, 0, 0, 0, 1, 0],
    [v * 1e30 for v in ROWS],
    [v * 1e-30 for v in ROWS],
    [v * 1e38 for v in ROWS],
    [1e12, 1e12, 0, 0, 1e12, 1e12 * (1 + 2e-7), 0, 0, 0, 0, 1e12, 0],
    [1e-3, 0, 0, 0, 0, 1e4, 0, 0, 0, 0, 1, 0],
    [1e15, 1e15, 1e15, 0, 0, 1e-6, 0, 0, 0, 0, 1e-6, 0],
    [v * 0.9 + 0.1 for v in ROWS],
]


@CASES.way("orientation", len(AFFINES))
def no_three_directions_in_one_file(bench, random, k):
    """Directions that are one, or of no length, or of a length beyond all measure."""
    name = random.choice(NAMES)
    bench.try_case({name: nifti(bench.volumes[name], srow=tuple(AFFINES[k]))}, VALID_OR_REFUSED)


@CASES.way("orientation", len(AFFINES))
def no_three_directions_in_all_files(bench, random, k):
    files = {kind: nifti(volume, srow=tuple(AFFINES[k])) for kind, volume in bench.volumes.items()}
    bench.try_case(files, VALID_OR_REFUSED)


# --- types ----------------------------------------------------------------------------------------------------------

REAL = ("float32", "float64", "uint16", "int32", "uint32", "int64", "uint64")


@CASES.way("type", len(REAL))
def another_that_holds_the_same(bench, random, k):
    name = random.choice(NAMES)
    voxels = bench.volumes[name].astype(REAL[k])
    bench.try_case({name: nifti(voxels, order="<>"[k % 2])}, SAME, same_voxels=name)


@CASES.way("type", 2)
def bytes_with_a_sign(bench, random, k):
    name = ("t1", "seg")[k]
    bench.try_case({name: nifti((bench.volumes[name] % 5).astype("int8"))}, VALID_OR_REFUSED)


@CASES.way("type", 4)
def complex_numbers_and_colors(bench, random, k):
    name, colors = random.choice(NAMES), [np.dtype([(c, "u1") for c in letters]) for letters in ("RGB", "RGBA")]
    voxels = bench.volumes[name]
    voxels = voxels.astype(("complex64", "complex128")[k]) if k < 2 else voxels.astype("u1").astype(colors[k - 2])
    bench.try_case({name: nifti(voxels)}, REFUSED)


# --- labels ---------------------------------------------------------------------------------------------------------

BROKEN = (0.5, 1.5, 3.999, -0.25, 1e-3, 4.0001, 0.9997)


@CASES.way("labels", len(BROKEN))
def no_whole_numbers(bench, random, k):
    changed = bench.volumes["seg"].astype(("float32", "float64")[k % 2])
    changed[tuple(random.randrange(n) for n in changed.shape)] = BROKEN[k]
    bench.try_case({"seg": nifti(changed)}, REFUSED)


UNKNOWN = (3, 5, 100, 255, 256, 32767, -1, -32768)


@CASES.way("labels", len(UNKNOWN))
def values_that_the_release_does_not_have(bench, random, k):
    changed = bench.volumes["seg"].astype(("int16", "int32", "float32", "int64")[k % 4])
    changed[tuple(random.randrange(n) for n in changed.shape)] = UNKNOWN[k]
    bench.try_case({"seg": nifti(changed)}, REFUSED)


SCALES = ((0.5, 0), (1, 0.5), (1, 1), (-1, 0), (1e-30, 0), (3, 0), (1e30, 0), (1, 0), (2, 0), (1e38, 1e38))


@CASES.way("labels", len(SCALES))
def scaled_by_the_header(bench, random, k):
    slope, inter = SCALES[k]
    content = nifti(bench.volumes["seg"], scl_slope=slope, scl_inter=inter)
    bench.try_case({"seg": content}, SAME if (slope, inter) == (1, 0) else REFUSED)


@CASES.way("labels", 3)
def another_file_in_their_place(bench, random, k):
    seven, tenth = np.full((L, P, S), 7, np.uint8), np.full((L, P, S), 0.1, np.float32)
    bench.try_case({"seg": nifti((bench.volumes["t1"], seven, tenth)[k])}, REFUSED)


# --- pickles --------------------------------------------------------------------------------------------------------


@CASES.way("pickle", 4)
def in_place_of_a_volume(bench, random, k):
    trap = pickle.dumps(Trap(bench.marker), protocol=2 + k % 4)
    bench.try_case({NAMES[k]: trap if k % 2 else pack_gzip(trap)}, REFUSED)


@CASES.way("pickle", 4)
def in_an_extension_of_the_header(bench, random, k):
    """Nobody opens a pickle there; the other extension is CIFTI's XML."""
    name, good = NAMES[k], nifti(bench.volumes[NAMES[k]])
    trap = pickle.dumps(Trap(bench.marker), protocol=2 + k % 4)
    note = (trap if k % 2 else b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><CIFTI>&a;').ljust(504, b"\0")
    content = good[:348] + b"\1\0\0\0" + struct.pack("<ii", 512, 16 if k % 2 else 32) + note + good[352:]
    content = content[:108] + struct.pack("<f", 352 + 512) + content[112:]
    bench.try_case({name: content}, SAME if k % 2 else SAME_OR_REFUSED, same_voxels=name)


@pytest.mark.parametrize("way", CASES.ways)
def test_refused_or_read_correctly(way):
    CASES.check(way)
