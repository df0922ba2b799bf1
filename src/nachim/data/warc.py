"""Web archives: what a crawler kept of pages (responses, as HTML) or made of them (conversions, as text)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nachim.data.read import LONGEST, TOO_LONG, UNREADABLE, Report, Unfit, first_line, text_of
from nachim.spec.error import UserError

WARC = (".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".warc.wet.gz")
NOT_FOUND = "response that is no page (its status is not 200)"
OTHER_TYPE = "response that is neither HTML nor text"
HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Page:
    """A page: the record's id, where it stood, and its text as UTF-8."""

    id: str
    url: str
    text: bytes


def read_warc(path: Path, name: str, report: Report) -> Iterator[Page]:
    """The pages of an archive; of HTML the main text, without menus and the like. What is no page is counted.

    Raises UserError when the `warc` extra is missing.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError as error:
        raise UserError(f"{path} is a web archive, which needs an extra: pip install 'nachim[warc]'") from error
    number, kinds = 0, WarcRecordType.response | WarcRecordType.conversion
    try:
        with path.open("rb") as file:
            for number, record in enumerate(ArchiveIterator(file, record_types=kinds, parse_http=False), start=1):
                where = f"{name}, record {number}"
                try:
                    text = _text(record)
                except Unfit as unfit:
                    report.skip(str(unfit), where)
                    continue
                report.documents += 1
                report.bytes += len(text)
                yield Page(record.record_id, record.headers.get("WARC-Target-URI") or "", text)
    except (OSError, ValueError) as error:
        report.skip(UNREADABLE, f"{name}, after record {number}: {first_line(error)}")


def _text(record: Any) -> bytes:
    """The text of a record. Raises Unfit when it has none, and OSError when the archive ends within it."""
    told = record.headers.get("Content-Length")
    if told and int(told) > LONGEST:
        raise Unfit(TOO_LONG)
    record.freeze()
    if told is None or record.content_length < int(told):
        raise OSError("the archive ends within a record")
    if record.headers.get("WARC-Type") == "conversion":
        return text_of(record.reader.read())
    record.parse_http()
    if record.http_headers is None or record.http_headers.status_code != 200:
        raise Unfit(NOT_FOUND)
    kind = (record.http_content_type or "").lower()
    if kind not in HTML and not kind.startswith("text/"):
        raise Unfit(OTHER_TYPE)
    text = _decoded(record.reader.read(), record.http_charset)
    if kind in HTML:
        from resiliparse.extract.html2text import extract_plain_text

        text = extract_plain_text(text, main_content=True, alt_texts=False)
    return text_of(text)


def _decoded(raw: bytes, charset: str | None) -> str:
    """A page as text: as UTF-8 if it is, else by the encoding it names, or the one it seems to have."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    try:
        codecs.lookup(charset or "")
    except LookupError:
        charset = None
    return bytes_to_str(raw, charset or detect_encoding(raw))
