"""Templates of strangers: which are known, which are refused, and that none can do harm."""

import re
import time

import pytest

from tailorbird.errors import DataError
from tailorbird.processing.chat import CHATML, SMOLVLM
from tailorbird.processing.template import find_format

V1_TEMPLATE = SMOLVLM.template.replace("{% elif line['type'] == 'video' %}{{ '<video>' }}", "")
SPREAD = """<|im_start|>
{%- for message in messages %}
    {{- message['role'] | capitalize }}:
    {%- if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}
    {%- for line in message['content'] %}
        {%- if line['type'] == 'text' %}{{ line['text'] }}{% else %}{{ '<image>' }}{% endif %}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
"""


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
@pytest.mark.parametrize("template", [SMOLVLM.template, V1_TEMPLATE, SPREAD])
def test_a_template_that_prints_the_released_prompt_is_recognised(template: str, ending: str) -> None:
    assert template == SPREAD or "line['type'] == 'image'" in template
    assert find_format(template.rstrip() + ending, "a model") is SMOLVLM


def test_the_template_of_smollm2_is_recognised_however_it_is_written() -> None:
    assert find_format(CHATML.template, "a model") is CHATML
    assert find_format(CHATML.template.replace("'", '"') + "\n", "a model") is CHATML


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{",
        "{{ messages[99].role }}",
        "{{ messages[0]['content'] * 3 }}",
        "{{ raise_exception('no') }}",
        "{% generation %}{% endgeneration %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 // 0 }}",
        "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
        "{{ bos_token }}" + SMOLVLM.template,
        SMOLVLM.template.replace("{{line['text']}}", "{{line['text'] | trim}}"),
        SMOLVLM.template.replace("{{':'}}", "{{': '}}"),
        SMOLVLM.template.replace("'Assistant:'", "'Assistant: '"),
        SMOLVLM.template.replace("<end_of_utterance>", "<|im_end|>"),
        SMOLVLM.template + " ",
        CHATML.template.replace("SmolLM", "Bird"),
        CHATML.template.replace("loop.first and", "false and"),
        CHATML.template.replace("message['content']", "(message['content'] | trim)"),
    ],
)
def test_a_template_that_prints_anything_else_is_refused_by_name(template: str) -> None:
    with pytest.raises(DataError, match=r"template of runs/model is none of smolvlm, chatml .*: replace it"):
        find_format(template, "runs/model")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.template.replace("SmolLM", "Bird"), "it prints another prompt"),
        (SMOLVLM.template + " ", "it prints another prompt"),
        ("{{", "TemplateSyntaxError: unexpected 'end of template'"),
        ("{{ raise_exception('no') }}", "line 1 holds a Call that none of them needs"),
        ("\n\n{{ messages[99].role }}", "UndefinedError: list object has no element 99"),
    ],
)
def test_a_refused_template_is_told_why(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"({reason})")):
        find_format(template, "runs/model")


def test_a_template_beyond_all_measure_is_not_even_tried() -> None:
    with pytest.raises(DataError, match=re.escape("of runs/model has 100001 characters, 100000 are read")):
        find_format("a" * 100_001, "runs/model")


HOSTILE = {
    "power": "{{ 'a' * 10 ** 10 }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "filter": "{{ 'a' | center(9999999999) }}",
    "filter without arguments": "{{ messages | list | tojson }}",
    "block": "{% filter center(9999999999) %}a{% endfilter %}",
    "range": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "text": "{% for i in 'aaaa' * 99999 %}{% for j in 'aaaa' * 99999 %}{% endfor %}{% endfor %}",
    "literal": "{% for i in '"
    + "a" * 40_000
    + "' %}{% for j in '"
    + "a" * 40_000
    + "' %}{% endfor %}{% endfor %}",
    "nested": "{% for i in messages %}" * 15 + "{% endfor %}" * 15,
    "recursive": "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set a = 'aaaaaaaa' %}" + "{% set a = a ~ a %}" * 60,
    "namespace": "{% set a = namespace(b='a') %}{% for i in messages %}{% set a.b = a.b ~ a.b %}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'a' as a %}",
    "extends": "{% extends '/dev/zero' %}",
    "slice": "{{ messages[::1] }}",
    "parentheses": "{{ " + "(" * 50_000,
    "sum": "{{ 'a'" + " + 'a'" * 15_000 + " }}",
    "items": "{{ a" + "[0]" * 30_000 + " }}",
    "many": "{{ 'a' }}" * 11_000,
    "number": "{{ " + "9" * 50_000 + " }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_ends_at_once_in_one_line(template: str) -> None:
    start_s = time.perf_counter()
    with pytest.raises(DataError, match=r"template of runs/model is none of .*: replace it") as caught:
        find_format(template, "runs/model")
    assert time.perf_counter() - start_s < 60  # left alone it takes hours
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_largest_template_that_is_tried_takes_no_time() -> None:
    inner = "{% if line['type'] == 'text' and messages[0]['role'] != loop.first %}{% endif %}" * 100
    template = "{% for m in messages %}{% for line in m['content'] %}" + inner + "{% endfor %}{% endfor %}"
    start_s = time.perf_counter()
    with pytest.raises(DataError, match=r"\(it prints another prompt\)"):
        find_format(template, "runs/model")
    assert time.perf_counter() - start_s < 60
