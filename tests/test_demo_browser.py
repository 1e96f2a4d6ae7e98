"""The page in a real browser: what it sees and says is what Pillow and ONNX Runtime do in Python."""

import base64
import io
import json
import runpy
from pathlib import Path

import numpy as np
import onnx_files
import pytest
from PIL import Image

from benchmarks.browser import Browser, find_browser, run_onnx_in_browser, serve
from jax_cifar.data.pictures import picture_to_array
from jax_cifar.deploy.demo import Sample, make_page, samples_of_set, write_page
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.deploy.web_runtime import load_runtime

ROOT = Path(__file__).parents[1]
READY = "session !== null"
SHOWN = "!element('result').hidden"
HOSTILE = "</script><img src=x onerror=alert(1)>"
ORIENTATION = 0x0112  # EXIF's tag

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium, or $CHROMIUM"),
]


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """A trained network as ONNX file, and 20 of its test images."""
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    runpy.run_path(str(ROOT / "scripts/export.py"))["main"](["--workdir", str(finished_run.workdir), "--out", str(out)])
    from jax_cifar import load_run

    return out, load_run(finished_run.workdir).part("test").images[:20]


@pytest.fixture(scope="module")
def page(exported, tmp_path_factory):
    """The folder of a page of it, with four samples."""
    path, images = exported
    folder = tmp_path_factory.mktemp("page") / "demo"
    model = load_onnx(path)
    samples = samples_of_set(images, np.arange(20, dtype=np.int32) % 4, model.label_names)
    write_page(make_page(path, model, samples, load_runtime()), folder)
    return folder


@pytest.fixture(scope="module")
def chromium():
    with Browser(["--use-fake-device-for-media-stream"]) as browser:
        yield browser


@pytest.fixture
def browser(chromium, page):
    """The browser with the page, as a server gives it."""
    chromium.problems.clear()
    chromium.requests.clear()
    with serve(page) as address:
        chromium.open(address + "/index.html")
        yield chromium


def png(pixels, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, "PNG", **options)
    return file.getvalue()


def show(browser, content, name="picture"):
    """Show the page a picture file, and wait for what it says."""
    data = base64.b64encode(content).decode()
    assert browser.evaluate(f"show(new Blob([bytes({data!r})]), {name!r})"), browser.evaluate("fault.textContent")


def seen(browser):
    """The pixels that the page shows as those that the network was given."""
    data = browser.evaluate(
        "Array.from(element('seen').getContext('2d').getImageData(0, 0, model.size, model.size).data)"
    )
    size = int((len(data) / 4) ** 0.5)
    return np.array(data, np.uint8).reshape(size, size, 4)[..., :3]


def said(browser):
    """Label and probability of every bar, from the top."""
    return browser.evaluate(
        "Array.from(element('bars').children, (item) =>"
        " [item.querySelector('span').textContent, Number(item.querySelector('data').value)])"
    )


