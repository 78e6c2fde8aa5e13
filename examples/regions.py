"""Two prompts in one picture, each in its half, on the model in the package.

python examples/regions.py [FOLDER]
"""

import sys
from pathlib import Path

import sfumato
from sfumato.core.region import Region
from sfumato.editing.regional import Regional

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

halves = Regional(
    prompts=("a lemon, noto", "a red apple, noto"),
    regions=(Region(box=(0, 0, 32, 64)), Region(box=(32, 0, 64, 64))),
    base=0.2,
)
asked = "a lemon left of a red apple, noto"
images = sfumato.generate(sfumato.load(), prompt=asked, seed=1, edit=halves)
images.images[0].save(out / "regions.png")
