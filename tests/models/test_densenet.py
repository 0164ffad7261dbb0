"""ImageNet DenseNet: depths and image sizes."""

import pickle

import pytest
import torch

from convatlas.models.classification.densenet import densenet
from convatlas.models.costs import on_meta_device


def test_the_smallest_image_that_fits_leaves_one_pixel_and_the_next_smaller_is_refused():
    net = on_meta_device(densenet).eval()
    assert net.features(torch.zeros(1, 3, 29, 29, device="meta")).shape == (1, 1024, 1, 1)
    assert net(torch.zeros(1, 3, 29, 29, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"^data\.image_size: densenet121 takes images from 29x29 pixels"):
        net(torch.zeros(1, 3, 28, 29, device="meta"))


def test_depths_that_are_not_the_paper_s_are_refused():
    with pytest.raises(ValueError, match=r"^model\.depth=264 .*121, 161, 169, 201\.$"):
        densenet(depth=264)


def test_the_net_can_be_pickled_with_its_check():
    net = pickle.loads(pickle.dumps(on_meta_device(densenet)))
    with pytest.raises(ValueError, match=r"^data\.image_size: densenet121 "):
        net(torch.zeros(2, 3, 28, 28, device="meta"))
