"""Test a segmentation run with one, four and eight views of each image.

    python benchmarks/tta.py RUN_ID [--tracking.uri URI]

The threshold is chosen on the validation images for each number of views.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.config.resolve import resolve
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.prepare import prepare_data
from skincancer.metrics.estimates import mean_intervals
from skincancer.models.factory import load_task
from skincancer.models.lightning import quiet_lightning
from skincancer.runs.artifacts import CONFIG_FILE
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.system.hardware import keep_freed_memory
from skincancer.training.trainer import choose_threshold

METRICS = ("dice", "jaccard", "thresholded_jaccard", "hd95")


def main() -> None:
    """Print one line per number of views."""
    parser = argparse.ArgumentParser(description="Test-time augmentation of a segmenter.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_ID")
    parser.add_argument("--views", nargs="+", default=["none", "flips", "d4"], choices=["none", "flips", "d4"])
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="MLflow store of the run")
    given = parser.parse_args()
    quiet_lightning()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        run = FinishedRun(given.run, RunStore(given.uri))
        # The choice of a threshold rewrites the checkpoint.
        checkpoint = Path(shutil.copy(run.checkpoint, folder))
        experiment, _ = resolve(str(run.file(CONFIG_FILE)), {})
        task = load_task(checkpoint)
        data = prepare_data(experiment.data, task=experiment.task)
        module = LesionDataModule(
            data, batch_size=experiment.data.batch_size, balance="none", balance_fixed=False, augment=experiment.augment,
            seed=experiment.seed,
        )  # fmt: skip
        trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False)
        mask = dataclasses.replace(experiment.model.mask, threshold="auto")
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, mask=mask))
        for views in given.views:
            task.hparams["tta"] = views
            which = {"datamodule": module, "ckpt_path": checkpoint, "weights_only": True, "verbose": False}
            choose_threshold(experiment, data, task, trainer, which)
            trainer.test(task, **which)
            table = task.predictions.table.assign(lesion_id=data.index["lesion_id"].to_numpy()[task.predictions.index])
            shown = mean_intervals(table, METRICS, table["lesion_id"].to_numpy()).set_index("metric")
            print(f"{views:<6} threshold {task.threshold:.2f} " + "  ".join(line(name, shown) for name in METRICS))


def line(name: str, shown: pd.DataFrame) -> str:
    """Format a metric with its interval."""
    value, low, high = (float(shown.loc[name, column]) for column in ("value", "low", "high"))
    return f"{name} {value:.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    main()
