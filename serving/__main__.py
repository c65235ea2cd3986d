"""The command of stage 4: `bintally serve --checkpoint FILE`, or `python -m serving …`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bintally.terminal.command import main
from serving.config import ServeConfig


@dataclass(frozen=True)
class Serve(ServeConfig):
    """Count the items in photos that come over HTTP.

    POST a JPEG to /invocations, or open / in a browser. /ping says whether it is ready, /metrics is
    for Prometheus, /openapi.json describes it all.
    """

    def execute(self) -> int:
        if self.ray is not None:
            from serving.cluster import deploy

            deploy(self)
        else:
            from serving.server import serve

            serve(self)
        return 0


COMMANDS = Serve

if __name__ == "__main__":
    sys.exit(main(COMMANDS, sys.argv[1:], prog="python -m serving"))
