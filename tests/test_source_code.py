"""What code a training depends on, and what changes of it count."""

from __future__ import annotations

import pytest

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.source_code import files_imported_by, fingerprint, run_code


def code(*overrides: str) -> set[str]:
    """Return the files of a run, without the package's folder."""
    with hydra_ready():
        config = compose_run(overrides, {"study": "test", "variant": "test", "output_dir": "test"})
    return {name.removeprefix("src/convatlas/") for name in run_code(config)}


def test_a_run_depends_on_its_net_its_layers_and_its_task_and_on_no_other():
    files = code("model=resnet_cifar")
    assert {
        "models/classification/resnet_cifar.py",
        "models/layers/shortcuts.py",
        "models/checks.py",
        "tasks/classification.py",
        "tasks/base.py",
        "training/run.py",
        "data/batches.py",
    } <= files
    assert [name for name in files if name.startswith("models/classification/")] == [
        "models/classification/resnet_cifar.py"
    ]
    assert not files & {"tasks/detection.py", "models/layers/normalisation.py", "tracking/store.py", "cli.py"}


def test_a_detector_depends_on_the_task_of_detection():
    files = code("model=retinanet_small", "data=digit_scenes", "recipe=detection")
    assert {"tasks/detection.py", "models/detection/retinanet.py"} <= files
    assert "tasks/classification.py" not in files


@pytest.fixture
def change(tmp_path):
    """Return a function that says whether a change of a source text changes its fingerprint."""

    def changed(before: str, after: str) -> bool:
        files = [tmp_path / "before.py", tmp_path / "after.py"]
        for file, text in zip(files, (before, after), strict=True):
            file.write_text(text)
        return fingerprint(files[0]) != fingerprint(files[1])

    return changed


def test_comments_docstrings_and_layout_do_not_count(change):
    assert not change(
        '"""One."""\ndef f(x):\n    """Two."""\n    return x + 1\n',
        '"""Three."""\n\n\ndef f( x ):\n    # Four.\n    return (x + 1)\n',
    )


def test_code_counts(change):
    assert change("def f(x):\n    return x + 1\n", "def f(x):\n    return x + 2\n")
    assert change("NAMES = ('a', 'b')\n", "NAMES = ('b', 'a')\n")


def test_imports_within_functions_count_and_those_for_types_do_not(tmp_path):
    file = tmp_path / "entry.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import convatlas.studies.planning\n"
        "else:\n    import convatlas.ui\n"
        "def f():\n    from convatlas.core.files import read_yaml\n"
    )
    found = {path.name for path in files_imported_by([file])}
    assert {"entry.py", "files.py", "errors.py", "ui.py"} <= found
    assert "planning.py" not in found
