"""The server on clusters of Ray that this machine's processes make up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bintally.counting.checkpoint import read_checkpoint
from bintally.errors import UsageError
from serving.http.proxy import GUARD, GUARD_VARIABLE
from tests.conftest import REPOSITORY
from tests.ray_nodes import Cluster, free_port, ray_cluster
from tests.serving.conftest import Client, Deployed
from tests.serving.test_lifetime import Load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "args: checkpoint: "),
        ({"checkpoint": "best.pt", "replica": 2}, "args: replica: "),
        ({"checkpoint": "best.pt", "replicas": "many"}, "args: replicas: "),
    ],
)
def test_settings_that_make_no_sense_are_named(args: dict[str, Any], reason: str) -> None:
    from serving.cluster import application

    with pytest.raises(UsageError) as raised:
        application(args)
    assert str(raised.value).startswith(reason)


def deploy(cluster: Cluster, checkpoint: Path, port: int, folder: Path) -> None:
    """`serve deploy` with the file of the project."""
    config = yaml.safe_load((REPOSITORY / "serving" / "cluster.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"] = {"checkpoint": str(checkpoint), "replicas": 1}
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", cluster.dashboard]
    environment = dict(cluster.environment)
    subprocess.run([*command, str(file)], env=environment, check=True, timeout=120)


def wait_for_model(client: Client, sha256: str) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        try:
            reply = client.get("/ping")
            if reply.status == 200 and reply.json["model"] == sha256:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.5)
    raise AssertionError("it never served that checkpoint")


def test_serve_deploy_deploys_it_and_a_new_version_replaces_it_without_a_lost_request(
    checkpoint: Path, other_checkpoint: Path, photos: list[bytes], tmp_path: Path
) -> None:
    old, new = (read_checkpoint(file)[1] for file in (checkpoint, other_checkpoint))
    variables = {GUARD_VARIABLE: GUARD, "PYTHONPATH": str(REPOSITORY)}
    with ray_cluster(1, cores=4, dashboard=True, variables=variables) as cluster:
        client = Client(checkpoint, free_port())
        deploy(cluster, checkpoint, client.port, tmp_path)
        wait_for_model(client, old)
        with Load(client.post, photos, clients=3) as load:
            load.wait_for(lambda: len(load.replies) > 20)
            deploy(cluster, other_checkpoint, client.port, tmp_path)
            load.wait_for(lambda: all(reply.json["model"] == new for reply in load.replies[-20:]))
    assert load.failures == []
    assert {reply.status for reply in load.replies} == {200}
    assert {reply.json["model"] for reply in load.replies} == {old, new}


@pytest.fixture(scope="module")
def deployed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A replica with a checkpoint of its own on each of two nodes."""
    own = tmp_path_factory.mktemp("deployed") / "best.pt"
    shutil.copy(checkpoint, own)
    # One machine has one port of a number; the head's proxy is the one that is asked.
    variables = {"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()), GUARD_VARIABLE: GUARD}
    with ray_cluster(2, cores=2, variables=variables) as cluster:
        yield Deployed(own, cluster, "--replicas", 3)


def test_a_checkpoint_that_is_replaced_is_taken_in_without_a_lost_request(
    deployed: Deployed, photos: list[bytes], other_checkpoint: Path
) -> None:
    old, new = (read_checkpoint(file)[1] for file in (deployed.checkpoint, other_checkpoint))
    with Load(deployed.post, photos, clients=4) as load:
        load.wait_for(lambda: len(load.replies) > 20)
        shutil.copy(other_checkpoint, deployed.checkpoint)
        load.wait_for(lambda: all(reply.json["model"] == new for reply in load.replies[-40:]))
    assert load.failures == []
    assert {reply.status for reply in load.replies} == {200}
    assert {reply.json["model"] for reply in load.replies} == {old, new}


def only_so_many_came_too_late(load: Load, clients: int) -> None:
    """Each client had one request where something died: that may have to be sent again."""
    assert load.failures == []
    failed = [reply for reply in load.replies if reply.status != 200]
    assert len(failed) <= clients
    assert all(reply.status == 503 and "Retry-After" in reply.headers for reply in failed)


def test_a_killed_worker_comes_back_and_its_photos_are_counted_again(
    deployed: Deployed, photos: list[bytes]
) -> None:
    clients, before = 4, deployed.workers()
    with Load(deployed.post, photos, clients) as load:
        load.wait_for(lambda: len(load.replies) > 20)
        os.kill(before[0], signal.SIGKILL)
        load.wait_for(lambda: len(set(deployed.workers()) - {before[0]}) == len(before))
        at = len(load.replies)
        load.wait_for(lambda: len(load.replies) > at + 50)
    only_so_many_came_too_late(load, clients)


def test_of_a_node_that_is_lost_no_more_than_its_requests_are_tried_again(
    deployed: Deployed, photos: list[bytes]
) -> None:
    """By the proxy; who is not answered then is told to come again."""
    clients = 4
    with Load(deployed.post, photos, clients) as load:
        load.wait_for(lambda: len(load.replies) > 50)
        deployed.cluster.nodes[1].kill()
        at = len(load.replies)
        load.wait_for(lambda: len(load.replies) > at + 200)
    only_so_many_came_too_late(load, clients)
