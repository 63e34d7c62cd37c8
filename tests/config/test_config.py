"""Test experiments: types of keys, precedence of values, and errors by name within milliseconds."""

import dataclasses
import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from jsonargparse import ArgumentParser

from skincancer import fit
from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import list_experiments
from skincancer.config.resolve import resolve
from skincancer.config.validation import NAMES, REQUIREMENTS
from skincancer.data.catalog import DATASETS
from skincancer.errors import ConfigError
from skincancer.models.names import MASK_LOSSES
from skincancer.schema.dotted_keys import KEYS, TYPES, flatten, unflatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.ranges import RANGES, RULES
from skincancer.schema.training import TrainerConfig
from skincancer.system.yaml_files import dump_yaml, load_yaml

SPLITS = ["80:20", "70:30", "40:60", "60:40", "90:10", "99:1", "11:89", "50:50", "fold:0/5", "fold:4/5", "official"]


@pytest.fixture
def write(tmp_path: Path):
    """Write an experiment file from YAML text and return its path."""

    def file(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return file


@functools.cache
def parser() -> ArgumentParser:
    return build_parser("test", "")


def load(*argv: str) -> Experiment:
    keys, own = parse_flags(parser(), argv)
    return resolve(own.get("experiment"), keys, parser())[0]


def get(experiment: Experiment, key: str) -> Any:
    return flatten(experiment.to_dict())[key]


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- values from YAML and flags


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_split_loads_unquoted(write, split: str):
    for text in (f"data: {{split: {split}}}", f"data:\n  split: {split}\n", f"data.split: {split}"):
        assert load("--experiment", write(text)).data.split == split
    assert load("--experiment=resnet50", "--data.split", split).data.split == split
    assert load("--experiment=resnet50", f"--data.split={split}").data.split == split


def test_a_split_survives_the_config_artifact(tmp_path: Path):
    for split in SPLITS:
        (tmp_path / "c.yaml").write_text(dump_yaml(load("--data.split", split).to_dict()))
        assert load("--experiment", str(tmp_path / "c.yaml")).data.split == split


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", ".5", "3.", "2", "+2", "1e+1"])
def test_numbers_are_read_as_python_reads_them(write, text: str):
    assert load("--experiment", write(f"model: {{optimizer: {{lr: {text}}}}}")).model.optimizer.lr == float(text)
    assert load("--model.optimizer.lr", text).model.optimizer.lr == float(text)


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("trainer.precision", "32", "32"),
        ("trainer.precision", "bf16-mixed", "bf16-mixed"),
        ("model.freeze", "2", "2"),
        ("model.freeze", "all", "all"),
        ("model.weights", "none", "none"),
        ("trainer.devices", "2", 2),
        ("trainer.devices", "auto", "auto"),
        ("trainer.limit_train_batches", "2", 2),
        ("trainer.limit_train_batches", "0.5", 0.5),
        ("data.malignant", "[mel, bcc]", ["mel", "bcc"]),
        ("data.skip_bad", "true", True),
        ("name", "80:20", "80:20"),
    ],
)
def test_numbers_and_words_alike_from_file_and_flag(write, key: str, given: str, value: Any):
    for argv in (["--experiment", write(f"{key}: {given}")], [f"--{key}={given}"]):
        found = get(load(*argv), key)
        assert found == value
        assert type(found) is type(value)


# --------------------------------------------------------------------------------------------------------------- order of values


def test_order_of_values(write):
    def size(text: str, *flags: str) -> int:
        return load("--experiment", write(text), *flags).data.size

    file, study = "data: {size: 48}\n", "study: {data: {size: 96}}\n"
    real = ("--data.dataset", "ham10000")
    assert size("{}", *real) == Experiment().data.size == 224, "schema"
    assert size("{}") == 64, "the catalog's entry of the demo"
    assert size(file) == size(file, *real) == 48, "the file"
    assert size(file + study, *real) == size(study, *real) == 96, "the study, on real data"
    assert size(file + study) == 48, "never on synthetic data"
    assert size(study) == 64
    assert size(file + study, *real, "--data.size=40") == size(file + study, "--data.size=40") == 40, "flags"
    assert size("data: {dataset: ham10000}\n" + study) == 96, "also where the file names the data set"
    assert size("data: {dataset: ham10000}\n" + study, "--data.dataset=demo") == 64


