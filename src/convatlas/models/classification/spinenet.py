"""SpineNet: a backbone whose blocks are not ordered by scale, the permutation given as data.

Du, Lin, Jin, Ghiasi, Tan, Cui, Le, Song, "SpineNet: Learning Scale-Permuted Backbone for Recognition and Localization"
(CVPR 2020), section 3. What the paper leaves open (padding, which blocks get an extra edge, sizes that do not divide)
follows the authors' published TensorFlow definition.

A level l has 1/2^l of the image's resolution. A block takes two earlier blocks, each brought to its own level and
width; five of the blocks, one at each of the levels 3 to 7, are the net's outputs.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import torch.nn.functional as F
from timm.layers.pool2d_same import MaxPool2dSame, max_pool2d_same
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from convatlas.models.checks import require_choice, require_positive, require_probability, require_width
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.conv_norm import ConvNormAct

# ---- the nets as data -----------------------------------------------------------------------------------------------


class BlockSpec(NamedTuple):
    """One block of the permuted part: its level, `bottleneck` or `residual`, two earlier blocks, is it an output?"""

    level: int
    kind: str
    parents: tuple[int, int]
    output: bool = False


class Permutation(NamedTuple):
    """The blocks of a net in the order in which they are computed; numbers go on from the stem to the permuted part."""

    stem: tuple[int, int, int, int]
    """Bottlenecks at levels 2, 3, 4 and 5, one after another as in a ResNet."""
    blocks: tuple[BlockSpec, ...]


SPINENET_49 = Permutation(
    stem=(2, 0, 0, 0),
    blocks=(
        BlockSpec(2, "bottleneck", (0, 1)),
        BlockSpec(4, "residual", (0, 1)),
        BlockSpec(3, "bottleneck", (2, 3)),
        BlockSpec(4, "bottleneck", (2, 4)),
        BlockSpec(6, "residual", (3, 5)),
        BlockSpec(4, "bottleneck", (3, 5)),
        BlockSpec(5, "residual", (6, 7)),
        BlockSpec(7, "residual", (6, 8)),
        BlockSpec(5, "bottleneck", (8, 9)),
        BlockSpec(5, "bottleneck", (8, 10)),
        BlockSpec(4, "bottleneck", (5, 10), output=True),
        BlockSpec(3, "bottleneck", (4, 10), output=True),
        BlockSpec(5, "bottleneck", (7, 12), output=True),
        BlockSpec(7, "bottleneck", (5, 14), output=True),
        BlockSpec(6, "bottleneck", (12, 14), output=True),
    ),
)
"""Figure 2 and the authors' code: blocks 0 and 1 are the stem, blocks 2 to 16 are these."""

PERMUTATIONS = {"spinenet_49": SPINENET_49}
"""All that was ever published as a table. Another wiring, searched or drawn, becomes a net by an entry here."""


class Allocation(NamedTuple):
    """How many blocks a net has at each level: 2 to 5 in the stem, 2 to 7 in the permuted part."""

    stem: tuple[int, int, int, int]
    permuted: tuple[int, int, int, int, int, int]


ALLOCATIONS = {
    "r50": Allocation((3, 4, 6, 3), (0, 0, 0, 0, 0, 0)),
    "r35_sp18": Allocation((2, 3, 5, 1), (1, 1, 1, 1, 1, 1)),
    "r23_sp30": Allocation((2, 2, 2, 1), (1, 2, 4, 1, 1, 1)),
    "r14_sp39": Allocation((1, 1, 1, 1), (2, 3, 5, 1, 1, 1)),
    "r0_sp53": Allocation((2, 0, 0, 0), (1, 4, 6, 2, 1, 1)),
    "spinenet_49": Allocation((2, 0, 0, 0), (1, 2, 4, 4, 2, 2)),
}
"""Table 1: blocks moved step by step out of ResNet-50. Of those between the first and the last the paper shows the
connections in pictures only, so that there is no net here to build; a wiring that is searched anew must have these."""


class Variant(NamedTuple):
    """One size of the family (section 3.3)."""

    width: float  # factor on the blocks' channels, rounded down; the stem's convolution keeps its 64
    alpha: float  # channels at which a parent is resampled, as a part of the channels of its 3x3 convolution
    repeats: int  # times that each block is repeated
    endpoint_width: int  # channels of the outputs
    head_width: int  # channels of the detector's head
    head_convs: int  # its convolutions before the last one


VARIANTS = {
    # The authors' code has endpoints of 128 channels in 49S; with 256 it has the published parameters and FLOPs.
    "49S": Variant(0.65, 0.5, 1, 256, 128, 4),
    "49": Variant(1.0, 0.5, 1, 256, 256, 4),
    "96": Variant(1.0, 0.5, 2, 256, 256, 4),
    "143": Variant(1.0, 1.0, 3, 256, 256, 4),
    "190": Variant(1.3, 1.0, 4, 512, 512, 7),
}

