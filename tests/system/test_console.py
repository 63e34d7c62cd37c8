"""Output of verbs in pipes, with closed streams, and with encodings that lack characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_FIT, only_run

ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Prints a table, a warning and plain text with characters beyond latin-1, and a file name that is not UTF-8.
PRINT = """
import sys
from skincancer.system.console import make_console, make_table, run_verb, warn
def verb(argv):
    console = make_console()
    console.print(make_table("PH² – κ", ["…", "β"], [["≥", 1]]))
    warn(console, "Ω", "name \\udce9")
    print("plain …")
sys.exit(run_verb(verb, []))
""".encode("ascii", "backslashreplace").decode()


def run(command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which $PY is this Python and $PRINT a program that prints."""
    variables = os.environ | {"PY": sys.executable, "PRINT": PRINT, "OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.run(["bash", "-c", command], capture_output=True, env=variables)


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {}])
def test_characters_that_the_encoding_lacks_are_replaced(environment: dict[str, str]):
    done = run('"$PY" -c "$PRINT"', environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"plain " in done.stdout
    assert ("≥".encode() in done.stdout) == (not environment)


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0), ("| true; exit ${PIPESTATUS[0]}", 0), ("> /dev/full", 1)],
)
def test_closed_and_full_streams(redirection: str, code: int):
    done = run(f'"$PY" -c "$PRINT" {redirection}')
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert (b"error: [Errno 28] No space left" in done.stderr) == bool(code)


def test_a_file_does_not_take_the_number_of_a_closed_stream(tmp_path: Path):
    """Libraries print to the numbers 1 and 2, which must not reach a file."""
    program = (
        "import os; from skincancer.system.console import prepare_streams; prepare_streams();"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'noise'); os.write(2, b'noise'); assert file.fileno() > 2"
    )
    assert run(f'"$PY" -c "{program}" <&- >&- 2>&-').returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| head -1; exit ${PIPESTATUS[0]}", ">&-", "2>&1"])
def test_a_fit_ends_finished_whatever_reads_its_output(store: str, tiny_demo: Path, redirection: str):
    flags = " ".join([*TINY_FIT, f"--data.root={tiny_demo}", "--trainer.max_epochs=1"])
    done = run(f'"$PY" -m skincancer.fit --experiment=resnet50 {flags} {redirection}', ASCII)
    assert done.returncode == 0, done.stderr
    assert only_run().info.status == "FINISHED"
