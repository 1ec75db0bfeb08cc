"""What storage can refuse, told apart by type, errno or error code, in one line a person can act on."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from urllib.parse import quote

HIDDEN = "***"
_ALWAYS_SECRET = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
_SECRET_SUFFIXES = (
    "SECRET", "SECRETS", "TOKEN", "TOKENS", "PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "_PASS", "_PW", "_PWD",
    "KEY", "KEYS", "CONNECTION_STRING", "_DSN", "CREDENTIAL", "CREDENTIALS", "_SAS", "_SIG", "SIGNATURE", "_AUTH",
    "AUTHORIZATION", "BEARER", "JWT", "COOKIE",
)  # fmt: skip
_SHORTEST_SECRET = 8
# A password may hold a slash, as AWS's do; a port holds digits alone.
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#\s]*|[^/?#\s@:]*:(?!\d+/)[^?#\s@]*)@")
# Only http's "?" always opens a query; elsewhere one without a "=" is a glob's.
_QUERY = re.compile(
    r"(https?://[^\s?'\"]*)\?[^\s'\"]+|([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"=]*=[^\s'\"]*", re.IGNORECASE
)
# What stores, signed URLs and connection strings call a secret, wherever it stands; and what an HTTP header says.
_NAMED = re.compile(
    r"\b((?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AccountKey|SharedAccess(?:Key|"
    r"Signature)|AWSAccessKeyId|aws_secret_access_key|aws_session_token|access_token|api[_-]?key|password|passwd|secret|sig)"
    r"\s*=\s*)[^\s&;,'\"]+|\b(Authorization\W+(?:\w+\s+)?|Bearer\s+(?=\S{16}))[A-Za-z0-9._~+/=-]{8,}",
    re.IGNORECASE,
)
_MESSAGE_LENGTH = 300


class Problem(StrEnum):
    """What kind of trouble a StorageError is."""

    MISSING = "missing"
    NO_BUCKET = "no_bucket"
    CREDENTIALS = "credentials"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    FULL = "full"
    UNSUPPORTED = "unsupported"
    OTHER = "other"


class StorageError(Exception):
    """A location cannot be used: one line that names the (redacted) URL and what to do; `problem` says which kind."""

    def __init__(self, url: str, reason: str, problem: Problem = Problem.OTHER) -> None:
        super().__init__(f"{redact_url(url)}: {reason}")
        self.url = redact_url(url)
        self.reason = reason
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[str, str, Problem]]:
        return type(self), (self.url, self.reason, self.problem)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns whatever fsspec, botocore or the operating system raises about `url` into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise explain(error, url) from error


def explain(error: BaseException, url: str) -> StorageError:
    """The StorageError that says what `error` means for `url`."""
    chain = list(_chain(error))
    for cause in chain:
        if (code := error_code(cause)) and code in _CODES:
            problem, reason = _CODES[code]
            return StorageError(url, reason, problem)
    for cause in chain:
        for name in (entry.__name__ for entry in type(cause).__mro__):
            if name in _TYPES:
                problem, reason = _TYPES[name]
                return StorageError(url, _with_endpoint(reason, problem), problem)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            problem, reason = _ERRNOS[cause.errno]
            return StorageError(url, _with_endpoint(reason, problem), problem)
    for cause in chain:
        for kind, problem, reason in _BUILTINS:
            if isinstance(cause, kind):
                return StorageError(url, _with_endpoint(reason, problem), problem)
    if isinstance(error, ImportError):
        return StorageError(url, f"this kind of URL needs a package: {_line(error)}", Problem.UNSUPPORTED)
    return StorageError(url, _line(error) or type(error).__name__)


@contextmanager
def full_scratch(folder: str) -> Iterator[None]:
    """Turns a full disk, met while temporary files are written to `folder`, into a StorageError; no other error."""
    try:
        yield
    except OSError as error:
        problem, reason = _ERRNOS.get(error.errno or 0, (Problem.OTHER, ""))
        if problem is not Problem.FULL:
            raise
        hint = "; TMPDIR names another folder for temporary files"
        raise StorageError(folder, f"{reason}{hint}", problem) from error


def nothing_here(url: str) -> StorageError:
    """For a path without a file or folder."""
    return StorageError(url, _MISSING[1], _MISSING[0])


def no_bucket(url: str) -> StorageError:
    """For a path in a bucket that is not there."""
    return StorageError(url, _NO_BUCKET[1], _NO_BUCKET[0])


def error_code(error: BaseException) -> str | None:
    """The store's own error code ("NoSuchBucket", "403"), or None when `error` carries none."""
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return None
    details = response.get("Error")
    return str(details["Code"]) if isinstance(details, Mapping) and details.get("Code") else None


