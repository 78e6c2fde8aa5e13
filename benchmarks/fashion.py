"""Fashion-MNIST, class-conditional, from nothing to a table of measures.

Trains examples/train_fashion.yaml (or goes on with it), then draws guided and unguided samples and compares
them with the test split: Fréchet and KID distances over a named feature network, precision and recall, and
the share of samples that a classifier trained on the real training pictures recognises - beside the same
numbers for real pictures.

    python benchmarks/fashion.py --minutes 30       # writes docs/fashion.md and docs/fashion.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sfumato.data.idx import FASHION, Idx
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.interfaces.training import display
from sfumato.metrics.accuracy import accuracy
from sfumato.metrics.evaluate import embed
from sfumato.metrics.features import EfficientNetLite0Features
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kid import kid
from sfumato.metrics.precision_recall import precision_recall
from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

ROOT = Path(__file__).parents[1]


def pictures(data: Idx, count: int, start: int = 0) -> Tensor:
    """Some pictures of a split, (count, 1, 32, 32)."""
    return torch.stack([data[start + i].image for i in range(count)])


def classifier(path: Path) -> nn.Module:
    """A small convolutional network trained on the real training pictures (8 epochs), kept in a file."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10)),
    )
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    torch.manual_seed(0)
    data = Idx(size=32)
    images, labels = pictures(data, len(data)), data.numbers.long()
    epochs, batch = 8, 128
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images))[: steps // epochs * batch].view(-1, batch):
            x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, images[rows], images[rows].flip(3))
            loss = nn.functional.cross_entropy(net(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch + 1} of {epochs}, loss {float(loss.detach()):.3f}", file=sys.stderr)
    torch.save(net.state_dict(), path)
    return net.eval()


def draw(model: Model, count: int, scale: float) -> Tensor:
    """`count` pictures, classes in turn, (count, 1, 32, 32), in 8 bits as they would be saved."""
    labels = [FASHION[i % 10] for i in range(count)]
    x = generate(model, seeds=list(range(count)), guidance=scale, label=labels).tensor
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def batches(images: Tensor, size: int = 100) -> Iterator[Tensor]:
    yield from images.split(size)


def sheet(model: Model, scale: float, path: Path) -> None:
    """Eight samples of each class with its name."""
    rows = [draw(model, 80, scale)[i::10] for i in range(10)]
    side, label = 64, 110
    page = Image.new("RGB", (label + 8 * side, 10 * side), "black")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for number, row in enumerate(rows):
        canvas.text((10, number * side + side / 2), FASHION[number], "white", font, "lm")
        for column, picture in enumerate(row):
            page.paste(
                to_image(picture).resize((side, side), Image.Resampling.BICUBIC),
                (label + column * side, number * side),
            )
    page.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--run", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    run = read(ROOT / "examples" / "train_fashion.yaml", [f"minutes={arguments.minutes}"])
    with display(run) as observe:
        model = train(run, arguments.run, observe)
    judge = classifier(arguments.run / "classifier.pt")
    test = Idx(size=32, split="test")
    real, others = pictures(test, arguments.count), pictures(test, arguments.count, arguments.count)
    features = EfficientNetLite0Features(size=96)
    seen = embed(batches(real), features)
    rows = []

    def measure(name: str, images: Tensor, wanted: Tensor) -> None:
        found = embed(batches(images), features)
        numbers = [
            accuracy(batches(images), wanted.split(100), judge, name="small CNN"),
            frechet(found, seen, features=features.name),
            kid(found, seen, features=features.name),
            *precision_recall(found, seen, features=features.name)[:2],
        ]
        cells = " | ".join(f"{n.value:.4g} ({n.low:.4g} to {n.high:.4g})" for n in numbers)
        rows.append(f"| {name} | {cells} |")
        print(rows[-1], file=sys.stderr)

    measure("real test pictures, others", others, test.numbers[arguments.count : 2 * arguments.count].long())
    wanted = torch.arange(arguments.count) % 10
    for scale in (1.0, 1.5, 2.5):
        measure(f"samples, guidance {scale:g}", draw(model, arguments.count, scale), wanted)
    sheet(model, 1.5, arguments.out / "fashion.png")
    table = "\n".join(rows)
    page = f"""# Fashion-MNIST, class-conditional

{sum(p.numel() for p in model.denoiser.parameters()):,} parameters trained for {arguments.minutes:g} minutes
on {torch.get_num_threads()} threads of a CPU (`examples/train_fashion.yaml`), flow matching with EDM's
prediction, sampled by DPM-Solver++ 2M in 24 steps. {arguments.count} samples a row against {arguments.count}
pictures of the test split; 95 % intervals in brackets. The first row is what real pictures the model never
saw score against other real ones: the floor. The classifier, a small CNN, was trained on the real training
pictures alone. The feature network is named; these are not FID numbers. Written by `python
benchmarks/fashion.py`.

| pictures | class accuracy | frechet[{features.name}] | kid[{features.name}] | precision | recall |
|---|---|---|---|---|---|
{table}

![Eight samples of each class](fashion.png)
"""
    (arguments.out / "fashion.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