def test_study_values_are_reported_where_they_apply():
    experiment, notes = resolve("densenet169_undersample", {"data.dataset": "ham10000", "data.batch_size": 8}, parser())
    assert (experiment.data.size, experiment.trainer.max_epochs, experiment.model.optimizer.lr) == (224, 50, 1e-4)
    assert experiment.data.batch_size == 8
    (note,) = notes
    for text in ("study", "data.size 224", "trainer.max_epochs 50", "model.optimizer.lr 0.0001"):
        assert text in note
    assert "batch_size" not in note, "a flag goes before it"
    assert resolve("densenet169_undersample", {}, parser())[1] == []
    own = {
        "data.dataset": "ham10000",
        "data.size": 64,
        "data.batch_size": 8,
        "trainer.max_epochs": 1,
        "model.optimizer.lr": 1e-3,
    }
    assert resolve("densenet169_undersample", own, parser())[1] == [], (
        "nothing to tell where flags go before all of them"
    )


def test_only_three_environment_variables_count(monkeypatch: pytest.MonkeyPatch):
    before = load("--experiment=resnet50")
    for name in ("SKINCANCER_DATA__SIZE", "SKINCANCER_SEED", "DATA__SIZE", "TEST_SEED", "TEST_DATA__SIZE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("SKINCANCER_DATA", "/somewhere")
    assert load("--experiment=resnet50") == before


# ------------------------------------------------------------------------------------------------------- files, names and places


def test_names_and_paths_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = load("--experiment=vgg16_frozen")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.yaml").write_text("model: {backbone: resnet18}\ndata: {root: pictures}\n")
    monkeypatch.chdir(tmp_path)
    assert load("--experiment=vgg16_frozen") == here
    for given in ("sub/own.yaml", str(tmp_path / "sub/own.yaml")):
        experiment = load("--experiment", given)
        assert experiment.model.backbone == "resnet18"
        assert experiment.name == "own"
        assert experiment.data.root == str(tmp_path / "pictures"), "made absolute: the config goes on to other places"
    monkeypatch.chdir(tmp_path / "sub")
    assert load("--experiment=own.yaml").name == "own"
    assert str(tmp_path / "sub" / "lost.yaml") in refused("--experiment=lost.yaml")


def test_an_unknown_name_gives_the_nearest_and_all():
    message = refused("--experiment=densnet169_undersample")
    assert "Did you mean 'densenet169_undersample'?" in message
    assert all(name in message for name in list_experiments())


@pytest.mark.parametrize("dataset", ["demo", "ham10000"])
@pytest.mark.parametrize("name", list_experiments())
def test_a_resolved_config_round_trips(tmp_path: Path, name: str, dataset: str):
    experiment = load("--experiment", name, "--data.dataset", dataset)
    text = dump_yaml(experiment.to_dict())
    path = tmp_path / "config.yaml"
    path.write_text(text)
    again, notes = resolve(str(path), {})
    assert again == experiment
    assert notes == []
    content = yaml.safe_load(text)
    assert "study" not in content
    assert set(flatten(content)) == set(KEYS), "complete"
    assert content["description"]
    assert resolve(None, {}, base=flatten(load_yaml(path)))[0] == experiment, "as --resume reads it"


@pytest.mark.parametrize(
    "name", ["80:20", "007", "08", "1e4", "1e-4", "1_000", "0x10", "yes", "null", "~", "x: y # z", "é×"]
)
def test_texts_that_look_like_something_else_round_trip(tmp_path: Path, name: str):
    experiment = load(f"--name={name}", f"--description={name}")
    assert experiment.name == name
    (tmp_path / "config.yaml").write_text(dump_yaml(experiment.to_dict()))
    assert load("--experiment", str(tmp_path / "config.yaml")) == experiment


def test_unflatten_undoes_flatten():
    content = Experiment(search={"model.dropout": {"low": 0.0, "high": 0.5}}).to_dict()
    assert unflatten(flatten(content)) == content
    assert flatten(content)["search"] == content["search"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "cannot be read as YAML"),
        ("data: {size: 3", "cannot be read as YAML"),
        ("- 1", "contains list; expected a mapping of sections"),
        ("just words", "contains str; expected a mapping of sections"),
    ],
)
def test_files_that_are_no_experiment(write, text: str, message: str):
    path = write(text)
    said = refused("--experiment", path)
    assert path in said
    assert message in said


