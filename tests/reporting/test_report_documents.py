"""The tables and verdicts of a study for other documents."""

import pytest
from made_runs import MadeVariant, accuracies, make_study

from convatlas.reporting.documents import as_latex, as_markdown, claim_records
from convatlas.reporting.reading import read_study

CLAIM = {"says": "a is better", "holds": ["error[a] < error[b]"], "note": None}


@pytest.fixture
def study(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.95, 0.96, 0.94), title="a | 50 %\n<script>"),
        "b": MadeVariant(test=accuracies(0.85, 0.87, 0.84), title="b_2"),
    }
    claims = [CLAIM, {"says": "it is so", "holds": [], "note": "No figure."}]
    return read_study(*make_study(tmp_path, made, question="Which?", claims=claims))


def test_markdown_cannot_be_broken_by_a_title(study):
    lines = as_markdown(study).splitlines()
    assert any(line.startswith("| a \\| 50 % &lt;script> | 3 of 3 | 95.00 ± 1.00 |") for line in lines)
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}) == 1


def test_markdown_has_the_verdicts_with_their_figures(study):
    text = as_markdown(study)
    assert "- **Confirmed**: a is better.\n  - `error[a] < error[b]`: difference -0.09667, 98 % interval" in text
    assert "- **Not tested**: it is so. (No figure.)" in text


def test_latex_is_escaped(study):
    text = as_latex(study)
    assert "\\toprule" in text
    assert "b\\_2 & 3 of 3 & 85.33 $\\pm$ 1.53 &" in text
    assert "test accuracy, \\% &" in text


def test_the_records_of_claims_hold_verdict_and_figures(study):
    first, second = claim_records(study)
    assert (first["claim"], first["comparison"], first["verdict"]) == (
        "a is better",
        "error[a] < error[b]",
        "confirmed",
    )
    assert first["effect"] == -0.0966667
    assert first["low"] < first["effect"] < first["high"] < 0
    assert (first["seeds"], first["images"], first["kind"], first["margin"]) == (3, "made", "measured", 0.01)
    assert (second["comparison"], second["verdict"], second["effect"]) == ("", "not tested", None)
