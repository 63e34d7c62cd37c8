"""`prepare --audit`: what it takes, and how an audit is told and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, DataError
from skincancer.files import check_file, check_folder
from skincancer.schema import DataConfig, Experiment
from skincancer.terminal import make_console, make_table, progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from skincancer.data.audit import Audit

USED = ("data.dataset", "data.root", "data.quality_rules")  # of the configuration
_NEEDED = {"against": "audit", "write_groups": "audit", "against_root": "against"}
_SPELT = {"against": "--against", "write_groups": "--write-groups", "against_root": "--against.root"}


def audit(
    experiment: Experiment, folder: Path, against: DataConfig | None = None, groups: Path | None = None,
    console: Console | None = None,
) -> Audit:  # fmt: skip
    """Look for what is wrong with a data set, print it, and write NAME_audit.csv, NAME_images.csv and NAME_audit.html.

    Args:
        experiment: its `data` section names the data set, and the quality rules.
        folder: where the three files are written.
        against: another data set, to look for the images in.
        groups: where the table is written that `data.groups` takes: copies, and lesions by the other data set; None for nowhere.
        console: where to print.

    Raises:
        ConfigError: `folder` or `groups` cannot be written, or as `skincancer.data.audit.audit`.
        DataError: as there; or a file cannot be written in the end, when the others are.
    """
    check_outputs(folder, groups)
    from skincancer.data.audit import audit as find
    from skincancer.data.audit import write_groups
    from skincancer.evaluation.audit_pages import write_audit_page
    from skincancer.evaluation.audit_tables import sentences, summary, write_csv, write_images

    console = console or make_console()
    with progress_bars(console) as bars:
        found = find(experiment.data, against, bars)
    entry, rows = found.own.entry, summary(found)
    title = f"audit of {entry.title}: {len(found.own.index)} images in {found.own.root}"
    console.print(make_table(title, ["found", "images", "groups"], rows or [["nothing", "", ""]]))
    for text in sentences(found):
        console.print(text, markup=False)
    name = f"{entry.name}_audit" if found.other is None else f"{entry.name}_audit_against_{found.other.entry.name}"
    files: dict[Path, Callable[[Audit, Path], object]] = {
        folder / f"{name}.csv": write_csv,
        folder / f"{entry.name}_images.csv": write_images,
    }
    if groups is not None:
        files[groups] = write_groups
    files[folder / f"{name}.html"] = write_audit_page
    failed = []
    for path, write in files.items():
        try:
            told = write(found, path)
        except OSError as error:  # one full disk loses no other file
            failed.append(f"{path} cannot be written: {error.strerror or error}")
            continue
        more = f": {told} groups, for --data.groups {path}" if path == groups else ""
        console.print(f"wrote {path}{more}", markup=False)
    if found.unkept:
        console.print(f"fits are not told of this audit, as it cannot be kept: {found.unkept}", markup=False)
    if failed:
        raise DataError(f"{'; '.join(failed)}. Free some space, or give another place with --out and --write-groups.")
    return found


def check_outputs(folder: Path, groups: Path | None) -> None:
    """Try to write where an audit will write.

    Raises:
        ConfigError: `folder` or `groups` cannot be written.
    """
    check_folder(folder, "--out")
    if groups is not None:
        check_file(groups, "--write-groups")


def check_flags(flags: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse what an audit would ignore, and what goes with it alone.

    Args:
        flags: keys of the configuration given on the command line.
        own: flags of `prepare`.

    Raises:
        ConfigError: names the flag.
    """
    for flag, needed in _NEEDED.items():
        if own.get(flag) and not own.get(needed):
            raise ConfigError(f"{_SPELT[flag]} goes with --{needed}.")
    if not own.get("audit"):
        return
    if own.get("show"):
        raise ConfigError("--audit and --show are two things; give one of them.")
    if own.get("features"):
        raise ConfigError("--audit and --features are two things; give one of them.")
    unused = [*(["experiment"] if own.get("experiment") else []), *(key for key in flags if key not in USED)]
    if unused:
        raise ConfigError(
            f"--audit makes no use of --{unused[0]}: it looks at whole images as their publisher has them. "
            f"Of the configuration it takes {', '.join(f'--{key}' for key in USED)}. Leave it out."
        )


def other_data(own: Mapping[str, Any]) -> DataConfig | None:
    """Return where the data set that --against names is."""
    if not own.get("against"):
        return None
    root = own.get("against_root")
    name = catalog_entry(own["against"], "--against").name
    return DataConfig(dataset=name, root=str(Path(root).expanduser().absolute()) if root else None)
