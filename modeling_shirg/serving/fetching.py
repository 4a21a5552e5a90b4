"""Fetching an image for someone else: public addresses only, at every hop, and never more bytes than allowed."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

_MAX_REDIRECTS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
# Never fetched from, whatever `is_global` says, which changes with the version of Python: IANA's special-purpose
# registries of IPv4 and IPv6, every IPv6 form that carries an IPv4 address, and Azure's metadata service.
_DENIED = tuple(
    map(
        ipaddress.ip_network,
        """
        0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
        192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
        198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
        ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23
        2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
        """.split(),
    )
)
# All that is assigned to hosts of the internet so far.
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an address is of the open internet: not loopback, private, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _DENIED):
        return False
    return ip.is_global and (ip.version == 4 or ip in _GLOBAL_IPV6)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


class PublicBackend(httpcore.NetworkBackend):
    """Opens connections to public addresses only, to the very address that was checked.

    It stands where the connection is made, so a redirect, and a name that resolves to another address the second time,
    pass the same check.
    """

    def __init__(
        self,
        resolver: Callable[[str, int], list[str]] = resolve,
        network: httpcore.NetworkBackend | None = None,
    ):
        self._resolver = resolver
        self._network = network or httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to `host`.

        Raises:
            ValueError: one of its addresses is not public, or it has none.
            httpcore.ConnectTimeout: it was not found in `timeout` seconds.
        """
        start = time.monotonic()
        try:
            addresses = self._resolved(host, port, timeout)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{host} has no address ({error}).") from None
        if not addresses or not all(map(is_public, addresses)):
            raise ValueError(f"{host} is not a public address: send the image itself, as a data: URL.")
        left = None if timeout is None else _left(start + timeout, httpcore.ConnectTimeout)
        return self._network.connect_tcp(addresses[0], port, left, local_address, socket_options)

    def _resolved(self, host: str, port: int, timeout: float | None) -> list[str]:
        """What the resolver finds, which has no timeout of its own: one that takes too long ends for nobody."""
        found: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                found.set_result(self._resolver(host, port))
            except (OSError, UnicodeError) as error:
                found.set_exception(error)

        Thread(target=look_up, daemon=True).start()
        wait([found], timeout)
        if not found.done():
            raise httpcore.ConnectTimeout(f"{host} was not found in time.")
        return found.result()

    def connect_unix_socket(self, *args, **kwargs) -> httpcore.NetworkStream:
        """Never."""
        raise ValueError("Images are not fetched from sockets of this machine.")


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every operation gets the time that is left until a deadline.

    httpcore's own timeouts are per operation: a server that sends a byte now and then would never run into them.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: float):
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As the connection's; `httpcore.ReadTimeout` once the deadline has passed."""
        return self._stream.read(max_bytes, _left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As the connection's; `httpcore.WriteTimeout` once the deadline has passed."""
        self._stream.write(buffer, _left(self._deadline, httpcore.WriteTimeout))

    def close(self) -> None:
        """As the connection's."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """As the connection's; `httpcore.ConnectTimeout` once the deadline has passed."""
        left = _left(self._deadline, httpcore.ConnectTimeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """As the connection's."""
        return self._stream.get_extra_info(info)


class _TimedBackend(httpcore.NetworkBackend):
    """Opens the connections of another backend, all with one deadline."""

    def __init__(self, backend: httpcore.NetworkBackend, deadline: float):
        self._backend = backend
        self._deadline = deadline

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *args, **kwargs) -> _TimedStream:
        """As the backend's; `httpcore.ConnectTimeout` once the deadline has passed."""
        left = _left(self._deadline, httpcore.ConnectTimeout)
        return _TimedStream(self._backend.connect_tcp(host, port, left, *args, **kwargs), self._deadline)


def _left(deadline: float, error: type[httpcore.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("It took too long.")
    return left


def fetch(
    url: str, max_bytes: int, deadline: float, backend: httpcore.NetworkBackend | None = None
) -> tuple[str, bytes]:
    """The content type and the bytes at a URL.

    Args:
        url: http or https.
        max_bytes: of what is there.
        deadline: until when it must have come, by `time.monotonic`.
        backend: opens the connections; by default to public addresses only.

    Raises:
        ValueError: the URL, an address on the way, the answer's status, its size or its slowness; the message says
            which.
    """
    timed = _TimedBackend(backend or PublicBackend(), deadline)
    with httpcore.ConnectionPool(network_backend=timed) as pool:
        for _ in range(_MAX_REDIRECTS + 1):
            _check_url(url)
            try:
                kind, content, target = _get(pool, url, max_bytes)
            except httpcore.TimeoutException:
                raise ValueError(f"The image at {url} did not come in time.") from None
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise ValueError(f"{url} could not be fetched: {type(error).__name__} {error}".rstrip()) from None
            if target is None:
                return kind, content
            url = urljoin(url, target)
    raise ValueError(f"{url} is behind more than {_MAX_REDIRECTS} redirects.")


def _check_url(url: str) -> None:
    if not url.isascii():
        raise ValueError(f"{url!r} must be ASCII: write the host as xn--... and the path percent-encoded.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password:
        raise ValueError(f"{url!r} must be http://HOST/... or https://HOST/..., without a user name.")


def _get(pool: httpcore.ConnectionPool, url: str, max_bytes: int) -> tuple[str, bytes, str | None]:
    """Content type, bytes and, instead of both, where a redirect points to."""
    headers = {"accept": "image/*", "accept-encoding": "identity"}
    with pool.stream("GET", url, headers=headers) as response:
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in _REDIRECTS and "location" in found:
            return "", b"", found["location"]
        if response.status != 200:
            raise ValueError(f"{url} answered with status {response.status}.")
        content = bytearray()
        for chunk in response.iter_stream():
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"The image at {url} is larger than {max_bytes} bytes.")
    return found.get("content-type", ""), bytes(content), None