def test_a_binary_file_and_a_folder_are_no_experiments(tmp_path: Path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x9c")
    assert "cannot be read as YAML" in refused("--experiment", str(tmp_path / "b.yaml"))
    assert "is not a file" in refused("--experiment", str(tmp_path))


# ---------------------------------------------------------------------------------------------------------- unknown keys and types


@pytest.mark.parametrize(
    ("text", "key", "near", "others"),
    [
        ("data: {splt: 80:20}", "data.splt", "data.split", "data.resize"),
        ("dta: {split: 80:20}", "dta.split", "data.split", "augment, data"),
        ("model: {optimizer: {lrr: 1}}", "model.optimizer.lrr", "model.optimizer.lr", "model.optimizer.momentum"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch", "trainer.max_epochs", "trainer.devices"),
        ("study: {data: {sizes: 3}}", "data.sizes", "data.size", "data.root"),
    ],
)
def test_an_unknown_key_in_a_file(write, text: str, key: str, near: str, others: str):
    path = write(text)
    message = refused("--experiment", path)
    assert message.startswith(f"{path}, study: {key}" if "study" in text else f"{path}: {key}")
    assert "not a known key" in message
    assert f"Did you mean {near!r}?" in message
    assert others in message


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["--data.splt", "80:20"], "--data.split"),
        (["--data.splt=80:20"], "--data.split"),
        (["--dta.split=3"], "--data.split"),
        (["--experimen", "resnet50"], "--experiment"),  # no abbreviations
        (["--data.siz=64"], "--data.size"),
    ],
)
def test_an_unknown_flag(argv: list[str], near: str):
    message = refused(*argv)
    assert message.startswith(f"command line: {argv[0].split('=')[0]} is not a known flag")
    assert f"Did you mean {near!r}?" in message


def test_an_unknown_flag_may_be_near_one_of_the_verbs_own(capsys):
    assert fit.main(["--resme", "abc"]) == 2
    assert "Did you mean '--resume'?" in capsys.readouterr().err


def test_a_stray_word_and_a_flag_without_value():
    assert "stray is not a known flag" in refused("--experiment=resnet50", "stray")
    assert "--data.size" in refused("--data.size")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.size", "big", "whole number"),
        ("data.size", "3.5", "whole number"),
        ("model.optimizer.lr", "fast", "number"),
        ("data.skip_bad", "maybe", "true or false"),
        ("data.resize", "strech", "'stretch', 'pad', 'crop'"),
        ("data.target", "malignant", "'diagnosis', 'malignancy'"),
        ("trainer.gradient_clip_val", "abc", "number"),
        ("trainer.limit_train_batches", "abc", "number"),
        ("model.unfreeze_epoch", "soon", "whole number"),
        ("augment.rotation", "much", "number"),
        ("search", "4", "dict"),
        ("data.malignant", "mel", "list"),
    ],
)
def test_a_wrong_type_names_place_key_value_and_what_is_allowed(write, key: str, value: str, allowed: str):
    path = write(f"{key}: {value}")
    for place, argv in ((path, ["--experiment", path]), ("command line", [f"--{key}={value}"])):
        message = refused(*argv)
        assert message.startswith(f"{place}: {key} is {value!r}; it must be ")
        assert allowed in message
        assert "\n" not in message
        for word in ("Union", "NoneType", "<class", "Parser key", "subtypes", "typing"):
            assert word not in message


