"""Small chat templates that behave like those of models that think.

Each shows one behaviour of published templates: who opens the thinking, what
becomes of earlier thinking and of system messages, and which arguments count.
"""

# Keeps every message as it is; knows no thinking.
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Cuts the thinking out of earlier replies.
_CUT = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]ENDING{% endif %}"
)
# Like Qwen3: the model opens the thinking, unless it is told not to think.
HYBRID = _CUT.replace(
    "ENDING",
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}",
)
# Like R1-Distill: the prompt opens the thinking. Forbids system messages.
OPENED = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system message, please') }}{% endif %}"
) + _CUT.replace("ENDING", "<think>\n")
# Like OLMo 3: the prompt opens the thinking, in the same line; there is always
# a system message.
SAME_LINE = (
    "{% if messages[0].role != 'system' %}[system]You help.<eos>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'system' %} No functions.{% endif %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)
# Like Qwen3.5: does not think unless it is told to.
CLOSED = _CUT.replace(
    "ENDING",
    "{% if enable_thinking is defined and enable_thinking is true %}"
    "<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}",
)
# Like SmolLM3: words in the system message are switches, and vanish; dated.
SWITCHED = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}"
    "{% endif %}{% set told = '' %}{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content %}{% endif %}"
    "{% if '/no_think' in told %}{% set enable_thinking = false %}{% endif %}"
    "[system]{{ strftime_now('%d %B %Y') }} {{ '/think' if enable_thinking else"
    " '/no_think' }} {{ told.replace('/no_think', '').replace('/think', '') }}"
    "<eos>{% for m in messages %}{% if m.role != 'system' %}"
    "[{{ m.role }}]{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# Closes the thinking always.
NEVER = _CUT.replace("ENDING", "<think></think>")
# Ignores system messages.
DEAF = PLAIN.replace("{% for m in messages %}", (
    "{% for m in messages if m.role != 'system' %}"
))  # fmt: skip

ALL = {
    "plain": PLAIN, "hybrid": HYBRID, "opened": OPENED,
    "same_line": SAME_LINE, "closed": CLOSED, "switched": SWITCHED,
    "never": NEVER, "deaf": DEAF,
}  # fmt: skip
