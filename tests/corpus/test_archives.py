"""Compressed files: the whole content, or one line; never a part of it."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from itertools import accumulate

import pytest
import zstandard
from corpora import as_parquet, compressed, prepare, stored_documents, write
from hypothesis import given
from hypothesis import strategies as st

from lathe.corpus import archives
from lathe.corpus.archives import COMPRESSIONS, ArchiveError, open_archive

TEXT = b"".join(b"line %d of a text\n" % i for i in range(30))
NOISE = os.urandom(300)  # is stored as it is, in blocks without compression
TEXT_FRAME = zstandard.compress(TEXT)
EMPTY_FRAME = zstandard.compress(b"")
SKIPPED_FRAME = bytes.fromhex("5a2a4d18 03000000 616263")
A_WINDOW_OF_2_GB = bytes.fromhex("28b52ffd 00 a8 290000") + b"hello"


def content_of(archive: bytes, compression: str) -> bytes:
    return open_archive(io.BytesIO(archive), compression).read()


def zstd(content: bytes, **options) -> bytes:
    """As a stream writes it that does not know how much will come."""
    options = zstandard.ZstdCompressionParameters(**options)
    writer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    return writer.compress(content) + writer.flush()


WHOLE = {
    "gzip": (".gz", gzip.compress),
    "gzip with the name of a file": (".gz", lambda content: gzip_with_name(content)),
    "gzip, not compressed": (".gz", lambda content: gzip.compress(content, 0)),
    "bzip2": (".bz2", bz2.compress),
    "xz": (".xz", lzma.compress),
    "xz without a checksum": (".xz", lambda content: lzma.compress(content, check=lzma.CHECK_NONE)),
    "zstd": (".zst", zstandard.compress),
    "zstd of a stream": (".zst", zstd),
    "zstd with a checksum": (".zst", lambda content: zstd(content, write_checksum=True)),
    "zstd with long windows": (".zst", lambda content: zstd(content, window_log=27)),
}


def gzip_with_name(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile("some.txt", "wb", fileobj=file) as archive:
        archive.write(content)
    return file.getvalue()


@pytest.mark.parametrize("content", [TEXT, NOISE, b"", bytes(140_000)], ids=lambda c: len(c))
@pytest.mark.parametrize("kind", WHOLE)
def test_an_archive_cut_at_any_byte_is_refused(kind, content):
    compression, compress = WHOLE[kind]
    archive = compress(content)
    assert content_of(archive, compression) == content
    step = 1 + len(archive) // 5000
    for length in range(len(archive) - 1, -1, -step):
        with pytest.raises(ArchiveError, match="is damaged or cut short"):
            content_of(archive[:length], compression)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_cut_short_or_empty_is_named(compression, fails):
    archive = compressed(TEXT, compression)
    for length in (0, 1, 20, len(archive) - 1):
        write(f"a.txt{compression}", archive[:length])
        fails(f"in/a.txt{compression} is damaged or cut short")
    write(f"a.txt{compression}", b"no archive at all")
    fails(f"in/a.txt{compression} is damaged or cut short.*leave {compression} out of its name")
    write(f"a.txt{compression}", compressed(TEXT, ".xz" if compression == ".gz" else ".gz"))
    fails(f"in/a.txt{compression} is damaged or cut short.*it is compressed: .* end its name in")
    write(f"a.txt{compression}", archive + b"and more")
    fails(f"in/a.txt{compression} is damaged or cut short")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_large_archive_less_its_last_byte_is_named(compression, fails):
    write(f"a.txt{compression}", compressed(b"hello " * 100_000, compression)[:-1])
    fails(f"in/a.txt{compression} is damaged or cut short")


pieces = st.lists(st.sampled_from([b"", TEXT, NOISE, b"x", b"\0", bytes(300_000)]), max_size=5)


@given(st.sampled_from(COMPRESSIONS), pieces, st.integers(1, 10_000), st.integers(1, 2**20))
def test_all_parts_of_an_archive_are_read(compression, parts, n_read, n_stored):
    """As pigz, pbzip2, pixz, zstd and cat write them; however the file is read."""
    archive = compressed(b"first ", compression)
    for part in parts:
        archive += compressed(part, compression)
    read = open_archive(Trickle(archive, n_stored), compression).read
    content = b"".join(iter(lambda: read(n_read), b""))
    assert content == b"first " + b"".join(parts)


class Trickle(io.BytesIO):
    """Gives at most so many bytes at a time, as files far away do."""

    def __init__(self, content: bytes, most: int):
        super().__init__(content)
        self.most = most

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, self.most))


@pytest.mark.parametrize(
    ("frames", "content"),
    [
        ([A_WINDOW_OF_2_GB], b"hello"),
        ([SKIPPED_FRAME, TEXT_FRAME], TEXT),
        ([TEXT_FRAME, SKIPPED_FRAME, EMPTY_FRAME, TEXT_FRAME], TEXT + TEXT),
        ([EMPTY_FRAME], b""),
        ([SKIPPED_FRAME], b""),
    ],
)
def test_what_zstandard_can_read_is_read(frames, content):
    archive = b"".join(frames)
    assert content_of(archive, ".zst") == content
    whole = {*accumulate(map(len, frames))}
    for length in {*range(len(archive))} - whole:
        with pytest.raises(ArchiveError, match="is damaged or cut short"):
            content_of(archive[:length], ".zst")


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz"])
def test_zeros_that_fill_up_a_file_are_no_content(compression):
    archive = compressed(b"one ", compression)
    padded = archive + bytes(4) + archive + bytes(300_000)
    assert content_of(padded, compression) == b"one one "


def test_a_zstd_archive_that_needs_a_dictionary_says_so(fails):
    dictionary = zstandard.train_dictionary(2000, [b"sample %d of a text" % i for i in range(2000)])
    write("a.txt.zst", zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT))
    fails("in/a.txt.zst cannot be decompressed: .*Dictionary")


def test_archives_that_their_names_do_not_tell(fails):
    for compression in COMPRESSIONS:
        write("a.txt", compressed(TEXT, compression))
        fails(f"in/a.txt is compressed: decompress it, or end its name in {compression}")
        fails(
            f"in/a.txt is compressed: decompress it, or end its name in {compression}",
            "--errors=replace",
        )
    write("a.txt", as_parquet(["a", "b"]))
    fails("in/a.txt is a parquet file: end its name in .parquet, or add --format=parquet")
    write("b.txt", TEXT)
    with tarfile.open("in/a.txt", "w") as archive:
        archive.add("in/b.txt")
    fails("in/a.txt is a tar archive: unpack it and name its folder", inputs=["in/a.txt"])
    with tarfile.open("in/a.tar.gz", "w:gz") as archive:
        archive.add("in/b.txt")
    fails("in/a.tar.gz is a tar archive: unpack it", inputs=["in/a.tar.gz"])
    with zipfile.ZipFile("in/a.txt", "w") as archive:
        archive.write("in/b.txt")
    fails("in/a.txt is a zip archive: unpack it", inputs=["in/a.txt"])


@pytest.mark.parametrize(
    ("begin", "what"),
    [
        (lzma.compress(TEXT, lzma.FORMAT_ALONE), "compressed with lzma"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "compressed with lz4"),
        (b"%PDF-1.7\nonly ASCII\n%%EOF\n", "a PDF: take its text out of it"),
        (b"\x89PNG\r\n\x1a\n", "an image, no text"),
        (b"SQLite format 3\0", "a database of SQLite"),
    ],
)
def test_what_is_no_text_is_not_read_as_text_even_with_bytes_replaced(begin, what, fails):
    write("a.txt", begin)
    fails(f"in/a.txt is {what}", "--errors=replace")


def test_text_that_begins_as_an_archive_might_is_text(tmp_path):
    texts = ("PAR1 is a mark", "PK is not", "BZh91", "Rar! he", "7z", "x" * 257 + "ustar")
    for i, text in enumerate((*texts, "%PDF-", "LZIP", "]\0", "GIF89a", "a\0b\0c")):
        (tmp_path / "a.txt").write_text(text)
        prepare(tmp_path / "a.txt", tmp_path / str(i), val_fraction=0)
        assert stored_documents(tmp_path / str(i)) == [text]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_parquet_is_refused(compression, fails):
    write(f"a.parquet{compression}", compressed(as_parquet(["a", "b"]), compression))
    fails(f"in/a.parquet{compression}: parquet files are read where they lie")


def test_a_small_file_with_a_large_window_gets_no_memory_for_it(monkeypatch):
    """Unless it needs none, as A_WINDOW_OF_2_GB above."""
    monkeypatch.setattr(archives, "SMALL_WINDOW", 2**20)
    text = TEXT * 6000  # 3 MB
    archive = zstd(text, window_log=24)
    assert open_archive(io.BytesIO(archive), ".zst", 2**20).read() == text  # of a larger file
    with pytest.raises(ArchiveError, match="takes more than 1 MB of memory to decompress"):
        open_archive(io.BytesIO(archive), ".zst", len(archive)).read()
    small = zstd(TEXT, window_log=24)
    assert open_archive(io.BytesIO(small), ".zst", len(small)).read() == TEXT
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**24}]
    archive = lzma.compress(text, filters=filters)
    assert open_archive(io.BytesIO(archive), ".xz", 2**20).read() == text
    with pytest.raises(ArchiveError, match="takes more than 1 MB of memory to decompress"):
        open_archive(io.BytesIO(archive), ".xz", len(archive)).read()
