"""BentoML with Pillow and ONNX Runtime: one worker process a core.

WORKERS is the number of processes.
"""

import os
from pathlib import Path
from typing import Annotated

import bentoml
import twin
from bentoml.validators import ContentType


@bentoml.service(
    workers=int(os.environ.get("WORKERS", "1")),
    threads=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    def __init__(self):
        self.session = twin.session()

    @bentoml.api(route="/predict")
    def predict(self, file: Annotated[Path, ContentType("image/*")]) -> dict:
        return twin.answer(self.session, file.read_bytes())
