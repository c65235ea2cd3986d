"""The README keeps its word: its commands run as they are written, its numbers are measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bintally.storage.opening import open_place
from tests.conftest import REPOSITORY, SEED, copy

README = (REPOSITORY / "README.md").read_text()
BLOCK = re.compile(r"(?:^<!-- not run: (.*?) -->\n)?^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A comment before a block says why it is not run."""
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPACE = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""What `space.toml` holds."""
STAGE_2 = README.index("### 2.")
# What torchvision's download of these weights leaves behind; the file is not ImageNet's here.
RESNET50 = "hub/checkpoints/resnet50-11ad3fa6.pth"


@dataclass(frozen=True)
class Block:
    """Commands of the README."""

    commands: str
    not_run: str | None
    position: int

    def lines(self) -> Iterator[list[str]]:
        """Its commands, in words."""
        for line in self.commands.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


BLOCKS = [Block(match[2], match[1], match.start()) for match in BLOCK.finditer(README)]


@pytest.fixture
def folder(
    s3: str, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where a reader is: the bucket of the README is there, a small one, and a photo."""
    import boto3

    client = boto3.client("s3")
    for name in ("aft-vbi-pds", "mine"):
        client.create_bucket(Bucket=name)
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*"}
    resource = {"Resource": ["arn:aws:s3:::aft-vbi-pds", "arn:aws:s3:::aft-vbi-pds/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everyone | resource]})
    client.put_bucket_policy(Bucket="aft-vbi-pds", Policy=policy)
    copy(open_place(bucket), open_place("s3://aft-vbi-pds"))
    photo = (bucket / "bin-images/00001.jpg").read_bytes()
    (tmp_path / "photo.jpg").write_bytes(photo)
    open_place("s3://mine").put("photos/00001.jpg", photo)
    for space in SPACE.findall(README):
        (tmp_path / "space.toml").write_text(space)
    # What an activated environment has: this one's, wherever it is called from.
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").touch()
    for name, words in {"python": "", "bintally": "-m bintally"}.items():
        program = binaries / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield tmp_path
    for name in ("aft-vbi-pds", "mine"):
        empty(name)
        client.delete_bucket(Bucket=name)


def empty(bucket: str) -> None:
    place = open_place(f"s3://{bucket}")
    for entry in place.entries():
        place.delete(entry.path)


def run(blocks: list[Block], folder: Path) -> None:
    assert blocks
    for block in blocks:
        command = ["bash", "-euo", "pipefail", "-c", block.commands]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, block.commands + result.stdout + result.stderr


@pytest.mark.slow
def test_the_commands_of_sharding_run_as_they_are_written(folder: Path) -> None:
    run([b for b in BLOCKS if b.not_run is None and b.position < STAGE_2], folder)
    assert (folder / "shards/dataset.json").is_file()
    assert (folder / "small/dataset.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_commands_run_as_they_are_written(folder: Path) -> None:
    import torch
    from torchvision.models import resnet50

    from synthetic.synthesize import synthesize

    # Enough for a batch of the preset's.
    empty("aft-vbi-pds")
    synthesize(open_place("s3://aft-vbi-pds"), images=350, seed=SEED)
    weights = folder / "torch" / RESNET50
    weights.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), weights)
    run([block for block in BLOCKS if block.not_run is None], folder)
    assert (folder / "runs/first/report.html").is_file()
    assert (folder / "counter.onnx").is_file()
    assert (folder / "photos.parquet").exists()
    assert (folder / "searches/first/report.html").is_file()
    (program,) = PYTHON.findall(README)
    (folder / "program.py").write_text(program)
    result = subprocess.run(["python", "program.py"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_is_not_run_is_the_clouds_the_gpus_or_runs_elsewhere() -> None:
    left_out = [block for block in BLOCKS if block.not_run is not None]
    assert all(block.not_run for block in left_out)
    assert len(left_out) < len(BLOCKS)


def calls(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Our commands in a line, each with its flags: `fit` under torchrun, `search` in `submit`."""
    own = words[words.index("bintally") + 1 :]
    for part in " ".join(own).split(" -- "):
        command, *more = part.split()
        yield command, [word for word in more if word.startswith("--")]


def test_every_flag_of_the_readme_exists() -> None:
    helps: dict[str, str] = {}
    lines = [words for block in BLOCKS for words in block.lines() if "bintally" in words]
    for call, flags in (found for words in lines for found in calls(words)):
        if call not in helps:
            command = [sys.executable, "-m", "bintally", call, "--help"]
            result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            assert result.returncode == 0, call + result.stderr
            helps[call] = result.stdout
        for flag in flags:
            assert re.search(rf"{flag}\b", helps[call]), f"{call} {flag}"
    assert {"build", "fit", "search", "submit", "serve"} <= helps.keys()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)", README, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert target[1:] in slugs, target
        elif not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target


def test_every_number_is_a_results_files(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.readme import run as renew

    assert renew(check=True) == 0, capsys.readouterr().err
