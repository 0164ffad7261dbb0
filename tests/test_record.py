"""The record of a run: what is written is read back, and a broken file is named with a remedy."""

import math

import pytest

from convatlas.core.errors import UserError
from convatlas.core.record import Environment, Metrics, RunRecord, Timing, read_failure, write_failure

METRICS = {
    "study": "overview",
    "variant": "lenet5",
    "model": "LeNet-5",
    "seed": 1,
    "task": "classification",
    "data": "digits",
    "data_fingerprint": "sha256:aa",
    "monitor": "val/accuracy",
    "epochs": 2,
    "best_epoch": 2,
    "best": {"val/accuracy": 0.75},
    "last": {"val/accuracy": 0.75},
    "test": {"accuracy": 0.1 + 0.2, "loss": math.inf, "map_small": None},
    "parts": {"flip": {"accuracy": 0.5}},
    "costs": {"parameters": 61_706, "weight_megabytes": 0.25, "macs_of_weights": 0},
}
HISTORY = ({"epoch": 1.0, "step": 20.0, "lr": 0.1}, {"epoch": 2.0, "step": 40.0, "lr": 1 / 3, "val/accuracy": 0.75})


def made_record() -> RunRecord:
    return RunRecord(
        metrics=Metrics(**METRICS),
        timing=Timing(train_seconds=2.5, epoch_seconds=[1.0, 1.5], test_seconds=0.0, latency_seconds=0.001),
        environment=Environment(commit="0123", dirty=False, packages={"torch": "2.8.0"}, gpu=None, threads=2),
        identity={"seed": 1, "code": "ab"},
        history=HISTORY,
    )


def test_what_is_written_is_read_back(tmp_path):
    made_record().write(tmp_path)
    assert RunRecord.read(tmp_path) == made_record()


def test_files_keep_whole_numbers_every_digit_and_keys_of_their_own(tmp_path):
    made_record().write(tmp_path)
    assert (tmp_path / "history.csv").read_text() == (
        "epoch,step,lr,val/accuracy\n1,20,0.1,\n2,40,0.3333333333333333,0.75\n"
    )
    metrics = (tmp_path / "metrics.json").read_text()
    assert '"parameters": 61706,' in metrics
    assert '"accuracy": 0.30000000000000004' in metrics
    assert '"gpu": null' in (tmp_path / "environment.json").read_text()


def test_the_columns_of_the_history_have_nan_for_an_empty_cell(tmp_path):
    made_record().write(tmp_path)
    columns = RunRecord.read(tmp_path).columns
    assert columns["epoch"] == [1, 2]
    assert math.isnan(columns["val/accuracy"][0])
    assert columns["val/accuracy"][1] == 0.75


def test_only_metrics_have_to_be_there(tmp_path):
    made_record().write(tmp_path)
    for name in ("timing.json", "environment.json", "identity.json", "history.csv"):
        (tmp_path / name).unlink()
    assert RunRecord.read(tmp_path) == RunRecord(metrics=Metrics(**METRICS))


BROKEN = {
    "no JSON": ("metrics.json", "{"),
    "not UTF-8": ("metrics.json", b'{"seed": "\xff"}'),
    "nested too deeply": ("metrics.json", "[" * 100_000),
    "a list": ("metrics.json", "[]"),
    "null": ("identity.json", "null"),
    "a key is missing": ("metrics.json", '{"seed": 1}'),
    "a word for a number": ("timing.json", '{"train_seconds": "long"}'),
    "a list for a mapping": ("environment.json", '{"packages": ["torch"]}'),
    "an empty table": ("history.csv", ""),
    "a word in the table": ("history.csv", "epoch,lr\n1,high\n"),
    "a short row": ("history.csv", "epoch,lr\n1\n"),
    "an open quote": ("history.csv", 'epoch,lr\n1,"0.1\n'),
}


@pytest.mark.parametrize(("name", "contents"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_a_remedy_in_one_sentence(tmp_path, name, contents):
    made_record().write(tmp_path)
    (tmp_path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(UserError) as raised:
        RunRecord.read(tmp_path)
    message = str(raised.value)
    assert message.startswith(str(tmp_path / name))
    assert message.endswith("delete this run's folder and train it again.")
    assert "\n" not in message


def test_a_folder_without_metrics_has_not_finished(tmp_path):
    assert not RunRecord.is_in(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.json does not exist"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("contents", ["{}", '{"error": ""}', '{"error": 3}', "[]"])
def test_a_failure_says_why_or_is_named(tmp_path, contents):
    assert read_failure(tmp_path) == ""
    write_failure(tmp_path, "The loss is not finite.")
    assert read_failure(tmp_path) == "The loss is not finite."
    (tmp_path / "failure.json").write_text(contents)
    with pytest.raises(UserError, match=r"failure\.json .*; delete this run's folder and train it again\."):
        read_failure(tmp_path)
