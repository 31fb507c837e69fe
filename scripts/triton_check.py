"""petnet-serve under Triton's HTTP client; run by scripts/triton-test.sh."""

import io
import sys

import numpy as np
import tritonclient.http as triton
from PIL import Image

address, key, path = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"}
photo = open(path, "rb").read()
client = triton.InferenceServerClient(address)

assert client.is_server_live() and client.is_server_ready()
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
index = client.get_model_repository_index(headers=headers)
assert [model["state"] for model in index] == ["READY", "READY"], index
name = index[0]["name"]
assert client.is_model_ready(name, headers=headers)
metadata = client.get_model_metadata(name, headers=headers)
assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}], metadata
assert client.get_model_config(name, headers=headers)["platform"] == "petnet"


def infer(model, tensor, binary=True, outputs=None, **more):
    entry = triton.InferInput(metadata_of(model)["inputs"][0]["name"], tensor.shape, kind(tensor))
    entry.set_data_from_numpy(tensor, binary_data=binary)
    # The client writes into the headers that it is given.
    return client.infer(model, [entry], outputs=outputs, headers=dict(headers), **more)


def kind(tensor):
    return "FP32" if tensor.dtype == np.float32 else "BYTES"


def metadata_of(model):
    return client.get_model_metadata(model, headers=headers)


photos = np.array([photo, photo], dtype=object)
answer = infer(name, photos, request_id="4711")
probabilities = answer.as_numpy("probabilities")
assert answer.get_response()["id"] == "4711"
assert probabilities.shape == (2, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
assert answer.as_numpy("label").tolist() == [b"cat", b"cat"], answer.as_numpy("label")
decisions = answer.as_numpy("decision").tolist()
assert decisions[0] == decisions[1] and decisions[0] in [b"answered", b"low_confidence", b"out_of_distribution"], decisions

wanted = [
    triton.InferRequestedOutput("probabilities", binary_data=False),
    triton.InferRequestedOutput("label", binary_data=True),
]
mixed = infer(name, photos, outputs=wanted)
assert np.allclose(mixed.as_numpy("probabilities"), probabilities, atol=1e-6)
top = infer(name, photos, outputs=[triton.InferRequestedOutput("probabilities", class_count=1)])
assert top.as_numpy("probabilities")[0][0].decode().endswith(":0:cat")

for coding in ["gzip", "deflate"]:
    packed = infer(name, photos, request_compression_algorithm=coding, response_compression_algorithm=coding)
    assert np.allclose(packed.as_numpy("probabilities"), probabilities, atol=1e-6), coding

pixels = f"{name}-pixels"
side = metadata_of(pixels)["inputs"][0]["shape"][-1]
picture = Image.open(io.BytesIO(photo)).convert("RGB").resize((side, side), Image.LANCZOS)
tensor = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)[None]
for binary in [True, False]:
    close = infer(pixels, np.ascontiguousarray(tensor), binary=binary).as_numpy("probabilities")
    assert abs(close[0][0] - probabilities[0][0]) < 0.05, (close, probabilities)

try:
    infer(name, np.array([b"no picture"], dtype=object))
    raise AssertionError("nonsense was taken")
except triton.InferenceServerException as error:
    assert "not a JPEG" in error.message(), error
stats = client.get_inference_statistics(name, headers=headers)["model_stats"][0]
assert stats["inference_stats"]["success"]["count"] == 5 and stats["inference_stats"]["fail"]["count"] == 1, stats
client.unload_model(name, headers=headers)
assert client.is_server_live() and not client.is_server_ready()
client.load_model(name, headers=headers)
assert client.is_server_ready()
print("tritonclient over HTTP: images and tensors, binary and JSON, gzip and deflate, classes, statistics, repository")
