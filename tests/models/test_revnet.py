"""RevNet: units, shortcuts, the memory-saving backward pass."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas import create_model
from convatlas.models.classification.revnet import PaddedPool, RevNet, ShapeChange, revnet_cifar
from convatlas.models.costs import activation_bytes, count_parameters, on_meta_device
from convatlas.models.layers.reversible import AdditiveBlock


def small_net(depth=38, **options):
    torch.manual_seed(0)
    return revnet_cifar(depth=depth, filters=[8, 8, 16, 28], **options)


def trained_step(net, images):
    F.cross_entropy(net(images), torch.arange(len(images))).backward()
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("depth", "classes", "parameters"),
    [(38, 10, 464_890), (38, 100, 475_060), (110, 10, 1_729_194), (164, 10, 1_748_778), (164, 100, 1_794_948)],
)
def test_the_published_nets_have_the_authors_parameters(depth, classes, parameters):
    net = on_meta_device(lambda: revnet_cifar(depth=depth, num_classes=classes))
    assert count_parameters(net) == parameters


def test_revnet_104_and_56_have_the_authors_parameters():
    assert count_parameters(on_meta_device(RevNet)) == 45_428_072
    assert count_parameters(on_meta_device(lambda: RevNet(units=[2, 2, 3, 2]))) == 27_553_128


@pytest.mark.parametrize("depth", [38, 110, 164])
def test_depth_counts_the_convolutions_of_the_branches_the_stem_and_the_classifier(depth):
    net = on_meta_device(lambda: revnet_cifar(depth=depth))
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(layers) == depth


def test_all_units_but_those_that_change_the_shape_are_reversible():
    net = on_meta_device(lambda: revnet_cifar(depth=38))
    assert [type(stage.first).__name__ for stage in net.stages] == ["NoneType", "ShapeChange", "ShapeChange"]
    assert [sum(isinstance(m, AdditiveBlock) for m in stage.modules()) for stage in net.stages] == [3, 2, 2]
    bottleneck = on_meta_device(lambda: revnet_cifar(depth=164))
    assert all(isinstance(stage.first, ShapeChange) for stage in bottleneck.stages)


def test_only_the_very_first_branch_begins_without_activation():
    net = on_meta_device(lambda: revnet_cifar(depth=38))
    firsts = [branch[0] for name, branch in net.named_modules() if name.endswith((".f.branch", ".g.branch"))]
    assert [isinstance(first, nn.Conv2d) for first in firsts] == [True] + [False] * (len(firsts) - 1)
    assert all(module.eps == 1e-3 for module in net.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_unit_that_changes_the_shape_has_a_shortcut_for_each_half():
    torch.manual_seed(0)
    unit = ShapeChange(4, 10, 2, bottleneck=False, activated=True).eval()
    x1, x2 = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    y1, y2 = unit(x1, x2)
    pooled = torch.zeros(2, 2, 10, 3, 3)
    for n, x in enumerate((x1, x2)):
        pooled[n, :, 3:7] = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    assert torch.allclose(y1, pooled[0] + unit.f(x2), atol=1e-6)
    assert torch.allclose(y2, pooled[1] + unit.g(y1), atol=1e-6)


def test_bottlenecks_project_with_the_stride_and_without_normalisation():
    unit = ShapeChange(4, 16, 2, bottleneck=True, activated=True)
    for shortcut in (unit.shortcut1, unit.shortcut2):
        assert isinstance(shortcut, nn.Conv2d)
        assert (shortcut.kernel_size, shortcut.stride, shortcut.bias) == ((1, 1), (2, 2), None)
    kernels = [(m.kernel_size[0], m.stride[0], m.out_channels) for m in unit.f if isinstance(m, nn.Conv2d)]
    assert kernels == [(1, 2, 4), (3, 1, 4), (1, 1, 16)]
    assert not isinstance(unit.shortcut1, PaddedPool)


# ---- the memory-saving form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"depth": 38}, {"depth": 38, "bottleneck": True}])
def test_saving_memory_changes_neither_gradients_nor_statistics(options):
    """In float64: at the kinks of ReLU float32's last bit alone can change a gradient by a percent."""
    torch.manual_seed(1)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    plain, saving = (small_net(memory_saving=memory_saving, **options).double() for memory_saving in (False, True))
    assert plain.state_dict().keys() == saving.state_dict().keys()
    expected, found = trained_step(plain, images), trained_step(saving, images)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-11 * gradient.abs().max(), name
    for (name, p), (_, q) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(p, q), name


@cache
def stored_bytes(units, memory_saving):
    net = on_meta_device(
        lambda: revnet_cifar(depth=12 * units + 2, filters=[32, 32, 64, 128], memory_saving=memory_saving)
    )
    return activation_bytes(net, torch.zeros(2, 3, 32, 32, device="meta"))


def test_saving_memory_stores_the_same_with_3_and_9_units_a_stage():
    assert stored_bytes(9, True) == stored_bytes(3, True)
    assert stored_bytes(9, False) > 2.5 * stored_bytes(3, False) > 5 * stored_bytes(3, True)


@pytest.mark.slow
def test_saving_memory_stores_the_same_with_27_units_a_stage():
    assert stored_bytes(27, True) == stored_bytes(3, True)
    assert stored_bytes(27, False) > 2.5 * stored_bytes(9, False)


@pytest.mark.parametrize("name", ["revnet_small", "irevnet_small"])
def test_a_reversible_net_saves_memory_unless_told_otherwise(name):
    plain, saving = (on_meta_device(lambda o=o: create_model(name, **o)) for o in ({"memory_saving": False}, {}))
    images = torch.zeros(2, 3, 32, 32, device="meta")
    assert activation_bytes(saving, images) < activation_bytes(plain, images) / 2


def test_evaluation_is_the_same_with_and_without_saving_memory():
    images = torch.rand(2, 3, 16, 16)
    plain, saving = (small_net(memory_saving=memory_saving).eval() for memory_saving in (False, True))
    assert torch.equal(plain(images), saving(images))


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_depths_that_do_not_fit_are_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"^model\.depth=40 is not 12n\+2 .*38 and 50\.$"):
        revnet_cifar(depth=40)
    with pytest.raises(ValueError, match=r"^model\.depth=40 is not 18n\+2 .*38 and 56\.$"):
        revnet_cifar(depth=40, bottleneck=True)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([32, 33, 64, 112], r"33 channels cannot be split in two halves; all must be even\.$"),
        ([32, 32, 62, 112], r"from 32 to 62 channels .* a multiple of 4 more\.$"),
        ([32, 16, 64, 112], r"from 32 to 16 channels "),
        ([32, 32, 64], r"does not fit 3 stages: it needs 4 entries"),
    ],
)
def test_filters_that_do_not_fit_are_refused(filters, message):
    with pytest.raises(ValueError, match=rf"^model\.filters=.*{message}"):
        revnet_cifar(filters=filters)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^model\.strides=\[1, 2\] must be 4 numbers, each 1 or 2"):
        RevNet(strides=[1, 2])
    with pytest.raises(ValueError, match=r"^model\.strides=\[1, 2, 3, 2\] must be 4 numbers, each 1 or 2\.$"):
        RevNet(strides=[1, 2, 3, 2])
    with pytest.raises(ValueError, match=r"^model\.units=\[0\] "):
        RevNet(units=[0], filters=[8, 8], strides=[1])
    with pytest.raises(ValueError, match=r"^model\.stem=cifar .*small, imagenet\.$"):
        RevNet(stem="cifar")


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"^data\.image_size: .*multiples of 4; these images have 30x32 pixels\.$"):
        small_net()(torch.rand(1, 3, 30, 32))
