"""OpenVINO says what the network says, for prompts of any length, and only where it can."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.acceleration.openvino import Compiled, Openvino
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, MissingExtra
from sfumato.core.hooks import Hooks
from sfumato.core.meta import on_meta
from sfumato.networks.sd_unet import SDUNet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


@pytest.fixture(scope="module")
def network() -> SDUNet:
    torch.manual_seed(3)
    settings = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "tokens": 4}
    net = SDUNet(in_channels=2, out_channels=2, **settings)  # type: ignore[arg-type]
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def run(net: Any, length: int = 3, rows: int = 2, **told: Any) -> Tensor:
    """An estimate; of a copy on the meta device, too."""
    on = next(net.parameters()).device
    draw = torch.Generator().manual_seed(length)
    x, tokens = torch.randn(rows, 2, 8, 8, generator=draw), torch.randn(rows, length, 4, generator=draw)
    mask = torch.arange(length).expand(rows, -1) < length - 1
    condition = replace(Condition(tokens=tokens, mask=mask).to(on), **told)
    with torch.no_grad():
        made: Tensor = net(x.to(on), torch.tensor([3.0, 700.0, 20.0])[:rows].to(on), condition)
    return made


@pytest.fixture(scope="module")
def quick(network: SDUNet) -> Compiled:
    made = Openvino().prepare(network, run)
    assert isinstance(made, Compiled)
    return made


def test_it_is_the_network_for_every_length_with_one_graph(network: SDUNet, quick: Compiled) -> None:
    for length in (3, 5, 9, 2):
        torch.testing.assert_close(run(quick, length), run(network, length), rtol=1e-4, atol=1e-5)
    assert len(quick._known) == 1
    torch.testing.assert_close(run(quick, rows=3), run(network, rows=3), rtol=1e-4, atol=1e-5)
    assert len(quick._known) == 2
    assert quick.channels == 32
    assert list(quick.parameters()) == list(network.parameters())
    assert on_meta(quick)(torch.empty(1, 2, 8, 8, device="meta"), torch.empty(1, device="meta"),
                          Condition()).shape == (1, 2, 8, 8)  # fmt: skip


def test_what_it_cannot_say_the_network_says(network: SDUNet, quick: Compiled) -> None:
    """To the bit, as its own layers do."""
    seen: list[str] = []

    class Watching(Hooks):
        def block(self, site: Any, context: Any, run: Any, h: Tensor) -> Tensor:
            seen.append(site.name)
            made: Tensor = run(h)
            return made

    assert torch.equal(run(quick, hooks=Watching()), run(network))
    assert seen
    residuals = tuple(torch.zeros(2, 1, 1, 1) for _ in range(len(network.widths) + 1))
    assert torch.equal(run(quick, residuals=residuals), run(network))
    x, time = torch.randn(1, 2, 8, 8), torch.tensor([5.0])
    quick(x, time, Condition(tokens=torch.zeros(1, 2, 4))).sum().backward()
    assert network.out[2].weight.grad is not None  # type: ignore[index,union-attr]
    network.zero_grad()
    with torch.no_grad():
        network.out[2].weight.mul_(2)  # type: ignore[index,union-attr,operator]
        assert torch.equal(run(quick), run(network))
        network.out[2].weight.div_(2)  # type: ignore[index,union-attr,operator]


def test_it_serves_a_model_behind_the_same_call() -> None:
    model = sfumato.load("emoji")
    quick = sfumato.optimize(model, "openvino", prompt="a cat")
    asked = {"prompt": "a red apple, noto", "seed": 4, "steps": 4}
    plain, made = (sfumato.generate(each, **asked).tensor for each in (model, quick))
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-3)
    assert not torch.equal(made, plain)


def test_what_is_not_there_is_one_sentence(network: SDUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="none of f32, bf16"):
        Openvino(precision="int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="not installed"):
        Openvino().prepare(network, run)


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """A process of its own: the part that reports is not even loaded, and leaves nothing in the home."""
    script = (
        "import sys, torch\n"
        "from sfumato.acceleration.openvino import runtime\n"
        "found = runtime()\n"
        "found.convert_model(torch.nn.Linear(2, 2), example_input=torch.ones(1, 2))\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
    )
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


_INTERRUPTED = """
import gc, os, signal, threading
import torch
from sfumato.acceleration.openvino import Openvino
from sfumato.core.condition import Condition
from sfumato.networks.mlp import MLP

net = MLP(dim=2, width=8, depth=1).eval().requires_grad_(False)

def run(net):
    on = next(net.parameters()).device
    with torch.no_grad():
        return net(torch.zeros(1, 2, device=on), torch.zeros(1, device=on), Condition())

gc.disable()
run(Openvino().prepare(net, run))
# What nothing refers to any more goes where the collector happens to run.
thread = threading.Thread(target=gc.collect)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_is_one_after_it_too() -> None:
    """OpenVINO gives the thread it is first used in a stack for signals, and frees it with what it is of."""
    ended = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
