import pytest
from made_runs import COSTS, MadeVariant, accuracies, make_study

from convatlas.reporting.printed_numbers import printed_numbers
from convatlas.reporting.reading import read_study


def laid_out(tmp_path, printed, variants=None):
    made = variants or {"other": MadeVariant(test={})}
    return printed_numbers(read_study(*make_study(tmp_path, made, printed=printed)))


def test_single_figures_are_facts(tmp_path):
    found = laid_out(tmp_path, {"drop_path_rate": 0.15, "constraint": "a = 2", "sizes": [1, 2]})
    assert found.facts == (("drop path rate", "0.15"), ("constraint", "a = 2"), ("sizes", "1, 2"))
    assert found.tables == ()


def test_columns_of_the_same_nets_share_a_table(tmp_path):
    printed = {"error": {"vgg": 7.4, "resnet": 3}, "search": {"gpus": 500}, "layers": {"resnet": 152, "alexnet": 8}}
    first, second = laid_out(tmp_path, printed).tables
    assert first.columns == (("error", False), ("layers", False))
    assert first.rows == (("vgg", ("7.4", "–")), ("resnet", ("3", "152")), ("alexnet", ("–", "8")))
    assert second.rows == (("gpus", ("500",)),)


def test_figures_by_data_set_and_net_are_opened(tmp_path):
    printed = {"test_error": {"cifar10": {"a": 6.4}, "svhn": {"a": 1.8}}}
    (table,) = laid_out(tmp_path, printed).tables
    assert [title for title, _ in table.columns] == ["test error, cifar10", "test error, svhn"]


def test_columns_of_a_printed_table_stay_together(tmp_path):
    printed = {"by_columns": {"depth": [5, 10], "test_error": [37.32, 30.71]}}
    (table,) = laid_out(tmp_path, printed).tables
    assert table.columns == (("depth", False), ("test error", False))
    assert table.rows == (("1", ("5", "37.32")), ("2", ("10", "30.71")))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("test_error", "5.00 ± 1.41"),
        ("top1_accuracy", "95.00 ± 1.41"),
        ("imagenet_top5_error", "1.00 ± 0.00"),
        ("params", "0.272"),
        ("macs", "40.8"),
        ("flops_billion", "0.0408"),
        ("model_megabytes", "1.10"),
    ],
)
def test_ours_stand_beside_in_the_printed_unit(tmp_path, name, ours):
    test = {seed: {"accuracy": value, "accuracy_top5": 0.99} for seed, value in enumerate((0.94, 0.96))}
    variants = {"resnet": MadeVariant(test=test, title="ResNet-20", costs=COSTS)}
    (table,) = laid_out(tmp_path, {name: {"resnet": 1, "vgg": 2}}, variants).tables
    assert table.columns[1] == ("ours on digits", True)
    assert table.rows == (("ResNet-20", ("1", ours)), ("vgg", ("2", "–")))


def test_what_we_did_not_measure_has_no_column_of_ours(tmp_path):
    variants = {"resnet": MadeVariant(test=accuracies(0.9))}
    (table,) = laid_out(tmp_path, {"weight_layers": {"resnet": 20}}, variants).tables
    assert not table.has_ours


def test_a_printed_number_and_ours_have_bars_on_one_scale(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.8)), "b": MadeVariant(test={})}
    (table,) = laid_out(tmp_path, {"test_error": {"a": 5.0, "b": 10.0}, "layers": {"a": 8}}, made).tables
    assert [title for title, _ in table.columns] == ["test error", "ours on digits", "layers"]
    bars = [[None if bar is None else round(bar, 9) for bar in row] for row in table.bars]
    assert bars == [[25, 100, None], [50, None, None]]  # 5, 10 and our 20 %; nothing of ours beside the layers
