"""Who may come in, how often, and over which wire."""

import hashlib
import hmac
import logging
import os
import ssl
import time

from tailorbird.errors import ConfigError
from tailorbird.serve.config import ServeConfig

log = logging.getLogger(__name__)
KEY_VARIABLE = "TAILORBIRD_API_KEY"
SCHEMES = ("api-key", "bearer")
MIN_KEY = 16  # characters: what is shorter is guessed
MAX_WORDS = 400  # characters of a message, which may repeat what the peer itself wrote


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()  # headers are any bytes


class Keys:
    """The keys that are let in; without one, everybody is. Digests are kept and compared, of one length."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None) -> bool:
        """Takes as long whichever key it is, or none of them."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        equal = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() in SCHEMES and any(equal)


def load_keys(cfg: ServeConfig) -> Keys:
    """From the file that the settings name, else from the environment.

    Raises:
        ConfigError: there is none and the address can be reached from elsewhere; or one is easily guessed.
    """
    if cfg.api_key_file is not None:
        try:
            found = cfg.api_key_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the keys in {cfg.api_key_file}: {error}") from None
        if not found:
            raise ConfigError(f"{cfg.api_key_file} is empty: write one key a line")
    else:
        found = os.environ.get(KEY_VARIABLE, "").split()
    if not all(key.isascii() for key in found):
        raise ConfigError(
            "a key is not all ASCII, and headers carry no other: `openssl rand -hex 32` makes one"
        )
    if any(len(key) < MIN_KEY for key in found):
        raise ConfigError(f"a key has fewer than {MIN_KEY} characters: `openssl rand -hex 32` makes one")
    if not found and not cfg.is_loopback:
        raise ConfigError(
            f"{cfg.host} can be reached from elsewhere, and whoever reaches it could drive: name keys with "
            f"--api-key-file or {KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    if cfg.cert is None and not cfg.is_loopback:
        log.warning("keys and pictures go to %s in clear: --cert and --cert-key encrypt them", cfg.host)
    return Keys(found)


def load_tls(cfg: ServeConfig) -> ssl.SSLContext | None:
    """Raises ConfigError when the certificate and its key cannot be used."""
    if cfg.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cfg.cert, cfg.cert_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"no certificate with its key in {cfg.cert} and {cfg.cert_key}: {error}") from None
    return context


class Rate:
    """At most `hz` a second on average, with bursts of a second's worth."""

    def __init__(self, hz: float) -> None:
        self._hz = hz
        self._left, self._at = max(1.0, hz), time.monotonic()

    def admit(self, cost: float = 1.0) -> bool:
        """cost: as how many it counts. One that costs more than a burst has to wait for a full one."""
        now, most = time.monotonic(), max(1.0, self._hz)
        self._left = min(most, self._left + self._hz * (now - self._at))
        self._at = now
        if self._left < min(cost, most):
            return False
        self._left -= cost
        return True
