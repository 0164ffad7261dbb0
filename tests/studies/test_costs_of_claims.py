"""Claims on costs: variants that are to cost the same, the papers' own nets, and where a claim is tested."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.studies.counting import check_equal
from convatlas.studies.planning import (
    Claim,
    Study,
    check_claims,
    check_costs,
    counted_nets,
    load_study,
    planned_runs,
    study_file,
)

WIDE, THIN = "width_8", "thin_deep"


def check(*more: str) -> None:
    """Check the claim that a wide net is better than a thin one of its cost, with more overrides of the thin net."""
    with hydra_ready():
        study, scale = load_study("wide_resnet", "laptop")
        thin = study.variants[THIN]
        thin = thin.model_copy(update={"laptop": [*thin.laptop, *more]})
        claim = next(each for each in study.claims if each.equal and THIN in each.holds[0])
        study = study.model_copy(update={"variants": {WIDE: study.variants[WIDE], THIN: thin}, "claims": [claim]})
        check_costs(study, scale, {run.config.variant: run.config for run in planned_runs(study, scale, [0], [])})


def test_variants_of_equal_cost_pass() -> None:
    check()


def test_one_width_makes_a_study_unequal() -> None:
    with pytest.raises(UserError) as caught:
        check("model.filters=9")
    [line] = str(caught.value).splitlines()
    assert line.startswith("conf/study/wide_resnet.yaml: the claim 'a wide shallow net is better than a thin deep one")
    assert "compares variants of equal macs, within 3%, but they have width_8 3,924,640, thin_deep 5,0" in line
    assert line.endswith("; correct the nets, or the claim.")


def test_the_share_is_of_the_least(compose) -> None:
    configs = {str(width): compose("model=resnet_cifar", f"model.width={width}") for width in (16, 17)}
    more = 17**2 / 16**2 - 1  # convolutions alone
    check_equal(configs, "macs", more + 0.002, "a claim")
    with pytest.raises(UserError, match=r"within 12%, but they have 16 \d\d,\d+,\d+, 17 "):
        check_equal(configs, "macs", more - 0.01, "a claim")


def test_the_papers_own_nets_are_counted_at_their_own_size() -> None:
    with hydra_ready():
        study, _ = load_study("mobilenet", "laptop")
        names = ("paper_conv", "paper_v1", "paper_v1_w075_r0714")
        found = counted_nets(study.model_copy(update={"counted": {name: study.counted[name] for name in names}}))
    assert found["paper_conv"]["title"] == "MobileNet with full convolutions"
    millions = [round(found[name]["costs"]["macs"] / 1e6) for name in names]
    assert millions == [4867, 569, 166]
    assert found["paper_v1"]["costs"]["parameters"] == 4_231_976


def test_a_counted_net_that_does_not_exist_is_told() -> None:
    net = {"title": "N", "overrides": ["model=mobilenet_v9"]}
    with hydra_ready(), pytest.raises(UserError, match=r"counted\.n: model=mobilenet_v9: there is no such choice"):
        counted_nets(study_of(counted={"n": net}))


def test_a_claim_is_tested_where_it_says() -> None:
    with hydra_ready():
        planned = {s: study_file(*load_study("simpsons", s), [0], []) for s in ("laptop", "workstation")}
    holds = {scale: values["claims"][0]["holds"] for scale, values in planned.items()}  # of the contest's full marks
    assert holds == {"laptop": [], "workstation": ["f1_macro[resnet18] >= 0.97"]}
    assert planned["laptop"]["grading"] is None


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({}, "is not tested everywhere; say why in its note"),
        ({"holds": "x[a] < 1", "scales": ["paper"]}, "is not tested everywhere"),
        ({"note": "a reason", "equal": {"macs": 0.03}}, "compares nothing; remove equal"),
        ({"holds": "x[a] < 1", "equal": {"watts": 0.03}}, "macs"),
    ],
)
def test_a_claim_without_a_test_needs_a_reason(claim: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Claim.model_validate({"says": "it is so", **claim})


def study_of(**more: Any) -> Study:
    """Make a study of one variant, `a`."""
    claims = [Claim(says="it is so", holds=more.pop("holds", []), note="a reason")]
    variants = {"a": {"title": "A", "overrides": []}}
    values = {"name": "s", "title": "S", "question": "", "source": "", "printed": {}, "deviations": [], "overrides": {}}
    return Study.model_validate({**values, "variants": variants, "claims": claims, **more})


NET = {"title": "N", "overrides": ["model=lenet5"]}


@pytest.mark.parametrize(
    ("counted", "holds", "words"),
    [
        ({"n": NET}, ["macs[m] < 1"], "names no variant of the study. There is: a, n"),
        ({"n": NET}, ["macs[n] < macs[a]"], "compares nets that are trained with nets that are counted"),
        ({"a": NET}, [], "a is a variant and a counted net; rename one"),
    ],
)
def test_what_is_counted_is_no_variant(counted: Any, holds: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_claims(study_of(counted=counted, holds=holds))