def test_a_misspelt_choice_gets_its_nearest():
    assert "Did you mean 'stretch'?" in refused("--data.resize=strech")
    assert "Did you mean 'malignancy'?" in refused("--data.target=malignant")


@pytest.mark.parametrize(
    "key", ["data.size", "data.dataset", "data.split", "model.backbone", "trainer.max_epochs", "seed", "model.dropout"]
)
def test_null_where_a_value_is_needed(write, key: str):
    path = write(f"{key}: null")
    message = refused("--experiment", path)
    assert path in message
    assert key in message


@pytest.mark.parametrize(
    "text", ["data: 3", "data: []", "data: null", "model: {optimizer: 3}", "study: 5", "study: [1]"]
)
def test_a_section_that_is_none(write, text: str):
    path = write(text)
    message = refused("--experiment", path)
    assert message.startswith(path)
    assert "section" in message


@pytest.mark.parametrize("value", ["3", "{split: 70:30}", "FILE"])
def test_a_section_is_no_flag(write, value: str):
    """A whole section would come by jsonargparse's own YAML reader, which takes 70:30 for 4230."""
    given = write("split: 70:30") if value == "FILE" else value
    message = refused("--data", given)
    assert "--data" in message
    assert "data.split" in message
    assert "4230" not in message
    assert "\n" not in message


# ------------------------------------------------------------------------------------------------------------ names and ranges


@pytest.mark.parametrize(
    ("key", "given", "near"),
    [
        ("data.balance", "oversampl", "oversample"),
        ("model.loss.name", "focall", "focal"),
        ("model.optimizer.name", "adaw", "adamw"),
        ("model.schedule.name", "cosin", "cosine"),
        ("augment.policy", "lihgt", "light"),
        ("training.monitor", "val/balanced_acuracy", "val/balanced_accuracy"),
        ("data.dataset", "ham1000", "ham10000"),
        ("data.leaks", "alow", "allow"),
        ("trainer.precision", "bf16", "bf16-mixed"),
        ("trainer.gradient_clip_algorithm", "nrm", "norm"),
    ],
)
def test_names_are_checked_against_their_registry(write, key: str, given: str, near: str):
    for argv in (["--experiment", write(f"{key}: {given}")], [f"--{key}", given]):
        message = refused(*argv)
        assert f"{key} is {given!r}" in message
        assert near in message
        if key != "trainer.precision":  # too short to be sure of
            assert f"Did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.size", "0"),
        ("data.size", "-3"),
        ("data.batch_size", "0"),
        ("data.workers", "-1"),
        ("data.split_seed", "-1"),
        ("seed", "-1"),
        ("model.dropout", "1.0"),
        ("model.freeze", "0"),
        ("model.freeze", "some"),
        ("model.optimizer.lr", "0"),
        ("model.optimizer.lr", "-0.5"),
        ("model.optimizer.momentum", "1"),
        ("model.optimizer.weight_decay", "-0.1"),
        ("model.loss.label_smoothing", "1.0"),
        ("model.loss.gamma", "-1"),
        ("training.patience", "-1"),
        ("training.ema_decay", "1.0"),
        ("trainer.max_epochs", "0"),
        ("trainer.devices", "0"),
        ("trainer.devices", "-1"),
        ("trainer.accumulate_grad_batches", "0"),
        ("trainer.gradient_clip_val", "0"),
        ("trainer.limit_train_batches", "0"),
        ("trainer.limit_val_batches", "1.5"),
        ("trainer.limit_test_batches", "-0.5"),
        ("trainer.precision", "33"),
        ("augment.rotation", "400"),
        ("augment.horizontal_flip", "-0.1"),
    ],
)
def test_values_out_of_range(key: str, value: str):
    message = refused(f"--{key}={value}")
    assert key in message
    assert value.rstrip("0").rstrip(".") in message
    assert any(words in message for words in ("must be", "expected", "allowed", "choose"))


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_not_a_number_is_no_learning_rate(write, value: str):
    assert "model.optimizer.lr" in refused("--experiment", write(f"model: {{optimizer: {{lr: {value}}}}}"))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("model: {loss: {name: focal, label_smoothing: 0.1}}", ("label_smoothing", "focal")),
        ("data: {balance_fixed: true}", ("balance_fixed", "undersample")),
        ("data: {balance_fixed: true, balance: oversample}", ("balance_fixed", "oversample")),
        ("data: {class_weight_power: 0.5}", ("class_weight_power", "class_weights")),
        ("model: {schedule: {warmup_epochs: 2}}", ("warmup_epochs", "cosine")),
        ("model: {schedule: {name: cosine, warmup_epochs: 14}}", ("warmup_epochs", "trainer.max_epochs (14)")),
        ("model: {unfreeze_epoch: 2}", ("unfreeze_epoch", "freeze")),
        ("model: {unfreeze_epoch: 2, freeze: all}\ntrainer: {devices: 2}", ("unfreeze_epoch", "trainer.devices 1")),
    ],
)
def test_choices_that_contradict_each_other(write, text: str, keys: tuple[str, ...]):
    message = refused("--experiment", write(text))
    assert all(key in message for key in keys)


