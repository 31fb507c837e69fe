"""FastAPI, Pillow and ONNX Runtime. The handler is synchronous, so that the event loop stays free.

HANDLERS is the number of requests that one process works on at a time; Pillow and ONNX Runtime release the GIL.
"""

import os
from contextlib import asynccontextmanager

import anyio.to_thread
import twin
from fastapi import FastAPI, File, HTTPException, UploadFile

session = twin.session()


@asynccontextmanager
async def lifespan(app):
    # The default of 40 threads would share the cores among 40 inferences.
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(os.environ.get("HANDLERS", "1"))
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
def health():
    return {"status": "healthy", "model_loaded": True, "device": "cpu"}


@app.post("/predict")
def predict(file: UploadFile = File(...)):
    if not (file.content_type or "").startswith("image/"):
        raise HTTPException(status_code=400, detail="File must be an image")
    return twin.answer(session, file.file.read())
