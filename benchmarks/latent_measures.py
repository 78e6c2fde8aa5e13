"""What benchmarks/latent.py measures of each model, and the sheets of pictures it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import scene_judge
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.core.errors import MissingExtra
from sfumato.data.emoji import Emoji
from sfumato.data.holes import Holes
from sfumato.data.item import Dataset, Item, collate
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.metrics.evaluate import embed
from sfumato.metrics.features import EfficientNetLite0Features
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kid import kid
from sfumato.metrics.reconstruction import psnr, reconstruction
from sfumato.model import Model
from sfumato.networks.perceptual import Perceptual

COUNT = 200
"""Pictures a measure is taken of, where the data hold so many."""
_NEW = 1 << 29
"""The seed of scenes that no model is trained on."""


def autoencoders(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """PSNR, SSIM, distance to the eye, Fréchet and KID of held-out emoji given back."""
    items = items_of(Emoji(size=64, split="held_out"))
    real, rows, columns = pictures(items), {}, [pictures(items[::29])]
    for name, model in models.items():
        batches = [collate(items[i : i + 16]) for i in range(0, len(items), 16)]
        told = {each.name: interval(each) for each in reconstruction(model, batches)}
        made = torch.cat([model.denoiser.reconstruct(batch.image).clamp(-1, 1) for batch in batches]).detach()
        rows[name] = {**told, **distances(made, real), "latent": model.card.get("latent", {}).get("scale")}
        columns.append(made[::29])
    sheet(columns, ["real", *models], root / "autoencoders.png")
    return rows


def text(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """Concepts found again by features, and distances, of pictures by name: in latents and in pixels."""
    items = items_of(Emoji(size=64))
    chosen = [items[i * len(items) // COUNT] for i in range(COUNT)]
    real, rows, columns = pictures(chosen), {}, [pictures(chosen[::17])]
    for name, model in models.items():
        told = {key: [item.inputs[key] for item in chosen] for key in ("caption", "style")}
        made = draw(model, COUNT, **told)
        found = {"concept in the first 5 of 100": _found_again(made, real), **distances(made, real)}
        rows[name] = {**found, **_cost(root / name)}
        columns.append(made[::17])
    sheet(columns, ["real", *models], root / "text.png")
    return rows


def boxes(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """IoU of asked boxes with the objects drawn."""
    items = unseen_scenes(1, 3, scene_judge.apart)
    made = draw(models["boxes"], len(items), boxes=[item.inputs["boxes"] for item in items])
    judge = scene_judge.SceneJudge(32, root / "judge32.pt")
    asked = torch.stack([outlined(item) for item in items[:12]])
    sheet([asked, made[:12], pictures(items[:12])], ["asked", "made", "real"], root / "boxes.png")
    return {
        name: {"IoU": mean(scene_judge.box_scores(judge, images, items)), "scenes": len(items)}
        for name, images in (("generated", made), ("real", pictures(items)))
    }


def semantic_map(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """IoU of asked maps with the objects drawn."""
    items = unseen_scenes(1, 3)
    made = draw(models["map"], len(items), semantic_map=[item.inputs["semantic_map"] for item in items])
    judge = scene_judge.SceneJudge(32, root / "judge32.pt")
    asked = torch.stack([item.inputs["semantic_map"] for item in items[:12]])[:, None].expand(-1, 3, -1, -1)
    sheet([asked / 12 - 1, made[:12], pictures(items[:12])], ["asked", "made", "real"], root / "map.png")
    rows = {}
    for name, images in (("generated", made), ("real", pictures(items))):
        scores, kinds = scene_judge.map_scores(judge, images, items)
        rows[name] = {"IoU": mean(scores), "of the asked kind": mean(kinds)}
    return rows


def depth(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """Share of overlapping pairs drawn in the asked order."""
    # Not the scenes by which the sampler of the example was chosen.
    items = unseen_scenes(2, 4, seed=_NEW + 1)
    told = {key: [item.inputs[key] for item in items] for key in ("boxes", "depth")}
    made = draw(models["depth"], len(items), **told)
    asked = torch.stack([item.inputs["depth"] for item in items[:12]])[:, None].expand(-1, 3, -1, -1)
    sheet([2 * asked - 1, made[:12], pictures(items[:12])], ["asked", "made", "real"], root / "depth.png")
    rows = {}
    for name, images in (("generated", made), ("real", pictures(items))):
        scores = scene_judge.order_scores(images, items)
        rows[name] = {"pairs in order": share(scores), "pairs": len(scores)}
    return rows


def super_resolution(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """Held-out renderings of 128 pixels from 32: distances of the model's, of bicubic ones, of latents."""
    items = items_of(Emoji(styles=("fluent 3d",), size=128, split="held_out"))
    real, model = pictures(items), models["large"]
    small = F.interpolate(real, (32, 32), mode="area")
    bicubic = F.interpolate(small, (128, 128), mode="bicubic", antialias=True).clamp(-1, 1)
    ways = {
        "bicubic": bicubic,
        "generated": draw(model, len(items), low_res=list(small)),
        "autoencoder of the real": torch.cat(
            [model.space.decode(model.space.encode(x)) for x in real.split(8)]
        ),
    }
    columns = [each[::19] for each in (*ways.values(), real)]
    sheet(columns, [*ways, "real"], root / "large.png", side=128)
    return {name: {**_compared(made, real), **distances(made, real)} for name, made in ways.items()}


