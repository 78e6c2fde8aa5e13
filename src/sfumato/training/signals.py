"""Stopping a run from outside without losing anything."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from sfumato.core.errors import SfumatoError


class Interrupted(SfumatoError):
    """A run stopped by a signal, after saving; its exit code is 128 + the signal's number."""

    code = "interrupted"

    def __init__(self, signum: int, *, where: str, do: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}", where=where, do=do)
        self.exit_code = 128 + signum


class StopSignals:
    """While entered, SIGINT and SIGTERM are only noted, SIGHUP (a closed terminal) is ignored.

    A second SIGINT ends the process at once, with exit code 130. Outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
            if hasattr(signal, "SIGHUP"):
                self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(130)
        self.received = signum
