"""Archives whose zip lies: cut, flipped, forged or huge members, and a directory that leads elsewhere."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import pytest

from forge import Entry, build_zip, entry, flipped, repeated
from runner import REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED, Cases
from slices.archive.format import INDEX

CASES = Cases(__file__)
NOTHING = zlib.crc32(b"")


# --- truncated ------------------------------------------------------------------------------------------------------


def cut(bench, place, filled):
    """The good archive up to a place; filled: with zeros to its length, as a file may look after a crash."""
    content = bench.archive[:place]
    return content + bytes(len(bench.archive) - place) if filled else content


@CASES.way("truncated archive", 11)
def cut_at_a_telling_place(bench, random, k):
    size = len(bench.archive)
    places = [0, 1, 4, 29, 30, size - 1, size - 22, size - 23, bench.directory, bench.directory + 46, size - 2]
    content = cut(bench, places[k], filled=k % 3 == 2)
    bench.try_archive(content, REFUSED if content != bench.archive else SAME)


@CASES.way("truncated archive", 30)
def cut_anywhere(bench, random, k):
    content = cut(bench, random.randrange(len(bench.archive)), filled=k % 3 == 2)
    bench.try_archive(content, REFUSED if content != bench.archive else SAME)


# --- flipped bytes --------------------------------------------------------------------------------------------------


@CASES.way("flipped bytes", 20)
def anywhere(bench, random, k):
    bench.try_archive(flipped(bench.archive, range(len(bench.archive)), random), SAME_OR_REFUSED)


@CASES.way("flipped bytes", 20)
def in_a_members_header(bench, random, k):
    place = random.choice(list(bench.places.values()))
    bench.try_archive(flipped(bench.archive, range(place, place + 30), random), SAME_OR_REFUSED)


@CASES.way("flipped bytes", 20)
def in_a_members_name_and_content(bench, random, k):
    start = random.choice(list(bench.places.values())) + 30
    bench.try_archive(flipped(bench.archive, range(start, start + 170), random), SAME_OR_REFUSED)


@CASES.way("flipped bytes", 20)
def in_the_directory(bench, random, k):
    bench.try_archive(flipped(bench.archive, range(bench.directory, len(bench.archive)), random), SAME_OR_REFUSED)


@CASES.way("flipped bytes", 20)
def in_the_directorys_end(bench, random, k):
    size = len(bench.archive)
    bench.try_archive(flipped(bench.archive, range(size - 22, size), random), SAME_OR_REFUSED)


@CASES.way("flipped bytes", 20)
def in_checksums_and_lengths(bench, random, k):
    place = random.choice(list(bench.places.values()))
    places = [*range(place + 14, place + 26), *range(bench.directory + 16, bench.directory + 28)]
    bench.try_archive(flipped(bench.archive, places, random), SAME_OR_REFUSED)


# --- bombs: a few bytes that become many ----------------------------------------------------------------------------


def zeros(k):
    """4 to 512 MB of zeros, packed to a thousandth."""
    return repeated(bytes(1 << 20), 4 << k % 8)


def others(bench, name):
    """The good archive's members but one."""
    return [e for e in bench.entries() if e.name != name.encode()]


@CASES.way("zip bomb", 6)
def the_directory_promises_a_good_size(bench, random, k):
    name = random.choice(bench.slices)
    bomb = Entry(name.encode(), zeros(k + 2), len(bench.members[name]), NOTHING)
    bench.try_archive(build_zip([*others(bench, name), bomb]), REFUSED)


@CASES.way("zip bomb", 6)
def the_directory_promises_what_there_is(bench, random, k):
    name = random.choice(bench.slices)
    bomb = Entry(name.encode(), zeros(k), (1 << 20, 1 << 30, 2**32 - 2)[k % 3], NOTHING)
    bench.try_archive(build_zip([*others(bench, name), bomb]), REFUSED)


@CASES.way("zip bomb", 3)
def an_index_of_gigabytes_of_spaces(bench, random, k):
    spaces = repeated(b" " * (1 << 20), 2048, before=b"{", after=b"}")
    bomb = Entry(INDEX.encode(), spaces, (1000, 2**31, 2**22)[k], NOTHING)
    bench.try_archive(build_zip([*others(bench, INDEX), bomb]), REFUSED)


UNITS = (b"{},", b"[],", b'{"":0},', b"0.1,", b'"ab",', b"[[]],")


