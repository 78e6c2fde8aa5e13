"""Models of the Hugging Face hub by their identifier, of this machine's cache first."""

from __future__ import annotations

import re
from pathlib import Path

from sfumato.core.errors import NotFound

_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,128}))?")

_WANTED = ["*.json", "*.txt", "*.md", "*/*.safetensors", "model*.safetensors", "network*.safetensors"]
"""What is fetched: a folder's parts and the native format's files; single files beside them are not."""

_UNWANTED = ["*fp16*", "*bf16*", "*non_ema*", "*onnx*", "*openvino*", "safety_checker/*.safetensors"]


def is_identifier(name: str) -> bool:
    """Whether a text is of the form owner/name or owner/name@revision."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def snapshot(name: str) -> tuple[Path, str]:
    """The folder of a model in the hub's cache, fetched if it is not there, and its name with the revision.

    Nothing is asked of the network while the cache has it; with HF_HUB_OFFLINE=1 nothing ever is. A revision
    is a branch, a tag or a commit; what it meant is told as owner/name@commit.

    Args:
        name: owner/name, or owner/name@revision.

    Raises:
        NotFound: it is not cached and cannot be fetched; the reason is told.
    """
    from huggingface_hub import snapshot_download

    found = _NAME.fullmatch(name)
    if found is None:
        raise NotFound("no identifier of the hub", where=name, do="give owner/name or owner/name@revision")
    repository, revision = found.groups()
    try:
        folder = snapshot_download(repository, revision=revision, local_files_only=True)
    except Exception:  # the cache has none, or only a part: how that is told differs between versions
        try:
            folder = snapshot_download(
                repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        except Exception as error:  # of the network, the hub or its rights, in many classes
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise NotFound(
                f"neither here nor in the cache, and the hub does not give it ({why})",
                where=name,
                do="look at the name; or fetch it where there is a network, and copy its folder here",
            ) from None
    path = Path(folder)
    return path, f"{repository}@{path.name}"
