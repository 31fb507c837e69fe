"""Triton's gRPC client compared with its HTTP client; run by scripts/triton-test.sh."""

import io
import sys
import threading
import time

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.http as http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from tritonclient.utils import InferenceServerException

address, key, path = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"}
photo = open(path, "rb").read()
client = triton.InferenceServerClient(address)
other = http.InferenceServerClient(address)

assert client.is_server_live() and client.is_server_ready()
assert "model_repository" in client.get_server_metadata().extensions
index = client.get_model_repository_index(headers=headers).models
name = index[0].name
assert [model.state for model in index] == ["READY", "READY"], index
assert client.is_model_ready(name, headers=headers)
metadata = client.get_model_metadata(name, headers=headers)
assert (metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == ("image", "BYTES", [-1])


def ask(kind, tensor, model=name, outputs=None, **more):
    api = {client: triton, other: http}[kind]
    entry = api.InferInput("image" if model == name else "pixels", tensor.shape, "FP32" if tensor.dtype == np.float32 else "BYTES")
    entry.set_data_from_numpy(tensor)
    wanted = [api.InferRequestedOutput(output, class_count=count) for output, count in outputs] if outputs else None
    return kind.infer(model, [entry], outputs=wanted, headers=dict(headers), **more)


photos = np.array([photo, photo], dtype=object)
answer, same = ask(client, photos, request_id="4711"), ask(other, photos)
assert answer.get_response().id == "4711"
assert np.array_equal(answer.as_numpy("probabilities"), same.as_numpy("probabilities"))
assert answer.as_numpy("label").tolist() == same.as_numpy("label").tolist() == [b"cat", b"cat"]
wanted = [("probabilities", 1), ("embedding", 0)]
top = ask(client, photos, outputs=wanted)
assert top.as_numpy("probabilities")[0][0].decode().endswith(":0:cat"), top.as_numpy("probabilities")
assert np.allclose(np.linalg.norm(top.as_numpy("embedding"), axis=1), 1, atol=1e-4)

size = client.get_model_metadata(f"{name}-pixels", headers=headers).inputs[0].shape[-1]
picture = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB").resize((size, size)), dtype=np.float32)
pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
tensors = [ask(kind, pixels, model=f"{name}-pixels").as_numpy("probabilities") for kind in (client, other)]
assert np.array_equal(*tensors)


def refused(code, work):
    try:
        work()
    except InferenceServerException as error:
        assert code in error.status(), error
    else:
        raise AssertionError(f"no {code}")


refused("NOT_FOUND", lambda: client.get_model_metadata("other", headers=headers))
refused("UNAUTHENTICATED", lambda: client.get_model_metadata(name))
refused("INVALID_ARGUMENT", lambda: ask(client, np.array([b"junk"], dtype=object)))
refused("DEADLINE_EXCEEDED", lambda: ask(client, photos, client_timeout=0.0005))

# Concurrent calls on one connection, one of which is cancelled.
answers = []
calls = threading.Event()


def done(result, error):
    answers.append(error or result)
    if len(answers) == 16:
        calls.set()


entry = triton.InferInput("image", photos.shape, "BYTES")
entry.set_data_from_numpy(photos)
pending = [client.async_infer(name, [entry], done, headers=headers) for _ in range(16)]
pending[7].cancel()
assert calls.wait(20)
assert sum(not isinstance(result, Exception) for result in answers) >= 15, answers

client.unload_model(name, headers=headers)
assert not client.is_model_ready(name, headers=headers)
client.load_model(name, headers=headers)
assert client.is_model_ready(name, headers=headers)

channel = grpc.insecure_channel(address)
health = health_pb2_grpc.HealthStub(channel)
serving = health_pb2.HealthCheckResponse.SERVING
for service in ["", "inference.GRPCInferenceService"]:
    assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == serving
watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=5)
assert next(watch).status == serving
watch.cancel()
services = ProtoReflectionDescriptorDatabase(channel)
assert "inference.GRPCInferenceService" in services.get_services()
assert services.FindFileContainingSymbol("inference.GRPCInferenceService").package == "inference"

began = time.perf_counter()
for _ in range(100):
    ask(client, photos[:1])
print(f"gRPC: all calls as over HTTP; {(time.perf_counter() - began) * 10:.1f} ms an image")
