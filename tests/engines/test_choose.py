"""The engine of a command, from its flags and the GPUs of the machine."""

import pytest

from skincancer.engines import choose
from skincancer.engines.local import LocalEngine
from skincancer.engines.orders import Order
from skincancer.engines.resources import Resources
from skincancer.errors import ConfigError
from skincancer.runs.store import RunStore


@pytest.fixture
def make(tmp_path, store, monkeypatch):
    def engine(found: int, accelerator: str = "auto", **resources) -> LocalEngine:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("skincancer.engines.local.usable_cores", lambda: 8)
        monkeypatch.setattr(choose, "visible_devices", lambda: [str(number) for number in range(found)])
        check = Order(-1, "check", "check")
        return choose.make_engine(Resources(**resources), tmp_path, RunStore(None), accelerator, check, {}, print)

    return engine


@pytest.mark.parametrize(
    ("gpus", "resources", "workers", "threads"),
    [
        (0, {}, 1, 8),
        (0, {"workers": 4}, 4, 2),
        (0, {"workers": 2, "cpus": 3}, 2, 3),
        (2, {}, 2, None),
        (2, {"gpus": 0.5}, 4, None),
        (2, {"gpus": 0.4}, 4, None),  # a third order would use shares of two GPUs
        (1, {"gpus": 0.1}, 10, None),
        (2, {"workers": 3, "cpus": 4}, 3, 4),
    ],
)
def test_orders_at_the_same_time(make, store, capsys, gpus, resources, workers, threads):
    engine = make(gpus, **resources)
    assert (engine.workers, engine.threads, len(engine.devices)) == (workers, threads, gpus)
    assert ("3 processes share 2 GPUs" in capsys.readouterr().out) is (workers == 3)
    variables = engine._variables(workers - 1)
    assert variables["MLFLOW_TRACKING_URI"] == store
    assert variables.get("OMP_NUM_THREADS") == (str(threads) if threads else None)
    assert variables.get("CUDA_VISIBLE_DEVICES") == (str((workers - 1) % gpus) if gpus else None)


def test_orders_without_a_share_of_a_gpu_see_none(make):
    engine = make(2, gpus=0)
    assert engine.devices == []
    assert engine._variables(0)["CUDA_VISIBLE_DEVICES"] == ""


def test_a_share_of_a_gpu_needs_a_gpu(make):
    for gpus, accelerator in ((0, "auto"), (2, "cpu")):
        with pytest.raises(ConfigError, match=r"--gpus-per-trial is 0\.5, but this machine has no GPU"):
            make(gpus, accelerator, gpus=0.5)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"cluster": "head"}, "expected HOST:PORT, auto or local"),
        ({"cluster": "auto"}, "RAY_ADDRESS is not set"),
        ({"gpus": 2}, "--gpus-per-trial is 2"),
        ({"cpus": 0}, "--cpus-per-trial is 0"),
    ],
)
def test_wrong_resources_of_python_callers_are_refused(resources, message, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=message):
        Resources(**resources)
