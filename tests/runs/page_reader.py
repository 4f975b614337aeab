"""Reads a page as its readers do: headings, text, pictures, and what it would fetch."""

import base64
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "line", "br"}


class Page(HTMLParser):
    """The elements of a page. Raises where a tag is closed that was not open."""

    def __init__(self, path):
        super().__init__()
        self.images, self.headings, self.tags, self.addresses = [], [], [], []
        self.attributes, self._open, self._words = [], [], []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.images.append(values)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, _):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self._words.append(data)
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            self.headings[-1][1] += data

    def pictures(self):
        """The PNG files on the page."""
        prefix = "data:image/png;base64,"
        assert all(image["src"].startswith(prefix) for image in self.images)
        return [base64.b64decode(image["src"][len(prefix) :]) for image in self.images]
