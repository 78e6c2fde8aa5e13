"""Cache: what frozen autoencoders, features and text encoders make of the data, computed once for a run."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.conditioners.text_clip import TextCLIP
from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.spaces.latent import Latent
from sfumato.training.objectives.objective import TrainingObjective
from sfumato.training.parts import autocast
from sfumato.training.settings import Settings
from sfumato.training.store import Store, raw

_ROWS = 16
"""Pictures or texts computed at once."""

Say = Callable[[str], None]


@contextmanager
def kept(
    model: Model,
    data: Dataset,
    objective: TrainingObjective,
    settings: Settings,
    directory: Path,
    accelerator: Any,
    say: Say,
) -> Iterator[None]:
    """Meanwhile a run keeps the work of frozen parts, if its settings say so; in its directory or elsewhere.

    Raises:
        What `cached` raises, and InvalidInput where the objective changes pictures by itself.
    """
    if not settings.cache:
        yield
        return
    if getattr(objective, "augment", None) is not None:
        raise InvalidInput("pictures that an objective augments are never the same", where="cache")
    folder = directory / "cache" if settings.cache is True else Path(settings.cache).expanduser()
    main, wait = accelerator.is_main_process, accelerator.wait_for_everyone
    with ExitStack() as stack:
        with autocast(model, settings.precision):
            stack.enter_context(cached(model, data, folder, say, main, wait))
        yield


@contextmanager
def cached(
    model: Model, data: Dataset, folder: Path, say: Say, main: bool = True, wait: Callable[[], Any] = bool
) -> Iterator[None]:
    """Meanwhile the model's frozen parts are asked only for what they have not made of the data before.

    Kept are the mean and log-variance of every picture's posterior (each step draws from it anew) or a
    judge's features of it, and the states of every caption, in a file that is named by the hash of weights
    and data; one that is damaged is made anew. They are looked up by the content of the picture or text, so
    that nothing is ever taken for another, and what is not kept, such as pictures of validation, is computed.

    Args:
        model: on the device where it is trained.
        data: what it is trained on.
        folder: of the file; runs may share it.
        say: told how far it is.
        main: whether this process makes the file.
        wait: returns when all processes are here.

    Raises:
        InvalidInput: nothing in the model is frozen, or the pictures change from one look to the next.
    """
    seen = _seen(model)
    towers: list[Any] = _towers(model)
    if seen is None and not towers:
        raise InvalidInput(
            "the model has no frozen part to keep the work of", where="cache", do="leave it out"
        )
    mirrored = seen is not None and is_mirrored(data)
    path = folder / f"{_key(model, data, seen, towers)}.cache"
    if main:
        try:
            Store(path)
        except InvalidInput as error:
            if path.exists():
                warnings.warn(f"{error}; it is made anew", stacklevel=2)
            making = iter(()) if seen is None else _pictures(model, seen, data, mirrored, say)
            Store.write(path, (each for part in (making, _texts(data, towers)) for each in part))
    wait()
    store = Store(path)
    say(f"{len(store)} latents, features and states of texts are in {path}")
    if seen is not None:
        setattr(seen.part, seen.name, _Kept(seen.call, store))
    for number, tower in enumerate(towers):
        tower.read = _States(tower, store, number)
    try:
        yield
    finally:
        # What was set on the object stood before the method of its class.
        if seen is not None:
            delattr(seen.part, seen.name)
        for tower in towers:
            del tower.read


def is_mirrored(data: Dataset) -> bool:
    """Whether pictures are also seen in a mirror; refused where they change otherwise from look to look.

    Raises:
        InvalidInput: of random crops and composed scenes no latent would be used a second time.
    """
    mirrored = False
    for index in range(0, len(data), max(len(data) // 4, 1)):
        first = data.load(index, 0).image
        for seed in range(1, 13):
            image = data.load(index, seed).image
            if torch.equal(image, first):
                continue
            if not torch.equal(image, first.flip(-1)):
                raise InvalidInput(
                    "pictures are others at every look (cut at random, or composed), and no latent would be "
                    "used twice",
                    where="cache",
                    do="set crop: center, or cache: false",
                )
            mirrored = True
    return mirrored


class _Seen(NamedTuple):
    """What of a model looks at every picture and is frozen: a part, and the name of its method."""

    part: Any
    name: str

    @property
    def call(self) -> Callable[[Tensor], Tensor]:
        return getattr(self.part, self.name)


def _seen(model: Model) -> _Seen | None:
    """The autoencoder of a latent space, or the frozen network of a judge."""
    if isinstance(model.space, Latent) and isinstance(model.space.autoencoder, nn.Module):
        return _Seen(model.space, "moments")
    network = model.denoiser.network
    return _Seen(network, "features") if isinstance(network, ClipFeatures) else None


class _Kept:
    """What is made of pictures, out of the store where it is there."""

    def __init__(self, inner: Callable[[Tensor], Tensor], store: Store) -> None:
        self.inner, self.store = inner, store

    def __call__(self, image: Tensor) -> Tensor:
        found = [self.store.get(_picture(row)) for row in image.detach().cpu()]
        missing = [row for row, each in enumerate(found) if each is None]
        if missing:
            for row, made in zip(missing, self.inner(image[missing]), strict=True):
                found[row] = made
        return torch.stack([each.to(image.device) for each in found if each is not None])


class _States:
    """A text tower's states, out of the store where they are there."""

    def __init__(self, tower: TextCLIP, store: Store, number: int) -> None:
        self.inner, self.weights = tower.read, next(tower.parameters())
        self.store, self.number = store, number

    def __call__(self, said: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        kept = {text: self.store.get(_text(self.number, text)) for text in said}
        whole = {text: self.store.get(_text(self.number, text, "pooled")) for text in said}
        if missing := [text for text in said if kept[text] is None]:
            states, pooled = self.inner(missing)
            kept |= dict(zip(missing, states, strict=True))
            whole |= dict(zip(missing, pooled if pooled is not None else [None] * len(missing), strict=True))
        device = self.weights.device
        states = [each.to(device) for text in said if (each := kept[text]) is not None]
        vectors = [each.to(device) for text in said if (each := whole[text]) is not None]
        return states, torch.stack(vectors) if vectors else None


def _pictures(
    model: Model, seen: _Seen, data: Dataset, mirrored: bool, say: Say
) -> Iterator[tuple[str, Tensor]]:
    """What is made of all pictures, with their keys."""
    bucket_of: Callable[[int], Any] = getattr(data, "bucket_of", lambda index: 0)
    # A picture that is told whole is encoded at every step, too; one with a hole is another at every look.
    told = "image" in model.conditioner.inputs and "mask" not in model.conditioner.inputs
    done, made = 0, set[str]()
    for _, indices in groupby(sorted(range(len(data)), key=lambda i: str(bucket_of(i))), bucket_of):
        waiting = list(indices)
        for start in range(0, len(waiting), _ROWS):
            items = [data.load(index, 0) for index in waiting[start : start + _ROWS]]
            batch = [item.image for item in items]
            if told:
                batch += [image for item in items if isinstance(image := item.inputs.get("image"), Tensor)]
            batch += [image.flip(-1) for image in batch] if mirrored else []
            # What a set holds several times, or repeats, is encoded once.
            fresh = {key: image for image in batch if (key := _picture(image)) not in made}
            if fresh:
                with torch.no_grad():
                    made_of = seen.call(torch.stack(list(fresh.values())).to(model.device))
                yield from zip(fresh, made_of, strict=True)
            made |= fresh.keys()
            done += len(items)
            if done % 1024 < _ROWS:
                say(f"{seen.name} of {done} of {len(data)} pictures are kept")


def _texts(data: Dataset, towers: Sequence[TextCLIP]) -> Iterator[tuple[str, Tensor]]:
    """States of all captions and of the empty one, with their keys."""
    texts = [""]
    if towers:
        own = getattr(data, "labels", None)
        texts += own("caption") if own is not None else []
    for number, tower in enumerate(towers):
        for start in range(0, len(texts), _ROWS):
            some = list(dict.fromkeys(texts[start : start + _ROWS]))
            states, whole = tower.read(some)
            yield from zip((_text(number, text) for text in some), states, strict=True)
            if whole is not None:
                yield from zip((_text(number, text, "pooled") for text in some), whole, strict=True)


def _towers(model: Model) -> list[TextCLIP]:
    if not isinstance(model.conditioner, nn.Module):
        return []
    return [part for part in model.conditioner.modules() if isinstance(part, TextCLIP) and not part.trainable]


def _key(model: Model, data: Dataset, seen: _Seen | None, towers: Sequence[TextCLIP]) -> str:
    """Hash of the frozen weights and settings, and of the data with their treatment."""
    space: Any = model.space
    frozen: list[nn.Module] = [*([space.autoencoder] if seen and seen.name == "moments" else []), *towers]
    digest = hashlib.sha256(json.dumps([describe(part) for part in frozen], sort_keys=True).encode())
    digest.update(repr((data.fingerprint(), getattr(space, "tile", None))).encode())
    if seen and seen.name == "features":
        # Its weights are those of a package, known by their hash; all else of the network learns.
        digest.update(f"features {seen.part.size}".encode())
    for part in frozen:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(raw(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()[:32]


def _picture(image: Tensor) -> str:
    """A picture's key: the hash of its numbers."""
    held = image.contiguous()
    digest = hashlib.blake2b(str(tuple(held.shape)).encode(), digest_size=16)
    digest.update(raw(held))
    return digest.hexdigest()


def _text(number: int, text: str, what: str = "states") -> str:
    return f"{number} {what} " + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
