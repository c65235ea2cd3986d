"""`bintally serve` on the GPU, asked by 1, 8 and 32 clients."""

from __future__ import annotations

import sys

from benchmarks.gpu.context import Context
from benchmarks.serving.benchmark import Plan, make_checkpoint, measure

__all__ = ["main"]


def main(context: Context) -> None:
    """Keeps `serve.json`."""
    file = make_checkpoint(context.work / "served.pt")
    command = [sys.executable, "-m", "serving", "--checkpoint", str(file), "--port", "0"]
    seconds = 0.5 if context.smallest else 4.0
    report = measure(command, bucket=context.originals, duration=Plan(1, seconds, seconds / 4))
    context.keep("serve", dict(report))
    context.say(report)


if __name__ == "__main__":
    main(Context.read())
