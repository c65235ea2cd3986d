"""The DALI engine: one pipeline, fed with our own order of samples.

DALI's own reader shuffles only locally and cannot resume in mid-epoch; fed from outside, it does
what it does best. Outputs reach PyTorch through DLPack without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from bintally.loading.engine import DecodeError
from bintally.loading.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

    from bintally.loading.augmentation import Draws
    from bintally.loading.engine import Photos

__all__ = ["HARDWARE_SHARE", "DaliEngine"]

PREFETCH = 2
"""Batches decoded ahead of the model."""
HARDWARE_SHARE = 1.0
"""Of a batch, what the GPU's JPEG unit decodes. The rest would be decoded by the GPU's cores, to
other pixels: with DALI's 0.65, 12 of 40 photos came out otherwise alone than in a batch, by up to 3
of 255. All of it is also the fastest on an H200, with a third of the CPU time
(benchmarks/results/nvidia-h200)."""


class DaliEngine:
    """Decode, resize, augment and normalise in DALI: on the GPU, or with its CPU operators."""

    notices_damage = False

    def __init__(
        self,
        preprocessing: Preprocessing,
        device: torch.device,
        batch_size: int,
        threads: int,
        hardware_share: float = HARDWARE_SHARE,
        half: bool = False,
    ) -> None:
        """`batch_size` is the largest that will come; `threads` are DALI's CPU threads; with `half`
        the batches are float16.

        `hardware_share` of each batch is decoded by the GPU's JPEG unit where it has one (A100,
        H100, H200), the rest by its cores; a GPU without one decodes all with them.
        """
        self._hardware_share = hardware_share
        self._half = half
        self._preprocessing = preprocessing
        self._device = device
        self._batch_size = batch_size
        self._threads = threads
        self._idle: dict[tuple[bool, bool], _Fed] = {}

    def run(self, batches: Iterable[tuple[Photos, Draws]]) -> Iterator[torch.Tensor]:
        import torch
        from torch.utils.dlpack import from_dlpack

        # Should this run end early, by an error or because nobody asks for the rest, what the
        # pipeline has begun must not come out of the next one; and another run may begin before
        # this one is over. So the pipeline is this run's own until it is through.
        kind, batches = _look_ahead(batches)
        fed = self._idle.pop(kind, None) or _Fed(lambda feed: self._build(feed, *kind))
        fed.source = (_inputs(photos, draws) for photos, draws in batches)
        pipeline = fed.pipeline
        pipeline.reset()
        # On a GPU, what DALI has queued is ordered before the stream that the model runs on.
        stream = torch.cuda.current_stream() if self._device.type == "cuda" else None
        pipeline.schedule_run()
        while True:
            try:
                (images,) = pipeline.share_outputs(cuda_stream=stream)
            except StopIteration:
                self._idle[kind] = fed
                return
            except RuntimeError as error:
                raise DecodeError(str(error)) from error
            # (batch, height, width, channels) seen as NCHW is channels_last: nothing moves.
            batch = from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
            # The tensor keeps its buffer alive; DALI takes another one for what comes next.
            pipeline.release_outputs()
            pipeline.schedule_run()
            yield batch

    def _build(self, feed: Callable[[], list[Any]], boxed: bool, coloured: bool) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        size = self._preprocessing.image_size
        on_gpu = self._device.type == "cuda"

        @pipeline_def(  # type: ignore[untyped-decorator]
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,
        )
        def pipeline() -> Any:
            ndim = [1, 0] + [1, 1] * boxed + [2] * coloured
            photos, mirror, *drawn = fn.external_source(
                source=feed,
                num_outputs=len(ndim),
                dtype=[types.UINT8, types.INT32, *[types.FLOAT] * len(ndim)][: len(ndim)],
                ndim=ndim,
            )
            images = fn.decoders.image(
                photos,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                hw_decoder_load=self._hardware_share,
                # As libjpeg does it, and so the CPU engine: 0.15 of 255 from Pillow and not 0.33.
                jpeg_fancy_upsampling=True,
            )
            box: dict[str, Any] = {}
            if boxed:
                # Beyond a photo's edge, DALI repeats the outermost pixels.
                box = {"roi_start": drawn[0], "roi_end": drawn[1], "roi_relative": True}
            images = fn.resize(
                images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True, **box
            )
            if coloured:
                images = fn.coord_transform(images, MT=drawn[-1], dtype=types.UINT8)
            return fn.crop_mirror_normalize(
                images,
                mirror=mirror,
                mean=[255 * m for m in self._preprocessing.mean],
                std=[255 * s for s in self._preprocessing.std],
                output_layout="HWC",
                dtype=types.FLOAT16 if self._half else types.FLOAT,
            )

        built = pipeline()
        built.build()
        return built


class _Fed:
    """A pipeline, and what it is fed with."""

    def __init__(self, build: Callable[[Callable[[], list[Any]]], Any]) -> None:
        self.source: Iterator[list[Any]] = iter(())
        self.pipeline: Any = build(lambda: next(self.source))


def _look_ahead(
    batches: Iterable[tuple[Photos, Draws]],
) -> tuple[tuple[bool, bool], Iterator[tuple[Photos, Draws]]]:
    """Whether there are boxes and colours in a run's batches, and its batches."""
    source = iter(batches)
    begin = [*islice(source, 1)]
    kind = (False, False)
    for _, draws in begin:
        kind = draws.boxes is not None, draws.colours is not None
    return kind, chain(begin, source)


def _inputs(photos: Photos, draws: Draws) -> list[Any]:
    """What a pipeline is fed with: photos, whether they are mirrored, boxes and colours."""
    inputs = [list(photos), draws.mirrored.astype("int32")]
    if draws.boxes is not None:
        # Height comes before width here.
        inputs += [draws.boxes[:, [1, 0]].copy("C"), draws.boxes[:, [3, 2]].copy("C")]
    if draws.colours is not None:
        inputs.append(draws.colours)
    return inputs
