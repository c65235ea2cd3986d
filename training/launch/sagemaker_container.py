"""`train`, which SageMaker runs in a container: this host's part of a training job.

The files of the job become the variables that SageMaker's toolkit would set, which `fit` reads, and
this process becomes torchrun, with a process for each GPU of each host. Contract: "How Amazon
SageMaker AI Provides Training Information" in its Developer Guide; below /opt/ml lie

    input/config/resourceconfig.json      current_host, hosts, network_interface_name
    input/config/hyperparameters.json     texts by name, where there are any
    input/config/inputdataconfig.json     channels by name, where there are any: input/data/NAME
    model/  output/data/  checkpoints/    what is kept
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bintally.errors import UsageError
from bintally.terminal.command import run_command

__all__ = ["read_job"]

RESOURCES = Path("input/config/resourceconfig.json")
HYPERPARAMETERS = Path("input/config/hyperparameters.json")
CHANNELS = Path("input/config/inputdataconfig.json")


def read_job(environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Options of torchrun, and variables for `fit`, of the job that this host belongs to.

    `SAGEMAKER_BASE_DIR` is where SageMaker's toolkits look in place of /opt/ml. Raises `UsageError`
    where no job's files are there.
    """
    base = Path(environment.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
    resources = _read(base / RESOURCES)
    try:
        hosts = sorted(resources["hosts"])
        rank = hosts.index(resources["current_host"])
        interface = resources["network_interface_name"]
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{base / RESOURCES}: does not say what this host is: {error}") from error
    options = [f"--nnodes={len(hosts)}", f"--node-rank={rank}", f"--master-addr={hosts[0]}"]
    variables = {
        "SM_MODEL_DIR": str(base / "model"),
        "SM_OUTPUT_DATA_DIR": str(base / "output/data"),
        "SM_HPS": json.dumps(_read(base / HYPERPARAMETERS)),
        # A host has other networks as well, on which its peers are not.
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
    }
    for name in _read(base / CHANNELS):
        variables[f"SM_CHANNEL_{name.upper()}"] = str(base / "input/data" / name)
    return options, variables


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        if file.name == RESOURCES.name:
            raise UsageError(
                f"{file}: no such file; `train` is for SageMaker, `bintally fit` trains elsewhere"
            ) from error
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error


def _train(words: Sequence[str]) -> None:
    options, variables = read_job(os.environ)
    import torch

    os.environ.update(variables)
    checkpoints = Path(variables["SM_MODEL_DIR"]).parent / "checkpoints"
    options += [f"--nproc-per-node={max(1, torch.cuda.device_count())}", "-m", "--"]
    command = ["bintally", "fit", "--run", str(checkpoints), *words]
    # In this process's place: SageMaker stops it with SIGTERM, which saves.
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *options, *command])


if __name__ == "__main__":
    sys.exit(run_command(lambda: _train(sys.argv[1:])))
