"""Nets from architecture files."""

from __future__ import annotations

import pytest
import torch
import yaml

from convatlas.core.errors import UserError
from convatlas.models.build import build_model
from convatlas.models.classification.fbnet import BlockNet, FBNet
from convatlas.models.classification.nasnet import CELLS, NASNet
from convatlas.models.classification.searched import searched
from helpers import ROOT

FILES = sorted((ROOT / "conf" / "architecture").glob("*.yaml"))
TARGET = "convatlas.models.classification.searched.searched"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_architecture_file_makes_a_net(file):
    with torch.device("meta"):
        net = build_model({"_target_": TARGET, "architecture": str(file), "num_classes": 7, "in_channels": 2}).eval()
        assert net(torch.rand(1, 2, 32, 32)).shape == (1, 7)


def test_a_file_and_its_content_make_the_same_net():
    file = ROOT / "conf" / "architecture" / "fbnet_c_small.yaml"
    torch.manual_seed(0)
    one = searched(str(file))
    torch.manual_seed(0)
    other = searched(yaml.safe_load(file.read_text()))
    torch.manual_seed(0)
    ours = FBNet("c", 0.125, strides=[2, 1, 2, 1, 2, 1, 1, 1], conv_bias=False, dropout=0.0, num_classes=10)
    for a, b, c in zip(*(net.state_dict().values() for net in (one, other, ours)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_nasnet_a_in_the_found_form_is_nasnet_a():
    cells = {
        name: {"blocks": [list(block) for block in wiring.blocks], "concatenated": list(wiring.concatenated)}
        for name, wiring in CELLS["nasnet_a"]._asdict().items()
    }
    options = {"repeats": 1, "filters": 4, "stem": "small", "stem_filters": 4}
    nets = []
    for given in ("nasnet_a", cells):
        torch.manual_seed(0)
        nets.append(NASNet(cells=given, **options).state_dict())
    assert list(nets[0]) == list(nets[1])
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


def cells_of(block):
    """Return the arguments of a NASNet whose cells have this block alone."""
    return {"cells": {name: {"blocks": [block]} for name in ("normal", "reduction")}}


BLOCKS = {"stem_channels": 8, "stage_channels": [8, 16], "head_channels": 8, "strides": [2, 1, 2]}


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"net": {}}, r"family=None is not known; choose one of fbnet, nasnet, darts, efficientnet"),
        ({"family": "fbnet"}, r"model\.architecture is no architecture: it must have the keys family and net"),
        (
            {"family": "fbnet", "net": {**BLOCKS, "blocks": [["k3_e3"], ["skip"]]}},
            r"stage 2 skips layer 1, which goes from 8 to 16 channels with stride 2",
        ),
        ({"family": "fbnet", "net": {**BLOCKS, "blocks": [["k3_e3"], ["k9"]]}}, r"model\.blocks=k9 is not known"),
        ({"family": "fbnet", "net": {**BLOCKS, "blocks": [["k3_e3"]]}}, r"has 1 stages.*one stride more"),
        (
            {"family": "nasnet", "net": {"cells": {"normal": {}, "reduction": {}}}},
            r"model\.cells\.normal must have at least one block",
        ),
        (
            {
                "family": "nasnet",
                "net": {
                    "cells": {c: {"blocks": [["max_3x3", 0, "max_3x3", 2, "add"]]} for c in CELLS["nasnet_a"]._fields}
                },
            },
            r"block 0 takes state 2; choose one from 0 to 1",
        ),
        (
            {
                "family": "nasnet",
                "net": {
                    "cells": {c: {"blocks": [["max_3x4", 0, "max_3x3", 1, "add"]]} for c in CELLS["nasnet_a"]._fields}
                },
            },
            r"unknown operation max_3x4\. Did you mean max_3x3",
        ),
    ],
)
def test_what_is_wrong_with_an_architecture_is_said(architecture, message):
    with pytest.raises(ValueError, match=message):
        searched(architecture)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("nowhere.yaml", r"nowhere\.yaml does not exist; run `python -m convatlas\.search`"),
        (
            {"family": "fbnet", "net": {**BLOCKS, "blocks": [], "surprise": 1}},
            r"net\.surprise: there is no",
        ),
    ],
)
def test_a_wrong_file_or_option_is_one_sentence(architecture, message):
    with pytest.raises(UserError, match=message):
        searched(architecture)


def test_blocks_that_keep_the_shape_may_be_skipped():
    net = BlockNet(**BLOCKS, blocks=[["skip"], ["k3_e3", "skip"]])
    assert [len(stage) for stage in net.stages] == [0, 1]
