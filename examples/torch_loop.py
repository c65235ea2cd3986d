"""A training loop of one's own in plain PyTorch, on any number of processes, that resumes exactly.

    python examples/torch_loop.py SHARDS run.pt
    torchrun --nproc-per-node 2 examples/torch_loop.py SHARDS run.pt

Ended at any step, and started again on as many processes or others, it goes on with the very next
batch of the same epoch.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

import bintally

EPOCHS, SAVE_EVERY = 2, 10

shards, file = sys.argv[1], Path(sys.argv[2])
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
first = os.environ.get("RANK", "0") == "0"
device = "cpu"
if torch.cuda.is_available():
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"

torch.manual_seed(0)
loader = bintally.Loader(shards, batch_size=64, image_size=96, seed=1)
model = resnet18(num_classes=len(loader.classes))
model = model.to(device, memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
if file.exists():
    saved = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    loader.load_state_dict(saved["loader"])
step = DistributedDataParallel(model) if dist.is_initialized() else model

while loader.epoch < EPOCHS:
    for number, (images, labels) in enumerate(loader, 1):
        loss = cross_entropy(step(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if first and (number % SAVE_EVERY == 0 or loader.state_dict()["step"] == 0):
            parts = {"model": model, "optimizer": optimizer, "loader": loader}
            torch.save({name: part.state_dict() for name, part in parts.items()}, f"{file}.new")
            Path(f"{file}.new").replace(file)
    if first:
        print(f"epoch {loader.epoch}: loss {loss.item():.3f}", flush=True)

if dist.is_initialized():
    dist.destroy_process_group()
