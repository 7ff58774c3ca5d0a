"""Removes passwords from texts that are shown or stored: addresses of images, of servers and of databases."""

from __future__ import annotations

import re

# In an address of the web, the authority ends at the first slash, unless what follows its colon is no port: then the
# slash is part of a password. In other addresses, such as those of databases, it may always be.
# A quote ends an address, so that a JSON text stays one.
_WEB = re.compile(r"""(?<=://)(?:[^/?#\s@"]*@|[^/?#\s@:\["]+:(?![0-9]*(?:[/?#\s"]|$))[^?#\s"]*@)+""")
_OTHER = re.compile(r"""(?<=://)[^\s?#/"][^\s?#"]*@""")
_WITHOUT_USERS = frozenset({"s3", "file", "sqlite"})
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://\S*", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([?&;](?:[a-z0-9_.-]*(?:password|passwd|secret|token|api[_-]?key)|pwd|pass|auth|authorization|access[_-]?key)=)"
    r"""[^&;#\s"\\]+""",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """Return `text` without the user names and passwords in its URIs, and with ``***`` for secrets in their queries.

    Secrets are the values of parameters such as password, token and api_key. A text without any is unchanged.
    """
    if "://" in text:
        text = _URI.sub(_without_userinfo, text)
    return _SECRET_PARAMETER.sub(r"\1***", text) if "=" in text else text


def _without_userinfo(uri: re.Match[str]) -> str:
    scheme = uri[1].lower()
    if scheme in _WITHOUT_USERS:
        return uri[0]
    return (_WEB if scheme in {"http", "https"} else _OTHER).sub("", uri[0], count=1)
