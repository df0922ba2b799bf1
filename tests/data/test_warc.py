"""Web archives: pages as text, whatever is none counted, and an archive that was cut short said to be so."""

from __future__ import annotations

import gzip

import pytest

from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.data.warc import NOT_FOUND, OTHER_TYPE, read_warc
from nachim.spec import Files, UserError

PAGE = "<html><head><title>t</title></head><body><nav>Menu</nav><main><p>A café stands here.</p></main></body></html>"


def record(kind, url, body, status=None, content="text/html; charset=utf-8"):
    if status:
        body = f"HTTP/1.1 {status} X\r\nContent-Type: {content}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:{url}>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: {'application/http' if status else 'text/plain'}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


RECORDS = [
    record("warcinfo", "info", b"software: test"),
    record("request", "asked", b"GET / HTTP/1.1\r\n\r\n"),
    record("response", "utf8", PAGE.encode(), 200),
    record("response", "latin", PAGE.encode("latin-1"), 200, "text/html; charset=iso-8859-1"),
    record("response", "odd", PAGE.encode(), 200, "text/html; charset=nonsense"),
    record("response", "gone", b"not here", 404),
    record("response", "image", b"\x89PNG", 200, "image/png"),
    record("response", "plain", b"only text", 200, "text/plain"),
    record("conversion", "made", "나침, text that was made".encode()),
]


@pytest.fixture
def archive(tmp_path):
    """Writes records, compressed one by one, as crawls are."""

    def made(records, name="a.warc.gz"):
        path = tmp_path / name
        path.write_bytes(b"".join(gzip.compress(one) if name.endswith("gz") else one for one in records))
        return path

    return made


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pages_and_what_is_none(archive, name):
    report = Report()
    pages = {page.url: page.text.decode() for page in read_warc(archive(RECORDS, name), "a", report)}
    assert list(pages) == ["utf8", "latin", "odd", "plain", "made"]
    assert pages["utf8"] == pages["latin"] == pages["odd"] == "A café stands here."
    assert pages["plain"] == "only text"
    assert {reason: lost.count for reason, lost in report.skipped.items()} == {NOT_FOUND: 1, OTHER_TYPE: 1}
    assert report.documents == 5


def test_an_archive_is_a_corpus(archive):
    source = open_source(Files(path=str(archive(RECORDS))))
    assert list(source.documents(Report()))[-1].decode() == "나침, text that was made"


@pytest.mark.parametrize("lacks", [40, 100])
def test_an_archive_that_was_cut_short_says_so(archive, lacks):
    path = archive(RECORDS)
    path.write_bytes(path.read_bytes()[:-lacks])
    report = Report()
    assert len(list(read_warc(path, "a", report))) == 4
    assert "unreadable file" in report.skipped


def test_what_is_no_archive(archive):
    path = archive([b"this is no archive"])
    with pytest.raises(UserError, match=r"no document in .*unreadable file"):
        list(open_source(Files(path=str(path))).documents(Report()))
