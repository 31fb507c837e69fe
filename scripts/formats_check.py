"""Compares petnet with PyTorch and ONNX Runtime; see formats-test.sh."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import nn
from torchvision import models

sys.path.insert(0, "benches/peers")
from torch_twin import median_seconds  # noqa: E402

PETNET, WORK = sys.argv[1], Path(sys.argv[2])
SPEED = sys.argv[3] if len(sys.argv) > 3 else None
MEAN, STD = np.array([0.485, 0.456, 0.406], "float32"), np.array([0.229, 0.224, 0.225], "float32")


def petnet(*arguments):
    done = subprocess.run([PETNET, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class ReferenceCNN(nn.Module):
    """The reference system's network at its own widths."""

    def __init__(self, channels=(32, 64, 128, 256)):
        super().__init__()
        blocks, inputs = [], 3
        for outputs in channels:
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 2))

    def forward(self, x):
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def lived(network):
    """A network whose norms have seen something, so that a mix-up shows."""
    torch.manual_seed(11)
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(8, 3, 96, 96) * 1.5 + 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3)
                module.bias.uniform_(-0.3, 0.3)
    return network.eval()


def pictures(size):
    """Drawn ones at the model's size, and a photo at its own."""
    folder = WORK / f"pictures-{size}"
    folder.mkdir(exist_ok=True)
    y, x = np.mgrid[0:size, 0:size] / size
    for number in range(6):
        waves = [np.sin((x * (number + 2) + y * c) * 9 + number) for c in range(3)]
        pixels = (np.stack(waves, -1) * 100 + 127 + 20 * number % 60).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "photo.jpg").write_bytes(Path("examples/pictures/cat.jpg").read_bytes())
    return sorted(folder.iterdir())


