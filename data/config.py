"""The `data` section of a recipe."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from data.kinds import KINDS

if TYPE_CHECKING:
    RecordsChoice = str
else:
    RecordsChoice = Literal["auto", *KINDS]


Paths = str | Annotated[list[str], Field(min_length=1)]
MOST = 2**31 - 1  # of counts, which meet 32-bit integers


def _text_keys(labels: Any) -> Any:
    """A label is compared as text, and YAML reads 1 as a number and yes as a truth value."""
    if not isinstance(labels, dict):
        return labels
    if any(isinstance(label, bool) for label in labels):
        raise ValueError(
            "YAML reads yes, no, true and false as truth values: quote them as the file writes"
            ' them, e.g. {"yes": 1} or {"True": 1}; those of JSON and parquet are {"true": 1}'
        )
    return {str(label): target for label, target in labels.items()}


def _as_pattern(pattern: str | None) -> str | None:
    try:
        names = re.compile(pattern or "(?P<code>)").groupindex
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if not names or "id" in names:
        raise ValueError(
            "it needs named groups such as (?P<target>bad|good), and none called id, because the"
            " place of a match is its id"
        )
    return pattern


class Section(BaseModel):
    """A section of a recipe: immutable, no coercion, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Division(Section):
    """How a split without files gets its part of train."""

    valid: Annotated[float, Field(gt=0, lt=1)] | None = None
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    by: Literal["group", "random", "time", "project"] = "group"


class Weighted(Section):
    """Training files, and how often an epoch takes each of their records."""

    path: str
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0


class DataConfig(Section):
    """Where functions, conversations or documents are and how they become rows of tokens."""

    path: Paths | None = Field(
        None, description="folder or archive (tar, zip) holding train, valid and test; or one file"
    )
    train: str | Annotated[list[str | Weighted], Field(min_length=1)] | None = Field(
        None,
        description="training file, folder or glob, or a list; overrides data.path; {path: FILE,"
        " weight: 0.5} in a list takes half of its records in an epoch, 2 takes each twice",
    )
    valid: Paths | None = Field(None, description="the same for validation")
    test: Paths | None = Field(None, description="the same for the test")
    split: Division = Field(
        default_factory=Division,
        description="of train for splits without files: {valid: 0.1, test: 0.1, by: group}; group"
        " keeps what data.leak_groups names, equal functions and near duplicates together; also"
        " random, time, project. Default 0.1, of language records 0.05",
    )
    sample: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="records of each split, for a quick try; always the same ones"
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "sqlite", "folder", "datasets"] = (
        Field(
            "auto",
            description="auto looks at the content, not the name; folder: one function a file, the"
            " label by folder; datasets: Hugging Face datasets saved to disk",
        )
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="our field: the file's field, e.g. {code: func}; {before: vulnerable code,"
        " after: fixed code} makes two functions of a row",
    )
    query: str | None = Field(
        None, description="the SELECT whose rows are read of a SQLite file; null: its only table"
    )
    unroll: list[str] = Field(
        default_factory=list,
        description="fields of jsonl or json that hold lists, one in the other: their elements are"
        " the rows, and have the fields around them too, e.g. [details, function_before]",
    )
    functions: str | None = Field(
        None,
        description="file of functions that the files of the splits name, one a line: an id (or a"
        " place from 0), or two ids and a label",
    )
    path_pattern: Annotated[str | None, AfterValidator(_as_pattern)] = Field(
        None,
        description="regular expression for the paths of a folder of source files; its named groups"
        " are fields, and files that it does not find are left out",
    )
    text_pattern: Annotated[str | None, AfterValidator(_as_pattern)] = Field(
        None, description="the same for the text of a file: each match is a row"
    )
    labels: Annotated[dict[str, int | str] | Literal["auto"], BeforeValidator(_text_keys)] = Field(
        default_factory=dict,
        description="the file's label: our class id or its name, e.g. {vulnerable: 1, safe: 0};"
        " auto: the labels are the classes, or lists of several at once",
    )
    target: Literal["label", "cwe", "cwes"] = Field(
        "label",
        description="what is learned: label; cwe: the weakness of a vulnerable function; cwes: all"
        " that it has at once",
    )
    min_class_size: Annotated[int, Field(ge=1, le=MOST)] = Field(
        1, description="classes of fewer training functions, if not named, become the class other"
    )
    ignore_columns: list[str] = Field(
        default_factory=list,
        description="columns, and keys of messages as message.NAME, that are not read although they"
        " would change what is learned, e.g. [tools, message.images]",
    )
    max_bad_rows: Annotated[int, Field(ge=0, le=MOST)] = Field(
        0, description="unreadable rows of a split passed over and counted; one more is an error"
    )
    encoding_errors: Literal["strict", "replace"] = Field(
        "strict", description="replace puts U+FFFD where text is not UTF-8, and counts the rows"
    )
    max_function_bytes: Annotated[int, Field(ge=1, le=MOST)] = Field(
        1_000_000, description="a longer function is dropped before it is tokenised, and counted"
    )
    cache_dir: str | None = Field(
        None, description="where prepared data is kept for every rank; null: ~/.cache/focaltune"
    )
    tokenizer: str | None = Field(
        None, description="folder of the tokenizer; default: model.path or model.config's folder"
    )
    end_token: str | None = Field(
        None, description="token appended to a function and read; default: the tokenizer's eos"
    )
    seq_length: Annotated[int, Field(ge=8, le=MOST)] = Field(
        1024, description="tokens of a packed row"
    )
    long_functions: Literal["drop", "truncate", "truncate_left", "truncate_middle", "window"] = (
        Field(
            "truncate",
            description="records above seq_length: truncate keeps the head, truncate_left the tail,"
            " truncate_middle half of each; window cuts pieces, the default of causal_lm",
        )
    )
    window_overlap: Annotated[int, Field(ge=0, le=MOST)] = Field(
        0, description="tokens a window repeats of the one before it; of language at least one"
    )
    normalize_whitespace: Literal["none", "lines", "collapse"] = Field(
        "none", description="lines keeps line ends; collapse makes every run of blanks one space"
    )
    packing: bool = Field(True, description="several whole, isolated functions in a row")
    packing_window: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="pack this many functions at a time, in bounded memory; null: all at once"
    )
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced repeats the rarer class in every epoch until classes match"
    )
    leak_groups: list[Literal["commit", "cve", "project"]] = Field(
        ["commit", "cve"],
        description="fields whose value must not occur in two splits",
    )
    allow_leaks: bool = Field(
        False, description="train although splits share functions or groups (recorded)"
    )
    records: RecordsChoice = Field(
        "auto",
        description="kind of language records; auto looks at the fields of a file's first row",
    )
    template: str = Field(
        "auto",
        description="alpaca, question_answer, human_assistant, plain, or chat_template: the"
        " tokenizer's own; auto: alpaca for alpaca records, for chat the tokenizer's own where it"
        " has one, else question_answer",
    )
    supervise: Literal["answers", "last_answer", "all"] = Field(
        "answers",
        description="tokens that count in the loss of language records; all: the prompt's too, the"
        " default of causal_lm",
    )
    isolate: bool = Field(
        True,
        description="false: language records of a row see those before them, as in pre-training",
    )
    order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="sequential: language files one after the other, in their order"
    )
