"""Is what the GPU gives right?

Pixels beside Pillow's; the same twice, whatever else is in the batch; batches that live on while
others are made; damaged photos; and which lines make the training thread wait for the GPU.
"""

from __future__ import annotations

import collections
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gpu.context import PREPROCESSING, Context, failure
from bintally.counting.model import build_model
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.device import precision_type
from bintally.loading.augmentation import Draws
from bintally.loading.cpu_engine import CpuEngine
from bintally.loading.dali_engine import HARDWARE_SHARE, DaliEngine
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.order import TrainingOrder
from bintally.options import EngineName
from bintally.storage.opening import open_place
from training.config import FitConfig
from training.inputs import PhotoInputs
from training.launch.distributed import Process
from training.loop import Callback, Loop

__all__ = ["main"]

SHARES = (0.0, 0.65, HARDWARE_SHARE)
"""Of a batch, what the GPU's JPEG unit decodes."""
THREADS = 4


def main(context: Context) -> None:
    """Keeps `check.json` after every part."""
    paths = sorted((context.originals / "bin-images").glob("*.jpg"))
    photos = [np.fromfile(path, np.uint8) for path in paths[: 8 if context.smallest else 40]]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "pixels beside Pillow's": lambda: pixels_beside_pillow(context, photos),
        "the same twice": lambda: the_same_twice(context, photos),
        "batches live on": lambda: batches_live_on(context, photos),
        "damaged photos": lambda: damaged_photos(context, photos),
        "lines that wait": lambda: waits(context),
    }
    report: dict[str, Any] = {"seconds": {}}
    for name, part in parts.items():
        began = time.monotonic()
        try:
            report[name] = part()
        except Exception as error:
            traceback.print_exc()
            report[name] = failure(error)
        report["seconds"][name] = round(time.monotonic() - began, 1)
        context.keep("check", report)
        context.say({name: report[name]})


def pillow(photo: NDArray[np.uint8]) -> torch.Tensor:
    """(3, size, size) float32, 0 to 255."""
    size = PREPROCESSING.image_size
    image = Image.open(io.BytesIO(photo.tobytes())).convert("RGB")
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def pixels(batch: torch.Tensor) -> torch.Tensor:
    """The normalisation undone: 0 to 255."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return (batch.float().cpu() * std + mean) * 255


def difference(got: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """In 255ths."""
    off = (got - wanted).abs()
    means = off.flatten(1).mean(1)
    return {
        "mean": round(float(means.mean()), 4),
        "worst_photo": round(float(means.max()), 4),
        "p99": round(float(off.flatten().kthvalue(int(off.numel() * 0.99)).values), 2),
        "max": round(float(off.max()), 1),
    }


def run(engine: Engine, photos: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """One batch."""
    (made,) = engine.run([(photos, Draws.nothing(len(photos)))])
    return made


def pixels_beside_pillow(context: Context, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """How far each way to decode is from Pillow's pixels."""
    wanted = torch.stack([pillow(photo) for photo in photos])
    device, size = context.device, len(photos)
    engines: dict[str, Engine] = {
        f"dali, JPEG unit {share:.0%}": DaliEngine(PREPROCESSING, device, size, THREADS, share)
        for share in SHARES
    }
    engines["dali, float16"] = DaliEngine(PREPROCESSING, device, size, THREADS, half=True)
    engines["cpu engine"] = CpuEngine(PREPROCESSING, device, THREADS)
    return {name: difference(pixels(run(e, photos)), wanted) for name, e in engines.items()}


