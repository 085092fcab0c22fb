"""From a file, a folder or stdin to pages of clean text."""

from actqkv_cli.documents.document import PAGE_SEPARATOR, Document, Page
from actqkv_cli.documents.find import find_documents
from actqkv_cli.documents.read import read_document, read_stream

__all__ = ["PAGE_SEPARATOR", "Document", "Page", "find_documents", "read_document", "read_stream"]
