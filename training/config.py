"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from bintally.dataset.labels import Classes, are_counts
from bintally.errors import UsageError
from bintally.options import (
    AugmentName,
    DeviceName,
    EngineName,
    OnBadSample,
    PrecisionName,
    Trainable,
)
from training.metrics import NEEDS_COUNTS

__all__ = [
    "TRACKERS",
    "BalanceName",
    "DecideName",
    "FitConfig",
    "LossName",
    "MetricName",
    "OptimizerName",
    "RuleName",
]

BalanceName = Literal["none", "order", "loss"]
DecideName = Literal["auto", "argmax", "mean", "median"]
LossName = Literal["cross-entropy", "ordinal"]
MetricName = Literal["accuracy", "within_one", "loss", "rmse", "mae"]
OptimizerName = Literal["adam", "adamw", "sgd"]
RuleName = Literal[
    "overfit",
    "overtraining",
    "loss-not-decreasing",
    "vanishing-gradient",
    "exploding-gradient",
    "dead-relu",
    "class-imbalance",
    "low-gpu-utilisation",
    "data-loader",
    "cpu-bottleneck",
    "gpu-memory-growth",
    "step-outlier",
    "long-initialisation",
]
TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class FitConfig:
    """Settings of `fit`."""

    shards: str
    """The dataset that `bintally build` or `adopt` made: a folder, or s3://BUCKET/PREFIX."""
    run: Path
    """Folder of this run: checkpoints, metrics, report."""
    where: str | None = None
    """Train and validate on a part: a condition on the catalog's columns, as in "count <= 3" or
    "width > 400 and count in (1, 2)"."""
    resume: bool = False
    """Go on from the run's last checkpoint, if there is one."""
    restart: bool = False
    """Begin anew where --run, or --mirror, holds a run already: it is deleted."""

    preset: str = ""
    """A recipe by name: capstone, head or finetune (training/presets.py). Flags beside it win."""
    backbone: str = "resnet50"
    """A classifier of torchvision by name, or timm:NAME."""
    weights: str = "imagenet"
    """What the backbone begins with: imagenet (downloaded), none, or a file (a state dict, or the
    best.pt of another run)."""
    trainable: Trainable = "all"
    """Train the head on a frozen backbone, or everything. In several epochs with --augment flip or
    none, a frozen backbone sees each photo once, and its features are kept."""
    head_width: int = 128
    """Width of the head's hidden layer."""
    dropout: float = 0.0
    """Share of the head's hidden layer left out at a step."""
    image_size: int = 224
    """Pixels: photos are stretched to a square of this size."""
    augment: AugmentName = "flip"
    """What changes a photo from epoch to epoch: flip mirrors every other one; light also shows it a
    little smaller, elsewhere, in other colours; imagenet crops, which may cut items off."""

    epochs: int = 10
    batch_size: int = 128
    """Photos of a step, all processes together."""
    eval_batch_size: int = 0
    """Photos that each process validates at a time; 0 is as many as it trains on at a time."""
    accumulate: int = 1
    """Take a step's gradients in so many parts, for a batch that does not fit in memory at once."""
    lr: float = 0.001
    """Peak learning rate; warm-up before it, a cosine to zero after."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, as a share of --lr."""
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    clip_grad_norm: float = 0.0
    """Scale the gradients of a step down to this norm where theirs is greater; 0 never does."""
    warmup_epochs: float = 0.5
    freeze_epochs: int = 0
    """Train the head alone in the first epochs, everything after."""
    loss: LossName = "cross-entropy"
    """ordinal knows that 3 is nearer to 4 than to 0."""
    label_smoothing: float = 0.0
    """Share of a label's weight that all counts divide."""
    balance: BalanceName = "none"
    """Let every count matter alike, however rare: order shows each equally often, loss weights what
    mistakes cost."""
    ema: float = 0.0
    """Average the weights of the steps with this decay (0.99, say), and keep that average."""
    best_metric: MetricName = "accuracy"
    """Of validation: the epoch in which it is best gives best.pt."""
    decide: DecideName = "auto"
    """What is answered: the most probable count (argmax), or the rounded mean or the median of the
    probabilities. auto is what is best on validation by --best-metric."""
    patience: int = 0
    """Stop after so many epochs without a better one; 0 never does."""
    precision: PrecisionName = "auto"
    """auto is bf16 where the GPU or CPU computes it, fp32 elsewhere."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, for faster steps after."""
    seed: int = 0

    checkpoint_every_minutes: float = 10.0
    """Write last.pt after so much time too, and not only after every epoch; 0 never does."""
    mirror: str | None = None
    """A second place (s3://BUCKET/PREFIX, or a folder) that gets every checkpoint, and that
    --resume fetches it from where --run has none: for machines that come and go."""
    track: str = ""
    """Where curves go beside the run's own files: tensorboard, wandb or mlflow, or several with
    commas between. Each is an extra: pip install 'bintally[wandb]'."""
    stop_on: tuple[RuleName, ...] = ()
    """Rules that end the run after an epoch in which they find an issue."""
    profile: bool = False
    """Write trace.json, PyTorch's profile of a few steps of the first epoch, for a trace viewer."""
    cache: Path | None = None
    """Folder to which shards are brought, from S3 or from a slow folder; for all processes of a
    machine, and any runs."""
    cache_gib: float = 0.0
    """The most that --cache may hold, in GiB; 0 is no limit."""
    lanes: int = 0
    """Parts of an epoch that are read side by side, which machines divide; 0 follows from the
    number of shards: eight for 64, up to 64."""
    window: int = 0
    """Neighbouring shards of a lane whose photos are shuffled among each other; 0 follows from the
    number of shards."""
    on_bad_sample: OnBadSample = "stop"
    """What a photo does that does not decode (a bit that flipped since `verify`): end training, or
    make place for the next one of its shard, which is told. A validation leaves it out, and counts
    it."""
    engine: EngineName = "auto"
    """What decodes: NVIDIA DALI, or libjpeg-turbo on the CPU. auto is DALI on a GPU."""
    decode_threads: int = 0
    """Threads that decode, of each process; 0 divides the cores among those of the machine."""
    device: DeviceName = "auto"

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        if self.resume and self.restart:
            raise UsageError("--resume goes on with a run, --restart deletes it: one of the two")
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} {value}: must be one of {', '.join(choices)}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} {value}: must be at least {least}")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: must be above 0")
        for name in BELOW_ONE:
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be from 0 to below 1")
        for name in self.trackers:
            if name not in TRACKERS:
                raise UsageError(f"--track {name}: must be one of {', '.join(TRACKERS)}")
        if self.freeze_epochs and self.trainable == "head":
            raise UsageError("--freeze-epochs: --trainable head keeps the backbone frozen anyway")

    def check_classes(self, classes: Classes) -> None:
        """Raises `UsageError` for what needs counts where a dataset's classes are names."""
        if are_counts(classes):
            return
        why = f"needs counts, and the classes of {self.shards} are names"
        if self.loss == "ordinal":
            raise UsageError(f"--loss ordinal: {why}; choose --loss cross-entropy")
        if self.best_metric in NEEDS_COUNTS:
            raise UsageError(f"--best-metric {self.best_metric}: {why}; choose accuracy or loss")
        if self.decide in ("mean", "median"):
            raise UsageError(f"--decide {self.decide}: {why}; choose argmax")

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it: plain types, and nothing of this machine's paths."""
        value = {k: v for k, v in asdict(self).items() if k not in WHERE_AND_HOW}
        value["weights"] = Path(self.weights).name
        return value

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """The settings that decide a run's result and differ from those of an earlier start."""
        mine = self.to_dict()
        # A checkpoint of an older version lacks the settings that came later; it ran as if with
        # their defaults.
        defaults = {field.name: field.default for field in fields(FitConfig)}
        then = defaults | dict(earlier)
        changed = [
            f"--{name.replace('_', '-')} {then[name]} became {mine[name]}"
            for name in mine
            # An order that is not asked for is the run's own.
            if then[name] != mine[name] and not (name in ORDER and mine[name] == 0)
        ]
        return changed + [
            f"--{name.replace('_', '-')} {value}, which this version does not have"
            for name, value in earlier.items()
            if name not in defaults and value
        ]

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `track`."""
        names = (name.strip() for name in self.track.split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def flips_only(self) -> bool:
        """Whether there are at most two views of a photo, whose features can be kept."""
        return self.augment in ("none", "flip")

    @property
    def uses_features(self) -> bool:
        """Whether the head is trained on kept features of the frozen backbone."""
        return self.trainable == "head" and self.epochs > 1 and self.flips_only


CHOICES = {
    "trainable": get_args(Trainable),
    "augment": get_args(AugmentName),
    "optimizer": get_args(OptimizerName),
    "loss": get_args(LossName),
    "balance": get_args(BalanceName),
    "best_metric": get_args(MetricName),
    "decide": get_args(DecideName),
    "precision": get_args(PrecisionName),
    "on_bad_sample": get_args(OnBadSample),
    "engine": get_args(EngineName),
    "device": get_args(DeviceName),
}
LEAST = {
    "head_width": 1,
    "image_size": 32,
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 0,
    "accumulate": 1,
    "backbone_lr": 0,
    "weight_decay": 0,
    "clip_grad_norm": 0,
    "warmup_epochs": 0,
    "freeze_epochs": 0,
    "patience": 0,
    "checkpoint_every_minutes": 0,
    "cache_gib": 0,
    "lanes": 0,
    "window": 0,
    "decode_threads": 0,
}
BELOW_ONE = ("dropout", "label_smoothing", "ema")

ORDER = ("lanes", "window")
WHERE_AND_HOW = {
    "shards",
    "run",
    "resume",
    "restart",
    "preset",
    "eval_batch_size",
    "checkpoint_every_minutes",
    "mirror",
    "track",
    "stop_on",
    "profile",
    "compile",
    "cache",
    "cache_gib",
    "engine",
    "decode_threads",
    "device",
}
"""Settings that may differ when a run is resumed."""
