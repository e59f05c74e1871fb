"""What the log says of configurations and certificates: by the supervisor for all workers, or by a gateway alone."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from mailgate.config import Config
from mailgate.errors import ConfigError
from mailgate.heritage import Logger
from mailgate.net.tls import ServerTls
from mailgate.observe.metrics import Metrics, SupervisorMetrics

EXPIRY_WARNING: Final = timedelta(days=14)
"""How early the log warns of a certificate's end; automatic renewal happens weeks before that."""

Counted = Metrics | SupervisorMetrics


def warn(config: Config, tls: ServerTls | None, logger: Logger) -> None:
    """Warn of what is in force but questionable."""
    for warning in config.warnings:
        logger.warning("configuration", warning=warning)
    warn_of_expiry(tls, logger)
    if config.pop3.store is not None and config.pop3.store.path is not None:
        _warn_of_store(config.pop3.store.path, logger)


def _warn_of_store(path: Path, logger: Logger) -> None:
    """Warn of a store that is not there, which may be a lost one, or that others may read."""
    try:
        found = path.stat()
    except OSError:
        found = None
    if found is None or not found.st_size:
        advice = "right for the first start; if clients were here before, stop mailgate and restore it from its backup"
        logger.warning("the store of POP3 clients' unique-ids will be made anew", path=str(path), advice=advice)
    elif found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning(
            "others may read or change the store of POP3 clients' unique-ids", path=str(path), advice="chmod 600"
        )


def warn_of_expiry(tls: ServerTls | None, logger: Logger) -> None:
    """Warn of certificates that end soon."""
    for path, end in tls.expiry().items() if tls is not None else ():
        if end - datetime.now(UTC) < EXPIRY_WARNING:
            logger.warning("a certificate ends soon", path=path, not_after=end.isoformat())


def certificates_read(problems: list[str], tls: ServerTls | None, metrics: Counted, logger: Logger) -> None:
    """Tell what became of certificates that were read again."""
    for problem in problems:
        metrics.reload_failures.inc()
        logger.error("a replaced certificate is unusable, the old one stays in force", problem=problem)
    if not problems:
        logger.info("certificates are up to date")
    warn_of_expiry(tls, logger)


def reloaded(changed: list[str], metrics: Counted, logger: Logger) -> None:
    """Tell that a configuration is in force."""
    metrics.reloads.inc("ok")
    logger.info("configuration reloaded", changed=changed)


def refused(error: ConfigError, metrics: Counted, logger: Logger) -> None:
    """Tell everything that is wrong with a configuration."""
    metrics.reloads.inc("refused")
    for problem in error.problems:
        logger.error("reload refused, the old configuration stays in force", problem=str(problem))
