"""Documents, splits and tokens: what is read, what is refused and how it says so."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import tokenizer
from common.data import SPLITS, Document, Limits, document, read_corpus, read_documents, read_split, write_documents
from common.errors import MalformedError, TooLargeError


def _write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _texts(documents: list[Document] | tuple[Document, ...]) -> list[str]:
    return [document.text for document in documents]


# ---- Documents -------------------------------------------------------------------------------------------------------


def test_json_lines_give_texts_and_ids_and_ignore_other_fields(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "a.jsonl",
        {"text": "one", "id": "x", "source": {"a": 1}},
        {"text": "two", "id": 7},
        {"text": "three"},
    )
    found = read_documents(path)
    assert _texts(found) == ["one", "two", "three"]
    assert [d.id for d in found[:2]] == ["x", "7"]
    assert found[2] == document("three")


def test_compressed_lines_round_trip_and_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    documents = [document("über\n\n\n\nalles"), document("two")]
    write_documents(tmp_path / "a.jsonl.gz", documents)
    write_documents(tmp_path / "b.jsonl.gz", documents)
    assert read_documents(tmp_path / "a.jsonl.gz") == documents
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_two_blank_lines_divide_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\nstill first\r\n\r\n\r\nsecond\n \n\t\n\n\nthird\n")
    assert _texts(read_documents(tmp_path / "a.txt")) == ["first\n\nstill first", "second", "third"]


def test_a_folder_is_read_in_order_without_duplicates_hidden_or_empty_documents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    _write(tmp_path / "b.jsonl", {"text": "one "}, {"text": " \n"}, {"text": "two"})
    (tmp_path / "deep" / "a.txt").write_text("one\n\n\nthree")
    (tmp_path / ".hidden.txt").write_text("secret")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    assert _texts(read_documents(tmp_path)) == ["one ", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'["text"]\n', r'line 1: no "text"'),
        ("a.jsonl", b'{"text": 5}\n', r'line 1: no "text"'),
        ("a.jsonl", b'{"text": "a", "id": [1]}\n', r'"id" is \[1\]'),
        ("a.jsonl", b'{"text": "a\\u0000b"}\n', "NUL character"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "half a surrogate pair at character 1"),
        ("a.jsonl", b'{"text": "' + b"[" * 10 + b'"}\n\xff\n', "line 2: not UTF-8 text at byte 0"),
        ("a.jsonl", b"[" * 200_000 + b"\n", "line 1: not JSON"),
        ("a.jsonl", b"\n", "every document is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 text at byte 3"),
        ("a.txt", b"\x7fELF\0\0", "looks like a binary file"),
        ("a.txt", b" \n", "every document is empty"),
        ("a.jsonl.gz", b"plainly not", "broken gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "broken gzip"),
        ("a.pdf", b"%PDF", "not a kind of file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MalformedError, match=message):
        read_documents(tmp_path / name)


def test_a_corrupt_compressed_stream_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"".join(json.dumps({"text": f"{i * i}"}).encode() + b"\n" for i in range(500))))
    data[60:90] = b"\xff" * 30
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(MalformedError):
        read_documents(tmp_path / "a.jsonl.gz")


def test_a_missing_or_empty_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match=r"nowhere: no such file or folder; give a \.jsonl"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(MalformedError, match="it is empty"):
        read_documents(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(MalformedError, match=r"only a\.docx"):
        read_documents(tmp_path)


def test_a_small_archive_cannot_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 3_000_000 + b'"}\n', mtime=0))
    with pytest.raises(TooLargeError, match=r"bomb\.jsonl\.gz, line 1: longer than 1,000"):
        read_documents(path, limits=Limits(document_bytes=1_000))
    write_documents(path, [document(f"{i:04}" * 100) for i in range(100)])
    with pytest.raises(TooLargeError, match="more than 20,000 bytes of text"):
        read_documents(path, limits=Limits(total_bytes=20_000))
    (tmp_path / "a.txt").write_text("é" * 600)
    with pytest.raises(TooLargeError, match="a document over 1,000 bytes"):
        read_documents(tmp_path / "a.txt", limits=Limits(document_bytes=1_000))


# ---- Splits ----------------------------------------------------------------------------------------------------------


def test_given_splits_are_kept_and_test_text_is_dropped_from_train(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", {"text": "a"}, {"text": "b"}, {"text": "c"})
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "x.txt").write_text("b")
    write_documents(tmp_path / "test.jsonl.gz", [document("c"), document("d")])
    corpus = read_corpus(tmp_path)
    assert [_texts(corpus.split(name)) for name in SPLITS] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize("name", ["train.jsonl", "anything.jsonl"])
def test_missing_splits_are_set_aside_by_hash_whatever_the_order(tmp_path: Path, name: str) -> None:
    texts = [f"text {i}" for i in range(400)]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, ordered in ((first, texts), (second, texts[::-1])):
        folder.mkdir()
        _write(folder / name, *({"text": text} for text in ordered))
    a, b = read_corpus(first), read_corpus(second)
    parts = [set(_texts(a.split(split))) for split in SPLITS]
    assert parts == [set(_texts(b.split(split))) for split in SPLITS]
    assert sorted(set.union(*parts)) == sorted(texts)
    assert sum(map(len, parts)) == len(texts)
    assert all(8 <= len(part) <= 35 for part in parts[1:])


def test_three_documents_are_the_fewest(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", *({"text": text} for text in "abc"))
    assert [len(read_split(tmp_path, split)) for split in SPLITS] == [1, 1, 1]
    _write(tmp_path / "train.jsonl", *({"text": text} for text in "ab"))
    with pytest.raises(MalformedError, match="too few documents to set some aside"):
        read_corpus(tmp_path)


def test_splits_that_contradict_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "test.jsonl", {"text": "a"})
    with pytest.raises(MalformedError, match="test but no train"):
        read_corpus(tmp_path)
    (tmp_path / "test.txt").write_text("b")
    with pytest.raises(MalformedError, match=r"test\.jsonl and test\.txt are both there"):
        read_corpus(tmp_path)


# ---- Tokenizer -------------------------------------------------------------------------------------------------------

TEXTS = [
    document("the cat sat on the mat, the dog sat on the log " * 20),
    document("naïve café: 12345 + 67890 = 80235\n" * 9),
]


@pytest.fixture(scope="module")
def trained() -> tokenizer.Tokenizer:
    return tokenizer.train(TEXTS, vocab_size=280)


@given(text=st.text())
def test_every_text_round_trips(trained: tokenizer.Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_text_is_never_a_special_token(trained: tokenizer.Tokenizer) -> None:
    assert trained.eos_token_id not in trained.encode("a <|endoftext|> b")
    assert trained.decode([trained.eos_token_id]) == "<|endoftext|>"


def test_the_files_are_the_same_each_time_and_transformers_reads_them(
    tmp_path: Path, trained: tokenizer.Tokenizer
) -> None:
    from transformers import AutoTokenizer

    for name, each in (("a", trained), ("b", tokenizer.train(TEXTS, vocab_size=280))):
        (tmp_path / name).mkdir()
        each.save(tmp_path / name)
    assert [(tmp_path / "a" / f).read_bytes() for f in tokenizer.FILES] == [
        (tmp_path / "b" / f).read_bytes() for f in tokenizer.FILES
    ]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = "the café 17 😀\n\n  end"
    assert theirs(text)["input_ids"] == tokenizer.Tokenizer.load(tmp_path / "a").encode(text)
    assert theirs.eos_token_id == trained.eos_token_id
    assert theirs.decode(theirs(text)["input_ids"]) == text


def test_encoding_many_is_encoding_each(trained: tokenizer.Tokenizer) -> None:
    texts = [d.text for d in TEXTS]
    assert trained.encode_all(texts) == [trained.encode(text) for text in texts]


def test_a_vocabulary_that_the_text_cannot_fill_is_refused() -> None:
    with pytest.raises(MalformedError, match="enough variety for"):
        tokenizer.train([document("aa")], vocab_size=5000)
    with pytest.raises(ValueError, match="257 is the least"):
        tokenizer.train(TEXTS, vocab_size=100)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match=r"no tokenizer\.json"):
        tokenizer.Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MalformedError, match="not a tokenizer"):
        tokenizer.Tokenizer.load(tmp_path)
