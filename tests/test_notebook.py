"""Test the notebook of the docs, and an interrupt of its kernel."""

import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from conftest import all_runs
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[1] / "docs/notebooks/first_steps.ipynb"


def client(notebook, folder, **options) -> NotebookClient:
    return NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **options
    )


def outputs(cell) -> list[str]:
    """MIME types of the outputs of a cell."""
    return [kind for output in cell.outputs for kind in output.get("data", {})]


@pytest.mark.slow
def test_first_steps_run_and_show_bars_tables_and_figures(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client(notebook, tmp_path).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [run.info.status for run in all_runs()] == ["FINISHED"] * 3
    (fit,) = (cell for cell in cells if "run = sc.fit_experiment" in cell.source)
    assert "application/vnd.jupyter.widget-view+json" in outputs(fit)
    assert not [output for output in fit.outputs if output.get("name") == "stderr"]
    (figure,) = (cell for cell in cells if "figures()" in cell.source)
    assert "image/png" in outputs(figure)
    (table,) = (cell for cell in cells if "find_runs" in cell.source)
    assert "text/html" in outputs(table)


@pytest.mark.slow
def test_kernel_interrupt_kills_the_run_and_keeps_the_kernel(tmp_path, tiny_demo):
    fit = (
        "import skincancer as sc\n"
        "values = {'model.backbone': 'test_efficientnet', 'model.weights': 'none', 'data.size': 32, 'trainer.max_epochs': 500,\n"
        f"          'trainer.accelerator': 'cpu', 'data.root': {str(tiny_demo)!r}, 'tracking.system_metrics': False}}\n"
        "sc.fit_experiment(sc.load_experiment('efficientnet_lite0', values))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(fit)])
    runner = client(notebook, tmp_path)

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any("train/loss" in run.data.metrics for run in all_runs()):
                os.kill(runner.km.provisioner.process.pid, signal.SIGINT)
                return
            time.sleep(0.5)

    with runner.setup_kernel():
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            runner.execute_cell(notebook.cells[0], 0)
        thread.join()
        (run,) = all_runs()
        assert run.info.status == "KILLED"
        after = nbformat.v4.new_code_cell("print(len(sc.list_experiments()) > 5)")
        notebook.cells.append(after)
        runner.execute_cell(after, 1)
        assert after.outputs[0]["text"] == "True\n"
