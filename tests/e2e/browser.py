"""Chromium without a window, driven over a pipe: sizes and colours of a page, its layout's faults, screenshots."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
# Labels of one drawing that lie on each other by more than 2 px both ways, labels and cells that are cut off, and
# whatever makes the page wider than its window. A label on a background of its own stands on purpose where it is.
LAYOUT = """
(() => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`page: ${root.scrollWidth} px wide in a window of ${innerWidth}`);
  const said = (element) => (element.textContent || element.id).trim().replace(/\\s+/g, " ").slice(0, 60);
  for (const svg of document.querySelectorAll("svg")) {
    const name = svg.getAttribute("aria-label") || "";
    const frame = svg.getBoundingClientRect();
    const labels = [...svg.querySelectorAll("text")].filter((each) => each.textContent.trim());
    const boxes = labels.map((each) => each.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2 || a.bottom > frame.bottom + 2)
        faults.push(`${name}: '${said(labels[i])}' is cut off`);
      boxes.slice(i + 1).forEach((b, k) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 2 && down > 2) faults.push(`${name}: '${said(labels[i])}' lies on '${said(labels[i + 1 + k])}'`);
      });
    });
  }
  for (const table of document.querySelectorAll("table")) {
    const scrolls = table.closest(".wide");
    const box = (scrolls || table.parentElement).getBoundingClientRect();
    const right = table.getBoundingClientRect().right;
    const cut = right > box.right + 2;
    if (!scrolls && cut) faults.push(`table '${said(table)}' is cut off`);
    if (scrolls && cut && innerWidth >= 1400) faults.push(`table '${said(table)}' scrolls in a wide window`);
    if (box.right > innerWidth + 2) faults.push(`table '${said(table)}' leaves the window`);
    for (const cell of table.querySelectorAll("td, th"))
      if (cell.scrollWidth > cell.clientWidth + 2) faults.push(`cell '${said(cell)}' is cut off`);
  }
  return {
    faults,
    height: root.scrollHeight,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    labels: document.querySelectorAll("svg text").length,
    loaded: performance.getEntriesByType("resource").map((each) => each.name),
  };
})()
"""


class Browser:
    """One Chromium, in which pages are opened one after another.

    Args:
        profile: Folder for what it writes.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (read_end, self._orders), (self._answers, write_end) = _high_pipe(), _high_pipe()

        shell = f'exec "$0" "$@" 3<&{read_end} 4>&{write_end}'  # where Chromium expects the pipe
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        self._number, self._pending = 0, b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._orders)
        os.close(self._answers)

    def open(self, page: Path, *, width_px: int, dark: bool) -> dict[str, Any]:
        """Open a page in a window of that width; return its colours, its height and its layout's faults."""
        self._size(width_px, 900)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=page.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass
        found = self._call("Runtime.evaluate", expression=LAYOUT, returnByValue=True)
        value: dict[str, Any] = found["result"]["value"]
        return value

    def shoot(self, image: Path, *, width_px: int, height_px: int) -> None:
        """Write a PNG of the whole page that is open."""
        self._size(width_px, height_px)
        found = self._call("Page.captureScreenshot", format="png")
        image.write_bytes(base64.b64decode(found["data"]))

    def _size(self, width_px: int, height_px: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False
        )

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; events that come meanwhile are dropped."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (said := self._next()).get("id") != self._number:
            pass
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            data = os.read(self._answers, 1 << 16)
            assert data, "Chromium has ended"
            self._pending += data
        message, _, self._pending = self._pending.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose ends are none of the numbers that Chromium expects them under."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
