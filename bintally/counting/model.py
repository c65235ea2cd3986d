"""The model: a backbone from torchvision or timm, and a head that tells counts apart."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bintally.errors import UsageError
from bintally.loading.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from bintally.options import Trainable

__all__ = ["CountNet", "build_model", "make_head"]


class CountNet(nn.Module):
    """Features of a photo, then Linear–ReLU–Linear to a logit for each class of count.

    With `trainable` "head" the backbone is frozen: it has no gradients, and stays in evaluation
    mode whatever mode the model is put in, so that its BatchNorm statistics stay what they were.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        head_width: int,
        num_classes: int,
        trainable: Trainable,
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = make_head(num_features, head_width, num_classes, dropout, seed)
        self.freeze(trainable == "head")

    def freeze(self, frozen: bool) -> None:
        """Freezes the backbone, or lets it be trained."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> CountNet:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, size, size) to logits (batch, classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits


def make_head(
    num_features: int, width: int, num_classes: int, dropout: float = 0.0, seed: int | None = None
) -> nn.Sequential:
    """Linear–ReLU–Linear: (batch, num_features) to (batch, num_classes).

    With a `seed` the weights are a function of it alone, whatever was drawn at random before.
    """
    # Only one place in the sequence, so that a checkpoint's names do not depend on it.
    between: nn.Module = nn.ReLU(inplace=True)
    if dropout:
        between = nn.Sequential(between, nn.Dropout(dropout))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(num_features, width), between, nn.Linear(width, num_classes))


def build_model(
    backbone: str,
    weights: str,
    *,
    image_size: int,
    head_width: int,
    num_classes: int,
    trainable: Trainable,
    dropout: float = 0.0,
    seed: int | None = None,
) -> tuple[CountNet, Preprocessing]:
    """A model with fresh head, and the preprocessing that its backbone's weights expect.

    `backbone` is the name of a torchvision classifier, or `timm:NAME`; `weights` is `imagenet`
    (downloaded by the library), `none`, or a file: the library's own state dict (.pth or
    .safetensors), or a checkpoint of ours with this backbone. With a `seed`,
    fresh weights are a function of it. Raises `UsageError` for a name or weights that do not exist
    or do not fit.
    """
    if seed is not None:
        torch.manual_seed(seed)
    if backbone.startswith("timm:"):
        network, mean, std = _from_timm(backbone.removeprefix("timm:"), weights, image_size)
    else:
        network, mean, std = _from_torchvision(backbone, weights)
    num_features = _count_features(network, backbone, image_size)
    model = CountNet(network, num_features, head_width, num_classes, trainable, dropout, seed)
    model.to(memory_format=torch.channels_last)
    return model, Preprocessing(image_size, mean, std)


_Normalisation = tuple[float, float, float]


def _count_features(network: nn.Module, backbone: str, image_size: int) -> int:
    """How many features a backbone makes of a photo of this size, tried on a black one."""
    try:
        with torch.no_grad():
            return int(network.eval()(torch.zeros(1, 3, image_size, image_size)).shape[-1])
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"--image-size {image_size}: {backbone} takes no photos of this size ({reason})"
        ) from error


def _from_timm(
    name: str, weights: str, image_size: int
) -> tuple[nn.Module, _Normalisation, _Normalisation]:
    import timm

    if not timm.is_model(name):
        raise _no_backbone(f"timm:{name}", "timm has no such model", name, timm.list_models())
    usual = timm.get_pretrained_cfg(name)
    # A transformer is made for one size, of which its weights are taken to another.
    sized = {"img_size": image_size} if usual and usual.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=weights == "imagenet", num_classes=0, **sized)
    except Exception as error:
        if sized and image_size != usual.input_size[-1]:
            raise UsageError(
                f"--image-size {image_size}: timm:{name} is made for {usual.input_size[-1]} "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
        if weights != "imagenet":
            raise
        # The hub's client raises a dozen kinds of error where there is no network.
        raise _no_download(f"timm:{name}", error) from error
    if weights not in ("imagenet", "none"):
        _load(network, Path(weights), classifier=network.pretrained_cfg["classifier"])
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]


def _from_torchvision(name: str, weights: str) -> tuple[nn.Module, _Normalisation, _Normalisation]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _no_backbone(name, "torchvision has no such classifier", name, known)
    # Auxiliary classifiers, which two old networks have, only ever belong to ImageNet.
    old = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        network = models.get_model(
            name, weights="DEFAULT" if weights == "imagenet" else None, **old
        )
    except OSError as error:
        raise _no_download(name, error) from error
    if old:
        network.aux_logits = False
        network.aux1 = network.aux2 = network.AuxLogits = None
    classifier = _remove_classifier(network)
    if weights not in ("imagenet", "none"):
        _load(network, Path(weights), classifier)
    return network, IMAGENET_MEAN, IMAGENET_STD


def _remove_classifier(network: nn.Module) -> str:
    """Takes a torchvision network's last layer away; its name."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        # SqueezeNet classifies with a convolution before its pooling.
        network.get_submodule("classifier.1")
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        return "classifier.1"
    name: str = [*layers][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return name


def _load(network: nn.Module, file: Path, classifier: str) -> None:
    """Loads a state dict; only the classifier's own weights may have no place in the network."""
    state = _read_state(file)
    missing, unexpected = set(network.state_dict()) - set(state), set(state)
    unexpected -= set(network.state_dict())
    strange = {k for k in unexpected if not k.startswith((f"{classifier}.", "aux", "AuxLogits"))}
    if missing or strange:
        example = sorted(missing or strange)[0]
        raise UsageError(
            f"--weights {file}: not the weights of this backbone "
            f"({len(missing)} tensors missing, {len(strange)} unknown: {example}, …)"
        )
    try:
        network.load_state_dict({k: v for k, v in state.items() if k not in unexpected})
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip()
        raise UsageError(f"--weights {file}: not the weights of this backbone: {line}") from error


def _read_state(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise UsageError(f"--weights {file}: no such file; name one, or say imagenet or none")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Both libraries raise what their parsers raise.
        raise UsageError(
            f"--weights {file}: not readable as weights: {error}".split("\n")[0]
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        # One of our own checkpoints.
        whole = {**state["model"], **(state.get("ema") or {})}
        prefix = "backbone."
        state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"--weights {file}: not a state dict (a mapping of names to tensors)")
    return state


def _no_backbone(flag: str, complaint: str, name: str, known: Sequence[str]) -> UsageError:
    similar = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return UsageError(f"--backbone {flag}: {complaint}{hint}")


def _no_download(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"--weights imagenet: the weights of {name} cannot be downloaded "
        f"({type(error).__name__}); name a file, or say none to begin without"
    )
