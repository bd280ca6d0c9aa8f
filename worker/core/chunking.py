"""
How the text of a document becomes chunks.

Owns the borders between chunks, what exactly is embedded, and the hashes by which an unchanged
chunk is known again. The strategy is the collection's; a document's content type only names
the programming language for the strategy `code` (a Markdown text in a collection of `text` is
text). `text` and `markdown` cut at content-defined borders, as `_cut` tells, so that an edit
changes the chunks it touches and few more; what has no such border, and code, is split by
semantic-text-splitter, which releases the GIL. Never counts tokens: that costs more than all
the rest.

Invariants: no chunk is longer than `size` characters (but for `none`), none is blank, spans
are in order, and `normalise(text[chunk.start:chunk.end]) == chunk.content`; equal arguments
give equal chunks in every process that has the same grammars; the time is linear in the text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache, partial
from hashlib import blake2b
from importlib import import_module
from unicodedata import normalize
from zlib import crc32

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

from worker.core import outline
from worker.core.model import Chunk, ChunkId, ChunkingOptions
from worker.errors import ConfigError

STRATEGIES = ("text", "markdown", "code", "fixed", "none")

_Span = tuple[int, int]
_Border = Callable[[str, int, int], int | None]

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n(\s*\n)?\s*")  # the group: more than one blank line
_LINE = re.compile(r"\n\s*")
_LIST_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-+*]|\d{1,9}[.)])\s)")
_SENTENCE = re.compile(r"""[.!?…]["')\]»”’]*\s+|[。！？][」』）]*""")  # noqa: RUF001 (meant)
_SPACE = re.compile(r"\s+")

# Canonical ordering is quadratic in a run of combining marks: 60 ms at this length.
_MAX_NFC_CHARACTERS = 8192

_SURROUNDINGS_CHARACTERS = 16

# The time of tree-sitter's error recovery is quadratic in what is no code at all: 30 ms here
# for a section of the default size.
_CODE_SECTION_CHUNKS = 3

