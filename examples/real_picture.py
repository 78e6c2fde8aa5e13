"""A given picture, found in the noise of the model in the package, and made again in other words.

python examples/real_picture.py [FOLDER] [PICTURE] [WHAT IT SHOWS] [WHAT IT IS TO SHOW]
"""

import sys
from pathlib import Path

import sfumato
from sfumato.data.emoji import Emoji
from sfumato.editing.invert import invert
from sfumato.generation.images import to_image
from sfumato.metrics.reconstruction import psnr

given = dict(enumerate(sys.argv))
out = Path(given.get(1, "out"))
out.mkdir(parents=True, exist_ok=True)
picture = given.get(2, Emoji(size=64, concepts=("red apple",))[0].image)
shown, wanted = given.get(3, "a red apple, noto"), given.get(4, "a green apple, noto")

found = invert(sfumato.load(), picture, prompt=shown, steps=25, size=64)
again, edited = found.make().tensor, found.make(prompt=wanted).tensor
for name, image in (("given", found.image), ("again", again), ("edited", edited)):
    to_image(image[0]).save(out / f"real_{name}.png")
print(f"made again: {float(psnr(again, found.image)[0]):.1f} dB")
