"""SQLite database of an MLflow store: check of tables and version."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from alembic.script import ScriptDirectory
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import _get_alembic_config

# Tables of every version of MLflow. A study of Optuna has the last one too.
_ALWAYS = {"experiments", "runs", "alembic_version"}


def describe_database(path: Path) -> str:
    """Return why MLflow cannot use a SQLite file, or "".

    MLflow itself would add its tables to any database, and migrate older ones without a backup.
    """
    tables: set[str] = set()
    version = ""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" in tables:
                ((version,),) = database.execute("SELECT version_num FROM alembic_version").fetchall() or [("",)]
    except sqlite3.OperationalError:
        # A file that is missing, locked or in a read-only folder. MLflow creates it, or reports why it cannot be opened.
        return ""
    except sqlite3.DatabaseError:
        return "the file is not a SQLite database"
    missing = set(Base.metadata.tables) - tables
    if not tables:
        return ""
    if not tables >= _ALWAYS:
        return "the file is not a complete MLflow database (delete the file if an interrupted command has created it)"
    known = [script.revision for script in ScriptDirectory.from_config(_get_alembic_config("")).walk_revisions()]
    if version not in known:
        return "the database was written by a newer MLflow (install that version: pip install --upgrade mlflow)"
    if version != known[0]:
        return "the database was written by an older MLflow (copy the file, then run `mlflow db upgrade` on its URI)"
    if missing:
        return f"the database lacks the table {min(missing)} (restore a copy of the file)"
    return ""
