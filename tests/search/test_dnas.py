"""FBNet's differentiable search: the mixture, the latency, the two kinds of steps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf

from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.models.classification.fbnet import BLOCKS, FOUND, HEAD_CHANNELS, STAGE_CHANNELS, STRIDES
from convatlas.models.classification.searched import searched
from convatlas.models.costs import measure_costs, on_meta_device
from convatlas.search.config import FBNetDnas, FBNetSpaceConfig
from convatlas.search.dnas import DnasSearch, SuperNet, latency_of, multiplicative_loss
from convatlas.search.spaces import FBNetSpace

NINE = [*BLOCKS, "skip"]


def space_of(candidates=NINE, stages=((8, 1, 1), (16, 2, 2)), image_size=16):
    return FBNetSpace(
        FBNetSpaceConfig(
            kind="fbnet",
            name="test",
            stem_channels=8,
            stem_stride=2,
            stages=[{"channels": c, "layers": n, "stride": s} for c, n, s in stages],
            head_channels=16,
            candidates=candidates,
            always_expand=False,
        ),
        image_size,
    )


# ---- the space ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "millions", "macs"), [("a", 4.305, 244.5), ("b", 4.801, 291.0), ("c", 5.571, 378.1)]
)
def test_the_found_net_format_gives_the_counts_of_fbnet(variant, millions, macs):
    net = {
        "blocks": [list(stage) for stage in FOUND[variant]],
        "stem_channels": 16,
        "stage_channels": list(STAGE_CHANNELS),
        "head_channels": HEAD_CHANNELS[variant],
        "strides": list(STRIDES),
    }
    built = on_meta_device(lambda: searched({"family": "fbnet", "net": net}, num_classes=1000, in_channels=3))
    costs = measure_costs(built, (3, 224, 224))
    assert (round(costs.parameters / 1e6, 3), round(costs.macs / 1e6, 1)) == (millions, macs)


def test_the_paper_s_space_has_22_layers_of_nine_candidates():
    with hydra_ready():
        composed = OmegaConf.to_container(compose("search", ["search=fbnet_dnas_paper"]).search.space)
    config = FBNetSpaceConfig.model_validate(composed)
    assert [stage.channels for stage in config.stages] == list(STAGE_CHANNELS)
    assert [config.stem_stride, *(stage.stride for stage in config.stages)] == list(STRIDES)
    space = FBNetSpace(config, 224)
    assert len(space.layers) == 22
    # A layer can be skipped where neither stride nor channels change: the first, and three of each stage of four.
    assert [len(names) for names in space.choices].count(9) == 16
    assert all(set(names) == set(BLOCKS) for names in space.choices if len(names) == 8)
    assert space.size == 9**16 * 8**6


def test_a_layer_without_a_valid_candidate_is_named():
    with pytest.raises(UserError, match=r"layer 2 \(layer 1 of stage 2, 8 to 16 channels, stride 2\) has no valid"):
        space_of(candidates=["skip"], stages=((8, 1, 1), (16, 2, 2)))


def test_an_unknown_candidate_is_named():
    with pytest.raises(UserError, match=r"k3_e2 is not known\. Did you mean"):
        space_of(candidates=["k3_e2"])


# ---- the super-net --------------------------------------------------------------------------------------------------


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SuperNet(space_of(), num_classes=10, in_channels=1)


def test_a_low_temperature_gives_one_hot_samples_as_often_as_softmax_of_theta(net):
    theta = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0, 0.3, -0.5, 2.0, 0.0])
    net.thetas[0].data = theta
    torch.manual_seed(0)
    draws = torch.stack([net.draw(0.01)[0] for _ in range(4000)]).detach()
    assert float((draws.max(1).values > 0.99).float().mean()) > 0.95
    frequencies = torch.nn.functional.one_hot(draws.argmax(1), 9).float().mean(0)
    deviations = (theta.softmax(0) * (1 - theta.softmax(0)) / 4000).sqrt()
    assert ((frequencies - theta.softmax(0)).abs() < 4 * deviations).all()


def test_a_one_hot_mixture_is_the_chosen_net(net):
    space = space_of()
    decisions = (3, 6, 8)
    mixture = [torch.eye(len(names))[choice] for names, choice in zip(space.choices, decisions, strict=True)]
    x = torch.rand(4, 1, 16, 16)
    expected = net.stem(x)
    for layer, choice in zip(net.layers, decisions, strict=True):
        expected = layer.candidates[choice](expected)
    torch.testing.assert_close(net(x, mixture), net.classifier(net.head(expected).mean((2, 3))))


def test_the_latency_of_a_one_hot_mixture_is_the_table_s_sum(context):
    found = context("fbnet_dnas")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        decisions = found.space.sample(generator)
        mixture = [torch.eye(len(n))[choice] for n, choice in zip(found.space.choices, decisions, strict=True)]
        operators = [
            layer.operator(name) for layer, name in zip(found.space.layers, found.space.names(decisions), strict=True)
        ]
        total = sum(found.table.microseconds[each] for each in ["stem", "head", *operators])
        assert float(latency_of(mixture, found.table, found.space)) == pytest.approx(total)
        assert found.latency(decisions) == pytest.approx(total)


def test_descending_the_latency_favours_the_faster_operator(context):
    found = context("fbnet_dnas")
    net = SuperNet(found.space, 10, 1)
    latency_of([theta.softmax(0) for theta in net.thetas], found.table, found.space).backward()
    for number, theta in enumerate(net.thetas):
        times = found.table.of_layer(found.space, number)
        assert theta.grad[times.argmin()] < 0 < theta.grad[times.argmax()]


def test_the_loss_is_the_paper_s_product():
    loss = multiplicative_loss(torch.tensor(2.0), torch.tensor(500.0), 0.2, 0.6)
    assert float(loss) == pytest.approx(2.0 * 0.2 * math.log(500.0) ** 0.6)


def test_batch_norms_remember_nothing(net):
    assert list(net.buffers()) == []


# ---- steps ----------------------------------------------------------------------------------------------------------


def copies(parameters):
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("architecture", [True, False])
def test_an_epoch_of_one_kind_leaves_the_other_bit_identical(context, architecture):
    found = DnasSearch(context("fbnet_dnas"))
    for epoch in (0, 1):  # with momentum and moments already there
        found._train(epoch, architecture=False)
        found._train(epoch, architecture=True)
    weights, thetas = copies(found.weights), copies(found.net.thetas)
    found._train(1, architecture=architecture)
    kept, moved = (found.weights, found.net.thetas) if architecture else (found.net.thetas, found.weights)
    before_kept, before_moved = (weights, thetas) if architecture else (thetas, weights)
    assert all(torch.equal(a, b) for a, b in zip(kept, before_kept, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(moved, before_moved, strict=True))


def test_weights_and_thetas_see_disjoint_images(context):
    data = context("fbnet_dnas").data
    assert len(data.weights) + len(data.held_out) == data.card.counts["train"].images
    own = {image.tobytes() for image in data.weights.images}
    assert len(own & {image.tobytes() for image in data.held_out.images}) <= data.card.duplicates


def test_thetas_rest_in_the_first_epochs(context):
    found = DnasSearch(context("fbnet_dnas"))
    row = found.advance(0)[0]
    assert "architecture_loss" not in row
    assert row["entropy"] == pytest.approx(1.0)
    assert "architecture_loss" in found.advance(1)[0]


@pytest.mark.parametrize(("name", "epochs"), [("fbnet_dnas", 12), ("fbnet_dnas_paper", 90)])
def test_the_temperature_falls_from_5_to_the_paper_s_at_either_scale(name, epochs):
    with hydra_ready():
        strategy = OmegaConf.to_container(compose("search", [f"search={name}"]).search.strategy)
    config = FBNetDnas.model_validate(strategy)
    assert config.epochs == epochs
    first, last = (DnasSearch.temperature(SimpleNamespace(config=config), epoch) for epoch in (0, epochs))
    assert first == 5.0
    assert last == pytest.approx(5.0 * math.exp(-0.045 * 90), rel=0.01)