def test_a_sigmoid_head_is_for_two_classes(write):
    path = write("model: {head: sigmoid}")
    message = refused("--experiment", path)
    for text in ("sigmoid", "two classes", "7", "--data.target malignancy", "--model.head softmax"):
        assert text in message
    assert load("--experiment", path, "--data.target=malignancy").model.head == "sigmoid"
    assert load("--experiment", path, "--data.dataset=malignant_vs_benign").model.head == "sigmoid"


def test_a_smallest_size_raises_defaults_and_refuses_what_was_asked_for(write):
    raised, notes = resolve("inception_v3", {}, parser())
    assert raised.data.size == 75, "the demo's 64 are too small"
    assert notes == ["data.size raised from 64 to 75: the smallest that inception_v3 takes"]
    study, notes = resolve("inception_v3", {"data.dataset": "ham10000"}, parser())
    assert study.data.size == 224
    assert not any("raised" in note for note in notes)
    assert load("--experiment=inception_v3", "--data.size=75").data.size == 75
    asked = "model: {backbone: inception_v3}\ndata: {size: 64}"
    for argv in (["--experiment=inception_v3", "--data.size=74"], ["--experiment", write(asked)]):
        message = refused(*argv)
        assert "at least 75 px" in message
        assert "--data.size 75" in message
    with_tag = load("--experiment", write("model: {backbone: inception_v3.tv_in1k}"))
    assert with_tag.data.size == 75, "timm's weights tag makes no other backbone"


# ------------------------------------------------------------------------------------------------------------------ search block


def test_a_search_block_is_kept_whole(write):
    spaces = {
        "model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.head_hidden": {"low": 0, "high": 512, "step": 64},
        "augment.policy": {"choices": ["light", "strong"]},
    }
    assert load("--experiment", write(dump_yaml({"search": spaces}))).search == spaces


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("model.optimizer.lrr: {low: 1, high: 2}", "Did you mean 'model.optimizer.lr'?"),
        ("model.optimizer.lr: {low: 1}", "{low, high}"),
        ("model.optimizer.lr: {low: 1, high: 2, choices: [1]}", "{low, high}"),
        ("model.optimizer.lr: {low: 1, high: 2, lg: true}", "{low, high}"),
        ("model.optimizer.lr: {}", "{low, high}"),
        ("model.optimizer.lr: 3", "search"),
        ("model.optimizer.lr: {low: 3, high: 1}", "model.optimizer.lr"),
        ("model.optimizer.lr: {low: a, high: b}", "model.optimizer.lr"),
        ("model.optimizer.lr: {low: 0, high: 1, log: true}", "model.optimizer.lr"),
        ("model.optimizer.lr: {choices: []}", "model.optimizer.lr"),
        ("model.optimizer.lr: {choices: 3}", "model.optimizer.lr"),
    ],
)
def test_bad_search_spaces(write, space: str, message: str):
    assert message in refused("--experiment", write(f"search: {{{space}}}"))


