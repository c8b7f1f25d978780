"""Find out on a GPU what only a GPU can tell; with --rehearse the same on the CPU backend, in a minute or two.

    python -m tests.gpu_check [--rehearse] [--section NAME ...] [--out FOLDER]

Each section runs in a process of its own for at most nine minutes, and is written into FOLDER/gpu-check.json and .md
at once, beside what earlier calls wrote there: where time on a GPU is short, call it section by section.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.gpu_check import report
from tests.gpu_check.settings import ROOT, Settings

SECTIONS = {
    "hostile": "hostile:section",
    "pixels": "handover:pixels",
    "ownership": "handover:ownership",
    "bus": "handover:bus",
    "full-memory": "handover:full_memory",
    "fused": "handover:fused",
    "sizes": "speed:sizes",
    "sweep": "speed:sweep",
    "training": "speed:training",
    "curation": "curating:section",
}
"""In the order in which they are worth running."""
LIMIT = 540  # seconds a section


def tests(settings: Settings) -> dict[str, Any]:
    """The tests that need a GPU; in a rehearsal only collected."""
    # the slow one is the section `hostile`
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu and not slow",
        "-q",
        "--tb=short",
        "--durations=5",
        "tests/gpu",
    ]
    command += ["--collect-only"] if settings.rehearse else []
    env = os.environ | ({} if settings.rehearse else {"CURATOR_DALI_REQUIRE_GPU": "1", "CUDA_LAUNCH_BLOCKING": "0"})
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        return {"failures": [f"took longer than {LIMIT} s"], "output": (error.stdout or b"").decode()[-4000:]}
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    failures = failed or [f"pytest ended with {done.returncode}: {lines[-1]}"] if done.returncode else []
    return {"result": lines[-1], "failures": failures, "output": done.stdout[-4000:] if failures else ""}


def run(name: str, settings: Settings) -> dict[str, Any]:
    """A section in a child process: what it found, `failures` and `seconds`."""
    began = time.perf_counter()
    if name == "tests":
        found = tests(settings)
    else:
        answer = settings.work / f"{name}.json"
        answer.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.gpu_check", "--device", settings.device, "--work", str(settings.work)]
        command += ["--child", name, *(["--rehearse"] if settings.rehearse else [])]
        env = os.environ | {"CURATOR_DALI_CACHE": str(settings.work / "cache")}
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT)
            found = json.loads(answer.read_text()) if done.returncode == 0 else {}
            if done.returncode:
                found["failures"] = [f"ended with {done.returncode}: {done.stderr.strip()[-1500:]}"]
        except subprocess.TimeoutExpired:
            found = {"failures": [f"took longer than {LIMIT} s"]}
    missed = [
        f"{bar}: {'not measured' if value is None else value}, wanted {wanted}"
        for bar, (value, wanted) in found.get("bars", {}).items()
        if not settings.rehearse and (value is None or value < wanted)
    ]
    found["failures"] = found.get("failures", []) + missed
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a small corpus and few rounds, on the CPU backend")
    parser.add_argument("--device", help="default: cuda, or cpu with --rehearse")
    parser.add_argument("--section", nargs="+", choices=["tests", *SECTIONS], help="default: all of them")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "gpu")
    parser.add_argument("--work", type=Path, help="keep corpora and models here; default: a temporary folder")
    parser.add_argument("--child", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from curator_dali.arrays import resolve_device

    try:
        import torch

        device = resolve_device(args.device or ("cpu" if args.rehearse else "cuda"))
        if device != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no CUDA device: install a build of it for CUDA")
    except (RuntimeError, ValueError) as error:
        sys.exit(f"{error}; a rehearsal without a GPU: make gpu-check ARGS=--rehearse")
    if args.child:
        settings = Settings(device, args.rehearse, args.work)
        module, _, function = SECTIONS[args.child].partition(":")
        found = getattr(importlib.import_module(f"tests.gpu_check.{module}"), function)(settings)
        (args.work / f"{args.child}.json").write_text(json.dumps(found))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu-check.json"
    about = report.about(device)
    known = json.loads(path.read_text()) if path.exists() else {}
    same = {**known.get("about", {}), "time": ""} == {**about, "time": ""}  # never two machines in one table
    found = {"about": about, "sections": known["sections"] if same else {}}
    print(report.table(["", ""], [[k, v] for k, v in about.items()]), flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for name in args.section or ["tests", *SECTIONS]:
            section = run(name, Settings(device, args.rehearse, work))
            found["sections"][name] = section
            path.write_text(json.dumps(found, indent=1))
            path.with_suffix(".md").write_text(report.markdown(found))
            failed |= bool(section["failures"])
            ending = f"FAILED: {'; '.join(section['failures'])}" if section["failures"] else "passed"
            print(f"{name}: {ending} in {section['seconds']:.0f} s", flush=True)
    print(f"all of it in {path} and {path.with_suffix('.md')}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
