"""What clients may send: the bodies of OpenAI's interface, and what this server takes beyond it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

MOST_STOPS, MOST_PROMPTS, MOST_TOOLS, MOST_TOKENS = 16, 256, 128, 1024
MOST = (1 << 31) - 1
"""Of numbers that have no bound of their own: what is larger is a mistake, not a wish."""

TOKEN: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
NULL: dict[str, Any] = {"type": "null"}


def _several(items: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, **({} if most is None else {"maxItems": most})}


# What validators below ask of these, for the document that clients read.
STOPS = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": MOST_STOPS}, NULL]}
PROMPT_KINDS = (TEXT, _several(TEXT, MOST_PROMPTS), _several(TOKEN), _several(_several(TOKEN), MOST_PROMPTS))
BIAS = {"type": "number", "minimum": -100, "maximum": 100}
BIASES = {
    "anyOf": [
        {
            "type": "object",
            "patternProperties": {"^[0-9]{1,9}$": BIAS},
            "additionalProperties": False,
            "maxProperties": MOST_TOKENS,
        },
        NULL,
    ]
}

Token = Annotated[int, WithJsonSchema(TOKEN)]


class Body(BaseModel):
    """Values of the types that are written here, and no others: a name that is unknown is a mistake of the client's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Body):
    """Of a stream: whether its last event counts the tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """A schema by name."""

    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Body):
    """Text that an expression matches as a whole. Not in OpenAI's interface."""

    type: Literal["regex"]
    pattern: str


class ChoiceFormat(Body):
    """One of a list of texts. Not in OpenAI's interface."""

    type: Literal["choice"]
    choices: list[Annotated[str, WithJsonSchema(TEXT)]] = Field(min_length=1, max_length=10_000)


class GrammarFormat(Body):
    """Text of a context-free grammar. Not in OpenAI's interface."""

    type: Literal["grammar"]
    grammar: str
    syntax: Literal["lark", "gbnf"] = "lark"


Format = Annotated[
    TextFormat | ObjectFormat | SchemaFormat | RegexFormat | ChoiceFormat | GrammarFormat, Field(discriminator="type")
]


class Asked(Body):
    """What both kinds of completion take."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=MOST)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: Annotated[str | list[str] | None, WithJsonSchema(STOPS)] = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float] | None, WithJsonSchema(BIASES)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    user: str | None = None
    # Beyond OpenAI's interface:
    top_k: int | None = Field(None, ge=1, le=MOST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    stop_token_ids: list[Token] | None = Field(None, max_length=MOST_TOKENS)
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-(1 << 31), lt=1 << 31)

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > MOST_STOPS or not all(texts):
            raise ValueError(f"must be at most {MOST_STOPS} strings, none of them empty")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if wrong := [token for token in bias or {} if not (token.isascii() and token.isdigit() and len(token) < 10)]:
            raise ValueError(f"maps token ids to biases, and {wrong[0][:40]!r} is not a token id")
        if len(bias or {}) > MOST_TOKENS:
            raise ValueError(f"has {len(bias or {}):,} tokens; at most {MOST_TOKENS:,} are taken")
        return bias


class CompletionBody(Asked):
    """The body of /v1/completions."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], WithJsonSchema({"anyOf": list(PROMPT_KINDS)})]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, prompt: Any) -> Any:
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        if not prompt or (several and len(prompt) > MOST_PROMPTS):
            raise ValueError(f"must be one prompt or up to {MOST_PROMPTS} of them, and not empty")
        if isinstance(prompt, list) and not all(isinstance(one, int) or one for one in prompt):
            raise ValueError("holds a prompt that is empty")
        return prompt

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """The function of a call, its arguments as the text that was written."""

    name: str
    arguments: str


class Call(Body):
    """A tool call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class Function(Body):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    """A function by its name."""

    name: str


class ChosenTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class ChatBody(Asked):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Annotated[bool | None, WithJsonSchema({"enum": [False, None]})] = None
    # Beyond OpenAI's interface: names that the chat template reads.
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("store")
    @classmethod
    def _kept(cls, store: bool | None) -> bool | None:
        if store:
            raise ValueError("nothing is stored here: leave it out, or say false")
        return store


class TokenizeBody(Body):
    """The body of /tokenize: a text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)


class DetokenizeBody(Body):
    """The body of /detokenize."""

    model: str | None = None
    tokens: list[Token]
