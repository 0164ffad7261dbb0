"""`python -m convatlas.atlas.study_drawings`: the blocks of nets, as they run here, for the pages in `docs/studies`.

They stand beside the pages' own pictures of ideas. Made by the same code as the cards of the atlas, they cannot say
anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convatlas.atlas.keeping import anatomies
from convatlas.atlas.nets import read_nets
from convatlas.core.cli import run
from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.core.imports import quick_imports

__all__ = ["DRAWINGS", "drawing"]

IMAGES = Path("docs", "studies", "images")


class Block(NamedTuple):
    """A block of a net of `conf/model`, by the name of its module."""

    net: str
    module: str


DRAWINGS = {
    "atlas_coupling": Block("revnet_cifar", "stages.0.units.0.g"),
    "atlas_dense_layers": Block("densenet_cifar", "stages.0.layers.1"),
    "atlas_fractal_block": Block("fractalnet", "blocks.0"),
    "atlas_inception": Block("googlenet", "inception3a"),
    "atlas_mobilenet_v3": Block("mobilenet_v3_large", "blocks.2.1"),
    "atlas_nasnet_reduction": Block("nasnet_cifar", "cells.6"),
    "atlas_saunet_decoder": Block("saunet", "decoder.0"),
    "atlas_shufflenet_v1": Block("shufflenet_v1", "stages.1.1"),
    "atlas_shufflenet_v2": Block("shufflenet_v2", "stages.1.1"),
    "atlas_spinenet": Block("spinenet", "backbone.blocks.3"),
}
"""What is drawn, by the name of the file."""

STYLE = """<style>
svg { color: #1f2328; }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
text { fill: currentColor; text-anchor: middle; }
.head { font-weight: 600; }
.shape { fill-opacity: 0.75; }
rect { fill: #848d97; fill-opacity: 0.12; stroke: #848d97; }
.flow { fill: none; stroke: currentColor; stroke-width: 1.1; }
.tip { fill: currentColor; }
.conv rect { fill: #3b82c4; fill-opacity: 0.22; stroke: #3b82c4; }
.pool rect, .resize rect { fill: #d07a22; fill-opacity: 0.22; stroke: #d07a22; }
.linear rect { fill: #3a9a5b; fill-opacity: 0.22; stroke: #3a9a5b; }
.block rect { fill: #8250df; fill-opacity: 0.18; stroke: #8250df; }
.join rect, .split rect { fill: none; stroke: currentColor; }
</style>
"""
"""The colours of the pages' other pictures."""


def drawing(drawn: Mapping[str, Any], block: Block) -> str:
    """Return an SVG file of a block, from the anatomy of its net.

    Raises:
        UserError: the net has no such block.
    """
    found = [each["svg"] for each in drawn["blocks"] if each["module"] == block.module]
    if not found:
        there = ", ".join(each["module"] for each in drawn["blocks"])
        raise UserError(f"{block.net} has no drawing of its module {block.module!r}, but of {there}.")
    first, _, rest = found[0].partition("<title>")
    return f"{first}<title>{rest.replace('</desc>', f'</desc>{STYLE}', 1)}\n"


def main() -> None:
    """Write the drawings of this repository."""
    if not IMAGES.is_dir():
        raise UserError(f"{IMAGES} is not there; start this in the root of the repository.")
    nets = read_nets()
    with quick_imports():
        drawn = anatomies({block.net: nets[block.net] for block in DRAWINGS.values()})
    for name, block in DRAWINGS.items():
        write_text(IMAGES / f"{name}.svg", drawing(drawn[block.net], block))
        print(IMAGES / f"{name}.svg")


if __name__ == "__main__":
    run(main)
