"""Recurrent nets that read an image as a sequence, and hypernetworks that scale their weights at every step.

Ha, Dai, Le, "HyperNetworks" (arXiv 1609.09106): section 3.2 with equations 4, 6 and 8 for HyperRNN in its memory-
efficient form, appendix A.2.2 with equations 9 to 13 for HyperLSTM, A.2.3 for the initialisation. Reading images is not
in the paper, whose sequences are texts, handwriting and translations.

Time step t of the hypernetwork computes its own state from [h_{t-1}; x_t] and then scales the main net of the same step
t, as section 3.2 says and the authors' published cell does; equations 6 and 11 print the state of step t-1 there.

Shapes in capitals: T steps, B images, F features of a step, G gates (1 in an RNN, 4 in an LSTM, in the order i, g, f,
o), H hidden units, N_z the size of an embedding.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import (
    require_all_positive,
    require_choice,
    require_exact_size,
    require_positive,
    require_probability,
)

READINGS = ("rows", "pixels")

State = tuple[Tensor, ...]
"""What a step hands to the next, `(B, H)` each: h, in an LSTM also c."""


class RNNUpdate(nn.Module):
    """h_t = tanh(y), equation 4; `y: (1, B, H)`."""

    gates = 1
    states = 1

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, y: Tensor, state: State) -> State:
        return (torch.tanh(y[0]),)


class LSTMUpdate(nn.Module):
    """The gates and the two states of an LSTM, equations 12 and 13; `y: (4, B, H)` holds i, g, f and o.

    Every gate and the cell have a layer normalisation of their own. Dropout falls on the candidate alone, so that what
    the cell remembers is never lost. The forget gate's 1 is from the authors' published cell.

    Args:
        layer_norm: normalise the gates and the cell; without, this is equation 9.
        dropout: probability of dropping a unit of the candidate.
    """

    gates = 4
    states = 2

    def __init__(self, hidden_size: int, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.norm_cell: nn.Module = nn.LayerNorm(hidden_size) if layer_norm else nn.Identity()
        self.norm_gain = nn.Parameter(torch.ones(4, 1, hidden_size)) if layer_norm else None
        self.norm_bias = nn.Parameter(torch.zeros(4, 1, hidden_size)) if layer_norm else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, state: State) -> State:
        _, cell = state
        if self.norm_gain is not None and self.norm_bias is not None:
            y = torch.addcmul(self.norm_bias, F.layer_norm(y, (self.hidden_size,)), self.norm_gain)
        i, g, f, o = y
        cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * self.dropout(torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(self.norm_cell(cell)), cell


Update = RNNUpdate | LSTMUpdate


def orthogonal_linear(in_features: int, gates: int, hidden_size: int, bias: bool) -> nn.Linear:
    """Build the matrices of all gates, one below the other, each orthogonal by itself; a bias starts at 0."""
    linear = nn.Linear(in_features, gates * hidden_size, bias=bias)
    for matrix in linear.weight.split(hidden_size):
        nn.init.orthogonal_(matrix)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Recurrence(nn.Module):
    """A plain RNN or LSTM: y = W_h h_{t-1} + W_x x_t + b; `(T, B, F) -> (B, H)`, the last h."""

    def __init__(self, input_size: int, update: Update, bias: bool = True) -> None:
        super().__init__()
        self.update = update
        self.from_input = orthogonal_linear(input_size, update.gates, update.hidden_size, bias)
        self.from_hidden = orthogonal_linear(update.hidden_size, update.gates, update.hidden_size, bias=False)

    def first_state(self, sequence: Tensor) -> State:
        return (sequence.new_zeros(sequence.shape[1], self.update.hidden_size),) * self.update.states

    def by_gate(self, y: Tensor) -> Tensor:
        """`(..., B, G * H) -> (..., G, B, H)`."""
        return y.unflatten(-1, (self.update.gates, self.update.hidden_size)).transpose(-3, -2)

    def forward(self, sequence: Tensor) -> Tensor:
        state = self.first_state(sequence)
        for x in self.by_gate(self.from_input(sequence)).unbind():
            state = self.update(self.by_gate(self.from_hidden(state[0])) + x, state)
        return state[0]


class WeightScales(nn.Module):
    """From the hypernetwork's state to what scales and shifts the main net, equations 8, 11 and 12.

    z_h and z_x are affine in the state, z_b is linear; d_h = W_hz z_h, d_x = W_xz z_x, b = W_bz z_b + b_0. At the start
    all scales are `initial_scale` and all shifts 0, whatever the state.
    """

    def __init__(
        self, hyper_size: int, embedding_size: int, gates: int, hidden_size: int, initial_scale: float = 0.1
    ) -> None:
        super().__init__()
        self.gates, self.embedding_size = gates, embedding_size
        self.to_z_h = nn.Linear(hyper_size, gates * embedding_size)
        self.to_z_x = nn.Linear(hyper_size, gates * embedding_size)
        self.to_z_b = nn.Linear(hyper_size, gates * embedding_size, bias=False)
        scale = initial_scale / embedding_size
        self.W_hz = nn.Parameter(torch.full((gates, embedding_size, hidden_size), scale))
        self.W_xz = nn.Parameter(torch.full((gates, embedding_size, hidden_size), scale))
        self.W_bz = nn.Parameter(torch.zeros(gates, embedding_size, hidden_size))
        self.b_0 = nn.Parameter(torch.zeros(gates, 1, hidden_size))
        for affine in (self.to_z_h, self.to_z_x):
            nn.init.zeros_(affine.weight)
            nn.init.ones_(affine.bias)
        nn.init.normal_(self.to_z_b.weight, std=0.01)

    def joined(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put the weights of all embeddings together, once a sequence, so that a step needs two products."""
        affine = torch.cat([self.to_z_h.weight, self.to_z_x.weight, self.to_z_b.weight])
        bias = torch.cat([self.to_z_h.bias, self.to_z_x.bias, torch.zeros_like(self.to_z_x.bias)])
        shift = torch.cat([torch.zeros_like(self.b_0), torch.zeros_like(self.b_0), self.b_0])
        return affine, bias, torch.cat([self.W_hz, self.W_xz, self.W_bz]), shift

    def forward(self, hyper_state: Tensor, joined: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """`(B, hyper units)` to d_h, d_x and b, `(G, B, H)` each; `joined` is what the method of this name returns."""
        affine, bias, scale, shift = joined
        z = F.linear(hyper_state, affine, bias).unflatten(1, (3 * self.gates, self.embedding_size))
        return torch.baddbmm(shift, z.transpose(0, 1), scale).chunk(3)


class HyperRecurrence(nn.Module):
    """A recurrence with another, smaller one inside that scales its weights; `(T, B, F) -> (B, H)`, the last h.

    y = d_h * (W_h h_{t-1}) + d_x * (W_x x_t) + b, equations 8 and 12; the inner one reads [h_{t-1}; x_t].
    """

    def __init__(
        self, input_size: int, update: Update, hyper_update: Update, embedding_size: int, initial_scale: float
    ) -> None:
        super().__init__()
        self.main = Recurrence(input_size, update, bias=False)  # b(z_b) is the bias
        self.hyper = Recurrence(update.hidden_size + input_size, hyper_update)
        sizes = (hyper_update.hidden_size, embedding_size, update.gates, update.hidden_size)
        self.scales = WeightScales(*sizes, initial_scale)

    def forward(self, sequence: Tensor) -> Tensor:
        main, hyper, joined = self.main, self.hyper, self.scales.joined()
        split = [main.update.hidden_size, sequence.shape[2]]
        hyper_from_main, hyper_from_input = hyper.from_input.weight.split(split, dim=1)
        hyper_from_states = torch.cat([hyper_from_main, hyper.from_hidden.weight], dim=1)
        inputs = main.by_gate(main.from_input(sequence)).unbind()
        hyper_inputs = F.linear(sequence, hyper_from_input, hyper.from_input.bias).unbind()
        state, hyper_state = main.first_state(sequence), hyper.first_state(sequence)
        for x, hyper_x in zip(inputs, hyper_inputs, strict=True):
            both = torch.cat([state[0], hyper_state[0]], dim=1)
            hyper_state = hyper.update(hyper.by_gate(torch.addmm(hyper_x, both, hyper_from_states.T)), hyper_state)
            d_h, d_x, b = self.scales(hyper_state[0], joined)
            y = torch.addcmul(torch.addcmul(b, d_x, x), d_h, main.by_gate(main.from_hidden(state[0])))
            state = main.update(y, state)
        return state[0]


class SequenceOptions(TypedDict, total=False):
    """The arguments that all four nets share; see `SequenceReader`."""

    reading: str
    image_size: int
    permutation_seed: int | None
    num_classes: int
    in_channels: int


class SequenceReader(nn.Module):
    """What the four nets share: the image as a sequence, and a linear layer on the last state.

    Args:
        recurrence: builds, for the number of features of a step, a module `(T, B, features) -> (B, hidden_size)`.
        hidden_size: features of the linear layer.
        reading: `rows`: a step is one row of all channels; `pixels`: one pixel of all channels, row by row.
        permutation_seed: put the pixels of every image in one random order first; null leaves them as they are.
    """

    order: Tensor | None

    def __init__(
        self,
        recurrence: Callable[[int], nn.Module],
        hidden_size: int,
        *,
        reading: str = "rows",
        image_size: int = 32,
        permutation_seed: int | None = None,
        num_classes: int = 10,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        require_choice("reading", reading, READINGS)
        require_positive("image_size", image_size)
        self.reading, self.image_size = reading, image_size
        order = None
        if permutation_seed is not None:
            # Python's generator: it gives the same order in every version and on every device.
            pixels = list(range(image_size**2))
            random.Random(permutation_seed).shuffle(pixels)  # noqa: S311  nothing here is secret
            order = torch.tensor(pixels)
        self.register_buffer("order", order)
        self.recurrence = recurrence(in_channels * (image_size if reading == "rows" else 1))
        self.classifier = nn.Linear(hidden_size, num_classes)

    def sequence(self, images: Tensor) -> Tensor:
        """`(B, C, side, side) -> (T, B, F)`: rows are `(side, B, C * side)`, pixels `(side^2, B, C)`."""
        batch, channels, height, width = images.shape
        require_exact_size(images, self.image_size)
        pixels = images.flatten(2)
        if self.order is not None:
            pixels = pixels[:, :, self.order]
        if self.reading == "pixels":
            return pixels.permute(2, 0, 1)
        return pixels.unflatten(2, (height, width)).permute(2, 0, 1, 3).reshape(height, batch, channels * width)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, side, side) -> (B, H)`, the last hidden state."""
        return self.recurrence(self.sequence(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.forward_features(images))


class RNN(SequenceReader):
    """The plain recurrent net of `hidden_size` units, equation 4: h_t = tanh(W_h h_{t-1} + W_x x_t + b)."""

    def __init__(self, *, hidden_size: int = 128, **options: Unpack[SequenceOptions]) -> None:
        require_all_positive(hidden_size=hidden_size)
        super().__init__(partial(Recurrence, update=RNNUpdate(hidden_size)), hidden_size, **options)


class LSTM(SequenceReader):
    """The plain LSTM with layer normalisation, equations 9 and 13.

    Args:
        layer_norm: normalise the gates and the cell.
        dropout: probability of dropping a unit of the candidate; the paper keeps 0.9 of the characters' LSTM.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 128,
        layer_norm: bool = True,
        dropout: float = 0.1,
        **options: Unpack[SequenceOptions],
    ) -> None:
        require_all_positive(hidden_size=hidden_size)
        require_probability("dropout", dropout)
        update = LSTMUpdate(hidden_size, layer_norm, dropout)
        super().__init__(partial(Recurrence, update=update), hidden_size, **options)


class HyperRNN(SequenceReader):
    """An RNN whose weights a smaller RNN scales, equations 6 and 8.

    Args:
        embedding_size: N_z, length of the embeddings between the two.
        initial_scale: what every scale starts at. A.2.3 has 0.1, for HyperLSTM; the paper says nothing for HyperRNN,
            in which no normalisation undoes it: a state fades to a tenth at each step until the scales have grown.
            With 1 the net starts as a plain RNN.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 128,
        hyper_size: int = 16,
        embedding_size: int = 4,
        initial_scale: float = 0.1,
        **options: Unpack[SequenceOptions],
    ) -> None:
        require_all_positive(hidden_size=hidden_size, hyper_size=hyper_size, embedding_size=embedding_size)
        main, hyper = RNNUpdate(hidden_size), RNNUpdate(hyper_size)
        recurrence = partial(HyperRecurrence, update=main, hyper_update=hyper, embedding_size=embedding_size)
        super().__init__(partial(recurrence, initial_scale=initial_scale), hidden_size, **options)


class HyperLSTM(SequenceReader):
    """An LSTM whose weights a smaller LSTM scales, equations 10 to 13.

    Args:
        embedding_size: N_z, length of the embeddings between the two.
        initial_scale: what every scale starts at, 0.1 in A.2.3.
        layer_norm: normalise the gates and the cells of both.
        dropout: probability of dropping a unit of the main net's candidate.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 128,
        hyper_size: int = 16,
        embedding_size: int = 4,
        initial_scale: float = 0.1,
        layer_norm: bool = True,
        dropout: float = 0.1,
        **options: Unpack[SequenceOptions],
    ) -> None:
        require_all_positive(hidden_size=hidden_size, hyper_size=hyper_size, embedding_size=embedding_size)
        require_probability("dropout", dropout)
        main, hyper = LSTMUpdate(hidden_size, layer_norm, dropout), LSTMUpdate(hyper_size, layer_norm, 0.0)
        recurrence = partial(HyperRecurrence, update=main, hyper_update=hyper, embedding_size=embedding_size)
        super().__init__(partial(recurrence, initial_scale=initial_scale), hidden_size, **options)
