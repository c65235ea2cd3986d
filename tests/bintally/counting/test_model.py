"""Backbones, heads and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.counting.model import CountNet, build_model
from bintally.errors import UsageError
from bintally.loading.preprocessing import Preprocessing
from bintally.options import Trainable


def build(
    backbone: str, weights: str = "none", trainable: Trainable = "all", **more: Any
) -> tuple[CountNet, Preprocessing]:
    settings: dict[str, Any] = {"image_size": 64, "head_width": 128, "num_classes": 6} | more
    return build_model(backbone, weights, trainable=trainable, **settings)


def test_resnet50_has_the_head_of_the_original() -> None:
    model, preprocessing = build("resnet50")
    assert [tuple(p.shape) for p in model.head.parameters()] == [
        (128, 2048),
        (128,),
        (6, 128),
        (6,),
    ]
    assert preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "densenet121", "timm:test_resnet"],
)
def test_a_backbone_of_any_family_gives_a_logit_for_each_class(backbone: str) -> None:
    model, _ = build(backbone, num_classes=4)
    logits = model.eval()(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 4)


@pytest.mark.slow
def test_every_classifier_of_torchvision_can_be_a_backbone() -> None:
    from torchvision import models

    huge = ("vit_", "regnet_y_128gf", "maxvit")  # of one fixed size, or of many gigabytes
    for name in models.list_models(module=models):
        if not name.startswith(huge):
            size = 128 if name == "inception_v3" else 64
            model, _ = build(name, image_size=size)
            assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 6), name


def test_a_frozen_backbone_never_changes_and_the_head_learns() -> None:
    torch.manual_seed(0)
    model, _ = build("timm:test_resnet", trainable="head")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert any("running_mean" in k for k in before), "it has BatchNorm"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(3):
        loss = model(torch.randn(4, 3, 64, 64)).logsumexp(1).sum()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.startswith("head.")}


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "timm:test_resnet"])
def test_weights_come_from_a_file_of_the_librarys_own(backbone: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from torchvision import models

    torch.manual_seed(1)
    original = (
        timm.create_model(backbone[5:])
        if backbone.startswith("timm:")
        else models.get_model(backbone)
    )
    file, other = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save(original.state_dict(), file)
    save_file(original.state_dict(), other)
    for weights in (file, other):
        model, _ = build(backbone, str(weights))
        loaded, mine = original.state_dict(), model.backbone.state_dict()
        assert mine
        assert all(torch.equal(mine[k], loaded[k]) for k in mine)


def test_weights_come_from_a_checkpoint_of_ours(shards: Path, tmp_path: Path) -> None:
    from bintally.counting.checkpoint import read_checkpoint
    from tests.training.runs import settings
    from training.fit import fit

    config = settings(shards, tmp_path, epochs=1, ema=0.5)
    fit(config)
    checkpoint, _ = read_checkpoint(tmp_path / "best.pt")
    model, _ = build(config.backbone, weights=str(tmp_path / "best.pt"), num_classes=3)
    trained, _ = checkpoint.build()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, trained.backbone.state_dict()[name]), name
    with pytest.raises(UsageError, match="not the weights of this backbone"):
        build("resnet18", weights=str(tmp_path / "best.pt"))


def test_real_weights_load_and_bring_their_own_normalisation(weights: Path) -> None:
    _, preprocessing = build("timm:tf_efficientnet_lite0", str(weights), trainable="head")
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    squeezenet = weights.parent / "squeezenet1_1-imagenet.pth"
    build("squeezenet1_1", str(squeezenet))


def test_a_transformer_takes_photos_of_another_size_than_it_was_made_for() -> None:
    model, _ = build("timm:test_vit", image_size=96)
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 6)


def test_a_size_that_a_backbone_cannot_take_is_one_clear_error() -> None:
    with pytest.raises(UsageError, match="--image-size 32: alexnet takes no photos of this size"):
        build("alexnet", image_size=32)


def test_what_does_not_fit_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such classifier; did you mean resnet"):
        build("resnet5")
    with pytest.raises(UsageError, match=r"no such model; did you mean resnet.*\?"):
        build("timm:resnet5000")
    with pytest.raises(UsageError, match=r"nowhere\.pth: no such file"):
        build("resnet18", str(tmp_path / "nowhere.pth"))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UsageError, match="not readable as weights"):
        build("resnet18", str(tmp_path / "junk.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="not the weights of this backbone"):
        build("resnet18", str(tmp_path / "other.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="not a state dict"):
        build("resnet18", str(tmp_path / "list.pth"))
