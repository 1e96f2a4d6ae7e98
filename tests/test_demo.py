"""The folder of a page: what is in it, whom it trusts, and what becomes of what was there. No browser, no network."""

import base64
import gzip
import io
import json
import re
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx_files
import pytest
from PIL import Image

from jax_cifar.deploy import demo, web_runtime
from jax_cifar.deploy.web_runtime import WebRuntime, load_runtime
from jax_cifar.errors import ConfigError
from jax_cifar.files import user_cache_dir

main = runpy.run_path(str(Path(__file__).parents[1] / "scripts/demo.py"))["main"]
PAGE = Path(demo.__file__).parent / "page"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028"
RUNTIME = WebRuntime(b"var ort = {};", b"export default {};", np.random.default_rng(0).bytes(1000))
NAMES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.fixture
def model(tmp_path):
    """An ONNX file with a stranger's words in it."""
    words = {"label_names": json.dumps([HOSTILE, "green", "blue"]), "config": json.dumps({"name": HOSTILE})}
    metadata = onnx_files.METADATA | words | {"test_accuracy": "0.5", "variant": "int8"}
    return onnx_files.save(onnx_files.make_model(metadata=metadata), tmp_path)


@pytest.fixture
def runtime(tmp_path):
    """A folder with files in the place of ONNX Runtime Web's."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name, content in zip(NAMES, RUNTIME, strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder with a large photograph of a place, a small picture, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "the place where it was taken"
    Image.new("RGB", (900, 700), "red").save(folder / "a photograph.jpg", exif=exif)
    Image.fromarray(small_picture()).save(folder / "small.png")
    (folder / "zero.txt").write_text("no picture")
    return folder


def small_picture():
    return np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)


def values(folder, name):
    """What a script of the page sets."""
    text = (folder / f"{name}.js").read_text("ascii")
    return json.loads(text.removeprefix(f"globalThis.{name} = ").removesuffix(";\n"))


def test_the_folder_holds_all_that_the_page_needs_and_nothing_that_is_elsewhere(
    model, runtime, pictures, tmp_path, capsys
):
    out = tmp_path / "demo"
    main(["--onnx", str(model), "--out", str(out), "--runtime", str(runtime), "--samples", str(pictures)])

    html = (out / "index.html").read_text()
    assert all((out / name).is_file() for name in re.findall(r'(?:src|href)="([\w.]+)"', html))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; ")
    assert not set(re.findall(r"'unsafe-inline'|'unsafe-eval'|https?:|\*", policy))
    for file in PAGE.iterdir():
        assert not re.search(
            r"//\w+\.|innerHTML|outerHTML|insertAdjacentHTML|document\.write|<[^>]* on\w+=", file.read_text()
        )

    told = values(out, "model")
    assert base64.b64decode(told["onnx"]) == model.read_bytes()
    assert (told["name"], told["label_names"][0], told["size"], told["channels"]) == (HOSTILE, HOSTILE, 4, 3)
    assert "int8" in told["facts"] and "50.0 % of the test images of colours" in told["facts"]
    packed = values(out, "runtime")
    assert gzip.decompress(base64.b64decode(packed["wasm"])) == RUNTIME.wasm
    assert (packed["loader"].encode(), (out / "ort.js").read_bytes()) == (RUNTIME.loader, RUNTIME.script)

    photograph, small = values(out, "samples")
    with Image.open(io.BytesIO(base64.b64decode(photograph["picture"]))) as image:
        assert (photograph["name"], image.size, len(image.getexif())) == ("a photograph", (256, 256), 0)
    with Image.open(io.BytesIO(base64.b64decode(small["picture"]))) as image:
        np.testing.assert_array_equal(image, small_picture())
    weight = sum(len(gzip.compress(p.read_bytes(), 9)) for p in out.iterdir() if p.name != "model.js")
    assert f"{weight / 1e6:.2f} MB gzipped" in capsys.readouterr().out


def test_what_is_in_the_folder_already_is_kept_unless_it_is_an_older_page(model, runtime, tmp_path, capsys):
    out, mine = tmp_path / "demo", tmp_path / "demo" / "mine.txt"
    options = ["--onnx", str(model), "--out", str(out), "--runtime", str(runtime)]
    out.mkdir()
    mine.write_text("my own")
    with pytest.raises(ConfigError, match=r"demo holds files that scripts/demo\.py did not make.*--overwrite"):
        main(options)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    main([*options, "--overwrite"])
    assert mine.read_text() == "my own"
    (out / "index.html").write_text("old")
    main(options)
    assert "Content-Security-Policy" in (out / "index.html").read_text()
    assert "no samples" in capsys.readouterr().err  # the set is somebody's own, and nobody said where it lies
    with pytest.raises(ConfigError, match="it is a file"):
        main(["--onnx", str(model), "--out", str(mine)])
    with pytest.raises(ConfigError, match="there is no folder"):
        main(["--onnx", str(model), "--out", str(tmp_path / "no" / "demo")])


def test_a_page_that_cannot_be_written_whole_is_not_there_at_all(tmp_path, monkeypatch):
    written = []

    def write(path, content):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ConfigError, match="No space left on device"):
        demo.write_page({"a": b"", "b": b""}, tmp_path / "demo")
    assert len(written) == 2 and list(tmp_path.iterdir()) == []


def test_a_model_that_a_page_cannot_feed_is_refused(tmp_path, runtime):
    path = onnx_files.save(onnx_files.make_model(float_input=True), tmp_path)
    with pytest.raises(ConfigError, match="without --float-input"):
        main(["--onnx", str(path), "--out", str(tmp_path / "demo"), "--runtime", str(runtime)])
    assert not (tmp_path / "demo").exists()


def test_samples_of_a_set_are_one_image_of_each_class():
    images = np.arange(12 * 4 * 4 * 3, dtype=np.uint8).reshape(12, 4, 4, 3)
    found = demo.samples_of_set(images, np.array([2, 2, 0, *range(1, 10)], np.int32), tuple("abcdefghijkl"))
    assert [name for name, _ in found] == list("cabdefghij")
    np.testing.assert_array_equal(found[1].pixels, images[2])


def package():
    """A .tgz as npm has it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in zip(NAMES, RUNTIME, strict=True):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program in the place of npm that puts down `content`, and writes how it was called."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program, content, calls = tmp_path / "bin" / "npm", tmp_path / "content", tmp_path / "calls"
    program.parent.mkdir()
    name = f"onnxruntime-web-{web_runtime.VERSION}.tgz"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ -f {content} ] && cp {content} {name} || {{ echo offline >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return content, calls


@pytest.mark.skipif(sys.platform == "win32", reason="npm is a shell script here")
def test_the_runtime_is_fetched_once_and_only_as_it_was_published(npm, monkeypatch):
    content, calls = npm
    cached = user_cache_dir() / f"onnxruntime-web-{web_runtime.VERSION}.tgz"
    with pytest.raises(ConfigError, match=r"npm cannot fetch onnxruntime-web@.*: offline\. .*--runtime FILE\.tgz"):
        load_runtime()
    assert list(cached.parent.iterdir()) == []

    published = package()
    content.write_bytes(published)
    with pytest.raises(ConfigError, match=r"its SHA-512 differs\. Remove"):
        load_runtime()
    assert list(cached.parent.iterdir()) == []
    monkeypatch.setattr(web_runtime, "INTEGRITY", web_runtime.integrity(published))
    assert load_runtime() == load_runtime() == load_runtime(cached) == RUNTIME
    assert calls.read_text().count("pack onnxruntime-web@") == 3  # then it was in the cache
    cached.write_bytes(published[:-1])
    with pytest.raises(ConfigError, match=r"its SHA-512 differs\. Remove"):
        load_runtime()

    cached.unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="npm, which is not installed"):
        load_runtime()


def test_a_runtime_that_is_named_has_to_be_there(tmp_path, runtime):
    (runtime / NAMES[1]).unlink()
    with pytest.raises(ConfigError, match=rf"{NAMES[1]}: No such file"):
        load_runtime(runtime)
    with pytest.raises(ConfigError, match=r"No such file.*has to be the \.tgz"):
        load_runtime(tmp_path / "no.tgz")
