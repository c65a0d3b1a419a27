"""Pictures of joint slices: overlays, panels, contact sheets."""

import numpy as np
import pytest
from PIL import Image

from slices import render
from slices.schema import BRATS, LesionClass, Schema


def make(schema, resolution, count=None, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count or 1, schema.num_contrasts, resolution, resolution)
    contrasts = rng.integers(1, 256, shape, dtype=np.uint8)
    indices = np.zeros((count or 1, resolution, resolution), np.uint8)
    if schema.num_maps:
        indices[:, resolution // 4 : resolution // 2, resolution // 4 : resolution // 2] = schema.num_maps - 1
    stored = schema.join(contrasts, indices)
    return stored if count else stored[0]


def schema_of(contrasts, classes):
    return Schema(
        tuple(f"c{i}" for i in range(contrasts)),
        tuple(LesionClass(f"l{i}", f"lesion {i}", i) for i in range(1, classes + 1)),
    )


def contains(image, color):
    return bool((np.asarray(image) == color).all(axis=-1).any())


def test_overlay_leaves_the_rest_of_the_picture_alone_and_the_lesion_visible():
    gray = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    indices = np.zeros((16, 16), np.uint8)
    indices[4:11, 4:11] = 2
    rgb = render.overlay(gray, indices, BRATS)
    assert rgb.shape == (16, 16, 3) and rgb.dtype == np.uint8
    outside = indices == 0
    assert (rgb[outside] == gray[outside, None]).all()
    assert (rgb[4, 4:11] == render.class_color(2)).all(), "the outline is opaque"
    inside = rgb[5:10, 5:10].reshape(-1, 3).astype(int)
    assert np.corrcoef(inside[:, 0], gray[5:10, 5:10].ravel())[0, 1] > 0.99, "gray values show through the fill"
    assert (inside != np.repeat(gray[5:10, 5:10].reshape(-1, 1), 3, 1)).any(axis=1).all(), "all of it is tinted"


def test_overlay_draws_a_shared_border_once_and_reaches_the_edge_of_the_picture():
    indices = np.ones((8, 8), np.uint8)
    indices[:, 4:] = 3
    rgb = render.overlay(np.zeros((8, 8), np.uint8), indices, BRATS)
    assert (rgb[1:-1, 4] == render.class_color(3)).all()
    assert not (rgb[1:-1, 3] == render.class_color(1)).all(axis=-1).any()
    assert (rgb[0, :4] == render.class_color(1)).all(), "a lesion that runs out of the picture is closed there"


def test_overlay_without_lesions_is_the_plain_picture():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for schema in (BRATS, schema_of(2, 0)):
        rgb = render.overlay(gray, np.zeros((8, 8), np.uint8), schema)
        assert (rgb == gray[..., None]).all()


def test_label_map_gives_every_class_its_color():
    rgb = render.label_map(np.arange(4, dtype=np.uint8).reshape(2, 2), BRATS)
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert [tuple(rgb[i // 2, i % 2]) for i in (1, 2, 3)] == [render.class_color(i) for i in (1, 2, 3)]


def test_fifteen_colors_stay_apart_for_color_blind_readers():
    """Distances after a simulation of missing cones (Machado et al. 2009, severity 1), in linear RGB's square root."""
    views = {
        "normal": np.eye(3),
        "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteran": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    assert len(set(render.PALETTE)) == 15
    linear = (np.array(render.PALETTE) / 255) ** 2.2
    for name, matrix in views.items():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2) * 255
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(15)
        assert distance[:3, :3].min() > 60, name
        assert distance.min() > 20, name


@pytest.mark.parametrize("contrasts, classes", [(1, 0), (1, 1), (3, 1), (4, 3), (16, 15)])
@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_panels_are_legible_and_no_wider_than_allowed(contrasts, classes, resolution):
    schema = schema_of(contrasts, classes)
    image = render.panel(make(schema, resolution), schema, title="patient 7, slice 81")
    edge = resolution * max(1, -(-192 // resolution))
    tiles = contrasts + (2 if classes else 0)
    assert min(tiles, 2) * edge < image.width <= render.MAX_WIDTH
    assert image.width * image.height > tiles * edge**2, "every tile has its place"
    assert all(contains(image, render.class_color(i)) for i in range(1, classes + 1)), "the legend has every class"


def test_panels_show_every_pixel_of_a_large_slice():
    """At 256 nothing is resampled: the contrast stands in the picture as it is."""
    stored = make(BRATS, 256)
    gray = np.asarray(render.panel(stored, BRATS))[..., 0]
    for contrast in stored[: BRATS.num_contrasts]:
        starts = np.lib.stride_tricks.sliding_window_view(gray, (1, 6))[:-255, :-250, 0]
        y, x = np.argwhere((starts == contrast[0, :6]).all(axis=-1))[0]  # the last contrast comes again, with labels
        assert (gray[y : y + 256, x : x + 256] == contrast).all()


@pytest.mark.parametrize("contrasts, classes", [(1, 0), (2, 0), (3, 1), (4, 3), (16, 15)])
@pytest.mark.parametrize("resolution, count", [(16, 1), (64, 30), (64, 7), (256, 5)])
def test_sheets_fit_their_width(contrasts, classes, resolution, count):
    schema = schema_of(contrasts, classes)
    image = render.sheet(make(schema, resolution, count), schema)
    assert image.width <= render.MAX_WIDTH
    tiles = contrasts + (1 if classes else 0)
    if contrasts < 16:
        assert image.width * image.height > count * tiles * max(96, resolution) ** 2
    assert contains(image, render.class_color(1)) == bool(classes)


def test_sheets_take_the_columns_asked_for():
    stored = make(BRATS, 64, 6)
    one, three = render.sheet(stored, BRATS, columns=1), render.sheet(stored, BRATS, columns=3)
    assert three.width > 2.5 * one.width and one.height > 2 * three.height
    assert render.sheet(stored, BRATS, columns=6).width <= render.MAX_WIDTH


def test_titles_of_rows_stand_beside_them():
    stored = make(BRATS, 64, 6)
    plain, titled = (render.sheet(stored, BRATS, columns=2, row_titles=titles) for titles in ((), ("p = 0", "", "x")))
    assert titled.height == plain.height
    above_legend, added = slice(0, 400), titled.width - plain.width
    pictures, beside = np.asarray(titled)[above_legend, added:], np.asarray(titled)[above_legend, : added + 10]
    assert (pictures[:, 10:] == np.asarray(plain)[above_legend, 10:]).all(), "the pictures are as without titles"
    written = [(beside[row * 132 + 31 : row * 132 + 159] != beside[0, 0]).any() for row in range(3)]
    assert written == [True, False, True]
    assert render.sheet(stored, BRATS, columns=6, row_titles=("a title",)).width <= render.MAX_WIDTH


@pytest.mark.parametrize("contrasts, resolution, fitting", [(4, 64, 3), (3, 256, 2), (1, 64, 9), (16, 256, 1)])
def test_as_many_strips_fit_as_a_sheet_shows_at_full_size(contrasts, resolution, fitting):
    schema = schema_of(contrasts, 1)
    assert render.fitting_columns(schema, resolution) == fitting
    one, full, more = (
        render.sheet(make(schema, resolution, n), schema, columns=n).height for n in (1, fitting, fitting + 1)
    )
    assert one == full > more


def test_enlarging_mixes_no_labels():
    schema = schema_of(1, 2)
    indices = np.zeros((16, 16), np.uint8)
    indices[4:8, 4:12] = 2
    faces = dict(render._faces(schema.join(np.zeros((1, 16, 16), np.uint8), indices), schema, edge=192))
    enlarged = np.asarray(faces["label map"])
    assert (enlarged == np.kron(render.label_map(indices, schema), np.ones((12, 12, 1), np.uint8))).all()


def test_any_title_can_be_drawn():
    for title in ("x" * 4000, "Œdème ‹64×64› 東京 ± ²", ""):
        render.panel(make(BRATS, 16), BRATS, title=title)
    assert render._plain("64×64 ödem − 3") == "64x64 odem - 3"


def test_save_writes_a_complete_png_whatever_the_name(tmp_path):
    image = render.sheet(make(BRATS, 16, 2), BRATS)
    render.save(image, tmp_path / "reals.png")
    with Image.open(tmp_path / "reals.png") as again:
        assert again.format == "PNG" and (np.asarray(again) == np.asarray(image)).all()
    with pytest.raises(OSError):
        render.save(image, tmp_path / "no folder" / "reals.png")
    assert [p.name for p in tmp_path.iterdir()] == ["reals.png"]
