"""Other people's machines: closed streams, ASCII, few files, long names, no home, a notebook."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bintally.machine
from bintally.storage.cache import cache_folder
from tests.conftest import REPOSITORY


def python(code: str, *, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that a shell starts, after what it does `before`."""
    return subprocess.run(
        ["bash", "-c", f'{before} exec "$0" -c "$1"', sys.executable, code],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_no_character_ends_a_command_on_an_ascii_terminal() -> None:
    code = "from bintally.terminal.command import prepare_process as p; p(); print('an id: é…')"
    done = python(code, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stdout) == (0, "an id: \\xe9\\u2026\n"), done.stderr


@pytest.mark.parametrize("closed", ["exec 2>&-;", "exec 1>&-;", "exec 0<&- 1>&- 2>&-;"])
def test_closed_streams_end_no_command_and_nothing_is_written_into_a_file(
    closed: str, tmp_path: Path
) -> None:
    code = f"""
import os, sys
from bintally.errors import UsageError
from bintally.terminal.command import prepare_process, run_command
from bintally.terminal.progress import Progress, say

def work():
    file = open({str(tmp_path / "file")!r}, "w")
    with Progress("work", 1, "things") as progress:
        progress.update()
    say("said")
    print("printed")
    for number in (1, 2):
        os.write(number, b"from the depths of a library")
    raise UsageError("wrong")

prepare_process()
sys.exit(run_command(work))
"""
    done = python(code, before=closed)
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "file").read_bytes() == b""


def test_as_many_files_may_be_open_as_the_machine_allows() -> None:
    code = "from bintally.machine import open_files_limit; print(open_files_limit())"
    assert python(code, before="ulimit -Sn 100; ulimit -Hn 512;").stdout == "512\n"
    code = "from bintally.dataset.shard_files import OPEN_AT_ONCE; print(OPEN_AT_ONCE)"
    assert int(python(code, before="ulimit -n 256;").stdout) <= 64


@pytest.mark.slow
def test_threads_that_wait_leave_their_core_to_a_neighbour() -> None:
    command = 'exec "$0" -m training evaluate --checkpoint none --shards none'
    for told, policy in (("", "PASSIVE"), ("OMP_WAIT_POLICY=active", "ACTIVE")):
        done = subprocess.run(
            ["bash", "-c", f"export OMP_DISPLAY_ENV=true {told}; {command}", sys.executable],
            cwd=REPOSITORY,
            env={name: v for name, v in os.environ.items() if name != "OMP_WAIT_POLICY"},
            capture_output=True,
            text=True,
        )
        # PyTorch's OpenMP says it when it is loaded: from then on no variable changes anything.
        assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr, done.stderr


def test_cores_follow_the_affinity() -> None:
    code = (
        "import os; from bintally.machine import num_cores; os.sched_setaffinity(0, "
        "[min(os.sched_getaffinity(0))]); print(num_cores())"
    )
    assert python(code).stdout == "1\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/../../pod\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "4:cpu,cpuacct:/x\n1:memory:/y\n",
            {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
        ("", {}, math.inf),
    ],
)
def test_cores_follow_the_quota_of_the_cgroup(
    groups: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    (tmp_path / "groups").write_text(groups)
    assert bintally.machine._quota(tmp_path / "fs", tmp_path / "groups") == cores


def test_workers_start_however_long_the_name_of_the_folder_for_temporary_files(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    code = """
from bintally.dataset.manifest import Shard
from bintally.storage.opening import open_place
from sharding.distribute import Processes
from sharding.integrity import IntegrityJob

if __name__ == "__main__":
    jobs = [IntegrityJob(open_place("/"), Shard("no.tar", "no.idx", 0, 0, "", {}))] * 2
    print(len(list(Processes(2).run(jobs))))
"""
    done = python(code, TMPDIR=str(long))
    assert done.stdout == "2\n", done.stderr


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "file/cache"))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_a_user_without_a_home_has_a_cache(tmp_path: Path) -> None:
    code = "from bintally.storage.cache import cache_folder; print(cache_folder())"
    nobody = "unset HOME XDG_CACHE_HOME BINTALLY_CACHE;"
    if subprocess.run(["unshare", "--user", "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        ["unshare", "--user", "--map-user=12345", "bash", "-c", f'{nobody} exec "$0" -c "$1"',
         sys.executable, code],
        cwd=REPOSITORY, env=os.environ | {"TMPDIR": "/tmp"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("/tmp/bintally-"), done.stderr
    Path(done.stdout.strip()).rmdir()


def test_a_notebooks_backend_does_not_stand_in_the_way_of_a_plot() -> None:
    code = """
import os
from bintally.terminal.plots import svg

print(str(svg("a plot", (2, 2), lambda figure: figure.add_subplot()))[:4])
print(os.environ["MPLBACKEND"])
"""
    done = python(code, MPLBACKEND="module://a_notebook.backend_inline")
    assert done.stdout == "<svg\nmodule://a_notebook.backend_inline\n", done.stderr


@pytest.mark.slow
def test_a_read_only_installation_computes(tmp_path: Path) -> None:
    """What Numba compiles is kept elsewhere then."""
    import shutil

    if subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    copied = tmp_path / "code"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "bintally", copied / "bintally", ignore=leave_out)
    code = """
import numpy as np
from bintally.loading.resize import resize_into

four = np.ones(4, np.float32)
resize_into(np.ones((8, 24), np.uint8), False, four, four, np.zeros((4, 12), np.float32))
print("resized")
"""
    words = (
        f"mount --bind {copied} {copied} && mount -o remount,bind,ro {copied} && cd {copied} && "
        'HOME=/proc/nowhere exec "$0" -c "$1"'
    )
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", words, sys.executable, code],
        env=os.environ | {"PYTHONPATH": str(copied), "BINTALLY_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "resized\n", done.stderr
    assert list((tmp_path / "cache/numba").rglob("*.nbi"))
