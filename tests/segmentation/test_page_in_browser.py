"""report.html in a real browser, wide and narrow: nothing is fetched, nothing overflows, everything can be reached."""

import base64
import csv
import io
from collections import defaultdict

import pytest

from helpers.browser import FOCUSABLE, assert_fits_its_window, chromium, opened

SHOWN = "document.querySelectorAll('.viewer img.gray')[0].src + document.querySelectorAll('.viewer img.labels')[1].src"


@pytest.fixture(scope="module")
def address(reported, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_bytes(reported["report.html"])
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=[1280, 390])
def tab(request, browser, address):
    """The page in a window of some width."""
    with opened(browser, address, request.param) as tab:
        yield tab


def test_it_fits_its_window(tab):
    assert_fits_its_window(tab)


def test_every_picture_is_decoded(tab):
    widths = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(widths) > 30 and min(widths) >= 32


def test_a_patients_name_is_no_program(tab):
    assert tab.locator("select option").first.inner_text() == "<script>alert(1)"


def test_tables_equal_the_rows_that_the_page_holds(tab, study):
    link = tab.locator("a[download='results.csv']").get_attribute("href")
    found = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(io.StringIO(base64.b64decode(link.partition(",")[2]).decode())):
        found[row["arm"]][f"{row['target']} ({row['kind']})"].append(float(row["dice"]))
    rows = tab.evaluate(
        "[...document.querySelector('#tables table').rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    header, cells = rows[0], {row[0].replace("\u00a0", " ").rstrip(" †"): row for row in rows[1:]}
    for arm in study.arms:
        for title, dice in found[arm.name].items():
            assert cells[arm.title][header.index(title)].startswith(f"{sum(dice) / len(dice):.3f}"), (arm, title)


def test_tables_have_headers_with_a_scope(tab):
    assert tab.locator("thead th").count() == tab.locator("thead th[scope=col]").count() > 0
    assert tab.locator("tbody th").count() == tab.locator("tbody th[scope=row]").count() > 0
    assert tab.evaluate(
        "[...document.querySelectorAll('img.gray, .samples img, svg')].every(e => e.alt || e.ariaLabel)"
    )


def test_the_slider_and_the_lists_change_the_picture(tab):
    before = tab.evaluate(SHOWN)
    tab.locator("input[type=range]").fill("0")
    assert tab.evaluate(SHOWN) != before
    assert tab.locator("output").inner_text() == "slice 4 of 12 (1 of 6 shown)"
    before = tab.evaluate(SHOWN)
    tab.get_by_role("combobox", name="Contrast").select_option("t1")
    assert tab.evaluate(SHOWN) != before
    before = tab.evaluate(SHOWN)
    tab.get_by_role("combobox", name="Patient").select_option("c")
    assert tab.evaluate(SHOWN) != before
    assert tab.locator("img.gray").first.get_attribute("alt") == "c, slice 7 of 12, t1"
    labels = tab.locator("img.labels").first
    tab.get_by_role("checkbox", name="labels").uncheck()
    assert not labels.is_visible()
    tab.get_by_role("checkbox", name="labels").check()
    assert labels.is_visible()


def test_the_keyboard_reaches_everything(tab):
    tab.reload()
    expected = tab.evaluate(
        f'[...document.querySelectorAll("{FOCUSABLE}")].filter(e => e.checkVisibility()).map((e, k) => e.dataset.n = k)'
    )
    reached = set()
    for _ in range(len(expected) + 3):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("Number(document.activeElement.dataset.n ?? -1)"))
    assert set(expected) <= reached and len(expected) > 20


def test_arrow_keys_move_the_slice(tab):
    tab.reload()
    slider, place = tab.locator("input[type=range]"), tab.locator("output")
    assert "(4 of 6 shown)" in place.inner_text()
    before = tab.evaluate(SHOWN)
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert "(5 of 6 shown)" in place.inner_text() and tab.evaluate(SHOWN) != before
    tab.get_by_role("checkbox", name="labels").focus()
    for _ in range(2):
        tab.keyboard.press("ArrowLeft")
    assert "(3 of 6 shown)" in place.inner_text()
    tab.get_by_role("combobox", name="Contrast").focus()
    tab.keyboard.press("ArrowUp")
    assert "(3 of 6 shown)" in place.inner_text(), "in a list, arrow keys choose"


def test_it_prints(tab):
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 2
    assert tab.evaluate("[...document.querySelectorAll('details')].every(e => e.open)"), "folded tables are printed"
    size = tab.viewport_size
    tab.set_viewport_size({"width": 688, "height": 1000})  # A4 within its margins
    tab.emulate_media(media="print")
    assert tab.locator(".viewer img.labels").first.is_visible() and not tab.locator("nav").is_visible()
    scroll, width = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= width
    tab.emulate_media(media="screen")
    tab.set_viewport_size(size)
