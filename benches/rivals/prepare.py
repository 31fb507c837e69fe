"""The inputs of scripts/rivals.py: a photograph, and the bundled model in the forms that the rivals read."""

import hashlib
import importlib.util
import io
import json
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy
import twin
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "petnet/models/cats-vs-dogs.safetensors"
# Width, height and bytes of the photograph that figures are given for.
SIZE = (500, 375)
BYTES = (45_000, 60_000)
CALIBRATION = 128


def photographs(archive):
    """The JPEG files of an archive."""
    return [entry for entry in archive.infolist() if entry.filename.lower().endswith((".jpg", ".jpeg"))]


def photo(source, path):
    """Writes the photograph that all services get, and says in words which it is.

    `source` is a JPEG, an archive of them, or None. An archive gives its first photograph of about SIZE and BYTES.
    Without one, the photograph is scikit-image's cat, and without that package a drawing.
    """
    if source and Path(source).suffix.lower() != ".zip":
        path.write_bytes(Path(source).read_bytes())
        return f"{source}"
    if source and Path(source).exists():
        with zipfile.ZipFile(source) as archive:
            for entry in photographs(archive):
                if not BYTES[0] <= entry.file_size <= BYTES[1]:
                    continue
                data = archive.read(entry)
                width, height = Image.open(io.BytesIO(data)).size
                if abs(width - SIZE[0]) < 50 and abs(height - SIZE[1]) < 50:
                    path.write_bytes(data)
                    return f"{entry.filename} of {source}"
    package = importlib.util.find_spec("skimage")
    cat = Path(package.origin).parent / "data/chelsea.png" if package else None
    if cat and cat.exists():
        image = Image.open(cat).convert("RGB")
        # Its sides become 4 to 3, and the file has about as many bytes as a camera's image of this size.
        image.crop((25, 0, 425, 300)).resize(SIZE, Image.Resampling.LANCZOS).save(path, quality=92)
        return "a photograph of a cat (scikit-image's chelsea.png)"
    return drawing(path)


def drawing(path):
    """Smooth shapes with some grain: about the bytes of a real photo of this size."""
    y, x = numpy.mgrid[0 : SIZE[1], 0 : SIZE[0]].astype(numpy.float32)
    grain = numpy.random.default_rng(1).normal(0, 9, (SIZE[1], SIZE[0], 3))
    waves = [numpy.sin(x / 31 + c) * 60 + numpy.cos(y / 23 - c) * 50 + 128 for c in range(3)]
    pixels = numpy.clip(numpy.stack(waves, 2) + grain, 0, 255).astype(numpy.uint8)
    Image.fromarray(pixels).save(path, quality=85)
    return "a drawing"


def onnx(petnet_train, path):
    """The bundled model as a float ONNX file."""
    command = [petnet_train, "export", "--quiet", "--model", "pretrained", "--out", path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def onnx_int8(source, archive, path):
    """The ONNX file with int8 weights and activations, as ONNX Runtime's static quantization writes it."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with zipfile.ZipFile(archive) as photos:
        entries = photographs(photos)
        entries = entries[:: max(len(entries) // CALIBRATION, 1)][:CALIBRATION]
        tensors = [{"images": twin.tensor(photos.read(entry))} for entry in entries]

    class Reader(quantization.CalibrationDataReader):
        rest = iter(tensors)

        def get_next(self):
            return next(self.rest, None)

    folded = path.with_suffix(".folded.onnx")
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    quantization.quantize_static(
        folded,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Clip", "Gemm", "GlobalAveragePool", "Add"],
    )


def petnet_float(path):
    """The bundled model without its int8 ranges, so that petnet computes in float as ONNX Runtime does by default."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(BUNDLED)
    with open(BUNDLED, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    info = json.loads(header["__metadata__"]["petnet"])
    del info["quantization"]
    info = json.dumps(info)
    digest = hashlib.sha256(info.encode())
    for name in sorted(tensors, key=str.encode):
        data = tensors[name].tobytes()
        digest.update(name.encode() + struct.pack("<Q", len(data)) + data)
    save_file(tensors, path, {"petnet": info, "sha256": digest.hexdigest()})


def simple_cnn(petnet_train, folder):
    """PyTorch's twin as a petnet model: one step of training, as the weights do not matter but their number does."""
    random = numpy.random.default_rng(2)
    for name in twin.NAMES:
        (folder / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{number}.png")
    config = folder / "tiny.yaml"
    config.write_text("image_size: 224\nnum_epochs: 1\nbatch_size: 4\n")
    command = [petnet_train, "fit", "--quiet", "--config", config, "--data", folder / "data", "--out", folder / "model"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "model/best.safetensors"
