"""Tokens and masks of small fixed records are those in tests/golden/tokens.json.

`make golden` records them anew, once TOKENS_FORMAT is raised: caches built before hold other ones.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, write_rows

from data.config import DataConfig
from data.prepared.prepare import open_splits
from data.text.tokenization import TOKENS_FORMAT

GOLDEN = REPOSITORY / "tests" / "golden"
RECORDED = GOLDEN / "tokens.json"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CODES = [
    "int add(int a, int b)\n{\n    return a + b;  // sum\n}\n",
    '\tvoid  copy(char *to)\r\n{\r\n\r\n    strcpy(to, "na\u00efve \U0001f600");\r\n}',
    "free(entry);\n" * 12 + "<|endoftext|>",
]
FUNCTIONS = [{"code": code, "target": n % 2, "cwe": f"CWE-{n}"} for n, code in enumerate(CODES)]
ALPACA = [
    {"instruction": "Add two numbers.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say why.", "input": "", "output": "It is the sum.\nNothing else.\n"},
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "You check code."},
            {"role": "user", "content": "Is this safe?"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "The buffer is too small."},
        ]
    },
    {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]},
]
TEXTS = [{"text": "The bound is checked before the copy.\n" * 6}, {"text": "short"}]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "functions": (FUNCTIONS, {"seq_length": 64}),
    "functions, windows": (
        FUNCTIONS, {"seq_length": 24, "long_functions": "window", "window_overlap": 4}
    ),
    "functions, middle": (
        FUNCTIONS,
        {"seq_length": 24, "long_functions": "truncate_middle", "normalize_whitespace": "lines"},
    ),
    "pairs of a fix": (
        [{"old": CODES[0], "new": CODES[1], "cwe": "CWE-1"}],
        {"fields": {"before": "old", "after": "new"}, "normalize_whitespace": "collapse"},
    ),
    "alpaca": (ALPACA, {"seq_length": 512}),
    "chat": (CHATS, {"seq_length": 512}),
    "chat, last answer": (CHATS, {"seq_length": 512, "supervise": "last_answer"}),
    "chat, own template": (CHATS, {"seq_length": 512, "template": "chat_template"}),
    "text": (TEXTS, {"seq_length": 32, "long_functions": "window", "supervise": "all"}),
}  # fmt: skip


def tokens_of(case: str, folder: Path) -> dict[str, Any]:
    """Ids and masks of every example of a case, and the origin of each record."""
    rows, settings = CASES[case]
    files = dict.fromkeys(("train", "valid", "test"), str(write_rows(folder / "rows.jsonl", rows)))
    (folder / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    if settings.get("template") == "chat_template":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = DataConfig.model_validate(files | {"cache_dir": str(folder / "cache")} | settings)
    is_language = not case.startswith(("functions", "pairs"))
    split = open_splits(config, folder, language=is_language).splits["train"]
    examples = split.examples
    places = [slice(*pair) for pair in zip(examples.starts[:-1], examples.starts[1:], strict=True)]
    found = {
        "ids": [examples.tokens[place].tolist() for place in places],
        "records": examples.record_E.tolist(),
        "labels": examples.label_E.tolist(),
        "origins": [record.origin for record in split.samples],
    }
    if examples.supervised is not None:
        found["supervised"] = [examples.supervised[place].astype(int).tolist() for place in places]
    return found


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_masks_are_the_recorded_ones(case, tmp_path):
    recorded = json.loads(RECORDED.read_text())
    assert recorded["format"] == TOKENS_FORMAT, "TOKENS_FORMAT was raised: run make golden"
    found = tokens_of(case, tmp_path)
    assert len(found["ids"]) >= 2  # otherwise nothing would be compared
    assert found == recorded[case], (
        f"{case}: other tokens than recorded. Caches hold the old ones: if this is meant, raise"
        f" TOKENS_FORMAT in data/text/tokenization.py from {TOKENS_FORMAT}, then run make golden"
    )


def test_masks_and_windows_are_part_of_what_is_recorded():
    recorded = json.loads(RECORDED.read_text())
    masks = [bit for mask in recorded["chat"]["supervised"] for bit in mask]
    assert 0 < sum(masks) < len(masks)
    for case in ("functions, windows", "text"):
        assert len(recorded[case]["ids"]) > len(recorded[case]["origins"])
    assert recorded["chat"] != recorded["chat, last answer"] != recorded["chat, own template"]


def record() -> None:
    """Write tokens.json; other tokens need another format number."""
    before = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    values: dict[str, Any] = {"format": TOKENS_FORMAT}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            values[case] = tokens_of(case, Path(folder))
    odd = [case for case in CASES if case in before and before[case] != values[case]]
    if odd and before["format"] == TOKENS_FORMAT:
        sys.exit(f"other tokens of {odd}: raise TOKENS_FORMAT in data/text/tokenization.py first")
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
