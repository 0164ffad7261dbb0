"""What code a training depends on, and what changes of it count."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest
from hydra import compose

from convatlas.core import source_code
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.source_code import Code, code_behind, fingerprint, prepare_code, report_code, run_code
from convatlas.studies.planning import reads_raw_files
from helpers import ROOT


def composed(*overrides: str) -> RunConfig:
    """Compose a run."""
    with hydra_ready():
        return compose_run(overrides, {"study": "test", "variant": "test", "output_dir": "test"})


def code(*overrides: str) -> set[str]:
    """Return the files of a run, without the package's folder."""
    return {name.removeprefix("src/convatlas/") for name in run_code(composed(*overrides)).files}


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
        "core/seeds.py",
    } <= files
    nets = {name for name in files if name.startswith("models/classification/")}
    assert nets == {"models/classification/__init__.py", "models/classification/resnet_cifar.py"}
    assert not files & {"tasks/detection.py", "models/layers/normalisation.py", "tracking/store.py", "core/cli.py"}


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
    entry = source_code._facts(file).imports
    assert {"convatlas.ui", "convatlas.core.files"} <= set(entry)
    assert "convatlas.studies.planning" not in entry


def test_libraries_count_where_they_are_imported():
    packages = run_code(composed("model=resnet_cifar")).packages
    assert packages["torch"] == metadata.version("torch")
    assert set(packages) <= set(source_code.DECIDING)
    prepared = prepare_code("convatlas.data.sources.sunnybrook.load")
    assert {"pydicom", "pillow"} <= set(prepared.packages)
    assert "pydicom" not in prepare_code("convatlas.data.sources.digits.load").packages
    assert {"altair", "jinja2"} <= set(report_code().packages)


def test_a_report_depends_on_its_templates_and_a_preparation_on_its_source_alone():
    templates = {name.rpartition("/")[2] for name in report_code().files if "/templates/" in name}
    assert {"report.html.j2", "base.html.j2", "style.css", "report.js"} <= templates
    assert "data.html.j2" not in templates
    files = prepare_code("convatlas.data.sources.digits.load").files
    sources = {name for name in files if "/sources/" in name}
    assert sources == {"src/convatlas/data/sources/__init__.py", "src/convatlas/data/sources/digits.py"}
    assert not [name for name in files if "/models/" in name]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Make a package of the user's own, with two files that import each other's neighbour."""
    package = tmp_path / "my_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "big.py").write_text("from .parts import Block\nimport timm\nclass Net(Block): ...\n")
    (package / "parts.py").write_text("from convatlas.models.layers import shortcuts\nclass Block: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    source_code._module_files.cache_clear()
    return package


def of_target(target: str) -> Code:
    """Return the code behind a target alone."""
    return code_behind([], [target], counted=("models",), libraries=("torch",))


def test_a_users_own_module_counts_by_its_files(own_module):
    before = of_target("my_nets.big.Net")
    assert {"my_nets.__init__", "my_nets.big", "my_nets.parts", "src/convatlas/models/layers/shortcuts.py"} <= set(
        before.files
    )
    assert str(own_module.parent) not in json.dumps(before.plain())
    (own_module / "parts.py").write_text("class Block:\n    depth = 2\n")
    after = of_target("my_nets.big.Net")
    assert before.files["my_nets.big"] == after.files["my_nets.big"]
    assert before.files["my_nets.parts"] != after.files["my_nets.parts"]
    assert "my_nets" not in sys.modules  # nothing was run


def test_an_installed_package_counts_by_its_version():
    assert of_target("timm.optim.Lamb") == Code({}, {"timm": metadata.version("timm")})
    assert of_target("sklearn.svm.SVC") == Code({}, {"scikit-learn": metadata.version("scikit-learn")})
    assert of_target("no_such_package.Net") == Code({}, {})


def test_a_file_that_is_no_python_is_named(own_module):
    (own_module / "big.py").write_text("def net(:\n")
    with pytest.raises(UserError, match=r"big\.py, line 1: .*correct it"):
        of_target("my_nets.big.Net")


def test_targets_are_found_anywhere_but_in_the_data():
    config = composed("model=resnet_cifar")
    model = {**config.model, "blocks": [{"_target_": "timm.layers.BlurPool2d"}]}
    found = run_code(config.model_copy(update={"model": model}))
    assert found.packages["timm"] == metadata.version("timm")
    assert not [name for name in found.files if "/sources/" in name]


def test_what_was_read_is_kept_until_a_file_changes(own_module, monkeypatch, tmp_path):
    monkeypatch.setattr(source_code, "PROJECT", tmp_path)
    monkeypatch.setattr(source_code, "KEPT", tmp_path / ".work" / "fingerprints.json")
    (tmp_path / "dvc.yaml").touch()
    source_code._known.cache_clear()
    try:
        before = of_target("my_nets.big.Net")
        source_code._known.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(source_code.ast, "parse", None)  # nothing is parsed a second time
            assert of_target("my_nets.big.Net") == before
        source_code.KEPT.write_text("{broken")
        source_code._known.cache_clear()
        assert of_target("my_nets.big.Net") == before
    finally:
        source_code._known.cache_clear()


@pytest.mark.parametrize(
    ("source", "reads"),
    [("digits.load", False), ("heart_phantom.load", False), ("image_folder.load", True), ("coco.load", True)],
)
def test_raw_files_are_a_dependency_where_a_source_reads_them(source, reads):
    assert reads_raw_files(f"convatlas.data.sources.{source}") is reads
    assert reads_raw_files("no_such_module.load") is True


def test_every_data_set_has_its_code():
    with hydra_ready():
        names = [file.stem for file in (ROOT / "conf" / "data").glob("*.yaml")]
        targets = {compose("prepare", [f"data={name}"]).data.source["_target_"] for name in names}
    for target in targets:
        own = f"src/{'/'.join(target.split('.')[:-1])}.py"
        assert own in prepare_code(target).files
