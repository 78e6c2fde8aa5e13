"""From one picture to another in eight steps: noise and prompt interpolated, on the model in the package.

python examples/between.py [FOLDER]
"""

import sys
from pathlib import Path

import sfumato
from sfumato.editing.interpolate import interpolate

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

ends = {"seed": [1, 2], "prompt": ["a red apple, fluent 3d", "a lemon, fluent 3d"]}
strip = interpolate(sfumato.load(), ends, count=8)
for number, image in enumerate(strip.images):
    image.save(out / f"between_{number}.png")
