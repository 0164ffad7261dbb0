from __future__ import annotations

import pytest
import torch

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.errors import UserError
from convatlas.models.build import build_model
from convatlas.tasks.activation_maps import activation_map_figure, class_activation_maps
from convatlas.tasks.figures import first_filters, mosaic


def net_of(*overrides: str) -> torch.nn.Module:
    with hydra_ready():
        config = compose_run(["data=digits", *overrides], {"variant": "test", "seeds": [0]})
    torch.manual_seed(0)
    return build_model(config.model).eval()


@pytest.mark.parametrize("model", ["resnet_cifar", "mobilenet_v2_small", "densenet_cifar", "efficientnet_small"])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(model):
    net, images = net_of(f"model={model}"), torch.rand(3, 1, 64, 64)
    maps, classes = class_activation_maps(net, images)
    with torch.no_grad():
        logits = net(images)
    last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert maps.shape[-1] > 1
    assert classes.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(maps.mean((1, 2)) + last.bias[classes], logits.max(1).values, rtol=1e-4, atol=1e-5)


def test_a_net_with_layers_behind_the_maps_is_refused():
    with pytest.raises(UserError, match=r"recipe.activation_maps=true: this net does not end with the mean"):
        class_activation_maps(net_of("model=vgg_small"), torch.rand(1, 1, 32, 32))


def test_the_picture_has_an_image_and_a_map_each():
    figure = activation_map_figure(net_of("model=resnet_cifar"), torch.rand(3, 1, 32, 32), list("0123456789"))
    assert len(figure.axes) == 6
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 2, 2, 2]


def test_the_kernels_of_the_first_layer_are_drawn_where_they_see_the_image():
    assert first_filters(net_of("model=vgg_small")).shape[1:] == (1, 3, 3)
    assert first_filters(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 3))) is None
    (axes,) = mosaic(torch.rand(10, 1, 3, 3), columns=4).axes
    assert axes.images[0].get_array().shape == (3 * 4 + 1, 4 * 4 + 1, 3)  # three rows of four, a pixel between
