"""Fingerprints of checkpoints."""

import os
from pathlib import Path

import pytest

from ureca.errors import CheckpointError
from ureca.model.checkpoint_files import fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "ureca"}')
    (tmp_path / "model.safetensors").write_bytes(os.urandom(1 << 20))
    return tmp_path


def test_fingerprint_follows_content_not_location(checkpoint: Path, tmp_path: Path) -> None:
    before = fingerprint(checkpoint)
    moved = tmp_path.with_name("moved")
    checkpoint.rename(moved)
    assert fingerprint(moved) == before
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert fingerprint(moved) != before


@pytest.mark.parametrize(
    ("config", "why"), [(None, "cannot read"), ("{", "cannot read"), ("[]", "None"), ('{"model_type": "bert"}', "bert")]
)
def test_fingerprint_without_checkpoint_raises(tmp_path: Path, config: str | None, why: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=why):
        fingerprint(tmp_path)
