"""Seeded synthetic tumor patients in the BraTS 2018 layout, for trying the tools without data.

A patient is the MNI152 template, moved by a random affine map and a smooth random deformation, with a glioma grown
along its tissue borders. Positions are in mm, with axes to L, P, S and the origin at the center of the field of view.
All random numbers are drawn before the grid is known, so a patient has the same anatomy at every resolution.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, sparse
from tqdm import tqdm

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.files import folder_for
from dnnlib.processes import default_workers, map_in_order
from dnnlib.publish import Staged
from dnnlib.text import name_some
from slices.schema import BRATS

FIELD_OF_VIEW = (240, 240, 155)  # mm; with voxels of 1 mm also the shape of a BraTS volume
CONTRASTS = BRATS.contrasts
NECROSIS, EDEMA, ENHANCING = (lesion_class.value for lesion_class in BRATS.classes)
SMALLEST_SIDE = 16  # voxels

# Typical brightness relative to the contrast's brightest healthy tissue.
# Columns: gray matter, white matter, fluid; edema, enhancing rim, necrosis, non-enhancing core.
_BRIGHTNESS = np.array(
    [
        [0.74, 1.00, 0.30, 0.70, 0.74, 0.42, 0.56],  # t1
        [0.74, 0.97, 0.32, 0.70, 1.55, 0.42, 0.58],  # t1ce
        [0.55, 0.40, 1.00, 0.80, 0.62, 0.95, 0.88],  # t2
        [0.74, 0.60, 0.20, 1.18, 0.92, 0.50, 0.98],  # flair
    ],
    np.float32,
)

# MNI heads are tall: unscaled, they would fill the field of view from its lowest to its highest slice.
_HEAD_SCALE = np.array([0.98, 0.97, 0.86])
# Control point spacings of the smooth random fields, in mm.
_COARSE, _FINE, _BIAS, _WOBBLE, _LUMPS, _TEXTURE, _NOISE = 32.0, 12.0, 70.0, 14.0, 9.0, 4.0, 1.9
# Standard deviation of the coarse displacement in mm; less up and down, where the field of view is tight.
_SWAY = np.array([2.0, 2.0, 1.4], np.float32)
# Middle of the lateral ventricles, mm from the template's center.
_VENTRICLES = np.array([0, -2, 10], np.float32)

Field = Callable[[np.ndarray, float], np.ndarray]  # (control points, their spacing in mm) -> float32 [N], see `_field`


@dataclass(frozen=True)
class PhantomPatient:
    """One patient in the file's axes (L, P, S)."""

    name: str
    grade: str  # HGG or LGG
    contrasts: dict[str, np.ndarray]  # name -> int16 [X, Y, Z], background 0
    label_map: np.ndarray  # uint8 [X, Y, Z] of 0, 1, 2, 4
    affine: np.ndarray  # 4×4: voxels -> mm to R, A, S, as NIfTI has it


@dataclass(frozen=True)
class Traits:
    """Everything random about a patient. Nothing depends on the grid. Random fields are control points for `_field`."""

    grade: str
    enhances: bool
    head: np.ndarray  # [3, 3]: offset from the template's center -> offset from the center of the field of view
    shift: np.ndarray  # [3] mm
    coarse: np.ndarray  # [3, ...] displacement in mm
    fine: np.ndarray  # [3, ...] displacement in mm
    ventricles: float  # how much larger (or smaller) they are, as a share of their size
    place: float  # 0..1: quantile among the sites where a glioma may start
    radius: float  # mm, of the whole tumor
    core_radius: float  # mm
    core_offset: np.ndarray  # [3] mm
    rim: float  # mm, mean thickness of the enhancing rim
    whole_axes: np.ndarray  # [3, 3]: ellipsoid -> unit sphere, per unit of radius
    core_axes: np.ndarray  # [3, 3]
    push: float  # mass effect, as a share of the distance from the tumor's center
    wobble: np.ndarray  # unevenness of the tumor's borders
    lumps: np.ndarray  # finer unevenness of core and rim
    texture: np.ndarray  # of the signal inside the tumor
    brightness: np.ndarray  # [contrast, tissue]
    gain: np.ndarray  # [contrast] scanner units
    bias: np.ndarray  # [contrast, ...] logarithm of the bias field
    noise: np.ndarray  # [contrast, ...] of unit variance
    noise_level: np.ndarray  # [contrast] relative to the brightest healthy tissue


