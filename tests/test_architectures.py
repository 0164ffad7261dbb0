"""What a searched net's file says belongs to the run that trains it."""

from __future__ import annotations

import pytest
import yaml

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.errors import UserError
from convatlas.studies.architectures import with_architecture

NET = {"blocks": [["k3_e1"]], "stem_channels": 8, "stage_channels": [8], "head_channels": 16, "strides": [2, 1]}


@pytest.fixture
def run(tmp_path):
    """Compose a training of a searched net, and say what its file holds."""
    file = tmp_path / "found.yaml"
    named = {"study": "s", "variant": "v", "seeds": [0], "output_dir": str(tmp_path / "out")}

    def run(written):
        file.write_text(written if isinstance(written, str) else yaml.safe_dump(written))
        with hydra_ready():
            return compose_run(["model=searched", "data=digits", f"model.architecture={file}"], named)

    return run, file


def test_an_edited_file_is_another_run_and_a_note_in_it_is_not(run):
    compose, _ = run
    first = with_architecture(compose({"family": "fbnet", "found": {"seed": 0}, "net": NET}))
    noted = with_architecture(compose({"family": "fbnet", "found": {"seed": 1}, "net": NET}))
    edited = with_architecture(compose({"family": "fbnet", "net": {**NET, "blocks": [["k5_e6"]]}}))
    assert first.model["architecture"] == {"family": "fbnet", "net": NET}
    assert first.identity == noted.identity != edited.identity


def test_a_missing_file_is_named_with_its_remedy_and_a_wrong_one_is_left_to_the_net(run):
    compose, file = run
    wrong = compose("[a, list]")
    assert with_architecture(wrong) == wrong
    file.unlink()
    with pytest.raises(UserError, match=r"found\.yaml does not exist; run `python -m convatlas\.search`"):
        with_architecture(wrong)
