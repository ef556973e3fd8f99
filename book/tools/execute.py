"""Execute every notebook of the book by papermill, two at a time, into ``_build/executed``.

Writes ``_build/executed/runs.json``: seconds and peak memory of each notebook, versions and hardware.
Usage: ``python book/tools/execute.py [--workers 2] [NAME ...]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

BOOK = Path(__file__).resolve().parents[1]
EXECUTED = BOOK.parent / "_build" / "executed"
AFTER = {"07-sampling": "06-training"}  # samples from the checkpoint that the other writes
CELL_TIMEOUT = 600  # seconds


def execute(name: str) -> dict[str, float]:
    """Execute one notebook in a process of its own; return its wall time in seconds and its kernel's peak in MiB."""
    import papermill

    os.environ["DDPM_NB_NIGHT"] = "1"  # figures for dark pages too
    began = time.perf_counter()
    papermill.execute_notebook(
        str(BOOK / f"{name}.ipynb"),
        str(EXECUTED / f"{name}.ipynb"),
        cwd=str(BOOK),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=CELL_TIMEOUT,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return {"seconds": round(time.perf_counter() - began, 1), "peak_mib": round(peak * unit / 2**20)}


def hardware() -> dict[str, str]:
    """Describe the machine in the words of its owner: processor, cores, accelerator."""
    import torch

    from ddpm_nb.book.notebook import provenance

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        **provenance(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor or platform.processor(),
        "cores": str(os.cpu_count()),
        "accelerator": accelerator,
    }


def main() -> int:
    """Run the pool; exit status 1 if a notebook fails, with the failing cell's error printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; all if none is given")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in BOOK.glob("*.ipynb"))
    names.sort(key=lambda name: name not in AFTER.values())  # what others wait for comes first
    EXECUTED.mkdir(parents=True, exist_ok=True)
    # Kernels that compete for the same cores with several threads each are slower than with one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.workers)))

    runs: dict[str, dict[str, float]] = {}
    waiting = [name for name in names if AFTER.get(name) in names]
    began = time.perf_counter()
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[dict[str, float]], str] = {pool.submit(execute, n): n for n in names if n not in waiting}
        print(f"executing {len(names)} notebooks, {arguments.workers} at a time", flush=True)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if error := future.exception():
                    print(f"\n{name} failed:\n{error}", flush=True)
                    pool.shutdown(cancel_futures=True)
                    return 1
                runs[name] = future.result()
                for ready in [n for n in waiting if AFTER[n] == name]:
                    waiting.remove(ready)
                    running[pool.submit(execute, ready)] = ready
                seconds, peak = runs[name]["seconds"], runs[name]["peak_mib"]
                print(f"[{len(runs)}/{len(names)}] {name}: {seconds:.0f} s, peak {peak:.0f} MiB", flush=True)
    record = {"runs": dict(sorted(runs.items())), "hardware": hardware(), "seconds": time.perf_counter() - began}
    (EXECUTED / "runs.json").write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