def make_patient(seed: int, index: int, shape: tuple[int, int, int] = FIELD_OF_VIEW) -> PhantomPatient:
    """Make patient number `index` of `seed`, on a grid of `shape` voxels over the field of view of BraTS.

    The result depends on the arguments only. Another shape shows the same anatomy at another resolution.
    """
    _check(seed, index, shape)
    voxel = (FIELD_OF_VIEW[0] / shape[0], FIELD_OF_VIEW[1] / shape[1], FIELD_OF_VIEW[2] / shape[2])  # mm
    traits = _draw(np.random.default_rng([seed, index]))
    box, axes = _head_box(traits, voxel, shape)
    place = _to_template(traits, axes)  # [3, X, Y, Z] of the box
    inside = _blurred(voxel)[0].at(place) > 0.5  # [X, Y, Z]

    # From here on, only the N voxels of the head are computed: boolean indexing flattens [X, Y, Z] to [N].
    def field(control: np.ndarray, spacing: float) -> np.ndarray:
        return _field(control, spacing, axes)[inside]

    place, lesion = _grow(traits, place[:, inside], field)  # [3, N], and distances [N]
    shares = _tissue_shares(place, lesion, traits.enhances, voxel)  # [7, N]
    images = {name: _signal(traits, c, shares, field) for c, name in enumerate(CONTRASTS)}
    return PhantomPatient(
        name=f"Phantom{seed:03d}_{index:04d}_1",
        grade=traits.grade,
        contrasts={name: _paste(image, inside, box, shape) for name, image in images.items()},
        label_map=_paste(_label_map(lesion, traits.enhances), inside, box, shape),
        affine=_affine(voxel),
    )


def _check(seed: int, index: int, shape: tuple[int, int, int]) -> None:
    """Raise UserError for arguments that make no patient."""
    if seed < 0 or index < 0:
        raise UserError(f"seed {seed}, patient {index}: expected numbers from 0 up")
    if len(shape) != 3 or min(shape) < SMALLEST_SIDE:
        given = "×".join(map(str, shape))
        raise UserError(
            f"a shape of {given} voxels: expected three sides of at least {SMALLEST_SIDE}, such as 96×96×62"
        )


# ---- drawing ----


def _draw(rng: np.random.Generator) -> Traits:
    """Draw all random numbers of one patient. Their order is part of what a seed means."""
    from scipy.spatial.transform import Rotation  # imported here, because --help should not wait for it

    grade = "LGG" if rng.random() < 0.2 else "HGG"
    enhances = bool(rng.random() < (0.25 if grade == "LGG" else 0.95))
    turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    # Only above the diagonal: a shear leaves the volume as it is.
    shear = np.eye(3) + np.triu(rng.uniform(-0.03, 0.03, (3, 3)), 1)
    scale = _HEAD_SCALE * rng.uniform(0.96, 1.04) * rng.uniform(0.96, 1.04, 3)
    radius = rng.uniform(16, 42)
    core_radius = max(11, radius * rng.uniform(0.5, 0.75))
    return Traits(
        grade=grade,
        enhances=enhances,
        head=turn @ shear @ np.diag(scale),
        shift=rng.uniform(-2, 2, 3) * [1, 1, 0.5],
        coarse=_controls(rng, 3, _COARSE) * _SWAY.reshape(3, 1, 1, 1),
        fine=_controls(rng, 3, _FINE),
        ventricles=rng.uniform(-0.15, 0.4),
        place=rng.random(),
        radius=radius,
        core_radius=core_radius,
        core_offset=(rng.uniform(-0.2, 0.2, 3) * (radius - core_radius)).astype(np.float32),
        rim=min(rng.uniform(5, 7.5), core_radius / 2),
        whole_axes=_ellipsoid(rng, 1.35),
        core_axes=_ellipsoid(rng, 1.25),
        push=rng.uniform(0.1, 0.35),
        wobble=_controls(rng, 1, _WOBBLE)[0],
        lumps=_controls(rng, 1, _LUMPS)[0],
        texture=_controls(rng, 1, _TEXTURE)[0],
        brightness=_BRIGHTNESS * rng.uniform(0.94, 1.06, _BRIGHTNESS.shape).astype(np.float32),
        gain=np.exp(rng.uniform(np.log(350), np.log(1100), len(CONTRASTS))).astype(np.float32),
        bias=0.07 * _controls(rng, len(CONTRASTS), _BIAS),
        noise=_controls(rng, len(CONTRASTS), _NOISE),
        noise_level=rng.uniform(0.01, 0.025, len(CONTRASTS)).astype(np.float32),
    )