def codes(error: BaseException) -> set[str]:
    """Every store error code in `error` and what caused it."""
    return {code for cause in _chain(error) if (code := error_code(cause))}


def redact_url(url: str) -> str:
    """The URL without user, password and query string."""
    return _QUERY.sub(rf"\1\2?{HIDDEN}", _USERINFO.sub(rf"\1{HIDDEN}@", url))


def redact(text: str) -> str:
    """The text without credentials.

    Hidden are URLs' users and query strings, what stands behind the names that stores give to a secret, and the values
    of environment variables whose name ends as a secret's does (`_TOKEN`, `_KEY`, `PASSWORD`, …; a number may follow).
    """
    text = _NAMED.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}", redact_url(text))
    for value in sorted(_secrets(os.environ), key=len, reverse=True):
        for spelled in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
            text = text.replace(spelled, HIDDEN)
    return text


def _secrets(environment: Mapping[str, str]) -> set[str]:
    return {
        value
        for name, value in environment.items()
        if (name in _ALWAYS_SECRET and value)
        or (name.upper().rstrip("_0123456789").endswith(_SECRET_SUFFIXES) and len(value) >= _SHORTEST_SECRET)
    }


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    text = " ".join(redact(str(error)).split())
    return text if len(text) <= _MESSAGE_LENGTH else text[:_MESSAGE_LENGTH] + "…"


def _with_endpoint(reason: str, problem: Problem) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if problem is not Problem.UNREACHABLE or not endpoint:
        return reason
    return f"{reason} (endpoint {redact_url(endpoint)})"


_MISSING = (Problem.MISSING, "there is nothing at this path; check how it is spelled")
_NO_BUCKET = (Problem.NO_BUCKET, "this bucket does not exist; check its name and the endpoint, or create it")
_FORBIDDEN = (Problem.FORBIDDEN, "access denied; these credentials may not do this here")
_EXPIRED = (Problem.CREDENTIALS, "the session token has expired or is not valid; get new credentials")
_REGION = (Problem.OTHER, "the bucket is in another region; set AWS_REGION (or AWS_ENDPOINT_URL) to where it is")
_BUSY = (Problem.BUSY, "the store is overloaded or failing; what is done is kept, run the same command again later")
_NO_KEYS = (
    Problem.CREDENTIALS,
    "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role",
)
_UNREACHABLE = (Problem.UNREACHABLE, "the store cannot be reached; check AWS_ENDPOINT_URL and the network")
_DENIED = (Problem.FORBIDDEN, "permission denied; check who owns it and its mode")
_FULL = (Problem.FULL, "no space left on the device; free some and run the same command again")
_STORE_FULL = (Problem.FULL, "the store has no space left; free some there and run the same command again")
_QUOTA = (Problem.FULL, "the disk quota is used up; free some space or raise it, and run the same command again")
_TOO_LARGE = (Problem.FULL, "the file grows beyond what is allowed here; look at ulimit -f and the file system's limit")

