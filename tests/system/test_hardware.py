"""Processes that load a finished model keep freed memory."""

import subprocess
import sys

import pytest

from skincancer.errors import RunError
from skincancer.inference import model
from skincancer.models import deep_features

GROWTH = """
import sys
from pathlib import Path
from skincancer.system.hardware import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
block = bytearray(b"x") * 200_000_000
del block
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("how", "kept"), [("keep", True), ("return", False)])
def test_process_keeps_freed_memory(how, kept):
    grown = subprocess.run([sys.executable, "-c", GROWTH, how], capture_output=True, text=True, check=True).stdout
    assert (int(grown) > 150_000_000) is kept


def test_loading_a_model_on_a_cpu_keeps_freed_memory(monkeypatch, tmp_path):
    callers = []
    for module in (model, deep_features):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: callers.append("model"))
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    # The memory setting precedes the error about the missing files.
    with pytest.raises(RunError):
        model.TrainedModel(tmp_path)
    assert callers == ["model"]
    deep_features.DeepFeatures("resnet18", deep_features.torch.nn.Identity())
    assert callers == ["model", "model"]
