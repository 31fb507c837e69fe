"""The generated client in use: openapi-python-client generate --url http://HOST:8000/openapi.json"""

import sys

from petnet_client import Client
from petnet_client.api.feedback import say_what_an_answer_should_have_been as tell
from petnet_client.api.prediction import classify_a_photo
from petnet_client.api.status import health_as_existing_clients_know_it as health
from petnet_client.models import Feedback, Problem
from petnet_client.types import File

url, photo = sys.argv[1:]
client = Client(base_url=url)
assert health.sync(client=client).model_loaded

with open(photo, "rb") as file:
    answer = classify_a_photo.sync(client=client, body=File(payload=file.read()))
print(answer.predicted_class, answer.confidence, answer.probabilities.to_dict())
print(answer.decision, answer.reason, answer.message, answer.ood_score)
assert (answer.decision == "unsure") == (answer.reason is not None) == (answer.message is not None)
assert answer.predicted_class == "cat"

taken = tell.sync(client=client, body=Feedback(prediction_id=answer.prediction_id, label="cat"))
assert taken.correct

refused = classify_a_photo.sync(client=client, body=File(payload=b"no picture"))
assert isinstance(refused, Problem), refused
print("refused:", refused.detail)
