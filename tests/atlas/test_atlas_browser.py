"""The atlas as a user sees it, in a real browser."""

import pytest
from test_atlas_pages import pages, reports  # noqa: F401 - a fixture

from convatlas.atlas.keeping import anatomies
from convatlas.atlas.lineage import read_lineage
from convatlas.atlas.nets import read_nets
from convatlas.atlas.pages import write_atlas
from helpers import CHROMIUM

OF_ALL_SORTS = (
    "csp_resnext50",
    "darts_cifar",
    "densenet121",
    "fractalnet",
    "googlenet",
    "hyper_lstm",
    "hyper_wide_resnet",
    "irevnet_injective",
    "nasnet_cifar",
    "revnet_cifar",
    "saunet",
    "spinenet49_retinanet",
    "stochastic_depth_resnet",
    "thundernet",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}"),
]


@pytest.fixture
def opened(browser, reports):  # noqa: F811
    """Open a page; whatever the browser complains of or asks for is remembered."""

    def open_page(name, **options):
        page = browser.new_page(**options)
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((reports / "atlas" / name).as_uri())
        if not name.startswith("nets/"):
            page.wait_for_selector("html[data-ready]")
        return page

    return open_page


PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE, {"color_scheme": "dark", **PHONE}])
@pytest.mark.parametrize("name", ["index.html", "compare.html", "training.html", "nets/resnet_cifar.html"])
def test_a_page_complains_of_nothing_and_fits_its_width(opened, name, options):
    page = opened(name, **options)
    assert page.complaints == []
    assert len(page.requests) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Write the atlas of nets of all sorts."""
    folder = tmp_path_factory.mktemp("cards")
    nets = {name: net for name, net in read_nets().items() if name in OF_ALL_SORTS}
    drawn = anatomies(nets, folder / "kept", processes=2)
    write_atlas(folder, nets, drawn, lineage=read_lineage(), studies=[])
    return folder / "nets"


@pytest.mark.parametrize("name", OF_ALL_SORTS)
def test_no_text_of_a_drawing_leaves_its_box(browser, cards, name):
    page = browser.new_page()
    page.goto((cards / f"{name}.html").as_uri())
    outside = """[...document.querySelectorAll('.net g')].flatMap(group => {
        const box = group.querySelector('rect:not(.behind)').getBoundingClientRect();
        return [...group.querySelectorAll('text')].filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < box.left || own.right > box.right || own.top < box.top - 1 || own.bottom > box.bottom + 1;
        }).map(text => text.textContent);
    })"""
    assert page.evaluate(outside) == []
    page.close()


def test_the_map_is_filtered_by_idea_year_and_name(opened):
    page = opened("index.html")
    clear = ".map .family:not(.faint)"
    assert page.locator(clear).count() == page.locator(".map .family").count() == 44
    page.locator("select[name=idea]").select_option("memory")
    assert sorted(page.locator(clear).all_text_contents()) == ["ResNet", "RevNet", "i-RevNet"]
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(f"document.querySelectorAll('{clear}').length === 44")
    page.locator("select[name=last]").select_option("2012")
    assert sorted(page.locator(clear).all_text_contents()) == ["AlexNet", "LeNet-5"]
    page.get_by_role("button", name="Show all").click()
    page.locator("input[name=word]").fill("u-net")
    page.wait_for_function(f"document.querySelectorAll('{clear}').length === 1")
    assert page.locator("tbody[data-family]:visible").count() == 1


def test_a_box_of_the_map_is_reached_by_keyboard_and_shows_its_history(opened):
    page = opened("index.html")
    page.locator(".map [data-family=resnet]").focus()
    near = "[...document.querySelectorAll('.map .near')].map(e => e.dataset.from + ' ' + e.dataset.to)"
    assert {"lenet5 alexnet", "alexnet vgg", "vgg resnet", "resnet revnet", "revnet irevnet"} <= set(
        page.evaluate(near)
    )
    page.keyboard.press("Enter")
    page.wait_for_url("**/nets/resnet_cifar.html")


def test_two_nets_stand_side_by_side(opened):
    page = opened("compare.html#lenet5_modern,resnet_cifar".partition("#")[0])
    page.locator("select[name=net]").nth(0).select_option("lenet5_modern")
    page.locator("select[name=net]").nth(1).select_option("resnet_cifar")
    assert page.locator("#side svg.net").count() == 2
    assert "+5.00" in page.locator("#groups").inner_text()
    page.wait_for_function("document.querySelectorAll('#curve-chart-title ~ .drawing .mark-line path').length === 2")
    page.locator("select[name=net]").nth(2).select_option("unet_small")
    assert page.locator("#side svg.net").count() == 3
    assert page.complaints == []


def test_a_point_of_the_scatter_leads_to_a_card(opened):
    page = opened("compare.html")
    charts = page.locator("[data-spec^=price-]")
    assert charts.count() > 1
    assert all(chart.locator(".mark-symbol path").count() == 2 for chart in charts.all())
    page.locator("[data-spec=price-1-1] .mark-symbol path").first.click(force=True)
    page.wait_for_url("**/nets/resnet_cifar.html")


def test_a_slider_moves_the_film(opened):
    page = opened("training.html")
    fills = (
        "[...document.querySelectorAll('[data-spec=film-1] .mark-rect path')].map(p => p.getAttribute('fill')).join()"
    )
    before = page.evaluate(fills)
    slider = page.locator("[data-spec=film-1] input[type=range]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"({fills}) !== {before!r}")
    assert page.complaints == []