def inpainting(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """Held-out emoji with holes: error in the hole against filling with the mean; all else to the byte."""
    data = Holes(data=Emoji(size=32, split="held_out"), full=0.0)
    held = (data.load(i, _NEW) for i in range(len(data)))
    items = [item for item in held if item.inputs["mask"].sum() >= 40][:COUNT]
    real, mask = pictures(items), torch.stack([item.inputs["mask"] for item in items])
    edit = {"name": "inpaint", "image": list(real), "mask": list(mask)}
    made = draw(models["inpainting"], len(items), edit=edit)
    known = (real * (1 - mask)).sum((2, 3)) / (1 - mask).sum((2, 3)).clamp_min(1)
    filled = real * (1 - mask) + known[..., None, None] * mask
    outside = ((_bytes(made) == _bytes(real)) | (mask > 0)).flatten(1).all(1)
    columns = [filled[:12], made[:12], real[:12]]
    sheet(columns, ["mean fill", "made", "real"], root / "inpainting.png")
    rows = {}
    for name, images in (("mean fill", filled), ("generated", made)):
        hole = ((images - real).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
        rows[name] = {"error in the hole": mean(hole.tolist()), **_compared(images, real)}
        rows[name] |= distances(images, real)
    rows["generated"]["pictures identical outside"] = [float(outside.double().mean())] * 3
    return rows


def paired(models: dict[str, Model], root: Path) -> dict[str, Any]:
    """Held-out drawings turned into renderings: nearer to the real rendering than the drawing is, or not."""
    items = items_of(Emoji(styles=("fluent 3d",), source="noto", size=32, split="held_out"))
    real, drawn = pictures(items), torch.stack([item.inputs["image"] for item in items])
    made = draw(models["paired"], len(items), image=list(drawn))
    sheet([drawn[::14], made[::14], real[::14]], ["drawing", "made", "rendering"], root / "paired.png")
    ways = {"drawing": drawn, "generated": made}
    rows = {name: {**_compared(x, real), **distances(x, real)} for name, x in ways.items()}
    return {**rows, "another rendering": _compared(torch.roll(real, 1, 0), real)}


def items_of(data: Dataset) -> list[Item]:
    return [data.load(i, 0) for i in range(len(data))]


def pictures(items: Sequence[Item]) -> Tensor:
    return torch.stack([item.image for item in items])


def unseen_scenes(
    fewest: int, most: int, wanted: Callable[[Item], bool] = lambda item: True, seed: int = _NEW
) -> list[Item]:
    data = scene_judge.scenes(32, fewest, most)
    found: list[Item] = []
    for index in range(len(data)):
        if wanted(item := data.load(index, seed)):
            found.append(item)
        if len(found) == COUNT:
            break
    return found


def draw(model: Model, count: int, **told: Any) -> Tensor:
    return generate(model, seeds=list(range(count)), batch=min(count, 25), **told).tensor


def distances(made: Tensor, real: Tensor) -> dict[str, list[float]]:
    """Fréchet and KID by EfficientNet-lite0."""
    features = EfficientNetLite0Features(size=96)
    found, seen = embed(made, features), embed(real, features)
    return {
        "frechet": interval(frechet(found, seen, features=features.name)),
        "kid": interval(kid(found, seen, features=features.name)),
    }


def _compared(made: Tensor, real: Tensor) -> dict[str, list[float]]:
    """PSNR and, where its weights are installed, the distance to the eye, picture by picture."""
    rows = {"psnr": mean(psnr(made, real).tolist())}
    if (eye := _eye()) is not None:
        pairs = zip(made.split(16), real.split(16), strict=True)
        rows["perceptual"] = mean(torch.cat([eye(x, y).detach() for x, y in pairs]).tolist())
    return rows


@cache
def _eye() -> Perceptual | None:
    try:
        return Perceptual.pretrained()
    except MissingExtra:
        return None


def _found_again(made: Tensor, real: Tensor) -> list[float]:
    """Share of pictures that are nearer to the real one they are to show than all but four of 99 others."""
    features = EfficientNetLite0Features(size=96)
    found, seen = (F.normalize(embed(x, features) - embed(real, features).mean(0)) for x in (made, real))
    near = found @ seen.T
    order = torch.rand(len(made), len(real), generator=torch.Generator().manual_seed(0))
    order.fill_diagonal_(2.0)
    others = order.topk(100).indices
    own = near.diagonal()[:, None]
    return share(((near.gather(1, others) > own).sum(1) < 5).double().tolist())


def _cost(folder: Path) -> dict[str, Any]:
    """Pictures seen and minutes taken by a run, from its newest checkpoint."""
    newest = max((folder / "checkpoints").glob("*/state.json"))
    state = json.loads(newest.read_text())
    return {"pictures": state["seen"], "minutes": round(state["elapsed"] / 60, 1)}


def interval(estimate: Any) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def mean(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval."""
    x = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(x.std()) / len(x) ** 0.5
    return [float(x.mean()), float(x.mean()) - half, float(x.mean()) + half]


def share(values: Sequence[float]) -> list[float]:
    """Share of ones and its 95 % interval by Wilson."""
    n, p, z = len(values), sum(values) / len(values), NormalDist().inv_cdf(0.975)
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return [p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def _bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def outlined(item: Item) -> Tensor:
    """A layout, drawn: outlines of boxes on grey."""
    picture = torch.zeros_like(item.image)
    side = picture.shape[-1]
    for number, thing in enumerate(item.inputs["boxes"]):
        x, y, w, h = (round(edge * side) for edge in thing["box"])
        color = torch.tensor([(1.0, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1)][number])[:, None]
        x1, y1 = min(x + w, side) - 1, min(y + h, side) - 1
        for row in (y, y1):
            picture[:, row, x : x1 + 1] = color
        for column in (x, x1):
            picture[:, y : y1 + 1, column] = color
    return picture


def sheet(rows: Sequence[Tensor], names: Sequence[str], path: Path, side: int = 96, label: int = 150) -> None:
    """Rows of pictures with their names."""
    columns = min(len(row) for row in rows)
    page = Image.new("RGB", (label + columns * (side + 4), len(rows) * (side + 4)), "white")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = number * (side + 4)
        canvas.text((6, top + side / 2), name, "black", font, "lm")
        for column in range(columns):
            picture = to_image(row[column].clamp(-1, 1))
            page.paste(
                picture.resize((side, side), Image.Resampling.NEAREST), (label + column * (side + 4), top)
            )
    page.save(path)
