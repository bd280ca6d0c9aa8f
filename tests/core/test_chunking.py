import pydoc_data.topics
import re
import statistics
import sys
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from random import Random
from unicodedata import is_normalized

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import chunking
from worker.core.chunking import check_options, content_hash, normalise, split
from worker.core.model import Chunk, ChunkId, ChunkingOptions
from worker.errors import ConfigError

PYTHON = "text/x-python; charset=utf-8"

# Words, borders of all kinds, and characters that change their number when normalised.
PIECES = st.sampled_from(
    [
        *("a", "word", "two words", "One. ", "Two? ", "漢字。", "e\u0301", "\u0958", "\ufb2c"),
        *("\n", "\n\n", "\n \n\n", "\r\n", "\r\n\r\n", "\r", " ", "\t", "\u3000", "👨‍👩‍👧"),
        *("# H\n", "## I\n\n", "```\n", "def f():\n", "    return 1\n", "- item\n", "x" * 30),
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(PIECES, max_size=60).map("".join),
)
OPTIONS = st.builds(
    lambda strategy, size, share: ChunkingOptions(strategy, size, int(size * share)),
    st.sampled_from(chunking.STRATEGIES),
    st.integers(1, 60),
    st.sampled_from([0, 0, 0.2, 0.9]),
)


# What every chunk keeps, whatever the strategy.


@given(TEXTS, OPTIONS)
def test_a_chunk_is_its_span_normalised(text: str, options: ChunkingOptions):
    for chunk in split(text, PYTHON, options):
        assert chunk.content == normalise(text[chunk.start : chunk.end])
        assert chunk.id.hash == blake2b(chunk.content.encode(), digest_size=16).digest()


@given(TEXTS, OPTIONS)
def test_no_chunk_is_blank_or_longer_than_its_size(text: str, options: ChunkingOptions):
    for chunk in split(text, PYTHON, options):
        assert chunk.content.strip()
        assert options.strategy == "none" or len(chunk.content) <= options.size


@given(TEXTS, OPTIONS)
def test_nothing_but_white_space_is_left_out(text: str, options: ChunkingOptions):
    reached = 0
    for chunk in split(text, PYTHON, options):
        assert not text[reached : chunk.start].strip()
        assert chunk.start < chunk.end <= len(text)
        assert chunk.end > reached
        assert options.overlap or chunk.start >= reached
        assert reached - chunk.start <= options.overlap
        reached = chunk.end
    assert not text[reached:].strip()


@given(TEXTS, OPTIONS)
def test_chunks_are_numbered_in_order_and_equal_ones_apart(text: str, options: ChunkingOptions):
    seen: Counter[bytes] = Counter()
    chunks = split(text, PYTHON, options)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert chunk.id.occurrence == seen[chunk.id.hash]
        seen[chunk.id.hash] += 1


@given(st.text())
def test_normalising_twice_changes_nothing(text: str):
    once = normalise(text)
    assert normalise(once) == once
    assert len(once) <= len(text)
    assert "\r" not in once


# Tables: what a strategy does to a text.


def contents(
    text: str, strategy: str, size: int, overlap: int = 0, content_type: str | None = None
):
    options = ChunkingOptions(strategy, size, overlap)
    return [chunk.content for chunk in split(text, content_type, options)]


@pytest.mark.parametrize("strategy", chunking.STRATEGIES)
@pytest.mark.parametrize("text", ["", " ", "\r\n\t\u3000\n"])
def test_a_blank_text_has_no_chunks(text: str, strategy: str):
    assert split(text, None, ChunkingOptions(strategy)) == ()


@pytest.mark.parametrize(
    ("piece", "embedded"),
    [
        (" a \r\n b\rc\n", "a \n b\nc"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("\u212b", "\u00c5"),  # NFC is another character
        ("\u0958", "\u0958"),  # NFC is two characters
        ("e\u0301" * 4096, "\u00e9" * 4096),
        ("a" + "e\u0301" * 4096, "a" + "e\u0301" * 4096),  # longer than NFC is tried on
    ],
)
def test_normalising_a_piece(piece: str, embedded: str):
    assert normalise(piece) == embedded


def test_a_chunk_says_where_it_stands_in_the_text_as_published():
    text = "\r\n Cafe\u0301.\r\n\r\nSame\r\n\r\nSame"
    hashes = [blake2b(part.encode(), digest_size=16).digest() for part in ("Café.", "Same")]
    assert split(text, None, ChunkingOptions("text", 7)) == (
        Chunk(ChunkId(hashes[0], 0), 0, "Café.", 3, 9),
        Chunk(ChunkId(hashes[1], 0), 1, "Same", 13, 17),
        Chunk(ChunkId(hashes[1], 1), 2, "Same", 21, 25),
    )


BORDERS = {
    "two blank lines": ("a\n\nbbbb.\n\n\nc. d\ne\n\nf", 16, ["a\n\nbbbb.", "c. d\ne\n\nf"]),
    "a blank line": ("aaaa aa\n\nbbbb. bb\nbb bbbb", 20, ["aaaa aa", "bbbb. bb\nbb bbbb"]),
    "a blank line with spaces": ("aaaa aa\r\n \r\nbbbb. bb", 14, ["aaaa aa", "bbbb. bb"]),
    "no border where the rest fits": (
        "aaaa. aaaa\nbbbbbbb. bbb bbb", 16, ["aaaa. aaaa", "bbbbbbb. bbb bbb"]
    ),
    "a carriage return": ("aaaa. aaaa\rbbbb. bbbb", 16, ["aaaa. aaaa", "bbbb. bbbb"]),
    "a line": ("aaaa. aaaa\nbbbb. bbbb", 16, ["aaaa. aaaa", "bbbb. bbbb"]),
    "a sentence": ("aaaa aaaa. bbbb bbbb", 16, ["aaaa aaaa.", "bbbb bbbb"]),
    "a sentence in brackets": ("(aaaa aa.) bbbb bbbb", 16, ["(aaaa aa.)", "bbbb bbbb"]),
    "a sentence in Chinese": ("漢字漢字漢字。漢字漢字", 9, ["漢字漢字漢字。", "漢字漢字"]),
    "a word": ("aaaa bbbb cccc", 10, ["aaaa bbbb", "cccc"]),
    "a grapheme": ("👨‍👩‍👧👨‍👩‍👧", 8, ["👨‍👩‍👧", "👨‍👩‍👧"]),
    "a character": ("aaaabbbb", 5, ["aaaab", "bbb"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "size", "chunks"), BORDERS.values(), ids=BORDERS)
def test_a_text_is_cut_at_the_strongest_border_in_reach(
    text: str, size: int, chunks: list[str]
):
    assert contents(text, "text", size) == chunks


@given(TEXTS, OPTIONS)
def test_where_a_text_is_cut_does_not_depend_on_how_its_lines_end(text, options):
    def spans(line_end: str) -> list[tuple[int, int]]:
        changed = text.replace("\r", "").replace("\n", line_end)
        return [(chunk.start, chunk.end) for chunk in split(changed, PYTHON, options)]

    assert spans("\r") == spans("\n")
    assert spans("\r\n") == spans(" \n")


def test_a_line_end_of_two_characters_is_no_blank_line():
    text = "aaaa\r\nbb\r\n\r\ncc\r\ndddd dddd"
    assert contents(text, "text", 10) == ["aaaa", "bb", "cc", "dddd dddd"]


@pytest.mark.parametrize("strategy", ["text", "markdown", "code"])
def test_a_text_that_fits_a_chunk_is_not_cut_to_make_room_for_an_overlap(strategy):
    text = "aaaa. aaaa\n\nbbbb. bbbb"
    assert contents(text, strategy, len(text), 10, PYTHON) == [text]


def test_markdown_is_cut_at_the_highest_heading_in_reach():
    lower = [f"### {letter}\n\nmore" for letter in "CDEFGHIJ"]
    for place in range(4, 8):
        parts = [*lower[:place], "## B\n\nmore", *lower[place:]]
        text = "\n\n".join(parts)
        assert contents(text, "markdown", len(text) - 1) == [
            "\n\n".join(parts[:place]),
            "\n\n".join(parts[place:]),
        ]


def test_fenced_code_is_cut_only_where_it_is_too_long():
    code = "```\nfirst = 1\n\nsecond = 2\n```"
    text = f"Some words:\n{code}\n\nMore words."
    assert contents(text, "markdown", 40) == ["Some words:", code, "More words."]
    assert contents(text, "markdown", 28) == [
        "Some words:",
        "```\nfirst = 1",
        "second = 2\n```\n\nMore words.",
    ]


def test_code_that_fits_is_not_begun_in_the_chunk_before_it_however_short_that_is():
    code = "```\nfirst = 1\n\nsecond = 2\n```"
    text = f"Hi:\n{code}\n\nMore words."
    assert contents(text, "markdown", len(code))[0] == "Hi:"
    assert contents(text, "markdown", len(code) - 1)[0] == "Hi:\n```\nfirst = 1"


def test_markdown_without_a_border_is_cut_along_its_syntax():
    text = "a `b c d e f g h` i j k l m n o p"
    assert contents(text, "markdown", 12) == ["a `b c d e f", "g h`", "i j k l m n", "o p"]
    assert contents(text, "text", 12) == ["a `b c d e f", "g h` i j k", "l m n o p"]


def test_lines_are_cut_before_code():
    text = "some text\nmore text\n```\nx\ny\nz\n```\nand\nmore text and\nmore text"
    chunks = contents(text, "markdown", 40)
    assert any("```\nx\ny\nz\n```" in chunk for chunk in chunks)


def test_a_list_is_cut_before_an_item():
    text = "- one one\n  one one\n- two two\n  two two"
    assert contents(text, "markdown", 30) == ["- one one\n  one one", "- two two\n  two two"]


def test_a_markdown_chunk_carries_its_heading_path():
    text = """Some introduction.

# Guide

Text.

```
# no heading
```

Install
-------

Text text.

### Linux
"""
    options = ChunkingOptions("markdown", 32)
    assert [(chunk.content, chunk.heading) for chunk in split(text, None, options)] == [
        ("Some introduction.", None),
        ("# Guide\n\nText.", "Guide"),
        ("```\n# no heading\n```", "Guide"),
        ("Install\n-------\n\nText text.", "Guide > Install"),
        ("### Linux", "Guide > Install > Linux"),
    ]


def test_only_markdown_has_headings():
    chunks = split("# A\n\ntext", "text/markdown", ChunkingOptions("text"))
    assert [chunk.heading for chunk in chunks] == [None]


def test_a_chunk_that_overlaps_keeps_the_heading_it_is_about():
    chunks = split(
        "# A\n\ntext text text\n\n# B\n\ntext", None, ChunkingOptions("markdown", 29, 9)
    )
    assert [(chunk.content, chunk.heading) for chunk in chunks] == [
        ("# A\n\ntext text text", "A"),
        ("text\n\n# B\n\ntext", "B"),
    ]


def test_an_overlap_repeats_whole_words():
    assert contents("One two.\n\nThree four.", "text", 18, 6) == [
        "One two.",
        "two.\n\nThree four.",
    ]


@pytest.mark.parametrize(
    ("text", "start", "overlap", "begins"),
    [
        pytest.param("aaa bbb ccc", 8, 4, 4, id="a word that fits exactly"),
        pytest.param("aaa bbb ccc", 8, 3, 8, id="no part of a word"),
        pytest.param("aaaaaa bb", 4, 2, 2, id="but of one without an end"),
        pytest.param("a bbbbbbbb", 5, 2, 3, id="no more than asked for"),
        pytest.param("aaa bbb", 4, 4, 0, id="from the beginning of the text"),
    ],
)
def test_an_overlap_begins_at_a_word_where_it_can(text, start, overlap, begins):
    assert chunking._reach_back(text, start, overlap) == begins


def test_fixed_chunks_take_every_size_characters():
    assert contents("abcdefghij", "fixed", 4) == ["abcd", "efgh", "ij"]
    assert contents("abcdefghij", "fixed", 4, 2) == ["abcd", "cdef", "efgh", "ghij"]
    assert contents("abc", "fixed", 4, 3) == ["abc"]


def test_none_makes_one_chunk():
    assert contents(" a\n\n" * 1000, "none", 1) == [("a\n\n a" + "\n\n a" * 998)]


SCRIPT = "function a() {\n  x = 1\n\n  return x\n}\nfunction b() {\n  y()\n}\n"
SOURCE = {
    "text/x-python": "def a():\n    x = 1\n\n    return x\n\ndef b():\n    return 2\n",
    "application/javascript": SCRIPT,
    "application/typescript": SCRIPT,
    "text/tsx": SCRIPT,
    "text/x-go": "func a() {\n\tx = 1\n\n\treturn x\n}\nfunc b() {\n\ty()\n}\n",
    "text/x-java-source": "class A {\n  int x;\n\n  int y;\n}\nclass B {\n  int z;\n}\n",
}


@pytest.mark.parametrize("content_type", SOURCE)
def test_code_is_cut_along_the_syntax_tree(content_type: str):
    text = SOURCE[content_type]
    size = len(text) - 15
    chunks = contents(text, "code", size, content_type=content_type)
    border = re.compile(r"^(?:def|func|function|class) [bB]\b", re.MULTILINE)
    second = border.search(text).start()
    assert chunks == [text[:second].strip(), text[second:].strip()]
    assert chunks != contents(text, "text", size)


DEFINITIONS = [f"def {name}():\n    return {ord(name)}" for name in "ABC"]


def test_all_pieces_of_a_section_of_code_stand_where_they_stood():
    text = "\n\n".join(DEFINITIONS)
    assert contents(text, "code", 30, content_type=PYTHON) == DEFINITIONS
    assert contents("x = 1\n", "code", 30, content_type=PYTHON) == ["x = 1"]


def test_code_overlaps_as_texts_do():
    first, *others = DEFINITIONS
    assert contents("\n\n".join(DEFINITIONS), "code", 30, 8, PYTHON) == [
        first,
        *(f"{ord(name)}\n\n{other}" for name, other in zip("AB", others, strict=True)),
    ]


def test_sections_of_code_end_before_what_is_not_indented():
    body = "".join(f"\n\n {name} = 1" for name in "uvwxyz")
    code = f"def a():{body}\n  \ndef b():{body}"
    assert chunking._code_border(code, 1, len(code)) == code.index("def b")
    assert chunking._text_border(code, 1, len(code)) != code.index("def b")


@pytest.mark.parametrize("content_type", [None, "", "python", "text/x-cobol", "text/plain"])
def test_code_in_an_unknown_language_is_split_as_text(content_type: str | None):
    text = SOURCE["text/x-python"]
    assert contents(text, "code", 40, content_type=content_type) == contents(text, "text", 40)


@pytest.fixture
def no_grammars(monkeypatch):
    """An installation without the extra `code`."""
    for module, _ in chunking._GRAMMARS.values():
        monkeypatch.setitem(sys.modules, module, None)
    chunking._grammar.cache_clear()
    yield
    chunking._grammar.cache_clear()


def test_code_without_its_grammar_is_split_as_text(no_grammars):
    text, options = SOURCE["text/x-python"], ChunkingOptions("code", 40)
    assert contents(text, "code", 40, content_type=PYTHON) == contents(text, "text", 40)
    assert content_hash(text, PYTHON, options) == content_hash(text, None, options)


def test_an_unknown_strategy_splits_nothing():
    with pytest.raises(ConfigError, match="'semantic'"):
        split("text", None, ChunkingOptions("semantic"))


@pytest.mark.parametrize(
    ("strategy", "content_type", "known_by"),
    [
        ("text", None, "81c66af88684522baa220db6490d8d0e"),
        ("text", PYTHON, "81c66af88684522baa220db6490d8d0e"),
        ("code", None, "c5c063f27278a9521e8d606d02f743d1"),
        ("code", PYTHON, "2d75543ef348753728056cd1fa318ab4"),
    ],
)
def test_a_stored_text_is_known_again_by_every_version_of_the_worker(
    strategy, content_type, known_by
):
    """Another hash would have every document of a table bought anew."""
    digest = content_hash("text", content_type, ChunkingOptions(strategy))
    assert digest == bytes.fromhex(known_by)


# Options.


@pytest.mark.parametrize(
    "options",
    [
        ChunkingOptions(),
        ChunkingOptions("markdown", 8191),
        ChunkingOptions("fixed", 1, 0),
        ChunkingOptions("code", 100, 99),
        ChunkingOptions("none", 0, 5),
    ],
)
def test_options_that_work_are_accepted(options: ChunkingOptions):
    check_options(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ChunkingOptions("markdwon"), "did you mean 'markdown'"),
        (ChunkingOptions("nothing"), "did you mean 'none'"),
        (ChunkingOptions("xyz"), "one of text, markdown, code, fixed, none"),
        (ChunkingOptions(size=0), "at least 1"),
        (ChunkingOptions(size=8192), "8191 characters at most"),
        (ChunkingOptions(size=10, overlap=10), "below the chunk size 10"),
        (ChunkingOptions(size=10, overlap=-1), "at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: ChunkingOptions, message: str):
    with pytest.raises(ConfigError, match=message):
        check_options(options)


def test_the_limit_is_the_model_s():
    with pytest.raises(ConfigError, match="512 bytes"):
        check_options(ChunkingOptions(size=513), max_chunk_bytes=512)
    check_options(ChunkingOptions(size=512), max_chunk_bytes=512)


# The hash of a document.

DOCUMENT = ("1\0a", PYTHON, ChunkingOptions("code", 1, 0))


@pytest.mark.parametrize(
    "other",
    [
        ("1\0b", PYTHON, ChunkingOptions("code", 1, 0)),
        ("1\0a", "text/x-go", ChunkingOptions("code", 1, 0)),
        ("1\0a", None, ChunkingOptions("code", 1, 0)),
        ("1\0a", PYTHON, ChunkingOptions("text", 1, 0)),
        ("1\0a", PYTHON, ChunkingOptions("code", 2, 0)),
        ("1\0a", PYTHON, ChunkingOptions("code", 1, 1)),
        ("a", PYTHON, ChunkingOptions("code", 1, 1)),
    ],
)
def test_whatever_determines_the_chunks_is_in_the_hash(other):
    assert content_hash(*DOCUMENT) != content_hash(*other)
    assert len(content_hash(*DOCUMENT)) == 16


def test_the_fields_of_the_hash_do_not_run_together():
    one, other = ChunkingOptions("text", 1112, 1), ChunkingOptions("text", 111, 21)
    assert content_hash("a", None, one) != content_hash("a", None, other)


def test_a_content_type_that_changes_nothing_is_not_in_the_hash():
    options = ChunkingOptions("text")
    assert content_hash("a", "text/markdown", options) == content_hash("a", None, options)
    code = ChunkingOptions("code")
    assert content_hash("a", PYTHON, code) == content_hash("a", "application/python", code)


@given(TEXTS, TEXTS, OPTIONS)
def test_hashes_are_equal_only_for_equal_texts(one: str, other: str, options: ChunkingOptions):
    equal = content_hash(one, None, options) == content_hash(other, None, options)
    assert equal == (one == other)


def test_canonically_equal_texts_embed_the_same():
    text = "Ünïcödé wörds, twice. " * 40
    options = ChunkingOptions("text", 2000)
    (composed,) = split(text, None, options)
    (decomposed,) = split(re.sub("ö", "o\u0308", text), None, options)
    assert composed.id == decomposed.id
    assert is_normalized("NFC", decomposed.content)


# What edits leave alone, and what no text can make slow.


@given(
    st.lists(PIECES, max_size=20).map("".join),
    st.lists(PIECES, max_size=20).map("".join),
    st.lists(PIECES, min_size=20, max_size=150).map("".join),
    st.sampled_from(["text", "markdown"]),
)
def test_texts_that_once_cut_alike_cut_alike_from_there_on(one, other, tail, strategy):
    """Only what is near a border decides about it, so what is equal behind it stays equal."""
    # A fence that opens in the one head and not in the other reaches far.
    one, other = one.replace("```", "") + "\n\n", other.replace("```", "") + "\n\n"
    options = ChunkingOptions(strategy, 40)
    ends = [
        {chunk.end - len(head) for chunk in split(head + tail, None, options)}
        for head in (one, other)
    ]
    common = {end for end in ends[0] & ends[1] if end >= 16}
    if common:
        first = min(common)
        assert {end for end in ends[0] if end >= first} == {
            end for end in ends[1] if end >= first
        }


@lru_cache
def corpus(shape: str) -> str:
    """The standard library's own documentation, 0.4 MB, in the shapes that texts come in."""
    topics = pydoc_data.topics.topics
    text = "\n\n\n".join(topics[name] for name in sorted(topics))
    if shape == "published":
        return text
    text = re.sub(r"\n[*=~^-]{4,}\n", "\n", text)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    if shape == "markdown":
        return "\n\n".join(f"## {part}" if len(part) < 50 else part for part in paragraphs)
    return {"paragraphs": "\n\n", "one paragraph": " "}[shape].join(paragraphs)


def edited(text: str, random: Random) -> str:
    """Replace one sentence by one of another length."""
    ends = [match.end() for match in re.finditer(r"[.!?]\s+", text)]
    which = random.randrange(len(ends) - 1)
    start, end = ends[which], ends[which + 1]
    words = text[start:end].split()
    shorter = " ".join(words[: len(words) // 2]) + ". "
    longer = "This sentence says the same with rather more words: " + text[start:end]
    return text[:start] + random.choice([shorter, longer]) + text[end:]


def to_embed(before: tuple[Chunk, ...], after: tuple[Chunk, ...]) -> int:
    return len({chunk.id for chunk in after} - {chunk.id for chunk in before})


@pytest.mark.parametrize(
    ("strategy", "shape", "overlap"),
    [
        ("text", "published", 0),
        ("text", "paragraphs", 0),
        ("text", "paragraphs", 120),
        ("text", "one paragraph", 0),
        ("markdown", "markdown", 0),
        ("markdown", "paragraphs", 0),
    ],
)
def test_an_edit_of_a_sentence_changes_few_chunks(strategy: str, shape: str, overlap: int):
    """
    One chunk at the median, four at most in 95 of 100 edits, of documents of 20 chunks.

    Packing from the start, as the library does, is below that only where texts have borders
    of many kinds: it moves every border between the edit and the next heading.
    """
    random, options = Random(7), ChunkingOptions(strategy, 1200, overlap)
    changed, sizes = [], []
    for _ in range(200):
        start = random.randrange(len(corpus(shape)) - 17_000)
        text = corpus(shape)[start : start + 17_000]
        before = split(text, None, options)
        changed.append(to_embed(before, split(edited(text, random), None, options)))
        sizes += [len(chunk.content) for chunk in before]
    assert statistics.median(changed) == 1
    assert statistics.quantiles(changed, n=20)[-1] <= 4
    # ... and that is not bought with small chunks.
    assert 0.65 * 1200 <= statistics.mean(sizes) <= 1200


def test_a_new_first_paragraph_leaves_the_other_chunks_alone():
    text = corpus("paragraphs")[:20_000]
    options = ChunkingOptions()
    before = split(text, None, options)
    after = split("Written later than all that follows here.\n\n" + text, None, options)
    assert len(before) > 20
    assert to_embed(before, after) <= 4


# Linear time: the library's own time is quadratic in a long word, and its parser's in what
# is no code, so neither may see more than a window.


class Recorder:
    """A splitter that notes how much it was given."""

    def __init__(self, splitter, seen: list[int]) -> None:
        self.splitter, self.seen = splitter, seen

    def chunks(self, text: str) -> list[str]:
        self.seen.append(len(text))
        return self.splitter.chunks(text)


@pytest.mark.parametrize(
    "text", ["x" * 20_000, "|a" * 10_000, "a " * 10_000, "|1|2|\n" * 3_000]
)
@pytest.mark.parametrize(
    ("strategy", "limit"), [("text", 101), ("markdown", 101), ("code", 301)]
)
def test_the_library_sees_a_window_of_any_text(monkeypatch, strategy, limit, text):
    seen: list[int] = []
    for name in ("_splitter", "_code_splitter"):
        original = getattr(chunking, name)
        recorder = lru_cache(lambda *args, original=original: Recorder(original(*args), seen))
        monkeypatch.setattr(chunking, name, recorder)
    assert split(text, PYTHON, ChunkingOptions(strategy, 100))
    assert max(seen, default=0) <= limit
    assert sum(seen) <= 20 * len(text)
