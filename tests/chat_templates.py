"""Small templates of every kind that is met, and what is learned of one, found the slow way."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from transformers.utils.chat_template_utils import _cached_compile_jinja_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# thoughts of earlier turns are dropped, the last answer always has one (Qwen3)
THINKS_LAST = (
    "{% set at = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set at.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > at.last %}<think>\n"
    "{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# the prompt opens a thought, and the template writes none (R1)
OPENS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<Assistant>{{ m.content.split('</think>')[-1] }}<eos>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
)
# the last answer is closed otherwise than one that others follow, and has a channel (gpt-oss)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# what the system says stands before the last question alone (Mistral)
SYSTEM_LAST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and system is defined %}{{ system }}\n\n"
    "{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = (  # Gemma
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TWO_MARKERS = (  # Cohere
    "{% for m in messages %}<|START|><|{{ m.role | upper }}|>{{ m.content }}<|END_RESPONSE|><|END|>"
    "{% endfor %}{% if add_generation_prompt %}<|START|><|ASSISTANT|>{% endif %}"
)
PARTS = (  # models that read pictures
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# every text ends with the prompt, and a thought before a call has tags of its own (Cohere)
ALWAYS_ASKS = (
    "{{ bos_token }}<|START|><|SYSTEM|>Be safe.{% for t in tools or [] %}\n{{ t | tojson }}"
    "{% endfor %}<|END|>{% for m in messages %}<|START|>{% if m.role == 'assistant' %}<|BOT|>"
    "{% if m.tool_calls %}<|START_THINKING|>{{ m.tool_plan }}<|END_THINKING|>"
    "{% for c in m.tool_calls %}<|ACTION|>{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% else %}<|RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}{% else %}"
    "<|{{ m.role | upper }}|>{{ m.content }}{% endif %}<|END|>{% endfor %}<|START|><|BOT|>"
)
# thoughts are written with calls alone, and a prompt that is not told to think closes one (Gemma 4)
OWN_TAGS = (
    "{{ bos_token }}{% if enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for t in tools or [] %}<|tool>{{ t | tojson }}<tool|>{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}response:{{ m.content }}<tool_response|>"
    "{% else %}{% if loop.first or loop.previtem.role != 'tool' %}<|turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{% endif %}{% if m.tool_calls %}"
    "{% if m.reasoning %}<|channel>thought\n{{ m.reasoning }}\n<channel|>{% endif %}"
    "{% for c in m.tool_calls %}<|tool_call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}<tool_call|>{% endfor %}{% endif %}{{ m.content }}"
    "{{ '<|tool_response>' if m.tool_calls else '<turn|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
MARKED = CHATML.replace(
    "{{ m.content }}<|im_end|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}",
)
KINDS = {
    "chatml": CHATML,
    "thinks last": THINKS_LAST,
    "opens a thought": OPENS,
    "channels": CHANNELS,
    "system last": SYSTEM_LAST,
    "no system": NO_SYSTEM,
    "two markers": TWO_MARKERS,
    "parts": PARTS,
    "dated": DATED,
    "marked": MARKED,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TODAY = {"date_string": "26 Jul 2024", "strftime_now": datetime(2024, 7, 26).strftime}


_compiled = lru_cache(maxsize=None)(_cached_compile_jinja_template)


def stock(template: str, messages: Sequence[Mapping[str, object]], **variables: object) -> str:
    """What transformers writes."""
    text: str = _compiled(template).render(
        messages=messages, **{"tools": None, "documents": None} | SPECIAL | TODAY | variables
    )
    return text


def learned(
    template: str,
    messages: Sequence[Mapping[str, object]],
    markers: Sequence[str],
    tools: Sequence[object] | None = None,
) -> tuple[str, str] | None:
    """What the model is asked and what it has to write then; the last message is the answer.

    None where the text of the question is not how the whole begins: no span follows from texts
    alone. The end of turn is where answers that differ in every character stop to differ, and then
    the first marker and those that end the text with it; without one, all but blanks. An answer
    that calls ends with the text.
    """
    asked = stock(template, messages[:-1], tools=tools, add_generation_prompt=True)
    whole = stock(template, messages, tools=tools, add_generation_prompt=False)
    if not whole.startswith(asked):
        return None
    if messages[-1].get("tool_calls"):
        return asked, whole[len(asked) :].rstrip()
    others = [
        stock(template, [*messages[:-1], messages[-1] | {"content": said}], tools=tools)
        for text in ("x", "yy", "zzz ä")
        for said in ([{"type": "text", "text": text}], text)
        if type(said) is type(messages[-1]["content"])
    ]
    same = 0
    while len({text[-1 - same :][:1] for text in [whole, *others]}) == 1:
        same += 1
    end = len(whole) - same
    places = [n for n in range(end, len(whole)) if longest(markers, whole, n)]
    if not places:
        return asked, whole[len(asked) :].rstrip()
    end = run = places[0] + longest(markers, whole, places[0])
    while size := longest(markers, whole, run):
        run += size
    return asked, whole[len(asked) : end if whole[run:].strip() else run]


def longest(markers: Sequence[str], text: str, place: int) -> int:
    """Characters of the longest marker at a place."""
    return max((len(marker) for marker in markers if text.startswith(marker, place)), default=0)
