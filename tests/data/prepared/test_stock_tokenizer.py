"""Ids are those of transformers' AutoTokenizer, whichever files a tokenizer comes in."""

import builtins
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import REPOSITORY, SAMPLES
from example_sets import tokenized
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from data.config import DataConfig
from data.errors import TokenizerError
from data.prepared.cache import entries
from data.prepared.stock_tokenizer import difference, stock_folder
from data.records import CodeSample
from data.text.tokenizer import CodeTokenizer

SOURCES = sorted((REPOSITORY / "data").rglob("*.py"))
TEXTS = [line for path in SOURCES for line in path.read_text().splitlines() if line.strip()]
TEXTS = [*TEXTS[:: len(TEXTS) // 190][:190], "x = 1234567", "Größe  it's", "a\n\n\tb", "日本 é"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write(folder: Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def vocab_and_merges(folder: Path) -> None:
    """As CodeBERT's: vocab.json, merges.txt and config.json, nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=ROBERTA, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))
    write(folder, config={"model_type": "roberta"})


def word_pieces(folder: Path) -> None:
    """As BERT's: vocab.txt and config.json."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=BERT, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))
    write(folder, config={"model_type": "bert"})


def changed_by_class(folder: Path) -> None:
    """A tokenizer.json that keeps digits together; Qwen2Tokenizer tells them apart."""
    shutil.copyfile(SAMPLES / "model" / "tokenizer.json", folder / "tokenizer.json")
    named = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
    write(folder, config={"model_type": "qwen2"}, tokenizer_config=named)


def config_for(tmp_path: Path) -> DataConfig:
    return DataConfig(cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("made", [vocab_and_merges, word_pieces, changed_by_class])
def test_ids_are_stocks_with_and_without_what_stands_around_a_text(tmp_path, made):
    source = tmp_path / "source"
    source.mkdir()
    made(source)
    stock = AutoTokenizer.from_pretrained(source)
    config = config_for(tmp_path)
    tokenizer = CodeTokenizer(stock_folder(config, source))
    plain = [ids.tolist() for ids in tokenizer.encode(TEXTS)]
    assert plain == [stock.encode(text, add_special_tokens=False) for text in TEXTS]
    if made is changed_by_class:
        return  # a decoder: nothing around a text, and our end token behind it
    records = [CodeSample(str(n), text, n % 2, f"x:{n}") for n, text in enumerate(TEXTS)]
    examples, _ = tokenized(records, tokenizer, config)
    starts = examples.starts
    whole = [examples.tokens[a:b].tolist() for a, b in pairwise(starts)]
    assert whole == [stock.encode(text) for text in TEXTS]


@pytest.mark.parametrize("made", [vocab_and_merges, word_pieces, changed_by_class])
def test_stock_tools_read_the_folder_that_is_made_with_equal_ids(tmp_path, made):
    """An export takes these files."""
    source = tmp_path / "source"
    source.mkdir()
    made(source)
    folder = stock_folder(config_for(tmp_path), source)
    shutil.copyfile(source / "config.json", tmp_path / "config.json")
    for path in folder.glob("tokenizer*"):
        shutil.copyfile(path, tmp_path / path.name)
    again, stock = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(source)
    assert [again.encode(text) for text in TEXTS] == [stock.encode(text) for text in TEXTS]
    assert "local_files_only" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_the_difference_is_counted_on_the_texts_and_shown(tmp_path):
    changed_by_class(tmp_path)
    given = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stock = AutoTokenizer.from_pretrained(tmp_path)
    num = sum(
        given.encode(text).ids != stock.encode(text, add_special_tokens=False) for text in TEXTS
    )
    tokenizer = CodeTokenizer(stock_folder(config_for(tmp_path), tmp_path))
    line = difference(tokenizer, iter(TEXTS))
    assert f"{num} of {len(TEXTS)} texts differ, e.g. " in line
    assert "Qwen2Tokenizer" in line
    assert 0 < num < len(TEXTS)
    line = difference(tokenizer, iter(["x = 1234567"]))
    assert "1 of 1 texts differ, e.g. ['Ġ', '1', '2'," in line


def without_transformers(monkeypatch) -> None:
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert not name.startswith("transformers")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_a_folder_is_settled_once_and_again_when_a_file_of_it_changes(tmp_path, monkeypatch):
    vocab_and_merges(tmp_path)
    config = config_for(tmp_path)
    folder = stock_folder(config, tmp_path)
    with monkeypatch.context() as patched:
        without_transformers(patched)
        assert stock_folder(config, tmp_path) == folder
    write(tmp_path, tokenizer_config={"add_prefix_space": True})
    other = stock_folder(config, tmp_path)
    assert other != folder
    stock = AutoTokenizer.from_pretrained(tmp_path)
    ids = next(CodeTokenizer(other).encode(["return"])).tolist()
    assert ids == stock.encode("return", add_special_tokens=False)
    assert ids != next(CodeTokenizer(folder).encode(["return"])).tolist()


def test_a_tokenizer_without_a_class_of_its_own_needs_no_transformers(tmp_path, monkeypatch):
    without_transformers(monkeypatch)
    config = config_for(tmp_path)
    assert stock_folder(config, SAMPLES / "model") == SAMPLES / "model"
    assert entries(tmp_path / "cache") == []


def test_a_class_that_changes_nothing_leaves_the_folder(tmp_path):
    vocab_and_merges(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    config = config_for(tmp_path)
    assert stock_folder(config, tmp_path) == tmp_path
    assert difference(CodeTokenizer(tmp_path), iter(TEXTS)) is None


def test_where_nothing_can_be_written_the_folder_lasts_as_long_as_the_process(tmp_path):
    vocab_and_merges(tmp_path)
    (tmp_path / "cache").write_text("a file")
    folder = stock_folder(config_for(tmp_path), tmp_path)
    assert CodeTokenizer(folder).begin_token == "<s>"


@pytest.mark.parametrize("gone", ["merges.txt", "config.json", None])
def test_what_cannot_be_converted_is_an_error_with_the_place_and_a_remedy(tmp_path, gone):
    vocab_and_merges(tmp_path)
    if gone:
        (tmp_path / gone).unlink()
    else:
        (tmp_path / "vocab.json").write_text('{"a": ')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist.*data\.tokenizer"):
        stock_folder(config_for(tmp_path), tmp_path)
    assert entries(tmp_path / "cache") == []


def test_a_sentencepiece_model_without_its_package_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x07\x0a\x05<unk>")
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": "Llama"})
    with pytest.raises(TokenizerError, match=r"none can be made.*data\.tokenizer") as raised:
        stock_folder(config_for(tmp_path), tmp_path)
    assert raised.value.exit_code == 4


def test_a_class_that_does_not_load_leaves_tokenizer_json_as_it_is_and_says_so(tmp_path, capsys):
    changed_by_class(tmp_path)
    write(tmp_path, config={"model_type": []})
    assert stock_folder(config_for(tmp_path), tmp_path) == tmp_path
    assert "tokenizer.json is used as it is" in capsys.readouterr().err


def test_the_end_token_of_the_recipe_comes_first(tmp_path):
    word_pieces(tmp_path)
    folder = stock_folder(config_for(tmp_path), tmp_path)
    assert CodeTokenizer(folder).end_token == "[SEP]"
    assert CodeTokenizer(folder, "[MASK]").end_token == "[MASK]"


def test_two_tokens_behind_a_text_are_not_an_end_token(tmp_path):
    word_pieces(tmp_path)
    folder = stock_folder(config_for(tmp_path), tmp_path)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="no end token found"):
        CodeTokenizer(tmp_path)
