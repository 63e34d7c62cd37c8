"""Files, checksums and licence terms of a data set on a Dataverse."""

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
    """Look up files of a data set (Native API, `/api/datasets/:persistentId/`).

    A Dataverse converts tables to its own format. Such a table is requested as uploaded (`format=original` of the Data
    Access API), because its md5 is the md5 of the upload.

    Args:
        doi: DOI, such as `doi:10.7910/DVN/…`.
        sources: Requested files, by name. A file with another ending is used if no file has the exact name.

    Returns:
        The sources with URL, md5 and size (None if the size of the upload is unknown); and licence and terms of use, "" if the
        data set has none.

    Raises:
        Refused, DataError: The answer is not a list of files, or a file is missing or restricted.
    """
    address = mirrored(f"{HOST}/api/datasets/:persistentId/?persistentId={doi}")
    answer = read_json(address)
    try:
        version = answer["data"]["latestVersion"]
        files = {str(entry["dataFile"]["filename"]): entry for entry in version["files"]}
        located = [_locate(source, files, doi) for source in sources]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{address} did not answer with the files of a data set: {error!r}") from error
    licence = version.get("license") or ""
    terms = [licence.get("name", "") if isinstance(licence, dict) else str(licence), version.get("termsOfUse") or ""]
    return located, "\n".join(text.strip() for text in terms if text and text.strip() != "NONE")


def _locate(source: Source, files: dict[str, Any], doi: str) -> Source:
    wanted = source.file.casefold()
    entry = next((entry for name, entry in files.items() if name.casefold() == wanted), None) or next(
        (entry for name, entry in files.items() if PurePosixPath(name).stem.casefold() == wanted), None
    )
    if entry is None:
        raise DataError(f"{doi} no longer has the file {source.file}; it has {', '.join(sorted(files)) or 'none'}.")
    if entry.get("restricted"):
        raise DataError(f"{source.file} of {doi} is restricted; request access from its publisher.")
    file = entry["dataFile"]
    table = "originalFileFormat" in file
    size = file.get("originalFileSize") if table else file.get("filesize")
    return dataclasses.replace(
        source,
        url=f"{HOST}/api/access/datafile/{int(file['id'])}" + ("?format=original" if table else ""),
        checksum=f"md5:{file['md5']}" if file.get("md5") else None,
        size=None if size is None else int(size),
    )
