"""Test that a database of another MLflow, or of another program, is reported and left unchanged."""

import re
import sqlite3
from pathlib import Path

import optuna
import pytest
from conftest import empty_database

from skincancer import compare
from skincancer.runs.store import RunStore


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An empty MLflow database."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_database())
    return path


def execute(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)


def newer(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")


def newer_without_a_table(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = 'ffffffffffff'", "DROP TABLE trace_tags")


def older(path: Path) -> None:
    # The version of MLflow 2.0.
    execute(path, "UPDATE alembic_version SET version_num = 'cc1f77228345'", "DROP TABLE logged_models")


def without_a_table(path: Path) -> None:
    execute(path, "DROP TABLE logged_model_tags")


def another_program(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE patients (id INTEGER)")


def optuna_study(path: Path) -> None:
    path.unlink()
    optuna.create_study(storage=f"sqlite:///{path}")


def half_made(path: Path) -> None:
    execute(path, "DROP TABLE alembic_version")


def text_file(path: Path) -> None:
    path.write_text("not a database " * 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (newer, "written by a newer MLflow"),
        (newer_without_a_table, "written by a newer MLflow"),
        (older, "written by an older MLflow .*mlflow db upgrade"),
        (without_a_table, "lacks the table logged_model_tags"),
        (another_program, "not a complete MLflow database"),
        (optuna_study, "not a complete MLflow database"),
        (half_made, "not a complete MLflow database .*delete the file"),
        (text_file, "not a SQLite database"),
    ],
)
def test_another_database_is_reported_and_kept(database, change, reason, capsys):
    change(database)
    before = database.read_bytes()
    assert compare.main(["--experiments", "resnet50", "vit_small", "--tracking.uri", f"sqlite:///{database}"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith(f"error: the tracking store sqlite:///{database} cannot be opened: the ")
    assert re.search(reason, error)
    assert "Traceback" not in error
    assert database.read_bytes() == before


def test_a_missing_or_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "empty.db").touch()
    for name in ("empty.db", "new.db"):
        assert RunStore(f"sqlite:///{tmp_path}/{name}").client.search_experiments()
