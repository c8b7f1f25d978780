"""What was found, as Markdown for README.md and tests/benchmarks/results/."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from typing import Any

from tests.gpu_check.settings import ROOT

CUDA = [f"{name}-cu{major}" for major in (12, 13) for name in ("nvidia-nvimgcodec", "nvidia-nvjpeg")]
PACKAGES = ["nvidia-dali-cuda120", "nvidia-dali-cuda130", "cupy-cuda12x", "cupy-cuda13x", *CUDA]
PACKAGES += ["torch", "torchvision", "transformers", "nemo-curator", "numpy"]


def about(device: str) -> dict[str, Any]:
    """The machine, the device, its driver, versions and the commit."""
    driver, name = "none", platform.machine()
    if device != "cpu":
        number = device.removeprefix("cuda:")
        asked = _ask("nvidia-smi", f"--id={number}", "--query-gpu=driver_version,name", "--format=csv,noheader")
        driver, _, name = asked.partition(", ")
    found: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "device": f"{device}, {name}",
        "driver": driver,
        "CPUs": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "commit": _ask("git", "describe", "--always", "--dirty"),
    }
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def table(header: list[str], lines: list[list[Any]]) -> str:
    """A table in Markdown."""
    rows = [
        header,
        ["---"] * len(header),
        *[[str(x).replace("|", "/").replace("\n", " ") for x in line] for line in lines],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown(found: dict[str, Any]) -> str:
    """Everything: the machine, each section's failures, its table, and what else it says."""
    parts = ["# What the device does", table(["", ""], [[k, v] for k, v in found["about"].items()])]
    for name, section in found["sections"].items():
        parts.append(f"## {name}: {'passed' if not section['failures'] else 'failed'} in {section['seconds']:.0f} s")
        parts += [f"- {failure}" for failure in section["failures"]]
        if "cases" in section:
            lines = [[case, _verdict(row["cpu"]), _verdict(row["device"])] for case, row in section["cases"].items()]
            parts.append(table(["file", "CPU", "device"], lines))
        if "rows" in section:
            lines = [
                [case, row, _rate(result), _device(result)]
                for case, results in section["rows"].items()
                for row, result in results.items()
            ]
            parts.append(table(["what", "row", "images a second", "on the device, an image"], lines))
            parts.append(table(["ratio", "reached", "wanted"], [[bar, *pair] for bar, pair in section["bars"].items()]))
        rest = {k: v for k, v in section.items() if k not in ("cases", "rows", "bars", "failures", "seconds")}
        if rest:
            parts.append(table(["", ""], [[k, v] for k, v in rest.items()]))
    return "\n\n".join(parts) + "\n"


def _rate(result: dict[str, Any]) -> str:
    if "rate" not in result:
        return f"not run: {result['skipped']}"
    return f"{statistics.median(result['rate']):,.0f} ({min(result['rate']):,.0f} to {max(result['rate']):,.0f})"


def _device(result: dict[str, Any]) -> str:
    if "device" not in result:
        return ""
    copies = [f"{count:,} bytes {kind}" for kind, count in result["device"]["bytes"].items()]
    return ", ".join([f"{result['device']['us in kernels']:,} us in kernels", *copies])


def _verdict(found: dict[str, Any]) -> str:
    return ", ".join([str(found["verdict"]), *[f"{k}: {v}" for k, v in found.items() if k not in ("verdict", "died")]])
