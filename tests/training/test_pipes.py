"""Names of pipes and transformations, as --augpipe takes them."""

import pytest

from dnnlib.errors import UserError
from training.augment.pipes import PIPES, TRANSFORMATIONS, parse_pipe

GEOMETRY = ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")


def test_published_pipes():
    assert parse_pipe("bg", 3).names == GEOMETRY
    assert parse_pipe("bgc", 3).names == (*GEOMETRY, "brightness", "contrast", "lumaflip", "hue", "saturation")
    assert parse_pipe("bgcfnc", 3).names == TRANSFORMATIONS
    assert all(parse_pipe(name, 3).names == PIPES[name] for name in PIPES)


def test_pipes_and_transformations_are_joined_in_the_order_of_application():
    pipe = parse_pipe("cutout, scale,blit,xint", 4)
    assert pipe.names == ("xflip", "rotate90", "xint", "scale", "cutout")
    assert pipe.remarks == ()


@pytest.mark.parametrize("contrasts, missing", [(1, {"lumaflip", "hue", "saturation"}), (4, {"lumaflip", "hue"})])
def test_what_the_contrasts_lack_is_left_out_of_pipes_with_a_remark(contrasts, missing):
    pipe = parse_pipe("color,noise", contrasts)
    assert set(PIPES["color"]) - set(pipe.names) == missing
    assert all(any(name in remark for remark in pipe.remarks) for name in missing)
    assert all(f"the archive has {contrasts}" in remark for remark in pipe.remarks)


@pytest.mark.parametrize("text, contrasts", [("bgc,hue", 4), ("lumaflip", 1), ("hue", 2), ("saturation,bg", 1)])
def test_what_the_contrasts_lack_is_refused_by_its_own_name(text, contrasts):
    with pytest.raises(UserError, match="leave .* out"):
        parse_pipe(text, contrasts)


@pytest.mark.parametrize("text, hint", [("bcg", "Did you mean bg"), ("rotat", "Did you mean rotate"), ("", "blit")])
def test_unknown_names(text, hint):
    with pytest.raises(UserError, match=hint):
        parse_pipe(text, 4)
    with pytest.raises(UserError, match="no pipe and no augmentation"):
        parse_pipe(f"bg,{text}", 4)