# ------------------------------------------------------------------------------------------------------------ names, help and speed


def test_trainer_keys_are_lightnings_own():
    from pytorch_lightning import Trainer

    known = set(inspect.signature(Trainer).parameters)
    assert {field.name for field in dataclasses.fields(TrainerConfig)} <= known


def test_every_key_has_a_help_text(capsys):
    with pytest.raises(SystemExit) as caught:
        fit.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key in KEYS:
        assert f"--{key}" in text
    for explained in ("train:test in percent", "--resume RUN_ID", "selects the best checkpoint", "any timm model;"):
        assert explained in text


def test_list_shows_every_experiment_with_its_origin(capsys):
    assert fit.main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name, description in list_experiments().items():
        assert name in shown
        assert description
        assert description in shown


def test_no_experiment_says_which_there_are(capsys):
    assert fit.main([]) == 2
    message = capsys.readouterr().err
    assert "--experiment NAME" in message
    assert "densenet169_undersample" in message


def test_dry_run_prints_a_config_that_loads(tmp_path: Path, capsys):
    argv = ["--experiment=convnext_tiny", "--data.split=70:30"]
    assert fit.main([*argv, "--dry-run"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load("--experiment", str(tmp_path / "printed.yaml")) == load(*argv)


FAST = """
import contextlib, io, sys
from skincancer import fit
for argv in (["--experiment=resnet50", "--data.splt=1"], ["--experiment=resnet50", "--data.split=80:30"],
             ["--experiment=resnet5"], ["--experiment=resnet50", "--dry-run", "--data.size=0"], ["--list"], ["--help"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = fit.main(argv)
        except SystemExit as end:
            code = end.code
    print(code, *argv)
heavy = ["torch", "pandas", "mlflow", "pytorch_lightning", "timm", "kornia", "scipy", "sklearn", "matplotlib"]
print([name for name in heavy if name in sys.modules])
"""


def test_config_errors_help_and_list_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", FAST], capture_output=True, text=True, check=True)
    *codes, loaded = done.stdout.splitlines()
    assert [line.split()[0] for line in codes] == ["2", "2", "2", "2", "0", "0"]
    assert loaded == "[]"
    assert done.stderr == ""


def test_a_value_out_of_range_is_reported_with_where_it_stands(write):
    path = write("data: {dataset: ham10000}\nmodel: {dropout: 1.5}\nstudy:\n  trainer: {max_epochs: 0}\n")
    assert refused("--experiment", path).startswith(f"{path}, study: trainer.max_epochs is 0")
    good = ("--experiment", path, "--trainer.max_epochs", "2")
    assert refused(*good).startswith(f"{path}: model.dropout is 1.5; it must be")
    assert refused(*good, "--model.dropout", "2").startswith("command line: model.dropout is 2.0")
    assert refused(*good, "--data.balance", "smote").startswith("command line: data.balance is 'smote'")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.loss.gamma=3"], "model.loss.gamma is 3.0; it is for focal, and chosen is cross_entropy"),
        (["--model.optimizer.momentum=0.5"], "model.optimizer.momentum is 0.5; it is for sgd, and chosen is adam"),
        (["--model.schedule.step_epochs=3"], "model.schedule.step_epochs is 3; it is for step"),
        (["--model.schedule.gamma=0.5"], "model.schedule.gamma is 0.5; it is for step"),
    ],
)
def test_a_value_that_nothing_would_read_is_refused(flags, message):
    assert message in refused("--experiment=densenet169_undersample", *flags)


def test_a_run_of_a_day_with_other_defaults_is_read_and_nothing_else_is_let_through():
    today, _ = resolve("efficientnet_lite0", {})
    stored = flatten(today.to_dict())
    rules = {**stored["data.quality_rules"], "flat": 0.5}
    of_then = {
        "data.quality_rules": rules,
        "data.crop_margin": 0.5,
        "model.classical.trees": 7,
        "model.mask.threshold": 0.3,
    }
    assert resolve(None, {}, base={**stored, **of_then})[0] == today
    used, _ = resolve(None, {}, base={**stored, "data.quality": "drop_flagged", "data.quality_rules": rules})
    assert used.data.quality_rules == rules
    for key, value in of_then.items():
        with pytest.raises(ConfigError, match=f"{key} is .*; it is for"):
            resolve(None, {key: value}, base=stored)
    with pytest.raises(ConfigError, match=r"data\.quality_rules is .*; it is for"):
        resolve(
            None, {"data.quality": "keep"}, base={**stored, "data.quality": "drop_flagged", "data.quality_rules": rules}
        )


