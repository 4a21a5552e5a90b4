"""Fetching an image for someone else: public addresses only, at every hop, and never more bytes than allowed."""

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import anyio
import httpcore

_MAX_REDIRECTS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
# Never fetched from, whatever `is_global` says, which changes with the version of Python: IANA's special-purpose
# registries of IPv4 and IPv6, every IPv6 form that carries an IPv4 address, and Azure's metadata service.
_DENIED = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
    198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23
    2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
""".split()
# All that is assigned to hosts of the internet so far.
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an address is of the open internet: not loopback, private, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address)
    if any(ip in ipaddress.ip_network(network) for network in _DENIED):
        return False
    return ip.is_global and (ip.version == 4 or ip in _GLOBAL_IPV6)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host name."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in entries))


class PublicBackend(httpcore.AnyIOBackend):
    """Opens connections to public addresses only, to the very address that was checked.

    Every connection passes the check: redirects too, and a name that resolves to another address the second time.
    """

    def __init__(self, resolver: Callable[[str, int], list[str]] = resolve):
        self._resolver = resolver

    async def connect_tcp(self, host: str, port: int, *args, **kwargs) -> httpcore.AsyncNetworkStream:
        """A connection to `host`; a `ValueError` if an address of the name is not public, or there is none."""
        try:
            # A look-up has no timeout of its own: a cancelled one goes on in a thread that nobody waits for.
            addresses = await anyio.to_thread.run_sync(self._resolver, host, port, abandon_on_cancel=True)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{host} has no address ({error}).") from None
        if not addresses or not all(map(is_public, addresses)):
            raise ValueError(f"{host} is not a public address: send the image itself, as a data: URL.")
        return await self.connect_checked(addresses[0], port, *args, **kwargs)

    async def connect_checked(self, address: str, port: int, *args, **kwargs) -> httpcore.AsyncNetworkStream:
        """A connection to an address that was found public."""
        return await super().connect_tcp(address, port, *args, **kwargs)


async def fetch(url: str, max_bytes: int, backend: httpcore.AsyncNetworkBackend | None = None) -> tuple[str, bytes]:
    """The content type and the bytes at a URL; a `ValueError` if anything on the way is refused or fails.

    The caller sets a deadline with `asyncio.timeout`. By default connections go to public addresses only.
    """
    async with httpcore.AsyncConnectionPool(network_backend=backend or PublicBackend()) as pool:
        for _ in range(_MAX_REDIRECTS + 1):
            _check_url(url)
            try:
                kind, content, target = await _get(pool, url, max_bytes)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
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


async def _get(pool: httpcore.AsyncConnectionPool, url: str, max_bytes: int) -> tuple[str, bytes, str | None]:
    """Content type, bytes and, instead of both, the target of a redirect."""
    sent = {"accept": "image/*", "accept-encoding": "identity"}
    async with pool.stream("GET", url, headers=sent) as response:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in _REDIRECTS and "location" in headers:
            return "", b"", headers["location"]
        if response.status != 200:
            raise ValueError(f"{url} answered with status {response.status}.")
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"The image at {url} is larger than {max_bytes} bytes.")
    return headers.get("content-type", ""), bytes(content), None
