"""Conversations and a chat template for tests."""

import json

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }}\n{% endgeneration %}{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def messages(number: int, turns: int = 1) -> list[dict]:
    found = []
    for turn in range(turns):
        found.append({"role": "user", "content": f"Adds {number} to the argument {turn}."})
        found.append({"role": "assistant", "content": f"def function_{number}(argument): return argument + {turn}"})
    return found


def write_lines(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)
