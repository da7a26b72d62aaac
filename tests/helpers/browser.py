"""A headless Chromium that is spoken to through two pipes, so that no driver is needed."""

import json
import os
import shutil
import subprocess
from base64 import b64decode
from contextlib import contextmanager
from itertools import count

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class Tab:
    """A page that is open."""

    def __init__(self, send):
        self._send = send

    def call(self, method, **parameters):
        """A command of the DevTools protocol, and its result."""
        return self._send(method, parameters)

    def open(self, address):
        """Load a page, and wait until its images are decoded."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        ready = "document.readyState === 'complete' && location.href !== 'about:blank'"
        self.value(
            f"new Promise(done => {{ const look = () => {ready} ? setTimeout(done, 100) : setTimeout(look, 20); look(); }})"
        )

    def value(self, expression):
        """The value of an expression of JavaScript; a promise's when it is there."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key, text=""):
        """Press a key, and let it go."""
        codes = {
            "Home": 36,
            "End": 35,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            " ": 32,
            "Tab": 9,
            "Escape": 27,
        }
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def show(self, width, height=900, *, scheme="light", mobile=False):
        """The size of the window, and the color scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        """Write what is seen as a PNG file."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def brightness(color):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    levels = [int(v) / 255 for v in color.removeprefix("rgb(").removesuffix(")").split(",")]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    """The contrast of two colors (WCAG 2), 1 to 21."""
    low, high = sorted(map(brightness, (one, other)))
    return (high + 0.05) / (low + 0.05)


@contextmanager
def browser(profile):
    """A tab of a browser of its own, with its profile in a folder."""
    from_browser, to_tests = os.pipe()
    from_tests, to_browser = os.pipe()
    # The browser reads descriptor 3 and writes to 4
    shell = f'exec "$@" 3<&{from_tests} 4>&{to_tests}'
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=[from_tests, to_tests], stderr=subprocess.DEVNULL
    )
    for end in (from_tests, to_tests):
        os.close(end)
    numbers = count(1)
    with os.fdopen(to_browser, "wb", buffering=0) as out, os.fdopen(from_browser, "rb") as answers:

        def send(method, parameters, session=None):
            number = next(numbers)
            message = {"id": number, "method": method, "params": parameters} | (
                {"sessionId": session} if session else {}
            )
            out.write(json.dumps(message).encode() + b"\0")
            while (answer := _next_of(answers)).get("id") != number:
                pass
            assert "error" not in answer, answer
            return answer["result"]

        target = send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        try:
            yield Tab(lambda method, parameters: send(method, parameters, session))
        finally:
            send("Browser.close", {})
            process.wait(30)


def _next_of(answers):
    message = bytearray()
    while (byte := answers.read(1)) != b"\0":
        assert byte, "the browser has ended"
        message += byte
    return json.loads(message)
