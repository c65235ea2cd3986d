"""What the sharding benchmark may be relied on for: its servers, its catalog, its rows."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from benchmarks.environment import Environment
from benchmarks.measure import Contestant, Measurement, Result, Role
from benchmarks.results import Metric
from benchmarks.sharding.benchmark import NOT_INSTALLED, ShardingReport, run
from benchmarks.sharding.contestants import run_process
from benchmarks.sharding.driver import (
    InventedBucket,
    describe_driver,
    describe_growth,
    grow,
    measure_driver,
    prepare_bucket,
)
from benchmarks.sharding.invented import NUM_IMAGES, class_totals, invent_source
from benchmarks.sharding.plan import MANY_IMAGES, describe_plan, measure_plan
from benchmarks.sharding.server import (
    DistantServer,
    Listing,
    Nginx,
    find_nginx,
)
from bintally.dataset.photo import prepare_photo
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.columns import whole
from sharding.planning.groups import neighbour_groups
from sharding.source.abid.metadata import parse_metadata
from sharding.source.rows import source_schema
from tests.conftest import Command

KEYS = [*(f"bin-images/{n:05d}.jpg" for n in range(1, 2502)), "metadata/00001.json"]


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """Of a bucket of `KEYS`, whose objects have one byte, two and so on."""
    folder = tmp_path_factory.mktemp("listing") / "b"
    for size, key in enumerate(KEYS, 1):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(bytes(size))
    return Listing(folder)


def pages(listing: Listing, **query: str) -> list[tuple[list[str], bool]]:
    """What a client gets that follows the tokens, page by page: keys, and whether there is more."""
    import botocore.session
    from botocore.parsers import RestXMLParser

    # botocore's own parser reads the answer, as for a peer.
    model = botocore.session.get_session().get_service_model("s3")
    shape = model.operation_model("ListObjectsV2").output_shape
    assert shape is not None
    found, token = [], None
    while True:
        asked = {name: [value] for name, value in query.items()}
        if token:
            asked["continuation-token"] = [token]
        answer = {"body": listing.answer(asked), "headers": {}, "status_code": 200}
        parsed = RestXMLParser().parse(answer, shape)
        contents = parsed.get("Contents", [])
        for item in contents:
            assert item["Size"] == KEYS.index(item["Key"]) + 1
            assert item["ETag"] == listing.etags[item["Key"]]
        found.append(([item["Key"] for item in contents], parsed["IsTruncated"]))
        token = parsed.get("NextContinuationToken")
        if not token:
            return found


def test_listing_gives_every_object_of_a_prefix_once_in_pages_of_a_thousand(
    listing: Listing,
) -> None:
    found = pages(listing, prefix="bin-images/")
    assert [(len(page), truncated) for page, truncated in found] == [
        (1000, True),
        (1000, True),
        (501, False),
    ]
    assert [key for page, _ in found for key in page] == KEYS[:-1]


def test_listing_starts_after_a_key_and_holds_no_more_than_asked_for(listing: Listing) -> None:
    after = {"prefix": "bin-images/", "start-after": "bin-images/02499.jpg", "max-keys": "1"}
    assert pages(listing, **after) == [
        (["bin-images/02500.jpg"], True),
        (["bin-images/02501.jpg"], False),
    ]
    # ABID's ranges begin at keys that need not exist.
    found = pages(listing, prefix="metadata/", **{"start-after": "metadata/00"})
    assert found == [(KEYS[-1:], False)]


def test_listing_of_nothing_is_an_empty_page(listing: Listing) -> None:
    assert pages(listing, prefix="nothing/") == [([], False)]


@pytest.fixture
def small_bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "buckets/photos"
    for path, data in {"bin-images/1.jpg": b"photo", "metadata/1.json": b"{}"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def check_as_s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own client lists and fetches, and finds sizes and ETags to agree."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    place = open_place("s3://photos")
    fetched = {entry.path: place.fetch(entry) for entry in place.entries()}
    assert fetched == {"bin-images/1.jpg": b"photo", "metadata/1.json": b"{}"}
    with pytest.raises(FileNotFoundError):
        place.get("bin-images/2.jpg")


def test_distant_server_is_s3_to_our_client_and_takes_its_time(
    small_bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DistantServer(small_bucket, latency_s=0.05) as server:
        check_as_s3(server.endpoint, monkeypatch)
    asked, answered = server.photos[0]
    assert 0.05 <= answered - asked < 1


def test_nginx_is_s3_to_our_client(
    small_bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nginx_or_skip()
    with Nginx(small_bucket.parent, tmp_path / "nginx") as server:
        check_as_s3(server.endpoint, monkeypatch)
        url = f"{server.endpoint}/photos/bin-images/1.jpg"
        with urllib.request.urlopen(url) as answer:
            assert answer.headers["ETag"] == Listing(small_bucket).etags["bin-images/1.jpg"]
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.endpoint}/other?list-type=2")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_without_nginx_the_benchmark_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="apt-get install nginx-light"):
        run(quick=True, output=tmp_path, peers_python=None)


def test_interpreter_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    nginx_or_skip()
    with pytest.raises(UsageError, match="--peers-python"):
        run(quick=True, output=tmp_path, peers_python=tmp_path / "no-python")


def test_catalog_has_the_classes_of_abid() -> None:
    totals = class_totals(NUM_IMAGES)
    assert totals[:6] == [9_701, 41_147, 76_863, 90_058, 80_550, 62_448]
    assert (len(totals), sum(totals)) == (21, NUM_IMAGES)
    assert min(totals) > 0


def test_source_deals_out_its_classes_and_runs() -> None:
    table = invent_source(20_000).table
    counts = Counter(table["count"].to_pylist())
    assert [counts[count] for count in range(21)] == class_totals(20_000)
    groups = Counter(neighbour_groups(whole(table["id"]), whole(table["skus"])).tolist())
    in_runs = sum(size for size in groups.values() if size > 1)
    assert in_runs / len(table) == pytest.approx(0.73, abs=0.02)
    products = pc.list_value_length(table["skus"])
    assert pc.mean(products).as_py() == pytest.approx(2.64, abs=0.05)  # ABID's first 8,000.


def test_source_is_as_a_build_reads_it() -> None:
    table = invent_source(100_002).table
    assert table.schema == source_schema()
    ids = table["id"].to_pylist()
    assert ids == sorted(ids), "as text: 100000 comes before 10001"
    assert {*ids} == {f"{number:05d}" for number in range(1, 100_003)}


def test_invented_bucket_tells_the_same_as_the_invented_source(tmp_path: Path) -> None:
    prepare_bucket(tmp_path, 500)
    bucket = InventedBucket(500, tmp_path)
    entries = {entry.path: entry for entry in bucket.entries()}
    assert len(entries) == 1000
    sizes = []
    for row in invent_source(500).table.to_pylist():
        prepare_photo(bucket.fetch(entries[row["path"]]), None)
        entry = entries[f"metadata/{row['id']}.json"]
        data = bucket.fetch(entry)
        assert hashlib.md5(data).hexdigest() == entry.version, "the cache keeps it"
        known = parse_metadata(data)
        assert (known.count, [*known.skus]) == (row["count"], row["skus"])
        assert (
            sum(p["quantity"] for p in json.loads(data)["BIN_FCSKU_DATA"].values()) == known.count
        )
        sizes.append(len(data))
    assert 1900 < statistics.mean(sizes) < 2300, "of ABID's size"


def test_plan_is_measured() -> None:
    measured = measure_plan(2000, 1)
    assert 0 < measured["plan_s"] < measured["first_plan_s"]
    assert measured["peak_memory_mib"] > measured["rows_mib"] > 0
    assert "2,000 rows" in describe_plan(measured)


def test_driver_is_measured_in_its_phases() -> None:
    measured = measure_driver(1500)
    phases = ("listing", "metadata", "plan", "shards", "finish")
    assert all(measured[f"{phase}_s"] > 0 for phase in phases)
    peaks = [measured[f"{phase}_mib"] for phase in phases]
    # The system counts pages in batches.
    assert peaks == pytest.approx(sorted(peaks), rel=0.05)
    assert peaks[-1] == pytest.approx(measured["peak_memory_mib"], rel=0.05)
    assert "1,500 photos with 2 workers" in describe_driver(measured)


def test_growth_is_a_line_through_both_plans_and_what_the_build_took_more() -> None:
    plan = {"images": 1_000_000, "plan_s": 3.0, "catalog_s": 1.0, "peak_memory_mib": 600}
    large = {"images": 11_000_000, "plan_s": 30.0, "catalog_s": 24.0, "peak_memory_mib": 5600}
    phases = {"listing_s": 9.0, "plan_s": 4.0, "finish_s": 1.0}
    driver = {"images": 1_000_000, **phases, "peak_memory_mib": 700}
    grown = grow(plan, large, driver)
    assert grown == {"start_s": -1, "s_per_million": 15, "start_mib": 100, "mib_per_million": 600}
    assert "100 million 25 min and 58.7 GiB" in describe_growth(grown)
    assert "no memory" in grow(plan, {"error": "no memory"}, driver)["error"]


def test_process_is_measured_with_its_children() -> None:
    code = (
        "import multiprocessing, time\n"
        "def hold():\n"
        "    data = bytearray(b'x' * 300_000_000); end = time.time() + 1\n"
        "    while time.time() < end: pass\n"
        "child = multiprocessing.get_context('fork').Process(target=hold)\n"
        "child.start(); child.join()\n"
    )
    usage = run_process([sys.executable, "-c", code], "http://127.0.0.1:9", {})
    assert usage.wall_s > 1
    assert usage.cpu_s > 0.3
    assert 280 < usage.peak_mib < 600


def test_process_that_fails_gives_its_last_line() -> None:
    with pytest.raises(WorkError, match=r"exit code 1: .*no good"):
        run_process([sys.executable, "-c", "raise ValueError('no good')"], "http://127.0.0.1:9", {})


def unmeasured() -> Measurement:
    return {}


def result(name: str, role: Role, rounds: list[Mapping[str, float]], error: str | None) -> Result:
    run_: Callable[[], Measurement] = unmeasured
    return Result(Contestant(name, run_, {}, role), rounds, error)


def test_missing_peer_is_a_row_and_not_a_failure() -> None:
    report = ShardingReport(
        name="sharding",
        title="Shards",
        metrics=(Metric("photos_per_s", "photos/s"),),
        workload={},
        notes=(),
        num_rounds=1,
        quick=True,
        environment=Environment("C", 2, 8.0, None, "L", "3", {}, None, "2026", "python"),
        results=[
            result("ours", "ours", [{"photos_per_s": 200.0}], None),
            result("loop", "peer", [{"photos_per_s": 100.0}], None),
            result("img2dataset", "peer", [], NOT_INSTALLED),
        ],
        distant={"error": "no answer"},
        plan={"error": "no memory"},
        large_plan={"error": "no memory"},
        driver={"error": "no room"},
    )
    assert report.table().splitlines()[2:] == [
        "| **ours** | 200 (200–200) | 2.00 |",
        "| loop | 100 (100–100) | 1.00 |",
        "| img2dataset | not installed | – |",
    ]
    page = replace(report, quick=False).to_markdown()
    assert "error: no answer" in page
    assert "error: no memory" in page
    assert "error: no room" in page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_run_leaves_a_whole_report(run: Command, tmp_path: Path) -> None:
    nginx_or_skip()
    done = run("benchmarks", "sharding", "--quick", "--output", tmp_path / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {f"sharding.{kind}" for kind in ("json", "md", "png", "svg")}
    report = json.loads((tmp_path / "results/sharding.json").read_text())
    rows = {entry["name"]: entry for entry in report["contestants"]}
    assert rows["ours"]["metrics"]["photos_per_s"]["median"] > 0
    assert rows["webdataset loop"]["ratio"] == 1
    for peer in ("img2dataset, decoded", "img2dataset, as they are", "MDSWriter loop"):
        assert rows[peer]["error"] == "not installed"
    assert 0 < report["distant_server"]["share"] <= 1
    assert report["plan"]["images"] == report["driver"]["images"] == NUM_IMAGES // 10
    assert report["large_plan"]["images"] == MANY_IMAGES // 10
    assert report["growth"]["mib_per_million"] > 0


def nginx_or_skip() -> None:
    try:
        find_nginx()
    except UsageError:
        pytest.skip("nginx is not installed")
