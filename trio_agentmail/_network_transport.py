"""What carries requests to the REST API over the network. Imported when it is needed, since httpx is slow to import."""

import ssl

import httpx
import trio

from ._handshake import refused_by_proxy
from ._proxy import DEFAULT_PORTS, Proxy, authority
from ._why import PROXY_HINT, connecting_failed, story, tls_failed, words_of

__all__ = ["NetworkTransport"]


class NetworkTransport(httpx.AsyncHTTPTransport):
    """httpx's own, through a proxy if there is one, whose errors say why. It asks the environment for nothing."""

    def __init__(self, ssl_context: ssl.SSLContext, proxy: Proxy | None) -> None:
        super().__init__(
            verify=ssl_context,
            trust_env=False,
            proxy=None if proxy is None else _as_httpx_has_it(proxy, ssl_context),
        )
        self._proxy = proxy

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError as exc:
            failure = type(exc)(self._words_of(exc, request.url), request=request)
        # Outside of the block, so that what is raised does not drag along what holds the headers.
        raise failure

    def _words_of(self, failure: httpx.TransportError, url: httpx.URL) -> str:
        host, port = url.host, url.port or DEFAULT_PORTS[url.scheme]
        server = f"{host} port {port}"
        if self._proxy is not None:
            if isinstance(failure, httpx.ProxyError) and (status := str(failure)[:3]).isdecimal():
                return str(refused_by_proxy(self._proxy, int(status), authority(host, port)))
            server = f"{server} through {self._proxy}"
        if not isinstance(failure, httpx.ConnectError):
            return words_of(failure)
        causes = list(story(failure))
        if any(isinstance(cause, trio.BrokenResourceError) for cause in causes):
            return str(tls_failed(failure, server))
        refused = next(cause for cause in causes if isinstance(cause, OSError))
        if self._proxy is not None:
            return str(connecting_failed(refused, self._proxy.host, str(self._proxy)))
        return str(connecting_failed(refused, host, server, PROXY_HINT))


def _as_httpx_has_it(proxy: Proxy, ssl_context: ssl.SSLContext) -> httpx.Proxy:
    context = ssl_context if proxy.scheme == "https" else None
    return httpx.Proxy(proxy.url, auth=proxy.credentials, ssl_context=context)
