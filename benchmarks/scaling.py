"""Scaling on paper: what bounds each stage for N photos on M machines with C cores and G GPUs.

`python -m benchmarks scaling` prints it. Every constant is measured here or published, and says
where. What happens at once is bounded by the slowest of it, what happens in turn adds up; nothing
is taken off for stragglers, failures or start-up, so that what comes out is what is possible at
best. `check` compares the model with what was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.numbers import HARDWARE, RESULTS, Numbers, duration, read_results

__all__ = [
    "SCENARIOS",
    "TOLERANCE",
    "Check",
    "Constants",
    "Scenario",
    "Time",
    "check",
    "epoch",
    "read_numbers",
    "rows",
    "run",
    "sharding",
    "tabulate",
    "to_markdown",
]

TOLERANCE = 0.4
"""How far a prediction may be from what was measured, as a share of the latter.

Cores that serve the photos while they read them are half of what is off; the model does not know
of them."""
LISTED_AT_A_TIME = 16
"""Ranges of keys (`bintally.storage.s3.prefix`)."""
GRADIENT_BYTES = 4
"""Gradients are reduced in float32."""
BATCH_PER_GPU = 256

NAMES = {
    "photo_bytes": "published/abid_photo_bytes",
    "json_bytes": "published/abid_json_bytes",
    "s3_gets_per_s": "published/s3_gets_per_s",
    "s3_first_byte_s": "published/s3_first_byte_s",
    "page_keys": "published/s3_page_keys",
    "shard_cpu_s": "sharding/ours/cpu_s_per_1000",
    "driver_start_s": "sharding/growth/start_s",
    "driver_s": "sharding/growth/s_per_million",
    "driver_start_mib": "sharding/growth/start_mib",
    "driver_mib": "sharding/growth/mib_per_million",
    "decode_cpu_s": "loader/CPU limit/cpu_s_per_1000",
    "features_cpu_s": "measured/lite0_bf16_ms",
    "gpu_per_s": "published/a100_resnet50_per_s",
    "parameters": "published/resnet50_parameters",
}
"""Where each constant is found."""


@dataclass(frozen=True)
class Constants:
    """What the model is made of. Times are of one photo, on one core where they are CPU time."""

    photo_bytes: float
    json_bytes: float
    s3_gets_per_s: float
    """For each prefix that S3 has divided a bucket into."""
    s3_first_byte_s: float
    page_keys: float
    shard_cpu_s: float
    """Fetching a photo and its JSON, decoding, writing."""
    driver_start_s: float
    """What the driver, one process, takes for a build without photos."""
    driver_s: float
    """And for each photo: listing it, making a row of it, its part of plan and catalog."""
    driver_start_mib: float
    driver_mib: float
    decode_cpu_s: float
    """Decoding and resizing a photo of ABID's size to 224×224."""
    features_cpu_s: float
    """EfficientNet-Lite0, frozen, in bf16."""
    gpu_per_s: float
    """Photos of ResNet-50, all of it trained."""
    gradient_bytes: float

    @classmethod
    def of(cls, numbers: Numbers) -> Constants:
        """Read from the results; `UnknownNumber` where one is missing."""
        found = {key: numbers.get(name) for key, name in NAMES.items()}
        for key in ("driver_s", "driver_mib"):
            found[key] /= 1e6
        # Seconds for 1,000 photos, and milliseconds for one, are the same.
        for key in ("shard_cpu_s", "decode_cpu_s", "features_cpu_s"):
            found[key] /= 1000
        gradient_bytes = found.pop("parameters") * GRADIENT_BYTES
        return cls(**found, gradient_bytes=gradient_bytes)


@dataclass(frozen=True)
class Scenario:
    """Photos, and what there is to work with."""

    name: str
    photos: int
    machines: int
    cores: int
    """Of each machine."""
    gpus: int
    """A100s of each machine; without any, a frozen backbone's features are computed instead."""
    gbit_per_s: float
    """Of each machine, each way."""
    partitions: int
    """What S3 has divided each of the bucket's two folders into."""

    @property
    def bytes_per_s(self) -> float:
        """Of all machines, each way."""
        return self.machines * self.gbit_per_s * 1e9 / 8


