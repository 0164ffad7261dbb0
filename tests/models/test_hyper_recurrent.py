"""Recurrent nets on images: reading, the equations of HyperRNN and HyperLSTM, their initialisation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.hyper_recurrent import LSTM, RNN, HyperLSTM, HyperRNN
from convatlas.models.costs import count_parameters, on_meta_device

NETS = [RNN, LSTM, HyperRNN, HyperLSTM]
SMALL = {"hidden_size": 6, "image_size": 5, "num_classes": 3}
SMALL_HYPER = SMALL | {"hyper_size": 4, "embedding_size": 2}


def build(kind, **options):
    torch.manual_seed(0)
    return kind(**(SMALL_HYPER if kind in (HyperRNN, HyperLSTM) else SMALL) | options)


def randomise(net):
    """Draw every parameter, so that none is at a value that hides a term."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)


def leave_weights_as_they_are(scales):
    """Make every scale 1 and every generated shift 0."""
    for weights in (scales.W_hz, scales.W_xz):
        nn.init.constant_(weights, 1 / scales.embedding_size)
    nn.init.zeros_(scales.W_bz)


# ---- reading ----


@pytest.mark.parametrize("permutation_seed", [None, 3])
def test_rows_and_pixels_are_read_in_order(permutation_seed):
    images = torch.rand(2, 3, 5, 5)
    options = {"in_channels": 3, "permutation_seed": permutation_seed}
    rows = build(RNN, **options).sequence(images)
    pixels = build(RNN, reading="pixels", **options).sequence(images)
    assert rows.shape == (5, 2, 15)
    assert pixels.shape == (25, 2, 3)
    order = list(range(25)) if permutation_seed is None else build(RNN, **options).order.tolist()
    for step, place in enumerate(order):
        pixel = images[:, :, place // 5, place % 5]
        assert torch.equal(pixels[step], pixel)
        assert torch.equal(rows[step // 5].view(2, 3, 5)[:, :, step % 5], pixel)


def test_a_permutation_belongs_to_its_seed_and_is_kept_with_the_weights():
    one, same, other = (build(RNN, permutation_seed=seed).order for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert sorted(one.tolist()) == list(range(25))
    assert "order" in build(RNN, permutation_seed=1).state_dict()
    assert "order" not in build(RNN).state_dict()


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("reading", ["rows", "pixels"])
def test_logits_come_from_the_last_state_and_gradients_reach_everything(kind, reading):
    net = build(kind, reading=reading)
    randomise(net)
    images = torch.rand(2, 1, 5, 5)
    net(images).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    net.eval()
    assert net.forward_features(images).shape == (2, 6)
    assert torch.equal(net(images), net.classifier(net.forward_features(images)))


# ---- the plain nets ----


def test_the_rnn_is_torch_s_own():
    net = build(RNN)
    twin = nn.RNN(5, 6)
    cell = net.recurrence
    with torch.no_grad():
        twin.weight_ih_l0.copy_(cell.from_input.weight)
        twin.weight_hh_l0.copy_(cell.from_hidden.weight)
        twin.bias_ih_l0.copy_(nn.init.normal_(cell.from_input.bias))
        twin.bias_hh_l0.zero_()
    images = torch.rand(3, 1, 5, 5)
    assert torch.allclose(net.forward_features(images), twin(images[:, 0].transpose(0, 1))[1][0], atol=1e-6)


def test_the_lstm_without_normalisation_is_torch_s_own_with_1_on_the_forget_gate():
    net = build(LSTM, layer_norm=False).eval()
    twin = nn.LSTM(5, 6)
    cell = net.recurrence
    ours_to_theirs = torch.arange(24).view(4, 6)[[0, 2, 1, 3]].flatten()  # i, g, f, o to i, f, g, o
    with torch.no_grad():
        nn.init.normal_(cell.from_input.bias)
        twin.weight_ih_l0.copy_(cell.from_input.weight[ours_to_theirs])
        twin.weight_hh_l0.copy_(cell.from_hidden.weight[ours_to_theirs])
        twin.bias_ih_l0.copy_(cell.from_input.bias[ours_to_theirs])
        twin.bias_hh_l0.zero_()
        twin.bias_hh_l0[6:12] = 1
    images = torch.rand(3, 1, 5, 5)
    assert torch.allclose(net.forward_features(images), twin(images[:, 0].transpose(0, 1))[1][0][0], atol=1e-6)


def test_dropout_falls_on_the_candidate_and_leaves_what_is_remembered():
    torch.manual_seed(0)
    update = build(LSTM, dropout=0.5).recurrence.update
    y, state = torch.randn(4, 8, 6), (torch.zeros(8, 6), torch.randn(8, 6))
    _, cell = update.eval()(y, state)
    _, dropped = update.train()(y, state)
    y = F.layer_norm(y, (6,))
    kept = torch.sigmoid(y[2] + 1) * state[1]
    candidate = torch.sigmoid(y[0]) * torch.tanh(y[1])
    assert torch.allclose(cell, kept + candidate, atol=1e-6)
    is_dropped = (dropped - kept).abs() < 1e-6
    assert 0 < is_dropped.sum() < 48
    assert torch.allclose(dropped[~is_dropped], (kept + 2 * candidate)[~is_dropped], atol=1e-6)


# ---- hypernetworks ----


def test_a_hyperrnn_whose_scales_are_1_is_an_rnn():
    hyper, plain = build(HyperRNN), build(RNN)
    leave_weights_as_they_are(hyper.recurrence.scales)
    nn.init.normal_(hyper.recurrence.scales.b_0)
    with torch.no_grad():
        plain.recurrence.from_input.weight.copy_(hyper.recurrence.main.from_input.weight)
        plain.recurrence.from_hidden.weight.copy_(hyper.recurrence.main.from_hidden.weight)
        plain.recurrence.from_input.bias.copy_(hyper.recurrence.scales.b_0.flatten())
    images = torch.rand(3, 1, 5, 5)
    assert torch.allclose(hyper.forward_features(images), plain.forward_features(images), atol=1e-6)


def test_a_hyperlstm_whose_scales_are_1_is_an_lstm():
    hyper, plain = build(HyperLSTM).eval(), build(LSTM).eval()
    leave_weights_as_they_are(hyper.recurrence.scales)
    nn.init.normal_(hyper.recurrence.scales.b_0)
    plain.recurrence.update.load_state_dict(hyper.recurrence.main.update.state_dict())
    with torch.no_grad():
        plain.recurrence.from_input.weight.copy_(hyper.recurrence.main.from_input.weight)
        plain.recurrence.from_hidden.weight.copy_(hyper.recurrence.main.from_hidden.weight)
        plain.recurrence.from_input.bias.copy_(hyper.recurrence.scales.b_0.flatten())
    images = torch.rand(3, 1, 5, 5)
    assert torch.allclose(hyper.forward_features(images), plain.forward_features(images), atol=1e-6)


def embeddings_by_hand(scales, hyper_h, gate):
    """Equations 6 and 11, with the state of this step: z_h, z_x, z_b of one gate."""
    rows = slice(2 * gate, 2 * gate + 2)
    z_h = hyper_h @ scales.to_z_h.weight[rows].T + scales.to_z_h.bias[rows]
    z_x = hyper_h @ scales.to_z_x.weight[rows].T + scales.to_z_x.bias[rows]
    return z_h, z_x, hyper_h @ scales.to_z_b.weight[rows].T


def main_by_hand(recurrence, hyper_h, h, x, gate):
    """Equations 8 and 12: the pre-activation of one gate of the main net, before any normalisation."""
    scales, rows = recurrence.scales, slice(6 * gate, 6 * gate + 6)
    z_h, z_x, z_b = embeddings_by_hand(scales, hyper_h, gate)
    from_hidden = h @ recurrence.main.from_hidden.weight[rows].T
    from_input = x @ recurrence.main.from_input.weight[rows].T
    shift = z_b @ scales.W_bz[gate] + scales.b_0[gate]
    return (z_h @ scales.W_hz[gate]) * from_hidden + (z_x @ scales.W_xz[gate]) * from_input + shift


def test_hyperrnn_follows_the_equations():
    net = build(HyperRNN)
    randomise(net)
    recurrence, hyper = net.recurrence, net.recurrence.hyper
    images = torch.rand(3, 1, 5, 5)
    h, hyper_h = torch.zeros(3, 6), torch.zeros(3, 4)
    for step in range(5):
        x = images[:, 0, step]
        hyper_h = torch.tanh(hyper.from_hidden(hyper_h) + hyper.from_input(torch.cat([h, x], 1)))
        h = torch.tanh(main_by_hand(recurrence, hyper_h, h, x, 0))
    assert torch.allclose(net.forward_features(images), h, atol=1e-5)


def lstm_by_hand(update, y, cell):
    """Equations 10, 12 and 13 from the pre-activations of i, g, f and o on, with 1 on the forget gate."""

    def normalised(values, gate):
        return F.layer_norm(values, values.shape[1:]) * update.norm_gain[gate] + update.norm_bias[gate]

    i, g, f, o = (normalised(y[gate], gate) for gate in range(4))
    cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(update.norm_cell(cell)), cell


def test_hyperlstm_follows_the_equations():
    net = build(HyperLSTM).eval()
    randomise(net)
    recurrence, hyper = net.recurrence, net.recurrence.hyper
    images = torch.rand(3, 1, 5, 5)
    h, cell, hyper_h, hyper_cell = torch.zeros(3, 6), torch.zeros(3, 6), torch.zeros(3, 4), torch.zeros(3, 4)
    for step in range(5):
        x = images[:, 0, step]
        y = (hyper.from_hidden(hyper_h) + hyper.from_input(torch.cat([h, x], 1))).split(4, dim=1)
        hyper_h, hyper_cell = lstm_by_hand(hyper.update, y, hyper_cell)
        y = [main_by_hand(recurrence, hyper_h, h, x, gate) for gate in range(4)]
        h, cell = lstm_by_hand(recurrence.main.update, y, cell)
    assert torch.allclose(net.forward_features(images), h, atol=1e-5)


@pytest.mark.parametrize("kind", [HyperRNN, HyperLSTM])
@pytest.mark.parametrize(("options", "start"), [({}, 0.1), ({"initial_scale": 1.0}, 1.0)])
def test_every_scale_starts_at_a_tenth_or_as_asked_and_every_shift_at_zero(kind, options, start):
    scales = build(kind, **options).recurrence.scales
    d_h, d_x, b = scales(torch.randn(3, 4), scales.joined())
    assert torch.allclose(d_h, torch.full((scales.gates, 3, 6), start))
    assert torch.allclose(d_x, torch.full((scales.gates, 3, 6), start))
    assert torch.equal(b, torch.zeros(scales.gates, 3, 6))


def test_weights_start_as_appendix_a_2_3_says():
    torch.manual_seed(0)
    net = HyperLSTM(hidden_size=40, hyper_size=100, embedding_size=25, image_size=8)
    scales, main, hyper = net.recurrence.scales, net.recurrence.main, net.recurrence.hyper
    for affine in (scales.to_z_h, scales.to_z_x):
        assert (affine.weight == 0).all()
        assert (affine.bias == 1).all()
    assert scales.to_z_b.bias is None
    assert scales.to_z_b.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (scales.W_hz == 0.1 / 25).all()
    assert (scales.W_xz == 0.1 / 25).all()
    assert (scales.W_bz == 0).all()
    assert (scales.b_0 == 0).all()
    assert (hyper.from_input.bias == 0).all()
    assert main.from_input.bias is None
    for linear, size in ((main.from_hidden, 40), (main.from_input, 40), (hyper.from_hidden, 100)):
        for matrix in linear.weight.split(size):
            assert torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]), atol=1e-5)
    for matrix in hyper.from_input.weight.split(100):  # 100 rows, 40 + 8 columns
        assert torch.allclose(matrix.T @ matrix, torch.eye(48), atol=1e-5)


# Table 3 of the paper, in millions: 50 characters in and out, 1000 units, 128 in the hypernetwork, embeddings of 4.
@pytest.mark.parametrize(
    ("kind", "layer_norm", "millions"),
    [(LSTM, False, 4.25), (LSTM, True, 4.26), (HyperLSTM, False, 4.91), (HyperLSTM, True, 4.92)],
)
def test_parameters_at_the_paper_s_sizes_are_the_published_ones(kind, layer_norm, millions):
    options = {"hidden_size": 1000, "layer_norm": layer_norm, "image_size": 50, "num_classes": 50}
    if kind is HyperLSTM:
        options |= {"hyper_size": 128, "embedding_size": 4}
    assert round(count_parameters(on_meta_device(lambda: kind(**options))) / 1e6, 2) == millions


# ---- errors ----


@pytest.mark.parametrize("kind", NETS)
def test_wrong_readings_sizes_and_images_are_refused(kind):
    with pytest.raises(ValueError, match=r"^model\.reading=columns .*rows, pixels\.$"):
        build(kind, reading="columns")
    for option in ("hidden_size", "image_size", "hyper_size", "embedding_size"):
        if option in SMALL or kind in (HyperRNN, HyperLSTM):
            with pytest.raises(ValueError, match=rf"^model\.{option}=0 "):
                build(kind, **{option: 0})
    with pytest.raises(ValueError, match=r"^model\.image_size=5 does not fit images of 6x5 pixels"):
        build(kind)(torch.rand(1, 1, 6, 5))


@pytest.mark.parametrize("kind", [LSTM, HyperLSTM])
def test_a_dropout_that_is_no_probability_is_refused(kind):
    with pytest.raises(ValueError, match=r"^model\.dropout=1\.0 "):
        build(kind, dropout=1.0)