def the_same_twice(context: Context, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Photos that a second run, their place in the batch, or the rest of it give other pixels."""
    report = {}
    for share in SHARES:
        engine = DaliEngine(PREPROCESSING, context.device, len(photos), THREADS, share)
        first = run(engine, photos).clone()
        others = {
            "again": run(engine, photos).clone(),
            "reversed": run(engine, photos[::-1]).flip(0).clone(),
            "alone": torch.cat([run(engine, [photo]) for photo in photos]),
        }
        report[f"JPEG unit {share:.0%}"] = {
            name: int((first != other).flatten(1).any(1).sum()) for name, other in others.items()
        }
    return report


def batches_live_on(context: Context, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Sums of batches that are kept, or used late, or on another stream; all differences are 0."""
    rng = np.random.default_rng(0)
    number = 4 if context.smallest else 40
    order = [rng.integers(0, len(photos), int(rng.integers(1, 33))) for _ in range(number)]
    report = {}
    names: tuple[EngineName, ...] = ("dali", "cpu")
    for name in names:
        engine = make_engine(name, PREPROCESSING, context.device, 32)

        def batches(engine: Engine = engine) -> Iterator[torch.Tensor]:
            return engine.run(([photos[i] for i in o], Draws.nothing(len(o))) for o in order)

        wanted = [batch.double().sum().item() for batch in batches()]
        kept = [*batches()]
        side = torch.cuda.Stream() if context.on_gpu else None
        heavy = torch.randn(*[4096 if context.on_gpu else 64] * 2, device=context.device)
        late = []
        with torch.cuda.stream(side):
            for batch in batches():
                for _ in range(4):
                    heavy = (heavy @ heavy).clamp(-1, 1)
                late.append(batch.double().sum())
                del batch
        context.wait()
        for how, sums in (("kept", [b.double().sum() for b in kept]), ("late", late)):
            pairs = zip(sums, wanted, strict=True)
            report[f"{name}, {how}"] = max(abs(s.item() - w) for s, w in pairs)
    return report


def damaged_photos(context: Context, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """What engines make of a damaged photo among good ones: an error, or pixels."""
    good = photos[0]
    flipped = good.copy()
    flipped[np.random.default_rng(0).integers(1000, len(good), 40)] ^= 0xFF
    damaged = {
        "zeros after 700 bytes": np.concatenate([good[:700], np.zeros(len(good) - 700, np.uint8)]),
        "cut in half": good[: len(good) // 2].copy(),
        "40 bytes flipped": flipped,
        "no JPEG": np.frombuffer(b"not a photo" * 100, np.uint8),
    }
    report: dict[str, Any] = {}
    for name, photo in damaged.items():
        report[name] = {}
        for engine in (
            DaliEngine(PREPROCESSING, context.device, 4, THREADS),
            CpuEngine(PREPROCESSING, context.device, THREADS),
        ):
            try:
                run(engine, [good, photo, good, good])
                outcome = "pixels"
            except Exception as error:
                outcome = failure(error)["failed"][:100]
            report[name][type(engine).__name__] = outcome
            assert len(run(engine, [good] * 3)) == 3, "an engine works on after an error"
    return report


def waits(context: Context) -> dict[str, Any]:
    """Lines of the training thread that wait for the GPU, by PyTorch's own debugging."""
    place = open_place(context.work / "rendered")
    dataset = read_dataset(place)
    train = Samples(place, dataset, "train")
    process = Process(0, 1, 0, context.device)
    precision = precision_type("auto", context.device)
    engines: tuple[EngineName, ...] = ("dali", "cpu")
    report: dict[str, Any] = {}
    for name in engines:
        config = FitConfig("", Path(), backbone="resnet18", weights="none", batch_size=16)
        model, _ = build_model(
            "resnet18", "none", image_size=224, head_width=8, num_classes=6, trainable="all", seed=0
        )
        loop = Loop(
            config,
            model.to(context.device),
            PhotoInputs(
                config,
                train,
                train,
                dataset.classes,
                make_engine(name, PREPROCESSING, context.device, 16, half=True),
                TrainingOrder(train.sizes, 16, 0),
                process,
                precision,
            ),
            dataset.classes,
            dataset.splits["train"].class_counts,
            process,
            precision,
        )
        if context.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.train_epoch(Callback())
        if context.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        lines = collections.Counter(
            f"{Path(w.filename).name}:{w.lineno}" for w in caught if "ynchroniz" in str(w.message)
        )
        report[name] = {"steps": loop.steps, "waits": dict(lines.most_common(20))}
    return report


if __name__ == "__main__":
    main(Context.read())
