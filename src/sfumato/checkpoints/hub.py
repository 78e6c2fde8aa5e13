"""Models of the Hugging Face hub by their identifier: read from the cache, fetched when asked to."""

from __future__ import annotations

import contextlib
import glob
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sfumato.checkpoints.native import hash_of
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, SfumatoError

_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,128}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPOKEN = (".json", ".txt", ".md")
_LEFT_OUT = ("safety_checker", "image_encoder", "depth_estimator")
_PART = (
    r"(?:diffusion_pytorch_model|{other})(?:\.(?P<variant>[a-z]\w*))?(?P<shard>-\d{{5}}-of-\d{{5}})?\.{form}"
)
_FORMS = (_PART.format(other="model", form="safetensors"), _PART.format(other="pytorch_model", form="bin"))
_ALONE = ("*.safetensors", "*.ckpt")
"""Weights of a whole model in one file, the better kind first."""


def is_identifier(name: str) -> bool:
    """Whether a text is of the form owner/name or owner/name@revision."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def snapshot(name: str) -> tuple[Path, str]:
    """Where in the hub's cache a model lies, and its name with the commit; the network is never asked.

    Of a repository that is one file of weights, that file; else its folder.

    Args:
        name: owner/name, or owner/name@revision, a branch, a tag or a commit.

    Raises:
        NotFound: it was not fetched.
    """
    repository, revision = _split(name)
    store = _store(repository)
    commit = revision
    if not _COMMIT.fullmatch(commit):
        with contextlib.suppress(OSError, ValueError):
            commit = (store / "refs" / revision).read_text("ascii").strip()
    folder = store / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        raise NotFound("neither here nor in the hub's cache", where=name, do=f"sfumato fetch {name}")
    return _model_in(folder), f"{repository}@{commit}"


def fetch(name: str, variant: str = "", progress: bool = False) -> tuple[Path, str]:
    """Copy a model from the hub into its cache, and tell where it lies and its name with the commit.

    What makes pictures is fetched and nothing else, all of one commit. What is there already stays; a broken
    copy goes on where it broke. Hashes of weights are compared with the hub's, and asked for once more where
    they differ.

    Args:
        name: owner/name, or owner/name@revision, a branch, a tag or a commit; the main branch if not said.
        variant: of the weights, such as fp16, where a part has it.
        progress: draw the library's bars on stderr.

    Raises:
        NotFound: the hub has no such model or revision, or cannot be reached.
        InvalidInput: a model in none of the layouts that are read.
        CheckpointCorrupt: weights arrive damaged, twice.
    """
    repository, revision = _split(name)
    with _quiet(progress):
        info = _asked(
            name, lambda hub: hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
        )
        hashes = {each.rfilename: each.lfs.sha256 if each.lfs else None for each in info.siblings or ()}
        names = wanted(hashes, variant, name)
        patterns = [glob.escape(each) for each in names]
        for last in (False, True):
            folder = Path(
                _asked(
                    name,
                    lambda hub: hub.snapshot_download(repository, revision=revision, allow_patterns=patterns),
                )
            )
            if folder.name != info.sha:
                raise NotFound("changed on the hub meanwhile", where=name, do="fetch it again")
            bad = [each for each in names if hashes[each] and hash_of(folder / each) != hashes[each]]
            if not bad:
                return _model_in(folder), f"{repository}@{info.sha}"
            for each in bad:
                (folder / each).resolve().unlink(missing_ok=True)
                (folder / each).unlink(missing_ok=True)
            if last:
                raise CheckpointCorrupt(
                    f"arrived damaged, twice: {', '.join(bad[:3])}", where=name, do="fetch it again later"
                )
    raise AssertionError


def wanted(names: Iterable[str], variant: str = "", where: str = "") -> list[str]:
    """The files of a repository that are read: descriptions, and of each part the weights of one kind.

    Safetensors before torch.save's, the variant before the plain, whole before in shards; what makes no
    picture is left out.

    Args:
        names: all files of the repository.
        variant: such as fp16.
        where: what to call the repository in errors.

    Raises:
        InvalidInput: of none of the layouts that are read.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    top = folders.get("", [])
    found = [file for file in top if file.endswith(_SPOKEN)]
    if "model_index.json" in top:
        parts = {
            folder: _weights(files, variant)
            for folder, files in folders.items()
            if folder and "/" not in folder and not folder.startswith(_LEFT_OUT)
        }
        for folder, weights in parts.items():
            spoken = [file for file in folders[folder] if file.endswith(_SPOKEN)]
            found += [f"{folder}/{file}" for file in (*spoken, *weights)]
        # The oldest of a single network hold it beside their index.
        return found if any(parts.values()) else found + _weights(top, variant)
    if "config.json" in top and (weights := _weights(top, variant)):
        return found + weights  # a part alone, such as a control
    for kind in _ALONE:
        if weights := [file for file in top if file.endswith(kind[1:])]:
            if len(weights) == 1 or "model.json" in top:
                return found + weights
            raise InvalidInput(
                f"holds {len(weights)} files of weights: {', '.join(weights[:5])}",
                where=where,
                do="download the one you want, and give its path",
            )
    raise InvalidInput(
        "holds no model in a layout that is read", where=where, do="give a folder of diffusers"
    )


