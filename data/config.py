"""The `data` section of a recipe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

RECORD_FIELDS = ("code", "target", "id", "cwe", "status", "commit", "function_name")


class Section(BaseModel):
    """A section of a recipe: immutable, no coercion, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the functions are and how they become rows of tokens."""

    path: str | None = Field(
        None, description="folder or tar archive holding train, valid and test .jsonl(.gz)"
    )
    train: str | None = Field(None, description="training file; overrides data.path")
    valid: str | None = Field(None, description="validation file; overrides data.path")
    test: str | None = Field(None, description="test file; overrides data.path")
    format: Literal["auto", "jsonl", "tar"] = Field(
        "auto", description="auto looks at the file's first bytes, not its name"
    )
    fields: dict[str, str] = Field(
        default_factory=dict, description="our field: the file's field, e.g. {code: func}"
    )
    tokenizer: str | None = Field(
        None, description="folder with tokenizer.json; default: model.path or model.config's folder"
    )
    end_token: str | None = Field(
        None, description="token appended to a function and read; default: the tokenizer's eos"
    )
    seq_length: Annotated[int, Field(ge=8)] = Field(1024, description="tokens of a packed row")
    long_functions: Literal["drop", "truncate", "window"] = Field(
        "truncate", description="what happens to functions above seq_length tokens"
    )
    normalize_whitespace: Literal["none", "lines", "collapse"] = Field(
        "none", description="lines keeps line ends; collapse makes every run of blanks one space"
    )
    packing: bool = Field(True, description="several whole, isolated functions in a row")
    allow_leaks: bool = Field(
        False, description="train although functions of one split stand in another (recorded)"
    )
