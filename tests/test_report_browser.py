"""The page of runs in a real browser: it fits every screen, reads values, asks for nothing, and runs its own only."""

import shutil

import pytest

from benchmarks.browser import Browser, find_browser
from jax_cifar.files import read_record, write_record
from jax_cifar.lab.page import html_report

HOSTILE = "</script><img src=x onerror=alert(1)>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium, or $CHROMIUM"),
]


@pytest.fixture(scope="module")
def pages(finished_run, tmp_path_factory):
    """Files of pages by name: of one run, of three, and one whose labels are a stranger's."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = folder / "hostile"
    shutil.copytree(finished_run.workdir, hostile)
    record = read_record(hostile / "network.json")
    record.pop("sha256", None)
    write_record(hostile / "network.json", record | {"label_names": [f"{HOSTILE}{i}" for i in range(10)]})
    (hostile / "report.json").unlink()
    others = [shutil.copytree(finished_run.workdir, folder / name) for name in ("second", "third")]
    runs = {"one": [finished_run.workdir], "three": [finished_run.workdir, *others], "hostile": [hostile]}
    files = {name: folder / f"{name}.html" for name in runs}
    for name, file in files.items():
        file.write_text(html_report(runs[name]))
    return files


@pytest.fixture(scope="module")
def chromium():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium, pages):
    """The browser with the page of one run."""
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.emulate(1280, 900)
    chromium.open(pages["one"].as_uri())
    return chromium


@pytest.mark.parametrize("name", ["one", "three", "hostile"])
def test_a_page_fits_every_screen_in_both_schemes_and_asks_for_nothing(chromium, pages, name):
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open(pages[name].as_uri())
    chromium.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    for width in (320, 360, 700, 1400):
        for dark in (False, True):
            chromium.emulate(width, 800, dark, phone=width < 600)
            assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(paper[4:].split(",")[0]) < 64) == dark
    assert chromium.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert chromium.problems == []
    assert all(address.startswith(("data:", pages[name].as_uri())) for address in chromium.requests)


def read(browser, selector):
    return browser.evaluate(
        f"document.querySelector({selector!r}).closest('figure').querySelector('output').textContent"
    )


def point_at(browser, selector, across, down):
    """Move the mouse to a place of an element, in shares of its size."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    browser.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    left, top, width, height = browser.evaluate(
        f"(({{left, top, width, height}}) => [left, top, width, height])({box})"
    )
    place = {"x": left + across * width, "y": top + down * height}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **place)


def test_values_are_read_under_the_pointer(browser, finished_run):
    rest = read(browser, "svg.lines")
    assert rest.startswith("last: test\N{NO-BREAK SPACE}")
    point_at(browser, "svg.lines", 0.15, 0.5)
    first = read(browser, "svg.lines")
    point_at(browser, "svg.lines", 0.84, 0.5)
    last = read(browser, "svg.lines")
    assert first.startswith("epoch 0.") and last.startswith("epoch 2: ") and first != last
    assert f"test\N{NO-BREAK SPACE}{finished_run.summary['test_loss']:.4g}" in last
    point_at(browser, "h1", 0.5, 0.5)
    assert read(browser, "svg.lines") == rest


def test_cells_are_read_under_the_pointer(browser, finished_run):
    confusion = finished_run.report.confusion
    left, top, cell = browser.evaluate("JSON.parse(document.querySelector('svg.matrix').dataset.place)")
    width, height = browser.evaluate(
        "(({width, height}) => [width, height])(document.querySelector('svg.matrix').viewBox.baseVal)"
    )
    for row, column in ((0, 0), (2, 7)):
        point_at(browser, "svg.matrix", (left + (column + 0.5) * cell) / width, (top + (row + 0.5) * cell) / height)
        assert f": {confusion[row, column]} of {confusion[row].sum()}" in read(browser, "svg.matrix")


def test_the_keyboard_reads_values_too(browser):
    for selector in ("svg.lines", "svg.matrix"):
        rest = read(browser, selector)
        browser.evaluate(f"document.querySelector({selector!r}).focus()")
        for key, code in (("ArrowLeft", 37), ("ArrowLeft", 37), ("ArrowDown", 40)):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code)
        assert read(browser, selector) != rest
        browser.evaluate("document.activeElement.blur()")
        assert read(browser, selector) == rest


def test_the_policy_stops_what_would_get_past_the_escaping(chromium, pages):
    text = pages["one"].read_text()
    planted = text.replace(
        "<h1>", "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"><h1>"
    )
    file = pages["one"].with_name("planted.html")
    for content, stopped in ((planted, True), (planted.replace("Content-Security-Policy", "x"), False)):
        file.write_text(content)
        chromium.open(file.as_uri())
        assert (chromium.evaluate("document.title") != "run") == stopped


def test_names_of_a_stranger_are_text_and_nothing_else(chromium, pages):
    chromium.open(pages["hostile"].as_uri())
    assert HOSTILE in chromium.evaluate("document.body.textContent")
    assert chromium.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert chromium.evaluate("document.scripts.length") == 1
