"""The page about runs in a real browser, wide and narrow: nothing is fetched or overflows, sheets move in time."""

import pytest

from helpers.browser import FOCUSABLE, assert_fits_its_window, chromium, opened
from helpers.run_folders import draw_ticks, write_run
from training.report.page import make_page
from training.report.run_folder import read_run_folder

TICKS = [0.008, *range(4, 41, 4)]
HOSTILE = "<script>alert(1)"
FIRST = "document.querySelector('img.fakes').src"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    signs = {"Loss_signs/real": lambda kimg: 0.9, "Progress_augment": lambda kimg: kimg / 50}
    first = write_run(
        folder / HOSTILE, draw_ticks(TICKS, **signs), sheets=(0, 8, 40), measures={"fid": [(8, 3), (40, 2)]}
    )
    second = write_run(folder / ("long-name-" * 12), draw_ticks(TICKS[:5], seed=1), seed=1, sheets=(8,))
    path = folder / "report.html"
    path.write_bytes(make_page([read_run_folder(first), read_run_folder(second)]))
    return path.as_uri()


@pytest.fixture(scope="module", params=[1280, 390])
def tab(request, browser, address):
    with opened(browser, address, request.param) as tab:
        yield tab


def test_it_fits_its_window(tab):
    assert_fits_its_window(tab)


def test_every_picture_is_decoded_and_described(tab):
    widths = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(widths) >= 8 and min(widths) > 480
    assert tab.evaluate("[...document.querySelectorAll('img, svg[role=img]')].every(e => e.alt || e.ariaLabel)")
    assert tab.locator("svg[role=img]").count() == 6


def test_a_runs_name_is_no_program(tab):
    assert tab.locator(".card h3").first.inner_text() == HOSTILE


def test_tables_have_headers_with_a_scope(tab):
    assert tab.locator("thead th").count() == tab.locator("thead th[scope=col]").count() > 0
    assert tab.locator("tbody th").count() == tab.locator("tbody th[scope=row]").count() > 0


def test_the_slider_moves_all_runs_in_time(tab):
    newest = tab.evaluate(FIRST)
    places = tab.locator("[data-is=place]")
    assert places.all_inner_texts() == ["40 kimg", "8 kimg"]
    second = tab.locator("img.fakes").nth(1)
    tab.locator("input[type=range]").fill("0")
    assert tab.evaluate(FIRST) != newest and tab.locator("output").inner_text() == "0 kimg"
    assert places.all_inner_texts() == ["0 kimg", "no sheet yet"] and not second.is_visible()
    assert tab.locator("img.fakes").first.get_attribute("alt") == f"Fakes of {HOSTILE} at 0 kimg"
    tab.locator("input[type=range]").focus()
    tab.keyboard.press("ArrowRight")
    assert places.all_inner_texts() == ["8 kimg", "8 kimg"] and second.is_visible()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(FIRST) == newest


def test_a_chart_tells_the_values_under_the_pointer(tab):
    plot = tab.locator(".plot").nth(1)  # the generator's loss
    plot.scroll_into_view_if_needed()
    readout, box = plot.locator(".readout"), plot.locator("svg").bounding_box()
    assert not readout.is_visible()
    data = tab.evaluate("JSON.parse(document.getElementById('readouts').textContent)[1]")
    for kimg, lines in ((12, (0, 1)), (36, (0,))):  # the second run ends at 16
        x = data["left"] + kimg / data["end"] * (data["right"] - data["left"])
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + box["height"] / 2)
        told = readout.inner_text().splitlines()
        values = [data["lines"][n]["values"][data["lines"][n]["kimg"].index(kimg)] for n in lines]
        assert told[0] == f"{kimg} kimg" and len(told) == 1 + len(lines)
        assert [float(line.rpartition(": ")[2].replace("−", "-")) for line in told[1:]] == pytest.approx(values)
    tab.mouse.move(1, 1)
    assert not readout.is_visible()


def test_the_keyboard_reaches_everything(tab):
    tab.reload()
    expected = tab.evaluate(
        f'[...document.querySelectorAll("{FOCUSABLE}")].filter(e => e.checkVisibility()).map((e, k) => e.dataset.n = k)'
    )
    reached = set()
    for _ in range(len(expected) + 3):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("Number(document.activeElement.dataset.n ?? -1)"))
    assert set(expected) <= reached and len(expected) > 15


def test_it_prints(tab):
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 2
    assert tab.evaluate("[...document.querySelectorAll('details')].every(e => e.open)"), "folded tables are printed"
    size = tab.viewport_size
    tab.set_viewport_size({"width": 688, "height": 1000})  # A4 within its margins
    tab.emulate_media(media="print")
    scroll, width = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= width and not tab.locator("nav").is_visible()
    tab.emulate_media(media="screen")
    tab.set_viewport_size(size)
