"""ImageNet, as anybody's WebDataset tars, in a loop of one's own with its usual augmentation.

    bintally adopt TARS                          # train/*.tar, val/*.tar: KEY.jpg and KEY.cls
    python examples/imagenet_loop.py TARS        # or torchrun --nproc-per-node 8 …

No tar is written anew. For S3 give the loaders a `cache`; each machine then fetches its share.
"""

import os
import sys

import torch
import torch.distributed as dist
import torchvision.models
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import bintally

EPOCHS = int(os.environ.get("EPOCHS", "90"))
BATCH_SIZE = int(os.environ.get("BATCH_SIZE", "256"))

tars, architecture = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "resnet50"
cuda = torch.cuda.is_available()
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("nccl" if cuda else "gloo")
device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu")

train = bintally.Loader(tars, batch_size=BATCH_SIZE, augment="imagenet")
validation = bintally.Loader(tars, split="validation", batch_size=BATCH_SIZE)
torch.manual_seed(0)
model = torchvision.models.get_model(architecture, num_classes=len(train.classes))
model = model.to(device, memory_format=torch.channels_last)
trained = DistributedDataParallel(model) if dist.is_initialized() else model
optimizer = torch.optim.SGD(
    model.parameters(), lr=0.1 * BATCH_SIZE / 256, momentum=0.9, weight_decay=1e-4, nesterov=True
)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, optimizer.param_groups[0]["lr"], total_steps=EPOCHS * len(train), pct_start=0.05
)

for epoch in range(EPOCHS):
    model.train()
    for images, labels in train:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = cross_entropy(trained(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    hits = torch.zeros(2, device=device)
    with torch.inference_mode():
        for images, labels in validation:
            found = model.eval()(images).argmax(1) == labels
            hits += torch.stack([found.sum(), found.new_tensor(len(found), dtype=torch.int64)])
    if dist.is_initialized():
        dist.all_reduce(hits)
    print(f"epoch {epoch + 1}: top 1 {hits[0] / hits[1]:.1%} of {hits[1]:.0f}", flush=True)
