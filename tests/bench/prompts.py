"""What making prompts costs: seconds before a run, microseconds a prompt, memory: `python tests/bench/prompts.py`."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from engines.checkpoint.tokenizer import TOKENIZER_FILE, installed_tokenizers
from loadtest.scenario.schema import Lengths, Scenario
from loadtest.traffic.conversations import ConversationSampler
from loadtest.traffic.levels import plans_of
from loadtest.traffic.prepare import prepare
from loadtest.traffic.prompts import PromptMaker

PROMPTS = 2000


def main() -> int:
    """Print a table of sources, forms and lengths."""
    tokenizer = installed_tokenizers() / "qwen3" / TOKENIZER_FILE
    show("| prompts | as | tokens | prepared, s | each, us | peak memory |")
    show("| --- | --- | --- | --- | --- | --- |")
    for source in ("chat", "random"):
        for as_text in (False, True):
            for isl in (256, 2048, 16_384):
                show(_line(tokenizer, source, as_text=as_text, isl=isl))
    return 0


def _line(tokenizer: Path, source: str, *, as_text: bool, isl: int) -> str:
    scenario = Scenario(prompts=source, lengths=Lengths(isl=isl, osl=64))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        prepare(scenario, plans_of(scenario), tokenizer, Path(folder), as_text=as_text)
        prepared_s = time.perf_counter() - began
        maker, mix = PromptMaker(scenario, Path(folder)), ConversationSampler(scenario)
        began = time.perf_counter()
        for number in range(PROMPTS):
            maker.prompt(mix.begin(number))
        each_us = (time.perf_counter() - began) / PROMPTS * 1e6
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    form = "text" if as_text else "ids"
    return f"| {source} | {form} | {isl:,} | {prepared_s:.2f} | {each_us:,.0f} | {memory_mib:.0f} MiB |"


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
