"""The model that is served, and all that a request needs to know of it: tokenizer, template, grammars."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tokenizers import Tokenizer

from nachim.app.server.text import TokenBytes
from nachim.infer.constrain import Automaton, Grammar, Vocabulary
from nachim.infer.engine import Engine
from nachim.infer.folder import TOKENIZER, files_of, tokenizer_at
from nachim.infer.template import ChatTemplate, special_tokens, template_in, text_of
from nachim.spec import UserError


class Served:
    """A model under a name. `template` is None where none came with it and none was given."""

    def __init__(self, folder: Path, engine: Engine, name: str | None = None, template: Path | None = None) -> None:
        self.name, self.engine, self.created = name or folder.resolve().name, engine, int(time.time())
        files = files_of(folder)
        self._file = files / TOKENIZER
        own = engine.tokenizer
        # A large one takes long to read. An engine whose own takes names of special tokens for text is of no use here.
        read = own is None or own.encode_special_tokens
        self.tokenizer: Tokenizer = tokenizer_at(self._file) if read else own
        self.template = chat_template(folder, template)
        added = self.tokenizer.get_added_tokens_decoder().items()
        self.special = {token.content: number for number, token in added if token.special}
        # llguidance takes added tokens in angle brackets for special ones, whatever the tokenizer says of them.
        bracketed = {token.content: number for number, token in added if token.content[:1] + token.content[-1:] == "<>"}
        self.marks = self.special | bracketed
        self.bytes = TokenBytes(self.tokenizer)
        self.width, self.context = engine.model.spec.vocab_size, engine.limit
        end = self.tokenizer.token_to_id(special_tokens(files).get("eos_token", ""))
        # Chats end by the tokenizer's own end of text, which a config may not name.
        # A config may name one that the model has not.
        ends = engine.loaded.ends | ({end} if end is not None else set())
        self.ends = sorted(token for token in ends if 0 <= token < self.width)
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """The ids of a text to go on from, as the engine has them."""
        return _alone(self.engine.tokenizer, text) if self.engine.tokenizer else []

    def encode_chat(self, text: str) -> list[int]:
        """The ids of a rendered chat: the names of special tokens are those tokens, and nothing is put before it."""
        return _alone(self.tokenizer, text, add_special_tokens=False)

    def start(self, grammar: Grammar) -> Automaton:
        """A constraint for one request. Takes long the first time: not to be called from the event loop."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._file, self.width, self.ends)
        return self._vocabulary.start(grammar)


def _alone(tokenizer: Tokenizer, text: str, **given: bool) -> list[int]:
    # One text of a batch is encoded without Python's lock: two million characters, in two seconds, hold nobody up.
    return tokenizer.encode_batch([text], **given)[0].ids


def chat_template(folder: Path, given: Path | None = None) -> ChatTemplate | None:
    """The chat template of a run or a checkpoint, or the one in the file `given`; None where there is none."""
    files = files_of(folder)
    if given is None:
        return template_in(files)
    if not given.is_file():
        raise UserError(f"there is no chat template {given}")
    return ChatTemplate(text_of(given), special_tokens(files))
