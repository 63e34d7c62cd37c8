"""Table of wrong requests: each ends at once with one clear error, and writes nothing.

A row is a command line and fragments of its message. `FILE` names of the fixture `files` stand in braces. Exit code 2 is a wrong
request, 1 a run or a store that cannot be used.
"""

import functools
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import all_runs, empty_database

from skincancer import compare, evaluate, fit, predict, prepare, sweep, ui
from skincancer.errors import ConfigError, DataError, RunError, SkinCancerError, WeightsError
from skincancer.schema.dotted_keys import KEYS, TYPES

VERBS = {verb.__name__.rpartition(".")[2]: verb.main for verb in (compare, evaluate, fit, predict, prepare, sweep, ui)}
FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs_before_move"
LONG = "x" * 5000
HUGE = str(10**21)
# Longest message: one that lists all keys of a section, or all experiments.
LONGEST_MESSAGE, MOST_LINES = 1100, 4

Row = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that are no good files: a folder, a pipe, a socket, empty and foreign files, a folder below a file."""
    root = tmp_path_factory.mktemp("files")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket"))
    (root / "empty.yaml").touch()
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("<html>404</html>")
    (root / "text.csv").write_text("hello")
    (root / "folder.yaml").mkdir()
    names = ("folder", "pipe", "socket", "empty.yaml", "empty.jpg", "text.jpg", "text.csv", "folder.yaml", "missing")
    paths = {name.replace(".", "_"): str(root / name) for name in names}
    return paths | {"below": str(root / "text.csv" / "x"), "image": str(next((FIXTURES / "images").iterdir()))}


@pytest.fixture
def refuse(
    store: str, tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:  # fmt: skip
    """Run a command, and check its exit code, its message, and that no run and no image store was made."""
    cache, work = tmp_path / "own-cache", tmp_path / "work"
    monkeypatch.setenv("SKINCANCER_CACHE", str(cache))
    work.mkdir()
    monkeypatch.chdir(work)

    def run(verb: str, argv: list[str], fragments: list[str], code: int = 2) -> None:
        names = files | {"network": str(FIXTURES / "runs" / "network"), "out": str(tmp_path / "out")}
        words = [
            functools.reduce(lambda word, name: word.replace(f"{{{name}}}", names[name]), names, word) for word in argv
        ]
        assert VERBS[verb](words) == code
        check_message(capsys.readouterr().err, fragments)
        database = tmp_path / "mlruns" / "mlflow.db"
        assert database.read_bytes() == empty_database() or all_runs() == [], "no run was started"
        assert not (tmp_path / "mlruns" / "work").exists()
        assert not list(cache.rglob("*.npy")), "no image was decoded"
        assert list(work.iterdir()) == [], "nothing was written into the working directory"

    return run


def check_message(message: str, fragments: list[str]) -> None:
    """Check that standard error is one short message with all fragments."""
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert len(message) <= LONGEST_MESSAGE
    assert message.count("\n") <= MOST_LINES
    for fragment in fragments:
        assert fragment in message


# ---------------------------------------------------------------------------------------------------------- values of every key


def kinds(key: str) -> set[type]:
    """Return the plain types that a key takes."""
    return {kind for kind in (TYPES[key], *get_args(TYPES[key])) if isinstance(kind, type)}


def rows_of_keys() -> list[Row]:
    """Return wrong values of every key: another type, below the range, not finite, and huge."""
    rows: list[Row] = []
    for key in KEYS:
        types = kinds(key)
        whole, real, text = int in types, float in types, str in types or "Literal" in str(TYPES[key])
        if whole and not text:
            rows += [([f"--{key}={HUGE}"], [f"{key} is {HUGE}", "at most 4294967295"])]
        if (whole or real) and not text:
            rows += [([f"--{key}=abc"], [key, "'abc'", "number"])]
        if real and not text:
            # Half of the keys are tried with one of the values that are not finite, and half with the other.
            value = (".nan", ".inf")[len(rows) % 2]
            rows += [([f"--{key}={value}"], [f"{key} is", value.strip(".")])]
            rows += [([f"--{key}=-200"], [key if key != "model.loss.beta" else "beta", "is -200"])]
        elif whole:
            rows += [([f"--{key}=-1"], [key, "-1"])]
        elif TYPES[key] is bool:
            rows += [([f"--{key}=maybe"], [key, "maybe", "true or false"])]
        elif "Literal" in str(TYPES[key]):
            rows += [([f"--{key}=abc"], [key, "'abc'", "one of ["])]
        elif "list" in str(TYPES[key]):
            rows.append(([f"--{key}=abc"], [key, "'abc'", "Write a list as [abc]"]))
            # Class names may be numbers.
            if "int" not in str(TYPES[key]):
                rows.append(([f"--{key}=[1]"], [key, "text"]))
            rows += [([f"--{key}=[abc, abc]"], [key, "abc"])] if key != "plugins" else []
        elif "dict" in str(TYPES[key]):
            rows += [
                ([f"--{key}=abc"], [key, "'abc'"]),
                ([f"--{key}={{abc: 1}}"], [key, "'1'" if key == "search" else "abc"]),
            ]
    return rows


@pytest.mark.parametrize(("argv", "fragments"), rows_of_keys(), ids=lambda row: row[0][:40])
def test_wrong_values_of_keys(refuse, argv: list[str], fragments: list[str]):
    of_masks = argv[0].startswith(("--model.loss.masks", "--model.loss.alpha", "--model.loss.beta"))
    tversky = (
        ["--model.loss.masks={tversky: 1}"] if argv[0].startswith(("--model.loss.alpha", "--model.loss.beta")) else []
    )
    refuse("fit", [f"--experiment={'unet_resnet34' if of_masks else 'efficientnet_lite0'}", *tversky, *argv], fragments)


FIT: list[Row] = [
    # Names
    (["--experiment=densenet169_undersampl"], ["Did you mean 'densenet169_undersample'?", "vit_small", "path"]),
    (["--experiment="], ["--experiment is empty"]),
    (["--experiment=.."], ["--experiment ..: unknown", "Choose one of"]),
    (["--experiment=*"], ["--experiment *: unknown"]),
    ([f"--experiment={LONG}"], ["--experiment is a text of 5,000 characters", "4,096"]),
    ([f"--experiment={'x' * 300}"], ["--experiment is", "File name too long", "Use another path"]),
    (["--experiment=a\0b"], ["--experiment is 'a\\x00b'", "control character"]),
    (["--experiment=/"], ["--experiment /", "is not a file"]),
    (["--experiment=resnet50/x"], ["resnet50/x does not exist", "YAML file"]),
    (["--experiment={folder_yaml}"], ["is not a file"]),
    (["--experiment={empty_yaml}"], ["is empty", "mapping"]),
    (["--experiment={missing}.yaml"], ["does not exist"]),
    (["--experiment={below}.yaml"], ["does not exist"]),
    (["--experiment=/dev/zero"], ["is not a file"]),
    (["--experiment=~nobody-at-all/x.yaml"], ["no usable path", "home directory"]),
    ([], ["--experiment NAME is missing", "densenet169_undersample"]),
    # Flags
    (["--experiment=resnet50", "--data.splt=80:20"], ["--data.splt is not a known flag", "Did you mean '--data.split'?"]),
    (["--experiment=resnet50", "--data"], ["--data is a section", "data.batch_size"]),
    (["--experiment=resnet50", "--data.size"], ["--data.size", "expected one argument"]),
    (["--experiment=resnet50", ""], ["'' is not a known flag"]),
    (["--experiment=resnet50", "-x"], ["-x is not a known flag"]),
    (["--experiment=resnet50", "--=3"], ["-- is not a known flag"]),
    (["--experiment=resnet50", "stray"], ["stray is not a known flag"]),
    (["--experiment=resnet50", "--older-than=24h"], ["--older-than is 24h", "--reap is missing"]),
    (["--reap", "--older-than=soon"], ["--older-than is 'soon'", "24h"]),
    (["--reap", "--older-than=-1h"], ["--older-than is '-1h'"]),
    (["--reap", "--older-than="], ["--older-than is empty"]),
    (["--experiment=resnet50", "--register=a/b"], ["--register", "a/b"]),
    (["--experiment=resnet50", "--register=a@"], ["--register", "a@"]),
    (["--experiment=resnet50", "--register="], ["--register is empty"]),
    (["--experiment=resnet50", "--resume="], ["--resume is empty"]),
    # Texts
    (["--experiment=resnet50", "--name="], ["name is ''", "1 to 200 characters"]),
    (["--experiment=resnet50", f"--name={'x' * 201}"], ["name is", "1 to 200 characters"]),
    (["--experiment=resnet50", "--name=a\tb"], ["name is 'a\\tb'", "on one line"]),
    (["--experiment=resnet50", f"--description={'x ' * 600}"], ["description is", "at most 1,000 characters"]),
    (["--experiment=resnet50", f"--data.root={LONG}"], ["data.root is a text of 5,000 characters"]),
    (["--experiment=resnet50", "--data.root="], ["data.root is ''", "it is empty"]),
    (["--experiment=resnet50", f"--data.root={'x' * 300}"], ["data.root is", "File name too long"]),
    (["--experiment=resnet50", "--data.root=~nobody-at-all"], ["data.root is '~nobody-at-all'", "home directory"]),
    (["--experiment=resnet50", "--data.groups="], ["data.groups is ''"]),
    (["--experiment=resnet50", "--data.split=fold:*/1"], ["'fold:0/1'", "at least 2 folds"]),
    (["--experiment=resnet50", "--workers=2"], ["several processes", "--data.split 'fold:*/5'"]),
    (["--experiment=resnet50", "--cluster=head:6379"], ["several processes", "--data.split 'fold:*/5'"]),
    *((["--experiment=resnet50", "--data.split=fold:*/5", flag], [flag.partition("=")[0], "fold:*/5", "single fold"]) for flag in (
        "--register=name", "--dry-run",
    )),
    (["--experiment=resnet50", "--data.split=fold:*/5", "--trainer.devices=2"], ["trainer.devices is 2", "each fold uses one device"]),
    (["--experiment=resnet50", "--data.split=fold:*/5", "--workers=0"], ["--workers is 0"]),
    (["--experiment=resnet50", "--data.groups={folder}"], ["data.groups is", "not a file"]),
    (["--experiment=resnet50", "--data.groups={pipe}"], ["data.groups is", "not a file"]),
    (["--experiment=resnet50", "--data.groups={socket}"], ["data.groups is", "not a file"]),
    (["--experiment=resnet50", "--data.groups={text_csv}"], ["text.csv has no column"]),
    (["--experiment=resnet50", "--data.groups={missing}"], ["data.groups is", "not a file"]),
    # Splits
    *((["--experiment=resnet50", f"--data.split={split}"], ["data.split is", repr(split), "80:20", "fold:0/5", "official"]) for split in (
        "80:30", "0:100", "10:90", "abc", "", "80:20:1", "80:20.0", "80;20", "-80:180", "fold:5/5", "fold:-1/5", "fold:0/1", "fold:a/b",
        "fold:0/99999", "fold:*", "OFFICIAL", "٨٠:٢٠", "nan",
    )),
    (["--experiment=resnet50", f"--data.split={'9' * 5000}"], ["data.split is a text of 5,000 characters"]),
    # Names of choices
    (["--experiment=resnet50", "--data.dataset=ham1000"], ["'ham1000'", "Did you mean 'ham10000'?", "demo, ham10000"]),
    (["--experiment=resnet50", "--data.dataset="], ["data.dataset is ''"]),
    (["--experiment=resnet50", "--data.balance=smote"], ["data.balance is 'smote'", "undersample"]),
    (["--experiment=resnet50", "--data.crop=true", "--data.masks=run:"], ["data.masks is 'run:'", "run:RUN_ID"]),
    (["--experiment=resnet50", "--data.crop=true", "--data.masks=ottsu"], ["data.masks is 'ottsu'", "otsu"]),
    (["--experiment=resnet50", "--data.clean=[hair, hair]"], ["data.clean contains 'hair' twice"]),
    (["--experiment=resnet50", "--data.malignant=[mel, mel]"], ["data.malignant contains 'mel' twice"]),
    (["--experiment=resnet50", "--trainer.accelerator=gpus"], ["trainer.accelerator is 'gpus'", "auto, cpu, gpu, cuda, mps"]),
    (["--experiment=resnet50", "--trainer.precision=64"], ["trainer.precision is '64'", "bf16-mixed"]),
    (["--experiment=resnet50", "--trainer.strategy=fsdp"], ["trainer.strategy is 'fsdp'", "ddp"]),
    (["--experiment=resnet50", "--trainer.devices=²"], ["trainer.devices is '²'", "auto, or 1 or more"]),
    (["--experiment=resnet50", f"--trainer.devices={'9' * 4000}"], ["trainer.devices is", "many digits"]),
    (["--experiment=resnet50", "--trainer.devices=0"], ["trainer.devices is 0", "auto, or 1 or more"]),
    (["--experiment=resnet50", "--training.monitor=val/nothing"], ["training.monitor is 'val/nothing'", "val/loss"]),
    (["--experiment=resnet50", "--model.optimizer.name=lion"], ["model.optimizer.name is 'lion'", "adamw"]),
    (["--experiment=resnet50", "--model.schedule.name=cosin"], ["Did you mean 'cosine'?"]),
    (["--experiment=resnet50", "--model.freeze=-1"], ["model.freeze is", "-1", "number of stages"]),
    (["--experiment=resnet50", "--task=regression"], ["task is 'regression'", "segmentation"]),
    (["--experiment=resnet50", "--seed=99999999999999"], ["seed is 99999999999999", "at most 4294967295"]),
    (["--experiment=resnet50", "--data.workers=100000"], ["data.workers is 100000", "from 0 to 1024"]),
    (["--experiment=resnet50", "--data.workers=1000"], ["data.workers is 1000", "this machine runs at most"]),
    (["--experiment=resnet50", f"--trainer.max_epochs={HUGE}"], [f"trainer.max_epochs is {HUGE}", "at most"]),
    (["--experiment=resnet50", "--data.size=5000"], ["data.size is 5000", "from 1 to 4096"]),
    (["--experiment=resnet50", "--model.head_hidden=70000"], ["model.head_hidden is 70000", "from 0 to 65536"]),
    (["--experiment=resnet50", "--tracking.uri=http://[::1"], ["tracking.uri", "Invalid IPv6 URL"]),
    (["--experiment=resnet50", "--tracking.uri=sqlite:///{folder}"], ["tracking.uri is", "a folder; expected a SQLite file"]),
    (["--experiment=resnet50", "--tracking.uri=sqlite://"], ["tracking.uri is 'sqlite://'", "of a file"]),
    # Network and weights, also in a dry run
    *((["--experiment=resnet50", *more, *dry], fragments) for dry in ([], ["--dry-run"]) for more, fragments in (
        (["--model.backbone=resnet51"], ["model.backbone is 'resnet51'", "Did you mean 'resnet5", "list_models"]),
        (["--model.backbone="], ["model.backbone is ''"]),
        (["--model.backbone=../x"], ["model.backbone is '../x'"]),
        (["--model.backbone=inception_v4", "--data.size=40"], ["inception_v4", "40 px", "--data.size"]),
        (["--model.weights=imagenets"], ["model.weights is 'imagenets'", "which is no file", "auto, imagenet, none"]),
        (["--model.weights={folder}"], ["which is no file"]),
        (["--model.weights={pipe}"], ["which is no file"]),
        (["--model.weights="], ["model.weights is ''", "it is empty"]),
    )),
    # Plugins
    (["--experiment=resnet50", "--plugin=no_such_module"], ["plugin no_such_module", "there is no module"]),
    (["--experiment=resnet50", "--plugin=.."], ["plugin ..", "cannot be imported"]),
    (["--experiment=resnet50", "--plugin="], ["--plugin is empty"]),
    (["--experiment=resnet50", "--plugin=mine.py"], ["plugin mine.py", "--plugin mine"]),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "fragments"), FIT, ids=range(len(FIT)))
def test_wrong_requests_of_fit(refuse, argv: list[str], fragments: list[str]):
    refuse("fit", argv, fragments)


# --------------------------------------------------------------------------------------------------------------- experiment files

YAML: list[tuple[bytes, list[str]]] = [
    (b"&a [*a]\n", ["contains list", "mapping of sections"]),
    (b"data: &a\n  size: *a\n", ["more than 20 nested levels", "anchors"]),
    (b"&a {data: *a}\n", ["more than 20 nested levels"]),
    (b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1) if c > 97 else b"x"] * 9)) for c in b"abcdefghij"), ["values"]),
    (b"[" * 5000, ["cannot be read as YAML", "recursion"]),
    (b"{a: " * 3000 + b"1" + b"}" * 3000, ["cannot be read as YAML", "recursion"]),
    (b"seed: 1\nseed: 2\n", ["the key seed is set twice", "line 2"]),
    (b"data: {size: 32, size: 64}\n", ["the key size is set twice", "line 1"]),
    (b"data: {size: 32}\ndata: {crop: true}\n", ["the key data is set twice"]),
    (b"data: {size: 32}\ndata.size: 64\n", ["data.size is set twice, to 32 and to 64"]),
    (b"seed: " + b"9" * 5000, ["cannot be read as YAML", "4300 digits"]),
    (b"seed: " + b"9" * 30, ["seed is 999999999999999999999999999999", "at most 4294967295"]),
    (b"model: {dropout: " + b"9" * 5000 + b".5}", ["model.dropout is inf", "0 or more and below 1"]),
    (b"model: {optimizer: {lr: .nan}}", ["model.optimizer.lr is nan"]),
    (b"model: {optimizer: {weight_decay: .inf}}", ["model.optimizer.weight_decay is inf", "at most 1000"]),
    (b"seed: 1\x00\n", ["cannot be read as YAML", "#x0000"]),
    (bytes(range(256)), ["cannot be read as YAML", "UTF-8"]),
    ("seed: 1".encode("utf-16"), ["cannot be read as YAML", "Save it as UTF-8"]),
    ("name: café".encode("latin-1"), ["cannot be read as YAML", "Save it as UTF-8"]),
    (b"data:\n\tsize: 32\n", ["cannot start any token", "line 2"]),
    (b"- 1\n- 2\n", ["contains list", "mapping"]),
    (b"hello\n", ["contains str", "mapping"]),
    (b"3\n", ["contains int", "mapping"]),
    (b"# nothing\n", ["is empty"]),
    (b"seed: 1\n---\nseed: 2\n", ["another document", "line 2"]),
    (b"!!python/object/apply:os.system [ls]\n", ["could not determine a constructor", "line 1"]),
    (b"name: !!int abc\n", ["cannot be read as YAML", "abc"]),
    (b"seed: *x\n", ["undefined alias 'x'"]),
    (b"? [1, 2]\n: 3\n", ["unhashable key"]),
    (b"? {a: 1}\n: 3\n", ["unhashable key"]),
    (b"1: 2\n", ["1 is not a known key", "Top-level keys"]),
    (b"null: 2\n", ["None is not a known key"]),
    (b"x" * 900 + b": 1\n", ["(900 characters)", "is not a known key"]),
    (b"foo: {}\n", ["foo is not a known key"]),
    (b"data: {foo: {}}\n", ["data.foo is not a known key"]),
    (b"data: {true: 1}\n", ["data.True is not a known key"]),
    (b"model: {bakbone: resnet18}\n", ["model.bakbone", "Did you mean 'model.backbone'?"]),
    (b"data: [1]\n", ["data is [1]", "it is a section"]),
    (b"data: null\n", ["data is None", "it is a section"]),
    (b"seed: null\n", ["seed is null", "set a value"]),
    (b"seed: 2001-01-01\n", ["seed is '2001-01-01'"]),
    (b"name: 3\n", ["name is '3'", "text"]),
    (b"name: !!binary aGVsbG8=\n", ["name is", "text"]),
    (b"description: \"a\\u0007b\"\n", ["description is 'a\\x07b'", "control character"]),
    (b"data: {dataset: [1]}\n", ["data.dataset is '[1]'"]),
    (b"model: {classifier: [svm]}\n", ["model.classifier is", "Did you mean 'svm'?"]),
    (b"study: 3\n", ["study is 3", "section"]),
    (b"study: {study: {seed: 1}}\n", ["study.seed is not a known key"]),
    (b"plugins: [3]\n", ["plugins is", "text"]),
    (b"plugins: os\n", ["plugins is 'os'", "Write a list as [os]"]),
    (b"search: 3\n", ["search is '3'"]),
    (b"search: {seed: 3}\n", ["search is", "dict"]),
    (b"search: {3: {low: 1, high: 2}}\n", ["search: 3 is not a known key"]),
    (b"search: {sead: {low: 1, high: 2}}\n", ["search: sead is not a known key", "Did you mean 'seed'?"]),
    (b"search: {seed: {choices: [[1]]}}\n", ["search: seed: choices is [[1]]"]),
    (b"search: {seed: {choices: []}}\n", ["search: seed: choices is []"]),
    (b"search: {seed: {choices: [1, 1]}}\n", ["search: seed: choices is [1, 1]", "different"]),
    (b"search: {seed: {low: 1, high: " + b"9" * 500 + b"}}\n", ["search is a whole number of many digits"]),
    (b"search: {model.optimizer.lr: {low: .nan, high: 1}}\n", ["low below high"]),
    (b"search: {model.optimizer.lr: {low: 1, high: .inf}}\n", ["finite numbers"]),
    (b"search: {model.optimizer.lr: {low: 0, high: 1, log: true}}\n", ["above 0 for log"]),
    (b"search: {data.split: {choices: ['80:20']}}\n", ["data.split cannot be searched"]),
    (b"#" * 1_000_001, ["1,000,001 bytes", "at most 1,000,000"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "fragments"), YAML, ids=range(len(YAML)))
def test_wrong_experiment_files(refuse, tmp_path: Path, content: bytes, fragments: list[str]):
    (tmp_path / "mine.yaml").write_bytes(content)
    refuse(
        "fit",
        [f"--experiment={tmp_path / 'mine.yaml'}"],
        ["mine.yaml" if b"data.size" not in content else "", *fragments],
    )


# -------------------------------------------------------------------------------------------------------------------- other verbs

TRIAL = ["--experiment=efficientnet_lite0", "--trials=1"]
EVALUATE = ["--run={network}", "--data.dataset=demo"]
COMPARE = ["--experiments", "resnet50"]
PREDICT = ["--run={network}", "--out={out}"]

REQUESTS: list[tuple[str, list[str], list[str]]] = [
    ("sweep", [], ["--experiment is missing"]),
    ("sweep", ["--experiment=efficientnet_lite0"], ["--trials is 0", "1 or more"]),
    *(("sweep", ["--experiment=efficientnet_lite0", f"--trials={value}"], ["--trials", value]) for value in ("0", "-1", "x", "1.5", HUGE)),
    *(("sweep", [*TRIAL, f"--timeout={value}"], ["--timeout", "number"]) for value in ("0", "-1", "x", "1e400", ".nan")),
    *(("sweep", [*TRIAL, f"--workers={value}"], ["--workers", value]) for value in ("0", "-1", "x", "100000", HUGE)),
    *(("sweep", [*TRIAL, f"--study={value}"], ["--study is"]) for value in ("a/b", "..", " ", "-", "x" * 201, "", "a\0b", LONG)),
    ("sweep", [*TRIAL, "--sampler=tpee"], ["--sampler is 'tpee'", "Did you mean 'tpe'?"]),
    ("sweep", [*TRIAL, "--pruner=hyper"], ["--pruner is 'hyper'", "hyperband"]),
    ("sweep", [*TRIAL, "--sampler="], ["--sampler is empty"]),
    ("sweep", [*TRIAL, "--storage="], ["--storage is empty"]),
    *(("sweep", [*TRIAL, f"--storage={url}"], ["--storage is", "which is not a file"]) for url in (
        "journal:///", "journal:///dev/full", "journal://{pipe}", "sqlite:///{folder}", "sqlite:////dev/null",
    )),
    ("sweep", [*TRIAL, "--storage=journal://"], ["--storage is ''"]),
    ("sweep", [*TRIAL, "--storage=sqlite://"], ["--storage is ''"]),
    ("sweep", [*TRIAL, f"--storage=sqlite:///{'x' * 300}"], ["--storage is", "File name too long"]),
    ("sweep", ["--experiment=vit_small", "--trials=1", "--data.splt=1"], ["--data.splt is not a known flag"]),
    ("sweep", [*TRIAL, "--trainer.devices=2"], ["trainer.devices is 2", "--workers"]),
    ("sweep", ["--experiment=efficientnet_lite0", "--trials=3", "--worker"], ["--worker"]),
    ("sweep", ["--experiment=efficientnet_lite0", "--trials=3", "--cluster="], ["--cluster is empty"]),
    ("sweep", ["--experiment=efficientnet_lite0", "--trials=3", "--cluster=head:99999"], ["--cluster is 'head:99999'"]),
    ("sweep", ["--experiment=efficientnet_lite0", "--trials=3", "--gpus-per-trial=.nan"], ["--gpus-per-trial is nan", "0 to 1"]),
    ("sweep", ["--experiment=efficientnet_lite0", "--trials=3", "--cpus-per-trial=0"], ["--cpus-per-trial is 0"]),
    ("compare", [], ["--experiments is missing"]),
    ("compare", ["--experiments"], ["--experiments", "expected at least one argument"]),
    ("compare", ["--experiments", ""], ["--experiments is empty"]),
    ("compare", ["--experiments", "resnet5"], ["--experiment resnet5: unknown", "Did you mean 'resnet50'?"]),
    ("compare", ["--experiments", "resnet50", "resnet50"], ["--experiments names resnet50 twice"]),
    ("compare", ["--runs", "a", "a"], ["--runs names a twice"]),
    ("compare", [*COMPARE, "--splits", "80:30"], ["'80:30'"]),
    ("compare", [*COMPARE, "--splits", "80:20", "80:20"], ["--splits names 80:20 twice"]),
    ("compare", [*COMPARE, "--splits", "fold:*/x"], ["fold:0/x"]),
    ("compare", [*COMPARE, "--splits", "fold:*/1"], ["at least 2 folds"]),
    ("compare", [*COMPARE, "--splits", ""], ["--splits is empty"]),
    ("compare", [*COMPARE, "--seeds", "x"], ["--seeds is 'x'", "whole number"]),
    ("compare", [*COMPARE, "--seeds", "1", "1"], ["--seeds names 1 twice"]),
    ("compare", [*COMPARE, "--seeds", "-1"], ["--seeds is -1", "0 or more"]),
    ("compare", [*COMPARE, "--seeds", HUGE], [f"--seeds is {HUGE}"]),
    ("compare", [*COMPARE, "--metric", "acuracy"], ["--metric is 'acuracy'", "Did you mean 'accuracy'?"]),
    ("compare", [*COMPARE, "--metric", "accuracy", "accuracy"], ["--metric names accuracy twice"]),
    ("compare", [*COMPARE, "--metric", "accuracy", "jaccard"], ["some are of masks and some of classes"]),
    ("compare", [*COMPARE, "--dataset=x"], ["data.dataset is 'x'"]),
    ("compare", [*COMPARE, "--dataset=ph2", "--data.dataset=demo"], ["contradict each other"]),
    ("compare", [*COMPARE, "--data.split=80:20"], ["use --splits"]),
    ("compare", [*COMPARE, "--seed=1"], ["use --seeds"]),
    ("compare", [*COMPARE, "--experiment=x"], ["not flags of compare"]),
    ("compare", [*COMPARE, "--out="], ["--out is empty"]),
    ("compare", [*COMPARE, "--out={text_csv}"], ["--out is", "a file; expected a folder"]),
    ("compare", [*COMPARE, "--out={pipe}"], ["--out is", "expected a folder"]),
    ("compare", [*COMPARE, "--out={below}"], ["--out", "is a file"]),
    ("compare", [*COMPARE, "--out=/proc/x"], ["--out /proc/x cannot be written"]),
    ("compare", [*COMPARE, f"--out={'x' * 300}"], ["--out is", "File name too long"]),
    ("evaluate", [], ["--run is missing"]),
    ("evaluate", ["--run"], ["--run", "expected at least one argument"]),
    ("evaluate", ["--run", ""], ["--run is empty"]),
    ("evaluate", ["--run", "a", "a"], ["--run names a twice"]),
    ("evaluate", [f"--run={LONG}"], ["--run is a text of 5,000 characters"]),
    ("evaluate", [*EVALUATE, "--part=some"], ["--part is 'some'", "all, test"]),
    ("evaluate", [*EVALUATE, "--near-duplicates=drop"], ["--near-duplicates is 'drop'", "exclude, keep"]),
    ("evaluate", [*EVALUATE, "--data.split=80:20"], ["--data.split requires --part test"]),
    ("evaluate", [*EVALUATE, "--seed=3"], ["--seed is not a known flag"]),
    *(("evaluate", [*EVALUATE, f"--prevalence={value}"], ["--prevalence"]) for value in (".nan", "1e400", "-1", "0", "1", "x", "")),
    *(("evaluate", [*EVALUATE, "--map", word], ["--map is", "TARGET=CLASS+CLASS"]) for word in ("x", "=", "a=", "=b")),
    ("evaluate", [*EVALUATE, "--map", "a=b", "a=c"], ["names the target 'a' twice"]),
    ("evaluate", [*EVALUATE, "--map", "a=b+"], ["--map a is 'b+'"]),
    ("evaluate", [*EVALUATE, "--map", "{missing}.yaml"], ["cannot be read"]),
    ("evaluate", [*EVALUATE, "--map", "{folder_yaml}"], ["cannot be read"]),
    ("evaluate", [*EVALUATE, "--map", "{empty_yaml}"], ["is empty"]),
    ("evaluate", [*EVALUATE, "--data.size=32"], ["--data.size is fixed by the run"]),
    ("evaluate", [*EVALUATE, "--data.batch_size=-1"], ["data.batch_size is -1"]),
    ("evaluate", [*EVALUATE, f"--data.batch_size={HUGE}"], [f"data.batch_size is {HUGE}"]),
    ("evaluate", [*EVALUATE, "--data.workers=100000"], ["data.workers is 100000"]),
    ("evaluate", ["--run={network}", "--data.dataset=x"], ["data.dataset is 'x'"]),
    ("evaluate", [*EVALUATE, "--data.groups={missing}"], ["data.groups is", "not a file"]),
    ("predict", [], ["--run or --out is missing"]),
    ("predict", ["--run={network}", "{image}"], ["--run or --out is missing"]),
    ("predict", ["--run=", "--out={out}", "{image}"], ["--run is empty"]),
    ("predict", ["--run={network}", "--out=", "{image}"], ["--out is empty"]),
    ("predict", [f"--run={LONG}", "--out={out}", "{image}"], ["--run is a text of 5,000 characters"]),
    ("predict", [f"--run={'x' * 300}", "--out={out}", "{image}"], ["no usable path", "File name too long"]),
    ("predict", ["--run=a\0b", "--out={out}", "{image}"], ["control character"]),
    ("predict", [*PREDICT, "--size=3", "{image}"], ["--size is not a known flag", "--masks"]),
    ("predict", [*PREDICT, "--run"], ["--run", "expected one argument"]),
    ("predict", PREDICT, ["no image is named"]),
    ("predict", [*PREDICT, ""], ["'' is neither a file nor a folder"]),
    ("predict", [*PREDICT, "{missing}"], ["does not exist"]),
    ("predict", [*PREDICT, "{folder}"], ["contains no image"]),
    ("predict", [*PREDICT, "{pipe}"], ["is neither a file nor a folder"]),
    ("predict", [*PREDICT, "{socket}"], ["is neither a file nor a folder"]),
    ("predict", [*PREDICT, "/dev/null"], ["is neither a file nor a folder"]),
    ("predict", [*PREDICT, LONG], ["File name too long"]),
    ("predict", [*PREDICT, "a\0b"], ["a\\x00b"]),
    ("predict", [*PREDICT, "{folder}/*.jpg"], ["no image matches"]),
    ("predict", [*PREDICT, "["], ["no image matches"]),
    ("predict", [*PREDICT, "--format=xml", "{image}"], ["--format is 'xml'", "full, isic"]),
    ("predict", [*PREDICT, "--masks=otsu", "{image}"], ["--masks is otsu", "whole images"]),
    ("predict", ["--run={network}", "--out={text_csv}", "{image}"], ["--out is", "expected a folder"]),
    ("predict", ["--run={network}", "--out={below}", "{image}"], ["--out", "is a file"]),
    ("predict", ["--run={network}", "--out=/proc/x", "{image}"], ["--out /proc/x cannot be written"]),
    ("predict", ["--run={network}", f"--out={'x' * 300}", "{image}"], ["--out is", "File name too long"]),
    ("prepare", [], ["the name of the data set is missing"]),
    ("prepare", ["hams"], ["data.dataset is 'hams'"]),
    ("prepare", [".."], ["data.dataset is '..'"]),
    ("prepare", [LONG], ["data.dataset is", "characters)"]),
    ("prepare", ["demo", "demo"], ["demo is not a known flag"]),
    ("prepare", ["demo", "--show=nothing"], ["--show is 'nothing'", "augment"]),
    ("prepare", ["demo", "--show=crop"], ["--data.crop true"]),
    ("prepare", ["demo", "--show=clean"], ["--data.clean"]),
    ("prepare", ["demo", "--show=structures"], ["--features"]),
    ("prepare", ["demo", "--show=augment", "--out=a.jpg"], [".png"]),
    ("prepare", ["demo", "--out=x"], ["--out requires"]),
    ("prepare", ["demo", "--features", "--out="], ["--out is empty"]),
    ("prepare", ["demo", "--features", "--out={pipe}"], ["--out is", "a device or a pipe"]),
    ("prepare", ["demo", "--features", "--out={folder}"], ["--out is", "a folder; expected a file"]),
    ("prepare", ["demo", "--features", "--out=/dev/null"], ["--out is /dev/null"]),
    ("prepare", ["demo", "--features", "--data.crop=true"], ["--features measures whole images"]),
    ("prepare", ["demo", "--accept-licence"], ["--accept-licence requires --download"]),
    ("prepare", ["demo", "--against=ph2"], ["--against requires --audit"]),
    ("prepare", ["demo", "--write-groups=x"], ["--write-groups requires --audit"]),
    ("prepare", ["demo", "--audit", "--show=augment"], ["exclude each other"]),
    ("prepare", ["demo", "--audit", "--against=ph3"], ["--against is 'ph3'"]),
    ("prepare", ["demo", "--audit", "--data.size=32"], ["--audit does not use --data.size"]),
    ("prepare", ["demo", "--audit", "--out={text_csv}"], ["--out is", "expected a folder"]),
    ("prepare", ["demo", "--audit", "--write-groups={folder}"], ["--write-groups is", "a folder"]),
    ("prepare", ["demo", "--data.size=0"], ["data.size is 0", "from 1 to 4096"]),
    ("prepare", ["demo", "--data.root={text_csv}"], ["text.csv"]),
    ("prepare", ["demo", "--data.root={pipe}"], ["pipe"]),
    ("prepare", ["ph2", "--data.root={missing}"], ["does not exist"]),
    ("prepare", ["ph2", "--data.root={folder}"], ["is empty"]),
    ("prepare", ["folder", "--data.root={text_csv}"], ["text.csv"]),
    ("prepare", ["csv", "--data.root={pipe}"], ["pipe"]),
    ("prepare", ["demo", "--data.quality=drop_flagged", "--data.quality_rules={blurred: .nan}"], ["data.quality_rules.blurred is nan"]),
    ("prepare", ["demo", "--data.quality=drop_flagged", "--data.quality_rules={blured: 3}"], ["Did you mean 'blurred'?"]),
    ("ui", ["--port=abc"], ["--port", "invalid int value: 'abc'"]),
    ("ui", ["--porrt=1"], ["--porrt is not a known flag", "Did you mean '--port'?"]),
    ("ui", ["stray"], ["stray is not a known flag"]),
    ("ui", ["--host="], ["--host is empty"]),
    ("ui", ["--tracking.uri=sqlite:///{folder}"], ["a folder; expected a SQLite file"]),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "argv", "fragments"), REQUESTS, ids=range(len(REQUESTS)))
def test_wrong_requests_of_other_verbs(refuse, verb: str, argv: list[str], fragments: list[str]):
    refuse(verb, argv, fragments)


# --------------------------------------------------------------------------------------------------------------- runs and stores

RUNS = [
    "0123", "..", "/", "{folder}", "{text_csv}", "{pipe}", "/dev/null", "@", "a@", "@b", "models:/", "models:/x", "models:/x/1", "'\"", "%",
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_runs_that_do_not_exist(refuse, run: str):
    expected = ["config.yaml" if run in ("..", "/", "{folder}") else run.strip("{}").replace("_", ".")]
    refuse("predict", [f"--run={run}", "--out={out}", "{image}"], expected, code=1)
    refuse("evaluate", [f"--run={run}", "--data.dataset=demo"], expected, code=1)
    run_id = run.strip("{}").replace("_", ".")
    refuse("compare", ["--runs", run], ["there is no such run", run_id], code=1)
    refuse("fit", [f"--resume={run}"], ["there is no such run", run_id], code=1)


STORES = ["journal:///proc/x", "sqlite:////proc/x/y.db", "redis://x", "x"]


@pytest.mark.parametrize("storage", STORES)
def test_storages_that_cannot_be_used(refuse, storage: str):
    refuse("sweep", [*TRIAL, f"--storage={storage}"], ["storage"], code=1)


CONFIGS: list[tuple[bytes, list[str]]] = [
    (b"", ["config.yaml is empty"]),
    (b"{}", ["config.yaml has no key task", "config of a run"]),
    (b"[]", ["contains list"]),
    (b"task: 3\n", ["task is '3'"]),
    (b"task: regression\n", ["task is 'regression'", "segmentation"]),
    (b"task: [classification]\n", ["task is"]),
    (b"task: classification\ndata: 3\n", ["data is 3", "it is a section"]),
    (b"task: classification\ndata: {size: 1000000000}\n", ["data.size is 1000000000", "from 1 to 4096"]),
    (b"task: classification\ndata: {size: big}\n", ["data.size is 'big'", "whole number"]),
    (b"task: classification\ndata: {batch_size: 0}\n", ["data.batch_size is 0", "1 or more"]),
    (b"task: classification\ndata: {split: null}\n", ["data.split is null"]),
    (b"task: classification\nmodel: {backbone: [x]}\n", ["model.backbone is"]),
    (b"task: classification\nmodel: {classifier: tree}\n", ["model.classifier is 'tree'"]),
    (b"task: classification\nmodel: {future_key: 1}\n", ["model.future_key is not a known key"]),
    (b"task: classification\nplugins: 3\n", ["plugins is '3'"]),
    (b"task: classification\nplugins: [no_such_module]\n", ["plugin no_such_module"]),
    (b"task: classification\nseed: " + b"9" * 5000, ["4300 digits"]),
    (b"task: classification\ntask: joint\n", ["the key task is set twice"]),
    (b"&a {task: *a}", ["nested levels"]),
    (b"\xff\xfe", ["UTF-8"]),
    (b"#" * 2_000_000, ["2,000,000 bytes"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "fragments"), CONFIGS, ids=range(len(CONFIGS)))
def test_foreign_run_folders(refuse, tmp_path: Path, content: bytes, fragments: list[str]):
    folder = tmp_path / "foreign"
    shutil.copytree(FIXTURES / "runs" / "network", folder)
    (folder / "config.yaml").write_bytes(content)
    refuse("predict", [f"--run={folder}", "--out={out}", "{image}"], fragments)
    refuse("evaluate", [f"--run={folder}", "--data.dataset=demo"], fragments)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("checkpoints/best.ckpt", None, "has no checkpoints/best.ckpt"),
        ("checkpoints/best.ckpt", b"", "best.ckpt"),
        ("checkpoints/best.ckpt", b"junk", "best.ckpt"),
        ("checkpoints/best.ckpt", b"half", "best.ckpt"),
    ],
)
def test_run_folders_without_a_whole_checkpoint(
    refuse, tmp_path: Path, name: str, content: bytes | None, fragment: str
):
    folder = tmp_path / "foreign"
    shutil.copytree(FIXTURES / "runs" / "network", folder)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    refuse("predict", [f"--run={folder}", "--out={out}", "{image}"], [fragment], code=1 if content is None else 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.json", b"[]"), ("classes.json", b"{}"), ("classes.json", b"3"), ("classes.json", b'{"classes": "abc"}'),
        ("classes.json", b"{"), ("classes.json", b"[" * 50_000), ("classes.json", b"\xff"), ("split.csv", b""),
        ("split.csv", b"a,b\n1,2\n"), ("split.csv", b"\xff\xfe\x00"),
    ],
)  # fmt: skip
def test_run_folders_with_foreign_tables(refuse, tmp_path: Path, name: str, content: bytes):
    folder = tmp_path / "foreign"
    shutil.copytree(FIXTURES / "runs" / "network", folder)
    (folder / name).write_bytes(content)
    refuse("evaluate", [f"--run={folder}", "--data.dataset=demo"], ["its files cannot be read"], code=1)


# -------------------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        ("SKINCANCER_CACHE", "{text_csv}", ["text.csv", "SKINCANCER_CACHE"]),
        ("SKINCANCER_CACHE", "x" * 300, ["$SKINCANCER_CACHE is", "File name too long"]),
        ("SKINCANCER_CACHE", "~nobody-at-all", ["$SKINCANCER_CACHE is '~nobody-at-all'", "home directory"]),
        ("SKINCANCER_CACHE", "/proc/x", ["/proc/x", "SKINCANCER_CACHE"]),
        ("MLFLOW_TRACKING_URI", "http://[::1", ["tracking.uri", "Invalid IPv6 URL"]),
        ("MLFLOW_TRACKING_URI", "sqlite:///{folder}", ["a folder; expected a SQLite file"]),
    ],
)
def test_wrong_environment_variables(
    refuse, files: dict[str, str], tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fragments: list[str]
):  # fmt: skip
    monkeypatch.setenv(name, value.format_map(files))
    refuse("fit", ["--experiment=resnet50", f"--data.root={tiny_demo}", "--model.weights=none"], fragments)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch):
    from skincancer.system.paths import cache_folder

    monkeypatch.delenv("SKINCANCER_CACHE", raising=False)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: f"~/.cache/{name}")
    with pytest.raises(ConfigError, match="Set SKINCANCER_CACHE"):
        cache_folder()


# --------------------------------------------------------------------------------------------------------------- Python interface


def call(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Return a call of the Python interface that imports the package when the test runs."""

    def run() -> Any:
        import skincancer

        return getattr(skincancer, name)(*arguments, **options)

    return run


