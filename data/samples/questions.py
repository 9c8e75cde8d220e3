"""Questions about the embedded functions and their answers, in the fields of Alpaca."""

import random
from collections.abc import Iterable, Iterator, Mapping

LANGUAGES = {"c": "C", "java": "Java", "python": "Python"}
TITLES = {
    "CWE-22": "path traversal",
    "CWE-78": "command injection",
    "CWE-79": "cross-site scripting",
    "CWE-89": "SQL injection",
    "CWE-120": "unchecked copy",
    "CWE-125": "out-of-bounds read",
    "CWE-134": "format string",
    "CWE-327": "broken cryptography",
    "CWE-330": "weak randomness",
    "CWE-362": "race condition",
    "CWE-400": "resource exhaustion",
    "CWE-415": "double free",
    "CWE-416": "use after free",
    "CWE-476": "null dereference",
    "CWE-502": "unsafe deserialization",
    "CWE-601": "open redirect",
    "CWE-732": "loose permissions",
    "CWE-787": "out-of-bounds write",
    "CWE-798": "hard-coded secret",
    "CWE-862": "missing authorization",
    "CWE-863": "wrong authorization",
    "CWE-918": "server-side request forgery",
}
MAX_CHARACTERS = 600  # longer functions are left out


def instruction_rows(
    records: Iterable[Mapping[str, str | int]], seed: int
) -> Iterator[dict[str, str | int]]:
    """One row for each commit that has a short function.

    Args:
        records: One split of functions; the versions of a commit follow one another.
        seed: Draws the kind of question, together with the commit.
    """
    seen = set()
    for record in records:
        if record["commit"] in seen or len(str(record["code"])) > MAX_CHARACTERS:
            continue
        seen.add(record["commit"])
        question = random.Random(f"{seed}:{record['commit']}").choice(QUESTIONS)
        yield {"id": record["id"], **question(record)}


def _write(record: Mapping[str, str | int]) -> dict[str, str | int]:
    language, cwe = LANGUAGES[str(record["language"])], str(record["cwe"])
    how = f"with {cwe}, {TITLES[cwe]}" if record["target"] else f"safe from {cwe}, {TITLES[cwe]}"
    instruction = f"Write the {language} function {record['function_name']}, {how}."
    return {"instruction": instruction, "input": "", "output": record["code"]}


def _language(record: Mapping[str, str | int]) -> dict[str, str | int]:
    answer = f"It is written in {LANGUAGES[str(record['language'])]}."
    return _about(record, "In which language is this function written?", answer)


def _name(record: Mapping[str, str | int]) -> dict[str, str | int]:
    return _about(record, "What is this function called?", str(record["function_name"]))


def _security(record: Mapping[str, str | int]) -> dict[str, str | int]:
    cwe = str(record["cwe"])
    answer = f"Vulnerable: {cwe}, {TITLES[cwe]}." if record["target"] else "No weakness found."
    return _about(record, "Perform static application security testing of this function.", answer)


def _about(record: Mapping[str, str | int], question: str, answer: str) -> dict[str, str | int]:
    return {"instruction": question, "input": record["code"], "output": answer}


QUESTIONS = (_write, _write, _language, _name, _security)  # two in five answers are code
