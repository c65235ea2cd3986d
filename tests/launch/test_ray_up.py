"""The cluster that `ray up` starts: Ray itself finds nothing wrong with its description."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import REPOSITORY

FILE = REPOSITORY / "docs/launch/cluster.yaml"


def test_ray_takes_the_clusters_description() -> None:
    # What `ray up` does before it asks AWS for anything.
    from ray.autoscaler._private.commands import prepare_config, validate_config

    config: dict[str, Any] = yaml.safe_load(FILE.read_text())
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]


def test_ray_is_the_version_that_bintally_brings_along() -> None:
    """An image with another one would be left half replaced by `setup_commands`."""
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    image = yaml.safe_load(FILE.read_text())["docker"]["image"]
    assert f"ray=={image.partition(':')[2].partition('-')[0]}" in pins