_CODES: dict[str, tuple[Problem, str]] = {
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _MISSING,
    "404": _MISSING,
    "SignatureDoesNotMatch": (Problem.CREDENTIALS, "the store refuses the secret key; check AWS_SECRET_ACCESS_KEY"),
    "InvalidAccessKeyId": (Problem.CREDENTIALS, "the store does not know the access key; check AWS_ACCESS_KEY_ID"),
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": (Problem.CREDENTIALS, "this machine's clock differs too much from the store's; set it"),
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidBucketName": (Problem.OTHER, "this is not a valid bucket name"),
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "RequestTimeoutException": _BUSY,
    "Throttling": _BUSY,
    "ThrottlingException": _BUSY,
    "ThrottledException": _BUSY,
    "RequestThrottled": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "TooManyRequests": _BUSY,
    "TooManyRequestsException": _BUSY,
    "BandwidthLimitExceeded": _BUSY,
    # The body was damaged, or ended early, on its way to the store.
    "IncompleteBody": _BUSY,
    "BadDigest": _BUSY,
    "XAmzContentSHA256Mismatch": _BUSY,
    "408": _BUSY,
    "429": _BUSY,
    "500": _BUSY,
    "502": _BUSY,
    "503": _BUSY,
    "504": _BUSY,
    "XMinioStorageFull": (Problem.FULL, "the store is full; free some space there and run the same command again"),
    "QuotaExceeded": (
        Problem.FULL,
        "the store's quota is used up; free some space there and run the same command again",
    ),
}
# By name, so that botocore is not imported for a job on local files.
_TYPES: dict[str, tuple[Problem, str]] = {
    "NoCredentialsError": _NO_KEYS,
    "PartialCredentialsError": _NO_KEYS,
    "CredentialRetrievalError": _NO_KEYS,
    "TokenRetrievalError": _NO_KEYS,
    "SSLError": (Problem.UNREACHABLE, "the store's TLS certificate is not accepted; check https and AWS_CA_BUNDLE"),
    "EndpointConnectionError": _UNREACHABLE,
    "ConnectTimeoutError": _UNREACHABLE,
    "ProxyConnectionError": (Problem.UNREACHABLE, "the proxy cannot be reached; check HTTPS_PROXY and NO_PROXY"),
    "ReadTimeoutError": _BUSY,
    "ConnectionClosedError": _BUSY,
    "HTTPClientError": _BUSY,
    "ResponseStreamingError": _BUSY,
    "IncompleteReadError": _BUSY,
    "IncompleteRead": _BUSY,
    "ClientPayloadError": _BUSY,
    # An answer that is no S3 answer: a gateway's page in its place.
    "ResponseParserError": _BUSY,
    "FSTimeoutError": _BUSY,
    "FileExpired": (Problem.OTHER, "the file changed while it was read; run the same command again"),
}
_ERRNOS: dict[int, tuple[Problem, str]] = {
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: (Problem.MISSING, "a part of this path is a file, not a folder"),
    errno.EISDIR: (Problem.OTHER, "this is a folder; a file was expected"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: (Problem.FORBIDDEN, "the file system is read-only"),
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _QUOTA,
    errno.EFBIG: _TOO_LARGE,
    errno.ENAMETOOLONG: (Problem.OTHER, "this name is too long for the file system"),
    errno.ELOOP: (Problem.OTHER, "there are too many symbolic links in this path"),
    errno.ECONNREFUSED: _UNREACHABLE,
    errno.EHOSTUNREACH: _UNREACHABLE,
    errno.ENETUNREACH: _UNREACHABLE,
    errno.EBUSY: _BUSY,
    errno.ESTALE: _BUSY,
    errno.ETIMEDOUT: _BUSY,
}
_BUILTINS: tuple[tuple[type[BaseException], Problem, str], ...] = (
    (FileNotFoundError, *_MISSING),
    (PermissionError, *_FORBIDDEN),
    (IsADirectoryError, Problem.OTHER, "this is a folder; a file was expected"),
    (ssl.SSLError, *_TYPES["SSLError"]),
    (socket.gaierror, Problem.UNREACHABLE, "this host name cannot be resolved; check AWS_ENDPOINT_URL and the network"),
    (ConnectionError, *_BUSY),
    (TimeoutError, *_BUSY),
)
