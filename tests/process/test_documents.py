"""The text of PDF and docx files: read in a child process, whatever the file does there."""

from __future__ import annotations

import httpx

from gateway.prompts.document_reader import MAX_TEXT, Text, Unreadable, read
from gateway.transport.documents import MAX_DOCUMENT
from gateway.transport.trusted_hosts import DOCUMENT_TYPES
from tests.support.documents import docx, locked_pdf, paragraph, pdf
from tests.support.running import Gateway

PDF, DOCX = DOCUMENT_TYPES


def post(gateway: Gateway, data: bytes, kind: str = PDF, path: str = "/v1/documents/text") -> httpx.Response:
    return httpx.post(gateway.url + path, content=data, headers={"content-type": kind}, timeout=60)


def test_the_text_of_a_pdf_is_returned(shared_server: Gateway) -> None:
    answer = post(shared_server, pdf(["Tea is hot.", "Water, too."]))
    assert answer.json() == {"object": "document.text", "text": "Tea is hot.\n\nWater, too.", "truncated": False}


def test_paragraphs_and_rows_of_tables_of_a_docx_file_are_lines(shared_server: Gateway) -> None:
    row = "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in ("a", "b"))
    deleted = "<w:del><w:delText>x</w:delText></w:del>"
    body = f"{paragraph('Tea & 茶')}<w:tbl><w:tr>{row}</w:tr></w:tbl>{paragraph('end')}{deleted}"
    answer = post(shared_server, docx(body), DOCX)
    assert answer.json()["text"] == "Tea & 茶\na \tb \t\nend"


def test_a_file_without_usable_text_is_refused_with_the_reason(shared_server: Gateway) -> None:
    for data, reason in (
        (pdf([""]), "no text"),
        (locked_pdf(), "password"),
        (b"%PDF-1.7 and nothing else", "damaged"),
        (pdf(["Tea"])[:300], "damaged"),
        (b"just text", "neither"),
        (docx("")[:-30], ""),
    ):
        answer = post(shared_server, data)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_request"
        assert reason in answer.json()["error"]["message"]


def test_a_file_that_expands_endlessly_harms_only_its_child(shared_server: Gateway) -> None:
    bomb = docx(paragraph("x" * 200_000_000))
    assert len(bomb) < MAX_DOCUMENT
    answer = post(shared_server, bomb, DOCX)
    assert answer.status_code == 400 or answer.json()["truncated"]
    assert post(shared_server, pdf(["Tea"])).status_code == 200


def test_a_large_file_and_another_content_type_are_refused(shared_server: Gateway) -> None:
    assert post(shared_server, bytes(MAX_DOCUMENT + 1)).status_code == 413
    assert post(shared_server, pdf(["Tea"]), "text/plain").status_code == 415
    assert post(shared_server, b"{}", PDF, "/v1/responses").status_code == 415


def test_a_long_text_is_cut_within_a_message_and_between_characters() -> None:
    found = read(docx(paragraph("茶" * MAX_TEXT)))
    assert isinstance(found, Text)
    assert found.is_cut
    assert MAX_TEXT - 3 <= len(found.text.encode()) <= MAX_TEXT
    assert set(found.text) == {"茶"}
    assert isinstance(read(b""), Unreadable)
