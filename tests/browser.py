"""A headless Chromium, driven over the two pipes of its debugging protocol; for the tests of pages."""

import base64
import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None) if os.name != "nt" else None
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
).split()


class Browser:
    """One page at a time: open(), js(), and problems(), all that the page complained of or tried to load."""

    def __init__(self, profile):
        import fcntl  # not on Windows

        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        theirs = [
            fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (commands, answers)
        ]  # out of the way of 3 and 4

        def hand_over():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={profile}"], preexec_fn=hand_over, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (commands, answers, *theirs):
            os.close(fd)
        self.count, self.buffer, self.events, self.session = 0, b"", [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                chunk = os.read(self.answers, 1 << 16)
                assert chunk, "the browser ended"
                self.buffer += chunk
            raw, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def js(self, code):
        """The value of an expression in the page."""
        result = self.ask(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, path, width=1200, dark=False):
        """Load a file and wait until its script says that it has drawn everything, or failed."""
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        done = "document.body && (document.body.dataset.drawn || document.getElementById('failure')?.textContent)"
        deadline = time.monotonic() + 60
        while not self.js(done):
            assert time.monotonic() < deadline, f"{path} was not drawn: {self.problems()}"
            time.sleep(0.02)

    def problems(self):
        self.js("1")  # what happened before it has been reported by now
        found = [self.js("document.getElementById('failure').textContent")]
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(f"console: {about['args']}")
            elif event.get("method") == "Log.entryAdded":
                found.append(about["entry"]["text"])
            elif event.get("method") == "Network.requestWillBeSent":
                url = about["request"]["url"]
                found.append("" if url.startswith(("file:", "data:")) else f"request: {url}")
        return [text for text in found if text]

    def click(self, selector, index=0):
        self.js(f"document.querySelectorAll({json.dumps(selector)})[{index}].click()")

    def set(self, selector, value):
        """Move a slider or choose an option, as a user does."""
        change = f"const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        self.js(
            f"{{ {change} e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }}"
        )

    def screenshot(self, path):
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = dict(x=0, y=0, width=size["width"], height=min(size["height"], 8000), scale=1)
        shot = self.ask(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
