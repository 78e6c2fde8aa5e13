"""Native code: kernels in C++, built on first use for this very processor, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

KEPT = Path("~/.cache/sfumato/native")
"""Where libraries are kept from one process to the next."""
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"),
)


@cache
def native(name: str) -> ctypes.CDLL | None:
    """The kernels of a file beside this one; None where they cannot be had, and PyTorch's serve instead.

    They take g++, a second the first time, and Linux, where they share the threads of PyTorch. A library is
    found again by its source, the compiler and what the processor can do.
    """
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        return None
    source = Path(__file__).with_name(name)
    try:
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
        told = [source.read_bytes(), version, _processor(), *(flag.encode() for flag in _FLAGS)]
        mark = hashlib.sha256(b"\0".join(told)).hexdigest()[:16]
        library = KEPT.expanduser() / f"{source.stem}-{mark}.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                made = Path(folder) / library.name
                line = [compiler, *_FLAGS, str(source), "-o", str(made)]
                subprocess.run(line, check=True, capture_output=True, timeout=300)
                os.replace(made, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> bytes:
    """What it can do, by which code is made."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    known = sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))})
    return b"\n".join([platform.machine().encode(), *known])
