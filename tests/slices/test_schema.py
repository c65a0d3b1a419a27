"""The schema: label values, class indices and label maps, there and back."""

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.drawn import NO_CLASSES, ONE_CLASS, SCHEMAS
from slices.schema import BRATS, LesionClass, Region, Schema


@SCHEMAS
def test_join_and_split_are_inverse(schema):
    rng = np.random.default_rng(0)
    contrasts = rng.integers(0, 256, (2, schema.num_contrasts, 5, 4), dtype=np.uint8)
    classes = rng.integers(0, max(1, schema.num_maps), (2, 5, 4))
    stored = schema.join(contrasts, classes)
    assert stored.dtype == np.uint8 and stored.shape == (2, schema.num_channels, 5, 4)
    for found, expected in zip(schema.split(stored), (contrasts, classes), strict=True):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_channel_counts():
    assert (BRATS.num_contrasts, BRATS.num_maps, BRATS.num_channels) == (4, 4, 8)
    assert (ONE_CLASS.num_maps, ONE_CLASS.num_channels) == (2, 5)
    assert (NO_CLASSES.num_maps, NO_CLASSES.num_channels) == (0, 2)
    assert NO_CLASSES.describe() == "t1, t2 | no classes"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_label_values(dtype):
    values = np.array([[0, 1], [2, 4]], dtype)
    np.testing.assert_array_equal(BRATS.indices_from_values(values), [[0, 1], [2, 3]])
    values[0, 0] = 3
    with pytest.raises(UserError, match="unknown label value 3; expected 0 and 1, 2, 4"):
        BRATS.indices_from_values(values)


@pytest.mark.parametrize("schema", [BRATS, ONE_CLASS], ids=["brats", "one class"])
def test_label_values_indices_and_maps_come_back(schema):
    values = np.array([0, *(c.value for c in schema.classes)])
    label_map = np.random.default_rng(0).choice(values, (6, 5, 4))
    indices = schema.indices_from_values(label_map)
    contrasts = np.zeros((6, schema.num_contrasts, 5, 4), np.uint8)
    _, again = schema.split(schema.join(contrasts, indices))
    np.testing.assert_array_equal(again, indices)
    written = schema.values_from_indices(again)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, label_map)


def test_the_first_of_several_values_is_written():
    schema = Schema(("t1",), (LesionClass("core", "", 1, more_values=(3,)),), ignored=(9,))
    indices = schema.indices_from_values(np.array([0, 1, 3, 9]))
    assert indices.tolist() == [0, 1, 1, 0] and schema.values_from_indices(indices).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "values, kind", [((1, 2, 255), np.uint8), ((1, 2, 256), np.int16), ((-1, 2, 3), np.int16), ((1, 40000), np.int32)]
)
def test_label_values_of_other_schemas(values, kind):
    schema = Schema(("t1",), tuple(LesionClass(f"c{v}", "", v) for v in values))
    written = schema.values_from_indices(np.arange(len(values) + 1))
    assert written.dtype == kind and written.tolist() == [0, *values]


def test_label_values_beyond_all_types():
    with pytest.raises(UserError, match="the label values 0, 1, 9223372036854775808 don't fit into a NIfTI file"):
        schema = Schema(("t1",), (LesionClass("a", "", 1), LesionClass("b", "", 1 << 63)))
        schema.values_from_indices(np.zeros(3, np.uint8))


def test_regions():
    assert {region.name: BRATS.region_indices(region) for region in BRATS.regions} == {
        "WT": [1, 2, 3],
        "TC": [1, 3],
        "ET": [3],
    }


def test_a_schema_must_make_sense():
    lesion = LesionClass("MS", "lesion", 1)
    with pytest.raises(UserError, match="must differ"):
        Schema(("t1", "t1"))
    with pytest.raises(UserError, match="none of them 0"):
        Schema(("t1",), (LesionClass("MS", "lesion", 0),))
    with pytest.raises(UserError, match="different label values"):
        Schema(("t1",), (lesion, LesionClass("X", "other", 1)))
    with pytest.raises(UserError, match="unknown class: ET"):
        Schema(("t1",), (lesion,), (Region("WT", ("MS", "ET")),))
