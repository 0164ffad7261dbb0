"""Hydra's launchers are extras: one that is not installed is told with the extra that brings it."""

from __future__ import annotations

import importlib.util

import pytest

from convatlas.core.composing import LAUNCHER_EXTRAS
from helpers import ROOT, assert_one_sentence


@pytest.mark.parametrize("launcher", LAUNCHER_EXTRAS)
@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins") is not None, reason="a launcher is installed")
def test_a_launcher_that_is_not_installed_is_told_with_its_extra(enter, launcher):
    entered = enter("train", "--multirun", f"hydra/launcher={launcher}", "seed=0,1")
    assert_one_sentence(entered, f"hydra/launcher={launcher}", f"pip install 'convatlas[{LAUNCHER_EXTRAS[launcher]}]'")


def test_the_extras_of_the_launchers_are_documented():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert all(f"convatlas[{extra}]" in text for extra in LAUNCHER_EXTRAS.values())
