"""One writer a run directory."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sfumato.core.errors import RunLocked


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold a run directory; RunLocked says who holds it already and since when.

    The lock is the operating system's, so it ends with its process, however that dies. One kept alive by a
    forked child of a dead holder is recognised by pid and boot id, and broken.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Checking, breaking and taking must be one act, or two processes could break each other's fresh lock.
    with FileLock(directory / ".lock.guard", timeout=30):
        lock = FileLock(directory / ".lock")
        holder = directory / ".lock.holder"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            held = _read(holder)
            if not _is_stale(held):
                raise RunLocked(
                    f"run held by pid {held.get('pid', '?')} on host {held.get('host', '?')} "
                    f"since {held.get('since', '?')}",
                    where=str(directory),
                    do="wait for it, stop it, or use another directory",
                ) from None
            (directory / ".lock").unlink(missing_ok=True)
            lock.acquire(timeout=1)
        holder.write_text(json.dumps(_myself()))
    try:
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(holder: Path) -> dict[str, Any]:
    try:
        held = json.loads(holder.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _is_stale(held: dict[str, Any]) -> bool:
    if held.get("host") != socket.gethostname() or not isinstance(held.get("pid"), int):
        return False
    if held.get("boot") and held["boot"] != _boot_id():
        return True
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
