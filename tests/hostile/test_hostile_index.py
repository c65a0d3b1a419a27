"""Archives whose dataset.json is wrong: types, nesting, missing and double entries, names that lead elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forge import build_zip, entry, find, paths_in, put
from names import BAD_NAMES, HOSTILE_VALUES
from runner import REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED, Cases
from slices.archive.format import INDEX
from slices.schema import BRATS

CASES = Cases(__file__)


# --- types ----------------------------------------------------------------------------------------------------------

DEPTHS = (900, 960, 990, 5_000, 10_000, 100_000, 40, 200)


@CASES.way("wrong JSON", 2 * len(DEPTHS))
def nested_deep(bench, random, k):
    depth = DEPTHS[k % len(DEPTHS)]
    lists, objects = b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth
    places = ({"made": "@"}, {"version": "@"}, {"made": {"options": {"x": "@"}}}, {"slices": "@"})
    text = json.dumps(bench.index() | random.choice(places)).encode()
    bench.try_archive(bench.with_index(text.replace(b'"@"', lists if k < len(DEPTHS) else objects)), VALID_OR_REFUSED)


SPOILED = (
    lambda text: text[:-1],
    lambda text: text + b"}",
    lambda text: text.replace(b":", b"=", 1),
    lambda text: b"\xff" + text,
    lambda text: b"",
    lambda text: b"[]",
    lambda text: b"null",
)


@CASES.way("wrong JSON", len(SPOILED))
def no_object_of_JSON(bench, random, k):
    bench.try_archive(bench.with_index(SPOILED[k](json.dumps(bench.index()).encode())), REFUSED)


@CASES.way("wrong JSON")
def another_unicode(bench, random, k):
    """JSON may be UTF-16, too."""
    bench.try_archive(bench.with_index(json.dumps(bench.index()).encode("utf-16")), SAME)


def generic(path: tuple) -> tuple:
    """The path with every index as a star."""
    return tuple("*" if isinstance(key, int) else key for key in path)


@CASES.way("wrong JSON", 200)
def a_value_of_another_type_or_size(bench, random, k):
    index = bench.index()
    kinds: dict[tuple, list[tuple]] = {}
    for path in paths_in(index):
        kinds.setdefault(generic(path), []).append(path)
    path = random.choice(kinds[list(kinds)[k % len(kinds)]])
    value = random.choice(HOSTILE_VALUES)
    old = put(index, path, value)
    other_type = old is not None and value is not None and type(value) is not type(old)
    whole_for_float = type(old) is float and type(value) is int
    refused = path[0] != "made" and other_type and not whole_for_float
    bench.try_archive(bench.with_index(index), REFUSED if refused else VALID_OR_REFUSED)


NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "1" + "0" * 5000)


@CASES.way("wrong JSON", 4 * len(NO_NUMBERS))
def a_number_that_no_float_is(bench, random, k):
    index = bench.index()
    path = random.choice([path for path in paths_in(index) if type(find(index, path)) is float])
    put(index, path, "@")
    text = json.dumps(index).replace('"@"', NO_NUMBERS[k % len(NO_NUMBERS)])
    bench.try_archive(bench.with_index(text.encode()), REFUSED)


@CASES.way("wrong JSON", 20)
def a_field_is_missing(bench, random, k):
    index = bench.index()
    path = random.choice([path for path in paths_in(index) if isinstance(path[-1], str)])
    del find(index, path[:-1])[path[-1]]
    bench.try_archive(bench.with_index(index), VALID_OR_REFUSED)


# --- twice ----------------------------------------------------------------------------------------------------------


@CASES.way("twice", 3)
def a_slice(bench, random, k):
    index = bench.index()
    index["slices"].append(random.choice(index["slices"]))
    bench.try_archive(bench.with_index(index), REFUSED)


@CASES.way("twice", 3)
def a_class_label(bench, random, k):
    index = bench.index()
    index["labels"].append([random.choice(index["slices"])["file"], random.randrange(2)])
    bench.try_archive(bench.with_index(index), REFUSED)


DOUBLE = ("slices", "schema", "resolution", "volumes", "format")


@CASES.way("twice", len(DOUBLE))
def a_name_in_an_object(bench, random, k):
    """The first one counts for some programs, the last one for others."""
    index = bench.index()
    text = f"{json.dumps(index)[:-1]}, {json.dumps(DOUBLE[k])}: {json.dumps(index[DOUBLE[k]])}}}"
    bench.try_archive(bench.with_index(text.encode()), REFUSED)


@CASES.way("twice", 3)
def a_name_in_the_schema(bench, random, k):
    index = bench.index()
    names = index["schema"][("contrasts", "classes", "regions")[k]]
    names.append(names[0])
    bench.try_archive(bench.with_index(index), REFUSED)


# --- names that lead elsewhere --------------------------------------------------------------------------------------


@CASES.way("names that lead elsewhere", len(BAD_NAMES))
def a_slices_file(bench, random, k):
    """The archive has and lists a slice of such a name."""
    index = bench.index()
    file = index["slices"][0]["file"]
    index["slices"][0]["file"] = index["labels"][0][0] = BAD_NAMES[k]
    members = bench.members | {INDEX: json.dumps(index).encode()}
    names = {file: BAD_NAMES[k]}
    bench.try_archive(build_zip([entry(names.get(name, name), content) for name, content in members.items()]), REFUSED)


@CASES.way("names that lead elsewhere", len(BAD_NAMES))
def a_member_that_nobody_asks_for(bench, random, k):
    bench.try_archive(build_zip([*bench.entries(), entry(BAD_NAMES[k], b"x")]), SAME_OR_REFUSED)


NAMED = (
    ("slices", 0, "patient"),
    ("slices", 0, "volume"),
    ("seen", 0),
    ("schema", "contrasts", 0),
    ("label_names", 0),
    ("schema", "classes", 0, "name"),
    ("schema", "regions", 0, "name"),
    ("volumes", "patient0", "patient"),
    ("slices", 0, "part"),
    ("slices", 0, "file"),
    ("labels", 0, 0),
)


@CASES.way("names that lead elsewhere", 2 * len(BAD_NAMES))
def any_name_in_the_index(bench, random, k):
    index = bench.index()
    put(index, NAMED[k % len(NAMED)], BAD_NAMES[k // 2])
    bench.try_archive(bench.with_index(index), REFUSED)


@CASES.way("names that lead elsewhere", 4)
def a_volumes_key(bench, random, k):
    index, bad = bench.index(), random.choice(BAD_NAMES)
    index["volumes"][bad] = index["volumes"].pop("patient1")
    for record in index["slices"]:
        if record["volume"] == "patient1":
            record["volume"] = bad
    bench.try_archive(bench.with_index(index), REFUSED)


# --- values that no archive has -------------------------------------------------------------------------------------

VOLUMES: tuple[dict[str, Any], ...] = (
    {"shape": [0, 20, 16]},
    {"shape": [24, -20, 16]},
    {"shape": [24, 20, 16, 1]},
    {"shape": []},
    {"affine": []},
    {"affine": [[]]},
    {"affine": [[1.0] * 3] * 4},
    {"pixel": 0.0},
    {"pixel": -1},
    {"windows": {}},
    {"windows": {name: [2.0, 1.0] for name in BRATS.contrasts}},
)


@CASES.way("odd values", len(VOLUMES))
def a_volume_that_is_none(bench, random, k):
    index = bench.index()
    index["volumes"]["patient0"].update(VOLUMES[k])
    bench.try_archive(bench.with_index(index), REFUSED)


LABELS = (
    *((("labels", 0, 1), value) for value in (-1, 2, 10**9, 1.5, "0", None, True)),
    *((("schema", "classes", 0, "value"), value) for value in (0, 2, 1.0, "1", None, 2**70)),
    *((("slices", 0, "index"), value) for value in (-1, 1.0, "1", 2**70)),
    *((("slices", 0, "seed"), value) for value in (-1, 0.5, "x", 2**64)),
)


@CASES.way("odd values", len(LABELS))
def labels_indices_and_seeds(bench, random, k):
    index = bench.index()
    put(index, *LABELS[k])
    bench.try_archive(bench.with_index(index), REFUSED)


@CASES.way("odd values", 4)
def class_labels_without_names(bench, random, k):
    index = bench.index()
    index["label_names"], index["labels"][0][1] = None, (10**9, 2**40, -5, 70_000)[k]
    bench.try_archive(bench.with_index(index), REFUSED)


@pytest.mark.parametrize("way", CASES.ways)
def test_refused_or_read_correctly(way):
    CASES.check(way)
