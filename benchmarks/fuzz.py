"""Damaged and hostile files against everything that reads one: what is refused, in which words, at what cost.

    python benchmarks/fuzz.py                 the full counts of the catalogue, as a table
    python benchmarks/fuzz.py --scale .01     a hundredth of them
    python benchmarks/fuzz.py --only config   the rows whose names begin so

Every row runs in a process of its own, with a limit on its memory and an eye on what it does to the machine
(an audit hook): a row is good when every file is read or refused by one typed line, nothing is started,
written or asked of the network, and no file takes long.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_rows import ROWS

MEMORY = 8 * 2**30
"""Bytes of address space that a row may take."""
SLOW = 1.0
"""Seconds of the processor that a file may take."""


# ---- one row ----


def watch() -> list[str]:
    """What is started, asked of the network or written outside the row's own folder, from now on."""
    seen: list[str] = []
    acts = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
    more = ("webbrowser.open", "shutil.rmtree", "ctypes.dlopen", "urllib.Request", "pty.spawn")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in acts or event in more:
            seen.append(f"{event} {arguments!r:.80}")

    sys.addaudithook(hook)
    return seen


def run(name: str, scale: float, seed: int) -> dict[str, Any]:
    """One row, in this process."""
    import torch

    from sfumato.core.errors import SfumatoError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    count, make = ROWS[name]
    count = max(10, round(count * scale))
    draw = random.Random(f"{name} {seed}")
    told: dict[str, Any] = {"files": count, "read": 0, "refused": 0, "untyped": 0, "slow": 0, "slowest": 0.0}
    examples: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        change, read = make(Path(folder))
        read()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen = watch()
        for number in range(count):
            change(draw)
            start = time.process_time()
            try:
                read()
                told["read"] += 1
            except SfumatoError as error:
                told["refused"] += 1
                if "\n" in str(error) or len(str(error)) > 8000:
                    told["untyped"] += 1
                    examples.append(f"file {number}: a message of {len(str(error))} characters")
            except Exception as error:
                told["untyped"] += 1
                examples.append(
                    f"file {number}: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
                )
            took = time.process_time() - start
            told["slow"] += took > SLOW
            if took > told["slowest"]:
                told["slowest"] = round(took, 3)
                told["slowest file"] = number
        told["done"] = len(seen)
        told["grown"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        told["examples"] = examples[:5] + seen[:5]
    return told


def rows(scale: float, only: str, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row in a process of its own."""
    for name in ROWS:
        if not name.startswith(only):
            continue
        command = [sys.executable, __file__, "--row", name, "--scale", str(scale), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = " ".join(done.stderr.split()[-40:])
            yield name, {"crashed": done.returncode, "examples": [last]}
        else:
            yield name, json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--row")
    said = parser.parse_args()
    if said.row:
        sys.stdout.write(json.dumps(run(said.row, said.scale, said.seed)) + "\n")
        return 0
    heads = ("files", "read", "refused", "untyped", "slow", "done", "slowest", "grown")
    sys.stdout.write(f"| row | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n")
    bad = 0
    for name, told in rows(said.scale, said.only, said.seed):
        sys.stdout.write(f"| {name} | {' | '.join(str(told.get(head, '-')) for head in heads)} |\n")
        bad += any(told.get(key) for key in ("crashed", "untyped", "slow", "done"))
        for example in told["examples"]:
            sys.stdout.write(f"    {example}\n")
        sys.stdout.flush()
    return int(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
