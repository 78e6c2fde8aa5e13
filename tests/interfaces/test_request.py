"""Every argument has its range; whatever is given, the answer is pictures or one line that says why not."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sfumato
from sfumato.core.errors import InvalidInput, NotFinite, SfumatoError
from sfumato.generation import task
from sfumato.interfaces.request import Request, clean
from sfumato.model import Model
from sfumato.samplers.ddim import DDIM


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps: 0 is not a whole number from 1 to 1000"),
        ("steps", -1, "steps: -1 is not"),
        ("steps", 1001, "steps: 1001 is not"),
        ("steps", 2.5, "steps: 2.5 is not"),
        ("steps", "20", "steps: '20' is not"),
        ("steps", True, "steps: True is not"),
        pytest.param("steps", 10**5000, "steps: a number of thousands of digits is not", id="digits"),
        (
            "seed",
            2**63,
            "seed: 9223372036854775808 is not a whole number from 0 to 2^63 - 1, or -1 for random",
        ),
        ("seed", 2**64 - 1, "seed: "),
        ("seed", -2, "seed: -2 is not"),
        ("seeds", [0, -1], "seeds: -1 is not a list of whole numbers"),
        ("seeds", [], "seeds: "),
        ("count", 0, "count: 0 is not a whole number from 1 to 4096"),
        ("count", 10**9, "count: "),
        ("guidance", math.nan, "guidance: nan is not a number from 0 to 50"),
        ("guidance", math.inf, "guidance: inf is not"),
        ("guidance", -1, "guidance: -1 is not"),
        ("guidance", 51.0, "guidance: 51.0 is not"),
        ("guidance", {"name": "classifier_free", "scale": 99}, "guidance.scale: 99 is not from 0 to 50"),
        ("guidance", ["classifer_free"], "did you mean classifier_free"),
        ("guidance", [3], "guidance: 3 is not a name"),
        ("size", 0, "size: 0 is not height and width in pixels, whole numbers from 1 to 8192"),
        ("size", (64, -16), "size: "),
        ("size", 8388608, "size: 8388608 is not"),
        ("size", (64, 64, 3), "size: "),
        ("sampler", "dim", "did you mean ddim"),
        ("sampler", {"name": "ddim", "eta": math.nan}, "sampler: nan is not a finite number"),
        ("sampler", {"name": "ddim", "eta": 1.5}, "sampler.eta: 1.5 is not from 0 to 1"),
        ("sampler", {"name": "ddim", "etta": 1}, "has no setting 'etta' (did you mean eta?)"),
        ("sampler", {"eta": 1}, "sampler: "),
        ("sampler", 3, "sampler: 3 is not a name or a dictionary"),
        ("sampler", "../ddim", "no sampler is called"),
        pytest.param("times", {"name": "karras", "rho": 10**400}, "times: ", id="overflow"),
        ("inputs", {"prompt": "a\0b"}, "prompt: control character U+0000 at position 1"),
        ("inputs", {"prompt": "ab\x1b[2J"}, "prompt: control character U+001B at position 2"),
        ("inputs", {"prompt": "abc\ud800"}, "prompt: half of a surrogate pair U+D800 at position 3"),
        ("inputs", {"prompt": "x" * 10_001}, "prompt: 10,001 characters, more than 10,000"),
        ("inputs", {"a b": "x"}, "inputs: 'a b' is not the name of an input"),
        ("inputs", {"boxes": [[[[[[[[[[1]]]]]]]]]]}, "boxes: nested deeper than 8"),
        ("inputs", {"weight": math.inf}, "weight: inf is not a finite number"),
        ("film", -1, "film: -1 is not"),
        ("batch", 0, "batch: 0 is not"),
        ("stpes", 3, "stpes: no such field"),
    ],
)
def test_messages_name_field_value_and_range_in_one_line(field: str, value: Any, message: str) -> None:
    with pytest.raises(SfumatoError) as caught:
        Request.of(**{field: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_text_is_kept_in_normal_form(tiny: Model) -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202eright to left\u202c\n\ttab"
    assert clean(family, "prompt") == family
    assert clean("e\u0301", "prompt") == "\u00e9"
    assert clean(["e\u0301", {"k": 1.5}], "prompt") == ["\u00e9", {"k": 1.5}]


def test_minus_one_draws_a_seed_and_tells_it(tiny: Model) -> None:
    drawn = sfumato.generate(tiny, seed=-1, concept="cat")
    assert drawn.seeds[0] >= 0
    assert torch.equal(sfumato.generate(tiny, seed=drawn.seeds[0], concept="cat").tensor, drawn.tensor)


def test_python_is_the_same_request(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match=r"steps: 2\.5"):
        sfumato.generate(tiny, steps=2.5)
    with pytest.raises(InvalidInput, match="this says where a model is"):
        sfumato.generate("some/path")
    with pytest.raises(InvalidInput, match="give one model"):
        sfumato.generate(None)
    with pytest.raises(InvalidInput, match="prompt: is said twice"):
        sfumato.generate("a red apple", prompt="a cat")
    plain = sfumato.generate(tiny, seed=1, sampler="ddim", size=(16, 24), concept="cat")
    assert plain.tensor.shape == (1, 3, 16, 24)
    own = sfumato.generate(tiny, seed=1, sampler=DDIM(), size=(16, 24), concept="cat", steps=None)
    assert torch.equal(own.tensor, plain.tensor)
    several = sfumato.generate(tiny, seeds=range(3), concept="cat")
    assert several.seeds == (0, 1, 2)


def test_json_goes_in() -> None:
    request = Request.model_validate_json('{"count": 2, "size": [16, 32], "inputs": {"concept": "cat"}}')
    assert request.size == (16, 32)
    assert Request.model_json_schema()["properties"]["steps"]["anyOf"][0]["maximum"] == 1000


_numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64, -(2**63), 10**400, True, False]),
    st.floats(allow_nan=True, allow_infinity=True),
)
_texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None, categories=("Cs", "Cc", "Lo", "So")), max_size=6),
    st.sampled_from(
        ["", "cat", "ddim", "heun", "karras", "vp", "flow", "classifier_free", "noto", "../x", "x" * 10_001]
    ),
)
_anything = st.recursive(
    st.one_of(st.none(), _numbers, _texts, st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(_texts, st.integers()), inner, max_size=3),
        st.builds(
            lambda name, more: {**more, "name": name},
            _texts,
            st.dictionaries(
                st.sampled_from(["eta", "scale", "order", "rho", "steps", "guidance", "low", "amount"]),
                inner,
                max_size=2,
            ),
        ),
    ),
    max_leaves=6,
)
_fields = st.dictionaries(
    st.sampled_from(
        [*Request.model_fields, "concept", "style", "prompt"]
    ),
    _anything,
    max_size=4,
)  # fmt: skip
_plausible = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(1, 3),
        "steps": st.integers(1, 6),
        "seed": st.integers(-1, 2**63 - 1),
        "guidance": st.floats(0, 50),
        "sampler": st.sampled_from(["ddim", "heun", "euler", "unipc", "lms", "ancestral", "plms", "dpm2"]),
        "times": st.sampled_from(["karras", "uniform", "log_snr", "trailing", "exponential", "leading"]),
        "size": st.sampled_from([8, 16, (8, 24), 17, 2**13]),
        "concept": st.sampled_from(["cat", "lemon", "dog", "", None]),
        "film": st.integers(0, 3),
    },
)


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=st.one_of(_fields, _plausible, st.builds(lambda a, b: {**a, **b}, _plausible, _fields)))
def test_2000_requests_give_pictures_or_one_typed_line(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    # On a large machine the pictures of 8192 x 8192 among them would fit, and take minutes each.
    monkeypatch.setattr(task, "available", lambda device: 2**30)
    if isinstance(fields.get("count"), int):
        fields["count"] = min(fields["count"], 4)
    tiny.card["steps"], tiny.card["size"] = 2, [8, 8]
    images, refusal = None, ""
    try:
        images = sfumato.generate(tiny, **{"steps": 2, **fields})
    except SfumatoError as error:
        refusal = str(error)
        if isinstance(error, NotFinite):
            raise
    assert "\n" not in refusal
    assert len(refusal) < 2000
    if images is not None:
        assert torch.isfinite(images.tensor).all()
        said = [text for recipe in images.recipes for text in recipe["inputs"].values()]
        assert all(unicodedata.is_normalized("NFC", text) for text in said if isinstance(text, str))
