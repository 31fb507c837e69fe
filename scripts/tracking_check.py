"""Checks with MLflow's own client what petnet has recorded; run by tracking-test.sh."""

import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

NAME = "CatsDogsClassifier"
SERVER = "http://127.0.0.1:5001"


def runs(client):
    experiment = client.get_experiment_by_name("cats-dogs-classifier")
    return client.search_runs([experiment.experiment_id])


def registered():
    client = MlflowClient(SERVER)
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.name"].startswith("petnet-train fit")
    assert len(run.data.params) > 50 and "learning_rate" in run.data.params
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [m.step for m in history] == [1, 2, 3], history
    assert all(m.timestamp >= run.info.start_time for m in history)
    assert any(key.startswith("system/") for key in run.data.metrics)
    contexts = {d.tags[0].value for d in run.inputs.dataset_inputs}
    assert contexts == {"training", "validation", "testing"}, contexts
    files = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"loss_curves.png", "confusion_matrix.npy", "metrics.json", "report.html", "mistakes", "test"} <= files, files
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert str(model.status) in ("READY", "LoggedModelStatus.READY"), model.status
    version = client.get_model_version_by_alias(NAME, "champion")
    assert version.version in ("1", 1) and version.current_stage == "Production"
    assert version.run_id == run.info.run_id
    assert float(version.tags["petnet.test_accuracy"]) == run.data.metrics["test_accuracy"]
    print(f"test accuracy {run.data.metrics['test_accuracy']:.4f}, version {version.version} is champion and in Production")


def complete(store):
    """Every value of every metric file is there, once, with its own time."""
    client = MlflowClient(SERVER)
    local = {}
    for meta in Path(store).glob("[0-9]*/*/meta.yaml"):
        if (meta.parent / "metrics").is_dir() and meta.parent.parent.name != "models":
            local[meta.parent.name] = meta.parent / "metrics"
    there = {run.data.tags["petnet.id"]: run for run in runs(client)}
    assert there.keys() == local.keys(), (there.keys(), local.keys())
    count = 0
    for name, folder in local.items():
        assert there[name].info.status == "FINISHED", there[name].info
        for file in (f for f in folder.rglob("*") if f.is_file()):
            key = file.relative_to(folder).as_posix()
            lines = [line.split() for line in file.read_text().splitlines()]
            wanted = sorted((int(t), float(v), int(s)) for t, v, s in lines)
            history = client.get_metric_history(there[name].info.run_id, key)
            found = sorted((m.timestamp, m.value, m.step) for m in history)
            assert found == wanted, (name, key, len(found), len(wanted))
            if not key.startswith("system/"):
                assert len({step for _, _, step in found}) == len(found), f"{key} has a step twice"
            count += len(found)
    print(f"{len(local)} runs, {count} values, none lost, none doubled")


def migrated(uri):
    client = MlflowClient(uri, registry_uri=uri)
    found = runs(client)
    assert len(found) == 4 and all(run.data.metrics for run in found)
    print(f"{len(found)} runs after the migration")


def page():
    client = MlflowClient(SERVER)
    run = runs(client)[-1]
    print(f"{SERVER}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")


if __name__ == "__main__":
    {"registered": registered, "complete": complete, "migrated": migrated, "page": page}[sys.argv[1]](*sys.argv[2:])