STEM_WIDTH = 64
LEVEL_WIDTH = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
EXPANSION = {"bottleneck": 4, "residual": 1}
OUTPUT_LEVELS = (3, 4, 5, 6, 7)
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "swish": nn.SiLU}
STEM_STRIDES = {"imagenet": 4, "half": 2, "full": 1}
"""Resolution that the stem takes away; the paper's net is for large images."""


def stem_blocks(permutation: Permutation) -> list[BlockSpec]:
    """Return the blocks of the stem; their parents are not used, as each takes the one before it."""
    counts = zip((2, 3, 4, 5), permutation.stem, strict=True)
    return [BlockSpec(level, "bottleneck", (-1, -1)) for level, count in counts for _ in range(count)]


def extra_edges(permutation: Permutation) -> dict[int, tuple[int, ...]]:
    """Return, by number of the output block, the blocks that are added to its two parents as they are.

    The rule: a block of equal level and channels that is no output and that none of the blocks so far has taken.
    """
    blocks = [*stem_blocks(permutation), *permutation.blocks]
    first = len(blocks) - len(permutation.blocks)
    taken = set(range(first - 1))  # in the stem each block takes the one before it
    edges = {}
    for number, block in enumerate(blocks[first:], start=first):
        taken.update(block.parents)
        if block.output:
            extra = tuple(
                earlier
                for earlier, other in enumerate(blocks[:number])
                if earlier not in taken and not other.output and (other.level, other.kind) == (block.level, block.kind)
            )
            taken.update(extra)
            if extra:
                edges[number] = extra
    return edges


# ---- layers ---------------------------------------------------------------------------------------------------------


Norm = partial(nn.BatchNorm2d, eps=1e-3)
"""Batch normalisation with the epsilon of the authors' files for Mask R-CNN; those for RetinaNet have 1e-4."""


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, activation: str | None = None
) -> ConvNormAct:
    """Build a convolution with normalisation and maybe an activation, by its name."""
    act = ACTIVATIONS[activation] if activation else None
    return ConvNormAct(in_channels, out_channels, kernel_size, stride, norm=Norm, activation=act)


class Resample(nn.Module):
    """Bring a parent to the level and the input width of a block; no activation at the end.

    A 1x1 convolution to `width` channels; then, if `down` to a higher level of less resolution, a 3x3 convolution of
    stride 2 and, where that is not enough, a maximum pooling, or an upsampling to the nearest pixel; then a 1x1
    convolution to `out_channels`.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, *, down: bool, activation: str) -> None:
        super().__init__()
        self.reduce = conv_norm(in_channels, width, 1, activation=activation)
        self.halve = conv_norm(width, width, 3, 2, activation) if down else None
        self.expand = conv_norm(width, out_channels, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, in, H, W) -> (B, out, *size)`."""
        before = (x.shape[-2], x.shape[-1])
        x = self.reduce(x)
        if self.halve is not None:
            x = self.halve(x)
            pools = [pooling(old, new) for old, new in zip(before, size, strict=True)]
            if any(stride > 1 for _, stride in pools):
                kernels, strides = (list(each) for each in zip(*pools, strict=True))
                x = max_pool2d_same(x, kernels, strides)
        if (x.shape[-2], x.shape[-1]) != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.expand(x)


def pooling(size: int, target: int) -> tuple[int, int]:
    """Return kernel and stride of the pooling behind the strided convolution, from `size` to `target` pixels.

    Where `size` is no multiple of `target`, as in images of 224 pixels, the result is a little too large and the
    nearest pixels are taken.
    """
    ratio = size // target
    if ratio <= 2:
        return 1, 1
    return (3 if size / target <= 4 else 5), (2 if size % target else ratio // 2)


class ResidualBlock(nn.Module):
    """A `bottleneck` (1x1, 3x3, 1x1 to four times the width) or, `residual`, two 3x3 convolutions beside a shortcut.

    `(B, in, H, W) -> (B, width * expansion, H/stride, W/stride)`; the last activation comes after the sum. In training
    `drop_connect_rate` is the probability that an image's branch is left out.
    """

    def __init__(
        self, kind: str, in_channels: int, width: int, *, stride: int, activation: str, drop_connect_rate: float = 0.0
    ) -> None:
        super().__init__()
        out_channels = width * EXPANSION[kind]
        if kind == "bottleneck":
            self.branch = nn.Sequential(
                conv_norm(in_channels, width, 1, activation=activation),
                conv_norm(width, width, 3, stride, activation),
                conv_norm(width, out_channels, 1),
            )
        else:
            self.branch = nn.Sequential(
                conv_norm(in_channels, width, 3, stride, activation), conv_norm(width, width, 3)
            )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride)
        self.drop = StochasticDepth(drop_connect_rate, "row")
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.drop(self.branch(x)) + self.shortcut(x))


