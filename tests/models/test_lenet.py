"""LeNet-5 against the equations and the tables of the 1998 paper."""

import pytest
import torch
import torch.nn.functional as F

from convatlas.models.classification.lenet import (
    C3_INPUTS,
    LeNet5,
    LeNet5Modern,
    RBFOutput,
    ScaledTanh,
    SparseConvolution,
    Subsampling,
    class_codes,
)
from convatlas.models.costs import count_parameters

LAYERS = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "output": 0, "squash": 0}


def test_every_layer_has_the_papers_number_of_trained_values() -> None:
    net = LeNet5()
    assert {name: count_parameters(layer) for name, layer in net.named_children()} == LAYERS


def test_table_one_has_sixty_connections_and_uses_each_map_ten_times() -> None:
    used = [channel for maps in C3_INPUTS for channel in maps]
    assert len(used) == 60
    assert len(set(C3_INPUTS)) == 16
    assert [used.count(channel) for channel in range(6)] == [10] * 6


def test_each_map_of_c3_sees_exactly_the_maps_of_table_one() -> None:
    layer = SparseConvolution()
    images = torch.randn(1, 6, 14, 14, requires_grad=True)
    for index, expected in enumerate(C3_INPUTS):
        (gradient,) = torch.autograd.grad(layer(images)[:, index].sum(), images)
        seen = gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
        assert seen == list(expected)


def test_c3_equals_a_full_convolution_with_zero_kernels() -> None:
    layer = SparseConvolution().double()
    kernels = [k for part in (layer.of_three, layer.of_four, layer.of_six) for k in part.weight]
    dense = torch.zeros(16, 6, 5, 5, dtype=torch.double)
    for index, maps in enumerate(C3_INPUTS):
        dense[index, list(maps)] = kernels[index]
    bias = torch.cat([layer.of_three.bias, layer.of_four.bias, layer.of_six.bias])
    images = torch.randn(2, 6, 14, 14, dtype=torch.double)
    torch.testing.assert_close(layer(images), F.conv2d(images, dense, bias))


def test_training_computes_what_evaluation_computes_and_its_gradients() -> None:
    torch.manual_seed(0)
    net, images, labels = LeNet5(), torch.rand(4, 1, 32, 32), torch.tensor([1, 2, 3, 4])
    results = []
    for training in (False, True):
        logits = net.train(training)(images)
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, labels), list(net.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_subsampling_scales_the_sum_of_four_pixels_and_shifts_it() -> None:
    layer = Subsampling(1)
    with torch.no_grad():
        layer.weight.fill_(3.0)
        layer.bias.fill_(0.5)
    assert layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == pytest.approx(3 * 10 + 0.5)


def test_squashing_maps_plus_and_minus_one_to_themselves() -> None:
    ends = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(ScaledTanh()(ends), ends, atol=1e-4, rtol=0)
    assert ScaledTanh()(torch.tensor(1e9)).item() == pytest.approx(1.7159)


def test_logits_are_minus_the_squared_distances_from_the_codes() -> None:
    features = torch.randn(3, 84, dtype=torch.double)
    for temperature in (1.0, 10.0):
        layer = RBFOutput(10, temperature).double()
        distances = torch.cdist(features, class_codes(10).double()) ** 2
        torch.testing.assert_close(layer(features), -distances / temperature)


def test_cross_entropy_at_temperature_one_is_the_papers_discriminative_criterion() -> None:
    features, target = torch.randn(1, 84, dtype=torch.double), torch.tensor([3])
    penalties = ((features - class_codes(10).double()) ** 2).sum(1)
    criterion = penalties[3] + torch.exp(-penalties).sum().log()
    torch.testing.assert_close(F.cross_entropy(RBFOutput(10, 1.0).double()(features), target), criterion)


def test_codes_are_saved_with_the_net_but_never_trained() -> None:
    net = LeNet5()
    assert "output.codes" in net.state_dict()
    assert all("codes" not in name for name, _ in net.named_parameters())


def test_code_of_one_reads_as_a_picture_of_a_one() -> None:
    picture = class_codes(10)[1].reshape(12, 7)
    assert set(picture.flatten().tolist()) == {-1.0, 1.0}
    assert (picture[1:11, 3] == 1).all()
    assert (picture[1:11, 4:] == -1).all()


@pytest.mark.parametrize("classes", [2, 10])
def test_few_classes_take_the_codes_of_the_first_digits(classes: int) -> None:
    assert torch.equal(class_codes(classes), class_codes(10)[:classes])


def test_more_classes_take_orthogonal_codes() -> None:
    codes = class_codes(84)
    assert torch.equal(codes @ codes.T, 84 * torch.eye(84))
    negatives = class_codes(168)[84:]
    assert torch.equal(negatives, -codes)


def test_all_codes_differ_in_many_places() -> None:
    codes = class_codes(3571)
    agreement = codes @ codes.T - 1000 * torch.eye(3571)
    places = (84 - agreement.max().item()) / 2
    assert places >= 20


def test_more_classes_than_codes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.num_classes=3572 .*lenet5_modern"):
        LeNet5(num_classes=3572)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"^model\.temperature=0"):
        LeNet5(temperature=0.0)


@pytest.mark.parametrize("net", [LeNet5(), LeNet5Modern()], ids=["1998", "modern"])
@pytest.mark.parametrize("size", [(28, 28), (32, 28), (64, 64)])
def test_other_image_sizes_are_refused_with_the_one_that_fits(net: torch.nn.Module, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"set data\.image_size=32"):
        net(torch.zeros(1, 1, *size))


def test_initial_weights_stay_within_the_papers_bound() -> None:
    torch.manual_seed(0)
    net = LeNet5()
    for layer, fan_in in ((net.c1, 25), (net.s2, 4), (net.c3.of_six, 150), (net.c5, 400), (net.f6, 120)):
        largest = max(parameter.abs().max().item() for parameter in layer.parameters())
        assert 0.7 * 2.4 / fan_in < largest <= 2.4 / fan_in
