"""Audit command: check flags, print findings, write files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, DataError
from skincancer.schema.data import DataConfig
from skincancer.system.console import make_console, make_table, progress_bars
from skincancer.system.files import check_file, check_folder
from skincancer.system.paths import user_path

if TYPE_CHECKING:
    from rich.console import Console

    from skincancer.audit.audit import Audit

USED_KEYS = ("data.dataset", "data.root", "data.images", "data.where", "data.name", "data.quality_rules", "plugins")
# Flag, flag that it requires, and its spelling in messages.
REQUIRED = (
    ("against", "audit", "against"),
    ("write_groups", "audit", "write-groups"),
    ("against_root", "against", "against.root"),
)


def audit(
    config: DataConfig, folder: Path, against: DataConfig | None = None, groups: Path | None = None, console: Console | None = None
) -> Audit:  # fmt: skip
    """Audit a data set, print the findings, and write them to files.

    Args:
        config: data section with the data set and the quality rules.
        folder: folder of NAME_audit.csv, NAME_images.csv and NAME_audit.html.
        against: other data set in which the images are searched.
        groups: table of copies and of lesions known from the other data set, for `data.groups`. None to write no table.

    Raises:
        ConfigError: `folder` or `groups` cannot be written, or as in `skincancer.audit.audit.audit`.
        DataError: as in `skincancer.audit.audit.audit`, or a file cannot be written. The other files are still written.
    """
    check_outputs(folder, groups)
    from skincancer.audit import audit as auditing
    from skincancer.audit.report import sentences, summary, write_audit_page, write_csv, write_images

    console = console or make_console()
    with progress_bars(console) as bars:
        result = auditing.audit(config, against, bars)
    entry, rows = result.own.entry, summary(result)
    title = f"audit of {entry.title}: {len(result.own.index)} images in {result.own.root}"
    console.print(make_table(title, ["found", "images", "groups"], rows or [["nothing", "", ""]]))
    result.own.reading.report(console)
    for text in sentences(result):
        console.print(text, markup=False)
    name = f"{entry.name}_audit" if result.other is None else f"{entry.name}_audit_against_{result.other.entry.name}"
    files: dict[Path, Callable[[Audit, Path], object]] = {
        folder / f"{name}.csv": write_csv,
        folder / f"{entry.name}_images.csv": write_images,
        **({groups: auditing.write_groups} if groups else {}),
        folder / f"{name}.html": write_audit_page,
    }
    errors = []
    for path, write in files.items():
        # An error in one file, such as a full disk, must not prevent the others.
        try:
            written = write(result, path)
        except OSError as error:
            errors.append(f"{path} cannot be written: {error.strerror or error}")
            continue
        console.print(
            f"wrote {path}{f': {written} groups, for --data.groups {path}' if path == groups else ''}", markup=False
        )
    if result.unkept:
        console.print(f"fits will not report this audit, because it cannot be saved: {result.unkept}", markup=False)
    if errors:
        raise DataError(f"{'; '.join(errors)}. Free some space, or set other paths with --out and --write-groups.")
    return result


def check_outputs(folder: Path, groups: Path | None) -> None:
    """Check that the files of an audit can be written.

    Raises:
        ConfigError: `folder` or `groups` cannot be written.
    """
    check_folder(folder, "--out")
    if groups is not None:
        check_file(groups, "--write-groups")


def check_audit_flags(keys: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Reject flags without effect on an audit, and audit flags without `--audit`.

    Args:
        keys: keys of the experiment from the command line.
        flags: flags of `prepare`.

    Raises:
        ConfigError: names the flag.
    """
    for flag, required, spelling in REQUIRED:
        if flags.get(flag) and not flags.get(required):
            raise ConfigError(f"--{spelling} requires --{required}. Use both, or remove --{spelling}.")
    if not flags.get("audit"):
        return
    for flag in ("show", "features"):
        if flags.get(flag):
            raise ConfigError(f"--audit and --{flag} exclude each other. Use only one of them.")
    unused = [*(["experiment"] if flags.get("experiment") else []), *(key for key in keys if key not in USED_KEYS)]
    if unused:
        raise ConfigError(
            f"--audit does not use --{unused[0]}: it checks the images as published. "
            f"It uses only {', '.join(f'--{key}' for key in USED_KEYS)}. Remove --{unused[0]}."
        )


def other_dataset(flags: Mapping[str, Any]) -> DataConfig | None:
    """Return the data set of `--against` and `--against_root`."""
    if not flags.get("against"):
        return None
    root = flags.get("against_root")
    name = catalog_entry(flags["against"], "--against").name
    return DataConfig(dataset=name, root=str(user_path(root, "--against.root").absolute()) if root else None)
