"""Drives a Trireme endpoint with the official client: chat, streaming, completions, errors,
cancellation. Usage: drive.py BASE_URL API_KEY MODEL. Ends non-zero at the first check that fails."""

import asyncio
import sys
import time
import urllib.request

import openai

base, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=120)
question = [{"role": "user", "content": "What is 2+2?"}]


def check(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print("ok:", what)


def metric(name):
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(l.rsplit(" ", 1)[1]) for l in lines if l.startswith((name + " ", name + "{")))


def settles(what, probe):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if probe():
            return check(True, what)
        time.sleep(0.02)
    check(False, what)


check(model in [m.id for m in client.models.list()], "models.list names the model")
check(client.models.retrieve(model).id == model, "models.retrieve")

whole = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=32)
check("4" in whole.choices[0].message.content, "chat answers")
check(whole.choices[0].message.role == "assistant", "as the assistant")
check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "usage adds up")
check(0 < whole.usage.completion_tokens <= 32, "usage counts the completion")

stream = client.chat.completions.create(
    model=model, messages=question, temperature=0, max_tokens=32, stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
check(text == whole.choices[0].message.content, "a stream gives the same text")
check(chunks[0].choices[0].delta.role == "assistant", "the first chunk names the role")
check(chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens, "the last chunk has the usage")
check(all(c.usage is None for c in chunks[:-1]), "and no other has")
check([c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason, "finish_reason")
check(sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 3, "in more than three pieces")

plain = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=8, temperature=0)
check("5" in plain.choices[0].text, "completions continue")
check(plain.choices[0].finish_reason == "length", "until max_tokens")
pieces = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=8, temperature=0, stream=True)
check("".join(p.choices[0].text for p in pieces if p.choices) == plain.choices[0].text, "streamed too")
many = client.completions.create(model=model, prompt=["1, 2, 3, 4,", "a, b, c, d,"], max_tokens=8, temperature=0)
check(len(many.choices) == 2 and many.choices[0].text == plain.choices[0].text, "a list of prompts")
check([c.index for c in many.choices] == [0, 1], "in order")
by_ids = client.completions.create(model=model, prompt=[504, 3575, 282, 4649, 314], max_tokens=1, temperature=0)
check(by_ids.choices[0].text == " Paris", "token ids as a prompt")
lists = client.completions.create(model=model, prompt=[[504, 3575, 282, 4649, 314], [504, 3575]], max_tokens=1, temperature=0)
check(lists.choices[0].text == " Paris" and len(lists.choices) == 2, "lists of token ids")
echo = client.completions.create(model=model, prompt="Hello world", max_tokens=0, echo=True, logprobs=3)
check(echo.choices[0].text == "Hello world", "echo")
check(echo.choices[0].logprobs.token_logprobs[0] is None, "the first token has no logprob")
check(all(p <= 0 for p in echo.choices[0].logprobs.token_logprobs[1:]), "the others have one")
check("".join(echo.choices[0].logprobs.tokens) == "Hello world", "the tokens spell the prompt")

ended = client.completions.create(model=model, prompt=[504, 3575, 282, 4649, 314], max_tokens=1, temperature=0, echo=True, logprobs=1, extra_body={"logit_bias": {"2": 100}})
check(ended.choices[0].finish_reason == "stop" and ended.usage.completion_tokens == 1, "an end token ends")
check(len(ended.choices[0].logprobs.token_logprobs) == 6, "and has a logprob, as harnesses that score texts expect")
emoji = "Grüße, 世界! 👩‍👩‍👧 😀"
faces = client.completions.create(model=model, prompt=emoji, max_tokens=0, echo=True, logprobs=0).choices[0]
check(faces.text == emoji, "any Unicode is echoed")
offsets = faces.logprobs.text_offset
check(offsets == sorted(offsets) and offsets[-1] < len(emoji), "with offsets in characters")

stopped = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=40, temperature=0, stop=[" 9, 1", "zzz"])
check("9, 1" not in stopped.choices[0].text and "8" in stopped.choices[0].text, "stop strings that span tokens")
check(stopped.choices[0].finish_reason == "stop", "finish with stop")
check(stopped.usage.completion_tokens < 40, "and tokens after it are not counted")