def block_group(kind: str, in_channels: int, width: int, *, stride: int, repeats: int, **options: Any) -> nn.Sequential:
    """Build `repeats` residual blocks one after another; only the first strides or changes the channels."""
    first = ResidualBlock(kind, in_channels, width, stride=stride, **options)
    taken = width * EXPANSION[kind]
    others = (ResidualBlock(kind, taken, width, stride=1, **options) for _ in range(repeats - 1))
    return nn.Sequential(first, *others)


def zero_last_norms(net: nn.Module) -> None:
    """Let every residual block of a net begin as its shortcut: the last scale of its branch becomes 0.

    Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 5.1. Normalised branches of unit scale add their
    variance block by block, and gradients grow with the depth; of scale 0, the depth at the start is that of the
    resamplings, whatever the number of repetitions.
    """
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            norm = module.branch[-1][1]  # type: ignore[index]
            nn.init.zeros_(norm.weight)


def make_stem(kind: str, in_channels: int, width: int, activation: str) -> nn.Sequential:
    """Build what comes before the first block.

    Args:
        kind: `imagenet`, 7x7 convolution and maximum pooling, each of stride 2; or, for small images, one 3x3
            convolution that leaves `half` or the `full` resolution. With `full` level l has 1/2^(l-2) of it, so that
            images of 32 pixels have the maps of images of 128.
        width: channels of the convolution.
    """
    if kind == "imagenet":
        return nn.Sequential(conv_norm(in_channels, width, 7, 2, activation), MaxPool2dSame(3, 2))
    return nn.Sequential(conv_norm(in_channels, width, 3, STEM_STRIDES[kind], activation))


def level_strides(stem: str) -> tuple[int, ...]:
    """Return the strides of P3 to P7 behind a stem of that kind."""
    return tuple(STEM_STRIDES[stem] * 2 ** (level - 2) for level in OUTPUT_LEVELS)


