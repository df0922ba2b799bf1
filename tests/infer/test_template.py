"""Chat templates are rendered as transformers renders them, and cannot reach out of their sandbox."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nachim.infer.template import ChatTemplate, special_tokens, template_in
from nachim.spec import UserError

CHATML = """\
{%- if tools %}
<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
<|im_start|>system
Be brief.<|im_end|>
{% endif %}
    {%- if message.role == 'tool' and not message.content %}{% continue %}{% endif %}
<|im_start|>{{ message['role'] }}
{% if message.tool_calls %}
{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{% endfor %}
{% else %}{{ message.content | trim }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
STRICT = """\
{{ bos_token }}{% set ns = namespace(system='', turns=0) %}
{% for m in messages %}
  {% if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
  {% if (m.role == 'user') != (ns.turns % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
  {% set ns.turns = ns.turns + 1 %}
  {% if m.role == 'user' %}[INST] {{ ns.system ~ m.content }} [/INST]
  {% else %}{% generation %}{% set seen = 1 %}{{ m.reasoning_content }}{{ m.thinking }} 
  {{- m.content }}{{ eos_token }}{% endgeneration %}
  {{ seen is defined }}
  {% endif %}
{% endfor %}{% if documents %}{{ documents | tojson(indent=2) }}{% endif %}{{ enable_thinking }}{{ dict(a=1)['a'] }}
{{- strftime_now('%Y') -}}"""
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "<b>날씨</b>", "parameters": {"type": "object"}},
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울", "deep": [1, None]}}}
CHATS = {
    "one": [{"role": "user", "content": "  Hi <|im_end|> & <there>  "}],
    "system": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi\n"}],
    "turns": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2", "reasoning": "so", "tool_calls": None},
        {"role": "user", "content": "3"},
    ],
    "call": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": "21 °C"},
    ],
}


def tokenizer() -> Tokenizer:
    """A token a byte, and the special tokens of the templates."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")])
    return made


def theirs(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("begin", [True, False])
def test_chatml_with_tools_is_rendered_as_transformers_renders_it(chat, tools, begin):
    expected = theirs(CHATML).apply_chat_template(
        CHATS[chat], tools=tools, add_generation_prompt=begin, return_dict=False, tokenize=True
    )
    found = ChatTemplate(CHATML).render(CHATS[chat], tools, begin)
    assert tokenizer().encode(found, add_special_tokens=False).ids == expected


@pytest.mark.parametrize("chat", ["one", "system", "turns"])
def test_every_helper_does_what_it_does_in_transformers(chat, tmp_path):
    reference = theirs(STRICT)
    reference.save_pretrained(tmp_path)
    variables = {"enable_thinking": False, "documents": [{"title": "a", "text": "<é>"}]}
    expected = reference.apply_chat_template(CHATS[chat], tokenize=False, add_generation_prompt=True, **variables)
    assert template_in(tmp_path).render(CHATS[chat], **variables) == expected


def test_a_template_that_refuses_says_why():
    with pytest.raises(UserError, match="roles must alternate"):
        ChatTemplate(STRICT, {"bos_token": ""}).render(CHATS["turns"][1:])
    with pytest.raises(UserError, match="empty"):
        ChatTemplate(CHATML).render([])
    with pytest.raises(UserError, match="line 2"):
        ChatTemplate("ok\n{% if %}")


def test_templates_are_found_where_transformers_finds_them(tmp_path):
    assert template_in(tmp_path) is None
    told = {"chat_template": "{{ eos_token }} told", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    assert template_in(tmp_path).render(CHATS["one"]) == "</s> told"
    assert special_tokens(tmp_path) == {"eos_token": "</s>"}
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert template_in(tmp_path).render(CHATS["one"]) == "plain"
    assert template_in(tmp_path).render(CHATS["one"], TOOLS) == "tools"
    (tmp_path / "chat_template.jinja").write_text("a file")
    assert template_in(tmp_path).render(CHATS["one"], TOOLS) == "a file"


@pytest.mark.parametrize(
    "attempt",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ('x' | attr('__class__'))() }}",
    ],
)
def test_nothing_reaches_out_of_the_sandbox(attempt):
    with pytest.raises(UserError):
        ChatTemplate(attempt).render(CHATS["one"])
