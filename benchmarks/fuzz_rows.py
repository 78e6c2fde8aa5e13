"""The files that benchmarks/fuzz.py damages, by what reads them, and the ways they are damaged."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Made = tuple[bytes | None, Any]
ROWS: dict[str, tuple[int, Callable[[Path], tuple[Callable[[random.Random], None], Callable[[], Any]]]]] = {}
"""By name: how many files, and what makes (change a file, read it) in an empty folder."""


def row(name: str, count: int) -> Callable[[Any], Any]:
    """Enters a maker of (change, read) under a name."""

    def enter(make: Any) -> Any:
        ROWS[name] = (count, make)
        return make

    return enter


# ---- what is changed ----


def mutate(data: bytes, draw: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
    """One to three changes: bits, bytes, runs removed, repeated, turned round, cut off, nasty words."""
    held = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        if not held:
            return bytes(held)
        place = draw.randrange(len(held))
        stop = min(len(held), place + 2 ** draw.randrange(10))
        kind = draw.randrange(8)
        if kind == 0:
            held[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            held[place] = draw.randrange(256)
        elif kind == 2:
            del held[place:stop]
        elif kind == 3:
            held[place:place] = held[place:stop]
        elif kind == 4:
            held[place:stop] = held[place:stop][::-1]
        elif kind == 5:
            del held[draw.randrange(len(held)) :]
        elif kind == 6:
            held[place:place] = draw.randbytes(draw.randrange(1, 32))
        else:
            held[place:place] = draw.choice(words or (b"\0", b"\xff" * 8, struct.pack(">I", 2**31 - 1)))
    return bytes(held)


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**9, 10**30, -(10**9), 0.5, 1e308, -1e-308),
    *("", "x", "../../x", "os.system", "\ud800", "a" * 100_000, [], {}, [[]], [None], [10**9] * 4, ["x"] * 9),
    *([1] * 100_000, {"name": "os.system"}, {"": {}}, [0], [-1], [32, 64, 128], [2**40], {"a": [{}] * 50}),
)


def change_json(held: Any, draw: random.Random) -> str:
    """JSON with one or two values another, missing, more or twice; now and then deep, or no JSON at all."""
    held = copy.deepcopy(held)
    for _ in range(draw.randrange(1, 3)):
        place = held
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.7:
                place = place[key]
                continue
            break
        kind = draw.randrange(8)
        if kind == 0:
            del place[key]
            if not held:
                break
        elif kind == 1 and isinstance(place, dict):
            place[str(key) + draw.choice("_x1\0é")] = place[key]
        elif kind == 2 and isinstance(place[key], int | float):
            place[key] = place[key] * draw.choice((-1, 0, 2, 10**6, 10**12))
        else:
            place[key] = copy.deepcopy(draw.choice(NASTY))
    text = json.dumps(held)
    odd = draw.randrange(40)
    if odd == 0:
        return '{"a":' * 60_000 + "1" + "}" * 60_000
    if odd == 1:
        return text.replace(":", ":NaN,", 1)
    if odd == 2:
        return text[:-1] + "," + text[1:]  # every key twice
    return text if odd > 3 else mutate(text.encode(), draw).decode("utf-8", "replace")


# ---- what is read ----


def model(published: bool) -> Any:
    """A small model of Stable Diffusion 1's kind, with CLIP's vocabulary or a small one of its own."""
    import torch

    from sfumato.checkpoints.stable import describe_model
    from sfumato.encoders.bpe import END, START
    from sfumato.model import Model

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>", START, END]
    tokenizer = {"name": "bpe", "vocabulary": {t: i for i, t in enumerate(tokens)}, "merges": ["a t</w>"]}
    words = 49408 if published else len(tokens)
    text = {"name": "clip_text", "width": 64, "depth": 1, "heads": 1, "vocabulary": words, "length": 77}
    text |= {"activation": "quick_gelu", "end": words - 1}
    tower = {"name": "prompt_states", "text": text, **({} if published else {"tokenizer": tokenizer})}
    network = {"name": "sd_unet", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [1]}
    network |= {"heads": 2, "tokens": 64, "in_channels": 4, "out_channels": 4, "linear_projection": False}
    coder = {"name": "kl", "channels": 4, "width": 32, "multipliers": [1, 2], "blocks": 1}
    process = {"name": "betas", "schedule": "scaled_linear"}
    torch.manual_seed(0)
    described = describe_model(network, coder, 0.18215, 0.0, [tower], process, "noise")
    return Model.from_description(described, {"size": [16, 16], "steps": 2})


def files(root: Path, form: str) -> Path:
    """The model in a format: a folder or a file."""
    from sfumato.checkpoints import compvis_writing, diffusers, native

    place = root / ("model.safetensors" if form == "compvis" else "model")
    write = {"native": native.save, "diffusers": diffusers.write, "compvis": compvis_writing.write}[form]
    write(model(form == "compvis"), place)
    return place


def load(place: Path) -> Callable[[], Any]:
    from sfumato.checkpoints.load import load as read

    return lambda: read(place, prediction="noise") if place.is_file() else read(place)


def of_bytes(path: Path, read: Callable[[], Any], words: tuple[bytes, ...] = ()) -> Any:
    """(change, read) of one file, changed as bytes."""
    whole = path.read_bytes()
    return (lambda draw: path.write_bytes(mutate(whole, draw, words)) and None), read


def of_json(path: Path, read: Callable[[], Any]) -> Any:
    """(change, read) of one file, changed as JSON."""
    held = json.loads(path.read_text())

    def change(draw: random.Random) -> None:
        path.write_text(change_json(held, draw), "utf-8", "surrogatepass")

    return change, read


_CONFIGS = {
    "index": "model_index.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "special": "tokenizer/special_tokens_map.json",
}
for _name, _file in _CONFIGS.items():

    @row(f"config: diffusers {_name}", 1000)
    def _(root: Path, file: str = _file) -> Any:
        place = files(root, "diffusers")
        return of_json(place / file, load(place))


@row("config: native", 1000)
def _(root: Path) -> Any:
    place = files(root, "native")
    return of_json(place / "model.json", load(place))


@row("weights: native", 500)
def _(root: Path) -> Any:
    place = files(root, "native")
    return of_bytes(place / "model.safetensors", load(place))


@row("weights: diffusers", 500)
def _(root: Path) -> Any:
    place = files(root, "diffusers")
    return of_bytes(place / "unet" / "diffusion_pytorch_model.safetensors", load(place))


@row("weights: compvis, headers", 1000)
def _(root: Path) -> Any:
    """The header alone is changed, as JSON: names, shapes, types, places."""
    place = files(root, "compvis")
    whole = place.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])

    def change(draw: random.Random) -> None:
        raw = change_json(header, draw).encode("utf-8", "surrogatepass")
        place.write_bytes(struct.pack("<Q", len(raw)) + raw + whole[8 + length :])

    return change, load(place)


@row("weights: shapes and names that lie", 1000)
def _(root: Path) -> Any:
    """Whole files whose tensors are of other shapes, or under other names, than a network has."""
    from safetensors.torch import load_file, save_file

    place = files(root, "compvis")
    held = load_file(place)

    def change(draw: random.Random) -> None:
        changed = dict(held)
        for name in draw.sample(sorted(held), draw.randrange(1, 4)):
            tensor = changed.pop(name)
            kind = draw.randrange(5)
            if kind == 0:
                changed[mutate(name.encode(), draw).decode("utf-8", "replace").replace("\0", "0")] = tensor
            elif kind == 1:
                changed[name] = tensor.flatten()
            elif kind == 2:
                changed[name] = tensor[:0]
            elif kind == 3:
                changed[name] = tensor[None].contiguous()
        save_file(changed, place)

    return change, load(place)


@row("weights: torch.save", 2000)
def _(root: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    place = files(root, "compvis")
    held = load_file(place)
    small = {name: tensor[..., :1].clone() for name, tensor in sorted(held.items())[:40]}
    torch.save({"state_dict": small, "global_step": 3}, root / "m.ckpt")
    from sfumato.checkpoints.torch_file import read_torch

    return of_bytes(
        root / "m.ckpt", lambda: read_torch(root / "m.ckpt"), (b"cos\nsystem\n", b"\x80\x02", b"R")
    )


@row("weights: truncated everywhere", 1000)
def _(root: Path) -> Any:
    place = files(root, "compvis")
    whole = place.read_bytes()
    cuts = iter(sorted(round(i * (len(whole) - 1) / 999) for i in range(1000)))

    def change(draw: random.Random) -> None:
        place.write_bytes(whole[: next(cuts)])

    return change, load(place)


@row("index of shards", 1000)
def _(root: Path) -> Any:
    place = files(root, "diffusers")
    part, name = place / "unet", "diffusion_pytorch_model"
    from safetensors import safe_open

    with safe_open(part / f"{name}.safetensors", "pt") as file:
        keys = list(file.keys())
    (part / f"{name}.safetensors").rename(part / f"{name}-00001-of-00001.safetensors")
    table = {"weight_map": {key: f"{name}-00001-of-00001.safetensors" for key in keys}}
    (part / f"{name}.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, **table}))
    return of_json(part / f"{name}.safetensors.index.json", load(place))


@row("tokenizer: vocab.json", 1000)
def _(root: Path) -> Any:
    from sfumato.encoders.bpe import BPE

    place = files(root, "diffusers")
    return of_json(place / "tokenizer" / "vocab.json", lambda: BPE.read(place / "tokenizer").ids("a cat at"))


@row("tokenizer: merges.txt", 1000)
def _(root: Path) -> Any:
    from sfumato.encoders.bpe import BPE

    place = files(root, "diffusers")
    read = lambda: BPE.read(place / "tokenizer").ids("a cat at")  # noqa: E731
    return of_bytes(place / "tokenizer" / "merges.txt", read, (b" ", b"\n", b"\r", b"a t", "\u2028".encode()))


@row("tokenizer: vocab.txt", 1000)
def _(root: Path) -> Any:
    from sfumato.encoders.word_piece import SPECIAL, WordPiece

    (root / "vocab.txt").write_text("\n".join((*SPECIAL, *"abcdefghij", "##a", "##t", "cat")) + "\n")
    return of_bytes(
        root / "vocab.txt", lambda: WordPiece.read(root).ids("a cat at"), (b"\n", b"##", b"[CLS]")
    )


def _picture(root: Path, form: str) -> Path:
    from PIL import Image

    draw = random.Random(1)
    picture = Image.frombytes("RGB", (24, 16), draw.randbytes(24 * 16 * 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / f"p.{form}"
    picture.save(path, form.upper(), exif=exif)
    return path


for _form in ("png", "jpeg", "webp"):

    @row(f"picture: {_form}", 5000)
    def _(root: Path, form: str = _form) -> Any:
        from sfumato.data.picture import read_picture

        path = _picture(root, form)
        words = (b"IHDR", b"zTXt", b"\xff\xd8", b"\xff\xda", b"RIFF", b"VP8L", struct.pack(">I", 2**31 - 1))
        return of_bytes(path, lambda: read_picture(path), words)


@row("map: semantic, depth and mask", 3000)
def _(root: Path) -> Any:
    from PIL import Image

    from sfumato.conditioners.depth import Depth
    from sfumato.conditioners.semantic_map import SemanticMap
    from sfumato.data.picture import masks

    picture = Image.frombytes("P", (16, 16), bytes(range(16)) * 16)
    picture.putpalette([i for i in range(48)])
    picture.save(root / "m.png")
    deep = io.BytesIO()
    Image.new("I;16", (16, 16), 30_000).save(deep, "PNG")
    wholes = [(root / "m.png").read_bytes(), deep.getvalue()]
    path = root / "m.png"
    readers = [
        lambda: SemanticMap(16).check(semantic_map=str(path)),
        lambda: Depth().check(depth=str(path)),
        lambda: masks(str(path), "mask"),
    ]
    turn = iter(range(10**9))

    def change(draw: random.Random) -> None:
        path.write_bytes(mutate(draw.choice(wholes), draw))

    return change, lambda: readers[next(turn) % 3]()


@row("recipe: the PNG", 5000)
def _(root: Path) -> Any:
    path = _recipe(root)
    from sfumato.interfaces.recipe import read_recipe

    return of_bytes(path, lambda: read_recipe(path), (b"sfumato\0", b"zTXt", b"iTXt", b"parameters\0"))


@row("recipe: what it says, replayed", 300)
def _(root: Path) -> Any:
    from PIL import Image

    from sfumato.interfaces.recipe import encode, read_recipe
    from sfumato.interfaces.replay import replay

    path = _recipe(root)
    recipe, image = read_recipe(path), Image.open(path)
    image.load()

    def change(draw: random.Random) -> None:
        text = change_json(recipe, draw).encode("utf-8", "replace").decode()
        path.write_bytes(encode(image, {"sfumato": text[: 2**20 - 1].replace("\0", "")}))

    return change, lambda: replay(path)


@row("recipe: the web UIs' text", 5000)
def _(root: Path) -> Any:
    from sfumato.interfaces.recipe import read_parameters

    text = b"a cat, <b>\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x8"
    (root / "t").write_bytes(text)
    words = (b"\n", b": ", b", ", b'"', b"\\", b"Negative prompt:", b"Steps: 1, Seed: 2, Size: 3")
    read = lambda: read_parameters((root / "t").read_text("utf-8", "replace"))  # noqa: E731
    return of_bytes(root / "t", read, words)


def _recipe(root: Path) -> Path:
    from sfumato.generation.generate import generate
    from sfumato.interfaces.recipe import save_png

    place = files(root, "native")
    made = generate(load(place)(), prompt="a cat", seed=1, negative={"prompt": "at"})
    return save_png(made.images[0], made.recipe, root / "out")


@row("run file", 2000)
def _(root: Path) -> Any:
    import yaml

    from sfumato.training.run_file import read

    here = Path(__file__).parent.parent / "examples"
    held = [yaml.safe_load(path.read_text()) for path in sorted(here.glob("*.yaml"))]
    path = root / "run.yaml"
    path.write_text(json.dumps(held[0]))

    def change(draw: random.Random) -> None:
        path.write_text(change_json(draw.choice(held), draw), "utf-8", "surrogatepass")

    return change, lambda: read(path)