def pixels(path, size):
    """`[1, 3, size, size]` of 0 to 255, as petnet's documentation of the ONNX file describes it."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.LANCZOS)
    return np.asarray(picture, "float32").transpose(2, 0, 1)[None]


def ask(model, paths):
    answers = petnet("predict", "--model", model, "--format", "jsonl", *paths)
    by_path = {a["path"]: list(a["probabilities"].values()) for a in map(json.loads, answers.splitlines())}
    return [by_path[str(path)] for path in paths]


def compare(what, paths, ours, theirs, limit, numbers=lambda p: p):
    worst = {"png": 0.0, "jpg": 0.0}
    for path, a, b in zip(paths, ours, theirs):
        far = float(np.abs(np.array(numbers(a)) - np.array(numbers(b))).max())
        worst[path.suffix[1:]] = max(worst[path.suffix[1:]], far)
    assert worst["png"] < limit, f"{what}: {worst}"
    print(f"{what}: {worst['png']:.1e} apart (limit {limit:.0e}); a photo resized by Pillow {worst['jpg']:.1e}")


def torch_says(network, paths, size):
    with torch.no_grad():
        for path in paths:
            x = (torch.from_numpy(pixels(path, size)) / 255 - torch.from_numpy(MEAN).view(3, 1, 1)) / torch.from_numpy(
                STD
            ).view(3, 1, 1)
            yield torch.softmax(network(x).double(), 1)[0].tolist()


def logits(probabilities):
    """Up to a constant, which softmax forgets."""
    logs = [math.log(p) for p in probabilities]
    mean = sum(logs) / len(logs)
    return [value - mean for value in logs]


def runtime_says(model, paths, size):
    file = WORK / "model.onnx"
    petnet("export", "--model", model, "--out", file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for path in paths:
        yield session.run(["probabilities"], {"images": pixels(path, size)})[0][0].tolist()


def imported(name, network, size, file, extra=()):
    model = WORK / f"{name}.safetensors"
    petnet("import", file, "--out", model, "--image-size", size, *extra)
    paths = pictures(size)
    ours, theirs = ask(model, paths), list(torch_says(network, paths, size))
    compare(f"{name} from {file.name}, probabilities, petnet and PyTorch", paths, ours, theirs, 1e-4)
    if len(theirs[0]) > 2:
        compare(f"{name} from {file.name}, logits, petnet and PyTorch", paths, ours, theirs, 1e-3, logits)
    compare(f"{name}, petnet and ONNX Runtime", paths, ours, list(runtime_says(model, paths, size)), 1e-4)


reference = lived(ReferenceCNN())
config = {"model_name": "simple_cnn", "num_classes": 2, "dropout_rate": 0.5}
state = {"epoch": 1, "model_state_dict": reference.state_dict(), "config": config}
torch.save(state, WORK / "best_model.pt")
imported("simple_cnn", reference, 224, WORK / "best_model.pt")

residual = lived(models.resnet18(num_classes=37))
names = ("--labels", ",".join(f"class {n}" for n in range(37)))
torch.save(residual.state_dict(), WORK / "resnet18.pth")
imported("resnet18", residual, 224, WORK / "resnet18.pth", names)
save_file({k: v for k, v in residual.state_dict().items()}, WORK / "bare.safetensors")
imported("resnet18", residual, 160, WORK / "bare.safetensors", names)

paths = pictures(160)
compare("bundled network, petnet and ONNX Runtime", paths, ask("pretrained", paths), list(runtime_says("pretrained", paths, 160)), 1e-4)


def median_ms(work, photos):
    return median_seconds(work) * 1e3 / photos


def speed():
    """resnet18 at 224 pixels on two threads, turn by turn in one run; PyTorch in the faster of its layouts."""
    torch.set_num_threads(2)
    model, file = WORK / "resnet18.safetensors", WORK / "speed.onnx"
    petnet("import", WORK / "resnet18.pth", "--out", model, *names)
    petnet("export", "--model", model, "--out", file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    layouts = {layout: models.resnet18(num_classes=37).eval().to(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)}
    for photos in (1, 16):
        rounds = []
        images = np.random.default_rng(1).uniform(0, 255, (photos, 3, 224, 224)).astype("float32")
        for _ in range(5):
            done = subprocess.run([SPEED, "forward", model, "224", str(photos)], capture_output=True, text=True, check=True)
            ours = float(done.stdout.split()[0])
            onnx_ms = median_ms(lambda: session.run(None, {"images": images}), photos)
            with torch.inference_mode():
                torch_ms = min(
                    median_ms(lambda: net(torch.from_numpy(images).to(memory_format=layout)), photos)
                    for layout, net in layouts.items()
                )
            rounds.append((ours, onnx_ms, torch_ms, ours / onnx_ms, ours / torch_ms))
        ours, onnx_ms, torch_ms, over_onnx, over_torch = map(statistics.median, zip(*rounds))
        print(
            f"resnet18, 224 px, {photos} photos, ms each: petnet {ours:.2f}, ONNX Runtime {onnx_ms:.2f}, "
            f"PyTorch {torch_ms:.2f}; ratios {over_onnx:.2f} and {over_torch:.2f}"
        )
    rounds = []
    for _ in range(5):
        done = subprocess.run([SPEED, "step", "resnet18", "128", "16"], capture_output=True, text=True, check=True)
        ours, theirs = float(done.stdout.split()[0]), min(step_ms(layout) for layout in layouts)
        rounds.append((ours, theirs, ours / theirs))
    ours, theirs, ratio = map(statistics.median, zip(*rounds))
    print(f"resnet18, 128 px, 16 photos, training step, ms each: petnet {ours:.2f}, PyTorch {theirs:.2f}; ratio {ratio:.2f}")


def step_ms(layout):
    network = models.resnet18(num_classes=2).to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    images, targets = torch.rand(16, 3, 128, 128).to(memory_format=layout), torch.arange(16) % 2

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), targets).backward()
        optimizer.step()

    return median_ms(step, 16)


if SPEED:
    speed()
