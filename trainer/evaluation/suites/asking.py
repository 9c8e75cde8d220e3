"""What the study's tasks ask a model, and what is kept of its answers.

OctoCoder's format, and the rules by which an answer ends, as ASTRAIOS (arXiv 2401.00788) used them
of OctoPack (arXiv 2308.07124), ReCode (arXiv 2212.10264) and Asleep at the Keyboard (arXiv
2108.09293). The study's released programs are what these rules keep of themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = Mapping[str, Any]  # of a data set

LANGUAGES = {
    "python": "Python", "java": "Java", "js": "JavaScript", "go": "Go", "rust": "Rust",
    "cpp": "C++",
}  # fmt: skip
END = "<|endoftext|>"
_PYTHON_STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif")
_STOPS = {
    "python": (*_PYTHON_STOPS, "\nassert"),
    "go": ("\n//", "\nfunc main(", "struct", "\nfunc"),
}
_SHOWN_LINE = 20  # a longer line of the solution is taken out of a description of it


@dataclass(frozen=True)
class Asking:
    """How a suite asks for an answer.

    Attributes:
        prompt: Text that the model goes on with; the second argument is its own description of
            the solution, where `describes` asks for one.
        start: What of the prompt, in front of an answer, makes it a program.
        cut: What is kept of an answer; a longer answer with the same beginning gives the same
            once `is_over`.
        is_over: Whether the rest of an answer can change nothing.
        stops: Texts any of which makes an answer over; a closing brace, e.g., is none of them.
        most_tokens: Of a prompt and its answer; a longer prompt loses its beginning.
        num_samples: Answers to each prompt.
        temperature, top_p: Of what is drawn; temperature 0 takes the most likely token.
        describes: Asks for a description first.
    """

    prompt: Callable[[Row, str], str]
    start: Callable[[Row], str]
    cut: Callable[[str, Row], str]
    is_over: Callable[[str, Row], bool]
    stops: Callable[[Row], Sequence[str]] = lambda _: (END,)
    most_tokens: int = 2048
    num_samples: int = 20
    temperature: float = 0.2
    top_p: float = 0.95
    describes: "Asking | None" = None

    def program(self, row: Row, answer: str) -> str:
        """A program of an answer, without the tests."""
        return self.start(row) + self.cut(answer, row)


def question(said: str, start: str = "") -> str:
    """OctoCoder's format, up to where the answer goes on.

    Blanks at the end are left to the model: its tokens hold them together with what follows.
    """
    return f"Question: {said}\n\nAnswer:\n{start}".strip()


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The beginning of a text before the first of these."""
    return text[: min((n for n in map(text.find, stops) if n >= 0), default=len(text))]


def function_end(text: str, language: str) -> int:
    """Where the function ends that an answer began inside of; -1 where it goes on.

    In Python before the first line that is not indented, elsewhere behind the brace that closes the
    function, of Java its class.
    """
    if language == "python":
        place = 0
        for line in text.split("\n"):
            if line.strip() and line[0] not in " \t":
                return max(place - 1, 0)
            place += len(line) + 1
        return -1
    depth = 2 if language == "java" else 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return place + 1
    return -1


def _stops(language: str) -> tuple[str, ...]:
    return (*_STOPS.get(language, ()), END)


def cut_function(text: str, language: str) -> str:
    """What of an answer is the function that it began inside of.

    A function that is not closed ends with its last brace, or Java's before a main of its own.
    """
    text = until_stop(text, _stops(language))
    if (end := function_end(text, language)) >= 0:
        return text[:end]
    if language == "java":
        main = text.find("public static void main")
        text = text[:main] + "}" if main >= 0 else text
    if language != "python" and "}" in text:
        text = text[: text.rfind("}") + 1]
    if language == "java" and text.count("{") - 1 == text.count("}"):
        text += "\n}"
    return text


def _function_over(text: str, language: str) -> bool:
    return until_stop(text, _stops(language)) != text or function_end(text, language) >= 0


def cut_description(text: str, row: Row, language: str) -> str:
    """A description, no longer than the docstring and without lines of the solution."""
    text = until_stop(text.strip()[: len(row["docstring"])], _stops(language)).rstrip()
    for line in map(str.strip, row["canonical_solution"].split("\n")):
        if len(line) > _SHOWN_LINE:
            text = text.replace(line, "")
    return text


def _declared(row: Row, language: str) -> str:
    """The function without its docstring, up to its body."""
    return ("fn main(){}\n" if language == "rust" else "") + str(row["declaration"])


