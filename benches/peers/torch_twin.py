"""PyTorch's twin of the benches `forward` and `train_step`; prints petnet's median over PyTorch's.

Run by scripts/bench-peers.sh, after criterion has written its estimates.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn


class SimpleCNN(nn.Module):
    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 2))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.head(self.body((x / 255 - self.mean) / self.std).mean((2, 3)))


def images(count, side):
    values = torch.arange(count * 3 * side * side) * 7 % 256
    return values.float().view(count, 3, side, side)


def median_seconds(work, runs):
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def forward(count, side):
    network, batch = SimpleCNN().eval(), images(count, side)
    with torch.inference_mode():
        return median_seconds(lambda: network(batch), 20)


def train_step(count, side):
    network, batch = SimpleCNN().train(), images(count, side)
    targets = torch.arange(count) % 2
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss()

    def step():
        adam.zero_grad()
        loss(network(batch), targets).backward()
        adam.step()

    return median_seconds(step, 8)


def main(criterion):
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; medians, ms per image")
    print(f"{'':28}{'petnet':>9}{'PyTorch':>9}{'ratio':>7}")
    cases = [("forward", forward, side, count) for side, count in ((128, 1), (128, 16), (224, 1))]
    cases.append(("train_step", train_step, 128, 32))
    for group, twin, side, count in cases:
        name = f"{side}px_batch-{count}"
        estimates = json.loads((criterion / group / name / "new" / "estimates.json").read_text())
        ours = estimates["median"]["point_estimate"] / 1e6 / count
        theirs = twin(count, side) * 1e3 / count
        print(f"{group + ' ' + name:28}{ours:9.2f}{theirs:9.2f}{ours / theirs:7.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
