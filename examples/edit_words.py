"""One picture, three ways to say it otherwise: prompt-to-prompt on the model in the package.

    python examples/edit_words.py [FOLDER]

The first picture is the source; the others keep its layout where their words are the source's.
"""

import sys
from pathlib import Path

import sfumato
from sfumato.editing.local_blend import LocalBlend
from sfumato.editing.prompt_to_prompt import PromptToPrompt

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
model = sfumato.load()

# Another word in the place of one, and everything else as it was.
swap = ["a red apple, fluent 3d", "a green apple, fluent 3d"]
images = sfumato.generate(model, prompt=swap, seeds=[7, 7], edit=PromptToPrompt(cross=0.6))
for name, image in zip(("source", "swapped"), images.images, strict=True):
    image.save(out / f"words_{name}.png")

# The same, but outside of the apple to the last bit of the latents the source.
local = LocalBlend(words=("apple",), edit=PromptToPrompt(cross=0.6))
images = sfumato.generate(model, prompt=swap, seeds=[7, 7], edit=local)
images.images[1].save(out / "words_local.png")

# The same words, one of them heeded more.
same = ["a red apple, fluent 3d"] * 2
images = sfumato.generate(model, prompt=same, seeds=[7, 7], edit=PromptToPrompt(weights={"red": 3.0}))
images.images[1].save(out / "words_redder.png")