def _weights(files: list[str], variant: str) -> list[str]:
    """The files of a part's weights."""
    for form in _FORMS:
        matched = [(file, match) for file in files if (match := re.fullmatch(form, file))]
        kinds = sorted({match["variant"] or "" for _, match in matched})
        for kind in dict.fromkeys([variant, "", *(kinds if len(kinds) == 1 and not variant else ())]):
            of_kind = [(file, match["shard"]) for file, match in matched if (match["variant"] or "") == kind]
            if of_kind:
                return [file for file, shard in of_kind if not shard] or [file for file, _ in of_kind]
    return []


def _split(name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise NotFound("no identifier of the hub", where=name, do="give owner/name or owner/name@revision")
    return found[1], found[2] or "main"


def _store(repository: str) -> Path:
    """The folder of a repository in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _model_in(folder: Path) -> Path:
    """The folder, or the one file of weights that is a model without what lies beside it."""
    names = [each.name for each in folder.iterdir()]
    described = "config.json" in names and _weights(names, "")
    if not described and not {"model_index.json", "model.json"} & set(names):
        for kind in _ALONE:
            files = sorted(folder.glob(kind))
            if len(files) == 1:
                return files[0]
    return folder


def _asked(name: str, ask: Any) -> Any:
    """What the hub answers; its many errors in one sentence each."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return ask(huggingface_hub)
    except SfumatoError:
        raise
    except errors.GatedRepoError:
        what, do = "is given to those who agree to its licence", "agree on its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        what, do = "the hub knows no such model, or it is private", "look at the name, or `hf auth login`"
    except errors.RevisionNotFoundError:
        what, do = "the model has no such revision", "look at its page for branches and tags"
    except errors.OfflineModeIsEnabled:
        what, do = "HF_HUB_OFFLINE forbids to ask the hub", "unset it, or copy the model's folder here"
    except Exception as error:  # of the network, the disk or the hub, in many classes
        code = getattr(getattr(error, "response", None), "status_code", None)
        why = f"it answers {code}" if code else " ".join(str(error).split())[:160] or type(error).__name__
        what = f"the hub does not give it: {why}"
        do = "fetch it again, which goes on where it broke"
    raise NotFound(what, where=name, do=do) from None


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """The hub's library says nothing meanwhile: what went wrong is told by the error."""
    from huggingface_hub.utils import logging as told
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before, hidden = told.get_verbosity(), progress or are_progress_bars_disabled()
    told.set_verbosity(logging.ERROR)
    if not hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        told.set_verbosity(before)
        if not hidden:
            enable_progress_bars()
