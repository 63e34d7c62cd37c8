"""Test the console command with the verbs as subcommands."""

import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from conftest import TINY_FIT, only_run

import skincancer
from skincancer.__main__ import VERBS, main
from skincancer.system.launcher import without_launcher
from skincancer.system.provenance import environment_text

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    """Write the script that pip installs for the console command."""
    file = tmp_path / "bin" / "skincancer"
    file.parent.mkdir()
    file.write_text(
        "import sys\nfrom skincancer.__main__ import main\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    return [sys.executable, str(file)]


def start(command: list[str], cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    environment = {**without_launcher(os.environ), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb_with_an_example(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        assert any(f"│ {verb} " in line and f"skincancer {verb}" in line for line in lines)


def test_help_loads_no_heavy_library():
    code = "import sys; from skincancer.__main__ import main; main(['--help']); print(set(sys.modules) & set(sys.argv))"
    began = time.monotonic()
    done = start([sys.executable, "-c", code, "torch", "pandas", "mlflow", "numpy", "jsonargparse"])
    assert time.monotonic() - began < 5  # a busy machine; alone a quarter of a second
    assert done.stdout.splitlines()[-1] == "set()"


def test_version_is_that_of_the_installed_package(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"skincancer {metadata.version('skincancer')}\n"
    assert f"\nskincancer=={skincancer.__version__}\n" in environment_text(), "as runs record it"

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert skincancer.__version__ == "0+unknown"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evalute", "evalute is not a known verb. Did you mean 'evaluate'? Use one of prepare, fit"),
        ("--hlp", "'--help'"),
    ],
)
def test_an_unknown_verb_is_an_error_with_the_nearest(word, message, capsys):
    assert main([word, "--run", "x"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_usage_names_the_command_that_was_started(verb, script):
    assert start([*script, verb, "--help"]).stdout.startswith(f"usage: skincancer {verb} ")


def test_usage_of_a_module_and_of_the_package():
    python = [sys.executable, "-m"]
    assert start([*python, "skincancer.fit", "--help"]).stdout.startswith("usage: python -m skincancer.fit ")
    assert start([*python, "skincancer", "fit", "--help"]).stdout.startswith("usage: skincancer fit ")


def test_a_verb_keeps_its_exit_code_and_its_error(script, tmp_path):
    done = start([*script, "fit", "--experiment=densenet169_undersample", "--sede=1"], cwd=tmp_path)
    assert done.returncode == 2
    assert "--sede is not a known flag. Did you mean '--seed'?" in done.stderr
    assert done.stdout == ""


def test_completion_needs_shtab_and_a_known_shell(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install 'skincancer[completion]'" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("shtab")
    assert main(["--print-completion", "cmd"]) == 2
    assert "takes the name of a shell: bash, zsh" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["e"], ["evaluate"]),
        (["fit", "--data.spl"], ["--data.split", "--data.split_seed"]),
        (["fit", "--experiment", "unet_re"], ["unet_resnet34"]),
        (["prepare", "--data.dataset", "ph"], ["ph2"]),
    ],
)
def test_bash_completes_verbs_flags_and_names(words, offered, tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    line = " ".join(f"'{word}'" for word in ["skincancer", *words])
    ask = f'source completion.sh; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_skincancer; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


@pytest.mark.slow
def test_two_processes_train_from_the_console_command(script, tiny_demo, store):
    flags = [*TINY_FIT, f"--data.root={tiny_demo}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = start([*script, "fit", "--experiment=densenet169_undersample", *flags])
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["effective_batch_size"] == "16"
