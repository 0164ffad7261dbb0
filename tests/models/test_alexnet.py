"""AlexNet's two towers, their exchange, and where they stand."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from convatlas.models.classification.alexnet import AlexNet
from convatlas.models.costs import on_meta_device

SMALL = {
    "image_size": 32,
    "stem": "small",
    "width": 0.125,
    "initialisation": "he",
    "num_classes": 10,
    "in_channels": 1,
}


def test_layers_have_the_papers_kernels():
    tower = on_meta_device(AlexNet).tower1
    convolutions = [tower.conv1, tower.conv2, tower.conv3, tower.conv4, tower.conv5]
    assert [tuple(layer.weight.shape) for layer in convolutions] == [
        (48, 3, 11, 11),
        (128, 48, 5, 5),
        (192, 256, 3, 3),
        (192, 192, 3, 3),
        (128, 192, 3, 3),
    ]


def test_maps_are_those_of_figure_2():
    net = on_meta_device(AlexNet)
    images = torch.zeros(1, 3, 227, 227, device="meta")
    assert net.tower1.conv1(images).shape == (1, 48, 55, 55)
    assert net.tower1.start(images).shape == (1, 128, 13, 13)
    assert net.forward_features(images).shape == (1, 256, 6, 6)


def test_towers_equal_one_net_with_grouped_convolutions():
    torch.manual_seed(0)
    net = AlexNet(**SMALL).double().eval()
    one, two = net.tower1, net.tower2

    def both(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        layers = getattr(one, name), getattr(two, name)
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([net.tower1.norm(half) for half in x.chunk(2, dim=1)], dim=1)

    images = torch.randn(2, 1, 32, 32, dtype=torch.double)
    x = F.max_pool2d(normalise(F.relu(F.conv2d(images, *both("conv1"), padding=2))), 3, stride=2)
    x = F.max_pool2d(normalise(F.relu(F.conv2d(x, *both("conv2"), padding=2, groups=2))), 3, stride=2)
    x = F.relu(F.conv2d(x, *both("conv3"), padding=1))
    x = F.relu(F.conv2d(x, *both("conv4"), padding=1, groups=2))
    x = F.max_pool2d(F.relu(F.conv2d(x, *both("conv5"), padding=1, groups=2)), 3, stride=2)
    x = F.relu(F.linear(x.flatten(1), *both("fc6")))
    x = F.relu(F.linear(x, *both("fc7")))
    torch.testing.assert_close(net(images), net.fc8(x))


def test_pooling_windows_overlap():
    net = AlexNet(**SMALL).eval()
    net.tower1.conv1.weight.data.zero_()
    net.tower1.conv1.weight.data[0, 0, 2, 2] = 1.0
    net.tower1.conv1.bias.data.zero_()
    spot = torch.zeros(1, 1, 32, 32)
    spot[0, 0, 4, 4] = 1.0
    pooled = F.max_pool2d(F.relu(net.tower1.conv1(spot)), 3, stride=2)[0, 0]
    seen = []
    net.tower1.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(spot)
    assert (seen[0][0, 0] > 0).sum() == 4
    assert torch.equal(seen[0][0, 0] > 0, pooled > 0)


def test_biases_start_at_one_where_the_paper_says():
    net = AlexNet(image_size=67, width=0.05)
    starts = {name: set(p.tolist()) for name, p in net.named_parameters() if name.endswith("bias")}
    for tower in ("tower1", "tower2"):
        for layer in ("conv2", "conv4", "conv5", "fc6", "fc7"):
            assert starts[f"{tower}.{layer}.bias"] == {1.0}
        for layer in ("conv1", "conv3"):
            assert starts[f"{tower}.{layer}.bias"] == {0.0}
    assert starts["fc8.bias"] == {0.0}


def test_towers_on_two_devices_pass_everything_to_where_it_is_needed():
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda:0"):
            net = AlexNet(**SMALL)
        with torch.device("cuda:1"):
            net.tower2 = AlexNet(**SMALL).tower2
        logits = net(torch.zeros(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.device == torch.device("cuda:0")


def test_towers_stay_in_their_places_when_the_net_is_converted():
    net = AlexNet(**SMALL, devices=["cpu", "meta"]).double()
    assert {p.device.type for p in [*net.tower1.parameters(), *net.fc8.parameters()]} == {"cpu"}
    assert {p.device.type for p in net.tower2.parameters()} == {"meta"}
    assert {p.dtype for p in net.parameters()} == {torch.double}


@pytest.mark.gpu
def test_two_devices_give_the_logits_of_one():
    torch.manual_seed(0)
    net = AlexNet(**SMALL).eval()
    images = torch.randn(2, 1, 32, 32)
    expected = net(images)
    apart = AlexNet(**SMALL, devices=["cuda:0", "cpu"]).eval()
    apart.load_state_dict(net.state_dict())
    apart.to("cuda:0")
    assert apart.tower2.device.type == "cpu"
    torch.testing.assert_close(apart(images).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "large"}, r"^model\.stem=large .*imagenet, small"),
        ({"initialisation": "zero"}, r"^model\.initialisation=zero .*paper, he"),
        ({"devices": ["cpu"]}, r"^model\.devices=.*two devices"),
        ({"devices": ["cpu", "cuda:99"]}, r"^model\.devices=.*no cuda:99 here"),
        ({"devices": ["cpu", "gpu"]}, r"^model\.devices=.*no gpu here"),
        ({"width": 0.0}, r"^model\.width=0"),
        ({"dropout": 1.0}, r"^model\.dropout=1"),
        ({"image_size": 66}, r"^model\.image_size=66 .*67"),
        ({"image_size": 14, "stem": "small"}, r"^model\.image_size=14 .*15"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: AlexNet(**options))


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 67), ("small", 15)])
def test_smallest_images_that_the_message_names_do_fit(stem, smallest):
    net = on_meta_device(lambda: AlexNet(stem=stem, image_size=smallest, num_classes=3))
    assert net(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 3)


def test_images_of_another_size_are_refused_with_the_option_to_set():
    with pytest.raises(ValueError, match=r"^model\.image_size=227 does not fit images of 224x224"):
        on_meta_device(AlexNet)(torch.zeros(1, 3, 224, 224, device="meta"))
