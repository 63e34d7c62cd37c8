"""The docs: every command is parsed, those on the demo are run, and the page of keys is that of the schema."""

import importlib.util
import re
import shlex
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_store

from skincancer import compare, evaluate, fit, predict, prepare, sweep, ui

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
VERBS = {verb.__name__.rpartition(".")[2]: verb for verb in (compare, evaluate, fit, predict, prepare, sweep, ui)}
# capitals and a home are of the reader; the demo is all that there is here
PLACEHOLDER = re.compile(
    r"~|\$|\b[A-Z][A-Z_]{2,}\b|\bRUN_\w\b|@|postgresql:|\.yaml|--(worker|reap|trainer\.devices)\b|--data\.groups"
)
DATA_FLAGS = ("--data.dataset", "--dataset")


def commands(text: str) -> list[list[str]]:
    """The verbs and their words in all bash blocks of a page."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            # variables of a script: one of its tasks
            words = shlex.split(re.sub(r"\"?\$@\"?", "", line), comments=True)
            for number, word in enumerate(words):
                verb = word.removeprefix("skincancer.")
                if words[number - 1 : number] == ["-m"] and word.startswith("skincancer.") and verb in VERBS:
                    found.append([verb, *words[number + 1 :]])
                elif word == "skincancer" and words[number + 1 : number + 2] and words[number + 1] in VERBS:
                    found.append(words[number + 1 :])
    return found


COMMANDS = {page.name: commands(page.read_text(encoding="utf-8")) for page in PAGES}
EVERY = {shlex.join(words): words for page in COMMANDS.values() for words in page}


def on_demo(words: list[str]) -> bool:
    """Whether a command can be run here."""
    dataset = next((words[n + 1] for n, word in enumerate(words) if word in DATA_FLAGS), "demo")
    named = words[1] if words[0] == "prepare" and not words[1].startswith("-") else "demo"
    return (dataset, named) == ("demo", "demo") and not PLACEHOLDER.search(" ".join(words)) and words[0] != "ui"


ON_DEMO = {text: words for text, words in EVERY.items() if on_demo(words)}


def test_there_are_commands_to_check():
    assert len(EVERY) > 40
    assert len(ON_DEMO) > 10
    assert {words[0] for words in EVERY.values()} >= {"fit", "sweep", "compare", "evaluate", "predict", "prepare"}


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verbs that parse and check, and then do nothing; a home with what placeholders stand for."""

    def nothing(*_: Any, **__: Any) -> Any:
        return predict.PredictResult()

    for module, names in (
        (fit, ["fit"]), (sweep, ["sweep"]), (compare, ["compare"]), (evaluate, ["evaluate"]),
        (predict, ["predict"]), (prepare, ["prepare", "prepare_features", "audit", "download"]), (ui, ["open_ui"]),
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, nothing)
    resumed, _ = fit.resolve("resnet50", {})
    monkeypatch.setattr("skincancer.training.resume.load_resumed", lambda *_: resumed)
    for name in ("training.folds.fit_folds", "evaluation.each.evaluate_each"):
        monkeypatch.setattr(f"skincancer.{name}", nothing)
    for name in ("runs.lifecycle.reap_runs", "runs.store.RunStore"):
        monkeypatch.setattr(f"skincancer.{name}", nothing)
    monkeypatch.setattr(ui, "open_ui", lambda *_: 0)
    monkeypatch.setattr("skincancer.visualization.previews.SHEETS", dict.fromkeys(prepare.SHEET_NAMES, nothing))
    monkeypatch.setattr(prepare, "prepare", lambda *_: types.SimpleNamespace(index=[]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for file in ("mine.yaml", "mlruns/sweeps/STUDY/best.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "experiments/efficientnet_lite0.yaml", tmp_path / file)
    (tmp_path / "same.csv").write_text("image_id,group\na,1\nb,1\n")
    (tmp_path / "MY_MODULE.py").write_text("")


@pytest.mark.parametrize("words", EVERY.values(), ids=EVERY)
def test_flags_and_names_of_every_command_are_known(words, without_work, capsys):
    filled = [re.sub(r"\$\w+", "1", word) for word in words]  # a number, or a host
    verb, *flags = [str(Path(word).expanduser()) if word.startswith("~") else word for word in filled]
    assert VERBS[verb].main(flags) == 0, capsys.readouterr().err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One store and one cache for all commands, in one working directory."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", make_store(folder / "mlruns"))
        patch.setenv("SKINCANCER_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("words", ON_DEMO.values(), ids=ON_DEMO)
def test_commands_on_the_demo_run(words, shared, monkeypatch, capsys):
    monkeypatch.undo()  # the store of the module, not that of the test
    assert VERBS[words[0]].main(words[1:]) == 0, capsys.readouterr().err


def test_the_page_of_keys_is_that_of_the_schema():
    file = CHECKOUT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.reference(), "run python docs/generate_reference.py"
