"""The page as a person meets it, in a real browser."""

import pytest
from made_runs import COSTS, MadeVariant, accuracies, make_study

from convatlas.reporting.report import write_report
from helpers import CHROMIUM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    made = {
        name: MadeVariant(
            test=accuracies(score, score + 0.01, score - 0.01),
            title=f"Net {name} <script>alert(1)</script>",
            costs=COSTS | {"parameters": parameters},
            answers={seed: [0, seed, number] for seed in range(3)},
            labels=[0, 1, 2],
        )
        for number, (name, score, parameters) in enumerate(
            (("a", 0.9, 3000), ("b", 0.95, 200_000), ("c", 0.85, 40_000))
        )
    }
    points = [{"variant": name, "part": None, "x": None} for name in made]
    looks = {"x": "parameters", "x_title": None, "y": "error", "log": ["x"]}
    figure = {"title": "Error", "curves": {"<b>ours": points}, "printed": {"CIFAR": [[1, 20], [9, 10]]}, **looks}
    write_report(*make_study(folder, made, figures=[figure]), folder / "report")
    return (folder / "report" / "index.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Open the page; whatever the browser complains of or asks for is remembered."""

    def open_page(**options):
        page = browser.new_page(**options)
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    return open_page


def names_in_order(page):
    return [name.split()[1] for name in page.locator("table.results").first.locator("tbody th").all_inner_texts()]


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
def test_the_page_draws_all_charts_without_complaint_or_network(opened, address, options):
    page = opened(**options)
    assert page.locator(".drawing svg").count() == 9
    assert page.complaints == []
    assert page.requests == [address]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_charts_take_the_colours_of_the_scheme(opened):
    query = "getComputedStyle(document.querySelector('.drawing svg .role-axis-label text')).fill"
    assert opened(color_scheme="light").evaluate(query) != opened(color_scheme="dark").evaluate(query)


def test_a_click_on_a_head_sorts_and_another_turns_it_round(opened):
    page = opened()
    assert names_in_order(page) == ["a", "b", "c"]
    head = page.get_by_role("columnheader", name="accuracy, %").first
    head.get_by_role("button").click()
    assert names_in_order(page) == ["b", "a", "c"]
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert names_in_order(page) == ["c", "a", "b"]
    page.get_by_role("columnheader", name="parameters").get_by_role("button").click()
    assert names_in_order(page) == ["a", "c", "b"]


def test_the_comparison_with_the_reference_can_be_sorted_too(opened):
    page = opened()
    table = page.locator("table.paired")
    assert [row.split()[1] for row in table.locator("tbody th").all_inner_texts()] == ["b", "c"]
    button = table.get_by_role("columnheader", name="difference").get_by_role("button")
    button.click()
    assert [row.split()[1] for row in table.locator("tbody th").all_inner_texts()] == ["b", "c"]
    button.click()
    assert [row.split()[1] for row in table.locator("tbody th").all_inner_texts()] == ["c", "b"]
    assert table.get_by_role("img").first.get_attribute("aria-label").startswith("difference −5.00, 95 % interval")


def test_the_legend_points_a_variant_out_everywhere(opened):
    page = opened()
    faint = "[...document.querySelectorAll('.drawing svg .mark-symbol path[opacity=\"0.1\"]')].length"
    assert page.evaluate(faint) == 0
    button = page.get_by_role("button", name="Net b").first
    button.click()
    page.wait_for_function(f"{faint} === 8")  # two of three points in each of four trade-offs
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("tr.picked").count() == page.locator("table.results").count()


def test_without_javascript_the_tables_are_there_and_the_charts_explained(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("table.results").first.locator("tbody tr").count() == 3
    assert page.get_by_text("The charts need JavaScript").is_visible()
    assert not page.locator(".charts").is_visible()


def test_it_prints_on_paper_of_its_width(opened):
    page = opened(viewport={"width": 1032, "height": 720})  # A4 landscape without its margins, at 96 dots an inch
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_a_phone_shows_each_nets_name_and_score_without_scrolling(opened):
    page = opened(viewport={"width": 390, "height": 844})
    for cell in page.locator("table.results").first.locator("tbody tr > :is(th, td:nth-of-type(3))").all():
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 390
    boxes = (
        "[...document.querySelectorAll('*')].filter(e => e.scrollHeight > e.clientHeight + 4 && e.clientHeight > 100"
    )
    inner = f"{boxes} && ['auto', 'scroll'].includes(getComputedStyle(e).overflowY)).length"
    assert page.evaluate(inner) == 0, "no box scrolls within the page"
