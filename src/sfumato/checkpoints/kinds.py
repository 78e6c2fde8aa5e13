"""Kinds of files people take for weights, told by their first bytes."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What a file is, and what to do about it."""

    what: str
    do: str


_CONVERT = "convert it to safetensors where you trust it; pickles can run code and are never run here"
_TENSORS = "sfumato.load reads the tensors of models it knows; convert others to safetensors"

_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"PK\x03\x04", Kind("a zip archive, probably of torch.save", _TENSORS)),
    (0, b"PK\x05\x06", Kind("an empty zip archive", "give a .safetensors file")),
    (0, b"GGUF", Kind("a GGUF file", "give the safetensors weights it was made from")),
    (0, b"\x89PNG\r\n\x1a\n", Kind("a PNG picture", "`sfumato show` tells the recipe of a picture")),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture", "give a .safetensors file")),
    (0, b"RIFF", Kind("a RIFF file, probably a WebP picture", "give a .safetensors file")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, probably of Keras", "give a .safetensors file")),
    (0, b"\x93NUMPY", Kind("a NumPy array", "give a .safetensors file")),
    (0, b"\x1f\x8b", Kind("a gzip archive", "unpack it first")),
    (257, b"ustar", Kind("a tar archive", "unpack it first")),
    (0, b"version https://git-lfs", Kind("a Git LFS pointer, not the weights", "fetch them: git lfs pull")),
)
_ONNX = Kind("an ONNX graph", "give the safetensors weights it was exported from")
_PAGE = Kind("a web page, not weights", "the download failed or asked for a login; download it again")
_PICKLE = Kind("a Python pickle", _CONVERT)


def kind_of(start: bytes) -> Kind | None:
    """What the first bytes (512 will do) say a file is; None where it may be safetensors."""
    if start[4:9] == b"\0\0\0\0{":
        # A header of less than 4 GiB and its first brace; its length may look like any of the below.
        return None
    for place, magic, kind in _MAGIC:
        if start[place : place + len(magic)] == magic:
            return kind
    if start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05":
        return _PICKLE
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _PAGE
    # A protobuf: field 1 (ir_version), a small number, then one of the text or number fields of a model.
    if start[:1] == b"\x08" and start[1:2] <= b"\x20" and start[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        return _ONNX
    return None
