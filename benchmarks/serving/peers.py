"""The servers that people write, to be run as a process: `python -m benchmarks.serving.peers`.

`one` is FastAPI and PyTorch, one request at a time, as tutorials have it, with the preprocessing
done right. `handler` is the original's: what SageMaker's PyTorch container is given, with Pillow,
`Resize(224)`, no normalisation, and five raw numbers for an answer, one worker for each core.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from PIL import Image
from torchvision import transforms

from bintally.counting.checkpoint import read_checkpoint

__all__ = ["make_handler", "make_one"]


def make_one(checkpoint_file: Path, precision: torch.dtype) -> FastAPI:
    """FastAPI and PyTorch: decode, resize, normalise, forward, in the request's own coroutine."""
    checkpoint, _ = read_checkpoint(checkpoint_file)
    model, preprocessing = checkpoint.build()
    prepare = transforms.Compose(
        [
            transforms.Resize((preprocessing.image_size,) * 2),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    app = FastAPI()

    @app.get("/ping")
    async def ping() -> Response:
        return Response()

    @app.post("/invocations")
    async def invocations(request: Request) -> dict[str, Any]:
        photo = Image.open(io.BytesIO(await request.body())).convert("RGB")
        images = prepare(photo).unsqueeze(0)
        with (
            torch.inference_mode(),
            torch.autocast("cpu", precision, enabled=precision != torch.float32),
        ):
            probabilities = model(images).float().softmax(1)[0].tolist()
        best = max(range(len(probabilities)), key=lambda i: probabilities[i])
        return {"count": checkpoint.classes[best], "probabilities": probabilities}

    return app


def make_handler(checkpoint_file: Path) -> FastAPI:
    """The original's `input_fn`, `predict_fn` and `output_fn`, behind the same FastAPI."""
    checkpoint, _ = read_checkpoint(checkpoint_file)
    model, _ = checkpoint.build()
    transform = transforms.Compose([transforms.Resize(224), transforms.ToTensor()])
    app = FastAPI()

    @app.get("/ping")
    async def ping() -> Response:
        return Response()

    @app.post("/invocations")
    async def invocations(request: Request) -> list[list[float]]:
        photo = Image.open(io.BytesIO(await request.body()))
        with torch.no_grad():
            answer: list[list[float]] = model(transform(photo).unsqueeze(0)).tolist()
        return answer

    return app


def make_from_environment() -> FastAPI:
    """What a worker process of uvicorn is to serve."""
    import os

    kind, file = os.environ["BINTALLY_PEER"].split(":", 1)
    if kind == "handler":
        torch.set_num_threads(1)
        return make_handler(Path(file))
    return make_one(Path(file), torch.bfloat16 if kind == "one-bf16" else torch.float32)


if __name__ == "__main__":
    import os

    import uvicorn

    kind, file, port = sys.argv[1:]
    os.environ["BINTALLY_PEER"] = f"{kind}:{file}"
    uvicorn.run(
        "benchmarks.serving.peers:make_from_environment",
        factory=True,
        port=int(port),
        workers=os.cpu_count() if kind == "handler" else 1,
        log_level="warning",
    )
