"""The libraries' Inception nets and Xception: their outputs, and their narrow forms."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from convatlas.models.classification.inception import AuxiliaryOutput, InceptionResNetV2, InceptionV3, Xception
from convatlas.models.costs import count_parameters, on_meta_device

NARROW = {"stem": "small", "width": 0.125, "num_classes": 10, "in_channels": 1}
V3 = (InceptionV3, {"auxiliary": False}, lambda: torchvision.models.inception_v3(aux_logits=False, init_weights=False))
RESNET = (InceptionResNetV2, {}, lambda: timm.create_model("inception_resnet_v2"))
XCEPTION = (Xception, {}, lambda: timm.create_model("legacy_xception"))
SHALLOW = {InceptionV3: {"auxiliary": False}, InceptionResNetV2: {"blocks": [1, 1, 1]}, Xception: {}}
NETS = pytest.mark.parametrize(
    ("net", "options", "library"), [V3, RESNET, XCEPTION], ids=["inception_v3", "inception_resnet_v2", "xception"]
)


def test_training_returns_an_auxiliary_classifier_that_weighs_four_tenths():
    net = on_meta_device(InceptionV3).train()
    output = net(torch.zeros(2, 3, 299, 299, device="meta"))
    assert isinstance(output, AuxiliaryOutput)
    assert [logits.shape for logits in (output.logits, *output.auxiliary)] == [(2, 1000), (2, 1000)]
    assert net.auxiliary_loss_weights == (0.4,)


def test_evaluation_returns_logits_alone():
    net = on_meta_device(InceptionV3).eval()
    assert net(torch.zeros(2, 3, 299, 299, device="meta")).shape == (2, 1000)


def test_without_auxiliary_classifier_training_returns_logits():
    net = on_meta_device(lambda: InceptionV3(auxiliary=False, **NARROW)).train()
    assert net(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 10)
    assert net.auxiliary_loss_weights == ()


@NETS
def test_every_layer_is_narrower_by_the_same_factor(net, options, library):
    narrow = on_meta_device(lambda: net(width=0.125, **options)).net
    wide = on_meta_device(library)
    pairs = zip(narrow.modules(), wide.modules(), strict=True)
    layers = [(a, b) for a, b in pairs if isinstance(b, nn.Conv2d)]
    assert len(layers) > 30
    for a, b in layers:
        assert a.out_channels * 8 == b.out_channels
        assert a.in_channels * 8 == b.in_channels or (a.in_channels, b.in_channels) == (3, 3)
        assert (a.kernel_size, a.stride, a.padding) == (b.kernel_size, b.stride, b.padding)
        assert (a.groups == 1) == (b.groups == 1)


@NETS
def test_full_width_is_the_librarys_net(net, options, library):
    theirs = on_meta_device(library).state_dict()
    ours = on_meta_device(lambda: net(**options)).net.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("net", SHALLOW)
def test_narrow_nets_have_real_weights_that_differ(net):
    torch.manual_seed(0)
    small = net(**SHALLOW[net], **NARROW)
    assert not any(t.is_meta for t in [*small.parameters(), *small.buffers()])
    weights = [m.weight for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(torch.isfinite(weight).all() and weight.std() > 0 for weight in weights)
    assert all((m.running_var == 1).all() for m in small.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("net", SHALLOW)
def test_logits_are_made_of_the_pooled_features(net):
    small = net(**SHALLOW[net], **NARROW).eval()
    images = torch.randn(2, 1, 32, 32)
    classifier = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    with torch.inference_mode():
        torch.testing.assert_close(small(images), classifier(small.forward_features(images).mean((2, 3))))


def test_residual_blocks_can_be_fewer():
    shallow = InceptionResNetV2(blocks=[2, 4, 2], **NARROW).net
    assert [len(part) for part in (shallow.repeat, shallow.repeat_1, shallow.repeat_2)] == [2, 4, 2]
    assert count_parameters(shallow) < count_parameters(InceptionResNetV2(**NARROW))


def test_without_residual_blocks_the_reductions_still_fit():
    assert InceptionResNetV2(blocks=[0, 0, 0], **NARROW).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("build", "smallest"),
    [
        (lambda: InceptionV3(auxiliary=False), 75),
        (lambda: InceptionV3(auxiliary=False, stem="small"), 21),
        (InceptionResNetV2, 75),
        (lambda: InceptionResNetV2(stem="small"), 21),
        (Xception, 7),
        (lambda: Xception(stem="small"), 5),
    ],
)
def test_images_below_the_smallest_are_refused_and_the_smallest_is_not(build, smallest):
    net = on_meta_device(build).eval()
    assert net(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=rf"^data\.image_size: .*{smallest}x{smallest}"):
        net(torch.zeros(1, 3, 99, smallest - 1, device="meta"))


def test_the_auxiliary_classifier_needs_299_pixels_in_training_only():
    net = on_meta_device(InceptionV3)
    images = torch.zeros(2, 3, 298, 298, device="meta")
    assert net.eval()(images).shape == (2, 1000)
    with pytest.raises(ValueError, match=r"^data\.image_size: .*299x299"):
        net.train()(images)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InceptionV3(stem="small"), r"^model\.auxiliary=true .*model\.auxiliary=false"),
        (lambda: InceptionV3(width=0.3), r"^model\.width=0\.3 .*0\.125"),
        (lambda: Xception(width=0.0), r"^model\.width=0"),
        (lambda: Xception(stem="large"), r"^model\.stem=large"),
        (lambda: Xception(dropout=1.0), r"^model\.dropout=1"),
        (lambda: InceptionResNetV2(blocks=[1, 2]), r"^model\.blocks=\[1, 2\] .*\[10, 20, 9\]"),
        (lambda: InceptionResNetV2(blocks=[11, 20, 9]), r"^model\.blocks=\[11, 20, 9\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(build)