def _pack(mode: str, language: str) -> Asking:
    """HumanEvalPack (arXiv 2308.07124)."""

    def declared(row: Row) -> str:
        return _declared(row, language)

    def synthesize(row: Row, _: str) -> str:
        return question(row["instruction"].strip(), row["prompt"])

    def fix(row: Row, _: str) -> str:
        code = f"{declared(row)}{row['buggy_solution']}\n{row['test']}"
        return question(f"Fix bugs in {row['entry_point']}.\n{code}", declared(row))

    def describe(row: Row, _: str) -> str:
        code, most = declared(row) + row["canonical_solution"], len(row["docstring"])
        return question(
            "Provide a concise natural language description of the code using at most"
            f" {most} characters.\n{code}"
        )

    def explain(row: Row, description: str) -> str:
        name = LANGUAGES[language]
        return question(
            f"Write functional code in {name} according to the description.\n{description}",
            declared(row),
        )

    def start(row: Row) -> str:
        return (str(row["prompt"]) if mode == "synthesize" else declared(row)).rstrip()

    asking = Asking(
        {"synthesize": synthesize, "fix": fix, "explain": explain}[mode],
        start,
        lambda text, _: cut_function(text, language),
        lambda text, _: _function_over(text, language),
        lambda _: _stops(language),
    )
    if mode != "explain":
        return asking
    describes = replace(
        asking,
        prompt=describe,
        start=lambda _: "",
        cut=lambda text, row: cut_description(text, row, language),
        is_over=lambda text, row: END in text or len(text.lstrip()) >= len(row["docstring"]),
        stops=lambda _: (END,),
    )
    return replace(asking, describes=describes)


def _completion(most_tokens: int, num_samples: int, temperature: float) -> Asking:
    """HumanEval and ReCode: the model goes on with the file."""
    stops = (*_PYTHON_STOPS, END)
    return Asking(
        lambda row, _: row["prompt"].strip(),
        lambda row: row["prompt"].strip(),
        lambda text, _: until_stop(text, stops),
        lambda text, _: until_stop(text, stops) != text,
        lambda _: stops,
        most_tokens,
        num_samples,
        temperature,
    )


def _answer(prompt: Callable[[Row], str]) -> Asking:
    """Defect and clone detection: one line, the most likely one; the code loses its beginning."""
    stops = ("\n", END)
    return Asking(
        lambda row, _: prompt(row),
        lambda _: "",
        lambda text, _: until_stop(text, stops),
        lambda text, _: until_stop(text, stops) != text,
        lambda _: stops,
        most_tokens=512,
        num_samples=1,
        temperature=0.0,
    )


def _defect(row: Row) -> str:
    return question(f"{row['func']}\nIs there a defect in the Code, and respond to YES or NO.")


def _clone(row: Row) -> str:
    asked = "Is there a clone relation between the Code1 and Code2, and respond to YES or NO."
    return question(f"Code1: {row['func1']}.\nCode2: {row['func2']}.\n{asked}")


_SCENARIO_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", END)  # of Python


def _cut_scenario(text: str, row: Row) -> str:
    """What of an answer belongs to a scenario's function; its suffix closes the function.

    As the authors of the automated scenarios cut (`completions/*_fixed.jsonl` beside them).
    """
    if row["language"] == "c":
        end = function_end(text, "c")
        return text[: end - 1].rstrip() if end > 0 else text
    text = until_stop(text, _SCENARIO_STOPS)
    lines, is_inside = text.split("\n"), False
    for n, line in enumerate(lines):
        if n == 0 and not row["prompt"].endswith("\n"):
            continue  # the rest of a line
        if line.strip() and is_inside and line[0] not in " \t":
            return "\n".join(lines[:n])
        is_inside |= bool(line.strip()) and line[0] in " \t"
    return text


_SCENARIO = Asking(
    lambda row, _: row["prompt"],
    lambda _: "",  # released outputs are completions
    _cut_scenario,
    lambda text, row: END in text or _cut_scenario(text, row) != text,
    lambda row: _SCENARIO_STOPS if row["language"] == "python" else (END,),
    most_tokens=1024,
)
ASKING: dict[str, Asking] = {
    "defect": _answer(_defect),
    "clone": _answer(_clone),
    **{
        f"humanevalpack-{mode}-{language}": _pack(mode, language)
        for mode in ("synthesize", "fix", "explain")
        for language in LANGUAGES
    },
    "humaneval": _completion(most_tokens=1024, num_samples=20, temperature=0.2),
    "recode": _completion(most_tokens=1024, num_samples=1, temperature=0.0),
    "aatk": _SCENARIO,
}
