"""What cannot be served is refused in one sentence, before anything listens for long."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench._chatty import checkpoint
from nachim.app.serve import KEY, serve
from nachim.app.server.listen import bound
from nachim.app.server.served import Served
from nachim.infer.engine import Engine
from nachim.spec import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "tiny")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    for name, says in (("none", "no folder"), ("empty", "neither a run nor a checkpoint"), ("other", "tokenizer.json")):
        with pytest.raises(UserError, match=says):
            serve(tmp_path / name, port=0)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tokenizer.json", b"{}", "no tokenizer that can be read"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b'{"eos_token_id": "2"}', "eos_token_id .* is '2'"),
        ("config.json", b'{"max_position_embeddings": "long"}', "context is 'long'"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read"),
        ("chat_template.jinja", b"{% if %}", "not valid Jinja"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "without name and text"),
    ],
)
def test_files_that_are_broken_are_refused(folder, name, text, says):
    file = folder / "huggingface" / name
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match=says):
        serve(folder, port=0)


def test_options_that_make_no_sense_are_refused(folder, monkeypatch):
    for option, value, says in (
        ("samples", 0, "--samples"),
        ("body_bytes", 0, "--body-bytes"),
        ("stall_seconds", math.nan, "--stall-seconds"),
        ("drain_seconds", math.inf, "--drain-seconds"),
        ("chat_template", folder / "none", "no chat template"),
        ("api_key", " ", "key is empty"),
        ("cache_tokens", 10**12, "GB"),
        ("cache_tokens", 0, "cache_tokens"),
        ("dtype", "int3", "dtype"),
    ):
        with pytest.raises(UserError, match=says):
            serve(folder, **{"port": 0, option: value})
    monkeypatch.setenv(KEY, "")
    with pytest.raises(UserError, match="key is empty"):
        serve(folder, port=0)
    with bound("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen"):
        serve(folder, port=taken.getsockname()[1], api_key="k")


def test_ends_that_the_model_has_not_are_left_out(folder):
    config = folder / "huggingface" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": [0, 3, 10**6]}))
    served = Served(folder, Engine(folder))
    assert 10**6 not in served.ends
    assert set(served.ends) >= {0, 3}
