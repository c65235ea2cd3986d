"""The page in a real browser, driven by Chromium's own protocol."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.serving.conftest import Server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NUM_PHOTOS = 500


class Page:
    """A page of a browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        (target,) = self.do("Target.getTargets")["targetInfos"]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self.do("Target.attachToTarget", **attach)["sessionId"]

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while (answer := json.loads(self._connection.recv(timeout=60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, script: str) -> Any:
        return self.do("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def drop(self, files: Sequence[Path]) -> None:
        data = {"items": [], "files": [*map(str, files)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.do("Input.dispatchDragEvent", type=kind, x=200, y=150, data=data)


@contextmanager
def browse(url: str, folder: Path) -> Iterator[Page]:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder}", url], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        socket = next(filter(None, (re.search(r"ws://\S+", line) for line in process.stderr)))[0]
        with connect(socket, max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_500_photos_dropped_at_once_are_counted_and_progress_is_shown(
    one_machine: Server, photos: list[bytes], tmp_path: Path
) -> None:
    files = [tmp_path / f"{i}.jpg" for i in range(NUM_PHOTOS)]
    for file, photo in zip(files, itertools.cycle(photos), strict=False):
        file.write_bytes(photo)
    seen: list[float] = []
    with browse(f"http://127.0.0.1:{one_machine.port}/", tmp_path / "browser") as page:
        while page.evaluate("document.readyState") != "complete":
            time.sleep(0.1)
        until = time.monotonic() + 200
        page.drop(files)
        while page.evaluate("document.getElementById('progress').hidden"):
            assert time.monotonic() < until
        while not page.evaluate("document.getElementById('progress').hidden"):
            assert time.monotonic() < until
            seen.append(page.evaluate("document.getElementById('progress').value"))
            time.sleep(0.1)
        summary = page.evaluate("document.getElementById('summary').textContent")
        cards = page.evaluate("document.querySelectorAll('.photo .count:not(:empty)').length")
    assert summary == f"{NUM_PHOTOS} counted"
    assert cards == NUM_PHOTOS
    assert seen == sorted(seen)
    assert len({*seen}) > 5, "it moves"