SCENARIOS = (
    Scenario("a laptop", 10_000, 1, 8, 0, 0.1, 1),
    Scenario("ABID, one machine", 535_234, 1, 16, 1, 10, 1),
    Scenario("ABID, eight machines", 535_234, 8, 16, 1, 10, 1),
    Scenario("10 million", 10_000_000, 4, 96, 8, 100, 4),
    Scenario("100 million", 100_000_000, 16, 96, 8, 100, 16),
    Scenario("a billion", 1_000_000_000, 64, 96, 8, 100, 64),
)
"""From a bucket of a laptop's size to one that nobody has."""


@dataclass(frozen=True)
class Time:
    """How long a stage takes, and what decides it."""

    seconds: float
    bound: str

    @classmethod
    def slowest(cls, terms: Mapping[str, float]) -> Time:
        """Of what goes on at once."""
        bound = max(terms, key=lambda name: terms[name])
        return cls(terms[bound], bound)

    @classmethod
    def in_turn(cls, *times: Time) -> Time:
        """Of what comes one after the other: what takes longest decides it."""
        longest = max(times, key=lambda time: time.seconds)
        return cls(sum(time.seconds for time in times), longest.bound)


def sharding(scenario: Scenario, constants: Constants) -> Time:
    """A bucket on S3 to shards on S3: it is listed, then come metadata, plan and photos.

    Listing, plan and catalog are the work of one process, the driver.
    """
    s, c = scenario, constants
    gets_s = s.photos / (c.s3_gets_per_s * s.partitions)
    # The two folders are listed side by side.
    listing_s = s.photos / c.page_keys / LISTED_AT_A_TIME * c.s3_first_byte_s
    return Time.in_turn(
        Time(listing_s, "S3 listings"),
        Time.slowest({"S3 requests": gets_s, "network": s.photos * c.json_bytes / s.bytes_per_s}),
        Time(c.driver_start_s + s.photos * c.driver_s, "driver, one process"),
        Time.slowest(
            {
                "S3 requests": gets_s,
                "network": s.photos * c.photo_bytes / s.bytes_per_s,
                "CPU": s.photos * c.shard_cpu_s / (s.machines * s.cores),
            }
        ),
    )


def epoch(scenario: Scenario, constants: Constants) -> Time:
    """All photos once: ResNet-50 in bf16 on GPUs, or a frozen backbone's features on cores.

    Shards come over the network, for a cache that holds them all is there on small datasets only;
    each machine takes its own lanes, as training does. Gradients are reduced around a ring of
    machines, 2 (M - 1) / M times their bytes through each one's network, a step of 256 photos a
    GPU at a time, while the GPU computes.
    """
    s, c = scenario, constants
    decoding_s = s.photos * c.decode_cpu_s / (s.machines * s.cores)
    read_s = s.photos * c.photo_bytes / s.bytes_per_s
    if not s.gpus:
        # Decoding and the model have the same cores.
        computing_s = decoding_s + s.photos * c.features_cpu_s / (s.machines * s.cores)
        return Time.slowest({"network": read_s, "CPU (model)": computing_s})
    num_gpus = s.machines * s.gpus
    steps = s.photos / (BATCH_PER_GPU * num_gpus)
    reduced_bytes = 2 * (s.machines - 1) / s.machines * c.gradient_bytes
    return Time.slowest(
        {
            "decoding": decoding_s,
            "network": read_s,
            "GPU": s.photos / (c.gpu_per_s * num_gpus),
            "all-reduce": steps * reduced_bytes / (s.bytes_per_s / s.machines),
        }
    )


def tabulate(numbers: Numbers) -> dict[str, Any]:
    """What the README draws from: the scenarios' rows, and how far the worst check is off."""
    return {"scenarios": rows(numbers), "worst": max(abs(one.off) for one in check(numbers))}


