"""How many replicas a cluster begins with, without a cluster."""

import pytest

pytest.importorskip("ray", reason="Ray Serve is not installed")

from serve.cluster import __main__ as cluster
from serve.config import Config


@pytest.mark.parametrize(
    ("section", "gpus", "cpu", "expected"),
    [
        ({}, 8, False, 8),
        ({}, 8, True, 1),
        ({}, 0, False, 1),
        ({"replicas": 3}, 8, False, 3),
        ({"max_replicas": 4}, 8, False, 4),
        ({"replicas": 2, "max_replicas": 4}, 8, False, 2),
    ],
)
def test_how_many_replicas(monkeypatch, section, gpus, cpu, expected):
    begun = []
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": gpus})
    monkeypatch.setattr(cluster.serve, "start", lambda **_: None)
    monkeypatch.setattr(cluster, "deployed", lambda: None)
    monkeypatch.setattr(cluster.serve, "run", lambda *_, **__: None)
    monkeypatch.setattr(
        cluster, "deployment", lambda config, replicas, **options: begun.append(replicas)
    )
    (line, *_) = cluster.begin(
        Config.model_validate({"cluster": section, "gpus": {"count": 0 if cpu else gpus}}),
        "cpu" if cpu else None,
    )
    count = f"{expected} replica{'s' * (expected > 1)}"
    assert (
        begun == [expected] and line == f"{count} on {'the CPU' if cpu or not gpus else 'GPUs'}: "
    )