probs = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=4, logprobs=True, top_logprobs=5)
entries = probs.choices[0].logprobs.content
check(len(entries) == 4 and all(len(e.top_logprobs) == 5 for e in entries), "top_logprobs")
check(all(e.token == e.top_logprobs[0].token for e in entries), "greedy takes the best")
check(all(bytes(e.bytes).decode("utf-8", "replace") == e.token for e in entries if e.bytes), "bytes agree")

hot = dict(model=model, messages=question, temperature=1.2, top_p=0.95, max_tokens=24)
first, again, other = (client.chat.completions.create(seed=s, **hot).choices[0].message.content for s in (7, 7, 8))
check(first == again, "a seed repeats")
check(first != other, "another seed differs")
several = client.chat.completions.create(n=3, seed=7, **hot)
check([c.index for c in several.choices] == [0, 1, 2], "n choices")
check(len({c.message.content for c in several.choices}) == 3, "that differ")
check(several.choices[0].message.content == first, "the first of which is the seed's own")
streams = client.chat.completions.create(n=3, seed=7, stream=True, **hot)
texts, reasons = {}, {}
for chunk in streams:
    for choice in chunk.choices:
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        reasons[choice.index] = choice.finish_reason
check([texts[i] for i in range(3)] == [c.message.content for c in several.choices], "n choices in one stream")
check(all(reasons.values()), "each with its own end")
history = [*question, whole.choices[0].message.model_dump(), {"role": "user", "content": "Shorter.", "type": "text"}]
check(client.chat.completions.create(model=model, messages=history, max_tokens=1).usage.completion_tokens == 1, "an answer can be sent back as history")
biased = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0, logit_bias={"7042": -100})
check("Paris" not in biased.choices[0].text.split(",")[0].split(".")[0][:7], "logit_bias")
tiers = [client.chat.completions.create(model=model, messages=question, max_tokens=1, service_tier=tier).service_tier for tier in ("auto", "flex", "priority")]
check(tiers == ["default", "flex", "priority"], "the service tier is told")
extra = client.completions.create(model=model, prompt="One", max_tokens=4, seed=1, extra_body={"top_k": 1, "min_p": 0.1})
greedy = client.completions.create(model=model, prompt="One", max_tokens=4, temperature=0)
check(extra.choices[0].text == greedy.choices[0].text, "top_k 1 is greedy")

raw = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=1, extra_headers={"x-request-id": "drive-1"})
check(raw.headers.get("x-request-id") == "drive-1", "x-request-id is echoed")


def refused(kind, what, **options):
    try:
        client.with_options(**options.pop("with_options", {})).chat.completions.create(
            **{"model": model, "messages": question, "max_tokens": 1, **options}
        )
    except kind as error:
        check(isinstance(error.body, dict) and error.body.get("message"), what)
        return error
    check(False, what + " (it was taken)")


refused(openai.AuthenticationError, "a wrong key", with_options={"api_key": "sk-wrong"})
check(refused(openai.NotFoundError, "an unknown model", model="gpt-5").code == "model_not_found", "model_not_found")
check(refused(openai.BadRequestError, "a bad temperature", temperature=9).param == "temperature", "param names it")
refused(openai.BadRequestError, "a parameter we lack", extra_body={"best_of": 5})
refused(openai.BadRequestError, "tools, which we lack", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])

long = [{"role": "user", "content": "Write a very long story about the sea. Never stop."}]
running = "vllm:num_requests_running"
pages = "vllm:kv_cache_usage_perc"
settles("the engine is idle", lambda: metric(running) == 0 and metric(pages) == 0)
stream = client.chat.completions.create(model=model, messages=long, max_tokens=4000, stream=True, temperature=1, seed=3)
for _, chunk in zip(range(5), stream):
    pass
settles("a stream runs and holds KV pages", lambda: metric(running) == 1 and metric(pages) > 0)
stream.close()
settles("closing it frees the engine and its KV pages", lambda: metric(running) == 0 and metric(pages) == 0)


async def together():
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=120) as aclient:
        answers = await asyncio.gather(*(
            aclient.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=32)
            for _ in range(8)
        ))
    return [a.choices[0].message.content for a in answers]


check(set(asyncio.run(together())) == {text}, "eight at once give what one gives")
print("all checks hold")
