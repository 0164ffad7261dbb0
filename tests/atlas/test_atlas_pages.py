"""The pages of the atlas: what they say, that they are valid, small and linked, and what is drawn anew."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_runs import MadeVariant, accuracies, make_study, rising_history

import convatlas.atlas.__main__ as atlas
from convatlas.atlas.film import drop_paths, gradient_films, stored_by_depth
from convatlas.atlas.keeping import anatomies
from convatlas.atlas.lineage import Lineage, read_lineage
from convatlas.atlas.lineage_map import draw_map
from convatlas.atlas.nets import read_nets
from convatlas.atlas.pages import write_atlas
from convatlas.reporting.findings import Finding
from convatlas.reporting.reading import read_study
from convatlas.reporting.report import write_index, write_report
from helpers import ROOT

NETS = {name: net for name, net in read_nets().items() if name in {"lenet5_modern", "resnet_cifar", "unet_small"}}
VOID = {"meta", "img", "br", "input", "link", "hr", "path", "rect"}


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and collects addresses and anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute of {tag} stands twice"
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.anchors.append(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loaded += [given[name] for name in ("src", "data") if name in given]
        if tag == "img":
            assert given["alt"]

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def overview() -> dict[str, MadeVariant]:
    nets = {"lenet": ("lenet5_modern", 0.90, 0.01), "resnet": ("resnet_cifar", 0.95, 0.02)}
    return {
        key: MadeVariant(
            test=accuracies(score, score + spread, score - spread),
            title=f"Net <{key}>",
            overrides=[f"model={net}", "data=digits"],
            answers={seed: [0, 1, seed if net == "resnet_cifar" else 2] for seed in range(3)},
            labels=[0, 1, 2],
            history={0: rising_history("val/accuracy")},
        )
        for key, (net, score, spread) in nets.items()
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    """Write the reports of a made study and the atlas of three nets beside them."""
    folder = tmp_path_factory.mktemp("atlas")
    plan, runs = make_study(folder, overview())
    write_report(plan, runs, folder / "reports" / "studies" / "overview")
    write_index(plan.parent, runs, folder / "reports")
    drawn = anatomies(NETS, folder / "kept", processes=1)
    write_atlas(folder / "reports" / "atlas", NETS, drawn, lineage=read_lineage(), studies=[read_study(plan, runs)])
    return folder / "reports"


def pages(reports: Path) -> list[Path]:
    return sorted((reports / "atlas").rglob("*.html"))


def test_every_page_is_valid_small_and_loads_nothing(reports):
    assert len(pages(reports)) == len(NETS) + 3
    for file in pages(reports):
        text = file.read_text()
        page = Page(text)
        assert len(page.anchors) == len(set(page.anchors))
        assert all(address.startswith("data:") for address in page.loaded)
        assert file.stat().st_size < 3_000_000


def test_every_link_leads_somewhere(reports):
    parsed = {file: Page(file.read_text()) for file in pages(reports)}
    for file, page in parsed.items():
        for link in page.links:
            if link.startswith("https://"):
                continue
            address, _, anchor = unquote(link).partition("#")
            target = (file.parent / address).resolve() if address else file
            assert target.is_file(), f"{file.name}: {link}"
            if anchor and target != (reports / "atlas" / "compare.html").resolve():
                assert anchor in Page(target.read_text()).anchors


def test_pages_without_reports_beside_them_lead_to_none(tmp_path):
    nets = {"resnet_cifar": NETS["resnet_cifar"]}
    plan, runs = make_study(tmp_path, overview())
    drawn = anatomies(nets, tmp_path / "kept", processes=1)
    write_atlas(tmp_path / "atlas", nets, drawn, lineage=read_lineage(), studies=[read_study(plan, runs)])
    card = (tmp_path / "atlas" / "nets" / "resnet_cifar.html").read_text()
    assert "Net &lt;resnet&gt;" in card
    own = [link for link in Page(card).links if not link.startswith(("https://", "#"))]
    assert own == ["../index.html", "../compare.html#resnet_cifar"]


def test_a_card_says_what_is_known_of_its_net(reports):
    card = (reports / "atlas" / "nets" / "resnet_cifar.html").read_text()
    assert "https://arxiv.org/abs/1512.03385" in card
    assert "basic block  × 3" in card
    assert "Grew out of VGG: skip connections" in card
    assert "<code>python -m convatlas.train model=resnet_cifar data=digits</code>" in card
    assert "Net &lt;resnet&gt;" in card
    assert "95.00 ± 2.00" in card
    assert "../../studies/overview/index.html" in card
    without = (reports / "atlas" / "nets" / "unet_small.html").read_text()
    assert "No run of the plan trains this net." in without
    assert "model=unet_small data=heart_phantom" in without


def test_a_card_says_in_which_studies_its_net_is_and_what_is_missing(tmp_path):
    nets = {"resnet18_small": read_nets()["resnet18_small"]}
    kept = json.loads((ROOT / "docs" / "studies" / "verdicts.json").read_text())
    one = next(each for each in kept if each["comparison"] == "error[resnet18] < error[vgg]")
    found = [Finding.model_validate(one)]
    drawn = anatomies(nets, tmp_path / "kept", processes=1)
    write_atlas(tmp_path, nets, drawn, lineage=read_lineage(), studies=[], found=found)
    card = (tmp_path / "nets" / "resnet18_small.html").read_text()
    assert "No run of the plan trains this net." in card
    assert "here on the study&#39;s own images: <code>python -m convatlas.plan study=overview</code>" in card
    assert "<code>python -m convatlas.plan study=overview images=made,cifar10</code>" in card
    assert "Overview (<code>overview</code>), as ResNet-18." in card
    assert f"<b>{one['verdict']}</b>" in card
    assert card.count("not run yet") == 1


def test_the_difference_of_a_pair_is_that_of_the_report(reports):
    page = (reports / "atlas" / "compare.html").read_text()
    (group,) = json.loads(re.search(r'id="group-data">(.*?)</script>', page)[1])
    assert [variant["net"] for variant in group["variants"]] == ["lenet5_modern", "resnet_cifar"]
    difference, low, high = group["pairs"]["0 1"]
    assert difference == pytest.approx(5.0)
    assert low < difference < high
    report = (reports / "studies" / "overview" / "index.html").read_text()
    assert f"+{low:.2f} to +{high:.2f}" in report or f"−{-low:.2f} to +{high:.2f}" in report


def test_a_changed_net_is_drawn_anew_and_no_other(tmp_path):
    nets = {name: NETS[name] for name in ("lenet5_modern", "resnet_cifar")}
    first = anatomies(nets, tmp_path, processes=1)
    times = {file.stem: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    resnet = nets["resnet_cifar"]
    deeper = {**resnet, "model": {**resnet["model"], "depth": 32}}
    second = anatomies({**nets, "resnet_cifar": deeper}, tmp_path, processes=1)
    again = {file.stem: file.stat().st_mtime_ns for file in tmp_path.glob("*.json")}
    assert second["lenet5_modern"] == first["lenet5_modern"]
    assert second["resnet_cifar"]["convolutions"] == first["resnet_cifar"]["convolutions"] + 12
    assert [name for name in times if times[name] != again[name]] == ["resnet_cifar"]


def test_what_was_kept_and_is_broken_is_drawn_anew(tmp_path):
    nets = {"lenet5_modern": NETS["lenet5_modern"]}
    first = anatomies(nets, tmp_path, processes=1)
    (tmp_path / "lenet5_modern.json").write_text("{")
    assert anatomies(nets, tmp_path, processes=1) == first


def test_every_net_has_a_family_and_the_lecture_s_ideas_are_marked():
    lineage = read_lineage()
    members = lineage.members(read_nets())
    assert set(members) == set(lineage.families)
    assert sorted(net for nets in members.values() for net in nets) == sorted(read_nets())
    marked = [name for name, family in lineage.families.items() if any(edge.lecture for edge in family.parents)]
    assert marked == ["alexnet", "vgg", "googlenet", "resnet", "xception", "mobilenet_v1", "nasnet"]


def test_a_net_of_no_family_is_told_and_the_others_are_drawn(tmp_path, monkeypatch, capsys):
    net = read_nets()["lenet5_modern"]
    monkeypatch.setattr(atlas, "read_nets", lambda: {"lenet5_modern": net, "new_net": net})
    monkeypatch.setattr(sys, "argv", ["atlas"])
    monkeypatch.chdir(tmp_path)
    atlas.main()
    message = "conf/model/new_net.yaml is not in the atlas: name its family in src/convatlas/atlas/lineage.yaml."
    assert message in "".join(capsys.readouterr())
    assert [page.stem for page in (tmp_path / "reports" / "atlas" / "nets").glob("*.html")] == ["lenet5_modern"]


def test_a_lineage_in_which_time_runs_backwards_is_refused():
    families = {
        "young": {"title": "Y", "year": 2020, "task": "detection", "link": "https://a", "nets": ["y"]},
        "old": {
            "title": "O",
            "year": 2010,
            "task": "detection",
            "link": "https://b",
            "nets": ["o"],
            "from": [{"net": "young", "idea": "depth", "by": "time"}],
        },
    }
    with pytest.raises(ValueError, match="old cannot have grown out of young"):
        Lineage.model_validate({"ideas": {"depth": "more"}, "families": families})


def test_the_map_has_a_box_for_every_family_below_those_that_it_grew_out_of():
    lineage = read_lineage()
    svg = draw_map(lineage, {})
    heights = {name: float(y) for name, y in re.findall(r'data-family="(\w+)".*?<rect x="[\d.-]+" y="([\d.-]+)"', svg)}
    assert set(heights) == set(lineage.families)
    for name, family in lineage.families.items():
        assert all(heights[edge.net] < heights[name] for edge in family.parents)
    assert svg.count('class="edge"') == sum(len(family.parents) for family in lineage.families.values())


def rows(film):
    return next(source["values"] for source in film.chart.vega["data"] if source["name"] == "rows")


def test_the_film_of_drop_path_shows_whole_columns_and_dropped_joins():
    steps = {}
    for row in rows(drop_paths()):
        steps.setdefault(row["s"], []).append(row)
    kinds = {frame[0]["h"] for frame in steps.values()}
    assert {"paths dropped at the joins", "column 1 alone"} <= kinds
    for frame in steps.values():
        assert len(frame) == 15
        computed = [row for row in frame if row["w"] == "computed"]
        alone = re.fullmatch(r"column (\d) alone", frame[0]["h"])
        if alone:
            column = int(alone[1])
            assert {row["x"] for row in computed} == {column}
            assert len(computed) == 2 ** (column - 1)


def test_a_reversible_net_stores_the_same_at_every_depth():
    found = {}
    for row in rows(stored_by_depth()):
        found.setdefault(row["v"], []).append(row["m"])
    assert len(set(found["computed again"])) == 1
    assert found["activations stored"] == sorted(set(found["activations stored"]))
    assert found["activations stored"][0] > 5 * found["computed again"][0]


def test_the_film_of_gradients_has_every_layer_and_epoch_and_the_names_of_its_lines(tmp_path):
    norms = {0: [(0.5, 2.0), (0.25, 1.0)], 1: [(1.5, 4.0), (0.75, 3.0)]}
    history = {
        seed: [
            {**epoch, "gradient/001": first, "gradient/002": second}
            for epoch, (first, second) in zip(rising_history("val/accuracy", (0.5, 0.7)), found, strict=True)
        ]
        for seed, found in norms.items()
    }
    made = {"a": MadeVariant(test=accuracies(0.9, 0.91), title="With skips", history=history)}
    (film,) = gradient_films([read_study(*make_study(tmp_path, made))])
    assert [(row["e"], row["n"], row["m"]) for row in rows(film)] == [
        (1, 1, 1.0),
        (2, 1, 0.5),
        (1, 2, 3.0),
        (2, 2, 2.0),
    ]
    assert film.legend == [("With skips", "var(--hue-0)")]
    assert gradient_films([read_study(*make_study(tmp_path / "other", overview()))]) == []
