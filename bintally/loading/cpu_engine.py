"""The engine that runs everywhere: libjpeg-turbo and one compiled pass, on CPU threads."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bintally.loading.engine import DecodeError
from bintally.loading.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bintally.loading.augmentation import Draws
    from bintally.loading.engine import Photos

__all__ = ["CpuEngine"]

TASK = 32
"""Photos that a thread makes at a time, at most: enough to make a thread's change cheap."""
TASKS_AHEAD = 3
"""Tasks for each thread that are begun before anybody waits for them."""
BATCHES_AHEAD = 2


class CpuEngine:
    """A pool of threads, each making a run of a batch's photos in the batch's own memory.

    A photo that is at least four times as large as needed is decoded at half its size, or a quarter
    or an eighth, which libjpeg does while decoding, in less time.
    """

    notices_damage = True

    def __init__(
        self,
        preprocessing: Preprocessing,
        device: torch.device,
        threads: int,
        half: bool = False,
    ) -> None:
        """With `half`, batches on a GPU are float16."""
        import numpy as np

        self._preprocessing = preprocessing
        self._device = device
        self._threads = threads
        mean = np.array([*preprocessing.mean, 0], np.float32) * 255
        std = np.array([*preprocessing.std, 1], np.float32) * 255
        if device.type == "cpu":
            self._scale = np.reciprocal(std)
            self._shift = -mean * self._scale
        else:
            # A quarter of the bytes goes to the device, which normalises them in no time. What is
            # written as a byte is cut off, hence the half.
            self._scale = np.ones(4, np.float32)
            self._shift = np.full(4, 0.5, np.float32)
        self._upload = None if device.type == "cpu" else _Upload(preprocessing, device, half)
        self._free: list[NDArray[Any]] = []
        """Memory that no batch uses any more."""
        self._thread = threading.local()

    def run(self, batches: Iterable[tuple[Photos, Draws]]) -> Iterator[torch.Tensor]:
        source = iter(batches)
        with ThreadPoolExecutor(self._threads) as pool:
            ahead: deque[tuple[NDArray[Any], list[Future[None]]]] = deque()

            def fill() -> None:
                while (
                    len(ahead) < BATCHES_AHEAD
                    or sum(len(tasks) for _, tasks in ahead) < TASKS_AHEAD * self._threads
                ):
                    batch = next(source, None)
                    if batch is None:
                        return
                    ahead.append(self._begin(pool, *batch))
                    del batch  # Its photos hold shards open.

            try:
                fill()
                while ahead:
                    images, tasks = ahead.popleft()
                    for task in tasks:
                        task.result()
                    fill()
                    yield self._deliver(images)
                    del images
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, photos: Photos, draws: Draws
    ) -> tuple[NDArray[Any], list[Future[None]]]:
        size = self._preprocessing.image_size
        images = self._memory((len(photos), size, size * 3))
        # All threads work on a batch. Where the model computes on the same cores, in equal parts,
        # one thread alone would hold up one part, and so all of them.
        task = min(TASK, -(-len(photos) // self._threads))
        return images, [
            pool.submit(self.make, photos[i : i + task], draws[i : i + task], images[i : i + task])
            for i in range(0, len(photos), task)
        ]

    def make(self, photos: Photos, draws: Draws, images: NDArray[Any]) -> None:
        """Writes photos into `images`, (photos, size, size × 3) float32 (uint8 for a GPU)."""
        import numpy as np

        from bintally.loading.resize import augment_into, resize_into

        flips, scale, shift = draws.mirrored.tolist(), self._scale, self._shift
        if draws.boxes is None and draws.colours is None:
            for photo, flip, image in zip(photos, flips, images, strict=True):
                resize_into(self._decode(photo), flip, scale, shift, image)
            return
        boxes, colours = draws.boxes, draws.colours
        if boxes is None:
            boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(photos), 1))
        if colours is None:
            colours = np.tile(np.eye(3, 4, dtype=np.float32), (len(photos), 1, 1))
        for photo, box, flip, mix, image in zip(photos, boxes, flips, colours, images, strict=True):
            # Not more than all, for the outermost pixels' error is repeated with them.
            width, height = np.minimum(box[2:] - box[:2], 1).tolist()
            augment_into(self._decode(photo, width, height), box, flip, mix, scale, shift, image)

    def _decode(
        self, photo: NDArray[np.uint8], wanted_width: float = 1.0, wanted_height: float = 1.0
    ) -> NDArray[np.uint8]:
        """(height, width × 3); valid until the thread's next call. Where the photo is so large, the
        wanted share of its width and of its height is at least as large as the output."""
        import numpy as np
        import simplejpeg

        size = self._preprocessing.image_size
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(photo, strict=True)
            reduction = 1
            # Twice the size that is needed is left for the resize; from less, the mean pixel would
            # be off by 1.2 of 255 and not by 0.3. Other fractions than these are no faster.
            shortest = min(height * wanted_height, width * wanted_width)
            while reduction < 8 and shortest >= 4 * reduction * size:
                reduction *= 2
            height, width = -(-height // reduction), -(-width // reduction)
            scratch = getattr(self._thread, "scratch", None)
            if scratch is None or len(scratch) < height * width * 3:
                scratch = self._thread.scratch = np.empty(height * width * 3, np.uint8)
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                photo, min_height=height, min_width=width, buffer=scratch, strict=True
            )
        except ValueError as error:
            raise DecodeError(str(error)) from error
        return pixels.reshape(len(pixels), -1)

    def _deliver(self, images: NDArray[Any]) -> torch.Tensor:
        import torch

        size = self._preprocessing.image_size
        batch = torch.from_numpy(images).view(len(images), size, size, 3).permute(0, 3, 1, 2)
        return batch if self._upload is None else self._upload(batch)

    def _memory(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        """An array in memory that no batch uses any more, or in new memory.

        New memory would come page by page, each cleared by the kernel: a third of the time of all.
        """
        import numpy as np

        length = math.prod(shape)
        while self._free:
            buffer = self._free.pop()
            if len(buffer) >= length:
                break
        else:
            on_cpu = self._upload is None
            buffer = np.empty(length, np.float32) if on_cpu else _pinned(length)
        images = buffer[:length].reshape(shape)
        # Whoever has the batch, or any part of it, keeps this very array alive: PyTorch holds it.
        weakref.finalize(images, self._free.append, buffer).atexit = False
        return images


class _Upload:
    """Brings batches to the GPU while the model computes, and normalises them there."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device, half: bool) -> None:
        import torch

        self._device = device
        self._type = torch.float16 if half else torch.float32
        self._stream = torch.cuda.Stream(device)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._on_their_way: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        """What the GPU may still be reading from this machine's memory."""

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) bytes in pinned memory, to what an engine yields."""
        import torch

        with torch.cuda.stream(self._stream):
            pixels = batch.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        self._on_their_way.append((copied, batch))
        while self._on_their_way and self._on_their_way[0][0].query():
            self._on_their_way.popleft()
        model_stream = torch.cuda.current_stream(self._device)
        model_stream.wait_event(copied)
        pixels.record_stream(model_stream)
        return pixels.sub(self._mean).div_(self._std).to(self._type)


def _pinned(length: int) -> NDArray[np.uint8]:
    """Memory that a GPU reads by itself, without a copy and without anybody waiting for it."""
    import torch

    memory: NDArray[np.uint8] = torch.empty(length, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
