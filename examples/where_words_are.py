"""Which pixels each word of a prompt moved, as heat over the picture (DAAM), on the model in the package.

python examples/where_words_are.py [FOLDER]
"""

import sys
from pathlib import Path

import sfumato
from sfumato.editing.attention_maps import maps

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

found = maps(sfumato.load(), prompt="a red apple left of a cat face, noto", seed=3)
found.images.images[0].save(out / "where.png")
for word in ("apple", "cat"):
    found.overlay(word).save(out / f"where_{word}.png")
    share = float(found.mask(word).float().mean())
    print(f"{word}: {share:.0%} of the picture")
