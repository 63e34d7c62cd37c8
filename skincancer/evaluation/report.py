"""`report.html` of a fit: what was trained on what, how well it does, what it gets wrong, how to repeat it; from the run's files alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities import Run as MlflowRun

from skincancer.evaluation import report_results, report_setup
from skincancer.evaluation.pages import write_page
from skincancer.evaluation.run_files import RunFiles, Thumbnails

REPORT_FILE = "report.html"
NO_DEVICE = "Research software. No medical device: not for diagnosis, and not for decisions about patients."


def write_report(folder: Path, run: MlflowRun, thumbnails: Thumbnails) -> Path:
    """Write `report.html` into the folder of a run's artifacts.

    Args:
        folder: with config.yaml, classes.json, split.csv and predictions/test.csv; every other file that is there has its place in
            the report, and what is not there has none.
        run: its params, tags, metrics and start.
        thumbnails: of the test images (`run_files.store_thumbnails`).

    Returns:
        The file.

    Raises:
        FileNotFoundError: one of the four is missing.
    """
    files = RunFiles(folder, run, thumbnails)
    settings = files.settings
    title = f"{settings['name']} · {files.entry.title} · {settings['data']['split']} · seed {settings['seed']}"
    start = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    description = settings.get("description") or ""
    subtitle = f"{description + '. ' if description else ''}Run {run.info.run_id}, {start:%d %B %Y, %H:%M} UTC."
    sections = [
        report_results.results_section(files),
        report_setup.data_section(files),
        report_setup.training_section(files),
        *report_results.figure_sections(files),
        report_results.subgroups_section(files),
        report_results.errors_section(files),
        report_results.predictions_section(files),
        report_setup.configuration_section(files),
        report_setup.environment_section(files),
        report_setup.licence_section(files.entry),
    ]
    return write_page(folder / REPORT_FILE, title, subtitle, sections, report_setup.warnings(files), NO_DEVICE)
