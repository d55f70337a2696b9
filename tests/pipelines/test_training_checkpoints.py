"""Checkpoints of a run count only if they are complete."""

from pathlib import Path

from ureca.pipelines.training.run_folder import Checkpoints


def write(checkpoints: Checkpoints, step: int, *, finish: bool = True) -> Path:
    checkpoints.begin(step)
    path = checkpoints.path_of(step)
    (path / "shards").mkdir()
    (path / "shards" / "rank-0").write_bytes(b"weights" * step)
    if finish:
        checkpoints.finish(step, {"bad_samples": step})
    return path


def steps_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_latest_returns_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        write(checkpoints, step)
    write(checkpoints, 20, finish=False)
    assert steps_of(tmp_path) == ["step-00000010", "step-00000015", "step-00000020"]
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.state) == (15, {"bad_samples": 15})


def test_finish_removes_unfinished_and_old_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)
    path = write(checkpoints, 10, finish=False)
    (path / "left").touch()
    write(checkpoints, 10)
    assert not (path / "left").exists()
    assert steps_of(tmp_path) == ["step-00000010"]
    # A kill has left something beyond the step that the run then went back to.
    write(checkpoints, 40, finish=False)
    write(checkpoints, 12)
    assert steps_of(tmp_path) == ["step-00000012"]


def test_latest_with_missing_or_truncated_file_skips_the_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10, 15):
        write(checkpoints, step)
    (tmp_path / "step-00000015" / "shards" / "rank-0").write_bytes(b"weig")
    (tmp_path / "step-00000010" / "shards" / "rank-0").unlink()
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 5
    (tmp_path / "step-00000005" / "complete.json").write_text("{", encoding="utf-8")
    assert checkpoints.latest() is None
