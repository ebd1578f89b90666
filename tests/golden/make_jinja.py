#!/usr/bin/env python3
"""Writes jinja/cases.json: templates, their variables, and what jinja2, set up by transformers, makes of them.

Needs transformers and jinja2. Run it in this folder. A case with "refused" is one that
the C interpreter refuses, with an error that holds the given words."""
import json
import pathlib

from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent / "jinja"
compile_template = chat_template_utils._compile_jinja_template
cases = []

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [{"role": "user", "content": "  What is 12*34?  "}, {"role": "assistant", "content": "It's 408.\n"},
        {"role": "user", "content": "日本語で 🙂"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief.\n"}] + CHAT
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather\nof a place: \"now\" & <later>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Name, e.g. Zürich"},
        "days": {"type": "integer", "default": 3},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "places": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "float"}, "y": {"type": ["string", "null"]}}, "required": ["x"]}}},
        "required": ["city"]}}}
SUM = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {"a": {"type": "float", "default": 0.5}}, "required": []}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"a": [1, 2.5, None, True]}}}}]}
ANSWER = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "{\"t\": 21.5}"}
TOOL_CHAT = [CHAT[0], CALL, ANSWER, {"role": "assistant", "content": "21.5 degrees."}, CHAT[2]]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}, {"type": "text", "text": "And this?"}, {"type": "image"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
         {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}]
