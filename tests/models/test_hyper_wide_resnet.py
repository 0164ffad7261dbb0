"""Static hypernetworks: the generator's equations, tiling, Hyper WRN beside the plain net, the decay of kernels."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convatlas.models.classification.hyper_wide_resnet import HyperBlock, HyperWideResNet
from convatlas.models.classification.wide_resnet import WideResNet
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.interfaces import AddsLossTerms
from convatlas.models.layers.generated_kernels import GeneratedKernels, KernelGenerator, KernelShape, LearntKernels

AS_WIDE_RESNET = {"shortcut": "projection", "conv_bias": False}


def small_net(**options):
    torch.manual_seed(0)
    return HyperWideResNet(**{"depth": 10, "embedding_size": 4, "in_channels": 1} | options)


# ---- the generator ----


def test_the_generator_of_16x16x3x3_kernels_has_the_paper_s_weights():
    generator = KernelGenerator(channels=16, kernel_size=3, embedding_size=64)
    assert count_parameters(generator.first) == 64 * 65 * 16
    assert count_parameters(generator.second) == 9 * 16 * 65
    assert count_parameters(generator) == 75_920


def test_a_kernel_is_that_of_equation_2():
    """Slice i of the equation, f rows of N_out groups of f columns, is what input channel i of the kernel sees."""
    torch.manual_seed(0)
    channels, side, size = 3, 2, 5
    generator = KernelGenerator(channels, side, size)
    for parameter in generator.parameters():
        nn.init.normal_(parameter)
    embeddings = torch.randn(4, size)
    w_out = generator.second.weight.view(side, channels * side, size)
    b_out = generator.second.bias.view(side, channels * side)
    kernels = generator(embeddings)
    assert kernels.shape == (4, channels, channels, side, side)
    for z, kernel in zip(embeddings, kernels, strict=True):
        for i in range(channels):
            rows = slice(i * size, (i + 1) * size)
            a_i = generator.first.weight[rows] @ z + generator.first.bias[rows]
            k_i = w_out @ a_i + b_out
            for o in range(channels):
                expected = k_i[:, o * side : (o + 1) * side]
                assert torch.allclose(kernel[o, i], expected, atol=1e-5)


def test_the_second_map_is_shared_by_the_input_channels_and_not_by_the_outputs():
    """With the same first map for every input channel, a kernel is the same for each of them, and only for them."""
    torch.manual_seed(0)
    generator = KernelGenerator(4, 3, 6)
    with torch.no_grad():
        generator.first.weight.copy_(torch.randn(6, 6).repeat(4, 1))
    kernel = generator(torch.randn(1, 6))[0]
    assert torch.allclose(kernel[:, 0], kernel[:, 3], atol=1e-6)
    assert not torch.allclose(kernel[0], kernel[3], atol=1e-3)


# ---- larger kernels ----


def test_a_32_to_64_kernel_is_two_rows_of_four_basic_ones_each_with_its_own_embedding():
    torch.manual_seed(0)
    kernels = GeneratedKernels([KernelShape(16, 16), KernelShape(64, 32)], embedding_size=4)
    assert kernels.embeddings.shape == (1 + 8, 4)
    basic = kernels.generator(kernels.embeddings)
    first, second = kernels()
    assert torch.equal(first, basic[0])
    assert second.shape == (64, 32, 3, 3)
    for row in range(2):
        for column in range(4):
            tile = second[16 * column : 16 * column + 16, 16 * row : 16 * row + 16]
            assert torch.equal(tile, basic[1 + 4 * row + column])


def test_an_embedding_changes_its_own_tile_alone_and_autograd_agrees():
    torch.manual_seed(0)
    kernels = GeneratedKernels([KernelShape(32, 32), KernelShape(32, 16)], embedding_size=4)
    before = kernels()
    with torch.no_grad():
        kernels.embeddings[1] += 1
    changed = [now != was for now, was in zip(kernels(), before, strict=True)]
    assert changed[0][16:, :16].all()
    assert changed[0].sum() == 16 * 16 * 9
    assert not changed[1].any()
    kernels()[0][16:, :16].square().sum().backward()
    assert kernels.embeddings.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


def test_generated_kernels_start_with_the_variance_of_learnt_ones():
    torch.manual_seed(0)
    shapes = [KernelShape(16, 16), KernelShape(32, 16), KernelShape(64, 32), KernelShape(64, 64)]
    for made, learnt in zip(GeneratedKernels(shapes)(), LearntKernels(shapes)(), strict=True):
        assert made.std().item() == pytest.approx((2 / (9 * learnt.shape[0])) ** 0.5, rel=0.1)
        assert made.std().item() == pytest.approx(learnt.std().item(), rel=0.1)


def test_channels_that_basic_kernels_do_not_tile_are_refused():
    message = r"^model\.basic_channels=16 does not divide a layer's 24 channels; choose a number that divides"
    with pytest.raises(ValueError, match=message):
        GeneratedKernels([KernelShape(16, 16), KernelShape(16, 24)])


# ---- the net ----


@pytest.mark.parametrize(
    ("width", "options", "generated", "plain"),
    [
        (1, {}, 96_570, 562_730),
        (2, {}, 147_578, 2_235_498),
        (1, AS_WIDE_RESNET, 97_770, 563_930),
        (2, AS_WIDE_RESNET, 155_626, 2_243_546),
    ],
)
def test_parameters_of_wrn_40(width, options, generated, plain):
    def parameters(**more):
        return count_parameters(on_meta_device(lambda: HyperWideResNet(width=width, **options, **more)))

    assert parameters() == generated
    assert parameters(generated=False) == plain


# Table 2 of the paper, in millions as printed; its plain WRN-40-2, 2.236, is not met: ours has 2.2355.
@pytest.mark.parametrize(
    ("width", "generated", "millions"), [(1, True, 0.097), (1, False, 0.563), (2, True, 0.148), (2, False, 2.235)]
)
def test_parameters_round_to_the_published_ones(width, generated, millions):
    net = on_meta_device(lambda: HyperWideResNet(width=width, generated=generated))
    assert round(count_parameters(net) / 1e6, 3) == millions


@pytest.mark.parametrize(("width", "embeddings"), [(1, 242), (2, 966)])
def test_36_kernels_are_made_of_242_or_966_embeddings(width, embeddings):
    net = on_meta_device(lambda: HyperWideResNet(width=width))
    assert len(net.kernels()) == 36
    assert net.kernels.embeddings.shape == (embeddings, 64)


@pytest.mark.parametrize(("width", "an_image", "a_step"), [(1, 83_018_368, 51_544_064), (2, 326_026_496, 205_750_272)])
def test_kernels_are_made_once_a_step_and_not_once_an_image(width, an_image, a_step):
    net = on_meta_device(lambda: HyperWideResNet(width=width)).eval()
    macs = []
    for batch in (1, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.rand(batch, 3, 32, 32, device="meta"))
        macs.append(counter.get_total_flops() // 2)
    assert macs[1] - macs[0] == an_image
    assert macs[0] - an_image == a_step


def test_with_the_same_kernels_the_generated_and_the_plain_net_agree():
    generated, plain = small_net(width=2), small_net(width=2, generated=False)
    plain.load_state_dict(generated.state_dict(), strict=False)
    with torch.no_grad():
        for weight, kernel in zip(plain.kernels.weights, generated.kernels(), strict=True):
            weight.copy_(kernel)
    images = torch.rand(2, 1, 16, 16)
    assert torch.allclose(plain.eval()(images), generated.eval()(images), atol=1e-6)


def test_the_plain_net_with_projections_and_no_biases_is_wide_resnet():
    torch.manual_seed(0)
    wide = WideResNet(depth=16, width=2, in_channels=1)
    plain = small_net(depth=16, width=2, generated=False, **AS_WIDE_RESNET)
    names = {".norms.0.": ".norm1.", ".norms.1.": ".norm2.", ".projection.": ".shortcut."}
    state = {}
    for key, value in wide.state_dict().items():
        if ".convolutions." in key:
            _, block, _, which, _ = key.split(".")
            state[f"kernels.weights.{2 * int(block) + int(which)}"] = value
            continue
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)  # noqa: PLW2901
        state[key] = value
    plain.load_state_dict(state)
    images = torch.rand(4, 1, 16, 16)
    assert torch.equal(plain(images), wide(images))  # in training: with the statistics of the batch
    assert torch.equal(plain.eval()(images), wide.eval()(images))


def test_identity_shortcuts_pad_the_first_activation_with_zero_channels():
    torch.manual_seed(0)
    block = HyperBlock(2, 5, 2, "identity", conv_bias=True).eval()
    x = torch.randn(3, 2, 6, 6)
    out = block(x, torch.randn(5, 2, 3, 3), torch.zeros(5, 5, 3, 3))
    expected = torch.zeros(3, 5, 3, 3)
    expected[:, :2] = block.norm1(x).relu()[:, :, ::2, ::2]
    assert torch.equal(out, expected)


def test_gradients_reach_every_embedding_and_every_weight():
    net = small_net().train()
    net(torch.rand(4, 1, 16, 16)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert (net.kernels.embeddings.grad.abs().sum(1) > 0).all()
    assert all(p.grad.abs().sum() > 0 for p in net.kernels.generator.parameters())


def test_new_embeddings_are_used_at_once_in_evaluation():
    net = small_net().eval()
    images = torch.rand(2, 1, 16, 16)
    before = net(images)
    with torch.no_grad():
        net.kernels.embeddings.mul_(-1)
    assert not torch.allclose(net(images), before)


# ---- the decay of kernels ----


@pytest.mark.parametrize("generated", [True, False])
def test_the_loss_term_is_the_weighted_sum_of_squares_of_all_kernels(generated):
    net = small_net(generated=generated, shortcut="projection", kernel_decay=0.5)
    assert isinstance(net, AddsLossTerms)
    net(torch.rand(2, 1, 16, 16))
    terms = net.loss_terms()
    projections = [block.shortcut.weight for block in net.blocks if block.shortcut is not None]
    assert len(projections) == 2
    kernels = [net.stem.weight, *projections, *net.kernels()]
    assert list(terms) == ["kernel_decay"]
    assert terms["kernel_decay"].item() == pytest.approx(0.5 * sum(k.square().sum().item() for k in kernels))


def test_the_loss_term_decays_the_kernel_and_not_the_embedding():
    """The gradient of the term at an embedding is that of the kernels' squares, 2 K dK/dz, not 2 z."""
    net = small_net(kernel_decay=1.0)
    net(torch.rand(2, 1, 16, 16))
    net.loss_terms()["kernel_decay"].backward()
    embeddings = net.kernels.embeddings.detach().requires_grad_()
    net.kernels.generator(embeddings).square().sum().backward()
    assert torch.allclose(net.kernels.embeddings.grad, embeddings.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_term_takes_the_kernels_of_the_training_pass():
    net = small_net()
    passes = []
    net.kernels.generator.register_forward_hook(lambda *_: passes.append(1))
    (net(torch.rand(2, 1, 16, 16)).sum() + net.loss_terms()["kernel_decay"]).backward()
    assert len(passes) == 1
    net.loss_terms()["kernel_decay"].backward()  # without a pass before it, the kernels are made anew
    assert len(passes) == 2


def test_a_net_can_be_copied_after_a_training_pass():
    net = small_net()
    net(torch.rand(2, 1, 16, 16))
    clone = copy.deepcopy(net)
    assert torch.equal(clone.kernels.embeddings, net.kernels.embeddings)
    assert clone.loss_terms()["kernel_decay"].item() == pytest.approx(net.loss_terms()["kernel_decay"].item())


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^model\.depth=38 .*34 and 40\.$"):
        HyperWideResNet(depth=38)
    with pytest.raises(ValueError, match=r"^model\.basic_channels=24 does not divide a layer's 16 channels"):
        HyperWideResNet(depth=10, basic_channels=24)
    with pytest.raises(ValueError, match=r"^model\.shortcut=none .*identity, projection\.$"):
        HyperWideResNet(depth=10, shortcut="none")
    with pytest.raises(ValueError, match=r"^model\.kernel_decay=-1\.0 "):
        HyperWideResNet(depth=10, kernel_decay=-1.0)
    for option in ("width", "embedding_size", "basic_channels", "stem_stride"):
        with pytest.raises(ValueError, match=rf"^model\.{option}=0 "):
            HyperWideResNet(depth=10, **{option: 0})
