"""What every step is told, and where it leaves what it found."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.loading.preprocessing import Preprocessing
from bintally.storage.folder import write_atomically

if TYPE_CHECKING:
    import torch

__all__ = ["PREPROCESSING", "TINY", "Context", "failure"]

PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = "timm:test_resnet"
"""The backbone of rehearsals."""
WEIGHTS = "tf_efficientnet_lite0_timm.safetensors"


@dataclass(frozen=True)
class Context:
    """A step's folders, its time, and whether it is only a rehearsal."""

    work: Path
    """Datasets and runs. What lies here already is used: `originals/` and `bucket224/` (buckets of
    photos), and ImageNet weights of EfficientNet-Lite0 for timm; else photos are rendered, and
    weights are random."""
    seconds: float
    """How long it may take."""
    smallest: bool
    """A rehearsal: everything once, as small as it goes."""
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls) -> Context:
        """From the command line that `command` makes."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--smallest", action="store_true")
        return cls(**vars(parser.parse_args()))

    def command(self, module: str, seconds: float, *words: str) -> list[str]:
        """The command line of a step that is a module here, with words of its own first."""
        smallest = ["--smallest"] if self.smallest else []
        flags = [f"--work={self.work}", f"--seconds={seconds:g}", *smallest]
        return ["-m", f"benchmarks.gpu.{module}", *words, *flags]

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.began + self.seconds - time.monotonic()

    @property
    def results(self) -> Path:
        """Each step's JSON, by its name, and its log."""
        return self.work / "results"

    @property
    def originals(self) -> Path:
        """A bucket of photos as a camera gives them."""
        return self.work / "originals"

    @property
    def weights(self) -> str:
        """Of EfficientNet-Lite0, as `fit --weights` takes it."""
        file = self.work / WEIGHTS
        return str(file) if file.exists() else "none"

    @cached_property
    def device(self) -> torch.device:
        """The GPU, where there is one."""
        import torch

        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def wait(self) -> None:
        """Returns when the GPU has done all that it was given."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def keep(self, name: str, value: dict[str, Any] | Sequence[Any]) -> None:
        """Writes a step's result, or what there is of it so far."""
        write_atomically(self.results / f"{name}.json", json.dumps(value, indent=1).encode())

    def say(self, value: object) -> None:
        """A line for the step's log."""
        print(json.dumps(value), flush=True)


def failure(error: BaseException) -> dict[str, str]:
    """What a result has instead of numbers where something went wrong."""
    return {"failed": f"{type(error).__name__}: {error}"[:500]}