def _ellipsoid(rng: np.random.Generator, elongation: float) -> np.ndarray:
    """[3, 3]: maps a randomly turned ellipsoid of volume 4π/3 to the unit sphere."""
    from scipy.spatial.transform import Rotation  # imported here, because --help should not wait for it

    stretch = np.exp(rng.uniform(-np.log(elongation), np.log(elongation), 3))
    # Divided by the geometric mean, so that the determinant is 1.
    return np.diag(stretch / np.prod(stretch) ** (1 / 3)) @ Rotation.random(rng=rng).as_matrix()


def _controls(rng: np.random.Generator, count: int, spacing: float) -> np.ndarray:
    """Control points of `count` random fields over the field of view: float32 [count, nx, ny, nz]."""
    # A position in cell i uses the control points i to i + 3; one more is spare.
    return rng.standard_normal((count, *(int(side // spacing) + 5 for side in FIELD_OF_VIEW)), dtype=np.float32)


def _field(control: np.ndarray, spacing: float, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Cubic B-spline of control points `spacing` mm apart, on a grid of positions: float32 [X, Y, Z].

    axes: positions in mm along each axis. Independent control points of unit variance give a smooth field, whose
    variance is 1 on average over positions.
    """
    # A B-spline in 3-D is one in 1-D, applied along each axis in turn.
    for side, positions in zip(FIELD_OF_VIEW, axes, strict=True):
        t = (positions + side / 2) / spacing  # [X], in spacings from the edge of the field of view
        cell = np.floor(t).astype(int)
        f = t - cell
        # The four control points around each position, and their weights: [4, X].
        weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3]) / 6
        weights *= np.sqrt(315 / 151)  # the squared cubic B-spline integrates to 151/315
        # The weights as a sparse matrix [X, nx], four entries a row.
        rows, columns = np.tile(np.arange(len(t)), 4), (cell + np.arange(4)[:, None]).ravel()
        basis = sparse.csr_array((weights.astype(np.float32).ravel(), (rows, columns)), shape=(len(t), len(control)))
        # Each pass moves the first axis to the end, so three passes bring the axes back: [nx, ny, nz] -> [ny, nz, X].
        # SciPy's sparse product uses one thread and one order of summation, so every process gets the same bytes.
        passed = (basis @ control.reshape(len(control), -1)).reshape(-1, *control.shape[1:])
        control = np.ascontiguousarray(np.moveaxis(passed, 0, 2))
    return control


# ---- anatomy ----


@dataclass(frozen=True)
class Map:
    """Values at every point of the template, such as the share of gray matter."""

    values: np.ndarray  # float32 [X, Y, Z], axes to L, P, S
    spacing: float  # mm between values
    origin: np.ndarray  # [3] mm: position of the first value, from the center of the template's brain

    def at(self, place: np.ndarray) -> np.ndarray:
        """Interpolated values at template positions [3, ...] in mm; 0 outside the map."""
        # The origin as [3, 1, …, 1], to broadcast against [3, ...].
        index = (place - self.origin.reshape(3, *[1] * (place.ndim - 1))) / np.float32(self.spacing)
        return ndimage.map_coordinates(self.values, index, np.float32, order=1)


@dataclass(frozen=True)
class Atlas:
    """The MNI152 brain, and what determines where a glioma starts and spreads."""

    size: np.ndarray  # [3] mm, of the brain
    brain: Map  # 0..1, share of the voxel
    gray: Map  # 0..1, share of the voxel
    white: Map  # 0..1, share of the voxel
    depth: Map  # mm to the nearest ventricle, fissure or brain surface; negative in fluid
    tract: Map  # `white` without its fine detail
    interior: Map  # 0 at the brain's surface, 1 well inside
    sites: np.ndarray  # [M, 3] mm: where a glioma may start
    odds: np.ndarray  # [M]: cumulative probability of the sites, up to 1


_loaded: Atlas | None = None


def _atlas() -> Atlas:
    """The atlas, made once per process."""
    global _loaded
    if _loaded is None:
        _loaded = _make_atlas()
    return _loaded


def _adopt(atlas: Atlas) -> None:
    """Use an atlas that another process made."""
    global _loaded
    _loaded = atlas


def _make_atlas() -> Atlas:
    """Derive the atlas from the template. What is smooth anyway is kept at 2 mm: [::2, ::2, ::2]."""
    brain, gray, white = _template()
    corners = np.argwhere(brain > 0.5)
    size = np.ptp(corners, axis=0).astype(np.float32)
    origin = (-corners.min(0) - size / 2).astype(np.float32)

    fluid = ndimage.gaussian_filter(1 - gray - white, 1.5)[::2, ::2, ::2]
    tissue = fluid < 0.5
    depth = 2 * (ndimage.distance_transform_edt(tissue) - ndimage.distance_transform_edt(~tissue)).astype(np.float32)
    tract = ndimage.gaussian_filter(white, 2.0)[::2, ::2, ::2]
    interior = np.clip(2 * ndimage.gaussian_filter(brain, 6.0)[::2, ::2, ::2] - 1, 0, 1)

    # Position of every value of the maps at 2 mm: [X, Y, Z, 3].
    places = np.stack(np.meshgrid(*(2 * np.arange(n) for n in depth.shape), indexing="ij"), -1) + origin
    side, back, up = np.abs(places[..., 0]), places[..., 1], places[..., 2]
    hemispheres = (side > 12) & (up > -38) & ((up > -12) | (back < 10))  # without midline, brain stem and cerebellum
    odds = np.where(hemispheres & (depth > 7), tract, 0)
    # float64, because many small numbers are added. `_grow` draws a site by looking up a number from 0 to 1.
    cumulative = np.cumsum(odds[odds > 0], dtype=np.float64)
    return Atlas(
        size=size,
        brain=Map(brain, 1.0, origin),
        gray=Map(gray, 1.0, origin),
        white=Map(white, 1.0, origin),
        depth=Map(depth, 2.0, origin),
        tract=Map(tract, 2.0, origin),
        interior=Map(interior, 2.0, origin),
        sites=places[odds > 0].astype(np.float32),
        odds=cumulative / cumulative[-1],
    )


def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brain mask, gray and white matter of MNI152 at 1 mm, cropped with a margin: float32 [X, Y, Z], to L, P, S."""
    try:
        from nilearn import datasets
    except ImportError:
        raise UserError(
            "phantom patients need nilearn, for its template of the brain: "
            "install it with `make setup`, or pip install 'nilearn>=0.10.3'"
        ) from None
    load = (datasets.load_mni152_brain_mask, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    maps = [np.asarray(one(resolution=1).dataobj, np.float32)[::-1, ::-1] for one in load]  # R, A, S -> L, P, S
    around = ndimage.find_objects((maps[0] > 0.5).astype(int))[0]
    brain, gray, white = (np.pad(m[around], 4) for m in maps)
    return brain, gray * brain, white * brain


@functools.lru_cache(maxsize=2)
def _blurred(voxel: tuple[float, float, float]) -> tuple[Map, Map, Map]:
    """Brain, gray and white matter, blurred for voxels of this size (mm), so that large voxels don't alias."""
    sigma = [0.4 * np.sqrt(max(0, side**2 - 1)) for side in voxel]

    def blurred(sharp: Map) -> Map:
        return replace(sharp, values=ndimage.gaussian_filter(sharp.values, sigma))

    atlas = _atlas()
    return blurred(atlas.brain), blurred(atlas.gray), blurred(atlas.white)


def _head_box(
    traits: Traits, voxel: Sequence[float], shape: Sequence[int]
) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """The box of voxels that can hold the head: for each axis a slice, and the positions of its voxels in mm."""
    # Half the edges of the box around the moved template: |matrix| @ half the edges before.
    reach = np.abs(traits.head) @ (_atlas().size / 2) + 10  # 10 mm: the deformation moves the surface by less
    box, axes = [], []
    for side, step, n, shift, half in zip(FIELD_OF_VIEW, voxel, shape, traits.shift, reach, strict=True):
        positions = (np.arange(n) + 0.5) * step - side / 2
        first, last = np.searchsorted(positions, [shift - half, shift + half])
        box.append(slice(int(first), int(last)))
        axes.append(positions[first:last])
    return tuple(box), axes


def _to_template(traits: Traits, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Positions of a grid (mm) in the template: float32 [3, X, Y, Z], mm."""
    back = np.linalg.inv(traits.head)
    x, y, z = (positions - shift for positions, shift in zip(axes, traits.shift, strict=True))
    place = np.empty((3, len(x), len(y), len(z)), np.float32)
    for i in range(3):
        # A row of `back` times (x, y, z), as a sum that broadcasts [X, 1, 1] + [Y, 1] + [Z].
        place[i] = (back[i, 0] * x)[:, None, None] + (back[i, 1] * y)[:, None] + back[i, 2] * z
        place[i] += _field(traits.coarse[i], _COARSE, axes) + _field(traits.fine[i], _FINE, axes)
    # Ventricles grow by looking up positions nearer to their middle.
    swell = np.float32(traits.ventricles) * _near(place, _VENTRICLES, 30)
    return place - (place - _VENTRICLES[:, None, None, None]) * swell


def _near(place: np.ndarray, center: np.ndarray, reach: float) -> np.ndarray:
    """Closeness to a center: 1 there, falling off over `reach` mm. Positions [3, ...] -> [...]."""
    away = place - center.astype(np.float32).reshape(3, *[1] * (place.ndim - 1))
    return np.exp(-np.square(away).sum(0) / np.float32(reach**2))


# ---- tumor ----


@dataclass(frozen=True)
class Lesion:
    """Signed distances of head voxels to a tumor's three borders, about in mm: float32 [N], negative inside."""

    whole: np.ndarray  # contains the core; between the two lies edema
    core: np.ndarray  # contains the necrosis; between the two lies the enhancing rim
    necrosis: np.ndarray


def _grow(traits: Traits, place: np.ndarray, field: Field) -> tuple[np.ndarray, Lesion]:
    """Grow a tumor: template positions [3, N] -> positions displaced by its mass, and the tumor.

    Edema spreads along white matter. Nothing crosses into fluid or out of the brain: the edema ends where `depth` is 0,
    the core a little before, and the necrosis a rim's thickness before the core.
    """
    atlas = _atlas()
    # Inverse of the cumulative probability: a uniform number chooses a site by its odds.
    center = atlas.sites[np.searchsorted(atlas.odds, traits.place)]
    away = place - center[:, None]
    push = traits.push * _near(place, center, 1.5 * traits.core_radius) * atlas.interior.at(place)
    place = place - away * push

    away = _turn(traits.head, away)  # in mm of the patient
    depth, tract = atlas.depth.at(place), atlas.tract.at(place)
    wobble, lumps = field(traits.wobble, _WOBBLE), field(traits.lumps, _LUMPS)
    across = np.maximum(0, -np.sign(center[0]) * place[0])  # mm beyond the midline; the falx is a barrier

    # The maximum of signed distances is the intersection of bodies, the minimum is their union.
    core = _ellipsoid_distance(away - traits.core_offset[:, None], traits.core_axes, traits.core_radius)
    core = np.maximum(core + 1.5 * wobble + lumps + across, 2 - depth)
    whole = _ellipsoid_distance(away, traits.whole_axes, traits.radius)
    whole = whole + 2 * wobble + 18 * (0.65 - tract) + 1.5 * across
    whole = np.maximum(np.minimum(whole, core - 2), -depth)
    rim = traits.rim * (1 + 0.25 * lumps).clip(0.7, 1.5)
    return place, Lesion(whole, core, core + rim)


def _turn(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """[3, 3] times [3, N], without BLAS: its last bits may depend on the number of threads."""
    return np.einsum("ij,jn->in", matrix.astype(np.float32), vectors)


def _ellipsoid_distance(away: np.ndarray, axes: np.ndarray, radius: float) -> np.ndarray:
    """Approximate distance in mm from positions [3, N] to an ellipsoid: float32 [N], negative inside."""
    # The unit sphere's distance, divided by how fast it changes per mm (first order).
    scaled = _turn(axes, away)
    norm = np.sqrt(np.square(scaled).sum(0))
    slope = np.sqrt(np.square(_turn(axes.T, scaled)).sum(0)) / np.maximum(norm, 1e-3)  # of the norm, per mm
    return (norm - np.float32(radius)) / np.maximum(slope, 0.5)


def _label_map(lesion: Lesion, enhances: bool) -> np.ndarray:
    """Label values, uint8 [N] of 0, 1, 2, 4. Without enhancement, label 1 (non-enhancing) is all of the core."""
    # Each border lies within the one before, so later lines overwrite earlier ones.
    labels = np.where(lesion.whole < 0, EDEMA, 0)
    labels[lesion.core < 0] = ENHANCING if enhances else NECROSIS
    labels[lesion.necrosis < 0] = NECROSIS
    return labels.astype(np.uint8)


# ---- signal ----


def _tissue_shares(place: np.ndarray, lesion: Lesion, enhances: bool, voxel: tuple[float, float, float]) -> np.ndarray:
    """Share of each tissue in each voxel, in the order of _BRIGHTNESS: float32 [7, N]; they sum to 1."""
    _, gray, white = (m.at(place) for m in _blurred(voxel))
    healthy = np.stack([gray, white, np.maximum(0, 1 - gray - white)])
    borders = ((lesion.whole, 3.0), (lesion.core, 1.5), (lesion.necrosis, 2.0))  # (distance, width of the border in mm)
    # 1 inside, 0 outside, and a ramp across each border: float32 [N] each.
    whole, core, necrosis = (
        np.clip(0.5 - distance / np.float32(max(width, *voxel)), 0, 1) for distance, width in borders
    )
    none = np.zeros_like(core)
    in_core = [core - necrosis, necrosis, none] if enhances else [none, none, core]
    # What lies between two borders is the difference of the ramps.
    return np.stack([*(healthy * (1 - whole)), whole - core, *in_core])


def _signal(traits: Traits, contrast: int, shares: np.ndarray, field: Field) -> np.ndarray:
    """Intensities of one contrast in scanner units: int16 [N], at least 1, because 0 is the background."""
    # In turn: tissues, texture of the tumor, vessels, bias field, noise, gain.
    brightness = traits.brightness[contrast]
    image = sum(b * share for b, share in zip(brightness, shares, strict=True))
    # Rows from 3 on are the tissues of the tumor.
    image *= 1 + 0.1 * shares[3:].sum(0) * field(traits.texture, _TEXTURE)
    if CONTRASTS[contrast] == "t1ce":  # vessels
        image += 0.5 * shares[2] * (field(traits.lumps, _LUMPS) - 0.8).clip(0, 1)
    image *= np.exp(field(traits.bias[contrast], _BIAS))
    image += traits.noise_level[contrast] * field(traits.noise[contrast], _NOISE)
    return np.rint(image * traits.gain[contrast]).clip(1, 32767).astype(np.int16)


def _paste(values: np.ndarray, inside: np.ndarray, box: tuple[slice, ...], shape: Sequence[int]) -> np.ndarray:
    """Head voxels [N] -> whole volume [X, Y, Z] with background 0."""
    volume = np.zeros(shape, values.dtype)
    # `volume[box]` is a view, so assigning to its head voxels fills the volume.
    volume[box][inside] = values
    return volume


def _affine(voxel: Sequence[float]) -> np.ndarray:
    """Affine, 4×4: voxel indices -> mm to R, A, S. The field of view lies where BraTS has it, at any voxel size."""
    affine = np.diag([-voxel[0], -voxel[1], voxel[2], 1.0])
    affine[:3, 3] = np.array([0.5, 239.5, -0.5]) + affine[:3, :3] @ [0.5, 0.5, 0.5]
    return affine


# ---- files ----


@dataclass(frozen=True)
class PhantomOptions(Checked):
    """Options of `dataset_tool.py phantom`."""

    dest: Path = option("Folder to write; convert reads it.")
    patients: int = option("Number of patients.", least=1)
    seed: int = option("Seed of the random numbers: another one gives other patients.")
    shape: str = option(
        "Voxels from right to left, front to back, feet to head. With fewer, the same anatomy is coarser.",
        default="x".join(map(str, FIELD_OF_VIEW)),
    )
    workers: int = option(
        "Processes; the result does not depend on it.",
        default=default_workers,
        shown="number of CPUs, at most 8",
        least=1,
    )
    force: bool = option("Replace what is there.", switch=True)

    @property
    def voxels(self) -> tuple[int, int, int]:
        match = re.fullmatch(r"([0-9]{1,9})[x×]([0-9]{1,9})[x×]([0-9]{1,9})", self.shape)
        if match is None:
            raise UserError(f"--shape {name_some([self.shape])}: expected three whole numbers such as 240x240x155")
        return int(match[1]), int(match[2]), int(match[3])


def write_patients(
    dest: str | os.PathLike,
    patients: int,
    seed: int,
    shape: tuple[int, int, int] = FIELD_OF_VIEW,
    workers: int = 1,
    force: bool = False,
) -> None:
    """Write patients 0 to patients − 1 of `seed` as dest/{HGG,LGG}/<name>/<name>_{t1,t1ce,t2,flair,seg}.nii.gz.

    The folder of a case appears when it is complete. Raises UserError if `dest` is not empty. With `force`, cases of
    the same name are replaced, and everything else stays.
    """
    if patients < 1 or workers < 1:
        raise UserError(f"{patients} patients by {workers} workers: expected at least one of each")
    _check(seed, 0, shape)
    dest = Path(dest)
    if dest.is_dir() and any(dest.iterdir()) and not force:
        raise UserError(
            f"{dest} is not empty: choose another folder, or pass --force to replace cases of the same name"
        )
    write = functools.partial(_write_case, dest, seed, shape, force)
    # Workers get the atlas from this process: importing nilearn in each takes longer than making a small patient.
    hand_over = functools.partial(_adopt, _atlas()) if min(workers, patients) > 1 else None
    written = map_in_order(write, range(patients), workers, set_up=hand_over)
    with folder_for(dest), contextlib.closing(written):
        for _ in tqdm(written, total=patients, desc="phantom patients", unit="patient"):
            pass


def _write_case(dest: Path, seed: int, shape: tuple[int, int, int], force: bool, index: int) -> None:
    """Make a patient and write its files. Runs in a worker process."""
    patient = make_patient(seed, index, shape)
    final = dest / patient.grade / patient.name
    with folder_for(final.parent), Staged(final, force) as staged:
        folder = staged.place(final)
        folder.mkdir()
        for suffix, volume in {**patient.contrasts, "seg": patient.label_map}.items():
            image = nib.Nifti1Image(volume, patient.affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / f"{patient.name}_{suffix}.nii.gz")