@CASES.way("zip bomb", len(UNITS))
def an_index_within_the_limit_that_grows_in_python(bench, random, k):
    index = bench.index() | {"made": "@"}
    many = b'{"x":[' + UNITS[k] * (4_000_000 // len(UNITS[k])) + b"0]}"
    text = json.dumps(index).encode().replace(b'"@"', many)
    bench.try_archive(bench.with_index(text), VALID_OR_REFUSED, by_programs=False)


@CASES.way("zip bomb", 2)
def members_in_each_other(bench, random, k):
    """Two thousand members share one content."""
    content = zeros(3 * k)
    entries = [entry(f"slices/00000/{i:08d}.npy", b"", offset=0, length=len(content)) for i in range(2000)]
    entries[0] = replace(entries[0], raw=content, size=len(bench.members[bench.slices[0]]))
    slices = [{"file": e.name.decode(), "patient": "a"} for e in entries]
    index = bench.index() | {"slices": slices, "labels": None, "volumes": {}}
    bench.try_archive(build_zip([*entries, entry(INDEX, json.dumps(index).encode())]), REFUSED)


SIZES = (10**9, 2**31, 4097, 10**18, -16, 0, 4096)


@CASES.way("zip bomb", len(SIZES))
def a_resolution_beyond_all_measure(bench, random, k):
    bench.try_archive(bench.with_index(bench.index() | {"resolution": SIZES[k]}), REFUSED)


@CASES.way("zip bomb", 3)
def a_schema_of_a_thousand_channels(bench, random, k):
    key, one = (
        ("contrasts", lambda i: f"c{i}"),
        ("classes", lambda i: {"name": f"c{i}", "title": "x", "value": i + 1}),
        ("regions", lambda i: {"name": f"r{i}", "classes": []}),
    )[k]
    index = bench.index()
    index["schema"][key] = [one(i) for i in range(1000)]
    bench.try_archive(bench.with_index(index), REFUSED)


@CASES.way("zip bomb", 2)
def thousands_of_empty_members(bench, random, k):
    bench.try_archive(build_zip([*bench.entries(), *(entry(f"{i}", b"") for i in range(10_000))]), SAME)


@CASES.way("zip bomb", 2)
def extra_fields_of_thousands_of_records(bench, random, k):
    extra = struct.pack("<HH", 0x9999, 0) * 16_000
    bench.try_archive(build_zip([replace(e, extra=extra) for e in bench.entries()]), SAME)


@CASES.way("zip bomb", 3)
def a_zip_in_a_zip(bench, random, k):
    """Some programs open zips in zips."""
    name = random.choice(bench.slices)
    inner = build_zip([Entry(name.encode(), zeros(3 * k), 1 << 30, NOTHING)])
    bench.try_archive(build_zip([*others(bench, name), entry(name, inner)]), REFUSED)


@CASES.way("zip bomb", 6)
def more_than_it_says_within_the_limit(bench, random, k):
    """What comes out is larger than a slice, and up to what an archive of this schema may have or more."""
    name = random.choice(bench.slices)
    size = len(bench.members[name])
    limit = size + (1 << 16)
    content = bench.members[name] + bytes(random.choice([1, 1000, limit - size, limit]))
    bad = entry(name, content, size=(len(content), size)[k % 2])
    bench.try_archive(build_zip([*others(bench, name), bad]), VALID_OR_REFUSED)


# --- a directory that lies ------------------------------------------------------------------------------------------

BIG = (2**32 - 1, 2**31, 2**63 - 1, 2**64 - 1)


@CASES.way("lying directory", 4)
def a_length_and_a_place_beyond_all_measure(bench, random, k):
    name = random.choice(bench.slices)
    extra = struct.pack("<HHQQQ", 1, 24, BIG[k], BIG[k], BIG[k])
    bad = entry(name, b"x", size=2**32 - 1, length=2**32 - 1, offset=2**32 - 1, extra=extra)
    bench.try_archive(build_zip([*others(bench, name), bad]), REFUSED)


@CASES.way("lying directory", 8)
def an_end_beyond_all_measure(bench, random, k):
    """The end of a zip of 64 bits."""
    good = build_zip(bench.entries())[:-22]
    values = [random.choice([BIG[k % 4], 7, 0]) for _ in range(3)]
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, values[0], *values)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, random.choice([len(good), BIG[k % 4]]), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    bench.try_archive(good + end, REFUSED)


WRONG_ENDS = (("size", 1), ("offset", 2**31), ("count", 0), ("size", 2**32 - 1), ("offset", 46), ("count", 0xFFFF))


@CASES.way("lying directory", len(WRONG_ENDS))
def it_is_said_to_be_elsewhere(bench, random, k):
    name, value = WRONG_ENDS[k]
    bench.try_archive(build_zip(bench.entries(), **{name: value}), SAME_OR_REFUSED)


@CASES.way("lying directory", 5)
def one_content_under_two_names(bench, random, k):
    entries = bench.entries()
    i = random.randrange(1, len(entries))
    entries[i] = replace(entries[i], offset=random.choice([0, bench.places[bench.slices[0]]]))
    bench.try_archive(build_zip(entries), REFUSED)


@CASES.way("lying directory", 6)
def two_members_of_one_name(bench, random, k):
    name, other = random.choice(bench.slices), random.choice([*bench.slices, INDEX])
    twice = entry(other, bench.members[(name, other)[k % 2]])
    bench.try_archive(build_zip([*bench.entries(), twice]), REFUSED)


@CASES.way("lying directory", 5)
def names_that_are_one_before_a_zero_byte(bench, random, k):
    """Some programs drop what stands behind the zero byte."""
    other = random.choice([*bench.slices, INDEX])
    bench.try_archive(build_zip([*bench.entries(), entry(other.encode() + b"\0x", b"x")]), REFUSED)


# --- missing members ------------------------------------------------------------------------------------------------


def some(bench, random, k):
    """Names of members: one slice, or the index too, or up to three more slices."""
    return [random.choice(bench.slices), INDEX, *random.sample(bench.slices, 3)][: 1 + k % 4]


@CASES.way("missing members", 10)
def members_are_not_there(bench, random, k):
    names = some(bench, random, k)
    left = {name: content for name, content in bench.members.items() if name not in names}
    bench.try_archive(build_zip([entry(name, content) for name, content in left.items()]), REFUSED)


@CASES.way("missing members", 10)
def members_bear_other_names(bench, random, k):
    names = some(bench, random, k)
    left = {name: content for name, content in bench.members.items() if name not in names}
    left |= {random.choice(("x", name.upper(), name + "x", "./" + name)): bench.members[name] for name in names}
    bench.try_archive(build_zip([entry(name, content) for name, content in left.items()]), REFUSED)


@pytest.mark.parametrize("way", CASES.ways)
def test_refused_or_read_correctly(way):
    CASES.check(way)
