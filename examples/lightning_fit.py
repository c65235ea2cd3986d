"""Lightning's Trainer on our loaders: `pip install 'bintally[lightning]'`.

python examples/lightning_fit.py SHARDS
"""

import sys
from typing import Any

import lightning
import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

import bintally


class Count(lightning.LightningModule):
    """A network that tells counts apart."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = resnet18(num_classes=num_classes)

    def training_step(self, batch: bintally.Batch) -> torch.Tensor:
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: bintally.Batch) -> None:
        images, labels = batch
        right = (self.network(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, prog_bar=True, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Data(lightning.LightningDataModule):
    """Our loaders, made where each process knows its rank."""

    def __init__(self, shards: str) -> None:
        super().__init__()
        self.shards = shards

    def train_dataloader(self) -> bintally.Loader:
        return bintally.Loader(self.shards, batch_size=64, image_size=96)

    def val_dataloader(self) -> bintally.Loader:
        return bintally.Loader(self.shards, split="validation", batch_size=64, image_size=96)


shards = sys.argv[1]
trainer = lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
trainer.fit(Count(len(bintally.read_dataset(shards).classes)), datamodule=Data(shards))
print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
