"""timm's model, optimiser, schedule and averaged weights on our loader.

python examples/timm_loop.py SHARDS [MODEL]
"""

import sys

import timm
import torch
from timm.data import resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

import bintally

EPOCHS = 2

shards, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "efficientnet_lite0"
device = "cuda" if torch.cuda.is_available() else "cpu"
model = timm.create_model(name, num_classes=len(bintally.read_dataset(shards).classes)).to(device)
data = resolve_data_config(model=model)
preparation = {"image_size": data["input_size"][1], "mean": data["mean"], "std": data["std"]}
train = bintally.Loader(shards, batch_size=32, **preparation)
validation = bintally.Loader(shards, split="validation", batch_size=64, **preparation)

optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
schedule, _ = create_scheduler_v2(
    optimizer, "cosine", num_epochs=EPOCHS, updates_per_epoch=len(train), step_on_epochs=False
)
average = ModelEmaV3(model, decay=0.99)
loss_function = LabelSmoothingCrossEntropy(0.1)

done = 0
for epoch in range(EPOCHS):
    losses, hits = AverageMeter(), AverageMeter()
    for images, labels in train:
        loss = loss_function(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        average.update(model, step=done)
        schedule.step_update(done)
        losses.update(loss.item(), len(labels))
    with torch.inference_mode():
        for images, labels in validation:
            hits.update(accuracy(average.module.eval()(images), labels)[0].item(), len(labels))
    print(f"epoch {epoch + 1}: loss {losses.avg:.3f}, accuracy {hits.avg:.1f}%", flush=True)
