"""The sentences that say which depths and image sizes fit."""

import pytest
import torch

from convatlas.models.checks import blocks_for_depth, require_image_size, require_positive, require_probability


@pytest.mark.parametrize(("depth", "step", "others", "blocks"), [(20, 6, 2, 3), (1001, 9, 2, 111), (7, 3, 4, 1)])
def test_blocks_invert_the_depth_formula(depth, step, others, blocks):
    assert blocks_for_depth(depth, step, others) == blocks


@pytest.mark.parametrize(
    ("depth", "step", "others", "remedy"),
    [
        (41, 3, 4, "the nearest that fit are 40 and 43."),
        (21, 6, 2, "the nearest that fit are 20 and 26."),
        (4, 3, 4, "the smallest that fits is 7."),
        (-5, 6, 2, "the smallest that fits is 8."),
    ],
)
def test_a_depth_that_does_not_fit_is_answered_with_those_that_do(depth, step, others, remedy):
    with pytest.raises(ValueError, match=rf"^model\.depth={depth} is not .*{remedy}$"):
        blocks_for_depth(depth, step, others)


def test_the_shorter_side_decides_whether_an_image_is_too_small():
    require_image_size(torch.zeros(1, 1, 4, 9), 4, "this net")
    message = r"^data\.image_size: this net takes images from 4x4 pixels; these have 9x3\. Set data\.image_size=4"
    with pytest.raises(ValueError, match=message):
        require_image_size(torch.zeros(1, 1, 9, 3), 4, "this net")


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_probabilities_end_below_one(value):
    require_probability("dropout", 0.0)
    with pytest.raises(ValueError, match=r"^model\.dropout="):
        require_probability("dropout", value)


def test_widths_begin_at_one():
    require_positive("width", 1)
    with pytest.raises(ValueError, match=r"^model\.width=0 must be at least 1\.$"):
        require_positive("width", 0)
