import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import MadeVariant, accuracies, make_study
from PIL import Image

from convatlas.core.errors import UserError
from convatlas.reporting import run_pictures
from convatlas.reporting.rendering import data_block
from convatlas.reporting.report import write_report

NASTY = "</script><script>alert(1)</script><!-- & \" '"


class Page(HTMLParser):
    """A page's elements with their attributes, ids, and text."""

    VOID = frozenset({"meta", "img", "br", "link", "circle", "line"})

    def __init__(self, source):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(tmp_path, variants, **options):
    study_file, runs = make_study(tmp_path, variants, **options)
    write_report(study_file, runs, tmp_path / "report")
    return (tmp_path / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A study of two tasks, with pictures, printed figures, an unfinished seed and nasty words."""
    picture = {"samples": Image.new("RGB", (900, 300), "red")}
    variants = {
        "resnet": MadeVariant(
            test=accuracies(0.90, 0.92, 0.97),
            title="ResNet",
            note=NASTY,
            about={"deviations": [NASTY]},
            pictures=picture,
        ),
        "vgg": MadeVariant(test=accuracies(0.8, 0.8), title=f"VGG {NASTY}", overrides=["model=vgg"]),
        "unet": MadeVariant(
            test={0: {"dice": 0.9}}, title="U-Net", task="segmentation", data="hearts", monitor="val/dice"
        ),
    }
    words = {"question": NASTY, "source": "see http://example.org/paper", "claims": [NASTY], "deviations": ["none"]}
    printed = {"test_error": {"resnet": 6.4}, "rate": 0.15}
    return report(tmp_path_factory.mktemp("mixed"), variants, command="dvc repro", printed=printed, **words)


def test_every_element_is_closed_where_it_was_opened(mixed):
    assert Page(mixed).open == []


def test_the_table_shows_means_deviations_and_missing_seeds(mixed):
    text = " ".join("".join(Page(mixed).text).split())
    assert "93.00 ± 3.61" in text
    assert "2 of 3 seeds finished" in text
    assert "3 of 9 runs have no result" in text


def test_a_failed_seed_says_why(tmp_path):
    failures = dict.fromkeys((1, 2), f"The loss is not finite {NASTY}.")
    made = {"a": MadeVariant(test=accuracies(0.9), title="Net", failures=failures), "b": MadeVariant(test={})}
    text = " ".join("".join(Page(report(tmp_path, made)).text).split())
    assert f"1 of 3 seeds finishedseeds 1 and 2 failed: The loss is not finite {NASTY}." in text
    assert "2 of 6 runs failed: Net (seed 1 and 2)." in text
    assert "3 of 6 runs have no result: b (seed 0, 1 and 2)." in text
    assert "1 of 62 failed" in text


def test_words_of_a_study_cannot_become_markup(mixed):
    page = Page(mixed)
    assert "<script>alert" not in mixed
    scripts = [attributes.get("type") for attributes in page.named("script")]
    assert set(scripts) == {"module", "application/json"}
    assert "".join(page.text).count("alert(1)") >= 5


def test_nothing_is_loaded_from_elsewhere(mixed):
    page = Page(mixed)
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert addresses
    links = ("#", "data:image/webp;", "../../index.html", "../../data/", "../../../docs/studies/")
    assert all(address.startswith(links) for address in addresses)
    assert not page.named("link")
    style = re.search(r"<style>(.*?)</style>", mixed, re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style


def test_the_policy_names_every_script_by_its_hash(mixed):
    policy = next(meta["content"] for meta in Page(mixed).named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.count("sha256-") == Page(mixed).named("script").count({"type": "module"}) == 2


def test_charts_are_data_that_parses(mixed):
    blocks = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', mixed, re.DOTALL)
    shown = [attributes["data-spec"] for attributes in Page(mixed).named("div") if "data-spec" in attributes]
    assert [name for name, _ in blocks] == shown
    assert len(shown) == 10  # three curves a task, and four trade-offs where there are two variants
    for _, block in blocks:
        assert json.loads(block)["description"]


def test_ids_are_unique_and_what_labels_an_element_exists(mixed):
    attributes = [found for _, found in Page(mixed).elements]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["aria-labelledby"] for found in attributes if "aria-labelledby" in found} <= set(ids)
    assert {found["href"][1:] for found in attributes if found.get("href", "").startswith("#")} <= set(ids)


def test_tables_and_pictures_are_described(mixed):
    page = Page(mixed)
    assert len(page.named("caption")) == len(page.named("table"))
    assert all("scope" in attributes for attributes in page.named("th"))
    assert [attributes["alt"] for attributes in page.named("img")] == [
        "Samples of ResNet on the test split of digits, seed 1"
    ]


def test_the_same_runs_give_the_same_bytes(tmp_path):
    variants = {"a": MadeVariant(test=accuracies(0.9, 0.8), pictures={"samples": Image.new("L", (50, 50))})}
    study_file, runs = make_study(tmp_path, variants)
    written = []
    for name in ("one", "two"):
        write_report(study_file, runs, tmp_path / name)
        files = (path for path in (tmp_path / name).iterdir() if path.is_file())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert set(written[0]) == {"index.html", "table.csv", "table.md", "table.tex", "claims.json"}


def test_a_study_without_any_run_is_a_page_without_charts(tmp_path):
    page = report(tmp_path, {"a": MadeVariant(test={}), "b": MadeVariant(test={})})
    assert "6 of 6 runs have no result" in page
    assert "No run of this group has finished yet." in page
    assert "data-spec=" not in page.partition("<script")[0]
    assert len(page) < 60_000


def test_a_hundred_variants_with_pictures_stay_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pictures, "TOTAL_BYTES", 20_000)
    noise = {"samples": Image.effect_noise((100, 100), 90)}
    variants = {f"v{n}": MadeVariant(test=accuracies(0.5 + n / 250), pictures=noise) for n in range(100)}
    page = report(tmp_path, variants, seeds=[0])
    embedded = re.findall(r'src="(data:[^"]*)"', page)
    assert 0 < sum(map(len, embedded)) <= 20_000
    assert f"{len(embedded) + page.count('no room on this page')}" == "100"
    assert "<code>overview/v99/seed=0/figures/samples.png</code>" in page
    assert len(page.encode()) < 2_000_000


def test_pictures_are_scaled_down_and_lie_on_white(tmp_path):
    glass = Image.new("RGBA", (1200, 300), (0, 0, 0, 0))
    page = report(tmp_path, {"a": MadeVariant(test=accuracies(0.9), pictures={"samples": glass})})
    (image,) = Page(page).named("img")
    assert (image["width"], image["height"]) == ("640", "160")
    assert decoded(image["src"]).getpixel((5, 5)) == (255, 255, 255)


def decoded(address):
    from base64 import b64decode
    from io import BytesIO

    return Image.open(BytesIO(b64decode(address.partition(",")[2])))


def test_a_broken_picture_is_named_with_a_remedy(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))})
    broken = runs / "overview" / "a" / "seed=0" / "figures" / "samples.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"samples\.png is not a readable picture; delete this run's folder"):
        write_report(study_file, runs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_data_block_cannot_end_its_element():
    block = data_block({"title": NASTY})
    assert "<" not in block
    assert json.loads(block) == {"title": NASTY}
