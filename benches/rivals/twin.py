"""Inference of the exported ONNX file with Pillow and ONNX Runtime, which the Python rivals share.

MODEL is the file, THREADS the number of threads of one inference.
"""

import io
import os
import time

import numpy
import onnxruntime
from PIL import Image

NAMES = ["cat", "dog"]
SIDE = 224
THREADS = int(os.environ.get("THREADS", "1"))


def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def tensor(photo):
    """The square that the network sees, as `[1, 3, SIDE, SIDE]`."""
    image = Image.open(io.BytesIO(photo))
    # The inverse DCT of a large JPEG scales it down, to twice the side or more, so that Lanczos still antialiases.
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return numpy.asarray(square).transpose(2, 0, 1)[None].astype(numpy.float32)


def answer(session, photo):
    began = time.perf_counter()
    probabilities = session.run(["probabilities"], {"images": tensor(photo)})[0][0].tolist()
    best = probabilities.index(max(probabilities))
    return {
        "predicted_class": NAMES[best],
        "predicted_label": best,
        "confidence": probabilities[best],
        "probabilities": dict(zip(NAMES, probabilities)),
        "processing_time_ms": (time.perf_counter() - began) * 1e3,
    }
