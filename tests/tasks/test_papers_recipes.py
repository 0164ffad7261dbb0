"""The papers' recipes at scale=paper: rates step by step, what decays, TensorFlow's RMSProp, the papers' protocol."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.optim import RMSpropTF
from torch import nn

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml
from convatlas.core.record import RunRecord
from convatlas.data.card import Card
from convatlas.data.decoding import encode
from convatlas.data.squares import centre_square, fit_image, read_crop, resize_centre
from convatlas.models.build import build_model
from convatlas.reporting.recipe_page import NOT_STATED, page, paper_runs, steps_per_epoch
from convatlas.tasks.optimisation import build_schedule, cosine, multi_step, parameter_groups
from convatlas.training.run import train
from helpers import ROOT

Compose = Callable[..., RunConfig]
SOURCES: dict[str, Any] = read_yaml(ROOT / "conf" / "sources.yaml", "")


@functools.cache
def paper_run(run: str) -> RunConfig:
    return paper_runs([{"run": run}])[run]


RATES = {
    "overview/alexnet": {0: 0.01, 200_174: 0.001, 400_350: 1e-4, 600_700: 1e-5},
    "overview/googlenet": {0: 0.01, 320_279: 0.01, 320_289: 0.0096, 9_999_999: 0.01 * 0.96**31},
    "overview/inception_v3": {0: 0.045, 10_008: 0.0423, 499_999: 0.045 * 0.94**49},
    "overview/xception": {0: 0.045, 10_008: 0.0423},
    "overview/resnet18": {0: 0.1, 150_150: 0.01, 300_300: 0.001},
    "overview/resnet20": {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001},
    "overview/preact_resnet": {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001},
    "wide_resnet/width_8": {0: 0.1, 60 * 390: 0.02, 120 * 390: 0.004, 160 * 390: 0.0008},
    "stochastic_depth/linear_p05": {0: 0.1, 250 * 351 - 1: 0.1, 250 * 351: 0.01, 375 * 351: 0.001},
    "stochastic_depth/linear_p05_deep": {0: 0.01, 3500: 0.01, 3520: 0.1, 150 * 351: 0.01, 225 * 351: 0.001},
    "densenet/densenet": {0: 0.1, 150 * 781: 0.01, 225 * 781: 0.001},
    "overview/densenet121": {0: 0.1, 150_150: 0.01, 300_300: 0.001},
    "overview/se_resnet50": {0: 0.6, 30 * 1251: 0.06, 60 * 1251: 0.006, 90 * 1251: 0.0006},
    "fractalnet/columns_3": {0: 0.02, 200 * 500: 0.002, 300 * 500: 2e-4, 350 * 500: 2e-5, 375 * 500: 2e-6},
    "fractal_of_fractalnet/fof_joint": {0: 0.02, 50_000: 0.002, 75_000: 2e-4, 87_500: 2e-5, 99_999: 2e-5},
    "hypernetwork/hyper_wrn": {0: 0.002, 168_000: 0.001, 336_000: 0.0002, 504_000: 0.00005, 671_999: 0.00005},
    "hypernetwork/wrn": {0: 0.1, 28_000: 0.02, 56_000: 0.004, 84_000: 0.0008, 112_000: 0.00016},
    "reversible/revnet_38": {0: 0.1, 39_999: 0.1, 40_000: 0.01, 60_000: 0.001, 79_999: 0.001},
    "reversible/irevnet_bijective": {0: 0.1, 32 * 5004: 0.01, 64 * 5004: 0.001, 96 * 5004: 1e-4},
    "overview/squeezenet": {0: 0.04, 85_000: 0.02, 170_000: 0.0},
    "overview/squeezenext": {0: 0.1, 390: 0.25, 780: 0.4, 75_458: 0.1, 150_120: 0.0},
    "mobilenet/mobilenet_v2": {0: 0.045, 33_362: 0.0441, 5_499_999: 0.045 * 0.98**164},
    "mobilenet/mobilenet_v3_large": {0: 0.1, 3 * 312: 0.099},
    "shufflenet/v1_g3": {0: 0.5, 150_000: 0.25, 300_000: 0.0},
    "overview/nasnet": {0: 2.0, 1922: 1.94, 249_000: 2.0 * 0.97**129},
    "nasnet_search/nasnet_a": {0: 0.025, 468_600: 0.0125, 937_200: 0.0},
    "overview/darts": {0: 0.025, 156_000: 0.0125, 312_000: 0.0},
    "overview/efficientnet": {12_509: 0.008, 25_020: 0.016 * 0.97**2, 1_751_399: 0.016 * 0.97**145},
    "cspnet/csp_densenet": {499: 0.1 * 0.5**4, 999: 0.1, 400_500: 0.1 / 16, 800_000: 0.0},
    "cspnet/neck_exact_fusion": {499: 0.001 / 16, 999: 0.001, 400_000: 1e-4, 450_000: 1e-5},
    "spinenet/spinenet_49": {0: 0.0067, 1999: 0.28, 320 * 462: 0.028, 340 * 462: 0.0028},
    "thundernet/with_cem_sam": {187_499: 0.01, 187_500: 0.001, 281_249: 0.001, 281_250: 1e-4},
    "mobilenet/ssdlite_v3": {0: 0.13333, 1999: 0.4, 400_976: 0.2, 799_953: 0.0},
}
"""By system: the rate at steps where the source states it; a new system joins with a line."""


@pytest.mark.parametrize("run", RATES)
def test_the_rate_at_each_step_is_the_source_s(run: str) -> None:
    config = paper_run(run)
    recipe = config.recipe
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = steps_per_epoch(config, SOURCES["images"][config.data.name])
    schedule = build_schedule(recipe.schedule, optimizer, recipe.epochs, steps, monitor="step", mode="max")
    assert schedule["interval"] == "step"
    factor = schedule["scheduler"].lr_lambdas[0]
    lr = recipe.optimizer["lr"]
    found = {step: lr * factor(step) for step in RATES[run]}
    ended = {step: 0.0 for step, rate in RATES[run].items() if rate == 0 and found[step] < 0.002 * lr}
    assert found | ended == pytest.approx(RATES[run], rel=0.02)


def test_every_system_but_those_of_one_rate_is_stepped() -> None:
    constant = {"overview/lenet5", "saunet/saunet"}
    like_another = {"overview/zfnet", "overview/spp_net", "overview/vgg", "overview/network_in_network"}
    without = {"overview/fbnet", "mobilenet/mobilenet_v1"}
    assert {system["run"] for system in SOURCES["systems"]} - RATES.keys() == constant | like_another | without


def test_a_factor_of_its_own_for_each_milestone_and_a_wrong_number_of_them() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = multi_step(optimizer, 10, 10, milestones=[0.2, 60], gamma=[0.5, 0.1]).lr_lambdas[0]
    assert [factor(step) for step in (0, 19, 20, 59, 60)] == pytest.approx([1, 1, 0.5, 0.5, 0.05])
    with pytest.raises(ValueError, match="a factor for each"):
        multi_step(optimizer, 10, 10, milestones=[0.2], gamma=[0.5, 0.1])


def test_a_warm_up_is_so_many_epochs_or_steps_or_a_fraction_of_the_training() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    of_same_length = [{"warmup_epochs": 3}, {"warmup_steps": 30}, {"warmup_fraction": 0.3}]
    for warmup in of_same_length:
        factor = cosine(optimizer, 10, 10, **warmup).lr_lambdas[0]
        assert [factor(step) for step in (0, 14, 29, 30, 65, 100)] == pytest.approx([1 / 30, 0.5, 1, 1, 0.5, 0])
    with pytest.raises(ValueError, match=r"warmup_epochs=3, warmup_fraction=0\.3: give one of them"):
        cosine(optimizer, 10, 10, **of_same_length[0], **of_same_length[2])
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"warmup_fraction={wrong}: a warm-up is not negative, and no longer"):
            cosine(optimizer, 10, 10, warmup_fraction=wrong)


# ---- what decays, and at which rate ---------------------------------------------------------------------------------

GROUPS = {
    "overview/resnet20": {"stem.0.weight": (1e-4, 0.1), "stem.1.weight": (1e-4, 0.1), "classifier.bias": (1e-4, 0.1)},
    "reversible/revnet_38": {"classifier.weight": (2e-4, 0.1), "classifier.bias": (0, 0.1), "norm.weight": (0, 0.1)},
    "overview/alexnet": {"fc8.bias": (0, 0.02), "fc8.weight": (5e-4, 0.01)},
    "mobilenet/mobilenet_v1": {
        "stages.0.0.depthwise.weight": (0, 0.045),
        "stages.0.0.pointwise.weight": (4e-5, 0.045),
        "stages.0.0.bn1.weight": (0, 0.045),
    },
    "mobilenet/mobilenet_v2": {"blocks.1.0.conv_dw.weight": (0, 0.045), "blocks.1.0.conv_pw.weight": (4e-5, 0.045)},
    "overview/efficientnet": {
        "blocks.0.0.se.conv_reduce.bias": (1e-5, 0.016),
        "blocks.0.0.bn1.weight": (0, 0.016),
        "bn2.bias": (0, 0.016),
        "blocks.0.0.conv_dw.weight": (1e-5, 0.016),
        "classifier.bias": (1e-5, 0.016),
    },
    "overview/squeezenet": {"conv10.bias": (2e-4, 0.04), "conv10.weight": (2e-4, 0.04)},
}
"""By system and parameter: its decay and its rate at the start."""


@pytest.mark.parametrize("run", GROUPS)
def test_what_decays_is_what_the_authors_decay(run: str) -> None:
    with torch.device("meta"):
        net = build_model(paper_run(run).model)
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    lr = paper_run(run).recipe.optimizer["lr"]
    groups = parameter_groups(net, paper_run(run).recipe)
    found = {named[id(p)]: (group["weight_decay"], group.get("lr", lr)) for group in groups for p in group["params"]}
    assert found.keys() == set(named.values())
    assert {name: found[name] for name in GROUPS[run]} == GROUPS[run]


def test_a_pattern_that_fits_nothing_is_refused(compose: Compose) -> None:
    recipe = compose("recipe.no_decay=['*.depthwiese.*']").recipe
    with pytest.raises(UserError, match=r"no_decay: no parameter is called \*\.depthwiese"):
        parameter_groups(nn.Linear(2, 2), recipe)


@pytest.mark.parametrize(
    ("run", "eps", "momentum"),
    [
        ("mobilenet/mobilenet_v1", 1e-3, 0.0003),
        ("mobilenet/mobilenet_v2", 1e-3, 0.003),
        ("overview/xception", 1e-3, 0.01),
    ],
)
def test_the_batch_norm_is_the_authors(run: str, eps: float, momentum: float) -> None:
    with torch.device("meta"):
        net = build_model(paper_run(run).model)
    assert {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {(eps, momentum)}


def test_a_net_without_batch_norm_refuses_its_options(compose: Compose) -> None:
    with pytest.raises(UserError, match=r"bn_eps=0\.001 is for nets with batch normalisation"):
        build_model({**compose("model=lenet5").model, "bn_eps": 1e-3})


def test_two_steps_of_rmsprop_are_tensorflow_s() -> None:
    """ms = 0.9 ms + 0.1 g^2, begun at 1; mom = 0.9 mom + lr g / sqrt(ms + eps); w = w - mom."""
    section = dict(paper_run("overview/efficientnet").recipe.optimizer)
    assert section.pop("_target_") == "timm.optim.RMSpropTF"
    weight = nn.Parameter(torch.tensor([0.5, -2.0]))
    optimizer = RMSpropTF([weight], **section)
    expected, mean_square, momentum = np.array([0.5, -2.0]), np.ones(2), np.zeros(2)
    for gradient in (np.array([0.01, 3.0]), np.array([-0.02, 0.5])):
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        decayed = gradient + 1e-5 * expected
        mean_square = 0.9 * mean_square + 0.1 * decayed**2
        momentum = 0.9 * momentum + 0.016 * decayed / np.sqrt(mean_square + 1e-3)
        expected = expected - momentum
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5)


# ---- test-time preprocessing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "share", "whole", "apart"),
    [(224, 0.875, 256, 0.1), (256, 1.0, 256, 0.1), (227, 0.8867, 256, 9), (299, 0.875, 342, 9)],
)
def test_a_photograph_is_seen_as_the_authors_test_it(side: int, share: float, whole: int, apart: float) -> None:
    """Their way, with Pillow: the shorter side becomes 256 pixels, then the middle is cut out.

    Where a margin is no whole number of pixels, the two round it apart by less than a pixel. The whole square in place
    of the middle would be more than 20 of 255 away.
    """
    photograph = load_sample_image("china.jpg")[:384, :576]
    height, width = photograph.shape[:2]
    resized = Image.fromarray(photograph).resize((round(width * whole / height), whole), Image.Resampling.BILINEAR)
    left, top = (resized.width - side) // 2, (whole - side) // 2
    theirs = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float64)
    pixels = np.ascontiguousarray(photograph.transpose(2, 0, 1))
    card = Card.model_construct(name="photographs", storage="shards", stored_side=None, fitted=None)
    new = fit_image(pixels, card, side, crop=share)[0].numpy().transpose(1, 2, 0) * 255
    seen = read_crop(encode(pixels, lossy=False), 3, centre_square(height, width, share), side)
    np.testing.assert_array_equal(seen.numpy().transpose(1, 2, 0), np.rint(new).astype(np.uint8))
    assert np.abs(new - theirs).mean() < apart
    if share < 1:
        assert np.abs(fit_image(pixels, card, side)[0].numpy().transpose(1, 2, 0) * 255 - theirs).mean() > 20


def test_arrays_are_cropped_as_photographs_are() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(resize_centre(images, 28, 0.875), images[..., 2:30, 2:30])
    assert torch.equal(resize_centre(images, 32, 1.0), images)


# ---- the papers' protocol -------------------------------------------------------------------------------------------


def test_the_last_epoch_is_tested_after_training_on_all_images(compose: Compose) -> None:
    config = compose("recipe.protocol=last_epoch", "recipe.epochs=3", "recipe.batch_size=64")
    (folder,) = train(config, strict=True)
    metrics = RunRecord.read(folder).metrics
    assert (metrics.monitor, metrics.best_epoch, metrics.epochs) == ("step", 3, 3)
    assert not any(name.startswith("val/") for name in metrics.last)
    counts = Card.read(config.data.prepared).counts
    steps = (counts["train"].images + counts["validation"].images) // 64
    assert RunRecord.read(folder).columns["step"] == [steps, 2 * steps, 3 * steps]
    best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in best["state_dict"].items())
    assert math.isfinite(metrics.test["accuracy"] or math.nan)


@pytest.mark.parametrize("option", ["recipe.monitor=val/loss", "recipe.early_stopping_patience=2"])
def test_what_needs_validation_is_refused_with_the_last_epoch(compose: Compose, option: str) -> None:
    with pytest.raises(UserError, match="protocol=last_epoch has no validation"):
        compose("recipe.protocol=last_epoch", option)


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_of_recipes_is_what_conf_says() -> None:
    composed = {system["run"]: paper_run(system["run"]) for system in SOURCES["systems"]}
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == page(SOURCES, composed), (
        "run `python -m convatlas.reporting.recipe_page`"
    )


def test_what_is_chosen_is_said_in_the_head_of_a_recipe() -> None:
    """Every system with a fact that its authors do not state names what was chosen, there or as a deviation."""
    heads = [path.read_text().partition("defaults:")[0] for path in (ROOT / "conf" / "recipe").glob("*.yaml")]
    chosen = " ".join(" ".join(head.replace("#", " ").split()) for head in heads)
    assert chosen.count("chosen:") >= 8
    for system in SOURCES["systems"]:
        unknown = [fact for fact, value in system.items() if str(value).startswith(NOT_STATED)]
        assert not unknown or system["deviations"] != "none", system["title"]


def test_facts_from_memory_are_few() -> None:
    memory = sum(len(system.get("memory", ())) for system in SOURCES["systems"])
    assert memory <= 0.05 * 8 * len(SOURCES["systems"])
