"""Traffic and a pager for scripts/monitoring-test.sh.

  monitoring_traffic.py unpack ARCHIVE.zip FOLDER     train/ and test/ with a few hundred images a class
  monitoring_traffic.py mixed|day|night FOLDER        images to the service; FOLDER/<class>/*.jpg
  monitoring_traffic.py families METRICS.txt          are all metric families of the Python service there?
  monitoring_traffic.py receive PORT FILE             writes each notification as a line
"""

import argparse
import concurrent.futures
import http.client
import http.server
import io
import json
import pathlib
import random
import re
import time
import zipfile

SERVICE = ("127.0.0.1", 18000)
FAMILIES = """api_requests_total requests_per_minute api_request_latency_seconds api_predictions_total
model_prediction_confidence model_accuracy model_precision model_recall model_f1_score api_errors_total api_error_rate
process_cpu_usage_percent process_memory_usage_mb gpu_utilization_percent gpu_memory_used_mb batch_queue_depth batch_size_avg
batch_throughput_images_per_second preprocessing_duration_seconds preprocessing_images_total validation_duration_seconds
input_image_size_total dvc_pulls_total pet_adoptions_total active_user_sessions user_session_duration_seconds current_hour
current_day_of_week service_uptime_seconds data_version_timestamp model_last_trained_timestamp""".split()


def unpack(archive, folder):
    photos = zipfile.ZipFile(archive)
    names = [n for n in photos.namelist() if n.lower().endswith(".jpg") and photos.getinfo(n).file_size]
    for number, kind in enumerate(["cat", "dog"]):
        mine = sorted(n for n in names if f"/{kind}/" in n.lower())
        random.Random(number).shuffle(mine)
        for part, chosen in [("train", mine[:300]), ("test", mine[300:700])]:
            place = pathlib.Path(folder, part, kind)
            place.mkdir(parents=True, exist_ok=True)
            for name in chosen:
                (place / pathlib.Path(name).name).write_bytes(photos.read(name))


def ask(method, path, body=None, kind="application/json", headers=None):
    connection = http.client.HTTPConnection(*SERVICE, timeout=30)
    connection.request(method, path, body, {"content-type": kind, **(headers or {})})
    reply = connection.getresponse()
    return reply.status, reply.read()


def predict(photo, visitor=None):
    headers = {"x-forwarded-for": f"10.0.0.{visitor}"} if visitor else None
    status, body = ask("POST", "/predict", photo, "image/jpeg", headers)
    return status, json.loads(body)


def labelled(folder):
    photos = [(p.parent.name, p) for p in pathlib.Path(folder).glob("*/*.jpg")]
    random.Random(7).shuffle(photos)
    return photos


def mixed(folder, seconds):
    photos, began, counts = labelled(folder), time.monotonic(), {}
    turn = 0
    while time.monotonic() - began < seconds:
        label, path = photos[turn % len(photos)]
        # Visitors change, so that sessions end as well.
        visitor = int(time.monotonic() - began) // 15 * 9 + turn % 9 + 1
        status, answer = predict(path.read_bytes(), visitor)
        counts[status] = counts.get(status, 0) + 1
        if status == 200 and turn % 2 == 0:
            given = {"prediction_id": answer["prediction_id"], "label": label}
            status, _ = ask("POST", "/feedback", json.dumps(given))
            assert status == 200, status
        if turn % 25 == 0:
            ask("POST", "/events/adoption", json.dumps({"species": label}))
            ask("GET", "/health")
            ask("POST", "/predict", b"no photo", "image/jpeg")
            ask("POST", "/explain", path.read_bytes(), "image/jpeg")
        if turn % 200 == 100:
            with concurrent.futures.ThreadPoolExecutor(40) as crowd:
                burst = [crowd.submit(predict, path.read_bytes()) for _ in range(120)]
                for status, _ in (each.result() for each in burst):
                    counts[status] = counts.get(status, 0) + 1
        turn += 1
        time.sleep(0.03)
    print("answers by status:", counts)
    assert counts.get(200, 0) > 300 and counts.get(503, 0) > 0, counts


def steady(folder, count, light):
    from PIL import Image, ImageEnhance

    for number, (_, path) in zip(range(count), labelled(folder)):
        photo = path.read_bytes()
        if light != 1:
            dark = io.BytesIO()
            ImageEnhance.Brightness(Image.open(path).convert("RGB")).enhance(light).save(dark, "JPEG")
            photo = dark.getvalue()
        status, _ = predict(photo, visitor=number % 9 + 1)
        assert status == 200, status


def families(file):
    text = pathlib.Path(file).read_text()
    served = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    missing = [name for name in FAMILIES if name not in served]
    print(f"{len(FAMILIES) - len(missing)} of the Python service's {len(FAMILIES)} families; absent: {missing}")
    gpu = list(pathlib.Path("/sys/class/drm").glob("card*/device/gpu_busy_percent"))
    assert gpu or set(missing) == {"gpu_utilization_percent", "gpu_memory_used_mb"}, missing


class Pager(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with open(self.server.file, "a", encoding="utf-8") as pages:
            for alert in message["alerts"]:
                entry = {"status": alert["status"], "name": alert["labels"]["alertname"], **alert["annotations"]}
                pages.write(json.dumps(entry) + "\n")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def receive(port, file):
    server = http.server.HTTPServer(("127.0.0.1", int(port)), Pager)
    server.file = file
    open(file, "a", encoding="utf-8").close()
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what")
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=400)
    given = parser.parse_args()
    {
        "unpack": lambda: unpack(*given.arguments),
        "mixed": lambda: mixed(*given.arguments, given.seconds),
        "day": lambda: steady(*given.arguments, given.count, 1),
        "night": lambda: steady(*given.arguments, given.count, 0.25),
        "families": lambda: families(*given.arguments),
        "receive": lambda: receive(*given.arguments),
    }[given.what]()
