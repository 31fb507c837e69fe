"""The service as it is usually written: FastAPI, Pillow, PyTorch SimpleCNN at 224 px.

Run by scripts/rivals.sh; weights are random, which costs the same.
"""

import io
import time

import numpy as np
import torch
from fastapi import FastAPI, File, HTTPException, UploadFile
from PIL import Image

from torch_twin import SimpleCNN

app = FastAPI()
model = SimpleCNN().eval()
names = ["cat", "dog"]


@app.get("/health")
async def health():
    return {"status": "healthy", "model_loaded": True, "device": "cpu"}


@app.post("/predict")
async def predict(file: UploadFile = File(...)):
    if not (file.content_type or "").startswith("image/"):
        raise HTTPException(status_code=400, detail="File must be an image")
    began = time.perf_counter()
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    image = image.resize((224, 224), Image.LANCZOS)
    batch = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        probabilities = torch.softmax(model(batch), 1)[0]
    best = int(probabilities.argmax())
    return {
        "predicted_class": names[best],
        "predicted_label": best,
        "confidence": float(probabilities[best]),
        "probabilities": {name: float(p) for name, p in zip(names, probabilities)},
        "processing_time_ms": (time.perf_counter() - began) * 1e3,
    }
