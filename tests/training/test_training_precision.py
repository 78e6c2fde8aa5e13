"""Precision: "auto" is 16 bits where the machine multiplies them, as its own description says."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch
from training_toys import toy_model

from sfumato.training import parts


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_what_the_machine_is_good_at(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "multiplies_bf16", lambda device: able)
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    made = {}
    for precision in ("float32", "bf16", "auto"):
        with parts.autocast(toy_model(), precision):
            made[precision] = (a @ b).dtype
    wide, narrow = torch.float32, torch.bfloat16
    assert made == {"float32": wide, "bf16": narrow, "auto": narrow if able else wide}


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="flags of another kind")
def test_a_cpu_says_what_it_multiplies() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert parts.multiplies_bf16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_bf16"})
