"""Storages of a sweep: journal, SQLite and PostgreSQL."""

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import postgres
import pytest
from conftest import make_store
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from stub_engine import run_trials
from test_study import create, objective, points

from skincancer.engines.orders import Result
from skincancer.errors import RunError
from skincancer.sweeps import storage
from skincancer.system import credentials

FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return f"journal://{tmp_path}/one.journal"


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return postgres.new_database(request.getfixturevalue("server"))
    return f"{request.param}:///{tmp_path}/one.{request.param}"


def test_a_sweep_goes_on_in_every_storage(url):
    first = create(url, 12)
    lost = first.ask()
    first.end(first.ask(), Result("complete", -1.0))
    sweep = create(url, 12)
    run_trials(sweep, objective, workers=3)
    found = sweep.trials()
    assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in found)
    kept = Counter(tuple(point.values()) for point in points(sweep))
    assert len(kept) == sum(kept.values()) == 12, "none twice"
    assert kept[tuple(lost.params.values())] == 1, "repeated"


@pytest.mark.parametrize("name", ["one.journal", "one.db"])
def test_one_process_drives_a_study(tmp_path, name):
    url = f"{'sqlite:///' if name == 'one.db' else 'journal://'}{tmp_path}/{name}"
    code = (
        "import sys; from skincancer.sweeps.storage import driver_lock\n"
        "with driver_lock(sys.argv[1], 'one'): print('locked', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(RunError, match="another process already runs the sweep one"), storage.driver_lock(url, "one"):
        pytest.fail("two drivers")
    with storage.driver_lock(url, "another"):
        pass
    other.kill()
    other.wait()
    with storage.driver_lock(url, "one"):
        pass


def test_the_default_and_relative_files_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.storage_url(None, Path("a.journal")) == f"journal://{tmp_path}/a.journal"
    assert storage.storage_url("journal://b.journal", Path("a")) == f"journal://{tmp_path}/b.journal"
    assert storage.storage_url("sqlite:///c.db", Path("a")) == f"sqlite:///{tmp_path}/c.db"


def test_no_url_is_reported_without_repeating_it():
    for url in ("nonsense", "postgresql://user:s3cr3t@host:port/x"):
        with pytest.raises(RunError) as caught:
            storage.storage_url(url, Path("a"))
        assert "is not a URL" in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


def test_a_servers_password_is_hidden(server):
    url = postgres.new_database(server)
    assert credentials.mask_password(url).count("***") == 1
    for secret in (postgres.PASSWORD, quote(postgres.PASSWORD, safe="")):
        assert secret not in credentials.mask_password(url)
    assert "hunter2" not in credentials.mask_password("postgresql+psycopg://host/x?password=hunter2")
    wrong = url.replace(quote(postgres.PASSWORD, safe=""), "hunter2")
    with pytest.raises(RunError, match="password authentication failed") as caught:
        storage.open_storage(wrong)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_rejected(server, encoding):
    import psycopg

    with psycopg.connect(postgres.url(server, "postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {encoding} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    url = storage.storage_url(postgres.url(server, encoding.lower()), Path("a"))
    with pytest.raises(
        RunError, match=f"has the encoding {encoding}; expected UTF8. Create a database with `createdb "
    ) as caught:
        storage.open_storage(url)
    assert postgres.PASSWORD not in str(caught.value)
    with psycopg.connect(postgres.url(server, encoding.lower())) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()[0] == 0


def test_a_server_without_rights_to_write(server):
    import psycopg

    url = postgres.new_database(server)
    with psycopg.connect(postgres.url(server, "postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'hunter2'")
    name = quote(postgres.PASSWORD, safe="")
    with pytest.raises(RunError, match=r"permission denied for schema public") as caught:
        storage.open_storage(url.replace(f"{postgres.USER}:{name}", "reader:hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql+psycopg://me:s3cr3t@127.0.0.1:1/none",
        "sqlite:////proc/none/one.db",
        "journal:///proc/none/one.journal",
    ],
)
def test_a_storage_that_cannot_be_used(given):
    with pytest.raises(RunError, match=r"the storage .* cannot be used") as caught:
        storage.open_storage(given)
    assert "s3cr3t" not in str(caught.value)


def test_a_storage_that_is_lost_on_the_way_is_reported_without_the_password(journal, monkeypatch):
    sweep = create(journal, 3)
    sweep.url = "postgresql+psycopg://me:s3cr3t@db/sweeps"

    def lost(**_: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection, password s3cr3t"))

    monkeypatch.setattr(sweep.study, "get_trials", lost)
    for use in (sweep.trials, sweep.is_over, lambda: sweep.begin(4), lambda: run_trials(sweep, objective)):
        with pytest.raises(RunError, match="cannot be used: server closed the connection") as caught:
            use()
        assert "s3cr3t" not in str(caught.value)


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    for words in (b"precious words, and no newline", b"\xff\xfe\x00binary", b'{"a": 1}\n{"b":'):
        path.write_bytes(words)
        with pytest.raises(RunError, match="is not an Optuna journal"):
            storage.open_storage(f"journal://{path}")
        assert path.read_bytes() == words


def test_a_half_written_line_is_cut_off(journal, tmp_path):
    sweep = create(journal, 4)
    sweep.end(sweep.ask(), Result("complete", 0.1))
    path = tmp_path / "one.journal"
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"op_code":6,"wor')
    again = create(journal, 4)
    run_trials(again, objective)
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(points(create(journal, 4))) == 4


def test_the_database_of_another_program_is_left_alone(tmp_path):
    uri = make_store(tmp_path / "mlruns")
    before = (tmp_path / "mlruns/mlflow.db").read_bytes()
    with pytest.raises(RunError, match=r"is the database of another program .* nothing was changed"):
        storage.open_storage(uri)
    assert (tmp_path / "mlruns/mlflow.db").read_bytes() == before


def test_a_database_of_another_version_of_optuna_is_reported(tmp_path):
    url = f"sqlite:///{tmp_path}/one.db"
    create(url, 3)
    with sqlite3.connect(tmp_path / "one.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99'")
    with pytest.raises(RunError, match="is of another version of Optuna"):
        storage.open_storage(url)


READ_ONLY = """
import os, sys
sys.path[:0] = {tests!r}
from test_study import PLAN, create
from skincancer.errors import RunError
create({url!r}, 3)
for name in os.listdir({folder!r}):
    os.chmod(os.path.join({folder!r}, name), 0o444)
os.chmod({folder!r}, 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write whatever it says
try:
    create({url!r}, 4)
except RunError as error:
    print(error)
if os.getuid() == 0:
    os.seteuid(0)
os.chmod({folder!r}, 0o755)
"""


@pytest.mark.parametrize("name", ["one.journal", "one.db"])
def test_a_file_that_can_be_read_and_not_written(name):
    folder = Path(tempfile.mkdtemp(prefix="skincancer-read-only-"))  # tmp_path is for one user alone
    folder.chmod(0o755)
    url = f"{'sqlite:///' if name == 'one.db' else 'journal://'}{folder}/{name}"
    code = READ_ONLY.format(tests=FOLDERS, url=url, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    shutil.rmtree(folder)
    assert f"the storage {url} cannot be used: " in done.stdout, done.stderr
    assert "Permission denied" in done.stdout or "readonly database" in done.stdout


FULL = """
import resource, sys
sys.path[:0] = {tests!r}
from test_study import create, objective
from stub_engine import run_trials
from skincancer.errors import RunError
sweep = create({url!r}, 500)
size = {path!r}
import os
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(size) + 5000, resource.RLIM_INFINITY))
try:
    run_trials(sweep, objective, workers=2)
except RunError as error:
    print(error)
"""


def test_a_full_disk_stops_the_sweep_and_loses_nothing(journal, tmp_path):
    code = FULL.format(tests=FOLDERS, url=journal, path=str(tmp_path / "one.journal"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "cannot be used" in done.stdout, done.stderr
    assert "File too large" in done.stdout or "No space left" in done.stdout
    sweep = create(journal, 500)
    ended = sum(trial.state == TrialState.COMPLETE for trial in sweep.trials())
    assert ended > 1
    again = create(journal, ended + 2)
    run_trials(again, objective)
    assert len(points(again)) == ended + 2
