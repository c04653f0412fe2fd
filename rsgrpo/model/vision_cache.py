"""Features of a frozen vision tower on disk: constants of a run, computed once per page.

An entry is one safetensors file, named after a hash of the page's bytes, of how pages are processed and of the
tower itself, so that runs, ranks and epochs share it. Entries appear complete or not at all, carry a checksum,
and leave again when the folder grows too large, the one that was read longest ago first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rsgrpo.data.images.sources import image_bytes
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import PARTIAL_SUFFIX, replacing
from rsgrpo.model.vision_tower import tower_features
from rsgrpo.types import ImageRef

if TYPE_CHECKING:  # seconds of imports for a name
    from transformers import PreTrainedModel

_FORMAT = "1"  # part of every key: a change of layout makes new entries
_TENSOR = "features"
_SUFFIX = ".safetensors"
_ABANDONED_SECONDS = 3600.0  # a half-written file this old belongs to a process that died
_DAMAGED = (SafetensorError, KeyError, TypeError, ValueError)  # what reading a file that is no entry may raise

Grid = tuple[int, int, int]


class VisionCacheError(RsgrpoError):
    """The folder of ``model.vision_cache`` cannot be used."""


@dataclass(kw_only=True, slots=True)
class CacheCounts:
    """How often features were read, computed and removed so far.

    Attributes:
        num_hits: how many pages' features were read.
        num_misses: how many pages' features were computed.
        num_corrupt: how many entries were damaged, and removed.
        num_evicted: how many entries were removed to make room.
    """

    num_hits: int = 0
    num_misses: int = 0
    num_corrupt: int = 0
    num_evicted: int = 0


class FeatureStore:
    """A bounded folder of features that several processes may use at once.

    Args:
        folder: the folder of the store, made if need be.
        max_bytes: the most bytes that the entries take together.

    Raises:
        VisionCacheError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.counts = CacheCounts()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise self._error(error) from error

    def grid(self, key: str) -> Grid | None:
        """The page's grid, from the entry's header alone; None: no readable entry."""
        try:
            with safe_open(self._path(key), framework="pt") as entry:
                return _grid(entry.metadata())
        except FileNotFoundError:
            return None
        except _DAMAGED:
            self._discard(key)
            return None

    def read(self, key: str) -> Tensor | None:
        """An entry's features [tokens, H], compared with its checksum; None: there is no entry, or a damaged one.

        Args:
            key: the key of the entry, see :func:`feature_key`.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as entry:
                features: Tensor = entry.get_tensor(_TENSOR)
                expected = entry.metadata()["crc32"]
        except FileNotFoundError:
            return None
        except _DAMAGED:
            self._discard(key)
            return None
        if _checksum(features) != expected:
            self._discard(key)
            return None
        # What eviction goes by; another process may have evicted it just now, but what was read is whole.
        with suppress(FileNotFoundError):
            os.utime(path)
        return features

    def write(self, key: str, features: Tensor, grid: Grid) -> None:
        """Store features; the entry appears complete, and older ones make room for it.

        Args:
            key: the key of the entry, see :func:`feature_key`.
            features: [tokens, H]; more than the folder may hold is not stored.
            grid: (frames, rows, columns) in patches.

        Raises:
            VisionCacheError: the folder cannot be written.
        """
        features = features.detach().cpu().contiguous()
        metadata = {"grid": ",".join(map(str, grid)), "crc32": _checksum(features)}
        data = save({_TENSOR: features}, metadata)
        if len(data) > self._max_bytes:
            return
        try:
            # The lock is let go once the file has its name.
            with ExitStack() as lock, replacing(self._path(key), is_cache=True) as file:
                file.write(data)
                lock.enter_context(self._locked())
                self._make_room(len(data), key)
        except OSError as error:
            raise self._error(error) from error

    def _make_room(self, num_bytes: int, key: str) -> None:
        entries: list[tuple[float, int, Path]] = []
        with os.scandir(self._folder) as listing:
            for entry in listing:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # a reader found it damaged and removed it
                if entry.name.endswith(_SUFFIX) and entry.name != key + _SUFFIX:
                    entries.append((status.st_mtime, status.st_size, Path(entry.path)))
                elif entry.name.endswith(PARTIAL_SUFFIX) and time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
        total = num_bytes + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
            self.counts.num_evicted += 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder for a writer: writers take turns, so that together they keep to the bound; readers go on."""
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _discard(self, key: str) -> None:
        self.counts.num_corrupt += 1
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _error(self, error: OSError) -> VisionCacheError:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot be written: {error}"
        return VisionCacheError(
            f"model.vision_cache.folder={str(self._folder)!r} {what}; choose a folder on another disk, lower "
            "model.vision_cache.max_gib, or leave the folder empty to go without"
        )


