"""LeNet-5, as published in 1998 and as it is mostly taught today.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition" (Proceedings of the IEEE
86(11), 1998), section II.B and figure 2. Layers have the paper's names: C convolution, S subsampling, F full.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIDE = 32  # the paper's; C5 then covers the whole 5x5 map of S4

C3_INPUTS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
"""Table I: which maps of S2 each of the 16 maps of C3 sees; 60 kernels in all."""

CODE_LENGTH = 84  # units of F6: one for each pixel of a 7x12 picture

# The paper's figure 3 shows its codes as pictures of printed characters; these are drawn anew in that style.
DIGIT_PICTURES = """
..###.. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. .#####.
.#...#. ..##... #.....# #.....# ....##. #...... .#..... ......# #.....# #.....#
#.....# .#.#... ......# ......# ...#.#. #...... #...... .....#. #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... .....#. .....#. .#...#. #.####. #.####. ....#.. .#...#. #.....#
#.....# ...#... ....#.. ..###.. #....#. ##....# ##....# ....#.. ..###.. #....##
#.....# ...#... ...#... .....#. ####### ......# #.....# ...#... .#...#. .####.#
#.....# ...#... ..#.... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... .#..... ......# .....#. ......# #.....# ..#.... #.....# ......#
#.....# ...#... #...... ......# .....#. ......# #.....# ..#.... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# .#...#. .#..... #.....# .....#.
..###.. .#####. ####### .#####. .....#. .#####. ..###.. .#..... .#####. .####..
"""


def digit_codes() -> Tensor:
    """Return the codes of the digits 0 to 9: `(10, 84)`, +1 where the digit's picture is black and -1 elsewhere."""
    lines = [line.split() for line in DIGIT_PICTURES.split("\n") if line]
    pictures = ["".join(line[digit] for line in lines) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])


def hadamard_codes() -> Tensor:
    """Return codes for classes that have no picture: `(3571, 84)` of +1 and -1, no two alike.

    First the rows of the Hadamard matrix of order 84 (Paley's construction with the prime 83), of which any two differ
    in 42 places; then their negatives; then the products of any two of the rows other than the first, which is all +1.
    """
    prime = CODE_LENGTH - 1
    squares = {x * x % prime for x in range(1, prime)}
    signs = [[1.0 if j == i or (j - i) % prime in squares else -1.0 for j in range(prime)] for i in range(prime)]
    rows = torch.tensor([[1.0] * CODE_LENGTH, *([-1.0, *row] for row in signs)])
    left, right = torch.triu_indices(CODE_LENGTH - 1, CODE_LENGTH - 1, offset=1) + 1
    return torch.cat([rows, -rows, rows[left] * rows[right]])


def class_codes(num_classes: int) -> Tensor:
    """Return the target of F6 for each class: `(num_classes, 84)` of +1 and -1.

    Up to ten classes are taken for the digits from 0 on. More classes take the first of `hadamard_codes`.
    """
    codes = digit_codes() if num_classes <= 10 else hadamard_codes()
    if num_classes > len(codes):
        raise ValueError(
            f"model.num_classes={num_classes} is more than the {len(codes)} fixed codes of LeNet-5's output; "
            "take model=lenet5_modern, whose output layer is learnt."
        )
    return codes[:num_classes].clone()


def check_image_size(images: Tensor) -> None:
    """Raise ValueError unless `images` are 32 pixels high and wide."""
    height, width = images.shape[-2:]
    if height != IMAGE_SIDE or width != IMAGE_SIDE:
        raise ValueError(f"data.image_size={height}x{width} does not fit LeNet-5; set data.image_size=32.")