def test_a_word_where_a_list_belongs_is_reported_with_the_list(capsys):
    assert fit.main(["--experiment=resnet50", "--data.clean=hair", "--dry-run"]) == 2
    assert "data.clean is 'hair'; it must be list. Write a list as [hair]." in " ".join(capsys.readouterr().err.split())


def test_every_rule_of_the_schema_can_be_checked():
    """A range has its test, and what a key goes with is a key with a value that it may have."""
    assert set(RULES) == set(KEYS)
    assert {rules["allowed"] for rules in RULES.values() if rules.get("allowed")} == set(RANGES)
    values = {key: get_args(hint) for key, hint in TYPES.items() if get_origin(hint) is Literal}
    values |= {key: tuple(names) for key, names in NAMES.items()}
    values |= {"data.dataset": tuple(DATASETS), "data.crop": ("true", "false"), "model.loss.masks": tuple(MASK_LOSSES)}
    for key, other, allowed in REQUIREMENTS:
        assert set(allowed) < set(values[other]), key


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.balance_fixed=true"], "data.balance_fixed is True; it is for data.balance undersample, and data.balance is none"),
        (["--data.class_weight_power=0.5"], "it is for data.balance class_weights, and data.balance is none"),
        (["--model.schedule.name=step", "--model.schedule.warmup_epochs=1"], "it is for cosine, and chosen is step"),
        (["--model.loss.name=focal", "--model.loss.label_smoothing=0.1"], "it is for cross_entropy, and chosen is focal"),
        (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps is 0; it must be 1 or more"),
        (["--trainer.max_epochs=1000001"], "it must be 1 or more, at most a million"),
        (["--trainer.max_epochs=1000000000000000000000"], "a whole number must be at most 4294967295"),
        (["--trainer.accumulate_grad_batches=10000000"], "it must be 1 or more, at most a million"),
        (["--training.patience=10000000"], "it must be 0 or more, at most a million"),
        (["--model.optimizer.lr=100"], "model.optimizer.lr is 100.0; it must be above 0 and below 100"),
        (["--model.optimizer.weight_decay=1e9"], "it must be 0 or more, at most 1000"),
        (["--model.loss.name=focal", "--model.loss.gamma=1e30"], "it must be 0 or more, at most 1000"),
        (["--model.head_hidden=1000000000"], "it must be from 0 to 65536"),
        (["--model.freeze=-1"], "none, all, or a number of stages"),
        ([f"--model.freeze={'9' * 60}"], "a whole number of many digits"),
        ([f"--trainer.devices={'9' * 5000}"], "a text of 5,000 characters; it must have at most 4,096"),
        (["--data.class_weight_power=3"], "data.class_weight_power is 3.0; it must be above 0, at most 2"),
        (["--data.images=x"], "it is for data.dataset csv, and data.dataset is demo"),
        (["--data.name=x"], "it is for data.dataset folder, csv, and data.dataset is demo"),
        (["--data.dataset=csv", "--data.name=ham10000"], "data.name is 'ham10000'; it must be up to 80 letters"),
        (["--data.dataset=csv", "--data.name=a/b"], "data.name is 'a/b'; it must be up to 80 letters"),
        (["--data.dataset=csv", "--data.name="], "data.name is ''; it must be up to 80 letters"),
        (["--data.where=f(x)"], "data.where is 'f(x)'; expected a condition"),
    ],
)  # fmt: skip
def test_rules_of_the_schema_name_key_value_and_choice(flags, message):
    assert message in refused(*flags)
