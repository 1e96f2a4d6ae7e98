"""A headless Chromium that a benchmark or a test drives, and ONNX models run in it.

Chromium is told what to do over its own debugging pipe (the Chrome DevTools Protocol, JSON between NUL bytes): that
needs neither another package nor a second program, and works with the version that is installed. POSIX only.
"""

import base64
import fcntl
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.deploy.web_runtime import load_runtime
from jax_cifar.errors import ConfigError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 60.0  # for an answer
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


class BrowserError(Exception):
    """Chromium ended, does not answer, or a script in a page failed."""


def find_browser() -> str | None:
    """Where Chromium or Chrome is, if it is installed; `$CHROMIUM` names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of a headless Chromium: `requests` are the addresses it asked for, `problems` what it complained of.

    Raises:
        ConfigError: no Chromium is installed.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        executable = find_browser()
        if executable is None:
            raise ConfigError(
                "No Chromium is installed. Install it (Debian: apt-get install chromium), or set CHROMIUM."
            )
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._events: list[str] = []
        self._count, self._rest, self._session = 0, b"", {}
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root has no use of
        self._start([executable, *_OPTIONS, *sandbox, f"--user-data-dir={self._profile.name}", *options, "about:blank"])
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _start(self, command: list[str]) -> None:
        """Chromium reads descriptor 3 and writes 4; a shell puts ours there: nothing may run between fork and exec."""
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # Out of the way of 3 and 4.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads, writes)]
        shell = ["/bin/sh", "-c", f'exec "$@" 3</dev/fd/{given[0]} 4>/dev/fd/{given[1]}', "sh", *command]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(shell, pass_fds=given, stdin=quiet, stdout=quiet, stderr=quiet)
        for end in (reads, writes, *given):
            os.close(end)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; raises `BrowserError` where it is an error."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._receive(method)).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, waits_for: str) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                fault = "ended" if ready else f"gave no answer in {_SECONDS:g} s"
                raise BrowserError(f"{waits_for}: Chromium {fault}.")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(_exception(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.problems.append(" ".join(str(each.get("description", each.get("value"))) for each in told["args"]))

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page has loaded."""
        self._events.clear()
        failed = self.call("Page.navigate", url=address).get("errorText")
        if failed:
            raise BrowserError(f"{address}: {failed}")
        while "Page.loadEventFired" not in self._events:
            self._note(self._receive(address))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON can hold it; a promise is waited for."""
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=expression, **how)
        if "exceptionDetails" in answer:
            raise BrowserError(_exception(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = _SECONDS) -> None:
        """Wait until a JavaScript expression holds in the page."""
        until = time.monotonic() + seconds
        while not self.evaluate(f"!!({condition})"):
            if time.monotonic() > until:
                raise BrowserError(f"{condition} did not come true in {seconds:g} s. {' '.join(self.problems)}")
            time.sleep(0.02)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an `<input type="file">`, as its dialogue does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.absolute())])

    def press(self, key: str) -> None:
        """Press a key that writes nothing, or Enter."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def emulate(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Have the page shown on a screen of so many CSS pixels, with touch and two pixels to each on a phone."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write what is shown as PNG; the whole page, or what fits the screen."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shown["data"]))


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        # Isolated, a page may have a fine clock.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A server of a folder, on this machine only; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_BLANK = '<!doctype html><link rel="icon" href="data:,"><script src="ort.js"></script>'
_RUN = """(async () => {
  const read = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  const {shape: [count, ...shape], batch_size} = JOB;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(await read("model.onnx"), {executionProviders: ["wasm"]});
  const pixels = await read("images.bin");
  const stride = pixels.length / count;
  const predict = async (start, end) => {
    const images = new ort.Tensor("uint8", pixels.subarray(start * stride, end * stride), [end - start, ...shape]);
    return (await session.run({images})).logits.data;
  };
  await predict(0, Math.min(batch_size, count));  // the first call takes longer
  const seconds = [], logits = [];
  for (let start = 0; start < count; start += batch_size) {
    const begin = performance.now();
    const found = await predict(start, Math.min(start + batch_size, count));
    seconds.push((performance.now() - begin) / 1000);
    for (const logit of found) logits.push(logit);
  }
  const bytes = new Uint8Array(Float32Array.from(logits).buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return {seconds, logits: btoa(text)};
})()"""


def run_onnx_in_browser(
    model_path: Path, images: UInt8[np.ndarray, "n height width channel"], batch_size: int = 100
) -> tuple[Float32[np.ndarray, "n classes"], list[float]]:
    """Logits of all images by ONNX Runtime Web in Chromium, in one thread, and the seconds of every call.

    Args:
        model_path: with input `images` and output `logits`, as `scripts/export.py` writes it.
        images: in order; the last call gets what is left.
        batch_size: images in a call. One call more comes before all others, and is not counted.

    Raises:
        ConfigError: no Chromium, or no ONNX Runtime Web, is to be had.
        BrowserError: the model cannot be run there.
    """
    runtime = load_runtime()
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name)
        (folder / "index.html").write_text(_BLANK)
        (folder / "ort.js").write_bytes(runtime.script)
        (folder / "ort-wasm-simd-threaded.mjs").write_bytes(runtime.loader)
        (folder / "ort-wasm-simd-threaded.wasm").write_bytes(runtime.wasm)
        (folder / "model.onnx").write_bytes(model_path.read_bytes())
        (folder / "images.bin").write_bytes(np.ascontiguousarray(images).tobytes())
        with serve(folder) as address:
            browser.open(address)
            job = json.dumps({"shape": images.shape, "batch_size": batch_size})
            found = browser.evaluate(_RUN.replace("JOB", job))
    logits = np.frombuffer(base64.b64decode(found["logits"]), "<f4")
    return logits.reshape(len(images), -1).astype(np.float32), found["seconds"]
