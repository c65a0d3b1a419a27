"""The choice of slices worth showing."""

from slices.archive.describe import choose_slices

PICTURED = 8


def test_pictured_slices_have_large_lesions_of_many_patients():
    by_patient = {f"p{p}": list(range(10 * p, 10 * p + 10)) for p in range(20)}
    sizes = [(i % 10, 0) for i in range(200)]  # the last slice of each patient is the largest
    many = choose_slices(by_patient, sizes, PICTURED)
    assert len({i // 10 for i in many}) == PICTURED and all(i % 10 == 9 for i in many)
    few = choose_slices({"p0": list(range(10)), "p1": list(range(10, 20))}, sizes, 4)
    assert [i // 10 for i in few] == [0, 0, 1, 1] and all(i % 10 >= 5 for i in few) and len(set(few)) == 4
    assert choose_slices({"p0": [0, 1]}, sizes, 8) == [1, 0]
