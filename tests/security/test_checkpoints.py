"""Code in a checkpoint is never executed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llava_worker
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

TINY = Path(llava_worker.__file__).parent / "tiny"


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    """``auto_map`` in the checkpoint's config refers to code that transformers would execute."""
    for file in TINY.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        config = json.loads((TINY / name).read_text())
        names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
        config |= {"auto_map": {each: "rogue.Thing" for each in names}, "trust_remote_code": True}
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "rogue.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\nclass Thing: ...\n")

    model = open_model(load_settings(["--model", str(tmp_path), "--device", "cpu"]))

    assert model.heartbeat.model
    assert not (tmp_path / "was_here").exists()
    assert "rogue" not in {name.rpartition(".")[2] for name in sys.modules}
