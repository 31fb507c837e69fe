"""LitServe with Pillow and ONNX Runtime: one worker process a core.

Usage: litserve_ort.py PORT WORKERS
"""

import sys

import litserve
import twin


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.session = twin.session()

    def decode_request(self, request):
        return request["file"].file.read()

    def predict(self, photo):
        return twin.answer(self.session, photo)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(api_path="/predict"), accelerator="cpu", workers_per_device=int(sys.argv[2]), track_requests=False
    )
    port = int(sys.argv[1])
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
