"""What a Dataverse says of a data set: its files with address, length and checksum, its licence and terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from skincancer.data.catalog import Source
from skincancer.data.download.http import mirrored, read_json
from skincancer.errors import DataError

HOST = "https://dataverse.harvard.edu"


def list_files(doi: str, sources: Sequence[Source]) -> tuple[list[Source], str]:
    """Ask a Dataverse for the files of a data set (Native API, `/api/datasets/:persistentId/`).

    A table that the Dataverse has turned into its own format is asked for as it was uploaded (`format=original` of the Data Access
    API): its md5 is that of the upload.

    Args:
        doi: as `doi:10.7910/DVN/…`.
        sources: the files wanted, by name; the ending counts only where the name alone is not to be found.

    Returns:
        The sources with address, md5 and length (None for a table whose uploaded length is not told); and the publisher's words on
        licence and terms, "" where it has none.

    Raises:
        Refused, DataError: the server does not answer so, or has no such file, or does not give it to anyone.
    """
    address = mirrored(f"{HOST}/api/datasets/:persistentId/?persistentId={doi}")
    answer = read_json(address)
    try:
        version = answer["data"]["latestVersion"]
        files = {str(entry["dataFile"]["filename"]): entry for entry in version["files"]}
        found = [_locate(source, files, doi) for source in sources]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{address} answered with something else than the files of a data set: {error!r}") from error
    licence = version.get("license") or ""
    terms = [licence.get("name", "") if isinstance(licence, dict) else str(licence), version.get("termsOfUse") or ""]
    return found, "\n".join(text.strip() for text in terms if text and text.strip() != "NONE")


def _locate(source: Source, files: dict[str, Any], doi: str) -> Source:
    wanted = source.file.casefold()
    entry = next((entry for name, entry in files.items() if name.casefold() == wanted), None) or next(
        (entry for name, entry in files.items() if PurePosixPath(name).stem.casefold() == wanted), None
    )
    if entry is None:
        raise DataError(f"{doi} has no file {source.file} any more; it has {', '.join(sorted(files)) or 'none'}.")
    if entry.get("restricted"):
        raise DataError(f"{source.file} of {doi} is given to those alone whom its publisher has let in.")
    file = entry["dataFile"]
    table = "originalFileFormat" in file
    size = file.get("originalFileSize") if table else file.get("filesize")
    return dataclasses.replace(
        source,
        url=f"{HOST}/api/access/datafile/{int(file['id'])}" + ("?format=original" if table else ""),
        checksum=f"md5:{file['md5']}" if file.get("md5") else None,
        size=None if size is None else int(size),
    )