class ScaledTanh(nn.Module):
    """The squashing function f(a) = 1.7159 tanh(2a/3) of appendix A, so that f(1) = 1 and f(-1) = -1; any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """S2, S4: the sum of each 2x2 window, times one trained coefficient a map, plus a bias.

    `(B, C, H, W) -> (B, C, H/2, W/2)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Pairs of rows, then of columns, since pooling is slow backwards on a CPU.
        upper, lower = x.unflatten(2, (-1, 2)).unbind(3)
        left, right = (upper + lower).unflatten(3, (-1, 2)).unbind(4)
        return self.weight * (left + right) + self.bias


class SparseConvolution(nn.Module):
    """C3: 5x5 convolutions that see only the maps of table I; `(B, 6, 14, 14) -> (B, 16, 10, 10)`.

    Maps with the same number of inputs have their kernels in one grouped convolution, so that the 36 kernels which the
    paper leaves out do not exist. Evaluation computes these convolutions, of inputs laid side by side, and costs what
    the paper says. Training lays the kernels into a full one with zeros, which is several times as fast.
    """

    gathered: Tensor
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.of_three = nn.Conv2d(6 * 3, 6, 5, groups=6)
        self.of_four = nn.Conv2d(9 * 4, 9, 5, groups=9)
        self.of_six = nn.Conv2d(6, 1, 5)
        gathered = torch.tensor([channel for maps in C3_INPUTS for channel in maps])
        self.register_buffer("gathered", gathered, persistent=False)
        places = torch.tensor([6 * index + channel for index, inputs in enumerate(C3_INPUTS) for channel in inputs])
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # the two ways differ by rounding
            parts = (self.of_three, self.of_four, self.of_six)
            kernels = torch.cat([part.weight.flatten(0, 1) for part in parts])
            full = kernels.new_zeros(len(C3_INPUTS) * 6, 5, 5).index_copy(0, self.places, kernels)
            biases = torch.cat([part.bias for part in parts if part.bias is not None])
            return F.conv2d(x, full.unflatten(0, (-1, 6)), biases)
        three, four, six = torch.index_select(x, 1, self.gathered).split([18, 36, 6], dim=1)
        return torch.cat([self.of_three(three), self.of_four(four), self.of_six(six)], dim=1)


class RBFOutput(nn.Module):
    """Radial basis functions with fixed centres; `(B, 84) -> (B, num_classes)` logits.

    The paper's output y_i = sum_j (x_j - w_ij)^2 (equation 7) is a penalty: the class with the smallest wins. The logit
    here is -y_i / temperature. At temperature 1 the cross-entropy of these logits, y_D + log(sum_i exp(-y_i)), is the
    paper's second criterion (equation 9) without the constant of its rubbish class. The centres are a buffer: they are
    not trained.

    `temperature` divides the distances and does not change which class wins; see `class_codes` for the centres.
    """

    codes: Tensor

    def __init__(self, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("codes", class_codes(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        distances = (x.unsqueeze(1) - self.codes).square().sum(2)
        return -distances / self.temperature


class LeNet5(nn.Module):
    """LeNet-5 of 1998: 60,000 trained values for one input channel.

    Args:
        temperature: divides the distances that become logits; the paper's criterion has 1, at which a softmax of
            distances up to 600 is saturated from the start.
        num_classes: classes; see `class_codes` for what the output layer aims at.
        in_channels: channels of the images, which are 32x32 pixels.
    """

    def __init__(self, temperature: float = 10.0, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"model.temperature={temperature} must be above 0; the paper has 1, the default is 10.")
        self.squash = ScaledTanh()
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConvolution()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, CODE_LENGTH)
        self.output = RBFOutput(num_classes, temperature)
        self._initialise()

    def _initialise(self) -> None:
        """Appendix A: every weight and bias uniform within 2.4 / fan-in of its unit."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | Subsampling):
                fan_in = 4 if isinstance(module, Subsampling) else module.weight[0].numel()
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)

    def forward_features(self, images: Tensor) -> Tensor:
        check_image_size(images)
        x = images
        for layer in (self.c1, self.s2, self.c3, self.s4, self.c5):
            x = self.squash(layer(x))
        return x

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, 32, 32) -> (B, num_classes)` logits: minus the distances of F6 from the classes' codes, scaled."""
        features = self.forward_features(images).flatten(1)
        return self.output(self.squash(self.f6(features)))


class LeNet5Modern(nn.Module):
    """The simplification that most tutorials call LeNet-5: full C3, ReLU, max pooling, a linear output layer.

    Args:
        in_channels: channels of the images, which are 32x32 pixels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        check_image_size(images)
        x = F.max_pool2d(F.relu(self.c1(images)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        return F.relu(self.c5(x))

    def forward(self, images: Tensor) -> Tensor:
        features = self.forward_features(images).flatten(1)
        return self.output(F.relu(self.f6(features)))
