"""Put a trained model into the package: weights in 16 bits, and a card that says what it is and is not.

    python tools/bundle.py emoji runs/emoji/net --decoder runs/emoji/decoder_1 ...
    python tools/bundle.py emoji runs/emoji/net --words 8800   # room for other weights
    python tools/bundle.py emoji --found runs/emoji/found      # of the model that is there: what was measured
    python tools/bundle.py emoji_judge runs/emoji/judge

The card tells the data and their licences, the run file, what `benchmarks/emoji.py` measured, and the limits.
It also tells how the held-out loss fell in every leg of the training; a run that began with the model in the
package (`start: emoji`) is told after those before it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import sfumato
from sfumato.checkpoints.embedded import FOLDER
from sfumato.core.atomic import write_text
from sfumato.data.emoji import Emoji
from sfumato.data.recolored import HUES
from sfumato.data.scenes import Scenes
from sfumato.encoders.bpe import BPE
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece, words

_DATA = (
    "Noto Emoji (Google, Apache-2.0) and Fluent Emoji 3D (Microsoft, MIT), named by emoji-data (MIT), a "
    "tenth of the concepts held out; skin tones; drawings of one colour in eight others, a tenth of "
    "the pairs held out; composed scenes of two or three things on white. Captions are composed, in many "
    "wordings."
)
_LIMITS = {
    "emoji": "Draws single emoji-like things, 64 x 64, in two styles, on white; two or three side by side. "
    "English words of things that emoji show; what it was not trained on is drawn as what it resembles. No "
    "text, no photographs, no likeness of anybody. It knows most of its training pictures by heart.",
    "emoji_judge": "Tells how well a 64 x 64 emoji fits a short English text; of held-out concepts it is "
    "often wrong, so that a score says little without that of real pictures beside it.",
}
_LICENCE = (
    "Apache-2.0; data: Apache-2.0 (Noto Emoji), MIT (Fluent Emoji); words taught by all-MiniLM-L6-v2, "
    "Apache-2.0"
)


def card(run: Path, name: str) -> dict[str, Any]:
    """What the card of an embedded model says beside its settings, and what was measured."""
    told: dict[str, Any] = {"name": name, "data": _DATA, "licence": _LICENCE, "limits": _LIMITS[name]}
    told["run"] = yaml.safe_load((run / "run.yaml").read_text())
    told["legs"] = legs(run, name)
    if decoder := begun_with(run, name).get("decoder"):
        told["decoder"] = decoder
    return told


def metrics(found: Path) -> dict[str, Any]:
    """What benchmarks/emoji.py found, but for its sweeps."""
    parts = ("judged", "agreement", "distance", "memory")
    return {part: json.loads(file.read_text()) for part in parts if (file := found / f"{part}.json").exists()}


def legs(run: Path, name: str) -> list[dict[str, Any]]:
    """What each run did that led to this one, back to the model in the package where one began with it."""
    settings = yaml.safe_load((run / "run.yaml").read_text())
    start = settings.get("start")
    before: list[dict[str, Any]] = []
    if start == name:
        before = sfumato.load(name).card.get("legs", [])
    elif start and (Path(start) / "run.yaml").exists():
        before = legs(Path(start), name)
    return [*before, leg(run, settings)]


def begun_with(run: Path, name: str) -> dict[str, Any]:
    """The card of the model in the package that the first of some runs began with; empty where it did not."""
    start = yaml.safe_load((run / "run.yaml").read_text()).get("start")
    if start == name:
        return dict(sfumato.load(name).card)
    return begun_with(Path(start), name) if start and (Path(start) / "run.yaml").exists() else {}


def leg(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What one run did: pictures seen, and after so many the held-out loss by band, from least noise."""
    lines = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    batch, steps = settings["batch"], max(line["step"] for line in lines)
    bands = {line["step"]: line["bands"] for line in lines if "bands" in line}
    # A page of them: all that a plot shows.
    kept = sorted(bands)[:: max(1, len(bands) // 40)]
    return {
        "objective": settings["objective"]["name"],
        "batch": batch,
        "rate": settings["optimizer"]["rate"],
        "images": batch * steps,
        "held-out": [[batch * step, *(round(value, 5) for value in bands[step])] for step in kept],
    }


def sharpened(model: Any, runs: list[Path]) -> list[dict[str, Any]]:
    """Give the model the decoder of the last of some runs; what each of them did, for the card."""
    latents, other = model.space.autoencoder, sfumato.load(runs[-1]).denoiser.network.state_dict()
    for name, tensor in latents.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")) and not torch.equal(tensor, other[name]):
            raise SystemExit(f"{runs[-1]}: {name} is of another encoder than the model's")
    latents.load_state_dict(other)
    told = [yaml.safe_load((run / "run.yaml").read_text()) for run in runs]
    return [
        {key: settings[key] for key in ("objective", "optimizer", "batch", "start")}
        | {"images": leg(run, settings)["images"]}
        for run, settings in zip(runs, told, strict=True)
    ]


def shorten(encoder: TextSmall, most: int) -> None:
    """Keep so many pieces of a text encoder's vocabulary: letters, parts of words, what captions of the data
    say, and of the other words those that captions of photographs say most, by the order of CLIP's merges.
    """
    pieces, table = encoder.tokenizer.vocabulary, BPE().table
    texts = [*Emoji(split="all", wording="varied").labels("caption"), *Scenes().labels("caption"), *HUES]
    said = {word for text in texts for word in words(text)}
    kept = [piece for piece in pieces if piece in said or len(piece) == 1 or piece[0] in "[#"]
    others = sorted(set(pieces).difference(kept), key=lambda word: table.get(f"{word}</w>", len(table)))
    chosen = {*kept, *others[: max(0, most - len(kept))]}
    rows = [number for number, piece in enumerate(pieces) if piece in chosen]
    encoder.tokenizer = WordPiece(tuple(pieces[number] for number in rows))
    encoder.token_emb = nn.Embedding.from_pretrained(encoder.token_emb.weight.detach()[rows], freeze=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(_LIMITS))
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--found", type=Path, help="what benchmarks/emoji.py measured")
    parser.add_argument(
        "--decoder", type=Path, nargs="*", help="legs of the decoder alone; the last is taken"
    )
    parser.add_argument("--words", type=int, help="so many pieces of the vocabulary are kept")
    arguments = parser.parse_args()
    folder = FOLDER / arguments.name
    if arguments.run is None:
        if arguments.found is None:
            parser.error(
                "give the folder of a run, or --found with what was measured of the model that is there"
            )
        file = folder / "model.json"
        record = json.loads(file.read_text())
        record["card"]["metrics"] = metrics(arguments.found)
        write_text(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return
    model = sfumato.load(arguments.run)
    model.card.update(card(arguments.run, arguments.name))
    if arguments.found:
        model.card["metrics"] = metrics(arguments.found)
    if arguments.decoder:
        # A card that is bundled again tells the legs before these, too.
        model.card["decoder"] = [*model.card.get("decoder", []), *sharpened(model, arguments.decoder)]
    if arguments.words:
        shorten(model.conditioner.encoder, arguments.words)
    model.to(dtype=torch.float16)
    # Anew, as weights saved over others take another name.
    shutil.rmtree(folder, ignore_errors=True)
    sfumato.save(model, folder)
    print(folder)


if __name__ == "__main__":
    main()
