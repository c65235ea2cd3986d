"""What an installation may be relied on for: the wheel holds everything and runs on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = [
    name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: a build leaves folders in its source.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, source / package, ignore=ignored)
    # Not isolated: what builds is installed here, and nothing is downloaded.
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_wheel_holds_every_module_template_and_type_marker(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    patterns = ["*.py", *PROJECT["tool"]["setuptools"]["package-data"]["*"]]
    wanted = {
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for pattern in patterns
        for path in (REPOSITORY / package).rglob(pattern)
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    assert {name for name in held if ".dist-info/" not in name} == wanted


PROGRAM = """
import bintally
loader = bintally.Loader("shards", batch_size=8, image_size=32)
for images, labels in loader:
    print(len(images), len(labels))
    break
photo = next((__import__("pathlib").Path("bucket") / "bin-images").glob("*.jpg")).read_bytes()
(answer,) = bintally.Counter("run/best.pt").count([photo])
print("one")
"""


@pytest.mark.slow
def test_it_runs_beside_packages_that_are_called_like_its_own(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    pip("--python", python, "install", "--no-deps", wheel)
    # The dependencies are those of the tests; a path in a .pth brings no editable checkout along.
    (own,) = environment.glob("lib/python*/site-packages")
    shared = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))

    bintally = str(environment / "bin/bintally")

    def run(*command: str) -> str:
        result = subprocess.run(
            [*([] if command[0] == bintally else [python]), *command],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    for package in PACKAGES:
        file = run("-c", f"import {package}; print({package}.__file__)").strip()
        assert Path(file).is_relative_to(own), "not the checkout's"
    # A folder with packages of its own that are called like ours.
    for package in ("sharding", "training", "tuning", "serving"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('not ours')")
    run(bintally, "synthesize", "--output", "bucket", "--images", "40")
    run(bintally, "build", "--source", "bucket", "--output", "shards")
    run(bintally, "report", "shards", "--output", "report")
    assert list((tmp_path / "report").glob("*.html")), "written from a template of the wheel"
    small = ("--backbone", "timm:test_resnet", "--weights", "none", "--image-size", "32")
    fit = (bintally, "fit", "--shards", "shards", "--run", "run", "--batch-size", "8", *small)
    run(*fit, "--epochs", "1")
    run(bintally, "evaluate", "--checkpoint", "run/best.pt", "--shards", "shards")
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run("program.py").split() == ["8", "8", "one"]