def test_the_page_says_of_20_images_what_onnx_runtime_says_in_python(browser, exported, tmp_path):
    path, images = exported
    model = load_onnx(path)
    expected = model.probabilities(images)
    for index, image in enumerate(images):
        file = tmp_path / f"{index}.png"
        file.write_bytes(png(image))
        browser.choose_file("#file", file)
        browser.wait_for(f"element('picture').alt === '{index}.png'")
        order = np.argsort(-expected[index], kind="stable")[:5]
        bars = said(browser)
        assert [label for label, _ in bars] == [model.label_names[at] for at in order]
        np.testing.assert_allclose([share for _, share in bars], expected[index][order], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(seen(browser), image)
    assert browser.problems == []


def photograph(width, height, seed=0):
    """Smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:height, :width]
    smooth = np.stack([right * 255 / width, down * 255 / height, 128 + 127 * np.sin((down + right) / 5)], axis=-1)
    return np.where(rng.random((height, width, 1)) < 0.4, rng.integers(0, 256, (height, width, 3)), smooth).astype(
        np.uint8
    )


def files():
    """Picture files of many sizes and kinds, by a name for each."""
    sizes = [
        (1, 1),
        (2, 3),
        (5, 2),
        (16, 16),
        (31, 33),
        (32, 32),
        (33, 40),
        (64, 64),
        (100, 63),
        (129, 128),
        (257, 300),
    ]
    found = {
        f"{width}x{height}": png(photograph(width, height)) for width, height in [*sizes, (1023, 767), (700, 3001)]
    }
    translucent = np.dstack([photograph(70, 90), np.random.default_rng(2).integers(0, 256, (90, 70), np.uint8)])
    grey = Image.fromarray(photograph(50, 61)[..., 0])
    palette = Image.fromarray(photograph(80, 75)).quantize(40)
    found |= {"translucent": png(translucent), "grey": png(grey), "palette": png(palette)}
    found["transparent palette"] = png(palette, transparency=3)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        file = io.BytesIO()
        Image.fromarray(photograph(90, 61)).save(file, "JPEG", quality=90, exif=exif)
        found[f"JPEG turned {turn}"] = file.getvalue()
    return found


def test_the_page_prepares_a_picture_as_pillow_does_bit_for_bit(browser):
    for name, content in files().items():
        show(browser, content, name)
        with Image.open(io.BytesIO(content)) as image:
            expected = picture_to_array(image, 32)
        difference = np.abs(seen(browser).astype(int) - expected)
        assert difference.max() == 0, f"{name}: {(difference > 0).sum()} values differ, by up to {difference.max()}"


FAULTS = {
    "no antialiasing": ("width = Math.max(scale, 1)", "width = 1"),
    "weights cut off": ("Math.trunc(0.5 + (weight", "Math.trunc((weight"),
    "sums cut off": ("HALF = 1 << (BITS - 1)", "HALF = 0"),
    "what is transparent shows as it is": ("alpha === 255", "true"),
    "another square": ("(picture.height - side) / 2", "(picture.height - side) / 2 + 1"),
    "blue, green, red": ("return channels", "pixels.reverse(); return channels"),
}


def test_a_fault_in_the_resizing_shows(chromium):
    content = files()["translucent"]
    with Image.open(io.BytesIO(content)) as image:
        expected = picture_to_array(image, 32).ravel()
    source = (ROOT / "jax_cifar/deploy/page/resize.js").read_text().replace('"use strict";', "")
    decode = f"createImageBitmap(await (await fetch('data:;base64,{base64.b64encode(content).decode()}')).blob())"
    chromium.open("about:blank")
    for fault, (right, wrong) in {"none": ("", ""), **FAULTS}.items():
        assert right in source
        body = f"{source.replace(right, wrong, 1)}; return Array.from(pictureToPixels(await {decode}, 32, 3));"
        found = chromium.evaluate(f"(async () => {{ {body} }})()")
        assert (np.array(found) == expected).all() == (fault == "none"), fault


def test_a_page_from_the_disk_needs_nothing_but_its_folder(chromium, page):
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open((page / "index.html").as_uri())
    chromium.wait_for("element('samples').children.length === 4")
    chromium.evaluate("element('samples').children[2].click()")
    chromium.wait_for("element('samples').children[2].getAttribute('aria-pressed') === 'true'")
    assert len(said(chromium)) == 5
    assert all(address.startswith((page.as_uri(), "blob:", "data:")) for address in chromium.requests)
    assert chromium.problems == []
    with pytest.raises(Exception, match="Failed to fetch"):
        chromium.evaluate("fetch('http://127.0.0.1:9/')")  # the page's policy lets nothing out


def test_pictures_are_dropped_and_pasted(browser):
    data = base64.b64encode(png(photograph(40, 40))).decode()
    file = f"new File([bytes({data!r})], 'NAME.png', {{type: 'image/png'}})"
    make = f"const given = new DataTransfer(); given.items.add({file});"
    drop = "document.dispatchEvent(new DragEvent('drop', {dataTransfer: given, bubbles: true}))"
    paste = "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: given, bubbles: true}))"
    for name, event in {"dropped": drop, "pasted": paste}.items():
        browser.evaluate(f"(() => {{ {make.replace('NAME', name)} {event}; }})()")
        browser.wait_for(f"element('picture').alt === '{name}.png'")
        assert browser.evaluate("fault.hidden")


def test_the_keyboard_is_enough_and_a_screen_reader_is_told(browser):
    browser.wait_for(READY)
    for _ in range(3):
        browser.press("Tab")
    label = browser.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("Sample: ")
    browser.press("Enter")
    browser.wait_for(SHOWN)
    best, share = said(browser)[0]
    assert browser.evaluate("element('status').getAttribute('role')") == "status"
    assert browser.evaluate("element('status').textContent").startswith(f"{best} {100 * share:.1f} %, ")
    assert browser.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        ("show(new Blob(['no picture']), 'notes.txt')", "notes.txt is no picture that this browser can read."),
        ("show(new Blob([]), 'empty.png')", "empty.png is no picture that this browser can read."),
        (
            "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))",
            "on the clipboard",
        ),
        ("document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))", "That was no file."),
    ],
)
def test_a_fault_is_a_sentence_on_the_page(browser, does, sentence):
    browser.evaluate(does)
    browser.wait_for("!fault.hidden", 10)
    assert sentence in browser.evaluate("fault.textContent")
    show(browser, png(photograph(8, 8)))
    assert browser.evaluate("fault.hidden")


def test_the_camera_takes_a_picture_where_it_may_and_says_so_where_it_may_not(browser):
    for allowed in (False, True):
        browser.call(
            "Browser.setPermission",
            permission={"name": "camera"},
            setting="granted" if allowed else "denied",
            origin=browser.evaluate("location.origin"),
        )
        browser.evaluate("element('camera').click()")
        if not allowed:
            browser.wait_for("!fault.hidden", 10)
            assert "does not let this page use the camera" in browser.evaluate("fault.textContent")
    browser.wait_for("!element('shutter').hidden && element('video').videoWidth")
    browser.evaluate("element('take').click()")
    browser.wait_for("element('picture').alt === 'The picture of the camera'")
    assert browser.evaluate("element('shutter').hidden && stream === null && document.activeElement.id") == "camera"
    assert seen(browser).std() > 10


def test_a_browser_without_webassembly_is_told(browser):
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.WebAssembly")
    browser.open(browser.evaluate("location.href"))
    browser.wait_for("!fault.hidden")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    assert "it has no WebAssembly" in browser.evaluate("fault.textContent")


def test_the_page_fits_every_screen(browser):
    show(browser, png(photograph(40, 40)))
    for width in (320, 390, 700, 1400):
        for dark in (False, True):
            browser.emulate(width, 800, dark, phone=width < 600)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(paper[4:].split(",")[0]) < 64) == dark
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_names_of_a_stranger_are_text_and_nothing_else(chromium, tmp_path):
    metadata = onnx_files.METADATA | {
        "label_names": json.dumps([HOSTILE, "<b>green</b>", "\u2028 blue"]),
        "dataset": HOSTILE,
        "variant": HOSTILE,
        "test_accuracy": "0.5",
        "config": json.dumps({"name": HOSTILE}),
    }
    path = onnx_files.save(onnx_files.make_model(metadata=metadata), tmp_path)
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    write_page(make_page(path, load_onnx(path), [Sample(HOSTILE, red)], load_runtime()), tmp_path / "demo")
    chromium.problems.clear()
    with serve(tmp_path / "demo") as address:
        chromium.open(address)
        chromium.evaluate("element('samples').children[0].click()")
        chromium.wait_for(SHOWN)
        assert said(chromium)[0][0] == HOSTILE
        assert HOSTILE in chromium.evaluate("element('facts').textContent")
        assert chromium.evaluate("document.title").startswith(HOSTILE)
        assert chromium.evaluate("document.querySelectorAll('img[src=x], b').length") == 0
    assert chromium.problems == []


def test_a_grey_network_is_shown_grey(chromium, page):
    chromium.open((page / "index.html").as_uri())
    pixels = photograph(32, 32)
    given = json.dumps(pixels.ravel().tolist())
    found = chromium.evaluate(f"Array.from(toGrey(Uint8Array.from({given})))")
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(pixels).convert("L")).ravel())


def test_onnx_runtime_web_gives_the_logits_of_onnx_runtime(exported):
    path, images = exported
    expected = load_onnx(path).logits(images)
    logits, seconds = run_onnx_in_browser(path, images, batch_size=8)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(seconds) == 3 and all(0 < each < 10 for each in seconds)