def rows(numbers: Numbers) -> list[dict[str, Any]]:
    """A row for each scenario: times, what decides them, memory, requests in flight."""
    constants = Constants.of(numbers)
    found: list[dict[str, Any]] = []
    for scenario in SCENARIOS:
        shards, trained = sharding(scenario, constants), epoch(scenario, constants)
        found.append(
            {
                "name": scenario.name,
                "photos": scenario.photos,
                "machines": f"{scenario.machines} × {scenario.cores}",
                "gpus": scenario.machines * scenario.gpus,
                "network": f"{scenario.gbit_per_s:g} Gbit/s",
                "partitions": scenario.partitions,
                "sharding_s": shards.seconds,
                "sharding_bound": shards.bound,
                "epoch_s": trained.seconds,
                "epoch_bound": trained.bound,
                "plan_s": constants.driver_start_s + scenario.photos * constants.driver_s,
                "plan_memory_gib": (
                    constants.driver_start_mib + scenario.photos * constants.driver_mib
                )
                / 2**10,
                # Little's law.
                "in_flight": constants.s3_gets_per_s
                * scenario.partitions
                * constants.s3_first_byte_s,
            }
        )
    return found


def to_markdown(numbers: Numbers) -> str:
    """The table, in which each time stands beside what decides it."""
    lines = [
        "| photos | machines × cores | GPUs | network, each | S3 partitions | shards in | "
        "bound by | an epoch in | bound by |",
        "|---|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in rows(numbers):
        named = row["name"] if "million" in row["name"] or "billion" in row["name"] else None
        cells = [
            named or f"{row['photos']:,} ({row['name']})",
            row["machines"],
            str(row["gpus"] or "–"),
            row["network"],
            str(row["partitions"]),
            duration(row["sharding_s"]),
            row["sharding_bound"],
            duration(row["epoch_s"]),
            row["epoch_bound"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Check:
    """What the model says of a job that was measured."""

    job: str
    predicted: float
    measured: float
    """Photos a second."""

    @property
    def off(self) -> float:
        """As a share of what was measured."""
        return self.predicted / self.measured - 1


def check(numbers: Numbers) -> list[Check]:
    """The jobs measured here on 2 cores, beside what the model says of them."""
    c = Constants.of(numbers)
    num_cores = numbers.get("sharding/environment/num_cores")
    allowed = numbers.get("sharding/distant_server/connections") / numbers.get(
        "sharding/distant_server/latency_s"
    )
    cpu_per_s = num_cores / c.shard_cpu_s
    checks = [
        Check("shards, a server beside it", cpu_per_s, numbers.get("sharding/ours/steady_per_s")),
        Check(
            "shards, a server 100 ms away",
            min(cpu_per_s, allowed),
            numbers.get("sharding/distant_server/photos_per_s"),
        ),
        Check(
            "loader, CPU engine",
            numbers.get("loader/environment/num_cores") / c.decode_cpu_s,
            numbers.get("loader/ours, CPU engine/photos_per_s"),
        ),
    ]
    if "training" in numbers.files:
        # Where there is no GPU, loader and model take turns on the cores.
        loader, model = (
            numbers.get(f"training/ours, {part} only/photos_per_s") for part in ("loader", "model")
        )
        together = 1 / (1 / loader + 1 / model)
        end_to_end = numbers.get("training/ours, end to end/photos_per_s")
        checks.append(Check("training, end to end", together, end_to_end))
    return checks


def read_numbers(results: Path = RESULTS, hardware: str = HARDWARE) -> Numbers:
    """All that lies in the results of some hardware, what is published, and the model's."""
    files = read_results(results, hardware)
    return Numbers({**files, "scaling": tabulate(Numbers(files))})


def run() -> int:
    """Prints the table, the checks and the constants' sources; 1 where a check is too far off."""
    numbers = read_numbers()
    checks = check(numbers)
    print(to_markdown(numbers))
    print("\n| checked against, photos/s | model | measured | off by |\n|---|---:|---:|---:|")
    for one in checks:
        print(f"| {one.job} | {one.predicted:,.0f} | {one.measured:,.0f} | {one.off:+.0%} |")
    print("\n| constant | value | from |\n|---|---:|---|")
    for name in NAMES.values():
        entry = numbers.find(name)
        source = entry.get("source") or entry.get("how") if isinstance(entry, dict) else None
        print(f"| {name} | {numbers.get(name):,.6g} | {source or 'measured here'} |")
    return int(any(abs(one.off) > TOLERANCE for one in checks))
