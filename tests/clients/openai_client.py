"""The official OpenAI client against `ashlar serve`: chat, stream, tools, probabilities, cancelling, errors.

    python3 tests/clients/openai_client.py ASHLAR_PROGRAM MODEL_FOLDER

Needs `openai` from PyPI. Exits with 0 if everything is as the client expects it.
"""
import re
import subprocess
import sys
import time
import urllib.request

import openai

QUESTION = [{"role": "user", "content": "In the beginning"}]


def serve(program, model):
    """The running server and its address."""
    command = [program, "serve", model, "--port", "0", "--context", "512", "--threads", "2", "--log-level", "warn"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"http://[^/]+", line)
        if found:
            return server, found.group(0)
    sys.exit("the server did not start")


def metric(base, name):
    text = urllib.request.urlopen(f"{base}/metrics").read().decode()
    return float(re.search(rf"^ashlar_{name} (\S+)$", text, re.M).group(1))


def chat(client, **more):
    return client.chat.completions.create(model="demo-moe", messages=QUESTION, temperature=0, **more)


def answers(client):
    whole = chat(client, max_tokens=12, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == len(whole.choices[0].logprobs.content), whole
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
    streamed = list(chat(client, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == text
    assert streamed[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    assert len(chat(client, max_tokens=4, n=2).choices) == 2
    word = text.split()[1]
    pieces = {0: "", 1: ""}
    for part in chat(client, max_tokens=12, n=2, stop=[word], stream=True, logprobs=True, top_logprobs=1):
        for choice in part.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == {0: text.split(word)[0], 1: text.split(word)[0]}, (pieces, text)
    both = client.completions.create(model="demo-moe", prompt=["And it came to pass", "The"], max_tokens=4, temperature=0)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text != both.choices[1].text
    assert client.models.retrieve("demo-moe").id == "demo-moe"
    letters = chat(client, max_tokens=6, seed=5, extra_body={"ignore_eos": True}, logprobs=True).choices[0]
    assert b"".join(bytes(t.bytes) for t in letters.logprobs.content).decode("utf-8", "replace").startswith(letters.message.content[:3])
    plain = client.completions.create(model="demo-moe", prompt="And it came to pass", max_tokens=8, temperature=0, logprobs=1)
    assert len(plain.choices[0].logprobs.tokens) == 8
    assert [m.id for m in client.models.list()] == ["demo-moe"]


def tools(client):
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    asked = chat(client, max_tokens=4, tools=[weather], tool_choice="auto")
    assert asked.choices[0].message.content is not None
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = QUESTION + [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "rain"}]
    after = client.chat.completions.create(model="demo-moe", messages=messages, max_tokens=4)
    assert after.choices[0].message.content is not None


def cancelling(client, base):
    stream = chat(client, max_tokens=400, stream=True, stop=["\u0000never"])
    next(iter(stream))
    stream.close()
    for _ in range(200):
        if metric(base, "requests_running") == 0:
            return
        time.sleep(0.02)
    sys.exit("a request whose client has gone is still running")


def errors(client):
    for expected, ask in [
        (openai.NotFoundError, lambda: client.chat.completions.create(model="other", messages=QUESTION)),
        (openai.BadRequestError, lambda: chat(client, n=99)),
        (openai.BadRequestError, lambda: chat(client, logit_bias={"5": 1})),
        (openai.BadRequestError, lambda: client.completions.create(model="demo-moe", prompt="word " * 900)),
    ]:
        try:
            ask()
        except expected as error:
            assert error.body["message"], error
        else:
            sys.exit(f"expected {expected.__name__}")


def main():
    server, base = serve(*sys.argv[1:3])
    try:
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=60)
        answers(client)
        tools(client)
        cancelling(client, base)
        errors(client)
    finally:
        server.kill()
    print(f"openai {openai.__version__}: answers, tools, cancelling, errors as expected")


main()