THINKING = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\nold\n</think>\n\n2"},
            {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"}]


def render(template, variables):
    return compile_template(template).render(**variables)


def case(name, template, variables, error=None):
    row = {"name": name, "template": template, "vars": variables}
    if error is None:
        row["output"] = render(template, variables)
    else:
        row["refused"] = error  # not tried in jinja2, which has no limits
    cases.append(row)


def chat(file, name, messages, error=None, **more):
    template = (HERE / f"{file}.jinja").read_text()
    for prompt in (False, True):
        case(f"{file} {name} {'open' if prompt else 'closed'}", template,
             {"messages": messages, "add_generation_prompt": prompt, **TOKENS, **more}, error)
        if error is None and not more.get("strftime_now"):
            tokens = {**TOKENS, **{k: v for k, v in more.items() if k not in ("tools",)}}
            got, _ = chat_template_utils.render_jinja_template(
                [messages], tools=more.get("tools"), chat_template=template, add_generation_prompt=prompt, **tokens)
            if "tools" in template and "tools" not in more:
                continue  # there tools is none instead of undefined
            assert got[0] == cases[-1]["output"], (name, got[0], cases[-1]["output"])


for file in ("zephyr", "chatml", "llama3", "phi3"):
    chat(file, "plain", CHAT)
    chat(file, "system", WITH_SYSTEM)
chat("mistral", "plain", CHAT)
chat("mistral", "system", WITH_SYSTEM, "Conversation roles must alternate")
chat("gemma", "plain", CHAT)
chat("gemma", "system", WITH_SYSTEM, "System role not supported")
chat("idefics2", "parts", PARTS)
chat("parts", "parts", PARTS)
chat("parts", "plain", WITH_SYSTEM)
chat("parts", "unknown", [{"role": "user", "content": [{"type": "video"}]}], "Unknown part video")
chat("deepseek", "plain", WITH_SYSTEM)
chat("deepseek", "tools", TOOL_CHAT[:-1])
chat("deepseek", "tool last", TOOL_CHAT[:-2])
chat("qwen_reasoning", "thinking", THINKING)
chat("qwen_reasoning", "asked", THINKING[:-1], enable_thinking=False)
chat("qwen_reasoning", "field", THINKING[:-1] + [{"role": "assistant", "content": "4", "reasoning_content": "\nwell\n"}])
chat("llama_tools", "plain", WITH_SYSTEM, date_string="26 Jul 2024")
chat("llama_tools", "tools", [WITH_SYSTEM[0]] + TOOL_CHAT, date_string="1 Jan 2025", tools=[WEATHER, SUM])
chat("llama_tools", "tools in system", TOOL_CHAT, date_string="1 Jan 2025", tools=[WEATHER], tools_in_user_message=False)
chat("llama_tools", "builtin", [CHAT[0], {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": {"q": "x", "r": "y"}}}]}],
     date_string="1 Jan 2025", builtin_tools=["search", "code_interpreter"])
chat("mistral_tools", "tools", TOOL_CHAT, tools=[WEATHER, SUM])
chat("mistral_tools", "system", WITH_SYSTEM)
chat("mistral_tools", "wrong id", [CHAT[0], {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "id": "short"}]}], "length 9")
chat("qwen_tools", "plain", WITH_SYSTEM)
chat("qwen_tools", "tools", TOOL_CHAT, tools=[WEATHER, SUM])
chat("qwen_tools", "two answers", [CHAT[0], CALL, ANSWER, ANSWER], tools=[WEATHER])
chat("schema", "tools", [CHAT[0], {"role": "assistant", "content": None}], tools=[WEATHER, SUM])

V = {"s": "Hello, World", "n": 7, "x": 2.5, "t": True, "f": False, "z": None, "e": "", "l": [3, 1, 2], "w": "  pad\t\n",
     "d": {"b": 1, "a": [1, "two", None], "items": "mine"}, "u": "Grüße, ÉCOLE ß ΣΑΣ 日本 🙂", "q": "it's \"q\" \\ \n\x01\u00a0",
     "ms": [{"role": "user", "n": 2, "o": {"k": "B"}}, {"role": "bot", "n": 1, "o": {"k": "a"}}, {"role": "user", "n": 3, "o": {"k": "C"}}],
     "words": ["b", "A", "c", "a", "B"]}

GOOD = r"""
{{ s }}|{{ n }}|{{ x }}|{{ t }}|{{ z }}|{{ nothing }}|{{ l }}|{{ d }}|{{ q }}|{{ [q, u, w] }}
{{ 1.0 }} {{ 1e3 }} {{ 1.5e-7 }} {{ 1e16 }} {{ 123456789012345680.0 }} {{ 0.1 + 0.2 }} {{ 1/3 }} {{ -0.0 }} {{ 1_000 }} {{ 2e0 }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ -2 ** 2 }}
{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 'a' ~ 1 ~ none ~ nothing ~ 2.0 }} {{ 'a' + 'b' * 3 }} {{ [1] + [2] * 2 }} {{ (1,) + (2, 3) }} {{ -n + +n }} {{ t + 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ none == none }} {{ 'a' == 1 }} {{ nothing == nada }} {{ [1] == (1,) }} {{ {'a': 1} == {'a': 1.0} }}
{{ 'W' in s }} {{ 3 in l }} {{ 'b' in d }} {{ 'zz' not in d }} {{ 'x' in nothing }} {{ not 'b' in d }} {{ 1 in (1, 2) }} {{ 2 in range(3) }}
{{ n and s }} {{ e or 'empty' }} {{ e and n }} {{ not e }} {{ none or none }} {{ 1 if t else 2 }} {{ 1 if f }}|{{ 'a' if f else 'b' if f else 'c' }}
{{ s[0] }}{{ s[-1] }}{{ s[1:4] }}{{ s[:-3] }}{{ s[::-1] }}{{ s[::2] }}{{ s[10:2:-3] }}{{ s[99] }}{{ s[5:2] }} {{ l[0] }}{{ l[-1] }}{{ l[1:] }}{{ l[::-1] }}{{ l[-99:99] }}{{ l[5] }} {{ u[2] }}{{ u[-1] }}{{ u[3:9] }} {{ (1,2,3)[1:] }} {{ l.0 }}
{{ d.b }} {{ d['b'] }} {{ d['items'] }} {{ d.a[1] }} {{ d.missing }} {{ d['missing'] }} {{ d.get('b') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ s.missing }} {{ z.attr }} {{ n.attr }} {{ s['upper']() }}
{{ s.upper() }} {{ s.lower() }} {{ u.upper() }} {{ u.lower() }} {{ u.title() }} {{ u.capitalize() }} {{ "it's bob-o'neil x2y".title() }} {{ "they're a-b (c d)" | title }} {{ u | upper }} {{ u | lower }} {{ u | capitalize }} {{ u | title }}
[{{ w.strip() }}] [{{ w.lstrip() }}] [{{ w.rstrip() }}] [{{ w | trim }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abcb'.rstrip('bc') }}] [{{ none | trim }}] [{{ nothing | trim }}] [{{ 'xay' | trim('yx') }}]
{{ 'a,b,,c'.split(',') }} {{ 'a,b,,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ ' a  b  c '.split(none, 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a--b--c'.rsplit('--') }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ 'x=1=2'.partition('=') }} {{ 'x=1=2'.rpartition('=') }} {{ 'x'.partition('=') }} {{ 'x'.rpartition('=') }}
{{ s.startswith('Hell') }} {{ s.endswith(('x', 'ld')) }} {{ s.startswith(('a',)) }} {{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ u.find('日') }} {{ s.count('l') }} {{ 'aaa'.count('aa') }} {{ 'abc'.count('') }} {{ s.index('W') }} {{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ 'abc'.replace('', '-') }} {{ 'ab' | replace('a', 1) }} {{ 'äb'.replace('', '-', 2) }} {{ '-'.join(['a', 'b']) }}
{{ '12'.isdigit() }} {{ '1a'.isdigit() }} {{ ''.isdigit() }} {{ 'aé'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' \t'.isspace() }} {{ 'AB1'.isupper() }} {{ 'ab'.islower() }} {{ 'x'.removeprefix('x') }}{{ 'xy'.removesuffix('y') }} {{ '-7'.zfill(4) }} {{ 'ab' is upper }} {{ 'ab' is lower }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for v in d.values() %}{{ v }}{% endfor %}{{ d.keys() | list }}{{ d | list }}{{ d | length }}{{ d.items() | list }}{{ d | items | list }}{{ d | dictsort }}{{ {'B': 2, 'a': 1, 'C': 0} | dictsort(true) }}{{ {'B': 2, 'a': 1, 'C': 0} | dictsort(by='value', reverse=true) }}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.depth }} {% endfor %}
{% for m in ms if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}:{{ m.n }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}{% for m in [] %}x{% else %}none{% endfor %}{% for c in 'añb' %}{{ c }}.{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for x in nothing %}{% endfor %}{{ x }}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %} {% for i in [1] %}{% continue %}{% else %}else{% endfor %}{% for i in [1, 2] %}{% break %}{% else %}else{% endfor %}
{{ range(3) | list }} {{ range(1, 10, 4) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ range(4)[2] }} {{ range(4) | length }}
{% set a = 1 %}{% for i in l %}{% set a = a + i %}{{ a }}{% endfor %}{{ a }}{% if t %}{% set a = 9 %}{% endif %}{{ a }}{% set b, c = 1, 2 %}{{ b }}{{ c }}{% set tup = 1, %}{{ tup }}{% with a = 3, g = a %}{{ a }}{{ g }}{% set h = 1 %}{% endwith %}{{ a }}{{ h }}
{% set ns = namespace(a=1, s='') %}{% for i in l %}{% set ns.a = ns.a + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.a }}{{ ns.s }}{{ ns.missing }}{{ ns['a'] }}{% set ns2 = namespace({'q': 1}) %}{{ ns2.q }}{{ dict(a=1, b=2) }}{{ dict({'x': 1}, y=2) }}{{ dict([('k', 'v')]) }}
{% set blk %}  a {{ n }}{% set inner = 1 %} {% endset %}[{{ blk }}]{{ inner }}{% set blk | trim | upper %} x {% endset %}[{{ blk }}]{% filter upper | replace('A', 'o') %}banana{% endfilter %}
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{{ n }}{% endmacro %}{{ m(1) }}|{{ m(1, 3) }}|{{ m(b=5, a=4) }}|{{ m() }}|{{ m.name }}{% macro rec(k) %}{{ k }}{% if k > 0 %}{{ rec(k - 1) }}{% endif %}{% endmacro %}{{ rec(3) }}{% set late = 1 %}{% macro uses() %}{{ late }}{{ later }}{% endmacro %}{% set late = 2 %}{{ uses() }}{% macro outer(k) %}<{{ caller(k, 2) }}>{% endmacro %}{% call(p, q) outer(1) %}{{ p }}{{ q }}{{ n }}{% endcall %}{% macro plain() %}[{{ caller() }}]{% endmacro %}{% call plain() %}body{% endcall %}
{{ l | join }} {{ l | join(', ') }} {{ ms | join('/', attribute='role') }} {{ [1, none, nothing, 'a'] | join('-') }} {{ s | join('.') }} {{ ms | map(attribute='o.k') | join(',') }} {{ ms | map(attribute='zz', default='-') | join }} {{ words | map('upper') | list }} {{ ['a b'] | map('replace', ' ', '_') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [[1, 2], [3]] | map(attribute=0) | list }}
{{ ms | selectattr('role', 'equalto', 'user') | map(attribute='n') | list }} {{ ms | rejectattr('role', '==', 'user') | list }} {{ ms | selectattr('zz') | list }} {{ ms | selectattr('zz', 'defined') | list }} {{ ms | selectattr('role', 'in', ['bot']) | list | length }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ [0, 1, '', 'a', none] | select | list }} {{ [1, 'a'] | select('string') | list }} {{ ms | selectattr('n', 'ge', 2) | map(attribute='n') | sum }}
{% set g = l | select('odd') %}{{ g | first }}{{ g | list }}{{ g | list }}{{ 'yes' if l | select('gt', 9) else 'no' }}{% for i in l | select %}{{ loop.index }}/{{ loop.length }} {% endfor %}
{{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ words | sort(reverse=true) }} {{ ms | sort(attribute='n') | map(attribute='n') | list }} {{ ms | sort(attribute='role,n', reverse=true) | map(attribute='n') | list }} {{ ms | sort(attribute='o.k') | map(attribute='n') | list }} {{ words | unique | list }} {{ words | unique(true) | list }} {{ ms | unique(attribute='role') | map(attribute='n') | list }} {{ l | min }} {{ l | max }} {{ words | max }} {{ ms | max(attribute='n') }} {{ [] | max }} {{ l | sum }} {{ ms | sum(attribute='n', start=10) }} {{ l | reverse | list }} {{ 'añb' | reverse }} {{ l | first }} {{ l | last }} {{ 'añ' | last }} {{ '' | first }} {{ d | first }}
{{ nothing | default('x') }} {{ e | default('x') }}|{{ e | default('x', true) }} {{ z | default('x') }} {{ z | d('x', boolean=true) }} {{ nothing | default }}| {{ s | length }} {{ u | length }} {{ nothing | length }} {{ s | count }} {{ nothing | list }} {{ 'ab' | list }} {{ 5 | string + 'x' }} {{ l | string }} {{ x | string | length }}
{{ '42' | int }} {{ ' 4_2 ' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '3.9' | int }} {{ 3.9 | int }} {{ -3.9 | int }} {{ none | int }} {{ true | int }} {{ '1e3' | int }} {{ '2.5' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 3 | float }} {{ '' | int }} {{ '-5' | int }} {{ -5 | abs }} {{ -2.5 | abs }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.19 | round(1, 'floor') }} {{ 7 | round }}
{{ d | tojson }} {{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {} | tojson }} {{ [[], {}] | tojson(indent=1) }} {{ q | tojson }} {{ u | tojson }} {{ u | tojson(ensure_ascii=true) }} {{ ['\x7f/<&>'] | tojson }} {{ 1.0 | tojson }} {{ 1e20 | tojson }} {{ (1, none, true) | tojson }} {{ {1: 'a', true: 2, none: 3, 2.5: 4} | tojson }} {{ d | tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) }} {{ 'a' | tojson | tojson }} {{ ['\x7f'] | tojson(true) }}
{{ 'a\n\nb\n' | indent }}| {{ 'a\nb' | indent(2, true) }}| {{ 'a\n\nb' | indent(width=1, blank=true) }}| {{ 'a\nb' | indent('> ') }}| {{ '' | indent }}|
{{ '<a & "b">' | escape }} {{ "'" | e }} {{ '<' | safe }} {{ '<' | safe + '>' }} {{ ('<' | e) | e }} {{ ('<' | e) | forceescape }} {{ ('<' | safe) | upper }} {{ '<' | safe ~ '>' }} {{ '<' | e is escaped }}
{{ n is defined }}{{ nothing is defined }}{{ nothing is undefined }}{{ z is none }}{{ s is string }}{{ d is mapping }}{{ l is iterable }}{{ s is iterable }}{{ n is iterable }}{{ n is number }}{{ x is number }}{{ t is number }}{{ s is number }}{{ n is integer }}{{ t is integer }}{{ x is float }}{{ t is boolean }}{{ t is true }}{{ f is false }}{{ 1 is true }}{{ l is sequence }}{{ d is sequence }}{{ s is sequence }}{{ n is sequence }}{{ nothing is sequence }}{{ nothing is iterable }}{{ z is sameas none }}{{ t is sameas true }}{{ 1 is sameas true }}{{ n is odd }}{{ n is even }}{{ n is divisibleby 7 }}{{ n is divisibleby(2) }}{{ n is eq 7 }}{{ n is equalto(7) }}{{ n is ne 7 }}{{ n is gt 3 }}{{ n is lt 3 }}{{ n is le 7 }}{{ n is ge 8 }}{{ 3 is in l }}{{ 'a' is in 'abc' }}{{ n is not none }}{{ z is not none }}{{ not z is none }}{{ d.zz is defined }}{{ d.b is defined and d.b is not none }}{{ range is callable }}{{ n is callable }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ 'zz' is test }}{{ (d.items() | list) is sequence }}{{ ms | map(attribute='n') is iterable }}
{{ {'a': 1, 'a': 2} }} {{ {1: 2, (1, 2): 'x'} }} {{ {} }} {{ () }} {{ [1, 'a', [none, true], {'k': (1,)}] }} {{ [1, 2,] }} {{ {'a': 1,} }} {{ ['it\'s', "q\"", 'both\'"'] }} {{ 'a' 'b' "c" }} {{ '\u00e9\x41\101\n\t\\\q'}} {{ 'line\
next' }}
{{ 'a' if n > 3 and n < 10 or f else 'b' }} {{ (n if t) + 1 }} {{ n is odd and t }} {{ l | length > 2 }} {{ -l[0] | abs }} {{ not not t }} {{ s | lower | replace('l', '') | length }} {{ [l, l] | map('length') | list }} {{ (s ~ '!') | upper }} {{ s.split(', ')[1][:3] | lower }} {{ {'a': {'b': [10, 20]}}.a.b[1] }} {{ "x".join(s.split('o')) }}
{%- raw %} {{ raw }} {% raw %} {% endraw -%} {#- comment {{ }} -#} {# #}x {%+ if t %} y{% endif +%}
{%- if nothing %}a{% elif e %}b{% elif n == 7 %}c{% else %}d{% endif %} {% if not n %}x{% endif %} {{ 1, 2 }} }}
{{ strftime_now('%Y') | length }} {{ strftime_now is defined }} {{ strftime_now('') }} {{ namespace is defined }} {{ raise_exception is callable }}
{{ [1, 2].index(2) }} {{ [1, 2, 1].count(1) }} {{ (1, 2).index(2) }} {{ l.copy() }} {{ d.copy() == d }} {{ messages }} {{ loop }}
{% generation %} a {% set gg = 1 %}{{ n }}{% endgeneration %}{{ gg }}
{{ ((((((((((1)))))))))) }} {{ [[[[[[[[1]]]]]]]] }} {{ '%' }} {{ '}}' }} {{ "{%" }} {{ {'a': {'b': 1}}}}
"""

WHITESPACE = [
    "a\n  {% if t %}\n  b\n  {% endif %}\nc\n", "a\n  {%+ if t %}\n  b\n  {%+ endif +%}\nc\n\n", "  {%- if t -%}  \n\n b {%- endif -%} \n c", "{% if t %}\n\n\nx{% endif %}\n\n",
    "  {{ n }}  \n  {{- n -}}  \n  {{ n }}\n", "x  {# c #}  y\n  {# c #}\nz\n {#- c -#} \nw", "  {% raw %}  \n {{ a }}\n  {% endraw %}\n b", "a\r\nb\rc\r\n", "a \t{% if t %} b{% endif %}\t\n  {% if t %}\t\n{% endif %}",
    "{{ '  ' }}{% if t %}\nq{% endif %}", "\n\n{% set a = 1 %}\n\n{{ a }}\n\n", "{% for i in l %}\n    {{ i }}\n{% endfor %}\nend", "{% for i in l -%}\n    {{ i }}\n{%- endfor %}\nend", "é\u2003{%- if t %}x{% endif %}\u00a0", "{{+ n }}", "{%- set a %}\n x\n{%- endset -%}\n[{{ a }}]", "  {%+ raw %}  x{%+ endraw %}  ", "text only { % } %} }} #} \n", "",  "\n", "  ", "{# a # } b #}{% if t %} {#- x -#} {% endif %}|", "{{ n }}\n\n", "{{\n n\n}}\n{%\nif t\n%}\nq{% endif %}",
]

for i, line in enumerate(GOOD.strip().replace("\\\nnext", "\0next").split("\n")):
    case(f"expression {i}", line.replace("\0", "\\\n"), V)
for i, template in enumerate(WHITESPACE):
    case(f"white space {i}", template, V)

for template, words in [
    ("{{ nothing.a }}", "'nothing' is undefined"), ("\n\n{{ d.a.b.c }}", "line 3"), ("{{ nothing[0] }}", "undefined"), ("{{ nothing + 1 }}", "undefined"),
    ("{{ nothing() }}", "undefined"), ("{{ s() }}", "cannot be called"), ("{{ 'a' + 1 }}", "has no meaning"), ("{{ 1 < 'a' }}", "order"),
    ("{{ 1 / 0 }}", "division by zero"), ("{{ 1 % 0 }}", "division by zero"), ("{{ 1.5 // 0 }}", "division by zero"), ("{{ nothing | tojson }}", "undefined"),
    ("{% for i in 5 %}{% endfor %}", "no elements"), ("{% for i in none %}{% endfor %}", "no elements"), ("{% set a, b = [1] %}", "1 values for 2 names"),
    ("{% set d.x = 1 %}", "not a namespace"), ("{{ l.append(1) }}", "append"), ("{{ d.update({}) }}", "update"), ("{{ d.pop('a') }}", "pop"),
    ("{{ raise_exception('no ' ~ n) }}", "no 7"), ("{% if t %}", "endif"), ("{% for a in l %}{{ a }}", "endfor"), ("{{ n", "wanted }}"), ("{% if t", "wanted %}"),
    ("{# x", "comment is not closed"), ("{% raw %} x", "raw block"), ("{{ 'x }}", "string is not closed"), ("{{ (1 }}", ""), ("{{ 1) }}", "closing bracket"),
    ("{{ }}", "wanted an expression"), ("{% %}", "wanted a name"), ("{% endif %}", "endif"), ("{% else %}", "else"), ("{{ 1 2 }}", "wanted }}"), ("{{ n. }}", "wanted a name"),
    ("{{ n is }}", "wanted a name"), ("{{ n is nonsense }}", "nonsense"), ("{{ n | nonsense }}", "nonsense"), ("{{ n | }}", "wanted a name"), ("{% nonsense %}", "nonsense"),
    ("{% do l %}", "do"), ("{% break %}", "outside of a loop"), ("{% macro m(a %}{% endmacro %}", ""), ("{% macro m() %}{% endmacro %}{{ m(1) }}", "takes 0 arguments"),
    ("{% macro m(a) %}{% endmacro %}{{ m(b=1) }}", "does not take"), ("{% macro m(a) %}{% endmacro %}{{ m(1, a=1) }}", "two values"), ("{% set true = 1 %}", "cannot assign"),
    ("{% set 1 = 1 %}", "wanted a name"), ("{% set x %}", "endset"), ("{{ ' ' ? }}", "character"), ("{{ a ! b }}", "character"), ("{{ 1a }}", "number"), ("{{ 'x' | int | upper( }}", ""),
    ("{{ range(1000000) }}", "range"), ("{{ 5 in 5 }}", "no elements"), ("{{ 1 in 'a' }}", "looked for in a string"), ("{{ [1, 'a'] | sort }}", "order"), ("{{ [1, 'a'] | max }}", "order"),
    ("{{ ''.join([1]) }}", "join"), ("{{ 'a'.split('') }}", "empty"), ("{{ 'a'.index('b') }}", "not found"), ("{{ 5 | length }}", "no length"), ("{{ l | select('odd') | length }}", "no length"),
    ("{{ namespace(_a=1) }}", "cannot begin with _"), ("{% set ns = namespace() %}{% set ns._a = 1 %}", "cannot begin with _"), ("{{ -s }}", "sign"), ("{{ s | replace }}", "replace"),
    ("{{ s | trim(bad=1) }}", "bad"), ("{{ s | upper(1) }}", "upper"), ("{{ {[1]: 2} }}", "key"), ("{{ l[::0] }}", "step 0"), ("{{ s['a':] }}", "slice"), ("{{ d | tojson(indent=[]) }}", "indent"),
    ("{{ s | indent(1000) }}", "indentation"), ("{{ '\\ud800' }}", "escape"), ("{{ '\\xz' }}", "escape"), ("{{ '\\N{DASH}' }}", "not supported"), ("{{ 99999999999999999999 }}", "64 bits"),
    ("{{ 9223372036854775807 + 1 }}", "64 bits"), ("{{ 10 ** 30 }}", "64 bits"), ("{{ '%s' % 1 }}", "not supported"), ("{{ '{}'.format(1) }}", "format"), ("{{ '%s' | format(1) }}", "format"),
    ("{% for i in l recursive %}{% endfor %}", "recursive"), ("{% include 'x' %}", "include"), ("{% import 'x' as y %}", "import"), ("{% extends 'x' %}", "extends"), ("{% block b %}{% endblock %}", "block"),
    ("{% autoescape true %}{% endautoescape %}", "autoescape"), ("{{ d.items() }}", "printed"), ("{{ range(3) }}", "printed"), ("{{ l | select }}", "printed"), ("{{ s.upper }}", "printed"),
    ("{{ cycler(1, 2) }}", "cycler"), ("{{ m(*l) }}", "not supported"), ("{{ dict(**d) }}", "not supported"), ("{{ l[1, 2] }}", "comma"), ("{{ ''.__class__.__mro__ }}", "undefined"),
    ("{{ s | batch(2) }}", "batch"), ("{{ s | attr('x') }}", "attr"), ("{{ loop.index }}", "undefined"), ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "within each other"),
    ("{{ 'x' * 1000000000000 }}", "MiB"), ("{{ [1] * 1000000000000 }}", "MiB"),
    ("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB"),
    ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "MiB"),
    ("{% set r = range(100000) %}{% for a in r %}{% if -1 in r %}{% endif %}{% endfor %}", "too long"),
    ("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}", "within each other"),
    ("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l == [ns.l] }}{{ ns.l | tojson }}", "within each other"),
    ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "within each other"), ("{{ " + "-" * 5000 + "1 }}", "within each other"), ("{{ " + "not " * 5000 + "1 }}", "within each other"),
    ("{% if t %}" * 500 + "{% endif %}" * 500, "within each other"), ("{{ 1" + " + 1" * 5000 + " }}", "within each other"), ("{{ a" + ".a" * 5000 + " }}", "within each other"),
    ("{{ 1" + " if 1 else 1" * 5000 + " }}", "within each other"), ("{{ s" + " | upper" * 5000 + " }}", "within each other"),
]:
    case(f"error {template[:40]}", template, V, words)

(HERE / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
print(len(cases), "cases")
