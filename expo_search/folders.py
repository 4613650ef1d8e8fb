"""Folders of this package outside a project: what is built or compiled once, for every study of a user."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str) -> Path:
    """A path as people type it, with ~ for a home; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for an unknown user


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def cache_folder() -> Path:
    """Where built checkpoints are kept: $EXPO_SEARCH_CACHE, else expo-search in the user's cache folder."""
    if given := os.environ.get("EXPO_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expo-search"