def _checksum(features: Tensor) -> str:
    return f"{zlib.crc32(features.reshape(-1).view(torch.uint8).numpy().data):08x}"


def _grid(metadata: dict[str, str]) -> Grid:
    frames, rows, columns = (int(part) for part in metadata["grid"].split(","))
    return frames, rows, columns


def tower_fingerprint(visual: PreTrainedModel, device: str) -> str:
    """Hash of everything that a page's features come from, beside the page: weights, precision, libraries, device.

    Args:
        visual: the tower, its weights whole.
        device: ``cpu`` or ``gpu``: the same weights round otherwise there.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{_FORMAT}/{torch.__version__}/{transformers.__version__}/{device}/".encode())
    digest.update(str(visual.config._attn_implementation).encode())
    for name, tensor in visual.state_dict().items():
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def feature_key(image: bytes, processing: str, tower: str) -> str:
    """Name of a page's entry.

    Args:
        image: the bytes of the image file.
        processing: the settings that turn them into pixels, as text.
        tower: the fingerprint of the tower, see :func:`tower_fingerprint`.

    Example:
        32 hexadecimal digits; another bound of ``data.max_pixels`` gives others.
    """
    digest = hashlib.blake2b(image, digest_size=16)
    digest.update(f"/{processing}/{tower}".encode())
    return digest.hexdigest()


class ImageFeatures:
    """A frozen tower with its store: features of pages, each computed once.

    The tower runs page by page, so that a page's features depend on nothing but the page: a run gives the
    same numbers to the bit whatever the folder held when it began.

    Args:
        visual: the tower, outside DeepSpeed, on the device.
        store: where features are kept.
        processing: the settings that turn image files into pixels, as text.
        device: the device that the tower is on.
    """

    def __init__(self, visual: PreTrainedModel, store: FeatureStore, *, processing: str, device: torch.device) -> None:
        self._visual = visual.to(device).eval()
        self._store = store
        self._processing = processing
        self._device = device
        self._tower = tower_fingerprint(visual, device.type)
        self._keys: dict[ImageRef, str] = {}

    @property
    def counts(self) -> CacheCounts:
        """How often features were read, computed and removed so far."""
        return self._store.counts

    def parameters(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """The tower's parameters, named as in the model, in lists of about ``max_bytes``.

        Args:
            max_bytes: a list ends once it holds as many.
        """
        chunk: list[tuple[str, Tensor]] = []
        for name, parameter in self._visual.named_parameters():
            chunk.append((f"model.visual.{name}", parameter.detach()))
            if sum(tensor.nbytes for _, tensor in chunk) >= max_bytes:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def grid(self, ref: ImageRef) -> Grid | None:
        """The grid of a page whose features are stored: its pixels are not needed. None: they are.

        Args:
            ref: the image, which says where it lies.

        Raises:
            ImageError: the page cannot be read.
        """
        return self._store.grid(self._key(ref))

    @torch.no_grad()
    def features(self, ref: ImageRef, grid: Grid, pixels: Callable[[], Tensor]) -> Tensor:
        """A page's features, read or computed.

        Args:
            ref: the image, which says where it lies.
            grid: (frames, rows, columns) in patches.
            pixels: gives the image's pixels [patches, 1176] where features must be computed.

        Returns:
            [tokens, (1 + levels) · H] in the tower's precision, on the device.
        """
        key = self._key(ref)
        found = self._store.read(key)
        if found is not None:
            self.counts.num_hits += 1
            return found.to(self._device)
        self.counts.num_misses += 1
        patches = pixels().to(self._device)
        computed = tower_features(self._visual, patches, torch.tensor([grid], device=self._device))
        self._store.write(key, computed, grid)
        return computed

    def _key(self, ref: ImageRef) -> str:
        if ref not in self._keys:
            self._keys[ref] = feature_key(image_bytes(ref), self._processing, self._tower)
        return self._keys[ref]