def load(**values: Any) -> Callable[[], Any]:
    """Return a call of `load_experiment` with one value. In the name of its key, `__` replaces dots."""
    return call("load_experiment", "resnet50", {key.replace("__", "."): value for key, value in values.items()})


INTERFACE: list[tuple[Callable[[], Any], type[SkinCancerError], str]] = [
    (call("load_experiment", "resnet5"), ConfigError, "Did you mean 'resnet50'"),
    (call("load_experiment", ""), ConfigError, "--experiment : unknown"),
    (call("load_experiment", LONG), ConfigError, "File name too long"),
    (call("load_experiment", Path("/nope.yaml")), ConfigError, "/nope.yaml does not exist"),
    (load(data__splt=1), ConfigError, "data.splt is not a known key"),
    (load(data={"size": 3}), ConfigError, "it is a section"),
    (load(seed=10**5000), ConfigError, "seed is a whole number of many digits"),
    (load(seed=-1), ConfigError, "seed is -1; it must be 0 or more"),
    (load(seed="1x"), ConfigError, "seed is '1x'"),
    (load(seed=True), ConfigError, "seed is"),
    (load(seed=None), ConfigError, "seed is null"),
    (load(data__size=1.5), ConfigError, "data.size is"),
    (load(data__size=[32]), ConfigError, "data.size is"),
    (load(data__size=object), ConfigError, "data.size is"),
    (load(data__root=""), ConfigError, "data.root is ''"),
    (load(data__root="a\0b"), ConfigError, "control character"),
    (load(data__root=LONG), ConfigError, "5,000 characters"),
    (load(model__dropout=float("nan")), ConfigError, "model.dropout is nan"),
    (load(model__optimizer__lr=float("inf")), ConfigError, "model.optimizer.lr is inf"),
    (load(data__malignant="mel"), ConfigError, "Write a list as"),
    (load(data__malignant=["mel", "mel"]), ConfigError, "contains 'mel' twice"),
    (load(plugins="mine"), ConfigError, "expected a list"),
    (load(plugins=["no_such_module"]), ConfigError, "there is no module"),
    (load(name="a\nb"), ConfigError, "on one line"),
    (call("fit_experiment", "resnet50"), ConfigError, "expected an Experiment"),
    (call("prepare_dataset", "demo"), ConfigError, "expected an Experiment"),
    (call("sweep_experiment", None, 3), ConfigError, "expected an Experiment"),
    (call("load_run", "0123"), RunError, "there is no such run"),
    (call("load_run", LONG), ConfigError, "File name too long"),
    (call("load_run", ""), ConfigError, "it is empty"),
    (call("load_run", "a\0b"), ConfigError, "no usable path"),
    (call("load_run", "/"), RunError, "has no config.yaml"),
    (call("load_model", "/"), RunError, "has no config.yaml"),
    (call("resume_run", "0123"), RunError, "there is no such run"),
    (call("find_runs", kind="fits"), ConfigError, "Did you mean 'fit'"),
    (call("compare_runs", "0123"), ConfigError, "expected a list"),
    (call("compare_runs", ["a", "a"]), RunError, "names a run twice"),
    (call("compare_runs", ["0123"]), RunError, "there is no such run"),
    (call("evaluate_run", "0123", part="some"), ConfigError, "--part is 'some'"),
    (call("evaluate_run", []), ConfigError, "--run is missing"),
    (call("evaluate_run", "0123", prevalence=float("nan")), ConfigError, "--prevalence is nan"),
    (call("evaluate_run", "0123", {"seed": 1}), RunError, "there is no such run"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "error", "fragment"), INTERFACE, ids=range(len(INTERFACE)))
def test_wrong_calls_of_the_python_interface(
    store: str, tmp_path: Path, function: Callable[[], Any], error: type[SkinCancerError], fragment: str
):
    with pytest.raises(error) as caught:
        function()
    assert fragment in str(caught.value)
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert not (tmp_path / "mlruns" / "work").exists()


def test_the_table_is_large():
    """At least 200 rows apart from the generated ones."""
    rows = len(FIT) + len(YAML) + len(REQUESTS) + len(RUNS) + len(STORES) + len(CONFIGS) + len(INTERFACE)
    assert rows >= 200
    assert issubclass(DataError, SkinCancerError)
    assert issubclass(WeightsError, SkinCancerError)
