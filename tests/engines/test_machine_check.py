"""Machines with another version, store or other images get no orders."""

import shutil
from pathlib import Path

from skincancer.config.resolve import resolve
from skincancer.data.prepare import prepare_data
from skincancer.engines.machine_check import data_facts, refusal, store_facts, used_images
from skincancer.runs.store import RunStore, connect


def test_a_machine_with_other_images_is_refused(tiny_demo, tmp_path, store):
    here = tmp_path / "here"
    shutil.copytree(tiny_demo, here)
    flags = {"data.skip_bad": True, "data.size": 32}
    data = prepare_data(resolve(None, {**flags, "data.root": str(tiny_demo)})[0].data)
    run_id = connect(None).create_run(RunStore(None).experiment_id("demo")).info.run_id
    expected = {
        "run": run_id,
        "index_hash": data.index_hash,
        "split_hash": data.split_hash,
        "images": used_images(data),
    }

    def facts(root: Path, run_id: str = run_id) -> dict[str, str]:
        return data_facts(resolve(None, {**flags, "data.root": str(root)})[0], RunStore(None), run_id)

    assert refusal(expected, facts(tiny_demo)) == ""
    assert refusal(expected, facts(tiny_demo, "f" * 32)).startswith("its run is not in sqlite:///")
    (here / data.rows("val")["image"].iloc[0]).write_bytes(b"half a file")
    train, val = len(data.rows("train")), len(data.rows("val"))
    said = refusal(expected, facts(here))
    assert f"its images is {train} to train on, {val - 1} to validate on (" in said
    assert f"expected {train} to train on, {val} to validate on (" in said
    other = refusal(expected, facts(tiny_demo) | {"index_hash": "0"})
    assert other.startswith("its index_hash is 0; expected ")
    assert other.endswith("Set SKINCANCER_DATA, where `ray start` is called, to the same data.")


def test_a_machine_with_another_version_or_store_is_refused(tmp_path, store):
    expected = store_facts(RunStore(None))
    assert refusal(expected, store_facts(RunStore(None))) == ""
    assert refusal(expected, expected | {"version": "0.0.1"}).startswith("its version is 0.0.1; expected ")
    other = store_facts(RunStore(f"sqlite:///{tmp_path}/other.db").open())
    assert "Use a store that all machines reach" in refusal(expected, other)
