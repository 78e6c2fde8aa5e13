"""Recipes survive the picture file exactly, whatever the words; the text for other tools is read back too."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.core.errors import InvalidInput, NotFound, SfumatoError
from sfumato.interfaces.recipe import (
    encode,
    parse,
    read_parameters,
    read_recipe,
    read_texts,
    save_png,
    texts_of,
    write_new,
    write_parameters,
)

_IMAGE = Image.new("RGB", (2, 2))

_words = st.one_of(
    st.text(),
    st.text(st.characters(codec=None)),
    st.lists(
        st.sampled_from(
            ["\n", "\r", "\0", "Negative prompt:", "Negative prompt: x", "Steps: 20, Sampler: Euler, Seed: 5",
             '"', "\\", ": ", ", ", "<script>alert(1)</script>", "\u202e", "\U0001f34e", "é", " "]
        )
    ).map("".join),
)  # fmt: skip


def _recipe(prompt: str, negative: str | None = None, **more: Any) -> dict[str, Any]:
    told = {"inputs": {"prompt": prompt}, **({} if negative is None else {"negative": {"prompt": negative}})}
    guidance = [{"name": "classifier_free", "scale": 7.0}]
    walk = {
        "sampler": {"name": "dpm_solver_pp"},
        "times": {"name": "karras"},
        "steps": 25,
        "guidance": guidance,
    }
    model = {"name": "emoji, small: one", "hash": "ab" * 32}
    return {"sfumato": "0.1.0", "model": model, **walk, "size": [64, 48], "seed": 7, **told, **more}


@settings(max_examples=1500, deadline=None)
@given(prompt=_words, negative=st.none() | _words)
def test_json_round_trips_any_words_through_a_png(
    tmp_path_factory: Any, prompt: str, negative: str | None
) -> None:
    recipe = _recipe(prompt, negative)
    path = tmp_path_factory.getbasetemp() / "r.png"
    path.write_bytes(encode(_IMAGE, texts_of(recipe)))
    assert read_recipe(path) == recipe
    # The text chunk, read after a picture file, is what was written (but for halves of surrogate pairs).
    assert (
        read_texts(path)["parameters"] == texts_of(recipe)["parameters"].encode("utf-8", "replace").decode()
    )


@settings(max_examples=2500, deadline=None)
@given(prompt=_words, negative=st.none() | _words)
def test_the_text_for_others_is_read_back_where_it_can_be(prompt: str, negative: str | None) -> None:
    found = read_parameters(write_parameters(_recipe(prompt, negative)))
    assert found["settings"] == {
        "Steps": "25",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7.0",
        "Seed": "7",
        "Size": "48x64",
        "Model hash": "ababababab",
        "Model": "emoji, small: one",
        "RNG": "CPU",
        "Version": "sfumato 0.1.0",
    }
    if "Negative prompt:" not in prompt + (negative or ""):
        assert found["prompt"] == prompt
        assert found["negative"] == (negative or "")


@settings(max_examples=1000, deadline=None)
@given(text=_words)
def test_any_text_is_taken_apart_without_complaint(text: str) -> None:
    found = read_parameters(text)
    assert set(found) == {"prompt", "negative", "settings"}


def test_the_web_uis_own_text() -> None:
    found = read_parameters(
        "a (red:1.2) apple\non a table\nNegative prompt: blurry,\nlow quality\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Lora hashes: "a: 1, b: 2"'
    )
    assert found["prompt"] == "a (red:1.2) apple\non a table"
    assert found["negative"] == "blurry,\nlow quality"
    assert found["settings"]["Size"] == "512x768"
    assert found["settings"]["Lora hashes"] == "a: 1, b: 2"
    assert read_parameters("only: two, pairs: here")["settings"] == {}


def test_settings_are_parsed_in_linear_time() -> None:
    import time

    start = time.perf_counter()
    for text in (
        "a: " * 200_000,
        '"' * 400_000,
        "x" * 10**6,
        'a:"' + "\\" * 10**6,
        "\n" * 10**6,
        "a:" * 10**6,
        "a," * 10**6 + ":",
        'a:" ,' * 10**5,
    ):
        read_parameters(text)
    assert time.perf_counter() - start < 10


def test_other_inputs_stand_for_a_prompt() -> None:
    recipe = {**_recipe(""), "inputs": {"concept": "red apple", "style": "noto", "other": None}}
    assert read_parameters(write_parameters(recipe))["prompt"] == "red apple, noto"


def test_the_same_recipe_gives_the_same_bytes() -> None:
    assert encode(_IMAGE, texts_of(_recipe("é"))) == encode(_IMAGE, texts_of(_recipe("é")))


def test_nothing_is_overwritten_by_many_writers(tmp_path: Path) -> None:
    (tmp_path / "00007-old.png").write_bytes(b"old")
    paths: list[Path] = []

    def work(i: int) -> None:
        paths.extend(write_new(b"%d" % i, tmp_path, "-new.png") for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 160
    assert (tmp_path / "00007-old.png").read_bytes() == b"old"
    assert min(paths).name == "00008-new.png"
    assert len(list(tmp_path.iterdir())) == 161


def test_saving_says_number_and_seed(tmp_path: Path) -> None:
    first, second = (save_png(_IMAGE, _recipe("x"), tmp_path / "new") for _ in range(2))
    assert (first.name, second.name) == ("00001-seed7.png", "00002-seed7.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput):
        save_png(_IMAGE, _recipe("x"), tmp_path / "file")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(*chunks: bytes) -> bytes:
    whole = encode(_IMAGE, {})
    return whole[:33] + b"".join(chunks) + whole[33:]


def test_text_made_to_exhaust_memory_is_refused(tmp_path: Path) -> None:
    bomb = _chunk(b"zTXt", b"sfumato\0\0" + zlib.compress(b"a" * 100 * 2**20, 9))
    many = _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (2**20 - 1), 9)) * 100
    huge = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    huge += _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    for data in (_png(bomb), _png(many), huge):
        (tmp_path / "b.png").write_bytes(data)
        with pytest.raises(InvalidInput):
            read_recipe(tmp_path / "b.png")


def test_ten_thousand_chunks_are_read(tmp_path: Path) -> None:
    chunks = [_chunk(b"tEXt", b"k%d\0v" % i) for i in range(10_000)]
    (tmp_path / "c.png").write_bytes(_png(*chunks, _chunk(b"tEXt", b'sfumato\0{"seed":1}')))
    assert read_recipe(tmp_path / "c.png") == {"seed": 1}


def test_damage_at_every_place_is_typed(tmp_path: Path) -> None:
    whole = encode(_IMAGE, texts_of(_recipe("é\n")))
    path = tmp_path / "d.png"
    for i in range(0, len(whole), 3):
        for data in (whole[:i], whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :]):
            path.write_bytes(data)
            with contextlib.suppress(SfumatoError):
                read_recipe(path)


def test_what_carries_no_recipe_says_so(tmp_path: Path) -> None:
    plain, foreign, text = tmp_path / "p.png", tmp_path / "f.png", tmp_path / "t.png"
    plain.write_bytes(encode(_IMAGE, {}))
    foreign.write_bytes(encode(_IMAGE, {"parameters": "a\nSteps: 1, Seed: 2, Size: 8x8"}))
    text.write_text("<svg/>")
    with pytest.raises(NotFound, match="carries no recipe"):
        read_recipe(plain)
    with pytest.raises(NotFound, match="sfumato show"):
        read_recipe(foreign)
    with pytest.raises(InvalidInput, match="not a PNG"):
        read_recipe(text)
    with pytest.raises(NotFound):
        read_recipe(tmp_path / "absent.png")
    for nonsense in ("", "[]", "{", "[" * 100_000, "__import__('os')", "1"):
        with pytest.raises(InvalidInput):
            parse(nonsense)
    assert parse(json.dumps({"a": "<script>"})) == {"a": "<script>"}