_GRAMMARS = {
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "python": ("tree_sitter_python", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
# What stands behind the slash, without `x-`: text/x-python, application/javascript ...
_LANGUAGES = {
    **{name: name for name in _GRAMMARS},
    "ecmascript": "javascript",
    "golang": "go",
    "java-source": "java",
    "jsx": "javascript",
    "python3": "python",
    "python-code": "python",
}


def check_options(options: ChunkingOptions, max_chunk_bytes: int = 8191) -> None:
    """
    Refuse options that cannot work with a model of this limit.

    A chunk of n bytes is at most n byte-level BPE tokens. `size` counts characters, so a size
    up to a quarter of the limit is safe in every script, and one up to the limit in ASCII;
    beyond it even plain English could be refused, and that is what is checked. (`none` has no
    size: there the provider says what is too long.)

    Raises:
        ConfigError: with the option and the reason.
    """
    if options.strategy not in STRATEGIES:
        close = get_close_matches(options.strategy, STRATEGIES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(STRATEGIES)}"
        raise ConfigError(f"unknown chunking strategy {options.strategy!r}: {hint}")
    if options.strategy == "none":
        return
    if options.size < 1:
        raise ConfigError(f"chunk size {options.size} must be at least 1 character")
    if options.size > max_chunk_bytes:
        raise ConfigError(
            f"chunk size {options.size} exceeds what the model takes: a chunk may have "
            f"{max_chunk_bytes} bytes, so {max_chunk_bytes} characters at most"
        )
    if not 0 <= options.overlap < options.size:
        raise ConfigError(
            f"chunk overlap {options.overlap} must be at least 0 and below the chunk size "
            f"{options.size}"
        )


def content_hash(text: str, content_type: str | None, options: ChunkingOptions) -> bytes:
    """Return 16 bytes that are equal where `split` gives equal chunks of an equal text."""
    language = _language(content_type) if options.strategy == "code" else None
    # No field before the text can hold a NUL, so no two inputs are framed alike.
    frame = f"{options.strategy}\0{options.size}\0{options.overlap}\0{language or ''}\0{text}"
    return blake2b(frame.encode(), digest_size=16).digest()


def split(text: str, content_type: str | None, options: ChunkingOptions) -> tuple[Chunk, ...]:
    r"""
    Split a text as the collection says; a blank text has no chunks.

        >>> text = "One paragraph.\n\nAnother one.\n"
        >>> for chunk in split(text, "text/plain", ChunkingOptions("text", size=20)):
        ...     print(chunk.start, chunk.end, chunk.content)
        0 14 One paragraph.
        16 28 Another one.

    `code` in a language that is unknown, or whose grammar is not installed (the extra `code`),
    is split as `text`.

    Raises:
        ConfigError: the strategy is unknown (`check_options` says so earlier).
    """
    # The same text with \n for every line end and every character where it was.
    view = text.replace("\r\n", " \n").replace("\r", "\n") if "\r" in text else text
    size, room = options.size, options.size - options.overlap
    if options.strategy == "markdown":
        found = outline.read(view)
        border = partial(_markdown_border, found, room)
        cores = _cores(view, size, room, border, _splitter("markdown", room))
        return _chunks(text, cores, options.overlap, found)
    if options.strategy == "code" and (language := _language(content_type)):
        return _chunks(text, _code(view, size, room, language), options.overlap)
    match options.strategy:
        case "text" | "code":
            cores = _cores(view, size, room, _text_border, _splitter("text", room))
            return _chunks(text, cores, options.overlap)
        case "fixed":
            last = max(len(text) - options.overlap, 1)
            return _chunks(text, ((at, at + size) for at in range(0, last, room)))
        case "none":
            return _chunks(text, ((0, len(text)),))
    raise ConfigError(f"unknown chunking strategy {options.strategy!r}")


def normalise(piece: str) -> str:
    """
    Return what is embedded of a piece of text.

    Line ends become line feeds, surrounding white space goes, and the rest becomes NFC, since
    byte-level tokenisers see different tokens in what looks the same; but not where NFC is
    longer (U+0958 and its like), as no chunk may outgrow its size, nor beyond 8,192
    characters.
    """
    if "\r" in piece:
        piece = piece.replace("\r\n", "\n").replace("\r", "\n")
    piece = piece.strip()
    if piece.isascii() or len(piece) > _MAX_NFC_CHARACTERS:
        return piece
    composed = normalize("NFC", piece)
    return composed if len(composed) <= len(piece) else piece


def _chunks(
    text: str, cores: Iterable[_Span], overlap: int = 0, found: outline.Outline | None = None
) -> tuple[Chunk, ...]:
    """Make the chunks of these spans, each reaching back into the one before by `overlap`."""
    spans = [span for core in cores if (span := _trimmed(text, *core))]
    headings = found.paths(start for start, _ in spans) if found else iter(())
    seen: dict[bytes, int] = {}
    chunks = []
    for seq, (core, end) in enumerate(spans):
        start = _reach_back(text, core, overlap) if overlap else core
        content = normalise(text[start:end])
        digest = blake2b(content.encode(), digest_size=16).digest()
        occurrence = seen[digest] = seen.get(digest, -1) + 1
        chunk_id = ChunkId(digest, occurrence)
        chunks.append(Chunk(chunk_id, seq, content, start, end, next(headings, None)))
    return tuple(chunks)


def _trimmed(text: str, start: int, end: int) -> _Span | None:
    """Return the span without surrounding white space, None where nothing is left."""
    piece = text[start:end]
    kept = piece.lstrip()
    if not kept:
        return None
    start += len(piece) - len(kept)
    return start, start + len(kept.rstrip())


def _reach_back(text: str, start: int, overlap: int) -> int:
    """Return where a chunk begins that repeats whole words, at most `overlap` characters."""
    earliest = max(0, start - overlap)
    space = _SPACE.search(text, earliest - 1, start) if earliest else None
    return space.end() if space else earliest


def _cores(
    view: str, size: int, room: int, border: _Border, splitter: TextSplitter | MarkdownSplitter
) -> Iterable[_Span]:
    """Cut a text into spans of at most `room`; one that fits a chunk is not cut."""
    if len(view) <= size:
        return ((0, len(view)),)
    # From 0.4: chunks are 0.7 of the size on average, and a border that an edit moves is
    # found again soon (figures: tests/core/test_chunking.py).
    return _cut(view, room * 2 // 5, room, border, splitter)


def _cut(
    view: str,
    least: int,
    most: int,
    border: _Border,
    splitter: TextSplitter | MarkdownSplitter,
) -> Iterator[_Span]:
    """
    Cut a text into spans of `least` to `most` characters whose borders survive edits.

    Packing from the start moves every border behind an edit. Here a span ends at the border
    of its window that ranks best, and the rank of a border depends on the text around it
    alone: two versions of a text that once cut at the same place cut alike from there on, and
    since they rank what both windows see alike, they soon do. This is content-defined
    chunking with a minimum and a maximum (Muthitacharoen et al., LBFS, 2001) that takes the
    local extreme of a window (Bjorner et al., the local maximum method, 2010), on semantic
    borders instead of bytes. Where a window has no border, the splitter says how far its
    largest unit reaches.
    """
    start, length = 0, len(view)
    while length - start > most:
        end = border(view, start + least, start + most)
        if end is None:
            end = start + len(splitter.chunks(view[start : start + most + 1])[0])
        yield start, end
        start = end
    yield start, length


def _text_border(view: str, first: int, last: int) -> int | None:
    """Return the best end of a paragraph, else of a line, else of a sentence."""
    for pattern in (_PARAGRAPH, _LINE, _SENTENCE):
        if ends := _ends(pattern, view, first, last):
            return _best(view, ends)
    return None


def _markdown_border(
    found: outline.Outline, room: int, view: str, first: int, last: int
) -> int | None:
    """
    Return the best heading, else the best border outside of fenced code, else inside.

    Code that would fit a chunk of its own, but reaches beyond the window, is not cut: the
    chunk ends before it, however short it is.
    """
    if headings := found.between(first, last):
        highest = min(heading.level for heading in headings)
        return _best(view, [one.start for one in headings if one.level == highest])
    for pattern in (_PARAGRAPH, _LIST_ITEM, _LINE):
        ends = _ends(pattern, view, first, last)
        if outside := [end for end in ends if not found.fence_around(end)]:
            return _best(view, outside)
    code = found.fence_around(last)
    if code and code[1] - code[0] <= room:
        return code[0]
    return _text_border(view, first, last)


def _code_border(view: str, first: int, last: int) -> int | None:
    """Return the best beginning of something that is not indented, else as in a text."""
    ends = _ends(_PARAGRAPH, view, first, last)
    if definitions := [end for end in ends if view[end - 1] == "\n"]:
        return _best(view, definitions)
    return _text_border(view, first, last)


def _ends(pattern: re.Pattern[str], view: str, first: int, last: int) -> list[int]:
    """Return where the matches end; only the emphatic ones (with a group) if there are any."""
    matches = [*pattern.finditer(view, first, last)]
    return [one.end() for one in matches if one.lastindex] or [one.end() for one in matches]


def _best(view: str, ends: list[int]) -> int:
    """
    Return the position whose surroundings have the smallest hash.

    What is further away cannot move a border; both sides count, since the lines of tables and
    logs begin or end alike.
    """
    near = _SURROUNDINGS_CHARACTERS
    return min(ends, key=lambda at: crc32(view[max(0, at - near) : at + near].encode()))


def _code(view: str, size: int, room: int, language: str) -> Iterator[_Span]:
    """Cut source code into sections of some definitions, and these along the syntax tree."""
    if len(view) <= size:
        yield 0, len(view)
        return
    splitter = _code_splitter(language, room)
    most = room * _CODE_SECTION_CHUNKS
    for start, end in _cut(view, room, most, _code_border, _splitter("text", most)):
        section, position = view[start:end], start
        for piece in splitter.chunks(section) if len(section) > room else (section,):
            yield position, position + len(piece)
            position += len(piece)


@lru_cache
def _splitter(strategy: str, size: int) -> TextSplitter | MarkdownSplitter:
    """Return the library's splitter; its pieces join to the text, so lengths place them."""
    return (MarkdownSplitter if strategy == "markdown" else TextSplitter)(size, trim=False)


@lru_cache
def _code_splitter(language: str, size: int) -> CodeSplitter:
    return CodeSplitter(_grammar(language), size, trim=False)


@lru_cache
def _grammar(language: str) -> object | None:
    """Return a tree-sitter grammar, None where its wheel is not installed."""
    module, function = _GRAMMARS[language]
    try:
        grammar: object = getattr(import_module(module), function)()
    except ImportError:
        return None
    return grammar


def _language(content_type: str | None) -> str | None:
    """Return the language that a media type names, None where we cannot parse it."""
    subtype = (content_type or "").partition(";")[0].strip().lower().partition("/")[2]
    language = _LANGUAGES.get(subtype.removeprefix("x-"))
    return language if language and _grammar(language) else None
