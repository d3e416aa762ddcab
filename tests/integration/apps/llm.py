# SPDX-License-Identifier: Apache-2.0
"""A program that knows nothing of telemetry: both clients, imported late, against the server of LLM_URL."""

import os
import sys

print("imported at start:", sorted({"openai", "anthropic"} & set(sys.modules)), flush=True)

import anthropic  # noqa: E402 - what was imported at start comes first
import openai  # noqa: E402 - as above

url, canary = os.environ["LLM_URL"], os.environ["LLM_CANARY"]
turns: list = [{"role": "user", "content": canary}]

with openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
    client.chat.completions.create(model="ok", messages=turns)
    list(client.chat.completions.create(model="ok", messages=turns, stream=True))
    try:
        client.chat.completions.create(model="429", messages=turns)
    except openai.RateLimitError as error:
        print(canary in str(error))

with anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client:
    client.messages.create(model="ok", max_tokens=9, messages=turns)
    with client.messages.stream(model="ok", max_tokens=9, messages=turns) as stream:
        assert canary in "".join(stream.text_stream)
    try:
        list(client.messages.create(model="error", max_tokens=9, messages=turns, stream=True))
    except anthropic.APIStatusError as error:
        print(canary in str(error))

print("ready", flush=True)
sys.stdin.read()