class PermutedBlock(nn.Module):
    """One block of the permuted part, `body`, behind the sum of its resampled parents and an activation."""

    def __init__(self, resamplings: Iterable[Resample], body: nn.Module, activation: str) -> None:
        super().__init__()
        self.resamplings = nn.ModuleList(resamplings)
        self.activation = ACTIVATIONS[activation]()
        self.body = body

    def forward(self, parents: Sequence[Tensor], extra: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Sum the resampled parents and the blocks of the extra edges, `size` pixels each, and compute the block."""
        resampled = [resample(parent, size) for resample, parent in zip(self.resamplings, parents, strict=True)]
        total = resampled[0] + resampled[1]
        for block in extra:
            total = total + block
        return self.body(self.activation(total))


# ---- the nets -------------------------------------------------------------------------------------------------------


class SpineNetOptions(TypedDict, total=False):
    """What `SpineNetBackbone` takes beside its variant, and a net around it hands on."""

    permutation: str
    width: float
    stem: str
    activation: str
    drop_connect_rate: float
    zero_init_last: bool
    in_channels: int


class SpineNetBackbone(nn.Module):
    """SpineNet without a head: `(B, C, H, W)` becomes the maps P3 to P7, the finest first.

    Behind the paper's stem level l has ceil(H / 2^l) x ceil(W / 2^l) pixels. Sizes that are no multiple of 128 are
    resampled to the nearest pixels on the way, as the authors' code does; detectors pad their images instead.

    Args:
        variant: `49S`, `49`, `96`, `143` or `190`.
        permutation: wiring of the blocks, a key of `PERMUTATIONS`.
        endpoint_width: channels of the maps; none for the variant's own, which `width` scales.
        stem: `imagenet` or, for small images, `half` or `full`, see `make_stem`.
        activation: `relu`, or `swish` as in the paper's longest trainings.
        drop_connect_rate: probability that an image's branch is left out of the last permuted block in training; it
            rises linearly from the first. The paper takes 0.2 with swish, 0.16 for 143.
        zero_init_last: residual blocks begin as their shortcuts, see `zero_last_norms`; the authors' do not.

    Attributes:
        out_channels: channels of every map.
        strides: by how much every map is smaller than the images.
    """

    def __init__(
        self,
        variant: str | int = "49",
        *,
        permutation: str = "spinenet_49",
        width: float = 1.0,
        endpoint_width: int | None = None,
        stem: str = "imagenet",
        activation: str = "relu",
        drop_connect_rate: float = 0.0,
        zero_init_last: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("variant", str(variant), VARIANTS)
        require_choice("permutation", permutation, PERMUTATIONS)
        require_choice("stem", stem, STEM_STRIDES)
        require_choice("activation", activation, ACTIVATIONS)
        require_probability("drop_connect_rate", drop_connect_rate)
        size = VARIANTS[str(variant)]
        widths = level_widths(size, width)
        if endpoint_width is None:
            endpoint_width = int(size.endpoint_width * width)
        require_positive("endpoint_width", endpoint_width)

        wiring = PERMUTATIONS[permutation]
        before = stem_blocks(wiring)
        self.specs = (*before, *wiring.blocks)
        self.extra = extra_edges(wiring)
        self.out_channels = endpoint_width
        self.strides = level_strides(stem)
        channels = [widths[spec.level] * EXPANSION[spec.kind] for spec in self.specs]

        stem_width = int(STEM_WIDTH * width)
        self.stem = make_stem(stem, in_channels, stem_width, activation)
        self.stem_blocks = nn.ModuleList()
        blocks: dict[str, Any] = {"repeats": size.repeats, "activation": activation}
        level, taken = 2, stem_width
        for spec, given in zip(before, channels, strict=False):
            stride = 2 ** (spec.level - level)
            self.stem_blocks.append(block_group(spec.kind, taken, widths[spec.level], stride=stride, **blocks))
            level, taken = spec.level, given

        def permuted_block(spec: BlockSpec, rate: float) -> PermutedBlock:
            taken = widths[spec.level] * EXPANSION[spec.kind]
            resamplings = []
            for number in spec.parents:
                level = self.specs[number].level
                middle, down = int(widths[level] * size.alpha), level < spec.level
                resamplings.append(Resample(channels[number], middle, taken, down=down, activation=activation))
            body = block_group(spec.kind, taken, widths[spec.level], stride=1, drop_connect_rate=rate, **blocks)
            return PermutedBlock(resamplings, body, activation)

        count = len(wiring.blocks)
        self.blocks = nn.ModuleList(
            permuted_block(spec, drop_connect_rate * number / count)
            for number, spec in enumerate(wiring.blocks, start=1)
        )
        self.outputs = {spec.level: number for number, spec in enumerate(self.specs) if spec.output}
        self.endpoints = nn.ModuleDict(
            {
                f"P{level}": conv_norm(channels[self.outputs[level]], endpoint_width, 1, activation=activation)
                for level in OUTPUT_LEVELS
            }
        )
        self._initialise()
        if zero_init_last:
            zero_last_norms(self)

    def _initialise(self) -> None:
        """Draw convolutions from a truncated normal distribution of variance 1 / fan-in, as the authors' code does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = module.weight[0].numel() ** -0.5 / 0.87962566  # the cut at 2 takes so much of it away
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)

    def compute_blocks(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features: list[Tensor] = []
        for block in self.stem_blocks:
            x = block(x)
            features.append(x)
        height, width = features[0].shape[-2:]
        for number, block in enumerate(self.blocks, start=len(features)):
            spec = self.specs[number]
            shrink = 2 ** (spec.level - 2)
            size = (math.ceil(height / shrink), math.ceil(width / shrink))
            parents = [features[parent] for parent in spec.parents]
            extra = [features[other] for other in self.extra.get(number, ())]
            features.append(block(parents, extra, size))
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps `P3` to `P7`, `(B, out_channels, ceil(H/stride), ceil(W/stride))`."""
        features = self.compute_blocks(images)
        return {f"P{level}": self.endpoints[f"P{level}"](features[self.outputs[level]]) for level in OUTPUT_LEVELS}


def level_widths(variant: Variant, width: float) -> dict[int, int]:
    """Return the channels of the 3x3 convolutions by level."""
    require_width(width)
    widths = {level: int(channels * variant.width * width) for level, channels in LEVEL_WIDTH.items()}
    if int(widths[2] * variant.alpha) < 1 or int(STEM_WIDTH * width) < 1:
        least = math.ceil(1 / variant.alpha) / (LEVEL_WIDTH[2] * variant.width)
        raise ValueError(f"model.width={width} leaves a layer without channels; use {least:.3g} or more.")
    return widths


class SpineNet(PooledClassifier):
    """SpineNet for classification (section 4.5): the maps P3 to P7, enlarged to P3 and averaged, then pooled.

    Arguments are those of `SpineNetBackbone`, but for `endpoint_width`.
    """

    def __init__(
        self, variant: str | int = "49", *, num_classes: int = 1000, **options: Unpack[SpineNetOptions]
    ) -> None:
        super().__init__()
        self.backbone = SpineNetBackbone(variant, **options)
        self.classifier = nn.Linear(self.backbone.out_channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, endpoint width, H', W')`, the mean of the five maps at the resolution of P3."""
        finest, *others = self.backbone(images).values()
        total = finest
        for each in others:
            total = total + F.interpolate(each, finest.shape[-2:], mode="nearest")
        return total / len(OUTPUT_LEVELS)
