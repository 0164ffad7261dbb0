"""GoogLeNet's modules against table 1, and its auxiliary classifiers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.googlenet import TABLE_1, AuxiliaryOutput, GoogLeNet, Inception, OneKernel, Widths
from convatlas.models.costs import count_parameters, on_meta_device

SMALL = {
    "image_size": 32,
    "stem": "small",
    "width": 0.125,
    "initialisation": "he",
    "num_classes": 10,
    "in_channels": 1,
}
OUTPUT_SIZES = {
    "inception3a": (256, 28),
    "inception3b": (480, 28),
    "inception4a": (512, 14),
    "inception4b": (512, 14),
    "inception4c": (512, 14),
    "inception4d": (528, 14),
    "inception4e": (832, 14),
    "inception5a": (832, 7),
    "inception5b": (1024, 7),
}
"""Table 1's column of output sizes: maps and side."""


def test_output_sizes_are_those_of_table_1():
    net = on_meta_device(GoogLeNet)
    seen = {}
    for name in OUTPUT_SIZES:
        layer = getattr(net, name)
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: tuple(output.shape[1:3])}))
    net(torch.zeros(2, 3, 224, 224, device="meta"))
    assert seen == OUTPUT_SIZES


def test_there_are_22_layers_with_parameters_in_a_row_and_nine_modules():
    net = on_meta_device(GoogLeNet)
    modules = [m for m in net.modules() if isinstance(m, Inception)]
    stem = sum(isinstance(m, nn.Conv2d) for m in net.stem.modules())
    assert len(modules) == len(TABLE_1) == 9
    assert stem + 2 * len(modules) + 1 == 22


def test_the_third_branch_is_a_real_5x5_convolution():
    net = on_meta_device(GoogLeNet)
    kernels = {m.five.kernel_size for m in net.modules() if isinstance(m, Inception)}
    assert kernels == {(5, 5)}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_module_concatenates_its_branches_in_the_figures_order():
    torch.manual_seed(0)
    module = Inception(6, Widths(2, 3, 4, 2, 3, 5)).double()
    x = torch.randn(2, 6, 7, 7, dtype=torch.double)
    branches = [
        F.relu(module.one(x)),
        F.relu(module.three(F.relu(module.reduce_three(x)))),
        F.relu(module.five(F.relu(module.reduce_five(x)))),
        F.relu(module.pooled(F.max_pool2d(x, 3, stride=1, padding=1))),
    ]
    assert [branch.shape[1] for branch in branches] == [2, 4, 3, 5]
    torch.testing.assert_close(module(x), torch.cat(branches, dim=1))


@pytest.mark.parametrize("row", TABLE_1)
def test_one_kernel_costs_what_its_module_does(row):
    image = torch.zeros(1, 480, 8, 8, device="meta")
    modules = [on_meta_device(lambda build=build: build(480, TABLE_1[row])) for build in (Inception, OneKernel)]
    inception, one = (sum(p.numel() for p in module.parameters() if p.ndim == 4) for module in modules)
    assert one == pytest.approx(inception, rel=0.02)
    assert modules[0](image).shape == modules[1](image).shape


def test_training_returns_two_auxiliary_logits_that_weigh_three_tenths():
    net = GoogLeNet(**SMALL).train()
    output = net(torch.randn(3, 1, 32, 32))
    assert isinstance(output, AuxiliaryOutput)
    assert output.logits.shape == (3, 10)
    assert [logits.shape for logits in output.auxiliary] == [(3, 10), (3, 10)]
    assert net.auxiliary_loss_weights == (0.3, 0.3)


def test_evaluation_returns_the_main_logits_alone():
    net = GoogLeNet(**SMALL).eval()
    images = torch.randn(3, 1, 32, 32)
    logits = net(images)
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, net.classifier(net.forward_features(images).mean((2, 3))))


def modules_reached(net: nn.Module, logits: torch.Tensor) -> set[str]:
    """Name the inception modules that a gradient of `logits` reaches."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(logits.sum(), parameters, retain_graph=True, allow_unused=True)
    reached = [name.split(".")[0] for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    return {name.removeprefix("inception") for name in reached if name.startswith("inception")}


def test_auxiliary_classifiers_look_at_4a_and_4d():
    net = GoogLeNet(**SMALL).train()
    first, second = net(torch.randn(3, 1, 32, 32)).auxiliary
    assert modules_reached(net, first) == {"3a", "3b", "4a"}
    assert modules_reached(net, second) == {"3a", "3b", "4a", "4b", "4c", "4d"}


def test_without_auxiliary_classifiers_training_returns_logits():
    net = GoogLeNet(auxiliary=False, **SMALL).train()
    assert isinstance(net(torch.randn(3, 1, 32, 32)), torch.Tensor)
    assert net.auxiliary_loss_weights == ()
    assert count_parameters(net) < count_parameters(GoogLeNet(**SMALL))


def test_biases_of_hidden_layers_start_above_zero():
    net = GoogLeNet(width=0.05, num_classes=3)
    biases = {name: p.detach().double() for name, p in net.named_parameters() if name.endswith("bias")}
    starts = {name: set(p.round(decimals=6).tolist()) for name, p in biases.items()}
    logits = {name for name in starts if name.endswith("classifier.bias")}
    assert len(logits) == 3
    assert all(starts[name] == {0.0} for name in logits)
    assert all(starts[name] == {0.2} for name in starts.keys() - logits)


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 79), ("small", 20)])
def test_smallest_images_with_auxiliary_classifiers_are_those_the_message_names(stem, smallest):
    net = on_meta_device(lambda: GoogLeNet(stem=stem, image_size=smallest)).train()
    assert net(torch.zeros(2, 3, smallest, smallest, device="meta")).auxiliary[0].shape == (2, 1000)
    with pytest.raises(ValueError, match=rf"^model\.image_size={smallest - 1} .*take {smallest} and more"):
        on_meta_device(lambda: GoogLeNet(stem=stem, image_size=smallest - 1))


def test_auxiliary_classifiers_bind_training_to_one_size_and_evaluation_to_none():
    net = on_meta_device(GoogLeNet)
    images = torch.zeros(2, 3, 320, 260, device="meta")
    assert net.eval()(images).shape == (2, 1000)
    with pytest.raises(ValueError, match=r"^model\.image_size=224 does not fit images of 320x260"):
        net.train()(images)


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 31), ("small", 8)])
def test_images_below_the_smallest_are_refused_and_the_smallest_is_not(stem, smallest):
    net = on_meta_device(lambda: GoogLeNet(stem=stem, auxiliary=False))
    assert net(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=rf"^data\.image_size: .*{smallest}x{smallest}"):
        net(torch.zeros(1, 3, smallest - 1, 99, device="meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "large"}, r"^model\.stem=large .*imagenet, small"),
        ({"initialisation": "zero"}, r"^model\.initialisation=zero .*xavier, he"),
        ({"width": 0.0}, r"^model\.width=0"),
        ({"dropout": 1.0}, r"^model\.dropout=1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: GoogLeNet(**options))
